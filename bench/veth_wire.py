# SPDX-License-Identifier: Apache-2.0
"""The wire that packets are counted on, the tools on it, and which core does what.

    gen:g0 ══ eth0:lb:eth1 ══ s0:sink      veth pairs, one queue each, IPv4 alone

Neighbours are static and the sink has one address per real server. The kernel of `lb` routes between both sides; what
AF_XDP steers to a socket it never sees. Method and pitfalls: README.md.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbd.testbed import Namespace, TestbedError
from lbd.testbed.testbed import config_text

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "build/bench/vethbench"
RING, FRAMES, BATCH, BUDGET = 2048, 8192, 64, 64
VIP, VPORT, LIPS, LIP_PORTS = "10.1.0.10", 8080, ("10.2.0.101", "10.2.0.102"), "10240-65535"
SERVERS, SERVER_PORT = tuple(f"10.2.0.{n}" for n in range(1, 5)), 80
CLIENT = "10.1.0.1"
MACS = {
    "g0": "02:1b:d0:01:00:02",
    "eth0": "02:1b:d0:01:00:01",
    "eth1": "02:1b:d0:02:00:01",
    "s0": "02:1b:d0:02:00:02",
}


@dataclass(frozen=True)
class Placement:
    """Which core does what."""

    generator: int  # and all that receives from it in its softirq
    worker: int  # what forwards, and in its transmit calls the sink
    others: int  # this process, lbd's master, nginx and the like


def placement() -> Placement:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench/veth: needs two cores: one sends, one forwards")
    return Placement(cores[0], cores[1], cores[2] if len(cores) > 2 else cores[0])


class Wire:
    def __init__(self, prefix: str, servers: int = len(SERVERS)) -> None:
        self.prefix, self.servers = prefix, SERVERS[:servers]
        self.gen, self.lb, self.sink = (Namespace(f"{prefix}-{role}") for role in ("gen", "lb", "sink"))
        self.directory = Path("/dev/shm") / prefix

    def __enter__(self) -> "Wire":
        self.down()
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def up(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for ns in (self.gen, self.lb, self.sink):
            ns.add()
            ns.sysctl(net__ipv6__conf__all__disable_ipv6=1, net__ipv6__conf__default__disable_ipv6=1)
        for ns, end, near in ((self.gen, "g0", "eth0"), (self.sink, "s0", "eth1")):
            queues = "numrxqueues 1 numtxqueues 1"
            ns.ip(
                f"link add {end} address {MACS[end]} {queues} type veth "
                f"peer name {near} address {MACS[near]} {queues} netns {self.lb.name}"
            )
            for side, device in ((ns, end), (self.lb, near)):  # NAPI, without which veth takes no XDP frame
                side.run(["ethtool", "-K", device, "gro", "on"])
        # 64,000 flows take all ports of two LIPs; the kernel's own connections keep below them
        self.lb.sysctl(
            net__ipv4__ip_local_port_range="2000 9999", net__ipv4__ip_forward=1, net__ipv4__conf__all__rp_filter=0
        )
        self.gen.ip(f"address add {CLIENT}/16 dev g0", "link set g0 up", "route add 10.2.0.0/16 via 10.1.255.254")
        self.lb.ip("address add 10.1.255.254/16 dev eth0", "link set eth0 up")
        self.lb.ip("address add 10.2.255.254/16 dev eth1", "link set eth1 up")
        self.sink.ip(*(f"address add {a}/16 dev s0" for a in self.servers), "link set s0 up")
        self.sink.ip("route add 10.1.0.0/16 via 10.2.255.254")
        known = "nud permanent"
        self.gen.ip(*(f"neigh replace {a} lladdr {MACS['eth0']} dev g0 {known}" for a in (VIP, "10.1.255.254")))
        self.lb.ip(f"neigh replace {CLIENT} lladdr {MACS['g0']} dev eth0 {known}")
        self.lb.ip(*(f"neigh replace {a} lladdr {MACS['s0']} dev eth1 {known}" for a in self.servers))
        self.sink.ip(*(f"neigh replace {a} lladdr {MACS['eth1']} dev s0 {known}" for a in (*LIPS, "10.2.255.254")))

    def __exit__(self, *what: object) -> None:
        self.down()

    def down(self) -> None:
        for ns in (self.lb, self.gen, self.sink):
            ns.remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    def config(self, poll: str, core: int, fifo: bool) -> str:
        return config_text(
            {
                "daemon": {"run_dir": str(self.directory / "lbd"), "log_level": "warning"},
                "workers": {"cores": [core], "poll": poll, "fifo_priority": int(fifo)},
                "tables": {"frames": FRAMES},
                "interface": [{"name": n, "ring": RING, "zero_copy": "off"} for n in ("eth0", "eth1")],
                "local_address": [{"address": a, "interface": "eth1", "ports": LIP_PORTS} for a in LIPS],
                "metrics": {"listen": ""},
                "service": [
                    {
                        "name": "udp", "address": f"{VIP}:{VPORT}", "protocol": "udp", "scheduler": "rr",
                        "interface": "eth0", "real_server": [{"address": f"{a}:{SERVER_PORT}"} for a in self.servers],
                    }
                ],
            }
        )  # fmt: skip


# --- vethbench ------------------------------------------------------------------------------------------


def build() -> None:
    subprocess.run(["make", "--no-print-directory", "-s", "-C", ROOT / "bench/veth"], check=True)


def tool(ns: Namespace, core: int, *argv: object, fifo: bool = False) -> "subprocess.Popen[bytes]":
    """vethbench in a namespace, pinned. What it reports is read by `report`."""
    words = [str(TOOL), *map(str, argv), "-C", str(core)]
    if fifo:
        words = ["chrt", "-f", "1", *words]
    return ns.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def await_ready(process: "subprocess.Popen[bytes]") -> None:
    assert process.stderr is not None
    line = process.stderr.readline()
    if line != b"ready\n":
        raise TestbedError(f"vethbench: {line.decode()}{process.stderr.read().decode()}")


def report(process: "subprocess.Popen[bytes]", end: bool = True) -> dict[str, Any]:
    """Its last words, after SIGTERM or its own end."""
    if end:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    if process.returncode:
        raise TestbedError(f"vethbench: status {process.returncode}: {err.decode()}")
    words: dict[str, Any] = json.loads(out)
    return words


@contextmanager
def running(ns: Namespace, core: int, *argv: object, fifo: bool = False) -> "Iterator[subprocess.Popen[bytes]]":
    """vethbench, once it is ready, until the end of the block."""
    process = tool(ns, core, *argv, fifo=fifo)
    try:
        await_ready(process)
        yield process
        if process.returncode is None:
            report(process)
    finally:
        process.kill()
        process.communicate()
