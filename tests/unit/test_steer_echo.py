"""Which packets the XDP program takes for services of ICMP, by BPF_PROG_TEST_RUN (see test_steer.py)."""

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from bench.steer import LOOPBACK, packed
from lbd.xdp._xsk import Program
from tests.unit.test_steer import (
    CLIENT,
    CLIENT6,
    END,
    HI,
    HOP,
    LIP,
    LIP6,
    LO,
    NAT,
    NAT6,
    OURS,
    PASS,
    SERVER,
    SERVER6,
    VIP,
    VIP6,
    Steer,
    frames_of,
)
from tests.unit.test_steer_snat import dup

pytestmark = pytest.mark.root

BARE, BARE6 = "192.0.2.12", "2001:db8::12"  # VIPs without a service of ICMP
OTHER, OTHER6 = "10.0.0.11", "fd00::11"  # local addresses that send no echo requests
NUMBER = {4: 1, 6: 58}
ENDS = {4: (CLIENT, VIP, BARE, LIP, OTHER, NAT, SERVER), 6: (CLIENT6, VIP6, BARE6, LIP6, OTHER6, NAT6, SERVER6)}


@pytest.fixture(scope="module")
def steer() -> Iterator[Steer]:
    made = Steer()
    p = made.program
    p.set_iface(LOOPBACK, 3)
    for af, (_, vip, bare, lip, other, nat, _) in ENDS.items():
        p.set_service(*packed(vip), 0, NUMBER[af])
        p.set_service(*packed(vip), 80, 6)
        p.set_service(*packed(bare), 80, 6)
        p.set_lip(*packed(lip), LO, HI, echo=True)
        p.set_lip(*packed(other), LO, HI)
        p.set_source(*packed(nat), 0, NUMBER[af])
    p.set_tunnel(4, packed(END)[1], b"", 4, 0)
    yield made
    p.close()


def ask(af: int, number: int = 20000, code: int = 0) -> Packet:
    return ICMP(type=8, id=number, code=code) if af == 4 else ICMPv6EchoRequest(id=number, code=code)


def reply(af: int, number: int = 20000) -> Packet:
    return ICMP(type=0, id=number) if af == 4 else ICMPv6EchoReply(id=number)


def from_to(af: int, src: str, dst: str, **fields: object) -> Packet:
    return IP(src=src, dst=dst, **fields) if af == 4 else IPv6(src=src, dst=dst, **fields)


def error(af: int, dst: str, quoted: Packet) -> Packet:
    router = "10.9.9.9" if af == 4 else "fd00:9::9"
    return from_to(af, router, dst) / (ICMP(type=3, code=4) if af == 4 else ICMPv6PacketTooBig()) / quoted


def part(af: int, src: str, dst: str, l4: Packet, ident: int) -> list[Packet]:
    """The first fragment of it, and a later one."""
    more = Raw(b"x" * 64)
    if af == 4:
        return [IP(src=src, dst=dst, flags="MF", id=ident) / l4 / more, IP(src=src, dst=dst, proto=1, frag=9, id=ident) / more]
    head = IPv6(src=src, dst=dst)
    return [head / IPv6ExtHdrFragment(m=1, id=ident) / l4 / more, head / IPv6ExtHdrFragment(nh=58, offset=9, id=ident) / more]


def table(af: int) -> Iterator[tuple[str, Packet, str]]:
    client, vip, bare, lip, other, nat, server = ENDS[af]
    yield "a ping of the VIP", from_to(af, client, vip) / ask(af), OURS
    yield "with identifier 0", from_to(af, client, vip) / ask(af, 0), OURS
    yield "of a VIP without such a service", from_to(af, client, bare) / ask(af), PASS
    yield "of another address", from_to(af, client, server) / ask(af), PASS
    yield "with a code", from_to(af, client, vip) / ask(af, code=1), PASS
    yield "an answer to the VIP", from_to(af, client, vip) / reply(af), PASS
    yield "a ping of the local address", from_to(af, server, lip) / ask(af), PASS
    yield "an answer to the local address", from_to(af, server, lip) / reply(af), OURS
    yield "the lowest identifier", from_to(af, server, lip) / reply(af, LO), OURS
    yield "below the lowest", from_to(af, server, lip) / reply(af, LO - 1), PASS
    yield "above the highest", from_to(af, server, lip) / reply(af, HI + 1), PASS
    yield "an answer to a local address that does not ask", from_to(af, server, other) / reply(af), PASS
    yield "an answer of a real server of nat", from_to(af, nat, client) / reply(af, 5), OURS
    yield "a ping of a real server of nat", from_to(af, nat, client) / ask(af, 5), PASS
    yield "an answer of another server", from_to(af, server, client) / reply(af, 5), PASS
    yield "UDP of a real server of nat", from_to(af, nat, client) / UDP(sport=5, dport=9), PASS
    yield "TCP to another port of the VIP", from_to(af, client, vip) / TCP(dport=22), PASS
    yield "TCP to port 0", from_to(af, client, vip) / TCP(dport=0), PASS
    yield "TCP to the service", from_to(af, client, vip) / TCP(dport=80), OURS
    yield "an error about an answer", error(af, vip, from_to(af, vip, client) / reply(af)), OURS
    yield "an error about the host's ping from the VIP", error(af, vip, from_to(af, vip, client) / ask(af)), PASS
    yield "an error about a ping of lbd's", error(af, lip, from_to(af, lip, server) / ask(af)), OURS
    yield "an error about a ping of the host's", error(af, lip, from_to(af, lip, server) / ask(af, 7)), PASS
    yield "an error about an answer of the host's", error(af, lip, from_to(af, lip, server) / reply(af)), PASS
    yield "an error about a ping by nat", error(af, client, from_to(af, client, nat) / ask(af)), OURS
    yield "an error about a client's ping", error(af, client, from_to(af, client, server) / ask(af)), PASS
    rows = (
        ("a ping of the VIP", client, vip, ask(af), OURS), ("an answer to the local address", server, lip, reply(af), OURS),
        ("an answer of a real server of nat", nat, client, reply(af, 5), OURS),
        ("a ping of a VIP without such a service", client, bare, ask(af), PASS),
        ("an answer to the VIP", client, vip, reply(af), PASS),
        ("an answer to the host's own ping", server, lip, reply(af, LO - 1), PASS),
        ("an answer to a local address that does not ask", server, other, reply(af), PASS),
        ("a ping of a real server of nat", nat, client, ask(af, 5), PASS),
    )  # fmt: skip
    for ident, (what, src, dst, l4, decision) in enumerate(rows, 100):
        for n, packet in enumerate(part(af, src, dst, l4, ident)):
            yield f"in fragments: {what}, {n}", packet, decision
    later = part(af, client, vip, ask(af), 200)[1]
    yield "a later fragment to the VIP, of what nobody has seen the first one", later, OURS
    yield "the same to a VIP without such a service", part(af, client, bare, ask(af), 201)[1], PASS
    other_kind = ICMP(type=13) if af == 4 else ICMPv6ND_NS(tgt=vip)
    yield "another question", from_to(af, client, vip) / other_kind, PASS
    yield "in a tunnel that ends here", IP(src=CLIENT, dst=END) / from_to(af, client, vip) / ask(af), OURS
    wrong = {"proto" if af == 4 else "nh": NUMBER[10 - af]}
    yield "the other family's number", from_to(af, client, vip, **wrong) / Raw(bytes(ask(af))), PASS


ROWS = [
    *((f"IPv{af}: {what}", packet, decision) for af in (4, 6) for what, packet, decision in table(af)),
    ("options", IP(src=CLIENT, dst=VIP, options=[IPOption_NOP()] * 8) / ask(4), OURS),
    ("extension headers", IPv6(src=CLIENT6, dst=VIP6) / HOP / ask(6), OURS),
    ("an error of another kind", IPv6(src="fd00:9::9", dst=VIP6) / ICMPv6DestUnreach() / IPv6(src=VIP6) / reply(6), OURS),
]


@pytest.mark.parametrize(("packet", "decision"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_decision(steer: Steer, packet: Packet, decision: str) -> None:
    decided = {tags: steer.decide(frame) for tags, frame in frames_of(packet).items()}
    assert decided == dict.fromkeys(decided, decision)


def test_truncated_at_every_byte(steer: Steer) -> None:
    for packet, needed in ((from_to(4, CLIENT, VIP) / ask(4), 28), (from_to(6, CLIENT6, VIP6) / ask(6), 48)):
        for frame in frames_of(packet).values():
            for size in range(14, len(frame) + 1):
                assert steer.decide(frame[:size]) == (OURS if size >= len(frame) - len(packet) + needed else PASS), size


def test_services_come_and_go() -> None:
    """Port 0 of ICMP's is not every port; a successor finds what there is."""
    made = Steer()
    p = made.program
    try:
        p.set_iface(LOOPBACK, 3)
        pings = {af: bytes(frames_of(from_to(af, ENDS[af][0], ENDS[af][1]) / ask(af))["untagged"]) for af in (4, 6)}
        assert {made.decide(frame) for frame in pings.values()} == {PASS}
        for af, frame in pings.items():
            p.set_service(*packed(ENDS[af][1]), 0, NUMBER[af])
            assert made.decide(frame) == OURS
            assert made.decide(bytes(frames_of(from_to(af, ENDS[af][0], ENDS[af][1]) / TCP(dport=22))["untagged"])) == PASS
        successor = Program.adopt(dup(p.fds))
        assert {made.decide(frame) for frame in pings.values()} == {OURS}
        for af, frame in pings.items():
            successor.del_service(*packed(ENDS[af][1]), 0, NUMBER[af])
            assert made.decide(frame) == PASS
        successor.close()
    finally:
        p.close()
