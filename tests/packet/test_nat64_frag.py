"""Fragments through NAT64: what is put together on the other side is the whole datagram, in the other family."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.packet import fragment
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, VIP, Balancer, server
from tests.packet.cluster import Cluster
from tests.packet.fragment import ORDERS, from_addresses, from_client, from_server, payload, segment, send, together
from tests.packet.test_nat64 import balancer, opened
from tests.unit.test_datapath_hash import KEY as RSS_KEY

PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])
ORDER = pytest.mark.parametrize("order", ORDERS)
SIZE = 2900


def to_server(proto: str, lport: int, data: bytes) -> bytes:
    return fragment.expected(4, LIP[4], server(4, 1), segment(proto, lport, 8080, data))


def to_client(proto: str, data: bytes, cport: int = 40000) -> bytes:
    return fragment.expected(6, VIP[6], CLIENT[6], segment(proto, 80, cport, data, seq=5001, ack=1001))


@PROTOS
@ORDER
def test_from_the_client(proto: str, order: str) -> None:
    b = balancer()
    lport = opened(b, proto)
    cut = ORDERS[order](from_client(6, segment(proto, 40000, 80, payload(SIZE))))
    frames = fragment.frames_out(send(b, cut))
    assert len(frames) == len(cut)
    packets = [Ether(f)[IP] for f in frames]
    assert len({p.id for p in packets}) == 1 and not any(p.flags.DF for p in packets)
    assert {p.ttl for p in packets} == {63} and {p.tos for p in packets} == {0}
    assert from_addresses(together(frames)) == to_server(proto, lport, payload(SIZE))
    b.audit()


@PROTOS
@ORDER
def test_from_the_real_server(proto: str, order: str) -> None:
    b = balancer()
    lport = opened(b, proto)
    cut = ORDERS[order](from_server(4, segment(proto, 8080, lport, payload(SIZE), seq=5001, ack=1001), LIP[4]))
    frames = fragment.frames_out(send(b, cut, 1))
    assert len(frames) == len(cut)
    assert len({Ether(f)[IPv6ExtHdrFragment].id for f in frames}) == 1
    assert {Ether(f)[IPv6].hlim for f in frames} == {63}
    assert from_addresses(together(frames)) == to_client(proto, payload(SIZE))
    b.audit()


def test_a_datagram_opens_its_connection() -> None:
    for order in ("in order", "reversed"):
        b = balancer()
        frames = fragment.frames_out(send(b, ORDERS[order](from_client(6, segment("udp", 40000, 80, payload(SIZE))))))
        [c] = b.engine.conns()
        assert c["mode"] == "nat64"
        assert from_addresses(together(frames)) == to_server("udp", c["local"][1], payload(SIZE))
        b.audit()


@settings(max_examples=60, deadline=None)
@given(st.integers(9, 3000), st.integers(1, 60), st.booleans(), st.randoms())
def test_there_and_back(size: int, step: int, client: bool, random: object) -> None:
    b = balancer()
    lport = opened(b, "udp")
    if client:
        cut = from_client(6, segment("udp", 40000, 80, payload(size)), 8 * step)
    else:
        cut = from_server(4, segment("udp", 8080, lport, payload(size)), LIP[4], 8 * step)
    if len(cut) < 2 or len(cut) > 40:
        return
    random.shuffle(cut)  # type: ignore[attr-defined]
    frames = fragment.frames_out(send(b, cut, 0 if client else 1))
    want = to_server("udp", lport, payload(size)) if client else to_client("udp", payload(size))
    assert from_addresses(together(frames)) == want


def test_datagrams_do_not_mix() -> None:
    """Ten clients' with one identification."""
    b = balancer()
    frames = []
    for n in range(10):
        frames += fragment.frames_out(send(b, from_client(6, segment("udp", 40000 + n, 80, payload(SIZE, n)), ident=5)))
    assert len({Ether(f)[IP].id for f in frames}) == 10


def test_too_big_with_the_fragment_header() -> None:
    """28 bytes are added: the real server is told, about the first one, and sends smaller ones."""
    b = balancer(mtu=(1500, 1500))
    lport = opened(b, "udp")
    for size, fits in ((1448, True), (1456, False)):
        first, *rest = send(b, from_server(4, segment("udp", 8080, lport, payload(SIZE)), LIP[4], size, ident=size), 1)
        if fits:
            assert len(first.out[0][1]) == 14 + 20 + 28 + 1448
        else:
            assert (first.verdict, first.reason) == ("consume", "mtu_exceeded")
            p = Ether(first.out[0][1])
            assert (p[ICMP].type, p[ICMP].code, p[ICMP].nexthopmtu) == (3, 4, 1472)
            assert {r.verdict for r in rest} == {"drop"}


def test_no_checksum_can_be_made() -> None:
    b = balancer()
    lport = opened(b, "udp")
    l4 = UDP(sport=8080, dport=lport, chksum=0) / Raw(payload(SIZE))
    results = send(b, from_server(4, l4, LIP[4]), 1)
    assert results[0].reason == "untranslatable" and {r.reason for r in results[1:]} == {"frag_orphan"}


def test_headers_behind_the_fragment_header() -> None:
    """They are part of what is cut: without them the offsets would not fit."""
    b = balancer()
    opened(b, "udp")
    whole = bytes(IPv6(src=CLIENT[6], dst=VIP[6]) / IPv6ExtHdrDestOpt() / segment("udp", 40000, 80, payload(SIZE)))
    cut = fragment.cut(Ether(src=MAC_CLIENT, dst=MAC_LB0), IPv6(whole))
    results = send(b, cut)
    assert results[0].reason == "untranslatable" and {r.verdict for r in results} == {"drop"}


def test_atomic_fragments() -> None:
    """RFC 6946: a whole packet."""
    b = balancer()
    lport = opened(b, "udp")
    l4 = bytes(fragment.built(IPv6(src=CLIENT[6], dst=VIP[6]) / segment("udp", 40000, 80, b"whole")).payload)
    head = Ether(src=MAC_CLIENT, dst=MAC_LB0) / IPv6(src=CLIENT[6], dst=VIP[6]) / IPv6ExtHdrFragment(nh=17, id=5)
    [frame] = fragment.frames_out(send(b, [head / Raw(l4)]))
    assert Ether(frame)[IP].frag == 0 and not Ether(frame)[IP].flags.MF
    assert from_addresses(Ether(frame)[IP]) == to_server("udp", lport, b"whole")


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])
@pytest.mark.parametrize("order", ["in order", "reversed"])
def test_wherever_they_arrive(workers: int, rss: bool, order: str) -> None:
    c = Cluster(workers, cross=True, servers=1)
    if rss:
        c.set_rss(RSS_KEY, True)
    for n in range(12):
        lport = opened(c, "udp", 2000 + n)
        frames = fragment.frames_out(send(c, ORDERS[order](from_client(6, segment("udp", 2000 + n, 80, payload(SIZE)), ident=n))))
        assert from_addresses(together(frames)) == to_server("udp", lport, payload(SIZE))
        back = ORDERS[order](from_server(4, segment("udp", 8080, lport, payload(SIZE)), LIP[4], ident=n))
        frames = fragment.frames_out(send(c, back, 1))
        assert from_addresses(together(frames)) == to_client("udp", payload(SIZE), 2000 + n)
    c.audit()


def test_state_moves_by_the_first_one_alone() -> None:
    b: Balancer = balancer()
    opened(b, "tcp")
    before = b.engine.conns()
    cut = from_client(6, segment("tcp", 40000, 80, payload(SIZE)))
    fragment.frames_out(send(b, cut))
    assert b.engine.conns() == before and TCP not in cut[1]
