# SPDX-License-Identifier: Apache-2.0
"""Up or down: what a row of results says of a real server, and what is counted on the way.

Scope: two small values, no I/O. `Judge` belongs to a check (shared by all services that have the same),
`Status` to one key of the caller (a real server of a service), and lives on when the settings of its check
change.

    state  result                  next
    up     fall failures in a row  down
    down   rise successes in a row up
    fresh  failure                 down
    fresh  success                 up
    any    error                   same   (the check could not be made: it neither counts nor breaks a row)

"Fresh" is up, and not yet checked: as with keepalived, new real servers serve at once, but the first word
against them is believed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lbd.health.check import Result


@dataclass(slots=True)
class Judge:
    rise: int
    fall: int
    up: bool = True
    fresh: bool = True
    streak: int = 0  # results in a row against the present state

    def feed(self, result: Result) -> bool:
        """True if the state turned."""
        if result is Result.ERROR:
            return False
        good = result is Result.SUCCESS
        needed = 1 if self.fresh else self.rise if good else self.fall
        self.fresh = False
        if good == self.up:
            self.streak = 0
            return False
        self.streak += 1
        if self.streak < needed:
            return False
        self.up = good
        self.streak = 0
        return True


@dataclass(slots=True)
class Status:
    """What is known of one real server of one service; counters only grow."""

    up: bool = True
    checked: bool = False  # a check has said something
    reason: str = ""  # of the last result that was no success, until the next success
    checks: dict[Result, int] = field(default_factory=lambda: dict.fromkeys(Result, 0))
    last_duration: float = 0.0  # seconds
    transitions_up: int = 0
    transitions_down: int = 0
    last_transition: float = 0.0  # unix time, 0 = none yet
    _downtime: float = 0.0
    _down_since: float | None = None  # monotonic

    def record(self, result: Result, reason: str, duration: float) -> None:
        self.checks[result] += 1
        self.checked |= result is not Result.ERROR
        self.reason = reason
        self.last_duration = duration

    def turn(self, up: bool, now: float, wall: float) -> None:
        self.up = up
        self.last_transition = wall
        if up:
            self.transitions_up += 1
            if self._down_since is not None:
                self._downtime += now - self._down_since
            self._down_since = None
        else:
            self.transitions_down += 1
            self._down_since = now

    def begin_down(self, now: float) -> None:
        """Known to be down from before: no transition."""
        self.up = False
        self._down_since = now

    def downtime(self, now: float) -> float:
        """Seconds down, until now."""
        return self._downtime + (now - self._down_since if self._down_since is not None else 0.0)
