# SPDX-License-Identifier: Apache-2.0
"""Queues and ports that are not as one would like them: fewer on one interface than on the other, too few, too
many, none that can zero-copy, one whose receiver does not take what is sent; the memory that they and the tables lie in; and the
three ways to poll.

A worker's sockets over one UMEM send in copy mode by a system call, and each frame stays the kernel's until whoever
got the packet is done with it. So a receiver that holds packets holds frames: at most those in the socket's tx ring
and completion ring, after which `tx_full` counts, and the fill rings of the other interfaces must still be full.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbd.shm import _shm as shm
from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.load import Curl, curl, url
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text
from lbd.xdp.kernel import kernel_version
from tests.netns.conftest import make

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.alone]

LOCAL = 8099  # of a service whose real server is the client's own host: all its packets come and go by eth0
POLL_MODES = ("busy", "adaptive", "interrupt")


@pytest.fixture(scope="module")
def uneven() -> Iterator[Testbed]:
    """Two workers; eth0 has two queues, eth1 one. Routed: the client's host can be a real server, too."""
    with make(workers=2, servers=2, routing=True) as testbed:
        set_queues(testbed, 1)
        yield testbed


@pytest.fixture(scope="module")
def single() -> Iterator[Testbed]:
    """One worker, one queue."""
    with make(workers=1, servers=2, routing=True) as testbed:
        yield testbed


def set_queues(testbed: Testbed, count: int) -> None:
    for ns, name in ((testbed.balancer, "eth1"), (testbed.topology.switch, "lb")):
        ns.run(["ethtool", "-L", name, "rx", str(count), "tx", str(count)])


def workers(lbd: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lbd.get("/v1/workers")["workers"]
    return found


def drops(lbd: Daemon) -> dict[str, int]:
    return {row["reason"]: row["packets"] for row in lbd.get("/v1/drops")["drops"]}


def queue(worker: dict[str, Any], interface: str) -> dict[str, Any]:
    found: dict[str, Any] = next(q for q in worker["queues"] if q["interface"] == interface)
    return found


def refused(testbed: Testbed, config: str) -> str:
    """The one line with which `lbd run` says no, with status 1 and nothing left behind."""
    file = testbed.directory / "refused.toml"
    file.write_text(config)
    argv = testbed.balancer.argv([sys.executable, "-m", "lbd.cli.main", "run", str(file)])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and not done.stdout, done.stderr
    links = json.loads(testbed.balancer.run(["ip", "-json", "-details", "link"]))
    assert not any(link.get("xdp") for link in links)
    assert testbed.vip(4) not in testbed.balancer.run(["ip", "address"])
    assert testbed.topology.lips4[0] not in testbed.balancer.run(["ip", "address"])
    # no AF_XDP socket: rows below the heading of its protocol
    assert len(testbed.balancer.run(["cat", "/proc/net/xdp"], check=False).splitlines()) <= 1
    return lines[0]


# --- how many queues --------------------------------------------------------------------------------------------------


def test_a_worker_without_a_queue_sends_through_one_that_has_one(uneven: Testbed) -> None:
    lbd = uneven.lbd()
    try:
        assert [[q["interface"] for q in w["queues"]] for w in workers(lbd)] == [["eth0", "eth1"], ["eth0"]]
        for family in (4, 6):
            for close in (False, True):
                seen = uneven.wrk(family, connections=32, seconds=1, close=close)
                assert seen.requests > 500 and seen.errors == 0
            for reverse in (False, True):
                assert uneven.iperf3(family, seconds=1, reverse=reverse).bits_per_second > 50e6
            assert uneven.dnsperf(family, queries=2000).lost == 0
        first, second = workers(lbd)
        # Connections of both; what the second one has for eth1 goes the way of what belongs to the other one
        assert second["handed_out"] - second["misplaced"] > 1000
        assert first["handed_in"] >= second["handed_out"] - 64 and first["handed_out"] == first["misplaced"]
        assert second["handed_in"] > 1000 and queue(second, "eth0")["tx_packets"] > 1000
        assert queue(first, "eth1")["tx_packets"] > second["handed_out"] - second["misplaced"]
        assert lbd.get("/v1/status")["problems"] == []
        lost = drops(lbd)
        assert lost["no_tx_port"] == lost["tx_ring_full"] == 0, lost
        assert [w["restarts"] for w in workers(lbd)] == [0, 0]
    finally:
        assert lbd.stop() == 0


def test_too_few_queues_are_refused(uneven: Testbed) -> None:
    said = refused(uneven, uneven.config(workers={"count": 3}))
    assert "3 workers" in said and "2 receive queues" in said
    assert "workers.count = 2" in said and "ethtool -L" in said


def test_more_queues_than_workers_are_refused(uneven: Testbed) -> None:
    said = refused(uneven, uneven.config(workers={"count": 1}))
    assert "eth0 has 2 receive queues" in said
    assert "workers.count = 2" in said and "ethtool -L eth0" in said


@pytest.mark.parametrize("others", ["require", "auto", "off"])
def test_zero_copy_that_is_demanded_and_not_to_be_had_is_refused(uneven: Testbed, others: str) -> None:
    settings = uneven.settings()
    for interface, zero_copy in zip(settings["interface"], ("require", others), strict=True):
        interface["zero_copy"] = zero_copy
    said = refused(uneven, config_text(settings))
    assert "zero-copy" in said and "eth0" in said and 'zero_copy = "auto"' in said


# --- memory -----------------------------------------------------------------------------------------------------------

THP = Path("/sys/kernel/mm/transparent_hugepage")
collapses = pytest.mark.skipif(
    kernel_version(platform.release()) < (6, 1) or not THP.exists(),
    reason="MADV_COLLAPSE takes Linux 6.1 with transparent huge pages",
)


def huge_share(pid: int, file: str) -> float:
    """Of what a process has mapped of a file, the part that is mapped by huge pages of a memory file system."""
    size = huge = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:  # a mapping's first line
            inside = len(words) > 5 and words[5].rpartition("/")[2].removeprefix("memfd:") == file
        elif inside:
            size += int(words[1]) if words[0] == "Size:" else 0
            huge += int(words[1]) if words[0] == "ShmemPmdMapped:" else 0
    assert size, f"{file} is not mapped"
    return huge / size


def need_huge_pages(mebibytes: int) -> None:
    """Skips where the machine can't make so many now; it has to find room for each, and other tests run beside this one."""
    fd = os.memfd_create("probe")
    try:
        os.ftruncate(fd, mebibytes << 20)
        got = shm.collapse(fd) >> 20
    finally:
        os.close(fd)
    if got < mebibytes:
        pytest.skip(f"the kernel makes {got} MiB of huge pages now, not {mebibytes}")


@collapses
def test_frames_and_tables_lie_in_huge_pages(single: Testbed) -> None:
    """Whatever transparent_hugepage/shmem_enabled says, which is mostly `never`; the connections of the worker before, too."""
    need_huge_pages(256)
    # of other sizes than the tests before, so that the connection file is made anew
    text = single.config(tables={"hugepages": "auto", "connections_ipv4": 300_000})
    for start in ("first", "second"):
        lbd = single.lbd(text)
        try:
            status, [worker] = lbd.get("/v1/status"), workers(lbd)
            assert status["frames"]["hugepages"] is True
            assert not [note for note in status["notes"] if "huge pages" in note]
            for file, least in (("conn-0", 0.9), ("lbd-area", 0.9), ("lbd-host", 0.75), ("lbd-worker-0", 0.3)):
                assert huge_share(worker["pid"], file) > least, (start, file)
            assert single.curl(4).status == 200
        finally:
            assert lbd.stop() == 0


def test_no_huge_pages_where_none_are_wanted(single: Testbed) -> None:
    lbd = single.lbd(single.config(tables={"hugepages": "off", "connections_ipv4": 310_000}))
    try:
        assert lbd.get("/v1/status")["frames"]["hugepages"] is False
        [worker] = workers(lbd)
        if "[never]" in (THP / "shmem_enabled").read_text():
            assert not huge_share(worker["pid"], "conn-0")
    finally:
        assert lbd.stop() == 0


# --- how to poll ------------------------------------------------------------------------------------------------------


def test_each_way_to_poll_serves(single: Testbed, record_property: Any) -> None:
    """One worker, one queue; from one mode to the next by a reload. CPU time is told, not judged: the machine has
    other work. `busy` alone never sleeps."""
    lbd = single.lbd(single.config(workers={"poll": POLL_MODES[0]}))
    try:
        for mode in POLL_MODES:
            lbd.config_file.write_text(single.config(workers={"poll": mode}))
            lbd.call("POST", "/v1/reload")
            assert lbd.get("/v1/status")["poll"] == mode
            for family in (4, 6):
                assert single.curl(family).status == 200
                seen = single.wrk(family, connections=16, seconds=1, close=family == 6)
                assert seen.requests > 300 and seen.errors == 0, mode
            assert single.iperf3(4, seconds=1).bits_per_second > 50e6
            share = idle_cpu(lbd)
            record_property(f"idle CPU, {mode}", f"{share:.0%}")
            print(f"{mode}: {share:.0%} of a core when idle, {seen.rate:,.0f} connections/s")
            if mode == "busy":
                assert not workers(lbd)[0]["sleeping"]
            else:
                wait_until(f"an idle worker sleeps ({mode})", lambda: workers(lbd)[0]["sleeping"], 5)
                assert share < 0.5, mode
        assert workers(lbd)[0]["restarts"] == 0
    finally:
        assert lbd.stop() == 0


QUERIES = 25_000
CLIENT_OF_MANY = """
import socket, sys
for _ in range(int(sys.argv[2])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"no query", (sys.argv[1], 53))
"""


def test_connections_end_in_time_though_nothing_comes_any_more(single: Testbed) -> None:
    """A worker that sleeps has all time to end connections: it doesn't go back to sleep while any is overdue."""
    timeout = 3
    text = single.config(services=("dns",), families=(4,), workers={"poll": "interrupt"}, timeouts={"udp": f"{timeout}s"})
    lbd = single.lbd(text)

    def there() -> int:
        [service] = lbd.get("/v1/services")["services"]
        return int(service["active"]) + int(service["inactive"])

    try:
        single.run(single.client, [sys.executable, "-c", CLIENT_OF_MANY, single.vip(4), str(QUERIES)])
        most = there()
        assert most > QUERIES / 4  # ports are drawn by chance, and the first may be over
        last = os.times().elapsed
        wait_until("all connections are over", lambda: there() == 0, timeout + 3)
        print(f"{most} connections, over {os.times().elapsed - last - timeout:.2f} s after the last one's timeout")
    finally:
        assert lbd.stop() == 0


def idle_cpu(lbd: Daemon) -> float:
    """The worker's CPU time per second while the health checks' answers, which are the kernel's, are all there is."""
    pid = workers(lbd)[0]["pid"]

    def used() -> float:
        with open(f"/proc/{pid}/stat") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    start, began = used(), os.times().elapsed
    wait_until("a second has passed", lambda: os.times().elapsed >= began + 1, 5, every=0.25)
    return (used() - start) / (os.times().elapsed - began)


# --- a receiver that does not run -------------------------------------------------------------------------------------

RING, FRAMES = 1024, 8192
HOLE = "10.99.0.11"  # a real server that nothing comes back from
# What holds frames: a device below that has a queue, which is let out at 1 kbit/s. (veth alone has none that one could
# stop: a bridge or the IP layer behind it gives a packet's frame back at once.)
HELD = "tbf rate 1kbit burst 2000 limit 100000000"


@pytest.fixture
def lopsided(single: Testbed) -> Iterator[tuple[Testbed, Daemon]]:
    """lbd with the testbed's services, behind eth1; one whose real server is behind eth0, where the client is; and one
    behind `slow`, a macvlan above a link that nobody listens at."""
    lb, switch = single.balancer, single.topology.switch
    lb.ip(f"link add eth2 type veth peer name hole netns {switch.name}")
    tried = lb.run(["sh", "-c", "ip link add link eth2 name slow type macvlan mode private 2>&1 || :"])
    if tried.strip():
        lb.ip("link del eth2")
        pytest.skip(f"needs macvlan: {tried.strip()}")
    switch.ip("link set hole up")
    lb.ip("link set eth2 up", "link set slow up", "address add 10.99.0.1/24 dev slow")
    lb.ip(f"neighbour add {HOLE} lladdr 02:1b:d0:03:00:0b dev slow nud permanent")
    server = single.popen(single.client, [sys.executable, "-c", ONE_LINE_SERVER, str(LOCAL)])
    settings = single.settings(families=[4])
    settings["interface"].append({"name": "slow", "attach": "generic", "zero_copy": "off"})
    settings["interface"] = [{**i, "ring": RING} for i in settings["interface"]]
    settings["tables"]["frames"] = FRAMES  # a little more than twice the sum of the rings, which is advised
    settings["service"] += [
        {
            "name": name, "address": f"{single.vip(4)}:{port}", "protocol": protocol, "scheduler": "rr",
            "interface": "eth0", "real_server": [{"address": f"{real}:{port}"}],
        }
        for name, protocol, port, real in (
            ("local", "tcp", LOCAL, single.topology.client.address4), ("hole", "udp", 9, HOLE)
        )
    ]  # fmt: skip
    lbd = single.lbd(config_text(settings))
    try:
        wait_until("the local service answers", lambda: local(single).status == 200, 10)
        yield single, lbd
    finally:
        switch.ip("link set lb up")
        lbd.end()
        lb.ip("link del eth2")  # and what is above it
        server.kill()


ONE_LINE_SERVER = """
import http.server, sys
class One(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")
    def log_message(self, *what):
        pass
http.server.ThreadingHTTPServer(("", int(sys.argv[1])), One).serve_forever()
"""

FLOOD = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
while True:
    for n in range(50):
        try:
            sock.send(bytes(64))
        except OSError:
            pass
    time.sleep(0.002)
"""


def local(testbed: Testbed) -> Curl:
    return curl(testbed.client, url(testbed.vip(4), LOCAL), timeout=2)


def test_a_link_that_is_down_is_counted_and_comes_back(lopsided: tuple[Testbed, Daemon]) -> None:
    testbed, lbd = lopsided
    kept = testbed.popen(testbed.client, ["iperf3", "-c", testbed.vip(4), "-t", "30"], stdout=subprocess.DEVNULL)
    wait_until("iperf3 sends", lambda: queue(workers(lbd)[0], "eth1")["tx_packets"] > 1000, 10)
    testbed.topology.switch.ip("link set lb down")
    # Until the mirror has heard of it the kernel drops and says nothing; from then on lbd does, with a reason. With
    # the link the kernel takes away its neighbours
    wait_until("lbd sees the link down", lambda: "eth1 is down" in lbd.get("/v1/status")["problems"], 2)
    wait_until("it counts what it drops", lambda: drops(lbd)["link_down"] + drops(lbd)["no_neighbor"], 10)
    for _ in range(10):
        assert local(testbed).status == 200
    assert testbed.curl(4, timeout=1).status == 0
    testbed.topology.switch.ip("link set lb up")
    sent = queue(workers(lbd)[0], "eth1")["tx_packets"]
    wait_until("the services are back", lambda: testbed.curl(4, timeout=1).status == 200, 10)
    wait_until("iperf3 goes on", lambda: queue(workers(lbd)[0], "eth1")["tx_packets"] > sent + 1000, 10)
    kept.kill()
    sound(testbed, lbd)


def test_a_receiver_that_holds_packets_stalls_its_own_port_alone(lopsided: tuple[Testbed, Daemon]) -> None:
    testbed, lbd = lopsided
    testbed.balancer.run(["tc", "qdisc", "replace", "dev", "eth2", "root", *HELD.split()])
    flood = testbed.popen(testbed.client, [sys.executable, "-c", FLOOD, testbed.vip(4), "9"])
    try:
        wait_until("the port is full", lambda: queue(workers(lbd)[0], "slow")["tx_full"] > 1000, 20)
        stuck, lost = workers(lbd)[0], drops(lbd)["tx_ring_full"]
        assert lost > 1000
        assert RING < queue(stuck, "slow")["tx_outstanding"] <= 2 * RING
        for family_port in ("eth0", "eth1"):
            assert queue(stuck, family_port)["fill_level"] > RING // 2
        for _ in range(10):
            assert local(testbed).status == 200
        seen = testbed.wrk(4, connections=16, seconds=1)
        assert seen.requests > 300 and seen.errors == 0
        assert drops(lbd)["tx_ring_full"] > lost  # it went on meanwhile
        assert [queue(workers(lbd)[0], name)["tx_full"] for name in ("eth0", "eth1")] == [0, 0]
    finally:
        flood.kill()
        flood.wait()
    testbed.balancer.run(["tc", "qdisc", "del", "dev", "eth2", "root"])
    wait_until("the frames are back", lambda: queue(workers(lbd)[0], "slow")["tx_outstanding"] == 0, 5)
    sent = transmitted(testbed, "eth2")
    testbed.client.run([sys.executable, "-c", FLOOD.replace("while True", "for _ in range(10)"), testbed.vip(4), "9"])
    wait_until("the port sends again", lambda: transmitted(testbed, "eth2") >= sent + 500, 5)
    sound(testbed, lbd)


def transmitted(testbed: Testbed, name: str) -> int:
    """Packets, as the kernel counts."""
    link = json.loads(testbed.balancer.run(["ip", "-json", "-stats", "link", "show", name]))[0]
    return int(link["stats64"]["tx"]["packets"])


def sound(testbed: Testbed, lbd: Daemon) -> None:
    """Everything serves, the same worker as before, and every frame is accounted for."""
    assert local(testbed).status == 200
    seen = testbed.wrk(4, connections=16, seconds=1)
    assert seen.requests > 300 and seen.errors == 0
    assert workers(lbd)[0]["restarts"] == 0

    def at_rest() -> bool:
        w = workers(lbd)[0]
        filled = sum(q["fill_level"] + q["tx_outstanding"] for q in w["queues"])
        return bool(w["free_frames"] + filled == w["frames"])

    wait_until("all frames are accounted for", at_rest, 10)
