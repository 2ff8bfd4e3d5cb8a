# SPDX-License-Identifier: Apache-2.0
"""The mirror of the kernel's links, addresses, routes and neighbours, of its queues and RSS.

Scope: the threads, the sockets and the timers around `netstate.py`. Two copies, one a thread, hence no locks:

    kernel ── notifications ──► netlink thread: NetState ── batches ──► master's loop: view ──► listeners
           ◄───── dumps ──────                       call_soon_threadsafe

- A batch holds net differences: what came and went in between is not told.
- A batch leaves at once after a quiet time, and at most every 50 ms under churn.
- `snapshot()` is the view: it agrees with the changes delivered so far, neither older nor newer.
- The initial dump is in the view when `start()` returns; it is not delivered as changes.
- Messages lost because the socket's buffer was full (ENOBUFS): everything is dumped again, and compared.
- Queue counts and RSS send no events: they are asked for every second.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable

from lbd.master import ethtool, netlink
from lbd.master import rtnetlink as rt
from lbd.master.netstate import KERNEL_KINDS, KINDS, Key, NetState
from lbd.master.record import Address, Change, Item, Link, Snapshot

log = logging.getLogger(__name__)

Listener = Callable[[list[Change]], None]

_COALESCE = 0.05  # seconds between batches under churn
_POLL = 1.0  # seconds between questions about queues and RSS
_DUMP_GAP = 0.1  # seconds between dumps, at least; more if they take long
_READ_BUDGET = 512  # datagrams before the thread looks at anything else
_CHUNK = 1000  # changes that the master's loop is given at a time


class Mirror:
    def __init__(
        self,
        interfaces: Iterable[str],
        on_change: Listener,
        loop: asyncio.AbstractEventLoop,
        *,
        on_alarm: Callable[[str], None] = log.error,
        receive_buffer: int = 32 << 20,
    ) -> None:
        self.listeners: list[Listener] = [on_change]
        self.thread = netlink.NetlinkThread()
        self.events: Counter[str] = Counter()  # notifications by kind: lbd_netlink_events_total
        self._master = loop
        self._alarm = on_alarm
        self._view: dict[str, dict[Hashable, Item]] = {kind: {} for kind in KINDS}
        # from here on: netlink thread
        self._state = NetState(interfaces)
        self._receive_buffer = receive_buffer
        self._buffer = bytearray(netlink.DATAGRAM)
        self._sockets: list[socket.socket] = []  # monitor, ethtool
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._last_flush = self._next_dump = float("-inf")

    # ---- master's thread -----------------------------------------------------------------------------------

    @property
    def resyncs(self) -> Counter[str]:
        """Dumps after the first, by reason: overrun, damaged (messages lost), silent, ambiguous, scope."""
        return self._state.resyncs

    async def start(self) -> None:
        self.thread.start()
        try:
            self._view = await self.thread.call(self._open())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await self.thread.call(self._close())
        self.thread.stop()

    async def look_at_queues(self) -> None:
        """Not every driver tells of a change of queues or RSS: now rather than at the next poll."""

        async def look() -> None:
            self._ask_ethtool()
            if self._state.changed:
                self._flush()  # heard here before this call returns

        await self.thread.call(look())

    def snapshot(self) -> Snapshot:
        return Snapshot(*(tuple(self._view[kind].values()) for kind in KINDS))  # type: ignore[arg-type]

    def links(self) -> Collection[Link]:
        return self._view["link"].values()  # type: ignore[return-value]

    def addresses(self) -> Collection[Address]:
        return self._view["address"].values()  # type: ignore[return-value]

    def get(self, kind: str, key: Hashable) -> Item | None:
        """One record of the view, by the keys of `rtnetlink.Event` (a link's is its ifindex)."""
        return self._view[kind].get(key)

    def _deliver(self, batch: list[tuple[Key, Change]]) -> None:
        for (kind, key), change in batch:
            if change.op == "set":
                self._view[kind][key] = change.item
            else:
                self._view[kind].pop(key, None)
        changes = [change for _, change in batch]
        for listener in tuple(self.listeners):
            listener(changes)

    # ---- netlink thread: life ------------------------------------------------------------------------------

    async def _open(self) -> dict[str, dict[Hashable, Item]]:
        loop = self.thread.loop
        loop.set_exception_handler(self._on_exception)
        # the monitor first: what changes during the dump is then heard after it
        self._sockets.append(netlink.open_monitor(self._receive_buffer))
        self._sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._state.due.update(KERNEL_KINDS)
        self._dump_due()
        self._ask_ethtool()
        self._state.collect()
        loop.add_reader(self._sockets[0], self._read)
        self._after("ethtool", _POLL, self._poll_ethtool)
        return self._state.copy()

    async def _close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for sock in self._sockets:
            self.thread.loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def _after(self, name: str, delay: float, work: Callable[[], None]) -> None:
        """Later, once; one timer of a name at a time."""

        def fire() -> None:
            del self._timers[name]
            work()

        if name not in self._timers:
            self._timers[name] = self.thread.loop.call_later(delay, fire)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        log.error("netlink thread: %s", context.get("message"), exc_info=error)  # type: ignore[arg-type]
        self._tell_alarm(f"netlink thread: {error or context.get('message')}")

    def _tell_alarm(self, text: str) -> None:
        self._master.call_soon_threadsafe(self._alarm, text)

    # ---- netlink thread: notifications ---------------------------------------------------------------------

    def _read(self) -> None:
        links_changed = False
        for _ in range(_READ_BUDGET):
            try:
                size, (port, _) = self._sockets[0].recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._discard()
                self._state.want(KERNEL_KINDS, "overrun")
                break
            if port == 0:  # only the kernel is believed
                links_changed |= self._take(size)
        if links_changed:
            self._ask_ethtool()
        self._settle()

    def _take(self, size: int) -> bool:
        links_changed = False
        try:
            for kind, flags, pos, end in rt.split(self._buffer, size):
                if (event := rt.decode(kind, flags, self._buffer, pos, end)) is not None:
                    self.events[event.kind] += 1
                    links_changed |= self._state.take(event)
        except rt.DecodeError as error:
            log.warning("%s", error)
            self._state.want(KERNEL_KINDS, "damaged")
        return links_changed

    def _discard(self) -> None:
        """Throw away what is queued: the dump to come is newer. Bounded, or churn could keep us here."""
        for _ in range(64 * _READ_BUDGET):
            try:
                self._sockets[0].recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    # ---- netlink thread: dumps and batches -----------------------------------------------------------------

    def _settle(self) -> None:
        """After events: dump what is due, then tell what changed; each now, or as soon as its gap allows."""
        if self._state.due:
            if (delay := self._next_dump - time.monotonic()) > 0:
                self._after("dump", delay, self._settle)
            else:
                self._try_dump()
        if self._state.changed:
            if (delay := self._last_flush + _COALESCE - time.monotonic()) > 0:
                self._after("flush", delay, self._settle)
            else:
                self._flush()

    def _try_dump(self) -> None:
        start = time.monotonic()
        try:
            self._dump_due()
        except (OSError, rt.DecodeError) as error:
            self._tell_alarm(f"cannot read the kernel's network state, what is known of it is old: {error}")
            self._after("dump", 1.0, self._settle)
        end = time.monotonic()
        self._next_dump = end + max(_DUMP_GAP, 3 * (end - start))  # large tables must not take the whole core

    def _dump_due(self) -> None:
        for kind in KERNEL_KINDS:  # links first: they say whose neighbours count
            if kind in self._state.due:
                self._state.replace(kind, netlink.dump(kind))

    def _flush(self) -> None:
        self._last_flush = time.monotonic()
        batch = self._state.collect()
        for first in range(0, len(batch), _CHUNK):
            self._master.call_soon_threadsafe(self._deliver, batch[first : first + _CHUNK])

    # ---- netlink thread: queues and RSS --------------------------------------------------------------------

    def _poll_ethtool(self) -> None:
        self._after("ethtool", _POLL, self._poll_ethtool)
        self._ask_ethtool()
        self._settle()

    def _ask_ethtool(self) -> None:
        channels: dict[Hashable, Item] = {}
        rss: dict[Hashable, Item] = {}
        for link in self._state.own_links():
            try:
                if (queues := ethtool.read_channels(self._sockets[1], link.ifindex, link.name)) is not None:
                    channels[link.name] = queues
                if (spread := ethtool.read_rss(self._sockets[1], link.ifindex, link.name)) is not None:
                    rss[link.name] = spread
            except OSError as error:
                log.warning("ethtool %s: %s", link.name, error)
        self._state.replace_items("channels", channels)
        self._state.replace_items("rss", rss)
