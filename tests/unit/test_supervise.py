# SPDX-License-Identifier: Apache-2.0
"""Supervision of real processes (fake_worker.py), and of a puppet where time is faked."""

import asyncio
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lbd.master.handover import SOCKET_NAME
from lbd.master.restart import Limits, Restarts
from lbd.master.supervise import Supervisor
from lbd.shm import _shm as shm

spec = importlib.util.spec_from_file_location("fake_master", Path(__file__).with_name("fake_master.py"))
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)

PATIENT = Limits(
    heartbeat=30, start=60, stop=20, answer=20
)  # where a test is not about time: a loaded machine is slow


async def until(condition: Callable[[], object], limit: float = 30.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.005)


def exists(pid: int) -> bool:
    """Not gone, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def worker_pid(run_dir: Path, number: int) -> int:
    """Who listens at a worker's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(run_dir / SOCKET_NAME.format(number)))
        return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def inode(path: Path) -> int:
    return path.stat().st_ino


def files(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


class Master:
    """A supervisor with what it told, and helpers for one worker, number 0."""

    def __init__(self, run_dir: Path, limits: Limits) -> None:
        self.run_dir = run_dir
        self.restarted: list[int] = []
        self.events: list[tuple[int, int]] = []
        self.alarms: list[str | None] = []
        self.supervisor = Supervisor(
            limits,
            launch=fake.fake_launch,
            on_restart=self.restarted.append,
            on_event=lambda number, event: self.events.append((number, event["op"])),
            on_alarm=lambda number, text: self.alarms.append(text),
        )

    def add(self, number: int = 0, **extra) -> None:
        self.supervisor.add(fake.make_set(self.run_dir, number, **extra))
        self.supervisor.start(number)

    def member(self, number: int = 0):
        return self.supervisor.members[number]

    def pid(self, number: int = 0) -> int:
        return self.member(number).process.pid

    def state(self, number: int = 0) -> str:
        return self.member(number).state

    async def running(self, number: int = 0) -> None:
        await until(lambda: self.state(number) == "running")

    def applied(self, number: int = 0) -> list[int]:
        """Generations in the order in which the worker applied them."""
        lines = (self.run_dir / f"applied-{number}").read_text().splitlines()
        return [int(line.split()[2]) for line in lines if int(line.split()[0]) != shm.CMD_STOP]


@pytest.fixture
async def make_master(tmp_path):
    made: list[Master] = []

    def make(limits: Limits = PATIENT) -> Master:
        made.append(Master(tmp_path, limits))
        made[-1].supervisor.begin()
        return made[-1]

    yield make
    for master in made:
        for member in master.supervisor.members.values():
            if member.process is not None:
                member.state = "stopping"  # no successor
                member.process.kill()
        await asyncio.gather(*(m.gone.wait() for m in master.supervisor.members.values()))
        await master.supervisor.leave()


# -- a worker's life -----------------------------------------------------------------------------------------


async def test_starts_runs_and_stops(make_master):
    master = make_master()
    master.add()
    await master.running()
    await until(lambda: master.events)
    assert master.events == [(0, shm.EVT_RUNNING)] and master.restarted == []
    [status] = master.supervisor.status()
    assert status["pid"] == master.pid() == master.supervisor.segment(0).pid
    assert (status["state"], status["restarts"], status["quarantined"]) == ("running", 0, False)
    master.supervisor.send(0, shm.nop(1), shm.nop(2))
    assert await master.supervisor.wait_applied(2, 20)
    assert master.supervisor.applied(0) == 2 == master.supervisor.generation()
    pid = master.pid()
    await master.supervisor.stop()
    assert master.state() == "stopped" and not exists(pid)
    assert master.supervisor.applied(0) == 2, "CMD_STOP does not change the generation"
    assert not list(master.run_dir.glob("*.sock"))
    master.supervisor.start(0)
    await master.running()
    assert master.applied() == [1, 2]


async def test_commands_beyond_the_ring_arrive_in_order(make_master):
    master = make_master()
    master.add()
    await master.running()
    os.kill(master.pid(), signal.SIGSTOP)
    master.supervisor.send(0, *(shm.nop(gen) for gen in range(1, 101)))
    [status] = master.supervisor.status()
    assert status["commands_waiting"] >= 99
    assert not await master.supervisor.wait_applied(100, 0.05)
    os.kill(master.pid(), signal.SIGCONT)
    assert await master.supervisor.wait_applied(100, 20)
    assert master.applied() == list(range(1, 101))
    assert master.supervisor.status()[0]["commands_waiting"] == 0


async def test_killed_worker_is_replaced_and_no_command_is_lost(make_master):
    master = make_master()
    master.add()
    await master.running()
    gen = 0
    for deaths in range(1, 4):
        pid = master.pid()
        os.kill(pid, signal.SIGKILL)
        master.supervisor.send(0, *(shm.nop(gen + i) for i in range(1, 21)))
        gen += 20
        assert await master.supervisor.wait_applied(gen, 20)
        assert master.pid() != pid and len(master.restarted) == deaths
    assert master.supervisor.segment(0).restarts == 3
    applied = master.applied()
    assert list(dict.fromkeys(applied)) == list(range(1, 61)), "each at least once, in order"
    await until(lambda: [n for n, op in master.events if op == shm.EVT_RUNNING] == [0] * 4)


async def test_successor_starts_at_once(make_master):
    master = make_master(replace(PATIENT, tick=60.0))  # not by the tick
    master.add()
    await until(lambda: master.supervisor.segment(0).state == shm.WORKER_RUNNING)
    os.kill(master.pid(), signal.SIGKILL)
    await until(lambda: master.restarted)


async def test_hung_worker_is_killed_and_replaced(make_master):
    master = make_master(replace(PATIENT, heartbeat=1.0))
    master.add()
    await master.running()
    first = master.pid()
    os.kill(first, signal.SIGSTOP)
    start = time.monotonic()
    await until(lambda: master.restarted)
    assert time.monotonic() - start > 0.9
    await master.running()
    assert master.pid() != first and not exists(first)


async def test_worker_that_never_runs_is_killed(make_master):
    master = make_master(replace(PATIENT, start=0.3))
    master.add(mute=True)
    first = master.pid()
    await until(lambda: master.restarted)
    assert not exists(first)


async def test_stop_kills_at_the_deadline_and_the_successor_does_not_obey_the_old_stop(make_master):
    master = make_master(replace(PATIENT, stop=0.3))
    master.add(deaf=True)
    await master.running()
    master.supervisor.send(0, shm.nop(1))
    deaf = master.member().given
    hearing = replace(deaf, extra={})
    await master.supervisor.restart(0, hearing)
    await master.running()
    assert await master.supervisor.wait_applied(1, 20)
    assert master.applied() == [1]
    first = master.pid()
    master.supervisor.send(0, shm.nop(2))
    assert await master.supervisor.wait_applied(2, 20)
    assert master.pid() == first, "the stop meant for its predecessor did not reach it"


async def test_restart_with_another_set_of_descriptors(make_master):
    master = make_master()
    master.add()
    await master.running()
    old = master.member().given
    port = old.ports[0] | {"fd": os.memfd_create("new-port")}
    given = replace(old, ports=[port])
    await master.supervisor.restart(0, given)
    await master.running()
    for pid in (os.getpid(), master.pid()):
        names = " ".join(files(pid))
        assert "new-port" in names and "port-0" not in names


async def test_no_descriptor_is_left_behind(make_master):
    before = len(files(os.getpid()))
    master = make_master()
    master.add()
    await master.running()
    held = len(files(os.getpid()))
    workers = []
    for deaths in range(1, 4):
        os.kill(master.pid(), signal.SIGKILL)
        await until(lambda: len(master.restarted) == deaths)  # noqa: B023 (called at once)
        await master.running()
        await until(lambda: len(files(master.pid())) > 8)
        workers.append(len(files(master.pid())))
    assert len(files(os.getpid())) == held and len(set(workers)) == 1
    await master.supervisor.stop()
    await master.supervisor.leave()
    assert len(files(os.getpid())) == before


async def test_failing_callback_does_not_end_supervision(make_master, caplog):
    master = make_master()
    master.supervisor.on_event = lambda number, event: 1 / 0
    master.add()
    await master.running()
    await until(lambda: "a callback failed" in caplog.text)
    os.kill(master.pid(), signal.SIGKILL)
    await until(lambda: master.restarted)


# -- garbage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ring", "line"), [("cmd", 128), ("evt", 64)])
async def test_worker_that_writes_garbage_is_reset(make_master, ring, line):
    master = make_master()
    master.add()
    await master.running()
    at = master.supervisor.segment(0).ctl()[f"off_{ring}"] + line
    scribble = bytearray(shm.capture(1))
    struct.pack_into("II", scribble, 16, at, 0x7FFFFFF0)
    master.supervisor.send(0, bytes(scribble), *(shm.nop(gen) for gen in range(2, 32)))
    await until(lambda: master.restarted)
    assert await master.supervisor.wait_applied(31, 20)
    assert list(dict.fromkeys(master.applied())) == list(range(2, 32))
    assert master.supervisor.segment(0).broken_rings() == []
    assert master.restarted


# -- back-off and quarantine, by a fake clock ----------------------------------------------------------------


def test_pauses():
    restarts = Restarts(Limits())
    assert [restarts.died(now) for now in (0, 1, 2, 3, 4)] == [0.0, 0.05, 0.1, 0.2, 0.4]
    assert not restarts.too_many(4)
    assert restarts.died(5) == 10.0 and restarts.too_many(5)
    assert not restarts.too_many(60) and restarts.recent(60) == 5
    assert restarts.died(200) == 0.0, "old deaths are forgiven"


class Puppet:
    """A process that the test ends by hand: its pidfd is a pipe."""

    pid = 1

    def __init__(self) -> None:
        self.pidfd, self.end = os.pipe()
        self.killed = False

    def kill(self) -> None:
        self.killed = True
        self.die()

    def die(self) -> None:
        if self.end >= 0:
            os.close(self.end)
        self.end = -1

    def reap(self) -> str:
        self.close()
        return "was killed by the test"

    def close(self) -> None:
        os.close(self.pidfd)


class Stage:
    """Supervisor, clock and puppets; `tick` is called by hand."""

    def __init__(self, tmp_path: Path, limits: Limits) -> None:
        self.now = 1000.0
        self.puppets: list[Puppet] = []
        self.alarms: list[str | None] = []
        self.refuse = False
        self.supervisor = Supervisor(
            limits,
            launch=self.launch,
            clock=lambda: self.now,
            on_alarm=lambda number, text: self.alarms.append(text),
        )
        self.supervisor.add(fake.make_set(tmp_path, 0))
        self.member = self.supervisor.members[0]
        self.side = shm.WorkerEnd(self.member.segment)

    def launch(self, given) -> Puppet:
        if self.refuse:
            raise OSError(11, "no process to be had")
        self.puppets.append(Puppet())
        return self.puppets[-1]

    async def gone(self) -> None:
        await until(lambda: self.member.process is None or self.member.process.end >= 0)

    async def die(self) -> None:
        self.puppets[-1].die()
        await self.gone()

    def beat(self) -> None:
        self.side.publish(state=shm.WORKER_RUNNING, heartbeat_ns=int(self.now * 1e9))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.supervisor.tick()


@pytest.fixture
async def stage(tmp_path):
    made = Stage(tmp_path, Limits())
    made.supervisor.start(0)
    yield made
    await made.supervisor.leave()
    for puppet in made.puppets:
        puppet.die()


async def test_quarantine_and_out_of_it(stage):
    for pause in (0.0, 0.05, 0.1, 0.2, 0.4):
        count = len(stage.puppets)
        await stage.die()
        if pause:
            stage.pass_time(pause - 0.01)
            assert len(stage.puppets) == count and stage.member.state == "waiting"
            stage.pass_time(0.02)
        assert len(stage.puppets) == count + 1
    assert stage.alarms == []
    await stage.die()
    assert stage.alarms == ["worker 0 died 6 times within 60 s"]
    assert stage.supervisor.status()[0]["quarantined"]
    stage.pass_time(9.9)
    assert len(stage.puppets) == 6
    stage.pass_time(0.2)
    assert len(stage.puppets) == 7
    await stage.die()
    assert len(stage.alarms) == 1, "told once"
    stage.pass_time(10.1)
    stage.beat()
    stage.pass_time(0.0)
    assert stage.member.state == "running" and len(stage.alarms) == 1
    stage.now += 61
    stage.beat()
    stage.pass_time(0.0)
    assert stage.alarms[1:] == [None]
    assert stage.member.segment.restarts == 7


async def test_worker_that_can_not_be_started_is_tried_again(stage):
    stage.refuse = True
    await stage.die()
    assert stage.member.state == "waiting"
    stage.refuse = False
    stage.pass_time(1.0)
    assert stage.member.state == "starting" and len(stage.puppets) == 2


async def test_late_heartbeat_is_looked_at_twice(stage):
    stage.beat()
    stage.pass_time(0.1)
    assert stage.member.state == "running"
    stage.pass_time(3600.0)  # the whole machine slept
    assert not stage.puppets[0].killed
    stage.beat()
    stage.pass_time(0.4)
    assert not stage.puppets[0].killed
    stage.pass_time(0.2)
    stage.pass_time(0.05)
    assert not stage.puppets[0].killed
    stage.pass_time(0.1)
    assert stage.puppets[0].killed


async def test_a_hang_is_found_at_the_first_turn_at_which_it_can_be(stage):
    """Though a heartbeat is not looked at while the last one seen is young."""
    stage.beat()
    stage.pass_time(0.0)  # runs
    stage.pass_time(0.05)  # the beat is seen
    seen = stage.member.heard
    for _ in range(4):
        stage.beat()
        stage.pass_time(0.05)
    assert stage.member.heard == seen, "not looked at"
    last = stage.now - 0.05
    while stage.member.stale[1] == 0.0:
        stage.pass_time(0.05)
    assert 0.49 < stage.now - last < 0.551
    first = stage.now
    while not stage.puppets[0].killed:
        stage.pass_time(0.05)
    assert stage.now - first < 0.176


async def test_what_else_workers_have_is_looked_at_in_the_same_turns(make_master):
    """And sooner if whoever looks wants it; an error there ends nothing."""
    master = make_master(replace(PATIENT, tick=0.02))
    master.add()
    await master.running()
    turns: list[float] = []

    def look(late: float) -> float:
        turns.append(late)
        if len(turns) == 3:
            raise OSError
        return 0.001

    master.supervisor.on_turn = look
    await until(lambda: len(turns) > 10)
    assert all(late >= 0 for late in turns)
    assert master.supervisor.quiet


async def test_second_process_over_the_same_rings_is_refused(stage):
    with pytest.raises(ValueError, match="has a process already"):
        stage.supervisor.start(0)


# -- adoption ------------------------------------------------------------------------------------------------


@pytest.fixture
def other_master(tmp_path):
    """A master process with workers; killed, if the test has not done it. Its workers too."""
    started = []

    def start(count: int) -> subprocess.Popen[str]:
        program = [sys.executable, fake.__file__, str(tmp_path), str(count)]
        started.append(subprocess.Popen(program, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    for path in tmp_path.glob("worker-*.sock"):
        try:
            os.kill(worker_pid(tmp_path, int(path.stem.partition("-")[2])), signal.SIGKILL)
        except OSError:
            continue


async def test_adoption_after_the_master_was_killed(make_master, other_master, tmp_path):
    other = other_master(2)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    master = make_master()
    adoption = master.supervisor.adopt(tmp_path)
    assert adoption.workers == [0, 1] and not adoption.refused and not adoption.ended
    await master.running(0)
    await master.running(1)
    assert master.restarted == []
    assert master.supervisor.generation() == 40
    for number in (0, 1):
        given = master.member(number).given
        assert os.pread(given.ports[0]["fd"], 100, 0) == b"port %d" % number
        assert given.ports[0] | {"fd": 0} == {
            "iface": 1, "ifindex": 7, "queue": 0, "fd": 0, "fill": 64, "comp": 64, "rx": 64, "tx": 64,
        }  # fmt: skip
        assert given.via == {0: 3} and given.extra == {"note": f"made by {other.pid}"}
        assert os.fstat(given.conn).st_ino == inode(tmp_path / f"conn-{number}")
        assert all(os.get_inheritable(fd) is False for fd in given.fds())
    master.supervisor.broadcast(*(shm.nop(gen) for gen in range(41, 71)))
    assert await master.supervisor.wait_applied(70, 20)
    assert master.applied(1) == list(range(41, 71)) and master.applied(0) == list(range(40, 71))
    # it is no child of this process, and is replaced all the same
    pid = master.pid(1)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: master.restarted == [1])
    await master.running(1)
    await master.supervisor.stop()


async def test_adoption_takes_over_commands_under_way(make_master, other_master, tmp_path):
    other_master(1)  # lives on, but does nothing
    master = make_master()
    assert master.supervisor.adopt(tmp_path).workers == [0]
    os.kill(master.pid(), signal.SIGSTOP)
    master.supervisor.send(0, shm.nop(50), shm.nop(51))
    await master.supervisor.leave()
    heir = make_master()
    os.kill(worker_pid(tmp_path, 0), signal.SIGCONT)
    heir_adoption = heir.supervisor.adopt(tmp_path)
    assert heir_adoption.workers == [0]
    assert await heir.supervisor.wait_applied(51, 20)
    assert heir.supervisor.generation() == 51


async def test_adoption_of_the_dead_the_hung_and_the_strange(
    make_master, other_master, tmp_path, monkeypatch
):
    other = other_master(3)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    master = make_master(replace(PATIENT, answer=3.0))
    found = [worker_pid(tmp_path, number) for number in range(3)]
    os.kill(found[0], signal.SIGKILL)
    os.kill(found[1], signal.SIGSTOP)
    await until(lambda: not exists(found[0]) and stopped(found[1]))
    monkeypatch.setattr("lbd.master.adoption.adopt_segment", strange)
    adoption = master.supervisor.adopt(tmp_path)
    assert adoption.workers == []
    assert [path.name for path in sorted(tmp_path.glob("*.sock"))] == ["worker-1.sock", "worker-2.sock"]
    assert "did not answer" in adoption.ended["worker-1.sock"] and not exists(found[1])
    assert list(adoption.refused) == ["worker-2.sock"]
    assert "another version of lbd: stop that one first" in adoption.refused["worker-2.sock"]
    assert exists(found[2]), "a worker that is refused goes on"


def stopped(pid: int) -> bool:
    """All of its threads: a signal reaches them one after the other, on a busy machine late."""
    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def strange(given):
    raise shm.SegmentError(
        "worker segment 5 can't be used: it was made by another version of lbd: stop that one first"
    )


# -- the daemon's loop ---------------------------------------------------------------------------------------


def test_on_uvloop(tmp_path):
    uvloop = pytest.importorskip("uvloop", reason="needs the package uvloop")

    async def life() -> None:
        master = Master(tmp_path, PATIENT)
        master.supervisor.begin()
        master.add()
        await master.running()
        os.kill(master.pid(), signal.SIGKILL)
        master.supervisor.send(0, shm.nop(1))
        assert await master.supervisor.wait_applied(1, 20)
        assert master.restarted == [0]
        await master.supervisor.leave()
        heir = Master(tmp_path, PATIENT)
        heir.supervisor.begin()
        assert heir.supervisor.adopt(tmp_path).workers == [0]
        await heir.supervisor.stop()
        await heir.supervisor.leave()

    uvloop.run(life())
