# SPDX-License-Identifier: Apache-2.0
"""Echo traffic through lbd in the testbed, and a look at what lbd then holds: frames and connections, counted exactly.

Used by test_crash.py and tests/chaos. Frames and records are read where they lie, in the area's ledger and the connection
files, by descriptors that a worker hands over as it does to a new master; nothing of lbd is asked to judge itself.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from lbd import _fastpath
from lbd.master.adoption import take
from lbd.shm import _shm as shm
from lbd.testbed import Namespace, Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import FAMILIES, config_text, endpoint

PORT = 7  # of the service
SERVER_PORT = 7007
NUMBERS = itertools.count(1)
Frames = dict[str, int]


def config(testbed: Testbed, **changes: Any) -> str:
    """The testbed's web service, and the echo service by TCP and UDP."""
    settings = testbed.settings(services=("web",))
    for family in FAMILIES:
        hosts = [server.host for server in testbed.servers]
        for protocol in ("tcp", "udp"):
            servers = [endpoint(h.address4 if family == 4 else h.address6, SERVER_PORT) for h in hosts]
            settings["service"].append(
                {
                    "name": f"echo-{protocol}{family}",
                    "address": endpoint(testbed.vip(family), PORT),
                    "protocol": protocol,
                    "scheduler": "rr",
                    "interface": "eth0",
                    "real_server": [{"address": address} for address in servers],
                }
            )
    for name, change in changes.items():
        settings[name] = settings[name] | change if isinstance(change, dict) else change
    return config_text(settings)


def serve(testbed: Testbed, ns: Namespace) -> None:
    """An echo server there, if there is none yet."""

    def listens() -> bool:
        return bool(ns.run(["ss", "-Hltn6", f"sport = :{SERVER_PORT}"]))

    if not listens():
        with open(testbed.directory / f"echo-{ns.name}.log", "ab") as log:
            argv = [sys.executable, "-m", "lbd.testbed.echo", str(SERVER_PORT)]
            testbed.popen(ns, argv, stdout=log, stderr=subprocess.STDOUT)
        wait_until("the echo server listens", listens, 10)


class Traffic:
    """A client that talks to the echo service, or to `targets`; real servers begin to serve with the first one."""

    def __init__(self, testbed: Testbed, **settings: Any) -> None:
        """`settings`: of lbd.testbed.talk.Settings."""
        for server in testbed.servers:
            serve(testbed, server.ns)
        self.settings = {"targets": [(testbed.vip(f), PORT) for f in FAMILIES]} | settings
        self.log = testbed.directory / f"talk-{next(NUMBERS)}.log"
        control = self.log.with_suffix(".sock")
        argv = [sys.executable, "-m", "lbd.testbed.talk", str(control), json.dumps(self.settings)]
        with open(self.log, "wb") as log:
            self.process = testbed.popen(testbed.client, argv, stdout=log, stderr=subprocess.STDOUT)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        wait_until("the client is there", lambda: self._connected(control), 10)
        self.lines = self.sock.makefile()

    def _connected(self, control: Path) -> bool:
        assert self.process.poll() is None, f"the client has ended: {self.log.read_text()}"
        try:
            self.sock.connect(str(control))
        except (FileNotFoundError, ConnectionRefusedError):  # not bound yet; or bound, and not listening yet
            return False
        return True

    def ask(self, word: str) -> dict[str, Any]:
        self.sock.sendall(f"{word}\n".encode())
        line = self.lines.readline()
        assert line, f"the client has ended: {self.log.read_text()}"
        return json.loads(line)

    def report(self) -> dict[str, Any]:
        return self.ask("report")

    def wait_open(self, seconds: float = 20) -> None:
        wanted = self.settings["streams"]

        def opened() -> bool:
            seen = self.report()
            assert not seen["error_count"], seen["errors"]
            return seen["open"] == wanted

        wait_until(f"{wanted} connections are open", opened, seconds)

    def wait_quiet(self, seconds: float = 20) -> None:
        """After a pause: every request is answered, and every probe that still will be."""
        wait_until("every request is answered", lambda: self.report()["waiting"] == 0, seconds)

    def stop(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.wait()


class Inside:
    """What lbd's processes share, by descriptors of one running worker. Good until all of them have ended."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(5)
            sock.connect(str(daemon.run_dir / "worker-0.sock"))
            given = take(sock)
        self.sizes: dict[str, int] = given.extra["sizes"]
        workers = range(self.sizes["workers"])
        self.area = shm.Area.adopt(os.dup(given.area), self.sizes)
        self.segments = [
            shm.WorkerSegment.adopt(os.dup(given.maps[f"segment:{n}"]), read_only=True) for n in workers
        ]
        self.ports = given.extra["ports"]
        given.close()

    def close(self) -> None:
        self.area.close()
        for segment in self.segments:
            segment.close()

    def frames(self, worker: int) -> Frames:
        """By holder: free fill work tx hand home, of the frames that are this worker's at home."""
        counts: Frames = dict.fromkeys(shm.FRAME_OWNERS, 0)
        for (owner, _), n in self.area.ledger(worker).items():
            counts[shm.FRAME_OWNERS[owner]] += n
        return counts

    def in_fill_rings(self, worker: int) -> int:
        return sum(self.segments[worker].queue(p["iface"])["fill_level"] for p in self.ports if p["worker"] == worker)

    def frame_faults(self) -> list[str]:
        """Sentences; none when every frame is where it belongs while nothing moves: free, or waiting in a fill ring."""
        found = []
        for worker in range(self.sizes["workers"]):
            counts, filled = self.frames(worker), self.in_fill_rings(worker)
            ctl = self.segments[worker].ctl()
            if sum(counts.values()) != self.sizes["frames"]:
                found.append(f"worker {worker}: {counts} are not {self.sizes['frames']} frames")
            held = {name: n for name, n in counts.items() if n and name not in ("free", "fill")}
            if held:
                found.append(f"worker {worker}: frames that nobody needs any more are held: {held}")
            if counts["fill"] != filled:
                found.append(f"worker {worker}: {counts['fill']} frames given to the kernel, {filled} in fill rings")
            if counts["free"] != ctl["free_frames"]:
                found.append(f"worker {worker}: {counts['free']} frames free, {ctl['free_frames']} on the list")
        return found

    def connections(self) -> list[dict[str, Any]]:
        """Live records of all workers."""
        found = []
        for worker in range(self.sizes["workers"]):
            with open(self.daemon.run_dir / f"conn-{worker}", "rb") as file:
                found += [c | {"worker": worker} for c in _fastpath.connections(file.fileno(), self.sizes, 1 << 20)]
        return found

    def table_faults(self, streams: int, flows: int, others: bool = False) -> list[str]:
        """Sentences; none when the table holds just these connections, each once and whole, and all counts agree.
        `others`: there may be more, to other services."""
        found = []
        records = self.connections()
        echo = [c for c in records if c["virtual"][1] == PORT]
        kinds = Counter((c["proto"], c["state"]) for c in (echo if others else records))
        if kinds != Counter({(6, "ESTABLISHED"): streams, (17, "UDP"): flows}):
            found.append(f"records: {dict(kinds)}")
        for name, ends in (
            # a record at rest holds its local port for an earlier connection of the same client's port
            ("client", Counter((c["proto"], c["client"], c["virtual"]) for c in records if not c.get("resting"))),
            ("local", Counter((c["proto"], c["local"], c["real_server"]) for c in records)),
        ):
            if twice := [end for end, n in ends.items() if n > 1]:
                found.append(f"{len(twice)} {name} ends are there twice, such as {twice[0]}")
        if lost := sum(c["svc"] is None or c["dest"] is None for c in records):
            found.append(f"{lost} records belong to no service or real server")
        for worker, segment in enumerate(self.segments):
            counts = {"in the table": sum(c["worker"] == worker for c in echo)} | self.counted(segment)
            if not others:
                ctl = segment.ctl()
                counts["by the worker"] = ctl["conns4"] + ctl["conns6"]
                counts["by local addresses"] = sum(segment.lip_stats(number)[-1] for number, _ in segment.lips())
            if len(set(counts.values())) > 1:
                found.append(f"worker {worker}: connections {counts}")
        return found

    @staticmethod
    def counted(segment: shm.WorkerSegment) -> dict[str, int]:
        """Connections of the echo services that a worker counts, active and inactive."""
        services = {number for number, s in segment.services() if s["port"] == PORT}
        dests = [number for number, d in segment.dests() if d["svc"] in services]
        return {
            "by services": sum(sum(segment.service_stats(number)[-2:]) for number in services),
            "by real servers": sum(sum(segment.dest_stats(number)[-2:]) for number in dests),
        }

    def settle(self, streams: int, flows: int, others: bool = False, seconds: float = 5) -> None:
        """With the traffic paused: until all is sound. AssertionError that says what is not."""
        faults: list[str] = []

        def sound() -> bool:
            faults[:] = self.frame_faults() + self.table_faults(streams, flows, others)
            return not faults

        try:
            wait_until("frames and connections are sound", sound, seconds)
        except Exception as e:
            raise AssertionError(f"{e}: {'; '.join(faults)}") from None


def worker_pids(daemon: Daemon) -> list[int]:
    """By worker number; of those that run."""
    return [w["pid"] for w in daemon.get("/v1/workers")["workers"]]


def lbd_processes(testbed: Testbed) -> list[int]:
    """All of lbd in the balancer's namespace: daemon, workers, who stands by."""
    found = []
    for pid in testbed.balancer.pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"lbd.worker" in command or b"lbd.cli" in command:
            found.append(pid)
    return found


def kill_all(testbed: Testbed) -> None:
    """SIGKILL to every process of lbd, and they are gone."""
    while pids := lbd_processes(testbed):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for daemon in testbed.daemons:
            daemon.process.poll()


def programs(ns: Namespace) -> dict[str, int]:
    """Interfaces with an XDP program, and its number."""
    links = json.loads(ns.run(["ip", "-j", "link", "show"]))
    return {link["ifname"]: link["xdp"]["prog"]["id"] for link in links if "xdp" in link}


def sockets(ns: Namespace) -> int:
    """AF_XDP sockets that are open, as the kernel counts them (ss --xdp needs CONFIG_XDP_SOCKETS_DIAG)."""
    rows = [line.split() for line in ns.run(["cat", "/proc/net/protocols"]).splitlines()]
    return sum(int(row[2]) for row in rows if row[0] == "XDP")


def addresses(ns: Namespace) -> set[str]:
    """Of all interfaces, without their lengths; link-local ones left out."""
    links = json.loads(ns.run(["ip", "-j", "address", "show"]))
    return {a["local"] for link in links for a in link["addr_info"] if a["scope"] == "global"}
