"""Services of ICMP: what becomes of pings to a VIP by mode and family, to the byte, and of errors about them; what is the kernel's.

What is expected is built by scapy from the packet that was sent, checksums and lengths computed anew.
"""

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6PacketTooBig
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import (
    CLIENT,
    LIP,
    MAC_CLIENT,
    MAC_LB0,
    MAC_LB1,
    VIP,
    Balancer,
    ip,
    packed,
    proto_number,
    server,
    server_mac,
)
from tests.packet.cluster import Cluster
from tests.packet.test_mode import fields
from tests.packet.test_tunnel import KINDS, PORT, sport_of, wrapped
from tests.packet.test_tunnel_icmp import FRAG_NEEDED, TOO_BIG, inner, told
from tests.packet.test_tunnel_icmp import error as outer_error

FAMILIES = pytest.mark.parametrize("af", [4, 6])
TUNNELS = {k.name: k for k in KINDS if k.name in ("ipip", "gre", "gue")}
MODES = {"fullnat": shm.MODE_FULLNAT, "nat": shm.MODE_NAT, "dr": shm.MODE_DR, **dict.fromkeys(TUNNELS, shm.MODE_TUNNEL)}
MODE = pytest.mark.parametrize("mode", MODES)
BOTH_WAYS = pytest.mark.parametrize("mode", ["fullnat", "nat"])
ID = 40000
PORTS = (10000, 60000)


def settings(mode: str) -> dict[str, object]:
    tunnel = {"tunnel": TUNNELS[mode].way, "tunnel_port": PORT if mode == "gue" else 0} if mode in TUNNELS else {}
    return {"mode": MODES[mode], "protocols": ("icmp",), "servers": 1, **tunnel}


def balancer(mode: str = "fullnat", **more: object) -> Balancer:
    return Balancer(**{**settings(mode), **more})  # type: ignore[arg-type]


def ask(af: int, ident: int = ID, data: bytes = b"question", seq: int = 1) -> Packet:
    return ICMP(type=8, id=ident, seq=seq) / Raw(data) if af == 4 else ICMPv6EchoRequest(id=ident, seq=seq, data=data)


def reply(af: int, ident: int = ID, data: bytes = b"question", seq: int = 1) -> Packet:
    return ICMP(type=0, id=ident, seq=seq) / Raw(data) if af == 4 else ICMPv6EchoReply(id=ident, seq=seq, data=data)


def ping(af: int, ident: int = ID, data: bytes = b"question", seq: int = 1, *, src: str = "", dst: str = "") -> Packet:
    return Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, src or CLIENT[af], dst or VIP[af], **fields(af)) / ask(af, ident, data, seq)


def pong(af: int, dst: str, ident: int, data: bytes = b"question", seq: int = 1, n: int = 1) -> Packet:
    """Of a real server that sees the client, or lbd, at dst."""
    return Ether(src=server_mac(n), dst=MAC_LB1) / ip(af, server(af, n), dst, **fields(af)) / reply(af, ident, data, seq)


def at_client(af: int, *layers: Packet) -> bytes:
    packet = Ether(src=MAC_LB0, dst=MAC_CLIENT) / ip(af, VIP[af], CLIENT[af], **fields(af, hops=63))
    for layer in layers:
        packet /= layer
    return bytes(packet)


def ident_of(af: int, frame: bytes) -> int:
    p = Ether(frame)
    return int(p[ICMP].id if af == 4 else p[ICMPv6EchoRequest].id)


def at_server(mode: str, af: int, l4: Packet, out: bytes, ident: int) -> bytes:
    """The frame that the real server gets for the client's request l4; out: what came, of which what lbd may choose is taken."""
    link = Ether(src=MAC_LB1, dst=server_mac(1))
    if mode in TUNNELS:
        return bytes(link)[:12] + (b"\x08\x00" if af == 4 else b"\x86\xdd") + wrapped(
            TUNNELS[mode], af, af, l4, sport_of(TUNNELS[mode], af, out)
        )
    l4 = l4.copy()
    l4.id = ident
    src = LIP[af] if mode == "fullnat" else CLIENT[af]
    return bytes(link / ip(af, src, VIP[af] if mode == "dr" else server(af, 1), **fields(af, hops=63)) / l4)


def sees(mode: str, af: int) -> str:
    """Where a real server's answers go."""
    return LIP[af] if mode == "fullnat" else CLIENT[af]


def opened(mode: str, af: int, ident: int = ID, **more: object) -> tuple[Balancer, int]:
    """And the identifier that the real server sees."""
    b = balancer(mode, **more)
    r = b.send(ping(af, ident))
    assert r.verdict == "forward", r
    return b, ident_of(af, r.out[0][1]) if mode == "fullnat" else ident


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.cell("{mode}", "{af}", "icmp", "engine")
@MODE
@FAMILIES
def test_there_and_back(mode: str, af: int) -> None:
    b = balancer(mode)
    seen = set()
    for seq, data in enumerate((b"", b"x", b"question", b"odd length", b"q" * 1400), 1):
        r = b.send(ping(af, data=data, seq=seq))
        assert r.verdict == "forward" and r.out[0][0] == 1, r
        out = r.out[0][1]
        ident = ident_of(af, out) if mode == "fullnat" else ID
        seen.add(ident)
        assert out == at_server(mode, af, ask(af, data=data, seq=seq), out, ident)
        if mode in ("fullnat", "nat"):
            r = b.send(pong(af, sees(mode, af), ident, data, seq), 1)
            assert (r.verdict, r.out) == ("forward", [(0, at_client(af, reply(af, data=data, seq=seq)))])
    assert len(seen) == 1, "one flow"
    if mode == "fullnat":
        assert PORTS[0] <= seen.pop() <= PORTS[1], "of lbd's own"
    [c] = b.engine.conns()
    assert (c["state"], c["client"], c["real_server"]) == ("ICMP", (packed(CLIENT[af]), ID), (packed(server(af, 1)), 0))
    assert c["mode"] == ("tunnel" if mode in TUNNELS else mode) and c["proto"] == proto_number("icmp", af)
    b.audit()


@pytest.mark.parametrize("tunnel", TUNNELS)
@FAMILIES
def test_by_a_tunnel_of_the_other_family(tunnel: str, af: int) -> None:
    b = balancer(tunnel, cross=True)
    r = b.send(ping(af))
    assert r.verdict == "forward"
    out = r.out[0][1]
    assert out[14:] == wrapped(TUNNELS[tunnel], af, 10 - af, ask(af), sport_of(TUNNELS[tunnel], 10 - af, out))


@MODE
@FAMILIES
def test_a_flow_is_client_vip_identifier(mode: str, af: int) -> None:
    """Each is scheduled once: round robin here."""
    b = balancer(mode, servers=2)
    other = "192.0.2.101" if af == 4 else "2001:db8:1::101"
    dests = [b.send(ping(af, ident, src=src)).dest for ident, src in ((1, ""), (2, ""), (1, other), (2, other))]
    assert dests[0] != dests[1] and dests[2] != dests[3]
    assert [b.send(ping(af, ident, seq=9, src=src)).dest for ident, src in ((1, ""), (2, ""), (1, other), (2, other))] == dests
    assert len(b.engine.conns()) == 4
    b.audit()


@FAMILIES
def test_persistence(af: int) -> None:
    """A client's pings, of whatever identifier, go to one real server; another's to the next."""
    b = balancer(servers=2)
    svc, plen = (0, 32) if af == 4 else (1, 128)
    b.do(shm.svc_set(svc, 1, af=af, addr=packed(VIP[af]), port=0, proto=proto_number("icmp", af), sched=shm.SCHED_SEQ,
                     table_off=svc * 64, table_len=2, flags=shm.SVC_PERSIST, persist=60000, persist_plen=plen))  # fmt: skip
    assert len({b.send(ping(af, ident)).dest for ident in range(1, 9)}) == 1
    assert b.engine.service_stats(svc)["conns"] == 8


@MODE
@FAMILIES
def test_times_out_as_configured(mode: str, af: int) -> None:
    b, _ = opened(mode, af)
    b.do(shm.setting(shm.SET_TIMEOUT_BASE + 10, 5000, 2))
    b.send(ping(af, 7))
    b.later(4)
    b.send(ping(af, 7))
    b.later(4)
    assert [c["client"][1] for c in b.engine.conns() if c["client"][1] == 7] == [7], "it was used"
    b.later(60)
    assert b.engine.conns() == []
    b.audit()


@MODE
@FAMILIES
def test_flows_outlive_the_process(mode: str, af: int) -> None:
    b, ident = opened(mode, af)
    before = b.engine.conns()
    assert b.engine.recover(b.now, True) == 1 and b.engine.conns() == before
    out = b.send(ping(af)).out[0][1]
    assert out == at_server(mode, af, ask(af), out, ident)


# --- limits -----------------------------------------------------------------------------------------------------------


@FAMILIES
def test_no_identifier_left(af: int) -> None:
    b = balancer(ports=(10000, 10001))
    assert [b.send(ping(af, ident)).verdict for ident in (1, 2)] == ["forward"] * 2
    r = b.send(ping(af, 3))
    assert (r.verdict, r.reason) == ("drop", "local_port_exhausted")
    stats = b.engine.lip_stats(0 if af == 4 else 1)
    assert (stats["conns"], stats["exhausted"], stats["in_use"]) == (2, 1, 2)
    b.later(61)
    assert b.send(ping(af, 3)).verdict == "forward"
    b.audit()


@MODE
@FAMILIES
def test_identifier_0(mode: str, af: int) -> None:
    """An answer with it looks like a request, and mode nat keeps it."""
    b = balancer(mode)
    r = b.send(ping(af, 0))
    if mode == "nat":
        assert (r.verdict, r.reason) == ("drop", "echo_id_zero") and b.engine.conns() == []
        return
    assert r.verdict == "forward"
    if mode == "fullnat":
        r = b.send(pong(af, LIP[af], ident_of(af, r.out[0][1])), 1)
        assert r.out == [(0, at_client(af, reply(af, 0)))]


@FAMILIES
def test_nat_one_identifier_by_two_vips(af: int) -> None:
    """To one real server: its answers could not be told apart, as of TCP."""
    b, _ = opened("nat", af)
    vip = "192.0.2.20" if af == 4 else "2001:db8:1::20"
    b.do(shm.dest_set(200, 1, af=af, addr=packed(server(af, 1)), port=0, svc=9, fresh=True))
    b.engine.set_table(1024, [200])
    b.do(shm.svc_set(9, 1, af=af, addr=packed(vip), port=0, proto=proto_number("icmp", af), sched=shm.SCHED_SEQ, table_off=1024,
                     table_len=1, mode=shm.MODE_NAT, fresh=True))  # fmt: skip
    r = b.send(ping(af, dst=vip))
    assert (r.verdict, r.reason) == ("drop", "tuple_in_use")
    assert b.send(ping(af, ID + 1, dst=vip)).verdict == "forward"


@FAMILIES
def test_no_real_server(af: int) -> None:
    b = balancer(servers=1)
    dest = 0 if af == 4 else 1
    b.do(shm.dest_set(dest, 1, af=af, addr=packed(server(af, 1)), port=0, svc=dest, up=False))
    r = b.send(ping(af))
    assert (r.verdict, r.reason) == ("drop", "no_backend")


@FAMILIES
def test_wrong_checksum(af: int) -> None:
    """It goes on as wrong as it came, unless it is to be verified."""
    b = balancer()
    p = ping(af)
    p[ICMP if af == 4 else ICMPv6EchoRequest][0].setfieldval("chksum" if af == 4 else "cksum", 0x1234)
    assert b.send(p).verdict == "forward"
    b.do(shm.setting(shm.SET_VERIFY_CSUM, 1, 2))
    r = b.send(p)
    assert (r.verdict, r.reason) == ("drop", "bad_checksum")
    assert b.send(ping(af)).verdict == "forward"


# --- what stays the kernel's ------------------------------------------------------------------------------------------


def others(af: int) -> Iterator[tuple[str, Packet]]:
    """No echo request to the VIP."""
    client, srv = Ether(src=MAC_CLIENT, dst=MAC_LB0), Ether(src=server_mac(1), dst=MAC_LB1)
    yield "an answer to the VIP", client / ip(af, CLIENT[af], VIP[af]) / reply(af)
    yield "an answer to the VIP, identifier 0", client / ip(af, CLIENT[af], VIP[af]) / reply(af, 0)
    yield "a ping of the local address", client / ip(af, CLIENT[af], LIP[af]) / ask(af)
    yield "an answer to the host's own ping", srv / ip(af, server(af, 1), LIP[af]) / reply(af, 7)
    yield "the same with an identifier like lbd's", srv / ip(af, server(af, 1), LIP[af]) / reply(af, 20000)
    yield "a real server's ping", srv / ip(af, server(af, 1), CLIENT[af]) / ask(af)
    yield "a ping of another address", client / ip(af, CLIENT[af], "192.0.2.99" if af == 4 else "2001:db8:1::99") / ask(af)
    other = ICMP(type=13) if af == 4 else Raw(bytes([139, 0, 0, 0]) + bytes(12))
    yield "another question", client / ip(af, CLIENT[af], VIP[af], **({} if af == 4 else {"nh": 58})) / other
    coded = ask(af)
    coded.code = 1
    yield "an echo of a code that is none", client / ip(af, CLIENT[af], VIP[af]) / coded


@BOTH_WAYS
@FAMILIES
def test_what_stays_the_kernels(mode: str, af: int) -> None:
    b, _ = opened(mode, af)
    for what, packet in others(af):
        iface = 1 if packet[Ether].dst == MAC_LB1 else 0
        assert b.send(packet, iface).verdict == "kernel", what
    assert len(b.engine.conns()) == 1


@FAMILIES
def test_without_a_service_of_icmp(af: int) -> None:
    b = Balancer()
    assert (b.send(ping(af)).verdict, b.send(ping(af)).reason) == ("kernel", "icmp_unsupported")


@FAMILIES
def test_a_service_that_goes(af: int) -> None:
    """When no service of ICMP is left pings are the kernel's at once."""
    b, ident = opened("fullnat", af)
    for svc in (0, 1):
        b.do(shm.svc_del(svc, 2))
    assert b.send(ping(af)).verdict == "kernel"
    assert b.send(pong(af, LIP[af], ident), 1).verdict == "kernel"


@FAMILIES
def test_a_service_of_any_port_beside_it(af: int) -> None:
    """Neither gets what is the other's."""
    b = balancer()
    b.do(shm.dest_set(200, 1, af=af, addr=packed(server(af, 1)), port=0, svc=9, fresh=True))
    b.engine.set_table(1024, [200])
    b.do(shm.svc_set(9, 1, af=af, addr=packed(VIP[af]), port=0, proto=6, sched=shm.SCHED_SEQ, table_off=1024, table_len=1,
                     flags=shm.SVC_PERSIST, persist=60000, persist_plen=32, fresh=True))  # fmt: skip
    link = Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af])
    assert b.send(ping(af)).svc == (0 if af == 4 else 1)
    assert b.send(link / TCP(sport=1, dport=5, flags="S")).svc == 9
    assert b.send(link / reply(af, 5)).verdict == "kernel"


# --- errors about pings -----------------------------------------------------------------------------------------------


def unreachable(af: int) -> Packet:
    return ICMP(type=3, code=1) if af == 4 else ICMPv6DestUnreach(code=3)


@BOTH_WAYS
@FAMILIES
def test_errors_about_requests(mode: str, af: int) -> None:
    """From a router on the way to the real server: the client reads of its own request."""
    b, ident = opened(mode, af)
    router = "10.99.0.1" if af == 4 else "fd99::1"
    quoted = ip(af, sees(mode, af), server(af, 1), **fields(af, hops=63)) / ask(af, ident)
    sent = Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, router, sees(mode, af), **fields(af)) / unreachable(af) / quoted
    r = b.send(sent, 1)
    told = at_client(af, unreachable(af), ip(af, CLIENT[af], VIP[af], **fields(af, hops=63)) / ask(af))
    assert (r.verdict, r.out) == ("forward", [(0, told)])
    quoted[ICMP if af == 4 else ICMPv6EchoRequest].id = ident + 1
    r = b.send(Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, router, sees(mode, af)) / unreachable(af) / quoted, 1)
    assert (r.verdict, r.reason) == ("kernel", "icmp_unmatched"), "the host may have asked"


@MODE
@FAMILIES
def test_errors_about_answers(mode: str, af: int) -> None:
    """From the client's side: they go to the real server that answered, in its words."""
    b, ident = opened(mode, af)
    error = ICMP(type=3, code=4, nexthopmtu=1400) if af == 4 else ICMPv6PacketTooBig(mtu=1400)
    answer = ip(af, VIP[af], CLIENT[af], **fields(af)) / reply(af)
    r = b.send(Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af], **fields(af)) / error / answer)
    assert r.verdict == "forward", r
    if mode in TUNNELS:
        assert r.out[0][1][14:] == wrapped(TUNNELS[mode], af, af, error / answer, sport_of(TUNNELS[mode], af, r.out[0][1]))
        return
    quoted = answer
    if mode != "dr":
        quoted = ip(af, server(af, 1), sees(mode, af), **fields(af)) / reply(af, ident)
    want = ip(af, sees(mode, af), VIP[af] if mode == "dr" else server(af, 1), **fields(af, hops=63)) / error / quoted
    assert r.out == [(1, bytes(Ether(src=MAC_LB1, dst=server_mac(1)) / want))]


@pytest.mark.parametrize("tunnel", TUNNELS)
@FAMILIES
def test_errors_about_the_tunnel(tunnel: str, af: int) -> None:
    kind = TUNNELS[tunnel]
    b = balancer(tunnel)
    sent = b.send(ping(af, data=b"q" * 1200)).out[0][1]
    r = b.send(outer_error(af, FRAG_NEEDED if af == 4 else TOO_BIG, sent, 1400), 1)
    quoted = inner(kind, af, sent[: 14 + (548 if af == 4 else 1232)])
    assert (r.verdict, r.out) == ("forward", [(0, told(af, quoted, 1400 - (20 if af == 4 else 40) - kind.shim))])
    assert b.engine.counters()["icmp_mapped"] == 1


# --- several workers --------------------------------------------------------------------------------------------------


@MODE
@FAMILIES
@pytest.mark.parametrize("workers", [2, 3])
def test_wherever_packets_arrive(mode: str, af: int, workers: int) -> None:
    c = Cluster(workers, **settings(mode))
    used = set()
    for ident in range(2000, 2040):
        r = c.send(ping(af, ident))
        assert r.verdict == "forward", r
        if mode not in ("fullnat", "nat"):
            continue
        there = ident_of(af, r.out[0][1])
        used.add(there)
        r = c.send(pong(af, sees(mode, af), there), 1)
        assert (r.verdict, r.out) == ("forward", [(0, at_client(af, reply(af, ident)))])
        quoted = ip(af, sees(mode, af), server(af, 1)) / ask(af, there)
        r = c.send(Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), sees(mode, af)) / unreachable(af) / quoted, 1)
        assert r.verdict == "forward" and r.out[0][0] == 0
        assert c.send(ping(af, ident, seq=2)).verdict == "forward"
    assert len(c.conns()) == 40 and {r["worker"] for r in c.conns()} == set(range(workers))
    assert mode not in ("fullnat", "nat") or len(used) == 40
    assert max(c.hops) <= 1
    for what, packet in others(af):
        assert c.send(packet, 1 if packet[Ether].dst == MAC_LB1 else 0).verdict == "kernel", what
    c.audit()


# --- commands ---------------------------------------------------------------------------------------------------------


@FAMILIES
def test_commands_that_are_refused(af: int) -> None:
    with pytest.raises(ValueError, match="has port 0"):
        shm.svc_set(0, 1, af=af, addr=packed(VIP[af]), port=80, proto=proto_number("icmp", af), sched=shm.SCHED_SEQ)
    with pytest.raises(ValueError, match="proto must be"):
        shm.svc_set(0, 1, af=af, addr=packed(VIP[af]), port=0, proto=proto_number("icmp", 10 - af), sched=shm.SCHED_SEQ)
