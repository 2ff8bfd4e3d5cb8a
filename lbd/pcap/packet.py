# SPDX-License-Identifier: Apache-2.0
"""A captured packet, the interface it was captured on, and the error of a file that can't be read."""

from dataclasses import dataclass
from typing import BinaryIO

ETHERNET = 1  # LINKTYPE_ETHERNET
LENGTH_MAX = 16 << 20  # bytes of a block or packet; more means garbage


@dataclass(frozen=True, slots=True)
class Interface:
    name: str = ""  # if_name; classic pcap has none
    description: str = ""
    linktype: int = ETHERNET
    snaplen: int = 0  # 0: no limit
    hardware: str = ""  # if_hardware: words about the device
    mac: bytes = b""
    addresses: tuple[bytes, ...] = ()  # packed, IPv4 first


@dataclass(frozen=True, slots=True)
class Packet:
    ts_ns: int  # since 1970
    data: bytes
    length: int  # on the wire; more than len(data) if the capture cut it
    interface: Interface
    comment: str = ""


class PcapError(Exception):
    """A capture file that can't be read: which, at which byte, why."""

    def __init__(self, name: str, offset: int, problem: str) -> None:
        super().__init__(f"{name}: byte {offset}: {problem}")
        self.offset = offset


class Truncated(PcapError):
    """The file ends within a record; all before it is good."""


class Source:
    """Exact reads from a file, counting bytes: pipes can't tell where they are."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.offset = 0
        self._file = file

    def take(self, size: int) -> bytes:
        """`size` bytes, or fewer at the end of the file."""
        data = self._file.read(size)
        self.offset += len(data)
        return data

    def exactly(self, size: int, what: str) -> bytes:
        at = self.offset
        data = self.take(size)
        if len(data) < size:
            there = f"{len(data)} of {size} bytes are there"
            raise Truncated(self.name, at, f"the file ends within {what}: {there}")
        return data

    def error(self, offset: int, problem: str) -> PcapError:
        return PcapError(self.name, offset, problem)
