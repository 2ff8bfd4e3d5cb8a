# SPDX-License-Identifier: Apache-2.0
"""`lbd capture` of a daemon under traffic, and `lbd replay` of that: the bytes that the daemon sent."""

import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomlkit

from lbd.pcap import Packet, PcapError, read_file
from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.xdp.kernel import kernel_version

pytestmark = [pytest.mark.root, pytest.mark.netns]

Make = Callable[..., Testbed]
LBD = [sys.executable, "-m", "lbd.cli.main"]


def packets(path: Path, *points: str) -> list[Packet]:
    """Those that are in the file by now, of these points."""
    found = []
    try:
        for packet in read_file(path):
            if not points or packet.interface.description in points:
                found.append(packet)
    except PcapError:
        pass  # it is being written
    return found


@contextmanager
def capture(daemon: Daemon, path: Path, *options: str) -> Iterator[None]:
    """While the block runs; at its end everything that was sent must have come."""
    command = [*LBD, "capture", "--socket", str(daemon.control), "-w", str(path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            # the section header is written when the daemon has said that capturing is on
            wait_until("the capture is on", path.exists, 10)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0, process.stderr and process.stderr.read()


def sent(daemon: Daemon) -> int:
    return sum(q["tx_packets"] for w in daemon.get("/v1/workers")["workers"] for q in w["queues"])


def wait_for_all(daemon: Daemon, path: Path, before: int) -> None:
    wait_until(
        "the capture has all that was sent",
        lambda: 0 < sent(daemon) - before == len(packets(path, "lbd tx")),
        10,
    )


def standing_in_for_the_kernel(daemon: Daemon) -> str:
    """The daemon's configuration with its neighbours and routes as static ones."""
    config = tomlkit.parse(daemon.config_file.read_text()).unwrap()
    config["neighbor"] = [
        {"interface": n["interface"], "address": n["address"], "mac": n["mac"]}
        for n in daemon.get("/v1/neighbours")["neighbours"]
        if n["address"] and n["valid"]
    ]
    config["route"] = [
        {"interface": r["interface"], "destination": r["destination"]}
        for r in daemon.get("/v1/routes")["routes"]
        if r["interface"] and not r["gateway"]
    ]
    return tomlkit.dumps(config)


def test_replaying_what_was_received_gives_what_was_sent(make_testbed: Make, tmp_path: Path) -> None:
    testbed = make_testbed(workers=1).up()
    daemon = testbed.lbd()
    live, again, config = tmp_path / "live.pcapng", tmp_path / "again.pcapng", tmp_path / "replay.toml"
    before = sent(daemon)
    with capture(daemon, live):
        for family in (4, 6, 4):
            assert testbed.curl(family).status == 200
        assert testbed.curl(4, "/", "--http1.0").status == 200
        wait_for_all(daemon, live, before)
    config.write_text(standing_in_for_the_kernel(daemon))
    kernel_completes = kernel_version(platform.release()) >= (6, 11)
    assert [i["kernel_checksums"] for i in daemon.get("/v1/interfaces")["interfaces"]] == [kernel_completes] * 2
    command = [*LBD, "-j", "replay", str(config), str(live), "-o", str(again)]
    summary = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert summary["connections"] == 4
    wanted = [(p.interface.name, p.data) for p in packets(live, "lbd tx")]
    assert [(p.interface.name, p.data) for p in packets(again)] == wanted


def test_each_packet_is_captured_once_with_what_became_of_it(make_testbed: Make, tmp_path: Path) -> None:
    """Two workers: half of the packets are handed over, and must not stand there twice."""
    testbed = make_testbed(workers=2).up()
    daemon = testbed.lbd()
    path = tmp_path / "a.pcapng"
    before = sent(daemon)
    with capture(daemon, path):
        for n in range(6):
            assert testbed.curl(4 if n % 2 else 6).status == 200
        wait_for_all(daemon, path, before)
    received = packets(path, "lbd rx")
    assert len(received) == len(packets(path, "lbd tx"))
    for packet in received:
        assert packet.comment.startswith("worker ") and ", forward, service web" in packet.comment
    seen = {(p.interface.name, p.interface.description) for p in packets(path)}
    assert seen == {(i, d) for i in ("eth0", "eth1") for d in ("lbd rx", "lbd tx")}


def test_points_and_service(make_testbed: Make, tmp_path: Path) -> None:
    testbed = make_testbed(workers=1).up()
    daemon = testbed.lbd()
    path = tmp_path / "a.pcapng"
    with capture(daemon, path, "--point", "rx", "--service", "web6", "-s", "60"):
        for family in (4, 6):
            assert testbed.curl(family).status == 200
        wait_until("something is captured", lambda: len(packets(path)) >= 8, 10)
    for packet in packets(path):
        assert packet.interface.description == "lbd rx"
        assert ", service web6" in packet.comment
        assert len(packet.data) <= 60
