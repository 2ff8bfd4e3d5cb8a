# SPDX-License-Identifier: Apache-2.0
"""How the daemon comes up, and how it ends.

Scope: the order of the steps and their undoing; the steps themselves are in `startup.py` and `takeover.py`.

    come up   lock, probe, mirror, take over or create, workers, tables, steering, TAP, addresses, control socket
    wind up   VIPs away, wait for traffic to end, program detached, workers ended, local addresses away

What fails while coming up is undone in the reverse order. Workers that were taken over go on, whatever fails here; and
an exception while running leaves everything as it is, for the next master to take over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lbd.master import startup, takeover, template
from lbd.master.api import Servers
from lbd.master.applier import Applier
from lbd.master.capture_hub import CaptureHub
from lbd.master.checks import Checks
from lbd.master.compose import Composer
from lbd.master.course import Course
from lbd.master.exporter import Exporter
from lbd.master.network import Network, lips, vips
from lbd.master.refusal import Refusal
from lbd.master.resources import worker_set
from lbd.master.runtime import Runtime
from lbd.master.slowpath import DUMMY_ADDRESS, MAC, NAME, SlowPath, tap_writer

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

log = logging.getLogger(__name__)

START_LIMIT = 60.0  # seconds for all workers to run
DEATHS_AT_START = 3  # a worker that dies so often is not worth waiting for
GRACE = 1.0  # seconds at most between the VIPs' withdrawal and the end


class Life:
    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    # -- up --------------------------------------------------------------------------------------------------

    async def come_up(self, stack: AsyncExitStack) -> None:
        d = self.daemon
        run_dir = startup.make_run_dir(d.config)
        stack.callback(os.close, startup.lock(run_dir))
        startup.check_host()
        await self._meet_kernel(stack, run_dir)
        stack.push_async_callback(d.supervisor.leave)
        stack.callback(d.standby.close)
        adopted = await takeover.adopt(d.supervisor, d.config, run_dir)
        if adopted is None:
            d.resources = startup.create(d.config, d.network.snapshot())
        else:
            d.resources = adopted
            d.took_over = True
        stack.callback(d.resources.close)
        d.network.know_ports(d.resources.ports, d.resources.sizes)
        d.applier = Applier(d.composer, d.network, d.resources, d.supervisor)
        d.applier.wake = d.wake.set
        d.resources.host.set_stopping(False)
        if d.resources.host.owners()[1] is not None:  # perhaps not for an hour yet
            d.epochs.changed()
        d.exporter = Exporter(d)
        if d.took_over:
            await self._take_workers_over()
        else:
            stack.push_async_callback(self._end_workers)
            await self._start_workers()
        d.network.kernel.is_guarded = d.reopener.is_guarded
        d.capture = CaptureHub(lambda: d.segments.values(), d.tell_capture)
        stack.callback(d.capture.stop)
        await self._open_slow_path(stack)
        stack.push_async_callback(self._leave_addresses)
        await self._hold_addresses()
        stack.push_async_callback(d.reopener.stop)
        stack.callback(d.epochs.stop)
        d.servers = Servers(d)
        stack.push_async_callback(d.servers.stop)
        await d.servers.start()
        d.standby.prepare_soon()

    async def _meet_kernel(self, stack: AsyncExitStack, run_dir: Path) -> None:
        d, loop = self.daemon, asyncio.get_running_loop()
        d.network = Network(d.config, run_dir, loop, d.on_look, d.alarm)
        await d.network.start()
        stack.push_async_callback(d.network.stop)
        await d.network.keep_tags()
        d.runtime = Runtime(run_dir / "runtime.json")
        d.runtime.load(d.config)
        d.health = Checks(loop, d.on_transition, d.on_check)
        stack.callback(d.health.stop)
        d.course = Course(d.runtime, d.config)
        d.composer = Composer(d.config, d.health.is_up, d.runtime.get, d.course.standing)

    async def _start_workers(self) -> None:
        d = self.daemon
        for number in range(d.resources.sizes["workers"]):
            d.supervisor.add(worker_set(d.resources, number, d.config))
        rows = template.read_or_tell(d.config.daemon.run_dir)
        if not rows:
            self._launch()
        # while they start: 0.4 s for 2,000 services. They find the commands in their rings
        d.applier.look(d.network.reach())
        d.applier.apply(first=True)
        if rows:  # they count what there is when they start
            template.give_back(d.resources.host, rows, d.reconciler.placed.values())
            self._launch()
        d.health.configure(d.config, d.runtime)
        d.supervisor.begin()
        await self._wait_for_workers()
        await d.applier.settle()

    def _launch(self) -> None:
        for number in self.daemon.supervisor.members:
            self.daemon.supervisor.start(number)

    async def _take_workers_over(self) -> None:
        d = self.daemon
        found = {number: takeover.read_records(segment) for number, segment in d.segments.items()}
        d.health.configure(d.config, d.runtime, takeover.down_before(d.segments, d.config))
        d.composer.refresh()
        d.applier.look(d.network.reach())
        d.applier.take_over(found)
        for port in d.resources.ports:  # a predecessor may have died before it did so
            d.program.set_socket(port.iface, port.queue, port.fd)
        d.reopener.begin()
        d.supervisor.begin()
        await self._wait_for_workers()
        await d.applier.settle()

    async def _wait_for_workers(self) -> None:
        d = self.daemon
        deadline = time.monotonic() + START_LIMIT
        while not all(map(d.is_alive, d.supervisor.members)):
            now = time.monotonic()
            if d.stopping:
                raise Refusal("stopped while starting")
            for number, member in d.supervisor.members.items():
                if not d.took_over and member.restarts.recent(now) >= DEATHS_AT_START:
                    raise Refusal(f"worker {number} does not start", "the lines above say why")
            if now > deadline:
                if d.took_over:
                    return  # those that do run go on
                raise Refusal(f"workers are not up within {START_LIMIT:g} s", "the lines above may say why")
            await asyncio.sleep(0.01)

    async def _open_slow_path(self, stack: AsyncExitStack) -> None:
        d = self.daemon
        try:
            tap = await d.network.kernel.create_tap(NAME, MAC)
            stack.callback(tap.close)
            await d.network.add_address(tap.ifindex, DUMMY_ADDRESS)
        except OSError as error:
            d.notes.append(f"no exception path to the kernel: {NAME}: {error.strerror or error}")
            log.warning("%s", d.notes[-1])
            return
        d.slow_path = SlowPath(tap_writer(tap))

    async def _hold_addresses(self) -> None:
        d = self.daemon
        wanted = vips(d.config) | lips(d.config)
        await self.reserve_ports()
        try:
            await d.network.take_over(wanted)
        except OSError as error:
            raise Refusal(error.strerror or str(error), "see: ip link; or set manage = false") from None
        await d.network.release(d.wanted_addresses())

    async def reserve_ports(self) -> None:
        d = self.daemon
        for lip in d.config.own_addresses():
            try:
                await d.network.kernel.reserve_ports(lip.ports.lo, lip.ports.hi)
            except PermissionError:
                d.notes[:] = [n for n in d.notes if not n.startswith("ports ")]
                d.notes.append(
                    f"ports {lip.ports} can't be kept from the kernel's own choice, which root alone may: "
                    f"sysctl net.ipv4.ip_local_reserved_ports={lip.ports}"
                )
                log.warning("%s", d.notes[-1])
                return
            except OSError as error:
                raise Refusal(error.strerror or str(error)) from None

    # -- down ------------------------------------------------------------------------------------------------

    async def wind_up(self) -> None:
        """The part of the end that takes its time; the stack of `come_up` undoes the rest."""
        d = self.daemon
        await d.reopener.stop()
        d.resources.host.set_stopping(True)
        d.health.stop()
        await d.network.release(lips(d.config))
        await self._wait_for_silence()
        await self._end_workers()
        await d.templates.finish()
        d.runtime.forget()

    async def _wait_for_silence(self) -> None:
        """Until no packet was received for a moment, or GRACE is over."""
        d = self.daemon
        deadline, last = time.monotonic() + GRACE, -1
        while time.monotonic() < deadline:
            received = sum(d.segments[p.worker].queue(p.iface)["rx_pkts"] for p in d.resources.ports)
            if received == last:
                return
            last = received
            await asyncio.sleep(0.1)

    async def _end_workers(self) -> None:
        """Program first: some drivers crash if a socket goes while packets still come (kernel bug 217712)."""
        d = self.daemon
        if d.state in ("starting", "stopping"):
            d.applier.steering.stop()
            for ifindex in d.resources.program.attached():
                d.resources.program.detach(ifindex)
            await d.supervisor.stop()

    async def _leave_addresses(self) -> None:
        d = self.daemon
        if d.state == "stopping" or (d.state == "starting" and not d.took_over):
            await d.network.release(set())
            await d.network.give_tags_back()
            await d.network.kernel.release_ports()
            await d.network.kernel.set_neighbours([])
