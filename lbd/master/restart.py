# SPDX-License-Identifier: Apache-2.0
"""When a worker counts as hung, and how long to wait before one that died is started again.

Scope: numbers and a list of times; pure. The first death costs no pause at all: its traffic waits in the
rings for as long as these last. A worker that dies again and again pauses longer, and ends in quarantine,
where it is tried seldom, and an operator is told.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, but for `deaths`. NB: emulated machines are up to 70 times slower."""

    heartbeat: float = 0.5  # a running loop that has not turned for so long hangs
    start: float = 30.0  # from the spawn to the first turn: repairing a full table takes its time
    stop: float = 5.0  # from CMD_STOP to the process's end
    tick: float = 0.05  # between looks at a worker
    deaths: int = 5  # more than these within the window: quarantine
    window: float = 60.0
    quarantine: float = 10.0  # between attempts while in quarantine
    pause: float = 0.05  # before the restart after the second death within the window; doubles from there
    pause_max: float = 0.5


class Restarts:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._deaths: deque[float] = deque()

    def died(self, now: float) -> float:
        """How long to wait before the next start."""
        self._deaths.append(now)
        count = self.recent(now)
        if count > self.limits.deaths:
            return self.limits.quarantine
        return 0.0 if count == 1 else min(self.limits.pause * 2 ** (count - 2), self.limits.pause_max)

    def recent(self, now: float) -> int:
        """Deaths within the window."""
        while self._deaths and self._deaths[0] <= now - self.limits.window:
            self._deaths.popleft()
        return len(self._deaths)

    def too_many(self, now: float) -> bool:
        return self.recent(now) > self.limits.deaths
