# SPDX-License-Identifier: Apache-2.0
"""lbd beside a bare AF_XDP forwarder on veth: at least 0.9 of it. Method: bench/README.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0.9


def ratios(*arguments: str) -> dict[str, float]:
    argv = [sys.executable, str(ROOT / "bench/veth.py"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return {r["name"]: r["ratio"] for r in json.loads((ROOT / "bench/out/veth.json").read_text())["results"]}


@pytest.mark.parametrize(
    "what",
    [["pps", "--flows", "1000"], ["bulk", "--families", "4", "--poll", "adaptive"]],
    ids=["udp", "iperf3"],
)
def test_lbd_reaches_nine_tenths_of_a_bare_forwarder(what: list[str]) -> None:
    """What is below the limit is measured once more, longer: other load on the machine only ever takes away."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores: one sends, one forwards")
    if missing := [tool for tool in ("clang", "chrt", "taskset", "iperf3") if not shutil.which(tool)]:
        pytest.skip(f"the benchmark needs {', '.join(missing)} (make setup installs them)")
    seen = ratios(*what, "--runs", "3", "--seconds", "2")
    if min(seen.values()) < LIMIT:
        seen = ratios(*what, "--runs", "7", "--seconds", "2")
    assert min(seen.values()) >= LIMIT, seen
