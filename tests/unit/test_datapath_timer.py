# SPDX-License-Identifier: Apache-2.0
"""The wheel's arithmetic, over the wrap of the 32-bit clock too, and the token bucket of lbd's own ICMP errors."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit import _engine

SLOTS, SLOT_MS = 1024, 128
TICKS = 2**32 // SLOT_MS
SECOND = 1_000_000_000


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**30), st.integers(0, 1024))
@example(2**32 - 1, 1, 0)
@example(2**32 - 1, 900_000, 2)
@example(0, 900_000, 2)
def test_slot_is_ahead_of_the_wheel_and_never_late(now: int, left: int, lag: int) -> None:
    """lag: how many slots the wheel is behind the clock. A slot is emptied when the clock has passed it."""
    tick = (now // SLOT_MS - lag) % TICKS
    slot = _engine.timer_slot(tick, now, left)
    ahead = (slot - tick) % SLOTS
    due = (now + left) // SLOT_MS - (now // SLOT_MS - lag)  # in ticks from the wheel's position
    if due < SLOTS:
        assert ahead == due
        emptied_ms = (now // SLOT_MS - lag + ahead + 1) * SLOT_MS
        assert 0 < emptied_ms - (now + left) <= SLOT_MS
    else:
        assert ahead == SLOTS - 1


@settings(deadline=None)
@given(st.integers(1, 1024), st.integers(0, 2**30))
def test_a_moved_record_never_lands_in_the_slot_being_emptied(lag: int, left: int) -> None:
    now = 1_000_000_000
    tick = now // SLOT_MS - lag
    slot = _engine.timer_slot(tick, now, left)
    assert slot != tick % SLOTS


def test_token_bucket_holds_its_rate() -> None:
    for rate in (1, 5, 9, 10, 11, 1000, 1_000_000):
        bucket = _engine.Bucketful(rate)
        now, sent, step = 3600 * SECOND, 0, min(SECOND // 1000, SECOND // rate)
        first = sum(bucket.take(now) for _ in range(rate * 2 + 10))
        assert 1 <= first <= max(rate // 10, 1), "a burst is a tenth of a second's, but never nothing"
        for _ in range(2000):
            now += step
            sent += bucket.take(now)
        assert sent <= rate * step * 2000 / SECOND + 1
        assert sent >= min(2000, rate * step * 2000 / SECOND) - 1


def test_token_bucket_of_rate_0_gives_nothing() -> None:
    assert not any(_engine.Bucketful(0).take(n * SECOND) for n in range(10))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63), max_size=30))
def test_token_bucket_survives_any_clock(times: list[int]) -> None:
    bucket = _engine.Bucketful(1000)
    for now in times:
        assert sum(bucket.take(now) for _ in range(200)) <= 100
