# SPDX-License-Identifier: Apache-2.0
"""Which client has which real server, kept over a stop: persistence templates in a file of the run directory.

Scope: the file `templates`, when it is written, and what of it holds for the next lbd.

    head    magic, version, boot, number of rows, BLAKE2b of all the rest
    rows    64 bytes each: Kept of lbd/datapath/kept.pxd, service and real server by address

While lbd runs its workers have the templates in shared memory, which ends with the last process that has it. So the file is
written when they have ended, which is exact; and every now and then before, for the day when all processes are killed at once.
It is of its own form, not a segment left lying: another version of lbd can read it, whatever became of the tables in memory.
Clocks are those of one boot, as those of connection files.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from lbd._fastpath import templates_kept, templates_return
from lbd.master.desired import Service
from lbd.master.reconcile import Placed
from lbd.master.runfile import boot, write_whole
from lbd.shm._shm import HostSegment

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

log = logging.getLogger(__name__)

NAME = "templates"
MAGIC = b"lbd-tmpl"
VERSION = 1
ROW = 64
HEAD = struct.Struct("<8sII16sQ")
DIGEST = 32
EVERY = 2.0  # seconds between two times that it is written, and
SHARE = 0.01  # not more of a core than this
NAMED = struct.Struct("!16sHBB16sHBB")  # as Kept begins


class Damaged(Exception):
    """Why the file can't be used."""


# -- the file ------------------------------------------------------------------------------------------------


def booted() -> bytes:
    return UUID(boot()).bytes


def digest(*parts: bytes | bytearray) -> bytes:
    whole = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        whole.update(part)
    return whole.digest()


def write(run_dir: Path, rows: bytes | bytearray) -> None:
    """In one step; without a row there is no file. OSError."""
    path = run_dir / NAME
    if not rows:
        path.unlink(missing_ok=True)
        return
    head = HEAD.pack(MAGIC, VERSION, ROW, booted(), len(rows) // ROW)
    write_whole(path, head, digest(head, rows), rows)


def read(run_dir: Path) -> bytes:
    """The rows; none if there is no file, or it is of another boot. Damaged, OSError."""
    try:
        with open(run_dir / NAME, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or not head.startswith(MAGIC):
                raise Damaged("it is no file of this kind")
            _, version, row, then, count = HEAD.unpack(head)
            if (version, row) != (VERSION, ROW):
                raise Damaged(f"it is of version {version} with rows of {row} bytes, and not {VERSION} with {ROW}")
            if size != HEAD.size + DIGEST + count * ROW:
                raise Damaged(f"it has {size} bytes, which {count} rows have not")
            told, rows = file.read(DIGEST), file.read()
    except FileNotFoundError:
        return b""
    if digest(head, rows) != told:
        raise Damaged("its checksum is wrong")
    return rows if then == booted() else b""


def read_or_tell(run_dir: Path) -> bytes:
    """At a start: what can't be used is told in one line."""
    try:
        return read(run_dir)
    except (Damaged, OSError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        log.warning("%s is not used, and clients get their real servers anew: %s", run_dir / NAME, why)
        return b""


# -- what it says to the lbd of now --------------------------------------------------------------------------


def numbers(placed: Iterable[Placed]) -> dict[bytes, tuple[int, int]]:
    """Persistent services' real servers as a row names them, and their numbers now."""
    found = {}
    for p in placed:
        if isinstance(p.service, Service) and p.service.persistence:
            for key, dest in p.dests.items():
                found[named(p.service, key[1], key[2])] = (p.number, dest)
    return found


def named(s: Service, address: bytes, port: int) -> bytes:
    af, daf = (4 if len(a) == 4 else 6 for a in (s.address, address))
    return NAMED.pack(s.address, s.port, af, s.protocol, address, port, daf, s.persistence_prefix)


def give_back(host: HostSegment, rows: bytes, placed: Iterable[Placed]) -> None:
    """To the workers that are about to start."""
    found = templates_return(host.fd, rows, numbers(placed))
    left = len(rows) // ROW - found
    rest = f"; of {left} others these are not configured any more, or there is no room" if left else ""
    log.info("%d clients keep the real servers that they had%s", found, rest)


# -- when it is written --------------------------------------------------------------------------------------


def keep(run_dir: Path, segment: int, host: int) -> float:
    """By descriptor: a worker's segment, the host segment. Seconds of a core that it took. What is there stays if that worker
    doesn't know all that is configured. OSError."""
    began = time.thread_time()
    rows = templates_kept(segment, host)
    if rows is not None:
        write(run_dir, rows)
    return time.thread_time() - began


class Keeper:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._task: asyncio.Task[float] | None = None
        self._due = 0.0
        self._said = ""

    def look(self, now: float) -> None:
        """While workers run."""
        if now < self._due or not self._wanted():
            return
        self._due = now + EVERY
        self._task = asyncio.get_running_loop().create_task(self._keep())
        self._task.add_done_callback(self._done)

    async def finish(self) -> None:
        """When workers have ended."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._wanted():
            await self._keep()

    def _wanted(self) -> bool:
        d = self._daemon
        if (self._task is not None and not self._task.done()) or not d.resources.segments:
            return False
        return any(s.persistence for s in d.config.service) or (d.config.daemon.run_dir / NAME).exists()

    async def _keep(self) -> float:
        """Seconds of a core that it took."""
        r = self._daemon.resources
        fds = [os.dup(next(iter(r.segments.values()))), os.dup(r.host.fd)]  # other workers may come meanwhile
        took, said = 0.0, ""
        try:
            took = await asyncio.to_thread(keep, self._daemon.config.daemon.run_dir, *fds)
        except OSError as error:
            said = error.strerror or str(error)
        finally:
            for fd in fds:
                os.close(fd)
        if said and said != self._said:
            log.warning("%s can't be written, and clients would lose their real servers: %s", NAME, said)
        self._said = said
        return took

    def _done(self, task: asyncio.Task[float]) -> None:
        self._due = max(self._due, time.monotonic() + task.result() / SHARE)
