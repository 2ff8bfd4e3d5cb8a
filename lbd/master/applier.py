# SPDX-License-Identifier: Apache-2.0
"""The desired state's way to the workers and to the XDP program.

Scope: the order of the steps. What is desired is put together by `compose.py`, turned into commands by
`reconcile.py`, carried by the supervisor, and shown to the XDP program by `steering.py`.

    apply    steering is prepared, then workers are told
    settle   every worker has applied it: new services are steered to them, and old tables' places are free

`apply` may be called any number of times before `settle`: only the state of the last one is steered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from lbd.config.service import Service
from lbd.master.arena import Arena, ArenaFull
from lbd.master.compose import Composer
from lbd.master.desired import ServiceKey
from lbd.master.network import Network
from lbd.master.numbers import NumbersUsedUp
from lbd.master.reach import Reach
from lbd.master.reconcile import Busy, Placed, Reconciler, Records
from lbd.master.resources import Resources
from lbd.master.steering import ServiceAt, Steering
from lbd.master.supervise import Supervisor
from lbd.shm import _shm as shm

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds for workers to apply something, before it counts as a problem
FULL = (NumbersUsedUp, ArenaFull)


class Applier:
    def __init__(self, composer: Composer, network: Network, resources: Resources, supervisor: Supervisor) -> None:
        self.composer = composer
        self.network = network
        self.supervisor = supervisor
        sizes = resources.sizes
        arena = Arena(sizes["arena"], lambda off, table: resources.host.write_table(off, table))  # of the workers of then
        busy = Busy(self._service_in_use, self._dest_in_use, self._lip_in_use)
        self.reconciler = Reconciler(sizes["services"], sizes["dests"], sizes["lips"], arena, busy)
        self.steering = Steering(resources.program, self._address_in_use, self._serving, self._answering)
        self.steered = 0  # generation that the XDP program shows
        self.places: Mapping[int, tuple[int, int]] = {}  # ifindex -> interface number, VLAN
        self.failures: dict[str, str] = {}  # what can't be carried out now, by cause
        self.on_alarm: Callable[[str], None] = log.warning
        self.wake: Callable[[], None] = lambda: None  # there is something to settle
        self._due = False
        self._unsettled = 0.0  # since when workers owe something
        self._lip_numbers: dict[bytes, int] = {}  # of those that were removed, too
        self._service_numbers: dict[ServiceKey, int] = {}  # the same, by each of their addresses

    @property
    def settled(self) -> bool:
        return self.steered == self.reconciler.generation

    def placed(self, service: Service) -> Placed | None:
        return self.reconciler.placed.get((service.vip.packed, service.port, service.proto))

    # -- the steps -------------------------------------------------------------------------------------------

    def apply(self, first: bool = False) -> None:
        """NumbersUsedUp or ArenaFull, and nothing has changed. `first`: workers' tables are new."""
        desired = self.composer.desired
        batch = self.reconciler.update(desired, first)
        try:
            self.steering.prepare(desired)
        finally:  # they are told of the next differences from here
            if batch:
                self.supervisor.broadcast(*batch)
                self._remember_numbers()
            self.wake()

    def apply_soon(self) -> None:
        """Once for all that happens in this turn of the loop."""

        def run() -> None:
            self._due = False
            try:
                self.apply()
            except (*FULL, OSError) as error:
                self.fail("tables", str(error))
            else:
                self.failures.pop("tables", None)

        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(run)

    async def settle(self, limit: float = PATIENCE) -> None:
        generation = self.reconciler.generation
        alive = [n for n, m in self.supervisor.members.items() if m.state == "running"]
        now = time.monotonic()
        if await self.supervisor.wait_applied(generation, limit, alive):
            self._unsettled = 0.0
            self.failures.pop("settle", None)
            if generation == self.reconciler.generation:
                self.steering.extend()
                self.steered = generation
        else:
            self._unsettled = self._unsettled or now
            if now - self._unsettled > PATIENCE:
                self.fail("settle", "workers do not apply what they were told")
        # of the dead, too: before its successor reads the ring, its tables are still the old ones
        if await self.supervisor.wait_applied(generation, 0.0):
            self.reconciler.arena.collect(generation)

    def tell_again(self, worker: int) -> None:
        """It was started again: it has the tables, but no settings, and may have died in the middle of a command."""
        self.supervisor.send(worker, *self.reconciler.full())
        self.wake()

    def take_over(self, found: Mapping[int, Records]) -> None:
        """From a predecessor: what workers know already keeps its numbers, and is told once more."""
        self.reconciler.adopt(found.values())
        self.reconciler.generation = max(self.reconciler.generation, self.supervisor.generation() | 1)
        desired = self.composer.desired
        self.reconciler.update(desired)
        self.steering.prepare(desired)
        for number in self.supervisor.members:
            self.supervisor.send(number, *self.reconciler.full(found.get(number)))
        self.reconciler.release_adopted()
        self._remember_numbers()

    def _remember_numbers(self) -> None:
        """What counts the connections of something that is gone."""
        self._lip_numbers.update(self.reconciler.lips.items())
        for placed in self.reconciler.placed.values():
            self._service_numbers.update(dict.fromkeys(placed.service.keys, placed.number))

    # -- the network -----------------------------------------------------------------------------------------

    def look(self, reach: Reach, kinds: set[str] | None = None) -> None:
        """`kinds` of records that changed; None: any."""
        self.places = reach.places
        links = kinds is None or bool(kinds & {"link", "address"})
        routes = links or "route" in (kinds or ())
        self.composer.look(reach, neighbours=routes or "neighbour" in (kinds or ()), routes=routes)
        for text in reach.alarms:
            self.fail(f"reach: {text}", text)
        if routes:
            for cause in [c for c in self.failures if c.startswith("reach: ") and c[7:] not in reach.alarms]:
                del self.failures[cause]
            self.network.keep_resolved(self.composer.next_hops(reach))

    # -- what is in use --------------------------------------------------------------------------------------

    def fail(self, cause: str, text: str) -> None:
        if self.failures.get(cause) != text:
            log.error("%s", text)
        self.failures[cause] = text

    def _segments(self) -> list[shm.WorkerSegment]:
        return [m.segment for m in self.supervisor.members.values()]

    def _sure(self) -> bool:
        """One that begins counts its connections first."""
        members = self.supervisor.members.values()
        return bool(members) and all(m.state == "running" for m in members)

    def _service_in_use(self, number: int) -> bool:
        return any(any(s.service_stats(number)[-2:]) for s in self._segments())

    def _dest_in_use(self, number: int) -> bool:
        return any(any(s.dest_stats(number)[-2:]) for s in self._segments())

    def _lip_in_use(self, number: int) -> bool:
        return any(s.lip_stats(number)[-1] for s in self._segments())

    def _serving(self, at: ServiceAt) -> bool:
        """Of a service that is not wanted: has it connections still?"""
        if not self._sure():
            return True
        number = self._service_numbers.get(at[1:])
        if number is not None:
            return self._service_in_use(number)
        services = self.reconciler.services  # as below
        return any(self._service_in_use(n) for n in range(services.capacity) if services.key(n) is None)

    def _answering(self, places: set[ServiceAt]) -> set[ServiceAt]:
        """Of what answered in mode nat: where real servers have connections still (of whatever mode)."""
        if not self._sure():
            return places
        dests = self.reconciler.dests
        numbers: dict[tuple[bytes, int], list[int]] = {}
        for (_, address, port), number in (*dests.items(), *dests.former()):
            numbers.setdefault((address, port), []).append(number)

        def in_use(at: ServiceAt) -> bool:
            here = [n for port in {at[2], 0} for n in numbers.get((at[1], port), ())]
            # none: removed before this master took over; as below
            return any(self._dest_in_use(n) for n in here or (n for n in range(dests.capacity) if dests.key(n) is None))

        return {at for at in places if in_use(at)}

    def _address_in_use(self, address: bytes) -> bool:
        if not self._sure():
            return True
        number = self._lip_numbers.get(address)
        if number is not None:
            return self._lip_in_use(number)
        # removed before this master took over: its number is one of those that mean nothing now
        lips = self.reconciler.lips
        return any(self._lip_in_use(n) for n in range(lips.capacity) if lips.key(n) is None)
