# SPDX-License-Identifier: Apache-2.0
"""After the death of a master: taking its workers over, with all that they hold, without a packet lost.

Scope: deciding whether what runs fits this configuration, and reading back what it means (numbers, tables, who is
down). The descriptors come through `supervise.adopt`, the order of the rest is `daemon.py`'s.

    no worker runs                        nothing to take over: a fresh start
    workers run, and fit                  taken over; those that died meanwhile are started again over their tables
    workers run, but were made for other  ended, then a fresh start. Connections in files that still fit come back
      sizes, interfaces or cores
    a worker that can't be understood     a Refusal: whoever started it has to stop it
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from lbd.config import Config
from lbd.master import template
from lbd.master.desired import DestKey, ServiceKey
from lbd.master.difference import restart_fields
from lbd.master.handover import WorkerSet
from lbd.master.reconcile import Records
from lbd.master.refusal import Refusal
from lbd.master.resources import Resources, from_worker, worker_set
from lbd.master.runtime import Where
from lbd.master.supervise import Supervisor
from lbd.shm import _shm as shm
from lbd.xdp._xsk import Program, XdpError

log = logging.getLogger(__name__)

QUIET_LIMIT = 2.0  # seconds for a worker to apply what the dead master had told it


async def adopt(supervisor: Supervisor, config: Config, run_dir: Path) -> Resources | None:
    found = supervisor.adopt(run_dir)
    for text in found.ended.values():
        log.warning("a worker of a dead predecessor was hung: %s", text)
    if found.refused:
        raise Refusal(next(iter(found.refused.values())), "stop it with the lbd that started it, or kill it")
    if not found.workers:
        return None
    given = supervisor.members[found.workers[0]].given
    different = restart_fields(given.extra.get("restart", {}), config)
    if different:
        log.warning("running workers differ from the configuration in %s: they are ended", ", ".join(different))
        await end(supervisor, run_dir)
        return None
    try:
        resources = from_worker(given, Program.adopt)
    except (KeyError, TypeError, ValueError, shm.SegmentError, XdpError) as error:
        raise Refusal(f"running workers can't be taken over: {error}", "stop lbd, then start it") from None
    for number in range(resources.sizes["workers"]):
        if number not in supervisor.members:
            log.warning("worker %d died meanwhile: it is started again", number)
            supervisor.add(worker_set(resources, number, config))
            supervisor.start(number)
    await wait_until_quiet(supervisor)
    return resources


async def end(supervisor: Supervisor, run_dir: Path) -> None:
    """Their sockets and the program go with them."""
    given = next(iter(supervisor.members.values())).given
    await supervisor.stop()
    keep_templates(run_dir, given)
    for number in list(supervisor.members):
        supervisor.remove(number)


def keep_templates(run_dir: Path, given: WorkerSet) -> None:
    """Workers that have just ended had them."""
    try:
        shm.HostSegment.adopt(os.dup(given.host), None, True).close()  # it is one
        template.keep(run_dir, given.segment, given.host)
    except (shm.SegmentError, OSError) as error:
        log.warning("clients may get other real servers: %s", error)


async def wait_until_quiet(supervisor: Supervisor) -> None:
    """Commands under way would change the records while they are read."""
    deadline = time.monotonic() + QUIET_LIMIT
    for number in supervisor.members:
        while supervisor.segment(number).pending() and time.monotonic() < deadline:  # noqa: ASYNC110 (nor has a ring)
            await asyncio.sleep(0.005)


def read_records(segment: shm.WorkerSegment) -> Records:
    services: dict[int, ServiceKey] = {}
    extents = []
    for number, s in segment.services():
        services[number] = (s["addr"], s["port"], s["proto"])
        if s["table_len"]:
            extents.append((s["table_off"], s["table_len"]))
    dests: dict[int, DestKey] = {
        number: (services[d["svc"]], d["addr"], d["port"]) for number, d in segment.dests() if d["svc"] in services
    }
    lips = {number: lip["addr"] for number, lip in segment.lips()}
    return Records(services, dests, lips, extents, segment.gen_applied)


def down_before(segments: Mapping[int, shm.WorkerSegment], config: Config) -> set[Where]:
    """Real servers that the dead master had found down."""
    down: set[tuple[bytes, int, int, bytes, int]] = set()
    for segment in segments.values():
        services = dict(segment.services())
        for _, d in segment.dests():
            if not d["flags"] & shm.DEST_UP and d["svc"] in services:
                s = services[d["svc"]]
                down.add((s["addr"], s["port"], s["proto"], d["addr"], d["port"]))
    return {
        (s.name, str(r.address))
        for s in config.service
        for r in s.real_server
        if (s.vip.packed, s.port, s.proto, r.address.addr.packed, r.address.port) in down
    }
