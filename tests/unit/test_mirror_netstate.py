"""The kept state against a model kernel: whatever happens, and whatever gets lost, it ends up the same."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from lbd.master.netstate import KERNEL_KINDS, NetState
from lbd.master.record import Address, Item, Link, Neighbour, Route
from lbd.master.rtnetlink import Event

NAMES = ("eth0", "eth1", "eth2")  # lbd's are the first two


def make_link(ifindex: int, up: bool = True, **more: Any) -> Link:
    settings = {"kind": "veth", "master": None, "link": None, **more}
    return Link(ifindex, NAMES[ifindex % 3], bytes(5) + bytes([ifindex]), 1500, up, **settings)


def link_event(link: Link) -> Event:
    return Event("link", link.ifindex, link, True)


def make_route(number: int, ifindex: int) -> Route:
    return Route(IPv4Network((bytes([10, number, 0, 0]), 16)), None, ifindex, 0)


def route_event(route: Route, present: bool = True, **more: bool) -> Event:
    return Event("route", route.prefix.network_address.packed, route, present, **more)


def neighbour_event(ifindex: int, last: int, state: str = "REACHABLE", present: bool = True) -> Event:
    address = IPv4Address(bytes([10, 0, 0, last]))
    item = Neighbour(ifindex, address, b"\2\0\0\0\0\1", state, True)
    return Event("neighbour", (ifindex, address.packed), item, present)


def address_event(ifindex: int, last: int, present: bool = True) -> Event:
    item = Address(ifindex, IPv4Interface(f"10.0.{ifindex}.{last}/24"), 0)
    return Event("address", (ifindex, last), item, present)


class Kernel(RuleBasedStateMachine):
    """A kernel that says too little, as the real one does, and a socket that loses messages."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: dict[str, dict[Any, Event]] = {kind: {} for kind in KERNEL_KINDS}
        self.state = NetState(NAMES[:2])
        self.view: dict[str, dict[Any, Item]] = {kind: {} for kind in KERNEL_KINDS}

    def say(self, event: Event, lost: bool) -> None:
        store = self.kernel[event.kind]
        if event.present:
            store[event.key] = event
        else:
            store.pop(event.key, None)
        if lost:
            self.state.want(KERNEL_KINDS, "overrun")
        else:
            self.state.take(event)

    @rule(ifindex=st.integers(1, 9), up=st.booleans(), lost=st.booleans())
    def set_link(self, ifindex: int, up: bool, lost: bool) -> None:
        if not up:  # IPv4 routes go, and nobody says so
            for key, event in list(self.kernel["route"].items()):
                if event.item is not None and event.item.ifindex == ifindex:
                    del self.kernel["route"][key]
        self.say(link_event(make_link(ifindex, up)), lost)

    @rule(ifindex=st.integers(1, 9), lost=st.booleans())
    def delete_link(self, ifindex: int, lost: bool) -> None:
        for kind in ("address", "neighbour", "route"):  # all silent: the worst case
            for key, event in list(self.kernel[kind].items()):
                if event.item is not None and event.item.ifindex == ifindex:
                    del self.kernel[kind][key]
        self.say(Event("link", ifindex, None, False), lost)

    @rule(number=st.integers(0, 5), lost=st.booleans(), add=st.booleans(), data=st.data())
    def route(self, number: int, lost: bool, add: bool, data: st.DataObject) -> None:
        ups = [event.key for event in self.kernel["link"].values() if event.item and event.item.up]  # type: ignore[union-attr]
        known = self.kernel["route"].get(make_route(number, 0).prefix.network_address.packed)
        if add and ups:
            item = make_route(number, data.draw(st.sampled_from(sorted(ups))))
            self.say(route_event(item, replace=known is not None), lost)
        elif known is not None:
            self.say(known._replace(present=False), lost)

    @rule(last=st.integers(1, 4), lost=st.booleans(), present=st.booleans(), data=st.data())
    def neighbour_or_address(self, last: int, lost: bool, present: bool, data: st.DataObject) -> None:
        if not self.kernel["link"]:
            return
        ifindex = data.draw(st.sampled_from(sorted(self.kernel["link"])))
        make = data.draw(st.sampled_from([neighbour_event, address_event]))
        self.say(make(ifindex, last, present=present), lost)

    @rule()
    def settle(self) -> None:
        """What the mirror does when it has read everything."""
        for kind in KERNEL_KINDS:
            if kind in self.state.due:
                self.state.replace(kind, list(self.kernel[kind].values()))
        assert not self.state.due
        for (kind, key), change in self.state.collect():
            if change.op == "set":
                assert self.view[kind].get(key) != change.item
                self.view[kind][key] = change.item
            else:
                assert self.view[kind].pop(key) == change.item
        own = {link.item.ifindex for link in self.kernel["link"].values() if link.item.name != "eth2"}  # type: ignore[union-attr]
        for kind in KERNEL_KINDS:
            expected = {
                key: event.item
                for key, event in self.kernel[kind].items()
                if kind != "neighbour" or event.item.ifindex in own  # type: ignore[union-attr]
            }
            assert self.view[kind] == expected, kind


TestKernel = Kernel.TestCase
TestKernel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def state_with(*events: Event) -> NetState:
    state = NetState(NAMES[:2])
    for event in events:
        state.take(event)
    state.due.clear()
    state.collect()
    return state


def test_net_differences_only() -> None:
    state = state_with(link_event(make_link(3)))
    state.take(route_event(make_route(1, 3)))
    state.take(route_event(make_route(1, 3), present=False))
    assert state.collect() == []
    state.take(link_event(make_link(3, up=False)))
    state.take(link_event(make_link(3, up=True)))
    assert state.collect() == [] and not state.changed


def test_a_deletion_beside_several_nexthops_waits_for_the_dump() -> None:
    both = route_event(make_route(1, 3), plural=True)
    state = state_with(link_event(make_link(3)), both)
    state.take(both._replace(present=False, plural=False))
    assert state.due == {"route"} and not state.changed
    state.replace("route", [route_event(make_route(1, 4))])
    ((_, change),) = state.collect()
    assert (change.op, change.item) == ("set", make_route(1, 4))


def test_an_addition_beside_a_route_waits_for_the_dump() -> None:
    state = state_with(link_event(make_link(3)), route_event(make_route(1, 3)))
    state.take(route_event(make_route(1, 4)))
    assert state.due == {"route"} and not state.changed
    state.replace("route", [route_event(make_route(1, 3)), route_event(make_route(1, 4))])
    assert not state.changed
    state.take(route_event(make_route(1, 3), present=False))  # one of two under the same key
    assert state.due == {"route"}


def test_a_replacement_needs_no_dump() -> None:
    state = state_with(link_event(make_link(3)), route_event(make_route(1, 3)))
    state.take(route_event(make_route(1, 4), replace=True))
    assert not state.due and [change.item for _, change in state.collect()] == [make_route(1, 4)]


def test_what_vanishes_silently_makes_routes_due() -> None:
    state = state_with(link_event(make_link(3)), address_event(3, 1))
    for event in (
        address_event(3, 1, present=False),
        link_event(make_link(3, up=False)),
        Event("link", 3, None, False),
        Event("nexthop", None, None, False),
    ):
        state.due.clear()
        state.take(event)
        assert "route" in state.due, event


def test_neighbours_of_vlans_and_bonds_of_ours() -> None:
    bond = replace(make_link(20), name="bond0", kind="bond")
    state = state_with(
        link_event(replace(make_link(3), master=20)),
        link_event(bond),
        link_event(replace(make_link(21), name="bond0.5", kind="vlan", link=20)),
        link_event(replace(make_link(22), name="eth0.7", kind="vlan", link=3)),
        link_event(replace(make_link(23), name="other.7", kind="vlan", link=99)),
        link_event(replace(make_link(24), name="br0", kind="bridge")),
    )
    for ifindex in (3, 20, 21, 22, 23, 24):
        state.take(neighbour_event(ifindex, 1))
    assert {change.item.ifindex for _, change in state.collect()} == {3, 20, 21, 22}


def test_vlans_within_vlans_count_and_a_bond_s_queues_are_its_slaves() -> None:
    state = NetState(["bond0", "eth9"])
    for link in (
        replace(make_link(20), name="bond0", kind="bond"), replace(make_link(3), master=20), replace(make_link(4), master=20),
        replace(make_link(9), name="eth9"), make_link(5), replace(make_link(22), name="inner", kind="vlan", link=21),
        replace(make_link(21), name="outer", kind="vlan", link=20),
    ):  # fmt: skip
        state.take(link_event(link))
    for ifindex in (20, 21, 22, 5):
        state.take(neighbour_event(ifindex, 1))
    changed = {change.item.ifindex for (kind, _), change in state.collect() if kind == "neighbour"}
    assert changed == {20, 21, 22}
    assert {link.ifindex for link in state.own_links()} == {3, 4, 9}


def test_a_larger_scope_asks_for_neighbours() -> None:
    state = state_with(link_event(make_link(3)))
    state.take(link_event(replace(make_link(22), name="eth0.7", kind="vlan", link=3)))
    assert "neighbour" in state.due
