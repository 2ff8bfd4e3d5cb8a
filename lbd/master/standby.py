# SPDX-License-Identifier: Apache-2.0
"""A process that stands by to become any worker: started, its modules loaded, waiting for its set.

Scope: one such process, made again some time after it was used. When a worker dies, starting Python and loading
modules would be half of the time until its successor forwards, and more than that on a busy machine; and there
may be no memory for a new process just then. If none stands by, a worker is started as ever.

    none      -> ready     `prepare`, or `PAUSE` after the last start: not in the way of a successor that repairs
    ready     -> none      it was given a set and is that worker from then on; or it was found dead
                           closed: it sees the end of its socket, and ends; so also when this master is killed
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Sequence

from lbd.master.handover import HandoverError, WorkerSet, pair, send
from lbd.master.process import WORKER, Process, spawn, start

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds
PATIENCE = 1.0  # seconds for a killed process to be gone
COMMAND = (*WORKER, "--stand-by")


class Standby:
    """Called with a set, it starts that worker: what `Supervisor` takes as `launch`."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = command
        self._ready: tuple[Process, socket.socket] | None = None
        self._due: asyncio.TimerHandle | None = None

    def __call__(self, given: WorkerSet) -> Process:
        self.prepare_soon()
        process = self._hand_over(given)
        return spawn(given) if process is None else process

    def _hand_over(self, given: WorkerSet) -> Process | None:
        if self._ready is None:
            return None
        process, sock = self._ready
        with sock:
            self._ready = None
            try:
                if not ended(process):
                    send(sock, *given.words())
                    return process
            except (OSError, HandoverError) as error:
                log.warning("process %d, which stood by, does not take its set: %s", process.pid, error)
                process.kill()
        bury(process)
        return None

    def prepare_soon(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = asyncio.get_running_loop().call_later(PAUSE, self.prepare)

    def prepare(self) -> None:
        """Starts one, if none stands by."""
        self._due = None
        if self._ready is not None:
            if not ended(self._ready[0]):
                return
            self.close()
        ours, theirs = pair()
        with theirs:
            try:
                self._ready = start(theirs, self.command), ours
            except OSError as error:
                ours.close()
                log.warning("no process can stand by: %s", error)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._ready is not None:
            process, sock = self._ready
            self._ready = None
            sock.close()
            process.kill()
            bury(process)


def ended(process: Process, seconds: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def bury(process: Process) -> None:
    """One that was killed, or is dead."""
    ended(process, PATIENCE)
    process.reap()
