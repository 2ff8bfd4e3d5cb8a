"""The mirror against the kernel: every change is seen within a second, and what was lost is found again."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import uvloop

from lbd.master.mirror import Mirror
from lbd.master.record import Change, Channels, Link, Neighbour, Route
from tests.netns.space import Space, run, space, until

pytestmark = [pytest.mark.netns, pytest.mark.root]

SOON = 5.0  # seconds; some milliseconds, on a machine that has nothing else to do
CARRIER = SOON + 1  # the kernel itself tells losses of carrier at most once a second (net/core/link_watch.c)


@pytest.fixture
def net() -> Iterator[Space]:
    with space() as made:
        yield made


class Seen:
    """A mirror, and what it told."""

    def __init__(self, mirror: Mirror, changes: list[Change]) -> None:
        self.mirror = mirror
        self.changes = changes

    def link(self, name: str) -> Link | None:
        return self.mirror.snapshot().link(name)

    def index(self, name: str) -> int:
        link = self.link(name)
        assert link is not None
        return link.ifindex

    def route(self, prefix: str) -> Route | None:
        found = [route for route in self.mirror.snapshot().routes if route.prefix == ip_network(prefix)]
        assert len(found) <= 1
        return found[0] if found else None

    def neighbour(self, address: str) -> Neighbour | None:
        wanted = ip_address(address)
        return next((n for n in self.mirror.snapshot().neighbours if n.address == wanted), None)

    def has_address(self, text: str) -> bool:
        return any(str(address.address) == text for address in self.mirror.snapshot().addresses)


@asynccontextmanager
async def mirroring(interfaces: tuple[str, ...] = ("h0",), **settings: Any) -> AsyncIterator[Seen]:
    changes: list[Change] = []
    alarms: list[str] = []
    loop = asyncio.get_running_loop()
    mirror = Mirror(interfaces, changes.extend, loop, on_alarm=alarms.append, **settings)
    await mirror.start()
    try:
        assert changes == []  # the first dump is the snapshot's
        yield Seen(mirror, changes)
        assert alarms == []
    finally:
        await mirror.stop()


async def agrees_with_kernel(net: Space, seen: Seen, seconds: float = SOON) -> None:
    def kernel() -> set[tuple[str, str | None, str, int]]:
        return {
            (
                str(ip_network("0.0.0.0/0" if route["dst"] == "default" else route["dst"])),
                route.get("gateway"),
                route["dev"],
                route.get("metric", 0),
            )
            for route in net.ip_json("-4 route show table main")
        }

    def mirrored() -> set[tuple[str, str | None, str, int]]:
        names = {link.ifindex: link.name for link in seen.mirror.snapshot().links}
        return {
            (
                str(route.prefix),
                str(route.gateway) if route.gateway else None,
                names[route.ifindex],
                route.metric,
            )
            for route in seen.mirror.snapshot().routes
            if route.af == 4
        }

    await until(lambda: kernel() == mirrored(), seconds, "the kernel's routes")


def test_works_under_uvloop(net: Space) -> None:
    async def main() -> None:
        async with mirroring() as seen:
            net.ip("link set h0 mtu 1400")
            await until(lambda: seen.link("h0").mtu == 1400, SOON, "MTU")  # type: ignore[union-attr]

    uvloop.run(main())


async def test_snapshot_is_what_the_kernel_has(net: Space) -> None:
    net.ip("route add 10.50.0.0/16 via 10.99.0.2")
    async with mirroring() as seen:
        (kernel,) = net.ip_json("link show h0")
        link = seen.link("h0")
        assert link is not None
        assert (link.ifindex, link.mac.hex(":")) == (kernel["ifindex"], kernel["address"])
        assert (link.mtu, link.up, link.kind, link.link) == (1500, True, "veth", None)
        assert {link.name for link in seen.mirror.snapshot().links} == {"lo", "h0"}
        assert seen.has_address("10.99.0.1/24") and seen.has_address("2001:db8:99::1/64")
        assert seen.route("10.50.0.0/16") == Route(
            ip_network("10.50.0.0/16"), ip_address("10.99.0.2"), link.ifindex, 0
        )
        assert seen.route("10.99.0.0/24") == Route(ip_network("10.99.0.0/24"), None, link.ifindex, 0)
        assert seen.route("2001:db8:99::/64") is not None
        await agrees_with_kernel(net, seen)


async def test_links(net: Space) -> None:
    async with mirroring() as seen:
        for command, there, up in (
            ("link set h0 down", False, False),
            ("link set h0 up", False, True),
            ("link set t0 down", True, False),  # the carrier goes
            ("link set t0 up", True, True),
        ):
            net.ip(command, there)
            limit = CARRIER if there else SOON
            await until(lambda up=up: seen.link("h0").up is up, limit, command)  # type: ignore[misc,union-attr]
        net.ip("link set h0 address 02:00:00:00:99:01 mtu 1300")
        await until(lambda: seen.link("h0").mtu == 1300, SOON, "MTU")  # type: ignore[union-attr]
        assert seen.link("h0").mac == bytes.fromhex("020000009901")  # type: ignore[union-attr]
        assert seen.mirror.events["link"] >= 5


async def test_an_interface_made_anew_under_its_name(net: Space) -> None:
    async with mirroring() as seen:
        before = seen.index("h0")
        net.ip("link del h0")
        await until(lambda: seen.link("h0") is None, SOON, "deletion")
        snapshot = seen.mirror.snapshot()
        assert not any(item.ifindex == before for item in (*snapshot.addresses, *snapshot.neighbours))
        await until(lambda: not seen.mirror.snapshot().routes, SOON, "routes gone with it")
        assert snapshot.channels == ()
        net.ip("link add filler type veth peer name filler2")  # or the index would be the same again
        net.add_pair()
        await until(lambda: seen.route("10.99.0.0/24") is not None, SOON, "everything back")
        assert seen.index("h0") != before
        await until(lambda: seen.mirror.snapshot().channels != (), SOON, "channels back")
        (channels,) = seen.mirror.snapshot().channels
        assert channels == Channels(seen.index("h0"), "h0", 1, 1)


async def test_addresses(net: Space) -> None:
    async with mirroring() as seen:
        for address in ("10.99.0.77/32", "2001:db8:99::77/128"):
            net.ip(f"addr add {address} dev h0 {'nodad' if ':' in address else ''}")
            await until(lambda a=address: seen.has_address(a), SOON, f"{address} added")  # type: ignore[misc]
            net.ip(f"addr del {address} dev h0")
            await until(lambda a=address: not seen.has_address(a), SOON, f"{address} gone")  # type: ignore[misc]


async def test_routes(net: Space) -> None:
    async with mirroring() as seen:
        index = seen.index("h0")
        for prefix, one, other in (
            ("10.60.0.0/16", "10.99.0.2", "10.99.0.3"),
            ("2001:db8:60::/48", "2001:db8:99::2", "2001:db8:99::3"),
        ):
            for verb, gateway in (("add", one), ("replace", other)):
                net.ip(f"route {verb} {prefix} via {gateway} metric 20")
                expected = Route(ip_network(prefix), ip_address(gateway), index, 20)
                await until(lambda e=expected: seen.route(str(e.prefix)) == e, SOON, f"{verb} {prefix}")  # type: ignore[misc]
            net.ip(f"route del {prefix} metric 20")
            await until(lambda p=prefix: seen.route(p) is None, SOON, f"{prefix} gone")  # type: ignore[misc]
        net.ip("route add blackhole 10.61.0.0/16")
        expected = Route(ip_network("10.61.0.0/16"), None, 0, 0)
        await until(lambda: seen.route("10.61.0.0/16") == expected, SOON, "blackhole")
        net.ip("route add 10.62.0.0/16 via 10.99.0.2 table 100")
        net.ip("route add 10.63.0.0/16 via 10.99.0.2")
        await until(lambda: seen.route("10.63.0.0/16") is not None, SOON, "main table")
        assert seen.route("10.62.0.0/16") is None  # it came before, and is none of ours
        assert seen.mirror.resyncs["overrun"] == seen.mirror.resyncs["damaged"] == 0


async def test_routes_that_the_kernel_removes_without_a_word(net: Space) -> None:
    async with mirroring() as seen:
        net.ip("route add 10.70.0.0/16 via 10.99.0.2")
        net.ip("nexthop add id 7 via 10.99.0.2 dev h0")
        net.ip("route add 10.71.0.0/16 nhid 7")
        net.ip("addr add 10.99.0.5/32 dev h0")
        net.ip("route add 10.72.0.0/16 via 10.99.0.2 src 10.99.0.5")
        await until(lambda: seen.route("10.72.0.0/16") is not None, SOON, "routes")
        assert seen.route("10.71.0.0/16").gateway == ip_address("10.99.0.2")  # type: ignore[union-attr]
        net.ip("addr del 10.99.0.5/32 dev h0")
        await until(lambda: seen.route("10.72.0.0/16") is None, SOON, "source address gone")
        net.ip("nexthop del id 7")
        await until(lambda: seen.route("10.71.0.0/16") is None, SOON, "nexthop gone")
        assert seen.route("10.70.0.0/16") is not None
        net.ip("link set h0 down")
        await until(lambda: seen.route("10.70.0.0/16") is None, SOON, "link down")
        await agrees_with_kernel(net, seen)


@pytest.mark.parametrize(
    ("prefix", "one", "other", "add"),
    [
        ("10.80.0.0/16", "10.99.0.2", "10.98.0.2", "addr add 10.98.0.1/24 dev h1"),
        ("2001:db8:80::/48", "2001:db8:99::2", "2001:db8:98::2", "addr add 2001:db8:98::1/64 dev h1 nodad"),
    ],
)
async def test_several_nexthops(net: Space, prefix: str, one: str, other: str, add: str) -> None:
    net.ip(f"link add h1 type veth peer name t1 netns {net.there}")
    net.ip("link set h1 up")
    net.ip("link set t1 up", there=True)
    net.ip(add)
    async with mirroring(("h0", "h1")) as seen:

        def gateway() -> str | None:
            route = seen.route(prefix)
            return str(route.gateway) if route is not None else None

        await until(lambda: seen.link("h1").up, SOON, "carrier")  # type: ignore[union-attr]
        net.ip(f"route add {prefix} nexthop via {one} dev h0 nexthop via {other} dev h1")
        await until(lambda: gateway() == one, SOON, "first nexthop")
        net.ip("link set t0 down", there=True)
        await until(lambda: gateway() == other, CARRIER, "carrier of the first gone")
        net.ip("link set t0 up", there=True)
        await until(lambda: gateway() == one, CARRIER, "carrier back")
        if ":" in prefix:  # IPv6: one of several can be deleted
            net.ip(f"route del {prefix} via {one} dev h0")
            await until(lambda: gateway() == other, SOON, "first nexthop deleted")
        net.ip(f"route del {prefix}")
        await until(lambda: gateway() is None, SOON, "all gone")


async def test_neighbours(net: Space) -> None:
    async with mirroring() as seen:
        net.ip("neigh replace 10.99.0.2 dev h0 managed")

        def mac() -> str | None:
            found = seen.neighbour("10.99.0.2")
            return found.mac.hex(":") if found is not None and found.valid and found.mac else None

        (peer,) = run("ip", "-n", net.there, "-br", "link", "show", "t0").splitlines()
        await until(lambda: mac() is not None, SOON, "resolved by the kernel")
        assert mac() in peer and seen.neighbour("10.99.0.2").managed  # type: ignore[operator,union-attr]
        run("ip", "netns", "exec", net.there, "sysctl", "-qw", "net.ipv4.conf.t0.arp_notify=1")
        net.ip("link set t0 address 02:00:00:00:99:02", there=True)  # announces itself by gratuitous ARP
        await until(lambda: mac() == "02:00:00:00:99:02", SOON, "new MAC")
        net.ip("neigh del 10.99.0.2 dev h0")
        await until(lambda: mac() is None, SOON, "deleted")


async def test_neighbours_on_a_vlan_of_ours(net: Space) -> None:
    async with mirroring() as seen:
        try:
            net.ip("link add link h0 name h0.7 type vlan id 7")
        except AssertionError as error:
            pytest.skip(f"needs VLAN devices: {error}")
        net.ip("link set h0.7 up")
        net.ip("neigh add 10.97.0.2 dev h0.7 lladdr 02:00:00:00:97:02")
        net.ip("neigh add 10.97.0.3 dev lo lladdr 02:00:00:00:97:03")
        await until(lambda: seen.neighbour("10.97.0.2") is not None, SOON, "neighbour on the VLAN")
        vlan = seen.link("h0.7")
        assert vlan is not None and (vlan.kind, vlan.link, vlan.vlan) == ("vlan", seen.index("h0"), 7)
        assert seen.neighbour("10.97.0.3") is None  # not an interface of ours


async def test_queue_count(net: Space) -> None:
    if shutil.which("ethtool") is None:
        pytest.skip("needs the ethtool command (Debian package ethtool)")
    net.ip("link del h0")
    net.add_pair(queues=4)
    async with mirroring() as seen:
        index = seen.index("h0")
        assert seen.mirror.snapshot().channels == (Channels(index, "h0", 4, 4),)
        run("ip", "netns", "exec", net.there, "ethtool", "-L", "t0", "tx", "2")
        run("ip", "netns", "exec", net.here, "ethtool", "-L", "h0", "rx", "2")
        expected = Change("channels", "set", Channels(index, "h0", 2, 4))
        await until(lambda: expected in seen.changes, SOON, "two receive queues")
        assert seen.mirror.snapshot().rss == ()  # veth has none: unknown, not a guess


def routes(count: int, gateway: int) -> list[str]:
    return [
        f"route replace 10.{110 + n // 256}.{n % 256}.0/24 via 10.99.0.{gateway} metric 20"
        for n in range(count)
    ]


async def test_lost_messages_are_made_good(net: Space) -> None:
    async with mirroring(receive_buffer=4096) as seen:
        net.batch(routes(300, 2)).wait()
        await agrees_with_kernel(net, seen, 5)
        await until(lambda: not seen.mirror._state.due, SOON, "rest")
        before = seen.mirror.resyncs["overrun"]
        seen.changes.clear()
        # hold the thread, so that messages get lost for certain
        held, let_go = threading.Event(), threading.Event()
        seen.mirror.thread.loop.call_soon_threadsafe(lambda: (held.set(), let_go.wait(30)))
        await until(held.is_set, 5, "thread held")
        net.batch(["route del 10.110.7.0/24 metric 20", *routes(300, 3)[8:]]).wait()
        net.ip("addr add 10.99.0.78/32 dev h0")
        net.ip("neigh add 10.99.0.9 dev h0 lladdr 02:00:00:00:99:09")
        let_go.set()
        await until(lambda: seen.neighbour("10.99.0.9") is not None, SOON, "neighbour")
        await until(lambda: seen.has_address("10.99.0.78/32"), SOON, "address")
        await agrees_with_kernel(net, seen)
        assert seen.mirror.resyncs["overrun"] == before + 1
        told = [change for change in seen.changes if change.kind == "route"]
        assert (
            len(told) == 293
        )  # the differences: one deletion, 292 new gateways, nothing of the seven that stayed
        assert [change.op for change in told].count("del") == 1


async def test_churn_ends_in_the_kernels_state(net: Space) -> None:
    """Tens of thousands of changes as fast as the kernel takes them; the loop stays alive meanwhile."""
    async with mirroring() as seen:
        loop = asyncio.get_running_loop()
        lines = [line for gateway in (2, 3, 4, 5) for line in routes(4000, gateway)]
        lines += [line.replace("replace", "del") for line in routes(4000, 5)[::2]]
        worst, process = 0.0, await asyncio.to_thread(net.batch, lines)
        while process.poll() is None:
            before = loop.time()
            await asyncio.sleep(0.005)
            worst = max(worst, loop.time() - before)
        assert process.returncode == 0
        await agrees_with_kernel(net, seen, 10)
        assert len([route for route in seen.mirror.snapshot().routes if route.metric == 20]) == 2000
        assert worst < 1.0


async def test_batches_are_few_under_churn_and_prompt_without(net: Space) -> None:
    batches: list[int] = []
    loop = asyncio.get_running_loop()
    mirror = Mirror(["h0"], lambda batch: batches.append(len(batch)), loop)
    await mirror.start()
    try:
        start = loop.time()
        process = await asyncio.to_thread(net.batch, routes(3000, 2))
        await until(lambda: sum(batches) >= 3000, 10, "all routes told")
        process.wait()
        assert len(batches) <= (loop.time() - start) / 0.05 + 5
        batches.clear()
        await until(lambda: mirror.events["route"] >= 3000, 5, "settled")
        net.ip("route add 10.61.0.0/16 via 10.99.0.2")
        await until(lambda: batches == [1], SOON, "one change, at once")
    finally:
        await mirror.stop()
