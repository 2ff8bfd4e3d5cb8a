"""Rise and fall: the judge against a naive reading of the rule, and the books of a status."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.health.check import Result
from lbd.health.target import Judge, Status

results = st.lists(st.sampled_from(list(Result)), max_size=60)
counts = st.integers(1, 6)


def states_by_the_rule(seen: list[Result], rise: int, fall: int) -> list[bool]:
    """The state after each result: looks back over all results, remembers nothing else."""
    states: list[bool] = []
    up = True
    rows: list[bool] = []  # verdicts since the last transition
    spoken = False
    for result in seen:
        if result is not Result.ERROR:
            rows.append(result is Result.SUCCESS)
            needed = rise if not up else fall if spoken else 1
            if len(rows) >= needed and all(verdict is not up for verdict in rows[-needed:]):
                up = not up
                rows.clear()
            spoken = True
        states.append(up)
    return states


@given(results, counts, counts)
def test_states_follow_the_rule(seen: list[Result], rise: int, fall: int) -> None:
    judge = Judge(rise, fall)
    states = []
    for result in seen:
        before = judge.up
        assert judge.feed(result) == (judge.up != before)
        states.append(judge.up)
    assert states == states_by_the_rule(seen, rise, fall)


@given(results, counts, counts)
def test_errors_of_this_host_change_nothing(seen: list[Result], rise: int, fall: int) -> None:
    with_errors, without = Judge(rise, fall), Judge(rise, fall)
    for result in seen:
        with_errors.feed(result)
        with_errors.feed(Result.ERROR)
        if result is not Result.ERROR:
            without.feed(result)
    assert (with_errors.up, with_errors.streak) == (without.up, without.streak)


def test_first_failure_of_a_fresh_one_counts_at_once() -> None:
    assert Judge(2, 3).feed(Result.FAILURE)


def test_one_that_is_not_fresh_needs_the_whole_row() -> None:
    judge = Judge(2, 3, fresh=False)
    assert [judge.feed(Result.TIMEOUT) for _ in range(3)] == [False, False, True]
    assert [judge.feed(Result.SUCCESS) for _ in range(2)] == [False, True]


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=20))
def test_downtime_is_the_sum_of_the_times_down(gaps: list[float]) -> None:
    status, now, expected = Status(), 0.0, 0.0
    for turn, gap in enumerate(gaps):
        now += gap
        expected += gap if turn % 2 else 0.0  # turn 0 takes it down
        status.turn(up=bool(turn % 2), now=now, wall=now)
        assert status.downtime(now) == pytest.approx(expected)
    assert status.transitions_up + status.transitions_down == len(gaps)
    assert status.downtime(now + 5) == pytest.approx(expected + (0 if status.up else 5))
