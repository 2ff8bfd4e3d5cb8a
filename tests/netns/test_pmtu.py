# SPDX-License-Identifier: Apache-2.0
"""Path MTU discovery through lbd, in both directions, with routers and links that take less than the ends believe.

    guest ──1300── client ──1500── lbd ──1400── rs1, rs2
                                         └1400── inner ──1300── far

Who can't send a packet on tells its sender: lbd itself (1400, its own link), `inner` (1300, to a LIP: lbd has to
tell the client) or `client`, as the guest's router (1300, to the VIP: lbd has to tell the real server). Hosts
announce an MSS for 1500 bytes, as if they knew nothing of it. Each case has a service of its own port and a VIP of
its own: what a sender has learned, it has learned for that address.

NAT64: the same from IPv6 to IPv4; each side hears of its own family's size, which is 20 bytes more or less.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lbd.testbed import Namespace, Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.server import HTTP_PORT, RealServer
from lbd.testbed.testbed import FAMILIES, config_text, endpoint
from lbd.testbed.topology import Host
from tests.netns import traffic
from tests.netns.dial import dial, exchange
from tests.netns.metrics import scrape

pytestmark = [pytest.mark.root, pytest.mark.netns]

families = pytest.mark.parametrize("family", [4, 6, 64], ids=["ipv4", "ipv6", "nat64"])
SIDES = {4: (4, 4), 6: (6, 6), 64: (6, 4)}  # of clients, of real servers
# VIPs
NEAR = {4: "192.0.2.11", 6: "2001:db8:1::11", 64: "2001:db8:1::13"}
FAR = {4: "192.0.2.12", 6: "2001:db8:1::12", 64: "2001:db8:1::14"}
INNER, GUEST = ("10.77.0.20", "fd77::20"), ("198.51.100.2", "2001:db8:2::2")
GUEST_ROUTER, FAR_ROUTER = ("198.51.100.1", "2001:db8:2::1"), ("10.78.0.1", "fd78::1")
FAR_ADDRESS = ("10.78.0.11", "fd78::11")
BIG = 4 << 20


@dataclass
class Site:
    testbed: Testbed
    daemon: Daemon
    guest: Namespace
    far: RealServer
    content: bytes

    def mtu_seen(self, ns: Namespace, destination: str) -> str:
        return ns.run(["ip", "route", "get", destination])


def wire(ns: Namespace, name: str, other: Namespace, mtu: int) -> None:
    """Its other end is eth0."""
    ns.ip(f"link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {other.name}")
    for space, device in ((ns, name), (other, "eth0")):
        space.run(["ethtool", "-K", device, "gro", "on"])
        space.ip(f"link set {device} up")


def address(ns: Namespace, device: str, four: str, six: str) -> None:
    ns.ip(f"address add {four}/24 dev {device}", f"address add {six}/64 dev {device} nodad")


def routes(ns: Namespace, gateway: tuple[str, str]) -> None:
    """Everything by this gateway, with the MSS that a host on Ethernet announces."""
    ns.ip(f"route add default via {gateway[0]} advmss 1460", f"route add default via {gateway[1]} advmss 1440")


def forwarding(ns: Namespace) -> None:
    ns.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)


def add_namespace(name: str) -> Namespace:
    ns = Namespace(name)
    ns.remove()
    ns.add()
    ns.sysctl(net__ipv6__conf__default__accept_dad=0, net__ipv6__conf__all__accept_dad=0)
    return ns


def add_guest(testbed: Testbed, guest: Namespace) -> None:
    wire(testbed.client, "eth1", guest, 1300)
    address(testbed.client, "eth1", *GUEST_ROUTER)
    address(guest, "eth0", *GUEST)
    routes(guest, GUEST_ROUTER)
    forwarding(testbed.client)
    client = testbed.topology.client
    testbed.balancer.ip(f"route add {GUEST[0]}/32 via {client.address4}", f"route add {GUEST[1]}/128 via {client.address6}")


def add_far(testbed: Testbed, inner: Namespace, far: Namespace) -> RealServer:
    wire(testbed.topology.switch, "inner", inner, 1400)
    testbed.topology.switch.ip("link set inner master br0")
    address(inner, "eth0", *INNER)
    wire(inner, "eth1", far, 1300)
    address(inner, "eth1", *FAR_ROUTER)
    address(far, "eth0", *FAR_ADDRESS)
    routes(far, FAR_ROUTER)
    forwarding(inner)
    testbed.balancer.ip(f"route add 10.78.0.0/24 via {INNER[0]}", f"route add fd78::/64 via {INNER[1]}")
    server = RealServer(Host(far, "", *FAR_ADDRESS), testbed.directory / "far")
    server.start("nginx")
    return server


def config(testbed: Testbed) -> str:
    settings = testbed.settings(services=())
    near = [s.host for s in testbed.servers]
    for family, (_, behind) in SIDES.items():
        n = FAMILIES.index(behind)
        near_addresses = [(h.address4, h.address6)[n] for h in near]
        for name, vip, servers in (("near", NEAR[family], near_addresses), ("far", FAR[family], [FAR_ADDRESS[n]])):
            for kind, port, server_port in (("web", 80, HTTP_PORT), ("echo", traffic.PORT, traffic.SERVER_PORT)):
                settings["service"].append({
                    "name": f"{kind}-{name}{family}", "address": endpoint(vip, port), "protocol": "tcp",
                    "scheduler": "rr", "interface": "eth0",
                    "real_server": [{"address": endpoint(s, server_port)} for s in servers],
                })  # fmt: skip
    return config_text(settings)


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]):  # type: ignore[no-untyped-def]
    testbed = make_shared(workers=2, servers=2, lips=1, server_mtu=1400).up()
    names = [add_namespace(f"{testbed.prefix}-{role}") for role in ("guest", "inner", "far")]
    guest, inner, far = names
    server = None
    try:
        add_guest(testbed, guest)
        server = add_far(testbed, inner, far)
        content = os.urandom(BIG)
        for s in [*testbed.servers, server]:
            (s.directory / "files/random").write_bytes(content)
            traffic.serve(testbed, s.ns)
        yield Site(testbed, testbed.lbd(config(testbed)), guest, server, content)
    finally:
        for ns in names:
            ns.remove()
        if server is not None:
            server.stop()


def transfer(site: Site, ns: Namespace, vip: str, times: int) -> None:
    """A file down, and the same bytes up and down at once; unharmed. Each real server and worker comes in turn."""
    wanted = hashlib.sha256(site.content).hexdigest()
    name = f"[{vip}]" if ":" in vip else vip
    for _ in range(times):
        assert ns.run(["sh", "-c", f"curl -sS -m 60 http://{name}/random | sha256sum"], timeout=90).split()[0] == wanted
        with dial(ns, vip, traffic.PORT) as sock:
            assert exchange(sock, site.content) == site.content


def icmp(site: Site) -> tuple[float, float]:
    """ICMP errors about sizes that lbd sent itself, and those that it translated."""
    page = scrape(site.testbed)
    return (
        page.value("lbd_icmp_total", direction="sent", type="mtu_exceeded"),
        page.value("lbd_icmp_total", direction="forwarded", type="error"),
    )


@families
def test_lbds_own_link_is_the_smallest(site: Site, family: int) -> None:
    """lbd answers the client, in the VIP's name or its own."""
    sent, _ = icmp(site)
    transfer(site, site.testbed.client, NEAR[family], 4)
    assert icmp(site)[0] > sent
    assert f"mtu {1420 if family == 64 else 1400}" in site.mtu_seen(site.testbed.client, NEAR[family])


@families
def test_a_router_towards_the_real_server_says_too_big(site: Site, family: int) -> None:
    """To the LIP, about LIP → real server; the client hears of VIP."""
    _, mapped = icmp(site)
    transfer(site, site.testbed.client, FAR[family], 2)
    assert icmp(site)[1] > mapped
    assert f"mtu {1320 if family == 64 else 1300}" in site.mtu_seen(site.testbed.client, FAR[family])


@families
def test_a_router_towards_the_client_says_too_big(site: Site, family: int) -> None:
    """To the VIP, about VIP → client; the real server hears of the LIP. The way back is the one that the client's packets came."""
    topology = site.testbed.topology
    lip = (topology.lips4 if SIDES[family][1] == 4 else topology.lips6)[0]
    for server in site.testbed.servers:
        server.ns.run(["ip", "-4", "route", "flush", "cache"])
    _, mapped = icmp(site)
    transfer(site, site.guest, NEAR[family], 4)
    assert icmp(site)[1] > mapped
    for server in site.testbed.servers:
        assert f"mtu {1280 if family == 64 else 1300}" in site.mtu_seen(server.ns, lip)


@families
def test_small_links_on_both_sides(site: Site, family: int) -> None:
    transfer(site, site.guest, FAR[family], 2)


def test_the_same_with_answers_by_route(site: Site) -> None:
    """packet.return_path = "route": the guest's network is found in the routing table, by the client as a gateway."""
    site.daemon.config_file.write_text(site.daemon.config_file.read_text() + '\n[packet]\nreturn_path = "route"\n')
    assert site.daemon.call("POST", "/v1/reload", timeout=20)["changes"]
    for family in SIDES:
        transfer(site, site.guest, NEAR[family], 2)
        transfer(site, site.testbed.client, NEAR[family], 2)


def test_nothing_else_was_dropped(site: Site) -> None:
    drops = {d["reason"]: d["packets"] for d in site.daemon.get("/v1/drops")["drops"] if d["packets"]}
    assert drops.keys() <= {"mtu_exceeded", "no_neighbor", "no_state"}, drops
