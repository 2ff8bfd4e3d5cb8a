"""The engine benchmark: frames and reference against scapy; wrong counts and wrong bytes give no figure; its documents."""

import json
import os
import subprocess
import sys
from array import array
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, Ether
from scapy.layers.sctp import SCTP

from bench import engine_case, engine_hop, engine_pause, engine_scale, instructions
from bench._engine import Bench, Floor, Hop, address, spin
from bench.engine_case import Context
from bench.figure import Figure
from bench.instructions_lines import WRONG_GUESSES, Profile, profile_read
from bench.reference import SHIM_GRE, forwarded, ones_sum, shim_gue, translated, tunnelled
from bench.reference import Path as Way
from bench.scene import BATCH, CLIENT, ESTABLISHED, MAC_LB, MAC_ROUTER, SERVER, SERVICE, SYN, Refused, Scene
from lbd.shm import _shm as shm

ROOT = Path(__file__).parents[2]
FEW = Context(passes=2)


@pytest.fixture(params=[(4, 6), (4, 17), (4, 132), (6, 6), (6, 17)], ids=["tcp4", "udp4", "sctp4", "tcp6", "udp6"])
def scene(request: pytest.FixtureRequest) -> Scene:
    af, proto = request.param
    return Scene(af, proto, flows=1000, room=BATCH).open()


def scapy_again(frame: bytes) -> bytes:
    """The frame as scapy writes it, checksums and lengths worked out anew."""
    packet = Ether(frame)
    for layer in (IP, TCP, UDP, SCTP):
        if layer in packet:
            packet[layer].chksum = None
    return bytes(Ether(bytes(packet)))


def test_frames_are_right(scene: Scene) -> None:
    for direction in (0, 1):
        scene.bench.plan_known(64, 1000, direction)
        for frame in scene.bench.frames_planned():
            assert len(frame) == (62 if scene.proto == 132 else 60 if scene.af == 4 else 74)
            assert scapy_again(frame) == frame


def test_reference_is_what_scapy_says(scene: Scene) -> None:
    scene.bench.plan_known(64, 1000, 0)
    for n, frame in enumerate(scene.bench.frames_planned()):
        way = Way(MAC_ROUTER, MAC_LB, address(CLIENT, n, scene.af), 2000 + n, address(SERVICE, n, scene.af), 81)
        packet = Ether(frame)
        ip = packet[IP] if scene.af == 4 else packet[IPv6]
        l4 = packet[{6: TCP, 17: UDP, 132: SCTP}[scene.proto]]
        packet.src, packet.dst = ":".join(f"{b:02x}" for b in MAC_LB), ":".join(f"{b:02x}" for b in MAC_ROUTER)
        ip.src, ip.dst = (str(ip_address(a)) for a in (way.source, way.destination))
        l4.sport, l4.dport = way.sport, way.dport
        if scene.af == 4:
            ip.ttl -= 1
        else:
            ip.hlim -= 1
        assert forwarded(frame, way) == scapy_again(bytes(packet))


def test_reference_of_tunnels_is_what_scapy_says() -> None:
    scene = Scene()
    scene.bench.plan_each(0, 1, False, SYN)
    [frame] = scene.bench.frames_planned()
    source, server = address(CLIENT, 7, 4), address(SERVER, 7, 4)
    inner = Ether(frame)[IP]
    inner.ttl -= 1
    inner = IP(scapy_again(b"\0" * 12 + b"\x08\0" + bytes(inner))[14:54])  # without padding
    outer = {"src": str(ip_address(source)), "dst": str(ip_address(server)), "id": inner.id, "ttl": 64}
    gue = UDP(sport=50000, dport=6080, chksum=0) / b"\0\x04\0\0"
    for shim, packet in (
        ((4, b""), IP(**outer) / inner),
        (SHIM_GRE, IP(**outer) / GRE() / inner),
        (shim_gue(50000, 6080, 40), IP(**outer) / gue / bytes(inner)),
    ):
        left = tunnelled(frame, MAC_ROUTER, MAC_LB, source, server, shim)
        assert left == MAC_ROUTER + MAC_LB + b"\x08\0" + bytes(packet)


@pytest.mark.parametrize("proto", [6, 17])
def test_reference_of_nat64_is_what_scapy_says(proto: int) -> None:
    scene = Scene(6, proto)
    scene.bench.plan_each(0, 1, False, SYN)
    [six] = scene.bench.frames_planned()
    four = MAC_ROUTER + MAC_LB + b"\x08\0"
    source, destination = address(CLIENT, 7, 4), address(SERVER, 7, 4)
    l4 = Ether(six)[TCP if proto == 6 else UDP]
    l4.sport, l4.dport = 2000, 81
    l4.chksum = None
    four += bytes(IP(src=str(ip_address(source)), dst=str(ip_address(destination)), id=0x1234, ttl=63) / l4)
    assert translated(six, Way(MAC_ROUTER, MAC_LB, source, 2000, destination, 81), b"\x12\x34") == four
    back = Way(MAC_ROUTER, MAC_LB, address(SERVICE, 0, 6), 81, address(CLIENT, 0, 6), 2000)
    l4.sport, l4.dport = 81, 2000
    l4.chksum = None
    packet = IPv6(src=str(ip_address(back.source)), dst=str(ip_address(back.destination)), hlim=62) / l4
    assert translated(four, back, b"") == MAC_ROUTER + MAC_LB + b"\x86\xdd" + bytes(packet)


@pytest.mark.parametrize("mode", ["nat", "dr", "tunnel", "gre", "gue", "snat", "nat64"])
def test_packets_of_the_other_modes_are_right(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = (0,) if mode in ("dr", "tunnel", "gre", "gue") else (0, 1)
    found = list(engine_case.modes(FEW, mode, 1000, ways, None))
    assert [f.params["way"] for f in found] == [engine_case.WAYS[w] for w in ways]
    monkeypatch.setattr(engine_case, "MAC_LB", b"\x02\0\0\0\2\2")
    with pytest.raises(Refused, match="left as"):
        list(engine_case.modes(FEW, mode, 1000, ways, None))


def test_datagrams_scheduled_one_by_one_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    [f] = engine_case.scheduled(FEW, 1000, 1e9)
    assert f.met and f.case == "one-packet scheduling, mh"
    homes = dict.fromkeys(range(1000), b"\x02\0\0\0\2\2")
    scene = Scene(4, 17, 1000, scheduler="mh", mode="dr", one_packet=True).open()
    scene.bench.plan_known(64, 1000, 0)
    scene.bench.go()
    with pytest.raises(Refused, match="left as"):
        engine_case.check_scheduled(scene, 64, homes)


def test_persistent_clients_keep_their_real_servers() -> None:
    [f] = engine_case.new(FEW, 4, 6, 2048, "rr", None, clients=256)
    assert f.params["clients"] == 256 and "persistent" in f.case


def test_a_udp_checksum_of_zero_is_sent_as_ones() -> None:
    assert ones_sum(b"\xff\xff") == 0
    frame = Scene(4, 17, flows=1)
    frame.bench.plan_each(0, 1, False, 0)
    came = frame.bench.frames_planned()[0]
    way = Way(MAC_ROUTER, MAC_LB, b"\0\0\0\0", 0, b"\0\0\0\0", 0)
    zero = ones_sum(forwarded(came, way)[34:40] + forwarded(came, way)[42:60] + b"\0\0\0\x1a\0\x11")
    way = way._replace(sport=zero)  # what the sum then lacks to all ones
    assert forwarded(came, way)[40:42] == b"\xff\xff"


def test_every_packet_is_forwarded_and_right(scene: Scene) -> None:
    for way in range(3):
        for whole in (False, True):
            for burst in (1, 32, 64):
                assert engine_case.known_pass(scene, way, burst, whole) > 0
    assert scene.engine.counters()["verdicts"]["drop"] == 0


def test_no_figure_when_a_byte_is_wrong(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_case, "MAC_ROUTER", b"\x02\0\0\0\2\2")
    with pytest.raises(Refused, match="left as"):
        engine_case.known_pass(scene, 0)


def test_no_figure_when_packets_are_dropped(scene: Scene) -> None:
    scene.apply(shm.iface_set(0, 1, mac=MAC_LB, mtu=1500, ifindex=2, flags=0))  # down
    scene.bench.plan_known(10, 1000, 0)
    scene.bench.go()
    with pytest.raises(Refused, match="0 of 10 packets were sent"):
        engine_case.all_sent(scene, 10)


def test_new_connections_find_their_way_back(scene: Scene) -> None:
    [f] = engine_case.new(FEW, scene.af, scene.proto, 1000, "rr", 1e9)
    assert f.met and len(f.runs) == 2 and f.peer_runs


def test_new_flows_by_maglev_hashing() -> None:
    [f] = engine_case.new(FEW, 4, 17, 1000, "mh", None)
    assert "makes a connection" in f.case and f.met is None


def test_services_are_measured_beside_one() -> None:
    found = list(engine_case.services(FEW, many=20, flows=1000))
    assert [f.params["way"] for f in found] == list(engine_case.WAYS)
    assert all(f.judged == "ratio" and f.goal == 1.1 and len(f.peer_runs) == 2 for f in found)


def test_memory_is_what_the_file_has() -> None:
    four, six = engine_case.memory(FEW)
    assert four.met and 100 < four.median <= 128 < six.median


def test_pauses_of_a_table_filled_kept_and_expired() -> None:
    found = list(engine_pause.pauses(FEW, 3 * BATCH))
    assert [f.case.split(", ")[1] for f in found] == ["filling (SYN)", "keeping (traffic", "expiring"]
    for f in found:
        assert f.params["turns"] == len(f.runs)
        assert {"own_max", "own_p9999", "own_above_100", "noise_max", "raw_wall_max", "raw_noise_cpu_max"} <= f.more.keys()
        assert f.more["own_max"] <= f.more["raw_cpu_max"] and f.judged == "own_max"


def test_expiry_takes_place_within_the_turns() -> None:
    scene = Scene(flows=2 * BATCH, step_ns=engine_pause.TURN_NS).open()
    engine_pause.expire(scene, FEW, engine_pause.Clocks())
    assert scene.used() == BATCH


def test_what_is_overdue_ends_in_every_turn() -> None:
    """Not each millisecond alone: 128 turns, in which 2.6 ms pass."""
    scene = Scene(flows=2 * BATCH, step_ns=engine_pause.TURN_NS).open()
    scene.bench.forward_clock(engine_pause.WHEEL_S * 10**9)
    scene.bench.plan_known(BATCH, 64, 0)
    scene.go(BATCH)
    assert scene.used() == 2 * BATCH
    scene.timeout(ESTABLISHED, 10_000)
    scene.go(BATCH)
    assert scene.used() <= 2 * BATCH - 127 * 32


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want a core each, and this process may use one")
def test_a_hop_takes_time_of_both_workers() -> None:
    """That each packet comes out right is checked by the passes themselves."""
    cores = os.sched_getaffinity(0)
    first, second = engine_hop.hop(FEW, 1000)
    assert "first" in first.case and "second" in second.case
    assert min(first.runs) > 0 and min(second.runs) > 0 and first.peer_runs == second.peer_runs
    assert os.sched_getaffinity(0) == cores


def test_only_workers_of_one_host_hand_over() -> None:
    one = Scene(flows=1)
    with pytest.raises(ValueError, match="not workers 0 and 1 of two"):
        Hop(one.bench, one.bench)
    with pytest.raises(ValueError, match="see Hop"):
        Scene(flows=1, workers=2).bench.go(whole=True)


def test_one_worker_scales_to_one() -> None:
    single, packet = engine_scale.scale(Context(passes=1), 1, 1000)
    assert single.unit == "Mpps" and packet.unit == "ns" and len(single.more["per_core_ns"]) == 1


def test_more_workers_than_cores_are_refused() -> None:
    with pytest.raises(Refused, match="this process may use"):
        list(engine_scale.scale(FEW, 10_000, 1000))


def test_floor_and_spin() -> None:
    floor = Floor(1000, 2)
    assert floor.go() > 0 and floor.go(32, new=True) > 0
    with pytest.raises(ValueError, match="power of two"):
        floor.go(48)
    wall, cpu = array("I", bytes(40)), array("I", bytes(40))
    spin(10, 2000, wall, cpu)
    assert min(wall) >= 2000


def test_a_batch_has_its_limits(scene: Scene) -> None:
    bench: Bench = scene.bench
    for wrong in (
        lambda: bench.plan_known(BATCH + 1, 10, 0),
        lambda: bench.plan_known(1, 2000, 1),
        lambda: bench.plan_each(999, 2, True, SYN),
    ):
        with pytest.raises(ValueError, match="not open"):
            wrong()
    bench.plan_known(64, 1000, 0)
    with pytest.raises(ValueError, match="not every packet was sent"):
        bench.pair(0)


def test_the_engine_is_usable_after_the_bench() -> None:
    scene = Scene(flows=10).open()
    engine = scene.engine
    del scene
    assert engine.used()["conns4"] == 10
    frame = bytes.fromhex("02000000010002000000000b0800") + bytes(46)
    assert engine.process([(frame, 0)], 1)[0].verdict == "drop"


def test_growth_stands_on_both_ends() -> None:
    params = {"proto": "tcp", "ip": 4, "way": "both ways", "burst": 64}
    few = Figure("established", {**params, "flows": 8192}, "ns", [10.0, 10.0], "bare table", [5.0, 5.0])
    many = Figure("established", {**params, "flows": 1 << 24}, "ns", [30.0, 15.0], "bare table", [10.0, 10.0])
    assert list(engine_case.growth([few])) == []
    [f] = engine_case.growth([few, many])
    assert f.median == 2.25 and f.met is False and f.peer_runs == [2.0, 2.0]


def test_document_of_a_figure() -> None:
    f = Figure("a case", {"flows": 1}, "ns", [3.0, 1.0, 2.0], "bare table", [1.0], 2.0)
    assert f.document() == {
        "case": "a case", "params": {"flows": 1}, "unit": "ns", "median": 2.0, "min": 1.0, "max": 3.0, "peer": "bare table",
        "peer_median": 1.0, "peer_min": 1.0, "peer_max": 1.0, "ratio": 2.0, "goal": 2.0, "judged": "median", "met": True,
    }  # fmt: skip
    assert "met" in f.cells()[-1]
    assert "goal" not in Figure("b", {}, "ns", [1.0]).document()


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "engine.json"
    command = [sys.executable, "-P", str(ROOT / "bench/engine.py")]
    done = subprocess.run(
        [*command, "--quick", "--case", "tcp ipv6 8k", "--passes", "1", "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "way both ways" in done.stdout and "as JSON" in done.stdout
    objects = json.loads(out.read_text())
    assert len(objects) == 3 and all({"case", "params", "median", "min", "max", "ratio", "machine"} <= o.keys() for o in objects)
    assert subprocess.run([*command, "--case", "no such thing"], capture_output=True).returncode == 2
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True).stdout.splitlines()
    assert "pauses 10M" in listed and "established tcp ipv4 16M" in listed


CALLGRIND = f"""events: Ir
fl={ROOT}/lbd/datapath/csum.pxd
fn=bench_measured
10 5
fi=lbd/datapath/nat.pxd
7 20
cfn=other
calls=3 9
11 900
12 1
fe={ROOT}/lbd/datapath/csum.pxd
10 5
totals: 931
"""


def test_profile_leaves_out_what_calls_cost(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(CALLGRIND)
    profile = profile_read(tmp_path / "out", 10)
    assert profile == Profile(profile.lines, 10) and profile.per_packet == 3.1
    assert dict(profile.lines) == {
        ("lbd/datapath/csum.pxd", 10): 10,
        ("lbd/datapath/nat.pxd", 7): 20,
        ("lbd/datapath/nat.pxd", 12): 1,
    }


def test_profile_of_wrong_guesses(tmp_path: Path) -> None:
    """callgrind leaves out zeros at a line's end."""
    (tmp_path / "out").write_text("events: Ir Bc Bcm Bi Bim\nfl=a.pxd\n7 9 3 2\n8 5\n9 4 1 1 1 1\ncalls=1 9\n9 90 10 10 10 10\n")
    assert dict(profile_read(tmp_path / "out", 1, WRONG_GUESSES).lines) == {("a.pxd", 7): 2, ("a.pxd", 8): 0, ("a.pxd", 9): 2}


def test_gate_fails_when_a_case_grew() -> None:
    before = {"same": 100.0, "grew": 100.0, "shrank": 100.0}
    found = instructions.figures({"same": 102.9, "grew": 103.1, "shrank": 90.0, "new": 5.0}, before)
    status, said = instructions.verdict(found)
    assert status == 1
    assert [s.split(":")[0] for s in said] == ["grew", "shrank", "new"]
    assert all("ARGS=--update" in s for s in said)
    assert instructions.verdict(instructions.figures({"same": 97.1}, before)) == (0, [])


def test_another_build_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "builder", lambda: {"compiler": "13.1", "libc": "glibc 2.40"})
    monkeypatch.setattr(
        instructions, "recorded", lambda: {"builder": {"compiler": "12.2", "libc": "glibc 2.40"}, "instructions": {}}
    )
    assert instructions.incomparable() == "instructions.json was recorded by another build: compiler 12.2 there, 13.1 here"
