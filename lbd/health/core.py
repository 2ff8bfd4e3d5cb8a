# SPDX-License-Identifier: Apache-2.0
"""Which checks run when, and who is told what comes of them.

Scope: scheduling, sharing, transitions. How a check is made is the checker's (`check.py`), what results mean
is `target.py`'s; who uses the verdict is the caller's.

- The caller names what it wants by keys of its own, e.g. (service, real server), each with a `Check`. Equal
  checks are made once, however many keys have them.
- The first check starts within a random share of the interval, the next ones an interval apart, each ± 10 %:
  thousands of checks neither start together nor fall into step. One check never overlaps its own next.
- `set` reconciles: what did not change keeps its history and its rhythm; a key whose check changed keeps its
  state until the new check has spoken. In the caller's eyes a new key is up unless it is named in `down`;
  whatever differs from that is told by `on_transition`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial

from lbd.health.check import Check, Probe, Result
from lbd.health.target import Judge, Status

Key = Hashable
OnTransition = Callable[[Key, bool, str], None]  # key, up, reason
OnResult = Callable[[Key, Result, float], None]  # key, result, seconds: for histograms

_JITTER = 0.1


class _Target:
    """One check under way: shared by its keys."""

    __slots__ = ("check", "judge", "keys", "probe", "started", "timer")

    def __init__(self, check: Check, up: bool, fresh: bool) -> None:
        self.check = check
        self.judge = Judge(check.rise, check.fall, up, fresh)
        self.keys: dict[Key, None] = {}  # a set that keeps its order
        self.probe: Probe | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.started = 0.0


class Health:
    def __init__(
        self,
        on_transition: OnTransition,
        loop: asyncio.AbstractEventLoop,
        *,
        on_result: OnResult | None = None,
        wall: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        self._on_transition = on_transition
        self._on_result = on_result
        self._loop = loop
        self._wall = wall
        self._chance = chance or random.Random()
        self._statuses: dict[Key, Status] = {}
        self._wanted: dict[Key, Check] = {}
        self._targets: dict[Check, _Target] = {}

    def set(self, targets: Mapping[Key, Check], down: Collection[Key] = ()) -> None:
        """What is to be checked from now on. `down`: new keys known to be down (to a restarted master)."""
        left = [key for key, check in self._wanted.items() if (now := targets.get(key)) is not check and now != check]
        abandoned = {check: self._targets[check] for key in left if (check := self._wanted[key])}
        for key in left:
            del self._targets[self._wanted.pop(key)].keys[key]
        new = [key for key in targets if key not in self._wanted]
        turned = [key for key in new if self._join(key, targets[key], down)]
        for key in left:
            if key not in targets:
                del self._statuses[key]
        for check, target in abandoned.items():
            if not target.keys:
                self._end(target)
                del self._targets[check]
        for key in turned:
            if self._wanted.get(key) == targets[key]:  # a callback may have called set()
                self._turn(key, self._targets[targets[key]].judge.up, self._statuses[key].reason)

    def states(self) -> Mapping[Key, Status]:
        return self._statuses

    def stop(self) -> None:
        """End every check; says nothing to anybody."""
        self.set({})

    # ---- keys ----------------------------------------------------------------------------------------------

    def _join(self, key: Key, check: Check, down: Collection[Key]) -> bool:
        """True if the check that the key now shares has another opinion than the key."""
        self._wanted[key] = check
        status = self._statuses.get(key)
        known = status is not None
        if status is None:
            status = self._statuses[key] = Status()
            if key in down:
                status.begin_down(self._loop.time())
                known = True
        target = self._targets.get(check)
        if target is None:
            target = self._targets[check] = _Target(check, status.up, fresh=not known)
            self._schedule(target, self._loop.time() + check.interval * self._chance.random())
        elif target.keys and not status.reason:
            status.reason = self._statuses[next(iter(target.keys))].reason
        target.keys[key] = None
        return status.up != target.judge.up

    def _turn(self, key: Key, up: bool, reason: str) -> None:
        self._statuses[key].turn(up, self._loop.time(), self._wall())
        self._on_transition(key, up, reason)

    # ---- checks --------------------------------------------------------------------------------------------

    def _schedule(self, target: _Target, at: float) -> None:
        target.timer = self._loop.call_at(at, self._start, target)

    def _start(self, target: _Target) -> None:
        target.timer = None
        target.started = self._loop.time()
        target.probe = target.check.probe(self._loop, partial(self._finished, target))
        target.probe.start()

    def _finished(self, target: _Target, result: Result, reason: str) -> None:
        now = self._loop.time()
        target.probe = None
        pause = target.check.interval * self._chance.uniform(1 - _JITTER, 1 + _JITTER)
        self._schedule(target, max(now, target.started + pause))  # before anybody is told: callbacks may fail
        turned = target.judge.feed(result)
        for key in tuple(target.keys):
            self._statuses[key].record(result, reason, now - target.started)
            if self._on_result is not None:
                self._on_result(key, result, now - target.started)
        for key in tuple(target.keys) if turned else ():
            if key in target.keys:  # a callback may have called set()
                self._turn(key, target.judge.up, reason)

    def _end(self, target: _Target) -> None:
        if target.timer is not None:
            target.timer.cancel()
        if target.probe is not None:
            target.probe.cancel()
        target.timer = target.probe = None
