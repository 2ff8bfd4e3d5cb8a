# SPDX-License-Identifier: Apache-2.0
"""The configuration changes while lbd serves: what stays in it goes on; and nobody else notices (change.py)."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import tomlkit

from lbd.testbed import Testbed
from lbd.testbed.server import HTTP_PORT
from lbd.testbed.testbed import FAMILIES, config_text, endpoint
from tests.netns import traffic
from tests.netns.change import KEPT, MOVING_PORT, STREAMS, Site, nobody_else_noticed, start
from tests.netns.command import lbd
from tests.netns.dial import dial, exchange

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> Site:
    return start(make_shared(workers=2, servers=3).up())


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
    with site.load(6, close=True) as load, dial(testbed.client, testbed.vip(4), traffic.PORT) as sock:
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
            assert exchange(new, b"z" * 10_000) == b"z" * 10_000, "its service is gone, it stays"
            with pytest.raises(ConnectionRefusedError):
                dial(testbed.client, testbed.vip(4), 82)
        assert testbed.dnsperf(4, queries=50, outstanding=10).lost == 0
        assert exchange(sock, b"z" * 10_000) == b"z" * 10_000
        result = load.result()
    assert result.requests > 1000 and result.errors == 0
    assert site.reload(site.settings) == "nothing has changed\n"
    site.settle()


def test_a_local_address_leaves_when_nobody_holds_its_ports(site: Site) -> None:
    """Its connections go on by the address that the file does not have any more; new ones take others."""
    testbed, daemon = site.testbed, site.daemon
    gone = {testbed.topology.lips4[0], testbed.topology.lips6[0]}
    changed = tomlkit.parse(config_text(site.settings)).unwrap()
    changed["local_address"] = [row for row in changed["local_address"] if row["address"] not in gone]

    def held() -> set[str]:
        return gone & {a.split("/")[0] for a in testbed.balancer.run(["ip", "-br", "addr", "show", "eth1"]).split()}

    in_use = {row["address"]: row["in_use"] for row in daemon.get("/v1/lips")["lips"]}
    assert all(in_use[address] > 0 for address in gone)
    said = site.reload(changed)
    assert all(f"local address {address} removed" in said for address in gone)
    assert held() == gone
    site.settle()
    assert new_sources(site) == {row["address"] for row in changed["local_address"]}
    site.reload(site.settings)
    assert held() == gone
    assert new_sources(site) == in_use.keys()
    for row in daemon.get("/v1/lips")["lips"]:
        assert row["in_use"] >= STREAMS / len(in_use) / 4, "those from before count again"
    site.settle()


def test_a_real_server_leaves_the_file_and_comes_back(site: Site) -> None:
    """Its connections go on; when it is back they are its own again."""

    def active() -> dict[str, int]:
        return {address: row["active"] for address, row in site.real_servers("echo-tcp6").items()}

    before = active()
    changed = tomlkit.parse(config_text(site.settings)).unwrap()
    for row in changed["service"]:
        if row["name"] == "echo-tcp6":
            (gone,) = (r["address"] for r in row["real_server"][2:])
            del row["real_server"][2:]
    assert before[gone] > 0
    assert f"real server {gone} removed" in site.reload(changed)
    site.settle()
    assert active() == {address: n for address, n in before.items() if address != gone}
    site.reload(site.settings)
    assert active() == before
    site.settle()


def new_sources(site: Site) -> set[str]:
    """Local addresses of connections that are opened now."""
    with ExitStack() as stack:
        clients = set()
        for vip in map(site.testbed.vip, FAMILIES):
            for _ in range(2 * KEPT):
                sock = stack.enter_context(dial(site.testbed.client, vip, MOVING_PORT))
                assert exchange(sock, b"new") == b"new"
                clients.add(endpoint(*sock.getsockname()[:2]))
        found = [c for f in FAMILIES for c in site.daemon.get(f"/v1/conns?limit=1000&service=moving{f}")["conns"]]
    own = [c["local"] for c in found if c["client"] in clients]
    assert len(own) == len(clients)
    return {local.rpartition(":")[0].strip("[]") for local in own}


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
        assert "set workers.count = 2" in lbd(daemon, "reload", code=1)
        result = load.result()
    assert result.requests > 1000 and result.errors == 0
    config, status = daemon.get("/v1/config"), daemon.get("/v1/status")["config"]
    assert config == before[0]
    assert status["loaded"] == before[1]["loaded"] and status["rejected"] == before[1]["rejected"] + 4
    assert site.reload(site.settings) == "nothing has changed\n"
    assert daemon.get("/v1/status")["problems"] == []
    site.settle()


def test_nobody_else_noticed(site: Site) -> None:
    """After all of the above."""
    nobody_else_noticed(site)
