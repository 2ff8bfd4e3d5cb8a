# SPDX-License-Identifier: Apache-2.0
"""From what vmgen counted and what was seen to leave, instructions per packet; none if a packet was lost or is wrong. Pure."""

import statistics
from dataclasses import dataclass
from typing import Any

from bench.lvs.mode import LARGE, SMALL
from bench.lvs.sink import Seen

NEVER_IDLE = 4_000_000  # instructions in a window without packets: half of it


@dataclass
class Figure:
    """Instructions per packet of a case, or why there is none."""

    rounds: list[float]
    small: float = 0.0  # in bursts of SMALL, with their share of interrupts and wake-ups
    worker: float = 0.0  # of it in lbd's process, wake-ups included; the rest is the kernel's: driver and XDP program
    why: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def per_packet(counts: dict[str, list[int]]) -> Figure:
    """The difference between a large and a small burst, less what the generator adds to it: marginal cost under full load."""
    aside = {size: statistics.median(counts[f"aside {size}"]) for size in (SMALL, LARGE)}
    small, large = counts[f"through {SMALL}"], counts[f"through {LARGE}"]
    own = aside[LARGE] - aside[SMALL]
    rounds = [(b - statistics.median(small) - own) / (LARGE - SMALL) for b in large]
    return Figure(rounds, (statistics.median(small) - aside[SMALL]) / SMALL)


def figure(report: dict[str, Any], seen: Seen) -> Figure:
    if "refused" in report:
        return Figure([], why="not yet")
    if "failed" in report:
        return Figure([], why=report["failed"])
    problems = ", ".join(f"{n}: {what}" for what, n in seen.problems.items())
    if seen.packets != report["sent"] or problems:
        return Figure([], why=f"{seen.packets} of {report['sent']} packets left" + (f", {problems}" if problems else ""))
    if max(statistics.median(report["counts"][f"aside {size}"]) for size in (SMALL, LARGE)) > NEVER_IDLE:
        return Figure([], why="the CPU is never idle")
    out = per_packet(report["counts"])
    out.worker = report.get("worker", 0) / report["sent"]
    return out
