"""make bench-engine: ns per packet of a worker's loop in memory, on one core, beside the floor of its own table in the same run.

No root, no NIC. From receive descriptor to transmit descriptor by the shipped code, with what a worker's loop does around it;
frames of 60 bytes (IPv4) and 74 (IPv6), flows in random order; medians over passes of 8,192 packets, pass by pass beside the floor.
No figure unless every packet left and a sample of them is right to the last byte. What this does not show: sockets, the driver,
DMA. Method: bench/README.md.
"""

import argparse
import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.compare import wanted
from bench.engine_case import K8, M1, M16, Context, established, growth, huge_share, memory, modes, new, scheduled, services
from bench.engine_hop import hop
from bench.engine_pause import pauses
from bench.engine_scale import scale
from bench.figure import Figure, show, write
from bench.scene import PROTO, Refused

QUICK_PASSES, PASSES = 9, 41
LARGE = 4 << 20  # connections from which on only one process at a time may run, and none in the short run

# family, protocol, (scheduler,) flows, ns that a packet may take
ESTABLISHED = (
    *((4, 6, K8, 30.0), (4, 6, M1, 45.0), (4, 6, M16, 60.0), (6, 6, K8, None), (6, 6, M1, 60.0)),
    *((4, 17, K8, None), (4, 17, M1, None), (6, 17, M1, None), (4, 132, M1, None)),
)
MODES = (  # mode, directions, goal of each
    *(("nat", (0, 1), 45.0), ("dr", (0,), 40.0), ("tunnel", (0,), 45.0), ("gre", (0,), 45.0), ("gue", (0,), 45.0)),
    *(("snat", (0, 1), 50.0), ("nat64", (0, 1), 70.0)),
)
ONE_PACKET = 25.0
PERSISTENT = 16384  # clients, of 1 M connections
NEW = ((4, 6, "rr", M1, 150.0), (6, 6, "rr", M1, None), (4, 6, "rr", M16, 200.0), (4, 17, "mh", M1, None))


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[Context], Iterator[Figure]]
    connections: int  # of its tables


def flows_name(n: int) -> str:
    return {K8: "8k", M1: "1M", 10_000_000: "10M", M16: "16M"}.get(n, str(n))


def cases(quick: bool) -> list[Case]:
    out = []
    for af, proto, flows, goal in ESTABLISHED:
        run = partial(established, af=af, proto=proto, flows=flows, goal=goal)
        out.append(Case(f"established {PROTO[proto]} ipv{af} {flows_name(flows)}", run, flows))
    for mode, ways, goal in MODES:
        run = partial(modes, mode=mode, flows=M1, ways=ways, goal=goal)
        out.append(Case(f"mode {mode} tcp ipv{6 if mode == 'nat64' else 4} {flows_name(M1)}", run, M1))
    out.append(Case("one packet udp ipv4 mh", partial(scheduled, flows=M1, goal=ONE_PACKET), 1024))
    for af, proto, scheduler, flows, goal in NEW:
        run = partial(new, af=af, proto=proto, flows=flows, scheduler=scheduler, goal=goal)
        out.append(Case(f"new {PROTO[proto]} ipv{af} {scheduler} {flows_name(flows)}", run, flows))
    run = partial(new, af=4, proto=6, flows=M1, scheduler="rr", goal=None, clients=PERSISTENT)
    out.append(Case(f"new tcp ipv4 rr persistent {flows_name(M1)}", run, M1))
    out.append(Case("services 2000", partial(services, many=2000, flows=M1), 2 * M1))
    out += [Case(f"hop tcp ipv4 {flows_name(flows)}", partial(hop, flows=flows), flows) for flows in (K8, M1)]
    held = M1 if quick else 10_000_000
    out.append(Case(f"pauses {flows_name(held)}", partial(pauses, connections=held), held))
    out.append(Case("memory", memory, 0))
    return [c for c in out if not quick or c.connections < LARGE]


class Alone:
    """Held while tables of gigabytes are in use, so that two benchmarks don't exhaust the machine's memory together."""

    def __enter__(self) -> None:
        self.file = open(Path(tempfile.gettempdir()) / f"lbd-bench-engine-{os.getuid()}.lock", "w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        self.file.close()


def run_case(case: Case, ctx: Context) -> list[Figure]:
    """Its figures, with the share of memory that lay in huge pages: without them every look into a table is a page walk more."""
    figures = []
    with Alone() if case.connections >= LARGE else contextlib.nullcontext():
        for figure in case.run(ctx):
            if case.connections:
                figure.more.setdefault("huge_pages", round(huge_share(), 2))
            figures.append(figure)
    return figures


def huge_range(figures: list[Figure]) -> str:
    shares = [f.more["huge_pages"] for f in figures if f.more.get("huge_pages") is not None]
    return f"{min(shares):.0%} to {max(shares):.0%}" if shares else "unknown"


def measure(chosen: list[Case], ctx: Context) -> list[Figure]:
    figures: list[Figure] = []
    console = Console(stderr=True)
    counted = TextColumn("{task.completed} of {task.total} cases, {task.fields[passes]} passes")
    columns = TextColumn("{task.description}"), BarColumn(), counted, TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(chosen), passes=0)
        seen = 0

        def step() -> None:
            nonlocal seen
            seen += 1
            progress.update(task, passes=seen)

        ctx.step = step
        for case in chosen:
            progress.update(task, description=case.name)
            figures += run_case(case, ctx)
            progress.advance(task)
    return figures + list(growth(figures))


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(prog="bench-engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--quick", action="store_true", help="about a minute: fewer passes, nothing of 10 M or more connections")
    ap.add_argument("--case", action="append", default=[], metavar="TEXT", help="only cases with this in their name; repeatable")
    ap.add_argument("--list", action="store_true", help="name the cases and end")
    ap.add_argument("--passes", type=int, help=f"passes of 8,192 packets for each figure ({PASSES}; quick: {QUICK_PASSES})")
    ap.add_argument("--scale", type=int, metavar="N", help="this alone: N workers on N cores, 1 M flows each, beside one")
    ap.add_argument("--require", action="store_true", help="exit status 1 when a goal is missed")
    ap.add_argument("-o", type=Path, default=Path("bench/out/engine.json"), metavar="FILE", help="for the figures (%(default)s)")
    args = ap.parse_args()
    if args.passes is not None and args.passes < 1:
        ap.error("--passes: at least 1")
    if args.scale is not None and args.scale < 1:
        ap.error("--scale: at least 1")
    return args


def main() -> int:
    args = arguments()
    known = cases(args.quick)
    if args.scale:
        known = [Case(f"scale {args.scale}", partial(scale, workers=args.scale, flows=M1), args.scale * M1)]
    chosen = [c for c in known if args.scale or wanted(c.name, args.case)]
    if args.list or not chosen:
        print("\n".join(c.name for c in known))
        return 0 if args.list else 2
    ctx = Context(args.passes or (QUICK_PASSES if args.quick else PASSES), args.quick)
    try:
        figures = measure(chosen, ctx)
    except Refused as e:
        sys.exit(f"bench-engine: no figures: {e}")
    show(figures)
    write(figures, args.o)
    print(f"\nmedians, and the range of the passes; memory in huge pages {huge_range(figures)}; as JSON: {args.o}")
    return 1 if args.require and any(f.met is False for f in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
