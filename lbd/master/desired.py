"""What workers should know: the desired state as plain values, before it has numbers.

Scope: the vocabulary between those who know what is wanted (configuration, health, runtime changes, the mirrored
kernel state: `compose.py`) and the one who turns it into commands (`reconcile.py`). No I/O, no numbers but those of
interfaces, which are positions in the configuration.

Tags of a VLAN are one word, as in lbd/datapath/link.pxd: id, that of an outer tag << 16, protocols (TPID_*) << 32.
Addresses are packed, 4 or 16 bytes, network order: the length is the address family. Everything is frozen: whoever
changes a part makes a new object, and an object that is the same as last time needs no second look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58

# Iface flags of neigh.pxd
IFACE_UP = 2
IFACE_PARTIAL = 4
IFACE_ZERO_COPY = 8
IFACE_COMPLETES = 16


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """How packets get to a real server in mode tunnel."""

    kind: str = "ipip"  # gre, gue
    port: int = 0  # GUE's
    checksum: bool = False


IPIP = Encapsulation()


@dataclass(frozen=True, slots=True)
class RealServer:
    address: bytes
    port: int  # 0: the client's
    weight: int  # effective: 0 = takes no new connection, keeps those it has
    up: bool  # health and administrator agree that it may serve
    rest: int = 0  # while weight is 0: the one that it had; hashes keep its place by it
    share: int = 100  # percent of its weight that counts for now: slow start, a drain in stages
    end: str = ""  # its connections are to be ended: "expire", or "reset", with a RST to both ends
    tunnel: Encapsulation = IPIP
    quic_id: int | None = None  # in QUIC connection ids
    upper: int = 0  # connections at which it gets no new ones, and below which it does again; 0: none
    lower: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    address: bytes
    port: int  # 0: any
    protocol: int  # IP protocol number
    scheduler: str
    real_servers: tuple[RealServer, ...]
    timeout_established: int = 0  # ms, 0 = the default
    scheduler_flags: tuple[str, ...] = ()
    mode: str = "fullnat"
    timeout_fin: int = 0
    timeout_udp: int = 0
    expire: tuple[str, ...] = ()  # connections whose real server is "nodest", "quiescent"
    sorry: tuple[bytes, int] | None = None  # address and port
    sources: tuple[bytes, ...] = ()  # of outer headers, at most one of each family
    sorry_tunnel: Encapsulation = IPIP
    hash_qid: bool = False  # conhash: by QUIC's connection id
    quic: tuple[int, int, int] = (0, 0, 0)  # form (QuicForm of quic.pxd), bytes of a server's id, config rotation bits
    further: tuple[ServiceKey, ...] = ()  # its other addresses
    persistence: int = 0  # ms, 0: none
    persistence_prefix: int = 0
    one_packet: bool = False

    @property
    def keys(self) -> tuple[ServiceKey, ...]:
        """Of all its addresses."""
        return (self.key, *self.further)

    @property
    def key(self) -> ServiceKey:
        return (self.address, self.port, self.protocol)


ServiceKey = tuple[bytes, int, int]  # address, port, protocol
DestKey = tuple[ServiceKey, bytes, int]  # service, address, port
LipKey = bytes


@dataclass(frozen=True, slots=True)
class LocalAddress:
    address: bytes
    port_lo: int
    port_hi: int
    snat: bool = False  # of SNAT pools, else FULLNAT's


Range = tuple[bytes, bytes]  # first and last address


@dataclass(frozen=True, slots=True)
class SnatRule:
    """Ranges are disjoint and ascending. Its place among the rules is `order`."""

    name: str
    order: int
    protocols: int  # SNAT_TCP, SNAT_UDP, SNAT_ICMP of svc.pxd
    source: tuple[Range, ...]
    destination: tuple[Range, ...]  # none: everywhere
    pool: tuple[bytes, ...]
    in_interface: int | None = None  # numbers
    out_interface: int | None = None
    timeout_established: int = 0  # ms

    @property
    def keys(self) -> tuple[ServiceKey, ...]:
        return (self.key,)

    @property
    def key(self) -> ServiceKey:
        """As that of a service, which none can have."""
        return (hashlib.blake2b(self.name.encode(), digest_size=16).digest(), 0, 0)


@dataclass(frozen=True, slots=True)
class Interface:
    number: int
    ifindex: int
    mac: bytes
    mtu: int
    flags: int  # IFACE_*
    address4: bytes = b""  # source of ICMP errors; empty = none
    address6: bytes = b""
    lower: int = 0  # of a VLAN device (number from IFACE_MAX on): the interface that it is on
    tags: int = 0  # and its tags
    policy: int = 0  # of a bond: BOND_*
    members: tuple[int, ...] = ()  # and the ports that it sends by
    of: int | None = None  # of a port: the interface whose packets it receives


@dataclass(frozen=True, slots=True)
class Neighbour:
    iface: int
    address: bytes
    mac: bytes | None  # None: known to be unresolved
    tags: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    prefix: bytes
    plen: int
    iface: int
    gateway: bytes | None = None  # None: on link
    metric: int = 0
    tags: int = 0


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One that ends here."""

    kind: str  # ipip, gre
    local: bytes
    remote: bytes = b""  # empty: from anywhere


@dataclass(frozen=True, slots=True)
class Desired:
    services: tuple[Service, ...] = ()
    local_addresses: tuple[LocalAddress, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    routes: tuple[Route, ...] = ()
    tunnels: tuple[Tunnel, ...] = ()
    settings: Mapping[int, int] = field(default_factory=dict)  # Setting of command.pxd -> value
    snat: tuple[SnatRule, ...] = ()
    own: frozenset[bytes] = frozenset()  # the host's addresses, where there are SNAT rules
