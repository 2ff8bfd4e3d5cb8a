# SPDX-License-Identifier: Apache-2.0
"""Real load through lbd with two workers: HTTP, DNS and bulk TCP, IPv4 and IPv6, judged at both ends."""

from typing import Any

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.scenario import spread

pytestmark = [pytest.mark.root, pytest.mark.netns]

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
Balanced = tuple[Testbed, Daemon]


def workers(lbd: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lbd.get("/v1/workers")["workers"]
    return found


@families
def test_every_real_server_answers(balanced: Balanced, family: int) -> None:
    testbed, _ = balanced
    answers = [testbed.curl(family) for _ in range(12)]
    assert {a.status for a in answers} == {200}
    assert {a.body.strip() for a in answers} == {s.name for s in testbed.servers}


@families
def test_real_servers_see_a_local_address(balanced: Balanced, family: int) -> None:
    """FULLNAT: both addresses are rewritten."""
    testbed, _ = balanced
    seen = {testbed.curl(family, "/address").body.split()[0] for _ in range(6)}
    assert seen <= set(testbed.topology.lips4 if family == 4 else testbed.topology.lips6)


@pytest.mark.cell("fullnat", "{family}", "tcp", "veth")
@families
def test_no_error_in_twenty_thousand_requests_over_kept_connections(balanced: Balanced, family: int) -> None:
    testbed, _ = balanced
    requests = errors = 0
    while requests < 20_000:
        result = testbed.wrk(family, connections=64, seconds=2)
        assert result.requests
        requests, errors = requests + result.requests, errors + result.errors
    assert errors == 0


@families
def test_rr_deals_connections_out_evenly(balanced: Balanced, family: int) -> None:
    testbed, _ = balanced
    before = testbed.counts()
    requests, errors = 0, 0
    while requests < 20_000:
        result = testbed.wrk(family, connections=64, seconds=2, close=True)
        assert result.requests
        requests, errors = requests + result.requests, errors + result.errors
    assert errors == 0
    counts = {name: (after - before[name]).connections for name, after in testbed.counts().items()}
    assert spread(counts) <= 0.01, counts


@pytest.mark.cell("fullnat", "{family}", "udp", "veth")
@families
def test_no_query_of_ten_thousand_at_once_is_lost(balanced: Balanced, family: int) -> None:
    testbed, _ = balanced
    result = testbed.dnsperf(family, queries=30_000, outstanding=10_000, clients=100)
    assert (result.completed, result.lost, result.failed) == (30_000, 0, 0)


@families
@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_bulk_data_flows_in_both_directions(balanced: Balanced, family: int, reverse: bool) -> None:
    testbed, _ = balanced
    assert testbed.iperf3(family, seconds=1, reverse=reverse).bits_per_second > 50e6


def test_nothing_was_dropped_without_a_reason_and_no_worker_restarted(balanced: Balanced) -> None:
    """After all of the above."""
    _, lbd = balanced
    assert [w["restarts"] for w in workers(lbd)] == [0, 0]
    assert lbd.get("/v1/status")["problems"] == []
