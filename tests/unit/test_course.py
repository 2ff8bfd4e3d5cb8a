"""Drains with a deadline and slow starts, on a clock of the test's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.config import Config, loads
from lbd.master.compose import Composer
from lbd.master.course import WHOLE, Course, Ramp, Standing
from lbd.master.runtime import Drain, Override, Runtime

A, B = ("web", "10.0.1.1:8080"), ("web", "10.0.1.2:8080")
TEXT = """
[[interface]]
name = "eth0"
[[local_address]]
address = "10.0.0.10"
interface = "eth0"
[[service]]
name = "web"
address = "192.0.2.10:80"
{options}
[[service.real_server]]
address = "10.0.1.1:8080"
[[service.real_server]]
address = "10.0.1.2:8080"
weight = 3
[[service]]
name = "other"
address = "192.0.2.10:81"
[[service.real_server]]
address = "10.0.1.1:8080"
"""


def config(options: str = 'slow_start = "60s"', more: str = "") -> Config:
    return loads(TEXT.format(options=options) + more)


class Lab:
    def __init__(self, tmp_path: Path, options: str = 'slow_start = "60s"') -> None:
        self.path = tmp_path / "runtime.json"
        self.now = 1000.0
        self.start(config(options))

    def start(self, text: Config) -> None:
        """A master begins, perhaps after a crash of its predecessor."""
        self.config = text
        self.runtime = Runtime(self.path)
        self.runtime.load(text)
        self.course = Course(self.runtime, text, lambda: self.now)
        self.composer = Composer(text, override=self.runtime.get, standing=self.course.standing)

    def drain(self, seconds: float, stages: int = 1, reset: bool = False) -> None:
        self.runtime.change(A, state="drain", drain=Drain(self.now, self.now + seconds, stages, reset))
        self.composer.touch("web")

    def at(self, seconds: float) -> tuple[int, int, str]:
        """Weight, share, end of the first real server, as workers would be told."""
        self.now = 1000.0 + seconds
        self.composer.touch(*self.course.moved())
        r = self.composer.service("web").real_servers[0]
        return r.weight, r.share, r.end


# -- drain ---------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_the_connections(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.drain(600)
    assert lab.at(0) == (0, 100, "") and lab.at(599.9) == (0, 100, "") and lab.at(600) == (0, 100, "expire")
    assert lab.at(5000) == (0, 100, "expire"), "until it is undrained"
    lab.runtime.change(A, state="ready")
    assert lab.at(5001) == (1, 100, "")
    assert lab.runtime.get(*A) == Override()


def test_in_stages_over_the_first_half(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.drain(600, stages=4, reset=True)
    seen = {t: lab.at(t) for t in (0, 99, 100, 199, 200, 299, 300, 599, 600)}
    assert [seen[t][:2] for t in (0, 100, 200, 300)] == [(1, 75), (1, 50), (1, 25), (0, 100)]
    assert [seen[t] for t in (99, 199, 299)] == [seen[0], seen[100], seen[200]]
    assert seen[599] == (0, 100, "") and seen[600] == (0, 100, "reset")


def test_only_what_moves_is_told(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.drain(600, stages=3)
    assert lab.course.moved() == {"web"}
    moves = []
    for t in range(1, 1000):
        lab.now = 1000.0 + t
        if lab.course.moved() == {"web"}:
            moves.append(t)
    assert moves == [150, 300, 600]
    lab.runtime.change(A, state="maint")
    assert lab.course.moved() == {"web"} and lab.course.moved() == set()


def test_a_restart_of_the_master_keeps_the_deadline(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.drain(600, stages=2, reset=True)
    lab.now += 200
    lab.start(lab.config)
    assert lab.at(200) == (1, 50, "") and lab.at(300)[0] == 0 and lab.at(600) == (0, 100, "reset")
    lab.start(lab.config)
    assert lab.at(601) == (0, 100, "reset")


def test_a_plain_drain_has_no_end(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.drain(600)
    lab.runtime.change(A, state="drain")
    assert lab.at(601) == (0, 100, "") and lab.course.drain(A) is None


def test_a_weight_by_an_operator_leaves_the_deadline(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.drain(600, stages=2)
    lab.runtime.change(A, weight=40)
    assert lab.at(10) == (40, 50, "") and lab.at(600) == (0, 100, "expire")


@given(st.integers(1, 100), st.floats(1, 1e6), st.lists(st.floats(-10, 2e6), max_size=20))
def test_stages_only_go_down(stages: int, seconds: float, times: list[float]) -> None:
    drain = Drain(50.0, 50.0 + seconds, stages)
    shares = [drain.share(50.0 + t) for t in sorted(times)]
    assert shares == sorted(shares, reverse=True) and all(0 <= s < 100 for s in shares)
    assert drain.share(50.0 + seconds * 0.501) == 0 and drain.share(50.0) == 100 * (stages - 1) // stages


# -- slow start ----------------------------------------------------------------------------------------------------


def test_a_returned_one_begins_slowly(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert lab.at(0) == (1, 100, ""), "all begin together at the daemon's start: nobody is to be spared"
    lab.course.returned(A)
    steps = [lab.at(t)[1] for t in range(0, 61, 3)]
    assert steps == [*range(5, 101, 5), 100]
    assert lab.runtime.ramps == {} and lab.course.standing(*A) == WHOLE
    assert lab.composer.service("web").real_servers[1].share == 100


def test_it_ends_when_the_server_leaves_and_begins_anew(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.course.returned(A)
    assert lab.at(30)[1] == 55
    lab.course.left(A)
    assert lab.at(31)[1] == 100
    lab.course.returned(A)
    assert lab.at(31)[1] == 5


def test_of_a_reload_s_new_servers(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    new = config(more='[[service.real_server]]\naddress = "10.0.1.9:8080"\n'
                      '[[service]]\nname = "new"\naddress = "192.0.2.10:82"\nslow_start = "5s"\n'
                      '[[service.real_server]]\naddress = "10.0.1.1:8080"\n')  # fmt: skip
    lab.course.configure(new)
    assert lab.runtime.ramps == {}, "neither in a service without slow start, nor in a new one"
    text = TEXT.format(options='slow_start = "60s"').replace('name = "other"', 'name = "other"\nslow_start = "10s"')
    grown = loads(text + '[[service.real_server]]\naddress = "10.0.1.7:8080"\n')
    lab.course.configure(grown)
    assert lab.runtime.ramps == {("other", "10.0.1.7:8080"): 1000.0}
    lab.course.configure(config(options=""))
    assert lab.runtime.ramps == {}, "nobody begins slowly any more"


def test_own_times_and_none(tmp_path: Path) -> None:
    text = TEXT.format(options='slow_start = "60s"').replace("weight = 3", 'weight = 3\nslow_start = "0s"')
    lab = Lab(tmp_path)
    lab.start(loads(text))
    lab.course.returned(B)
    assert lab.runtime.ramps == {}


def test_steps_are_the_scheduler_s(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 'slow_start = "80s"\nscheduler = "mh"')
    lab.course.returned(A)
    assert [lab.at(t)[1] for t in (0, 9, 10, 69, 70)] == [12, 12, 25, 87, 100]
    lab.start(config('slow_start = "80s"\nscheduler = "rr"'))
    lab.course.returned(A)
    assert lab.runtime.ramps == {} and lab.at(71) == (1, 100, "")


def test_a_restart_of_the_master_goes_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.course.returned(A)
    lab.now += 30
    lab.start(lab.config)
    assert lab.at(30)[1] == 55 and A not in lab.runtime, "no runtime change of an operator"
    lab.start(lab.config)
    assert lab.at(100) == (1, 100, "") and lab.runtime.ramps == {}


def test_drained_during_a_slow_start(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.course.returned(A)
    lab.now += 30
    lab.drain(60, stages=2)
    assert lab.at(30)[1] == 50 and lab.at(59)[1] == 50 and lab.at(60)[0] == 0


@given(st.floats(1, 86400), st.sampled_from([1, 8, 20]), st.lists(st.floats(-5, 2e5), max_size=20))
def test_a_ramp_only_goes_up(seconds: float, steps: int, times: list[float]) -> None:
    ramp = Ramp(50.0, seconds, steps)
    shares = [ramp.share(50.0 + t) for t in sorted(times)]
    assert shares == sorted(shares) and all(0 < s <= 100 for s in shares)
    assert ramp.share(50.0) == 100 // steps and ramp.share(50.0 + seconds) == 100
    assert ramp.share(50.0 + ramp.left(50.0) + 0.001) == 100


def test_files_that_are_nonsense_are_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "runtime.json"
    path.write_text('[{"service": "web", "real_server": "10.0.1.1:8080", "weight": null, "state": "drain", "drain": {"x": 1}}]')
    runtime = Runtime(path)
    runtime.load(config())
    assert list(runtime.items()) == [] and "can't be used" in caplog.text


def test_files_of_before_are_read(tmp_path: Path) -> None:
    path = tmp_path / "runtime.json"
    path.write_text('[{"service": "web", "real_server": "10.0.1.1:8080", "weight": 7, "state": "drain"}]')
    runtime = Runtime(path)
    runtime.load(config())
    assert list(runtime.items()) == [(A, Override(7, "drain"))]


def test_standing_of_who_is_left_alone(tmp_path: Path) -> None:
    assert Lab(tmp_path).course.standing(*A) is WHOLE == Standing()
