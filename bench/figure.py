"""A figure of the engine benchmark: what has to stay below its goal, beside a floor of the same run; as a table and as JSON."""

import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.compare import machine, spread


@dataclass
class Figure:
    """goal: the most that `judged` may be: "median", "ratio" or a key of `more`, which goes into the document as it is."""

    case: str
    params: dict[str, Any]
    unit: str
    runs: list[float]
    peer: str = ""
    peer_runs: list[float] = field(default_factory=list)
    goal: float | None = None
    judged: str = "median"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def ratio(self) -> float | None:
        return self.median / statistics.median(self.peer_runs) if self.peer_runs else None

    @property
    def value(self) -> float:
        if self.judged == "median":
            return self.median
        return float((self.ratio or 0.0) if self.judged == "ratio" else self.more[self.judged])

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.value <= self.goal

    def document(self) -> dict[str, Any]:
        def figures(runs: list[float], prefix: str) -> dict[str, float]:
            seen = {"median": statistics.median(runs), "min": min(runs), "max": max(runs)}
            return {prefix + name: round(value, 3) for name, value in seen.items()}

        out: dict[str, Any] = {"case": self.case, "params": self.params, "unit": self.unit, **figures(self.runs, "")}
        if self.ratio is not None:
            out |= {"peer": self.peer, **figures(self.peer_runs, "peer_"), "ratio": round(self.ratio, 3)}
        if self.goal is not None:
            out |= {"goal": self.goal, "judged": self.judged, "met": self.met}
        return out | self.more

    def title(self) -> str:
        return ", ".join([self.case, *(f"{name} {value}" for name, value in self.params.items())])

    def cells(self) -> list[str]:
        goal = ""
        if self.goal is not None:
            what = "" if self.judged == "median" else f" ({self.judged.replace('_', ' ')})"
            goal = f"≤ {self.goal:g}{what} {'met' if self.met else f'MISSED: {self.value:.3g}'}"
        ratio = f"{self.ratio:.2f}" if self.ratio is not None else ""
        return [self.title(), shown(self.runs), self.unit, self.peer, shown(self.peer_runs), ratio, goal]


def shown(runs: list[float]) -> str:
    return f"{runs[0]:,.1f}" if len(runs) == 1 else spread(runs)


def show(figures: Iterable[Figure]) -> None:
    table = [["", "lbd", "", "beside", "", "ratio", "goal"], *(f.cells() for f in figures)]
    widths = [max(len(line[n]) for line in table) for n in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(figures: Iterable[Figure], file: Path) -> None:
    """Machine and time go into each object, so that objects of several runs can be kept side by side."""
    stamp = {"machine": machine(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([f.document() | stamp for f in figures], indent=1, ensure_ascii=False) + "\n")
