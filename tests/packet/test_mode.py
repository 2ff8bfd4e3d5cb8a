"""The forwarding modes beside FULLNAT, one table for all: what a client's packet becomes by mode, family and protocol, to the byte.

What is expected is built by scapy from the packet that was sent, checksums and lengths computed anew.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, PROTO, VIP, Balancer, ip, packed, server, server_mac

MODES = {"nat": shm.MODE_NAT, "dr": shm.MODE_DR, "tunnel": shm.MODE_TUNNEL}
MODE = pytest.mark.parametrize("mode", MODES)
ONE_WAY = pytest.mark.parametrize("mode", ["dr", "tunnel"])
FAMILIES = pytest.mark.parametrize("af", [4, 6])
PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])
CROSS = pytest.mark.parametrize("cross", [False, True], ids=["same family", "other family"])


def balancer(mode: str, **more: object) -> Balancer:
    return Balancer(mode=MODES[mode], **{"servers": 1, **more})  # type: ignore[arg-type]


def port_of(mode: str) -> int:
    return 8080 if mode == "nat" else 80


def segment(proto: str, flags: str, sport: int, dport: int, payload: bytes = b"", seq: int = 1000, ack: int = 0) -> Packet:
    l4 = TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack) if proto == "tcp" else UDP(sport=sport, dport=dport)
    return l4 / Raw(payload) if payload else l4


def fields(af: int, tos: int = 0, hops: int = 64, df: bool = True, ident: int = 7) -> dict[str, int]:
    if af == 6:
        return {"tc": tos, "hlim": hops}
    return {"tos": tos, "ttl": hops, "id": ident, "flags": 2 if df else 0}


def expected(mode: str, af: int, l4: Packet, tos: int = 0, df: bool = True, cross: bool = False) -> bytes:
    """The frame that the real server gets for this segment of the client's."""
    raf = 10 - af if cross else af
    link = Ether(src=MAC_LB1, dst=server_mac(1))
    if mode == "nat":
        l4 = l4.copy()
        l4.dport = 8080
        return bytes(link / ip(af, CLIENT[af], server(af, 1), **fields(af, tos, 63, df)) / l4)
    inner = ip(af, CLIENT[af], VIP[af], **fields(af, tos, 63, df)) / l4
    if mode == "dr":
        return bytes(link / inner)
    inner_df = df if af == 4 else True
    outer = fields(raf, tos, 64, inner_df, ident=0 if inner_df else 7)
    next_header = {"proto" if raf == 4 else "nh": 4 if af == 4 else 41}
    return bytes(link / ip(raf, LIP[raf], server(raf, 1), **outer, **next_header) / Raw(bytes(inner)))


def from_client(af: int, l4: Packet, **more: int) -> Packet:
    return Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af], **fields(af, **more)) / l4


def answer_of(af: int, l4: Packet) -> Packet:
    """Of a NAT real server, to the client."""
    return Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), CLIENT[af], **fields(af)) / l4


def client_flow(proto: str) -> list[Packet]:
    if proto == "udp":
        return [segment(proto, "", 40000, 80, b"question"), segment(proto, "", 40000, 80, b"odd")]
    return [
        segment(proto, "S", 40000, 80),
        segment(proto, "A", 40000, 80, seq=1001, ack=5001),
        segment(proto, "PA", 40000, 80, b"GET", seq=1001, ack=5001),
        segment(proto, "FA", 40000, 80, seq=1004, ack=5001),
    ]


@pytest.mark.cell("{mode}", "{af}", "{proto}", "engine")
@MODE
@FAMILIES
@PROTOS
@pytest.mark.parametrize("tos,df", [(0, True), (0xB9, True), (0, False)])
def test_what_the_real_server_gets(mode: str, af: int, proto: str, tos: int, df: bool) -> None:
    b = balancer(mode)
    for l4 in client_flow(proto):
        r = b.send(from_client(af, l4, tos=tos, df=df))
        assert r.verdict == "forward" and r.out[0][0] == 1, r
        assert r.out[0][1] == expected(mode, af, l4, tos, df)
        if mode == "nat" and proto == "tcp" and l4.flags == "S":
            b.send(answer_of(af, TCP(sport=8080, dport=40000, flags="SA", seq=5000, ack=1001)), 1)
    [c] = b.engine.conns()
    assert c["mode"] == mode and c["client"] == (packed(CLIENT[af]), 40000)
    assert c["real_server"] == (packed(server(af, 1)), port_of(mode))
    b.audit()


@FAMILIES
@PROTOS
@pytest.mark.parametrize("df", [True, False])
def test_tunnel_of_the_other_family(af: int, proto: str, df: bool) -> None:
    b = balancer("tunnel", cross=True)
    for l4 in client_flow(proto):
        r = b.send(from_client(af, l4, tos=0x2E, df=df))
        assert r.verdict == "forward", r
        assert r.out[0][1] == expected("tunnel", af, l4, 0x2E, df, cross=True)
    [c] = b.engine.conns()
    assert c["real_server"] == (packed(server(10 - af, 1)), 80)
    b.engine.recover(b.now, True)
    [again] = b.engine.conns()
    assert again == c, "the address of the other family outlives the process"
    assert b.send(from_client(af, client_flow(proto)[-1])).out[0][1] == expected(
        "tunnel", af, client_flow(proto)[-1], cross=True
    )


@FAMILIES
@PROTOS
def test_what_the_client_gets_by_nat(af: int, proto: str) -> None:
    b = balancer("nat")
    b.send(from_client(af, client_flow(proto)[0]))
    for payload in (b"", b"x", b"an answer"):
        flags = "SA" if not payload else "PA"
        r = b.send(answer_of(af, segment(proto, flags, 8080, 40000, payload, 5000, 1001)), 1)
        want = Ether(src=MAC_LB0, dst=MAC_CLIENT) / ip(af, VIP[af], CLIENT[af], **fields(af, hops=63))
        assert (r.verdict, r.out) == ("forward", [(0, bytes(want / segment(proto, flags, 80, 40000, payload, 5000, 1001)))])
    b.audit()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([4, 6]), st.sampled_from(["tcp", "udp"]), st.integers(1, 65535), st.binary(max_size=64), st.integers(0, 255))
def test_nat_back_and_forth_is_the_identity(af: int, proto: str, sport: int, payload: bytes, tos: int) -> None:
    """What the real server sends back as it came reaches the client as if the client had sent it to itself by the VIP."""
    b = balancer("nat")
    sent = from_client(af, segment(proto, "S", sport, 80, payload), tos=tos)
    got = Ether(b.send(sent).out[0][1])
    layer, l4 = (IP if af == 4 else IPv6), (TCP if proto == "tcp" else UDP)
    echo = Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, got[layer].dst, got[layer].src, **fields(af, tos, 64)) / got[l4].copy()
    echo[l4].sport, echo[l4].dport = got[l4].dport, got[l4].sport
    del echo[l4].chksum
    r = b.send(echo, 1)
    want = Ether(src=MAC_LB0, dst=MAC_CLIENT) / ip(af, VIP[af], CLIENT[af], **fields(af, tos, 63)) / sent[l4].copy()
    want[l4].sport, want[l4].dport = 80, sport
    assert r.out == [(0, bytes(want))]


@FAMILIES
def test_what_nat_does_not_know_is_the_kernels(af: int) -> None:
    """The real server's own traffic, and answers to nobody's question."""
    b = balancer("nat")
    for l4 in (TCP(sport=8080, dport=999, flags="A"), TCP(sport=22, dport=999, flags="A"), UDP(sport=8080, dport=1)):
        assert b.send(answer_of(af, l4), 1).verdict == "kernel"
    assert b.engine.conns() == []


@FAMILIES
def test_nat_tuple_in_use(af: int) -> None:
    """Two services with one real server, and a client that uses one port for both."""
    b = balancer("nat")
    b.do(shm.dest_set(200, 1, af=af, addr=packed(server(af, 1)), port=8080, svc=9, fresh=True))
    b.engine.set_table(1024, [200])
    b.do(shm.svc_set(9, 1, af=af, addr=packed(VIP[af]), port=81, proto=PROTO["tcp"], sched=shm.SCHED_SEQ, table_off=1024,
                     table_len=1, mode=shm.MODE_NAT, fresh=True))  # fmt: skip
    b.send(from_client(af, TCP(sport=7, dport=80, flags="S", seq=1000)))
    r = b.send(from_client(af, TCP(sport=7, dport=81, flags="S", seq=2000)))
    assert (r.verdict, r.reason) == ("drop", "tuple_in_use")
    assert b.send(from_client(af, TCP(sport=8, dport=81, flags="S"))).verdict == "forward"
    b.send(answer_of(af, TCP(sport=8080, dport=7, flags="RA", seq=0, ack=1001)), 1)
    assert b.send(from_client(af, TCP(sport=7, dport=81, flags="S", seq=2000))).verdict == "forward", "the first one has ended"
    assert len(b.engine.conns()) == 2


# --- one way ---------------------------------------------------------------------------------------------------------


def state(b: Balancer) -> str:
    [c] = b.engine.conns()
    return str(c["state"])


@ONE_WAY
@FAMILIES
def test_states_by_the_client_alone(mode: str, af: int) -> None:
    b = balancer(mode)

    def client(flags: str, seq: int, ack: int = 5001) -> str:
        assert b.send(from_client(af, segment("tcp", flags, 40000, 80, seq=seq, ack=ack))).verdict == "forward"
        return state(b)

    assert client("S", 1000) == "SYN_RECV" and b.engine.used()["half_open"] == 1
    assert client("A", 900_000) == "SYN_RECV", "an ACK that does not fit the SYN opens nothing"
    assert client("A", 1001) == "ESTABLISHED" and b.engine.used()["half_open"] == 0
    assert client("R", 800_000) == "ESTABLISHED", "a blind reset"
    assert client("FA", 1001) == "FIN_WAIT"
    assert client("A", 1002, 9999) == "FIN_WAIT"
    b.audit()
    b.later(121)
    assert b.engine.conns() == []


@ONE_WAY
def test_anew_after_the_end(mode: str) -> None:
    """The client comes back from the same port: scheduled again, one record."""
    b = balancer(mode, servers=2)
    seen = set()
    for turn in range(4):
        seq = 1000 + turn * 1_000_000
        first = b.send(from_client(4, segment("tcp", "S", 40000, 80, seq=seq)))
        seen.add(first.out[0][1][:6])
        b.send(from_client(4, segment("tcp", "A", 40000, 80, seq=seq + 1, ack=1)))
        b.send(from_client(4, segment("tcp", "FA" if turn % 2 else "R", 40000, 80, seq=seq + 1, ack=1)))
        assert len(b.engine.conns()) == 1
        b.audit()
    assert len(seen) == 2


@ONE_WAY
def test_a_flood_of_syns_makes_way(mode: str) -> None:
    b = balancer(mode, sizes={"conns4": 64})
    kept = segment("tcp", "S", 1, 80)
    b.send(from_client(4, kept))
    b.send(from_client(4, segment("tcp", "A", 1, 80, seq=1001, ack=5)))
    for n in range(1000, 1200):
        assert b.send(from_client(4, segment("tcp", "S", n, 80))).verdict == "forward"
    assert [c["client"][1] for c in b.engine.conns() if c["state"] == "ESTABLISHED"] == [1]
    b.audit()


@ONE_WAY
@FAMILIES
@CROSS
def test_client_icmp_errors_reach_the_real_server(mode: str, af: int, cross: bool) -> None:
    """Its PMTU discovery works by them. Unchanged but for the hop; by the tunnel if there is one."""
    if mode == "dr" and cross:
        return
    b = balancer(mode, cross=cross)
    b.send(from_client(af, client_flow("tcp")[0]))
    quoted = ip(af, VIP[af], CLIENT[af], **fields(af)) / TCP(sport=80, dport=40000, flags="A", seq=5_000_000, ack=1)
    error = (ICMP(type=3, code=4, nexthopmtu=1400) if af == 4 else ICMPv6PacketTooBig(mtu=1400)) / quoted
    r = b.send(from_client(af, error))
    assert r.verdict == "forward", r
    assert r.out[0][1] == expected(mode, af, error, cross=cross)


@FAMILIES
@CROSS
def test_tunnel_mtu(af: int, cross: bool) -> None:
    """The client is told the link's MTU without the outer header, and what fits that goes."""
    room = 1500 - (20 if (af == 4) != cross else 40)
    head = (20 if af == 4 else 40) + 20
    b = balancer("tunnel", cross=cross)
    b.send(from_client(af, client_flow("tcp")[0]))
    r = b.send(from_client(af, segment("tcp", "A", 40000, 80, b"x" * (room - head), seq=1001, ack=1)))
    assert r.verdict == "forward" and len(r.out[0][1]) == 14 + 1500
    r = b.send(from_client(af, segment("tcp", "A", 40000, 80, b"x" * (room - head + 1), seq=1001, ack=1)))
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    p = Ether(r.out[0][1])
    assert (p[ICMP].nexthopmtu if af == 4 else p[ICMPv6PacketTooBig].mtu) == room


def test_ethernet_padding_stays_outside() -> None:
    b = balancer("tunnel")
    r = b.send(bytes(from_client(4, client_flow("tcp")[0])).ljust(60, b"\0"))
    assert r.out[0][1] == expected("tunnel", 4, client_flow("tcp")[0])


def test_tunnel_without_an_address_of_its_own() -> None:
    b = balancer("tunnel")
    b.do(shm.lip_del(0, 2))
    first = b.send(from_client(4, client_flow("tcp")[0]))
    assert Ether(first.out[0][1])[IP].src == "10.77.0.1", "the interface's, where there is no local address"


def test_direct_routing_goes_by_no_gateway() -> None:
    b = balancer("dr")
    b.do(shm.route_set(2, af=4, prefix=packed(server(4, 1)), plen=32, iface=1, gateway=packed("10.77.0.254")))
    b.do(shm.neigh_set(2, iface=1, af=4, addr=packed("10.77.0.254"), mac=bytes(6)))
    r = b.send(from_client(4, client_flow("tcp")[0]))
    assert (r.verdict, r.reason) == ("drop", "no_route")


# --- ICMP by NAT, changes of mode ------------------------------------------------------------------------------------


@FAMILIES
def test_nat_icmp_errors(af: int) -> None:
    """From the real server's side, sent to the client since the quoted packet's source is the client's; and the other way round."""
    b = balancer("nat")
    b.send(from_client(af, client_flow("tcp")[0]))
    b.send(answer_of(af, segment("tcp", "SA", 8080, 40000, seq=5000, ack=1001)), 1)
    unreachable = ICMP(type=3, code=3) if af == 4 else ICMPv6DestUnreach(code=4)
    told = ip(af, CLIENT[af], server(af, 1), **fields(af)) / segment("tcp", "S", 40000, 8080)
    r = b.send(answer_of(af, unreachable / told), 1)
    want = Ether(src=MAC_LB0, dst=MAC_CLIENT) / ip(af, VIP[af], CLIENT[af], **fields(af, hops=63))
    assert r.out == [(0, bytes(want / unreachable / ip(af, CLIENT[af], VIP[af], **fields(af)) / segment("tcp", "S", 40000, 80)))]
    answer = ip(af, VIP[af], CLIENT[af], **fields(af)) / segment("tcp", "SA", 80, 40000, seq=5000, ack=1001)
    r = b.send(from_client(af, unreachable / answer))
    quoted = ip(af, server(af, 1), CLIENT[af], **fields(af)) / segment("tcp", "SA", 8080, 40000, seq=5000, ack=1001)
    want = Ether(src=MAC_LB1, dst=server_mac(1)) / ip(af, CLIENT[af], server(af, 1), **fields(af, hops=63))
    assert r.out == [(1, bytes(want / unreachable / quoted))]


def test_connections_keep_their_mode() -> None:
    """A reload changes the service's; a client that comes back gets the new one."""
    b = balancer("nat")
    syn, ack = client_flow("tcp")[:2]
    b.send(from_client(4, syn))
    b.send(answer_of(4, segment("tcp", "SA", 8080, 40000, seq=5000, ack=1001)), 1)
    b.do(shm.svc_set(0, 2, af=4, addr=packed(VIP[4]), port=80, proto=6, sched=shm.SCHED_SEQ, table_off=0, table_len=1))
    assert b.send(from_client(4, ack)).out[0][1] == expected("nat", 4, ack)
    b.send(from_client(4, segment("tcp", "R", 40000, 80, seq=1001)))
    r = b.send(from_client(4, segment("tcp", "S", 40000, 80, seq=9_000_000)))
    assert Ether(r.out[0][1])[IP].src == LIP[4]
    assert {c["mode"] for c in b.engine.conns() if not c["resting"]} == {"fullnat"}


@MODE
@FAMILIES
def test_connections_outlive_the_process(mode: str, af: int) -> None:
    b = balancer(mode)
    flow = client_flow("tcp")
    for l4 in flow[:2]:
        b.send(from_client(af, l4))
        if mode == "nat" and l4 is flow[0]:
            b.send(answer_of(af, segment("tcp", "SA", 8080, 40000, seq=5000, ack=1001)), 1)
    before = b.engine.conns()
    assert b.engine.recover(b.now, True) == 1
    assert b.engine.conns() == before
    assert b.send(from_client(af, flow[2])).out[0][1] == expected(mode, af, flow[2])
    b.later(901)
    assert b.engine.conns() == []
