# SPDX-License-Identifier: Apache-2.0
"""Sockets follow their devices: queues that come, interfaces made anew, a bond's slaves that come and go.

Scope: what is missing or too much, and how running workers get it. A bond's slave that is only down is no case of this, nor is
a change of RSS (`epoch.py`).

    a device that is new ── at once ──► the XDP program, which drops what is lbd's until there are sockets: the kernel, which has
                                        the addresses, would answer RST
    a change of links or queues ── quiet for QUIET ──► compare ──► nothing to do
                                                          └──► workers stopped, sockets closed and opened, workers started

The workers' tables, and with them all connections, outlive the change; packets wait meanwhile in the rings of the sockets that
stay, and what does not fit there is dropped and counted. NB: workers are stopped, not handed the new sockets while they run, since
a socket has to be given frames before it is bound (some drivers never receive otherwise), and free frames are on the private
lists of workers.

A closed socket's frames: its driver may still use them for a moment. So they stay the dead port's, whose number rests, until REST
is over; then workers are told that they are free.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lbd.config import Config
from lbd.master.nic import Nic, nics, numbered
from lbd.master.record import Link
from lbd.master.refusal import Refusal
from lbd.master.resources import Port, worker_set
from lbd.master.sockets import Opener, close_ports
from lbd.master.startup import attach, check_frames, renew
from lbd.shm import _shm as shm
from lbd.xdp._xsk import XdpError

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

log = logging.getLogger(__name__)

QUIET = 0.3  # seconds: a bond is made in several steps
AGAIN = 2.0  # after a failure
START_LIMIT = 5.0
REST = 2.0  # of a dead port's frames
LINGER = 60.0  # of the program on a device that is no slave any more
CAUSE = "ports"  # in Applier.failures
KINDS = {"link", "channels"}


def under(nic: Nic, links: Mapping[int, Link]) -> set[int | None]:
    """A NIC, and the bond that it belongs to."""
    return {nic.ifindex, links[nic.ifindex].master}


class Reopener:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving: dict[int, float] = {}  # ifindex -> since when it is not lbd's
        self._resting: dict[int, float] = {}  # port number -> when its last socket was closed
        self.times = 0

    def look(self, kinds: set[str]) -> None:
        if kinds & KINDS and self._wanting():
            self._guard()
            self._soon(QUIET)

    def is_guarded(self, link: Link) -> bool:
        """May addresses of lbd's be on this link? Not where the program is still missing, here or on what it is on."""
        d = self._daemon
        links = {known.ifindex: known for known in d.network.mirror.links()}
        base = link
        while base.kind == "vlan" and base.link in links:
            base = links[base.link]
        attached = d.program.attached()
        return all(nic.ifindex in attached for nic in nics(d.config, links.values()) if base.ifindex in under(nic, links))

    def _guard(self) -> None:
        d = self._daemon
        try:
            by_number, _ = self.plan(d.config)
            self.attach(by_number)
        except (Refusal, XdpError, OSError) as error:
            log.debug("no program on a new device yet: %s", error)  # said when its sockets are opened
        else:
            d.network.kernel.look_soon()

    def attach(self, by_number: Mapping[int, Nic]) -> None:
        """The program, where it is missing."""
        d = self._daemon
        attached = d.program.attached()
        for number, nic in by_number.items():
            if nic.ifindex not in attached:
                d.program.detach(nic.ifindex)  # what somebody else has detached
                attach(d.program, d.config, number, nic)
            d.program.set_iface(nic.ifindex, number)

    def begin(self) -> None:
        """After a start: of numbers without sockets nobody holds frames. (A predecessor may have died before it said so.)"""
        used = {port.iface for port in self._daemon.resources.ports}
        self._daemon.supervisor.broadcast(*(self._gone(n) for n in range(shm.IFACE_MAX) if n not in used))

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def tend(self) -> None:
        """Every second."""
        now = time.monotonic()
        for number, since in tuple(self._resting.items()):
            if now - since > 2 * REST:
                del self._resting[number]
            elif now - since > REST:
                self._daemon.supervisor.broadcast(self._gone(number))

        self._leave()

    def _leave(self) -> None:
        """Takes the program off devices that are not lbd's any more: at once if they have gone."""
        d, now = self._daemon, time.monotonic()
        links = {link.ifindex: link for link in d.network.mirror.links()}
        wanted = {nic.ifindex for nic in nics(d.config, links.values())}
        for ifindex, since in tuple(self._leaving.items()):
            if ifindex in wanted:
                del self._leaving[ifindex]
            elif ifindex not in links or now - since > LINGER:
                del self._leaving[ifindex]
                d.program.del_iface(ifindex)
                d.program.detach(ifindex)

    def _gone(self, number: int) -> bytes:
        return shm.port_gone(number, self._daemon.reconciler.generation)

    def _soon(self, delay: float) -> None:
        def run() -> None:
            self._timer = None
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._run())
            else:
                self._soon(QUIET)

        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay, run)

    # -- what is missing -------------------------------------------------------------------------------------

    def _wanting(self) -> bool:
        """Devices without sockets, sockets without devices, queues without a socket?"""
        d = self._daemon
        snapshot, ports = d.network.snapshot(), d.resources.ports
        wanted = nics(d.config, snapshot.links)
        held = {(p.ifindex, p.of): 0 for p in ports}
        for p in ports:
            held[p.ifindex, p.of] += 1
        channels = {c.name: c.rx for c in snapshot.channels}
        workers = d.config.workers.number
        if held.keys() != {(n.ifindex, n.iface) for n in wanted}:
            return True
        return any(held[n.ifindex, n.iface] < min(channels.get(n.name, 1), workers) for n in wanted)

    async def _run(self) -> None:
        d = self._daemon
        async with d.reloading:
            if d.state != "running" or not self._wanting():
                return
            try:
                await self._reopen()
            except (Refusal, XdpError, OSError) as error:
                d.applier.fail(CAUSE, f"sockets can't be opened: {error}")
                self._soon(AGAIN)
            else:
                d.applier.failures.pop(CAUSE, None)
                if self._wanting():  # what came meanwhile was held against what was there before
                    self._soon(QUIET)

    def plan(self, config: Config) -> tuple[dict[int, Nic], dict[str, int]]:
        """NICs by port number, and their queues."""
        d = self._daemon
        snapshot = d.network.snapshot()
        check_frames(config, snapshot, d.resources.sizes)
        wanted = nics(config, snapshot.links)
        same = {(n.ifindex, n.iface) for n in wanted}
        held = {p.ifindex: p.iface for p in d.resources.ports if (p.ifindex, p.of) in same}
        dead = {p.iface for p in d.resources.ports if p.ifindex not in held} | self._resting.keys()
        # those that are guarded, but have no sockets yet
        guarded = {i: number for i, number in d.program.ifaces().items() if number not in dead and i not in held}
        held |= {n.ifindex: guarded[n.ifindex] for n in wanted if n.ifindex in guarded}
        by_number = numbered(config, wanted, held, dead)
        channels = {c.name: c for c in snapshot.channels}
        workers = config.workers.number
        queues = {nic.name: min(channels[nic.name].rx if nic.name in channels else 1, workers) for nic in wanted}
        return by_number, queues

    # -- the change ------------------------------------------------------------------------------------------

    async def _reopen(self) -> None:
        d = self._daemon
        by_number, queues = self.plan(d.config)
        began = time.monotonic()
        keep = {(number, nic.ifindex) for number, nic in by_number.items()}
        gone = [p for p in d.resources.ports if (p.iface, p.ifindex) not in keep]
        # The program stays for a while on what is still there, and drops what is lbd's: a slave that has left comes back
        self._leaving |= {p.ifindex: time.monotonic() for p in gone}
        self._leave()
        await d.supervisor.stop()
        try:
            self._close(gone)
            await self._open(by_number, queues)
        finally:
            self._start()
            # what is decided by what workers have applied is not to be decided meanwhile
            await d.supervisor.wait_running(START_LIMIT)
        self.times += 1
        told = ", ".join(sorted({nic.name for nic in by_number.values()})) or "nothing"
        log.warning("sockets were opened anew, workers stood still for %.2f s: now on %s", time.monotonic() - began, told)

    def _close(self, gone: list[Port]) -> None:
        """In this process, the last one that holds them."""
        d = self._daemon
        for member in d.supervisor.members.values():
            d.supervisor.take_set(member.number)
        for port in gone:
            os.close(port.fd)
            self._resting[port.iface] = time.monotonic()
        d.resources.ports = [p for p in d.resources.ports if p not in gone]

    async def _open(self, by_number: dict[int, Nic], queues: dict[str, int]) -> None:
        d, r = self._daemon, self._daemon.resources
        opener = Opener(d.config, r.area, by_number, queues, r.sizes)
        fresh = await asyncio.to_thread(opener.open_more, tuple(r.ports))  # a queue just closed may be busy for a second
        try:
            self.attach(by_number)
            renew(d.program, d.network.mirror.links(), fresh)
            for port in fresh:
                d.program.set_socket(port.iface, port.queue, port.fd)
        except BaseException:
            close_ports(fresh)
            raise
        r.ports = sorted([*r.ports, *fresh], key=lambda p: (p.worker, p.iface))

    def _start(self) -> None:
        d = self._daemon
        d.network.know_ports(d.resources.ports, d.resources.sizes)
        for number in d.supervisor.members:
            d.supervisor.resume(number, worker_set(d.resources, number, d.config))
        d.applier.look(d.network.reach())
        d.applier.apply()
