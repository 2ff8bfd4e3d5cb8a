# SPDX-License-Identifier: Apache-2.0
"""The modes beside FULLNAT on real traffic, two workers: nginx behind them, wrk and curl in front.

The VIPs of DR and tunnel lie in a network of their own, which the client reaches by lbd's host: it does not have them itself, so
that its kernel routes what real servers answer (they have the VIPs, on lo, and answer past lbd).
"""

import filecmp
import random
import selectors
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from lbd.testbed import Testbed, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text, endpoint
from lbd.testbed.topology import LB_CLIENT, LB_SERVER
from tests.netns.command import lbd as command
from tests.netns.dial import dial, http, visiting
from tests.program import compiled

pytestmark = [pytest.mark.root, pytest.mark.netns]
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

FAR_VIP = {4: "198.51.100.10", 6: "2001:db8:51::10"}
PORT, ECHO_PORT = 8081, 8007
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
SHORT = 2_000  # requests, with a connection each
REQUESTS = 20_000
LARGE = 100_000_000
KEPT = 24  # connections
DECAP = Path(__file__).parent / "src/decap.c"


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
                testbed.popen(ns, [str(compiled(DECAP)), "tun0", str(GUE_PORT)], stdout=out)
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
        settings["service"].append(
            {
                "name": f"echo{family}", "address": endpoint(FAR_VIP[family], ECHO_PORT), "protocol": "udp", "mode": mode,
                "scheduler": "rr", "manage": False, "real_server": [{"address": endpoint(a, ECHO_PORT)} for a in servers],
                **({"tunnel": tunnel} if tunnel else {}),
            }
        )  # fmt: skip
    return config_text(settings)


def echo(testbed: Testbed) -> None:
    """By UDP, from the VIPs: sockets in the real servers' namespaces, until the test's process ends."""
    wait = selectors.DefaultSelector()
    for server in testbed.servers:
        for vip in FAR_VIP.values():
            with visiting(server.ns):
                s = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM)
            s.bind((vip, ECHO_PORT))
            wait.register(s, selectors.EVENT_READ)

    def serve() -> None:
        while True:
            for key, _ in wait.select():
                s: Any = key.fileobj
                data, peer = s.recvfrom(65536)
                s.sendto(data, peer)

    threading.Thread(target=serve, daemon=True).start()


def stats(daemon: Daemon, name: str) -> dict[str, int]:
    [row] = [s for s in daemon.get("/v1/services")["services"] if s["name"] == name]
    return dict(row)


@pytest.fixture(scope="module")
def large() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "large")
        path.parent.chmod(0o755)  # nginx's workers read it
        path.write_bytes(random.Random(1).randbytes(LARGE))
        yield path


def put(testbed: Testbed, family: int, sent: Path) -> None:
    """Large packets the way that lbd sees: the client learns what a tunnel leaves of the MTU, and the bytes arrive as they were."""
    took = load.curl(testbed.client, load.url(FAR_VIP[family], PORT, "/put"), "-T", str(sent), timeout=60)
    assert took.status in (201, 204), took
    files = [s.directory / "files/put" for s in testbed.servers]
    assert sum(f.exists() and filecmp.cmp(f, sent, shallow=False) for f in files) == 1
    for f in files:
        f.unlink(missing_ok=True)


def drive(testbed: Testbed, vip: str, port: int) -> int:
    """Short connections, then kept ones, until there were as many requests. How many connections at least."""
    requests = short = 0
    while requests < REQUESTS:
        close = short < SHORT
        result = load.wrk(testbed.client, load.url(vip, port), testbed.directory, connections=16, seconds=1, close=close)
        assert result.errors == 0 and result.requests, result
        requests += result.requests
        short += close * result.requests
    return short


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
def test_nat(nat: tuple[Testbed, Daemon], family: int, large: Path) -> None:
    """nginx sees the client's own address; answers come back by the real servers' routes, to either worker."""
    testbed, daemon = nat
    seen = testbed.curl(family, "/address")
    client = testbed.topology.client_addresses4 if family == 4 else testbed.topology.client_addresses6
    assert seen.status == 200 and seen.body.split()[0] in client
    short = drive(testbed, testbed.vip(family), 80)
    row = stats(daemon, f"web{family}")
    assert row["mode"] == "nat" and row["connections"] >= short
    assert row["outgoing_packets"] > REQUESTS
    got = testbed.directory / "got"
    for server in testbed.servers:
        (server.directory / "files/large").unlink(missing_ok=True)
        (server.directory / "files/large").symlink_to(large)
    took = load.curl(testbed.client, load.url(testbed.vip(family), path="/large"), "-o", str(got), timeout=60)
    assert took.status == 200 and filecmp.cmp(got, large, shallow=False)
    assert sum(w["handed_in"] for w in daemon.get("/v1/workers")["workers"]) > 0, "answers come to either worker"


@pytest.mark.cell("nat", "{family}", "udp", "veth")
@families
def test_nat_udp(nat: tuple[Testbed, Daemon], family: int) -> None:
    testbed, _ = nat
    result = testbed.dnsperf(family)
    assert result.lost == 0 and result.completed > 1000


def test_nat_leaves_the_rest_to_the_kernel(nat: tuple[Testbed, Daemon]) -> None:
    """The balancer's host talks to a real server itself, from which answers to clients come too."""
    testbed, _ = nat
    host = testbed.servers[0].host
    assert load.curl(testbed.balancer, f"http://{host.address4}:8080/").status == 200


@families
def test_nat_goes_on_without_its_real_server(nat: tuple[Testbed, Daemon], family: int) -> None:
    """Which a reload takes away: its answers arrive at either worker, and carry no address of lbd."""
    testbed, daemon = nat
    before = daemon.config_file.read_text()
    changed = tomlkit.parse(before).unwrap()
    for service in changed["service"]:
        del service["real_server"][1:]
    with ExitStack() as stack:
        socks = [stack.enter_context(dial(testbed.client, testbed.vip(family), 80)) for _ in range(KEPT)]
        assert len({http(s) for s in socks}) == len(testbed.servers)
        names = [http(s) for s in socks]
        daemon.config_file.write_text(config_text(changed))
        command(daemon, "reload")
        for _ in range(3):
            assert [http(s) for s in socks] == names
    daemon.config_file.write_text(before)
    command(daemon, "reload")


# `+cross`: real servers of the other family
WAYS = {
    "dr": {}, "ipip": {}, "ipip+cross": {}, "gre": {"type": "gre", "checksum": "full"}, "gre+cross": {"type": "gre"},
    "gue": {"type": "gue", "port": GUE_PORT}, "gue+cross": {"type": "gue", "port": GUE_PORT, "checksum": "full"},
}  # fmt: skip
DATAGRAMS = 300


@pytest.fixture(scope="module", params=WAYS)
def far(request: pytest.FixtureRequest, make_shared: Callable[..., Testbed]) -> tuple[str, Testbed, Daemon]:
    mode = "dr" if request.param == "dr" else "tunnel"
    testbed = make_shared(workers=2, routing=True).up()
    far_servers(testbed, mode == "tunnel")
    far_routes(testbed)
    echo(testbed)
    return mode, testbed, testbed.lbd(far_config(testbed, mode, cross="cross" in request.param, tunnel=WAYS[request.param]))


@pytest.mark.cell("{far}", "{family}", "tcp", "veth")
@families
def test_one_way(far: tuple[str, Testbed, Daemon], family: int, large: Path) -> None:
    """Answers go past lbd, which sees the client's packets alone and knows from them when connections end."""
    mode, testbed, daemon = far
    url = load.url(FAR_VIP[family], PORT)
    names = {load.curl(testbed.client, url).body.split()[0] for _ in range(12)}
    assert names == {s.name for s in testbed.servers}, "each of them"
    drive(testbed, FAR_VIP[family], PORT)
    got = testbed.directory / "big"
    big = load.curl(testbed.client, load.url(FAR_VIP[family], PORT, "/big"), "-o", str(got), timeout=20)
    assert big.status == 200 and filecmp.cmp(got, testbed.servers[0].directory / "files/big", shallow=False)
    put(testbed, family, large)
    row = stats(daemon, f"web{family}")
    assert row["mode"] == mode and row["connections"] >= SHORT
    assert row["incoming_packets"] > row["connections"] * 3 and row["outgoing_packets"] == 0


@pytest.mark.cell("{far}", "{family}", "udp", "veth")
@families
def test_datagrams_one_way(far: tuple[str, Testbed, Daemon], family: int) -> None:
    """From as many ports, each to one of the real servers, whose answer comes past lbd."""
    mode, testbed, daemon = far
    with visiting(testbed.client):
        ends = [socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) for _ in range(DATAGRAMS)]
    for n, s in enumerate(ends):
        s.settimeout(10)
        s.connect((FAR_VIP[family], ECHO_PORT))
        sent = bytes([n & 255]) * (1 + 4 * n)
        s.send(sent)
        assert s.recv(65536) == sent
    for s in ends:  # not before: a port that is free again may come twice
        s.close()
    row = stats(daemon, f"echo{family}")
    assert (row["mode"], row["connections"], row["incoming_packets"]) == (mode, DATAGRAMS, DATAGRAMS)
    assert row["outgoing_packets"] == 0
    dealt = daemon.get(f"/v1/real-servers?service=echo{family}")["real_servers"]
    assert all(r["incoming_packets"] >= DATAGRAMS // 5 for r in dealt), dealt
