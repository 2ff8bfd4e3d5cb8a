# SPDX-License-Identifier: Apache-2.0
"""One worker process as the master sees it: started or adopted, watched and ended through its pidfd.

Scope: spawn, signal, wait; when and why is `supervise.py`'s. A pidfd names the process itself: a signal can't
reach another process that got the same number, and "readable" means that all its threads are gone, and with
them its descriptors (the kernel closes files before it reports the exit), so that a successor may take the
rings.

posix_spawn: no copy of the master's address space, no code between fork and exec. The child has its own
session, so that neither the terminal's signals nor the master's end reach it; stdout and stderr are the
master's.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from lbd.master.handover import WorkerSet, pair, send

WORKER = (sys.executable, "-m", "lbd.worker")
CHILD_SOCKET = 3


class Process:
    def __init__(self, pid: int, child: bool) -> None:
        """Raises ProcessLookupError if it is gone already (never for a child that was not reaped)."""
        self.pid = pid
        self.child = child
        self.pidfd = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL. A process that has ended meanwhile is fine."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def reap(self) -> str:
        """After its pidfd became readable: how it ended, in words; the descriptor is closed."""
        try:
            if not self.child:
                return "ended"  # its status goes to whoever inherited it
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return "ended"
        finally:
            self.close()
        if result is None:
            return "ended under a debugger"  # which hears of it first; all its files are closed
        if result.si_code == os.CLD_EXITED:
            return f"exited with status {result.si_status}"
        return f"was killed by {signal.Signals(result.si_status).name}"

    def close(self) -> None:
        """Forgets the process; it goes on."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def spawn(given: WorkerSet, command: Sequence[str] = WORKER) -> Process:
    """Starts a worker and hands it the set. OSError if there is no process to be had."""
    ours, theirs = pair()
    with ours, theirs:
        # room for the whole message, so that sending never waits for the child
        send(ours, *given.words())
        return start(theirs, command)


def start(theirs: socket.socket, command: Sequence[str]) -> Process:
    """A process that gets its set through this socket, which stays the caller's to close."""
    pid = os.posix_spawn(
        command[0],
        [*command, "--socket-fd", str(CHILD_SOCKET)],
        environment(),
        file_actions=[
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), CHILD_SOCKET),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    )
    return Process(pid, child=True)


def environment() -> dict[str, str]:
    """The master's, with this very package on the path, wherever the master was started from."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}
