# SPDX-License-Identifier: Apache-2.0
"""A large configuration and the network that it balances, for control.py.

    client ─ eth0 ══ eth0:lb:eth1 ══ switch ══ rs1, which answers for every real server

Scope: namespaces, the configuration's text, a daemon whose start, effects and memory are seen from outside: by its notices to
systemd, by its workers' segments (mapped read-only through the master's descriptors), by /proc.

Every service has a VIP of its own, which lbd adds to `lo` and removes; every real server has an address of its own behind one
gateway, and is checked over TCP. The kernel of rs1 takes all of these connections (a local route for the whole network) and
without a process: with TCP_DEFER_ACCEPT a connection is there after the handshake, and gone with the check's RST, but never
waits for accept(). One service more has a real server whose listener comes and goes.
"""

import ctypes
import fcntl
import http.client
import json
import os
import select
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.priority import prefer
from lbd.shm import _shm as shm
from lbd.testbed.daemon import Daemon, UnixConnection
from lbd.testbed.netns import NAMESPACES, Namespace, TestbedError, wait_until
from lbd.testbed.topology import LB_CLIENT, Topology

PORT = 8080  # of the real servers
LEAVING_PORT = 8099  # of the one that comes and goes
LEAVING = "leaving"  # its service
SERVER_NET, VIP_NET = "10.96.0.0/12", "198.18.0.0/15"
BACKLOG = 65535
CLONE_NEWNET = 0x40000000
NICE = -10
NO_HEADERS: Mapping[str, str] = {}

_libc = ctypes.CDLL(None, use_errno=True)


def vip(service: int) -> str:
    return f"198.18.{service // 250}.{service % 250 + 1}"


def real_server(number: int) -> str:
    number += number // 250 * 6 + 1  # neither .0 nor .251 and above
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def service_text(
    name: str, address: str, interval: str, fall: int, servers: list[tuple[str, int]], scheduler: str = "wrr"
) -> str:
    head = (
        f'[[service]]\nname = "{name}"\naddress = "{address}"\nscheduler = "{scheduler}"\n'
        f'[service.health]\ntype = "tcp"\ninterval = "{interval}"\ntimeout = "{interval}"\nrise = 1\nfall = {fall}\n'
    )
    return head + "".join(f'[[service.real_server]]\naddress = "{a}"\nweight = {w}\n' for a, w in servers)


class Site:
    """Up between enter and exit; `directory` holds the configuration, the log and the run directory."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.directory = Path("/dev/shm") / prefix
        self.topology = Topology(prefix, queues=2, servers=1, lips=1)
        self._listeners: list[socket.socket] = []
        self._leaving: socket.socket | None = None
        self.daemons: list[Daemon] = []

    def __enter__(self) -> "Site":
        self.down()
        self.directory.mkdir(parents=True)
        try:
            self.topology.up()
            server = self.topology.servers[0]
            server.ns.ip(f"route add local {SERVER_NET} dev lo")
            server.ns.sysctl(net__core__somaxconn=BACKLOG, net__ipv4__tcp_max_syn_backlog=BACKLOG)
            self.topology.lb.ip(f"route add {SERVER_NET} via {server.address4}")
            self.topology.client.ns.ip(f"route add {VIP_NET} via {LB_CLIENT[0]}")
            self._listeners = [self.listen(PORT)]
            self.leave(False)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *what: object) -> None:
        self.down()

    def down(self) -> None:
        for daemon in self.daemons:
            daemon.end()
        self.daemons = []
        self.leave(True)
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        self.topology.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- the network -----------------------------------------------------------------------------------------

    def listen(self, port: int) -> socket.socket:
        def make() -> socket.socket:
            listener = socket.create_server(("0.0.0.0", port), backlog=BACKLOG)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
            return listener

        return inside(self.topology.servers[0].ns, make)

    def leave(self, gone: bool) -> None:
        """The one real server's listener."""
        if gone and self._leaving is not None:
            self._leaving.close()
            self._leaving = None
        elif not gone and self._leaving is None:
            self._leaving = self.listen(LEAVING_PORT)

    def dial(self, address: str, seconds: float) -> float:
        """When the first connection through lbd was there (monotonic): an attempt each 5 ms."""

        def attempts() -> float:
            poll, trying = select.poll(), {}
            deadline = time.monotonic() + seconds
            try:
                while time.monotonic() < deadline:
                    sock = socket.socket()
                    sock.setblocking(False)
                    sock.connect_ex((address, 80))
                    trying[sock.fileno()] = sock
                    poll.register(sock, select.POLLOUT)
                    for fd, _ in poll.poll(5):
                        if trying[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                            return time.monotonic()
                        poll.unregister(fd)
                        trying.pop(fd).close()
            finally:
                for sock in trying.values():
                    sock.close()
            raise TestbedError(f"no connection to {address} within {seconds:g} s")

        return inside(self.topology.client.ns, attempts)

    # -- the configuration -----------------------------------------------------------------------------------

    def config(self, services: int, servers: int, interval: str, scheduler: str) -> str:
        head = (
            f'[daemon]\nrun_dir = "{self.directory}/lbd"\n[workers]\ncount = 2\n'
            '[tables]\nservices = 4096\nreal_servers = 32768\nhugepages = "off"\n'
            '[[interface]]\nname = "eth0"\nzero_copy = "off"\n[[interface]]\nname = "eth1"\nzero_copy = "off"\n'
            f'[[local_address]]\naddress = "{self.topology.lips4[0]}"\ninterface = "eth1"\n'
        )
        parts = [head]
        for s in range(services):
            rows = [(f"{real_server(s * servers + r)}:{PORT}", 1 + r % 4) for r in range(servers)]
            parts.append(service_text(f"service-{s}", f"{vip(s)}:80", interval, 3, rows, scheduler))
        leaving = [(f"{real_server(services * servers)}:{LEAVING_PORT}", 1), (f"{real_server(0)}:{PORT}", 1)]
        parts.append(service_text(LEAVING, f"{vip(services)}:80", "50ms", 1, leaving))
        return "".join(parts)

    @contextmanager
    def daemon(self, text: str) -> Iterator["Watched"]:
        """lbd, from its process's start on."""
        file = self.directory / "lbd.toml"
        file.write_text(text)
        watched = Watched(self, file)
        self.daemons.append(watched.daemon)
        try:
            watched.wait_started()
            yield watched
        except (OSError, TestbedError) as error:
            raise TestbedError(f"{error}\n{watched.daemon.log()}") from None
        finally:
            watched.end()
            self.daemons.remove(watched.daemon)


class Watched:
    """A daemon and what is seen of it from outside."""

    def __init__(self, site: Site, file: Path) -> None:
        notices = site.directory / "notify"
        notices.unlink(missing_ok=True)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(notices))
        os.environ["NOTIFY_SOCKET"] = str(notices)
        self.stopping = 0.0  # seconds from SIGTERM to its end
        self.started = time.monotonic()
        self.daemon = Daemon(site.topology.lb, file, site.directory / "lbd", site.directory / "lbd.log")
        del os.environ["NOTIFY_SOCKET"]
        prefer(self.daemon.pid, nice=NICE)
        self.segments: list[shm.WorkerSegment] = []
        self.control = UnixConnection(self.daemon.control, 60)

    def wait_started(self, seconds: float = 120) -> None:
        """Sets `ready`, the seconds from the process's start to its READY=1."""
        self._notices.settimeout(0.1)
        deadline = self.started + seconds
        while time.monotonic() < deadline:
            try:
                said = self._notices.recv(4096)
            except TimeoutError:
                if self.daemon.process.poll() is not None:
                    raise TestbedError(f"lbd run ended with status {self.daemon.process.returncode}") from None
                continue
            if b"READY=1" in said.split(b"\n"):
                self.ready = time.monotonic() - self.started
                self.ready_cpu = self.cpu_seconds()
                self.segments = self._map_segments()
                prefer(*self.daemon.ns.pids(), nice=NICE)
                return
        raise TestbedError(f"lbd is not ready within {seconds:g} s")

    def _map_segments(self) -> list[shm.WorkerSegment]:
        found: dict[int, shm.WorkerSegment] = {}
        for path in Path(f"/proc/{self.daemon.pid}/fd").iterdir():
            try:
                if os.readlink(path).startswith("/memfd:lbd-worker-"):
                    fd = os.open(path, os.O_RDONLY)
                    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
                    segment = shm.WorkerSegment.adopt(fd, read_only=True)
                    found.setdefault(segment.worker, segment)
            except FileNotFoundError:  # closed meanwhile
                continue
        return [found[n] for n in sorted(found)]

    def end(self) -> None:
        self.control.close()
        self._notices.close()
        for segment in self.segments:
            segment.close()
        began = time.monotonic()
        if self.daemon.process.poll() is None:
            self.daemon.stop(60)
        self.stopping = time.monotonic() - began
        wait_until("the workers have ended", lambda: not self.daemon.ns.pids(), 20)

    # -- what it answers -------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
        """One request over the connection that is kept."""
        try:
            self.control.request(method, path, None if body is None else json.dumps(body), dict(headers))
            answer = self.control.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise TestbedError(f"{method} {path}: {error!r}") from None
        if answer.status >= 400:
            raise TestbedError(f"{method} {path}: {answer.status}: {text.decode(errors='replace')}")
        return text

    def get(self, path: str) -> Any:
        return json.loads(self.request("GET", path))

    # -- what its processes are ------------------------------------------------------------------------------

    def cpu_seconds(self) -> float:
        """CPU time of the master, all threads."""
        tasks = Path(f"/proc/{self.daemon.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def loop_seconds(self) -> float:
        """CPU time of the master's main thread, that of the event loop."""
        return int(Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/schedstat").read_text().split()[0]) / 1e9

    def resident(self, what: str = "VmRSS") -> int:
        """Bytes of the master."""
        for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024
        raise TestbedError(f"no {what} of process {self.daemon.pid}")

    def generations(self) -> list[int]:
        return [segment.gen_applied for segment in self.segments]

    def dest(self, number: int) -> list[dict[str, Any]]:
        """A real server's record, by worker."""
        return [dict(segment.dests())[number] for segment in self.segments]


def inside(ns: Namespace, work: Any) -> Any:
    """The result of `work()`, called by a thread in that namespace: sockets that it makes stay there."""

    def entered() -> Any:
        fd = os.open(NAMESPACES / ns.name, os.O_RDONLY)
        try:
            if _libc.setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {ns.name}")
        finally:
            os.close(fd)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(entered).result()
