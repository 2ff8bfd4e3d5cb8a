"""From the desired state to commands: numbers, scheduling tables, and the difference against what was sent last.

Scope: pure but for the writer of the arena. The same class serves the daemon, which sends the commands to every worker
alike, and `lbd replay`, which applies them to an engine of its own (`offline.py`).

Assumes: a worker applies commands in order. Within a batch, what others refer to comes first, and what nobody refers to
any more goes last: a real server before the table that holds its number, the table before a real server's end.

Generations grow by 2 with each batch. Its commands carry the even one; the last, CMD_NOP, carries the odd one that
follows. So a worker whose gen_applied has reached that has applied the whole batch; and a sweep, which carries the even
one, spares what the batch has set.

    update(desired) -> commands for all workers      what changed since the last update
    full(existing)  -> commands for one worker       everything again, then a sweep of all that was not in it
    adopt(found)                                      after a restart of the master: numbers and extents in use
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lbd.master import encode
from lbd.master.arena import Arena
from lbd.master.desired import Desired, DestKey, LipKey, Service, ServiceKey, SnatRule
from lbd.master.encode import Key, Kind
from lbd.master.numbers import Numbers, never_busy
from lbd.sched import FULL, Flag, Scheduler, Server, flags_of, scheduler
from lbd.sched import Kind as Scheduling

FIRST_GENERATION = 2
K = TypeVar("K", bound=Hashable)
MadeOf = tuple[str, Flag, list[Server]]  # what a table follows from


@dataclass(frozen=True, slots=True)
class Records:
    """What a worker's segment says: numbers in use, whose they are, and the extents of the arena."""

    services: Mapping[int, ServiceKey] = field(default_factory=dict)
    dests: Mapping[int, DestKey] = field(default_factory=dict)
    lips: Mapping[int, LipKey] = field(default_factory=dict)
    extents: Iterable[tuple[int, int]] = ()
    generation: int = 0  # gen_applied


@dataclass(slots=True)
class Placed:
    """A service, or an SNAT rule, as it was sent."""

    service: Service | SnatRule
    number: int
    dests: dict[DestKey, int]
    records: dict[Key, bytes]
    made_of: MadeOf
    table: Sequence[int]
    table_at: int


@dataclass(slots=True)
class Busy:
    """Whether connections still refer to a number, by kind; asked before a freed one is used again."""

    service: Callable[[int], bool] = never_busy
    dest: Callable[[int], bool] = never_busy
    lip: Callable[[int], bool] = never_busy


class Reconciler:
    def __init__(self, services: int, dests: int, lips: int, arena: Arena, busy: Busy | None = None):
        busy = busy or Busy()
        self.arena = arena
        self.services: Numbers[ServiceKey] = Numbers(services, "tables.services", busy.service)
        self.dests: Numbers[DestKey] = Numbers(dests, "tables.real_servers", busy.dest)
        self.lips: Numbers[LipKey] = Numbers(lips, "the number of local addresses", busy.lip)
        self.generation = FIRST_GENERATION - 1  # of the last batch's end
        self.placed: dict[ServiceKey, Placed] = {}
        self._known: dict[int, Placed] = {}  # the same as `placed`, by the identity of its service
        self._parts: dict[Kind, tuple[object, dict[Key, bytes]]] = {}  # a part of Desired and its records
        self._adopted: list[tuple[int, int]] = []  # extents that the predecessor filled

    def names(self) -> tuple[dict[int, str], dict[int, tuple[str, DestKey]]]:
        """What numbers mean, for people: services' names, and each real server's service and key."""
        services = {p.number: p.service.name for p in self.placed.values()}
        dests = {n: (p.service.name, key) for p in self.placed.values() for key, n in p.dests.items()}
        return services, dests

    def rule_number(self, name: str) -> int | None:
        """Of an SNAT rule, if workers know it."""
        found = (p.number for p in self.placed.values() if isinstance(p.service, SnatRule) and p.service.name == name)
        return next(found, None)

    # -- after a restart of the master -----------------------------------------------------------------------

    def adopt(self, found: Iterable[Records]) -> None:
        """Takes over the numbers that running workers use; where they differ, those of the most advanced one."""
        for records in sorted(found, key=lambda r: -r.generation):
            for number, service in records.services.items():
                self.services.adopt(service, number)
            for number, dest in records.dests.items():
                self.dests.adopt(dest, number)
            for number, lip in records.lips.items():
                self.lips.adopt(lip, number)
            for at, length in records.extents:
                self._adopted += self.arena.hold(at, length)
            self.generation = max(self.generation, records.generation | 1)

    def release_adopted(self) -> None:
        """After a full() for every adopted worker: the predecessor's tables are free once all have applied it."""
        for at, length in self._adopted:
            self.arena.give(at, length, self.generation)
        self._adopted.clear()

    # -- batches ---------------------------------------------------------------------------------------------

    def update(self, desired: Desired, first: bool = False) -> list[bytes]:
        """Commands that bring workers from the last update to this one; none if nothing changed. `first`: workers' tables are
        new, and no number had another meaning before.

        Raises NumbersUsedUp or ArenaFull, and then nothing has changed. What is the same object as last time costs a
        look at its identity: one real server of 20,000 takes 0.5 ms."""
        generation = self.generation + 1
        plan = Plan(self, desired)
        try:
            plan.make()
        except Exception:
            plan.undo()
            raise
        self._commit(plan, generation)
        if not plan.changed and not plan.gone:
            return []
        self.generation = generation + 1
        fresh = set() if first else plan.fresh
        batch = [encode.set_command(plan.changed[key], generation, key in fresh) for key in sorted(plan.changed)]
        batch += [encode.delete_command(key, generation) for key in sorted(plan.gone, reverse=True)]
        return [*batch, encode.end(generation + 1)]

    def full(self, existing: Records | None = None) -> list[bytes]:
        """Everything that was sent so far, for a worker that may have none of it, or something else.

        `existing`: an adopted worker's own records, with no command under way. What they do not have gets its
        statistics zeroed."""
        generation = self.generation + 1
        self.generation = generation + 1
        fresh = self._strange(existing) if existing else set()
        records = self.records()
        batch = [encode.set_command(records[key], generation, key in fresh) for key in sorted(records)]
        batch += [encode.sweep(kind, generation) for kind in sorted(Kind, reverse=True) if kind is not Kind.SETTING]
        return [*batch, encode.end(generation + 1)]

    def records(self) -> dict[Key, bytes]:
        """All that workers were told and that still holds."""
        found: dict[Key, bytes] = {}
        for _, records in self._parts.values():
            found |= records
        for placed in self.placed.values():
            found |= placed.records
        return found

    def _commit(self, plan: Plan, generation: int) -> None:
        self._parts.update(plan.parts)
        for service in plan.removed:
            del self.placed[service]
        for placed in plan.replaced:
            self.arena.give(placed.table_at, len(placed.table), generation + 1)
        for placed in plan.placed:
            self.placed[placed.service.key] = placed
        if plan.placed or plan.removed:
            self._known = {id(placed.service): placed for placed in self.placed.values()}
        for point in plan.services_gone():
            self.services.release(point)
        for dest in plan.dests_gone:
            self.dests.release(dest)
        for lip in plan.lips_gone:
            self.lips.release(lip)
        for numbers in (self.services, self.dests, self.lips):
            numbers.settle()

    def _strange(self, existing: Records) -> set[Key]:
        """What has another meaning in those records than here, or none: its statistics are somebody else's."""
        services = {Key(Kind.SVC, (n,)) for key, n in self.services.items() if existing.services.get(n) != key}
        dests = {Key(Kind.DEST, (n,)) for key, n in self.dests.items() if existing.dests.get(n) != key}
        lips = {Key(Kind.LIP, (n,)) for key, n in self.lips.items() if existing.lips.get(n) != key}
        return services | dests | lips


# in whose comparisons of load / weight the measure of weights cancels out
RELATIVE = (Scheduling.LEAST, Scheduling.SED, Scheduling.NQ)
WEIGHT_MAX = 65535


def weight_measure(service: Service, method: Scheduler) -> int:
    """What workers' weights are multiples of while a real server has a part of its own, so that a part of 1 can be told."""
    if not method.RAMP or method.KIND not in RELATIVE or all(r.share == FULL for r in service.real_servers):
        return 1
    greatest = max(r.weight for r in service.real_servers)
    return max(1, min(FULL, WEIGHT_MAX // max(1, greatest)))


def weight_measured(weight: int, share: int, measure: int) -> int:
    """0 stays 0, and what is left of a weight is not 0."""
    return max(1, weight * share * measure // FULL) if weight else 0


class Plan:
    """The way to the next state: what differs, while it can still be undone."""

    def __init__(self, reconciler: Reconciler, desired: Desired):
        self.now = reconciler
        self.desired = desired
        self.changed: dict[Key, bytes] = {}
        self.gone: list[Key] = []
        self.parts: dict[Kind, tuple[object, dict[Key, bytes]]] = {}  # those made anew
        self.fresh: set[Key] = set()  # numbers that mean something new
        self.placed: list[Placed] = []  # new or changed services
        self.removed: list[ServiceKey] = []
        self.points_gone: list[ServiceKey] = []  # addresses that a service has no more; another one may have them now
        self.dests_gone: list[DestKey] = []
        self.lips_gone: list[LipKey] = []
        self.replaced: list[Placed] = []  # their tables have no reader soon
        self.taken: list[tuple[int, int]] = []
        self.assigned: list[tuple[Numbers[Any], Hashable]] = []  # new numbers' keys

    def make(self) -> None:
        d = self.desired
        self._part(Kind.SETTING, d.settings, lambda: encode.settings(d.settings))
        self._part(Kind.IFACE, d.interfaces, lambda: encode.interfaces(d.interfaces))
        self._part(Kind.NEIGH, d.neighbours, lambda: encode.neighbours(d.neighbours))
        self._part(Kind.ROUTE, d.routes, lambda: encode.routes(d.routes))
        self._part(Kind.TUNNEL, d.tunnels, lambda: encode.tunnels(d.tunnels))
        self._part(Kind.LIP, d.local_addresses, self._local_addresses)
        known = self.now._known
        all_of_them: tuple[Service | SnatRule, ...] = (*d.services, *d.snat)
        others = [service for service in all_of_them if id(service) not in known]
        kept = len(all_of_them) - len(others)
        for service in others:
            old = self.now.placed.get(service.key)
            kept += old is not None
            self._renew(service, old)
        if kept < len(self.now.placed):
            keys = {service.key for service in all_of_them}
            self.removed = [key for key in self.now.placed if key not in keys]
            for key in self.removed:
                old = self.now.placed[key]
                self.replaced.append(old)
                self.gone += old.records
                self.points_gone += old.service.keys
                self.dests_gone += old.dests
        self.gone = [key for key in self.gone if key not in self.changed]

    def services_gone(self) -> list[ServiceKey]:
        """Addresses that nobody has now."""
        if not self.points_gone:
            return []
        kept = {key for service in self.desired.services for key in service.keys} | {rule.key for rule in self.desired.snat}
        return [key for key in dict.fromkeys(self.points_gone) if key not in kept]

    def undo(self) -> None:
        for numbers, key in self.assigned:
            numbers.cancel(key)
        for at, length in self.taken:
            self.now.arena.cancel(at, length)

    def _part(self, kind: Kind, what: object, make: Callable[[], dict[Key, bytes]]) -> None:
        """Records of a part of the desired state, made anew only if the part is another object than last time."""
        last = self.now._parts.get(kind)
        if last is not None and last[0] is what:
            return
        records = make()
        self.parts[kind] = (what, records)
        ended = self._compare(records, last[1] if last is not None else {})
        if kind is not Kind.SETTING:  # these have no command to end them
            self.gone += ended

    def _compare(self, records: dict[Key, bytes], before: Mapping[Key, bytes]) -> list[Key]:
        """What is no more."""
        self.changed |= {key: body for key, body in records.items() if before.get(key) != body}
        return [key for key in before if key not in records]

    def _local_addresses(self) -> dict[Key, bytes]:
        records: dict[Key, bytes] = {}
        wanted = set()
        for lip in self.desired.local_addresses:
            number = self._number(self.now.lips, Kind.LIP, lip.address)
            wanted.add(lip.address)
            records[Key(Kind.LIP, (number,))] = encode.local_address(number, lip)
        self.lips_gone = [lip for lip in self.now.lips if lip not in wanted]
        return records

    def _renew(self, service: Service | SnatRule, old: Placed | None) -> None:
        if old is not None and old.service == service:
            self.placed.append(replace(old, service=service))
            return
        new = self._place(service, old) if isinstance(service, Service) else self._place_rule(service, old)
        self.placed.append(new)
        self.gone += self._compare(new.records, old.records if old is not None else {})
        if old is not None:
            self.points_gone += [key for key in old.service.keys if key not in service.keys]
            self.dests_gone += [key for key in old.dests if key not in new.dests]
            if old.table is not new.table:
                self.replaced.append(old)

    def _number(self, numbers: Numbers[K], kind: Kind, key: K) -> int:
        known = numbers.number(key)
        if known is not None:
            return known
        number = numbers.recall(key)
        if number is None:
            number = numbers.assign(key)
            self.fresh.add(Key(kind, (number,)))
        self.assigned.append((numbers, key))
        return number

    def _place(self, service: Service, old: Placed | None) -> Placed:
        own = service.key  # one object in all keys below
        number = self._number(self.now.services, Kind.SVC, own)
        dests: dict[DestKey, int] = {}
        records: dict[Key, bytes] = {}
        servers: list[Server] = []
        method = scheduler(service.scheduler)
        measure = weight_measure(service, method)
        for real in service.real_servers:
            key = (own, real.address, real.port)
            dest = self._number(self.now.dests, Kind.DEST, key)
            dests[self.now.dests.key(dest) or key] = dest  # the same object for as long as it has the number
            share = real.share if method.RAMP else FULL
            records[Key(Kind.DEST, (dest,))] = encode.dest(dest, real, number, weight_measured(real.weight, share, measure))
            identity = real.address + real.port.to_bytes(2, "big")
            servers.append(Server(dest, real.weight if real.up else 0, identity, real.up, real.weight or real.rest, share))
        sorry = None
        if service.sorry is not None:
            key = (own, *service.sorry)
            sorry = dests[key] = self._number(self.now.dests, Kind.DEST, key)
            records[Key(Kind.DEST, (sorry,))] = encode.sorry(sorry, *service.sorry, number, service.sorry_tunnel)
        flags = flags_of(method, service.scheduler_flags)
        made_of = (service.scheduler, flags, servers)
        table = old.table if old is not None and old.made_of == made_of else method.table(servers, flags)
        if old is not None and old.table == table:
            table, at = old.table, old.table_at  # the same extent: workers go on in it where they are
        else:
            at = self._table(table)
        records[Key(Kind.SVC, (number,))] = encode.service(
            number, service, method.KIND, flags, at, len(table), sorry
        )
        for point in service.further:
            also = self._number(self.now.services, Kind.SVC, point)
            records[Key(Kind.SVC, (also,))] = encode.further_address(also, point, service.mode, number)
        return Placed(service, number, dests, records, made_of, table, at)

    def _place_rule(self, rule: SnatRule, old: Placed | None) -> Placed:
        number = self._number(self.now.services, Kind.SVC, rule.key)
        key = (rule.key, bytes(len(rule.pool[0])), 0)
        dest = self._number(self.now.dests, Kind.DEST, key)
        lips = [n for address in rule.pool if (n := self.now.lips.number(address)) is not None]
        table: Sequence[int] = encode.snat_table(dest, lips, rule)
        made_of: MadeOf = ("snat", Flag.NONE, [])
        if old is not None and old.table == table:
            table, at = old.table, old.table_at
        else:
            at = self._table(table)
        records = {
            Key(Kind.DEST, (dest,)): encode.snat_dest(dest, rule, number),
            Key(Kind.SVC, (number,)): encode.snat(number, rule, at),
        }
        return Placed(rule, number, {key: dest}, records, made_of, table, at)

    def _table(self, table: Sequence[int]) -> int:
        at = self.now.arena.place(table)
        self.taken.append((at, len(table)))
        return at
