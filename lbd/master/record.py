# SPDX-License-Identifier: Apache-2.0
"""What lbd knows of the kernel's network state: frozen records.

Scope: plain values, no I/O. `rtnetlink.py` and `ethtool.py` make them, `netstate.py` compares, `mirror.py`
reports. Frozen and comparable: a change is "not equal to what was there".
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

Address4or6 = IPv4Address | IPv6Address
Interface4or6 = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Link:
    ifindex: int
    name: str
    mac: bytes
    mtu: int
    up: bool  # administratively up, carrier, and an operational state that carries traffic
    kind: str  # veth, tun, vlan, bond, …; '' for a physical device
    master: int | None  # ifindex of the bond or bridge it belongs to
    link: int | None  # ifindex of the lower device (vlan, macvlan) or peer; None: in another namespace
    vlan: int | None = None  # VLAN id of a vlan device
    vlan_ad: bool = False  # its tag is 802.1ad's (0x88a8), not 802.1Q's
    bond_mode: int | None = None  # of a bond: 0 balance-rr, 1 active-backup, 2 balance-xor, 3 broadcast, 4 802.3ad, …
    bond_policy: int = 0  # its xmit_hash_policy: 0 layer2, 1 layer3+4, 2 layer2+3, 3 encap2+3, 4 encap3+4, 5 vlan+srcmac
    sends: bool = True  # False: a bond's slave that the bond does not send by now


@dataclass(frozen=True, slots=True)
class Address:
    ifindex: int
    address: Interface4or6
    scope: int  # 0 global, 200 site, 253 link, 254 host


@dataclass(frozen=True, slots=True)
class Route:
    """A route of table main. Of several nexthops, the first that is alive.

    `ifindex` 0: the kernel has a route, but none that lbd can use (blackhole, unreachable, prohibit, throw,
    encapsulation). It is kept, because a shorter prefix must not take its place.
    """

    prefix: IPv4Network | IPv6Network
    gateway: Address4or6 | None  # None: on-link. May be IPv6 for an IPv4 route (RFC 8950)
    ifindex: int
    metric: int

    @property
    def af(self) -> int:
        return self.prefix.version


@dataclass(frozen=True, slots=True)
class Neighbour:
    ifindex: int
    address: Address4or6
    mac: bytes | None
    state: str  # INCOMPLETE REACHABLE STALE DELAY PROBE FAILED NOARP PERMANENT NONE
    valid: bool  # frames may be sent to `mac`
    managed: bool = False  # the kernel keeps it resolved by itself (NTF_EXT_MANAGED)


@dataclass(frozen=True, slots=True)
class Channels:
    """Queues in use, as `ethtool -l` tells them; AF_XDP can bind to queues 0 .. rx - 1."""

    ifindex: int
    name: str
    rx: int  # combined ones included
    tx: int


@dataclass(frozen=True, slots=True)
class Rss:
    """How the device spreads packets over its queues."""

    ifindex: int
    name: str
    function: str  # toeplitz xor crc32, '' = not told
    key: bytes
    table: tuple[int, ...]  # queue of each bucket
    # (tcp4 udp4 tcp6 udp6, RXH_ bits: 0x10 source, 0x20 destination, 0x40 source port, 0x80 destination
    # port); flow types that the driver does not tell are missing
    fields: tuple[tuple[str, int], ...]


Item = Link | Address | Route | Neighbour | Channels | Rss


class Change(NamedTuple):
    kind: str  # link address route neighbour channels rss
    op: str  # set | del
    item: Item  # of a del: what was there


@dataclass(frozen=True, slots=True)
class Snapshot:
    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]
    channels: tuple[Channels, ...]
    rss: tuple[Rss, ...]

    def link(self, name: str) -> Link | None:
        return next((link for link in self.links if link.name == name), None)
