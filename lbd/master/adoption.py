# SPDX-License-Identifier: Apache-2.0
"""Finding the workers that a master's predecessor left running, and taking copies of all that they hold.

Scope: the run directory's `worker-N.sock` and what comes through them; supervision begins with what is
found here.

    what is found                                  what becomes of it
    a socket that nobody listens on                removed: its worker is dead
    a worker that answers, of this layout          adopted
    a worker that answers, of another layout       refused: its own program can stop it well
    a worker that does not answer in time          hung: it is ended, and what it held is gone with it

Assumes: the predecessor is gone for good (the daemon's lock says so), or two masters would write to one ring.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lbd.master.handover import SOCKET_NAME, HandoverError, WorkerSet, peer, receive, send, trusted
from lbd.master.process import Process
from lbd.shm import _shm as shm

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Adoption:
    workers: list[int] = field(default_factory=list)
    refused: dict[str, str] = field(
        default_factory=dict
    )  # socket's name -> why its worker can't be taken over
    ended: dict[str, str] = field(default_factory=dict)  # socket's name -> which worker hung and is no more


@dataclass(slots=True)
class Found:
    given: WorkerSet
    segment: shm.WorkerSegment
    process: Process


def find(run_dir: Path, result: Adoption, patience: float) -> Iterator[Found]:
    """Each worker that can be adopted; the others are noted in `result`. `patience`: seconds each."""
    for path in sorted(run_dir.glob(SOCKET_NAME.format("*"))):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(patience)
                sock.connect(str(path))
                yield ask(sock, patience)
        except FileNotFoundError:
            pass  # has just ended, and cleaned up
        except (ConnectionRefusedError, Dead):
            path.unlink(missing_ok=True)
        except Hung as hung:
            result.ended[path.name] = str(hung)
        except (OSError, HandoverError, shm.SegmentError) as error:
            result.refused[path.name] = f"the worker behind {path} can't be taken over: {error}"


class Hung(Exception):
    """Its words go into the report."""


class Dead(Exception):
    """It was dying when it was asked."""


def ask(sock: socket.socket, patience: float) -> Found:
    if not trusted(sock):
        raise HandoverError("it belongs to another user")
    pid, _ = peer(sock)
    try:
        process = Process(pid, child=False)
    except ProcessLookupError:
        raise Dead from None
    try:
        given = take(sock)
    except TimeoutError:
        process.kill()
        if not gone(process, patience):
            log.error("process %d does not die", pid)
        process.close()
        raise Hung(f"process {pid} did not answer within {patience:g} s and was killed") from None
    except (OSError, HandoverError):
        dying = gone(process, min(patience, 1.0))
        process.close()
        if dying:
            raise Dead from None
        raise
    try:
        return Found(given, adopt_segment(given), process)
    except shm.SegmentError:
        given.close()
        process.close()
        raise


def take(sock: socket.socket) -> WorkerSet:
    send(sock, {"op": "take"})
    words, fds = receive(sock)
    try:
        if not isinstance(words.get("set"), dict):
            raise HandoverError(str(words.get("error", "not a worker's answer")))
        return WorkerSet.from_words(words["set"], fds)
    except HandoverError:
        for fd in fds:
            os.close(fd)
        raise


def gone(process: Process, patience: float) -> bool:
    """Has it ended, so that what it held (queues above all) is free, or does it within so many seconds?"""
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def adopt_segment(given: WorkerSet) -> shm.WorkerSegment:
    """The set's segment, through a descriptor of its own."""
    fd = os.dup(given.segment)
    try:
        segment = shm.WorkerSegment.adopt(fd)
    except shm.SegmentError:
        os.close(fd)
        raise
    if segment.worker != given.number:
        segment.close()
        raise shm.SegmentError(f"the segment of worker {given.number} says that it is another's")
    return segment
