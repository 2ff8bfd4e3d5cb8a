# SPDX-License-Identifier: Apache-2.0
"""`lbd replay`: captures through the compiled engine, without root, sockets or a clock."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet as Layers
from scapy.packet import Raw

from lbd.cli.main import main
from lbd.cli.outcome import DONE, REFUSED, USAGE
from lbd.config import Config, loads
from lbd.pcap import ClassicWriter, Interface, Writer, read_file
from lbd.replay import GAP_MAX, START, Input, Outcome, Replay, ReplayError, bursts, read_inputs

CLIENT_MAC, SERVER_MAC, OWN_MAC = "02:aa:00:00:00:01", "02:00:00:00:01:01", "02:00:00:00:00:01"
NOW = 1_700_000_000_000_000_000
MS = 1_000_000
SECOND = 1_000_000_000

TEXT = """
[tables]
connections_ipv4 = 256
connections_ipv6 = 256
services = 8
real_servers = 16
[timeouts]
udp = "20s"
[[interface]]
name = "eth0"
[[interface]]
name = "eth1"
[[local_address]]
address = "10.0.0.10"
manage = false
[[local_address]]
address = "fd00::10"
manage = false
[[service]]
name = "web"
address = "192.0.2.10:80"
scheduler = "rr"
[[service.real_server]]
address = "10.0.1.1:8080"
[[service]]
name = "dns"
address = "[2001:db8::10]:53"
protocol = "udp"
[[service.real_server]]
address = "[fd00:1::1]:53"
[[neighbor]]
interface = "eth1"
address = "10.0.1.1"
mac = "02:00:00:00:01:01"
[[neighbor]]
interface = "eth1"
address = "fd00:1::1"
mac = "02:00:00:00:01:01"
[[route]]
destination = "10.0.1.0/24"
interface = "eth1"
[[route]]
destination = "fd00:1::/64"
interface = "eth1"
"""


@pytest.fixture(scope="module")
def config() -> Config:
    return loads(TEXT)


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "lbd.toml"
    path.write_text(TEXT)
    return str(path)


def syn(port: int = 40000, flags: str = "S", **more: Any) -> bytes:
    ip = IP(src="198.51.100.7", dst="192.0.2.10")
    return bytes(Ether(src=CLIENT_MAC, dst=OWN_MAC) / ip / TCP(sport=port, dport=80, flags=flags, **more))


def query(port: int = 5353) -> bytes:
    ip = IPv6(src="2001:db8:2::7", dst="2001:db8::10")
    return bytes(Ether(src=CLIENT_MAC, dst=OWN_MAC) / ip / UDP(sport=port, dport=53) / Raw(b"question"))


def inputs(*frames: bytes | tuple[int, int, bytes]) -> list[Input]:
    """Frames, or (ns after NOW, interface, frame)."""
    whole = [f if isinstance(f, tuple) else (n * MS, 0, f) for n, f in enumerate(frames)]
    return [Input(n, NOW + ts, iface, data, False) for n, (ts, iface, data) in enumerate(whole)]


def replay(config: Config, *frames: bytes | tuple[int, int, bytes]) -> list[Outcome]:
    return list(Replay(config).run(inputs(*frames)))


def pcap(path: Path, packets: Sequence[tuple[int, bytes]], linktype: int = 1) -> str:
    with path.open("wb") as file:
        w = ClassicWriter(file, linktype)
        for ts, data in packets:
            w.packet(ts, data)
    return str(path)


def pcapng(path: Path, *packets: tuple[Interface, int, bytes]) -> str:
    with path.open("wb") as file:
        w = Writer(file)
        for interface, ts, data in packets:
            w.packet(w.interface(interface), ts, data)
    return str(path)


# -- the engine ----------------------------------------------------------------------------------------------


def test_a_connection_there_and_back(config: Config) -> None:
    run = Replay(config)
    (there,) = run.run(inputs(syn()))
    assert (there.verdict, there.reason) == ("forward", "none")
    assert (there.service, there.real_server) == ("web", "10.0.1.1:8080")
    ((iface, frame),) = there.out
    sent = Ether(frame)
    assert (iface, sent.src, sent.dst) == (1, "02:00:00:00:00:02", SERVER_MAC)
    assert (sent[IP].src, sent[IP].dst, sent[TCP].dport) == ("10.0.0.10", "10.0.1.1", 8080)
    reply = Ether(src=SERVER_MAC, dst=sent.src) / IP(src="10.0.1.1", dst="10.0.0.10")
    reply /= TCP(sport=8080, dport=sent[TCP].sport, flags="SA")
    (back,) = run.run(inputs((5 * MS, 1, bytes(reply))))
    assert (back.verdict, back.service, back.real_server) == ("forward", "web", "10.0.1.1:8080")
    ((iface, frame),) = back.out
    got = Ether(frame)
    assert (iface, got.dst) == (0, CLIENT_MAC)
    assert (got[IP].src, got[TCP].sport, got[IP].dst, got[TCP].dport) == (
        "192.0.2.10",
        80,
        "198.51.100.7",
        40000,
    )
    for packet, layer in ((sent, TCP), (got, TCP)):
        assert_checksums(packet, layer)
    (conn,) = run.engine.conns()
    assert conn["svc"] == 0


def assert_checksums(packet: Layers, layer: type[Layers]) -> None:
    again = packet.copy()
    del again[IP].chksum
    del again[layer].chksum
    assert bytes(again) == bytes(packet)


def test_verdicts(config: Config) -> None:
    arp = bytes(Ether(src=CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="192.0.2.10"))
    stray = bytes(
        Ether(dst=OWN_MAC) / IP(src="198.51.100.7", dst="192.0.2.10") / ICMP(type=3) / Raw(b"x" * 28)
    )
    got = replay(config, syn(flags="A"), query(), arp, stray, b"", b"\xff" * 13)
    assert [(o.verdict, o.reason) for o in got[:2]] == [("drop", "no_state"), ("forward", "none")]
    assert (got[1].service, got[1].real_server) == ("dns", "[fd00:1::1]:53")
    assert got[2].verdict == "kernel"
    assert {o.verdict for o in got[3:]} <= {"drop", "kernel"}
    assert got[0].line() == {
        "index": 0, "verdict": "drop", "reason": "no_state", "service": "web", "real_server": None,
    }  # fmt: skip


def test_pings() -> None:
    """With a service of ICMP the real server answers them, without one the kernel."""
    extra = '[[service]]\nname = "ping"\naddress = "192.0.2.10"\nprotocol = "icmp"\n[[service.real_server]]\naddress = "10.0.1.1"\n'
    ask = Ether(src=CLIENT_MAC, dst=OWN_MAC) / IP(src="198.51.100.7", dst="192.0.2.10") / ICMP(id=7) / Raw(b"question")
    assert [o.verdict for o in replay(loads(TEXT), bytes(ask))] == ["kernel"]
    pinged = Replay(loads(TEXT + extra))
    [there] = pinged.run(inputs(bytes(ask)))
    assert (there.verdict, there.service, there.real_server) == ("forward", "ping", "10.0.1.1:0")
    got = Ether(there.out[0][1])
    ip = IP(src="10.0.1.1", dst=got[IP].src)
    answer = Ether(src=SERVER_MAC, dst=OWN_MAC) / ip / ICMP(type=0, id=got[ICMP].id) / Raw(b"question")
    [back] = pinged.run(inputs((MS, 1, bytes(answer))))
    assert (back.verdict, back.service) == ("forward", "ping")
    seen = Ether(back.out[0][1])
    assert (seen[IP].src, seen[IP].dst, seen[ICMP].id) == ("192.0.2.10", "198.51.100.7", 7)
    assert_checksums(seen, ICMP)


def test_the_same_input_gives_the_same_output(config: Config) -> None:
    frames = [syn(p) for p in range(40000, 40100)] + [query(p) for p in range(5000, 5050)]
    assert replay(config, *frames) == replay(config, *frames)


def test_connections_expire_as_time_goes_on(config: Config) -> None:
    run = Replay(config)
    list(run.run(inputs(query(1), (19 * SECOND, 0, query(2)))))
    assert len(run.engine.conns()) == 2
    list(run.run(inputs((25 * SECOND, 0, syn()))))
    assert len(run.engine.conns()) == 2  # the first query's is over


def test_fragments(config: Config) -> None:
    """Those that come before the first one get their outcome behind it; those whose first one never comes, at the end."""
    whole = IPv6(bytes(IPv6(src="2001:db8:c::7", dst="2001:db8::10") / UDP(sport=5000, dport=53) / Raw(bytes(range(256)) * 8)))
    link, l4 = Ether(src=CLIENT_MAC, dst=OWN_MAC), bytes(whole.payload)
    parts = [
        bytes(link / IPv6(src=whole.src, dst=whole.dst) / IPv6ExtHdrFragment(nh=17, id=7, offset=at // 8, m=int(at < 1600))
              / Raw(l4[at : at + 800])) for at in (0, 800, 1600)
    ]  # fmt: skip
    got = replay(config, *reversed(parts))
    assert [(o.packet.number, o.verdict, o.reason, o.service) for o in got] == [
        (2, "forward", "none", "dns"), (0, "forward", "none", "dns"), (1, "forward", "none", "dns"),
    ]  # fmt: skip
    payload = {o.packet.number: o.out[0][1][62:] for o in got}
    assert (payload[2] + payload[1] + payload[0])[8:] == bytes(range(256)) * 8
    got = replay(config, *parts[1:], query())
    assert [(o.packet.number, o.verdict, o.reason) for o in got] == [
        (2, "forward", "none"), (0, "drop", "frag_timeout"), (1, "drop", "frag_timeout"),
    ]  # fmt: skip


def test_time_never_goes_back_and_never_leaps(config: Config) -> None:
    run = Replay(config)
    times = []
    for ts in (5 * SECOND, 0, 6 * SECOND, 6 * SECOND, 400 * 86400 * SECOND, 400 * 86400 * SECOND + MS):
        times.append(run._advance(ts))
    assert times == [
        START, START, START + SECOND, START + SECOND, START + SECOND + GAP_MAX, START + SECOND + GAP_MAX + MS,
    ]  # fmt: skip
    (outcome,) = run.run(inputs((1 << 62, 0, query())))
    assert outcome.verdict == "forward"


@given(st.lists(st.integers(0, 3 * MS), max_size=300))
def test_bursts(gaps: list[int]) -> None:
    packets = [Input(n, sum(gaps[: n + 1]), 0, b"", False) for n in range(len(gaps))]
    made = list(bursts(packets))
    assert [p for burst in made for p in burst] == packets
    for burst in made:
        assert 1 <= len(burst) <= 64
        assert len({p.ts_ns // MS for p in burst}) == 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(0, 1)), min_size=1, max_size=20), st.data())
def test_no_input_crashes_it(config: Config, noise: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """Noise, and good packets with bytes changed or cut off."""
    frames = [(0, iface, frame) for frame, iface in noise]
    for good in (syn(), syn(flags="A"), query(), syn() + bytes(1500)):
        broken = bytearray(good)
        for _ in range(data.draw(st.integers(0, 4))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        frames.append((0, 0, bytes(broken[: data.draw(st.integers(0, len(broken)))])))
    for outcome in replay(config, *frames):
        assert outcome.verdict in ("forward", "drop", "kernel", "consume")
        assert bool(outcome.out) == (outcome.verdict in ("forward", "consume"))


# -- what the captures say -----------------------------------------------------------------------------------


def test_files_are_merged_by_time(config: Config, tmp_path: Path) -> None:
    a = pcap(tmp_path / "a", [(NOW + 2, b"a0"), (NOW + 5, b"a1"), (NOW + 1, b"a2")])
    b = pcap(tmp_path / "b", [(NOW, b"b0"), (NOW + 5, b"b1")])
    got = read_inputs(config, [a, b])
    assert [(p.number, p.iface, p.data) for p in got.packets] == [
        (3, 1, b"b0"), (2, 0, b"a2"), (0, 0, b"a0"), (1, 0, b"a1"), (4, 1, b"b1"),
    ]  # fmt: skip


def test_interfaces(config: Config, tmp_path: Path) -> None:
    named = pcapng(tmp_path / "n", (Interface("eth1"), 1, b"x"), (Interface("other"), 2, b"x"))
    plain = pcap(tmp_path / "p", [(3, b"x")])
    assert [p.iface for p in read_inputs(config, [named, plain]).packets] == [1, 0, 1]
    assert [p.iface for p in read_inputs(config, [named, plain], ["eth0"]).packets] == [0, 0, 0]
    assert [p.iface for p in read_inputs(config, [plain, named], ["eth1", "eth0"]).packets] == [0, 0, 1]
    for names, problem in (
        (["eth7"], 'no interface "eth7", only eth0, eth1'),
        (["eth0"] * 3, "3 interfaces for 2"),
    ):
        with pytest.raises(ReplayError, match=problem):
            read_inputs(config, [named, plain], names)
    with pytest.raises(ReplayError, match="which interface its packets came in by"):
        read_inputs(config, [plain, plain, plain])
    with pytest.raises(ReplayError, match="no \\[\\[interface"):
        read_inputs(Config(), [plain])


def test_lbds_own_output_is_passed_over(config: Config, tmp_path: Path) -> None:
    points = [Interface("eth0", f"lbd {point}") for point in ("rx", "tx", "drop")]
    got = read_inputs(config, [pcapng(tmp_path / "c", *((i, n, b"x") for n, i in enumerate(points)))])
    assert ([p.number for p in got.packets], got.skipped) == ([0], 2)


def test_interfaces_are_as_the_capture_says(config: Config, tmp_path: Path) -> None:
    mac = bytes([2, 0xBB, 0, 0, 0, 9])
    eth0 = Interface("eth0", "lbd rx", addresses=(bytes([192, 0, 2, 10]), bytes([192, 0, 2, 1])))
    eth1 = Interface("eth1", "lbd rx", mac=mac, hardware="mtu=600 partial_checksums")
    path = pcapng(tmp_path / "c", (eth0, NOW + 1, syn()), (eth1, NOW + 2, syn(2)))
    got = read_inputs(config, [path])
    run = Replay(config, got.interfaces)
    first, *_ = run.run(got.packets)
    ((_, frame),) = first.out
    assert frame[6:12] == mac
    # too large for eth1: answered from eth0's own address, which is not the service's
    full = Ether(src=CLIENT_MAC, dst=OWN_MAC) / IP(src="198.51.100.7", dst="192.0.2.10", flags="DF")
    full /= TCP(sport=40000, dport=80, flags="A") / Raw(bytes(700))
    (answer,) = run.run(inputs((3 * MS, 0, bytes(full))))
    assert (answer.verdict, answer.reason) == ("consume", "mtu_exceeded")
    ((iface, frame),) = answer.out
    assert (iface, Ether(frame)[IP].src, Ether(frame)[ICMP].nexthopmtu) == (0, "192.0.2.1", 600)


# -- the command ---------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = pcap(tmp_path / "in.pcap", [(NOW, syn()), (NOW + MS, syn(1, "A"))])
    out, verdicts = tmp_path / "out.pcapng", tmp_path / "out.jsonl"
    assert main(("replay", config_file, path, "-o", str(out), "--verdicts", str(verdicts), "--time")) == DONE
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "2 packets: 1 forward, 1 drop, 0 kernel, 0 consume (1 no_state); 1 connection opened"
    assert "2 packets" in said[0] and "ns per packet" in said[1] and "1 × all packets" in said[1]
    assert [json.loads(line) for line in verdicts.read_text().splitlines()] == [
        {
            "index": 0,
            "verdict": "forward",
            "reason": "none",
            "service": "web",
            "real_server": "10.0.1.1:8080",
        },
        {"index": 1, "verdict": "drop", "reason": "no_state", "service": "web", "real_server": None},
    ]
    (packet,) = read_file(out)
    assert (packet.interface.name, packet.ts_ns) == ("eth1", NOW)
    assert packet.comment == "input 0, forward, service web, real server 10.0.1.1:8080"
    # what it wrote can be read again: as what eth1 received
    assert main(("-j", "replay", config_file, str(out))) == DONE
    assert json.loads(capsys.readouterr().out)["packets"] == 1


def test_repeat(tmp_path: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = pcap(tmp_path / "in.pcap", [(NOW + n * SECOND, query(n + 1)) for n in range(10)])
    assert main(("-j", "replay", config_file, path, "--repeat", "50")) == DONE
    got = json.loads(capsys.readouterr().out)
    assert got["verdicts"] == {"forward": 500, "drop": 0, "kernel": 0, "consume": 0}


def test_time(tmp_path: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    packets = [(NOW + n * 20 * MS, query(n % 10 + 1)) for n in range(100)] + [(NOW + 2 * SECOND, syn(1, "A"))]
    path = pcap(tmp_path / "in.pcap", packets)
    assert main(("-j", "replay", config_file, path, "--repeat", "7", "--time")) == DONE
    got = json.loads(capsys.readouterr().out)
    assert (got["packets"], got["verdicts"]["forward"]) == (101, 100)  # the untimed pass
    timing = got["timing"]
    assert (timing["passes"], timing["packets"]) == (7, 707)
    assert timing["verdicts"] == {"forward": 700, "drop": 7, "kernel": 0, "consume": 0}
    assert timing["burst"] == pytest.approx(101 / 3, abs=0.1)  # never more than a second together
    assert 0 < timing["ns_per_packet"]["min"] <= timing["ns_per_packet"]["median"] <= timing["ns_per_packet"]["max"]
    assert main(("replay", config_file, path, "--repeat", "3", "--time")) == DONE
    said = capsys.readouterr().err
    assert "3 × all packets, in bursts of 33.7: median " in said and "; 300 forward, 3 drop" in said
    assert "other verdicts" not in said


def test_timed_passes_begin_with_the_frames_as_captured(config: Config) -> None:
    """A rewritten frame is no service's packet: were it left so, the second pass would forward nothing."""
    run = Replay(config)
    packets = inputs(*(query(n + 1) for n in range(200)))
    for _ in range(3):
        spent, verdicts = run.time(packets)
        assert verdicts["forward"] == 200 and spent > 0
        run.rewind()
    assert run.engine.counters()["conns_made"] == 200


def test_time_goes_on_between_timed_bursts(config: Config) -> None:
    run = Replay(config)
    run.time(inputs((0, 0, query()), (30 * SECOND, 0, query(2))))  # [timeouts] udp = "20s"
    assert run.engine.used()["conns6"] == 1


@pytest.mark.parametrize("frame", [("text", 0), (b"", 16), (b"", -1), (bytes(65536), 0)])
def test_timing_refuses_what_no_adapter_gives(config: Config, frame: tuple[Any, int]) -> None:
    engine = Replay(config).engine
    with pytest.raises(ValueError, match="a frame that is no bytes or too long"):
        engine.time([([frame], START)])
    with pytest.raises(ValueError, match="at most 64"):
        engine.time([([(b"", 0)] * 65, START)])


def test_standard_output(
    tmp_path: Path, config_file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = pcap(tmp_path / "in.pcap", [(NOW, syn())])
    assert main(("replay", config_file, path, "--verdicts", "-")) == DONE
    assert json.loads(capsysbinary.readouterr().out)["verdict"] == "forward"
    assert main(("replay", config_file, path, "-o", "-", "--verdicts", "-")) == USAGE


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "byte 0: the file is empty"),
        (b"garbage!", "neither pcap nor pcapng"),
        (b"\xd4\xc3\xb2\xa1" + bytes(3), "pcap version"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, config_file: str, capsys: pytest.CaptureFixture[str], content: bytes, problem: str
) -> None:
    path = tmp_path / "in"
    path.write_bytes(content + bytes(20) if content[:1] == b"\xd4" else content)
    assert main(("replay", config_file, str(path))) == REFUSED
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1


def test_cut_files_and_packets(tmp_path: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    w = ClassicWriter(file)
    w.packet(NOW, syn())
    w.packet(NOW, syn()[:50], 1000)
    w.packet(NOW, syn())
    path = tmp_path / "in"
    path.write_bytes(file.getvalue()[:-1])
    assert main(("replay", config_file, str(path))) == DONE
    ends, cut, summary = capsys.readouterr().err.splitlines()
    assert "the file ends within a packet: 53 of 54 bytes are there; what is before it is used" in ends
    assert "1 packets are cut by the capture's snap length" in cut
    assert summary.startswith("2 packets: 1 forward, 1 drop")


def test_refusals(tmp_path: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = pcap(tmp_path / "good", [(NOW, syn())])
    cooked = pcap(tmp_path / "cooked", [(NOW, syn())], linktype=113)
    broken = tmp_path / "broken.toml"
    broken.write_text("[[service]]\n")
    for words, problem in (
        ((config_file, cooked), "link type 113"),
        ((config_file, str(tmp_path / "none")), "No such file"),
        ((str(broken), good), f"{broken}:1: service[0].name: "),
        ((config_file, good, "-i", "eth9"), 'no interface "eth9"'),
        ((config_file, good, "-o", str(tmp_path / "no/where")), "can't be written"),
    ):
        assert main(("replay", *words)) == REFUSED
        assert problem in capsys.readouterr().err
    assert main(("replay", config_file, good, "--repeat", "0")) == USAGE
