# SPDX-License-Identifier: Apache-2.0
"""Fragments in real traffic: datagrams of up to 60 kB to an echo server and back, in each mode, by two workers; beside them what is
the host's own; and a storm of fragments that never come together.
"""

import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lbd.shm import _shm as shm
from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import Namespace, wait_until
from lbd.testbed.testbed import config_text, endpoint
from lbd.testbed.topology import CLIENT_NET, LB_CLIENT, LB_SERVER
from tests.netns.chaos import pass_time
from tests.netns.dial import visiting
from tests.netns.metrics import scrape
from tests.netns.test_mode import FAR_VIP, families, far_routes, far_servers
from tests.netns.traffic import Inside, worker_pids

pytestmark = [pytest.mark.root, pytest.mark.netns]

ECHO = 7007
SIZES = (1000, 1472, 1473, 2960, 5000, 9000, 20000, 40000, 60000)
EACH = 8
ONCE = 7008  # of the one-packet service
STORM = 100_000


def datagram(af: int) -> socket.socket:
    sock = socket.socket(af, socket.SOCK_DGRAM)
    sock.settimeout(5)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
    return sock


def start_echo(testbed: Testbed) -> None:
    for server in testbed.servers:
        server.ns.sysctl(net__core__rmem_default=4 << 20, net__core__wmem_default=4 << 20)
        testbed.popen(server.ns, [sys.executable, "-m", "lbd.testbed.echo", str(ECHO)])
        for address in (server.host.address4, server.host.address6):
            wait_until(f"{address} echoes", lambda a=address, ns=server.ns: echoes(ns, a, ECHO, [b"?"]) == [True], 10)  # type: ignore[misc]


def echoes(ns: Namespace, address: str, port: int, payloads: list[bytes], timeout: float = 5) -> list[bool]:
    """Each from a socket of its own, one after the other."""
    af = socket.AF_INET6 if ":" in address else socket.AF_INET
    results = []
    with visiting(ns):
        for payload in payloads:
            with datagram(af) as sock:
                sock.settimeout(timeout)
                sock.connect((address, port))
                try:
                    sock.send(payload)
                    results.append(sock.recv(65536) == payload)
                except OSError:
                    results.append(False)
    return results


def payloads(seed: int = 1, each: int = EACH) -> list[bytes]:
    return [random.Random(seed * 1000 + n).randbytes(size) for size in SIZES for n in range(each)]


def warm(testbed: Testbed, address: str, port: int = ECHO) -> None:
    """Until neighbours are known, and both ends the path's MTU."""
    for payload in (b"?", b"?" * 60000):
        wait_until("the way is known", lambda p=payload: all(echoes(testbed.client, address, port, [p] * 3, 0.5)), 15)  # type: ignore[misc]


def lost(daemon: Daemon) -> dict[str, int]:
    return {d["reason"]: d["packets"] for d in daemon.get("/v1/drops")["drops"] if d["packets"]}


def once(service: dict[str, Any], vip: str, port: int) -> dict[str, Any]:
    """Like that one, but by datagram; port: its real servers'."""
    servers = [{"address": endpoint(r["address"].rpartition(":")[0].strip("[]"), port)} for r in service["real_server"]]
    name = service["name"].replace("echo", "once")
    more = {"address": endpoint(vip, ONCE), "one_packet": True, "scheduler": "rr", "real_server": servers}
    return {**service, "name": name, **more}


def whole_by_datagram(testbed: Testbed, daemon: Daemon, vip: str, family: int) -> None:
    """Round robin gives each datagram another real server; all of it goes there."""
    before = lost(daemon)
    with visiting(testbed.client), datagram(socket.AF_INET6 if family == 6 else socket.AF_INET) as sock:
        sock.connect((vip, ONCE))
        for payload in payloads(family, 2):
            sock.send(payload)
            assert sock.recv(65536) == payload
    assert lost(daemon) == before
    rows = [r for r in daemon.get("/v1/real-servers")["real_servers"] if r["service"] == f"once{family}"]
    assert sum(r["connections"] for r in rows) == 2 * len(SIZES) and min(r["connections"] for r in rows) >= 8 - 1


@pytest.fixture(scope="module", params=["fullnat", "nat"])
def near(request: pytest.FixtureRequest, make_shared: Callable[..., Testbed]) -> tuple[Testbed, Daemon]:
    testbed = make_shared(workers=2, servers=2, routing=True).up()
    start_echo(testbed)
    if request.param == "nat":
        for server in testbed.servers:
            server.ns.ip(f"route replace default via {LB_SERVER[0]}", f"route replace ::/0 via {LB_SERVER[1]}")
    settings = testbed.settings(services=("web",))
    for family in (4, 6):
        settings["service"].append(
            {
                "name": f"echo{family}", "address": endpoint(testbed.vip(family), ECHO), "protocol": "udp", "mode": request.param,
                "interface": "eth0",
                "real_server": [
                    {"address": endpoint(s.host.address4 if family == 4 else s.host.address6, ECHO)} for s in testbed.servers
                ],
            }
        )  # fmt: skip
        settings["service"].append(once(settings["service"][-1], testbed.vip(family), ECHO))
    return testbed, testbed.lbd(config_text(settings))


@families
def test_both_ways(near: tuple[Testbed, Daemon], family: int) -> None:
    testbed, daemon = near
    vip = testbed.vip(family)
    warm(testbed, vip)
    before, counted = lost(daemon), scrape(testbed).value("lbd_fragments_total", action="forwarded")
    results = echoes(testbed.client, vip, ECHO, payloads(family))
    assert results.count(True) == len(results), f"{results.count(False)} of {len(results)} lost: {lost(daemon)}"
    assert lost(daemon) == before
    cut = sum(-(-(len(p) + 8) // 1480) for p in payloads(family) if len(p) > 1472)
    assert scrape(testbed).value("lbd_fragments_total", action="forwarded") - counted >= 2 * cut


@families
def test_by_datagram(near: tuple[Testbed, Daemon], family: int) -> None:
    testbed, daemon = near
    warm(testbed, testbed.vip(family))
    whole_by_datagram(testbed, daemon, testbed.vip(family), family)


@families
def test_several_at_once(near: tuple[Testbed, Daemon], family: int) -> None:
    """Fragments of several datagrams between each other."""
    testbed, _ = near
    vip = testbed.vip(family)
    warm(testbed, vip)
    af = socket.AF_INET6 if family == 6 else socket.AF_INET
    right = 0
    for turn in range(8):
        with visiting(testbed.client):
            socks = [datagram(af) for _ in range(8)]
            sent = [random.Random(turn * 8 + n).randbytes(9000) for n in range(8)]
            for sock, payload in zip(socks, sent, strict=True):
                sock.connect((vip, ECHO))
                sock.send(payload)
            for sock, payload in zip(socks, sent, strict=True):
                right += sock.recv(65536) == payload
                sock.close()
    assert right == 64


@families
def test_the_hosts_own(near: tuple[Testbed, Daemon], family: int) -> None:
    """Datagrams to a port of the VIP that no service has; pings; and what a real server sends past lbd's host."""
    testbed, _ = near
    vip, own = testbed.vip(family), LB_CLIENT[0 if family == 4 else 1]
    af = socket.AF_INET6 if family == 6 else socket.AF_INET
    stop = threading.Event()
    with visiting(testbed.balancer):
        here = datagram(af)
        here.bind((vip, 5353))

    def serve() -> None:
        here.settimeout(0.2)
        while not stop.is_set():
            try:
                data, sender = here.recvfrom(65536)
            except TimeoutError:
                continue
            here.sendto(data, sender)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for address in (vip, own):
            said = testbed.client.run(["ping", "-c", "3", "-i", "0.2", "-W", "5", "-s", "6000", address])
            assert "3 received" in said and "6008 bytes from" in said
        sizes = [b"x" * n for n in (100, 3000, 20000)]
        wait_until("each size comes back", lambda: all(echoes(testbed.client, vip, 5353, sizes)), 20)
        server = testbed.servers[0].host
        if testbed.topology.routing:
            address = server.address4 if family == 4 else server.address6
            wait_until("they pass", lambda: all(echoes(testbed.client, address, ECHO, [b"x" * 9000] * 3)), 20)
    finally:
        stop.set()
        thread.join()
        here.close()


# -- one way ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["dr", "tunnel", "tunnel of the other family"])
def far(request: pytest.FixtureRequest, make_shared: Callable[..., Testbed]) -> tuple[str, Testbed, Daemon]:
    """Tunnels need room for the outer header: links of 1,560 bytes behind lbd."""
    mode = request.param.split()[0]
    testbed = make_shared(workers=2, servers=2, routing=True, server_mtu=1560 if mode == "tunnel" else 1500).up()
    for server in testbed.servers:
        server.ns.ip(*(f"route replace {CLIENT_NET[k]} via {LB_SERVER[k]} mtu 1500" for k in (0, 1)))
    far_servers(testbed, mode == "tunnel")
    for server in testbed.servers:
        for family in (4, 6):
            out = server.directory / f"vip-echo{family}.out"
            with open(out, "wb") as to:
                testbed.popen(server.ns, [sys.executable, "-c", VIP_ECHO, FAR_VIP[family], str(ECHO), str(ONCE)], stdout=to)
            wait_until("the echo server is there", lambda out=out: out.read_text() == "ready\n", 10)  # type: ignore[misc]
    far_routes(testbed)
    settings = testbed.settings(services=())
    for family in (4, 6):
        servers = [s.host.address4 if (family == 4) != (mode != request.param) else s.host.address6 for s in testbed.servers]
        settings["service"].append(
            {
                "name": f"echo{family}", "address": endpoint(FAR_VIP[family], ECHO), "protocol": "udp", "mode": mode,
                "manage": False, "real_server": [{"address": endpoint(a, ECHO)} for a in servers],
            }
        )  # fmt: skip
        settings["service"].append(once(settings["service"][-1], FAR_VIP[family], ONCE))
    return mode, testbed, testbed.lbd(config_text(settings))


# answers from the address that was asked, as a socket bound to it does
VIP_ECHO = """
import select, socket, sys
socks = []
for port in sys.argv[2:]:
    s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    s.bind((sys.argv[1], int(port)))
    socks.append(s)
print("ready", flush=True)
while True:
    for s in select.select(socks, [], [])[0]:
        data, sender = s.recvfrom(65536)
        s.sendto(data, sender)
"""


@families
def test_one_way(far: tuple[str, Testbed, Daemon], family: int) -> None:
    _, testbed, daemon = far
    warm(testbed, FAR_VIP[family])
    before = lost(daemon)
    results = echoes(testbed.client, FAR_VIP[family], ECHO, payloads(family))
    assert results.count(True) == len(results), f"{results.count(False)} of {len(results)} lost: {lost(daemon)}"
    assert lost(daemon) == before


@families
def test_by_datagram_one_way(far: tuple[str, Testbed, Daemon], family: int) -> None:
    _, testbed, daemon = far
    warm(testbed, FAR_VIP[family])
    whole_by_datagram(testbed, daemon, FAR_VIP[family], family)


# -- a storm ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> Iterator[tuple[Testbed, Daemon]]:
    testbed = make_shared(workers=2, servers=2).up()
    for server in testbed.servers:  # a host's own room for what never comes together is less than the storm: 4 MB, for 30 s
        server.ns.sysctl(net__ipv4__ipfrag_high_thresh=256 << 20, net__ipv4__ipfrag_time=5)
    start_echo(testbed)
    settings = testbed.settings(services=("web",))
    settings["service"].append(
        {
            "name": "echo4", "address": endpoint(testbed.vip(4), ECHO), "protocol": "udp", "interface": "eth0",
            "real_server": [{"address": endpoint(s.host.address4, ECHO)} for s in testbed.servers],
        }
    )  # fmt: skip
    yield testbed, testbed.lbd(config_text(settings))


def storm(testbed: Testbed, count: int, rate: int) -> None:
    """Fragments of datagrams that never come together: first ones and later ones, each with another identification and from one of
    64 addresses, written as frames."""
    choice = random.Random(1)
    vip = socket.inet_aton(testbed.vip(4))
    macs = bytes.fromhex((testbed.topology.lb_macs["eth0"] + testbed.topology.client.mac).replace(":", ""))
    with visiting(testbed.client):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind(("eth0", 0))
    start = time.monotonic()
    with out:
        for n in range(count):
            first = choice.random() < 0.3
            source = socket.inet_aton(f"192.0.2.{160 + n % 64}")
            l4 = struct.pack("!HHHH", 1024 + n % 60000, ECHO, 4000, 1) + bytes(120)
            offset = 0x2000 if first else 0x2000 | choice.randrange(2, 180)
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), n >> 6 & 0xFFFF, offset, 64, 17, 0) + source + vip
            total = sum(struct.unpack("!10H", head))
            total = (total & 0xFFFF) + (total >> 16)
            check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            out.send(macs + b"\x08\x00" + head[:10] + struct.pack("!H", check) + head[12:] + l4)
            if n % 100 == 99:
                ahead = (n + 1) / rate - (time.monotonic() - start)
                if ahead > 0:
                    time.sleep(ahead)


def test_storm(site: tuple[Testbed, Daemon]) -> None:
    """100,000 in ten seconds, more than the tables hold. 64 connections go on beside it, and so do datagrams in fragments."""
    testbed, daemon = site
    warm(testbed, testbed.vip(4))
    before = lost(daemon)
    thread = threading.Thread(target=storm, args=(testbed, STORM, STORM // 10))
    thread.start()
    load = testbed.wrk(4, connections=64, seconds=8)
    thread.join()
    assert load.errors == 0 and load.requests > 1000, load
    during = lost(daemon)
    assert all(echoes(testbed.client, testbed.vip(4), ECHO, payloads(3, 2)))
    assert during.get("frag_table_full", 0) > 10_000
    grown = {reason for reason, n in during.items() if n > before.get(reason, 0)}
    assert grown <= {"frag_table_full", "frag_timeout", "no_state"}, during
    status = daemon.get("/v1/status")
    assert (status["problems"], status["workers"]["restarts"]) == ([], 0)
    counters = scrape(testbed)
    assert counters.value("lbd_fragments_total", action="held") > 10_000
    assert counters.value("lbd_fragmented_datagrams_lost_total", reason="table_full") > 10_000


def test_workers_killed_in_a_storm(site: tuple[Testbed, Daemon]) -> None:
    """What they held is lost, but no frame: afterwards each is free, or waits in a fill ring."""
    testbed, daemon = site
    inside = Inside(daemon)
    thread = threading.Thread(target=storm, args=(testbed, STORM // 2, STORM // 10))
    thread.start()
    for number in range(4):
        pass_time(0.5 + 0.11 * number)
        segment = inside.segments[number % 2]
        restarts = segment.restarts
        os.kill(worker_pids(daemon)[number % 2], signal.SIGKILL)
        wait_until(
            "it runs again", lambda s=segment, r=restarts: s.restarts != r and s.state == shm.WORKER_RUNNING, 20
        )  # type: ignore[misc]
    thread.join()
    wait_until("every frame has its place", lambda: inside.frame_faults() == [], 20)
    inside.close()
    warm(testbed, testbed.vip(4))
    assert all(echoes(testbed.client, testbed.vip(4), ECHO, payloads(4, 2)))
