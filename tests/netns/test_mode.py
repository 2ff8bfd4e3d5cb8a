# SPDX-License-Identifier: Apache-2.0
"""The modes beside FULLNAT on real traffic, two workers: nginx behind them, wrk and curl in front.

The VIPs of DR and tunnel lie in a network of their own, which the client reaches by lbd's host: it does not have them itself, so
that its kernel routes what real servers answer (they have the VIPs, on lo, and answer past lbd).
"""

import filecmp
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lbd.testbed import Testbed, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text, endpoint
from lbd.testbed.topology import LB_CLIENT, LB_SERVER

pytestmark = [pytest.mark.root, pytest.mark.netns]
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

FAR_VIP = {4: "198.51.100.10", 6: "2001:db8:51::10"}
PORT = 8081
GUE_PORT = 6080
NGINX = """\
worker_processes 1;
daemon off;
pid %(dir)s/far.pid;
events { worker_connections 4000; }
http {
    access_log off;
    client_body_temp_path %(dir)s/far-body;
    proxy_temp_path %(dir)s/far-proxy;
    fastcgi_temp_path %(dir)s/far-fastcgi;
    uwsgi_temp_path %(dir)s/far-uwsgi;
    scgi_temp_path %(dir)s/far-scgi;
    server {
        listen %(port)d backlog=4096;
        listen [::]:%(port)d backlog=4096;
        location = / { return 200 "%(name)s $remote_addr\\n"; }
        location = /big { root %(dir)s/files; }
        location = /put { root %(dir)s/files; dav_methods PUT; client_max_body_size 0; }
    }
}
"""
REQUESTS = 2_000
UPLOAD = 8 << 20


def far_servers(testbed: Testbed, decapsulate: bool) -> None:
    """What a real server needs for DR and tunnel: the VIP on lo and no ARP for it; for a tunnel its end."""
    for server in testbed.servers:
        ns, host = server.ns, server.host
        ns.sysctl(
            net__ipv4__conf__all__arp_ignore=1,
            net__ipv4__conf__all__arp_announce=2,
            net__ipv4__conf__all__rp_filter=0,
            net__ipv4__conf__default__rp_filter=0,
        )
        ns.ip("link set lo up", f"addr add {FAR_VIP[4]}/32 dev lo", f"addr add {FAR_VIP[6]}/128 dev lo")
        (server.directory / "files").chmod(0o777)  # nginx's worker writes there what is put
        conf = server.directory / "far.conf"
        conf.write_text(NGINX % {"dir": server.directory, "port": PORT, "name": host.name})
        testbed.popen(ns, ["nginx", "-e", f"{server.directory}/far.log", "-p", str(server.directory), "-c", str(conf)])
        if decapsulate:
            said = server.directory / "decap.out"
            with open(said, "wb") as out:
                testbed.popen(ns, [sys.executable, str(Path(__file__).with_name("decap.py")), "tun0", str(GUE_PORT)], stdout=out)
            wait_until("the tunnel's end is there", lambda said=said: said.read_text() == "ready\n", 10)  # type: ignore[misc]
        answers = [f"http://{endpoint(a, PORT)}/" for a in (host.address4, host.address6)]
        for url in answers:
            wait_until(f"{url} answers", lambda url=url, ns=ns: load.curl(ns, url).status == 200, 10)  # type: ignore[misc]


def far_routes(testbed: Testbed) -> None:
    """The client reaches the VIPs by lbd's host, which forwards what real servers answer from them."""
    testbed.client.ip(f"route add {FAR_VIP[4]}/32 via {LB_CLIENT[0]}", f"route add {FAR_VIP[6]}/128 via {LB_CLIENT[1]}")
    testbed.balancer.sysctl(net__ipv4__conf__all__rp_filter=0, net__ipv4__conf__eth1__rp_filter=0)


def far_config(testbed: Testbed, mode: str, *, cross: bool = False, tunnel: dict[str, object] | None = None) -> str:
    settings = testbed.settings(services=())
    for family in (4, 6):
        servers = [s.host.address4 if (family == 4) != cross else s.host.address6 for s in testbed.servers]
        settings["service"].append(
            {
                "name": f"web{family}", "address": endpoint(FAR_VIP[family], PORT), "mode": mode, "scheduler": "rr",
                "manage": False, "real_server": [{"address": endpoint(a, PORT)} for a in servers],
                **({"tunnel": tunnel} if tunnel else {}),
            }
        )  # fmt: skip
    return config_text(settings)


def stats(daemon: Daemon, name: str) -> dict[str, int]:
    [row] = [s for s in daemon.get("/v1/services")["services"] if s["name"] == name]
    return dict(row)


def put(testbed: Testbed, family: int) -> None:
    """Large packets the way that lbd sees: the client learns what a tunnel leaves of the MTU, and the bytes arrive as they were."""
    sent = testbed.directory / "sent"
    sent.write_bytes(random.Random(family).randbytes(UPLOAD))
    took = load.curl(testbed.client, load.url(FAR_VIP[family], PORT, "/put"), "-T", str(sent), timeout=60)
    assert took.status in (201, 204), took
    files = [s.directory / "files/put" for s in testbed.servers]
    assert sum(f.exists() and filecmp.cmp(f, sent, shallow=False) for f in files) == 1
    for f in files:
        f.unlink(missing_ok=True)


def drive(testbed: Testbed, vip: str, port: int) -> int:
    requests = 0
    for _ in range(20):
        result = load.wrk(testbed.client, load.url(vip, port), testbed.directory, connections=16, seconds=2, close=True)
        assert result.errors == 0 and result.requests, result
        requests += result.requests
        if requests >= REQUESTS:
            break
    assert requests >= REQUESTS
    return requests


@pytest.fixture(scope="module")
def nat(make_shared: Callable[..., Testbed]) -> tuple[Testbed, Daemon]:
    testbed = make_shared(workers=2).up()
    for server in testbed.servers:
        server.ns.ip(f"route add default via {LB_SERVER[0]}", f"route add ::/0 via {LB_SERVER[1]}")
    settings = testbed.settings()
    for service in settings["service"]:
        service["mode"] = "nat"
    return testbed, testbed.lbd(config_text(settings))


@pytest.mark.cell("nat", "{family}", "tcp", "veth")
@families
def test_nat(nat: tuple[Testbed, Daemon], family: int) -> None:
    """nginx sees the client's own address; answers come back by the real servers' routes, to either worker."""
    testbed, daemon = nat
    seen = testbed.curl(family, "/address")
    client = testbed.topology.client_addresses4 if family == 4 else testbed.topology.client_addresses6
    assert seen.status == 200 and seen.body.split()[0] in client
    requests = drive(testbed, testbed.vip(family), 80)
    row = stats(daemon, f"web{family}")
    assert row["mode"] == "nat" and row["connections"] >= requests
    assert row["outgoing_packets"] > requests
    handed = [w["handed_in"] for w in daemon.get("/v1/workers")["workers"] if "handed_in" in w]
    assert not handed or sum(handed) > 0


@pytest.mark.cell("nat", "4", "udp", "veth")
def test_nat_udp(nat: tuple[Testbed, Daemon]) -> None:
    testbed, _ = nat
    result = testbed.dnsperf(4)
    assert result.lost == 0 and result.completed > 1000


def test_nat_leaves_the_rest_to_the_kernel(nat: tuple[Testbed, Daemon]) -> None:
    """The balancer's host talks to a real server itself, from which answers to clients come too."""
    testbed, _ = nat
    host = testbed.servers[0].host
    assert load.curl(testbed.balancer, f"http://{host.address4}:8080/").status == 200


WAYS = {
    "dr": {}, "tunnel": {}, "tunnel of the other family": {}, "tunnel, GRE": {"type": "gre", "checksum": "full"},
    "tunnel, GRE of the other family": {"type": "gre"}, "tunnel, GUE": {"type": "gue", "port": GUE_PORT},
    "tunnel, GUE of the other family": {"type": "gue", "port": GUE_PORT, "checksum": "full"},
}  # fmt: skip


@pytest.fixture(scope="module", params=WAYS)
def far(request: pytest.FixtureRequest, make_shared: Callable[..., Testbed]) -> tuple[str, Testbed, Daemon]:
    mode = request.param.split()[0].rstrip(",")
    testbed = make_shared(workers=2, routing=True).up()
    far_servers(testbed, mode == "tunnel")
    far_routes(testbed)
    return mode, testbed, testbed.lbd(far_config(testbed, mode, cross="other" in request.param, tunnel=WAYS[request.param]))


@families
def test_one_way(far: tuple[str, Testbed, Daemon], family: int) -> None:
    """Answers go past lbd, which sees the client's packets alone and knows from them when connections end."""
    mode, testbed, daemon = far
    url = load.url(FAR_VIP[family], PORT)
    names = {load.curl(testbed.client, url).body.split()[0] for _ in range(12)}
    assert names == {s.name for s in testbed.servers}, "each of them"
    drive(testbed, FAR_VIP[family], PORT)
    got = testbed.directory / "big"
    big = load.curl(testbed.client, load.url(FAR_VIP[family], PORT, "/big"), "-o", str(got), timeout=20)
    assert big.status == 200 and filecmp.cmp(got, testbed.servers[0].directory / "files/big", shallow=False)
    put(testbed, family)
    row = stats(daemon, f"web{family}")
    assert row["mode"] == mode and row["connections"] >= REQUESTS
    assert row["incoming_packets"] > row["connections"] * 3 and row["outgoing_packets"] == 0
