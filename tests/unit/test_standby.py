# SPDX-License-Identifier: Apache-2.0
"""The process that stands by: it becomes the worker that it is told to be, and is never in the way."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lbd.master import standby
from lbd.master.handover import WorkerSet
from lbd.master.process import Process
from lbd.master.standby import Standby

# Waits as lbd.worker does; told a set, it writes the worker's number into a file and ends.
STANDS_BY = """
import socket, sys
from pathlib import Path
from lbd.master.handover import WorkerSet, receive
sock = socket.socket(fileno=int(sys.argv[-1]))
if sock.recv(1, socket.MSG_PEEK):
    given = WorkerSet.from_words(*receive(sock))
    (Path(given.run_dir) / f"became-{given.number}").touch()
"""


@pytest.fixture
def given(tmp_path: Path) -> WorkerSet:
    fds = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(4)]
    return WorkerSet(3, str(tmp_path), *fds)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[WorkerSet]:
    """Sets of workers that were started the long way; each is a process that ends at once."""
    found: list[WorkerSet] = []

    def spawn(given: WorkerSet) -> Process:
        found.append(given)
        return Process(os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ), child=True)

    monkeypatch.setattr(standby, "spawn", spawn)
    return found


@pytest.fixture
async def ready(spawned: list[WorkerSet]):
    made = Standby((sys.executable, "-c", STANDS_BY))
    made.prepare()
    yield made
    made.close()


def children() -> set[int]:
    return set(map(int, Path("/proc/thread-self/children").read_text().split()))


async def ended(process: Process) -> str:
    deadline = time.monotonic() + 20
    while not standby.ended(process):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return process.reap()


async def test_becomes_the_worker_it_is_told_to_be(ready: Standby, given: WorkerSet, spawned: list[WorkerSet]) -> None:
    process = ready(given)
    assert await ended(process) == "exited with status 0"
    assert (Path(given.run_dir) / "became-3").exists() and not spawned
    assert await ended(ready(given)) == "exited with status 0" and spawned == [given], "none stands by now"


async def test_a_dead_one_is_replaced_by_the_long_way(ready: Standby, given: WorkerSet, spawned: list[WorkerSet]) -> None:
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    assert ready._ready is not None and standby.ended(ready._ready[0], 20)
    assert await ended(ready(given)) == "exited with status 0" and spawned == [given]
    assert not children(), "the dead one was buried"


async def test_another_one_is_prepared_after_use(ready: Standby, given: WorkerSet, monkeypatch) -> None:
    monkeypatch.setattr(standby, "PAUSE", 0.01)
    await ended(ready(given))
    deadline = time.monotonic() + 20
    while ready._ready is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    (pid,) = children()
    ready.prepare()
    assert children() == {pid}, "one is enough"


async def test_closed_it_is_gone(ready: Standby) -> None:
    assert children()
    ready.close()
    assert not children()
    ready.close()


async def test_ends_by_itself_when_the_master_has_gone(ready: Standby) -> None:
    assert ready._ready is not None
    process, sock = ready._ready
    ready._ready = None
    sock.close()
    assert await ended(process) == "exited with status 0"
