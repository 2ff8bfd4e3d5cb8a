"""Pings in fragments of a service of ICMP: put together from what leaves they are whole, in every mode and order, by any worker.
What is expected is built by scapy."""

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packet import fragment
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, VIP, Balancer, ip
from tests.packet.cluster import Cluster
from tests.packet.fragment import ORDERS, expected, frames_out, from_addresses, from_client, from_server, payload, send, together
from tests.packet.test_echo import BOTH_WAYS, FAMILIES, TUNNELS, ask, balancer, reply, sees, settings

SIZE = 2901  # of a ping: 7 fragments, and an odd length
WAYS = {"fullnat": "fullnat", "nat": "nat", "dr": "dr", **dict.fromkeys(TUNNELS, "tunnel")}  # as test_echo, as fragment has them
MODE = pytest.mark.parametrize("mode", WAYS)
ORDER = pytest.mark.parametrize("order", ORDERS)
WORKERS = pytest.mark.parametrize("workers", [2, 3])
DATA = payload(SIZE)


def ident(p: Packet) -> int:
    """Of a whole one."""
    return next(int(p[kind].id) for kind in (ICMP, ICMPv6EchoRequest, ICMPv6EchoReply) if kind in p)


def answered(b: Balancer, mode: str, af: int, there: int, client: int, order: str) -> None:
    """The real server's answer, in fragments too."""
    frames = frames_out(send(b, ORDERS[order](from_server(af, reply(af, there, DATA), sees(mode, af), ident=client)), 1))
    assert from_addresses(together(frames)) == expected(af, VIP[af], CLIENT[af], reply(af, client, DATA))


@pytest.mark.cell("{mode}", "{af}", "icmp", "engine")
@MODE
@FAMILIES
@ORDER
def test_there_and_back(mode: str, af: int, order: str) -> None:
    b = balancer(mode)
    cut = ORDERS[order](from_client(af, ask(af, data=DATA)))
    frames = frames_out(send(b, cut))
    assert len(frames) == len(cut)
    whole = together(frames, WAYS[mode], TUNNELS[mode].shim if mode in TUNNELS else 0)
    [c] = b.engine.conns()
    there = c["local"][1] if mode == "fullnat" else 40000
    assert from_addresses(whole) == expected(af, *fragment.addresses_of(WAYS[mode], af), ask(af, there, DATA))
    assert b.engine.counters()["frag_forwarded"] == len(frames) and b.engine.used()["held"] == 0
    if mode in ("fullnat", "nat"):
        answered(b, mode, af, there, 40000, order)
        assert len(b.engine.conns()) == 1
    b.audit()


@BOTH_WAYS
@FAMILIES
@WORKERS
@pytest.mark.parametrize("order", ["in order", "reversed", "first second"])
def test_whichever_worker_gets_them(mode: str, af: int, workers: int, order: str) -> None:
    c = Cluster(workers, **settings(mode))
    for n in range(2000, 2006):
        frames = frames_out(send(c, ORDERS[order](from_client(af, ask(af, n, DATA), ident=n))))
        whole = together(frames)
        assert from_addresses(whole) == expected(af, *fragment.addresses_of(mode, af), ask(af, ident(whole), DATA))
        answered(c, mode, af, ident(whole), n, order)  # type: ignore[arg-type]
    assert len(c.conns()) == 6 and max(c.hops) <= 3
    c.audit()


@FAMILIES
@ORDER
def test_the_kernels_own(af: int, order: str) -> None:
    """A ping to a VIP that has no such service, though others have; an answer to a ping of the host; all of what is no echo."""
    b = balancer()
    link = Ether(src=MAC_CLIENT, dst=MAC_LB0)
    bare = "192.0.2.77" if af == 4 else "2001:db8:1::77"
    asked = fragment.cut(link, fragment.built(ip(af, CLIENT[af], bare) / ask(af, data=DATA)))
    for iface, cut in ((0, asked), (1, from_server(af, reply(af, 7, DATA), LIP[af])), (0, no_echo(af))):
        results = send(b, ORDERS[order](cut), iface)
        assert {r.verdict for r in results} == {"kernel"} and len(results) == len(ORDERS[order](cut))
    assert not b.engine.conns() and b.engine.used()["held"] == 0
    b.audit()


def no_echo(af: int) -> fragment.Cut:
    """Of ICMP, to the VIP: a timestamp's request, a node information query."""
    head = ip(af, CLIENT[af], VIP[af], **{"proto" if af == 4 else "nh": 1 if af == 4 else 58})
    return fragment.cut(Ether(src=MAC_CLIENT, dst=MAC_LB0), head / Raw(bytes([13 if af == 4 else 139, 0]) + DATA))


@FAMILIES
@WORKERS
def test_no_echo_by_whichever_worker(af: int, workers: int) -> None:
    c = Cluster(workers, **settings("fullnat"))
    for order in ("in order", "reversed"):
        assert {r.verdict for r in send(c, ORDERS[order](no_echo(af)))} == {"kernel"}
    assert c.totals("frag_expired") == 0
    c.audit()


@FAMILIES
def test_without_such_services(af: int) -> None:
    """Nothing of ICMP is looked at."""
    b = Balancer()
    assert {r.verdict for r in send(b, from_client(af, ask(af, data=DATA))[::-1])} == {"kernel"}


@FAMILIES
def test_a_first_one_without_its_header(af: int) -> None:
    b = balancer()
    if af == 4:
        tiny = IP(src=CLIENT[4], dst=VIP[4], flags="MF", proto=1) / Raw(bytes(8))
        assert b.send(Ether(src=MAC_CLIENT, dst=MAC_LB0) / tiny).verdict == "kernel", "all of it is there, and it is no echo"
        tiny = IP(src=CLIENT[4], dst=VIP[4], flags="MF", proto=1) / Raw(bytes([8, 0, 0, 0]))
    else:
        tiny = IPv6(src=CLIENT[6], dst=VIP[6]) / IPv6ExtHdrFragment(nh=60, m=1) / IPv6ExtHdrDestOpt(nh=58)
    r = b.send(Ether(src=MAC_CLIENT, dst=MAC_LB0) / tiny)
    assert (r.verdict, r.reason) == ("drop", "malformed" if af == 4 else "frag_tiny")


@FAMILIES
def test_identifications_are_lbds(af: int) -> None:
    """Two clients' pings with one identification leave with two; each one's fragments with one."""
    b = balancer()
    seen = set()
    for n in (1, 2):
        frames = frames_out(send(b, from_client(af, ask(af, 5, DATA), ident=9, client=CLIENT[af][:-1] + str(n))))
        [own] = {Ether(f)[IP].id if af == 4 else Ether(f)[IPv6ExtHdrFragment].id for f in frames}
        seen.add(own)
    assert len(seen) == 2
