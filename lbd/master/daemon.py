# SPDX-License-Identifier: Apache-2.0
"""The daemon, `lbd run FILE`: everything that the other files of this package do, tied together.

Scope: the order of things. One asyncio loop; nothing here is on a packet's way.

    starting   lock, probe, mirror, take over or create, workers, tables, steering, addresses, control socket
    running    configuration, health, runtime changes and the mirror change the desired state; `apply` carries it out
    stopping   VIPs away, wait for traffic to end, program detached, workers ended, local addresses away

What fails while starting is undone in the reverse order, except for workers that were taken over: they go on.

Order in `apply`: what is not wanted any more is taken off the XDP program first, then workers are told, and what is new
is put on the XDP program when every worker has applied it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from lbd.config import Config, ConfigError, load
from lbd.config.service import Service
from lbd.health.check import Result
from lbd.master import startup, takeover
from lbd.master.api import Servers
from lbd.master.arena import Arena, ArenaFull
from lbd.master.capture_hub import CaptureHub
from lbd.master.checks import Checks
from lbd.master.compose import Composer
from lbd.master.difference import changes, restart_fields
from lbd.master.events import Events
from lbd.master.journal import set_up_logging
from lbd.master.netstate import KINDS
from lbd.master.network import Network, lips, vips
from lbd.master.notify import notify, notify_reloading, watchdog_interval
from lbd.master.numbers import NumbersUsedUp
from lbd.master.reach import Reach
from lbd.master.reconcile import Busy, Placed, Reconciler
from lbd.master.refusal import Refusal
from lbd.master.resources import Resources, needs_restart, worker_set
from lbd.master.restart import Limits
from lbd.master.runtime import Override, Runtime, Where
from lbd.master.slowpath import MAC, NAME, SlowPath, tap_writer
from lbd.master.steering import Steering
from lbd.master.supervise import Supervisor
from lbd.shm import _shm as shm

log = logging.getLogger(__name__)

TICK = 0.05  # seconds between looks at the rings of packets for the kernel
TICK_BUSY = 0.005
SETTLE_LIMIT = 0.2
START_LIMIT = 60.0  # seconds for all workers to run
APPLY_LIMIT = 5.0  # seconds that a reload waits for workers to apply it
GRACE = 1.0  # seconds at most between the VIPs' withdrawal and the end
ALARM_SHOWN = 60.0  # seconds that an alarm stays in the status


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
        self.notes: list[str] = []  # not as wished since the start: copy mode, ordinary pages
        self.steered = 0  # generation that the XDP program shows
        self._alarms: deque[tuple[float, str]] = deque(maxlen=20)
        self._failures: dict[str, str] = {}  # what can't be applied now, by cause
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._apply_due = False
        self._lip_numbers: dict[bytes, int] = {}  # of those that were removed, too
        self._unsettled = 0.0  # since when workers owe something
        self._told = ""  # systemd
        self._tasks: set[asyncio.Task[None]] = set()
        self.observe_check: Callable[[Where, Result, float], None] = lambda where, result, seconds: None
        # from the start on
        self.resources: Resources
        self.reconciler: Reconciler
        self.composer: Composer
        self.steering: Steering
        self.network: Network
        self.runtime: Runtime
        self.health: Checks
        self.capture: CaptureHub
        self.servers: Servers
        self.slow_path: SlowPath | None = None
        self.places: Mapping[int, tuple[int, int]] = {}
        self.events = Events(self)
        limits = Limits(heartbeat=config.workers.heartbeat_limit)
        self.supervisor = Supervisor(
            limits, on_restart=self._on_restart, on_event=self.events.take, on_alarm=self._on_worker_alarm
        )

    # -- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until stop() or a signal. A Refusal if it can't start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self.state = "running"
            self._on_look(self.network.reach(), set(KINDS))  # what came while starting
            notify("READY=1", f"STATUS={self.summary()}")
            log.info("%s: %s", "took over" if self.took_over else "started", self.summary())
            # an exception from here on leaves everything as it is: workers go on, the next master takes them over
            await self._serve()
            self.state = "stopping"
            notify("STOPPING=1")
            log.info("stopping")
            await self._wind_up()

    async def _start(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        run_dir = startup.make_run_dir(self.config)
        stack.callback(os.close, startup.lock(run_dir))
        startup.check_host()
        self.network = Network(self.config, run_dir, loop, self._on_look, self.alarm)
        await self.network.start()
        stack.push_async_callback(self.network.stop)
        self.runtime = Runtime(run_dir / "runtime.json")
        self.runtime.load(self.config)
        self.health = Checks(loop, self._on_transition, self._on_check)
        stack.callback(self.health.stop)
        self.composer = Composer(self.config, self.health.is_up, self.runtime.get)

        stack.push_async_callback(self.supervisor.leave)
        adopted = await takeover.adopt(self.supervisor, self.config, run_dir)
        self.took_over = adopted is not None
        if adopted is None:
            links = self.network.links()
            self.resources, self.notes = startup.create(self.config, self.network.snapshot(), links)
        else:
            self.resources = adopted
        stack.callback(self.resources.close)
        zero_copy = {p.iface for p in self.resources.ports if p.zero_copy}
        self.network.zero_copy = frozenset(zero_copy)
        host = self.resources.host
        self.reconciler = Reconciler(
            self.resources.sizes["services"],
            self.resources.sizes["dests"],
            self.resources.sizes["lips"],
            Arena(self.resources.sizes["arena"], host.write_table),
            Busy(self._service_in_use, self._dest_in_use, self._lip_in_use),
        )
        self.steering = Steering(self.resources.program, self._address_in_use)
        host.set_stopping(False)
        if adopted is None:
            stack.push_async_callback(self._end_workers)
            await self._start_workers()
        else:
            await self._take_workers_over()
        await self._open_slow_path(stack)
        await self._hold_addresses(stack)
        self.capture = CaptureHub(self.segments.values(), self._tell_capture)
        stack.callback(self.capture.stop)
        self.servers = Servers(self)
        await self.servers.start()
        stack.push_async_callback(self.servers.stop)

    async def _start_workers(self) -> None:
        for number in range(self.resources.sizes["workers"]):
            self.supervisor.add(worker_set(self.resources, number, self.config))
        self.health.configure(self.config, self.runtime)
        self._look(self.network.reach())
        self._apply()
        for number in self.supervisor.members:
            self.supervisor.start(number)
        self.supervisor.begin()
        await self._wait_for_workers()
        await self._settle()

    async def _take_workers_over(self) -> None:
        found = {number: takeover.read_records(segment) for number, segment in self.segments.items()}
        self.reconciler.adopt(found.values())
        self.reconciler.generation = max(self.reconciler.generation, self.supervisor.generation() | 1)
        down = takeover.down_before(self.segments, self.config)
        self.health.configure(self.config, self.runtime, down)
        self.composer.refresh()
        self._look(self.network.reach())
        desired = self.composer.desired
        self.reconciler.update(desired)
        self.steering.withdraw(desired)
        for number, records in found.items():
            self.supervisor.send(number, *self.reconciler.full(records))
        self.reconciler.release_adopted()
        self._note_lips()
        self.supervisor.begin()
        await self._wait_for_workers()
        await self._settle()

    async def _wait_for_workers(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not all(m.state == "running" for m in self.supervisor.members.values()):
            if self._stop.is_set():
                raise Refusal("stopped while starting")
            deaths = {n: m.restarts.recent(time.monotonic()) for n, m in self.supervisor.members.items()}
            if not self.took_over and any(n > 2 for n in deaths.values()):
                worker = max(deaths, key=lambda n: deaths[n])
                raise Refusal(f"worker {worker} does not start", "the lines above say why")
            if time.monotonic() > deadline:
                raise Refusal(f"workers are not up within {START_LIMIT:g} s", "the lines above may say why")
            await asyncio.sleep(0.01)

    async def _open_slow_path(self, stack: AsyncExitStack) -> None:
        try:
            tap = await self.network.kernel.create_tap(NAME, MAC)
        except OSError as error:
            self.notes.append(f"no exception path to the kernel: {NAME}: {error.strerror or error}")
            log.warning("%s", self.notes[-1])
            return
        stack.callback(tap.close)
        self.slow_path = SlowPath(tap_writer(tap))

    async def _hold_addresses(self, stack: AsyncExitStack) -> None:
        wanted = vips(self.config) | lips(self.config)
        stack.push_async_callback(self._leave_addresses)
        await self._reserve_ports()
        try:
            await self.network.take_over(wanted)
        except OSError as error:
            raise Refusal(str(error.strerror or error), "see: ip link; or set manage = false") from None
        await self.network.release(wanted)

    async def _reserve_ports(self) -> None:
        for lip in self.config.local_address:
            try:
                await self.network.kernel.reserve_ports(lip.ports.lo, lip.ports.hi)
            except PermissionError:
                text = f"{lip.ports.lo}-{lip.ports.hi}"
                self.alarm(
                    f"ports {text} can't be kept from the kernel's own choice, which root alone may: "
                    f"sysctl net.ipv4.ip_local_reserved_ports={text}"
                )
                return
            except OSError as error:
                raise Refusal(error.strerror or str(error)) from None

    # -- end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    async def _wind_up(self) -> None:
        """The part of the end that takes its time; the rest is undone by the stack of `_start`, last things first."""
        self.resources.host.set_stopping(True)
        self.health.stop()
        await self.network.release(lips(self.config))
        await self._wait_for_silence()
        await self._end_workers()
        self.runtime.forget()

    async def _wait_for_silence(self) -> None:
        """Until no packet was received for a moment, or GRACE is over."""
        deadline, last = time.monotonic() + GRACE, -1
        while time.monotonic() < deadline:
            received = sum(self.segments[p.worker].queue(p.iface)["rx_pkts"] for p in self.resources.ports)
            if received == last:
                return
            last = received
            await asyncio.sleep(0.1)

    def _detach(self) -> None:
        self.steering.stop()
        for ifindex in self.resources.program.attached():
            self.resources.program.detach(ifindex)

    async def _end_workers(self) -> None:
        """Program first: some drivers crash if a socket goes while packets still come (kernel bug 217712)."""
        if self.state in ("starting", "stopping"):
            self._detach()
            await self.supervisor.stop()

    async def _leave_addresses(self) -> None:
        if self.state == "stopping" or (self.state == "starting" and not self.took_over):
            await self.network.release(set())
            await self.network.kernel.release_ports()
            await self.network.kernel.set_neighbours([])

    # -- the desired state -----------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Carries out what the composer has. NumbersUsedUp or ArenaFull, and nothing has changed."""
        desired = self.composer.desired
        batch = self.reconciler.update(desired)
        self.steering.withdraw(desired)
        if batch:
            self.supervisor.broadcast(*batch)
        self._note_lips()
        self._wake.set()

    def _apply_soon(self) -> None:
        """Once for all that happens in this turn of the loop."""

        def apply() -> None:
            self._apply_due = False
            try:
                self._apply()
            except (NumbersUsedUp, ArenaFull) as error:
                self._fail("apply", str(error))
            else:
                self._failures.pop("apply", None)

        if not self._apply_due and self.state in ("running", "reloading"):
            self._apply_due = True
            asyncio.get_running_loop().call_soon(apply)

    async def _settle(self, limit: float = APPLY_LIMIT) -> None:
        """Workers have applied everything: what is new can be steered to them, tables that they left can be reused."""
        generation = self.reconciler.generation
        alive = [n for n in self.supervisor.members if self.is_alive(n)]
        now = time.monotonic()
        if await self.supervisor.wait_applied(generation, limit, alive):
            self._unsettled = 0.0
            self._failures.pop("settle", None)
            if generation == self.reconciler.generation:
                self.steering.extend()
                self.steered = generation
        else:
            self._unsettled = self._unsettled or now
            if now - self._unsettled > APPLY_LIMIT:
                self._fail("settle", "workers do not apply what they were told")
        if await self.supervisor.wait_applied(generation, 0.0):
            self.reconciler.arena.collect(generation)

    def _look(self, reach: Reach, kinds: set[str] | None = None) -> None:
        self.places = reach.places
        links = kinds is None or bool(kinds & {"link", "address"})
        routes = links or "route" in (kinds or ())
        self.composer.look(reach, neighbours=routes or "neighbour" in (kinds or ()), routes=routes)
        for text in reach.alarms:
            self.alarm(text)
        if routes:
            self.network.keep_resolved(reach.next_hops(self.composer.destinations()))

    def _note_lips(self) -> None:
        for address in self.reconciler.lips:
            number = self.reconciler.lips.number(address)
            if number is not None:
                self._lip_numbers[address] = number

    # -- what changes it -------------------------------------------------------------------------------------

    def _on_look(self, reach: Reach, kinds: set[str]) -> None:
        if self.state != "starting":
            self._look(reach, kinds)
            self._apply_soon()

    def _on_transition(self, service: str) -> None:
        self.composer.touch(service)
        self._apply_soon()

    def _on_check(self, where: Where, result: Result, seconds: float) -> None:
        self.observe_check(where, result, seconds)

    def change(self, where: Where, values: Mapping[str, int | str | None]) -> None:
        """A runtime change of a real server."""
        before = self.runtime.get(*where).state
        override = self.runtime.change(where, **values)
        log.info("service %s: real server %s: %s", *where, describe(override))
        if "maint" in (before, override.state):
            self.health.configure(self.config, self.runtime)
        self.composer.touch(where[0])
        self._apply()

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
        async with self._reloading:
            if self.state != "running":
                raise Refusal(f"lbd is {self.state}", "try again in a moment")
            self.state = "reloading"
            notify_reloading()
            try:
                return await self._reload()
            except (ConfigError, Refusal) as error:
                self.rejected += 1
                self.reload_error = str(error)
                log.error("reload refused, nothing has changed: %s", error)
                raise
            finally:
                self.state = "running"
                notify("READY=1", f"STATUS={self.summary()}")

    async def _reload(self) -> list[str]:
        new = load(self.path)
        if fields := restart_fields(needs_restart(self.config), new):
            raise Refusal(f"{', '.join(fields)} can't be changed while lbd runs", "restart lbd, or undo the change")
        old = self.config
        said = changes(old, new)
        for warning in new.warnings:
            log.warning("%s", warning)
        wanted = vips(new) | lips(new)
        try:
            await self.network.hold(wanted)
        except OSError as error:
            await self.network.release(vips(old) | lips(old))
            raise Refusal(error.strerror or str(error), "see: ip link; or set manage = false") from None
        self._configure(new)
        try:
            self._apply()
        except (NumbersUsedUp, ArenaFull) as error:
            self._configure(old)
            await self.network.release(vips(old) | lips(old))
            raise Refusal(str(error)) from None
        if gone := self.runtime.follow(old, new):
            self.composer.touch(*(service for service, _ in gone))
            self._apply()
        await self._settle()
        await self._reserve_ports()
        await self.network.release(wanted | self._lips_leaving(old))
        await self.servers.configure(new)
        logging.getLogger().setLevel(new.daemon.log_level.upper())
        self.reloads += 1
        self.reload_error = ""
        self.loaded = time.time()
        for line in said:
            log.info("reload: %s", line)
        return said

    def _configure(self, config: Config) -> None:
        self.config = self.network.config = config
        self.composer.configure(config)
        self.health.configure(config, self.runtime)
        self._look(self.network.reach())

    def _lips_leaving(self, config: Config) -> set[tuple[str, str]]:
        """Managed local addresses that connections still hold ports of."""
        leaving = self.steering.leaving
        kept = config.model_copy(
            update={"local_address": tuple(a for a in config.local_address if a.address.packed in leaving)}
        )
        return lips(kept)

    # -- workers ---------------------------------------------------------------------------------------------

    def _on_restart(self, worker: int) -> None:
        """The successor has the tables, but no settings; and it may have died in the middle of a command."""
        self.supervisor.send(worker, *self.reconciler.full())
        if self.state != "starting":
            self.capture.repeat()
        self._wake.set()

    def _on_worker_alarm(self, worker: int, text: str | None) -> None:
        if text is None:
            self._failures.pop(f"worker {worker}", None)
        else:
            self._failures[f"worker {worker}"] = text

    def _tell_capture(self, points: int, snaplen: int, service: int) -> None:
        self.supervisor.broadcast(
            shm.capture(self.reconciler.generation, points=points, snaplen=snaplen, svc=service)
        )

    def _service_in_use(self, number: int) -> bool:
        return any(any(s.service_stats(number)[-2:]) for s in self.segments.values())

    def _dest_in_use(self, number: int) -> bool:
        return any(any(s.dest_stats(number)[-2:]) for s in self.segments.values())

    def _lip_in_use(self, number: int) -> bool:
        return any(s.lip_stats(number)[-1] for s in self.segments.values())

    def _address_in_use(self, address: bytes) -> int:
        number = self._lip_numbers.get(address)
        return 0 if number is None else sum(s.lip_stats(number)[-1] for s in self.segments.values())

    # -- while it runs ---------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        watchdog = watchdog_interval()
        next_second = next_watchdog = time.monotonic()
        while not self._stop.is_set():
            busy = False
            try:
                if self.steered != self.reconciler.generation and not self._reloading.locked():
                    await self._settle(SETTLE_LIMIT)
                busy = self.events.pump()
                now = time.monotonic()
                if now >= next_second:
                    next_second = now + 1.0
                    await self._every_second()
                if watchdog is not None and now >= next_watchdog and all(map(self.is_alive, self.segments)):
                    next_watchdog = now + watchdog / 2
                    notify("WATCHDOG=1")
            except Exception:  # forwarding does not depend on what failed here; it is tried again
                log.exception("the daemon's round failed")
                await asyncio.sleep(1.0)
            try:
                await asyncio.wait_for(self._wake.wait(), TICK_BUSY if busy else TICK)
            except TimeoutError:
                pass
            self._wake.clear()

    async def _every_second(self) -> None:
        if self.steering.leaving:
            self.steering.tend()
            if not self.steering.leaving:
                await self.network.release(vips(self.config) | lips(self.config))
        if (text := self.summary()) != self._told:
            self._told = text
            notify(f"STATUS={text}")

    # -- what it says of itself ------------------------------------------------------------------------------

    def alarm(self, text: str) -> None:
        log.warning("%s", text)
        self._alarms.append((time.monotonic(), text))

    def _fail(self, cause: str, text: str) -> None:
        if self._failures.get(cause) != text:
            log.error("%s", text)
        self._failures[cause] = text

    @property
    def segments(self) -> dict[int, shm.WorkerSegment]:
        return {n: m.segment for n, m in sorted(self.supervisor.members.items())}

    def is_alive(self, worker: int) -> bool:
        return self.supervisor.members[worker].state == "running"

    @property
    def ready(self) -> bool:
        return (
            self.state in ("running", "reloading")
            and all(map(self.is_alive, self.segments))
            and self.steered == self.reconciler.generation
        )

    def placed(self, service: Service) -> Placed | None:
        return self.reconciler.placed.get((service.vip.packed, service.port, service.proto))

    def connections(self, worker: int, limit: int, service: int | None) -> list[dict[str, Any]]:
        from lbd import _fastpath

        base = shm.SET_TIMEOUT_BASE
        timeouts = {n - base: ms for n, ms in self.composer.desired.settings.items() if n >= base}
        found: list[dict[str, Any]] = _fastpath.connections(
            self.resources.conns[worker], self.resources.sizes, limit, service, timeouts
        )
        return found

    def problems(self) -> list[str]:
        """Sentences; not empty means degraded."""
        found = [*self.notes, *self._failures.values()]
        found += [f"worker {n} is {self.supervisor.members[n].state}" for n in self.segments if not self.is_alive(n)]
        found += self.events.network_problems()
        for s in self.config.service:
            if not any(r.up and r.weight for r in self.composer.service(s.name).real_servers):
                found.append(f"service {s.name} has no real server that can take a connection")
        if self.reload_error:
            found.append(f"the last reload was refused: {self.reload_error.splitlines()[0]}")
        now = time.monotonic()
        return found + [text for at, text in self._alarms if now - at < ALARM_SHOWN and text not in found]

    def summary(self) -> str:
        alive = sum(map(self.is_alive, self.segments))
        down = sum(not s.up for s in self.health.states().values())
        text = f"{alive} workers, {len(self.config.service)} services"
        return f"{text}, {down} real servers down" if down else text


def describe(override: Override) -> str:
    return override.state + ("" if override.weight is None else f", weight {override.weight}")


def main(path: str) -> int:
    """`lbd run FILE`: 0 after a stop, 1 if it can't start."""
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    set_up_logging(config.daemon.log_level)
    for warning in config.warnings:
        log.warning("%s", warning)
    daemon = Daemon(config, path)
    try:
        uvloop.run(daemon.run())
    except (Refusal, OSError, shm.SegmentError) as error:  # XdpError is an OSError
        if daemon.state != "starting":
            raise
        log.error("can't start: %s", error, exc_info=log.isEnabledFor(logging.DEBUG))
        return 1
    return 0
