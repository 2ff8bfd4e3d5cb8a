# SPDX-License-Identifier: Apache-2.0
"""Accident or crash loop: how long a dead worker's successor waits."""

from lbd.master.restart import Limits, Restarts

RAN = Limits().proven


def test_a_worker_that_had_run_is_started_again_at_once_however_often() -> None:
    restarts = Restarts(Limits())
    assert [restarts.died(now, RAN) for now in range(20)] == [0.0] * 20
    assert not restarts.quarantined(20) and restarts.too_many(20), "an operator hears of it"


def test_one_that_had_not_pauses_longer_each_time() -> None:
    restarts = Restarts(Limits())
    assert [restarts.died(now, RAN / 2) for now in range(6)] == [0.0, 0.05, 0.1, 0.2, 0.4, 10.0]
    assert restarts.quarantined(6)


def test_a_good_run_ends_the_row() -> None:
    restarts = Restarts(Limits())
    for now in range(5):
        restarts.died(now)
    assert restarts.died(5, RAN) == 0.0 and not restarts.quarantined(5)
    assert [restarts.died(now) for now in (6, 7)] == [0.0, 0.05]


def test_old_ones_are_forgiven() -> None:
    restarts = Restarts(Limits())
    for now in range(6):
        restarts.died(now)
    assert restarts.died(100) == 0.0 and not restarts.too_many(100)
