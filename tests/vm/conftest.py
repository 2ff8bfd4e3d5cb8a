"""The lab VM as a fixture. See README.md beside this file."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.program import compiled
from tests.vm.stage import Stage

HERE = Path(__file__).parent
Vmlab = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker("vm")


@pytest.fixture(scope="session")
def vmlab() -> Vmlab:
    """vmlab(COMMAND, "--pair", "igb", ...): run it as root in a fresh VM, with these options of vmlab.

    A boot takes 3 to 7 seconds, and all is slow that runs for the first time: most tests share one, see `stage`.
    """

    def run(command: str, *options: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        argv = [str(HERE / "vmlab"), "--timeout", str(timeout), *options, "--", command]
        return subprocess.run(argv, capture_output=True, text=True, errors="replace")

    return run


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """stage.play(NICS, ARGV): in the one VM of all such tests."""
    made = Stage(tmp_path_factory.mktemp("stage"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def lab_tool() -> Callable[[str], Path]:
    """lab_tool(NAME): path of the compiled tests/vm/src/NAME.c."""
    return lambda name: compiled(HERE / "src" / f"{name}.c", "-lxdp", "-lbpf")
