"""Scheduling, sharing and reconciling of health checks, on a fake clock, with checks that answer as told."""

import asyncio
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from lbd.health.check import Check, Done, Result, build_check
from lbd.health.core import Health

Script = Callable[[], tuple[Result, str]]
OK = (Result.SUCCESS, "")
BAD = (Result.FAILURE, "refused")


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """As much of a loop as the core uses; time passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._queue: list[tuple[float, int, Handle, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> Handle:
        handle = Handle()
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, handle, callback, args))
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle:
        return self.call_at(self.now + delay, callback, *args)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            when, _, handle, callback, args = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            if not handle.cancelled:
                callback(*args)
        self.now = end

    @property
    def pending(self) -> int:
        return sum(not entry[2].cancelled for entry in self._queue)


@dataclass
class Server:
    """What checks of one endpoint find, and when they came."""

    loop: FakeLoop
    answer: tuple[Result, str] = OK
    takes: float = 0.01
    starts: list[float] = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0


SERVERS: dict[tuple[str, int], Server] = {}


class FakeProbe:
    def __init__(self, server: Server, done: Done) -> None:
        self.server, self.done = server, done
        self.handle: Handle | None = None

    def start(self) -> None:
        self.server.starts.append(self.server.loop.now)
        self.server.under_way += 1
        self.server.most_at_once = max(self.server.most_at_once, self.server.under_way)
        self.handle = self.server.loop.call_later(self.server.takes, self.finish)

    def finish(self) -> None:
        self.server.under_way -= 1
        self.done(*self.server.answer)

    def cancel(self) -> None:
        assert self.handle is not None
        self.handle.cancel()
        self.server.under_way -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeCheck(Check):
    def probe(self, loop: asyncio.AbstractEventLoop, done: Done) -> FakeProbe:
        return FakeProbe(SERVERS[self.endpoint], done)


class Bench:
    def __init__(self, servers: int = 3, seed: int = 1) -> None:
        self.loop = FakeLoop()
        self.told: list[tuple[Any, bool, str]] = []
        self.results: list[tuple[Any, Result, float]] = []
        SERVERS.clear()
        self.endpoints = [("10.0.0.1", 1000 + number) for number in range(servers)]
        for endpoint in self.endpoints:
            SERVERS[endpoint] = Server(self.loop)
        self.health = Health(
            lambda *told: self.told.append(told),
            self.loop,  # type: ignore[arg-type]
            on_result=lambda *result: self.results.append(result),
            wall=lambda: self.loop.now + 1e9,
            chance=random.Random(seed),
        )

    def check(self, number: int = 0, **settings: Any) -> FakeCheck:
        return FakeCheck(endpoint=self.endpoints[number], **{"interval": 1.0, "timeout": 0.5, **settings})

    def server(self, number: int = 0) -> Server:
        return SERVERS[self.endpoints[number]]


def test_checks_keep_their_interval_with_jitter_and_start_spread() -> None:
    bench = Bench(servers=400)
    bench.health.set({number: bench.check(number) for number in range(400)})
    bench.loop.advance(30)
    firsts = sorted(bench.server(number).starts[0] - 1000 for number in range(400))
    assert firsts[0] < 0.05 and firsts[-1] > 0.95 and abs(sum(firsts) / 400 - 0.5) < 0.05
    for number in range(400):
        starts = bench.server(number).starts
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        assert all(0.9 - 1e-9 <= gap <= 1.1 + 1e-9 for gap in gaps)
        assert len({round(gap, 6) for gap in gaps}) > 10


def test_equal_checks_are_made_once_and_every_key_is_told() -> None:
    bench = Bench()
    bench.health.set({"a": bench.check(), "b": bench.check(), "c": bench.check(rise=5)})
    bench.server().answer = BAD
    bench.loop.advance(1.2)
    assert sorted(told[0] for told in bench.told) == ["a", "b", "c"]
    assert len(bench.server().starts) in (2, 3)  # two checks, not three
    assert bench.server().most_at_once <= 2
    assert all(told[1:] == (False, "refused") for told in bench.told)


def test_a_dead_server_goes_and_comes_back() -> None:
    bench = Bench()
    bench.health.set({"a": bench.check(rise=2, fall=3)})
    bench.loop.advance(5)
    assert bench.told == []
    bench.server().answer = BAD
    bench.loop.advance(2 * 0.9)
    assert bench.told == []
    bench.loop.advance(3 * 1.1 - 2 * 0.9 + 0.02)
    assert bench.told == [("a", False, "refused")]
    bench.loop.advance(10)
    bench.server().answer = OK
    bench.loop.advance(2 * 1.1 + 0.02)
    assert bench.told == [("a", False, "refused"), ("a", True, "")]
    status = bench.health.states()["a"]
    assert status.up and status.reason == "" and status.checked
    assert (status.transitions_up, status.transitions_down) == (1, 1)
    assert status.last_transition > 1e9
    assert 10 < status.downtime(bench.loop.now) < 14
    assert sum(status.checks.values()) == len(bench.server().starts) == len(bench.results)
    assert bench.results[-1] == ("a", Result.SUCCESS, pytest.approx(0.01))


def test_a_slow_check_never_overlaps_itself() -> None:
    bench = Bench()
    bench.server().takes = 3.0
    bench.health.set({"a": bench.check()})
    bench.loop.advance(20)
    assert bench.server().most_at_once == 1
    assert 6 <= len(bench.server().starts) <= 7


def test_what_did_not_change_keeps_rhythm_and_history() -> None:
    bench = Bench()
    bench.health.set({"a": bench.check(0), "b": bench.check(1)})
    bench.loop.advance(5)
    starts = list(bench.server(0).starts)
    for _ in range(50):
        bench.loop.advance(0.05)
        bench.health.set({"a": bench.check(0), "c": bench.check(2)})
    later = [start for start in bench.server(0).starts if start not in starts]
    assert len(later) in (2, 3)
    assert set(bench.health.states()) == {"a", "c"}
    count = len(bench.server(1).starts)
    bench.loop.advance(5)
    assert len(bench.server(1).starts) == count


def test_renaming_a_key_keeps_the_probe() -> None:
    bench = Bench()
    bench.server().takes = 0.4
    bench.health.set({"a": bench.check(interval=1.0)})
    while not bench.server().under_way:
        bench.loop.advance(0.05)
    bench.health.set({"b": bench.check(interval=1.0)})
    assert bench.server().under_way == 1
    bench.loop.advance(0.5)
    assert bench.health.states()["b"].checks[Result.SUCCESS] == 1


def test_new_settings_inherit_the_state_and_the_counters() -> None:
    bench = Bench()
    bench.server().answer = BAD
    bench.health.set({"a": bench.check()})
    bench.loop.advance(3)
    assert bench.told == [("a", False, "refused")]
    before = sum(bench.health.states()["a"].checks.values())
    bench.health.set({"a": bench.check(interval=0.5, rise=3)})
    assert not bench.health.states()["a"].up
    bench.server().answer = OK
    bench.loop.advance(1.0)
    assert len(bench.told) == 1  # one success or two: not yet three
    bench.loop.advance(3)
    assert bench.told[1:] == [("a", True, "")]
    assert sum(bench.health.states()["a"].checks.values()) > before + 2


def test_a_key_that_joins_a_check_that_is_down_is_told() -> None:
    bench = Bench()
    bench.server().answer = BAD
    bench.health.set({"a": bench.check()})
    bench.loop.advance(2)
    bench.health.set({"a": bench.check(), "b": bench.check()})
    assert bench.told == [("a", False, "refused"), ("b", False, "refused")]


def test_keys_known_to_be_down_stay_down_until_proven() -> None:
    bench = Bench()
    bench.health.set({"a": bench.check(rise=2)}, down={"a"})
    bench.loop.advance(1.0)
    assert bench.told == [] and not bench.health.states()["a"].up
    bench.loop.advance(2.3)
    assert bench.told == [("a", True, "")]


def test_errors_of_this_host_leave_the_state_and_are_shown() -> None:
    bench = Bench()
    bench.server().answer = (Result.ERROR, "no local port")
    bench.health.set({"a": bench.check()})
    bench.loop.advance(20)
    status = bench.health.states()["a"]
    assert bench.told == [] and status.up and not status.checked
    assert status.checks[Result.ERROR] >= 18 and status.reason == "no local port"


def test_a_callback_may_change_the_set() -> None:
    bench = Bench()
    bench.health = Health(
        lambda key, up, reason: bench.health.set({"b": bench.check(1)}),
        bench.loop,  # type: ignore[arg-type]
        chance=random.Random(1),
    )
    bench.server(0).answer = BAD
    bench.health.set({"a": bench.check(0), "b": bench.check(1), "c": bench.check(0)})
    bench.loop.advance(5)
    assert set(bench.health.states()) == {"b"}
    assert bench.server(0).under_way == 0 and len(bench.server(0).starts) == 1


def test_stop_leaves_nothing_pending() -> None:
    bench = Bench()
    bench.server().takes = 0.3
    bench.health.set({number: bench.check(number) for number in range(3)})
    bench.loop.advance(1.05)
    bench.health.stop()
    assert bench.loop.pending == 0 and not bench.health.states()
    assert all(bench.server(number).under_way == 0 for number in range(3))


def test_checkers_are_found_by_name() -> None:
    check = build_check("http", ("10.0.0.1", 80), path="/alive", status=[200, 204], interval=5)
    assert type(check).__name__ == "HttpCheck" and check.interval == 5
    assert check == build_check("http", ("10.0.0.1", 80), path="/alive", status=(204, 200), interval=5)
    assert hash(check) == hash(
        build_check("http", ("10.0.0.1", 80), path="/alive", status=(204, 200), interval=5)
    )
    for name in ("core", "nonesuch", "../tcp", "check.http"):
        with pytest.raises(LookupError, match="no such check"):
            build_check(name, ("10.0.0.1", 80))


@pytest.mark.parametrize(
    ("kind", "endpoint", "settings"),
    [
        ("tcp", ("server.example", 80), {}),
        ("tcp", ("10.0.0.1", 80), {"source": "2001:db8::1"}),
        ("tcp", ("10.0.0.1", 80), {"interval": 0}),
        ("http", ("10.0.0.1", 80), {"path": "/ HTTP/1.1\r\nX: y"}),
        ("http", ("10.0.0.1", 80), {"path": "relative"}),
        ("http", ("10.0.0.1", 80), {"host": "a\nb"}),
    ],
)
def test_settings_that_cannot_work_are_refused(
    kind: str, endpoint: tuple[str, int], settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        build_check(kind, endpoint, **settings)
