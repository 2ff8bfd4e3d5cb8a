# SPDX-License-Identifier: Apache-2.0
"""Jumbo frames on veth (MTU 9000): packets that lie in several AF_XDP frames, on real traffic, two workers."""

import random
import sys
from collections.abc import Callable, Iterator

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.topology import LB_SERVER
from tests.netns.chaos import Victim, kill_worker, pass_time
from tests.netns.test_mode import families, stats
from tests.netns.traffic import Inside, Traffic, config

pytestmark = [pytest.mark.root, pytest.mark.netns]

MTU = 9000
TABLES = {"frames": 8192, "hugepages": "off"}
STREAMS, FLOWS = 40, 8
KILLS = 3
CONTENT = random.Random(9).randbytes(8 << 20)


@pytest.fixture(scope="module")
def testbed(make_shared: Callable[..., Testbed]) -> Testbed:
    return make_shared(workers=2, servers=2, client_mtu=MTU, server_mtu=MTU).up()


@pytest.fixture(scope="module")
def lbd(testbed: Testbed) -> Iterator[Daemon]:
    """FULLNAT: nginx and echo; mode nat: the same nginx by other ports; a tunnel needs room, and is tested elsewhere."""
    for server in testbed.servers:
        server.ns.ip(f"route add default via {LB_SERVER[0]}", f"route add ::/0 via {LB_SERVER[1]}")
    daemon = testbed.lbd(config(testbed, tables=TABLES, interface=[{"name": n, "ring": 1024} for n in ("eth0", "eth1")]))
    yield daemon
    daemon.end()


def test_frames_and_sockets_are_made_for_the_mtu(testbed: Testbed, lbd: Daemon) -> None:
    said = testbed.balancer.run([sys.executable, "-m", "lbd.cli.main", "check", str(testbed.directory / "lbd.toml")])
    assert f"{TABLES['frames']} of 4 KiB" in said and "above 3818 bytes lie in several buffers" in said, said
    inside = Inside(lbd)
    assert (inside.sizes["frame_size"], inside.sizes["chains"]) == (4096, 1)
    inside.close()
    assert {i["mtu"] for i in lbd.get("/v1/interfaces")["interfaces"]} == {MTU}
    assert not lbd.get("/v1/status")["problems"]


@pytest.mark.cell("fullnat", "{family}", "tcp", "veth")
@families
def test_large_segments(testbed: Testbed, lbd: Daemon, family: int) -> None:
    """Some MB each way, byte-identical, in packets larger than any frame."""
    for server in testbed.servers:
        (server.directory / "files/jumbo").write_bytes(CONTENT)
    got = testbed.curl(family, "/jumbo", "-o", str(testbed.directory / "got"), timeout=20)
    assert got.status == 200
    assert (testbed.directory / "got").read_bytes() == CONTENT
    seen = stats(lbd, f"web{family}")
    assert seen["outgoing_bytes"] > len(CONTENT) and seen["outgoing_bytes"] / seen["outgoing_packets"] > 4096, seen


def ping(testbed: Testbed, family: int, size: int, *words: str) -> str:
    return testbed.client.run(["ping", "-c", "3", "-i", "0.2", "-W", "2", "-s", str(size), *words, testbed.vip(family)])


@families
def test_the_kernel_keeps_large_pings(testbed: Testbed, lbd: Daemon, family: int) -> None:
    """In one packet, and in fragments of which each lies in several frames: these come by lbd's slow path."""
    assert " 0% packet loss" in ping(testbed, family, 8000)
    assert " 0% packet loss" in ping(testbed, family, 20000)


def test_a_worker_killed_with_large_packets_under_way(testbed: Testbed, lbd: Daemon) -> None:
    """No frame is lost by that, and no connection."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    traffic = Traffic(testbed, streams=STREAMS, flows=FLOWS, sizes=[64, 8192, 32768], pause=0.02)
    traffic.wait_open()
    inside = Inside(lbd)
    for number in range(KILLS):
        pass_time(choice.uniform(0.1, 0.5))
        kill_worker(lbd, inside, traffic, Victim(number % 2, steps=choice.randrange(1, 20_000) if number else 0))
        traffic.ask("pause")
        traffic.wait_quiet()
        seen = traffic.report()
        assert seen["open"] == STREAMS and not seen["error_count"], seen["errors"]
        wait_until("every frame is where it belongs", lambda: not inside.frame_faults(), 5)
        traffic.ask("go")
    inside.close()
    traffic.stop()
