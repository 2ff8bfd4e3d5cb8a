# SPDX-License-Identifier: Apache-2.0
"""What changes while lbd serves: neighbours, routes, links, weights, health, configuration; and nobody else notices.

All along, a client talks over connections that never end (`client`), and compares each byte; the last test looks at what
it has to say. Each test leaves everything as it found it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import tomlkit

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.load import Wrk
from lbd.testbed.netns import wait_until
from lbd.testbed.server import HTTP_PORT, RealServer
from lbd.testbed.testbed import FAMILIES, config_text, endpoint
from tests.netns import traffic
from tests.netns.command import lbd
from tests.netns.dial import dial, exchange, http

pytestmark = [pytest.mark.root, pytest.mark.netns]

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
STREAMS, FLOWS = 60, 6
MOVING = ("10.79.0.1", "fd79::1")  # a real server's address behind a gateway
MOVING_PORT, WEIGHTED_PORT = 8, 81
KEPT = 12  # connections, so that each worker deals out some to each real server
# health checks of the testbed: 500 ms between two, 400 ms for one, two failures; twice that for a busy machine
NOTICED = 2 * (2 * 0.5 * 1.1 + 0.4)
SOON = 10.0  # what takes no time, on a busy machine


@dataclass
class Site:
    testbed: Testbed
    daemon: Daemon
    client: traffic.Traffic
    settings: dict[str, Any]

    def real_servers(self, service: str) -> dict[str, dict[str, Any]]:
        rows = self.daemon.get(f"/v1/real-servers?service={service}")["real_servers"]
        return {row["address"]: row for row in rows}

    def connections(self, service: str) -> dict[str, int]:
        return {address: row["connections"] for address, row in self.real_servers(service).items()}

    def reload(self, settings: dict[str, Any], code: int = 0) -> str:
        self.daemon.config_file.write_text(config_text(settings))
        return lbd(self.daemon, "reload", code=code)

    @contextmanager
    def load(self, family: int = 4, seconds: int = 3, **options: Any) -> Iterator[Future[Wrk]]:
        """wrk while the block runs; its end is waited for."""
        with ThreadPoolExecutor(1) as pool:
            before = sum(self.connections(f"web{family}").values())
            future = pool.submit(self.testbed.wrk, family, connections=32, seconds=seconds, **options)
            wait_until("wrk is at work", lambda: sum(self.connections(f"web{family}").values()) > before + 30, SOON)
            yield future

    def settle(self) -> None:
        """Nothing is late: every request of the client was answered, on every connection."""
        self.client.ask("pause")
        self.client.wait_quiet(60)
        self.client.ask("go")
        report = self.client.report()
        assert (report["error_count"], report["open"]) == (0, STREAMS), report["errors"]


def config(testbed: Testbed) -> dict[str, Any]:
    settings: dict[str, Any] = tomlkit.parse(traffic.config(testbed)).unwrap()
    settings["service"] += testbed.settings(services=("dns",))["service"]
    for n, family in enumerate(FAMILIES):
        vip, hosts = testbed.vip(family), [s.host for s in testbed.servers]
        common = {"protocol": "tcp", "interface": "eth0"}
        settings["service"] += [
            {
                "name": f"moving{family}",
                "address": endpoint(vip, MOVING_PORT),
                "scheduler": "rr",
                "real_server": [{"address": endpoint(MOVING[n], traffic.SERVER_PORT)}],
            }
            | common,
            {
                "name": f"weighted{family}",
                "address": endpoint(vip, WEIGHTED_PORT),
                "scheduler": "wrr",
                "real_server": [{"address": endpoint((h.address4, h.address6)[n], HTTP_PORT)} for h in hosts],
            }
            | common,
        ]
    return settings


def lead(testbed: Testbed, server: RealServer) -> None:
    """The way to MOVING is by this server."""
    for n, gateway in enumerate((server.host.address4, server.host.address6)):
        testbed.balancer.ip(f"route replace {MOVING[n]} via {gateway}")


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> Site:
    testbed = make_shared(workers=2, servers=3).up()
    for server in testbed.servers:
        server.ns.ip(f"address add {MOVING[0]}/32 dev lo", f"address add {MOVING[1]}/128 dev lo nodad")
        # say so when the MAC changes, as hosts and clusters that move addresses do
        server.ns.sysctl(net__ipv4__conf__eth0__arp_notify=1, net__ipv6__conf__eth0__ndisc_notify=1)
    lead(testbed, testbed.servers[0])
    settings = config(testbed)
    daemon = testbed.lbd(config_text(settings))
    client = traffic.Traffic(testbed, streams=STREAMS, flows=FLOWS, pause=0.05, pace=0.05)
    client.wait_open()
    return Site(testbed, daemon, client, settings)


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


# -- the configuration ---------------------------------------------------------------------------------------


def test_reload_touches_only_what_changed(site: Site) -> None:
    testbed, daemon = site.testbed, site.daemon
    kept = {f"{name}{f}" for name in ("web", "echo-tcp", "echo-udp", "moving") for f in FAMILIES}

    def totals() -> dict[str, tuple[int, int]]:
        return {s["name"]: (s["number"], s["connections"]) for s in daemon.get("/v1/services")["services"]}

    changed = tomlkit.parse(config_text(site.settings)).unwrap()
    changed["service"] = [s for s in changed["service"] if not s["name"].startswith("dns")]
    for service in changed["service"]:
        if service["name"] == "weighted4":
            service["real_server"][0]["weight"] = 5
    extra = next(s for s in changed["service"] if s["name"] == "moving4")
    changed["service"].append(extra | {"name": "extra", "address": endpoint(testbed.vip(4), 82)})
    assert testbed.dnsperf(4, queries=50, outstanding=10).lost == 0
    with site.load(6) as load, dial(testbed.client, testbed.vip(4), traffic.PORT) as sock:
        before = totals()
        said = site.reload(changed)
        assert "service extra added" in said and "service dns4 removed" in said and "weight" in said
        after = totals()
        assert after.keys() == before.keys() - {"dns4", "dns6"} | {"extra"}
        for name in kept:
            assert after[name][0] == before[name][0] and after[name][1] >= before[name][1], name
        assert site.real_servers("weighted4")[endpoint(testbed.servers[0].host.address4, HTTP_PORT)]["weight"] == 5
        with dial(testbed.client, testbed.vip(4), 82) as new:
            assert exchange(new, b"z" * 10_000) == b"z" * 10_000
        assert testbed.dnsperf(4, queries=5, outstanding=5, timeout=1).completed == 0
        assert "service dns4 added" in site.reload(site.settings)
        assert testbed.dnsperf(4, queries=50, outstanding=10).lost == 0
        assert exchange(sock, b"z" * 10_000) == b"z" * 10_000
        result = load.result()
    assert result.requests > 1000 and result.errors == 0
    assert site.reload(site.settings) == "nothing has changed\n"
    site.settle()


def test_a_broken_file_changes_nothing(site: Site) -> None:
    daemon = site.daemon
    before = daemon.get("/v1/config"), daemon.get("/v1/status")["config"]
    good = config_text(site.settings)
    lines = good.splitlines()
    line = lines.index('scheduler = "wrr"')
    lines[line] = 'schedular = "wrr"'
    with site.load(4) as load:
        daemon.config_file.write_text("\n".join(lines))
        said = lbd(daemon, "reload", code=1)
        assert f"lbd.toml:{line + 1}: " in said and "did you mean `scheduler`?" in said
        daemon.config_file.write_text(good.replace('scheduler = "wrr"', 'scheduler = "fastest"'))
        said = lbd(daemon, "reload", code=1)
        assert f"lbd.toml:{line + 1}: " in said and "wrr" in said
        daemon.config_file.write_text(good + "[workers\n")
        assert "lbd.toml:" in lbd(daemon, "reload", code=1)
        daemon.config_file.write_text(good.replace("count = 2", "count = 1"))
        assert "restart" in lbd(daemon, "reload", code=1)
        result = load.result()
    assert result.requests > 1000 and result.errors == 0
    config, status = daemon.get("/v1/config"), daemon.get("/v1/status")["config"]
    assert config == before[0]
    assert status["loaded"] == before[1]["loaded"] and status["rejected"] == before[1]["rejected"] + 4
    assert site.reload(site.settings) == "nothing has changed\n"
    assert daemon.get("/v1/status")["problems"] == []
    site.settle()


def test_nobody_else_noticed(site: Site) -> None:
    """After all of the above: each connection of the client is still there, and every byte was right."""
    site.settle()
    report = site.client.report()
    assert report["requests"] > 1000 and report["replies"] > 0
    assert [w["restarts"] for w in site.daemon.get("/v1/workers")["workers"]] == [0, 0]
