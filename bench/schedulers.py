#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make bench-schedulers: how evenly the hashing schedulers spread clients, how many they move, and what a table costs.

    evenness     clients of the most loaded real server, above its share by weight
    disruption   one of N real servers lost: clients of the others that move although theirs is there
    build        CPU time of the master for the tables of 2,000 services with 10 real servers

Clients are addresses at random (the same every time), asked of the worker's own schedule(). Evenness and disruption hang on
addresses alone and come out the same on any machine. Results: bench/out/schedulers.json and docs/img/schedulers.png.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.unit._sched import Service  # noqa: E402

from lbd.sched import Server, flags_of, names, scheduler  # noqa: E402

SIZES = (2, 5, 10, 20, 50, 100)
CASES = {"sh": (), "sh + fallback": ("sh-fallback",), "mh": (), "mh + fallback": ("mh-fallback",), "conhash": ()}
CHANCE = "chance alone"  # each client anywhere, by weight: what no hash can beat with so many clients
SERVICES, SERVERS = 2000, 10
MIXED = (1, 5, 100, 37, 64, 12, 8, 99, 50, 3)


@dataclass(frozen=True)
class Row:
    case: str
    servers: int
    weights: str
    excess: float  # of the most loaded one: its clients / its share of them - 1
    spread: float  # standard deviation of clients / share
    moved: float  # share of the clients of servers that stayed; mean over who was lost


def keys(weights: list[int]) -> list[Server]:
    return [Server(i, w, bytes([10, 0, i >> 8, i & 255, 0, 80])) for i, w in enumerate(weights)]


def picks(case: str, servers: list[Server], clients: list[bytes]) -> list[int]:
    if case == CHANCE:
        return random.Random(2).choices([s.number for s in servers], [s.weight for s in servers], k=len(clients))
    method = scheduler(case.split()[0])
    flags = flags_of(method, CASES[case])
    worker = Service(len(servers))
    for s in servers:
        worker.server(s.number, s.weight, s.up)
    worker.table(method.KIND, flags, method.table(servers, flags))
    return [worker.pick(c) for c in clients]


def measure(case: str, weights: list[int], label: str, clients: list[bytes]) -> Row:
    servers = keys(weights)
    before = picks(case, servers, clients)
    count = Counter(before)
    load = [count[i] * sum(weights) / (w * len(clients)) for i, w in enumerate(weights)]
    moved = []
    for lost in range(0, len(weights), max(1, len(weights) // 5)) if case != CHANCE else ():
        there = [s._replace(weight=0, up=False, rest=s.weight) if s.number == lost else s for s in servers]
        others = [(b, a) for b, a in zip(before, picks(case, there, clients), strict=True) if b != lost]
        moved.append(sum(b != a for b, a in others) / len(others))
    deviation = (sum((x - 1) ** 2 for x in load) / len(load)) ** 0.5
    return Row(case, len(weights), label, max(load) - 1, deviation, sum(moved) / len(moved) if moved else 1.0)


def build(name: str, weights: tuple[int, ...]) -> float:
    """Milliseconds, the best of three."""
    method, best = scheduler(name), float("inf")
    services = [
        [Server(s * SERVERS + r, w, bytes([10, r, s >> 8, s & 255, 0, 80])) for r, w in enumerate(weights)] for s in range(SERVICES)
    ]
    for _ in range(3):
        begin = time.process_time()
        for servers in services:
            method.table(servers)
        best = min(best, time.process_time() - begin)
    return best * 1000


def plot(rows: list[Row], cost: dict[str, dict[str, float]], to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (even, moved, time_) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    equal = [r for r in rows if r.weights == "equal"]
    for case, colour in {"sh": "C7", "mh": "C0", "conhash": "C3", CHANCE: "k"}.items():
        mine = [r for r in equal if r.case == case]
        even.plot(SIZES, [100 * r.excess for r in mine], ":" if case == CHANCE else "o-", color=colour, label=case)
        if case in ("sh", "mh"):
            moved.plot(SIZES, [100 * r.moved for r in mine], "o-", color=colour, label=case)
    stable = [r for r in equal if r.case not in ("sh", "mh", CHANCE)]
    worst = [100 * max(r.moved for r in stable if r.servers == n) for n in SIZES]
    moved.plot(SIZES, worst, "s-", color="C2", clip_on=False, label="conhash; sh, mh with fallback")
    even.set_title("Evenness: the most loaded, above its share")
    even.set_ylabel("% of its share")
    moved.set_title("Disruption: one lost, others' clients that move")
    moved.set_ylabel("% of the others' clients")
    moved.set_yscale("symlog", linthresh=1)
    for axes in (even, moved):
        axes.set_xscale("log")
        axes.set_xticks(SIZES, [str(n) for n in SIZES])
        axes.minorticks_off()
        axes.set_xlabel("real servers, equal weights")
        axes.grid(alpha=0.3)
        axes.legend()
        axes.set_ylim(bottom=0)
    moved.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    order = sorted(cost, key=lambda name: cost[name]["mixed"])
    for shift, kind, colour in ((-0.2, "equal", "C0"), (0.2, "mixed", "C1")):
        time_.barh(
            [i + shift for i in range(len(order))], [cost[n][kind] for n in order], 0.4, color=colour, label=f"{kind} weights"
        )
    time_.set_yticks(range(len(order)), order)
    time_.set_xlabel("ms of CPU")
    time_.set_title(f"Building {SERVICES:,} tables of {SERVERS} real servers")
    time_.legend(loc="lower right")
    time_.grid(alpha=0.3, axis="x")
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)


def line(r: Row) -> str:
    figures = f"most loaded {100 * r.excess:+6.1f} %   deviation {100 * r.spread:5.1f} %   moved {100 * r.moved:6.2f} %"
    return f"{r.case:14} {r.servers:4} {r.weights:6} {figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=400_000)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/img/schedulers.png")
    args = parser.parse_args()
    chance = random.Random(1)
    clients = [chance.randbytes(4) for _ in range(args.clients)]
    rows = []
    for case in (*CASES, CHANCE):
        for weights, label in [*(([1] * n, "equal") for n in SIZES), (list(MIXED), "mixed")]:
            rows.append(measure(case, weights, label, clients))
            print(line(rows[-1]), flush=True)
    cost = {name: {"equal": build(name, (1,) * SERVERS), "mixed": build(name, MIXED)} for name in names()}
    for name, both in cost.items():
        print(f"{name:14} {SERVICES} tables: {both['equal']:6.1f} ms equal, {both['mixed']:6.1f} ms mixed weights")
    out = ROOT / "bench/out/schedulers.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"clients": args.clients, "rows": [asdict(r) for r in rows], "build_ms": cost}, indent=1))
    plot(rows, cost, args.plot)


if __name__ == "__main__":
    main()
