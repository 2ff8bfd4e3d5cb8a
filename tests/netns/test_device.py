# SPDX-License-Identifier: Apache-2.0
"""Devices that change while lbd runs: an interface that is made anew, queues that come. Connections that there are go on."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.topology import LB_SERVER
from tests.netns.conftest import make

pytestmark = [pytest.mark.root, pytest.mark.netns]

STEADY = """
import signal, socket, sys, time
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
sock = socket.create_connection((sys.argv[1], 80), 5)
print("connected", flush=True)
sock.settimeout(20)
answers, longest, last = 0, 0.0, time.monotonic()
while not ended:
    sock.sendall(b"GET /counts HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    got = b""
    while b"\\r\\n\\r\\n" not in got:
        more = sock.recv(65536)
        assert more, "closed"
        got += more
    now = time.monotonic()
    answers, longest, last = answers + 1, max(longest, now - last), now
    time.sleep(0.02)
print(answers, longest)
"""


class Steady:
    """One connection from the client that asks all the time."""

    def __init__(self, testbed: Testbed, family: int) -> None:
        argv = testbed.client.argv([sys.executable, "-c", STEADY, testbed.vip(family)])
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "connected\n"

    def end(self) -> tuple[int, float]:
        """Answers, and the longest time between two."""
        self.process.terminate()
        out, error = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, error
        answers, longest = out.split()
        return int(answers), float(longest)


@pytest.fixture
def testbed() -> Iterator[Testbed]:
    with make(workers=2, servers=2) as made:
        yield made


def workers(lbd: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lbd.get("/v1/workers")["workers"]
    return found


def served(lbd: Daemon) -> list[list[str]]:
    return [[q["interface"] for q in w["queues"]] for w in workers(lbd)]


def state(lbd: Daemon) -> str:
    lost = {d["reason"]: d["packets"] for d in lbd.get("/v1/drops")["drops"] if d["packets"]}
    return f"{lost} {lbd.get('/v1/drops')['xdp']} {workers(lbd)} {lbd.log()}"


def whole(lbd: Daemon) -> bool:
    """Every frame is accounted for."""
    held = {w["number"]: sum(q["fill_level"] + q["tx_outstanding"] for q in w["queues"]) for w in workers(lbd)}
    return all(w["free_frames"] + held[w["number"]] == w["frames"] for w in workers(lbd))


def sound(testbed: Testbed, lbd: Daemon) -> None:
    for family in (4, 6):
        seen = testbed.wrk(family, connections=32, seconds=1, close=family == 6)
        assert seen.requests > 300 and seen.errors == 0, state(lbd)
    assert testbed.iperf3(4, seconds=1).bits_per_second > 50e6
    wait_until("all frames are accounted for", lambda: whole(lbd), 10)
    assert [w["restarts"] for w in workers(lbd)] == [0, 0]
    assert not [p for p in lbd.get("/v1/status")["problems"] if "eth" in p and not p.startswith("address ")]


def test_queues_that_come(testbed: Testbed) -> None:
    """`ethtool -L` from one queue to two, under load: each worker has one then."""
    topology = testbed.topology
    for ns, name in ((testbed.balancer, "eth1"), (topology.switch, "lb")):
        ns.run(["ethtool", "-L", name, "rx", "1", "tx", "1"])
    lbd = testbed.lbd()
    assert served(lbd) == [["eth0", "eth1"], ["eth0"]]
    kept = [Steady(testbed, family) for family in (4, 6)]
    result: list[Any] = []
    load = threading.Thread(target=lambda: result.append(testbed.wrk(4, connections=16, seconds=6)))
    load.start()
    wait_until("the load runs", lambda: sum(w["received_packets"] for w in workers(lbd)) > 2000, 5)
    testbed.balancer.run(["ethtool", "-L", "eth1", "rx", "2", "tx", "2"])
    wait_until("the second queue is served", lambda: served(lbd) == [["eth0", "eth1"]] * 2, 10)
    load.join()
    assert workers(lbd)[1]["queues"][1]["tx_packets"] > 100, "worker 1 sends by a queue of its own now"
    assert result[0].requests > 300 and result[0].errors == 0, state(lbd)
    for steady in kept:
        answers, longest = steady.end()
        assert answers > 10 and longest < 30
    assert "workers stood still" in lbd.log()
    sound(testbed, lbd)
    assert lbd.stop() == 0


def test_an_interface_made_anew(testbed: Testbed) -> None:
    """eth1 goes, with its addresses, and another one of its name comes: twice, so that its number as a port comes round."""
    topology = testbed.topology
    lbd = testbed.lbd()
    kept = [Steady(testbed, family) for family in (4, 6)]
    for _ in range(2):
        testbed.balancer.ip("link del eth1")
        wait_until("it is missed", lambda: any("eth1 has gone" in p for p in lbd.get("/v1/status")["problems"]), 5)
        wait_until("its sockets are closed", lambda: served(lbd) == [["eth0"]] * 2, 10)
        topology._wire(topology.lb, "eth1", topology.lb_macs["eth1"], topology.switch, "lb", None, topology.server_mtu, 2)
        topology.switch.ip("link set lb master br0")
        topology._address(topology.lb, "eth1", f"{LB_SERVER[0]}/24", f"{LB_SERVER[1]}/64")
        wait_until("it is served", lambda: served(lbd) == [["eth0", "eth1"]] * 2, 10)
        wait_until("HTTP is back", lambda: testbed.curl(4, timeout=1).status == 200, 10)
    sound(testbed, lbd)
    for steady in kept:
        answers, longest = steady.end()
        assert answers > 10 and longest < 30
    assert json.loads(testbed.balancer.run(["ip", "-json", "-details", "link", "show", "eth1"]))[0]["xdp"]
    lbd.process.kill()  # and what a new master makes of ports with other numbers than interfaces have
    lbd.process.wait()
    again = testbed.lbd()
    assert again.get("/v1/status")["workers"]["restarts"] == 0 and served(again) == [["eth0", "eth1"]] * 2
    sound(testbed, again)
    assert again.stop() == 0
