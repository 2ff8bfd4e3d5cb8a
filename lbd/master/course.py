# SPDX-License-Identifier: Apache-2.0
"""What time alone does to real servers: drains with a deadline, and slow starts.

Scope: how much of its weight a real server has at a moment, and whether its connections are to be ended. Pure but for its clock
(seconds since 1970, since deadlines outlive a master) and the file that `runtime.py` keeps.

    slow start   a share of the weight, in steps from 1/n to all of it; begins when a real server came back, or was added
    drain        in stages down to 0 over the first half of the time; at the deadline the connections left are ended

A change of its weight at run time, or another state, ends a slow start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lbd.config import Config
from lbd.master.runtime import Drain, Runtime, Where
from lbd.sched import FULL, scheduler

STAGES_MAX = 100
DEADLINE_MAX = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Ramp:
    """A slow start under way."""

    began: float
    seconds: float
    steps: int

    def share(self, now: float) -> int:
        """Percent of the weight."""
        step = int((now - self.began) / self.seconds * self.steps) if now > self.began else 0
        return min(FULL, max(1, FULL * (step + 1) // self.steps))

    def left(self, now: float) -> float:
        """Until it is all of the weight."""
        return max(0.0, self.began + self.seconds * (self.steps - 1) / self.steps - now)


@dataclass(frozen=True, slots=True)
class Standing:
    share: int = FULL  # percent of its weight
    end: str = ""  # of its connections: "expire", "reset"


class Course:
    def __init__(self, runtime: Runtime, config: Config, clock: Callable[[], float] = time.time) -> None:
        self.runtime = runtime
        self.clock = clock
        self._slow: dict[Where, tuple[float, int]] = {}  # seconds and steps of those that begin slowly
        self._config = config
        self._last: dict[Where, Standing] = {}  # of those that move, as they were told
        self._read(config)
        self._forget()

    # -- what happens ----------------------------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """A reload: who is new in a service that was there begins slowly."""
        last = self._config
        self._read(config)
        self._forget()
        if not self._slow:
            return
        before = {s.name: {str(r.address) for r in s.real_server} for s in last.service}
        for service, server in self._slow:
            if server not in before.get(service, (server,)):
                self.returned((service, server))

    def returned(self, where: Where) -> None:
        """It takes connections again."""
        if where in self._slow:
            self.runtime.ramp(where, self.clock())

    def left(self, where: Where) -> None:
        """It takes none any more, or its weight is an operator's from now on."""
        self.runtime.ramp(where, None)

    def _read(self, config: Config) -> None:
        self._config = config
        self._slow = {}
        for s in config.service:
            steps = scheduler(s.scheduler).RAMP
            if not steps or (s.slow_start is None and all(r.slow_start is None for r in s.real_server)):
                continue
            for r in s.real_server:
                if seconds := s.slow_start_of(r):
                    self._slow[s.name, str(r.address)] = (seconds, steps)

    def _forget(self) -> None:
        for where in [w for w in self.runtime.ramps if w not in self._slow]:
            self.runtime.ramp(where, None)

    # -- how it stands ---------------------------------------------------------------------------------------

    def drain(self, where: Where) -> Drain | None:
        return self.runtime.get(*where).drain

    def slow_start(self, where: Where) -> Ramp | None:
        began = self.runtime.ramps.get(where)
        return None if began is None or where not in self._slow else Ramp(began, *self._slow[where])

    def standing(self, service: str, real_server: str) -> Standing:
        where = (service, real_server)
        override = self.runtime.get(service, real_server)
        ramp = self.slow_start(where)
        if override.drain is None and ramp is None:
            return WHOLE
        now = self.clock()
        share = ramp.share(now) if ramp is not None else FULL
        if override.state == "drain" and override.drain is not None:
            share = min(share, override.drain.share(now))
        return Standing(share, override.end(now))

    def moved(self) -> set[str]:
        """Services with a real server that stands otherwise than when this was asked last."""
        moving = set(self.moving())
        found = set()
        for where in moving:
            standing = self.standing(*where)
            if self._last.get(where) != standing:
                found.add(where[0])
            self._last[where] = standing
        for where in self._last.keys() - moving:
            found.add(where[0])
            del self._last[where]
        now = self.clock()
        for where in [w for w in self.runtime.ramps if (ramp := self.slow_start(w)) is None or ramp.left(now) <= 0]:
            self.runtime.ramp(where, None)
        return found

    @property
    def is_moving(self) -> bool:
        """As of the last `moved()`."""
        return bool(self._last)

    def moving(self) -> Iterator[Where]:
        """Those that do not stand as they will at last; some twice."""
        yield from self.runtime.ramps
        for where, override in self.runtime.items():
            if override.drain is not None:
                yield where


WHOLE = Standing()
