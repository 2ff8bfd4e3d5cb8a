# SPDX-License-Identifier: Apache-2.0
"""Opening the AF_XDP sockets of all workers: which queue is whose, how many frames each gets, zero-copy or copies.

Queue q of every NIC is worker q's. A worker has one socket for each NIC at most, all over one UMEM,
and the kernel wants all sockets of one UMEM zero-copy, or all copies. So there is one answer for all: zero-copy if every
interface can, else copies for all, unless the configuration demands zero-copy of one of them. What comes later, to running
sockets, has to be as they are.

A worker's frames are shared out evenly over its sockets' fill rings, and one share stays free for sending.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from lbd.config import Config
from lbd.config.frame import FRAME, FRAME_LARGE, WHOLE_KIB
from lbd.master.ethtool import driver_of
from lbd.master.nic import Nic
from lbd.master.record import Channels
from lbd.master.refusal import Refusal
from lbd.master.resources import Port
from lbd.shm._shm import Area
from lbd.xdp import _xsk

log = logging.getLogger(__name__)

Mode = Literal["auto", "require", "off"]

QUEUES_MAX = 64  # STEER_QUEUES of steer.h
NOT_ZERO_COPY = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


def queue_counts(config: Config, channels: Mapping[str, Channels], names: Iterable[str] | None = None) -> dict[str, int]:
    """Sockets per NIC (default: the interfaces are), or a Refusal."""
    workers = config.workers.number
    counts = {}
    for name in [i.name for i in config.interface] if names is None else names:
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
    """`nics`: by port number. `queues`: by NIC."""

    def __init__(
        self, config: Config, area: Area, nics: Mapping[int, Nic], queues: Mapping[str, int], sizes: Mapping[str, int]
    ) -> None:
        self.config = config
        self.sizes = sizes
        self.area = area
        self.nics = nics
        self.queues = queues
        # What leaves by a veth pair is as often for a stack of this host, which needs no checksum; others' drivers may take partial
        # ones wrongly, since an AF_XDP packet tells them no protocol.
        self.completes = any(driver_of(nic.name) == "veth" for nic in nics.values())

    def open(self) -> list[Port]:
        demanded = [i.name for i in self.config.interface if i.zero_copy == "require"]
        copies = [i.name for i in self.config.interface if i.copies]
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
        without = sorted({p.nic for p in ports if not p.zero_copy})
        if without and len(without) < len(self.nics):
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
        served = [n for n, nic in self.nics.items() if worker < self.queues[nic.name]]
        frames = self.config.tables.frames
        share = frames // (len(served) + 1)
        ports: list[Port] = []
        try:
            for place, number in enumerate(served):
                first = worker * frames + place * share
                ports.append(self.open_port(worker, number, mode, ports, range(first, first + share)))
        except BaseException:
            close_ports(ports)
            raise
        return ports

    def open_port(self, worker: int, number: int, mode: Mode, beside: Sequence[Port], frames: Sequence[int]) -> Port:
        """`beside`: the worker's other ports, whose frames and mode it shares; `frames`: free ones that it may take."""
        nic = self.nics[number]
        ring = self.config.interface[nic.iface].ring
        if beside:
            mode = "require" if beside[0].zero_copy else "off"
        if mode != "off" and self.sizes["frame_size"] == FRAME and not self.sizes["chains"]:
            check_driver(nic)
        made: Any = _xsk.open_socket(
            ifindex=nic.ifindex,
            ifname=nic.name,
            queue=worker,
            iface=number,
            area=self.area.address,
            area_bytes=self.area.frame_bytes,
            frame_size=self.sizes["frame_size"],
            chains=bool(self.sizes["chains"]),
            fill=ring,
            comp=ring,
            rx=ring,
            tx=ring,
            prefill_frames=frames[:ring],
            zero_copy=mode,
            shared_with=beside[0].fd if beside else None,
            completes=beside[0].completes if beside else self.completes,
        )
        return Port(worker=worker, iface=number, of=nic.iface, nic=nic.name, **asdict(made))

    def open_more(self, there: Sequence[Port]) -> list[Port]:
        """Those that are missing, while no worker runs. Copies as `open`, or if the first that is opened can't else."""
        first: Mode = "off" if any(i.copies for i in self.config.interface) else "auto"
        ports: list[Port] = []
        try:
            for worker in range(self.config.workers.number):
                for number, nic in self.nics.items():
                    if worker >= self.queues[nic.name] or any((p.worker, p.iface) == (worker, number) for p in there):
                        continue
                    known = [*there, *ports]
                    own = [p for p in known if p.worker == worker]
                    free = self.area.free_frames(worker)
                    mode: Mode = first if not known else "require" if known[0].zero_copy else "off"
                    ports.append(self.open_port(worker, number, mode, own, free[: len(free) // 2]))
        except BaseException:
            close_ports(ports)
            raise
        return ports


def check_driver(nic: Nic) -> None:
    """A NIC that came while lbd runs may need larger packet buffers than those there were had need of."""
    driver = driver_of(nic.name)
    if driver in WHOLE_KIB:
        raise Refusal(
            f"zero-copy on {nic.name} ({driver}) takes packet buffers of {FRAME_LARGE} bytes, and lbd has such of {FRAME}",
            f"restart lbd, which then makes larger ones, or take {nic.name} away again: ip link set {nic.name} nomaster",
        )


def close_ports(ports: list[Port]) -> None:
    for port in ports:
        os.close(port.fd)
    ports.clear()
