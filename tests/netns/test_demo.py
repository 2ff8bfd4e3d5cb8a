# SPDX-License-Identifier: Apache-2.0
"""`lbd demo`, as it is typed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbd.testbed.netns import NAMESPACES

pytestmark = [pytest.mark.root, pytest.mark.netns]

TOOLS = ("nginx", "dnsmasq", "iperf3", "curl", "wrk", "dnsperf")


def demo(*arguments: str, timeout: float = 110) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "lbd.cli.main", "demo", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def prefix() -> Iterator[str]:
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"the demo needs {', '.join(missing)} (make setup installs them)")
    name = f"lbdt-{os.getpid()}-demo"
    yield name
    demo("down", "--prefix", name)


def standing(prefix: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}-*"))


@pytest.mark.slow
def test_it_runs_and_everything_works(prefix: str) -> None:
    done = demo("--prefix", prefix, "--seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything worked" in done.stdout
    for load in (
        "curl",
        "wrk, keep-alive",
        "wrk, Connection: close",
        "dnsperf",
        "iperf3, to",
        "iperf3, from",
    ):
        for family in (4, 6):
            assert any(x.startswith(load) and f"IPv{family}: " in x for x in done.stdout.splitlines()), (
                done.stdout
            )
    assert not standing(prefix) and not Path("/run", prefix).exists()


def test_up_leaves_it_standing_and_down_takes_it_away(prefix: str) -> None:
    up = demo("up", "--prefix", prefix, "--servers", "2")
    assert up.returncode == 0, up.stdout + up.stderr
    assert standing(prefix) == [f"{prefix}-{role}" for role in ("client", "lb", "rs1", "rs2", "switch")]
    # the first command that it proposes
    command = next(x.strip() for x in up.stdout.splitlines() if x.startswith("  ip netns exec"))
    answer = subprocess.run(command.split(), capture_output=True, text=True, timeout=20)
    assert answer.stdout in ("rs1\n", "rs2\n"), answer
    down = demo("down", "--prefix", prefix)
    assert down.returncode == 0, down.stdout + down.stderr
    assert not standing(prefix) and not Path("/run", prefix).exists()
    assert demo("down", "--prefix", prefix).returncode == 0
