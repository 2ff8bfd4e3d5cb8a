# SPDX-License-Identifier: Apache-2.0
"""Other workers while lbd runs: more or fewer of them, on other cores, by another priority.

Scope: ending those that there are and starting others over the same connections. How these are found by their new owners is
`heritage.py`'s; what is inside workers' tables is told to the new ones as to any that start.

    checked     queues enough, none too many; no other change of owners is still fresh      -> refused, nothing has changed
    stopped     sockets closed; the XDP program stays and drops what is lbd's meanwhile
    furnished   segments, frames, sockets for the new ones; or, if that fails, for the old ones again
    started     and when they know all services, the XDP program gives them packets

NB: the kernel, which has the addresses, never sees a packet of a service's: it would answer RST.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lbd._fastpath import templates_carry
from lbd.config import Config
from lbd.master.nic import Nic
from lbd.master.refusal import Refusal
from lbd.master.resources import worker_set
from lbd.master.rss import ownership, same
from lbd.master.sockets import close_ports, queue_counts
from lbd.master.startup import check_interfaces, furnish, renew
from lbd.shm._shm import SegmentError
from lbd.xdp._xsk import XdpError

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

log = logging.getLogger(__name__)

START_LIMIT = 10.0


def check(d: Daemon, config: Config) -> tuple[dict[int, Nic], dict[str, int]]:
    """NICs by port number, and their queues; a Refusal if these workers can't be."""
    if d.epochs.waiting and config.workers.number != d.config.workers.number:
        raise too_soon(d, config)
    snapshot = d.network.snapshot()
    check_interfaces(config, snapshot)
    nics, _ = d.reopener.plan(config)
    queues = queue_counts(config, {c.name: c for c in snapshot.channels}, [nic.name for nic in nics.values()])
    if d.applier.steering.leaving:
        raise Refusal(
            "services or local addresses that were removed have connections still, which other workers would know nothing of",
            "wait until they are over, or restart lbd",
        )
    owners = ownership(list(queues), snapshot.rss, config.workers.number, queues)
    if d.epochs.waiting and not same(owners, d.epochs.in_force()):
        raise too_soon(d, config)
    return nics, queues


def too_soon(d: Daemon, config: Config) -> Refusal:
    when = time.strftime("%H:%M", time.localtime(time.time() + d.epochs.waiting + 60))
    return Refusal(
        f"flows got other owners less than an hour ago: with {config.workers.number} workers, connections of before that"
        " would be lost",
        f"reload after {when}, in {d.epochs.waiting / 60:.0f} minutes; or restart lbd, which may lose them",
    )


async def change(d: Daemon, config: Config) -> None:
    """`config`: what runs, but for its workers. A Refusal, and the old ones run again."""
    await d.network.mirror.look_at_queues()
    plan, back = check(d, config), d.reopener.plan(d.config)
    began = time.monotonic()
    owners = d.epochs.in_force()
    await d.supervisor.stop()
    try:
        await _replace(d, config, *plan)
    except (Refusal, XdpError, SegmentError, OSError) as error:
        log.error("other workers can't be started: %s; those of before are", error)
        try:
            await d.supervisor.stop()
            await _replace(d, d.config, *back)
        except (Refusal, XdpError, SegmentError, OSError) as again:
            d.alarm(f"nor can those of before: {again}; lbd ends")
            d.stop()
        raise error if isinstance(error, Refusal) else Refusal(f"other workers can't be started: {error}") from None
    d.config = d.network.config = config
    if not same(d.epochs.in_force(), owners):
        d.epochs.changed()
    log.warning("workers were replaced: %d now, packets were dropped for %.2f s", len(d.segments), time.monotonic() - began)


async def _replace(d: Daemon, config: Config, nics: dict[int, Nic], queues: dict[str, int]) -> None:
    for number in list(d.supervisor.members):
        d.supervisor.remove(number)
    r = d.resources
    close_ports(r.ports)
    r.area.close()  # there may not be memory for two
    with ExitStack() as stack:
        snapshot = d.network.snapshot()
        # in a thread: queues that were just closed may be busy for a second
        sizes = config.sizes() | {name: r.sizes[name] for name in ("frame_size", "chains")}  # as the program was loaded
        fresh = await asyncio.to_thread(furnish, stack, config, snapshot, nics, queues, sizes)
        fresh.host.copy_tables(r.host)
        templates_carry(fresh.host.fd, r.host.fd)
        stack.pop_all()
    r.clear_out()
    r.become(fresh)
    await _start(d, config, nics)


async def _start(d: Daemon, config: Config, nics: dict[int, Nic]) -> None:
    d.network.know_ports(d.resources.ports, d.resources.sizes)
    for number in range(d.resources.sizes["workers"]):
        d.supervisor.add(worker_set(d.resources, number, config))
    for number in d.supervisor.members:
        d.supervisor.start(number)
    d.applier.look(d.network.reach())
    for number in d.supervisor.members:
        d.applier.tell_again(number)
    d.capture.repeat()
    d.reopener.begin()
    await d.supervisor.wait_running(START_LIMIT)
    await d.applier.settle()
    d.reopener.attach(nics)
    renew(d.program, d.network.mirror.links(), d.resources.ports)
    for port in d.resources.ports:  # not before: what workers don't know as a service's they give to the kernel
        d.program.set_socket(port.iface, port.queue, port.fd)
