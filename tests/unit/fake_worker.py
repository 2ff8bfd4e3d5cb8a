# SPDX-License-Identifier: Apache-2.0
"""A worker process without a packet engine: lbd.worker around a loop that takes commands and beats its heart.

Started by tests in place of `python -m lbd.worker`. The set's `extra` says how it is to misbehave:

    fail        attach raises OSError
    mute        never says that it runs
    deaf        takes no command, CMD_STOP included
"""

import mmap
import os
import select
import struct
import sys
import time
from pathlib import Path

from lbd import worker
from lbd.master.handover import WorkerSet
from lbd.shm import _shm as shm


class FakeLoop:
    """Writes what it applies to `<run_dir>/applied-N`, a line each: op, id, generation."""

    def __init__(self, given: WorkerSet) -> None:
        self.given = given
        self.segment = shm.WorkerSegment.adopt(os.dup(given.segment))
        self.side = shm.WorkerEnd(self.segment)
        self.ending = False
        self.log = (Path(given.run_dir) / f"applied-{given.number}").open("a", buffering=1)

    def attach(self) -> int:
        if self.given.extra.get("fail"):
            raise OSError(5, "told to fail")
        self.side.publish(state=shm.WORKER_ATTACHING, pid=os.getpid(), heartbeat_ns=time.monotonic_ns())
        self.side.emit(shm.EVT_RUNNING, value=7)
        return 7

    def stop(self) -> None:
        self.ending = True

    def run(self) -> int:
        wake = self.given.wake[self.given.number]
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        if not self.given.extra.get("mute"):
            self.side.publish(state=shm.WORKER_RUNNING)
        while not self.ending:
            self.side.publish(heartbeat_ns=time.monotonic_ns(), sleeping=1)
            if not self.busy() and poll.poll(20):
                os.eventfd_read(wake)
            self.side.publish(sleeping=0)
        self.side.publish(state=shm.WORKER_STOPPED)
        return 0

    def busy(self) -> bool:
        """Applies one command, if there is one."""
        if self.given.extra.get("deaf"):
            return False
        command = self.side.next_command()
        if command is None:
            return False
        op, _, number, gen = shm.command_head(command)
        if op == shm.CMD_CAPTURE:
            # what a test sends to make it write garbage where the record says, once
            self.scribble(*struct.unpack_from("II", command, 16))
            return True
        self.log.write(f"{op} {number} {gen}\n")
        self.side.publish(gen_applied=gen)
        self.side.done()
        self.ending |= op == shm.CMD_STOP
        return True

    def scribble(self, at: int, value: int) -> None:
        self.side.done()
        mark = Path(self.given.run_dir) / "scribbled"
        if mark.exists():
            return
        mark.touch()
        with mmap.mmap(self.segment.fd, self.segment.size) as memory:
            struct.pack_into("I", memory, at, value)
        self.given.extra["deaf"] = True  # or its next step would put things right


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:], FakeLoop))
