# SPDX-License-Identifier: Apache-2.0
"""Inside the lab VM: sets each case up, has vmgen send through it, prints what it counted; vm.py starts it.

    guest.py VMGEN ROUNDS      gen0 (vmgen) ═hub═ in0 | kernel or lbd | out0 ═hub═ sink0 (filters all of it out)

A JSON object a line. In the VM a nanosecond is an instruction. While it counts, lbd's master is stopped (SIGSTOP): health checks
and supervision have nothing to do with a packet's cost, and the worker goes on without it. The worker sleeps when idle (poll =
"interrupt"), so that no spinning is in the count; under load that mode does what the others do.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.lvs.mode import (
    FLOWS,
    IN_ADDRESS,
    LARGE,
    LIP,
    MACS,
    MODES,
    OUT_ADDRESS,
    PORT,
    SERVER,
    SERVER_MAC,
    SMALL,
    Mode,
    number,
    vip,
)

RING = 512  # packets the NIC takes; a burst must fit. virtio: as vm.py tells qemu
XSK_RING = 1024  # NB: with a FILL ring smaller than virtio-net's own, its refill work and NAPI wake each other without end (6.18)
READY_S = 200.0  # the guest's
CONFIG = """
[daemon]
run_dir = "{run}"
[workers]
poll = "interrupt"
heartbeat_limit = "60s"
[tables]
connections_ipv4 = 16384
connections_ipv6 = 64
frames = 4096
services = 16
real_servers = 16
hugepages = "off"
[metrics]
listen = ""
[[interface]]
name = "in0"
zero_copy = "{zero_copy}"
ring = {ring}
[[interface]]
name = "out0"
zero_copy = "{zero_copy}"
ring = {ring}
[[local_address]]
address = "{lip}"
interface = "out0"
"""
SERVICE = """
[[service]]
name = "{name}"
address = "{vip}:{port}"
protocol = "udp"
scheduler = "rr"
{fields}
[[service.real_server]]
address = "{server}:{port}"
"""


def sh(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def until(what: str, test: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            if last := test():
                return last
        except (RuntimeError, ValueError) as error:
            last = error
        time.sleep(0.1)
    raise SystemExit(f"{what}: not within {seconds:.0f} s: {last}")


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def cpu_time(pid: int) -> int:
    """ns; what interrupts took meanwhile is not in it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) if pid else 0


class Generator:
    """vmgen, with orders on its standard input."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen([program, "gen0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.line() == "ready"
        until("gen0 has a link", lambda: Path("/sys/class/net/gen0/operstate").read_text() == "up\n", 20)

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"vmgen ended with status {self.process.wait()}")
        return line

    def order(self, what: str, case: int, to: str, *more: int) -> Iterator[str]:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, (what, case, MACS["in0"], to, PORT, FLOWS, *more))) + "\n")
        self.process.stdin.flush()
        while True:
            yield (line := self.line())
            if line.startswith("done"):
                return

    def warm(self, case: int, to: str) -> None:
        list(self.order("warm", case, to))

    def run(self, system: str, mode: Mode, to: str, rounds: int, worker: int = 0) -> None:
        counts: dict[str, list[int]] = {}
        before = cpu_time(worker)
        sent = 0
        for line in self.order("run", number(system, mode), to, SMALL, LARGE, rounds):
            *what, n = line.split()
            if what == ["done"]:
                sent = int(n)
            else:
                counts.setdefault(" ".join(what), []).append(int(n))
        say(system=system, mode=mode.name, sent=sent, counts=counts, worker=cpu_time(worker) - before)


def network() -> None:
    by_mac = {(p / "address").read_text().strip(): p.name for p in Path("/sys/class/net").iterdir()}
    for name, mac in MACS.items():
        sh("ip", "link", "set", by_mac[mac], "name", name)
    for name in MACS:
        sh("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1", f"net.ipv4.conf.{name}.rp_filter=0")
        subprocess.run(["ethtool", "-G", name, "rx", str(RING), "tx", str(RING)], capture_output=True)  # virtio: as qemu says
        sh("ip", "link", "set", name, "up")
    sh("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.all.send_redirects=0")
    sh("ip", "address", "add", f"{IN_ADDRESS}/16", "dev", "in0")
    sh("ip", "address", "add", f"{OUT_ADDRESS}/16", "dev", "out0")
    sh("ip", "neigh", "replace", SERVER, "lladdr", SERVER_MAC, "dev", "out0", "nud", "permanent")
    until("links", lambda: all(Path(f"/sys/class/net/{n}/operstate").read_text() == "up\n" for n in MACS), 20)


# -- the kernel ----------------------------------------------------------------------------------------------------------


def kernel(generator: Generator, rounds: int) -> None:
    for mode in MODES:
        if mode.ipvs is None:
            continue
        to = vip(mode) if mode.ipvs else SERVER
        if mode.ipvs:
            sh("ip", "address", "add", f"{to}/32", "dev", "lo")
            sh("ipvsadm", "-A", "-u", f"{to}:{PORT}", "-s", "rr")
            sh("ipvsadm", "-a", "-u", f"{to}:{PORT}", "-r", f"{SERVER}:{PORT}", mode.ipvs)
        generator.warm(number("kernel", mode), to)
        generator.run("kernel", mode, to, rounds)
        if mode.ipvs:
            held = sh("ipvsadm", "-Lnc").count(f" {to}:{PORT} ")
            if held != FLOWS:
                raise SystemExit(f"IPVS holds {held} connections of {FLOWS} flows")
            sh("ipvsadm", "-C")
            sh("ip", "address", "del", f"{to}/32", "dev", "lo")


# -- lbd -----------------------------------------------------------------------------------------------------------------


def service(mode: Mode) -> str:
    fields = "\n".join(f"{name} = {json.dumps(value)}" for name, value in (mode.lbd or {}).items())
    return SERVICE.format(name=mode.name, vip=vip(mode), port=PORT, server=SERVER, fields=fields)


def accepted(system: str, head: str) -> list[Mode]:
    """The modes that lbd's configuration knows; says which it does not."""
    from lbd.config import ConfigError, loads

    out = []
    for mode in MODES:
        if mode.lbd is None:
            continue
        try:
            loads(head + service(mode))
            out.append(mode)
        except ConfigError as error:
            say(system=system, mode=mode.name, refused=str(error).splitlines()[-1].strip())
    return out


@contextmanager
def daemon(config: Path, run: Path) -> Iterator[Callable[..., Any]]:
    """lbd; gives a function that asks it."""
    command = [sys.executable, "-m", "lbd.cli.main"]

    def ask(*words: str) -> Any:
        if process.poll() is not None:
            raise SystemExit("lbd ended:\n" + log.read_text())
        return json.loads(sh(*command, "-s", str(run / "control.sock"), *words, "-j"))

    log = config.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "run", str(config)], stdout=out, stderr=subprocess.STDOUT)
    try:
        until("lbd is ready", lambda: ask("status")["ready"], READY_S)
        yield ask
    except BaseException:
        print(log.read_text(), file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def worker_alone(worker: int) -> Iterator[None]:
    """All other processes of lbd stand still."""
    pids = []
    for directory in Path("/proc").glob("[0-9]*"):
        if b"lbd" in (directory / "cmdline").read_bytes() and int(directory.name) not in (worker, os.getpid()):
            pids.append(int(directory.name))
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def warm_up(generator: Generator, ask: Callable[..., Any], system: str, mode: Mode) -> bool:
    """Until all flows have passed: some drivers take their link down for seconds when a program is attached."""
    def sent() -> int:
        return sum(q["tx_packets"] for w in ask("worker")["workers"] for q in w["queues"] if q["interface"] == "out0")

    for _ in range(10):
        before = sent()
        generator.warm(number(system, mode), vip(mode))
        if sent() - before >= FLOWS:
            return True
    say(system=system, mode=mode.name, failed=f"of {FLOWS} packets {sent() - before} left: {json.dumps(ask('drops'))}")
    return False


def lbd(generator: Generator, system: str, zero_copy: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        run = Path(directory, "run")
        run.mkdir(mode=0o700)
        head = CONFIG.format(run=run, zero_copy=zero_copy, ring=XSK_RING, lip=LIP)
        modes = accepted(system, head)
        config = Path(directory, "lbd.toml")
        config.write_text(head + "".join(map(service, modes)))
        with daemon(config, run) as ask:
            got = {i["mode"] for i in ask("status")["interfaces"]}
            if got != {system.removeprefix("lbd ")}:
                raise SystemExit(f"{system}: the sockets are {got}")
            (worker,) = ask("worker")["workers"]
            for mode in modes:
                if warm_up(generator, ask, system, mode):
                    with worker_alone(worker["pid"]):
                        generator.run(system, mode, vip(mode), rounds, worker["pid"])


def main(program: str, rounds: int) -> None:
    network()
    generator = Generator(program)
    kernel(generator, rounds)
    for system, zero_copy in (("lbd zero-copy", "require"), ("lbd copy", "off")):
        lbd(generator, system, zero_copy, rounds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
