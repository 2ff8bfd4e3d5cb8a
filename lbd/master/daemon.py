# SPDX-License-Identifier: Apache-2.0
"""The daemon, `lbd run FILE`: what it consists of, and what changes it while it runs.

Scope: one asyncio loop on which configuration, health, operators and the mirrored kernel change the desired state, and
`applier.py` carries it out. Coming up and going down is `life.py`'s; nothing here is on a packet's way.

    starting  ->  running  <->  reloading
                     |
                     +->  stopping          by a signal or POST /v1/stop
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import uvloop

from lbd._fastpath import connections
from lbd.config import Config, ConfigError, load
from lbd.config.service import Service
from lbd.health.check import Result
from lbd.master import crew, garbage
from lbd.master.api import Servers
from lbd.master.applier import FULL, Applier
from lbd.master.capture_hub import CaptureHub
from lbd.master.checks import Checks
from lbd.master.compose import Composer
from lbd.master.condition import summary
from lbd.master.course import Course
from lbd.master.difference import changes, restart_fields
from lbd.master.epoch import Epochs
from lbd.master.events import Events
from lbd.master.exporter import Exporter
from lbd.master.journal import set_up_logging
from lbd.master.life import Life
from lbd.master.netstate import KINDS
from lbd.master.network import Held, Network, lips, vips
from lbd.master.notify import notify, notify_reloading, watchdog_interval
from lbd.master.reach import Reach
from lbd.master.reconcile import Placed, Reconciler
from lbd.master.refusal import Refusal
from lbd.master.reopen import Reopener
from lbd.master.resources import CREW, Port, Resources, needs_restart
from lbd.master.restart import Limits
from lbd.master.runtime import Override, Runtime, Where
from lbd.master.slowpath import SlowPath
from lbd.master.standby import Standby
from lbd.master.startup import group_id
from lbd.master.supervise import NEVER, Supervisor, no_turn
from lbd.master.template import Keeper
from lbd.shm import _shm as shm

log = logging.getLogger(__name__)

TURN_BUSY = 0.005  # seconds between looks at the rings of packets for the kernel, while there are any
MOVE = 0.1  # between looks at the course of real servers, while one moves
RETRY = 0.05  # while workers have not applied something, or one does not run
SETTLE_LIMIT = 0.2


class Daemon:
    def __init__(self, config: Config, path: str) -> None:
        self.config = config
        self.path = path
        self.pid = os.getpid()
        self.state = "starting"
        self.started = self.loaded = time.time()
        self.took_over = False
        self.reloads = self.rejected = 0
        self.reload_error = ""
        self.notes: list[str] = []  # not as well as might be
        self.alarms: deque[tuple[float, str]] = deque(maxlen=20)
        self.stopping = False
        self.wake = asyncio.Event()
        self.reloading = asyncio.Lock()  # and reopening
        self._told = ""  # systemd
        self._pump_again = 0.0  # after an error
        self._tasks: set[asyncio.Task[None]] = set()
        self.events = Events(self)
        self.reopener = Reopener(self)
        self.epochs = Epochs(self)
        self.templates = Keeper(self)
        limits = Limits(heartbeat=config.workers.heartbeat_limit)
        self.standby = Standby()
        self.supervisor = Supervisor(
            limits,
            on_restart=self._on_restart,
            on_event=self.events.take,
            on_alarm=self._on_worker_alarm,
            launch=self.standby,
        )
        # from `Life.come_up` on
        self.resources: Resources
        self.network: Network
        self.runtime: Runtime
        self.course: Course
        self.health: Checks
        self.composer: Composer
        self.applier: Applier
        self.exporter: Exporter
        self.capture: CaptureHub
        self.servers: Servers
        self.slow_path: SlowPath | None = None

    # -- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until stop() or a signal. A Refusal if it can't start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self.life = Life(self)
        async with AsyncExitStack() as stack:
            with garbage.resting():
                await self.life.come_up(stack)
            self.state = "running"
            self.on_look(self.network.reach(), set(KINDS))  # what came while starting
            notify("READY=1", f"STATUS={summary(self)}")
            log.info("%s: %s", "took over" if self.took_over else "started", summary(self))
            await self._serve()
            async with self.reloading:
                self.state = "stopping"
            notify("STOPPING=1")
            log.info("stopping")
            await self.life.wind_up()

    def stop(self) -> None:
        self.stopping = True
        self.wake.set()

    async def _serve(self) -> None:
        watchdog = watchdog_interval()
        next_second = time.monotonic()
        next_watchdog = next_second if watchdog is not None else math.inf
        self.supervisor.on_turn = self._turn
        while not self.stopping:
            moving = False
            try:
                if not self.applier.settled and not self.reloading.locked():
                    await self.applier.settle(SETTLE_LIMIT)
                moving = self._move()
                now = time.monotonic()
                if now >= next_second:
                    next_second = now + 1.0
                    await self._every_second()
                if watchdog is not None and now >= next_watchdog and all(map(self.is_alive, self.segments)):
                    next_watchdog = now + watchdog / 2
                    notify("WATCHDOG=1")
            except Exception:  # forwarding does not depend on what failed here; it is tried again
                log.exception("a round of the daemon failed")
                await asyncio.sleep(1.0)
            due = max(RETRY, min(next_second, next_watchdog) - time.monotonic())
            await self._pause(min(due, RETRY if not self.applier.settled else MOVE if moving else due))
        self.supervisor.on_turn = no_turn

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.wake.wait(), seconds)
        except TimeoutError:
            pass
        self.wake.clear()

    def _turn(self, late: float) -> float:
        """What workers have for the kernel; when to look again, if before their next supervision."""
        self.exporter.lagged(late)
        if self.supervisor.quiet or time.monotonic() < self._pump_again:
            return NEVER
        try:
            return TURN_BUSY if self.events.pump() else NEVER
        except Exception:
            log.exception("packets for the kernel")
            self._pump_again = time.monotonic() + 1.0
            return NEVER

    def _move(self) -> bool:
        """Time goes on for real servers that are drained, or begin slowly; False: for none. Whatever begins wakes the daemon."""
        if names := self.course.moved():
            self.composer.touch(*names)
            self.applier.apply_soon()
        return self.course.is_moving

    async def _every_second(self) -> None:
        self.reopener.tend()
        self.templates.look(time.monotonic())
        steering = self.applier.steering
        leaving = steering.leaving
        if leaving or steering.outlived:
            steering.tend()
            if steering.leaving != leaving:
                await self.network.release(self.wanted_addresses())
        if (text := summary(self)) != self._told:
            self._told = text
            notify(f"STATUS={text}")

    # -- what changes the desired state ----------------------------------------------------------------------

    def on_look(self, reach: Reach, kinds: set[str]) -> None:
        if self.state != "starting":
            self.applier.look(reach, kinds)
            self.applier.apply_soon()
            self.reopener.look(kinds)
            self.epochs.look(kinds)

    def on_transition(self, where: Where, up: bool) -> None:
        if up:
            self.course.returned(where)
        else:
            self.course.left(where)
        self.composer.touch(where[0])
        if self.state != "starting":
            self.applier.apply_soon()

    def on_check(self, where: Where, result: Result, seconds: float) -> None:
        self.exporter.checked(where[0], seconds)

    def change(self, where: Where, values: Mapping[str, Any]) -> None:
        """A runtime change of a real server: `weight`, `state`, `drain`."""
        before = self.runtime.get(*where).state
        override = self.runtime.change(where, **values)
        if "weight" in values or override.state == "maint":
            self.course.left(where)
        elif before == "maint":
            self.course.returned(where)
        log.info("service %s: real server %s: %s", *where, describe(override))
        if "maint" in (before, override.state):
            self.health.configure(self.config, self.runtime)
        self.composer.touch(where[0])
        self.applier.apply()

    def _on_hangup(self) -> None:
        async def reload() -> None:
            try:
                await self.reload()
            except (ConfigError, Refusal):
                pass  # said already

        task = asyncio.get_running_loop().create_task(reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self) -> list[str]:
        """What changed, in sentences. ConfigError or Refusal, and nothing has."""
        async with self.reloading:
            if self.state != "running":
                raise Refusal(f"lbd is {self.state}", "try again in a moment")
            self.state = "reloading"
            notify_reloading()
            try:
                with garbage.resting():
                    return await self._reload()
            except (ConfigError, Refusal) as error:
                self.rejected += 1
                self.reload_error = str(error)
                log.error("reload refused, nothing has changed: %s", error)
                raise
            finally:
                self.state = "running"
                notify("READY=1", f"STATUS={summary(self)}")

    async def _reload(self) -> list[str]:
        # in a thread: a second for thousands of services, in which health checks go on
        before = old = self.config
        self.exporter.forget()
        new = await asyncio.to_thread(lambda: load(self.path).keeping(before))
        for warning in new.warnings:
            log.warning("%s", warning)
        fields = restart_fields(needs_restart(old), new)
        if rest := [name for name in fields if name not in CREW]:
            raise Refusal(f"{', '.join(rest)} can't be changed while lbd runs", "restart lbd, or undo the change")
        if new.daemon.group is not None:
            group_id(new.daemon.group)
        if fields:
            await crew.change(self, old.model_copy(update={"workers": new.workers}))
            old = self.config
        wanted = vips(new) | lips(new)
        try:
            await self.network.hold(wanted)
            self._configure(new)
            self.applier.apply()
        except (*FULL, OSError) as error:
            self._configure(old)
            self.applier.apply_soon()
            await self.network.release(vips(old) | lips(old))
            raise Refusal(str(error) if isinstance(error, FULL) else error.strerror or str(error)) from None
        if gone := self.runtime.follow(old, new):
            self.composer.touch(*(service for service, _ in gone))
            self.applier.apply()
        await self.applier.settle()
        await self.network.release(self.wanted_addresses())
        await self.life.reserve_ports()
        await self.servers.configure(new)
        self.supervisor.limits = replace(self.supervisor.limits, heartbeat=new.workers.heartbeat_limit)
        logging.getLogger().setLevel(new.daemon.log_level.upper())
        self.reloads += 1
        self.reload_error = ""
        self.loaded = time.time()
        said = changes(before, new)
        for line in said:
            log.info("reload: %s", line)
        return said

    def _configure(self, config: Config) -> None:
        self.config = self.network.config = config
        self.course.configure(config)
        self.composer.configure(config)
        self.health.configure(config, self.runtime)
        self.applier.look(self.network.reach())

    def wanted_addresses(self) -> set[Held]:
        """Managed ones; and those that are not wanted any more, but that connections have."""
        wanted = vips(self.config) | lips(self.config)
        if leaving := self.applier.steering.leaving:  # mostly there are none, and thousands held
            wanted |= {h for h in self.network.held if ip_interface(h[1]).ip.packed in leaving}
        return wanted

    # -- workers ---------------------------------------------------------------------------------------------

    def _on_restart(self, worker: int) -> None:
        self.applier.tell_again(worker)
        if self.state != "starting":
            self.capture.repeat()

    def _on_worker_alarm(self, worker: int, text: str | None) -> None:
        self.applier.failures.pop(f"worker {worker}", None)
        if text is not None:
            self.applier.failures[f"worker {worker}"] = text

    def tell_capture(self, points: int, snaplen: int, service: int) -> None:
        command = shm.capture(self.reconciler.generation, points=points, snaplen=snaplen, svc=service)
        self.supervisor.broadcast(command)

    async def capturing(self) -> None:
        """Until the workers do what tell_capture said; one that hangs is not waited for."""
        await self.supervisor.wait_applied(self.reconciler.generation, 1.0)

    # -- what others ask -------------------------------------------------------------------------------------

    def alarm(self, text: str) -> None:
        log.warning("%s", text)
        self.alarms.append((time.monotonic(), text))

    @property
    def segments(self) -> dict[int, shm.WorkerSegment]:
        return {n: m.segment for n, m in sorted(self.supervisor.members.items())}

    @property
    def ports(self) -> list[Port]:
        return self.resources.ports

    @property
    def program(self) -> Any:
        return self.resources.program

    @property
    def reconciler(self) -> Reconciler:
        return self.applier.reconciler

    @property
    def netlink_events(self) -> Mapping[str, int]:
        return self.network.mirror.events

    def is_alive(self, worker: int) -> bool:
        return self.supervisor.members[worker].state == "running"

    @property
    def ready(self) -> bool:
        """All workers forward, and the configuration is applied everywhere."""
        running = self.state in ("running", "reloading")
        return running and self.applier.settled and all(map(self.is_alive, self.segments))

    def placed(self, service: Service) -> Placed | None:
        return self.applier.placed(service)

    def connections(self, worker: int, limit: int, service: int | None) -> list[dict[str, Any]]:
        base = shm.SET_TIMEOUT_BASE
        timeouts = {n - base: ms for n, ms in self.composer.desired.settings.items() if n >= base}
        file = self.resources.conns[worker]
        found: list[dict[str, Any]] = connections(file, self.resources.sizes, limit, service, timeouts)
        return found


def describe(override: Override) -> str:
    text = override.state + ("" if override.weight is None else f", weight {override.weight}")
    if (drain := override.drain) is None:
        return text
    until = time.strftime("%H:%M:%S", time.localtime(drain.deadline))
    stages = f" in {drain.stages} stages" if drain.stages > 1 else ""
    return f"{text}{stages} until {until}, then connections are {'reset' if drain.reset else 'forgotten'}"


def main(path: str) -> int:
    """`lbd run FILE`: 0 after a stop, 1 if it can't start."""
    garbage.collect_seldom()
    try:
        with garbage.resting():
            config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    set_up_logging(config.daemon.log_level)
    for warning in config.warnings:
        log.warning("%s", warning)
    daemon = Daemon(config, path)
    del config  # the first of many
    try:
        uvloop.run(daemon.run())
    except (Refusal, OSError, shm.SegmentError, *FULL) as error:
        if daemon.state != "starting":
            raise
        if daemon.stopping:
            log.info("stopped while starting")
            return 0
        log.error("can't start: %s", error, exc_info=log.isEnabledFor(logging.DEBUG))
        return 1
    return 0
