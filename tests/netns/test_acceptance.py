# SPDX-License-Identifier: Apache-2.0
"""What users rely on, on real traffic with two workers: connections dealt out evenly and counted alike at both
ends, contents unharmed, and a host that goes on as before beside lbd's traffic.

test_load.py has the loads themselves. No health checks here: their connections would be in nginx's counts.
"""

import hashlib
import os
import random
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import tomlkit

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.scenario import received, spread
from lbd.testbed.testbed import config_text
from lbd.testbed.topology import LB_CLIENT, LB_SERVER
from tests.netns import traffic
from tests.netns.dial import TIMEOUT, dial, exchange, http, visiting
from tests.netns.metrics import scrape

pytestmark = [pytest.mark.root, pytest.mark.netns]

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
Site = tuple[Testbed, Daemon]
BIG = 4 << 20
LARGE = 100_000_000
CONNECTIONS = 64
PARALLEL = 8


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> Site:
    testbed = make_shared(workers=2).up()
    settings = tomlkit.parse(traffic.config(testbed)).unwrap()
    for service in settings["service"]:
        service.pop("health", None)
    daemon = testbed.lbd(config_text(settings))
    traffic.Traffic(testbed, streams=0, flows=0).stop()  # it starts the echo servers
    return testbed, daemon


def opened(daemon: Daemon, service: str) -> dict[str, int]:
    """Connections to each real server, as lbd says."""
    rows = daemon.get(f"/v1/real-servers?service={service}")["real_servers"]
    return {row["address"]: row["connections"] for row in rows}


@families
def test_both_ends_count_the_same_even_shares(site: Site, family: int) -> None:
    """rr over 20,000 connections and more; nginx, the control socket and the metrics are asked. And on veth half of the
    packets arrive at the worker that doesn't own them."""
    testbed, daemon = site
    service = f"web{family}"
    nginx, lbd, workers = testbed.counts(), opened(daemon, service), daemon.get("/v1/workers")["workers"]
    requests = 0
    while requests < 20_000:
        result = testbed.wrk(family, connections=CONNECTIONS, seconds=2, close=True)
        assert result.requests and result.errors == 0
        requests += result.requests
    by_nginx = [(now - nginx[name]).connections - 1 for name, now in testbed.counts().items()]  # 1: the question
    by_lbd = [now - lbd[address] for address, now in opened(daemon, service).items()]
    assert spread(dict(enumerate(by_lbd))) <= 0.01, by_lbd
    assert spread(dict(enumerate(by_nginx))) <= 0.01, by_nginx
    # what wrk gave up at its end may not have been accepted
    assert 0 <= sum(by_lbd) - sum(by_nginx) <= CONNECTIONS
    page = scrape(testbed)
    for address, number in opened(daemon, service).items():
        labels = {"service": service, "real_server": address}
        assert page.value("lbd_real_server_connections_total", **labels) == number
    assert page.value("lbd_service_connections_total", service=service) == sum(opened(daemon, service).values())
    for old, new in zip(workers, daemon.get("/v1/workers")["workers"], strict=True):
        packets, misplaced = received(new) - received(old), new["misplaced"] - old["misplaced"]
        assert misplaced >= 0.3 * packets > 1000, (new["number"], packets, misplaced)


def test_files_arrive_unharmed(site: Site) -> None:
    """Several at a time, both families, both directions at once."""
    testbed, _ = site
    content = os.urandom(BIG)
    for server in testbed.servers:
        (server.directory / "files/random").write_bytes(content)

    def download(number: int) -> str:
        argv = ["sh", "-c", f"curl -sS -m 60 http://{host(testbed, 4 + 2 * (number % 2))}/random | sha256sum"]
        return testbed.client.run(argv, timeout=90).split()[0]

    def echo(number: int) -> bool:
        with dial(testbed.client, testbed.vip(4 + 2 * (number % 2)), traffic.PORT) as sock:
            return exchange(sock, content) == content

    with ThreadPoolExecutor(2 * PARALLEL) as pool:
        downloads, echoes = pool.map(download, range(PARALLEL)), pool.map(echo, range(PARALLEL))
        assert set(downloads) == {hashlib.sha256(content).hexdigest()}
        assert all(echoes)


@pytest.mark.cell("fullnat", "{family}", "tcp", "veth")
@families
def test_a_large_file_arrives_unharmed(site: Site, family: int) -> None:
    testbed, _ = site
    content = random.Random(1).randbytes(LARGE)
    for server in testbed.servers:
        (server.directory / "files/large").write_bytes(content)
    argv = ["sh", "-c", f"curl -sS -m 60 http://{host(testbed, family)}/large | sha256sum"]
    assert testbed.client.run(argv, timeout=90).split()[0] == hashlib.sha256(content).hexdigest()
    for server in testbed.servers:
        (server.directory / "files/large").unlink()


def host(testbed: Testbed, family: int) -> str:
    return testbed.vip(4) if family == 4 else f"[{testbed.vip(6)}]"


def test_every_flow_is_right_while_packets_arrive_at_the_wrong_worker(site: Site) -> None:
    """Each byte of each reply is compared; frames and connections are counted at the end."""
    testbed, daemon = site
    before = [w["misplaced"] for w in daemon.get("/v1/workers")["workers"]]
    wait_until("no connection is left", lambda: not established(daemon), 10)
    client = traffic.Traffic(testbed, streams=200, flows=20, pause=0.02)
    client.wait_open()
    client.ask("mark")
    wait_until("5,000 requests are answered", lambda: client.report()["requests"] >= 5000, 60)
    client.ask("pause")
    client.wait_quiet()
    report = client.report()
    client.stop()
    assert report["error_count"] == 0, report["errors"]
    assert report["open"] == 200 and report["replies"] > 0
    after = [w["misplaced"] for w in daemon.get("/v1/workers")["workers"]]
    assert all(new > old + 1000 for new, old in zip(after, before, strict=True)), (before, after)


def established(daemon: Daemon) -> int:
    return sum(s["active"] for s in daemon.get("/v1/services")["services"])


def test_nothing_was_lost_on_the_way(site: Site) -> None:
    """After all of the above. What wrk left when it stopped finds no connection any more; nothing else is dropped."""
    _, daemon = site
    seen = daemon.get("/v1/drops")
    assert {d["reason"] for d in seen["drops"] if d["packets"]} <= {"no_state", "no_neighbor"}, seen["drops"]
    assert all(x["drop"] == 0 and x["redirect"] > 0 for x in seen["xdp"])
    status = daemon.get("/v1/status")
    assert (status["problems"], status["workers"]["restarts"]) == ([], 0)


# -- the host's own business, while lbd serves ---------------------------------------------------------------


@families
@pytest.mark.parametrize("size", [56, 4000], ids=["whole", "in fragments"])
def test_ping_of_the_vip(site: Site, family: int, size: int) -> None:
    testbed, _ = site
    said = testbed.client.run(["ping", "-c", "3", "-i", "0.2", "-W", "5", "-s", str(size), testbed.vip(family)])
    assert "3 received" in said and f"{size + 8} bytes from" in said


@families
def test_a_port_of_the_vip_that_is_no_service_is_the_hosts(site: Site, family: int) -> None:
    """As sshd's would be."""
    testbed, _ = site
    vip = testbed.vip(family)
    with visiting(testbed.balancer):
        listener = socket.create_server((vip, 2222), family=socket.AF_INET if family == 4 else socket.AF_INET6)
    with listener, dial(testbed.client, vip, 2222) as client:
        listener.settimeout(TIMEOUT)
        server, _ = listener.accept()
        server.settimeout(TIMEOUT)
        with server:
            for end, other in ((client, server), (server, client)):
                end.sendall(b"SSH-2.0-test\r\n")
                assert other.recv(64) == b"SSH-2.0-test\r\n"
    with pytest.raises(ConnectionRefusedError):
        dial(testbed.client, vip, 2223)


@families
def test_the_host_itself_connects_from_a_local_address(site: Site, family: int) -> None:
    """By a port outside lbd's range: the kernel keeps away from what is reserved."""
    testbed, daemon = site
    lip = (testbed.topology.lips4 if family == 4 else testbed.topology.lips6)[0]
    server = testbed.servers[0].host
    known = daemon.get("/v1/lips")["lips"]
    first, last = map(int, next(row["ports"] for row in known if row["address"] == lip).split("-"))
    with dial(testbed.balancer, server.address4 if family == 4 else server.address6, 8080, source=lip) as sock:
        address, port = sock.getsockname()[:2]
        assert address == lip and not first <= port <= last
        assert http(sock, "/address").split()[0] == lip.encode()
        assert len(http(sock, "/big")) == BIG
        assert testbed.curl(family).status == 200
        assert http(sock) == b"rs1\n"


@families
def test_neighbours_resolve_while_lbd_serves(site: Site, family: int) -> None:
    """ARP and ND are the kernel's, from either side, for VIPs and LIPs."""
    testbed, _ = site
    topology, side = testbed.topology, 0 if family == 4 else 1
    lip = (topology.lips4 if family == 4 else topology.lips6)[0]
    server = testbed.servers[0]
    for ns, address, mac in (
        (testbed.client, testbed.vip(family), topology.lb_macs["eth0"]),
        (testbed.client, LB_CLIENT[side], topology.lb_macs["eth0"]),
        (server.ns, lip, topology.lb_macs["eth1"]),
        (server.ns, LB_SERVER[side], topology.lb_macs["eth1"]),
    ):
        ns.run(["ip", "neigh", "flush", "to", address])
        ns.run(["ping", "-c", "1", "-W", "5", address])
        assert mac in ns.run(["ip", "neigh", "show", "to", address])
    assert testbed.curl(family).status == 200


def too_big(source: str, destination: str, quoted_source: str) -> bytes:
    """An ICMP error from `source` to `destination` that quotes a packet of `quoted_source`, TCP from port 80."""
    from scapy.layers.inet import ICMP, IP, TCP
    from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

    transport = TCP(sport=80, dport=40000, flags="A")
    if ":" in source:
        inner6 = IPv6(src=quoted_source, dst=source) / transport
        return bytes(IPv6(src=source, dst=destination) / ICMPv6PacketTooBig(mtu=1400) / inner6)
    inner = IP(src=quoted_source, dst=source) / transport
    return bytes(IP(src=source, dst=destination) / ICMP(type=3, code=4, nexthopmtu=1400) / inner)


@families
def test_what_is_not_lbds_goes_back_to_the_kernel(site: Site, family: int) -> None:
    """The program can't tell an ICMP error about a VIP's packet from one that only quotes such a packet: its verdict is
    `kernel`, and it comes out of the TAP into the host's stack, which counts it."""
    testbed, _ = site
    topology, side, wanted = testbed.topology, 0 if family == 4 else 1, 20

    def counts() -> tuple[float, float, int]:
        page = scrape(testbed)
        name = "IcmpInDestUnreachs" if family == 4 else "Icmp6InPktTooBigs"
        stat = testbed.balancer.run(["nstat", "-asz", name]).split()
        return (
            page.value("lbd_packets_total", verdict="kernel"),
            page.value("lbd_slow_path_packets_total", direction="to_kernel"),
            int(stat[stat.index(name) + 1]),
        )

    before = counts()
    packet = too_big(testbed.topology.client.address4 if family == 4 else topology.client.address6, LB_CLIENT[side],
                     testbed.vip(family))  # fmt: skip
    macs = bytes.fromhex((topology.lb_macs["eth0"] + topology.client.mac).replace(":", ""))
    with visiting(testbed.client):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sock:
        sock.bind(("eth0", 0))
        for _ in range(wanted):
            sock.send(macs + struct.pack("!H", 0x0800 if family == 4 else 0x86DD) + packet)
    wait_until("the kernel has them", lambda: all(n - b >= wanted for n, b in zip(counts(), before, strict=True)), 10)
    assert testbed.curl(family).status == 200
