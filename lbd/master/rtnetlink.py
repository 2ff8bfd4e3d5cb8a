# SPDX-License-Identifier: Apache-2.0
"""How the kernel's rtnetlink messages are decoded into the records of `record.py`.

Scope: bytes in, records out; no sockets, no state. Sockets are in `netlink.py`, the mirror is in `mirror.py`.
The same decoder reads notifications and dumps. It is our own because of speed: pyroute2 takes 50 to 100 us
for a route, this about 10 us, and 10,000 route changes per second are a case that has to be survived.

What is left out on purpose, so that it costs nothing later:
- links: messages of other families than AF_UNSPEC (a bridge port's are partial, and a bridge's RTM_DELLINK
  only says that a port left the bridge);
- addresses: IPv6 ones that are still tentative or failed duplicate detection;
- routes: other tables than main, cached clones, a TOS, source-specific IPv6 routes, link-local and multicast
  destinations (never balanced, and not unique per interface);
- neighbours: proxy entries, multicast and broadcast destinations, bridge forwarding entries.

References: include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour}.h, rtnetlink(7), RFC 3549.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

from lbd.master.record import Address, Address4or6, Item, Link, Neighbour, Route


class Event(NamedTuple):
    """What one message says. `key` is unique within its kind."""

    kind: str  # link address route neighbour nexthop
    key: Hashable
    item: Item | None  # None: nexthop objects, which are not mirrored, and deletions that tell no details
    present: bool  # False: the kernel says it is gone
    plural: bool = False  # route with several nexthops: a later deletion may mean one of them
    replace: bool = False  # the kernel says that it took the place of what was there


# ---- wire format -------------------------------------------------------------------------------------------

NLMSG = Struct("=IHHII")  # len type flags seq pid
_ATTR = Struct("=HH")
_IFINFO = Struct("=BxHiII")  # family type index flags change
_IFADDR = Struct("=BBBBI")  # family prefixlen flags scope index
_RT = Struct("=BBBBBBBBI")  # family dst_len src_len tos table protocol scope type flags
_ND = Struct("=B3xiHBB")  # family ifindex state flags type
_NEXTHOP = Struct("=HBBi")  # len flags hops ifindex
_U16 = Struct("=H")
_U32 = Struct("=I")

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100  # on notifications of new objects

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNEXTHOP, RTM_DELNEXTHOP = 104, 105

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 6, 7, 8, 9
_MIRRORED_TYPES = frozenset((RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW))
_RTM_F_CLONED = 0x200
_RTNH_DEAD = 0x01 | 0x10  # RTNH_F_DEAD, RTNH_F_LINKDOWN
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RTA_VIA, _RTA_ENCAP = 18, 22

_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_OPER_UNKNOWN, _OPER_UP = 0, 6
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_WIRELESS, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 11, 16, 18, 37
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_VLAN_ID, _IFLA_VLAN_PROTOCOL = 1, 5
_IFLA_BOND_MODE, _IFLA_BOND_XMIT_HASH_POLICY = 1, 14
_IFLA_BOND_SLAVE_STATE, _IFLA_BOND_SLAVE_MII_STATUS = 1, 2
_ETH_P_8021AD = b"\x88\xa8"

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_UNUSABLE = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED
_IFA_F_OPTIMISTIC = 0x04  # tentative, but usable

_NTF_PROXY = 0x08
_NDA_DST, _NDA_LLADDR, _NDA_FLAGS_EXT = 1, 2, 15
NTF_EXT_MANAGED = 0x01
_NUD = {
    1: "INCOMPLETE",
    2: "REACHABLE",
    4: "STALE",
    8: "DELAY",
    16: "PROBE",
    32: "FAILED",
    64: "NOARP",
    128: "PERMANENT",
}
_NUD_VALID = 2 | 4 | 8 | 16 | 64 | 128


class DecodeError(ValueError):
    """A message that does not keep to the format. The kernel sends none: seen, it asks for a resync."""


def split(buf: bytes | bytearray, size: int) -> Iterator[tuple[int, int, int, int]]:
    """The messages of one datagram: (type, flags, offset of the payload, end)."""
    pos = 0
    while pos + 16 <= size:
        length, kind, flags, _, _ = NLMSG.unpack_from(buf, pos)
        if length < 16 or pos + length > size:
            raise DecodeError(f"netlink message of {length} bytes in {size - pos}")
        yield kind, flags, pos + 16, pos + length
        pos += (length + 3) & ~3


def attributes(buf: bytes | bytearray, pos: int, end: int) -> dict[int, bytes]:
    """Attributes between two offsets; the last of a type wins, as in the kernel."""
    found: dict[int, bytes] = {}
    while pos + 4 <= end:
        length, kind = _ATTR.unpack_from(buf, pos)
        if length < 4 or pos + length > end:
            raise DecodeError(f"netlink attribute of {length} bytes in {end - pos}")
        found[kind & 0x3FFF] = bytes(buf[pos + 4 : pos + length])
        pos += (length + 3) & ~3
    return found


def decode(kind: int, flags: int, buf: bytes | bytearray, pos: int, end: int) -> Event | None:
    """One message; None where it is nothing that lbd mirrors."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return None
    try:
        return decoder(kind, flags, buf, pos, end)
    except DecodeError:
        raise
    except (LookupError, ValueError, StructError) as error:  # a needed attribute is missing or too short
        raise DecodeError(f"rtnetlink message of type {kind}: {error!r}") from error


def _u32(raw: bytes | None, default: int = 0) -> int:
    return default if raw is None else int(_U32.unpack_from(raw)[0])


def _address(raw: bytes) -> Address4or6:
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


# ---- links -------------------------------------------------------------------------------------------------


def _decode_link(kind: int, flags: int, buf: bytes | bytearray, pos: int, end: int) -> Event | None:
    family, _, ifindex, iff, _ = _IFINFO.unpack_from(buf, pos)
    if family != AF_UNSPEC:
        return None
    if kind == RTM_DELLINK:
        return Event("link", ifindex, None, False)
    attrs = attributes(buf, pos + 16, end)
    if _IFLA_WIRELESS in attrs:  # wireless extensions send links without most attributes
        return None
    info = attributes(attrs[_IFLA_LINKINFO], 0, len(attrs[_IFLA_LINKINFO])) if _IFLA_LINKINFO in attrs else {}
    link_kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    operstate = attrs.get(_IFLA_OPERSTATE, b"\0")[0]
    lower = _u32(attrs.get(_IFLA_LINK))
    if _IFLA_LINK_NETNSID in attrs or lower == ifindex:
        lower = 0
    link = Link(
        ifindex=ifindex,
        name=attrs[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace"),
        mac=attrs.get(_IFLA_ADDRESS, b""),
        mtu=_u32(attrs.get(_IFLA_MTU)),
        up=bool(iff & _IFF_UP and iff & _IFF_LOWER_UP) and operstate in (_OPER_UNKNOWN, _OPER_UP),
        kind=link_kind,
        master=_u32(attrs.get(_IFLA_MASTER)) or None,
        link=lower or None,
        **_special(link_kind, info),
    )
    return Event("link", ifindex, link, True)


def _special(kind: str, info: dict[int, bytes]) -> dict[str, Any]:
    """What only some kinds of links have."""
    special: dict[str, Any] = {}
    data = info.get(_IFLA_INFO_DATA, b"")
    if kind == "vlan" and data:
        attrs = attributes(data, 0, len(data))
        special = {"vlan": _U16.unpack_from(attrs[_IFLA_VLAN_ID])[0], "vlan_ad": attrs.get(_IFLA_VLAN_PROTOCOL) == _ETH_P_8021AD}
    elif kind == "bond" and data:
        attrs = attributes(data, 0, len(data))
        special = {"bond_mode": attrs[_IFLA_BOND_MODE][0], "bond_policy": attrs.get(_IFLA_BOND_XMIT_HASH_POLICY, b"\0")[0]}
    if info.get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"bond" and (slave := info.get(_IFLA_INFO_SLAVE_DATA)):
        attrs = attributes(slave, 0, len(slave))
        # BOND_STATE_ACTIVE, BOND_LINK_UP: 0. By 802.3ad a slave is active while its aggregator is the one in use
        special["sends"] = attrs[_IFLA_BOND_SLAVE_STATE][0] == 0 and attrs[_IFLA_BOND_SLAVE_MII_STATUS][0] == 0
    return special


# ---- addresses ---------------------------------------------------------------------------------------------


def _decode_address(kind: int, flags: int, buf: bytes | bytearray, pos: int, end: int) -> Event | None:
    family, plen, short_flags, scope, ifindex = _IFADDR.unpack_from(buf, pos)
    if family not in (AF_INET, AF_INET6):
        return None
    attrs = attributes(buf, pos + 8, end)
    # IFA_ADDRESS is the peer on point-to-point links; IFA_LOCAL, where given, is ours
    raw = attrs.get(_IFA_LOCAL) or attrs[_IFA_ADDRESS]
    address: IPv4Interface | IPv6Interface
    address = IPv4Interface((raw, plen)) if family == AF_INET else IPv6Interface((raw, plen))
    ifa_flags = _u32(attrs.get(_IFA_FLAGS), short_flags)
    usable = ifa_flags & _IFA_F_OPTIMISTIC or not ifa_flags & _IFA_F_UNUSABLE
    present = kind == RTM_NEWADDR and bool(usable)
    return Event("address", (ifindex, raw, plen), Address(ifindex, address, scope), present)


# ---- routes ------------------------------------------------------------------------------------------------

_ANY = {AF_INET: bytes(4), AF_INET6: bytes(16)}


def _decode_route(kind: int, flags: int, buf: bytes | bytearray, pos: int, end: int) -> Event | None:
    family, plen, src_len, tos, table, _, _, route_type, route_flags = _RT.unpack_from(buf, pos)
    # first the cheap tests, on the fixed part. Tables above 255 carry RT_TABLE_COMPAT here, never
    # RT_TABLE_MAIN
    if table != RT_TABLE_MAIN or route_type not in _MIRRORED_TYPES or family not in (AF_INET, AF_INET6):
        return None
    if tos or src_len or route_flags & _RTM_F_CLONED:
        return None
    attrs = attributes(buf, pos + 12, end)
    destination = attrs.get(_RTA_DST, _ANY[family])
    prefix: IPv4Network | IPv6Network
    if family == AF_INET:
        prefix = IPv4Network((destination, plen))
    else:
        first = destination[0]
        if first == 0xFF or (first == 0xFE and destination[1] & 0xC0 == 0x80):
            return None  # ff00::/8, fe80::/10
        prefix = IPv6Network((destination, plen))
    metric = _u32(attrs.get(_RTA_PRIORITY))
    gateway, ifindex, hops = None, 0, 1
    if route_type == RTN_UNICAST:
        if (multipath := attrs.get(_RTA_MULTIPATH)) is not None:
            gateway, ifindex, hops = _first_usable(multipath)
        elif _RTA_ENCAP not in attrs:
            gateway, ifindex = _gateway(attrs), _u32(attrs.get(_RTA_OIF))
    route = Route(prefix, gateway, ifindex, metric)
    key = (family, destination, plen, metric)
    return Event("route", key, route, kind == RTM_NEWROUTE, hops > 1, bool(flags & NLM_F_REPLACE))


def _gateway(attrs: dict[int, bytes]) -> Address4or6 | None:
    if (raw := attrs.get(_RTA_GATEWAY)) is not None:
        return _address(raw)
    if (via := attrs.get(_RTA_VIA)) is not None:  # struct rtvia: family, then the address
        return _address(via[2:])
    return None


def _first_usable(multipath: bytes) -> tuple[Address4or6 | None, int, int]:
    """The nexthop that lbd uses of several, and how many there are: the first alive, else the first."""
    pos, hops = 0, 0
    fallback: tuple[Address4or6 | None, int] = (None, 0)
    chosen: tuple[Address4or6 | None, int] | None = None
    while pos + 8 <= len(multipath):
        length, hop_flags, _, ifindex = _NEXTHOP.unpack_from(multipath, pos)
        if length < 8 or pos + length > len(multipath):
            raise DecodeError(f"nexthop of {length} bytes in {len(multipath) - pos}")
        attrs = attributes(multipath, pos + 8, pos + length)
        hops += 1
        if _RTA_ENCAP not in attrs:
            hop = (_gateway(attrs), ifindex)
            if chosen is None and not hop_flags & _RTNH_DEAD:
                chosen = hop
            if fallback[1] == 0:
                fallback = hop
        pos += (length + 3) & ~3
    return (*(chosen or fallback), hops)


# ---- neighbours, nexthop objects ---------------------------------------------------------------------------


def _decode_neighbour(kind: int, flags: int, buf: bytes | bytearray, pos: int, end: int) -> Event | None:
    family, ifindex, state, ntf, _ = _ND.unpack_from(buf, pos)
    if family not in (AF_INET, AF_INET6) or ntf & _NTF_PROXY:
        return None
    attrs = attributes(buf, pos + 12, end)
    raw = attrs[_NDA_DST]
    if raw[0] == 0xFF if family == AF_INET6 else raw[0] >= 224:
        return None
    mac = attrs.get(_NDA_LLADDR)
    neighbour = Neighbour(
        ifindex=ifindex,
        address=_address(raw),
        mac=mac,
        state=_NUD.get(state, "NONE"),
        valid=bool(state & _NUD_VALID) and mac is not None and len(mac) == 6,
        managed=bool(_u32(attrs.get(_NDA_FLAGS_EXT)) & NTF_EXT_MANAGED),
    )
    return Event("neighbour", (ifindex, raw), neighbour, kind == RTM_NEWNEIGH)


def _decode_nexthop(kind: int, flags: int, buf: bytes | bytearray, pos: int, end: int) -> Event | None:
    return Event("nexthop", None, None, kind == RTM_NEWNEXTHOP)


_DECODERS = {
    RTM_NEWLINK: _decode_link,
    RTM_DELLINK: _decode_link,
    RTM_NEWADDR: _decode_address,
    RTM_DELADDR: _decode_address,
    RTM_NEWROUTE: _decode_route,
    RTM_DELROUTE: _decode_route,
    RTM_NEWNEIGH: _decode_neighbour,
    RTM_DELNEIGH: _decode_neighbour,
    RTM_NEWNEXTHOP: _decode_nexthop,
    RTM_DELNEXTHOP: _decode_nexthop,
}
