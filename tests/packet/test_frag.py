"""Fragments: what is put together from those that leave is the whole datagram, rewritten, in every mode and order; what never comes
together is dropped, counted and bounded. What is expected is built by scapy.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet import fragment
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, Balancer, ip, packed, server, server_mac
from tests.packet.fragment import ORDERS, from_addresses, from_client, from_server, payload, segment, send, together

MODES = {"fullnat": shm.MODE_FULLNAT, "nat": shm.MODE_NAT, "dr": shm.MODE_DR, "tunnel": shm.MODE_TUNNEL}
MODE = pytest.mark.parametrize("mode", MODES)
TWO_WAYS = pytest.mark.parametrize("mode", ["fullnat", "nat"])
FAMILIES = pytest.mark.parametrize("af", [4, 6])
PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])
ORDER = pytest.mark.parametrize("order", ORDERS)
SIZE = 2900  # of a datagram: 7 fragments


def balancer(mode: str = "fullnat", **more: object) -> Balancer:
    return Balancer(mode=MODES[mode], **{"servers": 1, **more})  # type: ignore[arg-type]


def port_of(mode: str) -> int:
    return 8080 if mode in ("fullnat", "nat") else 80


def opened(b: Balancer, mode: str, af: int, proto: str) -> int:
    """A connection from port 40000, TCP's shaken hands on; the port that the real server sees."""
    head = Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af])
    first = TCP(sport=40000, dport=80, flags="S", seq=1000) if proto == "tcp" else UDP(sport=40000, dport=80)
    [(_, out)] = b.send(bytes(head / first)).out
    port: int = fragment.inner(out, mode).payload.sport
    if proto == "tcp" and mode in ("fullnat", "nat"):
        l4 = TCP(sport=8080, dport=port, flags="SA", seq=5000, ack=1001)
        back = Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), LIP[af] if mode == "fullnat" else CLIENT[af]) / l4
        assert b.send(bytes(back), 1).verdict == "forward"
    if proto == "tcp":
        b.send(bytes(head / TCP(sport=40000, dport=80, flags="A", seq=1001, ack=5001)))
    return port


@MODE
@FAMILIES
@PROTOS
@ORDER
def test_from_a_client(mode: str, af: int, proto: str, order: str) -> None:
    b = balancer(mode)
    port = opened(b, mode, af, proto)
    cut = from_client(af, segment(proto, 40000, 80, payload(SIZE)))
    assert len(cut) >= 6
    frames = fragment.frames_out(send(b, ORDERS[order](cut)))
    assert len(frames) == len(ORDERS[order](cut))
    whole = together(frames, mode)
    l4 = segment(proto, port, port_of(mode), payload(SIZE))
    assert from_addresses(whole) == fragment.expected(af, *fragment.addresses_of(mode, af), l4)
    assert b.engine.counters()["frag_forwarded"] == len(frames) and b.engine.used()["held"] == 0
    b.audit()


@TWO_WAYS
@FAMILIES
@PROTOS
@ORDER
def test_from_a_real_server(mode: str, af: int, proto: str, order: str) -> None:
    b = balancer(mode)
    port = opened(b, mode, af, proto)
    l4 = segment(proto, 8080, port, payload(SIZE), seq=5001, ack=1001)
    cut = from_server(af, l4, LIP[af] if mode == "fullnat" else CLIENT[af])
    frames = fragment.frames_out(send(b, ORDERS[order](cut), 1))
    assert len(frames) == len(ORDERS[order](cut))
    want = segment(proto, 80, 40000, payload(SIZE), seq=5001, ack=1001)
    assert from_addresses(together(frames)) == fragment.expected(af, VIP[af], CLIENT[af], want)
    b.audit()


@MODE
@FAMILIES
@pytest.mark.parametrize("order", ["in order", "reversed"])
def test_a_datagram_opens_its_connection(mode: str, af: int, order: str) -> None:
    b = balancer(mode)
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)))
    frames = fragment.frames_out(send(b, ORDERS[order](cut)))
    whole = together(frames, mode)
    [c] = b.engine.conns()
    port = c["local"][1] if mode == "fullnat" else 40000
    l4 = segment("udp", port, port_of(mode), payload(SIZE))
    assert from_addresses(whole) == fragment.expected(af, *fragment.addresses_of(mode, af), l4)
    stats = b.engine.service_stats(1 if af == 4 else 3)
    assert stats["conns"] == 1 and stats["in_pkts"] == len(cut)
    assert stats["in_bytes"] == sum(len(bytes(p)) - 14 for p in cut)
    b.audit()


@FAMILIES
@pytest.mark.parametrize("cross", [False, True])
def test_each_in_a_tunnel_packet_of_its_own(af: int, cross: bool) -> None:
    """Their outer identifications differ, since a router may fragment the outer packets."""
    b = balancer("tunnel", cross=cross)
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)))
    frames = fragment.frames_out(send(b, cut))
    outer = [Ether(f).payload for f in frames]
    if not cross and af == 4:
        assert len({p.id for p in outer}) == len(cut) and {p.flags.DF for p in outer} == {False}
    for frame, sent in zip(frames, cut, strict=True):
        inside, wanted = fragment.inner(frame, "tunnel"), sent.payload.copy()
        if af == 4:
            wanted.ttl -= 1
            del wanted.chksum
        else:
            wanted.hlim -= 1
        assert bytes(inside) == bytes(wanted)
    b.audit()


@TWO_WAYS
@FAMILIES
def test_many_interleaved(mode: str, af: int) -> None:
    """Of ten clients with the same identification: what leaves bears ten."""
    b = balancer(mode)
    clients = [f"192.0.2.{100 + n}" if af == 4 else f"2001:db8:1::{100 + n:x}" for n in range(10)]
    cuts = [from_client(af, segment("udp", 40000, 80, payload(SIZE, n)), client=c) for n, c in enumerate(clients)]
    mixed = [p for column in zip(*cuts, strict=True) for p in column]
    by_ident: dict[int, list[bytes]] = {}
    for frame in fragment.frames_out(send(b, mixed)):
        p = fragment.inner(frame, mode)
        by_ident.setdefault(p.id if af == 4 else p[IPv6ExtHdrFragment].id, []).append(frame)
    assert len(by_ident) == 10
    got = sorted(bytes(together(frames)[Raw])[-SIZE:] for frames in by_ident.values())
    assert got == sorted(payload(SIZE, n) for n in range(10))
    b.audit()


@FAMILIES
def test_identifications_used_again(af: int) -> None:
    """By another flow of the same client, at once: the first fragment tells where the rest belongs."""
    b = balancer()
    for n in range(20):
        frames = fragment.frames_out(send(b, from_client(af, segment("udp", 40000 + n, 80, payload(SIZE, n)))))
        [c] = [c for c in b.engine.conns() if c["client"][1] == 40000 + n]
        l4 = segment("udp", c["local"][1], 8080, payload(SIZE, n))
        assert from_addresses(together(frames)) == fragment.expected(af, LIP[af], server(af, 1), l4)


@FAMILIES
@pytest.mark.parametrize("order", ["in order", "reversed", "first last"])
def test_in_one_burst(af: int, order: str) -> None:
    b = balancer()
    cut = ORDERS[order](from_client(af, segment("udp", 40000, 80, payload(SIZE))))
    results = [r for r in b.burst([bytes(p) for p in cut]) if r.verdict != "hold"]
    results += [r for _, _, r in fragment.freed(b)]
    frames = fragment.frames_out(results)
    [c] = b.engine.conns()
    l4 = segment("udp", c["local"][1], 8080, payload(SIZE))
    assert from_addresses(together(frames)) == fragment.expected(af, LIP[af], server(af, 1), l4)
    b.audit()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(list(MODES)), st.sampled_from([4, 6]), st.integers(0, 4000), st.integers(1, 60))
def test_any_order(data: st.DataObject, mode: str, af: int, size: int, step: int) -> None:
    b = balancer(mode)
    parts = [from_client(af, segment("udp", 40000 + n, 80, payload(size, n)), 8 * step + 32, ident=n) for n in range(2)]
    if sum(map(len, parts)) > 60:
        return
    frames = fragment.frames_out(send(b, data.draw(st.permutations(parts[0] + parts[1]))))
    ports = {c["client"][1]: c["local"][1] if mode == "fullnat" else c["client"][1] for c in b.engine.conns()}
    seen = {}
    for frame in frames:
        p = fragment.inner(frame, mode)
        ident = p.id if af == 4 else (p[IPv6ExtHdrFragment].id if IPv6ExtHdrFragment in p else bytes(p))
        seen.setdefault(ident, []).append(frame)
    wanted = sorted(
        fragment.expected(af, *fragment.addresses_of(mode, af), segment("udp", ports[40000 + n], port_of(mode), payload(size, n)))
        for n in range(2)
    )
    if len(parts[0]) > 1:
        assert sorted(from_addresses(together(f, mode)) for f in seen.values()) == wanted
    b.audit()


@FAMILIES
@PROTOS
def test_the_first_one_alone_moves_the_state(af: int, proto: str) -> None:
    """A later fragment is not looked into: bytes that look like a RST are data."""
    b = balancer()
    opened(b, "fullnat", af, proto)
    cut = from_client(af, segment(proto, 40000, 80, b"\x00\x50" * 8 + bytes([0x50, 0x04]) * 1200))
    b.later(3)
    send(b, cut)
    [c] = b.engine.conns()
    assert c["state"] == ("ESTABLISHED" if proto == "tcp" else "UDP")
    assert c["expires_ms"] == (900000 if proto == "tcp" else 300000)
    again = from_client(af, segment(proto, 40000, 80, payload(SIZE)), ident=78)
    send(b, again[:1])
    b.later(5)
    assert b.engine.conns()[0]["expires_ms"] == (895000 if proto == "tcp" else 295000)
    send(b, again[1:2])
    assert b.engine.conns()[0]["expires_ms"] == (900000 if proto == "tcp" else 300000), "but it proves that somebody is there"


# --- what never comes together -------------------------------------------------------------------------------------------

@FAMILIES
def test_without_a_first_one(af: int) -> None:
    b = balancer()
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)))
    assert send(b, cut[1:]) == [] and b.engine.used()["held"] == len(cut) - 1
    b.audit()
    b.later(29.9)
    assert b.engine.used()["held"] == len(cut) - 1
    b.later(0.2)
    counters = b.engine.counters()
    assert b.engine.used()["held"] == 0
    assert counters["drops"] == {"frag_timeout": len(cut) - 1} and counters["frag_expired"] == 1
    assert [r.verdict for r in send(b, cut[:1])] == ["forward"], "and a late first one begins anew"
    b.audit()


@FAMILIES
def test_the_timeout_is_a_setting(af: int) -> None:
    b = balancer()
    b.do(shm.setting(shm.SET_FRAG_TIMEOUT, 2000, 1))
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)))
    send(b, cut[1:])
    b.later(2.1)
    assert b.engine.counters()["drops"] == {"frag_timeout": len(cut) - 1}
    assert not b.engine.apply(shm.setting(shm.SET_FRAG_TIMEOUT, 1 << 40, 1))


@FAMILIES
def test_one_missing(af: int) -> None:
    """The others went on; the place is free again after the timeout, and counted."""
    b = balancer()
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)))
    assert len(fragment.frames_out(send(b, cut[:2] + cut[3:]))) == len(cut) - 1
    b.later(31)
    assert b.engine.counters()["frag_expired"] == 1 and b.engine.counters()["drops"] == {}
    assert [r.verdict for r in send(b, cut[2:3])] == []
    assert b.engine.used()["held"] == 1


@FAMILIES
def test_complete_ones_leave_no_trace(af: int) -> None:
    b = balancer(frags=(4, 64))
    for n in range(50):
        cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)), ident=n)
        fragment.frames_out(send(b, cut[::-1] if n % 2 else cut))
        b.later(0.001)
    b.later(60)
    counters = b.engine.counters()
    assert counters["frag_expired"] == counters["frag_evicted"] == 0 and counters["drops"] == {}


@FAMILIES
def test_a_refused_first_one(af: int) -> None:
    """No real server: the first one is dropped for that, and the rest with it."""
    b = balancer()
    for dest in range(4):
        b.do(shm.dest_set(dest, 2, af=4 if dest < 2 else 6, addr=packed(server(4 if dest < 2 else 6, 1)), port=8080, svc=dest,
                          weight=0))  # fmt: skip
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)))
    reasons = [r.reason for r in send(b, cut[2:] + cut[:2])]
    assert reasons == ["no_backend"] + ["frag_orphan"] * (len(cut) - 1)
    b.audit()


@FAMILIES
def test_a_connection_that_is_gone(af: int) -> None:
    b = balancer()
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)))
    send(b, cut[:2])
    b.engine.recover(b.now)                     # (its connections are there, datagrams under way are not)
    assert [r.reason for r in send(b, cut[2:3])] == ["none"], "found by its tuple"
    b.do(shm.setting(shm.SET_TIMEOUT_BASE + 9, 1000, 1))
    b.later(5)
    assert b.engine.conns() == []
    assert [r.reason for r in send(b, cut[3:4])] == ["frag_orphan"]


@FAMILIES
@pytest.mark.parametrize("dport", [81, 53])
def test_the_hosts_own(af: int, dport: int) -> None:
    """To a port of the VIP that no service has: the kernel's, all of it, in any order."""
    b = balancer()
    cut = from_client(af, segment("udp", 40000, dport, payload(SIZE)))
    results = send(b, cut[1:] + cut[:1])
    assert [(r.verdict, r.reason) for r in results] == [("kernel", "not_for_us")] * len(cut)
    results = send(b, from_client(af, segment("udp", 40000, dport, payload(SIZE)), ident=78))
    assert {r.verdict for r in results} == {"kernel"}
    b.audit()


@FAMILIES
@MODE
def test_not_lbds(mode: str, af: int) -> None:
    """ICMP in fragments, and what goes elsewhere, is the kernel's."""
    b = balancer(mode)
    echo = ICMP() if af == 4 else ICMPv6EchoRequest()
    ping = fragment.cut(Ether(src=MAC_CLIENT, dst=MAC_LB0), fragment.built(ip(af, CLIENT[af], VIP[af]) / echo / Raw(payload(SIZE))))
    assert {r.verdict for r in send(b, ping)} == {"kernel"}
    other = "203.0.113.9" if af == 4 else "2001:db8:9::9"
    whole = ip(af, CLIENT[af], other) / segment("udp", 1, 2, payload(SIZE))
    link = Ether(src=MAC_CLIENT, dst=MAC_LB0)
    assert {r.verdict for r in send(b, fragment.cut(link, fragment.built(whole)))} == {"kernel"}
    more = send(b, fragment.cut(link, fragment.built(whole), ident=78)[1:2])
    assert [r.verdict for r in more] == ([] if mode == "nat" else ["kernel"]), "with nat it may be an answer, and waits"
    b.audit()


@FAMILIES
def test_tiny_and_overwriting(af: int) -> None:
    b = balancer()
    opened(b, "fullnat", af, "tcp")
    cut = from_client(af, segment("tcp", 40000, 80, payload(SIZE)), size=16)
    assert [r.reason for r in send(b, cut[:1])] == ["frag_tiny"]
    over = from_client(af, segment("tcp", 40000, 80, payload(SIZE)), size=8)
    assert [r.reason for r in send(b, over[1:2])] == ["frag_tiny"]
    assert [r.reason for r in send(b, from_client(af, segment("udp", 40000, 80, payload(64)), size=8)[:2])] == ["none"] * 2
    b.audit()


@FAMILIES
def test_no_error_about_a_later_one(af: int) -> None:
    """TTL or MTU: the first one is answered, later ones are dropped (RFC 1122 §3.2.2)."""
    b = balancer(mtu=(1500, 400))
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)), size=360 if af == 4 else 320)
    cut += from_client(af, segment("udp", 40000, 80, payload(SIZE)), size=600, ident=5)
    results = send(b, cut)
    small = sum(p.verdict == "forward" for p in results)
    assert small and [(r.verdict, r.reason) for r in results[small:]] == [("consume", "mtu_exceeded")] + [
        ("drop", "frag_orphan")
    ] * (len(results) - small - 1)
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)), size=320, ident=6)
    send(b, cut[:1])
    for p in cut[1:]:
        if af == 4:
            p[IP].ttl = 1
            del p[IP].chksum
        else:
            p[IPv6].hlim = 1
    assert {(r.verdict, r.reason) for r in send(b, cut[1:])} == {("drop", "ttl_expired")}
    b.audit()


# --- bounds --------------------------------------------------------------------------------------------------------------

def lone(af: int, n: int) -> bytes:
    """A later fragment of a datagram of its own."""
    return bytes(from_client(af, segment("udp", 40000, 80, payload(600)), ident=n)[1])


@FAMILIES
def test_table_full(af: int) -> None:
    b = balancer(frags=(16, 64))
    early = from_client(af, segment("udp", 40000, 80, payload(SIZE)), ident=9999)
    send(b, early[1:2])
    for n in range(15):
        assert send(b, [lone(af, n)]) == []
    b.later(0.01)
    assert b.engine.used()["held"] == 16 and b.engine.counters()["frag_evicted"] == 0
    send(b, [lone(af, 100)])
    counters = b.engine.counters()
    assert counters["frag_evicted"] == 1 and counters["drops"] == {"frag_table_full": 1}, "the oldest"
    assert len(send(b, early[:1])) == 1, "its fragment is not there any more"
    b.audit()


@FAMILIES
def test_room_for_held_ones(af: int) -> None:
    b = balancer(frags=(256, 8))
    for n in range(40):
        assert send(b, [lone(af, n)]) == []
        b.later(0.001)
    assert b.engine.used()["held"] == 8
    assert b.engine.counters()["drops"] == {"frag_table_full": 32}
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)), size=32, ident=5000)
    for p in cut[1:90]:
        send(b, [p])
    assert b.engine.used()["held"] <= 8, "one alone gets no more than there is"
    b.audit()


@FAMILIES
def test_of_one_datagram_so_many(af: int) -> None:
    b = balancer()
    cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)), size=32)
    assert len(cut) > 80
    assert {r.reason for r in send(b, cut[1:])} == {"frag_table_full"}
    assert b.engine.used()["held"] == 64
    b.audit()


@FAMILIES
def test_storm(af: int) -> None:
    """Never completed ones, ten times what the table holds; datagrams among them, reversed ones too, get through."""
    b = balancer()
    frame = bytearray(lone(af, 1))
    at = 14 + (4 if af == 4 else 44)
    client = "192.0.2.200" if af == 4 else "2001:db8:1::200"
    for n in range(80_000):
        frame[at + (1 if af == 4 else 3)], frame[at + (0 if af == 4 else 2)] = n & 255, n >> 8 & 255
        frame[14 + (15 if af == 4 else 23)] = n >> 16 & 3      # client
        if af == 4:
            frame[24:26] = b"\0\0"
            frame[24:26] = checksum(bytes(frame[14:34]))
        b.burst([bytes(frame)])
        if n % 8000 == 7999:
            cut = from_client(af, segment("udp", 40000, 80, payload(SIZE, n & 7)), ident=n & 0xFFFF, client=client)
            frames = fragment.frames_out(send(b, cut[::-1] if n & 1 else cut))
            assert bytes(together(frames)[UDP].payload) == payload(SIZE, n & 7)
            b.later(0.05)
    counters = b.engine.counters()
    assert set(counters["drops"]) == {"frag_table_full"} and b.engine.used()["held"] <= 512
    b.later(60)
    assert b.engine.used()["held"] == 0
    b.audit()


def checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


# --- IPv6 ----------------------------------------------------------------------------------------------------------------

def test_atomic_fragments() -> None:
    """RFC 6946: a whole packet, whatever else has its identification."""
    b = balancer()
    head = Ether(src=MAC_CLIENT, dst=MAC_LB0) / IPv6(src=CLIENT[6], dst=VIP[6])
    cut = from_client(6, segment("udp", 40000, 80, payload(SIZE)), ident=5)
    send(b, cut[:1])
    atom = head / IPv6ExtHdrFragment(id=5) / UDP(sport=40001, dport=80) / Raw(b"whole")
    [(_, out)] = b.send(bytes(atom)).out
    got = Ether(out)
    assert got[IPv6].dst == server(6, 1) and got[UDP].dport == 8080 and got[IPv6ExtHdrFragment].id == 5
    right = got.copy()
    del right[UDP].chksum
    assert bytes(right) == bytes(got)
    assert len(fragment.frames_out(send(b, cut[1:]))) == len(cut) - 1


@pytest.mark.parametrize("where", ["before", "behind"])
def test_extension_headers(where: str) -> None:
    b = balancer()
    data = payload(SIZE)
    option = IPv6ExtHdrDestOpt()
    whole = IPv6(src=CLIENT[6], dst=VIP[6]) / segment("udp", 40000, 80, data)
    l4 = bytes(fragment.built(whole)[UDP])
    if where == "before":
        parts = [IPv6(src=CLIENT[6], dst=VIP[6]) / option / IPv6ExtHdrFragment(id=5, offset=o // 8, m=int(o + 800 < len(l4)), nh=17)
                 / Raw(l4[o : o + 800]) for o in range(0, len(l4), 800)]  # fmt: skip
    else:
        l4 = bytes(IPv6ExtHdrDestOpt(nh=17)) + l4
        parts = [IPv6(src=CLIENT[6], dst=VIP[6]) / IPv6ExtHdrFragment(id=5, offset=o // 8, m=int(o + 800 < len(l4)), nh=60)
                 / Raw(l4[o : o + 800]) for o in range(0, len(l4), 800)]  # fmt: skip
    for order in (parts, parts[::-1]):
        frames = fragment.frames_out(send(b, [Ether(src=MAC_CLIENT, dst=MAC_LB0) / p for p in order]))
        got = together(frames)
        assert bytes(got[UDP].payload) == data and got[UDP].dport == 8080
        right = got.copy()
        del right[UDP].chksum
        assert bytes(right) == bytes(got)


def test_an_error_about_a_first_fragment() -> None:
    """A router on the client's side has a smaller MTU: the real server hears of it. (Later ones are as long.)"""
    b = balancer()
    port = opened(b, "fullnat", 6, "udp")
    [sent, *_] = fragment.frames_out(send(b, from_server(6, segment("udp", 8080, port, payload(SIZE)), LIP[6], size=1200), 1))
    error = Ether(src=MAC_CLIENT, dst=MAC_LB0) / IPv6(src="2001:db8:1::fe", dst=VIP[6]) / ICMPv6PacketTooBig(mtu=1280)
    r = b.send(bytes(error / Raw(sent[14 : 14 + 1200])))
    assert r.verdict == "forward", r
    got = Ether(r.out[0][1])
    assert got[ICMPv6PacketTooBig].mtu == 1280 and got[IPv6].dst == server(6, 1)
    quoted = IPv6(bytes(got[ICMPv6PacketTooBig].payload))
    assert (quoted.src, quoted.dst, quoted[UDP].sport, quoted[UDP].dport) == (server(6, 1), LIP[6], 8080, port)
    assert quoted[IPv6ExtHdrFragment].m == 1


def checked(p: Packet) -> Packet:
    del p[IP].chksum
    return IP(bytes(p))


def test_options_of_ipv4() -> None:
    """Fragments' headers may be longer than twenty bytes, and of different length: options that are not copied."""
    b = balancer()
    cut = from_client(4, segment("udp", 40000, 80, payload(SIZE)))
    cut[0][IP].options = b"\x01" * 8
    cut[2][IP].options = b"\x01" * 4
    for p in (cut[0], cut[2]):
        del p[IP].chksum, p[IP].ihl, p[IP].len
    frames = fragment.frames_out(send(b, cut))
    for frame in frames:
        p = Ether(frame)[IP]
        assert bytes(checked(p.copy())) == bytes(p)
    data = b"".join(bytes(Ether(f)[IP].payload) for f in frames)
    assert data[8:] == payload(SIZE)
