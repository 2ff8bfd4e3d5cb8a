"""Bonds: which slave a frame leaves by, what workers are told of bonds, and numbers of ports."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lbd.config import Config, loads
from lbd.master.nic import PORTS_MAX, Nic, nics, numbered
from lbd.master.reach import Reach
from lbd.master.record import Address, Link, Snapshot
from lbd.master.refusal import Refusal
from lbd.shm import _shm as shm
from tests.unit import _engine

L2, L23, L34 = shm.BOND_L2, shm.BOND_L23, shm.BOND_L34
TEXT = "[workers]\ncount = 2\n" + "".join(f'[[interface]]\nname = "{name}"\n' for name in ("bond0", "eth9"))
MAC = b"\2\0\0\0\0\1"

# -- hash ----------------------------------------------------------------------------------------------------------


def frame(src: str = "10.0.0.1", dst: str = "10.0.1.1", sport: int = 1000, dport: int = 80, mac: int = 1,
          tags: tuple[int, ...] = (), kind: type = TCP) -> bytes:  # fmt: skip
    p: Packet = Ether(src=f"02:00:00:00:00:{mac:02x}", dst="02:00:00:00:01:00")
    for tag in tags:
        p /= Dot1AD(vlan=tag) if tag > 99 else Dot1Q(vlan=tag)
    return bytes(p / (IPv6(src=src, dst=dst) if ":" in src else IP(src=src, dst=dst)) / kind(sport=sport, dport=dport) / Raw(b"x"))


def ends(family: int) -> tuple[str, str, str]:
    return ("10.0.0.1", "10.0.1.1", "10.0.0.2") if family == 4 else ("fd00::1", "fd00:1::1", "fd00::2")


@pytest.mark.parametrize("tags", [(), (7,), (100, 7), (9, 7)])
@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("policy", [L2, L23, L34])
def test_what_the_hash_is_of(policy: int, family: int, kind: type, tags: tuple[int, ...]) -> None:
    """As Documentation/networking/bonding.rst describes xmit_hash_policy: alike but for one thing, is it another hash?"""
    src, dst, other = ends(family)

    def hashed(**more: object) -> int:
        return _engine.bond_hash(frame(**{"src": src, "dst": dst, "kind": kind, "tags": tags, **more}), policy)  # type: ignore[arg-type]

    assert (hashed() != hashed(mac=2)) == (policy != L34)
    assert (hashed() != hashed(src=other)) == (policy != L2)
    assert (hashed() != hashed(sport=1001)) == (hashed() != hashed(dport=81)) == (policy == L34)


def test_what_has_no_ports() -> None:
    """Fragments have those of their first one nowhere, so none has; errors, ARP, and what is cut off."""
    plain = IP(src="10.0.0.1", dst="10.0.1.1")
    whole = Ether(dst="02:00:00:00:00:02") / plain / UDP(sport=1, dport=2) / Raw(bytes(64))
    first, later = (Ether(dst="02:00:00:00:00:02") / IP(src=plain.src, dst=plain.dst, proto=17, **f) / Raw(bytes([n]) * 64)
                    for n, f in enumerate(({"flags": "MF"}, {"frag": 8})))  # fmt: skip
    assert len({_engine.bond_hash(bytes(p), L34) for p in (first, later)}) == 1
    assert _engine.bond_hash(bytes(whole), L34) != _engine.bond_hash(bytes(first), L34)
    macs = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    assert _engine.bond_hash(bytes(macs / ARP()), L34) == _engine.bond_hash(bytes(macs / Raw(b"other")), L2)
    assert _engine.bond_hash(bytes(macs / plain / ICMP()), L34) == _engine.bond_hash(bytes(macs / plain / ICMP(type=0, seq=9)), L34)
    for n in range(60):
        for policy in (L2, L23, L34):
            _engine.bond_hash(bytes(whole)[:n], policy)


def test_flows_are_spread_evenly() -> None:
    for slaves in (2, 3, 8):
        counts = Counter((_engine.bond_hash(frame(sport=1024 + n), L34) * slaves) >> 32 for n in range(4000))
        assert len(counts) == slaves and max(counts.values()) < 1.15 * 4000 / slaves


# -- what workers are told -----------------------------------------------------------------------------------------


def link(ifindex: int, name: str, **more: object) -> Link:
    given = {"mac": MAC, "mtu": 1500, "up": True, "kind": "", "master": None, "link": None, **more}
    return Link(ifindex, name, **given)  # type: ignore[arg-type]


def config(text: str = TEXT) -> Config:
    return loads(text)


SLAVES = tuple(link(n, f"eth{n}", master=20, kind="veth" if n == 3 else "") for n in (2, 3, 4))
PORTS = {2: 2, 3: 3, 4: 5, 9: 1}  # ifindex -> port number


def reach(mode: int, policy: int = 0, slaves: tuple[Link, ...] = SLAVES, **bond: object) -> Reach:
    links = (*slaves, link(20, "bond0", kind="bond", bond_mode=mode, bond_policy=policy, **bond), link(9, "eth9"),
             link(30, "bond0.7", kind="vlan", link=20, vlan=7))  # fmt: skip
    snapshot = Snapshot(links, (Address(20, ip_interface("10.0.0.1/24"), 0),), (), (), (), ())
    return Reach(config(), snapshot, frozenset({2}), PORTS)


@pytest.mark.parametrize(
    ("mode", "policy", "told"),
    [
        (0, 0, shm.BOND_TURN), (2, 0, L2), (2, 1, L34), (2, 2, L23), (4, 0, L2), (4, 1, L34), (4, 2, L23), (4, 3, L23), (4, 4, L34),
        (4, 5, L2), (4, 99, L2),
    ],
)  # fmt: skip
def test_a_bond_sends_by_the_slaves_that_the_kernel_sends_by(mode: int, policy: int, told: int) -> None:
    seen = {i.number: i for i in reach(mode, policy).interfaces()}
    assert (seen[0].policy, seen[0].members, seen[0].of) == (told, (2, 3, 5), None)
    assert seen[0].flags & shm.IFACE_PARTIAL, "one of them is a veth: checksums may be partial"
    assert [seen[n].of for n in (2, 3, 5)] == [0, 0, 0] and seen[1].of is None and seen[1].members == ()
    assert seen[0].address4 and not seen[2].address4
    assert seen[shm.IFACE_MAX].lower == 0 and seen[shm.IFACE_MAX].tags == 7
    pulled = (replace(SLAVES[0], up=False), replace(SLAVES[1], sends=False), SLAVES[2])
    assert reach(mode, policy, pulled).interfaces()[0].members == (5,)
    assert reach(mode, policy, tuple(replace(s, up=False) for s in SLAVES)).interfaces()[0].members == ()


def test_active_backup_sends_by_the_active_one() -> None:
    for active in range(3):
        slaves = tuple(replace(s, sends=n == active) for n, s in enumerate(SLAVES))
        assert reach(1, 0, slaves).interfaces()[0].members == ((2, 3, 5)[active],)
    assert reach(6).interfaces()[0].members == (2,), "balance-alb: one of them"


def test_an_interface_whose_port_has_another_number() -> None:
    """Made anew, while frames are still held under its own number."""
    snapshot = Snapshot((link(7, "eth9"),), (), (), (), (), ())
    own, port = Reach(config(TEXT.replace("bond0", "gone")), snapshot, ports={7: 4}).interfaces()
    assert (own.number, own.members, own.policy) == (1, (4,), shm.BOND_TURN) and (port.number, port.of) == (4, 1)


# -- numbers -------------------------------------------------------------------------------------------------------


def test_nics_of_bonds_are_their_slaves() -> None:
    links = (*reversed(SLAVES), link(20, "bond0", kind="bond"), link(9, "eth9"), link(10, "eth10", master=77))
    assert nics(config(), links) == [Nic(0, 2, "eth2"), Nic(0, 3, "eth3"), Nic(0, 4, "eth4"), Nic(1, 9, "eth9")]
    assert nics(config(), (link(9, "eth9"),)) == [Nic(1, 9, "eth9")]


def test_numbers_of_ports_stay_and_rest() -> None:
    all_of_them = nics(config(), (*SLAVES, link(20, "bond0", kind="bond"), link(9, "eth9")))
    first = numbered(config(), all_of_them, {})
    assert {n: nic.name for n, nic in first.items()} == {1: "eth9", 2: "eth2", 3: "eth3", 4: "eth4"}
    held = {nic.ifindex: n for n, nic in first.items() if nic.name != "eth3"}
    anew = [nic for nic in all_of_them if nic.name != "eth9"] + [Nic(1, 99, "eth9")]
    again = numbered(config(), anew, held, resting={1, 3})
    assert {n: nic.name for n, nic in again.items()} == {2: "eth2", 4: "eth4", 5: "eth3", 6: "eth9"}
    with pytest.raises(Refusal, match=r"one port too many.*15 in all"):
        numbered(config(), [Nic(0, 100 + n, f"s{n}") for n in range(PORTS_MAX)], {})


def test_addresses_of_a_bond_are_the_bond_s() -> None:
    hops = reach(4).next_hops([ip_address("10.0.0.7")])
    assert hops == set(), "no route, no next hop"
    assert reach(4).places == {20: (0, 0), 9: (1, 0), 30: (0, 7)}, "a slave itself has no addresses"
