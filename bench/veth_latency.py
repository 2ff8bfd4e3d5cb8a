# SPDX-License-Identifier: Apache-2.0
"""Round-trip times at 1,000 packets per second, by poll mode: bench/veth.py's part `latency`.

`vethbench ping` in the generator's namespace, `vethbench echo` in the sink's, both on the generator's core; both
directions go through the forwarder. Nobody else's priority is real-time: such a spinning forwarder would be held back
for 50 ms of every second.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

from bench.compare import Row, alternate
from bench.priority import prefer
from bench.veth_forwarder import Forwarder, Service, Site, forwarding
from bench.veth_pps import site as pps_site
from bench.veth_wire import LIPS, SERVER_PORT, VIP, VPORT, Placement, Wire, report, running, tool
from lbd.testbed import TestbedError

MODES = ("busy", "adaptive", "interrupt")
RATE = 1000
PERCENTILES = {"p50": "median", "p99": "99 %", "p999": "99.9 %"}


def round_trips(wire: Wire, place: Placement, forwarder: Forwarder, args: argparse.Namespace) -> dict[str, Any]:
    """The report of vethbench ping."""
    to, port = (VIP, VPORT) if forwarder.flows else (wire.servers[0], SERVER_PORT)
    with running(wire.sink, place.generator, "echo", "-p", SERVER_PORT, "-t", 600, fifo=True):
        prefer(os.getpid(), *wire.lb.pids())
        for seconds in (1, args.latency_seconds):  # the first is for connections to be made, and does not count
            ping = tool(wire.gen, place.generator, "ping", "-D", to, "-p", port, "-r", RATE, "-t", seconds, fifo=True)
            seen = report(ping, end=False)
    if not seen["sent"] or seen["received"] < 0.99 * seen["sent"]:
        drops = forwarder.daemon.get("/v1/drops")["drops"] if forwarder.daemon else []
        why = [f"{drop['reason']} {drop['packets']}" for drop in drops if drop["packets"]]
        raise TestbedError(f"{forwarder.name}: {seen['received']} of {seen['sent']} datagrams came back; {why}")
    return seen


def latency(args: argparse.Namespace, place: Placement) -> list[Row]:
    seen: dict[str, list[dict[str, Any]]] = {}
    with Wire(f"{args.prefix}-rtt", servers=1) as wire:
        service = Service("udp", VIP, VPORT, wire.servers, SERVER_PORT, LIPS)
        where: Site = pps_site(wire, place, False)
        where.complete, where.services = True, (service,)

        def measure(name: str, poll: str, key: str) -> Callable[[], float]:
            def run() -> float:
                with forwarding(name, where, place, poll) as forwarder:
                    figures = round_trips(wire, place, forwarder, args)
                seen.setdefault(key, []).append(figures)
                return float(figures["p50"])

            return run

        each = {f"lbd, {poll}": ("lbd", poll) for poll in MODES}
        each |= {"AF_XDP, busy": ("AF_XDP", "busy"), "AF_XDP, sleeping": ("AF_XDP", "interrupt")}
        each |= {name: (name, "") for name in ("kernel, inline", "nftables, inline")}
        runs = {key: measure(name, poll, key) for key, (name, poll) in each.items() if name in args.forwarders}
        alternate("round trip, median", "µs", args.runs, runs)
    return rows(seen)


def rows(seen: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """A poll mode of lbd's beside the bare forwarder that waits alike, and beside the kernel."""
    out = []
    for poll in MODES:
        peers = ["AF_XDP, busy" if poll == "busy" else "AF_XDP, sleeping", "kernel, inline", "nftables, inline"]
        for key, name in PERCENTILES.items():
            figures = [float(run[key]) for run in seen[f"lbd, {poll}"]]
            params = {"poll": poll, "rate": RATE, "percentile": key}
            for peer in peers:
                if peer in seen:
                    theirs = [float(run[key]) for run in seen[peer]]
                    out.append(Row(f"round trip, {name}, {poll}", params, "µs", figures, peer, theirs))
    return out
