"""ICMP errors about SNAT's packets, in both directions: the quoted packet becomes what its sender had sent (RFC 5508 REQ-3 to 5,
RFC 4443), the checksums of all layers right.
"""

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packet.balancer import MAC_LB0, MAC_LB1, ip
from tests.packet.gateway import HOST, MAC_HOST, MAC_ROUTER, REMOTE, Gateway, came_back, left, pool
from tests.packet.test_snat import FAMILIES, PROTOCOLS, ask, hops, open_flow, reply

FAR_ROUTER = {4: "198.18.0.1", 6: "2001:db8:18::1"}
INNER_ROUTER = {4: "10.77.3.1", 6: "fd77::3:1"}


def error(af: int, big: bool = False) -> Packet:
    if af == 4:
        return ICMP(type=3, code=4, nexthopmtu=1400) if big else ICMP(type=3, code=1)
    return ICMPv6PacketTooBig(mtu=1400) if big else ICMPv6DestUnreach(code=3)


def opened(af: int, kind: str) -> tuple[Gateway, int]:
    b = Gateway()
    at = open_flow(b, af, kind)
    if kind == "tcp":
        b.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, REMOTE[af], pool(af)) / reply(af, kind, at))
    return b, at


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("big", [False, True], ids=["unreachable", "too big"])
def test_from_outside(af: int, kind: str, big: bool) -> None:
    """A router on the way quotes what lbd sent; the internal host reads what it had sent itself."""
    b, at = opened(af, kind)
    data = b"" if kind == "tcp" else b"question"

    def quoted(src: str, port: int) -> Packet:
        return ip(af, src, REMOTE[af], **hops(af, 60)) / ask(af, kind, port, payload=data)

    sent = ip(af, FAR_ROUTER[af], pool(af)) / error(af, big) / quoted(pool(af), at)
    r = b.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / sent)
    want = came_back(af, error(af, big) / quoted(HOST[af], 40000), src=FAR_ROUTER[af], **hops(af, 63))
    assert r.verdict == "forward" and r.out == [(1, bytes(want))]
    assert b.engine.counters()["icmp_mapped"] == 1


@FAMILIES
@PROTOCOLS
def test_from_inside(af: int, kind: str) -> None:
    """A router inside, or the host, about an answer: the remote reads what it had sent to the pool's address."""
    b, at = opened(af, kind)
    data = b"" if kind == "tcp" else b"answer"

    def quoted(dst: str, port: int) -> Packet:
        return ip(af, REMOTE[af], dst, **hops(af, 50)) / reply(af, kind, port, payload=data)

    sent = ip(af, INNER_ROUTER[af], REMOTE[af]) / error(af) / quoted(HOST[af], 40000)
    r = b.send(Ether(src=MAC_HOST, dst=MAC_LB1) / sent, 1)
    want = left(af, error(af) / quoted(pool(af), at), **hops(af, 63))
    assert r.verdict == "forward" and r.out == [(0, bytes(want))]


@FAMILIES
@PROTOCOLS
def test_about_nothing_known(af: int, kind: str) -> None:
    """Another port, another remote: dropped where lbd's ports are quoted, and no address leaks."""
    b, at = opened(af, kind)
    for src, port, dst in ((pool(af), 20009 if at != 20009 else 20010, REMOTE[af]), (pool(af), at, INNER_ROUTER[af])):
        q = ip(af, src, dst) / ask(af, kind, port, payload=b"x" if kind != "tcp" else b"")
        r = b.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, FAR_ROUTER[af], pool(af)) / error(af) / q)
        assert r.verdict in ("drop", "kernel") and r.reason == "icmp_unmatched" and not r.out
    # from inside about a flow that is not there
    q = ip(af, REMOTE[af], HOST[af]) / reply(af, kind, 41000, payload=b"x" if kind != "tcp" else b"")
    r = b.send(Ether(src=MAC_HOST, dst=MAC_LB1) / ip(af, INNER_ROUTER[af], REMOTE[af]) / error(af) / q, 1)
    assert r.verdict in ("drop", "kernel") and r.reason == "icmp_unmatched" and not r.out


@FAMILIES
def test_a_blind_error_about_tcp(af: int) -> None:
    """A sequence number that the host can't have sent (RFC 5927)."""
    b, at = opened(af, "tcp")
    q = ip(af, pool(af), REMOTE[af]) / ask(af, "tcp", at, seq=500_000_000)
    r = b.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, FAR_ROUTER[af], pool(af)) / error(af) / q)
    assert (r.verdict, r.reason) == ("drop", "icmp_unmatched")


@FAMILIES
@PROTOCOLS
def test_an_error_changes_no_state(af: int, kind: str) -> None:
    """Nor does it prolong a flow or end it (RFC 5508 REQ-6)."""
    b, at = opened(af, kind)
    before = b.engine.conns()
    q = ip(af, pool(af), REMOTE[af]) / ask(af, kind, at)
    b.later(1)
    b.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, FAR_ROUTER[af], pool(af)) / error(af) / q)
    after = b.engine.conns()
    for record in (*before, *after):
        record.pop("expires_ms")
    assert before == after


@FAMILIES
def test_a_quoted_header_of_eight_bytes(af: int) -> None:
    """Of UDP and echo no more need be quoted."""
    for kind in ("udp", "icmp"):
        b, at = opened(af, kind)
        head = bytes(ip(af, pool(af), REMOTE[af]) / ask(af, kind, at, payload=b"x" * 40))
        n = 28 if af == 4 else 48
        r = b.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, FAR_ROUTER[af], pool(af)) / error(af) / Raw(head[:n]))
        assert r.verdict == "forward"
        got = Ether(r.out[0][1])
        inner = bytes(got[ICMP if af == 4 else ICMPv6DestUnreach].payload)
        back = IP(inner) if af == 4 else IPv6(inner)
        assert (back.src, back.dst) == (HOST[af], REMOTE[af])
        whole = bytes(ip(af, HOST[af], REMOTE[af]) / ask(af, kind, 40000, payload=b"x" * 40))
        assert inner == whole[:n]


