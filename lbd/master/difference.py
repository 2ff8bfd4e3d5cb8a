# SPDX-License-Identifier: Apache-2.0
"""What a new configuration changes, in sentences; and what of it can't be changed while lbd runs. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

from pydantic import BaseModel

from lbd.config import Config
from lbd.config.service import Service
from lbd.config.snat import Snat
from lbd.master.resources import needs_restart

V = TypeVar("V")


def restart_fields(running: Mapping[str, object], new: Config) -> list[str]:
    """Fields that differ from what runs (`resources.needs_restart` of it) and take a restart."""
    wanted = needs_restart(new)
    return [name for name in wanted if running.get(name) != wanted[name]]


def changes(old: Config, new: Config) -> list[str]:
    """A sentence for each difference, in the order of the file."""
    found: list[str] = []
    for name in ("daemon", "workers", "timeouts", "packet", "metrics"):
        found += fields(name, getattr(old, name), getattr(new, name))
    found += keyed("local address", {str(a.address): a for a in old.local_address}, {str(a.address): a for a in new.local_address})
    found += keyed("SNAT rule", {r.name: r for r in old.snat}, {r.name: r for r in new.snat}, snat_changes)
    if [r.name for r in old.snat] != [r.name for r in new.snat] and {r.name for r in old.snat} == {r.name for r in new.snat}:
        found.append("order of SNAT rules changed")
    before, after = {s.name: s for s in old.service}, {s.name: s for s in new.service}
    found += keyed("service", before, after, service_changes)
    found += keyed(
        "static neighbour",
        {f"{n.address} on {n.interface}": n for n in old.neighbor},
        {f"{n.address} on {n.interface}": n for n in new.neighbor},
    )
    found += keyed("static route", {str(r.destination): r for r in old.route}, {str(r.destination): r for r in new.route})
    return found


def fields(name: str, old: BaseModel, new: BaseModel, leave_out: Iterable[str] = ()) -> list[str]:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [
        f"{name}: {field} is now {after[field]}, was {before[field]}"
        for field in after
        if field not in leave_out and before.get(field) != after[field]
    ]


def keyed(what: str, old: Mapping[str, V], new: Mapping[str, V], inside: object = None) -> Iterator[str]:
    for key in old.keys() - new.keys():
        yield f"{what} {key} removed"
    for key, value in new.items():
        if key not in old:
            yield f"{what} {key} added"
        elif old[key] is not value and old[key] != value:
            if callable(inside):
                yield from inside(old[key], value)
            else:
                yield f"{what} {key} changed"


def snat_changes(old: Snat, new: Snat) -> Iterator[str]:
    yield from fields(f"SNAT rule {new.name}", old, new)


def service_changes(old: Service, new: Service) -> Iterator[str]:
    name = f"service {new.name}"
    yield from fields(name, old, new, ("real_server", "health", "name"))
    if old.health != new.health:
        yield f"{name}: health check changed"
    before: dict[Hashable, int] = {str(r.address): r.weight for r in old.real_server}
    after: dict[Hashable, int] = {str(r.address): r.weight for r in new.real_server}
    for address in before.keys() - after.keys():
        yield f"{name}: real server {address} removed"
    for address, weight in after.items():
        if address not in before:
            yield f"{name}: real server {address} added"
        elif before[address] != weight:
            yield f"{name}: weight of {address} is now {weight}, was {before[address]}"
    if list(before) != list(after) and set(before) == set(after):
        yield f"{name}: order of real servers changed"
