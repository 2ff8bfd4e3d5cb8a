# SPDX-License-Identifier: Apache-2.0
"""Which outbound packets the XDP program takes away from the kernel for SNAT rules (the rest of steering: steering.py).

A rule has a bit. A packet is taken if one bit is left of all these: rules in force, its protocol's, its interface's, its source's
longest prefix', its destination's, which is not the host's own. So the program asks for all that the engine asks for, but for the
interface of the way out: what that alone decides otherwise comes back to the kernel by the exception path.

    new rule        not steered ──every worker has applied it──► steered ──its name is gone──► not steered
    changed rule    the old one's bit stays until the new one, which has a bit of its own, is steered

The program knows ports (nic.py), rules name interfaces: a bond's slave is the bond to it. What comes by a port is for the host if
it is sent to the port's MAC, or to that of the bond or of a VLAN device above.

A prefix's value has the bits of shorter prefixes, too, since a lookup ends at the longest. Tables change entry by entry, and each
step keeps what the bits in force mean. A new master does not know what the bits that it finds mean: it keeps them until its own
are in force.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from lbd.master.desired import Desired, Interface, Range, SnatRule
from lbd.master.encode import family
from lbd.shm import _shm as shm

Prefix = tuple[int, bytes, int]  # af, address, length
Table = Mapping[Prefix, int]
TABLES = ("snat_src", "snat_dst")
IFACES = 16
BITS = 64
PROTOCOLS = (shm.SNAT_TCP, shm.SNAT_UDP, shm.SNAT_ICMP)  # STEER_TCP … of steer.h
NONE = (0, 0, (0,) * len(PROTOCOLS), (0,) * IFACES)


class SnatSteering:
    """`program`: lbd.xdp._xsk.Program."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self._locals: set[tuple[int, bytes]] = set(program.locals())
        self._tables: dict[str, dict[Prefix, int]] = {name: program.prefixes(name) for name in TABLES}
        self._bits: dict[SnatRule, int] = {}  # in force, of this master
        self._wanted: tuple[SnatRule, ...] = ()
        self._macs: dict[int, bytes] = {}  # by port
        self._others: set[tuple[int, bytes]] = set(program.macs())  # port, MAC of a device above it
        self._of: dict[int, int] = {}  # port -> the interface that it receives for, where the numbers differ
        self._foreign = program.snat()  # a predecessor's

    def prepare(self, desired: Desired) -> None:
        """Before workers are told: nothing new is steered yet; what is gone, no more."""
        self._wanted = desired.snat
        self._own(desired.own if desired.snat else frozenset())
        moved = self._links(desired.interfaces)
        names = {rule.name for rule in self._wanted}
        kept = {rule: bit for rule, bit in self._bits.items() if rule.name in names}
        if len(kept) < len(self._bits) or (not self._wanted and self._foreign[0]):
            self._bits = kept
            if not self._wanted:
                self._foreign = NONE
            self._force()
            self._fill(kept, keep=self._foreign[0])
        elif moved:
            self._force()

    def extend(self) -> None:
        """After every worker has applied it."""
        if self._bits.keys() == set(self._wanted) and not self._foreign[0]:
            return
        old = self._bits
        used = self._foreign[0] | sum(1 << bit for bit in old.values())
        free = [bit for bit in range(BITS) if not used >> bit & 1]
        if len(free) < len(self._wanted):  # a predecessor died in the midst of a change: its bits go first, for a moment
            self._foreign = NONE
            self._force()
            free = [bit for bit in range(BITS) if bit not in old.values()]
        new = {rule: old[rule] if rule in old else free.pop(0) for rule in self._wanted}
        both = {**old, **new}
        self._fill(both, keep=self._foreign[0])
        self._bits = both
        self._force()
        self._bits = new
        self._foreign = NONE
        self._force()
        self._fill(new)

    def stop(self) -> None:
        self._bits, self._wanted = {}, ()
        self._foreign = NONE
        self._force()
        self._fill({})
        self._own(frozenset())

    # -- the program's maps ----------------------------------------------------------------------------------

    def _own(self, own: Iterable[bytes]) -> None:
        wanted = {(family(address), address) for address in own}
        for at in wanted - self._locals:
            self._program.set_local(*at)
        for at in self._locals - wanted:
            self._program.del_local(*at)
        self._locals = wanted

    def _links(self, interfaces: Collection[Interface]) -> bool:
        """Whether ports are other interfaces' now."""
        ports = {i.number: i.mac for i in interfaces if i.number < shm.IFACE_MAX}
        of = {i.number: i.of for i in interfaces if i.of is not None}
        for number, mac in ports.items():
            if self._macs.get(number) != mac:
                self._program.set_mac(number, mac)
                self._macs[number] = mac
        wanted = set()
        for above in interfaces:
            lower = above.lower if above.number >= shm.IFACE_MAX else above.number
            below = [port for port, interface in of.items() if interface == lower] or [lower]
            wanted |= {(port, above.mac) for port in below if above.mac not in (ports.get(port), bytes(6))}
        for at in wanted - self._others:
            self._program.add_mac(*at)
        for at in self._others - wanted:
            self._program.del_mac(*at)
        self._others = wanted
        moved, self._of = of != self._of, of
        return moved

    def _force(self) -> None:
        """The bits in force, and what they mean beside their prefixes."""
        rules, everywhere, protocols, ifaces = self._foreign
        each = [(1 << bit, rule) for rule, bit in self._bits.items()]
        self._program.set_snat(
            rules | sum(bit for bit, _ in each),
            everywhere | sum(bit for bit, rule in each if not rule.destination),
            tuple(
                old | sum(bit for bit, rule in each if rule.protocols & protocol)
                for old, protocol in zip(protocols, PROTOCOLS, strict=True)
            ),
            tuple(
                old | sum(bit for bit, rule in each if rule.in_interface in (None, self._of.get(n, n)))
                for n, old in enumerate(ifaces)
            ),
        )

    def _fill(self, bits: Mapping[SnatRule, int], keep: int = 0) -> None:
        """The tables of prefixes for these rules; `keep`: bits of what is there now that stay as they are."""
        for name, ranges in zip(TABLES, ("source", "destination"), strict=True):
            now = self._tables[name]
            wanted = covered({1 << bit: getattr(rule, ranges) for rule, bit in bits.items()})
            if keep:
                kept = {at: rules & keep for at, rules in now.items() if rules & keep}
                wanted = {at: longest(wanted, at) | longest(kept, at) for at in wanted.keys() | kept.keys()}
            for at, rules in sorted(wanted.items(), key=lambda item: item[0][2]):  # shorter ones first
                if now.get(at) != rules:
                    self._program.set_prefix(name, *at, rules)
            for at in now.keys() - wanted.keys():
                self._program.del_prefix(name, *at)
            self._tables[name] = wanted


def prefixes(ranges: Iterable[Range]) -> Iterable[Prefix]:
    for first, last in ranges:
        for network in summarize_address_range(ip_address(first), ip_address(last)):
            yield family(first), network.network_address.packed, network.prefixlen


def covered(rules: Mapping[int, Iterable[Range]]) -> dict[Prefix, int]:
    """Of each prefix that a rule names the bits of all rules that cover it."""
    plain: dict[Prefix, int] = {}
    for bit, ranges in rules.items():
        for at in prefixes(ranges):
            plain[at] = plain.get(at, 0) | bit
    lengths = {af: sorted({length for a, _, length in plain if a == af}) for af in (4, 6)}
    return {at: every(plain, at, lengths[at[0]]) for at in plain}


def every(plain: Table, at: Prefix, lengths: Iterable[int]) -> int:
    """The bits of the prefix and of all that contain it."""
    rules = 0
    for length in lengths:
        if length <= at[2]:
            rules |= plain.get(shortened(at, length), 0)
    return rules


def longest(table: Table, at: Prefix) -> int:
    """What a lookup finds of a table whose entries have the bits of shorter ones."""
    for length in range(at[2], -1, -1):
        if (rules := table.get(shortened(at, length))) is not None:
            return rules
    return 0


def shortened(at: Prefix, length: int) -> Prefix:
    if length == at[2]:
        return at
    network = ip_network((at[1], length), strict=False)
    return at[0], network.network_address.packed, length
