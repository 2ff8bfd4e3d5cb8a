# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks judge figures (bench/compare.py), and which goals a run can be held to."""

import json
from pathlib import Path

import pytest

from bench.compare import Row, alternate, spread, write


def test_a_ratio_is_that_of_the_medians() -> None:
    row = Row("UDP", {"flows": 1}, "Mpps", [1.0, 9.0, 2.0], "AF_XDP", [2.0, 4.0, 0.5], goal=0.95)
    assert row.ratio == 1.0 and row.met
    assert row.document() == {
        "case": "UDP", "params": {"flows": 1}, "unit": "Mpps", "median": 2.0, "min": 1.0, "max": 9.0, "peer": "AF_XDP",
        "peer_median": 2.0, "peer_min": 0.5, "peer_max": 4.0, "ratio": 1.0, "goal": 0.95, "met": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "peer_runs", "goal", "met"),
    [
        ([0.94], [1.0], 0.95, False),
        ([0.95], [1.0], 0.95, True),
        ([0.9], [], 1.0, True),  # without a peer a goal is the largest figure
        ([1.0], [], 1.0, False),
        ([5.0], [1.0], None, None),
    ],
)
def test_a_goal_is_met_or_missed(runs: list[float], peer_runs: list[float], goal: float | None, met: bool | None) -> None:
    assert Row("case", {}, "", runs, "peer", peer_runs, goal).met is met


def test_runs_alternate_in_changing_order(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    seen = alternate("case", "Mpps", 3, {"a": lambda: run("a"), "b": lambda: run("b")})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert seen == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert "case, run 3: a 5, b 6 Mpps" in capsys.readouterr().out


def test_figures_show_at_least_three_digits() -> None:
    assert spread([0.1234]) == "0.123 (0.123–0.123)"
    assert spread([1.0, 2.0, 4.567]) == "2.00 (1.00–4.57)"
    assert spread([12345.6]) == "12,346 (12,346–12,346)"


def test_a_file_has_an_object_per_row_with_the_machine(tmp_path: Path) -> None:
    write([Row("idle", {"poll": "busy"}, "%", [1.0])], tmp_path / "out/idle.json")
    (found,) = json.loads((tmp_path / "out/idle.json").read_text())
    assert found["case"] == "idle" and "peer" not in found and "goal" not in found
    assert found["machine"]["cores"] >= 1 and found["time"]
