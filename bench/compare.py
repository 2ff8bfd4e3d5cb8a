# SPDX-License-Identifier: Apache-2.0
"""Figures of lbd's beside those of others, from alternating runs, as rows of a table and of bench/out/NAME.json.

A row is one figure of lbd's beside one peer of the same runs: the ratio is that of the medians. A goal is a least
ratio, or, where there is no peer, a largest figure.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    case: str
    params: dict[str, Any]
    unit: str
    runs: list[float]
    peer: str = ""
    peer_runs: list[float] = field(default_factory=list)
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.runs) / statistics.median(self.peer_runs) if self.peer_runs else None

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.ratio is not None else statistics.median(self.runs) < self.goal

    def document(self) -> dict[str, Any]:
        def figures(runs: list[float], prefix: str) -> dict[str, float]:
            seen = {"median": statistics.median(runs), "min": min(runs), "max": max(runs)}
            return {prefix + name: round(value, 4) for name, value in seen.items()}

        out: dict[str, Any] = {"case": self.case, "params": self.params, "unit": self.unit, **figures(self.runs, "")}
        if self.peer_runs:
            out |= {"peer": self.peer, **figures(self.peer_runs, "peer_"), "ratio": round(self.ratio or 0, 4)}
        if self.goal is not None:
            out |= {"goal": self.goal, "met": self.met}
        return out

    def cells(self) -> list[str]:
        goal = ""
        if self.goal is not None:
            goal = f"{'≥' if self.peer_runs else '<'} {self.goal:g} {'met' if self.met else 'MISSED'}"
        ratio = f"{self.ratio:.2f}" if self.ratio is not None else ""
        return [self.case, spread(self.runs), self.peer, spread(self.peer_runs), self.unit, ratio, goal]


def wanted(name: str, texts: Collection[str]) -> bool:
    """Is this a case that --case asks for? Without one all are; capitals don't matter."""
    return not texts or any(text.lower() in name.lower() for text in texts)


def spread(runs: list[float]) -> str:
    """The median and the range, with three digits or more."""
    if not runs:
        return ""
    median = statistics.median(runs)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2 if median >= 1 else 3
    return f"{median:,.{digits}f} ({min(runs):,.{digits}f}–{max(runs):,.{digits}f})"


def alternate(case: str, unit: str, runs: int, each: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every one of `each` once, then all of them again, `runs` times, every other time in reverse order."""
    seen: dict[str, list[float]] = {name: [] for name in each}
    for number in range(runs):
        for name in list(each)[:: -1 if number % 2 else 1]:
            seen[name].append(each[name]())
        print(f"{case}, run {number + 1}: {', '.join(f'{n} {f[-1]:.4g}' for n, f in seen.items())} {unit}", flush=True)
    return seen


def show(rows: Iterable[Row]) -> None:
    table = [["", "lbd", "beside", "", "", "ratio", "goal"], *(row.cells() for row in rows)]
    widths = [max(len(line[n]) for line in table) for n in range(len(table[0]))]
    print()
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(rows: Iterable[Row], file: Path) -> None:
    """Machine and time go into each object, so that objects of several runs can be kept side by side."""
    stamp = {"machine": machine(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([row.document() | stamp for row in rows], indent=1, ensure_ascii=False) + "\n")


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return {"kernel": platform.release(), "cpu": model, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
