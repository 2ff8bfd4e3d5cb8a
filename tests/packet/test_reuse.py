"""A local port that the real server still holds in TIME_WAIT, taken by a new client.

The real server's rule (RFC 9293 §3.6.1, RFC 6191; Linux's tcp_timewait_state_process): it takes a SYN there if its number lies
beyond the last of the old connection, and its timestamp, if it has one, is not older. Where the client's number does not, lbd moves
it, and all numbers that follow, acknowledgements and SACK edges with them.
"""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_LB1, MS, Balancer, checksums_right, from_client, ip, packed, server, server_mac
from tests.packet.flow import Tcp
from tests.packet.frame import ethernet, ip_packet, read
from tests.unit import _engine

FAMILIES = pytest.mark.parametrize("af", [4, 6])
GAP = 131072  # REUSE_GAP of open.pxd
OLD_ISN = 1000
OLD_EDGE = OLD_ISN + 2  # SYN, FIN
STAMPED = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
NUMBERS = pytest.mark.parametrize("isn,moved", [(OLD_EDGE + 1, 0), (2**31, 0), (OLD_EDGE, GAP), (5, OLD_EDGE + GAP - 5)])


def rested(af: int, ports: tuple[int, int] = (20000, 20000), **more: int) -> Balancer:
    """One port, in TIME_WAIT towards the one real server for two seconds."""
    b = Balancer(servers=1, ports=ports, **more)
    f = Tcp(b, af, isn=OLD_ISN).open()
    f.close_by_server()
    assert f.state == "TIME_WAIT"
    b.later(2)
    return b


def reopened(af: int, isn: int) -> tuple[Balancer, Tcp]:
    b = rested(af)
    return b, Tcp(b, af, 50000, isn=isn).open()


@FAMILIES
@NUMBERS
def test_a_conversation_by_a_reused_port(af: int, isn: int, moved: int) -> None:
    """Flow checks that both ends see their own numbers, and every checksum."""
    b = rested(af)
    f = Tcp(b, af, 50000, isn=isn)
    assert f.client("S").verdict == "forward"
    assert f.moved == moved
    assert f.client("S", seq=isn).verdict == "forward", "sent again"
    f.real("SA")
    f.client("A")
    assert f.state == "ESTABLISHED"
    assert b.engine.used()["extensions"] == (moved != 0), "once open, who needs no other numbers takes the fast lane"
    f.client("PA", b"GET")
    f.real("PA", b"x" * 100)
    f.client("A")
    b.audit()
    f.close_by_server()
    assert f.state == "TIME_WAIT"
    b.later(61)
    assert b.engine.used() == {"conns4": 0, "conns6": 0, "half_open": 0, "extensions": 0, "held": 0}
    b.audit()


@FAMILIES
def test_a_port_that_was_moved_is_moved_again_beyond_what_the_real_server_saw(af: int) -> None:
    b, f = reopened(af, 5)
    f.client("PA", b"x" * 1000)
    f.close_by_server()
    edge = f.cseq + f.moved
    b.later(2)
    g = Tcp(b, af, 50001, isn=7)
    assert g.client("S").verdict == "forward"
    assert g.moved == (edge + GAP - 7) % 2**32
    assert b.engine.used()["extensions"] == 1


@FAMILIES
@pytest.mark.parametrize("isn", [5, 2**31])
def test_not_before_it_has_rested(af: int, isn: int) -> None:
    b = rested(af)
    b.do(shm.setting(shm.SET_PORT_REST, 5_000, 1))
    assert Tcp(b, af, 50000, isn=isn).client("S").reason == "local_port_exhausted"
    b.later(3)
    assert Tcp(b, af, 50000, isn=isn).client("S").verdict == "forward"


@FAMILIES
@pytest.mark.parametrize("how", ["open", "half open", "client closes", "reset"])
def test_only_out_of_time_wait(af: int, how: str) -> None:
    b = Balancer(servers=1, ports=(20000, 20000))
    f = Tcp(b, af, isn=OLD_ISN)
    f.client("S")
    if how != "half open":
        f.real("SA")
        f.client("A")
    if how == "client closes":
        f.client("FA")
    if how == "reset":
        f.client("RA")
    b.later(2)
    assert Tcp(b, af, 50000, isn=2**31).client("S").reason == "local_port_exhausted"


def test_a_free_port_is_taken_before_a_rested_one() -> None:
    b = rested(4, (20000, 20003))
    [held] = [c["local"][1] for c in b.engine.conns()]
    assert {Tcp(b, 4, 50000 + i, isn=5).open().lport for i in range(3)} == {20000, 20001, 20002, 20003} - {held}
    assert b.engine.used()["extensions"] == 0


def test_among_rested_ports_one_that_needs_no_other_numbers() -> None:
    """Old numbers of all ports but one lie ahead of the new client's."""
    b = Balancer(servers=1, ports=(20000, 20005))
    old = [Tcp(b, 4, 1000 + i, isn=100 if i == 4 else 10_000).open() for i in range(6)]
    for f in old:
        f.close_by_server()
    b.later(2)
    f = Tcp(b, 4, 50000, isn=5000)
    assert (f.client("S").verdict, f.moved, f.lport) == ("forward", 0, old[4].lport)


def test_who_finds_no_extension_finds_no_port() -> None:
    """Counted as ever, and over when the others end."""
    b = Balancer(servers=1, ports=(20000, 20199), sizes={"conns4": 512, "conns6": 512})
    for i in range(200):
        Tcp(b, 4, 1000 + i, isn=OLD_ISN).open().close_by_server()
    b.later(2)
    flows, used = [], 0
    for i in range(200):
        f = Tcp(b, 4, 5000 + i, isn=5)
        if f.client("S").verdict != "forward":
            break
        f.real("SA")
        f.client("A")
        flows.append(f)
        used = b.engine.used()["extensions"]
    assert used == len(flows) == 1024 // 16 + 15
    assert b.engine.lip_stats(0)["exhausted"] == 1
    flows[0].client("RA")
    b.later(10.3)
    assert Tcp(b, 4, 9000, isn=5).client("S").verdict == "forward"
    b.audit()


@FAMILIES
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("half_open", [False, True])
def test_a_restart_forgets_no_numbers(af: int, fresh: bool, half_open: bool) -> None:
    b = rested(af)
    f = Tcp(b, af, 50000, isn=5)
    f.client("S")
    if not half_open:
        f.real("SA")
        f.client("A")
    b.engine.recover(b.now, fresh)
    if half_open:
        f.real("SA")
        f.client("A")
    assert f.moved and b.engine.used()["extensions"] == 1
    f.client("PA", b"GET")
    f.real("PA", b"answer")
    b.later(901)
    assert b.engine.used()["extensions"] == 0


def test_timestamps_leave_the_syn_alone() -> None:
    """The option becomes no-operations of the same length; the other options stay. A SYN on a free port keeps its own."""
    fresh = Balancer(servers=1)
    syn = TCP(sport=50000, dport=80, flags="S", seq=2**31, options=STAMPED)
    assert dict(Ether(fresh.send(from_client(4, syn)).out[0][1])[TCP].options)["Timestamp"] == (1, 0)
    for af in (4, 6):
        b = rested(af)
        for _ in range(2):  # the second one is sent again
            [(_, frame)] = b.send(from_client(af, syn)).out
            assert checksums_right(frame)
            got = [option for option in Ether(frame)[TCP].options if option[0] != "NOP"]
            assert got == [option for option in STAMPED if option[0] not in ("Timestamp", "NOP")]
            assert Ether(frame)[TCP].dataofs == 5 + 20 // 4


@FAMILIES
def test_sack_edges_move_with_the_acknowledgement(af: int) -> None:
    b, f = reopened(af, 5)
    edges = (f.cseq + 3000, f.cseq + 4000, f.cseq + 6000, f.cseq + 2**31)
    for pad in range(3):  # the option at even and odd offsets
        options = [("NOP", None)] * pad + [("SAck", tuple((n + f.moved) % 2**32 for n in edges))]
        l4 = TCP(sport=8080, dport=f.lport, flags="A", seq=f.sseq, ack=(f.cseq + f.moved) % 2**32, options=options)
        [(_, frame)] = b.send(Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), LIP[af]) / l4, 1).out
        got = Ether(frame)[TCP]
        assert checksums_right(frame)
        assert (got.seq, got.ack) == (f.sseq, f.cseq % 2**32)
        assert dict(got.options)["SAck"] == tuple(n % 2**32 for n in edges)
    # what the client says of the real server's numbers stays
    sack = [("SAck", (70100, 70200))]
    l4 = TCP(sport=50000, dport=80, flags="A", seq=f.cseq, ack=f.sseq, options=sack)
    got = Ether(b.send(from_client(af, l4)).out[0][1])[TCP]
    assert (got.seq, got.ack, dict(got.options)["SAck"]) == ((f.cseq + f.moved) % 2**32, f.sseq, (70100, 70200))


option = st.one_of(
    st.just(b"\1"),
    st.just(b"\0"),
    st.binary(min_size=8, max_size=8).map(lambda edges: b"\5\12" + edges),
    st.binary(min_size=16, max_size=16).map(lambda edges: b"\5\22" + edges),
    st.binary(min_size=8, max_size=8).map(lambda times: b"\10\12" + times),
    st.binary(max_size=12),
)


def segment(af: int, f: Tcp, options: bytes, payload: bytes) -> bytes:
    """Of the real server; options of any kind, sound or not."""
    options = options[: min(len(options), 40) // 4 * 4]
    head = struct.pack("!HHIIBBHHH", 8080, f.lport, f.sseq, (f.cseq + f.moved) % 2**32, (20 + len(options)) << 2, 0x18, 8192, 0, 0)
    src, dst = packed(server(af, 1)), packed(LIP[af])
    l4 = bytearray(head + options + payload)
    struct.pack_into("!H", l4, 16, _engine.checksum(bytes(l4), _engine.pseudo_sum(src, dst, 6, len(l4))))
    return ethernet(MAC_LB1, server_mac(1), ip_packet(src, dst, 6, bytes(l4)))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([4, 6]), st.lists(option, max_size=6).map(b"".join), st.binary(max_size=40))
def test_every_checksum_is_right_whatever_the_options(af: int, options: bytes, payload: bytes) -> None:
    b, f = reopened(af, 5)
    [(_, frame)] = b.send(segment(af, f, options, payload), 1).out
    got = read(frame)  # which judges the checksum
    assert (got.seq, got.ack) == (f.sseq, f.cseq)
    assert got.payload.endswith(payload)


@FAMILIES
def test_an_icmp_error_quotes_the_clients_own_numbers(af: int) -> None:
    b, f = reopened(af, 5)
    quoted = TCP(sport=f.lport, dport=8080, flags="PA", seq=(f.cseq + f.moved) % 2**32, ack=f.sseq) / Raw(b"x" * 40)
    inner = ip(af, LIP[af], server(af, 1)) / quoted
    error: Packet = ICMP(type=3, code=4, nexthopmtu=1400) if af == 4 else ICMPv6PacketTooBig(mtu=1400)
    r = b.send(Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), LIP[af]) / error / inner, 1)
    assert r.verdict == "forward", r
    got = Ether(r.out[0][1])
    assert got[IP if af == 4 else IPv6].dst == CLIENT[af]
    [layer] = [n for n in ("TCPerror", "TCP") if got.getlayer(n) is not None][:1]
    assert (got[layer].seq, got[layer].sport, got[layer].dport) == (f.cseq, 50000, 80)
    # of the numbers as the real server never saw them
    inner[TCP].seq = (f.cseq + 2**31) % 2**32
    r = b.send(Ether(src=server_mac(1), dst=MAC_LB1) / ip(af, server(af, 1), LIP[af]) / error / inner, 1)
    assert r.reason == "icmp_unmatched"


class RealServer:
    """TIME_WAIT by its rule, for 60 s."""

    def __init__(self) -> None:
        self.waits: dict[int, tuple[int, int]] = {}  # local port → until, the number expected

    def takes(self, now: int, port: int, seq: int) -> bool:
        until, edge = self.waits.get(port, (0, 0))
        return now >= until or 0 < (seq - edge) % 2**32 < 2**31


@pytest.mark.timeout(300)
def test_ten_thousand_short_connections_a_second() -> None:
    """Through one local address, the default ports and one real server, with the clients' random numbers, for four seconds: every
    SYN finds a port, and the real server takes each of them."""
    b = Balancer(servers=1, ports=(10240, 32767), sizes={"conns4": 65536})
    draw, real, ports = random.Random(1), RealServer(), set()
    moved = 0
    for i in range(40_000):
        b.now += 100_000
        if i % 10 == 0:
            b.engine.expire(b.now)
        f = Tcp(b, 4, 1024 + i % 60_000, bytes([198, 18, i >> 14, 1]), isn=draw.getrandbits(32), server_isn=draw.getrandbits(32))
        r = f.client("S")
        assert r.verdict == "forward", (i, r)
        assert real.takes(b.now, f.lport, (f.cseq - 1 + f.moved) % 2**32), i
        f.real("SA")
        f.client("A")
        f.close_by_server()
        real.waits[f.lport] = b.now + 60_000 * MS, f.cseq + f.moved
        ports.add(f.lport)
        moved += f.moved != 0
    assert len(ports) == 32768 - 10240
    assert moved < 400, "of eight ports one mostly needs no other numbers"
    b.audit()
