# SPDX-License-Identifier: Apache-2.0
"""Packets per second at the sink, through each forwarder in turn: bench/veth.py's part `pps`.

The generator offers more than anything can forward; the sink's XDP program counts by tenths of a second, and a run's
figure is the median of them, so that a tenth in which something else had the core does not count.
"""

import argparse
import statistics
from dataclasses import dataclass
from functools import partial

from bench.compare import Row, alternate
from bench.veth_forwarder import Forwarder, Service, Site, forwarding
from bench.veth_wire import LIPS, MACS, SERVER_PORT, VIP, VPORT, Placement, Wire, report, running, tool
from lbd.testbed import TestbedError
from lbd.testbed.daemon import Daemon

WARM_UP = 5  # tenths of a second: the generator starts, connections are made
IMIX = (60, 60, 590, 60, 60, 590, 60, 590, 60, 1514, 60, 590)  # 7:4:1 of 64, 594 and 1518 bytes on the wire


@dataclass(frozen=True)
class Traffic:
    name: str
    flows: int
    sizes: tuple[int, ...]  # of the frames in turn, without the FCS

    @property
    def case(self) -> str:
        return f"UDP, {self.name}, {self.flows:,} flow{'s' * (self.flows > 1)}"


def traffics(flows: list[int], mixed: bool) -> list[Traffic]:
    sizes = [Traffic("IMIX", 1000, IMIX), Traffic("1,518 bytes", 1000, (1514,))] if mixed else []
    return [Traffic("64 bytes", n, (60,)) for n in flows] + sizes


def site(wire: Wire, place: Placement, fifo: bool) -> Site:
    def start(poll: str) -> Daemon:
        file = wire.directory / "lbd.toml"
        file.write_text(wire.config(poll, place.worker, fifo))
        return Daemon(wire.lb, file, wire.directory / "lbd", wire.directory / "lbd.log", ("taskset", "-c", str(place.others)))

    service = Service("udp", VIP, VPORT, wire.servers, SERVER_PORT, LIPS)
    return Site(wire.lb, MACS["g0"], MACS["s0"], (service,), start, fifo, complete=False)


def rate(wire: Wire, place: Placement, traffic: Traffic, forwarder: Forwarder, args: argparse.Namespace) -> float:
    """Mpps, through whatever forwards now. Balancers get what is addressed to the service, others to the real server."""
    balances = forwarder.flows is not None
    to, port = (VIP, VPORT) if balances else (wire.servers[0], SERVER_PORT)
    with running(wire.sink, place.others, "sink", "-i", "s0", "-p", SERVER_PORT, "-t", 600) as sink:
        gen = tool(
            wire.gen, place.generator, "gen", "-i", "g0", "-d", MACS["eth0"], "-s", "10.1.0.0", "-D", to, "-p", port,
            "-n", traffic.flows, "-l", ",".join(map(str, traffic.sizes)), "-t", args.seconds, fifo=args.fifo,
        )  # fmt: skip
        report(gen, end=False)
        seen = report(sink)
    slots: list[int] = seen["slots"]
    while slots and not slots[-1]:
        slots.pop()
    whole = slots[WARM_UP:-1]
    if seen["bad"] or not whole:
        raise TestbedError(f"the sink saw {seen['packets']} packets, of a sample {seen['bad']} with wrong length or checksum")
    mean, sent = seen["bytes"] / seen["packets"], statistics.mean(traffic.sizes)
    if abs(mean / sent - 1) > 0.02:
        raise TestbedError(f"{forwarder.name}: frames of {mean:.0f} bytes arrive, of {sent:.0f} are sent: sizes are lost unevenly")
    if forwarder.flows:
        # nftables: batches pass a hook as one, and several first packets of a flow are each given a server; the kernel keeps
        # all of them (nf_ct_resolve_clash)
        held, extra = forwarder.flows(), 0 if forwarder.daemon else 64
        if not traffic.flows <= held <= traffic.flows + extra:
            raise TestbedError(f"{forwarder.name} holds {held} connections of {traffic.flows} flows")
    return statistics.median(whole) * 10 / 1e6


def pps(args: argparse.Namespace, place: Placement) -> list[Row]:
    rows = []
    with Wire(f"{args.prefix}-pps") as wire:
        where = site(wire, place, args.fifo)
        for traffic in traffics(args.flows, args.mixed):

            def run(name: str, traffic: Traffic = traffic) -> float:
                with forwarding(name, where, place, args.poll) as forwarder:
                    return rate(wire, place, traffic, forwarder, args)

            seen = alternate(traffic.case, "Mpps", args.runs, {name: partial(run, name) for name in args.forwarders})
            lbd = seen.pop("lbd")
            params = {"flows": traffic.flows, "frame_bytes": round(statistics.mean(traffic.sizes) + 4, 1), "poll": args.poll}
            for name, runs in seen.items():
                goal = {"AF_XDP": 0.95, "nftables": 1.5, "nftables, inline": 1.5}.get(name)
                rows.append(Row(traffic.case, params, "Mpps", lbd, name, runs, goal))
    return rows
