"""Two network namespaces joined by a veth pair, one of them entered by the test's thread.

    here: h0 10.99.0.1/24 2001:db8:99::1/64  ──────  there: t0 10.99.0.2/24 2001:db8:99::2/64

The test's thread (and threads that it starts) sees only `here`. /sys stays the machine's own: sysfs belongs
to the namespace that it was mounted in.
"""

import asyncio
import ctypes
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Space:
    def __init__(self, number: int = 0) -> None:
        self.here = f"lbdt-h{os.getpid()}-{number}"
        self.there = f"lbdt-t{os.getpid()}-{number}"

    def ip(self, command: str, there: bool = False) -> None:
        run("ip", "-n", self.there if there else self.here, *command.split())

    def ip_json(self, command: str) -> list[dict[str, Any]]:
        out = run("ip", "-n", self.here, "-j", *command.split())
        return [entry for entry in json.loads(out or "[]") if entry]

    def batch(self, lines: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "-n", self.here, "-force", "-batch", "-"], stdin=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write("\n".join(lines) + "\n")
        process.stdin.close()
        return process

    def listen(self, address: str, port: int) -> socket.socket:
        """A socket of the other namespace: it stays there, whoever uses it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(Path("/run/netns") / self.there):
            return socket.create_server((address, port), family=family, backlog=64)

    def add_pair(self, queues: int = 1) -> None:
        ends = f"numtxqueues {queues} numrxqueues {queues}"
        self.ip(f"link add h0 {ends} type veth peer name t0 netns {self.there} {ends}")
        for name, host, there in (("h0", 1, False), ("t0", 2, True)):
            self.ip(f"addr add 10.99.0.{host}/24 dev {name}", there)
            self.ip(f"addr add 2001:db8:99::{host}/64 dev {name} nodad", there)
            self.ip(f"link set {name} up", there)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@contextmanager
def space() -> Iterator[Space]:
    made = Space()
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        for name in (made.here, made.there):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            # no duplicate detection: without a link-local address the kernel cannot resolve IPv6 neighbours
            off = [f"net.ipv6.conf.{which}.accept_dad=0" for which in ("all", "default")]
            run("ip", "netns", "exec", name, "sysctl", "-qw", *off)
        made.add_pair()
        entered = os.open(Path("/run/netns") / made.here, os.O_RDONLY)
        try:
            enter(entered)
        finally:
            os.close(entered)
        yield made
    finally:
        enter(own)
        os.close(own)
        for name in (made.here, made.there):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def inside(path: str | Path) -> Iterator[None]:
    """The calling thread, and the sockets that it makes, in the network namespace of this file."""
    own, other = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        enter(other)
        yield
    finally:
        enter(own)
        os.close(own)
        os.close(other)


async def until(condition: Callable[[], Any], seconds: float, what: str) -> float:
    """Wait until it holds; how long that took. Polls, since nothing tells when the kernel is ready."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        assert loop.time() - start < seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
    return loop.time() - start
