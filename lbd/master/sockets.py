# SPDX-License-Identifier: Apache-2.0
"""Opening the AF_XDP sockets of all workers: which queue is whose, how many frames each gets, zero-copy or copies.

Queue q of every interface is worker q % workers'. A worker has one socket for each interface at most, all over one UMEM,
and the kernel wants all sockets of one UMEM zero-copy, or all copies. So there is one answer for all: zero-copy if every
interface can, else copies for all, unless the configuration demands zero-copy of one of them.

A worker's frames are shared out evenly over its sockets' fill rings, and one share stays free for sending.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from lbd.config import Config
from lbd.master.record import Channels, Link
from lbd.master.refusal import Refusal
from lbd.master.resources import Port
from lbd.shm._shm import Area
from lbd.xdp import _xsk

log = logging.getLogger(__name__)

Mode = Literal["auto", "require", "off"]

QUEUES_MAX = 64  # STEER_QUEUES of steer.h
NOT_ZERO_COPY = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


def queue_counts(config: Config, channels: Mapping[str, Channels]) -> dict[str, int]:
    """Sockets per interface, or a Refusal."""
    workers = config.workers.number
    counts = {}
    for interface in config.interface:
        name = interface.name
        known = channels.get(name)
        queues = known.rx if known else 1
        if queues > workers:
            raise Refusal(
                f"{name} has {queues} receive queues, and workers.count is {workers}: traffic of a queue without a"
                " worker would be lost",
                f"set workers.count = {queues}, or: ethtool -L {name} combined {workers}",
            )
        counts[name] = min(queues, QUEUES_MAX)
    if counts and max(counts.values()) < workers:
        most = max(counts.values())
        raise Refusal(
            f"too few queues: {workers} workers, but no interface has more than {most} receive queues",
            f"set workers.count = {most}, or give an interface more (ethtool -L NAME combined {workers})",
        )
    return counts


class Opener:
    def __init__(self, config: Config, area: Area, links: Mapping[str, Link], queues: Mapping[str, int]) -> None:
        self.config = config
        self.area = area
        self.links = links
        self.queues = queues

    def open(self) -> list[Port]:
        demanded = [i.name for i in self.config.interface if i.zero_copy == "require"]
        copies = [i.name for i in self.config.interface if i.zero_copy == "off" or i.attach == "generic"]
        if demanded and copies:
            raise Refusal(
                f"zero-copy is demanded for {demanded[0]}, but {copies[0]} takes copies, and a worker's sockets must all be alike",
                'set zero_copy = "auto" or attach = "native" alike for all interfaces',
            )
        if copies:
            return self._open_all("off")
        try:
            ports = self._open_all("require" if demanded else "auto")
        except _xsk.XdpError as error:
            if demanded or error.errno not in NOT_ZERO_COPY:
                raise
            log.warning("copy mode on all interfaces: %s", error)
            return self._open_all("off")
        without = sorted({self.config.interface[p.iface].name for p in ports if not p.zero_copy})
        if without and len(without) < len(self.config.interface):
            # between workers, not within one: the kernel would not have minded, but one mode is one thing to know
            close_ports(ports)
            log.warning("copy mode on all interfaces: no zero-copy on %s", ", ".join(without))
            return self._open_all("off")
        if without:
            log.warning("copy mode: no zero-copy on %s", ", ".join(without))
        return ports

    def _open_all(self, mode: Mode) -> list[Port]:
        ports: list[Port] = []
        try:
            for worker in range(self.config.workers.number):
                ports += self._open_worker(worker, mode)
        except BaseException:
            close_ports(ports)
            raise
        return ports

    def _open_worker(self, worker: int, mode: Mode) -> list[Port]:
        served = [(n, i) for n, i in enumerate(self.config.interface) if worker < self.queues[i.name]]
        frames = self.config.tables.frames
        share = frames // (len(served) + 1)
        ports: list[Port] = []
        try:
            for place, (number, interface) in enumerate(served):
                first = worker * frames + place * share
                link = self.links[interface.name]
                made: Any = _xsk.open_socket(
                    ifindex=link.ifindex,
                    ifname=interface.name,
                    queue=worker,
                    iface=number,
                    area=self.area.address,
                    area_bytes=self.area.frame_bytes,
                    fill=interface.ring,
                    comp=interface.ring,
                    rx=interface.ring,
                    tx=interface.ring,
                    prefill_frames=range(first, first + min(share, interface.ring)),
                    zero_copy=mode if not ports else "require" if ports[0].zero_copy else "off",
                    shared_with=ports[0].fd if ports else None,
                )
                ports.append(Port(worker=worker, iface=number, **asdict(made)))
        except BaseException:
            close_ports(ports)
            raise
        return ports


def close_ports(ports: list[Port]) -> None:
    for port in ports:
        os.close(port.fd)
    ports.clear()
