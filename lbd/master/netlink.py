# SPDX-License-Identifier: Apache-2.0
"""Talking rtnetlink: the monitor socket, dumps, requests, and the thread all of it runs in.

Scope: the one module that imports pyroute2, and the one that opens netlink sockets. What messages mean is in
`rtnetlink.py`; what is kept of them, in `netstate.py`; what lbd asks of the kernel, in `kernel.py`.

A thread of its own, because pyroute2 0.9 does not work on uvloop (pyroute2 #1335, uvloop #676) and because
decoding a large table in Python would hold up the master's loop: health checks and heartbeats would be late.

Requests (few, varied) go through pyroute2. Notifications and dumps (many, alike) are read from plain sockets
and decoded by `rtnetlink.py`: at 10,000 route changes per second pyroute2's decoder alone would take a
whole core. Addresses come by thousands, too: many requests go in one datagram, and all are answered, in order
(measured: 2,000 addresses take 0.1 s so, 1.1 s one by one through pyroute2).

NB: a thread belongs to the network namespace of the thread that started it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lbd.master import rtnetlink as rt
from lbd.master.record import Address4or6, Interface4or6

T = TypeVar("T")
Held = tuple[int, Interface4or6]  # ifindex, address with length

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 1, 11, 12
_SO_RCVBUFFORCE = 33
# RTNLGRP_: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, NEXTHOP. Nothing else wakes this
# process.
_GROUPS = (1, 3, 5, 7, 9, 11, 32)
DATAGRAM = 256 << 10  # holds any datagram of the kernel: dumps use 32 KiB, one large link may take more

_NTF_USE, _NTF_EXT_LEARNED = 0x01, 0x10
_IFA_F_NODAD = 0x02
PROTOCOL = 76  # marks neighbours as lbd's: `ip neigh show proto 76`


def open_monitor(receive_buffer: int) -> socket.socket:
    """A non-blocking socket that hears every change of what lbd mirrors."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:  # no CAP_NET_ADMIN: net.core.rmem_max is the limit; more resyncs, no error
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((0, 0))
        for group in _GROUPS:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except BaseException:
        sock.close()
        raise
    return sock


# ---- dumps -------------------------------------------------------------------------------------------------

_IFLA_EXT_MASK = struct.pack("=HHI", 8, 29, 8)  # RTEXT_FILTER_SKIP_STATS
# What to ask for each kind. The route request names table main: the kernel filters (strict checking).
_QUESTIONS: dict[str, tuple[tuple[int, bytes], ...]] = {
    "link": ((rt.RTM_GETLINK, bytes(16) + _IFLA_EXT_MASK),),
    "address": ((rt.RTM_GETADDR, bytes(8)),),
    "route": tuple(
        (rt.RTM_GETROUTE, struct.pack("=BBBBBBBBI", family, 0, 0, 0, rt.RT_TABLE_MAIN, 0, 0, 0, 0))
        for family in (rt.AF_INET, rt.AF_INET6)
    ),
    "neighbour": ((rt.RTM_GETNEIGH, bytes(12)),),
}
_DUMP_ATTEMPTS = 5


def dump(kind: str) -> list[rt.Event]:
    """All the kernel's objects of a kind. Blocks this thread; repeats a dump that changes interrupted."""
    for attempt in range(_DUMP_ATTEMPTS):
        events: list[rt.Event] = []
        whole = True
        for question, payload in _QUESTIONS[kind]:
            with _open_requests() as sock:
                for message in _dump(sock, question, payload):
                    if message is None:
                        whole = False
                    else:
                        events.append(message)
        if whole or attempt == _DUMP_ATTEMPTS - 1:
            return events  # the last attempt: notifications of what changed meanwhile are still to come
    raise AssertionError("unreachable")


def _open_requests() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.settimeout(10)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return sock


def _dump(sock: socket.socket, question: int, payload: bytes) -> Iterator[rt.Event | None]:
    """Decoded answers; None stands for "interrupted, not consistent"."""
    header = rt.NLMSG.pack(rt.NLMSG.size + len(payload), question, 0x301, 1, 0)  # NLM_F_REQUEST | NLM_F_DUMP
    sock.sendto(header + payload, (0, 0))
    buf = bytearray(DATAGRAM)
    while True:
        size = sock.recv_into(buf)
        for kind, flags, pos, end in rt.split(buf, size):
            if flags & rt.NLM_F_DUMP_INTR:
                yield None
            if kind in (rt.NLMSG_DONE, rt.NLMSG_ERROR):
                code = -struct.unpack_from("=i", buf, pos)[0] if end - pos >= 4 else 0
                # ENOENT: table main comes into being with its first route
                if code not in (0, errno.ENOENT):
                    raise OSError(code, f"netlink dump of type {question}: {os.strerror(code)}")
                return
            if (event := rt.decode(kind, flags, buf, pos, end)) is not None:
                yield event


# ---- addresses ---------------------------------------------------------------------------------------------

_BATCH = 128  # requests in a datagram; their answers fit into the receive buffer
_NLM_F_ASK = 0x5  # NLM_F_REQUEST | NLM_F_ACK
_NLM_F_NEW = 0x600  # NLM_F_EXCL | NLM_F_CREATE
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 6, 8
_FOREVER = 0xFFFFFFFF


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value  # NB: all of these are multiples of 4 bytes


def _address_message(new: bool, ifindex: int, address: Interface4or6) -> bytes:
    plen, raw = address.network.prefixlen, address.ip.packed
    family = rt.AF_INET if address.version == 4 else rt.AF_INET6
    body = struct.pack("=BBBBI", family, plen, 0, 0, ifindex) + _attribute(_IFA_ADDRESS, raw)
    if family == rt.AF_INET:
        body += _attribute(_IFA_LOCAL, raw)
    elif new:
        # usable at once, without duplicate detection: other directors may hold the same VIP
        body += _attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
        if plen == 128:  # no source for the host's connections unless they ask for it: preferred for 0 s
            body += _attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, _FOREVER, 0, 0))
    return body


def _ask_for_addresses(kind: int, flags: int, verb: str, wanted: Sequence[Held]) -> list[OSError | None]:
    outcomes: list[OSError | None] = [None] * len(wanted)
    with _open_requests() as sock:
        for first in range(0, len(wanted), _BATCH):
            some = range(first, min(first + _BATCH, len(wanted)))
            datagram = bytearray()
            for n in some:
                body = _address_message(kind == rt.RTM_NEWADDR, *wanted[n])
                datagram += rt.NLMSG.pack(rt.NLMSG.size + len(body), kind, _NLM_F_ASK | flags, n, 0) + body
            sock.sendto(datagram, (0, 0))
            for n, code in _answers(sock, len(some)):
                if code:
                    outcomes[n] = OSError(code, f"{verb} address {wanted[n][1]}: {os.strerror(code)}")
    return outcomes


def _answers(sock: socket.socket, count: int) -> Iterator[tuple[int, int]]:
    """The sequence number of each request, and its errno."""
    buf = bytearray(DATAGRAM)
    while count:
        size = sock.recv_into(buf)
        for kind, _, pos, _ in rt.split(buf, size):
            if kind == rt.NLMSG_ERROR:
                yield rt.NLMSG.unpack_from(buf, pos - rt.NLMSG.size)[3], -struct.unpack_from("=i", buf, pos)[0]
                count -= 1


def _raise(outcomes: Sequence[OSError | None]) -> None:
    for error in outcomes:
        if error is not None:
            raise error


# ---- requests ----------------------------------------------------------------------------------------------


class Requests:
    """What lbd asks of the kernel: coroutines of the netlink thread. A refusal is an OSError."""

    def __init__(self) -> None:
        self._ipr = AsyncIPRoute()

    async def close(self) -> None:
        self._ipr.close()

    async def _ask(self, what: str, request: Coroutine[Any, Any, T]) -> T:
        try:
            return await request
        except NetlinkError as error:
            raise OSError(error.code, f"{what}: {os.strerror(error.code)}") from None

    async def add_addresses(self, wanted: Sequence[Held]) -> list[OSError | None]:
        """For each what the kernel refused, or None: one refusal does not end the others."""
        return _ask_for_addresses(rt.RTM_NEWADDR, _NLM_F_NEW, "add", wanted)

    async def del_addresses(self, wanted: Sequence[Held]) -> list[OSError | None]:
        return _ask_for_addresses(rt.RTM_DELADDR, 0, "remove", wanted)

    async def add_address(self, ifindex: int, address: Interface4or6) -> None:
        _raise(await self.add_addresses([(ifindex, address)]))

    async def del_address(self, ifindex: int, address: Interface4or6) -> None:
        _raise(await self.del_addresses([(ifindex, address)]))

    async def manage_neighbour(self, ifindex: int, address: Address4or6) -> None:
        """Have the kernel keep it resolved. Kernels before 5.16 ignore the flag, without a word.

        NTF_EXT_LEARNED exempts it from garbage collection, which would drop an entry that once failed, and
        with it the management; NTF_USE keeps the state of an entry that exists.
        """
        request = self._ipr.neigh(
            "replace",
            dst=str(address),
            ifindex=ifindex,
            state=0,
            flags=_NTF_USE | _NTF_EXT_LEARNED,
            flags_ext=rt.NTF_EXT_MANAGED,
            protocol=PROTOCOL,
        )
        await self._ask(f"manage neighbour {address}", request)

    async def is_managed(self, ifindex: int, address: Address4or6) -> bool:
        question = self._ipr.neigh("get", dst=str(address), ifindex=ifindex)
        got = await self._ask(f"read neighbour {address}", question)
        return bool(got) and bool((got[0].get("flags_ext") or 0) & rt.NTF_EXT_MANAGED)

    async def probe_neighbour(self, ifindex: int, address: Address4or6) -> None:
        """Have the kernel resolve it now, as a packet to it would (`ip neigh replace … use`)."""
        request = self._ipr.neigh("replace", dst=str(address), ifindex=ifindex, state=0, flags=_NTF_USE)
        await self._ask(f"probe neighbour {address}", request)

    async def release_neighbour(self, ifindex: int, address: Address4or6) -> None:
        """Make a managed entry an ordinary one, which ages and is collected; nobody who uses it notices."""
        if not await self.is_managed(ifindex, address):
            return  # a static one would lose its MAC
        request = self._ipr.neigh("change", dst=str(address), ifindex=ifindex, state=0, flags=_NTF_USE)
        await self._ask(f"release neighbour {address}", request)

    async def set_link_up(self, ifindex: int) -> None:
        await self._ask(f"set link {ifindex} up", self._ipr.link("set", index=ifindex, state="up"))


# ---- thread ------------------------------------------------------------------------------------------------


class NetlinkThread:
    """A thread with a stock selector loop; `requests` lives in it."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.requests: Requests  # from start() on
        self._thread = threading.Thread(target=self._run, name="netlink", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.call_blocking(self._open())

    async def _open(self) -> None:
        self.requests = Requests()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread, wait for it on the caller's loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def call_blocking(self, work: Coroutine[Any, Any, T], timeout: float = 30) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.call_blocking(self.requests.close())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
