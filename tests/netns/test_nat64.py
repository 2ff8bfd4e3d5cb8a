# SPDX-License-Identifier: Apache-2.0
"""NAT64 on real traffic, two workers: an IPv6 client, and nginx, iperf3 and dnsmasq that know IPv4 alone.

Path MTU discovery through it: test_pmtu.py.
"""

import hashlib
import os
from collections.abc import Callable

import pytest

from lbd.testbed import Testbed, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.server import DNS_PORT, HTTP_PORT, IPERF_PORT
from lbd.testbed.testbed import config_text, endpoint
from tests.netns.command import lbd
from tests.netns.metrics import scrape
from tests.netns.test_frag import ECHO, echoes, payloads, start_echo, warm
from tests.netns.test_ping import ping

pytestmark = [pytest.mark.root, pytest.mark.netns]

REQUESTS = 20_000
LARGE = 100 << 20
PORTS = {"web6": HTTP_PORT, "dns6": DNS_PORT, "iperf6": IPERF_PORT}


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> tuple[Testbed, Daemon]:
    testbed = make_shared(workers=2).up()
    settings = testbed.settings()
    settings["local_address"] = [lip for lip in settings["local_address"] if ":" not in lip["address"]]
    for service in settings["service"]:  # those of IPv4 stay beside them, on the same real servers and ports
        if service["name"] in PORTS:
            port = PORTS[service["name"]]
            service["real_server"] = [{"address": endpoint(s.host.address4, port)} for s in testbed.servers]
    start_echo(testbed)
    settings["service"].append(
        {
            "name": "echo6", "address": endpoint(testbed.vip(6), ECHO), "protocol": "udp", "interface": "eth0",
            "real_server": [{"address": endpoint(s.host.address4, ECHO)} for s in testbed.servers],
        }
    )  # fmt: skip
    settings["service"].append(
        {
            "name": "ping6", "address": testbed.vip(6), "protocol": "icmp", "interface": "eth0",
            "real_server": [{"address": s.host.address4} for s in testbed.servers],
        }
    )  # fmt: skip
    return testbed, testbed.lbd(config_text(settings))


def test_the_real_server_sees_a_local_address_of_ipv4(site: tuple[Testbed, Daemon]) -> None:
    testbed, daemon = site
    seen = {testbed.curl(6, "/address").body.split()[0] for _ in range(12)}
    assert seen and seen <= set(testbed.topology.lips4)
    conns = [c for c in daemon.get("/v1/conns")["conns"] if c["service"] == "web6"]
    assert conns and all(c["client"].startswith("[2001:db8:1::") and c["real_server"].startswith("10.77.0.") for c in conns)
    assert all(c["local"].startswith(tuple(f"{lip}:" for lip in testbed.topology.lips4)) for c in conns)
    listing = lbd(daemon, "service", "web6")
    assert listing.count("NAT64") == len(testbed.servers) and "FullNat" not in listing


@pytest.mark.cell("nat64", "6", "tcp", "veth")
def test_requests(site: tuple[Testbed, Daemon]) -> None:
    """A connection each for half of them; FULLNAT of IPv4 to the same ports of the same servers goes on beside it."""
    testbed, daemon = site
    requests = 0
    for turn in range(30):
        result = testbed.wrk(6, connections=16, seconds=3, close=turn % 2 == 0)
        assert result.errors == 0 and result.requests, result
        requests += result.requests
        four = testbed.wrk(4, connections=8, seconds=1, close=True)
        assert four.errors == 0 and four.requests
        if requests >= REQUESTS:
            break
    assert requests >= REQUESTS
    workers = daemon.get("/v1/workers")["workers"]
    assert len(workers) == 2 and all(w["connections_ipv6"] for w in workers), "both have some"


def test_a_large_file_arrives_as_it_is(site: tuple[Testbed, Daemon]) -> None:
    testbed, _ = site
    content = os.urandom(LARGE)
    for server in testbed.servers:
        (server.directory / "files/large").write_bytes(content)
    wanted = hashlib.sha256(content).hexdigest()
    url = load.url(testbed.vip(6), path="/large")
    got = testbed.client.run(["sh", "-c", f"curl -gsS -m 60 '{url}' | sha256sum"], timeout=90)
    assert got.split()[0] == wanted
    for server in testbed.servers:
        (server.directory / "files/large").unlink()


@pytest.mark.cell("nat64", "6", "udp", "veth")
def test_names(site: tuple[Testbed, Daemon]) -> None:
    testbed, _ = site
    result = testbed.dnsperf(6)
    assert result.lost == 0 and result.completed > 1000


def test_throughput_both_ways(site: tuple[Testbed, Daemon]) -> None:
    testbed, _ = site
    for reverse in (False, True):
        assert testbed.iperf3(6, seconds=2, reverse=reverse).bits_per_second > 1e6


def test_datagrams_in_fragments(site: tuple[Testbed, Daemon]) -> None:
    """Up to 60 kB to an echo server and back; of IPv4 fragments of a full Ethernet frame the real servers learn that they grow."""
    testbed, _ = site
    warm(testbed, testbed.vip(6))
    # each real server, for each local address: the first datagram that is too big tells it, and is lost
    learn = [b"?" * 60000] * 24
    wait_until("all have learned", lambda: all(echoes(testbed.client, testbed.vip(6), ECHO, learn, 0.5)), 30)
    assert all(echoes(testbed.client, testbed.vip(6), ECHO, payloads(each=4)))
    seen = "".join(s.ns.run(["ip", "route", "get", lip]) for s in testbed.servers for lip in testbed.topology.lips4)
    assert "mtu 1472" in seen, seen


@pytest.mark.cell("nat64", "6", "icmp", "veth")
def test_pings(site: tuple[Testbed, Daemon]) -> None:
    """Of every size, large ones in fragments; the real servers' own pings, and the host's, go on beside them."""
    testbed, daemon = site
    for n, size in enumerate((0, 56, 1200, 3000, 20000)):
        ping(testbed.client, 6, testbed.vip(6), "-e", str(1000 + n), "-s", str(size))
    ping(testbed.balancer, 4, testbed.servers[0].host.address4, "-I", testbed.topology.lips4[0], "-e", "20000")
    conns = daemon.get("/v1/conns?service=ping6")["conns"]
    assert conns and all(c["state"] == "icmp" and c["local"].startswith("10.") for c in conns)


def test_a_port_that_nobody_listens_on(site: tuple[Testbed, Daemon]) -> None:
    """UDP: the real server's port unreachable reaches the client as an error of its own connection."""
    testbed, _ = site
    before = scrape(testbed).value("lbd_icmp_total", direction="forwarded", type="error")
    for server in testbed.servers:
        server.ns.run(["nft", "add table ip t; add chain ip t c { type filter hook input priority 0; }; "
                       f"add rule ip t c udp dport {DNS_PORT} reject"])  # fmt: skip
    try:
        ask = (
            "import socket, sys\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.settimeout(5)\n"
            f"s.connect(({testbed.vip(6)!r}, 53))\ns.send(b'x' * 20)\n"
            "try:\n    s.recv(100)\nexcept ConnectionRefusedError:\n    print('refused')\n"
        )
        assert testbed.client.run(["python3", "-c", ask]).strip() == "refused"
    finally:
        for server in testbed.servers:
            server.ns.run(["nft", "delete table ip t"])
    assert scrape(testbed).value("lbd_icmp_total", direction="forwarded", type="error") > before


def test_nothing_was_dropped(site: tuple[Testbed, Daemon]) -> None:
    _, daemon = site
    drops = {d["reason"]: d["packets"] for d in daemon.get("/v1/drops")["drops"] if d["packets"]}
    assert drops.keys() <= {"no_neighbor", "no_state", "frag_orphan"}, drops  # orphans: of datagrams whose first one was too big
