# SPDX-License-Identifier: Apache-2.0
"""What the daemon's processes share, by descriptor: segments, frames, connection files, sockets, the XDP program.

Scope: holding it, making a worker's set of it, and finding it again in the set that a running worker hands over.

Every worker holds a copy of everything, its neighbours' sockets and segments included, though it uses its own alone:
as long as one of them lives, a new master gets all of it back. In a set (handover.py) what a worker only holds stands
under `links` (XDP attachments) and `maps`, by name:

    prog, map:NAME      the XDP program and its maps
    segment:N  conn:N   worker N's segment and connection file
    socket:I:Q          the AF_XDP socket of port number I, queue Q

and `extra` says what the descriptors can't: sizes, interfaces, ports (`Ports` of all workers), the version of lbd.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from lbd import __version__
from lbd.config import Config
from lbd.master.handover import WorkerSet
from lbd.shm._shm import Area, HostSegment


@dataclass(frozen=True, slots=True)
class Port:
    """An AF_XDP socket: its place, its ring sizes, whose it is."""

    worker: int
    iface: int  # port number: see nic.py
    of: int  # the interface that it is for, by its place in the configuration
    nic: str  # device's name
    ifindex: int
    queue: int
    fd: int
    fill: int
    comp: int
    rx: int
    tx: int
    zero_copy: bool
    completes: bool = False  # the kernel completes partial checksums of what it sends

    @property
    def name(self) -> str:
        return f"socket:{self.iface}:{self.queue}"


@dataclass(slots=True)
class Resources:
    """The master's own copies. `close` ends them; what workers hold lives on."""

    sizes: dict[str, int]
    host: HostSegment
    area: Area
    program: Any  # lbd.xdp._xsk.Program, or None while it is made
    segments: dict[int, int] = field(default_factory=dict)  # worker -> descriptor, by which it can be written
    conns: dict[int, int] = field(default_factory=dict)
    wake: dict[int, int] = field(default_factory=dict)
    ports: list[Port] = field(default_factory=list)

    def close(self) -> None:
        self.clear_out()
        self.program.close()

    def clear_out(self) -> None:
        """All but the program."""
        for fd in (*self.segments.values(), *self.conns.values(), *self.wake.values(), *(p.fd for p in self.ports)):
            os.close(fd)
        self.segments, self.conns, self.wake, self.ports = {}, {}, {}, []
        self.area.close()
        self.host.close()

    def become(self, other: Resources) -> None:
        """Other ones by the same program: those of others workers."""
        self.sizes, self.host, self.area = other.sizes, other.host, other.area
        self.segments, self.conns, self.wake, self.ports = other.segments, other.conns, other.wake, other.ports


# what `crew.py` can change
CREW = ("workers.count", "workers.cores", "workers.fifo_priority")


def needs_restart(config: Config) -> dict[str, Any]:
    """The part of a configuration that can't change while workers run, by the names of its fields."""
    return {
        "daemon.run_dir": str(config.daemon.run_dir),
        "workers.count": config.workers.number,
        "workers.cores": list(config.workers.cores),
        "workers.fifo_priority": config.workers.fifo_priority,
        "tables": config.tables.model_dump(mode="json"),
        "interface": [i.model_dump(mode="json") for i in config.interface],
    }


def worker_set(r: Resources, number: int, config: Config) -> WorkerSet:
    """Copies of all descriptors, for one worker; the caller's to close."""
    copies: dict[int, int] = {}

    def copy(fd: int) -> int:
        if fd not in copies:
            copies[fd] = os.dup(fd)
        return copies[fd]

    program = r.program.fds
    held = {name: copy(fd) for name, fd in program.items() if not name.startswith("link:")}
    held |= {f"segment:{n}": copy(fd) for n, fd in r.segments.items()}
    held |= {f"conn:{n}": copy(fd) for n, fd in r.conns.items()}
    held |= {port.name: copy(port.fd) for port in r.ports}
    own = [asdict(port) | {"fd": copy(port.fd)} for port in r.ports if port.worker == number]
    return WorkerSet(
        number=number,
        run_dir=str(config.daemon.run_dir),
        segment=copy(r.segments[number]),
        host=copy(r.host.fd),
        area=copy(r.area.fd),
        conn=copy(r.conns[number]),
        peers={n: copy(fd) for n, fd in r.segments.items() if n != number},
        wake={n: copy(fd) for n, fd in r.wake.items()},
        ports=own,
        via=via(r, number),
        links={name: copy(fd) for name, fd in program.items() if name.startswith("link:")},
        maps=held,
        core=config.workers.core(number),
        fifo_priority=config.workers.fifo_priority,
        log_level=config.daemon.log_level,
        extra={
            "version": __version__,
            "sizes": r.sizes,
            "huge": r.area.huge,
            "restart": needs_restart(config),
            "ports": [asdict(port) | {"fd": -1} for port in r.ports],
        },
    )


def via(r: Resources, number: int) -> dict[int, int]:
    """Port on which this worker has no queue -> a worker that has one; spread over those that have."""
    found = {}
    for iface in sorted({port.iface for port in r.ports}):
        owners = sorted({port.worker for port in r.ports if port.iface == iface})
        if owners and number not in owners:
            found[iface] = owners[number % len(owners)]
    return found


def from_worker(given: WorkerSet, adopt_program: Any) -> Resources:
    """All of it, from one running worker's set. KeyError, SegmentError or XdpError if it is not whole."""
    extra = given.extra
    sizes = {str(name): int(value) for name, value in extra["sizes"].items()}
    held = {name: os.dup(fd) for name, fd in (given.maps | given.links).items()}
    program_fds = {n: fd for n, fd in held.items() if n == "prog" or n.startswith(("map:", "link:"))}
    workers = range(sizes["workers"])
    return Resources(
        sizes=sizes,
        host=HostSegment.adopt(os.dup(given.host), sizes),
        area=Area.adopt(os.dup(given.area), sizes, bool(extra.get("huge"))),
        program=adopt_program(program_fds),
        segments={n: held[f"segment:{n}"] for n in workers},
        conns={n: held[f"conn:{n}"] for n in workers},
        wake={n: os.dup(given.wake[n]) for n in workers},
        ports=[Port(**(port | {"fd": held[f"socket:{port['iface']}:{port['queue']}"]})) for port in extra["ports"]],
    )
