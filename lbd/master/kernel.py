# SPDX-License-Identifier: Apache-2.0
"""What lbd asks of the kernel: addresses, managed neighbours, the TAP, reserved ports; and that they stay.

Scope: the desired part of the kernel's state and its upkeep, on the master's loop; the netlink thread does
the asking. Every call may be repeated. What lbd added is recorded (`managed.py`) before it is added; what
was there before is left alone, and reported as such.

Upkeep (`_tend`): on each hint from the mirror, and every five seconds, what is wanted is compared with what
is there:
- a downed interface loses its IPv6 addresses and all its neighbours, one made anew has nothing: all is
  added again;
- removing the primary address of a subnet takes the secondaries along, and an administrator may remove one by
  mistake: addresses of lbd come back, with a line in the log;
- kernels that don't know managed neighbours (before 5.16) get each entry touched instead, when it is not
  fresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import lru_cache
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

from lbd.master import reservation, tap
from lbd.master.managed import Entry, Managed, PortRange, current_scope
from lbd.master.mirror import Mirror
from lbd.master.record import Change, Interface4or6, Link, Neighbour

log = logging.getLogger(__name__)

T = TypeVar("T")

_TEND_EVERY = 5.0
_TEND_GAP = 0.2  # seconds between rounds at least, however many hints come
_FRESH = frozenset(("REACHABLE", "DELAY", "PROBE", "PERMANENT", "NOARP"))
_AHEAD_OF_MIRROR = (errno.EEXIST, errno.ENODEV)  # added, or its device removed, and the mirror is yet to hear of it
_GONE = (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO, errno.ENOENT)


@lru_cache(maxsize=16384)
def parsed(address: str | Interface4or6) -> Interface4or6:
    return ip_interface(address)


class Kernel:
    def __init__(self, mirror: Mirror, run_dir: Path, on_alarm: Callable[[str], None] = log.error) -> None:
        self._mirror = mirror
        self._run_dir = run_dir
        self._alarm = on_alarm
        self._managed: Managed  # from start() on
        self.is_guarded: Callable[[Link], bool] = lambda link: True  # may addresses that are missing be added to it?
        self._lock = asyncio.Lock()  # record and kernel change together
        self._hint = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._manages: bool | None = None  # whether the kernel keeps neighbours resolved; None: not yet tried
        self._complaints: dict[object, str] = {}  # what was alarmed already, so that it is alarmed once

    async def start(self) -> None:
        """After the mirror's. What an earlier daemon recorded is taken over as ours."""
        self._managed = await self._thread(self._open())
        self._mirror.listeners.append(self._observe)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends the upkeep; removes nothing: that is for `del_address` and its like, or `cleanup`."""
        if self._task is not None:
            self._mirror.listeners.remove(self._observe)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _open(self) -> Managed:
        return Managed(self._run_dir, current_scope())

    async def _thread(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._mirror.thread.call(work)

    async def _save(self) -> None:
        text = self._managed.text()

        async def write() -> None:
            self._managed.write(text)

        await self._thread(write())

    # ---- addresses
    # --------------------------------------------------------------------------------------------

    async def add_address(self, interface: str, address: str | Interface4or6) -> bool:
        """True: it is lbd's (added now, or recorded before). False: it was there before lbd."""
        entry = (interface, str(ip_interface(address)))
        outcome = (await self.add_addresses([entry]))[entry]
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def add_addresses(self, entries: Collection[Entry]) -> dict[Entry, bool | OSError]:
        """Many at once, with one record: for each (canonical text) what `add_address` makes of it."""
        entries = [(interface, str(parsed(address))) for interface, address in entries]
        async with self._lock:
            new = set(entries) - self._managed.addresses
            if new:
                self._managed.addresses |= new
                await self._save()
            outcomes = await self._add(entries)
            outcomes |= {entry: True for entry, added in outcomes.items() if added is False and entry not in new}
            if not_ours := {entry for entry in new if outcomes[entry] is not True}:
                self._managed.addresses -= not_ours
                await self._save()
            self.look_soon()
            return outcomes

    async def _add(self, entries: Collection[Entry]) -> dict[Entry, bool | OSError]:
        """False: it was there."""
        links = {link.name: link.ifindex for link in self._mirror.links()}
        there = {(held.ifindex, held.address.ip): held.address for held in self._mirror.addresses()}
        outcomes: dict[Entry, bool | OSError] = {}
        asked: list[tuple[Entry, tuple[int, Interface4or6]]] = []
        for entry in entries:
            wanted = parsed(entry[1])
            if (ifindex := links.get(entry[0])) is None:
                outcomes[entry] = OSError(errno.ENODEV, f"address {entry[1]}: there is no interface {entry[0]}")
            elif there.get((ifindex, wanted.ip), wanted) != wanted:
                outcomes[entry] = False  # 10.0.0.1/24 serves a wish for 10.0.0.1/32; the kernel would add a second one
            else:
                asked.append((entry, (ifindex, wanted)))
        refused = await self._thread(self._mirror.thread.requests.add_addresses([where for _, where in asked]))
        for (entry, _), error in zip(asked, refused, strict=True):
            outcomes[entry] = True if error is None else False if error.errno == errno.EEXIST else error
        return outcomes

    async def del_address(self, interface: str, address: str | Interface4or6) -> bool:
        """True: lbd's address is gone. False: it was not lbd's, and stays."""
        entry = (interface, str(ip_interface(address)))
        outcome = (await self.del_addresses([entry]))[entry]
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def del_addresses(self, entries: Collection[Entry]) -> dict[Entry, bool | OSError]:
        """Many at once: for each (canonical text) what `del_address` makes of it."""
        entries = [(interface, str(parsed(address))) for interface, address in entries]
        async with self._lock:
            outcomes: dict[Entry, bool | OSError] = {entry: entry in self._managed.addresses for entry in entries}
            links = {link.name: link.ifindex for link in self._mirror.links()}
            ours = [entry for entry, held in outcomes.items() if held]
            asked = [(entry, (links[entry[0]], parsed(entry[1]))) for entry in ours if entry[0] in links]
            refused = await self._thread(self._mirror.thread.requests.del_addresses([where for _, where in asked]))
            for (entry, _), error in zip(asked, refused, strict=True):
                if error is not None and error.errno not in _GONE:
                    outcomes[entry] = error
            if gone := {entry for entry in ours if outcomes[entry] is True}:
                self._managed.addresses -= gone
                await self._save()
                self.look_soon()
            return outcomes

    def _link(self, name: str) -> Link | None:
        return next((link for link in self._mirror.links() if link.name == name), None)

    # ---- neighbours
    # -------------------------------------------------------------------------------------------

    async def set_neighbours(self, wanted: Iterable[Entry]) -> None:
        """All next hops in use: the kernel keeps these resolved. Others that lbd named before age again."""
        fresh = {(interface, str(ip_address(address))) for interface, address in wanted}
        async with self._lock:
            gone = self._managed.neighbours - fresh
            if fresh - self._managed.neighbours:
                self._managed.neighbours |= fresh
                await self._save()
            for interface, address in gone:
                if (link := self._link(interface)) is not None:
                    try:
                        await self._thread(
                            self._mirror.thread.requests.release_neighbour(link.ifindex, ip_address(address))
                        )
                    except OSError as error:
                        if error.errno not in _GONE:
                            raise
            if gone:
                self._managed.neighbours = fresh
                await self._save()
        await self._tend()

    # ---- TAP, ports
    # -------------------------------------------------------------------------------------------

    async def create_tap(self, name: str, mac: bytes | None = None) -> tap.Tap:
        async def create() -> tap.Tap:
            made = tap.create_tap(name, mac)
            try:
                await self._mirror.thread.requests.set_link_up(made.ifindex)
            except BaseException:
                made.close()
                raise
            return made

        return await self._thread(create())

    async def reserve_ports(self, first: int, last: int) -> None:
        """Keep the range from the kernel's choice of ports. OSError where that would leave it too few."""

        async def find() -> list[PortRange]:
            return reservation.missing((first, last))

        async def reserve() -> None:
            reservation.reserve(added)

        async with self._lock:
            if added := await self._thread(find()):
                self._managed.ports |= set(added)
                await self._save()
                await self._thread(reserve())

    async def release_ports(self) -> None:
        """Give back all that lbd reserved, no more."""

        async def release() -> None:
            reservation.release(self._managed.ports)

        async with self._lock:
            if self._managed.ports:
                await self._thread(release())
                self._managed.ports = set()
                await self._save()

    # ---- upkeep
    # -----------------------------------------------------------------------------------------------

    def _observe(self, changes: list[Change]) -> None:
        for kind, op, _ in changes:
            if (op == "set" and kind == "link") or (op == "del" and kind in ("address", "neighbour")):
                self._hint.set()
                return

    def look_soon(self) -> None:
        """What comes and goes before the mirror tells of it is no change to the mirror: so look again."""
        asyncio.get_running_loop().call_later(_TEND_GAP, self._hint.set)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TEND_EVERY):
                    await self._hint.wait()
            self._hint.clear()
            try:
                await self._tend()
            except Exception as error:  # the upkeep must not end: it is tried again
                self._complain("tend", f"upkeep of addresses and neighbours failed: {error}")
            await asyncio.sleep(_TEND_GAP)

    async def _tend(self) -> None:
        async with self._lock:
            links = {link.name: link for link in self._mirror.links()}
            await self._tend_addresses(links)
            await self._tend_neighbours(links)

    async def _tend_addresses(self, links: dict[str, Link]) -> None:
        held = {(held.ifindex, held.address.ip.packed) for held in self._mirror.addresses()}
        missing = [
            ((interface, text), (links[interface].ifindex, parsed(text)))
            for interface, text in self._managed.addresses
            if interface in links and (links[interface].ifindex, parsed(text).ip.packed) not in held
        ]
        guarded = {interface: self.is_guarded(links[interface]) for (interface, _), _ in missing}
        missing = [entry for entry in missing if guarded[entry[0][0]]]
        if not missing:
            return
        missing.sort(key=lambda item: item[0])
        refused = await self._thread(self._mirror.thread.requests.add_addresses([where for _, where in missing]))
        for (entry, (_, wanted)), error in zip(missing, refused, strict=True):
            if error is None:
                log.warning("address %s was gone from %s: added again", wanted, entry[0])
            elif error.errno not in _AHEAD_OF_MIRROR:
                self._complain(entry, f"address {wanted} on {entry[0]}: {error.strerror}")

    async def _tend_neighbours(self, links: dict[str, Link]) -> None:
        full = 0
        for entry in sorted(self._managed.neighbours):
            link = links.get(entry[0])
            if link is None or not link.up:
                continue  # the kernel would drop it at once, or has no way to resolve it
            address = ip_address(entry[1])
            known = self._mirror.get("neighbour", (link.ifindex, address.packed))
            assert known is None or isinstance(known, Neighbour)
            if known is not None and (known.managed or known.state == "PERMANENT"):
                continue  # an administrator's static entry is not ours to change
            if self._manages is False and known is not None and known.state in _FRESH:
                continue
            try:
                await self._ensure_neighbour(link.ifindex, entry)
                self._complaints.pop(entry, None)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    full += 1
                elif error.errno not in _AHEAD_OF_MIRROR:
                    self._complain(entry, f"neighbour {entry[1]} on {entry[0]}: {error.strerror}")
        if full:
            self._complain(
                "full",
                f"the kernel's neighbour table is full, {full} next hops are not resolved: raise"
                " net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3",
            )
        else:
            self._complaints.pop("full", None)

    async def _ensure_neighbour(self, ifindex: int, entry: Entry) -> None:
        requests, address = self._mirror.thread.requests, ip_address(entry[1])
        if self._manages is not False:
            try:
                await self._thread(requests.manage_neighbour(ifindex, address))
                if self._manages is None:
                    self._manages = await self._thread(requests.is_managed(ifindex, address))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._manages = False
        if self._manages is False:
            self._complain("probing", "this kernel does not manage neighbours (before 5.16): they are probed")
            await self._thread(requests.probe_neighbour(ifindex, address))

    def _complain(self, about: object, text: str) -> None:
        if self._complaints.get(about) != text:
            self._complaints[about] = text
            self._alarm(text)
