# SPDX-License-Identifier: Apache-2.0
"""What sockets are bound to: the interfaces of the configuration, of bonds the slaves.

Scope: pure. A NIC's port number is what workers, the frames' ledger and the XDP program know its sockets by, and is below
IFACE_MAX. A plain interface has its own number, its place in the configuration. A slave, or a plain interface that was made
anew while frames of its predecessor are still held under its own number, has one beyond the configuration's interfaces.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lbd.config import Config
from lbd.master.record import Link
from lbd.master.refusal import Refusal
from lbd.shm import _shm as shm

PORTS_MAX = shm.IFACE_MAX - 1  # the last number is nobody's: reach.ELSEWHERE


@dataclass(frozen=True, slots=True)
class Nic:
    iface: int  # number of the interface that it receives and sends for
    ifindex: int
    name: str


def nics(config: Config, links: Iterable[Link]) -> list[Nic]:
    """Those that there are."""
    by_name = {link.name: link for link in links}
    found = []
    for number, interface in enumerate(config.interface):
        link = by_name.get(interface.name)
        if link is None:
            continue
        slaves = [s for s in by_name.values() if s.master == link.ifindex] if link.kind == "bond" else [link]
        found += [Nic(number, s.ifindex, s.name) for s in sorted(slaves, key=lambda s: s.ifindex)]
    return found


def numbered(config: Config, wanted: Iterable[Nic], held: Mapping[int, int], resting: Collection[int] = ()) -> dict[int, Nic]:
    """Port number -> NIC. `held`: ifindex -> number of those that have sockets; `resting`: numbers that can't be taken yet."""
    interfaces = len(config.interface)
    found: dict[int, Nic] = {}
    fresh = []
    for nic in wanted:
        number = held.get(nic.ifindex)
        if number is not None:
            found[number] = nic
        else:
            fresh.append(nic)
    bonds = {nic.iface for nic in wanted if config.interface[nic.iface].name != nic.name}
    for nic in fresh:
        own = [] if nic.iface in bonds else [nic.iface]
        free = [n for n in (*own, *range(interfaces, PORTS_MAX)) if n not in found and n not in resting]
        if not free:
            raise Refusal(
                f"{nic.name} is one port too many: lbd has {PORTS_MAX} in all, slaves of bonds counted each",
                "use fewer interfaces or slaves",
            )
        found[free[0]] = nic
    return dict(sorted(found.items()))
