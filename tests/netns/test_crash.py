# SPDX-License-Identifier: Apache-2.0
"""Processes of lbd killed and stopped under traffic: what survives, what is left behind, what is refused.

Every connection of the echo client stays open for the whole of a test and checks each byte that comes back
(lbd/testbed/talk.py). Frames and connection records are counted where they lie (traffic.py `Inside`).
tests/chaos does the same for longer.
"""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.topology import LB_CLIENT
from tests.netns.chaos import Victim, kill_worker, pass_time
from tests.netns.metrics import scrape
from tests.netns.traffic import (
    SERVER_PORT,
    Inside,
    Traffic,
    addresses,
    config,
    kill_all,
    lbd_processes,
    programs,
    serve,
    sockets,
    worker_pids,
)

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180)]

STREAMS, FLOWS = 500, 16
KILLS = 8
OUTAGE_LIMIT = 1.0  # seconds from the kill to the last flow's first reply
OWN_COUNTERS = (  # of the master's own doings: they begin anew with its process, as Prometheus expects
    "lbd_api_", "lbd_config_", "lbd_event_loop_", "lbd_health_", "lbd_netlink_", "lbd_real_server_transitions",
    "lbd_real_server_downtime", "process_", "python_",
)  # fmt: skip


@pytest.fixture(scope="module")
def testbed(make_shared: Callable[..., Testbed]) -> Testbed:
    return make_shared(workers=2).up()


@pytest.fixture
def lbd(testbed: Testbed) -> Iterator[Daemon]:
    """Running; nothing of it is left afterwards, nor of its predecessors."""
    daemon = testbed.lbd(config(testbed))
    yield daemon
    kill_all(testbed)
    command_output(testbed, "cleanup", "--run-dir", str(daemon.run_dir))
    for path in daemon.run_dir.iterdir():
        path.unlink()


def command_output(testbed: Testbed, *words: str) -> str:
    return testbed.balancer.run([sys.executable, "-m", "lbd.cli.main", *words])


def talk(testbed: Testbed, **settings: object) -> Traffic:
    traffic = Traffic(testbed, **{"streams": STREAMS, "flows": FLOWS} | settings)
    traffic.wait_open()
    return traffic


def unharmed(traffic: Traffic) -> None:
    seen = traffic.report()
    assert seen["open"] == traffic.settings["streams"] and not seen["error_count"], seen["errors"]


# -- one process killed -----------------------------------------------------------------------------------------


def test_workers_killed_under_traffic(testbed: Testbed, lbd: Daemon) -> None:
    """All connections survive, service is back within a second, and after each kill frames and table are whole."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    traffic, inside = talk(testbed), Inside(lbd)
    outages = []
    for number in range(KILLS):
        pass_time(choice.uniform(0.1, 1.0))
        victim = Victim(choice.randrange(2), steps=choice.randrange(1, 20_000) if number % 2 else 0)
        outage = kill_worker(lbd, inside, traffic, victim)
        print(f"kill {number}: {outage}")
        outages.append(outage)
        traffic.ask("pause")
        traffic.wait_quiet()
        unharmed(traffic)
        inside.settle(STREAMS, FLOWS)
        traffic.ask("go")
    unharmed(traffic)
    # but for moments at which the machine had other work
    assert median(outage.udp for outage in outages) < OUTAGE_LIMIT, outages
    assert median(outage.tcp for outage in outages) < 2 * OUTAGE_LIMIT, outages
    inside.close()
    traffic.stop()


def test_mirrored_tables_are_indexed_anew(testbed: Testbed, lbd: Daemon) -> None:
    """A worker may die in the middle of a command: no entry is lost by that, and none is there twice afterwards."""
    inside = Inside(lbd)
    segment = inside.segments[0]

    def mirrored() -> list[dict[str, object]]:
        """Routes and neighbours. The kernel may tell of new ones meanwhile; states and ages change."""
        keys = ("prefix", "plen", "metric", "iface", "addr", "vlan")
        return [{k: entry[k] for k in keys if k in entry} for _, entry in (*segment.routes(), *segment.neighbours())]

    services = [n for n, _ in segment.services()]
    known, ctl = mirrored(), segment.ctl()
    pid, applied = worker_pids(lbd)[0], ctl["gen_applied"]
    os.kill(pid, signal.SIGSTOP)
    offsets = sorted(value for name, value in ctl.items() if name.startswith("off_"))
    with open(f"/proc/self/fd/{segment.fd}", "r+b", buffering=0) as memory:
        for name in ("off_svc_hash", "off_adj_hash", "off_route_hash"):
            memory.seek(ctl[name])
            memory.write(bytes(offsets[offsets.index(ctl[name]) + 1] - ctl[name]))
    os.kill(pid, signal.SIGKILL)
    wait_until("its successor has heard everything again", lambda: segment.ctl()["gen_applied"] != applied, 20)
    wait_until("all of it is applied", lambda: lbd.get("/v1/status")["ready"], 20)
    assert [n for n, _ in segment.services()] == services
    now = mirrored()
    assert all(entry in now for entry in known)
    named = [str(entry) for entry in now if "plen" in entry or any(entry["addr"])]
    assert len(named) == len(set(named))
    assert {testbed.curl(family).status for family in (4, 6) for _ in range(6)} == {200}
    inside.close()


def test_hung_worker_is_replaced(testbed: Testbed, lbd: Daemon) -> None:
    traffic, inside = talk(testbed), Inside(lbd)
    outage = kill_worker(lbd, inside, traffic, Victim(0, signal.SIGSTOP))
    assert "worker 0: hangs" in lbd.log()
    assert outage.udp < 0.5 + 5 * OUTAGE_LIMIT, outage  # workers.heartbeat_limit is 0.5 s
    traffic.ask("pause")
    traffic.wait_quiet()
    unharmed(traffic)
    inside.settle(STREAMS, FLOWS)
    inside.close()
    traffic.stop()


def test_master_killed_under_load(testbed: Testbed, lbd: Daemon) -> None:
    """Forwarding goes on, and a new master takes all of it over: also a worker that died while there was none."""
    traffic, inside = talk(testbed, streams=100), Inside(lbd)
    attached, workers, before = programs(testbed.balancer), worker_pids(lbd), scrape(testbed).counters()
    loads: dict[str, object] = {}

    def load(name: str, family: int, **options: object) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: loads.update({name: testbed.wrk(family, seconds=6, **options)}), daemon=True
        )
        thread.start()
        return thread

    threads = [load("kept", 4, connections=32), load("each its own", 6, connections=8, close=True)]
    pass_time(0.5)
    traffic.ask("mark")
    lbd.kill()
    began = time.monotonic()
    pass_time(2.0)
    dead = traffic.report()
    assert dead["requests"] and dead["silence"] < 1 and not dead["error_count"], dead
    second = testbed.lbd(config(testbed))
    without = time.monotonic() - began
    for thread in threads:
        thread.join()
    for name, result in loads.items():
        assert result.requests > 100 and result.errors == 0, (name, result)
    unharmed(traffic)
    assert traffic.report()["silence"] < without / 2, "there was no master for much longer"
    status = second.get("/v1/status")
    assert status["took_over"] and status["problems"] == [], status
    assert worker_pids(second) == workers and programs(testbed.balancer) == attached
    after = scrape(testbed).counters()
    backwards = {
        name: (value, after.get(name))
        for name, value in before.items()
        if after.get(name, 0) < value and not name[0].startswith(OWN_COUNTERS)
    }
    assert not backwards

    second.kill()
    os.kill(workers[1], signal.SIGKILL)
    third = testbed.lbd(config(testbed))
    assert worker_pids(third)[0] == workers[0] != worker_pids(third)[1] and programs(testbed.balancer) == attached
    traffic.ask("mark")
    wait_until("every flow is served", lambda: traffic.report()["not_resumed"] == 0, 5)
    traffic.ask("pause")
    traffic.wait_quiet()
    unharmed(traffic)
    inside.settle(100, FLOWS, others=True)
    inside.close()
    traffic.stop()
    assert third.stop() == 0


# -- all killed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False], ids=["cleaned up", "at once again"])
def test_all_killed_and_started_again(testbed: Testbed, lbd: Daemon, clean: bool) -> None:
    """Nothing of it is left in the kernel, the host's own traffic goes on, and a new start finds the connections."""
    balancer = testbed.balancer
    serve(testbed, balancer)
    own = talk(testbed, targets=[(a, SERVER_PORT) for a in LB_CLIENT], streams=20, flows=2)
    traffic = talk(testbed, streams=200)
    managed = {testbed.vip(4), testbed.vip(6), *testbed.topology.lips4, *testbed.topology.lips6}
    reserved = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    assert managed <= addresses(balancer) and len(programs(balancer)) == 2 and sockets(balancer)
    assert balancer.run(["cat", str(reserved)]).strip()
    traffic.ask("pause")
    traffic.wait_quiet()
    assert "still forwards" in command_output_while_serving(testbed, lbd)
    assert managed <= addresses(balancer)

    kill_all(testbed)
    wait_until("no program is attached", lambda: not programs(balancer), 5)
    wait_until("no AF_XDP socket is open", lambda: not sockets(balancer), 5)
    assert "lbd-tap" not in balancer.run(["ip", "link", "show"])
    own.ask("mark")
    wait_until("the host's own traffic goes on", lambda: own.report()["requests"] > 100, 10)
    for address in LB_CLIENT:
        testbed.client.run(["ping", "-c", "1", "-W", "2", address])
    if clean:
        said = command_output(testbed, "cleanup", "--run-dir", str(lbd.run_dir))
        assert said.count("removed address") == len(managed), said
        assert not managed & addresses(balancer) and set(LB_CLIENT) < addresses(balancer)
        assert not balancer.run(["cat", str(reserved)]).strip()

    again = testbed.lbd(config(testbed))
    assert not again.get("/v1/status")["took_over"]
    inside = Inside(again)
    inside.settle(200, FLOWS)
    traffic.ask("mark")
    traffic.ask("go")
    wait_until("every connection goes on", lambda: traffic.report()["requests"] > 2000, 10)
    wait_until("every flow goes on", lambda: traffic.report()["not_resumed"] == 0, 10)
    more = talk(testbed, streams=200, flows=0)
    for each in (traffic, more, own):
        each.ask("pause")
        each.wait_quiet()
        unharmed(each)
    inside.settle(400, FLOWS)  # no local port twice towards a real server, among other things
    inside.close()
    for each in (traffic, more, own):
        each.stop()


def command_output_while_serving(testbed: Testbed, lbd: Daemon) -> str:
    """`lbd cleanup` where only the master is dead."""
    lbd.kill()
    return command_output(testbed, "cleanup", "--run-dir", str(lbd.run_dir))


# -- stop -------------------------------------------------------------------------------------------------------


def test_stop_under_load(testbed: Testbed, lbd: Daemon) -> None:
    """Virtual addresses go first: at no moment is there one of them without a program in front of the kernel."""
    balancer = testbed.balancer
    load = threading.Thread(target=lambda: testbed.wrk(4, connections=32, seconds=3), daemon=True)
    load.start()
    seen: list[tuple[bool, bool]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            attached = bool(programs(balancer))  # before the addresses: what is missing now stays missing
            seen.append((attached, testbed.vip(4) in addresses(balancer)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        pass_time(0.5)
        assert lbd.stop() == 0
    finally:
        ended.set()
        watcher.join()
    assert (True, True) in seen and (True, False) in seen and (False, True) not in seen, seen
    assert not programs(balancer) and not sockets(balancer) and not lbd_processes(testbed)
    managed = {testbed.vip(4), testbed.vip(6), *testbed.topology.lips4, *testbed.topology.lips6}
    assert not managed & addresses(balancer) and set(LB_CLIENT) < addresses(balancer)
    for address in LB_CLIENT:
        testbed.client.run(["ping", "-c", "1", "-W", "2", address])
    load.join()


# -- refusals ---------------------------------------------------------------------------------------------------


def test_worker_that_always_dies_is_put_into_quarantine(testbed: Testbed, lbd: Daemon) -> None:
    traffic = talk(testbed, streams=100)
    deadline = time.monotonic() + 20
    while "worker 1: in quarantine" not in lbd.log():
        assert time.monotonic() < deadline, lbd.log()
        for worker in lbd.get("/v1/workers")["workers"]:
            if worker["number"] == 1 and worker["state"] in ("starting", "running") and worker["pid"]:
                try:
                    os.kill(worker["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    pass
    state = {w["number"]: w["state"] for w in lbd.get("/v1/workers")["workers"]}
    assert state == {0: "running", 1: "waiting"}
    assert any(text.startswith("worker 1 died") for text in lbd.get("/v1/status")["problems"])
    traffic.ask("mark")
    wait_until("the other worker serves", lambda: traffic.report()["requests"] > 100, 5)
    unharmed(traffic)
    traffic.stop()


def refused(testbed: Testbed, file: Path) -> str:
    """What `lbd run` says when it refuses: one line."""
    argv = testbed.balancer.argv([sys.executable, "-m", "lbd.cli.main", "run", str(file)])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    errors = [line for line in done.stderr.splitlines() if line.startswith("<3>")]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0]


def test_second_daemon_is_refused(testbed: Testbed, lbd: Daemon) -> None:
    traffic = talk(testbed, streams=50)
    attached, held = programs(testbed.balancer), addresses(testbed.balancer)
    assert f"another lbd (process {lbd.pid}) runs in {lbd.run_dir}" in refused(testbed, lbd.config_file)
    other = testbed.directory / "other.toml"
    other.write_text(config(testbed, daemon={"run_dir": str(testbed.directory / "other")}, metrics={"listen": ""}))
    text = refused(testbed, other)
    assert re.search(r"eth0 queue 0 busy: .*stop it first|another lbd serves eth0: stop it first", text), text
    assert (programs(testbed.balancer), addresses(testbed.balancer)) == (attached, held)
    traffic.ask("mark")
    wait_until("the first one serves", lambda: traffic.report()["requests"] > 200, 5)
    unharmed(traffic)
    traffic.stop()


FOREIGN = """
import ctypes, socket, sys
libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
code = (ctypes.c_uint64 * 2)(0x2_0000_00B7, 0x95)  # r0 = XDP_PASS; exit
fd = libbpf.bpf_prog_load(6, b"foreign", b"GPL", code, ctypes.c_size_t(2), None)
assert fd >= 0 and libbpf.bpf_xdp_attach(socket.if_nametoindex(sys.argv[1]), fd, 4, None) == 0
"""


def test_foreign_program_is_left_alone(testbed: Testbed) -> None:
    balancer = testbed.balancer
    held = addresses(balancer)
    balancer.run([sys.executable, "-c", FOREIGN, "eth1"])
    try:
        foreign = programs(balancer)
        assert list(foreign) == ["eth1"]
        file = testbed.directory / "foreign.toml"
        file.write_text(config(testbed))
        text = refused(testbed, file)
        assert "eth1" in text and "'foreign'" in text and "xdp off" in text, text
        assert programs(balancer) == foreign and addresses(balancer) == held and not sockets(balancer)
        assert not lbd_processes(testbed)
    finally:
        balancer.ip("link set dev eth1 xdp off")
