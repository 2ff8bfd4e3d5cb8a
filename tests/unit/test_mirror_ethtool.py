"""Queues and RSS as the kernel lays them out (include/uapi/linux/ethtool.h), by a kernel that is played."""

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbd.master import ethtool
from lbd.master.record import Channels, Rss

KEY = bytes(range(40))
TABLE = (0, 1, 2, 3) * 32


class FakeDevice:
    """Answers SIOCETHTOOL in the caller's memory, as a driver would."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def ioctl(self, sock: Any, request: int, ifreq: bytes) -> int:
        assert request == 0x8946
        name, address = struct.unpack("16sP16x", ifreq)
        assert name.rstrip(b"\0") == b"eth7"
        (command,) = struct.unpack("=I", ctypes.string_at(address, 4))
        answer = getattr(self, f"answer_{command:#x}")(address)
        if answer is None:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        ctypes.memmove(address, answer, len(answer))
        return 0

    def answer_0x3c(self, address: int) -> bytes | None:
        channels = self.answers.get("channels")
        return channels and struct.pack("=9I", 0x3C, 8, 8, 0, 8, *channels)

    def answer_0x46(self, address: int) -> bytes | None:
        if "function" not in self.answers:
            return None
        _, _, indir, key = struct.unpack("=4I", ctypes.string_at(address, 16))
        told = self.answers.get("key", KEY)
        assert (indir, key) in ((0, 0), (len(TABLE), len(told)))
        head = struct.pack("=4IB3xI", 0x46, 0, len(TABLE), len(told), self.answers["function"], 0)
        return head + (struct.pack(f"={len(TABLE)}I", *TABLE) + told if indir else b"")

    def answer_0x3(self, address: int) -> bytes | None:
        driver = self.answers.get("driver")
        return driver and struct.pack("=I32s", 3, driver.encode())

    def answer_0x29(self, address: int) -> bytes | None:
        _, flow = struct.unpack("=2I", ctypes.string_at(address, 8))
        bits = self.answers.get("fields", {}).get(flow)
        return None if bits is None else struct.pack("=IIQ", 0x29, flow, bits)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        yield made


def play(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    monkeypatch.setattr("lbd.master.ethtool.fcntl.ioctl", FakeDevice(**answers).ioctl)


def test_channels_count_combined_ones_in_both_directions(
    monkeypatch: pytest.MonkeyPatch, sock: socket.socket
) -> None:
    play(monkeypatch, channels=(1, 2, 9, 4))  # rx tx other combined
    assert ethtool.read_channels(sock, 7, "eth7") == Channels(7, "eth7", 5, 6)


def test_rss(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
    play(monkeypatch, function=1, fields={1: 0xF0, 2: 0x30, 5: 0xF0})
    told = (("tcp4", 0xF0), ("udp4", 0x30), ("tcp6", 0xF0))
    assert ethtool.read_rss(sock, 7, "eth7") == Rss(7, "eth7", "toeplitz", KEY, TABLE, told)


def test_what_is_not_told_is_unknown(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
    play(monkeypatch)
    assert ethtool.read_rss(sock, 7, "eth7") is None
    assert ethtool.read_channels(sock, 7, "eth7") is None
    play(monkeypatch, function=0)
    spread = ethtool.read_rss(sock, 7, "eth7")
    assert spread is not None and spread.function == "" and spread.fields == ()


@pytest.mark.parametrize(("driver", "known"), [("igb", True), ("e1000e", False), (None, False)])
def test_a_driver_that_takes_the_hosts_key_and_does_not_tell_it(
    monkeypatch: pytest.MonkeyPatch, sock: socket.socket, tmp_path: Path, driver: str | None, known: bool
) -> None:
    host = tmp_path / "netdev_rss_key"
    host.write_text(bytes(range(52)).hex(":") + "\n")
    monkeypatch.setattr(ethtool, "_SYSTEM_KEY", host)
    play(monkeypatch, function=1, key=b"", driver=driver)
    spread = ethtool.read_rss(sock, 7, "eth7")
    assert spread is not None and (spread.key, spread.table) == (KEY if known else b"", TABLE)
    host.unlink()  # in a network namespace there is none
    spread = ethtool.read_rss(sock, 7, "eth7")
    assert spread is not None and spread.key == b""
