# SPDX-License-Identifier: Apache-2.0
"""Real servers that fail, come back and are taken out, under load: sorry server, slow start, drain with a deadline, expire_nodest.
And nobody else notices (change.py)."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from lbd.master.daemon import MOVE
from lbd.testbed import Testbed
from lbd.testbed import load as loads
from lbd.testbed.netns import wait_until
from lbd.testbed.server import HTTP_PORT
from lbd.testbed.testbed import config_text, endpoint
from tests.netns import traffic
from tests.netns.change import FLOWS, KEPT, NOTICED, SOON, STREAMS, Site, config, lead, nobody_else_noticed
from tests.netns.command import lbd
from tests.netns.dial import dial, http

pytestmark = [pytest.mark.root, pytest.mark.netns]

RAMP_PORT, NODEST_PORT = 82, 83
RAMP = 10  # seconds
SORRY = 3  # which of the testbed's servers


def own_settings(testbed: Testbed) -> dict[str, Any]:
    """Three real servers, and the fourth one as sorry server."""
    settings = config(testbed)
    sorry = testbed.servers[SORRY].host
    for service in settings["service"]:
        service["real_server"] = [r for r in service["real_server"] if not ours(r["address"], sorry)]
    web = {s["name"]: s for s in settings["service"]}
    web["web4"]["sorry_server"] = endpoint(sorry.address4, HTTP_PORT)
    web["web6"]["sorry_server"] = endpoint(sorry.address6, HTTP_PORT)
    more = {"scheduler": "wrr", "slow_start": f"{RAMP}s"}
    settings["service"].append(web["web4"] | more | {"name": "ramp4", "address": endpoint(testbed.vip(4), RAMP_PORT)})
    more = {"expire_nodest": True}
    settings["service"].append(web["web4"] | more | {"name": "nodest4", "address": endpoint(testbed.vip(4), NODEST_PORT)})
    return settings


def ours(address: str, host: Any) -> bool:
    return address.startswith((f"{host.address4}:", f"[{host.address6}]:"))


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> Site:
    testbed = make_shared(workers=2, servers=4).up()
    for server in testbed.servers:
        server.ns.ip("address add 10.79.0.1/32 dev lo", "address add fd79::1/128 dev lo nodad")
    lead(testbed, testbed.servers[0])
    settings = own_settings(testbed)
    daemon = testbed.lbd(config_text(settings))
    client = traffic.Traffic(testbed, streams=STREAMS, flows=FLOWS, pause=0.05, pace=0.05)
    client.wait_open()
    return Site(testbed, daemon, client, settings)


def addresses(site: Site) -> list[str]:
    return [endpoint(s.host.address4, HTTP_PORT) for s in site.testbed.servers[:SORRY]]


def told(site: Site) -> None:
    wait_until("workers know", lambda: site.daemon.get("/v1/status")["ready"], SOON)


def sorry_of(site: Site, service: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in site.daemon.get("/v1/services")["services"] if s["name"] == service)["sorry_server"]
    return found


def test_the_sorry_server_takes_over_and_gives_back(site: Site) -> None:
    """Under load, without an error; whoever is with it stays."""
    testbed, before = site.testbed, sorry_of(site, "web4")["connections"]
    name = testbed.servers[SORRY].host.name.encode() + b"\n"
    with ExitStack() as stack, site.load(4, close=True, seconds=8) as load:
        for address in addresses(site):
            lbd(site.daemon, "real-server", "down", "web4", address)
            stack.callback(lbd, site.daemon, "real-server", "up", "web4", address)
        wait_until("it serves", lambda: sorry_of(site, "web4")["connections"] > before + 200, SOON)
        assert "sorry, in use" in lbd(site.daemon, "service", "web4")
        assert any("its sorry server" in problem for problem in site.daemon.get("/v1/status")["problems"])
        kept = [stack.enter_context(dial(testbed.client, testbed.vip(4), 80)) for _ in range(4)]
        assert {http(sock) for sock in kept} == {name}
        for address in addresses(site):
            lbd(site.daemon, "real-server", "up", "web4", address)
        wait_until("real servers serve", lambda: not sorry_of(site, "web4")["in_use"], SOON)
        told(site)
        count = sorry_of(site, "web4")["connections"]
        time.sleep(1)
        assert sorry_of(site, "web4")["connections"] == count
        assert {http(sock) for sock in kept} == {name}
        result = load.result()
    assert result.requests > 500 and result.errors == 0
    assert sorry_of(site, "web6")["connections"] == 0
    site.settle()


def test_a_returned_server_begins_slowly(site: Site) -> None:
    """Its share of new connections grows with its weight; under load, without an error."""
    testbed, [address, *_] = site.testbed, addresses(site)
    lbd(site.daemon, "real-server", "down", "ramp4", address)
    told(site)
    shares: list[float] = []
    url = f"http://{testbed.vip(4)}:{RAMP_PORT}/"
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(loads.wrk, testbed.client, url, testbed.directory, connections=32, seconds=RAMP + 6, close=True)
        wait_until("wrk is at work", lambda: sum(site.connections("ramp4").values()) > 100, SOON)
        lbd(site.daemon, "real-server", "up", "ramp4", address)
        assert "slow start" in lbd(site.daemon, "real-server", "list", "ramp4")
        last = site.connections("ramp4")
        for _ in range(RAMP + 2):
            time.sleep(1)
            now = site.connections("ramp4")
            gained = {a: now[a] - last[a] for a in now}
            shares.append(gained[address] / max(1, sum(gained.values())))
            last = now
        result = future.result()
    assert result.requests > 500 and result.errors == 0
    # two seconds after its return it has at most a quarter of its weight; a busy machine may look a second late
    assert shares[0] < 0.2 and shares[-1] == pytest.approx(1 / 3, abs=0.03), shares
    assert shares[1] < shares[4] < shares[-1] + 0.03, shares
    assert site.real_servers("ramp4")[address]["slow_start"] is None
    site.settle()


def kept_by_name(site: Site, stack: ExitStack, port: int = 80) -> dict[bytes, list[socket.socket]]:
    testbed = site.testbed
    found: dict[bytes, list[socket.socket]] = {}
    for _ in range(KEPT):
        sock = stack.enter_context(dial(testbed.client, testbed.vip(4), port))
        found.setdefault(http(sock), []).append(sock)
    assert len(found) == SORRY
    return found


def is_reset(sock: socket.socket) -> bool:
    sock.settimeout(0.001)
    try:
        assert sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return False


def established(site: Site, which: int, sport: int = HTTP_PORT) -> int:
    """Of a real server, as its own kernel sees it: connections from lbd that are kept (health checks last a moment)."""
    out = site.testbed.servers[which].ns.run(["ss", "-Htn", "state", "established", f"( sport = :{sport} )"])
    return len(out.splitlines())


def test_a_drain_with_a_deadline_in_stages(site: Site) -> None:
    testbed, address = site.testbed, addresses(site)[0]
    name = testbed.servers[0].host.name.encode() + b"\n"
    with ExitStack() as stack:
        kept = kept_by_name(site, stack)
        mine = kept.pop(name)
        other = testbed.servers[0].host.address4
        assert established(site, 0) >= len(mine), other
        began = time.time()
        stack.callback(lbd, site.daemon, "real-server", "up", "web4", address)
        said = lbd(site.daemon, "real-server", "drain", "web4", address, "--deadline", "8s", "--stages", "2", "--reset")
        assert "to the deadline" in said
        row = site.real_servers("web4")[address]
        assert row["state"] == "drain" and row["drain"]["stages"] == 2 and row["effective_weight"] == 0.5
        wait_until("it has no weight", lambda: site.real_servers("web4")[address]["weight"] == 0, 8)
        assert time.time() - began > 3.5 and time.time() < row["drain"]["deadline"], "half way"
        time.sleep(3 * MOVE)  # the weight is shown by the clock; the master looks at it so often, then tells workers
        told(site)
        count = site.connections("web4")[address]
        assert testbed.wrk(4, connections=8, seconds=1, close=True).errors == 0
        assert site.connections("web4")[address] == count
        assert {http(sock) for sock in mine} == {name}, "they may stay until the deadline"
        assert not any(map(is_reset, mine))
        for sock in mine:
            sock.settimeout(10)
        left = row["drain"]["deadline"] - time.time()
        mine[0].settimeout(left + 5)
        with pytest.raises(ConnectionResetError):
            mine[0].recv(1)
        late = time.time() - row["drain"]["deadline"]
        assert -0.1 < late < 5, f"{late:.2f} s after the deadline"
        for sock in mine[1:]:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        wait_until("the real server's ends are gone", lambda: established(site, 0) == 0, 5)
        assert "deadline is over" in lbd(site.daemon, "real-server", "list", "web4")
        for names, socks in kept.items():
            assert {http(sock) for sock in socks} == {names}
        lbd(site.daemon, "real-server", "undrain", "web4", address)
        wait_until("it serves", lambda: testbed.curl(4).body == name.decode(), SOON)
    site.settle()


def test_a_deadline_outlives_the_master(site: Site) -> None:
    testbed, address = site.testbed, addresses(site)[1]
    name = testbed.servers[1].host.name.encode() + b"\n"
    with ExitStack() as stack:
        mine = kept_by_name(site, stack)[name]
        lbd(site.daemon, "real-server", "drain", "web4", address, "--deadline", "12s")
        stack.callback(lambda: lbd(site.daemon, "real-server", "up", "web4", address))
        deadline = site.real_servers("web4")[address]["drain"]["deadline"]
        site.daemon.kill()
        site.daemon = testbed.lbd(config_text(site.settings))
        row = site.real_servers("web4")[address]
        assert row["drain"]["deadline"] == deadline and row["state"] == "drain"
        assert {http(sock) for sock in mine} == {name}
        wait_until("the deadline is over", lambda: time.time() > deadline, 15)
        wait_until("its connections are forgotten", lambda: site.real_servers("web4")[address]["active"] == 0, 3)
        lbd(site.daemon, "real-server", "undrain", "web4", address)
    site.settle()


def test_connections_of_a_dead_server_end(site: Site) -> None:
    """With expire_nodest at the client's next packet; without it they wait, and go on when it is back."""
    testbed, victim = site.testbed, site.testbed.servers[2]
    address = endpoint(victim.host.address4, HTTP_PORT)
    name = victim.host.name.encode() + b"\n"
    with ExitStack() as stack:
        patient = kept_by_name(site, stack)
        hasty = kept_by_name(site, stack, NODEST_PORT)
        testbed.topology.switch.ip(f"link set {victim.name} down")
        try:
            wait_until("it is down", lambda: site.real_servers("nodest4")[address]["state"] == "down", NOTICED)
            told(site)
            for sock in hasty[name]:
                sock.settimeout(5)
                with pytest.raises(ConnectionResetError):
                    http(sock)
            for other in hasty.keys() - {name}:
                assert {http(sock) for sock in hasty[other]} == {other}
            url = f"http://{testbed.vip(4)}:{NODEST_PORT}/"
            result = loads.wrk(testbed.client, url, testbed.directory, connections=16, seconds=2, close=True)
            assert result.requests and result.errors == 0
        finally:
            testbed.topology.switch.ip(f"link set {victim.name} up")
        wait_until("it is up", lambda: site.real_servers("web4")[address]["state"] == "up", 3 * NOTICED)
        for other, socks in patient.items():
            for sock in socks:
                sock.settimeout(10)
                assert http(sock) == other
    wait_until("all are up", site.daemon.real_servers_up, 3 * NOTICED)
    site.settle()


def test_nobody_else_noticed(site: Site) -> None:
    """After all of the above, with two workers."""
    nobody_else_noticed(site)
