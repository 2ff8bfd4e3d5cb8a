"""Tunnels that end here: what is inside for a service is balanced as if it had come by itself; the rest stays the kernel's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import (
    CLIENT,
    LIP,
    MAC_CLIENT,
    MAC_LB0,
    MAC_LB1,
    OWN,
    VIP,
    Balancer,
    checksums_right,
    ip,
    mac,
    packed,
    server,
    server_mac,
)
from tests.packet.cluster import Cluster
from tests.packet.test_mode import fields, segment

PEER = {4: "198.51.100.9", 6: "2001:db8:f::9"}
END = {4: OWN[0][0], 6: OWN[0][1]}
ROUTER_MAC = "02:00:00:00:00:99"
FAMILIES = pytest.mark.parametrize("af", [4, 6])
OUTER = pytest.mark.parametrize("oaf", [4, 6], ids=["outer 4", "outer 6"])
KINDS = {"ipip": shm.TUNNEL_IPIP, "gre": shm.TUNNEL_GRE, "gre+csum": shm.TUNNEL_GRE}
KIND = pytest.mark.parametrize("kind", KINDS)
MODES = [shm.MODE_FULLNAT, shm.MODE_NAT, shm.MODE_DR, shm.MODE_TUNNEL]


def give_ends(b: Balancer, remote: bool = False) -> None:
    for af in (4, 6):
        for kind in (shm.TUNNEL_IPIP, shm.TUNNEL_GRE):
            b.do(shm.tunnel_set(1, af=af, kind=kind, local=packed(END[af]), remote=packed(PEER[af]) if remote else b""))
        # the way to the client: not by the MAC that tunnel packets come from
        prefix, plen = ("192.0.2.0", 24) if af == 4 else ("2001:db8:1::", 64)
        b.do(shm.route_set(1, af=af, prefix=packed(prefix), plen=plen, iface=0))
        b.do(shm.neigh_set(1, iface=0, af=af, addr=packed(CLIENT[af]), mac=mac(MAC_CLIENT)))


def balancer(**more: object) -> Balancer:
    b = Balancer(**{"servers": 1, **more})  # type: ignore[arg-type]
    give_ends(b)
    return b


def tunnelled(kind: str, oaf: int, inner: Packet, *, tos: int = 0, source: str = "", tag: bool = False) -> Packet:
    af = 4 if isinstance(inner, IP) else 6
    number = 47 if kind != "ipip" else 4 if af == 4 else 41
    outer = ip(oaf, source or PEER[oaf], END[oaf], **fields(oaf, tos), **{"proto" if oaf == 4 else "nh": number})
    link = Ether(src=ROUTER_MAC, dst=MAC_LB0) / Dot1Q(vlan=7) if tag else Ether(src=ROUTER_MAC, dst=MAC_LB0)
    if kind == "ipip":
        return link / outer / Raw(bytes(inner))
    return link / outer / GRE(proto=0x0800 if af == 4 else 0x86DD, chksum_present=int("csum" in kind)) / Raw(bytes(inner))


def inside(af: int, l4: Packet, **more: int) -> Packet:
    return ip(af, CLIENT[af], VIP[af], **fields(af, **more)) / l4


def plain(af: int, l4: Packet, **more: int) -> Packet:
    return Ether(src=MAC_CLIENT, dst=MAC_LB0) / inside(af, l4, **more)


@KIND
@OUTER
@FAMILIES
@pytest.mark.parametrize("mode", MODES, ids=["fullnat", "nat", "dr", "tunnel"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_as_if_it_had_come_by_itself(kind: str, oaf: int, af: int, mode: int, proto: str) -> None:
    a, b = balancer(mode=mode), balancer(mode=mode)
    for tag in (False, True):
        l4 = segment(proto, "S", 40000 + tag, 80, b"" if proto == "tcp" else b"question")
        want, got = a.send(plain(af, l4, tos=0x28)), b.send(tunnelled(kind, oaf, inside(af, l4, tos=0x28), tag=tag))
        assert (got.verdict, got.out, got.svc, got.dest) == ("forward", want.out, want.svc, want.dest)
        assert checksums_right(got.out[0][1]) or mode == shm.MODE_TUNNEL
    b.audit()


@KIND
@OUTER
@FAMILIES
def test_answers_go_by_route(kind: str, oaf: int, af: int) -> None:
    """Not to the MAC that the tunnel's packets came from; and again so after routes changed."""
    b = balancer()
    out = Ether(b.send(tunnelled(kind, oaf, inside(af, segment("tcp", "S", 40000, 80)))).out[0][1])
    for n in range(2):
        answer = Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), LIP[af]) / TCP(
            sport=8080, dport=out[TCP].sport, flags="SA", seq=5000, ack=1001)  # fmt: skip
        r = b.send(answer, 1)
        assert (r.verdict, Ether(r.out[0][1]).dst) == ("forward", MAC_CLIENT), n
        b.do(shm.route_set(2 + n, af=4, prefix=packed("203.0.113.0"), plen=24, iface=1))
    assert b.send(plain(af, segment("tcp", "A", 40000, 80, seq=1001, ack=5001))).verdict == "forward", "and past the tunnel"
    b.audit()


@KIND
@OUTER
@FAMILIES
def test_the_rest_is_the_kernels(kind: str, oaf: int, af: int) -> None:
    b = balancer()
    for inner in (inside(af, TCP(dport=22)), ip(af, CLIENT[af], "203.0.113.1" if af == 4 else "2001:db8:9::1") / UDP(dport=80)):
        assert b.send(tunnelled(kind, oaf, inner)).verdict == "kernel"
    once = tunnelled(kind, oaf, inside(af, segment("tcp", "S", 1, 80)))
    nested = tunnelled(kind, oaf, once[IP if oaf == 4 else IPv6])
    assert b.send(nested).verdict == "kernel"
    assert b.engine.conns() == []


@KIND
@OUTER
def test_remote(kind: str, oaf: int) -> None:
    b = Balancer(servers=1)
    give_ends(b, remote=True)
    syn = inside(4, segment("tcp", "S", 1, 80))
    assert b.send(tunnelled(kind, oaf, syn)).verdict == "forward"
    assert b.send(tunnelled(kind, oaf, syn, source="198.51.100.8" if oaf == 4 else "2001:db8:f::8")).verdict == "kernel"
    b.do(shm.tunnel_del(2, af=oaf, kind=KINDS[kind], local=packed(END[oaf]), remote=packed(PEER[oaf])))
    assert b.send(tunnelled(kind, oaf, syn)).verdict == "kernel"


def test_sweep_and_room() -> None:
    b = balancer()
    b.do(shm.sweep(7, 9))
    assert b.send(tunnelled("ipip", 4, inside(4, segment("tcp", "S", 1, 80)))).verdict == "kernel"
    for n in range(64):
        b.do(shm.tunnel_set(9, af=4, kind=0, local=bytes([10, 9, 9, n])))
    assert not b.engine.apply(shm.tunnel_set(9, af=4, kind=0, local=bytes([10, 9, 8, 1])))
    b.do(shm.tunnel_set(9, af=4, kind=0, local=bytes([10, 9, 9, 5])))


@KIND
@OUTER
@FAMILIES
def test_every_prefix(kind: str, oaf: int, af: int) -> None:
    b = balancer()
    frame = bytes(tunnelled(kind, oaf, inside(af, segment("udp", "", 40000, 80, b"question"))))
    for size in range(14, len(frame)):
        r = b.send(frame[:size])
        assert r.verdict in ("drop", "kernel"), size
    # truncated inside, whole outside
    whole = bytes(inside(af, segment("udp", "", 40000, 80, b"question")))
    reasons = set()
    for size in range(1, len(whole)):
        cut = tunnelled(kind, oaf, inside(af, segment("udp", "", 40000, 80)))
        cut.lastlayer().load = whole[:size]
        r = b.send(cut)
        assert r.verdict == "drop", size
        reasons.add(r.reason)
    assert reasons == {"tunnel_malformed"}
    b.audit()


def test_damaged_gre() -> None:
    b = balancer()
    frame = bytearray(bytes(tunnelled("gre+csum", 4, inside(4, segment("tcp", "S", 1, 80)))))
    frame[-1] ^= 1
    r = b.send(bytes(frame))
    assert (r.verdict, r.reason) == ("drop", "bad_checksum")
    keyed = Ether(src=ROUTER_MAC, dst=MAC_LB0) / IP(src=PEER[4], dst=END[4], proto=47) / GRE(key_present=1, key=5)
    assert b.send(keyed / inside(4, segment("tcp", "S", 1, 80))).verdict == "kernel"


# RFC 6040, figure 4: by inner, then outer: Not-ECT, ECT(0) = 2, ECT(1) = 1, CE = 3; None: dropped
ECN = {0: {0: 0, 2: 0, 1: 0, 3: None}, 2: {0: 2, 2: 2, 1: 1, 3: 3}, 1: {0: 1, 2: 1, 1: 1, 3: 3}, 3: {0: 3, 2: 3, 1: 3, 3: 3}}


@OUTER
@FAMILIES
@pytest.mark.parametrize("inner", ECN)
@pytest.mark.parametrize("outer", [0, 1, 2, 3])
def test_congestion_marks(oaf: int, af: int, inner: int, outer: int) -> None:
    b = balancer()
    r = b.send(tunnelled("gre", oaf, inside(af, segment("tcp", "S", 1, 80), tos=0xB8 | inner), tos=outer))
    want = ECN[inner][outer]
    if want is None:
        assert (r.verdict, r.reason) == ("drop", "tunnel_congested")
        return
    p = Ether(r.out[0][1])
    assert (p[IP].tos if af == 4 else p[IPv6].tc) == 0xB8 | want and checksums_right(r.out[0][1])


@OUTER
@FAMILIES
def test_errors_go_by_route(oaf: int, af: int) -> None:
    """TTL used up, too big: to the client, as if its packet had come by itself."""
    a, b = balancer(mtu=(1500, 1300)), balancer(mtu=(1500, 1300))
    for l4, more in ((segment("tcp", "S", 1, 80), {"hops": 1}), (segment("udp", "", 1, 80, b"x" * 1380), {})):
        want, got = a.send(plain(af, l4, **more)), b.send(tunnelled("ipip", oaf, inside(af, l4, **more)))
        assert (got.verdict, got.reason, got.out) == (want.verdict, want.reason, want.out) and got.verdict == "consume"
    b.audit()


@OUTER
@FAMILIES
def test_icmp_errors_inside(oaf: int, af: int) -> None:
    """About an answer of lbd's: translated to the real server, as without a tunnel."""
    seen = []
    for wrap in (False, True):
        b = balancer()
        out = Ether(b.send(plain(af, segment("tcp", "S", 40000, 80))).out[0][1])
        b.send(Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), LIP[af])
               / TCP(sport=8080, dport=out[TCP].sport, flags="SA", seq=5000, ack=1001), 1)  # fmt: skip
        quoted = ip(af, VIP[af], CLIENT[af], **fields(af)) / TCP(sport=80, dport=40000, flags="A", seq=5001, ack=1001)
        unreachable = ICMP(type=3, code=4, nexthopmtu=1400) if af == 4 else ICMPv6PacketTooBig(mtu=1400)
        error = inside(af, unreachable / quoted)
        seen.append(b.send(tunnelled("gre", oaf, error) if wrap else Ether(src=MAC_CLIENT, dst=MAC_LB0) / error))
    assert seen[0].verdict == seen[1].verdict == "forward" and seen[0].out == seen[1].out


def test_encapsulation_limit() -> None:
    """Linux's ip6tnl puts a destination option before what it carries."""
    b = balancer()
    inner = inside(6, segment("tcp", "S", 1, 80))
    outer = IPv6(src=PEER[6], dst=END[6]) / IPv6ExtHdrDestOpt(nh=41, options=[])
    r = b.send(Ether(src=ROUTER_MAC, dst=MAC_LB0) / outer / Raw(bytes(inner)))
    assert r.verdict == "forward"


@KIND
@OUTER
@FAMILIES
@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers(kind: str, oaf: int, af: int, workers: int) -> None:
    """The tunnel's packets come to one worker by RSS; each flow is its owner's."""
    c = Cluster(workers, servers=1)
    for m in c.members:
        give_ends(m)
    for n in range(3000, 3030):
        assert c.send(tunnelled(kind, oaf, inside(af, segment("tcp", "S", n, 80)))).verdict == "forward"
    assert len({r["worker"] for r in c.conns()}) == workers and max(c.hops) == 1
    assert sum(packets for m in c.members for packets, _, _ in m.engine.tunnel_stats()) == 30, "by the worker that it came to"
    c.audit()


@KIND
@OUTER
@FAMILIES
def test_counts(kind: str, oaf: int, af: int) -> None:
    """Of the tunnel that it came in: what was taken out, its bytes without the outer header, and what was refused."""
    b = balancer()
    place = 2 * (oaf == 6) + (kind != "ipip")  # in the order of give_ends
    syn = inside(af, segment("tcp", "S", 1, 80))
    assert b.send(tunnelled(kind, oaf, syn)).verdict == "forward"
    assert b.send(tunnelled(kind, oaf, inside(af, segment("tcp", "A", 9, 80)))).reason == "no_state", "taken out all the same"
    cut = tunnelled(kind, oaf, syn)
    cut.lastlayer().load = bytes(syn)[:30]
    assert b.send(cut).reason == "tunnel_malformed"
    refused = 1
    if "csum" in kind:
        damaged = bytearray(bytes(tunnelled(kind, oaf, syn)))
        damaged[-1] ^= 1
        assert b.send(bytes(damaged)).reason == "bad_checksum"
        refused += 1
    want = [(0, 0, 0)] * 4
    want[place] = (2, 2 * len(syn), refused)
    assert b.engine.tunnel_stats() == want
    # taken away, and there again: it begins anew
    end = {"af": oaf, "kind": KINDS[kind], "local": packed(END[oaf])}
    b.do(shm.tunnel_set(2, **end))
    assert b.engine.tunnel_stats() == want
    b.do(shm.tunnel_del(3, **end))
    b.do(shm.tunnel_set(4, **end))
    assert b.engine.tunnel_stats() == [(0, 0, 0)] * 4


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), oaf=st.sampled_from([4, 6]), af=st.sampled_from([4, 6]),
       flips=st.lists(st.tuples(st.integers(14, 200), st.integers(0, 7)), min_size=1, max_size=5))  # fmt: skip
def test_mutations(kind: str, oaf: int, af: int, flips: list[tuple[int, int]]) -> None:
    b = balancer()
    frame = bytearray(bytes(tunnelled(kind, oaf, inside(af, segment("tcp", "S", 1, 80, b"data")))))
    for at, bit in flips:
        frame[at % len(frame)] ^= 1 << bit
    r = b.send(bytes(frame))
    assert r.verdict in ("forward", "drop", "kernel", "consume", "hold"), "the inner packet may have become a fragment"
    b.audit()
