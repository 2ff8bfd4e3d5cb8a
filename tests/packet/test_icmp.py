"""ICMP errors: those about a connection's packets, translated to its other end; those that lbd sends; those that nobody gets.

RFC 792, RFC 4443, RFC 5508 (translation), RFC 5927 (what a blind sender may do), RFC 1122 §3.2.2 (never about an error).
"""

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lbd._fastpath import Result

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, MS, VIP, Balancer, packed, server_mac
from tests.packet.flow import Flow, Tcp, Udp
from tests.packet.frame import TCP, UDP, ethernet, from_client, ip_packet, transport
from tests.unit import _engine

FAMILIES = pytest.mark.parametrize("af", [4, 6])
SIDES = pytest.mark.parametrize("side", ["client", "server"])
# type and code: unreachable, time exceeded, parameter problem, and too big with its MTU in the rest of the header
KINDS = {4: [(3, 1), (3, 3), (3, 13), (11, 0), (12, 0), (3, 4)], 6: [(1, 0), (1, 3), (3, 0), (4, 1), (2, 0)]}
ROUTER = {4: bytes([198, 51, 100, 1]), 6: bytes.fromhex("20010db8000500000000000000000001")}


@dataclass
class Error:
    """An ICMP error about a packet of the flow that this side was sent, from that side's router."""

    flow: Flow
    side: str = "client"  # where it comes from
    kind: tuple[int, int] = (3, 1)
    rest: int = 0
    seq: int | None = None  # TCP: other than what was last sent
    payload: bytes = b""
    quote: int | None = None  # bytes quoted of the transport header and what follows; None: all
    ttl: int = 64
    outer_dst: bytes | None = None

    def quoted(self) -> bytes:
        f = self.flow
        if self.side == "client":
            ends = packed(VIP[f.af]), f.address, 80, f.sport
            seq, ack = (f.sseq, f.cseq) if isinstance(f, Tcp) else (0, 0)
        else:
            assert f.server is not None
            ends = packed(LIP[f.af]), f.server, f.lport, 8080
            seq, ack = (f.cseq, f.sseq) if isinstance(f, Tcp) else (0, 0)
        l4 = transport(f.proto, *ends, "A", seq if self.seq is None else self.seq, ack, self.payload)
        return ip_packet(ends[0], ends[1], f.proto, l4, ttl=3)

    def frame(self, quoted: bytes | None = None) -> bytes:
        f = self.flow
        q = self.quoted() if quoted is None else quoted
        if self.quote is not None:
            q = q[: (20 if f.af == 4 else 40) + self.quote]
        proto = 1 if f.af == 4 else 58
        dst = self.outer_dst or packed((VIP if self.side == "client" else LIP)[f.af])
        body = bytearray(struct.pack("!BBHI", *self.kind, 0, self.rest) + q)
        start = 0 if f.af == 4 else _engine.pseudo_sum(ROUTER[6], dst, proto, len(body))
        struct.pack_into("!H", body, 2, _engine.checksum(bytes(body), start))
        macs = (MAC_LB0, MAC_CLIENT) if self.side == "client" else (MAC_LB1, server_mac(1))
        return ethernet(*macs, ip_packet(ROUTER[f.af], dst, proto, bytes(body), self.ttl))

    def send(self) -> Result:
        return self.flow.b.send(self.frame(), 0 if self.side == "client" else 1)


def judge(e: Error, r: Result) -> None:
    """It left by the other side, and is what that end's own router would have sent about that end's packet."""
    f = e.flow
    assert (r.verdict, r.reason) == ("forward", "none"), r
    [(iface, frame)] = r.out
    ip = frame[14:]
    head = 20 if f.af == 4 else 40
    if e.side == "client":
        assert iface == 1
        ends = packed(LIP[f.af]), f.server  # outer; the quoted packet went from the real server to the LIP
        inner, ports = (f.server, packed(LIP[f.af])), (8080, f.lport)
    else:
        assert iface == 0 and frame[:6] == bytes.fromhex("0200000000c1")
        ends = packed(VIP[f.af]), f.address
        inner, ports = (f.address, packed(VIP[f.af])), (f.sport, 80)
    at, size = (12, 4) if f.af == 4 else (8, 16)
    assert (ip[at : at + size], ip[at + size : at + 2 * size]) == ends
    assert ip[8 if f.af == 4 else 7] == e.ttl - 1
    body = ip[head:]
    if f.af == 4:
        assert _engine.checksum(ip[:20]) == 0 and _engine.checksum(body) == 0
        assert struct.unpack_from("!H", ip, 2)[0] == len(ip)
    else:
        assert _engine.checksum(body, _engine.pseudo_sum(*ends, 58, len(body))) == 0
        assert struct.unpack_from("!H", ip, 4)[0] == len(body)
    assert (body[0], body[1], struct.unpack_from("!I", body, 4)[0]) == (*e.kind, e.rest)
    sent, got = e.quoted(), body[8:]
    if e.quote is not None:
        sent = sent[: head + e.quote]
    assert len(got) == len(sent)
    assert (got[at : at + size], got[at + size : at + 2 * size]) == inner
    assert struct.unpack_from("!HH", got, head) == ports
    if f.af == 4:
        assert _engine.checksum(got[:20]) == 0
    # whatever else was quoted is untouched, but for the transport checksum, which is right again if all of it was quoted
    check_at = head + (16 if f.proto == TCP else 6)
    assert got[head + 4 : check_at] == sent[head + 4 : check_at]
    assert got[check_at + 2 :] == sent[check_at + 2 :]
    if e.quote is None:
        assert _engine.checksum(got[head:], _engine.pseudo_sum(*inner, f.proto, len(got) - head)) == 0


def flow_of(proto: int, af: int, **more: int) -> Flow:
    b = Balancer(**more)
    if proto == TCP:
        return Tcp(b, af).open()
    u = Udp(b, af)
    u.ask()
    u.answer()
    return u


@FAMILIES
@SIDES
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_translated(proto: int, side: str, af: int) -> None:
    f = flow_of(proto, af)
    before = f.record
    for kind in KINDS[af]:
        for payload in (b"", b"odd", b"x" * 200):
            e = Error(f, side, kind, rest=1300 if kind in ((3, 4), (2, 0)) else 0, payload=payload)
            judge(e, e.send())
    assert f.record == before, "an error changes neither state nor timer"
    assert f.b.engine.counters()["icmp_mapped"] == 3 * len(KINDS[af])


@FAMILIES
@SIDES
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_truncated_quotes(proto: int, side: str, af: int) -> None:
    """Eight bytes of the transport header are the least (RFC 792); the checksum is corrected where it was quoted."""
    f = flow_of(proto, af)
    for quote in range(60):
        e = Error(f, side, KINDS[af][0], payload=b"x" * 60, quote=quote)
        r = e.send()
        if quote < 8:
            assert (r.verdict, r.reason) == ("drop", "malformed")
        else:
            judge(e, r)


@FAMILIES
@SIDES
def test_a_blind_sender_has_to_know_the_sequence_number(side: str, af: int) -> None:
    f = flow_of(TCP, af)
    assert isinstance(f, Tcp)
    sent = f.sseq if side == "client" else f.cseq
    for distance, verdict in ((0, "forward"), (-60000, "forward"), (60000, "forward"), (65537, "drop"), (-65537, "drop"),
                              (2**31, "drop"), (10**9, "drop")):  # fmt: skip
        r = Error(f, side, KINDS[af][0], seq=sent + distance).send()
        assert r.verdict == verdict, distance
        if verdict == "drop":
            assert r.reason == "icmp_unmatched"


@FAMILIES
def test_about_nobodys_packet(af: int) -> None:
    b = Balancer()
    f = Tcp(b, af)
    f.server, f.lport = packed("10.77.0.11" if af == 4 else "fd77::b"), 30000
    for side in ("client", "server"):
        r = Error(f, side, KINDS[af][0]).send()
        assert (r.verdict, r.reason) == ("drop", "icmp_unmatched")
    # the host's own connections from the local address (health checks) and to other ports of the VIP are the kernel's
    f.lport = 9999
    assert Error(f, "server", KINDS[af][0]).send().verdict == "kernel"
    q = ip_packet(packed(VIP[af]), f.address, TCP, transport(TCP, packed(VIP[af]), f.address, 22, 40000, "A"))
    assert b.send(Error(f, "client", KINDS[af][0]).frame(q)).verdict == "kernel"


@FAMILIES
@SIDES
def test_sent_to_another_than_whom_it_is_about(side: str, af: int) -> None:
    f = flow_of(UDP, af)
    r = Error(f, side, KINDS[af][0], outer_dst=packed("10.77.0.1" if af == 4 else "fd77::1")).send()
    assert (r.verdict, r.reason) == ("kernel", "icmp_unmatched")


@FAMILIES
@SIDES
def test_wrong_checksum(side: str, af: int) -> None:
    f = flow_of(UDP, af)
    frame = bytearray(Error(f, side, KINDS[af][0], payload=b"data").frame())
    at = 14 + (20 if af == 4 else 40)
    for k in range(at, len(frame)):
        broken = bytearray(frame)
        broken[k] ^= 0x10
        r = f.b.send(bytes(broken), 0 if side == "client" else 1)
        assert r.verdict in ("drop", "kernel"), k
        assert r.out == []


@FAMILIES
def test_errors_about_errors_and_other_messages(af: int) -> None:
    """Never answered, never translated: the kernel's."""
    f = flow_of(UDP, af)
    me, vip = f.address, packed(VIP[af])
    proto = 1 if af == 4 else 58
    inner = ip_packet(vip, me, proto, bytes([3 if af == 4 else 1, 1]) + bytes(60))
    assert f.b.send(Error(f, "client", KINDS[af][0]).frame(inner)).verdict == "kernel"
    for kind in (0, 4, 5, 8, 9, 13, 17, 30) if af == 4 else (0, 5, 100, 127, 128, 129, 135, 137):
        r = Error(f, "client", (kind, 0)).send()
        assert (r.verdict, r.reason) == ("kernel", "icmp_unsupported"), kind


@FAMILIES
@SIDES
def test_errors_are_never_answered(side: str, af: int) -> None:
    """Hop limit used up, or too big for the way out: gone."""
    f = flow_of(UDP, af, mtu=(1280, 1280))
    r = Error(f, side, KINDS[af][0], ttl=1).send()
    assert (r.verdict, r.reason, r.out) == ("drop", "ttl_expired", [])
    r = Error(f, side, KINDS[af][0], payload=b"x" * 1300).send()
    assert (r.verdict, r.reason, r.out) == ("drop", "mtu_exceeded", [])
    assert f.b.engine.counters()["icmp_sent"] == 0


@FAMILIES
def test_links_and_neighbours_matter_to_errors_too(af: int) -> None:
    from tests.packet.balancer import MAC_LB1 as mac1
    from tests.packet.balancer import mac

    f = flow_of(UDP, af)
    f.b.do(shm.iface_set(1, 2, mac=mac(mac1), mtu=1500, ifindex=3, flags=0))
    assert Error(f, "client", KINDS[af][0]).send().reason == "link_down"
    f.b.do(shm.iface_set(1, 3, mac=mac(mac1), mtu=1500, ifindex=3, flags=shm.IFACE_UP))
    f.b.do(shm.neigh_set(3, iface=1, af=af, addr=f.server))
    assert Error(f, "client", KINDS[af][0]).send().reason == "no_neighbor"


@FAMILIES
def test_quoted_extension_headers_and_options(af: int) -> None:
    f = flow_of(TCP, af)
    assert isinstance(f, Tcp)
    me, vip = f.address, packed(VIP[af])
    l4 = transport(TCP, vip, me, 80, f.sport, "A", f.sseq, f.cseq)
    if af == 4:
        head = bytearray(struct.pack("!BBHHHBBH", 0x48, 0, 32 + len(l4), 1, 0x4000, 5, TCP, 0) + vip + me + b"\x01" * 12)
        struct.pack_into("!H", head, 10, _engine.checksum(bytes(head)))
    else:
        head = bytearray(struct.pack("!IHBB", 6 << 28, 24 + len(l4), 0, 5) + vip + me)
        head += b"\x3c\x00\x01\x04" + bytes(4) + b"\x06\x01" + bytes(14)
    r = f.b.send(Error(f, "client", KINDS[af][0]).frame(bytes(head) + l4))
    assert r.verdict == "forward"
    got = r.out[0][1][14 + (20 if af == 4 else 40) + 8 :]
    assert struct.unpack_from("!HH", got, len(head)) == (8080, f.lport)
    pseudo = _engine.pseudo_sum(f.server, packed(LIP[af]), TCP, len(l4))
    assert _engine.checksum(got[len(head) :], pseudo) == 0
    if af == 4:
        assert _engine.checksum(got[:32]) == 0


@FAMILIES
def test_rate_of_own_errors(af: int) -> None:
    """A thousand per second, a tenth of it at once; what is beyond is dropped under the same reason."""
    b = Balancer()
    frames = [from_client(af, TCP, 1024 + i, "S", ttl=1) for i in range(64)]
    verdicts = [r.verdict for _ in range(10) for r in b.burst(frames)]
    assert verdicts.count("consume") == 100 and verdicts.count("drop") == 540
    assert b.engine.counters()["drops"] == {"ttl_expired": 540}
    b.now += 1000 * MS
    assert sum(r.verdict == "consume" for _ in range(10) for r in b.burst(frames)) == 100
    total = 0
    for _ in range(200):
        b.now += 10 * MS
        total += sum(r.verdict == "consume" for r in b.burst(frames))
    assert 1990 <= total <= 2000
    b.audit()


@pytest.mark.parametrize("rate, least", [(1, 1), (5, 1), (0, 0)])
def test_low_rates_still_send(rate: int, least: int) -> None:
    b = Balancer()
    b.do(shm.setting(3, rate, 1))
    sent = 0
    for _ in range(20):
        b.now += 250 * MS
        sent += b.send(from_client(4, TCP, 5, "S", ttl=1)).verdict == "consume"
    assert least <= sent and abs(sent - min(20, 5 * rate)) <= 1


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 8, 500, 528, 529, 1192, 1193, 1400])
def test_what_own_errors_quote(size: int, af: int) -> None:
    """All of the packet, but not more than 576 (1280) bytes in all."""
    b = Balancer()
    sent = from_client(af, UDP, 5, payload=(bytes(range(256)) * 6)[:size], ttl=1)
    r = b.send(sent)
    assert (r.verdict, r.reason) == ("consume", "ttl_expired")
    [(iface, frame)] = r.out
    assert iface == 0 and frame[:6] == sent[6:12] and frame[6:12] == sent[:6]
    ip, head = frame[14:], 20 if af == 4 else 40
    quoted = ip[head + 8 :]
    assert quoted == sent[14:][: (576 - 28 if af == 4 else 1280 - 48)]
    assert len(ip) <= (576 if af == 4 else 1280)
    if af == 4:
        assert _engine.checksum(ip[:20]) == 0 and _engine.checksum(ip[20:]) == 0
    else:
        assert _engine.checksum(ip[40:], _engine.pseudo_sum(ip[8:24], ip[24:40], 58, len(ip) - 40)) == 0


@FAMILIES
def test_packets_to_many_are_not_answered(af: int) -> None:
    b = Balancer()
    frame = bytearray(from_client(af, TCP, 5, "S", ttl=1))
    frame[:6] = b"\xff" * 6
    r = b.send(bytes(frame))
    assert (r.verdict, r.reason) == ("drop", "ttl_expired")


@FAMILIES
def test_too_big_from_the_real_servers_side(af: int) -> None:
    """Answers larger than the client's side takes: the real server is told, about its own packet."""
    f = flow_of(UDP, af, mtu=(1300, 1500))
    assert isinstance(f, Udp)
    r = f.answer(b"x" * 1400)
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    [(iface, frame)] = r.out
    ip, head = frame[14:], 20 if af == 4 else 40
    assert iface == 1 and ip[head : head + 2] == (b"\x03\x04" if af == 4 else b"\x02\x00")
    assert struct.unpack_from("!I", ip, head + 4)[0] == 1300
    at, size = (12, 4) if af == 4 else (8, 16)
    assert ip[head + 8 :][at : at + size] == f.server


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([4, 6]), st.sampled_from([TCP, UDP]), st.sampled_from(["client", "server"]), st.integers(0, 40),
       st.integers(0, 0xFFFFFFFF), st.binary(max_size=120), st.integers(2, 255))  # fmt: skip
def test_any_error(af: int, proto: int, side: str, kind: int, rest: int, payload: bytes, ttl: int) -> None:
    f = flow_of(proto, af)
    e = Error(f, side, KINDS[af][kind % len(KINDS[af])], rest, payload=payload, ttl=ttl)
    judge(e, e.send())


def test_client_addresses_stay_behind() -> None:
    """Nothing in what goes to the real server's side names the client, nor the other way round the real server."""
    f = flow_of(TCP, 4)
    for side, hidden in (("client", packed(CLIENT[4])), ("server", f.server)):
        out = Error(f, side, (3, 1), payload=b"z" * 50).send().out[0][1]
        assert hidden not in out
