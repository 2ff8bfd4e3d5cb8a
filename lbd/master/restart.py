# SPDX-License-Identifier: Apache-2.0
"""When a worker counts as hung, and how long to wait before one that died is started again.

Scope: numbers and lists of times; pure. A crash loop and an accident differ in this: did it run before?

    it did      started again at once, however often: its traffic waits in the rings for as long as these
                last. Many such deaths are told to an operator
    it did not  the second time in a row it pauses, then longer each time, and ends in quarantine, where it is
                tried seldom
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
    answer: float = 5.0  # for a running worker to hand its descriptors to a new master, or it hangs
    tick: float = 0.05  # between looks at a worker
    proven: float = 0.25  # a loop that has turned for so long has run
    deaths: int = 5  # more than these within the window: an alarm; if all were early, quarantine
    window: float = 60.0
    quarantine: float = 10.0  # between attempts while in quarantine
    pause: float = 0.05  # before the restart after the second early death in a row; doubles from there
    pause_max: float = 0.5


class Restarts:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._deaths: deque[float] = deque()
        self._early: deque[float] = deque()  # of those, the latest in a row that had not run

    def died(self, now: float, ran: float = 0.0) -> float:
        """How long to wait before the next start. `ran`: seconds that its loop has turned."""
        self._deaths.append(now)
        self._early.append(now)
        if ran >= self.limits.proven:
            self._early.clear()
        count = self._recent(self._early, now)
        if count > self.limits.deaths:
            return self.limits.quarantine
        return 0.0 if count < 2 else min(self.limits.pause * 2 ** (count - 2), self.limits.pause_max)

    def _recent(self, deaths: deque[float], now: float) -> int:
        while deaths and deaths[0] <= now - self.limits.window:
            deaths.popleft()
        return len(deaths)

    def recent(self, now: float) -> int:
        """Deaths within the window."""
        return self._recent(self._deaths, now)

    def too_many(self, now: float) -> bool:
        return self.recent(now) > self.limits.deaths

    def quarantined(self, now: float) -> bool:
        return self._recent(self._early, now) > self.limits.deaths
