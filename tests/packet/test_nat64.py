"""NAT64, packet in → verdict, packet out: IPv6 clients, IPv4 real servers. What is expected is built by scapy in the other family.

ICMP errors: test_nat64_icmp.py.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lbd._fastpath import Result
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)  # fmt: skip
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData, SCTPChunkInit, SCTPChunkInitAck
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import (
    CLIENT,
    LIP,
    MAC_CLIENT,
    MAC_LB0,
    MAC_LB1,
    PROTO,
    VIP,
    Balancer,
    packed,
    server,
    server_mac,
)
from tests.packet.cluster import Cluster, spread
from tests.packet.conversation import partial
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import UDP as UDP_NUMBER
from tests.packet.frame import ethernet, ip_packet, transport
from tests.unit.test_datapath_hash import KEY as RSS_KEY

PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])
LAYER = {"tcp": TCP, "udp": UDP}
UNFRAGMENTED = 1260


def balancer(**more: object) -> Balancer:
    return Balancer(**{"cross": True, "servers": 1, **more})  # type: ignore[arg-type]


def segment(proto: str, flags: str, sport: int, dport: int, payload: bytes = b"", seq: int = 1000, ack: int = 0) -> Packet:
    l4 = TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack) if proto == "tcp" else UDP(sport=sport, dport=dport)
    return l4 / Raw(payload) if payload else l4


def from_client(l4: Packet, *chain: Packet, **fields: int) -> Packet:
    p: Packet = Ether(src=MAC_CLIENT, dst=MAC_LB0) / IPv6(src=CLIENT[6], dst=VIP[6], **fields)
    for header in chain:
        p = p / header
    return p / l4


def from_server(l4: Packet, address: str | None = None, **fields: object) -> Packet:
    return Ether(src=server_mac(1), dst=MAC_LB1) / IP(src=address or server(4, 1), dst=LIP[4], **fields) / l4


def to_server(l4: Packet, lport: int, ident: int, tos: int = 0, hops: int = 63) -> bytes:
    """What the real server gets of this segment of the client's (RFC 7915 §5.1)."""
    l4 = l4.copy()
    l4.sport, l4.dport = lport, 8080
    df = 20 + len(l4) > UNFRAGMENTED
    head = IP(src=LIP[4], dst=server(4, 1), tos=tos, ttl=hops, id=0 if df else ident, flags="DF" if df else 0)
    return bytes(Ether(src=MAC_LB1, dst=server_mac(1)) / head / l4)


def to_client(l4: Packet, cport: int = 40000, tos: int = 0, hops: int = 63) -> bytes:
    """What the client gets of this segment of the real server's (§4.1)."""
    l4 = l4.copy()
    l4.sport, l4.dport = 80, cport
    if not isinstance(l4, SCTP):
        del l4.chksum
    return bytes(Ether(src=MAC_LB0, dst=MAC_CLIENT) / IPv6(src=VIP[6], dst=CLIENT[6], tc=tos, hlim=hops, fl=0) / l4)


def opened(b: Balancer, proto: str = "tcp", cport: int = 40000) -> int:
    """A flow's local port, the handshake done if TCP."""
    got = Ether(b.send(from_client(segment(proto, "S", cport, 80))).out[0][1])
    lport = int(got[LAYER[proto]].sport)
    if proto == "tcp":
        b.send(from_server(segment(proto, "SA", 8080, lport, seq=5000, ack=1001), got[IP].dst), 1)
        b.send(from_client(segment(proto, "A", cport, 80, seq=1001, ack=5001)))
    return lport


def only(r: Result, iface: int) -> bytes:
    assert (r.verdict, r.reason) == ("forward", "none"), r
    [(out, frame)] = r.out
    assert out == iface
    return bytes(frame)


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.cell("nat64", "6", "{proto}", "engine")
@PROTOS
@pytest.mark.parametrize("tos,hops", [(0, 64), (0xB9, 2), (0x03, 255)])
def test_what_the_real_server_gets(proto: str, tos: int, hops: int) -> None:
    b = balancer()
    first = segment(proto, "S", 40000, 80, b"" if proto == "tcp" else b"question")
    got = only(b.send(from_client(first, tc=tos, hlim=hops, fl=0x12345)), 1)
    lport = Ether(got)[LAYER[proto]].sport
    assert 10000 <= lport <= 60000
    assert got == to_server(first, lport, Ether(got)[IP].id, tos, hops - 1)
    [c] = b.engine.conns()
    assert (c["mode"], c["client"], c["virtual"]) == ("nat64", (packed(CLIENT[6]), 40000), (packed(VIP[6]), 80))
    assert (c["local"], c["real_server"]) == ((packed(LIP[4]), lport), (packed(server(4, 1)), 8080))
    b.audit()


@PROTOS
@pytest.mark.parametrize("tos,hops,df", [(0, 64, True), (0xB9, 2, False), (0x03, 255, True)])
def test_what_the_client_gets(proto: str, tos: int, hops: int, df: bool) -> None:
    b = balancer()
    lport = opened(b, proto)
    for payload in (b"x", b"an answer", b"y" * 1400):
        l4 = segment(proto, "PA", 8080, lport, payload, 5001, 1001)
        r = b.send(from_server(l4, tos=tos, ttl=hops, flags="DF" if df else 0, id=77), 1)
        assert only(r, 0) == to_client(l4, tos=tos, hops=hops - 1)
    assert {c["state"] for c in b.engine.conns()} == {"ESTABLISHED" if proto == "tcp" else "UDP"}
    b.audit()


@settings(max_examples=150, deadline=None)
@given(
    proto=st.sampled_from(["tcp", "udp"]),
    cport=st.integers(1, 65535),
    payload=st.binary(max_size=1400),
    tos=st.integers(0, 255),
    hops=st.integers(2, 255),
    address=st.binary(min_size=16, max_size=16),
    flow=st.integers(0, 0xFFFFF),
)
def test_there_and_back_is_the_identity(
    proto: str, cport: int, payload: bytes, tos: int, hops: int, address: bytes, flow: int
) -> None:
    """What the real server sends back as it came reaches the client as if the client had sent it to itself by the VIP: but for the
    flow label, which IPv4 has no place for, nothing is lost, and both checksums are exact."""
    if address[0] == 0xFF or address[:8] == bytes(8):
        return
    b = balancer()
    sent = from_client(segment(proto, "S", cport, 80, payload), tc=tos, hlim=hops, fl=flow)
    sent[IPv6].src = address_text(address)
    got = Ether(only(b.send(sent), 1))
    l4 = LAYER[proto]
    assert got[IP].len == len(bytes(got[IP]))
    assert bytes(got) == to_server(sent[l4], got[l4].sport, got[IP].id, tos, hops - 1)
    echo = from_server(got[l4].copy(), got[IP].dst, tos=got[IP].tos, ttl=64)
    echo[l4].sport, echo[l4].dport = got[l4].dport, got[l4].sport
    del echo[l4].chksum
    want = Ether(src=MAC_LB0, dst=MAC_CLIENT) / IPv6(src=VIP[6], dst=sent[IPv6].src, tc=tos, hlim=63) / sent[l4].copy()
    want[l4].sport, want[l4].dport = 80, cport
    assert only(b.send(echo, 1), 0) == bytes(want)


def address_text(address: bytes) -> str:
    from ipaddress import IPv6Address

    return str(IPv6Address(address))


@pytest.mark.parametrize("size", [UNFRAGMENTED, UNFRAGMENTED + 1])
def test_when_it_may_be_fragmented(size: int) -> None:
    """DF off up to 1260 bytes: a sender that goes down to IPv6's least MTU gets through whatever IPv4 takes (§5.1)."""
    b = balancer()
    lport = opened(b, "udp")
    sent = segment("udp", "", 40000, 80, b"x" * (size - 28))
    got = Ether(only(b.send(from_client(sent)), 1))
    assert got[IP].len == size
    assert (got[IP].flags == "DF", got[IP].id == 0) == ((True, True) if size > UNFRAGMENTED else (False, False))
    again = Ether(only(b.send(from_client(sent)), 1))
    assert (again[IP].id != got[IP].id) == (size <= UNFRAGMENTED)
    assert again[UDP].sport == lport


# --- what the other family has no place for --------------------------------------------------------------------------


def test_extension_headers_are_left_out() -> None:
    b = balancer()
    chain = (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(addresses=["2001:db8::5"], segleft=0))
    l4 = segment("tcp", "S", 40000, 80)
    got = only(b.send(from_client(l4, *chain, tc=5)), 1)
    assert got == to_server(l4, Ether(got)[TCP].sport, Ether(got)[IP].id, tos=5)
    r = b.send(from_client(l4, IPv6ExtHdrRouting(addresses=["2001:db8::5"], segleft=1)))
    assert (r.verdict, r.reason) == ("drop", "untranslatable")


@pytest.mark.parametrize(
    "options,passes",
    [([IPOption_RR()], True), ([IPOption_NOP()] * 40, True), ([IPOption_LSRR(routers=["10.0.0.1"], pointer=4)], False),
     ([IPOption_NOP(), IPOption_LSRR(routers=["10.0.0.1"], pointer=8)], True)],
    ids=["record route", "40 bytes", "source route", "source route at its end"],
)  # fmt: skip
def test_options_are_left_out(options: list, passes: bool) -> None:
    b = balancer()
    l4 = segment("tcp", "A", 8080, opened(b), b"x", 5001, 1001)
    l4.chksum = Ether(bytes(from_server(l4)))[TCP].chksum  # scapy's own would be for the source route's last hop
    r = b.send(from_server(l4, options=options), 1)
    if passes:
        assert only(r, 0) == to_client(l4)
    else:
        assert (r.verdict, r.reason) == ("drop", "untranslatable")


def test_broken_options() -> None:
    """Options that end nowhere can't be said to be no source route."""
    b = balancer()
    lport = opened(b)
    for options in (b"\x83\x01\x04\x00", b"\x83\x00\x04\x00", b"\x07\x09\x04\x00", b"\x01\x01\x01\x83", b"\x01\x01\x83\x02"):
        l4 = transport(6, packed(server(4, 1)), packed(LIP[4]), 8080, lport, "A", 5001, 1001)
        head = bytearray(ip_packet(packed(server(4, 1)), packed(LIP[4]), 6, options + l4))
        head[0] = 0x46
        ip = IP(bytes(head))
        del ip.chksum
        r = b.send(ethernet(MAC_LB1, server_mac(1), bytes(ip)), 1)
        assert (r.verdict, r.reason) == ("drop", "untranslatable"), options.hex()


def test_udp_without_checksum() -> None:
    """IPv6 has none such: computed on the way to the client, refused on the way from it."""
    b = balancer()
    lport = opened(b, "udp")
    l4 = UDP(sport=8080, dport=lport, chksum=0) / Raw(b"answer")
    assert only(b.send(from_server(l4), 1), 0) == to_client(l4)
    r = b.send(from_client(UDP(sport=40000, dport=80, chksum=0) / Raw(b"question")))
    assert (r.verdict, r.reason) == ("drop", "bad_checksum")


@PROTOS
@pytest.mark.parametrize("side", ["client", "server"])
def test_partial_checksums_are_completed(proto: str, side: str) -> None:
    b = balancer(partial=True)
    lport = opened(b, proto)
    if side == "client":
        l4 = segment(proto, "PA", 40000, 80, b"odd", 1001, 5001)
        frame = bytes(from_client(l4))
    else:
        l4 = segment(proto, "PA", 8080, lport, b"odd", 5001, 1001)
        frame = bytes(from_server(l4))
    r = b.send(partial(frame), 0 if side == "client" else 1)
    if side == "client":
        got = only(r, 1)
        assert got == to_server(l4, lport, Ether(got)[IP].id)
    else:
        assert only(r, 0) == to_client(l4)


@pytest.mark.cell("nat64", "6", "sctp", "engine")
def test_sctp() -> None:
    """Its checksum covers no address: the ports' difference alone is carried through it."""
    b = balancer(protocols=("tcp", "sctp"))
    chunk = SCTPChunkInit(init_tag=7, a_rwnd=1500, n_out_streams=1, n_in_streams=1, init_tsn=1)
    got = only(b.send(from_client(SCTP(sport=40000, dport=80, tag=0) / chunk, tc=0x2E)), 1)
    lport = Ether(got)[SCTP].sport
    assert got == to_server(SCTP(sport=40000, dport=80, tag=0) / chunk, lport, Ether(got)[IP].id, tos=0x2E)
    ack = SCTPChunkInitAck(init_tag=9, a_rwnd=1500, n_out_streams=1, n_in_streams=1, init_tsn=1)
    answer = SCTP(sport=8080, dport=lport, tag=7) / ack
    assert only(b.send(from_server(answer, tos=0x2E), 1), 0) == to_client(answer, tos=0x2E)
    quoted = IP(src=LIP[4], dst=server(4, 1)) / SCTP(sport=lport, dport=8080, tag=0) / chunk
    told = Ether(only(b.send(from_server(ICMP(type=3, code=3) / quoted), 1), 0))
    data = SCTPChunkData(tsn=1, data=b"odd", beginning=1, ending=1)
    l4 = SCTP(sport=40000, dport=80, tag=9) / data
    got = only(b.send(from_client(l4)), 1)
    assert got == to_server(l4, lport, Ether(got)[IP].id)
    l4 = SCTP(sport=8080, dport=lport, tag=7) / data
    assert only(b.send(from_server(l4), 1), 0) == to_client(l4)
    about = IPv6(src=VIP[6], dst=CLIENT[6]) / SCTP(sport=80, dport=40000, tag=7) / data
    back = Ether(only(b.send(from_client(ICMPv6PacketTooBig(mtu=1400) / about)), 1))
    want = IP(src=server(4, 1), dst=LIP[4], id=back[ICMP].payload.id) / l4
    assert bytes(back)[-len(want) :] == bytes(want) and back[ICMP].nexthopmtu == 1380
    want = IPv6(src=CLIENT[6], dst=VIP[6]) / SCTP(sport=40000, dport=80, tag=0) / chunk
    assert bytes(told)[-len(want) :] == bytes(want)
    b.audit()


def test_tags_and_ethernet_padding() -> None:
    """The client behind two tags, the answer shorter than Ethernet's least."""
    b = balancer()
    syn = segment("tcp", "S", 4000, 80)
    head = Ether(src=MAC_CLIENT, dst=MAC_LB0) / Dot1AD(vlan=9) / Dot1Q(vlan=7) / IPv6(src=CLIENT[6], dst=VIP[6])
    got = only(b.send(head / syn), 1)
    lport = Ether(got)[TCP].sport
    assert got == to_server(syn, lport, Ether(got)[IP].id)
    answer = segment("tcp", "SA", 8080, lport, seq=5000, ack=1001)
    back = only(b.send(bytes(from_server(answer)).ljust(60, b"\0"), 1), 0)
    p = Ether(back)
    assert (p[Dot1AD].vlan, p[Dot1AD].payload.vlan) == (9, 7)
    assert back[22:] == to_client(answer, 4000)[14:]


def test_mapped_addresses_on_the_wire() -> None:
    """The index holds the real server's end in mapped form: an IPv6 packet that carries it is nobody's."""
    b = balancer()
    lport = opened(b)
    before = b.engine.conns()
    forged = IPv6(src=f"::ffff:{server(4, 1)}", dst=f"::ffff:{LIP[4]}") / TCP(sport=8080, dport=lport, flags="R", seq=5001)
    r = b.send(Ether(src=server_mac(1), dst=MAC_LB1) / forged, 1)
    assert r.out == [] and r.verdict in ("drop", "kernel")
    error = ip_packet(packed(f"::ffff:{LIP[4]}"), packed(f"::ffff:{server(4, 1)}"), 6, bytes(forged[TCP]))
    outer = IPv6(src="2001:db8::1", dst=f"::ffff:{LIP[4]}") / ICMPv6TimeExceeded() / IPv6(error)
    r = b.send(Ether(src=server_mac(1), dst=MAC_LB1) / outer, 1)
    assert r.out == [] and r.verdict in ("drop", "kernel")
    assert b.engine.conns() == before


# --- sizes and hops --------------------------------------------------------------------------------------------------


def test_too_big_for_the_real_servers_link() -> None:
    """The client is told that link's MTU and 20 bytes; the packet is its own."""
    b = balancer(mtu=(1500, 1400))
    lport = opened(b)
    fits = segment("tcp", "A", 40000, 80, b"x" * (1420 - 60), 1001, 5001)
    got = only(b.send(from_client(fits)), 1)
    assert len(got) == 14 + 1400 and got == to_server(fits, lport, 0)
    r = b.send(from_client(segment("tcp", "A", 40000, 80, b"x" * (1421 - 60), 1001, 5001)))
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    p = Ether(r.out[0][1])
    assert r.out[0][0] == 0 and p[IPv6].dst == CLIENT[6]
    assert p[ICMPv6PacketTooBig].mtu == 1420 and p[ICMPv6PacketTooBig].payload.dst == VIP[6]


@pytest.mark.parametrize("df", [True, False])
def test_too_big_for_the_clients_link(df: bool) -> None:
    """The real server is told that link's MTU less 20 bytes, whether it allowed fragmentation or not: see docs/modes/nat64.md."""
    b = balancer(mtu=(1400, 1500))
    lport = opened(b, "udp")
    flags = "DF" if df else 0
    fits = segment("udp", "", 8080, lport, b"x" * (1380 - 28))
    got = only(b.send(from_server(fits, flags=flags), 1), 0)
    assert len(got) == 14 + 1400 and got == to_client(fits)
    r = b.send(from_server(segment("udp", "", 8080, lport, b"x" * (1381 - 28)), flags=flags), 1)
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    p = Ether(r.out[0][1])
    assert r.out[0][0] == 1 and p[IP].dst == server(4, 1)
    assert (p[ICMP].type, p[ICMP].code, p[ICMP].nexthopmtu) == (3, 4, 1380)
    assert p[ICMP].payload.dst == LIP[4]


def test_hops_used_up() -> None:
    """Answered in the family of the packet that came."""
    b = balancer()
    lport = opened(b)
    r = b.send(from_client(segment("tcp", "A", 40000, 80, seq=1001, ack=5001), hlim=1))
    assert (r.verdict, r.reason) == ("consume", "ttl_expired") and Ether(r.out[0][1])[ICMPv6TimeExceeded].code == 0
    r = b.send(from_server(segment("tcp", "A", 8080, lport, seq=5001, ack=1001), ttl=1), 1)
    assert (r.verdict, r.reason) == ("consume", "ttl_expired") and Ether(r.out[0][1])[ICMP].type == 11


# --- ports, lives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(4, 6), (6, 4)])
def test_a_port_is_one_connections(order: tuple[int, int]) -> None:
    """FULLNAT of IPv4 and NAT64 share the ports of a local address towards a real server."""
    b = balancer(ports=(20000, 20007))
    seen = []
    for n in range(8):
        f = Tcp(b, order[n % 2], 3000 + n)
        assert f.client("S").verdict == "forward"
        seen.append((f.server, f.lport))
    assert len(set(seen)) == 8 and {s for s, _ in seen} == {packed(server(4, 1))}
    for af in (4, 6):
        assert Tcp(b, af, 3100).client("S").reason == "local_port_exhausted"
    assert b.engine.lip_stats(0)["in_use"] == 8 and b.engine.lip_stats(1)["in_use"] == 0
    b.audit()
    b.later(61)
    assert b.engine.lip_stats(0)["in_use"] == 0


@pytest.mark.parametrize("first,second", [(4, 6), (6, 4), (6, 6)])
@pytest.mark.parametrize("isn", [100_000_000, 5], ids=["its own numbers", "moved"])
def test_a_port_in_time_wait_is_taken_over(first: int, second: int, isn: int) -> None:
    """By a connection of the other table too."""
    b = balancer(ports=(20000, 20000))
    old = Tcp(b, first, isn=1000).open()
    old.close_by_server()
    assert old.state == "TIME_WAIT"
    b.later(2)
    new = Tcp(b, second, 50000, isn=isn).open()
    assert (new.server, new.lport) == (old.server, old.lport) and bool(new.moved) == (isn == 5)
    new.client("PA", b"GET")
    new.real("PA", b"x" * 100)
    assert len(b.engine.conns()) == 1 and b.engine.lip_stats(0)["in_use"] == 1
    b.audit()
    b.engine.recover(b.now)
    new.client("PA", b"GET")
    new.real("PA", b"x" * 100)
    assert Tcp(b, first, 51000).client("S").reason == "local_port_exhausted"


def test_states_and_end() -> None:
    b = balancer()
    f = Tcp(b, 6).open()
    assert f.state == "ESTABLISHED"
    f.client("PA", b"GET")
    f.real("PA", b"x" * 1200)
    f.close_by_server()
    assert f.state == "TIME_WAIT"
    b.audit()
    b.later(61)
    assert b.engine.conns() == [] and b.engine.used()["conns6"] == 0
    blind = Tcp(b, 6, 41000).open()
    blind.real("RA", seq=blind.sseq + 10_000_000)
    assert blind.state == "ESTABLISHED", "a blind reset"
    blind.real("RA")
    assert blind.state == "CLOSE"


def test_a_client_comes_back() -> None:
    """The same real server sees it from the same port again; another one in turn, from its own."""
    b = balancer(servers=2)
    ends = []
    for turn in range(6):
        f = Tcp(b, 6, isn=1000 + turn * 1_000_000)
        f.open().close_by_server()
        ends.append((f.server, f.lport))
    assert len(set(ends[:2])) == 2 and ends[:2] == ends[2:4] == ends[4:]
    assert len(b.engine.conns()) == 2
    b.audit()


@pytest.mark.parametrize("fresh", [False, True], ids=["same segment", "new segment"])
def test_connections_outlive_the_process(fresh: bool) -> None:
    b = balancer()
    tcp, udp = [Tcp(b, 6, 1024 + i).open() for i in range(10)], [Udp(b, 6, 3000 + i) for i in range(10)]
    for u in udp:
        u.ask()
        u.answer()
    other = Tcp(b, 4).open()
    ends = [(f.server, f.lport) for f in (*tcp, *udp, other)]
    before = b.engine.conns(), b.engine.used(), b.engine.lip_stats(0)["in_use"]
    assert b.engine.recover(b.now, fresh) == 21
    assert (b.engine.conns(), b.engine.used(), b.engine.lip_stats(0)["in_use"]) == before
    for t in (*tcp, other):
        assert t.client("PA", b"x").verdict == "forward" and t.real("PA", b"y").verdict == "forward"
    for u in udp:
        assert u.ask().verdict == "forward" and u.answer().verdict == "forward"
    assert [(f.server, f.lport) for f in (*tcp, *udp, other)] == ends
    b.audit()


def test_services_that_changed_numbers_are_found_again() -> None:
    b = balancer()
    f = Tcp(b, 6).open()
    for svc in range(4):
        b.do(shm.svc_del(svc, 2))
        b.do(shm.dest_del(svc, 2))
    b.do(shm.lip_del(0, 2))
    b.engine.recover(b.now, True)
    [c] = b.engine.conns()
    assert c["svc"] == 2 and b.engine.lip_stats(0)["in_use"] == 1, "they count until it is over, or they are back"
    b.do(shm.lip_set(5, 3, af=4, addr=packed(LIP[4]), port_lo=10000, port_hi=60000, fresh=True))
    b.do(shm.dest_set(70, 3, af=4, addr=packed(server(4, 1)), port=8080, svc=9, fresh=True))
    b.engine.set_table(1000, [70])
    b.do(shm.svc_set(9, 3, af=6, addr=packed(VIP[6]), port=80, proto=6, sched=0, table_off=1000, table_len=1, fresh=True))
    assert f.client("PA", b"x").verdict == "forward" and f.real("PA", b"y").verdict == "forward"
    [c] = b.engine.conns()
    assert (c["svc"], c["dest"]) == (9, 70) and [b.engine.lip_stats(n)["in_use"] for n in (0, 5)] == [0, 1]
    f.client("RA")
    b.later(11)
    assert b.engine.lip_stats(5)["in_use"] == 0


def test_a_drained_real_server_ends() -> None:
    """Both ends are told, each in its own family; who missed it is told again."""
    b = balancer()
    f = Tcp(b, 6).open()
    f.client("PA", b"q")
    f.real("PA", b"answer")
    b.do(shm.dest_set(2, 2, af=4, addr=packed(server(4, 1)), port=8080, svc=2, weight=0, flags=shm.DEST_END | shm.DEST_RESET))
    told = dict(b.engine.ending(b.now))
    to_client, to_server = Ether(told[0]), Ether(told[1])
    rst = TCP(sport=80, dport=40000, flags="RA", seq=f.sseq, ack=f.cseq, window=0)
    assert told[0] == bytes(Ether(src=MAC_LB0, dst=MAC_CLIENT) / IPv6(src=VIP[6], dst=CLIENT[6], hlim=63) / rst)
    rst = TCP(sport=f.lport, dport=8080, flags="RA", seq=f.cseq, ack=f.sseq, window=0)
    head = IP(src=LIP[4], dst=server(4, 1), ttl=63, id=to_server[IP].id)
    assert told[1] == bytes(Ether(src=MAC_LB1, dst=server_mac(1)) / head / rst)
    assert to_client[TCP].flags == "RA" and f.state == "CLOSE"
    r = b.send(from_server(segment("tcp", "PA", 8080, f.lport, b"late", f.sseq, f.cseq)), 1)
    assert r.verdict == "consume" and r.out[0][0] == 1
    p = Ether(r.out[0][1])
    assert (p[IP].src, p[IP].dst, p[TCP].flags, p[TCP].seq) == (LIP[4], server(4, 1), "R", f.cseq)
    b.audit()


def test_real_servers_of_both_families() -> None:
    """One service of IPv6: FULLNAT to those of IPv6, NAT64 to those of IPv4."""
    b = balancer()
    b.do(shm.dest_set(200, 1, af=6, addr=packed(server(6, 1)), port=8080, svc=2, fresh=True))
    b.do(shm.neigh_set(1, iface=1, af=6, addr=packed(server(6, 1)), mac=packed("10.77.0.1") + b"\0\0"))
    b.engine.set_table(2 * 64, [2, 200])
    b.do(shm.svc_set(2, 1, af=6, addr=packed(VIP[6]), port=80, proto=6, sched=0, table_off=2 * 64, table_len=2))
    kinds = []
    for n in range(6):
        p = Ether(only(b.send(from_client(segment("tcp", "S", 3000 + n, 80))), 1))
        kinds.append(IP in p)
        if IP in p:
            assert (p[IP].src, p[IP].dst) == (LIP[4], server(4, 1))
        else:
            assert (p[IPv6].src, p[IPv6].dst) == (LIP[6], server(6, 1))
    assert kinds in ([True, False] * 3, [False, True] * 3)
    assert sorted(c["mode"] for c in b.engine.conns()) == ["fullnat"] * 3 + ["nat64"] * 3
    b.audit()


def test_what_belongs_to_no_connection() -> None:
    b = balancer()
    lport = opened(b)
    free = segment("tcp", "A", 8080, lport + 1, seq=1, ack=1)
    assert b.send(from_server(free), 1).reason == "no_state"
    assert b.send(from_server(segment("tcp", "A", 22, lport, seq=1, ack=1)), 1).reason == "no_state"
    assert b.send(from_server(segment("tcp", "A", 8080, 9999, seq=1, ack=1)), 1).verdict == "kernel"
    assert b.send(from_client(segment("tcp", "A", 5, 80))).reason == "no_state"


# --- several workers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])
def test_answers_wherever_they_arrive(workers: int, rss: bool) -> None:
    """A packet of either side finds its worker in one step; where the NIC's choice is known, in none."""
    c = Cluster(workers, cross=True, servers=1)
    if rss:
        c.set_rss(RSS_KEY, True)
    flows = [Tcp(c, af, 2000 + n) for n in range(30) for af in (6, 4)]
    for f in flows:
        f.open()
        f.real("PA", b"answer")
    assert max(c.hops) == (0 if rss else 1)
    assert {r["state"] for r in c.conns()} == {"ESTABLISHED"} and len({r["worker"] for r in c.conns()}) == workers
    ends = {(r["local"], r["real_server"]) for r in c.conns()}
    assert len(ends) == 60, "no port is given twice"
    c.audit()


def test_answers_while_flows_move() -> None:
    """The owner table has changed: connections stay where they were opened, and their answers find them there."""
    c = Cluster(2, cross=True, servers=1)
    flows = [Tcp(c, 6, 2000 + n).open() for n in range(40)]
    old = spread(2)
    c.set_owner([1 - w if i % 4 < 2 else w for i, w in enumerate(old)], old)
    for f in flows:
        assert f.real("PA", b"x").verdict == "forward" and f.client("A").verdict == "forward"
    late = [Tcp(c, 6, 3000 + n).open() for n in range(20)]
    assert all(f.state == "ESTABLISHED" for f in late)
    c.audit()


def test_a_real_server_of_nat_and_nat64() -> None:
    """One real server and port, behind a NAT service of IPv4 too: what it sends to a local address is no NAT answer."""
    c = Cluster(3, cross=True, servers=1)
    c.do(shm.dest_set(200, 1, af=4, addr=packed(server(4, 1)), port=8080, svc=9, fresh=True))
    for m in c.members:
        m.engine.set_table(1024, [200])
    c.do(shm.svc_set(9, 1, af=4, addr=packed(VIP[4]), port=81, proto=PROTO["tcp"], sched=shm.SCHED_SEQ, table_off=1024,
                     table_len=1, mode=shm.MODE_NAT, fresh=True))  # fmt: skip
    for n in range(40):
        for af in (4, 6):
            Tcp(c, af, 2000 + n).open()


def test_bursts_of_both_families() -> None:
    """What stage_probe does for all packets of a burst at once."""
    b = balancer()
    flows = [Tcp(b, 6, 2000 + n).open() for n in range(20)] + [Tcp(b, 4, 2000 + n).open() for n in range(20)]
    burst = []
    for f in flows:
        src, dst = packed(server(4, 1)), packed(LIP[4])
        l4 = transport(6, src, dst, 8080, f.lport, "PA", f.sseq, f.cseq, b"answer")
        burst.append(ethernet(MAC_LB1, server_mac(1), ip_packet(src, dst, 6, l4)))
    burst += [burst[0][:-1] + b"x", ethernet(MAC_LB1, server_mac(1), ip_packet(src, dst, UDP_NUMBER, bytes(8)))]
    results = b.burst(burst[::-1], 1)
    assert [r.verdict for r in results[2:]] == ["forward"] * 40
    sizes = sorted(len(r.out[0][1]) for r in results[2:])
    assert sizes == [14 + 20 + 26] * 20 + [14 + 40 + 26] * 20
