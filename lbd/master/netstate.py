# SPDX-License-Identifier: Apache-2.0
"""What is known of the kernel's network state, and what changed since it was told last.

Scope: events and dumps in, net differences out; no sockets, no clock, no threads: `mirror.py` brings those.

What the kernel does not tell, and what is done about it (`due` says which kinds have to be dumped again):
- IPv4 routes vanish silently with their interface, their source address or their nexthop object, and nexthops
  die with the carrier: each such event makes routes due.
- A deletion or addition beside a route of several nexthops, or of several routes with the same prefix and
  metric, does not say what is left: routes are due, and the old entry stays until the dump is there.
- Neighbours are kept for lbd's interfaces, and for VLANs and bonds on them, only: when that set grows, they
  are due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

from lbd.master.record import Change, Item, Link
from lbd.master.rtnetlink import Event

Key = tuple[str, Hashable]  # kind, key within the kind

KERNEL_KINDS = ("link", "address", "route", "neighbour")  # in the order in which they are dumped
KINDS = (*KERNEL_KINDS, "channels", "rss")


class NetState:
    def __init__(self, interfaces: Iterable[str]) -> None:
        self.interfaces = frozenset(interfaces)
        self.due: set[str] = set()
        self.resyncs: Counter[str] = Counter()  # dumps asked for, by reason
        self._items: dict[str, dict[Hashable, Item]] = {kind: {} for kind in KINDS}
        self._told: dict[Key, Item | None] = {}  # of what changed since: what was told last
        self._plural: set[Hashable] = set()  # routes with several nexthops, or several routes under one key
        self._scope: frozenset[int] = frozenset()  # ifindexes whose neighbours are kept

    def copy(self) -> dict[str, dict[Hashable, Item]]:
        return {kind: dict(items) for kind, items in self._items.items()}

    def own_links(self) -> list[Link]:
        """lbd's interfaces, of bonds the slaves."""
        links = self._links()
        bonds = {link.ifindex for link in links if link.kind == "bond" and link.name in self.interfaces}
        return [
            link for link in links if link.master in bonds or (link.name in self.interfaces and link.ifindex not in bonds)
        ]

    def want(self, kinds: Iterable[str], reason: str) -> None:
        kinds = set(kinds)
        if not kinds <= self.due:
            self.resyncs[reason] += 1
            self.due |= kinds

    # ---- events --------------------------------------------------------------------------------------------

    def take(self, event: Event) -> bool:
        """One notification. True if links came, went, or changed between up and down."""
        kind, key = event.kind, event.key
        if kind == "nexthop":
            self.want(("route",), "silent")
            return False
        known = self._items[kind].get(key)
        if kind == "route" and self._is_ambiguous(event, known):
            self.want(("route",), "ambiguous")
            return False
        if kind == "neighbour" and key[0] not in self._scope:  # type: ignore[index]
            return False
        item = event.item if event.present else None
        self.put(kind, key, item)
        if kind == "address" and item is None and known is not None:
            self.want(("route",), "silent")
        return kind == "link" and self._link_changed(known, item)

    def _is_ambiguous(self, event: Event, known: Item | None) -> bool:
        if event.plural:
            self._plural.add(event.key)
        if known is None:
            return False
        if event.present:
            return known != event.item and not event.replace
        return event.key in self._plural or known != event.item

    def _link_changed(self, old: Item | None, new: Item | None) -> bool:
        if isinstance(old, Link) and new is None:  # the kernel may or may not have told what went with it
            for kind in ("address", "neighbour", "route"):
                for key in [key for key, item in self._items[kind].items() if item.ifindex == old.ifindex]:
                    self.put(kind, key, None)
        self._measure_scope()
        if isinstance(old, Link) and isinstance(new, Link) and old.up == new.up:
            return False
        self.want(("route",), "silent")
        return True

    # ---- dumps ---------------------------------------------------------------------------------------------

    def replace(self, kind: str, events: Iterable[Event]) -> None:
        """A whole dump of a kind: what is not in it is gone."""
        fresh: dict[Hashable, Item] = {}
        plural: set[Hashable] = set()
        for event in events:
            if event.kind != kind or not event.present or event.item is None:
                continue
            if kind == "neighbour" and event.item.ifindex not in self._scope:
                continue
            if event.plural or event.key in fresh:
                plural.add(event.key)
            fresh.setdefault(event.key, event.item)  # the first of several routes is the one in force
        self.replace_items(kind, fresh)
        if kind == "route":
            self._plural = plural
        elif kind == "link":
            self._measure_scope()
        self.due.discard(kind)

    def replace_items(self, kind: str, fresh: dict[Hashable, Item]) -> None:
        for key in [key for key in self._items[kind] if key not in fresh]:
            self.put(kind, key, None)
        for key, item in fresh.items():
            self.put(kind, key, item)

    # ---- differences ---------------------------------------------------------------------------------------

    def put(self, kind: str, key: Hashable, item: Item | None) -> None:
        """Set, or (None) delete."""
        items = self._items[kind]
        old = items.get(key)
        if item == old:
            return
        self._told.setdefault((kind, key), old)
        if item is None:
            del items[key]
        else:
            items[key] = item

    @property
    def changed(self) -> bool:
        return bool(self._told)

    def collect(self) -> list[tuple[Key, Change]]:
        """The net differences since the last call, in the order in which they began."""
        batch: list[tuple[Key, Change]] = []
        for (kind, key), told in self._told.items():
            item = self._items[kind].get(key)
            if item is None and told is not None:
                batch.append(((kind, key), Change(kind, "del", told)))
            elif item is not None and item != told:
                batch.append(((kind, key), Change(kind, "set", item)))
        self._told.clear()
        return batch

    # ---- scope of neighbours -------------------------------------------------------------------------------

    def _links(self) -> list[Link]:
        return [link for link in self._items["link"].values() if isinstance(link, Link)]

    def _measure_scope(self) -> None:
        """lbd's interfaces, the bonds that they belong to, and the VLANs on either."""
        links = self._links()
        scope = {link.ifindex for link in links if link.name in self.interfaces}
        masters = {link.master for link in links if link.ifindex in scope}
        scope |= {link.ifindex for link in links if link.ifindex in masters and link.kind == "bond"}
        for _ in range(2):  # a VLAN may be in another
            scope |= {link.ifindex for link in links if link.kind == "vlan" and link.link in scope}
        if not scope <= self._scope:
            self.want(("neighbour",), "scope")
        self._scope = frozenset(scope)
