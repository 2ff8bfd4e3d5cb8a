# SPDX-License-Identifier: Apache-2.0
"""A figure of lbd's beside one of something else, from alternating runs."""

import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Comparison:
    name: str
    unit: str
    bare: list[float]
    lbd: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.lbd) / statistics.median(self.bare)

    def row(self) -> list[str]:
        def figures(runs: list[float]) -> str:
            return f"{statistics.median(runs):.3f} ({min(runs):.3f}-{max(runs):.3f})"

        return [self.name, figures(self.bare), figures(self.lbd), f"{self.ratio:.3f}", self.unit]


def alternate(name: str, unit: str, runs: int, bare_run: Callable[[], float], lbd_run: Callable[[], float] | None) -> Comparison:
    c = Comparison(name, unit, [], [])
    for number in range(1, runs + 1):
        c.bare.append(bare_run())
        if lbd_run:
            c.lbd.append(lbd_run())
        seen = f"bare {c.bare[-1]:.3f}" + (f", lbd {c.lbd[-1]:.3f}" if lbd_run else "")
        print(f"{name}, run {number}: {seen} {unit}", flush=True)
    return c


def show(results: list[Comparison], bare_only: bool) -> None:
    if bare_only:
        rows = [[c.name, f"{statistics.median(c.bare):.3f} ({min(c.bare):.3f}-{max(c.bare):.3f})", c.unit] for c in results]
        rows.insert(0, ["", "bare AF_XDP", ""])
    else:
        rows = [["", "bare AF_XDP", "lbd", "ratio", ""], *(c.row() for c in results)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return {"kernel": platform.release(), "cpu": model, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
