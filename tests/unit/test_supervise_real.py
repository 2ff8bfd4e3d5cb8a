# SPDX-License-Identifier: Apache-2.0
"""The real worker process (lbd.worker around lbd._fastpath), supervised. It has no queue: no root needed."""

import asyncio
import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest

from lbd.master.process import spawn
from lbd.master.restart import Limits
from lbd.master.supervise import Supervisor
from lbd.shm import _shm as shm

fastpath = pytest.importorskip("lbd._fastpath", reason="needs the built extension lbd._fastpath (make build)")

spec = importlib.util.spec_from_file_location("fake_master", Path(__file__).with_name("fake_master.py"))
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)

VIP, SERVER = bytes([192, 0, 2, 10]), bytes([10, 0, 1, 1])


async def until(condition, limit: float = 30.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.005)


@pytest.fixture
async def supervisor(tmp_path):
    made = Supervisor(Limits(heartbeat=5, start=60, stop=20, answer=20, deaths=100), launch=spawn)
    given = fake.make_set(tmp_path, 0)
    os.ftruncate(given.conn, fastpath.conn_bytes(fake.SIZES))
    given.ports.clear()
    given.via.clear()
    made.add(given)
    made.begin()
    yield made
    for member in made.members.values():
        if member.process is not None:
            member.state = "stopping"
            member.process.kill()
            await member.gone.wait()
    await made.leave()


async def running(supervisor) -> None:
    await until(lambda: supervisor.members[0].state == "running")


def commands(gen: int) -> list[bytes]:
    return [
        shm.setting(shm.SET_POLL_MODE, 2, gen),
        shm.iface_set(1, gen, mac=bytes(6), mtu=1500, ifindex=7),
        shm.neigh_set(gen, iface=1, af=4, addr=SERVER, mac=bytes.fromhex("020000000001")),
        shm.route_set(gen, af=4, prefix=bytes([10, 0, 1, 0]), plen=24, iface=1),
        shm.lip_set(0, gen, af=4, addr=bytes([10, 0, 0, 10]), port_lo=10240, port_hi=65535),
        shm.dest_set(5, gen, af=4, addr=SERVER, port=8080, svc=3, weight=2),
        shm.svc_set(3, gen, af=4, addr=VIP, port=80, proto=6, sched=shm.SCHED_SEQ, table_len=1),
        shm.nop(gen + 1),
    ]


async def test_applies_commands_and_shows_what_it_sees(supervisor):
    supervisor.start(0)
    await running(supervisor)
    supervisor.send(0, *commands(2))
    assert await supervisor.wait_applied(3, 20)
    segment = supervisor.segment(0)
    assert supervisor.applied(0) == 3
    assert [(n, s["addr"], s["port"], s["table_len"]) for n, s in segment.services()] == [(3, VIP, 80, 1)]
    assert [(n, d["addr"], d["port"], d["weight"]) for n, d in segment.dests()] == [(5, SERVER, 8080, 2)]
    assert [lip["port_lo"] for _, lip in segment.lips()] == [10240]
    assert [(n, i["ifindex"], i["mtu"]) for n, i in segment.ifaces()] == [(1, 7, 1500)]
    assert [(n["addr"], n["mac"]) for _, n in segment.neighbours()] == [
        (SERVER, bytes.fromhex("020000000001"))
    ]
    assert [(r["prefix"], r["plen"], r["iface"]) for _, r in segment.routes()] == [
        (bytes([10, 0, 1, 0]), 24, 1)
    ]
    assert segment.counters()["commands"] == 8 and segment.counters()["bad_commands"] == 0
    supervisor.send(0, shm.svc_del(3, 4), shm.sweep(shm.SWEEP_DEST, 4), shm.nop(5))
    assert await supervisor.wait_applied(5, 20)
    assert segment.services() == segment.dests() == [] and len(segment.lips()) == 1


async def test_sleeping_worker_is_woken_and_beats_its_heart(supervisor):
    supervisor.start(0)
    await running(supervisor)
    segment = supervisor.segment(0)
    await until(lambda: segment.ctl()["sleeping"])
    first = segment.heartbeat_ns
    await until(lambda: segment.heartbeat_ns > first + 200_000_000)
    for gen in range(10, 60):
        supervisor.send(0, shm.nop(gen))
        assert await supervisor.wait_applied(gen, 20)


async def test_killed_again_and_again_and_no_command_is_lost(supervisor):
    supervisor.start(0)
    for round_ in range(10):
        await until(lambda: supervisor.members[0].process is not None)
        gen = 2 + 2 * round_
        supervisor.send(0, *commands(gen))
        if round_ % 2:
            await running(supervisor)
        os.kill(supervisor.members[0].process.pid, signal.SIGKILL)
        await until(lambda: supervisor.segment(0).restarts == round_ + 1)  # noqa: B023 (called at once)
        assert await supervisor.wait_applied(gen + 1, 30)
    segment = supervisor.segment(0)
    assert [(n, s["gen"]) for n, s in segment.services()] == [(3, 20)] and segment.gen_applied == 21
    assert segment.broken_rings() == [] and len(segment.neighbours()) == 1


async def test_stops_by_command_and_by_sigterm(supervisor):
    supervisor.start(0)
    await running(supervisor)
    supervisor.send(0, shm.nop(7))
    await supervisor.stop()
    assert supervisor.members[0].state == "stopped" and supervisor.segment(0).state == shm.WORKER_STOPPED
    assert supervisor.applied(0) == 7
    supervisor.start(0)
    await running(supervisor)
    supervisor.members[0].state = "stopping"  # so that its end is no death
    os.kill(supervisor.members[0].process.pid, signal.SIGTERM)
    await until(lambda: supervisor.members[0].state == "stopped")
    assert supervisor.segment(0).state == shm.WORKER_STOPPED
