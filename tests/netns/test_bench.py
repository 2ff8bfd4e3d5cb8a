# SPDX-License-Identifier: Apache-2.0
"""The benchmark on veth runs in all its parts: every forwarder carries the traffic, and what arrives is right (the sink
verifies it). Method: bench/README.md.

How fast lbd is beside the others is for `make bench-veth ARGS=--require`: on a shared machine a figure is no test.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"AF_XDP", "kernel", "nftables"}
TOOLS = ("clang", "chrt", "taskset", "nft", "conntrack", "ethtool", "wrk", "iperf3", "nginx")


@pytest.fixture(autouse=True)
def able() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores: one sends, one forwards")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"the benchmark needs {', '.join(missing)} (make setup installs them)")


def rows(directory: Path, *arguments: str) -> list[dict[str, Any]]:
    out = directory / "veth.json"
    argv = [sys.executable, str(ROOT / "bench/veth.py"), *arguments, "--quick", "--out", str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    found: list[dict[str, Any]] = json.loads(out.read_text())
    for row in found:
        assert {"case", "params", "unit", "median", "min", "max", "machine"} <= row.keys(), row
        assert row["min"] <= row["median"] <= row["max"], row
        if "peer" in row:
            assert row["ratio"] == pytest.approx(row["median"] / row["peer_median"], rel=0.01), row
    return found


def test_packets_per_second_beside_each_forwarder(tmp_path: Path) -> None:
    """And the plot of it."""
    seen = rows(tmp_path, "pps")
    assert {row["peer"] for row in seen} == PEERS | {"kernel, inline", "nftables, inline"}
    assert all(row["params"]["flows"] == 1000 and row["ratio"] > 0.1 for row in seen), seen
    assert {row["peer"]: row["goal"] for row in seen if "goal" in row} == {
        "AF_XDP": 0.95, "nftables": 1.5, "nftables, inline": 1.5,
    }  # fmt: skip
    pytest.importorskip("matplotlib", reason="matplotlib draws the plots")
    from bench import plot

    figure = plot.veth(json.loads((tmp_path / "veth.json").read_text()))
    legend = figure.axes[0].get_legend() if figure else None
    labels = [text.get_text() for text in legend.get_texts()] if legend else []
    assert labels[:2] == ["lbd, FULLNAT", "bare AF_XDP forwarder"], labels


def test_frames_of_mixed_sizes_arrive_as_they_were_sent(tmp_path: Path) -> None:
    """The benchmark itself refuses a wrong length or checksum, and a mean size that is not that of the traffic."""
    argv = ["--mixed", "--flows", "64000", "--peers", "nftables"]
    seen = {row["case"]: row for row in rows(tmp_path, "pps", *argv)}
    assert [row["params"]["frame_bytes"] for row in seen.values()] == [64, 361.8, 1518]


def test_tcp_beside_each_forwarder(tmp_path: Path) -> None:
    seen = rows(tmp_path, "tcp", "--families", "6", "--peers", "nftables")
    wrk = ["wrk, connections kept", "wrk, one request a connection"]
    for case in (*wrk, "iperf3 to the server, IPv6", "iperf3 from the server, IPv6"):
        assert {row["peer"] for row in seen if row["case"] == case} == {"nftables"}, seen


def test_round_trips_and_idle_cpu_of_the_three_poll_modes(tmp_path: Path) -> None:
    seen = rows(tmp_path, "latency", "idle", "--peers", "kernel, inline")
    trips = [row for row in seen if row["unit"] == "µs"]
    assert {(row["params"]["poll"], row["params"]["percentile"]) for row in trips} == {
        (poll, percentile) for poll in ("busy", "adaptive", "interrupt") for percentile in ("p50", "p99", "p999")
    }
    used = {(row["params"]["poll"], row["params"]["process"]): row["median"] for row in seen if row["unit"] == "% of a core"}
    assert used["busy", "worker"] > used["adaptive", "worker"] > 0 < used["adaptive", "master"], used
