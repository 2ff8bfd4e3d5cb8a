"""N engines in N processes, each pinned to a core, each with its own table and flows: what they do together, beside one alone.

All measure at the same time, and begin together; between two passes a process plans the next one, which is not timed but keeps its
core and the memory busy. What this does not show: rings between workers, and a NIC that all of them share.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bench.engine_case import Context, known_pass
from bench.figure import Figure
from bench.scene import Refused, Scene

ROOT = Path(__file__).resolve().parents[1]


def serve(core: int, flows: int, passes: int) -> None:
    """One of the processes: opens its flows, says so, waits for a line, measures until it has its passes, says what they took."""
    os.sched_setaffinity(0, {core})
    scene = Scene(flows=flows).open()
    print("open", flush=True)
    sys.stdin.readline()
    print(json.dumps([known_pass(scene, 2) for _ in range(passes)]), flush=True)


def together(cores: list[int], flows: int, passes: int) -> list[list[float]]:
    """ns per packet of each pass, by process."""
    command = [sys.executable, "-m", "bench.engine_scale"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([*command, str(core), str(flows), str(passes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                text=True, cwd=ROOT, env=env) for core in cores]  # fmt: skip
    try:
        for p in started:
            if not p.stdout or p.stdout.readline() != "open\n":
                raise Refused("a process of the scaling case did not open its connections")
        for p in started:
            assert p.stdin
            p.stdin.write("go\n")
            p.stdin.flush()
        return [json.loads(p.stdout.readline()) for p in started if p.stdout]
    finally:
        for p in started:
            p.kill()
            p.wait()


def scale(ctx: Context, workers: int, flows: int) -> Iterator[Figure]:
    cores = sorted(os.sched_getaffinity(0))
    if workers > len(cores):
        raise Refused(f"--scale {workers}: this process may use {len(cores)} cores")
    passes = 4 * ctx.passes
    one: list[float] = []
    per_core: list[list[float]] = []
    for turn in range(4):
        one += together([cores[turn % len(cores)]], flows, passes)[0]
        ctx.step()
        per_core += together(cores[:workers], flows, passes)
        ctx.step()
    params = {"workers": workers, "flows of each": flows, "way": "both ways"}
    medians = [statistics.median(core) for core in per_core]
    together_mpps = [sum(1e3 / m for m in medians[i : i + workers]) for i in range(0, len(medians), workers)]
    single_mpps = [1e3 / x for x in one]
    more: dict[str, Any] = {"per_core_ns": [round(statistics.median(chain(*per_core[n::workers])), 1) for n in range(workers)]}
    more["huge_pages"] = None  # of the children: not known here
    yield Figure("workers together", params, "Mpps", together_mpps, "one alone", single_mpps, more=more)
    yield Figure("a packet, workers together", params, "ns", [*chain(*per_core)], "one alone", one, more={"huge_pages": None})


if __name__ == "__main__":
    serve(*(int(x) for x in sys.argv[1:4]))
