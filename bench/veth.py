#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lbd beside other forwarders on the same veth pairs and cores, in one run: `make bench-veth`.

    pps      UDP packets per second at the sink: 64 bytes in 1, 1,000 and 64,000 flows, IMIX, 1,518 bytes
    tcp      wrk (connections kept, and one for each request) and iperf3, both directions, IPv4 and IPv6
    latency  round trips at 1,000 packets per second in the three poll modes
    idle     CPU time without traffic in the three poll modes

Beside lbd: a bare AF_XDP forwarder without tables, plain kernel forwarding, nftables DNAT and SNAT. Runs alternate, a
figure is the median of the runs, the ratio that of the medians: absolute figures of a shared machine drift, the ratio
drifts less. The table is printed, bench/out/veth.json has a row per figure and peer. Method, pitfalls, and what the
figures do not show: README.md.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.compare import Row, show, write  # noqa: E402
from bench.veth_forwarder import FORWARDERS  # noqa: E402
from bench.veth_idle import idle  # noqa: E402
from bench.veth_latency import latency  # noqa: E402
from bench.veth_pps import pps  # noqa: E402
from bench.veth_tcp import tcp  # noqa: E402
from bench.veth_wire import Placement, build, placement  # noqa: E402

PARTS: dict[str, Callable[[argparse.Namespace, Placement], list[Row]]] = {
    "pps": pps,
    "tcp": tcp,
    "latency": latency,
    "idle": idle,
}
QUICK = {"runs": 1, "seconds": 2, "latency_seconds": 1, "idle_seconds": 2, "flows": [1000], "families": [4]}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="lbd beside other forwarders, on veth")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these: {', '.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=3, help="of each forwarder, alternating (%(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="of each run of pps and tcp (%(default)s)")
    parser.add_argument("--latency-seconds", type=int, default=10, help="of each run of latency (%(default)s)")
    parser.add_argument("--idle-seconds", type=int, default=10, help="of each run of idle (%(default)s)")
    parser.add_argument("--flows", type=int, nargs="+", default=[1, 1000, 64000], help="with 64-byte frames")
    parser.add_argument("--mixed", action=argparse.BooleanOptionalAction, default=True, help="IMIX and 1,518 bytes, too")
    parser.add_argument("--families", type=int, nargs="+", default=[4, 6], choices=[4, 6], help="of iperf3")
    parser.add_argument("--case", action="append", default=[], metavar="TEXT", help="of tcp: with this in its name; repeatable")
    parser.add_argument("--poll", choices=["busy", "adaptive", "interrupt"], default="busy", help="in pps, tcp (%(default)s)")
    parser.add_argument("--peers", nargs="+", default=list(FORWARDERS[1:]), choices=FORWARDERS[1:], metavar="PEER",
                        help=f"beside lbd: {'; '.join(FORWARDERS[1:])} (all)")  # fmt: skip
    parser.add_argument("--no-fifo", dest="fifo", action="store_false", help="pps without SCHED_FIFO")
    parser.add_argument("--quick", action="store_true", help="a minute: one short run of each, one flow count, IPv4")
    parser.add_argument("--require", action="store_true", help="exit status 1 if a goal is missed")
    parser.add_argument("-o", "--out", type=Path, help="(bench/out/veth.json; of a part, bench/out/veth-PART.json)")
    parser.add_argument("--prefix", default=f"lbdt-{os.getpid()}", help="of the namespaces' names")
    first = parser.parse_args(argv)
    if first.quick:  # what is asked for besides overrides it
        parser.set_defaults(**QUICK, mixed=False)
        first = parser.parse_args(argv)
    if unknown := set(first.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if max(first.flows) > 64000 or min(first.flows) < 1:
        parser.error("--flows: 1 to 64000, which the local addresses have ports for")
    if min(first.runs, first.latency_seconds, first.idle_seconds) < 1 or first.seconds < 2:
        parser.error("--runs, --latency-seconds and --idle-seconds are 1 at least, --seconds 2")
    if os.geteuid():
        parser.error("needs root (network namespaces)")
    first.parts = first.parts or list(PARTS)
    first.forwarders = ["lbd", *(name for name in FORWARDERS[1:] if name in first.peers)]
    return first


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("bench/veth: ended by a signal"))  # and what it started with it
    build()
    place = placement()
    # what is started here and not placed elsewhere keeps off the worker's core
    os.sched_setaffinity(0, {place.others})
    name = "veth" if set(args.parts) == set(PARTS) else "-".join(["veth", *args.parts])
    out = args.out or ROOT / f"bench/out/{name}.json"
    rows: list[Row] = []
    for part in (part for part in PARTS if part in args.parts):
        rows += PARTS[part](args, place)
        write(rows, out)  # what was measured is not lost if the next part fails
    show(rows)
    missed = [row for row in rows if row.met is False]
    print(f"\nwritten: {out}; goals: {sum(row.met is True for row in rows)} met, {len(missed)} missed")
    return 1 if args.require and missed else 0


if __name__ == "__main__":
    sys.exit(main())
