"""Sockets, the steering program and the ring functions, on veth.

    client c0 ───── l0 [ XDP, socket 0 | a bare forwarder | socket 1, XDP ] l1 ───── s0 server

The forwarder (tests/netns/_port.pyx) sends out of one port what came in by the other; no engine, no master.
The test's thread lives in the balancer's namespace.
"""

import ctypes
import errno
import json
import os
import platform
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lbd.testbed.netns import Namespace, run, wait_until
from lbd.xdp import kernel
from lbd.xdp._xsk import Program, Socket, XdpError, busy_poll, open_socket, statistics
from tests.netns.space import enter

_port = pytest.importorskip("tests.netns._port", reason="tests/netns/_port.pyx is not built (make build)")

pytestmark = [pytest.mark.netns, pytest.mark.root]

ROOT = Path(__file__).parents[2]
FRAMES, RING, CHUNK = 1024, 256, 2048
VIP, LIP = bytes([192, 0, 2, 10]), bytes([10, 0, 0, 10])
ETH = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
NATIVE, GENERIC = 4, 2  # XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
SO_RCVBUFFORCE = 33


def query(number: int = 0, port: int = 53) -> bytes:
    """From the client, to the service."""
    return bytes(
        Ether(**ETH) / IP(src="198.51.100.7", dst="192.0.2.10") / UDP(sport=4000, dport=port) / mark(number)
    )


def answer(number: int = 0, port: int = 20000) -> bytes:
    """From the server, to a local address."""
    return bytes(
        Ether(**ETH) / IP(src="10.0.1.1", dst="10.0.0.10") / UDP(sport=53, dport=port) / mark(number)
    )


def mark(number: int) -> Raw:
    return Raw(b"lbdt" + struct.pack("!I", number) + b"." * 40)


class Wire:
    """The far end of a veth pair, by a packet socket."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self.socket.bind((name, 3))
        self.socket.setblocking(False)

    def send(self, frame: bytes) -> None:
        try:
            self.socket.send(frame)
        except (BlockingIOError, OSError) as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN):
                raise

    def received(self) -> list[bytes]:
        """Frames of this test that have arrived, not the ones sent from here."""
        found = []
        while True:
            try:
                frame, where = self.socket.recvfrom(4096)
            except BlockingIOError:
                return found
            if where[2] != socket.PACKET_OUTGOING and b"lbdt" in frame:
                found.append(frame)


class Lab:
    """Three namespaces, two pairs, and an area of frames with its ledger."""

    def __init__(self) -> None:
        self.names = {role: Namespace(f"lbdt-x{os.getpid()}-{role}") for role in ("client", "lb", "server")}
        self.sockets: list[Socket] = []
        self.programs: list[Program] = []

    def up(self) -> None:
        for name in self.names.values():
            name.add()
        lb = self.names["lb"]
        for local, far, role in (("l0", "c0", "client"), ("l1", "s0", "server")):
            lb.ip(
                f"link add {local} type veth peer name {far} netns {self.names[role].name}",
                f"link set {local} up",
            )
            self.names[role].ip(f"link set {far} up")
            # quiet: no router solicitations among the test's packets
            for where, end in ((self.names[role], far), (lb, local)):
                where.sysctl(**{f"net__ipv6__conf__{end}__disable_ipv6": 1})
        self.client = self.inside("client", lambda: Wire("c0"))
        self.server = self.inside("server", lambda: Wire("s0"))
        self.inside("lb", lambda: None, stay=True)
        self.index = [socket.if_nametoindex("l0"), socket.if_nametoindex("l1")]
        self.area = os.memfd_create("area")
        os.ftruncate(self.area, _port.area_bytes(FRAMES))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        ]
        self.address = libc.mmap(None, _port.area_bytes(FRAMES), 3, 1, self.area, 0)

    def inside(self, role: str, act: Callable[[], Any], stay: bool = False) -> Any:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self.names[role].path, os.O_RDONLY)
        try:
            enter(there)
            return act()
        finally:
            if not stay:
                enter(own)
            os.close(own)
            os.close(there)

    def open(self, number: int, frames: range | None = None, **options: Any) -> Socket:
        if frames is None:
            frames = range(number * RING, (number + 1) * RING)
        settings: dict[str, Any] = {
            "ifindex": self.index[number],
            "ifname": f"l{number}",
            "queue": 0,
            "iface": number,
            "area": self.address,
            "area_bytes": FRAMES * CHUNK,
            "prefill_frames": frames,
            **dict.fromkeys(("fill", "comp", "rx", "tx"), RING),
        }
        opened = open_socket(**(settings | options))
        self.sockets.append(opened)
        return opened

    def close(self, sock: Socket) -> None:
        self.sockets.remove(sock)
        os.close(sock.fd)

    def program(self) -> Program:
        self.programs.append(Program.load())
        return self.programs[-1]

    def ready(self) -> Program:
        """Both sockets over one UMEM, the program attached, a service and a local address."""
        self.open(0)
        self.open(1, shared_with=self.sockets[0].fd)
        program = self.program()
        for number in (0, 1):
            program.attach(self.index[number], f"l{number}")
            program.set_iface(self.index[number], number)
            program.set_socket(number, 0, self.sockets[number].fd)
        program.set_service(4, VIP, 53, 17)
        program.set_lip(4, LIP, 10240, 65535)
        return program

    def forwarder(self) -> Any:
        made = _port.Forwarder(self.area, FRAMES, [s.fd for s in self.sockets], RING)
        made.repair()
        return made

    def attached(self, number: int) -> dict[str, Any] | None:
        link = json.loads(run(["ip", "-j", "-d", "link", "show", f"l{number}"]))[0]
        found = link.get("xdp")
        return found if found and found.get("mode", 0) != 0 else None

    def down(self) -> None:
        for program in self.programs:
            program.close()
        for sock in self.sockets:
            os.close(sock.fd)


@pytest.fixture
def lab() -> Iterator[Lab]:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    made = Lab()
    try:
        made.up()
        yield made
    finally:
        made.down()
        enter(own)
        os.close(own)
        for name in made.names.values():
            name.remove()


def sound(forwarder: Any) -> None:
    """Every frame is in one place, and the ledger says in which: exact, also while the kernel holds some."""
    held, ledger = forwarder.held(), forwarder.ledger()
    for port in (0, 1):
        assert ledger.get((_port.FILL, port), 0) == held[port][0]
        assert ledger.get((_port.TX, port), 0) == held[port][1]
    assert ledger.get((_port.FREE, 0), 0) == forwarder.free
    assert sum(ledger.values()) == FRAMES == forwarder.free + sum(map(sum, held))


def pump(forwarder: Any, wire: Wire, count: int, seconds: float = 5) -> list[bytes]:
    """Forward until `count` frames have arrived there."""
    got: list[bytes] = []

    def arrived() -> bool:
        forwarder.forward()
        got.extend(wire.received())
        return len(got) >= count

    wait_until(f"{count} frames, {len(got)} so far", arrived, seconds, every=0)
    return got


# ---- sockets -----------------------------------------------------------------------------------------------


def test_copy_mode_is_found_and_zero_copy_refused_where_it_is_demanded(lab: Lab) -> None:
    with pytest.raises(XdpError, match=r"^zero-copy on l0 queue 0: .*zero_copy = \"auto\"") as refused:
        lab.open(0, zero_copy="require")
    assert refused.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)
    assert "\n" not in str(refused.value)
    assert lab.open(0, zero_copy="auto").zero_copy is False
    assert lab.open(1, zero_copy="off").zero_copy is False


def test_all_sockets_of_one_umem_are_alike(lab: Lab) -> None:
    first = lab.open(0)
    with pytest.raises(XdpError, match="zero_copy"):
        lab.open(1, shared_with=first.fd, zero_copy="require")
    assert lab.open(1, shared_with=first.fd, zero_copy="off").zero_copy is False


def test_who_completes_checksums(lab: Lab) -> None:
    can = kernel.kernel_version(platform.release()) >= (6, 11)
    first = lab.open(0, completes=True)
    assert first.completes is can
    assert lab.open(1, shared_with=first.fd, completes=first.completes).completes is can
    lab.close(lab.sockets[1])
    lab.close(first)
    assert lab.open(0).completes is False


def test_prefilled_frames_are_in_the_ledger_and_back_after_a_refusal(lab: Lab) -> None:
    def ledger() -> bytes:
        return os.pread(lab.area, FRAMES, FRAMES * CHUNK)

    with pytest.raises(XdpError):
        lab.open(1, zero_copy="require")
    assert ledger() == bytes(FRAMES)
    lab.open(1, frames=range(8, 24))
    assert ledger()[:32] == bytes(8) + bytes([1 + 16]) * 16 + bytes(8)


def test_busy_queue_is_a_clear_refusal(lab: Lab) -> None:
    lab.open(0)
    with pytest.raises(XdpError, match=r"^l0 queue 0 busy: .*stop it first") as refused:
        lab.open(0)
    assert refused.value.errno == errno.EBUSY


def test_the_holder_of_a_queue_is_named(lab: Lab) -> None:
    assert kernel.queue_holder(lab.index[0], 0) is None
    lab.open(0)
    holder = kernel.queue_holder(lab.index[0], 0)
    if holder is None:
        pytest.skip("this kernel does not tell who has AF_XDP sockets (CONFIG_XDP_SOCKETS_DIAG)")
    assert holder.endswith(f"(process {os.getpid()})")
    assert kernel.queue_holder(lab.index[0], 1) is None


def test_a_queue_closed_just_now_is_waited_for(lab: Lab) -> None:
    for _ in range(5):
        lab.close(lab.open(0))
    lab.open(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": 7}, r"binding l0 queue 7: .*ethtool -l l0"),
        ({"rx": 100}, r"ring of 100 entries .*power of two"),
        ({"ifindex": 4711}, r"no interface l0 any more"),
    ],
)
def test_refusals_name_the_remedy(lab: Lab, options: dict[str, Any], words: str) -> None:
    with pytest.raises(XdpError, match=words):
        lab.open(0, **options)
    lab.open(0)  # nothing was left behind


@pytest.mark.parametrize(
    "options",
    [
        {"zero_copy": "maybe"},
        {"frames": range(RING + 1)},
        {"frames": range(FRAMES, FRAMES + 1)},
        {"iface": 16},
    ],
    ids=["zero_copy", "too many frames", "frame number", "iface"],
)
def test_nonsense_is_refused_before_the_kernel_is_asked(lab: Lab, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        lab.open(0, **options)


def test_many_umems_over_one_area(lab: Lab) -> None:
    """One for each worker."""
    lab.open(0)
    lab.open(1, shared_with=None)


def test_busy_poll_says_when_it_has_no_effect(lab: Lab) -> None:
    assert busy_poll(lab.open(0).fd, 20, 64) is False  # veth ties no NAPI to its queues


def test_what_the_kernel_tells(lab: Lab) -> None:
    assert kernel.probe().problems == ()
    assert kernel.driver_zero_copy(lab.index[0]) in (False, None)
    assert kernel.driver_zero_copy(4711) is None


# ---- the program -------------------------------------------------------------------------------------------


def test_nothing_stays_attached_when_the_last_descriptor_is_closed(lab: Lab) -> None:
    program = lab.ready()
    assert lab.attached(0) and lab.attached(1)
    assert program.attached().keys() == set(lab.index)
    copy = os.dup(program.fds[f"link:{lab.index[0]}"])
    program.close()
    wait_until("l1 is free", lambda: lab.attached(1) is None, 2)
    assert lab.attached(0)  # another process might hold it
    os.close(copy)
    wait_until("l0 is free", lambda: lab.attached(0) is None, 2)


def test_detach_is_for_everybody(lab: Lab) -> None:
    program = lab.ready()
    copy = os.dup(program.fds[f"link:{lab.index[0]}"])
    program.detach(lab.index[0])
    assert lab.attached(0) is None
    assert program.attached().keys() == {lab.index[1]}
    program.detach(lab.index[0])  # again: harmless
    os.close(copy)


def test_an_interface_that_vanished_is_not_attached(lab: Lab) -> None:
    program = lab.ready()
    run(["ip", "link", "del", "l1"])
    assert program.attached().keys() == {lab.index[0]}
    program.detach(lab.index[1])


def test_kill_9_of_the_holder_leaves_nothing(lab: Lab) -> None:
    code = (
        "import socket, sys; from lbd.xdp._xsk import Program; p = Program.load()\n"
        "p.attach(socket.if_nametoindex('l0'), 'l0'); print('on', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdout.readline() == b"on\n"
        assert lab.attached(0)
        child.kill()
    wait_until("l0 is free", lambda: lab.attached(0) is None, 2)


@pytest.mark.parametrize("mode", [NATIVE, GENERIC])
def test_a_foreign_program_is_left_alone_and_named(lab: Lab, mode: int) -> None:
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    instructions = (ctypes.c_uint64 * 2)(0x2_0000_00B7, 0x95)  # r0 = XDP_PASS; exit
    loaded = libbpf.bpf_prog_load(6, b"foreign", b"GPL", instructions, ctypes.c_size_t(2), None)
    assert loaded >= 0
    assert libbpf.bpf_xdp_attach(lab.index[0], loaded, mode, None) == 0
    os.close(loaded)
    program = lab.program()
    for asked in ("native", "generic"):
        with pytest.raises(XdpError, match=r"attaching to l0: .*'foreign' .*xdp off"):
            program.attach(lab.index[0], "l0", asked)
    assert libbpf.bpf_xdp_attach(lab.index[0], -1, mode, None) == 0
    program.attach(lab.index[0], "l0")


def test_a_second_lbd_is_refused(lab: Lab) -> None:
    lab.program().attach(lab.index[0], "l0")
    with pytest.raises(XdpError, match="another lbd serves l0: stop it first"):
        lab.program().attach(lab.index[0], "l0")


def test_service_traffic_without_a_socket_is_dropped_and_counted(lab: Lab) -> None:
    program = lab.ready()
    program.clear_socket(0, 0)
    before = program.counters()[0]
    for number in range(10):
        lab.client.send(query(number))
        lab.client.send(query(number, port=22))
    wait_until(
        "20 packets counted", lambda: sum(program.counters()[0].values()) >= sum(before.values()) + 20, 2
    )
    after = program.counters()[0]
    assert {name: after[name] - before[name] for name in after} == {"pass": 10, "redirect": 0, "drop": 10}


def test_a_closed_socket_leaves_the_map_by_itself(lab: Lab) -> None:
    program = lab.ready()
    lab.client.send(query())
    wait_until("redirected", lambda: program.counters()[0]["redirect"] == 1, 2)
    lab.close(lab.sockets[0])

    def dropped() -> bool:
        lab.client.send(query())
        return program.counters()[0]["drop"] > 0

    wait_until("dropped", dropped, 2)


# ---- the rings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_packets_pass_both_ways_unchanged(lab: Lab, mode: str) -> None:
    program = lab.ready()
    if mode == "generic":
        for number in (0, 1):
            program.detach(lab.index[number])
            program.attach(lab.index[number], f"l{number}", "generic")
    forwarder = lab.forwarder()
    there, back = [query(n) for n in range(200)], [answer(n) for n in range(200)]
    for one, other in zip(there, back, strict=True):
        lab.client.send(one)
        lab.server.send(other)
    assert pump(forwarder, lab.server, 200) == there
    assert pump(forwarder, lab.client, 200) == back
    sound(forwarder)
    assert program.counters()[0]["redirect"] == program.counters()[1]["redirect"] == 200
    for port in (0, 1):
        stat = forwarder.stat(port)
        assert (stat["rx_pkts"], stat["tx_pkts"], stat["tx_errors"], stat["bound"]) == (200, 200, 0, 1)
        assert stat["tx_kicks"] > 0
    forwarder.close()


def test_no_frame_is_lost_over_many_laps_of_the_rings(lab: Lab) -> None:
    lab.ready()
    forwarder = lab.forwarder()
    for _ in range(40):
        for number in range(100):
            lab.client.send(query(number))
            lab.server.send(answer(number))
        pump(forwarder, lab.server, 100)
        pump(forwarder, lab.client, 100)
        sound(forwarder)
    wait_until("all is sent", lambda: forwarder.forward() == 0 and forwarder.held()[0][1] == 0, 2, every=0)
    forwarder.close()


def test_a_dead_link_blocks_nobody_and_is_retried(lab: Lab) -> None:
    lab.ready()
    forwarder = lab.forwarder()
    run(["ip", "link", "set", "l1", "down"])
    for number in range(3 * RING):
        lab.client.send(query(number))
        start = time.monotonic()
        forwarder.forward()
        assert time.monotonic() - start < 1
    stat = forwarder.stat(1)
    assert stat["tx_full"] > 0 and stat["tx_errors"] == 0
    assert forwarder.held()[1][1] <= RING
    sound(forwarder)
    lab.server.send(answer())
    run(["ip", "link", "set", "l1", "up"])
    assert len(pump(forwarder, lab.server, RING)) >= RING  # what lay in the ring leaves without a new packet
    lab.server.send(answer())
    pump(forwarder, lab.client, 1)
    sound(forwarder)
    forwarder.close()


def test_a_descriptor_that_the_kernel_would_swallow_is_refused(lab: Lab) -> None:
    lab.ready()
    forwarder = lab.forwarder()
    frame = forwarder.take(1)[0] * CHUNK
    assert not forwarder.put(0, frame, 0)
    assert not forwarder.put(0, frame + 1000, CHUNK - 999)
    assert not forwarder.put(0, FRAMES * CHUNK, 60)
    assert forwarder.put(0, frame + 256, 60)
    assert forwarder.submit(0) == 1 and forwarder.submit(0) == 0
    assert forwarder.kick(0) == 0
    wait_until("reclaimed", lambda: forwarder.reclaim(0) == [frame // CHUNK], 2)
    assert statistics(lab.sockets[0].fd)["tx_invalid_descs"] == 0
    forwarder.close()


def test_tx_ring_full_is_said(lab: Lab) -> None:
    lab.ready()
    forwarder = lab.forwarder()
    frames = forwarder.take(RING + 1)
    assert [forwarder.put(1, frame * CHUNK + 256, 60) for frame in frames] == [True] * RING + [False]
    assert sorted(forwarder.ring(1, 5)) == sorted(frames[:RING])  # staged, not published
    forwarder.close()


def test_a_successor_takes_back_what_was_staged(lab: Lab) -> None:
    lab.ready()
    first = lab.forwarder()
    frames = first.take(5)
    for frame in frames:
        assert first.put(1, frame * CHUNK + 256, 60)
    first.close()
    second = _port.Forwarder(lab.area, FRAMES, [s.fd for s in lab.sockets], RING)
    assert second.repair() == 5
    sound(second)
    assert second.repair() == 0
    lab.client.send(query())
    assert pump(second, lab.server, 1) == [query()]
    second.close()


def test_a_new_socket_starts_from_its_own_words(lab: Lab) -> None:
    """What was staged is told by words in shared memory: the old socket's mean nothing for the new one."""
    program = lab.ready()
    first = lab.forwarder()
    for number in range(100):
        lab.client.send(query(number))
    pump(first, lab.server, 100)
    for frame in first.take(3):
        first.put(1, frame * CHUNK + 256, 60)
    first.close()
    for sock in tuple(lab.sockets):
        lab.close(sock)
    os.pwrite(lab.area, bytes(FRAMES), FRAMES * CHUNK)  # all frames came home with the sockets
    lab.open(0)
    lab.open(1, shared_with=lab.sockets[0].fd)
    for number in (0, 1):
        program.set_socket(number, 0, lab.sockets[number].fd)
    second = _port.Forwarder(lab.area, FRAMES, [s.fd for s in lab.sockets], RING)
    assert second.repair() == 0
    sound(second)
    lab.client.send(query())
    pump(second, lab.server, 1)
    assert second.stat(0)["rx_pkts"] == 101
    second.close()


def test_kernel_counters_add_up_over_successors(lab: Lab) -> None:
    lab.ready()
    forwarder = lab.forwarder()
    for number in range(2 * RING):
        lab.client.send(query(number))
    wait_until(
        "counted", lambda: forwarder.stat(0)["rx_fill_empty"] + forwarder.stat(0)["rx_ring_full"] >= RING, 2
    )
    counted = forwarder.stat(0)
    forwarder.close()
    successor = lab.forwarder()
    again = successor.stat(0)
    assert all(again[name] == counted[name] for name in counted if name.startswith("rx_"))
    lab.client.send(query())
    lost = counted["rx_ring_full"] + counted["rx_fill_empty"]

    def one_more() -> bool:
        stat = successor.stat(0)
        return stat["rx_ring_full"] + stat["rx_fill_empty"] == lost + 1

    wait_until("one more is counted", one_more, 2)
    successor.close()


def test_unmatched_traffic_stays_the_kernels(lab: Lab) -> None:
    program = lab.ready()
    forwarder = lab.forwarder()
    lab.client.send(bytes(Ether(**ETH) / IP(dst="192.0.2.10") / TCP(dport=22) / mark(1)))
    lab.server.send(answer(port=10239))
    for port in (0, 1):
        wait_until("passed", lambda port=port: program.counters()[port]["pass"] == 1, 2)
    assert forwarder.forward() == 0
    forwarder.close()


RUNNER = """
import sys
from tests.netns import _port
area, one, other = map(int, sys.argv[1:4])
f = _port.Forwarder(area, int(sys.argv[4]), [one, other], int(sys.argv[5]))
f.repair()
print("on", flush=True)
f.run()
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_no_frame(lab: Lab) -> None:
    """Ten workers, killed under traffic both ways: each time the count is exact, and the sockets go on."""
    lab.ready()
    chance = random.Random(2)
    stop = threading.Event()
    fds = [lab.area, *(s.fd for s in lab.sockets)]

    def traffic() -> None:
        number = 0
        while not stop.wait(0.001):
            for _ in range(24):
                number += 1
                lab.client.send(query(number))
                lab.server.send(answer(number))

    sender = threading.Thread(target=traffic)
    sender.start()
    carried = 0
    try:
        for _ in range(10):
            arguments = [*map(str, fds), str(FRAMES), str(RING)]
            with subprocess.Popen(
                [sys.executable, "-c", RUNNER, *arguments], cwd=ROOT, pass_fds=fds, stdout=subprocess.PIPE
            ) as worker:
                assert worker.stdout and worker.stdout.readline() == b"on\n"
                wanted = chance.randint(1, 3000)
                got = 0
                deadline = time.monotonic() + 10
                while got < wanted:
                    assert time.monotonic() < deadline, f"{got} of {wanted} packets came through"
                    select.select([lab.server.socket, lab.client.socket], [], [], 1)
                    got += len(lab.server.received()) + len(lab.client.received())
                carried += got
                worker.kill()
            successor = _port.Forwarder(lab.area, FRAMES, [s.fd for s in lab.sockets], RING)
            assert successor.repair() <= 2 * 64
            sound(successor)
            rings = [frame for port in (0, 1) for ring in (2, 3) for frame in successor.ring(port, ring)]
            assert len(rings) == len(set(rings))
            successor.close()
    finally:
        stop.set()
        sender.join()
    last = lab.forwarder()
    wait_until(
        "all is sent", lambda: last.forward() == 0 and sum(tx for _, tx in last.held()) == 0, 5, every=0
    )
    sound(last)
    lab.client.received(), lab.server.received()
    lab.client.send(query(1))
    assert pump(last, lab.server, 1) == [query(1)]
    last.close()
    assert carried > 1000
