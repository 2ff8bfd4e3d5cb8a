"""Which packets the XDP program takes for SNAT rules, by BPF_PROG_TEST_RUN (see test_steer.py), and how its maps change."""

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from bench.steer import LOOPBACK, packed
from lbd.master.desired import Desired, Interface, SnatRule
from lbd.master.snat_steering import SnatSteering, covered, longest
from lbd.shm import _shm as shm
from lbd.xdp._xsk import Program
from tests.unit.test_steer import OURS, PASS, Steer

pytestmark = pytest.mark.root

MAC = "02:00:00:00:00:02"
HOST, HOST6 = "10.1.2.3", "fd01::3"
FAR, FAR6 = "203.0.113.9", "2001:db8:9::9"
POOL, POOL6 = "198.51.100.1", "2001:db8:51::1"
OWN, OWN6 = "192.0.2.1", "2001:db8:1::1"
EVERY = shm.SNAT_TCP | shm.SNAT_UDP | shm.SNAT_ICMP


def ranges(*networks: str) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((n[0].packed, n[-1].packed) for n in map(ip_network, networks))


def a_rule(
    name: str = "out",
    source: tuple[str, ...] = ("10.1.0.0/16",),
    destination: tuple[str, ...] = (),
    protocols: int = EVERY,
    in_interface: int | None = None,
) -> SnatRule:
    return SnatRule(name, 0, protocols, ranges(*source), ranges(*destination), (packed(POOL)[1],), in_interface)


def packed_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def desired(*rules: SnatRule, own: tuple[str, ...] = (OWN, OWN6, POOL, POOL6)) -> Desired:
    interface = Interface(3, 1, packed_mac(MAC), 1500, 2)
    return Desired(snat=rules, interfaces=(interface,), own=frozenset(ip_address(a).packed for a in own))


@pytest.fixture
def steer() -> Iterator[Steer]:
    made = Steer()
    made.program.set_iface(LOOPBACK, 3)
    for lip in (POOL, POOL6):
        made.program.set_lip(*packed(lip), 10240, 60000, echo=True)
    yield made
    made.program.close()


def follow(steer: Steer, *rules: SnatRule) -> SnatSteering:
    s = SnatSteering(steer.program)
    s.prepare(desired(*rules))
    s.extend()
    return s


def decide(steer: Steer, packet: Packet, dst: str = MAC) -> str:
    return steer.decide(bytes(Ether(src="02:00:00:00:00:01", dst=dst) / packet))


def out(af: int = 4, l4: Packet | None = None, src: str = "", dst: str = "", **fields: object) -> Packet:
    l4 = l4 if l4 is not None else TCP(sport=1, dport=443, flags="S")
    if af == 4:
        return IP(src=src or HOST, dst=dst or FAR, **fields) / l4
    return IPv6(src=src or HOST6, dst=dst or FAR6, **fields) / l4


def echo(af: int, asks: bool = True, number: int = 20000) -> Packet:
    if af == 4:
        return ICMP(type=8 if asks else 0, id=number)
    return ICMPv6EchoRequest(id=number) if asks else ICMPv6EchoReply(id=number)


BOTH = (a_rule(), a_rule("six", ("fd01::/32",)))
Q4 = IP(src=POOL, dst=FAR)
TABLE: list[tuple[str, Packet, str]] = [
    ("tcp", out(), OURS),
    ("udp", out(4, UDP(sport=1, dport=53)), OURS),
    ("ping", out(4, echo(4)), OURS),
    ("tcp, ipv6", out(6), OURS),
    ("udp, ipv6", out(6, UDP()), OURS),
    ("ping, ipv6", out(6, echo(6)), OURS),
    ("tagged", Dot1Q(vlan=7) / out(), OURS),
    ("another source", out(src="10.2.0.1"), PASS),
    ("another source, ipv6", out(6, src="fd02::1"), PASS),
    ("to the host", out(dst=OWN), PASS),
    ("to the host, ipv6", out(6, dst=OWN6), PASS),
    ("to the pool's address", out(dst=POOL), PASS),
    ("multicast", out(dst="224.0.0.5"), PASS),
    ("multicast, ipv6", out(6, dst="ff02::5"), PASS),
    ("link-local, ipv6", out(6, dst="fe80::1"), PASS),
    ("broadcast", out(dst="255.255.255.255"), PASS),
    ("loopback", out(dst="127.0.0.1"), PASS),
    ("esp", out(4, Raw(b"x" * 20), proto=50), PASS),
    ("an answer to a ping", out(4, echo(4, False)), PASS),
    ("an answer to a ping, ipv6", out(6, echo(6, False)), PASS),
    ("neighbour discovery", out(6, ICMPv6ND_NS(tgt=FAR6)), PASS),
    ("first fragment", out(4, UDP() / Raw(b"x" * 40), flags="MF"), OURS),
    ("later fragment", out(4, Raw(b"x" * 40), proto=17, frag=99), OURS),
    ("later fragment, ipv6", IPv6(src=HOST6, dst=FAR6) / IPv6ExtHdrFragment(nh=17, offset=99) / Raw(b"x" * 40), OURS),
    ("ping in fragments", out(4, echo(4) / Raw(b"x" * 64), flags="MF", id=1), OURS),
    ("ping in fragments, later", out(4, Raw(b"x" * 40), proto=1, frag=9, id=1), OURS),
    ("pool: echo answer in fragments", IP(src=FAR, dst=POOL, flags="MF", id=2) / echo(4, False) / Raw(b"x" * 64), OURS),
    ("pool: echo answer in fragments, later", IP(src=FAR, dst=POOL, proto=1, frag=9, id=2) / Raw(b"x" * 40), OURS),
    ("pool: echo answer in fragments, ipv6",
     IPv6(src=FAR6, dst=POOL6) / IPv6ExtHdrFragment(m=1, id=3) / echo(6, False) / Raw(b"x" * 64), OURS),
    ("pool: echo answer in fragments, ipv6, later",
     IPv6(src=FAR6, dst=POOL6) / IPv6ExtHdrFragment(nh=58, offset=9, id=3) / Raw(b"x" * 40), OURS),
    ("pool: ping in fragments", IP(src=FAR, dst=POOL, flags="MF", id=4) / echo(4) / Raw(b"x" * 64), PASS),
    ("with options", IP(src=HOST, dst=FAR, ihl=6, options=b"\x01\x01\x01\x00") / UDP(), OURS),
    ("pool: a port of lbd's", IP(src=FAR, dst=POOL) / TCP(sport=443, dport=20000), OURS),
    ("pool: another port", IP(src=FAR, dst=POOL) / TCP(sport=443, dport=22), PASS),
    ("pool: echo answer", IP(src=FAR, dst=POOL) / echo(4, False), OURS),
    ("pool: echo answer, ipv6", IPv6(src=FAR6, dst=POOL6) / echo(6, False), OURS),
    ("pool: echo answer, another identifier", IP(src=FAR, dst=POOL) / echo(4, False, 7), PASS),
    ("pool: ping", IP(src=FAR, dst=POOL) / echo(4, True), PASS),
    ("error about an echo request", IP(src="9.9.9.9", dst=POOL) / ICMP(type=3) / Q4 / echo(4), OURS),
    ("error about an echo request of another's", IP(src="9.9.9.9", dst=POOL) / ICMP(type=3) / Q4 / echo(4, True, 7), PASS),
    ("error about tcp", IP(src="9.9.9.9", dst=POOL) / ICMP(type=3) / Q4 / TCP(sport=20000, dport=443), OURS),
    ("error from inside", IP(src=HOST, dst=FAR) / ICMP(type=3) / IP(src=FAR, dst=HOST) / UDP(sport=53, dport=9), OURS),
    ("error from inside, echo", IP(src=HOST, dst=FAR) / ICMP(type=3) / IP(src=FAR, dst=HOST) / echo(4, False), OURS),
    ("error from inside, ipv6", IPv6(src=HOST6, dst=FAR6) / ICMPv6DestUnreach() / IPv6(src=FAR6, dst=HOST6) / UDP(), OURS),
    ("error from inside to the host", IP(src=HOST, dst=OWN) / ICMP(type=3) / IP(src=OWN, dst=HOST) / UDP(), PASS),
]  # fmt: skip


@pytest.mark.parametrize(("packet", "decision"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_decision(steer: Steer, packet: Packet, decision: str) -> None:
    follow(steer, *BOTH)
    assert decide(steer, packet) == decision


def test_later_fragments_of_a_ping_of_the_pool_follow_the_first_one(steer: Steer) -> None:
    follow(steer, *BOTH)
    assert decide(steer, IP(src=FAR, dst=POOL, flags="MF", id=4) / echo(4) / Raw(b"x" * 64)) == PASS
    assert decide(steer, IP(src=FAR, dst=POOL, proto=1, frag=9, id=4) / Raw(b"x" * 40)) == PASS


def test_without_rules_nothing_is_taken(steer: Steer) -> None:
    assert decide(steer, out()) == PASS
    s = follow(steer, *BOTH)
    assert decide(steer, out()) == OURS
    s.prepare(desired())
    assert decide(steer, out()) == PASS
    s.extend()
    assert decide(steer, out()) == PASS and not steer.program.prefixes("snat_src") and not steer.program.locals()


def test_only_what_is_sent_to_the_interface(steer: Steer) -> None:
    """A macvlan's MAC, a flooded frame, a broadcast: the kernel's."""
    follow(steer, *BOTH)
    for mac in ("02:00:00:00:00:03", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:05"):
        assert decide(steer, out(), mac) == PASS


@pytest.mark.parametrize("protocols", [shm.SNAT_TCP, shm.SNAT_UDP, shm.SNAT_ICMP])
def test_protocols(steer: Steer, protocols: int) -> None:
    follow(steer, a_rule(protocols=protocols))
    kinds = {shm.SNAT_TCP: TCP(), shm.SNAT_UDP: UDP(), shm.SNAT_ICMP: echo(4)}
    assert {p for p, l4 in kinds.items() if decide(steer, out(4, l4)) == OURS} == {protocols}


def test_interface(steer: Steer) -> None:
    s = follow(steer, a_rule(in_interface=2))
    assert decide(steer, out()) == PASS
    s.prepare(desired(a_rule(in_interface=3)))
    s.extend()
    assert decide(steer, out()) == OURS


ABOVE = "02:00:00:00:00:09"
PLAIN = Interface(3, 1, packed_mac(MAC), 1500, 2)
VLAN = Interface(shm.IFACE_MAX, 7, packed_mac(ABOVE), 1500, 2, lower=3, tags=7)
SLAVE = Interface(3, 1, packed_mac(MAC), 1500, 2, of=0)
BOND = Interface(0, 9, packed_mac(ABOVE), 1500, 2, members=(3,))
ON_BOND = Interface(shm.IFACE_MAX, 7, packed_mac("02:00:00:00:00:0a"), 1500, 2, lower=0, tags=7)


def test_devices_above_a_port(steer: Steer) -> None:
    """Their MACs count, while they are there; a rule for a bond is for what its slaves receive, as soon as they are."""
    s, rule = follow(steer, a_rule()), a_rule(in_interface=0)
    own = desired().own

    def takes(interfaces: tuple[Interface, ...], *rules: SnatRule) -> list[str]:
        s.prepare(Desired(snat=rules, interfaces=interfaces, own=own))
        s.extend()
        return [mac[-1] for mac in (MAC, ABOVE, "02:00:00:00:00:0a") if decide(steer, out(), mac) == OURS]

    assert takes((PLAIN,), a_rule()) == ["2"]
    assert takes((PLAIN, VLAN), a_rule()) == ["2", "9"]
    assert takes((PLAIN,), a_rule()) == ["2"] and not steer.program.macs()
    assert takes((PLAIN, BOND), rule) == [], "not the bond's"
    assert takes((SLAVE, BOND, ON_BOND), rule) == ["2", "9", "a"], "the same rule"
    successor = SnatSteering(steer.program)
    successor.prepare(Desired(snat=(rule,), interfaces=(SLAVE, BOND), own=own))
    assert steer.program.macs() == {(3, packed_mac(ABOVE))} and decide(steer, out(), ABOVE) == OURS
    successor.extend()
    assert decide(steer, out(), ABOVE) == OURS
    assert takes((replace(SLAVE, number=4), BOND), rule) == [], "another slave, while the program knows this one by 3"


def test_sources_and_destinations_belong_together(steer: Steer) -> None:
    """A source of one rule and a destination of another make no match, overlapping prefixes of both do as each says."""
    follow(
        steer,
        a_rule("a", ("10.1.0.0/16",), ("203.0.113.0/24",)),
        a_rule("b", ("10.1.2.0/24", "10.3.0.0/16"), ("198.18.0.0/15",)),
        a_rule("c", ("10.0.0.0/8",), ("203.0.113.128/25", "8.8.8.8/32")),
    )
    cases = {("10.1.2.3", "203.0.113.9"): OURS, ("10.1.2.3", "198.18.0.1"): OURS, ("10.1.9.9", "198.18.0.1"): PASS,
             ("10.3.0.1", "203.0.113.9"): PASS, ("10.3.0.1", "203.0.113.200"): OURS, ("10.3.0.1", "198.19.0.1"): OURS,
             ("10.9.9.9", "8.8.8.8"): OURS, ("10.9.9.9", "8.8.8.9"): PASS, ("10.9.9.9", "203.0.113.1"): PASS,
             ("11.0.0.1", "8.8.8.8"): PASS, ("10.1.9.9", "203.0.113.200"): OURS}  # fmt: skip
    for (src, dst), decision in cases.items():
        assert decide(steer, out(src=src, dst=dst)) == decision, (src, dst)


def test_a_change_leaves_no_gap(steer: Steer) -> None:
    """A rule that changes is steered all the time: before workers know the new one by the old one's bit, then by its own."""
    s = follow(steer, *BOTH)
    wider = a_rule(source=("10.0.0.0/8",))
    program = steer.program

    class Watching:
        """Looks after each step what the program decides."""

        def __getattr__(self, name: str) -> object:
            step = getattr(program, name)

            def watched(*args: object) -> object:
                done = step(*args)
                assert decide(steer, out()) == OURS and decide(steer, out(6)) == OURS, name
                assert decide(steer, out(src="11.0.0.1")) == PASS
                return done

            return watched

    s._program = Watching()
    s.prepare(desired(wider, BOTH[1]))
    assert decide(steer, out(src="10.2.0.1")) == PASS, "not before workers know"
    s.extend()
    assert decide(steer, out(src="10.2.0.1")) == OURS
    s.prepare(desired(BOTH[1], wider))
    s.extend()


def test_a_removed_rule_ends_before_workers_are_told(steer: Steer) -> None:
    s = follow(steer, *BOTH)
    s.prepare(desired(BOTH[1]))
    assert decide(steer, out()) == PASS and decide(steer, out(6)) == OURS


def test_a_successor_keeps_what_is_steered(steer: Steer) -> None:
    """Until its own rules are in force; what its predecessor had beside them goes then."""
    follow(steer, *BOTH, a_rule("third", ("172.16.0.0/12",)))
    program = Program.adopt(dup(steer.program.fds))
    try:
        s = SnatSteering(program)
        s.prepare(desired(*BOTH))
        assert decide(steer, out()) == OURS and decide(steer, out(src="172.16.0.1")) == OURS
        s.extend()
        assert decide(steer, out()) == OURS and decide(steer, out(6)) == OURS
        assert decide(steer, out(src="172.16.0.1")) == PASS
        assert bin(program.snat()[0]).count("1") == 2
        s.stop()
        assert decide(steer, out()) == PASS and program.snat()[0] == 0
    finally:
        program.close()


def dup(fds: dict[str, int]) -> dict[str, int]:
    return {name: os.dup(fd) for name, fd in fds.items()}


def test_many_rules(steer: Steer) -> None:
    """As many as there can be, all of them changed at once."""
    rules = [a_rule(f"r{n}", (f"10.{n}.0.0/16",)) for n in range(32)]
    s = follow(steer, *rules)
    assert all(decide(steer, out(src=f"10.{n}.0.1")) == OURS for n in range(32))
    s.prepare(desired(*(a_rule(f"r{n}", (f"10.{n + 100}.0.0/16",)) for n in range(32))))
    s.extend()
    assert all(decide(steer, out(src=f"10.{n + 100}.0.1")) == OURS for n in range(32))
    assert all(decide(steer, out(src=f"10.{n}.0.1")) == PASS for n in range(32))


def test_prefixes_have_the_bits_of_shorter_ones() -> None:
    table = covered({1: ranges("10.0.0.0/8"), 2: ranges("10.1.0.0/16", "10.1.2.0/24"), 4: ranges("10.1.2.0/24")})
    by_text = {f"{ip_address(address)}/{length}": rules for (_, address, length), rules in table.items()}
    assert by_text == {"10.0.0.0/8": 1, "10.1.0.0/16": 3, "10.1.2.0/24": 7}
    assert longest(table, (4, packed("10.1.2.3")[1], 32)) == 7 and longest(table, (4, packed("11.0.0.1")[1], 32)) == 0
    assert covered({1: ((packed("10.0.0.1")[1], packed("10.0.0.2")[1]),)}) == {
        (4, packed("10.0.0.1")[1], 32): 1, (4, packed("10.0.0.2")[1], 32): 1
    }  # fmt: skip


