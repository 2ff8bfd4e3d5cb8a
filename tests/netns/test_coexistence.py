# SPDX-License-Identifier: Apache-2.0
"""Who else lives on lbd's interfaces lives on while lbd's traffic saturates them.

    client ── eth0 ── lb ── eth1 ── switch ── rs1 rs2
      ospfd ········ ospfd                          adjacency over eth0; hello 1 s, dead after 4 s
      ssh ·········· sshd                           on lb's own address; a line every 200 ms
                     keepalived ············ keepalived   VRRP over eth1; lb is master, rs2 stays backup; advert 1 s

One worker, and one queue on each interface, so that the neighbours' packets have no other way than the load's. The load:
64-byte UDP to a service from the kernel's own generator (bench/veth), as fast as it goes, several times what the worker
takes; then bulk TCP in both directions. The worker has a core, the generator another one, and the neighbours run where
the scheduler finds them room: at ordinary priority, as these two do, so that none of them starves.

Needs two cores, frr, keepalived, openssh and what bench/veth is built with.
"""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lbd.testbed import Namespace, Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import log_tail, wait_until
from lbd.testbed.testbed import config_text
from lbd.testbed.topology import LB_CLIENT
from tests.netns.conftest import make

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.alone, pytest.mark.slow]

FRR = Path("/usr/lib/frr")
BENCH = Path(__file__).resolve().parents[2] / "bench/veth"
GENERATOR = BENCH / "../../build/bench/vethbench"
FLOOD_PORT = 9
FLOOD_SECONDS = 8
BULK_SECONDS = 4
BUSY = 0.9
STALL_LIMIT = 3.0  # seconds that the SSH session may wait for a line
VRRP_ADDRESS = "10.77.0.250"


@pytest.fixture(scope="module")
def tools() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores: one for the worker, one for who saturates it")
    wanted = {"frr": FRR / "ospfd", "keepalived": shutil.which("keepalived"), "openssh-server": "/usr/sbin/sshd"}
    wanted |= {"openssh-client": shutil.which("ssh"), "frr (vtysh)": shutil.which("vtysh")}
    if missing := [name for name, path in wanted.items() if not path or not Path(path).exists()]:
        pytest.skip(f"needs the Debian packages {', '.join(missing)} (make setup installs them)")
    built = subprocess.run(["make", "-s", "-C", BENCH], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"bench/veth can't be built: {built.stderr.strip()[-300:]}")


# --- the neighbours ---------------------------------------------------------------------------------------------------


class Ospf:
    """zebra and ospfd of one namespace. They run as the user frr, as their packages want it."""

    def __init__(self, testbed: Testbed, ns: Namespace, address: str) -> None:
        self.ns = ns
        self.directory = testbed.directory / f"frr-{ns.name}"
        self.directory.mkdir(mode=0o755)
        shutil.chown(self.directory, "frr", "frr")
        conf = self.directory / "ospfd.conf"
        conf.write_text(
            f"hostname {ns.name}\ninterface eth0\n ip ospf area 0 {address}\n ip ospf hello-interval 1\n"
            f" ip ospf dead-interval 4\nrouter ospf\n ospf router-id {address}\n log-adjacency-changes detail\n"
        )
        (self.directory / "zebra.conf").write_text(f"hostname {ns.name}\n")
        for name in ("zebra", "ospfd"):
            argv: list[str | Path] = [FRR / name, "-f", self.directory / f"{name}.conf", "-i", self.directory / f"{name}.pid"]
            argv += ["-z", self.directory / "zserv.api", "--vty_socket", self.directory, "-A", "127.0.0.1", "-P", "0"]
            argv += ["--log", f"file:{self.directory / name}.log", "--log-level", "informational"]
            with open(self.directory / f"{name}.out", "wb") as out:
                testbed.popen(ns, argv, stdout=out, stderr=subprocess.STDOUT)
            wait_until(f"{name} in {ns.name} answers", (self.directory / f"{name}.vty").exists, 10)

    def neighbours(self) -> list[dict[str, Any]]:
        show: list[str | Path] = ["vtysh", "--vty_socket", self.directory, "-c", "show ip ospf neighbor detail json"]
        words: dict[str, Any] = json.loads(self.ns.run(show))
        return [one for each in words["neighbors"].values() for one in (each if isinstance(each, list) else [each])]

    def full(self) -> bool:
        return any(n["nbrState"].startswith("Full") for n in self.neighbours())

    def state(self) -> tuple[str, int, float]:
        """State, number of its changes so far, time since the last one in seconds."""
        (one,) = self.neighbours()
        return one["nbrState"], one["stateChangeCounter"], one["lastPrgrsvChangeMsec"] / 1000


class Vrrp:
    """keepalived with one instance; what it became stands in its log."""

    def __init__(self, testbed: Testbed, ns: Namespace, interface: str, state: str, priority: int) -> None:
        directory = testbed.directory / f"vrrp-{ns.name}"
        directory.mkdir()
        conf = directory / "keepalived.conf"
        conf.write_text(
            "global_defs {\n vrrp_garp_master_repeat 1\n}\n"
            f"vrrp_instance one {{\n state {state}\n interface {interface}\n virtual_router_id 51\n"
            f" priority {priority}\n advert_int 1\n virtual_ipaddress {{\n  {VRRP_ADDRESS}/32 dev {interface}\n }}\n}}\n"
        )
        self.log = directory / "log"
        argv: list[str | Path] = ["keepalived", "-n", "-l", "-D", "-P", "-f", conf, "-p", directory / "keepalived.pid"]
        argv += ["-r", directory / "vrrp.pid", "-c", directory / "checkers.pid"]
        with open(self.log, "wb") as out:
            testbed.popen(ns, argv, stdout=out, stderr=subprocess.STDOUT)

    def transitions(self) -> list[str]:
        return re.findall(r"Entering (\w+) STATE", self.log.read_text(errors="replace"))


class Ssh:
    """A session through the balancer's own address: a line there, the same line back, and how long that took."""

    def __init__(self, testbed: Testbed, address: str) -> None:
        d = testbed.directory / "ssh"
        d.mkdir(mode=0o700)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", d / name], check=True)
        (d / "authorized").write_text((d / "user.pub").read_text())
        (d / "sshd_config").write_text(
            f"ListenAddress {address}\nHostKey {d}/host\nPidFile {d}/sshd.pid\nAuthorizedKeysFile {d}/authorized\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nUsePAM no\nForceCommand cat\n"
        )
        self.log = d / "sshd.log"
        with open(self.log, "wb") as out:
            testbed.popen(testbed.balancer, ["/usr/sbin/sshd", "-D", "-e", "-f", d / "sshd_config"], stderr=out)
        wait_until("sshd listens", lambda: "listening on" in self.log.read_text(), 10)
        argv: list[str | Path] = ["ssh", "-T", "-F", "none", "-i", d / "user", "-o", "BatchMode=yes"]
        argv += ["-o", f"UserKnownHostsFile={d}/known", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", f"root@{address}"]
        self.process = testbed.popen(testbed.client, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.lines, self.longest, self.error = 0, 0.0, ""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _talk(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            while not self._ends.wait(0.2):
                line, began = b"line %d\n" % self.lines, time.monotonic()
                self.process.stdin.write(line)
                if (back := self.process.stdout.readline()) != line:
                    raise OSError(f"{back!r} came back for {line!r}")
                self.longest = max(self.longest, time.monotonic() - began)
                self.lines += 1
        except OSError as error:
            self.error = f"after {self.lines} lines: {error}; {log_tail(self.log)}"

    def new_window(self) -> None:
        self.lines, self.longest = 0, 0.0

    def end(self) -> None:
        self._ends.set()
        self.process.kill()
        self._thread.join(5)


@pytest.fixture
def run_sshd() -> Iterator[None]:
    """The directory that Debian's sshd insists on; systemd makes it, where there is one."""
    directory = Path("/run/sshd")
    there = directory.exists()
    if not there:
        directory.mkdir(mode=0o755)
    yield
    if not there:
        directory.rmdir()


# --- the load ---------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What lbd did during it."""

    seconds: float
    busy: float = 0.0  # the worker, of its time
    packets: int = 0  # received
    overrun: int = 0  # that found a ring full, in front of the worker or behind it

    def __str__(self) -> str:
        return f"{self.packets / self.seconds:,.0f} packets/s, worker busy {self.busy:.0%}, {self.overrun:,} overrun"


@contextmanager
def measured(lbd: Daemon) -> Iterator[Load]:
    def look() -> tuple[float, dict[str, Any]]:
        return time.monotonic(), lbd.get("/v1/workers")["workers"][0]

    began, old = look()
    load = Load(0)
    yield load
    ended, new = look()
    load.seconds = ended - began
    busy = new["busy_seconds"] - old["busy_seconds"]
    load.busy = busy / (busy + new["idle_seconds"] - old["idle_seconds"])
    load.packets = new["received_packets"] - old["received_packets"]
    load.overrun = overrun(new) - overrun(old)


def overrun(worker: dict[str, Any]) -> int:
    return int(sum(q["rx_ring_full"] + q["rx_dropped"] + q["rx_fill_ring_empty"] + q["tx_full"] for q in worker["queues"]))


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def flood(testbed: Testbed) -> None:
    """64-byte UDP from 1000 clients."""
    argv = [GENERATOR, "gen", "-i", "eth0", "-d", testbed.topology.lb_macs["eth0"], "-s", "192.0.0.0"]
    argv += ["-D", testbed.vip(4), "-p", FLOOD_PORT, "-n", 1000, "-t", FLOOD_SECONDS, "-C", cores()[0]]
    process = testbed.popen(testbed.client, [str(word) for word in argv], stdout=subprocess.DEVNULL)
    assert process.wait(FLOOD_SECONDS + 20) == 0


# --- the test ---------------------------------------------------------------------------------------------------------


def configuration(testbed: Testbed) -> str:
    settings = testbed.settings(["web", "iperf"], [4])
    settings["workers"] = {"cores": [cores()[1]]}
    settings["service"].append(
        {
            "name": "flood", "address": f"{testbed.vip(4)}:{FLOOD_PORT}", "protocol": "udp", "scheduler": "rr",
            "interface": "eth0", "real_server": [{"address": f"{testbed.servers[0].host.address4}:{FLOOD_PORT}"}],
        }
    )  # fmt: skip
    return config_text(settings)


def test_routing_vrrp_and_ssh_live_on_beside_saturating_traffic(
    tools: None, run_sshd: None, record_property: Any
) -> None:
    with make(workers=1, servers=2) as testbed, ExitStack() as stack:
        lbd = testbed.lbd(configuration(testbed))
        rs1, rs2 = testbed.servers
        # What the flood reaches at its real server: a socket that nobody reads
        sink = testbed.popen(rs1.ns, ["python3", "-c", SINK, str(FLOOD_PORT)])
        here = Ospf(testbed, testbed.balancer, LB_CLIENT[0])
        there = Ospf(testbed, testbed.client, testbed.topology.client.address4)
        master = Vrrp(testbed, testbed.balancer, "eth1", "MASTER", 200)
        ssh = Ssh(testbed, LB_CLIENT[0])
        stack.callback(ssh.end)
        wait_until("keepalived is master", lambda: "MASTER" in master.transitions(), 15)
        backup = Vrrp(testbed, rs2.ns, "eth0", "BACKUP", 100)  # not before, or it could win the start
        wait_until("the other one is backup", lambda: "BACKUP" in backup.transitions(), 15)
        wait_until("the adjacency is full", lambda: here.full() and there.full(), 30)
        wait_until("the session answers", lambda: ssh.lines > 3 or ssh.error, 10)
        before = [here.state(), there.state()]
        began, became = time.monotonic(), (master.transitions(), backup.transitions())
        assert became[1] == ["BACKUP"], became
        ssh.new_window()

        with measured(lbd) as flooded:
            flood(testbed)
        with measured(lbd) as bulk:
            rates = [
                testbed.iperf3(4, seconds=BULK_SECONDS // 2, streams=4, reverse=reverse).bits_per_second
                for reverse in (False, True)
            ]
        passed = time.monotonic() - began
        for name, value in (
            ("flood", str(flooded)), ("bulk", f"{bulk}, {' and '.join(f'{r / 1e9:.2f}' for r in rates)} Gbit/s"),
            ("SSH", f"{ssh.lines} lines, the longest {ssh.longest:.2f} s"), ("OSPF", f"{here.state()} {there.state()}"),
        ):  # fmt: skip
            record_property(name, value)
            print(f"{name}: {value}")

        # the load was one
        assert flooded.busy >= BUSY and flooded.overrun, flooded
        assert flooded.packets > 50_000 and min(rates) > 50e6
        # OSPF: full, and nothing has changed since
        for (state, changes, age), (_, changes_before, _) in zip([here.state(), there.state()], before, strict=True):
            assert state.startswith("Full") and changes == changes_before and age >= passed
        # VRRP: the master stayed, and so did the backup
        assert (master.transitions(), backup.transitions()) == became
        assert VRRP_ADDRESS in testbed.balancer.run(["ip", "address", "show", "dev", "eth1"])
        assert VRRP_ADDRESS not in rs2.ns.run(["ip", "address"])
        # SSH: all lines, none late
        assert not ssh.error and ssh.process.poll() is None
        assert ssh.lines >= 0.3 * passed / 0.2 and ssh.longest <= STALL_LIMIT
        # and lbd itself
        assert [w["restarts"] for w in lbd.get("/v1/workers")["workers"]] == [0]
        assert testbed.curl(4).status == 200
        assert sink.poll() is None
        assert lbd.stop() == 0


SINK = """
import select, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", int(sys.argv[1])))
select.select([], [], [])
"""
