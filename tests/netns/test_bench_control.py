# SPDX-License-Identifier: Apache-2.0
"""The control-plane benchmark runs, at a size that is no burden, and finds that what it timed has happened. Figures are no test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_measures_a_small_configuration(tmp_path: Path) -> None:
    out = tmp_path / "control.json"
    size = ["--services", "30", "--servers", "4", "--series", "2000", "--runs", "1", "--changes", "4", "-o", str(out)]
    done = subprocess.run([sys.executable, str(ROOT / "bench/control.py"), *size], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["case"]: row for row in json.loads(out.read_text())}
    for case in ("start: ready", "change: weight by API", "change: health verdict", "reload: answered", "memory"):
        assert rows[case]["median"] > 0 and rows[case]["goal"], rows[case]
    assert rows["scrape of 2000: loop"]["params"]["series"] > 1800
    assert all(row["ratio"] > 0 for row in rows.values() if "peer" in row)
