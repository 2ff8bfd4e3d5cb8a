"""Mode tunnel: kind × outer family × inner family × protocol, to the byte, and rules that hold of whatever is sent.

What is expected is built by scapy from the packet that was sent; GUE's source port alone is read from what came.
"""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkAbort, SCTPChunkInit
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, Balancer, ip, mac, packed, server, server_mac
from tests.packet.test_mode import client_flow, fields, segment
from tests.unit.test_datapath_csum import model

PORT = 6080


@dataclass(frozen=True)
class Kind:
    name: str
    way: int
    shim: int  # bytes between outer and inner header
    protocol: int = 0  # of the outer header; 0: that of the inner packet's family

    def proto(self, af: int) -> int:
        return self.protocol or (4 if af == 4 else 41)


KINDS = [
    Kind("ipip", shm.TUNNEL_IPIP, 0),
    Kind("gre", shm.TUNNEL_GRE, 4, 47),
    Kind("gre+csum", shm.TUNNEL_GRE | shm.TUNNEL_CSUM, 8, 47),
    Kind("gue", shm.TUNNEL_GUE, 12, 17),
    Kind("gue+csum", shm.TUNNEL_GUE | shm.TUNNEL_CSUM, 12, 17),
]
KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
FAMILIES = pytest.mark.parametrize("af", [4, 6])
OUTER = pytest.mark.parametrize("oaf", [4, 6], ids=["outer 4", "outer 6"])
PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])


def balancer(kind: Kind, af: int = 4, oaf: int = 4, **more: object) -> Balancer:
    port = PORT if kind.way & 3 == shm.TUNNEL_GUE else 0
    return Balancer(**{"servers": 1, "mode": shm.MODE_TUNNEL, "tunnel": kind.way, "tunnel_port": port, "cross": af != oaf, **more})  # type: ignore[arg-type]


def from_client(af: int, l4: Packet, **more: int) -> Packet:
    return Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af], **fields(af, **more)) / l4


def shim(kind: Kind, af: int, sport: int) -> Packet | None:
    ethertype = 0x0800 if af == 4 else 0x86DD
    if kind.protocol == 47:
        return GRE(proto=ethertype, chksum_present=int(kind.shim == 8))
    if kind.protocol == 17:
        udp = UDP(sport=sport, dport=PORT) if kind.way & shm.TUNNEL_CSUM else UDP(sport=sport, dport=PORT, chksum=0)
        return udp / Raw(bytes([0, 4 if af == 4 else 41, 0, 0]))
    return None


def wrapped(kind: Kind, af: int, oaf: int, l4: Packet, sport: int, *, tos: int = 0, df: bool = True, source: str = "") -> bytes:
    """IP packet that leaves for the real server."""
    inner = ip(af, CLIENT[af], VIP[af], **fields(af, tos, 63, df)) / l4
    outer_df = df if af == 4 else True
    head = fields(oaf, tos, 64, outer_df, ident=0 if outer_df else 7)
    outer = ip(oaf, source or LIP[oaf], server(oaf, 1), **head, **{"proto" if oaf == 4 else "nh": kind.proto(af)})
    between = shim(kind, af, sport)
    return bytes(outer / between / Raw(bytes(inner)) if between is not None else outer / Raw(bytes(inner)))


def sport_of(kind: Kind, oaf: int, frame: bytes) -> int:
    at = 14 + (20 if oaf == 4 else 40)
    return int.from_bytes(frame[at : at + 2], "big") if kind.protocol == 17 else 0


@pytest.mark.cell("{kind}", "{af}", "{proto}", "engine")
@KIND
@OUTER
@FAMILIES
@PROTOS
@pytest.mark.parametrize("tos,df", [(0, True), (0xB9, True), (0x2E, False)])
def test_what_the_real_server_gets(kind: Kind, oaf: int, af: int, proto: str, tos: int, df: bool) -> None:
    b = balancer(kind, af, oaf)
    ports = set()
    for l4 in client_flow(proto):
        r = b.send(from_client(af, l4, tos=tos, df=df))
        assert r.verdict == "forward" and r.out[0][0] == 1, r
        out = r.out[0][1]
        ports.add(sport_of(kind, oaf, out))
        link = bytes(Ether(src=MAC_LB1, dst=server_mac(1), type=0x0800 if oaf == 4 else 0x86DD))
        assert out == link + wrapped(kind, af, oaf, l4, sport_of(kind, oaf, out), tos=tos, df=df)
    assert len(ports) == 1
    b.audit()


@pytest.mark.cell("{kind}", "{af}", "sctp", "engine")
@KIND
@OUTER
@FAMILIES
def test_sctp(kind: Kind, oaf: int, af: int) -> None:
    """An association's first packet and the ABORT that ends it, each as it came but for its hop."""
    b = balancer(kind, af, oaf, protocols=("sctp",))
    init = SCTPChunkInit(init_tag=7, a_rwnd=1500, n_out_streams=1, n_in_streams=1, init_tsn=1)
    for l4 in (SCTP(sport=40000, dport=80, tag=0) / init, SCTP(sport=40000, dport=80, tag=9) / SCTPChunkAbort()):
        r = b.send(from_client(af, l4))
        assert r.verdict == "forward" and r.out[0][0] == 1, r
        link = bytes(Ether(src=MAC_LB1, dst=server_mac(1), type=0x0800 if oaf == 4 else 0x86DD))
        assert r.out[0][1] == link + wrapped(kind, af, oaf, l4, sport_of(kind, oaf, r.out[0][1]))
    b.audit()


# --- rules of our own, which know nothing of how it is done ----------------------------------------------------------


def rules(sent: bytes, frame: bytes, kind: Kind, servers: set[bytes]) -> tuple[bytes, int]:
    """Of a wrapped packet, read by hand. Returns the outer destination and GUE's source port."""
    ip_in, out = sent[14:], frame[14:]
    oaf, af = out[0] >> 4, ip_in[0] >> 4
    assert oaf == (4 if frame[12:14] == b"\x08\x00" else 6)
    if oaf == 4:
        assert out[0] == 0x45 and int.from_bytes(out[2:4], "big") == len(out) and model(out[:20]) == 0
        proto, tos, ends, at = out[9], out[1], out[12:20], 20
        assert out[8] == 64
    else:
        assert int.from_bytes(out[4:6], "big") == len(out) - 40 and out[7] == 64
        proto, tos, ends, at = out[6], (out[0] << 4 | out[1] >> 4) & 0xFF, out[8:40], 40
    tos_in = ip_in[1] if af == 4 else (ip_in[0] << 4 | ip_in[1] >> 4) & 0xFF
    assert proto == kind.proto(af) and tos == tos_in
    destination = ends[len(ends) // 2 :]
    assert destination in servers
    between, inner = out[at : at + kind.shim], out[at + kind.shim :]
    sport = 0
    if kind.protocol == 47:
        assert between[:4] == (b"\x80\0" if kind.shim == 8 else b"\0\0") + (b"\x08\x00" if af == 4 else b"\x86\xdd")
        assert kind.shim == 4 or (model(out[at:]) == 0 and between[6:] == b"\0\0")
    if kind.protocol == 17:
        sport = int.from_bytes(between[:2], "big")
        assert sport >= 49152 and int.from_bytes(between[4:6], "big") == len(out) - at
        assert between[2:4] == PORT.to_bytes(2, "big") and between[8:] == bytes([0, 4 if af == 4 else 41, 0, 0])
        pseudo = ends + (len(out) - at).to_bytes(4, "big") + b"\0\0\0\x11"
        assert model(pseudo + out[at:]) == 0 if kind.way & shm.TUNNEL_CSUM else between[6:8] == b"\0\0"
    if af == 4:
        total = int.from_bytes(ip_in[2:4], "big")
        assert inner[:8] == ip_in[:8] and inner[8] == ip_in[8] - 1 and model(inner[: (inner[0] & 15) * 4]) == 0
        assert inner[9] == ip_in[9] and inner[12:] == ip_in[12:total]
    else:
        total = 40 + int.from_bytes(ip_in[4:6], "big")
        assert inner[:7] == ip_in[:7] and inner[7] == ip_in[7] - 1 and inner[8:] == ip_in[8:total]
    return destination, sport


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS), af=st.sampled_from([4, 6]), oaf=st.sampled_from([4, 6]), proto=st.sampled_from(["tcp", "udp"]),
    flows=st.lists(st.tuples(st.integers(1, 65535), st.binary(max_size=99), st.integers(0, 255), st.booleans()),
                   min_size=1, max_size=12),
)  # fmt: skip
def test_rules_of_encapsulation(kind: Kind, af: int, oaf: int, proto: str, flows: list) -> None:
    """Outer destination among the real servers and stable per flow; protocol, lengths, checksums, type of service; inner bytes."""
    b = balancer(kind, af, oaf, servers=3)
    servers = {packed(server(oaf, n)) for n in (1, 2, 3)}
    seen: dict[int, tuple[bytes, int]] = {}
    for port, payload, tos, df in flows:
        first = port not in seen
        l4 = segment(proto, "S" if first else "A", port, 80, payload, seq=1000 if first else 1001, ack=1)
        frame = bytes(from_client(af, l4, tos=tos, df=df))
        r = b.send(frame)
        assert r.verdict == "forward"
        assert seen.setdefault(port, rules(frame, r.out[0][1], kind, servers)) == rules(frame, r.out[0][1], kind, servers)
    b.audit()


@KIND
def test_source_ports_tell_flows_apart(kind: Kind) -> None:
    b = balancer(kind)
    ports = [sport_of(kind, 4, b.send(from_client(4, segment("tcp", "S", n, 80))).out[0][1]) for n in range(1000, 1300)]
    assert len(set(ports)) > 280 if kind.protocol == 17 else set(ports) == {0}


# --- MTU -------------------------------------------------------------------------------------------------------------


def too_big(af: int, frame: bytes) -> int:
    p = Ether(frame)
    return int(p[ICMP].nexthopmtu if af == 4 else p[ICMPv6PacketTooBig].mtu)


def data(af: int, size: int, **more: int) -> Packet:
    """An established connection's packet of `size` bytes."""
    return from_client(af, segment("tcp", "A", 40000, 80, b"x" * (size - (20 if af == 4 else 40) - 20), seq=1001, ack=1), **more)


@KIND
@OUTER
@FAMILIES
def test_mtu(kind: Kind, oaf: int, af: int) -> None:
    """The client is told the link's MTU without what its tunnel adds, and what fits that goes."""
    room = 1500 - (20 if oaf == 4 else 40) - kind.shim
    b = balancer(kind, af, oaf)
    b.send(from_client(af, client_flow("tcp")[0]))
    r = b.send(data(af, room))
    assert r.verdict == "forward" and len(r.out[0][1]) == 14 + 1500
    r = b.send(data(af, room + 1))
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    assert too_big(af, r.out[0][1]) == room


def test_headroom_for_the_longest_header() -> None:
    """Two tags, IPv6 and GUE: FRAME_SLACK has room for them. (One tag by route; the engine adds 802.1ad for learned ones alone.)"""
    b = balancer(KINDS[4], 4, 6)
    b.do(shm.route_set(2, af=6, prefix=packed("fd77::"), plen=64, iface=1, tags=7))
    b.do(shm.neigh_set(2, iface=1, af=6, addr=packed(server(6, 1)), mac=mac(server_mac(1)), tags=7))
    out = b.send(from_client(4, client_flow("tcp")[0])).out[0][1]
    assert Ether(out)[Dot1Q].vlan == 7
    assert out[18:] == wrapped(KINDS[4], 4, 6, client_flow("tcp")[0], sport_of(KINDS[4], 6, out[4:]))


# --- parameters ------------------------------------------------------------------------------------------------------


@OUTER
def test_outer_source(oaf: int) -> None:
    mine = {4: "10.77.0.99", 6: "fd77::99"}
    b = balancer(KINDS[0], 4, oaf, source={oaf: mine[oaf]})
    out = b.send(from_client(4, client_flow("tcp")[0])).out[0][1]
    assert out[14:] == wrapped(KINDS[0], 4, oaf, client_flow("tcp")[0], 0, source=mine[oaf])


@OUTER
@FAMILIES
def test_no_source(oaf: int, af: int) -> None:
    """Neither configured, nor a local address, nor one of the interface."""
    b = balancer(KINDS[0], af, oaf)
    b.do(shm.lip_del(0 if oaf == 4 else 1, 2))
    b.do(shm.iface_set(1, 2, mac=mac(MAC_LB1), mtu=1500, ifindex=3))
    r = b.send(from_client(af, client_flow("tcp")[0]))
    assert (r.verdict, r.reason) == ("drop", "no_route")


@KIND
@OUTER
@FAMILIES
def test_connections_keep_their_tunnel(kind: Kind, oaf: int, af: int) -> None:
    """The real server is taken away, or its tunnel changed; the process ends. New connections get what is configured then."""
    b = balancer(kind, af, oaf)
    syn, ack, get, fin = client_flow("tcp")
    b.send(from_client(af, syn))

    def same(l4: Packet) -> bool:
        out = b.send(from_client(af, l4)).out[0][1]
        return out[14:] == wrapped(kind, af, oaf, l4, sport_of(kind, oaf, out))

    other = KINDS[0] if kind.way else KINDS[1]
    svc = 0 if af == 4 else 2
    b.do(shm.dest_set(svc, 2, af=oaf, addr=packed(server(oaf, 1)), port=80, svc=svc, tunnel=other.way))
    assert same(ack)
    b.do(shm.dest_del(svc, 3))
    assert same(get)
    b.engine.recover(b.now, True)
    assert same(fin)
    b.do(shm.dest_set(svc, 4, af=oaf, addr=packed(server(oaf, 1)), port=80, svc=svc, tunnel=other.way))
    again = segment("tcp", "S", 40000, 80, seq=9_000_000)
    out = b.send(from_client(af, again)).out[0][1]
    assert out[14:] == wrapped(other, af, oaf, again, 0), "the client comes back from the same port"
    b.audit()


def test_refused_commands() -> None:
    good = {"af": 4, "addr": bytes(4), "port": 80, "svc": 0}
    for bad in ({"tunnel": 3}, {"tunnel": 7}, {"tunnel": shm.TUNNEL_CSUM}, {"tunnel": shm.TUNNEL_GUE}, {"tunnel_port": 65536}):
        with pytest.raises(ValueError, match="tunnel"):
            shm.dest_set(0, 1, **good, **bad)
    b = balancer(KINDS[0])
    record = bytearray(shm.dest_set(0, 2, **good, tunnel=shm.TUNNEL_GUE, tunnel_port=1))
    at = record.index(shm.TUNNEL_GUE, 16 + 24)
    record[at] = 3
    assert not b.engine.apply(bytes(record))


@FAMILIES
def test_layers(af: int) -> None:
    """What scapy reads, where it knows the format."""
    out = Ether(balancer(KINDS[2], af, 4).send(from_client(af, client_flow("udp")[0])).out[0][1])
    layers = [type(layer) for layer in (out, out[IP], out[GRE])]
    assert layers == [Ether, IP, GRE] and out[GRE].payload.__class__ == (IP if af == 4 else IPv6)
    assert TCP not in out and out[UDP].dport == 80
