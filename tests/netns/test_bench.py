# SPDX-License-Identifier: Apache-2.0
"""The benchmark beside a bare AF_XDP forwarder on veth runs, and its sink accepts what lbd sends. Method: bench/README.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


def ratios(*arguments: str) -> dict[str, float]:
    argv = [sys.executable, str(ROOT / "bench/veth.py"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return {r["name"]: r["ratio"] for r in json.loads((ROOT / "bench/out/veth.json").read_text())["results"]}


def test_the_benchmark_measures_both() -> None:
    """That lbd reaches 0.9 of the bare forwarder is for `make bench-veth ARGS='--require 0.9'`: on a shared machine a
    figure is no test."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores: one sends, one forwards")
    if missing := [tool for tool in ("clang", "chrt", "taskset") if not shutil.which(tool)]:
        pytest.skip(f"the benchmark needs {', '.join(missing)} (make setup installs them)")
    seen = ratios("pps", "--flows", "1000", "--runs", "1", "--seconds", "2")
    assert len(seen) == 1 and min(seen.values()) > 0.2, seen
