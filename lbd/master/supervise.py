# SPDX-License-Identifier: Apache-2.0
"""Supervision of the worker processes: start, watch, end, start again, adopt.

Scope: processes, heartbeats, rings. What is in a worker's set of descriptors is the daemon's business, and
what a command means too. Everything runs in the asyncio loop's thread; `tick` does the periodic work, and a
test may call it by hand with a clock of its own.

A worker's states, and what leads from one to the next:

    waiting    no process; one is started at `due`     -> starting   at once, after a pause, in quarantine
    starting   spawned or adopted, attaching           -> running    its segment says so
                                                       -> killed     not within limits.start
    running    its loop turns                          -> killed     heartbeat older than limits.heartbeat
    starting, running                                  -> killed     it wrote garbage into a ring
                                                       -> stopping   stop(), restart(): CMD_STOP is sent
    killed     SIGKILL was sent
    starting, running, killed                          -> waiting    the process is gone (pidfd)
    stopping   SIGKILL at the deadline                 -> stopped    the process is gone
    stopped    no process, and none wanted             -> starting   start(), restart()

Prohibited: a second process over the same rings. A successor is spawned only after its predecessor's pidfd
was readable; ring ends are single, and two would corrupt what the first one left whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbd.master.adoption import Adoption, adopt_segment, find
from lbd.master.delivery import Delivery
from lbd.master.handover import HandoverError, WorkerSet
from lbd.master.process import Process, spawn
from lbd.master.restart import Limits, Restarts
from lbd.shm import _shm as shm

log = logging.getLogger(__name__)

EVENTS_A_TICK = 256
NO_BEAT = (0, 0.0)
BACKLOG_PAUSE = 0.002
NEVER = float("inf")


def no_turn(late: float) -> float:
    """Supervisor.on_turn, where nothing else has rings to look at."""
    return NEVER


@dataclass(slots=True)
class Member:
    """A worker as its supervisor sees it."""

    given: WorkerSet
    segment: shm.WorkerSegment
    delivery: Delivery
    restarts: Restarts
    state: str = "stopped"
    since: float = 0.0  # of the state
    due: float = 0.0  # waiting: when to start
    process: Process | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # there is no process
    heard: float = 0.0  # the last heartbeat that was looked at, and was young: until it is too old there is no need to look
    stale: tuple[int, float] = NO_BEAT  # a heartbeat that was found too old, and when it was found so first
    garbage: bool = False  # its rings are to be emptied before the next start
    alarm: bool = False

    @property
    def number(self) -> int:
        return self.given.number


class Supervisor:
    """Callbacks: on_restart(worker) after a successor was spawned: it has its predecessor's tables, but
    none of its settings, so send everything again. on_event(worker, event). on_alarm(worker, sentence, or
    None: over). on_turn(seconds that this turn of the periodic work came too late) looks at what else workers
    have rings for, so that one timer does; it returns when it is to be called again, in seconds."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        on_restart: Callable[[int], None] = lambda number: None,
        on_event: Callable[[int, dict[str, Any]], None] = lambda number, event: None,
        on_alarm: Callable[[int, str | None], None] = lambda number, text: None,
        launch: Callable[[WorkerSet], Process] = spawn,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.on_restart = on_restart
        self.on_event = on_event
        self.on_alarm = on_alarm
        self.launch = launch
        self.clock = clock
        self.on_turn: Callable[[float], float] = no_turn
        self.members: dict[int, Member] = {}
        self.quiet = False  # at the last turn no worker had anything to tell, or to be told
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # of the timer

    # -- who is supervised -----------------------------------------------------------------------------------

    def add(self, given: WorkerSet, segment: shm.WorkerSegment | None = None) -> None:
        """Takes over the set, and the segment (the same memory by a descriptor of its own). SegmentError if
        that is none for this program; then the set is still the caller's. Starts nothing."""
        if given.number in self.members:
            raise ValueError(f"worker {given.number} is there already")
        segment = segment or adopt_segment(given)
        segment.wake_fd = given.wake.get(given.number, -1)
        member = Member(given, segment, Delivery(segment), Restarts(self.limits))
        member.gone.set()
        try:
            member.delivery.recall()
        except shm.PeerGarbage:
            member.garbage = True
        self.members[given.number] = member

    def adopt(self, run_dir: Path) -> Adoption:
        """Takes over the workers of a predecessor, which is known to be gone. Blocks until they have
        answered."""
        result = Adoption()
        for found in find(run_dir, result, self.limits.answer):
            self.add(found.given, found.segment)
            member = self.members[found.given.number]
            self._watch(member, found.process)
            log.info("worker %d: took over process %d", member.number, found.process.pid)
            if member.garbage:
                log.error("worker %d: its command ring holds garbage: it is reset", member.number)
                self._kill(member)
            result.workers.append(member.number)
        return result

    def remove(self, number: int) -> None:
        """Forgets a worker; if it runs, it goes on."""
        member = self.members.pop(number)
        if member.process is not None:
            asyncio.get_running_loop().remove_reader(member.process.pidfd)
            member.process.close()
        member.segment.close()
        member.given.close()

    def begin(self) -> None:
        """From now on `tick` is called by the running loop."""
        if self._timer is None:
            self._wait(asyncio.get_running_loop(), 0.0)

    async def leave(self) -> None:
        """Forgets all workers; they go on, and may be adopted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for number in list(self.members):
            self.remove(number)

    # -- what is known ---------------------------------------------------------------------------------------

    def segment(self, number: int) -> shm.WorkerSegment:
        return self.members[number].segment

    def alive(self, number: int) -> bool:
        """There is a process, and nothing is known against it."""
        return self.members[number].state in ("starting", "running", "stopping")

    def status(self) -> list[dict[str, Any]]:
        return [self._status(member) for member in self.members.values()]

    def _status(self, member: Member) -> dict[str, Any]:
        now = self.clock()
        running = member.process is not None
        return {
            "worker": member.number,
            "pid": member.process.pid if member.process else None,
            "state": member.state,
            "since": now - member.since,
            "heartbeat_age": max(0.0, now - member.segment.heartbeat_ns / 1e9) if running else None,
            "restarts": member.segment.restarts,
            "deaths": member.restarts.recent(now),
            "quarantined": member.state == "waiting" and member.restarts.quarantined(now),
            "generation": member.segment.gen_applied,
            "commands_waiting": member.delivery.waiting,
        }

    # -- commands --------------------------------------------------------------------------------------------

    def send(self, number: int, *commands: bytes) -> None:
        """In order, and none is lost: what the ring can't take now is pushed when it can."""
        self._deliver(self.members[number], lambda delivery: delivery.send(*commands))

    def broadcast(self, *commands: bytes) -> None:
        for number in self.members:
            self.send(number, *commands)

    def applied(self, number: int) -> int:
        """Generation of the last command applied."""
        return self.members[number].segment.gen_applied

    def generation(self) -> int:
        """The latest that any worker has applied or was sent: where a new master goes on."""
        return max((m.delivery.generation() for m in self.members.values()), default=0)

    async def wait_applied(self, gen: int, limit: float, workers: Iterable[int] | None = None) -> bool:
        """Until these workers have applied all that they were sent up to this generation; False: not within
        `limit` seconds. A worker that is down delays it: its successor finds the commands in the ring."""
        chosen = [self.members[n] for n in (self.members if workers is None else workers)]
        deadline = time.monotonic() + limit
        while not all(self._deliver(m, lambda delivery: delivery.settled(gen)) for m in chosen):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    async def wait_running(self, limit: float) -> None:
        """Until all do; after `limit` seconds those that don't are not waited for."""
        deadline = time.monotonic() + limit
        while any(m.state != "running" for m in self.members.values()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # a segment has no event

    def _deliver(self, member: Member, act: Callable[[Delivery], Any]) -> Any:
        try:
            return act(member.delivery)
        except shm.PeerGarbage as error:
            self.reset(member.number, str(error))
            return False

    def reset(self, number: int, why: str) -> None:
        """It wrote garbage: it is ended, its rings are emptied, and a successor starts."""
        member = self.members[number]
        if member.garbage:
            return
        member.garbage = True
        log.error("%s: it is reset", why)
        if member.process is not None:
            self._kill(member)

    # -- processes -------------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        self._spawn(self.members[number], again=False)

    def _spawn(self, member: Member, again: bool) -> None:
        if member.process is not None:
            raise ValueError(f"worker {member.number} has a process already")
        self._empty_rings(member)
        member.segment.set_starting(time.monotonic_ns(), again)
        try:
            process = self.launch(member.given)
        except (OSError, HandoverError) as error:
            log.error("worker %d can't be started: %s", member.number, error)
            self._died(member)
            return
        self._watch(member, process)
        log.info("worker %d: process %d started", member.number, process.pid)
        self._deliver(member, Delivery.push)
        if again:
            self._call(self.on_restart, member.number)

    def _empty_rings(self, member: Member) -> None:
        """Those that a successor would refuse; all, if the predecessor was caught writing garbage; the
        command ring, if it holds the CMD_STOP that the predecessor did not live to see."""
        names = list(shm.RINGS) if member.garbage else member.segment.broken_rings()
        if not names and member.delivery.stops():
            names = ["cmd"]
        for name in names:
            member.segment.reset_ring(name)
        if "cmd" in names:
            member.delivery.again()
        if names:
            log.warning("worker %d: emptied its rings (%s)", member.number, ", ".join(names))
        member.garbage = False

    def _watch(self, member: Member, process: Process) -> None:
        member.process = process
        member.gone.clear()
        self._enter(member, "starting")
        asyncio.get_running_loop().add_reader(process.pidfd, self._gone, member, process)

    def _enter(self, member: Member, state: str) -> None:
        member.state = state
        member.since = self.clock()
        member.stale = NO_BEAT
        member.heard = 0.0

    def _kill(self, member: Member) -> None:
        assert member.process is not None
        member.process.kill()
        if member.state != "stopping":
            self._enter(member, "killed")

    def _gone(self, member: Member, process: Process) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        how = process.reap()
        member.process = None
        member.gone.set()
        if member.state == "stopping":
            log.info("worker %d: process %d %s, as wanted", member.number, process.pid, how)
            self._enter(member, "stopped")
        else:
            log.error("worker %d: process %d %s", member.number, process.pid, how)
            self._died(member)

    def _died(self, member: Member) -> None:
        now = self.clock()
        delay = member.restarts.died(now, ran(member.segment))
        member.due = now + delay
        self._enter(member, "waiting")
        if member.restarts.quarantined(now):
            log.error("worker %d: in quarantine, tried again in %g s", member.number, delay)
        if member.restarts.too_many(now) and not member.alarm:
            member.alarm = True
            deaths = member.restarts.recent(now)
            text = f"worker {member.number} died {deaths} times within {self.limits.window:g} s"
            log.error("%s", text)
            self._call(self.on_alarm, member.number, text)
        if delay == 0.0:
            self._spawn(member, again=True)

    # -- stop and restart ------------------------------------------------------------------------------------

    async def stop(self, workers: Iterable[int] | None = None) -> None:
        """Ends these workers, or all: CMD_STOP behind the commands sent so far, SIGKILL at the deadline."""
        chosen = [self.members[n] for n in (self.members if workers is None else workers)]
        for member in chosen:
            if member.process is None:
                self._enter(member, "stopped")
                continue
            self.send(member.number, shm.stop(member.delivery.generation()))
            self._enter(member, "stopping")
        await asyncio.gather(*(self._end(member) for member in chosen))

    async def _end(self, member: Member) -> None:
        deadline = time.monotonic() + self.limits.stop
        while not member.gone.is_set() and time.monotonic() < deadline:
            self._deliver(member, Delivery.push)
            try:
                await asyncio.wait_for(member.gone.wait(), 0.02)
            except TimeoutError:
                pass
        if member.process is not None:
            log.warning("worker %d: not stopped within %g s, is killed", member.number, self.limits.stop)
            self._kill(member)
            await member.gone.wait()

    async def restart(self, number: int, given: WorkerSet | None = None) -> None:
        """A new process over the same tables, by another set of descriptors if one is given (its ports
        changed)."""
        await self.stop([number])
        member = self.members[number]
        if given is not None:
            kept = set(given.fds())
            for fd in member.given.fds():
                if fd not in kept:
                    os.close(fd)
            member.given = given
            member.segment.wake_fd = given.wake.get(number, -1)
        self._spawn(member, again=True)

    def take_set(self, number: int) -> None:
        """Of a stopped worker: nothing of it is open here any more. `resume` gives it a new one."""
        member = self.members[number]
        if member.process is not None:
            raise ValueError(f"worker {number} runs")
        member.given.close()

    def resume(self, number: int, given: WorkerSet) -> None:
        """The stopped worker goes on, by another set; its tables are as they were."""
        member = self.members[number]
        member.given = given
        member.segment.wake_fd = given.wake.get(number, -1)
        self._spawn(member, again=False)
        self._call(self.on_restart, number)

    # -- periodic work ---------------------------------------------------------------------------------------

    def _wait(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._due = loop.time() + seconds
        self._timer = loop.call_later(seconds, self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """A plain callback, 20 times a second: a task that sleeps costs three times as much."""
        pause = self.limits.tick
        try:
            if self.tick():
                pause = BACKLOG_PAUSE
            pause = min(pause, self.on_turn(max(0.0, loop.time() - self._due)))
        except Exception:
            log.exception("a round of the supervision failed")
        self._wait(loop, pause)

    def tick(self) -> bool:
        """True: there is more for a worker that runs than its ring has room for."""
        backlog = False
        self.quiet = True
        for member in tuple(self.members.values()):
            now = self.clock()
            if member.state != "running" or member.alarm or now - member.heard > self.limits.heartbeat:
                self._attend(member, now)
            if member.segment.quiet() and not member.delivery.waiting:
                continue
            self.quiet = False
            if not member.garbage:
                self._take_events(member)
                self._deliver(member, Delivery.push)
                backlog |= member.delivery.backlog and member.state == "running"
        return backlog

    def _attend(self, member: Member, now: float) -> None:
        if member.state == "waiting" and now >= member.due:
            self._spawn(member, again=True)
        if member.process is not None:
            self._look(member, now)
        if member.alarm and member.state == "running" and not member.restarts.too_many(now):
            member.alarm = False
            log.info("worker %d: has not died so often any more", member.number)
            self._call(self.on_alarm, member.number, None)

    def _look(self, member: Member, now: float) -> None:
        if member.state == "starting":
            if member.segment.state >= shm.WORKER_RUNNING:
                self._enter(member, "running")
            elif now - member.since > self.limits.start:
                log.error("worker %d: not up within %g s, is killed", member.number, self.limits.start)
                self._kill(member)
        elif member.state == "running":
            self._listen(member, now)

    def _listen(self, member: Member, now: float) -> None:
        """To its heart. Too old a beat is looked at twice: after a pause of the whole machine, the worker
        may not have run yet, though the master has."""
        beat = member.segment.heartbeat_ns
        age = now - beat / 1e9
        if age <= self.limits.heartbeat:
            member.stale, member.heard = NO_BEAT, beat / 1e9
        elif member.stale[0] != beat:
            member.stale = (beat, now)
        elif now - member.stale[1] >= self.limits.heartbeat / 4:
            log.error("worker %d: hangs for %.3g s, is killed", member.number, age)
            self._kill(member)

    def _take_events(self, member: Member) -> None:
        try:
            events = member.segment.pop_events(EVENTS_A_TICK)
        except shm.PeerGarbage as error:
            self.reset(member.number, str(error))
            return
        for event in events:
            self._call(self.on_event, member.number, event)

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            # whatever the rest of the daemon thinks of it, supervision goes on
            log.exception("worker %s: a callback failed", arguments[0])


def ran(segment: shm.WorkerSegment) -> float:
    """Seconds that a loop has turned, as a dead worker's segment says."""
    ctl = segment.ctl()
    if ctl["state"] < shm.WORKER_RUNNING:
        return 0.0
    return max(0.0, float(ctl["heartbeat_ns"] - ctl["started_ns"]) / 1e9)
