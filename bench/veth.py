#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lbd beside a bare AF_XDP forwarder, on the same veth pairs, in one run.

    pps    64-byte UDP, FULLNAT by lbd, for each number of flows: packets per second at the sink
    bulk   TCP by iperf3, both directions, through the testbed with one worker and one real server

Both forwarders get one core, one queue, the same ring sizes, burst, transmit budget and poll mode. Runs
alternate (bare, lbd, bare, lbd, …), the result is the ratio of the medians: absolute figures of a shared
machine drift, the ratio drifts less. Within a pps run the sink counts tenths of a second, and the run's
figure is their median, so that a tenth in which something else had the core does not count. Method and
pitfalls: README.md.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.compare import Comparison, alternate, machine, show  # noqa: E402
from lbd.testbed import Namespace, Testbed, TestbedError  # noqa: E402
from lbd.testbed.daemon import Daemon  # noqa: E402
from lbd.testbed.load import iperf3  # noqa: E402
from lbd.testbed.testbed import config_text  # noqa: E402

TOOL = ROOT / "build/bench/vethbench"
RING, FRAMES, BATCH, BUDGET = 2048, 8192, 64, 64
VIP, VPORT, LIPS = "10.1.0.10", 8080, ("10.2.0.101", "10.2.0.102")
SINK, SINK_PORT = "10.2.0.1", 80
MACS = {
    "g0": "02:1b:d0:01:00:02",
    "eth0": "02:1b:d0:01:00:01",
    "eth1": "02:1b:d0:02:00:01",
    "s0": "02:1b:d0:02:00:02",
}
WARM_UP = 5  # tenths of a second: the generator starts, lbd makes its connections


@dataclass(frozen=True)
class Placement:
    """Which core does what. Receiving (softirq) happens on the generator's, transmission on the worker's."""

    generator: int
    worker: int
    others: int


def placement() -> Placement:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench/veth: needs two cores: one sends, one forwards")
    return Placement(cores[0], cores[1], cores[2] if len(cores) > 2 else cores[0])


def prefer(*pids: int) -> None:
    """Nine times the share of ordinary processes. Not a real-time priority: under one a spinning forwarder
    starves ksoftirqd, which TCP's receive path needs, and the connection stands still. NB: each session is an
    autogroup of its own (sched(7)), across which plain nice says nothing."""
    for pid in pids:
        os.setpriority(os.PRIO_PROCESS, pid, -10)
        autogroup = Path(f"/proc/{pid}/autogroup")
        if autogroup.exists():
            autogroup.write_text("-10")


class Wire:
    """gen:g0 ══ eth0:lb:eth1 ══ s0:sink, one queue each."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.gen, self.lb, self.sink = (Namespace(f"{prefix}-{role}") for role in ("gen", "lb", "sink"))
        self.directory = Path("/dev/shm") / prefix

    def __enter__(self) -> "Wire":
        self.down()
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
        # 64,000 flows take all ports of two LIPs; the kernel's own connections keep below them
        self.lb.sysctl(net__ipv4__ip_local_port_range="2000 9999")
        self.gen.ip("address add 10.1.0.1/16 dev g0", "link set g0 up")
        self.lb.ip("address add 10.1.255.254/16 dev eth0", "link set eth0 up")
        self.lb.ip("address add 10.2.255.254/16 dev eth1", "link set eth1 up")
        self.sink.ip(f"address add {SINK}/16 dev s0", "link set s0 up")
        return self

    def __exit__(self, *what: object) -> None:
        self.down()

    def down(self) -> None:
        for ns in (self.lb, self.gen, self.sink):
            ns.remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    def config(self, args: argparse.Namespace, core: int) -> str:
        return config_text(
            {
                "daemon": {"run_dir": str(self.directory / "lbd"), "log_level": "warning"},
                "workers": {"cores": [core], "poll": args.poll, "fifo_priority": int(args.fifo)},
                "tables": {"frames": FRAMES},
                "interface": [{"name": n, "ring": RING, "zero_copy": "off"} for n in ("eth0", "eth1")],
                "local_address": [{"address": a, "interface": "eth1", "ports": "10240-65535"} for a in LIPS],
                "metrics": {"listen": ""},
                "service": [
                    {
                        "name": "udp", "address": f"{VIP}:{VPORT}", "protocol": "udp", "scheduler": "rr",
                        "interface": "eth0", "real_server": [{"address": f"{SINK}:{SINK_PORT}"}],
                    }
                ],
            }
        )  # fmt: skip


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
def bare(ns: Namespace, core: int, near: str, far: str, args: argparse.Namespace, fifo: bool, *more: str) -> Iterator[None]:
    """The bare forwarder between eth0 and eth1; `near` and `far` are the stations' MAC addresses."""
    options = ["-d", near, "-e", far, "-b", BATCH, "-x", BUDGET, "-R", RING, "-F", FRAMES, "-t", 600, *more]
    if args.poll != "busy":
        options.append("-w")
    process = tool(ns, core, "fwd", "-i", "eth0", "-o", "eth1", *options, fifo=fifo)
    try:
        await_ready(process)
        yield
        report(process)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def balancer(wire: Wire, place: Placement, args: argparse.Namespace) -> Iterator[Daemon]:
    file = wire.directory / "lbd.toml"
    file.write_text(wire.config(args, place.worker))
    prefix = ("taskset", "-c", str(place.others))
    daemon = Daemon(wire.lb, file, wire.directory / "lbd", wire.directory / "lbd.log", prefix)
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.end()
        wire.lb.end_processes()


def rate(wire: Wire, place: Placement, flows: int, port: int, args: argparse.Namespace) -> float:
    """Mpps at the sink, the median of the run's tenths of a second, through whatever forwards now."""
    sink = tool(wire.sink, place.others, "sink", "-i", "s0", "-p", SINK_PORT, "-t", 600)
    try:
        await_ready(sink)
        gen = tool(
            wire.gen, place.generator, "gen", "-i", "g0", "-d", MACS["eth0"], "-s", "10.1.0.0", "-D", VIP,
            "-p", port, "-n", flows, "-t", args.seconds, fifo=args.fifo,
        )  # fmt: skip
        report(gen, end=False)
        seen = report(sink)
    finally:
        sink.kill()
        sink.communicate()
    slots: list[int] = seen["slots"]
    while slots and not slots[-1]:
        slots.pop()
    whole = slots[WARM_UP:-1]
    if seen["bad"] or not whole:
        raise TestbedError(f"the sink saw {seen['packets']} packets, of a sample {seen['bad']} with bad checksums")
    return statistics.median(whole) * 10 / 1e6


def pps(args: argparse.Namespace, place: Placement) -> list[Comparison]:
    results = []
    with Wire(f"{args.prefix}-pps") as wire:
        for flows in args.flows:

            def bare_run(flows: int = flows) -> float:
                with bare(wire.lb, place.worker, MACS["g0"], MACS["s0"], args, args.fifo):
                    return rate(wire, place, flows, SINK_PORT, args)

            def lbd_run(flows: int = flows) -> float:
                with balancer(wire, place, args) as daemon:
                    figure = rate(wire, place, flows, VPORT, args)
                    held = daemon.get("/v1/status")["connections"]["ipv4"]
                    if held != flows:
                        raise TestbedError(f"lbd holds {held} connections of {flows} flows")
                    return figure

            name = f"64-byte UDP, {flows:,} flow{'s' * (flows > 1)}"
            results.append(alternate(name, "Mpps", args.runs, bare_run, None if args.bare_only else lbd_run))
    return results


def bulk(args: argparse.Namespace, place: Placement) -> list[Comparison]:
    results = []
    with Testbed(f"{args.prefix}-bulk", workers=1, servers=1, routing=True) as testbed:
        server = testbed.servers[0]
        config = testbed.config(
            services=["iperf"],
            workers={"cores": [place.worker], "count": 1, "poll": args.poll},
            tables={"frames": FRAMES, "hugepages": "auto"},
            interface={"ring": RING},
        )

        def measure(address: str, reverse: bool) -> float:
            # a new server for each run: a forwarder that ends takes the end of its last test with it
            server.stop("iperf3")
            server.start("iperf3")
            for pid in server.ns.pids():
                os.sched_setaffinity(pid, {place.generator})
            prefer(os.getpid(), *server.ns.pids(), *testbed.balancer.pids())  # the client inherits it from here
            prefix = ("taskset", "-c", str(place.generator))
            seen = iperf3(testbed.client, address, seconds=args.seconds, reverse=reverse, prefix=prefix)
            return seen.bits_per_second / 1e9

        for family in args.families:
            direct = server.host.address4 if family == 4 else server.host.address6
            for reverse in (False, True):

                def bare_run(direct: str = direct, reverse: bool = reverse) -> float:
                    client, far = testbed.topology.client.mac, server.host.mac
                    with bare(testbed.balancer, place.worker, client, far, args, False, "-c"):
                        return measure(direct, reverse)

                def lbd_run(family: int = family, reverse: bool = reverse) -> float:
                    daemon = testbed.lbd(config, prefix=("taskset", "-c", str(place.others)))
                    try:
                        return measure(testbed.vip(family), reverse)
                    finally:
                        daemon.end()
                        testbed.balancer.end_processes()

                way = "from" if reverse else "to"
                name = f"iperf3 {way} the server, IPv{family}"
                results.append(alternate(name, "Gbit/s", args.runs, bare_run, None if args.bare_only else lbd_run))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description="lbd beside a bare AF_XDP forwarder, on veth")
    parser.add_argument("what", nargs="?", choices=["pps", "bulk"], help="only this")
    parser.add_argument("--runs", type=int, default=3, help="of each forwarder, alternating (%(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="of each run (%(default)s)")
    parser.add_argument("--flows", type=int, nargs="+", default=[1, 1000, 64000])
    parser.add_argument("--families", type=int, nargs="+", default=[4, 6], choices=[4, 6], help="of bulk")
    parser.add_argument("--poll", choices=["busy", "adaptive", "interrupt"], default="busy", help="(%(default)s)")
    parser.add_argument(
        "--fifo",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="sender, forwarder at SCHED_FIFO 1",
    )
    parser.add_argument("--bare-only", action="store_true", help="the bare forwarder alone")
    parser.add_argument("--require", type=float, default=0, metavar="RATIO", help="exit status 1 below it")
    parser.add_argument("--prefix", default=f"lbdt-{os.getpid()}", help="of the namespaces' names")
    args = parser.parse_args()
    if os.geteuid():
        parser.error("needs root (network namespaces)")
    subprocess.run(["make", "--no-print-directory", "-s", "-C", ROOT / "bench/veth"], check=True)
    place = placement()
    results = []
    if args.what != "bulk":
        results += pps(args, place)
    if args.what != "pps":
        results += bulk(args, place)
    show(results, args.bare_only)
    out = ROOT / "bench/out"
    out.mkdir(exist_ok=True)
    document = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": machine(), "placement": asdict(place),
        "parameters": {**vars(args), "ring": RING, "frames": FRAMES, "batch": BATCH, "budget": BUDGET},
        "results": [{**asdict(c), **({} if args.bare_only else {"ratio": c.ratio})} for c in results],
    }  # fmt: skip
    (out / "veth.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten: {(out / 'veth.json').relative_to(ROOT)}")
    below = [c for c in results if not args.bare_only and c.ratio < args.require]
    for c in below:
        print(f"below {args.require}: {c.name}: {c.ratio:.3f}")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
