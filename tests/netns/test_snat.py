# SPDX-License-Identifier: Apache-2.0
"""The SNAT gateway on real traffic, two workers: internal clients of 192.0.2.0/24 and 2001:db8:1::/64 reach servers outside.

The balancer's kernel routes between both sides, too, and servers have routes back: so what lbd does not translate arrives all the
same, with the client's own address, and each server tells which address it saw.
"""

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from lbd.testbed import Testbed, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text
from lbd.testbed.topology import CLIENT_NET, LB_CLIENT, LB_SERVER

pytestmark = [pytest.mark.root, pytest.mark.netns]
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

WEB = 8080
REQUESTS = 20_000


def pools(testbed: Testbed, family: int) -> list[str]:
    return testbed.topology.lips4[:2] if family == 4 else testbed.topology.lips6[:2]


def rule(testbed: Testbed, family: int, **more: object) -> dict[str, object]:
    return {
        "name": f"out{family}", "source": [CLIENT_NET[0 if family == 4 else 1]], "in_interface": "eth0", "out_interface": "eth1",
        "pool": [{"address": a, "interface": "eth1"} for a in pools(testbed, family)], **more,
    }  # fmt: skip


def configuration(testbed: Testbed, **more: object) -> str:
    """The web service beside it, which internal clients reach as ever."""
    settings = testbed.settings(services=("web",))
    used = {*pools(testbed, 4), *pools(testbed, 6)}
    settings["local_address"] = [a for a in settings["local_address"] if a["address"] not in used]
    settings["snat"] = [rule(testbed, family, **more) for family in (4, 6)]
    return config_text(settings)


@pytest.fixture(scope="module")
def gateway(make_shared: Callable[..., Testbed]) -> Iterator[tuple[Testbed, Daemon]]:
    testbed = make_shared(workers=2, routing=True).up()
    yield testbed, testbed.lbd(configuration(testbed))


def outside(testbed: Testbed, family: int, n: int = 0) -> str:
    host = testbed.servers[n].host
    return host.address4 if family == 4 else host.address6


def seen_as(testbed: Testbed, family: int, n: int = 0, *options: str) -> str:
    """The address that a server outside sees."""
    answer = load.curl(testbed.client, load.url(outside(testbed, family, n), WEB, "/address"), *options)
    assert answer.status == 200, answer
    return answer.body.split()[0]


def own(testbed: Testbed, family: int) -> str:
    return testbed.topology.client_addresses4[0] if family == 4 else testbed.topology.client_addresses6[0]


def row(daemon: Daemon, name: str) -> dict[str, int]:
    [found] = [r for r in daemon.get("/v1/snat")["snat"] if r["name"] == name]
    return dict(found)


@families
@pytest.mark.cell("snat", "{family}", "tcp", "veth")
def test_requests(gateway: tuple[Testbed, Daemon], family: int) -> None:
    """20,000 of them, each on a connection of its own, none fails."""
    testbed, daemon = gateway
    assert seen_as(testbed, family) in pools(testbed, family)
    before, requests = row(daemon, f"out{family}"), 0
    target = load.url(outside(testbed, family), WEB)
    for _ in range(30):
        result = load.wrk(testbed.client, target, testbed.directory, connections=16, seconds=3, close=True)
        assert result.errors == 0 and result.requests, result
        requests += result.requests
        if requests >= REQUESTS:
            break
    assert requests >= REQUESTS
    after = row(daemon, f"out{family}")
    assert after["connections"] - before["connections"] >= requests
    assert after["outgoing_packets"] > before["outgoing_packets"] + requests
    received = [w["received_packets"] for w in daemon.get("/v1/workers")["workers"]]
    assert len(received) == 2 and all(received), "both workers are at it"


@families
def test_a_large_transfer(gateway: tuple[Testbed, Daemon], family: int) -> None:
    """100 MB come through as they were sent."""
    testbed, _ = gateway
    block = os.urandom(1 << 20)
    big = testbed.servers[0].directory / "files/huge"
    got = testbed.directory / "got"
    with open(big, "wb") as file:
        for n in range(100):
            file.write(hashlib.sha256(bytes([n])).digest() + block)
    try:
        target = load.url(outside(testbed, family), WEB, "/huge")
        answer = load.curl(testbed.client, target, "-o", str(got), timeout=120)
        assert answer.status == 200 and got.stat().st_size == big.stat().st_size
        with open(big, "rb") as a, open(got, "rb") as b:
            assert hashlib.file_digest(a, "sha256").digest() == hashlib.file_digest(b, "sha256").digest()
    finally:
        big.unlink()
        got.unlink(missing_ok=True)


@families
@pytest.mark.parametrize("size", ["56", "3000"], ids=["whole", "in fragments"])
@pytest.mark.cell("snat", "{family}", "icmp", "veth")
def test_ping(gateway: tuple[Testbed, Daemon], size: str, family: int) -> None:
    testbed, daemon = gateway
    words = ["-c", "20", "-i", "0.02", "-W", "2", "-s", size, outside(testbed, family)]
    said = testbed.client.run(["ping", f"-{family}", *words])
    assert "20 received" in said, said
    conns = [c for c in daemon.get("/v1/conns?limit=100000")["conns"] if c["protocol"] == "icmp" and c["service"] == f"out{family}"]
    assert conns and conns[0]["mode"] == "snat" and conns[0]["state"] == "icmp"


@families
@pytest.mark.cell("snat", "{family}", "udp", "veth")
def test_udp(gateway: tuple[Testbed, Daemon], family: int) -> None:
    testbed, _ = gateway
    result = load.dnsperf(testbed.client, outside(testbed, family), "www.lbd.test", testbed.directory)
    assert result.lost == 0 and result.completed > 1000


@families
def test_iperf(gateway: tuple[Testbed, Daemon], family: int) -> None:
    testbed, _ = gateway
    wait_until("iperf3 is idle", testbed.servers[0].iperf3_idle, 10)
    result = load.iperf3(testbed.client, outside(testbed, family), seconds=2)
    assert result.bits_per_second > 1e6


@families
def test_unreachable_is_told(gateway: tuple[Testbed, Daemon], family: int) -> None:
    """An ICMP error about a translated packet comes back to the client: a closed UDP port is refused at once."""
    testbed, daemon = gateway
    before = sum(w["received_packets"] for w in daemon.get("/v1/workers")["workers"])
    code = (
        "import socket, sys\n"
        f"s = socket.socket(socket.AF_INET{'6' if family == 6 else ''}, socket.SOCK_DGRAM)\n"
        f"s.settimeout(5); s.connect(('{outside(testbed, family)}', 9))\n"
        "try:\n s.send(b'x'); s.recv(1)\nexcept ConnectionRefusedError: print('refused')\n"
    )
    assert testbed.client.run(["python3", "-c", code]).strip() == "refused"
    assert sum(w["received_packets"] for w in daemon.get("/v1/workers")["workers"]) > before


@families
def test_what_no_rule_is_for_is_routed(gateway: tuple[Testbed, Daemon], family: int) -> None:
    """By the kernel, with the address that it had: another source than the rule's."""
    testbed, _ = gateway
    far = "198.51.100.77" if family == 4 else "2001:db8:77::7"
    size = ip_address(far).max_prefixlen
    index = 0 if family == 4 else 1
    testbed.client.ip(f"addr add {far}/{size} dev lo {'nodad' if family == 6 else ''}")
    testbed.balancer.ip(f"route add {far}/{size} via {own(testbed, family)}")
    testbed.servers[0].ns.ip(f"route add {far}/{size} via {LB_SERVER[index]}")
    try:
        assert ip_address(far) not in ip_network(CLIENT_NET[index])
        wait_until("it is routed", lambda: seen_as(testbed, family, 0, "--interface", far) == far, 10)
    finally:
        testbed.client.ip(f"addr del {far}/{size} dev lo")


@families
def test_the_hosts_own_connections(gateway: tuple[Testbed, Daemon], family: int) -> None:
    """Of the balancer's host: from it to a server, from internal clients to its own addresses, also to a pool's."""
    testbed, _ = gateway
    answer = load.curl(testbed.balancer, load.url(outside(testbed, family), WEB, "/address"))
    assert answer.status == 200 and answer.body.split()[0] not in pools(testbed, family)
    files = str(testbed.servers[0].directory / "files")
    server = testbed.popen(testbed.balancer, ["python3", "-m", "http.server", "-b", "::", "8099", "-d", files])
    index = 0 if family == 4 else 1
    try:
        for address in (LB_CLIENT[index], LB_SERVER[index], pools(testbed, family)[0]):
            target = load.url(address, 8099)
            wait_until(f"{target} answers", lambda t=target: load.curl(testbed.client, t).status == 200, 10)  # type: ignore[misc]
            said = testbed.client.run(["ping", f"-{family}", "-c", "2", "-i", "0.1", "-W", "2", address])
            assert "2 received" in said
    finally:
        server.kill()
        server.wait()


@families
def test_a_service_beside_it(gateway: tuple[Testbed, Daemon], family: int) -> None:
    testbed, _ = gateway
    assert testbed.curl(family).status == 200
    seen = testbed.curl(family, "/address").body.split()[0]
    assert seen not in pools(testbed, family) and seen != own(testbed, family)


class Talker:
    """One connection to a server outside, for as long as it lives."""

    def __init__(self, testbed: Testbed, server: str) -> None:
        code = (
            "import socket, sys\n"
            f"s = socket.create_connection(('{server}', {WEB}))\n"
            "for line in sys.stdin:\n"
            " s.sendall(b'GET /address HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
            " print(s.recv(4096).split(b'\\r\\n\\r\\n')[1].decode().strip(), flush=True)\n"
        )
        self.process = testbed.popen(testbed.client, ["python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self) -> list[str]:
        """Address and port that the server sees."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().split()


def test_reload(make_testbed: Callable[..., Testbed]) -> None:
    """A changed rule, and a rule for another protocol put before it, leave connections
    alone; what a removed rule was for the kernel routes."""
    testbed = make_testbed(workers=2, routing=True).up()
    daemon = testbed.lbd(configuration(testbed))
    talker = Talker(testbed, outside(testbed, 4))
    first = talker.ask()
    assert first[0] in pools(testbed, 4)
    settings = testbed.settings(services=("web",))
    used = {*pools(testbed, 4), *pools(testbed, 6)}
    settings["local_address"] = [a for a in settings["local_address"] if a["address"] not in used]
    dns = rule(testbed, 4, name="dns", protocol="udp")
    settings["snat"] = [dns, rule(testbed, 4, destination=["10.77.0.0/24"]), rule(testbed, 6)]
    daemon.config_file.write_text(config_text(settings))
    daemon.call("POST", "/v1/reload")
    assert talker.ask() == first
    assert seen_as(testbed, 4) in pools(testbed, 4)
    settings["snat"] = [dns]
    daemon.config_file.write_text(config_text(settings))
    daemon.call("POST", "/v1/reload")
    wait_until("the kernel routes it", lambda: seen_as(testbed, 4) == own(testbed, 4), 5)
    assert load.dnsperf(testbed.client, outside(testbed, 4), "www.lbd.test", testbed.directory).lost == 0


def test_a_new_master_and_a_new_worker(make_testbed: Callable[..., Testbed]) -> None:
    """Both are killed, one after the other: connections go on from the same address and port, new ones are translated too."""
    testbed = make_testbed(workers=2, routing=True).up()
    daemon = testbed.lbd(configuration(testbed))
    talker = Talker(testbed, outside(testbed, 4))
    first = talker.ask()
    assert first[0] in pools(testbed, 4)
    number = row(daemon, "out4")["number"]
    daemon.kill()
    assert talker.ask() == first, "nobody is needed to forward"
    daemon = testbed.lbd(configuration(testbed))
    assert daemon.get("/v1/status")["took_over"] and row(daemon, "out4")["number"] == number
    assert talker.ask() == first and seen_as(testbed, 4) in pools(testbed, 4)
    pids = [w["pid"] for w in daemon.get("/v1/workers")["workers"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        now = daemon.get("/v1/workers")["workers"]
        return all(w["state"] == "running" and w["pid"] not in pids for w in now)

    wait_until("successors run", replaced, 20)
    assert talker.ask() == first and seen_as(testbed, 4) in pools(testbed, 4) and seen_as(testbed, 6) in pools(testbed, 6)
