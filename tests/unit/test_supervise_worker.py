# SPDX-License-Identifier: Apache-2.0
"""The worker process around its loop: privileges, session, signals, its socket. By fake_worker.py."""

import importlib.util
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lbd.master.handover import HandoverError, WorkerSet, receive, send
from lbd.shm import _shm as shm

spec = importlib.util.spec_from_file_location("fake_master", Path(__file__).with_name("fake_master.py"))
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)


def until(condition, limit: float = 30.0):
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
    return found


def ended(process, limit: float = 20.0) -> str:
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    assert poll.poll(limit * 1000), "the worker goes on"
    return process.reap()


class Running:
    def __init__(self, given: WorkerSet) -> None:
        self.given = given
        self.segment = shm.WorkerSegment.adopt(os.dup(given.segment))
        self.process = fake.fake_launch(given)
        self.path = Path(given.run_dir) / f"worker-{given.number}.sock"

    def wait(self) -> "Running":
        until(lambda: self.segment.state == shm.WORKER_RUNNING)
        return self


@pytest.fixture
def start(tmp_path):
    made: list[Running] = []

    def begin(**changes) -> Running:
        given = fake.make_set(tmp_path, 0)
        for name, value in changes.items():
            setattr(given, name, value)
        made.append(Running(given))
        return made[-1]

    yield begin
    for running in made:
        if running.process.pidfd >= 0:
            running.process.kill()
            ended(running.process)
        running.segment.close()
        running.given.close()


def status(pid: int, thread: str | int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def threads(pid: int) -> list[str]:
    return [path.name for path in Path(f"/proc/{pid}/task").iterdir()]


@pytest.mark.root
def test_no_capability_is_left_in_any_thread(start):
    pid = start().wait().process.pid
    until(lambda: len(threads(pid)) == 2)
    for thread in threads(pid):
        told = until(lambda: status(pid, thread) if status(pid, thread)["NoNewPrivs"] == "1" else None)  # noqa: B023
        kinds = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        assert {kind: int(told[kind], 16) for kind in kinds} == dict.fromkeys(kinds, 0)
        assert told["Uid"].split() == [str(os.getuid())] * 4


def test_session_and_name(start):
    running = start().wait()
    pid = running.process.pid
    assert os.getsid(pid) == pid == os.getpgid(pid) == running.segment.pid
    assert Path(f"/proc/{pid}/comm").read_text() == "lbd-worker-0\n"
    assert os.path.samefile(f"/proc/{pid}/fd/0", os.devnull)


def test_pin_and_its_serving_thread_is_elsewhere(start):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("needs two cores")
    core = max(cores)
    pid = start(core=core).wait().process.pid
    assert os.sched_getaffinity(pid) == {core}
    [server] = (int(thread) for thread in threads(pid) if int(thread) != pid)
    assert until(lambda: os.sched_getaffinity(server) == cores - {core})


@pytest.mark.root
def test_fifo_is_the_loop_s_alone(start):
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        pytest.skip("SCHED_FIFO is refused here")
    pid = start(fifo_priority=2).wait().process.pid
    assert os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
    assert os.sched_getparam(pid).sched_priority == 2
    [server] = (int(thread) for thread in threads(pid) if int(thread) != pid)
    assert os.sched_getscheduler(server) == os.SCHED_OTHER


def test_wishes_that_can_not_be_granted_do_not_end_it(start, capfd):
    start(core=4000).wait()
    assert "<4>worker 0: pin to core 4000" in capfd.readouterr().err


def test_sigterm_ends_it_cleanly(start):
    running = start().wait()
    os.kill(running.process.pid, signal.SIGTERM)
    assert ended(running.process) == "exited with status 0"
    assert running.segment.state == shm.WORKER_STOPPED and not running.path.exists()


def test_terminal_signals_are_not_its_business(start):
    running = start().wait()
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(running.process.pid, number)
    assert running.segment.push(shm.nop(9))
    until(lambda: running.segment.gen_applied == 9)
    assert running.segment.state == shm.WORKER_RUNNING


def test_stop_command_ends_it(start):
    running = start().wait()
    running.segment.push(shm.stop(3))
    assert ended(running.process) == "exited with status 0"


def test_failure_to_attach_is_one_line_and_a_status(start, capfd):
    running = start(extra={"fail": True})
    assert ended(running.process) == "exited with status 1"
    assert "<3>worker 0: can't run: [Errno 5] told to fail\n" in capfd.readouterr().err
    assert not running.path.exists()


def test_log_level(start, capfd):
    start(log_level="error").wait()
    assert capfd.readouterr().err == ""


def test_usage():
    for arguments in ([], ["--socket-fd"], ["--socket-fd", "x"], ["-h"]):
        done = subprocess.run(
            [sys.executable, "-m", "lbd.worker", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.startswith("usage: ")
    command = [sys.executable, "-m", "lbd.worker", "--socket-fd", "0"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "no descriptors came" in done.stderr


def test_start_up_imports_little():
    program = "import lbd.worker, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    heavy = {
        "asyncio",
        "pydantic",
        "logging",
        "argparse",
        "subprocess",
        "lbd.config",
        "lbd.shm._shm",
        "aiohttp",
    }
    assert not heavy & set(loaded)


# -- its socket ------------------------------------------------------------------------------------------


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


def test_hands_over_and_goes_on(start):
    running = start().wait()
    for _ in range(3):
        with connect(running.path) as sock:
            send(sock, {"op": "take"})
            words, fds = receive(sock)
        got = WorkerSet.from_words(words["set"], fds)
        assert words["pid"] == running.process.pid
        assert os.pread(got.ports[0]["fd"], 9, 0) == b"port 0"
        with shm.WorkerSegment.adopt(os.dup(got.segment)) as segment:
            assert segment.pid == running.process.pid
        got.close()
    assert running.segment.state == shm.WORKER_RUNNING


def test_odd_requests_are_answered_or_dropped(start):
    running = start().wait()
    before = len(os.listdir(f"/proc/{running.process.pid}/fd"))
    with connect(running.path) as sock:
        send(sock, {"op": "dance"})
        assert receive(sock) == ({"error": "unknown request 'dance'"}, [])
    with connect(running.path) as sock:
        sock.send(b"garbage")
        with pytest.raises(HandoverError, match="closed"):
            receive(sock)
    connect(running.path).close()
    with connect(running.path) as sock:
        fd = os.open(os.devnull, os.O_RDONLY)
        send(sock, {"op": "take"}, [fd] * 5)  # descriptors that nobody asked for are closed
        os.close(fd)
        _, fds = receive(sock)
        for came in fds:
            os.close(came)
    assert until(lambda: len(os.listdir(f"/proc/{running.process.pid}/fd")) == before)


def test_silent_client_delays_others_but_does_not_stop_them(start):
    running = start().wait()
    with connect(running.path), connect(running.path) as second:
        send(second, {"op": "dance"})
        assert receive(second)[0]["error"]


@pytest.mark.root
def test_other_users_get_nothing(start, tmp_path):
    running = start().wait()
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o600
    running.path.chmod(0o666)  # even then
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == os.getuid() and parent.name.startswith(("pytest", "popen", "test")):
            parent.chmod(0o755)
    program = (
        "import os, socket, sys; os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(20); s.connect(sys.argv[1])\n"
        's.send(b\'{"op": "take", "fds": 0}\'); print(len(socket.recv_fds(s, 65536, 250)[0]))'
    )
    command = [sys.executable, "-S", "-c", program, str(running.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "0\n" or "ConnectionReset" in done.stderr or "BrokenPipe" in done.stderr, done
    with connect(running.path) as sock:
        send(sock, {"op": "dance"})
        assert receive(sock)[0]["error"]
