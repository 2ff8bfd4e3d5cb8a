# SPDX-License-Identifier: Apache-2.0
"""Capture files: round trips, foreign variants built by hand, broken files, and Wireshark's opinion of
ours.
"""

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.pcap import ClassicWriter, Interface, Packet, PcapError, Truncated, Writer, read, read_file

FRAME = bytes(range(60))
INTERFACES = (
    Interface("eth0", "lbd rx", mac=b"\2\0\0\0\0\1", addresses=(bytes([192, 0, 2, 1]), bytes(range(16)))),
    Interface("eth1", "lbd tx", snaplen=96, hardware="mtu=1500"),
)
times = st.integers(0, (1 << 63) - 1)
frames = st.binary(max_size=200)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def parse(data: bytes) -> list[Packet]:
    return list(read(io.BytesIO(data), "t"))


def written(*packets: tuple[int, int, bytes, str]) -> bytes:
    """A pcapng file with the interfaces eth0 and eth1."""
    file = io.BytesIO()
    w = Writer(file, "lbd test", "Linux")
    for one in INTERFACES:
        w.interface(one)
    for iface, ts, data, comment in packets:
        w.packet(iface, ts, data, comment=comment, direction="in")
    return file.getvalue()


# -- our own -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1), times, frames, words), max_size=8))
def test_pcapng_round_trip(packets: list[tuple[int, int, bytes, str]]) -> None:
    expected = [Packet(ts, data, len(data), INTERFACES[i], comment) for i, ts, data, comment in packets]
    assert parse(written(*packets)) == expected


@given(st.lists(st.tuples(st.integers(0, (1 << 32) * 10**9 - 1), frames), max_size=8))
def test_classic_round_trip(packets: list[tuple[int, bytes]]) -> None:
    file = io.BytesIO()
    w = ClassicWriter(file, snaplen=1000)
    for ts, data in packets:
        w.packet(ts, data)
    interface = Interface(snaplen=1000)
    assert parse(file.getvalue()) == [Packet(ts, data, len(data), interface) for ts, data in packets]


def test_cut_packets_keep_their_length() -> None:
    file = io.BytesIO()
    w = Writer(file)
    w.packet(w.interface(Interface("eth0", snaplen=60)), 1, FRAME, 1514)
    (packet,) = parse(file.getvalue())
    assert (len(packet.data), packet.length) == (60, 1514)


# -- what others write ---------------------------------------------------------------------------------------


def block(order: str, kind: int, body: bytes) -> bytes:
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, *options: tuple[int, bytes], linktype: int = 1, snaplen: int = 0) -> bytes:
    body = struct.pack(order + "HHI", linktype, 0, snaplen)
    for code, value in options:
        body += struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)
    return block(order, 1, body)


def enhanced(order: str, number: int, ts: int, data: bytes) -> bytes:
    head = struct.pack(order + "IIIII", number, ts >> 32, ts & 0xFFFFFFFF, len(data), len(data))
    return block(order, 6, head + data + bytes(-len(data) % 4))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("options", "ticks", "ns"),
    [
        ((), 1_700_000_000_123_456, 1_700_000_000_123_456_000),  # microseconds unless said otherwise
        (((9, b"\x09"),), 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (((9, b"\x03"),), 1_700_000_000_123, 1_700_000_000_123_000_000),
        (((9, b"\x0c"),), 1_700_000_000_123_456_789, 1_700_000_000_123_456),  # picoseconds: cut
        (((9, b"\x81"),), 3, 1_500_000_000),  # halves of a second
        (((14, b"\0" * 8),), 5, 5000),
    ],
)
def test_timestamp_resolution(
    order: str, options: tuple[tuple[int, bytes], ...], ticks: int, ns: int
) -> None:
    data = section(order) + interface(order, *options) + enhanced(order, 0, ticks, FRAME)
    assert [(p.ts_ns, p.data) for p in parse(data)] == [(ns, FRAME)]


@pytest.mark.parametrize("order", "<>")
def test_timestamp_offset(order: str) -> None:
    offset = struct.pack(order + "q", -10)
    data = section(order) + interface(order, (14, offset)) + enhanced(order, 0, 11_000_000, FRAME)
    assert [p.ts_ns for p in parse(data)] == [1_000_000_000]


def test_sections_have_their_own_byte_order_and_interfaces() -> None:
    data = b""
    for order, name in (("<", b"eth0"), (">", b"eth1\0")):
        data += section(order) + interface(order, (2, name)) + interface(order, (2, b"second"))
        data += enhanced(order, 0, 7, FRAME) + enhanced(order, 1, 8, FRAME)
    assert [p.interface.name for p in parse(data)] == ["eth0", "second", "eth1", "second"]
    stale = section("<") + interface("<") + section("<") + enhanced("<", 0, 7, FRAME)
    with pytest.raises(PcapError, match="interface 0, which is not described"):
        parse(stale)


def test_simple_old_and_unknown_blocks() -> None:
    data = section("<") + interface("<", (2, b"a"), snaplen=20)
    data += enhanced("<", 0, 9, FRAME)
    data += block("<", 3, struct.pack("<I", 60) + FRAME[:20])  # cut by the snaplen
    data += block("<", 0xBAD, b"whatever")
    data += block("<", 2, struct.pack("<HHIIII", 0, 0, 0, 12, 4, 1000) + b"abcd")
    assert [(p.ts_ns, p.data, p.length) for p in parse(data)] == [
        (9000, FRAME, 60),
        (9000, FRAME[:20], 60),  # no timestamp of its own
        (12000, b"abcd", 1000),
    ]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_classic_variants(order: str, magic: int, unit: int) -> None:
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    data += struct.pack(order + "IIII", 1_700_000_000, 123, 60, 1514) + FRAME
    (packet,) = parse(data)
    assert packet == Packet(1_700_000_000_000_000_000 + 123 * unit, FRAME, 1514, Interface(snaplen=65535))


# -- broken files --------------------------------------------------------------------------------------------

GOOD = written((0, 1, FRAME, "a"), (1, 2, FRAME, "b"))


@pytest.mark.parametrize(
    ("data", "offset", "problem"),
    [
        (b"", 0, "empty"),
        (b"GIF89a", 0, "neither pcap nor pcapng begins with 47494638"),
        (b"\x1f\x8b\x08\0", 0, "packed with gzip: unpack"),
        (GOOD[:8] + b"\0\0\0\0" + GOOD[12:], 8, "byte-order magic"),
        (section("<") + struct.pack("<II", 6, 8), 32, "a block of 8 bytes: this is no block header"),
        (section("<") + struct.pack("<II", 6, 1 << 30), 32, "no block header"),
        (section("<") + block("<", 1, b"1234"), 28, "too short"),
        (section("<") + struct.pack("<III", 1, 12, 16), 28, "12 bytes at its head and 16 at its end"),
        (section("<") + interface("<") + block("<", 6, bytes(8)), 48, "packet block that is too short"),
        (section("<") + interface("<", (2, b"eth0"))[:-4], 36, "ends within a block"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 9, 4, 0, 0, 0, 1), 4, "version 9"),
        (struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 0, 1, 0, 0, 1 << 31, 0), 24, "no packet header"),
    ],
)
def test_broken_files_are_refused_with_the_place(data: bytes, offset: int, problem: str) -> None:
    with pytest.raises(PcapError, match=problem) as caught:
        parse(data)
    assert caught.value.offset == offset
    assert str(caught.value).startswith(f"t: byte {offset}: ")


def test_every_truncation_yields_the_packets_before_it() -> None:
    whole = parse(GOOD)
    ends = [i for i in range(len(GOOD) + 1) if len(list(_until_error(GOOD[:i]))) == 1]
    assert ends, "no truncation leaves the first packet whole"
    for size in range(4, len(GOOD)):
        got = list(_until_error(GOOD[:size]))
        assert got == whole[: len(got)]


def _until_error(data: bytes) -> "list[Packet]":
    packets = []
    try:
        for packet in read(io.BytesIO(data)):
            packets.append(packet)
    except PcapError as error:
        assert isinstance(error, Truncated) or len(data) < 4
    return packets


@given(st.data())
def test_garbage_never_crashes(data: st.DataObject) -> None:
    """Some bytes of a good file changed, any bytes behind it: packets, or PcapError."""
    broken = bytearray(GOOD + data.draw(st.binary(max_size=64)))
    for _ in range(data.draw(st.integers(0, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        for packet in parse(bytes(broken)):
            assert len(packet.data) <= packet.length
    except PcapError:
        pass


def test_unreadable_files(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(PcapError, match=f"can't be read: .*{problem}"):
            list(read_file(path))


# -- Wireshark's opinion -------------------------------------------------------------------------------------


def wireshark(tool: str, *args: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"needs {tool} (Debian package tshark)")
    done = subprocess.run([path, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wireshark_reads_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(
        written(
            (0, 1_700_000_000_123_456_789, FRAME, "worker 0, forward"),
            (1, 1_700_000_001_000_000_000, FRAME, ""),
        )
    )
    facts = wireshark("capinfos", "-M", str(path))
    assert "Number of packets:   2" in facts
    assert "nanoseconds" in facts
    assert "lbd test" in facts
    fields = ("frame.time_epoch", "frame.comment", "frame.interface_name", "frame.interface_description")
    wanted = [word for field in fields for word in ("-e", field)]
    first, second = json.loads(wireshark("tshark", "-r", str(path), "-T", "json", *wanted))
    layers = first["_source"]["layers"]
    assert layers["frame.time_epoch"] == ["1700000000.123456789"]
    assert layers["frame.comment"] == ["worker 0, forward"]
    assert layers["frame.interface_name"] == ["eth0"]
    assert layers["frame.interface_description"] == ["lbd rx"]
    assert second["_source"]["layers"]["frame.interface_name"] == ["eth1"]


def test_we_read_what_wireshark_writes(tmp_path: Path) -> None:
    ours = tmp_path / "a.pcapng"
    ours.write_bytes(
        written((0, 1_700_000_000_123_456_000, FRAME, "x"), (1, 1_700_000_001_000_000_000, FRAME, ""))
    )
    for kind in ("pcapng", "pcap", "nsecpcap"):
        theirs = tmp_path / f"b.{kind}"
        wireshark("editcap", "-F", kind, str(ours), str(theirs))
        got = list(read_file(theirs))
        assert [(p.ts_ns, p.data) for p in got] == [(p.ts_ns, p.data) for p in read_file(ours)]
