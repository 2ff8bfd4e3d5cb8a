# SPDX-License-Identifier: Apache-2.0
"""bench/lvs: what counts as forwarded, and the arithmetic; the VM itself is bench/vm.py's."""

import struct
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench.lvs import expect
from bench.lvs.figure import figure
from bench.lvs.mode import LARGE, LIP, MACS, MODES, OUT_ADDRESS, PORT, SERVER, SERVER_MAC, SMALL, Mode, number, vip
from bench.lvs.sink import ASIDE, THROUGH, WARM, Seen, judge, read
from lbd.pcap import ClassicWriter

BY_NAME = {mode.name: mode for mode in MODES}
CLIENT = "10.1.0.5"


def left(mode: Mode, serial: int = 0, kind: int = THROUGH, system: str = "kernel", **ip: object) -> Packet:
    payload = Raw(struct.pack("!4sHHI6x", b"LBDV", number(system, mode), kind, serial))
    header = IP(**{"src": mode.saddr or CLIENT, "dst": mode.daddr or vip(mode), "ttl": 63, **ip})
    inner = header / UDP(sport=1024, dport=PORT) / payload
    if mode.outer:
        inner = IP(src=OUT_ADDRESS, dst=SERVER) / inner
    return Ether(src=MACS["out0"], dst=SERVER_MAC) / inner


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_what_each_mode_must_give(mode: Mode) -> None:
    good = bytes(left(mode))
    assert judge(good, mode) == ""
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        assert judge(bytes(bad), mode), f"byte {at}"


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("nat", {"src": LIP}, "source 10.2.0.101"),
        ("fullnat", {"src": CLIENT}, "source 10.1.0.5"),
        ("dr", {"dst": SERVER}, "destination 10.2.0.9"),
        ("nat", {"ttl": 64}, "TTL 64"),
        ("tunnel", {"dst": SERVER}, "destination 10.2.0.9"),
    ],
)
def test_a_packet_of_another_mode_does_not_count(name: str, fields: dict[str, object], problem: str) -> None:
    assert judge(bytes(left(BY_NAME[name], **fields)), BY_NAME[name]) == problem


def test_the_dump(tmp_path: Path) -> None:
    mode, file = BY_NAME["nat"], tmp_path / "out.pcap"
    packets = [left(mode, 0, WARM), left(mode, 0), left(mode, 1), left(mode, 1), left(mode, 9, ASIDE), left(mode, 2, ttl=9)]
    packets.append(Ether(dst="ff:ff:ff:ff:ff:ff") / Raw(bytes(50)))
    with file.open("wb") as out:
        writer = ClassicWriter(out)
        for packet in packets:
            writer.packet(0, bytes(packet))
    seen = read(file)["kernel", "nat"]
    assert (seen.packets, dict(seen.problems)) == (5, {"twice": 1, "sent aside": 1, "TTL 9": 1})


COUNTS = {
    f"through {SMALL}": [50_000 + SMALL * 1000] * 3,
    f"through {LARGE}": [50_000 + LARGE * 1000 + n * (LARGE - SMALL) for n in (0, 1, 7)],
    f"aside {SMALL}": [20_000 + SMALL * 100] * 3,
    f"aside {LARGE}": [20_000 + LARGE * 100] * 3,
}


def test_fixed_costs_and_the_generator_are_not_in_the_figure() -> None:
    got = figure({"sent": 5, "counts": COUNTS}, Seen({0, 1, 2, 3, 4}, 5))
    assert (got.median, min(got.rounds), max(got.rounds)) == (901, 900, 907)
    assert got.small == pytest.approx(900 + 30_000 / SMALL)


@pytest.mark.parametrize(
    ("report", "seen", "why"),
    [
        ({"refused": "mode"}, Seen(), "not yet"),
        ({"failed": "of 9 packets 0 left"}, Seen(), "of 9 packets 0 left"),
        ({"sent": 0, "counts": {key: [8_000_000] for key in COUNTS}}, Seen(), "the CPU is never idle"),
        ({"sent": 5, "counts": COUNTS}, Seen({0, 1, 2, 3}, 4), "4 of 5 packets left"),
        ({"sent": 5, "counts": COUNTS}, Seen({0}, 5, {"twice": 4}), "5 of 5 packets left, 4: twice"),
    ],
)
def test_no_figure_where_a_packet_is_missing_or_wrong(report: dict[str, object], seen: Seen, why: str) -> None:
    got = figure(report, seen)
    assert (got.rounds, got.why) == ([], why)


def test_what_is_expected_of_a_machine() -> None:
    assert [round(expect.line_rate(gbe, 64), 2) for gbe in expect.GBE] == [14.88, 37.2, 148.81]
    assert expect.mpps(1500, 2) == (4.0, 8.0)
    row = {"median": 1500, "case": "nat", "params": {"nic": "igb", "system": "lbd zero-copy"}}
    text = list(expect.lines([row, row | {"median": None}]))
    assert sum("lbd zero-copy, nat" in line for line in text) == 2
    assert "| 2.0-4.0 | 4.0-8.0 |" in text[2] and "| 4-8 | 10-19 | 38-75 |" in text[-1]
