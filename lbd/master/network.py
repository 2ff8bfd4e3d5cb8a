# SPDX-License-Identifier: Apache-2.0
"""The kernel's network and lbd: what it tells (mirror), and what lbd asks of it (managed neighbours and addresses).

Scope: the one owner of Mirror and Kernel. Changes are gathered for a moment and handed on as a `Reach`; next hops of
real servers are kept resolved; VIPs and local addresses with `manage` are there while they are wanted.

A change reaches workers within QUIET of the mirror's batch; under churn, a look is taken every GAP at most, since it
costs 10 ms for thousands of routes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from lbd.config import Config
from lbd.config.frame import MTU_LIMIT, mtu_max
from lbd.master.kernel import Kernel
from lbd.master.managed import Managed, current_scope
from lbd.master.mirror import Mirror
from lbd.master.nic import nics
from lbd.master.offload import TagOffload
from lbd.master.reach import Reach
from lbd.master.record import Address4or6, Change, Snapshot
from lbd.master.resources import Port

log = logging.getLogger(__name__)

QUIET = 0.01
GAP = 0.25
PROBE_GAP = 1.0  # seconds between probes of one next hop

Held = tuple[str, str]  # interface, address with length


class Network:
    """`on_look(reach, kinds)`: the kinds of records that changed since the last look."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        loop: asyncio.AbstractEventLoop,
        on_look: Callable[[Reach, set[str]], None],
        on_alarm: Callable[[str], None],
    ) -> None:
        self.config = config
        self.ports: Mapping[int, int] = {}  # ifindex -> port number, of what has sockets
        self.zero_copy: frozenset[int] = frozenset()  # port numbers
        self.completes: frozenset[int] = frozenset()  # the same: all sockets of it do
        self.mtu_max = MTU_LIMIT  # of what packet buffers hold
        self.mirror = Mirror([i.name for i in config.interface], self._on_change, loop, on_alarm=on_alarm)
        self.kernel = Kernel(self.mirror, run_dir, on_alarm)
        self._loop = loop
        self._run_dir = run_dir
        self._on_look = on_look
        self._on_alarm = on_alarm
        self._dirty: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._probed: dict[tuple[int, bytes], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.offload = TagOffload(on_alarm)
        self.held: set[Held] = set()  # that this daemon, or one before it, has added
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        await self.mirror.start()
        try:
            await self.kernel.start()
        except BaseException:
            await self.mirror.stop()
            raise

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.kernel.stop()
        await self.mirror.stop()

    # -- what the kernel tells -------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        return self.mirror.snapshot()

    def reach(self) -> Reach:
        return Reach(self.config, self.snapshot(), self.zero_copy, self.ports, self.mtu_max, self.completes)

    def know_ports(self, ports: Collection[Port], sizes: Mapping[str, int]) -> None:
        self.mtu_max = mtu_max(sizes["frame_size"], sizes["chains"])
        self.ports = {port.ifindex: port.iface for port in ports}
        self.zero_copy = frozenset(port.iface for port in ports if port.zero_copy)
        self.completes = frozenset(p.iface for p in ports) - {p.iface for p in ports if not p.completes}

    def _on_change(self, changes: list[Change]) -> None:
        self._dirty |= {change.kind for change in changes}
        if self._timer is None:
            delay = max(QUIET, self._looked + GAP - time.monotonic())
            self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        self._looked = time.monotonic()
        kinds, self._dirty = self._dirty, set()
        if "link" in kinds:
            self._background(self.keep_tags(), "VLAN tags")
        self._on_look(self.reach(), kinds)

    async def keep_tags(self) -> None:
        """VLAN tags stay in the frames that lbd's interfaces receive."""
        links = {link.ifindex: link for link in self.mirror.links()}
        own = [links[nic.ifindex] for nic in nics(self.config, links.values())]

        async def keep() -> None:
            self.offload.keep(own, links.values())

        await self.mirror.thread.call(keep())

    async def give_tags_back(self) -> None:
        async def restore() -> None:
            self.offload.restore()

        await self.mirror.thread.call(restore())

    # -- next hops -------------------------------------------------------------------------------------------

    def keep_resolved(self, hops: Iterable[tuple[int, Address4or6]]) -> None:
        """The next hops in use, by (ifindex, address). In the background: the kernel takes its time."""
        names = {link.ifindex: link.name for link in self.mirror.links()}
        entries = [(names[ifindex], str(address)) for ifindex, address in hops if ifindex in names]
        self._background(self.kernel.set_neighbours(entries), "managed neighbours")

    def probe(self, ifindex: int, address: Address4or6) -> None:
        """A worker has packets for it and no MAC."""
        key, now = (ifindex, address.packed), time.monotonic()
        if now < self._probed.get(key, 0.0):
            return
        if len(self._probed) > 4096:
            self._probed = {k: t for k, t in self._probed.items() if t > now}
        self._probed[key] = now + PROBE_GAP
        thread = self.mirror.thread
        self._background(thread.call(thread.requests.probe_neighbour(ifindex, address)), f"neighbour {address}")

    async def add_address(self, ifindex: int, address: str) -> None:
        """To an interface of lbd's own, which takes it along when it goes: it is not recorded."""
        thread = self.mirror.thread
        await thread.call(thread.requests.add_address(ifindex, ip_interface(address)))

    def _background(self, work: Coroutine[Any, Any, object], what: str) -> None:
        async def run() -> None:
            try:
                await work
            except OSError as error:
                self._on_alarm(f"{what}: {error.strerror or error}")

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- managed addresses -----------------------------------------------------------------------------------

    async def hold(self, wanted: set[Held]) -> None:
        """Adds what is not there yet; nothing is removed. OSError, with what could be added left in place."""
        async with self._lock:
            new = sorted(wanted - self.held)
            self.held |= set(new)  # first: what failed half way is released, too
            for outcome in (await self.kernel.add_addresses(new)).values() if new else ():
                if isinstance(outcome, OSError):
                    raise outcome

    async def release(self, keep: set[Held]) -> None:
        """Removes all but those."""
        async with self._lock:
            gone = sorted(self.held - keep)
            for (interface, address), outcome in (await self.kernel.del_addresses(gone)).items() if gone else ():
                if isinstance(outcome, OSError):
                    self._on_alarm(f"address {address} stays on {interface}: {outcome.strerror or outcome}")
            self.held -= set(gone)

    async def take_over(self, wanted: set[Held]) -> None:
        """What a predecessor of this daemon added: all that it recorded counts as held, so that it can be released."""
        self.held |= Managed(self._run_dir, current_scope()).addresses
        await self.hold(wanted)


def vips(config: Config) -> set[Held]:
    return {(s.interface, host(vip)) for s in config.service if s.manage for vip in s.vips}


def lips(config: Config) -> set[Held]:
    return {(lip.interface, host(lip.address)) for lip in config.own_addresses() if lip.manage and lip.interface}


def host(address: Address4or6) -> str:
    return f"{address}/{address.max_prefixlen}"
