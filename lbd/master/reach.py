# SPDX-License-Identifier: Apache-2.0
"""How workers get a frame out: interfaces, neighbours and routes of the mirrored kernel, in the workers' terms.

Scope: records of the mirror in, desired values out; pure. Workers know interfaces by their place in the configuration
and a VLAN by its tags, so an ifindex becomes (number, tags).

- A VLAN device on one of lbd's interfaces, or on a VLAN device there (QinQ), is that interface with its tags; its MTU, MAC
  and state are told as those of an interface with a number beyond IFACE_MAX. A third tag is beyond lbd.
- A bond sends by the slaves that the kernel sends by. One that lbd was given the slaves of is the first of them that is up.
- A route that leads out of anything else stays, with the number ELSEWHERE, which no interface has: a shorter prefix
  must not take its place. So does a route that lbd can't follow (blackhole; an IPv4 route with an IPv6 gateway).
- Of several routes with one prefix the one with the least metric counts.
- Static entries of the configuration fill gaps: where the kernel knows better, the kernel counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network
from types import MappingProxyType

from lbd.config import Config
from lbd.config.frame import MTU_LIMIT
from lbd.config.snat import AddressRange
from lbd.master import record
from lbd.master.desired import (
    IFACE_COMPLETES,
    IFACE_PARTIAL,
    IFACE_UP,
    IFACE_ZERO_COPY,
    Interface,
    Neighbour,
    Route,
)
from lbd.master.record import Address, Address4or6, Link, Snapshot
from lbd.shm import _shm as shm

ELSEWHERE = shm.IFACE_MAX - 1  # NB: free unless there are 16 interfaces; then such routes are left out
# Links whose other end may be a TCP stack of this host, which leaves checksums to "hardware" that is not there
PARTIAL_KINDS = ("veth", "tun", "netkit", "bridge", "macvlan", "macvtap", "ipvlan", "vxlan", "geneve")
NEIGHBOURS_MAX = shm.ADJ_MAX * 3 // 4  # the rest is for MACs learned from clients
ROUTES_MAX = shm.FIB_MAX

VLANS_MAX = shm.LINK_MAX - shm.IFACE_MAX
TURNING, HASHING = (0,), (2, 4)  # modes of a bond: balance-rr; balance-xor, 802.3ad
POLICIES = {0: shm.BOND_L2, 1: shm.BOND_L34, 2: shm.BOND_L23, 3: shm.BOND_L23, 4: shm.BOND_L34}

Place = tuple[int, int]  # interface number, tags
GATEWAYS_MAX = 64
NextHops = set[tuple[int, Address4or6]]  # ifindex, address


class Reach:
    """One snapshot, seen from lbd's interfaces. `ports`: ifindex -> number of what has sockets (nic.py); `zero_copy`: of these
    numbers, those whose sockets are; `mtu_max`: of what packet buffers hold; `completes`: numbers of those by whose sockets the
    kernel completes checksums."""

    def __init__(
        self,
        config: Config,
        snapshot: Snapshot,
        zero_copy: frozenset[int] = frozenset(),
        ports: Mapping[int, int] = MappingProxyType({}),
        mtu_max: int = MTU_LIMIT,
        completes: frozenset[int] = frozenset(),
    ) -> None:
        self.config = config
        self.snapshot = snapshot
        self.zero_copy = zero_copy
        self.ports = ports
        self.mtu_max = mtu_max
        self.completes = completes
        self.links: dict[int, Link] = {}  # of lbd's interfaces, by number
        self.missing: list[str] = []  # interfaces of the configuration that the host does not have
        self.alarms: list[str] = []
        for number, interface in enumerate(config.interface):
            link = snapshot.link(interface.name)
            if link is None:
                self.missing.append(interface.name)
            else:
                self.links[number] = link
                if min(link.mtu, MTU_LIMIT) > mtu_max:
                    self.alarms.append(
                        f"{link.name} has an MTU of {link.mtu}, and packet buffers were made for {mtu_max} bytes: larger packets "
                        f"are lost; ip link set {link.name} mtu {mtu_max}, or restart lbd"
                    )
        self.places = self._places()

    def _places(self) -> dict[int, Place]:
        places: dict[int, Place] = {link.ifindex: (number, 0) for number, link in self.links.items()}
        bonds = {link.ifindex for link in self.snapshot.links if link.kind == "bond"}
        for number, link in sorted(self.links.items(), key=lambda item: not item[1].up):
            if link.master in bonds:
                places.setdefault(link.master, (number, 0))
        vlans = [link for link in self.snapshot.links if link.kind == "vlan" and link.vlan is not None]
        for _ in range(2):  # the outer ones first
            for link in vlans:
                if link.ifindex not in places and link.link in places:
                    number, outer = places[link.link]
                    if (tags := tags_within(link, outer)) is not None:
                        places[link.ifindex] = (number, tags)
        return places

    # -- interfaces ------------------------------------------------------------------------------------------

    def interfaces(self) -> tuple[Interface, ...]:
        own = [self._ported(self._interface(number, link), link) for number, link in self.links.items()]
        return (*own, *self._slaves(), *self._vlan_devices())

    def _nics(self, link: Link) -> list[tuple[int, Link]]:
        """Ports of an interface, and the devices that they are on."""
        devices = [s for s in self.snapshot.links if s.master == link.ifindex] if link.kind == "bond" else [link]
        return sorted(((self.ports[d.ifindex], d) for d in devices if d.ifindex in self.ports), key=lambda found: found[0])

    def _ported(self, interface: Interface, link: Link) -> Interface:
        """With the ports that it sends by, where these are not just its own."""
        nics = self._nics(link)
        if [port for port, _ in nics] == [interface.number] or not self.ports:
            return interface
        partial = IFACE_PARTIAL if any(d.kind in PARTIAL_KINDS for _, d in nics) else 0
        sending = [port for port, d in nics if d.up and d.sends][: shm.MEMBER_MAX]
        policy = bond_policy(link) if link.kind == "bond" else shm.BOND_TURN
        if link.kind == "bond" and link.bond_mode not in TURNING + HASHING:
            sending = sending[:1]  # active-backup and what comes near: one slave at a time
        return replace(interface, flags=interface.flags | partial, policy=policy, members=tuple(sending))

    def _slaves(self) -> Iterator[Interface]:
        for number, link in self.links.items():
            for port, device in self._nics(link):
                if port != number:
                    plain = self._interface(port, device)
                    yield replace(plain, of=number, address4=b"", address6=b"")

    def _vlan_devices(self) -> Iterator[Interface]:
        tagged = [link for link in self.snapshot.links if self.places.get(link.ifindex, (0, 0))[1]]
        if len(tagged) > VLANS_MAX:
            self.alarms.append(f"{len(tagged)} VLAN devices, workers know {VLANS_MAX}: the others' MTU and MAC are not respected")
        for number, link in enumerate(sorted(tagged, key=lambda link: link.ifindex)[:VLANS_MAX], shm.IFACE_MAX):
            lower, tags = self.places[link.ifindex]
            yield replace(self._interface(number, link), lower=lower, tags=tags)

    def _interface(self, number: int, link: Link) -> Interface:
        flags = IFACE_UP if link.up else 0
        if link.kind in PARTIAL_KINDS:
            flags |= IFACE_PARTIAL
        if number in self.zero_copy:
            flags |= IFACE_ZERO_COPY
        elif number in self.completes and link.kind == "veth":
            flags |= IFACE_COMPLETES
        mac = link.mac if len(link.mac) == 6 else bytes(6)
        mtu = min(max(link.mtu, 68), self.mtu_max)
        return Interface(number, link.ifindex, mac, mtu, flags, self._own_address(link, 4), self._own_address(link, 6))

    def _own_address(self, link: Link, version: int) -> bytes:
        """The source of ICMP errors: an address of the host itself, of this interface if it has one."""
        # NB: no VIPs on interfaces that lbd has none of: they may be thousands, on lo
        known = [a for a in self.snapshot.addresses if a.ifindex in self.places and a.address.version == version]
        known = [a for a in known if a.scope == 0 and not a.address.ip.is_loopback]
        vips = {vip for service in self.config.service for vip in service.vips} if len(known) > 1 else set()
        lips = {lip.address for lip in self.config.own_addresses()}

        def order(a: Address) -> tuple[bool, ...]:
            return a.ifindex != link.ifindex, a.address.ip in vips, a.address.ip in lips

        return min(known, key=order).address.ip.packed if known else b""

    def own_addresses(self) -> frozenset[bytes]:
        """All that the kernel takes for this host's, for SNAT to leave alone: addresses of every interface, broadcasts, IPv6's
        subnet-router anycasts; and lbd's own, whether they are there yet or not. Empty without SNAT rules."""
        if not self.config.snat:
            return frozenset()
        found = {service.vip.packed for service in self.config.service}
        found |= {a.address.packed for a in self.config.own_addresses()}
        for a in self.snapshot.addresses:
            network = a.address.network
            found.add(a.address.ip.packed)
            if network.prefixlen < network.max_prefixlen - 1:
                found.add((network[0] if network.version == 6 else network[-1]).packed)
        return frozenset(found)

    # -- neighbours ------------------------------------------------------------------------------------------

    def neighbours(self, wanted: Iterable[tuple[int, Address4or6]] = ()) -> tuple[Neighbour, ...]:
        """`wanted`: (ifindex, address) of real servers and gateways, which come first where places are short."""
        found: dict[tuple[int, bytes, int], Neighbour] = {}
        for static in self.config.neighbor:
            number = self._number(static.interface)
            if number is not None:
                address = static.address.packed
                found[number, address, 0] = Neighbour(number, address, static.mac)
        first = set(wanted)
        known = [n for n in self.snapshot.neighbours if n.valid and n.mac is not None and n.ifindex in self.places]
        for n in sorted(known, key=lambda n: (n.ifindex, n.address) not in first) if first else known:
            number, tags = self.places[n.ifindex]
            found[number, n.address.packed, tags] = Neighbour(number, n.address.packed, n.mac, tags)
        if len(found) > NEIGHBOURS_MAX:
            self.alarms.append(f"{len(found)} neighbours, workers hold {NEIGHBOURS_MAX}: the rest is left out")
        return tuple(list(found.values())[:NEIGHBOURS_MAX])

    def _number(self, name: str) -> int | None:
        return next((number for number, link in self.links.items() if link.name == name), None)

    # -- routes ----------------------------------------------------------------------------------------------

    def routes(self, destinations: Iterable[Address4or6] = ()) -> tuple[Route, ...]:
        """`destinations`: real servers; what leads to them comes first where places are short."""
        best: dict[tuple[bytes, int], record.Route] = {}
        for r in self.snapshot.routes:
            key = (r.prefix.network_address.packed, r.prefix.prefixlen)
            if key not in best or r.metric < best[key].metric:
                best[key] = r
        found = [route for key, r in best.items() if (route := self._route(key, r)) is not None]
        for s in self.config.route:
            number = self._number(s.interface)
            key = (s.destination.network_address.packed, s.destination.prefixlen)
            if number is not None and key not in best:
                found.append(Route(*key, number, s.gateway.packed if s.gateway is not None else None))
        if len(found) > ROUTES_MAX:
            self.alarms.append(f"{len(found)} routes, workers hold {ROUTES_MAX}: the rest is left out")
            found = self._useful(found, destinations)
        return tuple(found)

    def _route(self, key: tuple[bytes, int], r: record.Route) -> Route | None:
        place = self.places.get(r.ifindex)
        if place is None or (r.gateway is not None and r.gateway.version != r.af):
            return Route(*key, ELSEWHERE, None, r.metric) if len(self.config.interface) <= ELSEWHERE else None
        return Route(*key, place[0], r.gateway.packed if r.gateway is not None else None, r.metric, place[1])

    @staticmethod
    def _useful(routes: list[Route], destinations: Iterable[Address4or6]) -> list[Route]:
        covered: set[tuple[bytes, int]] = set()
        for address in destinations:
            for plen in range(address.max_prefixlen + 1):
                network = ip_network((address, plen), strict=False)
                covered.add((network.network_address.packed, plen))
        useful = [r for r in routes if (r.prefix, r.plen) in covered or r.plen == 0]
        rest = [r for r in routes if (r.prefix, r.plen) not in covered and r.plen != 0]
        return (useful + rest)[:ROUTES_MAX]

    def gateways(self) -> NextHops:
        """Where SNAT's packets go that are for nobody on a link: gateways of routes to what rules name, the shortest prefixes
        first. What is on a link is resolved when it is asked for."""
        spans = {af: Spans(r for rule in self.config.snat if rule.af == af for r in rule.destinations()) for af in (4, 6)}
        found: dict[tuple[int, Address4or6], None] = {}
        for route in sorted(self.snapshot.routes, key=lambda r: r.prefix.prefixlen):
            if route.gateway is None or route.gateway.version != route.af or route.ifindex not in self.places:
                continue
            if spans[route.af].meet(int(route.prefix[0]), int(route.prefix[-1])):
                found[route.ifindex, route.gateway] = None
        return set(list(found)[:GATEWAYS_MAX])

    # -- next hops -------------------------------------------------------------------------------------------

    def next_hops(self, destinations: Iterable[Address4or6]) -> NextHops:
        """(ifindex, address) that the kernel has to keep resolved, for frames to get to these destinations."""
        tables = RouteIndex(self.snapshot.routes)
        used: dict[int, record.Route] = {}  # by identity: thousands of destinations share a gateway
        hops: NextHops = set()
        for address in destinations:
            route = tables.lookup(address)
            if route is None or route.ifindex not in self.places:
                continue
            if route.gateway is None:
                hops.add((route.ifindex, address))
            else:
                used[id(route)] = route
        return hops | {(route.ifindex, route.gateway) for route in used.values() if route.gateway is not None}


def bond_policy(link: Link) -> int:
    return shm.BOND_TURN if link.bond_mode in TURNING else POLICIES.get(link.bond_policy, shm.BOND_L2)


def tags_within(link: Link, outer: int) -> int | None:
    """A VLAN device's tags, on an interface (outer 0) or within these; None: a third."""
    assert link.vlan is not None
    tpid = shm.TPID_AD if link.vlan_ad else 0
    if outer & 0xFFFF0000:
        return None
    if outer:
        tpid |= 0 if outer >> 32 & shm.TPID_AD else shm.TPID_OUTER_Q
    return tpid << 32 | (outer & 0xFFFF) << 16 | link.vlan


class Spans:
    """Ranges of addresses of one family."""

    def __init__(self, ranges: Iterable[AddressRange]) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for some in sorted(ranges, key=lambda r: int(r.first)):
            if self._last and int(some.first) <= self._last[-1]:
                self._last[-1] = max(self._last[-1], int(some.last))
            else:
                self._first.append(int(some.first))
                self._last.append(int(some.last))

    def meet(self, first: int, last: int) -> bool:
        """Is an address of these in one of them?"""
        n = bisect_right(self._first, last)
        return n > 0 and self._last[n - 1] >= first


class RouteIndex:
    """Longest prefix match over mirrored routes: 20,000 lookups in 20 ms."""

    def __init__(self, routes: Iterable[record.Route]) -> None:
        tables: dict[int, dict[int, dict[int, record.Route]]] = {4: {}, 6: {}}  # version, bits of the host, prefix
        for r in sorted(routes, key=lambda r: -r.metric):
            shift = r.prefix.max_prefixlen - r.prefix.prefixlen
            tables[r.prefix.version].setdefault(shift, {})[int(r.prefix.network_address) >> shift] = r
        self._tables = {version: sorted(found.items()) for version, found in tables.items()}

    def lookup(self, address: Address4or6) -> record.Route | None:
        number = int(address)
        for shift, table in self._tables[address.version]:
            if (route := table.get(number >> shift)) is not None:
                return route
        return None
