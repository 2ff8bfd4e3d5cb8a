# SPDX-License-Identifier: Apache-2.0
"""Captured packets, from the workers' rings to everybody who asked for some.

Scope: the clients of GET /v1/capture, and the one CMD_CAPTURE that serves them all: workers copy what any client wants,
at the greatest length, and each client gets its own part of it. Nobody asks: workers copy nothing.

A client that reads too slowly loses packets, not the daemon memory: its queue is bounded, and what it lost shows as a gap
in the records' `seq`, as does what a worker could not put into its ring.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lbd.shm import _shm as shm

POINTS = {"rx": shm.CAPTURE_RX, "tx": shm.CAPTURE_TX, "drop": shm.CAPTURE_DROP}
# CaptureHead of layout.pxd: ts_ns len caplen point iface verdict reason svc dest worker seq
HEAD = struct.Struct("<QIHBBBBHHBxI4x")
QUEUE_MAX = 4096  # records that wait for one client
EVERY = 0.01  # seconds between looks into the rings


@dataclass(eq=False)
class Client:
    points: int
    snaplen: int
    service: int = shm.SVC_NONE  # number, SVC_NONE: all
    queue: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(QUEUE_MAX))
    lost: int = 0

    def offer(self, head: Mapping[str, int], packet: bytes) -> None:
        if not head["point"] & self.points or self.service not in (shm.SVC_NONE, head["svc"]):
            return
        packet = packet[: self.snaplen]
        record = HEAD.pack(
            head["ts_ns"], head["len"], len(packet), head["point"], head["iface"], head["verdict"], head["reason"],
            head["svc"], head["dest"], head["worker"], head["seq"],
        ) + packet  # fmt: skip
        try:
            self.queue.put_nowait(record)
        except asyncio.QueueFull:
            self.lost += 1


class CaptureHub:
    """`tell(points, snaplen, service)`: have all workers capture so; points 0 ends it."""

    def __init__(self, segments: Callable[[], Iterable[Any]], tell: Callable[[int, int, int], None]) -> None:
        self._segments = segments
        self._tell = tell
        self._clients: set[Client] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, client: Client) -> None:
        self._clients.add(client)
        self.repeat()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def remove(self, client: Client) -> None:
        self._clients.discard(client)
        self.repeat()

    def repeat(self) -> None:
        """What all want together; also for a worker that was started again."""
        points = snaplen = 0
        for client in self._clients:
            points |= client.points
            snaplen = max(snaplen, client.snaplen)
        services = {client.service for client in self._clients}
        self._tell(points, snaplen, services.pop() if len(services) == 1 else shm.SVC_NONE)

    def deliver(self) -> int:
        taken = 0
        for segment in self._segments():
            try:
                records = segment.pop_capture(256)
            except shm.PeerGarbage:
                continue  # whoever reads its events will see to it
            for head, packet in records:
                for client in self._clients:
                    client.offer(head, packet)
            taken += len(records)
        return taken

    async def _run(self) -> None:
        while self._clients:  # noqa: ASYNC110 (a ring in shared memory has no event)
            # a burst is read at once; yields in between, so that clients can be written to
            await asyncio.sleep(0 if self.deliver() else EVERY)
        self.deliver()
        self._task = None

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._clients.clear()
