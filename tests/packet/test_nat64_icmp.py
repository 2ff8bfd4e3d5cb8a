"""ICMP errors through NAT64: type and code by the RFC's tables, the quoted packet in the other family, MTUs adjusted.

The tables stand in tests/data/rfc7915-icmp.json; outer and quoted packets that are expected are built by scapy.
"""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lbd._fastpath import Result
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, _ICMPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, Balancer, mac, packed, server, server_mac
from tests.packet.cluster import Cluster
from tests.packet.flow import Flow, Tcp, Udp
from tests.packet.frame import TCP as TCP_NUMBER
from tests.packet.frame import ethernet, ip_packet
from tests.unit import _engine

TABLE = json.loads((Path(__file__).parents[1] / "data/rfc7915-icmp.json").read_text())
ROUTER = {4: "198.51.100.1", 6: "2001:db8:5::1"}
PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])
MTU6_MIN = 1280


def flow_of(proto: str, **more: object) -> Flow:
    b = Balancer(**{"cross": True, "servers": 1, **more})  # type: ignore[arg-type]
    if proto == "tcp":
        return Tcp(b, 6).open()
    u = Udp(b, 6)
    u.ask()
    u.answer()
    return u


def segments(f: Flow, side: str, payload: bytes, seq: int | None = None) -> tuple[Packet, Packet]:
    """A packet that this side was sent, as it saw it, and as the other end had sent it: `side`'s router quotes the first."""
    if side == "server":
        mine, other = (f.lport, 8080), (f.sport, 80)
        numbers = (f.cseq, f.sseq) if isinstance(f, Tcp) else None
    else:
        mine, other = (80, f.sport), (8080, f.lport)
        numbers = (f.sseq, f.cseq) if isinstance(f, Tcp) else None
    made = []
    for sport, dport in (mine, other):
        l4: Packet = UDP(sport=sport, dport=dport)
        if numbers:
            l4 = TCP(sport=sport, dport=dport, flags="A", seq=numbers[0] if seq is None else seq, ack=numbers[1])
        made.append(l4 / Raw(payload) if payload else l4)
    return made[0], made[1]


def quotes(f: Flow, side: str, payload: bytes = b"", tos: int = 0, ttl: int = 3, seq: int | None = None) -> tuple[bytes, bytes]:
    """The quoted packet as it comes, and as it must leave."""
    came, leaves = segments(f, side, payload, seq)
    if side == "server":
        q = IP(src=LIP[4], dst=server(4, 1), tos=tos, ttl=ttl, id=9) / came
        return bytes(q), bytes(IPv6(src=CLIENT[6], dst=VIP[6], tc=tos, hlim=ttl) / leaves)
    q6 = IPv6(src=VIP[6], dst=CLIENT[6], tc=tos, hlim=ttl) / came
    df = 20 + len(leaves) > 1260
    return bytes(q6), bytes(IP(src=server(4, 1), dst=LIP[4], tos=tos, ttl=ttl, id=0, flags="DF" if df else 0) / leaves)


def error(side: str, kind: tuple[int, int], rest: int, quote: bytes, tos: int = 0, ttl: int = 64) -> bytes:
    """From that side's router to the LIP or the VIP."""
    af, proto = (4, 1) if side == "server" else (6, 58)
    src, dst = packed(ROUTER[af]), packed(LIP[4] if af == 4 else VIP[6])
    body = bytearray(struct.pack("!BBHI", *kind, 0, rest) + quote)
    start = 0 if af == 4 else _engine.pseudo_sum(src, dst, 58, len(body))
    struct.pack_into("!H", body, 2, _engine.checksum(bytes(body), start))
    ip = bytearray(ip_packet(src, dst, proto, bytes(body), ttl))
    if af == 4:
        ip[1] = tos
        ip[10:12] = bytes(2)
        struct.pack_into("!H", ip, 10, _engine.checksum(bytes(ip[:20])))
    else:
        struct.pack_into("!I", ip, 0, 6 << 28 | tos << 20)
    macs = (MAC_LB1, server_mac(1)) if side == "server" else (MAC_LB0, MAC_CLIENT)
    return ethernet(*macs, bytes(ip))


def send(f: Flow, side: str, *args: object, **more: int) -> Result:
    return f.b.send(error(side, *args, **more), 1 if side == "server" else 0)  # type: ignore[arg-type]


def settle_id(quoted: bytes, got: bytes) -> bytes:
    """IPv4: the identification is lbd's own; the rest is what is judged."""
    head = bytearray(quoted)
    head[4:6] = got[4:6]
    head[10:12] = bytes(2)
    struct.pack_into("!H", head, 10, _engine.checksum(bytes(head[:20])))
    return bytes(head)


def judge(r: Result, side: str, kind: tuple[int, int], rest: int, quoted: bytes, tos: int = 0, hops: int = 63) -> None:
    """It left by the other side, in that family, from the VIP or the LIP."""
    assert (r.verdict, r.reason) == ("forward", "none"), r
    [(iface, frame)] = r.out
    if side == "server":
        assert iface == 0
        body = struct.pack("!BBHI", *kind, 0, rest) + quoted
        want = Ether(src=MAC_LB0, dst=MAC_CLIENT) / IPv6(src=VIP[6], dst=CLIENT[6], tc=tos, hlim=hops, nh=58) / Raw(body)
        check = _engine.checksum(body, _engine.pseudo_sum(packed(VIP[6]), packed(CLIENT[6]), 58, len(body)))
        out = bytearray(bytes(want))
        struct.pack_into("!H", out, 54 + 2, check)
        assert frame == bytes(out)
        assert Ether(frame)[IPv6].payload.__class__ is not Raw and isinstance(Ether(frame)[IPv6].payload, _ICMPv6)
        return
    assert iface == 1
    p = Ether(frame)
    quoted = settle_id(quoted, frame[42:])
    body_ = bytearray(struct.pack("!BBHI", *kind, 0, rest) + quoted)
    struct.pack_into("!H", body_, 2, _engine.checksum(bytes(body_)))
    df = 20 + len(body_) > 1260
    head = IP(src=LIP[4], dst=server(4, 1), tos=tos, ttl=hops, proto=1, id=p[IP].id, flags="DF" if df else 0)
    assert frame == bytes(Ether(src=MAC_LB1, dst=server_mac(1)) / head / Raw(bytes(body_)))
    assert p[ICMP].type == kind[0]


@PROTOS
@pytest.mark.parametrize("side,row", [("server", r) for r in TABLE["icmp4"]] + [("client", r) for r in TABLE["icmp6"]])
def test_types_and_codes(proto: str, side: str, row: list) -> None:
    f = flow_of(proto)
    before = f.record
    kind, to = (row[0], row[1]), row[2] and tuple(row[2])
    rest = want = 0
    if kind in ((3, 4), (2, 0)) and to in ((3, 4), (2, 0)):
        rest, want = (1300, 1320) if side == "server" else (1400, 1380)
    elif side == "server" and kind[0] == 12:
        rest, want = 8 << 24, 7  # TTL, hop limit
    elif side == "client" and kind[0] == 4:
        rest, want = 7, 8 << 24 if kind[1] == 0 else 0
    if to == (4, 1):
        want = 6  # protocol unreachable: the next header is what the real server's side does not know
    for payload in (b"", b"odd", b"x" * 200):
        came, leaves = quotes(f, side, payload, tos=0x2E)
        r = send(f, side, kind, rest, came, tos=0x68)
        if to is None:
            assert (r.verdict, r.reason, r.out) == ("drop", "untranslatable", [])
        else:
            judge(r, side, to, want, leaves, tos=0x68)
    assert f.record == before, "an error changes neither state nor timer"
    f.b.audit()


@pytest.mark.parametrize("side,row", [("server", r) for r in TABLE["pointer4"]] + [("client", r) for r in TABLE["pointer6"]])
def test_pointers(side: str, row: list) -> None:
    f = flow_of("udp")
    came, leaves = quotes(f, side, b"q")
    pointer, to = row
    kind, out = ((12, 0), (4, 0)) if side == "server" else ((4, 0), (12, 0))
    r = send(f, side, kind, pointer << 24 if side == "server" else pointer, came)
    if to is None:
        assert (r.verdict, r.reason) == ("drop", "untranslatable")
    else:
        judge(r, side, out, to if side == "server" else to << 24, leaves)


# links: to the client, to the real server; told: by the router; the quoted packet's length
@pytest.mark.parametrize(
    "side,links,told,length,want",
    [
        ("server", (1500, 1500), 1400, 1500, 1420),
        ("server", (1500, 1500), 1500, 1500, 1500),  # no more than the client's link takes
        ("server", (9000, 1400), 9000, 9000, 1420),  # nor than ours to the real server, and 20
        ("server", (1500, 1500), 1261, 1300, 1281),
        ("server", (1500, 1500), 1260, 1300, 1280),
        ("server", (1500, 1500), 576, 1300, 1280),  # never below IPv6's least
        ("server", (9000, 9000), 0, 9000, 8186),  # a router that tells none: RFC 1191's plateau below the packet's length
        ("server", (9000, 9000), 0, 1500, 1512),
        ("server", (9000, 9000), 0, 1492, 1300),
        ("server", (9000, 9000), 0, 576, 1300),
        ("client", (1500, 1500), 1400, 1500, 1380),
        ("client", (1500, 1500), 1280, 1500, 1260),
        ("client", (1300, 1500), 1400, 1500, 1280),
        ("client", (1500, 1000), 1400, 1500, 1000),
        ("client", (9000, 9000), 70000, 1500, 8980),
        ("client", (1500, 1500), 1279, 1500, None),  # not believed (RFC 8201 §4)
    ],
)
def test_mtu(side: str, links: tuple[int, int], told: int, length: int, want: int | None) -> None:
    f = flow_of("udp")
    for i, m in enumerate((MAC_LB0, MAC_LB1)):
        f.b.do(shm.iface_set(i, 2, mac=mac(m), mtu=links[i], ifindex=i + 2, flags=shm.IFACE_UP))
    f.ask()  # type: ignore[attr-defined]
    came, leaves = quotes(f, side, b"x" * 8)
    if side == "server":  # the quoted packet's own length, of which a few bytes are quoted
        came = came[:2] + struct.pack("!H", length) + came[4:]
        leaves = leaves[:4] + struct.pack("!H", length - 20) + leaves[6:]
    else:
        came = came[:4] + struct.pack("!H", length - 40) + came[6:]
        leaves = leaves[:2] + struct.pack("!H", length - 20) + leaves[4:]
        if length - 20 > 1260:
            leaves = leaves[:6] + b"\x40\x00" + leaves[8:]
    r = send(f, side, (3, 4) if side == "server" else (2, 0), told, came)
    if want is None:
        assert (r.verdict, r.reason) == ("drop", "untranslatable")
    else:
        judge(r, side, (2, 0) if side == "server" else (3, 4), want, leaves)


@PROTOS
@pytest.mark.parametrize("side", ["client", "server"])
def test_truncated_quotes(proto: str, side: str) -> None:
    """Eight bytes of the transport header are the least; its checksum is corrected where it was quoted."""
    f = flow_of(proto)
    came, leaves = quotes(f, side, b"x" * 60)
    head = {"client": (40, 20), "server": (20, 40)}[side]
    kind, to = ((3, 1), (1, 0)) if side == "server" else ((1, 0), (3, 1))
    for n in range(60):
        r = send(f, side, kind, 0, came[: head[0] + n])
        if n < 8:
            assert (r.verdict, r.reason) == ("drop", "malformed")
            continue
        want = bytearray(leaves[: head[1] + n])
        if proto == "tcp" and n == 17:
            want[-1] = came[head[0] + 16]  # half of the checksum stays as it came
        judge(r, side, to, 0, bytes(want))


def test_long_quotes_are_cut_for_ipv6() -> None:
    """An ICMPv6 error has 1280 bytes at most (RFC 4443 §2.4)."""
    f = flow_of("udp")
    came, leaves = quotes(f, "server", b"x" * 1400)
    judge(send(f, "server", (3, 3), 0, came), "server", (1, 4), 0, leaves[: MTU6_MIN - 48])
    came, leaves = quotes(f, "client", b"x" * 1100)
    judge(send(f, "client", (1, 4), 0, came), "client", (3, 3), 0, leaves)


@pytest.mark.parametrize("side", ["client", "server"])
def test_extensions_are_cut_off(side: str) -> None:
    """What RFC 4884 appends, an MPLS label here, and its length attribute with it; the padding before it too."""
    f = flow_of("udp")
    came, leaves = quotes(f, side, b"data")
    extension = b"\x20\x00\x00\x00" + b"\x00\x08\x01\x01" + b"\x00\x01\x02\x03"
    kind, to = ((11, 0), (3, 0)) if side == "server" else ((3, 0), (11, 0))
    length = 128 // 4 << 16 if side == "server" else 128 // 8 << 24
    judge(send(f, side, kind, length, came.ljust(128, b"\0") + extension), side, to, 0, leaves)
    long, longer = quotes(f, side, b"d" * 300)  # its first 128 bytes alone
    cut = 128 - (len(long) - len(longer))
    judge(send(f, side, kind, length, long[:128] + extension), side, to, 0, longer[:cut])
    judge(send(f, side, kind, 1 << 16 if side == "server" else 1 << 24, came), side, to, 0, leaves)  # a length that can't be


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_blind_sender_has_to_know_the_sequence_number(side: str) -> None:
    f = flow_of("tcp")
    assert isinstance(f, Tcp)
    sent = f.sseq if side == "client" else f.cseq
    kind = (3, 1) if side == "server" else (1, 0)
    for distance, verdict in ((0, "forward"), (-60000, "forward"), (60000, "forward"), (65537, "drop"), (2**31, "drop")):
        came, _ = quotes(f, side, seq=(sent + distance) % 2**32)
        assert send(f, side, kind, 0, came).verdict == verdict, distance


@pytest.mark.parametrize("side", ["client", "server"])
def test_errors_are_never_answered(side: str) -> None:
    f = flow_of("udp")
    came, _ = quotes(f, side, b"x")
    r = send(f, side, (3, 1) if side == "server" else (1, 0), 0, came, ttl=1)
    assert (r.verdict, r.reason, r.out) == ("drop", "ttl_expired", [])


def test_about_nobodys_packet() -> None:
    f = flow_of("tcp")
    f.lport += 1
    came, _ = quotes(f, "server", b"")
    assert send(f, "server", (3, 1), 0, came).reason == "icmp_unmatched"
    f.lport = 9999
    came, _ = quotes(f, "server", b"")
    assert send(f, "server", (3, 1), 0, came).verdict == "kernel"


def test_quoted_options_are_left_out() -> None:
    f = flow_of("tcp")
    came, leaves = quotes(f, "server", b"data")
    came = b"\x48" + came[1:2] + struct.pack("!H", len(came) + 12) + came[4:20] + b"\x01" * 12 + came[20:]
    judge(send(f, "server", (3, 1), 0, came), "server", (1, 0), 0, leaves)


@pytest.mark.parametrize("workers", [2, 3])
def test_wherever_they_arrive(workers: int) -> None:
    c = Cluster(workers, cross=True, servers=1)
    for n in range(20):
        f = Tcp(c, 6, 2000 + n).open()
        for side, kind, to in (("server", (3, 3), (1, 4)), ("client", (1, 4), (3, 3))):
            came, leaves = quotes(f, side, b"x")
            judge(send(f, side, kind, 0, came), side, to, 0, leaves)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["tcp", "udp"]), st.sampled_from(["client", "server"]), st.binary(max_size=500), st.integers(2, 255),
       st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))  # fmt: skip
def test_any_error(proto: str, side: str, payload: bytes, ttl: int, qttl: int, tos: int, qtos: int) -> None:
    f = flow_of(proto)
    came, leaves = quotes(f, side, payload, tos=qtos, ttl=qttl)
    kind, to = ((3, 1), (1, 0)) if side == "server" else ((1, 0), (3, 1))
    judge(send(f, side, kind, 0, came, tos=tos, ttl=ttl), side, to, 0, leaves, tos=tos, hops=ttl - 1)


def test_client_addresses_stay_behind() -> None:
    f = flow_of("tcp")
    assert f.proto == TCP_NUMBER
    for side, hidden in (("client", packed(CLIENT[6])), ("server", packed(server(4, 1)))):
        came, _ = quotes(f, side, b"z" * 50)
        out = send(f, side, (1, 0) if side == "client" else (3, 1), 0, came).out[0][1]
        assert hidden not in out and packed(ROUTER[6 if side == "client" else 4]) not in out
