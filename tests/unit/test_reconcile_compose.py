"""What is desired: configuration, health, runtime changes and the mirrored kernel, put together; and the order in which
the XDP program follows."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from lbd.config import Config, loads
from lbd.master.compose import Composer, settings
from lbd.master.desired import (
    IFACE_COMPLETES,
    IFACE_PARTIAL,
    IFACE_UP,
    IFACE_ZERO_COPY,
    Desired,
    Encapsulation,
    LocalAddress,
    Neighbour,
    RealServer,
    Route,
    Service,
)
from lbd.master.difference import changes, restart_fields
from lbd.master.offline import offline_commands
from lbd.master.reach import ELSEWHERE, Reach, RouteIndex
from lbd.master.record import Address, Channels, Link, Rss, Snapshot
from lbd.master.record import Neighbour as KernelNeighbour
from lbd.master.record import Route as KernelRoute
from lbd.master.refusal import Refusal
from lbd.master.resources import needs_restart
from lbd.master.rss import RXH_ADDRESSES, RXH_PORTS, ownership
from lbd.master.runtime import Runtime
from lbd.master.sockets import queue_counts
from lbd.master.steering import ServiceAt, Steering
from lbd.shm import _shm as shm

TEXT = """
[workers]
count = 2
[[interface]]
name = "eth0"
[[interface]]
name = "eth1"
[[local_address]]
address = "10.0.0.10"
interface = "eth1"
[[local_address]]
address = "fd00::10"
interface = "eth1"
[[service]]
name = "web"
address = "192.0.2.10:80"
tcp_established = "1h"
[service.health]
type = "tcp"
[[service.real_server]]
address = "10.0.1.1:8080"
[[service.real_server]]
address = "10.0.1.2:8080"
weight = 3
[[service]]
name = "dns"
address = "[2001:db8::10]:53"
protocol = "udp"
[[service.real_server]]
address = "[fd00::1]:53"
"""
MAC = b"\2\0\0\0\0\1"


def config(text: str = TEXT) -> Config:
    return loads(text)


def link(ifindex: int, name: str, **more: object) -> Link:
    given = {"mac": MAC, "mtu": 1500, "up": True, "kind": "", "master": None, "link": None, **more}
    return Link(ifindex, name, **given)  # type: ignore[arg-type]


def snapshot(links: tuple[Link, ...] = (link(2, "eth0"), link(3, "eth1")), **more: object) -> Snapshot:
    empty = {"addresses": (), "routes": (), "neighbours": (), "channels": (), "rss": ()}
    return Snapshot(links, **{**empty, **more})  # type: ignore[arg-type]


def route(prefix: str, ifindex: int, gateway: str | None = None, metric: int = 0) -> KernelRoute:
    return KernelRoute(ip_network(prefix), ip_address(gateway) if gateway else None, ifindex, metric)


def neighbour(ifindex: int, address: str, valid: bool = True) -> KernelNeighbour:
    return KernelNeighbour(ifindex, ip_address(address), MAC, "REACHABLE" if valid else "FAILED", valid)


# -- compose -------------------------------------------------------------------------------------------------------


def test_services_are_as_configured() -> None:
    web, dns = Composer(config()).desired.services
    assert (web.address, web.port, web.protocol, web.scheduler) == (bytes([192, 0, 2, 10]), 80, 6, "wlc")
    assert web.timeout_established == 3_600_000 and dns.timeout_established == 0
    assert [(r.port, r.weight, r.up) for r in web.real_servers] == [(8080, 1, True), (8080, 3, True)]
    assert dns.protocol == 17 and len(dns.address) == 16


TUNNEL = """
[[interface]]
name = "eth0"
[[service]]
name = "far"
address = "192.0.2.10:80"
mode = "tunnel"
tunnel = { type = "gue", source = "10.0.0.7" }
[[service.real_server]]
address = "10.0.1.1:80"
[[service.real_server]]
address = "[fd00::1]:80"
[[service.real_server]]
address = "10.0.1.2:80"
tunnel = { type = "gre", checksum = "full" }
[[service.real_server]]
address = "[fd00::2]:80"
tunnel = { port = 7777, checksum = "none" }
[[service.real_server]]
address = "10.0.1.3:80"
tunnel = { type = "ipip" }
"""


def test_each_real_server_has_its_tunnel() -> None:
    """The service's, but for what its own table says; over IPv6 GUE has a checksum unless told otherwise."""
    [far] = Composer(config(TUNNEL)).desired.services
    assert far.sources == (bytes([10, 0, 0, 7]),)
    assert [r.tunnel for r in far.real_servers] == [
        Encapsulation("gue", 6080), Encapsulation("gue", 6080, True), Encapsulation("gre", 0, True), Encapsulation("gue", 7777),
        Encapsulation(),
    ]  # fmt: skip
    commands, _, _ = offline_commands(config(TUNNEL))
    dests = [c[16:] for c in commands if shm.command_head(c)[0] == shm.CMD_DEST_SET]
    gre, gue, csum = shm.TUNNEL_GRE, shm.TUNNEL_GUE, shm.TUNNEL_CSUM
    ways = [(d[26], int.from_bytes(d[24:26], "big")) for d in dests]
    assert ways == [(gue, 6080), (gue | csum, 6080), (gre | csum, 0), (gue, 7777), (0, 0)]
    [svc] = [c for c in commands if shm.command_head(c)[0] == shm.CMD_SVC_SET]
    assert bytes([10, 0, 0, 7]) in svc


def test_health_and_operators_have_their_say(tmp_path: Path) -> None:
    down: set[tuple[str, str]] = set()
    runtime = Runtime(tmp_path / "runtime.json")
    composer = Composer(config(), lambda s, r: (s, r) not in down, runtime.get)
    before = composer.desired
    down.add(("web", "10.0.1.1:8080"))
    composer.touch("web")
    assert [r.up for r in composer.service("web").real_servers] == [False, True]
    assert composer.desired.services[1] is before.services[1], "others are left as they are, not even compared"
    assert composer.desired.settings is before.settings
    runtime.change(("web", "10.0.1.2:8080"), state="drain")
    composer.touch("web")
    assert [(r.weight, r.up) for r in composer.service("web").real_servers] == [(1, False), (0, True)]
    runtime.change(("web", "10.0.1.2:8080"), state="maint", weight=9)
    down.clear()
    composer.touch("web", "unknown")
    assert [(r.weight, r.up) for r in composer.service("web").real_servers] == [(1, True), (9, False)]


def test_reload_keeps_what_did_not_change() -> None:
    composer = Composer(config())
    before = composer.desired
    composer.configure(config(TEXT.replace('"10.0.1.2:8080"', '"10.0.1.3:8080"')))
    assert composer.desired.services[0] != before.services[0]
    assert composer.desired.services[1] is before.services[1]
    assert composer.desired.local_addresses is before.local_addresses
    assert composer.desired.settings is before.settings


def test_settings_have_the_datapath_s_numbers() -> None:
    text = (Path(__file__).parents[2] / "lbd/datapath/tcp.pxd").read_text()
    values = settings(config(TEXT + '[timeouts]\ntcp_syn_recv = "7s"\nudp = "9s"\n[packet]\nicmp_rate = 5\n'
                             'fragment_timeout = "2500ms"\n'))  # fmt: skip
    assert "STATE_SYN_RECV = 1 " in text and "STATE_UDP = 8 " in text and "STATE_UDP_ONEWAY = 9 " in text
    assert "STATE_CLOSE = 7 " in text and "STATE_TIME_WAIT = 6 " in text and "STATE_LAST_ACK = 4 " in text
    base = shm.SET_TIMEOUT_BASE
    assert values[base + 1] == 7000 and values[base + 8] == values[base + 9] == 9000
    assert values[shm.SET_FRAG_TIMEOUT] == 2500
    assert values[shm.SET_ICMP_RATE] == 5 and values[shm.SET_POLL_MODE] == 1


# -- reach ---------------------------------------------------------------------------------------------------------


def test_interfaces_by_their_place() -> None:
    links = (link(7, "eth1", kind="veth", mtu=1400), link(9, "eth0", up=False), link(1, "lo"))
    addresses = (
        Address(7, ip_interface("10.0.0.10/32"), 0),
        Address(7, ip_interface("10.0.0.1/24"), 0),
        Address(1, ip_interface("127.0.0.1/8"), 254),
    )
    eth0, eth1 = Reach(config(), snapshot(links, addresses=addresses), frozenset({0})).interfaces()
    assert (eth0.number, eth0.ifindex, eth0.flags) == (0, 9, IFACE_ZERO_COPY)
    assert (eth1.number, eth1.mtu, eth1.flags) == (1, 1400, IFACE_UP | IFACE_PARTIAL)
    left = Reach(config(), snapshot(links), completes=frozenset({0, 1})).interfaces()
    assert [bool(i.flags & IFACE_COMPLETES) for i in left] == [False, True], "by veth alone"
    assert eth1.address4 == bytes([10, 0, 0, 1]), "rather the host's own address than a local address of lbd"
    assert eth0.address4 == bytes([10, 0, 0, 1]), "better another interface's than none"
    assert eth0.address6 == b""


def test_missing_interface_is_named() -> None:
    assert Reach(config(), snapshot((link(2, "eth0"),))).missing == ["eth1"]


def test_vlans_and_bonds_lead_to_the_interface_below() -> None:
    links = (
        link(2, "eth0", master=20, up=False), link(3, "eth1", master=20), link(20, "bond0", kind="bond"),
        link(30, "eth0.5", kind="vlan", link=2, vlan=5), link(31, "bond0.6", kind="vlan", link=20, vlan=6),
        link(40, "br0", kind="bridge"), link(41, "other"),
    )  # fmt: skip
    places = Reach(config(), snapshot(links)).places
    assert places == {2: (0, 0), 3: (1, 0), 20: (1, 0), 30: (0, 5), 31: (1, 6)}
    bridged = (link(2, "eth0", master=40), link(3, "eth1"), link(40, "br0", kind="bridge"))
    assert 40 not in Reach(config(), snapshot(bridged)).places


AD, OUTER_Q = shm.TPID_AD << 32, shm.TPID_OUTER_Q << 32


def test_vlans_in_vlans() -> None:
    """802.1Q and 802.1ad, each in each; a third tag is beyond lbd, and a device whose lower one comes later in the dump counts."""
    links = (
        link(2, "eth0"), link(3, "eth1"),
        link(29, "late", kind="vlan", link=30, vlan=7), link(30, "eth0.9", kind="vlan", link=2, vlan=9, vlan_ad=True),
        link(31, "eth0.9.8", kind="vlan", link=30, vlan=8, vlan_ad=True), link(32, "eth0.5", kind="vlan", link=2, vlan=5),
        link(33, "eth0.5.6", kind="vlan", link=32, vlan=6), link(34, "third", kind="vlan", link=33, vlan=1),
    )  # fmt: skip
    reach = Reach(config(), snapshot(links, routes=(route("10.5.6.0/24", 33), route("10.1.0.0/16", 34)),
                                     neighbours=(neighbour(29, "10.7.0.1"), neighbour(34, "10.1.0.1"))))  # fmt: skip
    expected = {30: AD | 9, 29: 9 << 16 | 7, 31: AD | 9 << 16 | 8, 32: 5, 33: OUTER_Q | 5 << 16 | 6}
    assert reach.places == {2: (0, 0), 3: (1, 0), **{ifindex: (0, tags) for ifindex, tags in expected.items()}}
    assert reach.neighbours() == (Neighbour(0, bytes([10, 7, 0, 1]), MAC, 9 << 16 | 7),)
    first, second = sorted(reach.routes(), key=lambda r: r.prefix)
    assert first.iface == ELSEWHERE and (second.iface, second.tags) == (0, OUTER_Q | 5 << 16 | 6)


def test_a_vlan_device_is_told_with_its_own_mtu_mac_state_and_address() -> None:
    links = (
        link(2, "eth0"), link(3, "eth1"),
        link(31, "eth1.8", kind="vlan", link=3, vlan=8, mtu=1400, mac=b"\2\0\0\0\0\x08", up=False),
        link(30, "eth0.5", kind="vlan", link=2, vlan=5), link(40, "eth9.5", kind="vlan", link=9, vlan=5),
    )  # fmt: skip
    addresses = (Address(31, ip_interface("10.8.0.1/24"), 0), Address(2, ip_interface("10.0.0.1/24"), 0))
    plain = Reach(config(), snapshot(links, addresses=addresses)).interfaces()
    five, eight = (i for i in plain if i.number >= shm.IFACE_MAX)
    assert (five.number, five.lower, five.tags, five.mtu) == (shm.IFACE_MAX, 0, 5, 1500)
    assert (eight.number, eight.lower, eight.tags, eight.mtu, eight.flags) == (shm.IFACE_MAX + 1, 1, 8, 1400, 0)
    assert eight.mac[-1] == 8 and eight.address4 == bytes([10, 8, 0, 1])
    assert five.address4 in (bytes([10, 8, 0, 1]), bytes([10, 0, 0, 1])), "another one's"


def test_more_vlan_devices_than_workers_know() -> None:
    vlans = tuple(link(100 + n, f"v{n}", kind="vlan", link=2, vlan=1 + n) for n in range(300))
    reach = Reach(config(), snapshot((link(2, "eth0"), link(3, "eth1"), *vlans)))
    assert len(reach.interfaces()) == 2 + 256 and "300 VLAN devices" in reach.alarms[0]
    assert len(reach.places) == 302, "they are reached all the same"


def test_neighbours_in_worker_s_terms() -> None:
    seen = Reach(
        config(),
        snapshot(
            (link(2, "eth0"), link(3, "eth1"), link(30, "eth0.5", kind="vlan", link=2, vlan=5)),
            neighbours=(neighbour(3, "10.0.1.1"), neighbour(3, "10.0.1.2", valid=False), neighbour(30, "10.5.0.1"),
                        neighbour(99, "10.9.9.9")),
        ),
    ).neighbours()  # fmt: skip
    assert set(seen) == {Neighbour(1, bytes([10, 0, 1, 1]), MAC), Neighbour(0, bytes([10, 5, 0, 1]), MAC, 5)}


def test_static_entries_fill_gaps_only() -> None:
    text = (
        TEXT
        + """
[[neighbor]]
interface = "eth1"
address = "10.0.1.1"
mac = "02:00:00:00:00:aa"
[[route]]
destination = "10.0.1.0/24"
gateway = "10.0.0.1"
interface = "eth1"
"""
    )
    alone = Reach(config(text), snapshot())
    assert alone.neighbours() == (Neighbour(1, bytes([10, 0, 1, 1]), b"\2\0\0\0\0\xaa"),)
    assert alone.routes() == (Route(bytes([10, 0, 1, 0]), 24, 1, bytes([10, 0, 0, 1])),)
    beside = Reach(config(text), snapshot(neighbours=(neighbour(3, "10.0.1.1"),), routes=(route("10.0.1.0/24", 2),)))
    assert beside.neighbours() == (Neighbour(1, bytes([10, 0, 1, 1]), MAC),)
    assert beside.routes() == (Route(bytes([10, 0, 1, 0]), 24, 0),)


def test_routes_that_lead_elsewhere_stay_in_the_way() -> None:
    seen = Reach(
        config(),
        snapshot(
            routes=(
                route("0.0.0.0/0", 2, "10.0.0.1", 100), route("0.0.0.0/0", 3, "10.0.0.2", 50),
                route("10.7.0.0/16", 99, None, 5), route("10.8.0.0/16", 0), route("10.6.0.0/16", 2, "fe80::1"),
            )
        ),
    )  # fmt: skip
    routes = {(r.prefix, r.plen): r for r in seen.routes()}
    assert routes[bytes(4), 0] == Route(bytes(4), 0, 1, bytes([10, 0, 0, 2]), 50), "the least metric"
    for second in (6, 7, 8):
        assert routes[bytes([10, second, 0, 0]), 16].iface == ELSEWHERE
        assert routes[bytes([10, second, 0, 0]), 16].gateway is None


def test_too_many_routes_keep_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbd.master.reach.ROUTES_MAX", 4)
    many = (*(route(f"10.{i}.0.0/16", 2) for i in range(20)), route("0.0.0.0/0", 2, "10.0.0.1"))
    reach = Reach(config(), snapshot(routes=many))
    kept = {(r.prefix[1], r.plen) for r in reach.routes([ip_address("10.17.1.1")])}
    assert len(kept) == 4 and {(17, 16), (0, 0)} <= kept
    assert "21 routes" in reach.alarms[0]


def test_next_hops() -> None:
    routes = (route("10.0.1.0/24", 3), route("0.0.0.0/0", 2, "10.0.0.1"), route("10.9.0.0/16", 77))
    hops = Reach(config(), snapshot(routes=routes)).next_hops(
        [ip_address("10.0.1.5"), ip_address("10.0.2.5"), ip_address("10.9.1.1"), ip_address("fd00::1")]
    )
    assert hops == {(3, ip_address("10.0.1.5")), (2, ip_address("10.0.0.1"))}


def test_longest_prefix_wins() -> None:
    index = RouteIndex([route("10.0.0.0/8", 1), route("10.1.0.0/16", 2), route("10.1.0.0/16", 3, None, 9)])
    found = index.lookup(ip_address("10.1.2.3"))
    assert found is not None and found.ifindex == 2
    assert index.lookup(ip_address("192.0.2.1")) is None and index.lookup(ip_address("fd00::1")) is None


# -- steering ------------------------------------------------------------------------------------------------------


class FakeProgram:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.vips: dict[tuple[int, bytes, int, int], int] = {}
        self.lip: dict[tuple[int, bytes], tuple[int, int]] = {}
        self.source: set[tuple[int, bytes, int, int]] = set()
        self.tunnel: set[object] = set()

    def tunnels(self) -> set[tuple[int, bytes, bytes, int, int]]:
        return set(self.tunnel)

    def set_tunnel(self, *at: object) -> None:
        self.tunnel.add(at)

    def del_tunnel(self, *at: object) -> None:
        self.tunnel.discard(at)

    def sources(self) -> set[tuple[int, bytes, int, int]]:
        return set(self.source)

    def set_source(self, af: int, addr: bytes, port: int, proto: int) -> None:
        self.log.append(f"+from {port}")
        self.source.add((af, addr, port, proto))

    def del_source(self, af: int, addr: bytes, port: int, proto: int) -> None:
        self.log.append(f"-from {port}")
        self.source.discard((af, addr, port, proto))

    def services(self) -> dict[tuple[int, bytes, int, int], int]:
        return dict(self.vips)

    def lips(self) -> dict[tuple[int, bytes], tuple[int, int]]:
        return dict(self.lip)

    def set_service(self, af: int, addr: bytes, port: int, proto: int, number: int) -> None:
        self.log.append(f"+{port}")
        self.vips[af, addr, port, proto] = number

    def del_service(self, af: int, addr: bytes, port: int, proto: int) -> None:
        self.log.append(f"-{port}")
        del self.vips[af, addr, port, proto]

    def set_lip(self, af: int, addr: bytes, lo: int, hi: int, echo: bool = False) -> None:
        self.log.append(f"+{'echo' if echo else 'lip'} {addr[-1]} {lo}-{hi}")
        self.lip[af, addr] = (lo, hi)

    def del_lip(self, af: int, addr: bytes) -> None:
        self.log.append(f"-lip {addr[-1]}")
        del self.lip[af, addr]

    # of SNAT rules: tests/unit/test_steer_snat.py, on the program itself
    def locals(self) -> set[tuple[int, bytes]]:
        return set()

    def prefixes(self, name: str) -> dict[tuple[int, bytes, int], int]:
        return {}

    def snat(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        return 0, 0, (0,) * 3, (0,) * 16

    def set_snat(self, *rules: object) -> None:
        pass

    def macs(self) -> set[tuple[int, bytes]]:
        return set()

    def set_mac(self, iface: int, mac: bytes) -> None:
        pass


def never(_: object) -> bool:
    return False


def desired(ports: list[int], *lips: tuple[int, int, int]) -> Desired:
    services = tuple(Service(f"s{p}", bytes([192, 0, 2, 1]), p, 6, "rr", ()) for p in ports)
    return Desired(services, tuple(LocalAddress(bytes([10, 0, 0, n]), lo, hi) for n, lo, hi in lips))


def test_steering_keeps_the_order() -> None:
    program, busy = FakeProgram(), {bytes([10, 0, 0, 1])}
    steering = Steering(program, lambda address: address in busy, never, set)
    steering.prepare(desired([80], (1, 2000, 3000)))
    assert program.log == ["+lip 1 2000-3000"], "answers must find their way before a worker opens a connection"
    steering.extend()
    assert program.log == ["+lip 1 2000-3000", "+80"]
    steering.prepare(desired([81], (2, 2000, 3000)))
    assert program.log[2:] == ["+lip 2 2000-3000", "-80"], "and local address 1 is in use"
    assert steering.leaving == {bytes([10, 0, 0, 1])}
    steering.tend()
    busy.clear()
    steering.tend()
    steering.extend()
    assert program.log[4:] == ["-lip 1", "+81"] and not steering.leaving
    steering.stop()
    assert not program.vips and not program.lip


def test_a_service_that_is_gone_keeps_its_connections() -> None:
    program, busy = FakeProgram(), {80, 82}
    steering = Steering(program, lambda address: False, lambda at: at[2] in busy, set)
    steering.prepare(desired([80, 81, 82]))
    steering.extend()
    steering.prepare(desired([82]))
    steering.extend()
    assert program.log[3:] == ["-81"] and steering.leaving == {bytes([192, 0, 2, 1])}
    steering.prepare(desired([80, 82]))
    assert program.log[4:] == [] and not steering.leaving, "it is back"
    steering.prepare(desired([82]))
    busy.clear()
    steering.tend()
    assert program.log[4:] == ["-80"] and not steering.leaving


def test_steering_never_takes_ports_away() -> None:
    program = FakeProgram()
    steering = Steering(program, lambda address: True, never, set)
    steering.prepare(desired([], (1, 2000, 3000)))
    steering.prepare(desired([], (1, 2500, 4000)))
    assert program.lip == {(4, bytes([10, 0, 0, 1])): (2000, 4000)}


def test_local_addresses_that_ask() -> None:
    """Answers to echo requests are steered where a service of ICMP sends them from local addresses: mode fullnat, by family."""
    program = FakeProgram()
    steering = Steering(program, lambda address: False, never, set)
    lips = (LocalAddress(bytes([10, 0, 0, 1]), 2000, 3000), LocalAddress(bytes(15) + b"\2", 2000, 3000))

    def pinged(protocol: int, mode: str, *families: int) -> Desired:
        servers = tuple(RealServer(bytes(4 if af == 4 else 16), 0, 1, True) for af in families)
        return Desired((Service("s", bytes(4 if protocol == 1 else 16), 0, protocol, "rr", servers, mode=mode),), lips)

    for wanted, log in (
        (pinged(6, "fullnat"), ["+lip 1 2000-3000", "+lip 2 2000-3000"]),
        (pinged(1, "dr"), []),
        (pinged(1, "fullnat"), ["+echo 1 2000-3000"]),
        (pinged(58, "fullnat"), ["+lip 1 2000-3000", "+echo 2 2000-3000"]),
        (pinged(58, "fullnat", 6), []),
        (pinged(58, "fullnat", 6, 4), ["+echo 1 2000-3000"]),
        (pinged(58, "fullnat", 4), []),
        (pinged(58, "nat", 6), ["+lip 1 2000-3000", "+lip 2 2000-3000"]),
    ):
        program.log.clear()
        steering.prepare(wanted)
        assert [line for line in program.log if "lip" in line or "echo" in line] == log


def test_steering_follows_how_real_servers_are_reached() -> None:
    program = FakeProgram()
    steering = Steering(program, lambda address: False, never, set)

    def tunnelled(*servers: RealServer, mode: str = "tunnel") -> Desired:
        return Desired((Service("s", bytes([192, 0, 2, 1]), 80, 6, "rr", servers, mode=mode),))

    four, six = bytes([10, 0, 1, 1]), bytes.fromhex("fd000001000000000000000000000001")
    plain = RealServer(four, 80, 1, True)
    steering.prepare(tunnelled(plain, RealServer(six, 80, 1, True, tunnel=Encapsulation("gue", 6080, True))))
    assert program.tunnel == {(4, b"", four, 4, 0), (6, b"", six, 17, 6080)}
    steering.prepare(tunnelled(RealServer(four, 80, 1, True, tunnel=Encapsulation("gre"))))
    assert program.tunnel == {(4, b"", four, 47, 0)}
    steering.prepare(tunnelled(plain, mode="dr"))
    assert program.tunnel == set()
    steering.prepare(tunnelled(plain))
    steering.stop()
    assert program.tunnel == set()


def test_answers_of_what_is_gone_are_steered_until_it_has_no_connection() -> None:
    program, busy = FakeProgram(), {7001}

    def in_use(places: set[ServiceAt]) -> set[ServiceAt]:
        return {at for at in places if at[2] in busy}

    def natted(*ports: int) -> Desired:
        servers = tuple(RealServer(bytes([10, 0, 0, 1]), p, 1, True) for p in ports)
        return Desired((Service("s", bytes([192, 0, 2, 1]), 80, 6, "rr", servers, mode="nat"),))

    steering = Steering(program, lambda address: False, never, in_use)
    steering.prepare(natted(7001, 7002, 7003))
    steering.extend()
    program.log.clear()
    steering.prepare(natted(7003))
    steering.tend()
    assert program.log == [], "workers do not know yet that they are gone"
    steering.extend()
    steering.tend()
    assert program.log == ["-from 7002"] and {at[2] for at in steering.outlived} == {7001}
    successor = Steering(program, lambda address: False, never, in_use)
    successor.prepare(natted(7003))
    successor.extend()
    successor.tend()
    assert program.log == ["-from 7002"]
    busy.clear()
    successor.tend()
    assert program.log == ["-from 7002", "-from 7001"] and not successor.outlived


def test_new_master_finds_what_was_steered() -> None:
    program = FakeProgram()
    old = Steering(program, lambda address: False, never, set)
    old.prepare(desired([80, 81], (1, 2000, 3000)))
    old.extend()
    program.log.clear()
    new = Steering(program, lambda address: False, never, set)
    new.prepare(desired([81, 82], (1, 2000, 3000)))
    assert program.log == ["-80"]
    new.extend()
    assert program.log == ["-80", "+82"]


# -- runtime changes -----------------------------------------------------------------------------------------------


def test_runtime_changes_survive_a_crash_not_a_stop(tmp_path: Path) -> None:
    path, where = tmp_path / "runtime.json", ("web", "10.0.1.1:8080")
    Runtime(path).change(where, weight=7, state="drain")
    again = Runtime(path)
    again.load(config())
    assert (again.get(*where).weight, again.get(*where).state) == (7, "drain")
    again.change(where, state="ready", weight=None)
    assert list(again.items()) == []
    again.change(where, weight=1)
    again.forget()
    fresh = Runtime(path)
    fresh.load(config())
    assert list(fresh.items()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "{}",
        '[{"service": "web"}]',
        '[{"service":"web","real_server":"x","weight":1,"state":"ready"}]',
        '[{"service":"web","real_server":"10.0.1.1:8080","weight":-1,"state":"ready"}]',
    ],
)
def test_runtime_file_that_makes_no_sense_is_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "runtime.json"
    path.write_text(text)
    runtime = Runtime(path)
    runtime.load(config())
    assert list(runtime.items()) == []


def test_the_file_s_new_weight_ends_a_runtime_change(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "runtime.json")
    runtime.change(("web", "10.0.1.1:8080"), weight=7)
    runtime.change(("web", "10.0.1.2:8080"), weight=7)
    runtime.change(("dns", "[fd00::1]:53"), state="maint")
    new = TEXT.replace("weight = 3", "weight = 4").replace('address = "[fd00::1]:53"', 'address = "[fd00::2]:53"')
    assert runtime.follow(config(), config(new)) == {("web", "10.0.1.2:8080"), ("dns", "[fd00::1]:53")}
    assert runtime.get("web", "10.0.1.1:8080").weight == 7


# -- differences ---------------------------------------------------------------------------------------------------


def test_changes_in_sentences() -> None:
    new = TEXT.replace("weight = 3", "weight = 4").replace('"10.0.1.1:8080"', '"10.0.1.9:8080"')
    new = new.replace('name = "dns"', 'name = "dns2"').replace('type = "tcp"', 'type = "tcp"\ninterval = "9s"')
    new += "[packet]\nicmp_rate = 5\n"
    assert sorted(changes(config(), config(new))) == sorted(
        [
            "packet: icmp_rate is now 5, was 1000",
            "service dns removed",
            "service dns2 added",
            "service web: health check changed",
            "service web: real server 10.0.1.1:8080 removed",
            "service web: real server 10.0.1.9:8080 added",
            "service web: weight of 10.0.1.2:8080 is now 4, was 3",
        ]
    )
    assert changes(config(), config()) == []


def test_what_takes_a_restart_is_named() -> None:
    running = needs_restart(config())
    new = config(TEXT.replace("count = 2", "count = 1").replace('name = "eth0"', 'name = "eth0"\nring = 512'))
    assert restart_fields(running, new) == ["workers.count", "interface"]
    assert restart_fields(running, config()) == []


# -- queues and RSS ------------------------------------------------------------------------------------------------


def channels(**counts: int) -> dict[str, Channels]:
    return {name: Channels(1, name, n, n) for name, n in counts.items()}


def test_queues_must_fit_the_workers() -> None:
    assert queue_counts(config(), channels(eth0=2, eth1=1)) == {"eth0": 2, "eth1": 1}
    with pytest.raises(Refusal, match=r"eth0 has 4 receive queues.*ethtool -L eth0 combined 2"):
        queue_counts(config(), channels(eth0=4, eth1=2))
    with pytest.raises(Refusal, match="too few queues: 2 workers"):
        queue_counts(config(), channels(eth0=1, eth1=1))
    with pytest.raises(Refusal, match="too few queues"):
        queue_counts(config(), {})


FIELDS = tuple((flow, RXH_ADDRESSES | RXH_PORTS) for flow in ("tcp4", "udp4", "tcp6", "udp6"))
KEY = bytes(range(1, 41))


def rss(name: str, **more: object) -> Rss:
    given = {"function": "toeplitz", "key": KEY, "table": (0, 1) * 64, "fields": FIELDS, **more}
    return Rss(1, name, **given)  # type: ignore[arg-type]


QUEUES = {"eth0": 2, "eth1": 2}


def test_rss_known_where_all_tell_it_alike() -> None:
    owners = ownership(["eth0", "eth1"], [rss("eth0"), rss("eth1")], 2, QUEUES)
    assert owners.known and owners.udp_ports and owners.key == KEY
    assert len(owners.table) == shm.OWNER_BUCKETS and owners.table[:4] == (0, 1, 0, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"function": "xor"}, {"key": bytes(40)}, {"key": bytes(10)}, {"table": (0, 1, 2)}, {"table": (0, 3) * 64},
        {"table": ()}, {"fields": (("tcp4", 0x30), *FIELDS[1:])}, {"fields": FIELDS[:3]}, {"key": KEY[::-1]},
        {"table": (1, 0) * 64}, {"fields": (FIELDS[0], ("udp4", RXH_ADDRESSES), *FIELDS[2:])},
    ],
)  # fmt: skip
def test_rss_unknown_otherwise(other: dict[str, object]) -> None:
    owners = ownership(["eth0", "eth1"], [rss("eth0"), rss("eth1", **other)], 2, QUEUES)
    assert not owners.known and owners.table[:4] == (0, 1, 0, 1) and "eth1" in owners.why
    assert len(owners.key) == 64 and any(owners.key)


def test_rss_of_an_interface_that_says_nothing() -> None:
    assert not ownership(["eth0", "eth1"], [rss("eth0")], 2, QUEUES).known


# -- offline -------------------------------------------------------------------------------------------------------


def test_offline_commands_make_a_whole_engine() -> None:
    commands, tables, reconciler = offline_commands(config(), {"eth1": b"\2\0\0\0\0\x99"})
    kinds = [shm.command_head(c)[0] for c in commands]
    assert kinds.count(shm.CMD_IFACE_SET) == 2 and kinds.count(shm.CMD_DEST_SET) == 3 and kinds.count(shm.CMD_SVC_SET) == 2
    faces = [c[16:22] for c in commands if shm.command_head(c)[0] == shm.CMD_IFACE_SET]
    assert faces == [b"\2\0\0\0\0\1", b"\2\0\0\0\0\x99"]
    assert tables == [(0, [0, 1]), (2, [2])]
    services, dests = reconciler.names()
    assert services == {0: "web", 1: "dns"} and dests[1][0] == "web" and dests[1][1][1:] == (bytes([10, 0, 1, 2]), 8080)
