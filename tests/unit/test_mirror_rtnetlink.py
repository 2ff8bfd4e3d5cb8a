"""The rtnetlink decoder against messages that pyroute2 encodes, and against garbage."""

import struct
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lbd.master import rtnetlink as rt
from lbd.master.record import Address, Link, Neighbour, Route


def encode(message: Any, kind: int, attrs: list[tuple[str, Any]], header: int = 0, **fields: Any) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message["header"]["type"] = kind
    message["header"]["flags"] = header
    message.encode()
    return bytes(message.data)


def decode(data: bytes) -> list[rt.Event | None]:
    return [rt.decode(kind, flags, data, pos, end) for kind, flags, pos, end in rt.split(data, len(data))]


def decode_one(data: bytes) -> rt.Event:
    (event,) = decode(data)
    assert event is not None
    return event


def route(attrs: list[tuple[str, Any]], kind: int = rt.RTM_NEWROUTE, header: int = 0, **fields: Any) -> bytes:
    defaults = {"family": rt.AF_INET, "dst_len": 24, "table": rt.RT_TABLE_MAIN, "type": rt.RTN_UNICAST}
    return encode(rtmsg(), kind, attrs, header, **{**defaults, **fields})


TO_NET = ("RTA_DST", "10.1.2.0")


# ---- routes ------------------------------------------------------------------------------------------------


@given(
    network=st.one_of(
        st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
        st.tuples(st.ip_addresses(v=6), st.integers(0, 128)),
    ),
    gateway=st.none() | st.ip_addresses(),
    ifindex=st.integers(1, 2**31 - 1),
    metric=st.integers(0, 2**32 - 1),
    new=st.booleans(),
)
def test_routes(network: Any, gateway: Any, ifindex: int, metric: int, new: bool) -> None:
    prefix = ip_network(network, strict=False)
    if prefix.version == 6 and (prefix.network_address.is_link_local or prefix.network_address.is_multicast):
        return
    attrs: list[tuple[str, Any]] = [("RTA_OIF", ifindex), ("RTA_TABLE", rt.RT_TABLE_MAIN)]
    if prefix.prefixlen:
        attrs.append(("RTA_DST", str(prefix.network_address)))
    if metric:
        attrs.append(("RTA_PRIORITY", metric))
    if gateway is not None and gateway.version == prefix.version:
        attrs.append(("RTA_GATEWAY", str(gateway)))
    elif gateway is not None and gateway.version == 6:
        attrs.append(("RTA_VIA", {"family": rt.AF_INET6, "addr": str(gateway)}))
    else:
        gateway = None
    family = rt.AF_INET if prefix.version == 4 else rt.AF_INET6
    kind = rt.RTM_NEWROUTE if new else rt.RTM_DELROUTE
    event = decode_one(route(attrs, kind, family=family, dst_len=prefix.prefixlen))
    assert event.item == Route(prefix, gateway, ifindex, metric)
    assert event.item.af == prefix.version
    assert (event.kind, event.present, event.plural) == ("route", new, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"table": 255},
        {"table": 252},  # RT_TABLE_COMPAT: a table above 255
        {"type": 2},  # local
        {"type": 5},  # multicast
        {"tos": 8},
        {"flags": 0x200},  # cloned
        {"family": 28},  # MPLS
        {"src_len": 64, "family": rt.AF_INET6, "dst_len": 0},
    ],
)
def test_routes_that_are_left_out(fields: dict[str, int]) -> None:
    attrs = [] if "src_len" in fields else [TO_NET]
    assert decode(route([*attrs, ("RTA_OIF", 3)], **fields)) == [None]


@pytest.mark.parametrize("destination", ["fe80::", "ff00::", "febf::", "ff02::1"])
def test_link_local_and_multicast_destinations_are_left_out(destination: str) -> None:
    data = route([("RTA_DST", destination), ("RTA_OIF", 3)], family=rt.AF_INET6, dst_len=64)
    assert decode(data) == [None]


@pytest.mark.parametrize("kind", [6, 7, 8, 9])
def test_routes_without_a_way_are_kept_as_such(kind: int) -> None:
    event = decode_one(route([TO_NET, ("RTA_OIF", 1)], type=kind))
    assert event.item == Route(IPv4Network("10.1.2.0/24"), None, 0, 0)


def hop(ifindex: int, gateway: str | None, flags: int = 0) -> dict[str, Any]:
    attrs = [] if gateway is None else [("RTA_GATEWAY", gateway)]
    return {"oif": ifindex, "hops": 0, "flags": flags, "attrs": attrs}


@pytest.mark.parametrize(
    ("hops", "chosen"),
    [
        ([hop(3, "10.0.0.1"), hop(4, "10.0.1.1")], (3, "10.0.0.1")),
        ([hop(3, "10.0.0.1", flags=1), hop(4, "10.0.1.1")], (4, "10.0.1.1")),  # dead
        ([hop(3, "10.0.0.1", flags=16), hop(4, None)], (4, None)),  # link down
        ([hop(3, "10.0.0.1", flags=17), hop(4, "10.0.1.1", flags=17)], (3, "10.0.0.1")),
    ],
)
def test_the_first_nexthop_that_is_alive(hops: list[dict[str, Any]], chosen: tuple[int, str | None]) -> None:
    event = decode_one(route([TO_NET, ("RTA_MULTIPATH", hops)], header=rt.NLM_F_REPLACE))
    gateway = ip_address(chosen[1]) if chosen[1] else None
    assert event.item == Route(IPv4Network("10.1.2.0/24"), gateway, chosen[0], 0)
    assert event.plural and event.replace


# ---- links, addresses, neighbours --------------------------------------------------------------------------


def link(attrs: list[tuple[str, Any]], kind: int = rt.RTM_NEWLINK, **fields: Any) -> bytes:
    named = [("IFLA_IFNAME", "eth7"), ("IFLA_ADDRESS", "02:00:00:00:00:07"), ("IFLA_MTU", 9000), *attrs]
    return encode(ifinfmsg(), kind, named, **{"index": 7, "flags": 0x11043, **fields})


@pytest.mark.parametrize(
    ("flags", "operstate", "up"),
    [
        (0x11043, "UP", True),
        (0x11043, "UNKNOWN", True),
        (0x1003, "DOWN", False),
        (0x11043, "DORMANT", False),
        (0x10042, "UP", False),  # not administratively up
        (0x1043, "UP", False),  # no carrier
    ],
)
def test_links(flags: int, operstate: str, up: bool) -> None:
    event = decode_one(link([("IFLA_OPERSTATE", operstate), ("IFLA_MASTER", 9)], flags=flags))
    assert event.item == Link(7, "eth7", bytes([2, 0, 0, 0, 0, 7]), 9000, up, "", 9, None)


def test_a_vlan_and_its_lower_device() -> None:
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_VLAN_ID", 42)]})]}
    event = decode_one(link([("IFLA_LINK", 3), ("IFLA_LINKINFO", info)]))
    assert isinstance(event.item, Link)
    assert (event.item.kind, event.item.link, event.item.vlan) == ("vlan", 3, 42)


@pytest.mark.parametrize(("protocol", "ad"), [(0x8100, False), (0x88A8, True)])
def test_a_vlan_of_either_protocol(protocol: int, ad: bool) -> None:
    data = {"attrs": [("IFLA_VLAN_ID", 9), ("IFLA_VLAN_PROTOCOL", protocol)]}
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", data)]}
    event = decode_one(link([("IFLA_LINK", 3), ("IFLA_LINKINFO", info)]))
    assert isinstance(event.item, Link) and (event.item.vlan, event.item.vlan_ad) == (9, ad)


def test_a_bond() -> None:
    data = {"attrs": [("IFLA_BOND_MODE", 4), ("IFLA_BOND_XMIT_HASH_POLICY", 1)]}
    event = decode_one(link([("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bond"), ("IFLA_INFO_DATA", data)]})]))
    assert isinstance(event.item, Link) and (event.item.kind, event.item.bond_mode, event.item.bond_policy) == ("bond", 4, 1)


@pytest.mark.parametrize(("state", "mii", "sends"), [(0, 0, True), (1, 0, False), (0, 2, False), (0, 1, False)])
def test_a_bond_s_slave_and_whether_the_bond_sends_by_it(state: int, mii: int, sends: bool) -> None:
    """struct nlattr by hand: pyroute2 does not know all of these. State 0: active; MII status 0: up, 1: failing, 2: down."""
    slave = struct.pack("=HHB3xHHB3x", 5, 1, state, 5, 2, mii)
    info = struct.pack("=HH8s", 9, 4, b"bond") + struct.pack("=HH", 4 + len(slave), 5) + slave
    body = struct.pack("=BxHiIIHH8s", 0, 1, 7, 0x11043, 0, 9, 3, b"eth7") + struct.pack("=HH", 4 + len(info), 18) + info
    event = decode_one(struct.pack("=IHHII", 16 + len(body), rt.RTM_NEWLINK, 0, 0, 0) + body)
    assert isinstance(event.item, Link) and event.item.sends is sends


def test_a_peer_in_another_namespace_is_no_link_of_ours() -> None:
    event = decode_one(link([("IFLA_LINK", 3), ("IFLA_LINK_NETNSID", 0)]))
    assert isinstance(event.item, Link) and event.item.link is None


def test_bridge_messages_about_links_are_left_out() -> None:
    assert decode(link([], family=7)) == [None]
    assert decode(link([], kind=rt.RTM_DELLINK, family=7)) == [None]
    assert decode_one(link([], kind=rt.RTM_DELLINK)) == rt.Event("link", 7, None, False)


def test_addresses() -> None:
    data = encode(
        ifaddrmsg(),
        rt.RTM_NEWADDR,
        [("IFA_ADDRESS", "10.9.9.9"), ("IFA_LOCAL", "10.0.0.1"), ("IFA_FLAGS", 0x80)],
        family=rt.AF_INET,
        prefixlen=24,
        index=4,
        scope=0,
    )
    event = decode_one(data)
    assert event.item == Address(4, IPv4Interface("10.0.0.1/24"), 0) and event.present


@pytest.mark.parametrize(("flags", "present"), [(0x40, False), (0x08, False), (0x44, True), (0x82, True)])
def test_tentative_addresses_are_not_there_yet(flags: int, present: bool) -> None:
    attrs = [("IFA_ADDRESS", "2001:db8::1"), ("IFA_FLAGS", flags)]
    data = encode(ifaddrmsg(), rt.RTM_NEWADDR, attrs, family=rt.AF_INET6, prefixlen=64, index=4)
    assert decode_one(data).present is present


def neighbour(address: str, state: int, mac: str | None, kind: int = rt.RTM_NEWNEIGH, **fields: Any) -> bytes:
    attrs: list[tuple[str, Any]] = [("NDA_DST", address)]
    if mac is not None:
        attrs.append(("NDA_LLADDR", mac))
    if fields.pop("managed", False):
        attrs.append(("NDA_FLAGS_EXT", 1))
    family = rt.AF_INET6 if ":" in address else rt.AF_INET
    return encode(ndmsg(), kind, attrs, **{"family": family, "ifindex": 5, "state": state, **fields})


MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize(
    ("state", "mac", "name", "valid"),
    [
        (1, None, "INCOMPLETE", False),
        (2, MAC, "REACHABLE", True),
        (4, MAC, "STALE", True),
        (8, MAC, "DELAY", True),
        (16, MAC, "PROBE", True),
        (32, MAC, "FAILED", False),
        (64, MAC, "NOARP", True),
        (128, MAC, "PERMANENT", True),
        (2, None, "REACHABLE", False),
        (0, None, "NONE", False),
    ],
)
@pytest.mark.parametrize("address", ["10.0.0.9", "2001:db8::9"])
def test_neighbours(address: str, state: int, mac: str | None, name: str, valid: bool) -> None:
    event = decode_one(neighbour(address, state, mac, managed=True))
    raw = bytes([2, 0, 0, 0, 0, 1]) if mac else None
    expected: IPv4Address | IPv6Address = ip_address(address)
    assert event.item == Neighbour(5, expected, raw, name, valid, managed=True)
    assert event.key == (5, expected.packed)


def test_neighbours_that_are_left_out() -> None:
    assert decode(neighbour("10.0.0.9", 2, MAC, flags=8)) == [None]  # proxy
    assert decode(neighbour("224.0.0.5", 64, MAC)) == [None]
    assert decode(neighbour("ff02::1", 64, MAC)) == [None]
    assert decode(neighbour("10.0.0.9", 2, MAC, family=7)) == [None]  # a bridge's forwarding entry


# ---- damage ------------------------------------------------------------------------------------------------

SAMPLES = [
    route([TO_NET, ("RTA_MULTIPATH", [hop(3, "10.0.0.1"), hop(4, "10.0.1.1")])]),
    route([("RTA_DST", "2001:db8::"), ("RTA_OIF", 3)], family=rt.AF_INET6, dst_len=32),
    link([("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}), ("IFLA_OPERSTATE", "UP")]),
    neighbour("2001:db8::9", 2, MAC, managed=True),
    encode(ifaddrmsg(), 20, [("IFA_ADDRESS", "10.0.0.1")], family=2, prefixlen=24, index=4),
]


def decode_or_refuse(data: bytes) -> None:
    try:
        decode(data)
    except rt.DecodeError:
        pass


@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_messages_are_refused_and_nothing_else(sample: bytes, data: st.DataObject) -> None:
    damaged = bytearray(sample[: data.draw(st.integers(0, len(sample)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(damaged))


@given(st.sampled_from(sorted(rt._DECODERS)), st.binary(max_size=200))
def test_garbage_in_every_kind_of_message(kind: int, body: bytes) -> None:
    decode_or_refuse(rt.NLMSG.pack(16 + len(body), kind, 0, 0, 0) + body)


@pytest.mark.parametrize("length", [0, 3, 200])
def test_lengths_that_lead_nowhere(length: int) -> None:
    """A length of zero would be read for ever."""
    bad = length.to_bytes(2, "little")
    hop = bad + bytes(10)
    multipath = (4 + len(hop)).to_bytes(2, "little") + b"\x09\0" + hop
    for attrs in (bad + bytes(6), multipath):
        body = bytes([2, 24, 0, 0, rt.RT_TABLE_MAIN, 0, 0, 1]) + bytes(4) + attrs
        with pytest.raises(rt.DecodeError):
            decode(rt.NLMSG.pack(16 + len(body), rt.RTM_NEWROUTE, 0, 0, 0) + body)
    with pytest.raises(rt.DecodeError):
        decode(rt.NLMSG.pack(length, rt.RTM_NEWROUTE, 0, 0, 0))


def test_several_messages_in_one_datagram() -> None:
    both = SAMPLES[1] + SAMPLES[3]
    assert [event.kind for event in decode(both) if event is not None] == ["route", "neighbour"]
    assert decode_one(SAMPLES[1]).item == Route(IPv6Network("2001:db8::/32"), None, 3, 0)
