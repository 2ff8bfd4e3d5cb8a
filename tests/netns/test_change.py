# SPDX-License-Identifier: Apache-2.0
"""Neighbours, routes, links, weights and health change while lbd serves; and nobody else notices (change.py)."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from lbd.testbed import Testbed
from lbd.testbed.netns import wait_until
from lbd.testbed.server import HTTP_PORT, RealServer
from lbd.testbed.testbed import FAMILIES, endpoint
from tests.netns import traffic
from tests.netns.change import (
    KEPT,
    MOVING,
    MOVING_PORT,
    NOTICED,
    SOON,
    WEIGHTED_PORT,
    Site,
    lead,
    nobody_else_noticed,
    start,
)  # fmt: skip
from tests.netns.command import lbd
from tests.netns.dial import dial, exchange, http

pytestmark = [pytest.mark.root, pytest.mark.netns]

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> Site:
    return start(make_shared(workers=2, servers=3).up())


# -- the network ---------------------------------------------------------------------------------------------


def test_a_real_server_gets_another_mac(site: Site) -> None:
    server = site.testbed.servers[0]
    addresses = {server.host.address4, server.host.address6}

    def workers_know(mac: str) -> bool:
        known = site.daemon.get("/v1/neighbours")["neighbours"]
        return {n["address"] for n in known if n["mac"] == mac and n["valid"]} >= addresses

    with ExitStack() as stack:
        kept = [stack.enter_context(dial(site.testbed.client, site.testbed.vip(4), traffic.PORT)) for _ in range(KEPT)]
        for mac in ("02:1b:d0:02:00:99", server.host.mac):
            server.ns.ip(f"link set eth0 address {mac}")
            wait_until("the workers know the new MAC", lambda mac=mac: workers_know(mac), SOON)
            for sock in kept:
                assert exchange(sock, b"x" * 5000) == b"x" * 5000
            for family in FAMILIES:
                assert {site.testbed.curl(family).status for _ in range(6)} == {200}
    site.settle()


@families
def test_a_route_changes(site: Site, family: int) -> None:
    testbed, n = site.testbed, FAMILIES.index(family)

    def gateways() -> set[str]:
        rows = site.daemon.get("/v1/routes")["routes"]
        return {row["gateway"] for row in rows if row["destination"].split("/")[0] == MOVING[n]}

    def answers(server: RealServer) -> bool:
        with dial(testbed.client, testbed.vip(family), MOVING_PORT) as sock:
            assert exchange(sock, b"y" * 100_000) == b"y" * 100_000
            end = endpoint(MOVING[n], traffic.SERVER_PORT)
            return bool(server.ns.run(["ss", "-Htn", "state", "established", "src", end]))

    for server in (testbed.servers[1], testbed.servers[0]):
        lead(testbed, server)
        gateway = server.host.address4 if family == 4 else server.host.address6
        wait_until("the workers know the new route", lambda gateway=gateway: gateways() == {gateway}, SOON)
        assert answers(server)
    site.settle()


def test_a_real_server_is_unplugged(site: Site) -> None:
    """It leaves the rotation by its health checks, comes back by itself, and its connections go on."""
    testbed, port = site.testbed, site.testbed.servers[2].name
    address = endpoint(testbed.servers[2].host.address4, HTTP_PORT)
    testbed.topology.switch.ip(f"link set {port} down")
    try:
        wait_until("it is down", lambda: site.real_servers("web4")[address]["state"] == "down", NOTICED)
        before = site.connections("web4")
        result = testbed.wrk(4, connections=16, seconds=1, close=True)
        assert result.requests and result.errors == 0
        after = site.connections("web4")
        assert [a for a in after if after[a] == before[a]] == [address]
    finally:
        testbed.topology.switch.ip(f"link set {port} up")
    wait_until("it is up", lambda: site.real_servers("web4")[address]["state"] == "up", 3 * NOTICED)
    before = site.connections("web4")
    assert testbed.wrk(4, connections=16, seconds=1, close=True).errors == 0
    assert site.connections("web4")[address] > before[address]
    site.settle()


def test_the_balancers_own_link_goes_down_and_up(site: Site) -> None:
    def up() -> bool:
        return {i["name"]: i["up"] for i in site.daemon.get("/v1/interfaces")["interfaces"]}["eth1"]

    site.testbed.topology.switch.ip("link set lb down")
    try:
        wait_until("the workers know that it is down", lambda: not up(), SOON)
        assert any("eth1" in problem for problem in site.daemon.get("/v1/status")["problems"])
    finally:
        site.testbed.topology.switch.ip("link set lb up")
    wait_until("the workers know that it is up", up, SOON)
    wait_until("the real servers are up", site.daemon.real_servers_up, 3 * NOTICED)
    site.settle()
    assert site.daemon.get("/v1/status")["problems"] == []
    for family in FAMILIES:
        assert site.testbed.curl(family).status == 200


# -- operators -----------------------------------------------------------------------------------------------


@families
def test_drain_at_run_time(site: Site, family: int) -> None:
    """Connections to the drained one go on, new ones go elsewhere, and nobody gets an error."""
    testbed, service = site.testbed, f"web{family}"
    host = testbed.servers[1].host
    address = endpoint(host.address4 if family == 4 else host.address6, HTTP_PORT)
    with ExitStack() as stack:
        kept = [stack.enter_context(dial(testbed.client, testbed.vip(family), 80)) for _ in range(KEPT)]
        names = [http(sock) for sock in kept]
        assert set(names) == {b"rs1\n", b"rs2\n", b"rs3\n"}
        with site.load(family, close=True) as load:
            said = lbd(site.daemon, "real-server", "drain", service, address)
            assert f"{service} {address}: drain, weight 0" in said
            wait_until("it is drained", lambda: site.daemon.get("/v1/status")["ready"], SOON)
            before = site.connections(service)
            wait_until("others get connections", lambda: opened(site, service, before) > 500, SOON)
            assert site.connections(service)[address] == before[address]
            assert [http(sock) for sock in kept] == names
            assert load.result().errors == 0
        lbd(site.daemon, "real-server", "ready", service, address)
        wait_until("it is ready", lambda: site.daemon.get("/v1/status")["ready"], SOON)
        before = site.connections(service)
        assert testbed.wrk(family, connections=16, seconds=1, close=True).errors == 0
        assert site.connections(service)[address] > before[address]
        assert [http(sock) for sock in kept] == names
    site.settle()


def opened(site: Site, service: str, before: dict[str, int]) -> int:
    return sum(site.connections(service).values()) - sum(before.values())


def test_weights_at_run_time(site: Site) -> None:
    testbed = site.testbed
    addresses = [endpoint(s.host.address4, HTTP_PORT) for s in testbed.servers]

    def shares() -> list[float]:
        before = site.connections("weighted4")
        sockets = []
        try:
            for _ in range(240):
                sockets.append(dial(testbed.client, testbed.vip(4), WEIGHTED_PORT))
            after = site.connections("weighted4")
        finally:
            for sock in sockets:
                sock.close()
        return [(after[a] - before[a]) / 240 for a in addresses]

    with site.load(4, close=True) as load:
        assert shares() == pytest.approx([1 / 3] * 3, abs=0.02)
        assert "weight 2" in lbd(site.daemon, "real-server", "set", "weighted4", addresses[0], "weight=2")
        wait_until("it is applied", lambda: site.daemon.get("/v1/status")["ready"], SOON)
        assert shares() == pytest.approx([1 / 2, 1 / 4, 1 / 4], abs=0.02)
        said = lbd(site.daemon, "real-server", "set", "weighted4", addresses[0], "weight=default")
        assert "weight 1" in said
        assert load.result().errors == 0
    assert not site.real_servers("weighted4")[addresses[0]]["runtime"]


def test_maintenance(site: Site) -> None:
    """No connections, and no health checks: it may be switched off without anybody's alarm."""
    testbed, host = site.testbed, site.testbed.servers[2].host
    address = endpoint(host.address4, HTTP_PORT)
    assert "maint" in lbd(site.daemon, "real-server", "maint", "web4", address)
    wait_until("it is applied", lambda: site.daemon.get("/v1/status")["ready"], SOON)
    before = site.real_servers("web4")[address]
    assert before["state"] == "maint" and before["health"] is None
    for _ in range(10):
        assert testbed.curl(4).body != f"{host.name}\n"
    assert site.connections("web4")[address] == before["connections"]
    lbd(site.daemon, "real-server", "ready", "web4", address)
    wait_until("it is up", lambda: site.real_servers("web4")[address]["state"] == "up", NOTICED)
    wait_until("it serves", lambda: testbed.curl(4).body == f"{host.name}\n", SOON)


def test_a_dead_real_server_leaves_and_comes_back(site: Site) -> None:
    testbed, victim = site.testbed, site.testbed.servers[1]
    address = endpoint(victim.host.address4, HTTP_PORT)
    with ExitStack() as stack:
        kept = [stack.enter_context(dial(testbed.client, testbed.vip(4), 80)) for _ in range(KEPT)]
        others = [sock for sock in kept if http(sock) != b"rs2\n"]
        assert 0 < len(others) < KEPT
        with site.load(4, close=True) as load:
            before = site.connections("web4")[address]
            victim.stop("nginx")
            wait_until("it is down", lambda: site.real_servers("web4")[address]["state"] == "down", NOTICED)
            result = load.result()
            refused = site.connections("web4")[address] - before
        assert result.requests > 1000
        assert result.errors <= refused + 32, "each connection to the dead one, and those it had at its end"
        for family in FAMILIES:
            wait_until("it is out", lambda f=family: down(site, f"web{f}") == 1, NOTICED)
            result = testbed.wrk(family, connections=16, seconds=1, close=True)
            assert result.requests and result.errors == 0
        assert {http(sock) for sock in others} == {b"rs1\n", b"rs3\n"}
        victim.start("nginx")
        wait_until("it is up", lambda: down(site, "web4") + down(site, "web6") == 0, NOTICED)
        before = site.connections("web4")[address]
        assert testbed.wrk(4, connections=16, seconds=1, close=True).errors == 0
        assert site.connections("web4")[address] > before
        assert {http(sock) for sock in others} == {b"rs1\n", b"rs3\n"}
    site.settle()


def down(site: Site, service: str) -> int:
    return sum(row["state"] == "down" for row in site.real_servers(service).values())


def test_nobody_else_noticed(site: Site) -> None:
    """After all of the above."""
    nobody_else_noticed(site)
