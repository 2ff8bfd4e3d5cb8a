"""The table of modes: when a run of everything fails for a cell that has neither a test nor a reason."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.matrix import DEVICES, FAMILIES, MODES, PROTOCOLS, Matrix, why_not

CELLS = [cell for cell in itertools.product(MODES, FAMILIES, PROTOCOLS, DEVICES) if why_not(cell) is None]


def finish(
    tmp_path: Path, cells: list[Any], *, markexpr: str = "", go: str | None = None, args: tuple[str, ...] = ("tests",),
    before: int = 0,
) -> int:  # fmt: skip
    option = SimpleNamespace(keyword="", markexpr=markexpr)
    config: Any = SimpleNamespace(option=option, args=list(args), getini=lambda name: ["tests"], getoption=lambda name: go)
    matrix = Matrix(tmp_path / "modes.md", config)
    for cell in cells:
        matrix.saw(cell, ("passes", ""))
    session: Any = SimpleNamespace(exitstatus=before)
    matrix.pytest_sessionfinish(session)
    return int(session.exitstatus)


@pytest.mark.parametrize(
    ("without", "more", "status"),
    [
        (0, {}, 0), (1, {}, 1), (1, {"args": ("tests/unit",)}, 0), (1, {"markexpr": "root"}, 0), (1, {"go": "left"}, 0),
        (1, {"go": "alone"}, 1),
        (0, {"before": 2}, 2), (1, {"before": 2}, 2),
    ],
)  # fmt: skip
def test_a_run_of_everything_fails_for_a_cell_without_test_and_reason(
    tmp_path: Path, without: int, more: dict[str, Any], status: int
) -> None:
    assert finish(tmp_path, CELLS[without:], **more) == status


def test_three_goes_make_one_table(tmp_path: Path) -> None:
    assert finish(tmp_path, CELLS[:9], go="left") == 0
    assert finish(tmp_path, CELLS[9:20], go="right") == 0
    assert finish(tmp_path, CELLS[20:], go="alone") == 0
    assert "NOT TESTED" not in (tmp_path / "modes.md").read_text()
