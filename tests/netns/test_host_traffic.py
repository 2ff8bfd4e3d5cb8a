# SPDX-License-Identifier: Apache-2.0
"""What is not a service's stays the kernel's, while services of every mode use the same addresses and real servers: pings of any
size, the host's own connections from and to a local address, what real servers send to others by way of lbd's host."""

import sys
from collections.abc import Callable, Iterator

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.load import curl, url
from lbd.testbed.netns import Namespace, wait_until
from lbd.testbed.testbed import config_text, endpoint
from lbd.testbed.topology import LB_CLIENT
from tests.netns.conftest import make

pytestmark = [pytest.mark.root, pytest.mark.netns]
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

PLAIN, NAT_PORT = 8099, 7777  # of servers that no service has; of a NAT real server that connects by itself
SERVER = """
import http.server, socket, sys
class Both(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class One(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"plain")
    def log_message(self, *what):
        pass
Both(("::", int(sys.argv[1])), One).serve_forever()
"""


@pytest.fixture(scope="module", params=["fullnat", "nat", "dr", "tunnel"])
def host(request: pytest.FixtureRequest) -> Iterator[tuple[Testbed, Daemon]]:
    """lbd with all services of one mode, its host a router, and plain servers at the client, the balancer and the real server."""
    with make(workers=2, servers=1, routing=True) as testbed:
        for ns in (testbed.client, testbed.balancer, testbed.servers[0].ns):
            testbed.popen(ns, [sys.executable, "-c", SERVER, str(PLAIN)])
        for family in (4, 6):
            wait_until("servers answer", lambda family=family: reached(testbed.balancer, client(testbed, family)), 10)  # type: ignore[misc]
        settings = testbed.settings()
        port = 80 if request.param in ("dr", "tunnel") else NAT_PORT
        settings["service"] = [
            {
                "name": f"web{family}", "address": endpoint(testbed.vip(family), 80), "scheduler": "rr", "mode": request.param,
                "interface": "eth0", "real_server": [{"address": endpoint(server(testbed, family), port)}],
            }
            for family in (4, 6)
        ]  # fmt: skip
        yield testbed, testbed.lbd(config_text(settings))


def client(testbed: Testbed, family: int) -> str:
    c = testbed.topology.client
    return c.address4 if family == 4 else c.address6


def server(testbed: Testbed, family: int) -> str:
    s = testbed.topology.servers[0]
    return s.address4 if family == 4 else s.address6


def lip(testbed: Testbed, family: int) -> str:
    return (testbed.topology.lips4 if family == 4 else testbed.topology.lips6)[0]


def reached(ns: Namespace, address: str, *options: str) -> bool:
    return curl(ns, url(address, PLAIN), *options, timeout=2).status == 200


def ping(ns: Namespace, address: str, size: int, *options: str) -> bool:
    argv = ["ping", "-c", "2", "-i", "0.2", "-W", "2", "-s", str(size), *options, address]
    return ", 0% packet loss" in ns.run(argv, check=False)


CASES: dict[str, Callable[[Testbed, int], bool]] = {
    "ping to the VIP": lambda t, f: ping(t.client, t.vip(f), 56),
    "fragmented ping to the VIP": lambda t, f: ping(t.client, t.vip(f), 4000),
    "fragmented ping to a local address": lambda t, f: ping(t.servers[0].ns, lip(t, f), 4000),
    "fragmented ping from a local address": lambda t, f: ping(t.balancer, server(t, f), 4000, "-I", lip(t, f)),
    "fragmented ping through the host": lambda t, f: ping(t.servers[0].ns, client(t, f), 4000),
    "a health check from a local address": lambda t, f: reached(t.balancer, server(t, f), "--interface", lip(t, f)),
    "a connection to a local address": lambda t, f: reached(t.servers[0].ns, lip(t, f)),
    "a connection to the VIP's other port": lambda t, f: reached(t.client, t.vip(f)),
    "the host's own, to the client": lambda t, f: reached(t.balancer, client(t, f)),
    "the host's own, from the VIP": lambda t, f: reached(t.balancer, client(t, f), "--interface", t.vip(f)),
    "the host's own, to the real server": lambda t, f: reached(t.balancer, server(t, f)),
    "a real server's own, routed": lambda t, f: reached(t.servers[0].ns, client(t, f)),
    "a client's, routed to the real server": lambda t, f: reached(t.client, server(t, f)),
    "a real server's own, from its service's port": lambda t, f: reached(
        t.servers[0].ns, client(t, f), "--local-port", str(NAT_PORT)
    ),
}


@families
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_kernel_s(host: tuple[Testbed, Daemon], case: str, family: int) -> None:
    testbed, lbd = host
    assert CASES[case](testbed, family), lbd.get("/v1/drops")["drops"]


def test_nothing_of_it_was_dropped(host: tuple[Testbed, Daemon]) -> None:
    """After all the others. (A TCP connection's first packets may race with a neighbour's resolution; nothing else is lost.)"""
    testbed, lbd = host
    assert testbed.balancer.run(["ip", "address", "show", "dev", "eth0"]).count(LB_CLIENT[0])
    lost = {d["reason"]: d["packets"] for d in lbd.get("/v1/drops")["drops"] if d["packets"]}
    assert not lost, lost
    assert all(row["drop"] == 0 for row in lbd.get("/v1/drops")["xdp"])
