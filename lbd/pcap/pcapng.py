# SPDX-License-Identifier: Apache-2.0
"""pcapng (draft-ietf-opsawg-pcapng): sections of blocks; each section has its byte order and its interfaces.

Read: section header, interface description, enhanced, simple and (obsolete) packet blocks; every other block
is passed over. Written: one little-endian section, nanoseconds, a comment and a direction per packet.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from lbd.pcap.packet import LENGTH_MAX, Interface, Packet, Source

SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
MAGIC = struct.pack("<I", SECTION)  # the same in both byte orders
BYTE_ORDER = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
SECOND = 1_000_000_000

# options
END, COMMENT = 0, 1
SHB_OS, SHB_APPLICATION = 3, 4
IF_NAME, IF_DESCRIPTION, IF_IPV4, IF_IPV6, IF_MAC = 2, 3, 4, 5, 6
IF_TSRESOL, IF_TSOFFSET, IF_HARDWARE = 9, 14, 15
EPB_FLAGS = 2
DIRECTIONS = {"in": 1, "out": 2}


class Clock:
    """Timestamps of one interface, to nanoseconds: if_tsresol, if_tsoffset."""

    def __init__(self, resolution: int = 6, offset: int = 0) -> None:
        self.per_second: int = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        self.offset = offset * SECOND

    def ns(self, high: int, low: int) -> int:
        return (high << 32 | low) * SECOND // self.per_second + self.offset


class Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.order = "<"
        self.interfaces: list[tuple[Interface, Clock]] = []
        self.last_ns = 0  # a simple packet has no timestamp: it gets its predecessor's

    def packets(self) -> Iterator[Packet]:
        """From behind the first four bytes of the file on, which say that a section begins."""
        first = MAGIC
        at = 0
        while first:
            if len(first) < 4:
                first += self.source.exactly(4 - len(first), "a block header")
            kind, body = self._block(first, at)
            if kind == SECTION:
                self.interfaces = []
            elif kind == INTERFACE:
                self._interface(body, at)
            elif kind in (OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET):
                packet = self._packet(kind, body, at)
                self.last_ns = packet.ts_ns
                yield packet
            at = self.source.offset
            first = self.source.take(4)

    # -- blocks ----------------------------------------------------------------------------------------------

    def _block(self, first: bytes, at: int) -> tuple[int, bytes]:
        raw = self.source.exactly(4, "a block header")
        read = 8
        head = b""
        if first == MAGIC:
            head = self.source.exactly(4, "a section header")
            read = 12
            if head not in BYTE_ORDER:
                raise self.source.error(at + 8, f"{head.hex()} is no byte-order magic: no pcapng file")
            self.order = BYTE_ORDER[head]
        kind, size = struct.unpack(self.order + "II", first + raw)
        # NB: some writers do not pad the total length to a multiple of 4, though the body is
        padded = size + (-size % 4)
        if size < read + 4 or size > LENGTH_MAX:
            raise self.source.error(at + 4, f"a block of {size} bytes: this is no block header")
        body = self.source.exactly(padded - read, "a block")
        (again,) = struct.unpack(self.order + "I", body[-4:])
        if again != size:
            raise self.source.error(at, f"the block says {size} bytes at its head and {again} at its end")
        body = head + body[:-4]
        if kind == SECTION and (len(body) < 16 or struct.unpack(self.order + "H", body[4:6])[0] != 1):
            raise self.source.error(at, "a section header of an unknown version")
        return kind, body

    def _interface(self, body: bytes, at: int) -> None:
        if len(body) < 8:
            raise self.source.error(at, "an interface description that is too short")
        linktype, _, snaplen = struct.unpack_from(self.order + "HHI", body)
        every = self._options(body, 8, at)
        first = dict(reversed(every))
        resolution = first.get(IF_TSRESOL, b"")[:1] or b"\x06"
        offset = first.get(IF_TSOFFSET, b"")
        seconds: int = struct.unpack(self.order + "q", offset)[0] if len(offset) == 8 else 0
        sizes = {IF_IPV4: (8, 4), IF_IPV6: (17, 16)}  # bytes of the option, and of the address in it
        given = ((value, *sizes[code]) for code, value in every if code in sizes)
        addresses = (value[:size] for value, whole, size in given if len(value) == whole)
        interface = Interface(
            text(first.get(IF_NAME)),
            text(first.get(IF_DESCRIPTION)),
            linktype,
            snaplen,
            text(first.get(IF_HARDWARE)),
            first.get(IF_MAC, b""),
            tuple(sorted(addresses, key=len)),
        )
        self.interfaces.append((interface, Clock(resolution[0], seconds)))

    def _packet(self, kind: int, body: bytes, at: int) -> Packet:
        fixed = 4 if kind == SIMPLE_PACKET else 20
        if len(body) < fixed:
            raise self.source.error(at, "a packet block that is too short")
        if kind == SIMPLE_PACKET:
            number, high, low = 0, 0, 0
            (length,) = struct.unpack_from(self.order + "I", body)
            caplen = min(length, len(body) - fixed)
        elif kind == ENHANCED_PACKET:
            number, high, low, caplen, length = struct.unpack_from(self.order + "IIIII", body)
        else:
            number, _, high, low, caplen, length = struct.unpack_from(self.order + "HHIIII", body)
        if number >= len(self.interfaces):
            raise self.source.error(at, f"a packet of interface {number}, which is not described before")
        if caplen > len(body) - fixed:
            raise self.source.error(at, f"a packet of {caplen} bytes in a block that has {len(body) - fixed}")
        interface, clock = self.interfaces[number]
        if kind == SIMPLE_PACKET and interface.snaplen:
            caplen = min(caplen, interface.snaplen)
        ts = self.last_ns if kind == SIMPLE_PACKET else clock.ns(high, low)
        options = [] if kind == SIMPLE_PACKET else self._options(body, fixed + caplen + (-caplen % 4), at)
        data = body[fixed : fixed + caplen]
        return Packet(ts, data, max(length, caplen), interface, text(dict(reversed(options)).get(COMMENT)))

    def _options(self, body: bytes, pos: int, at: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        while pos + 4 <= len(body):
            code, size = struct.unpack_from(self.order + "HH", body, pos)
            if code == END:
                break
            if pos + 4 + size > len(body):
                raise self.source.error(at, f"option {code} of {size} bytes reaches beyond its block")
            found.append((code, body[pos + 4 : pos + 4 + size]))
            pos += 4 + size + (-size % 4)
        return found


def text(value: bytes | None) -> str:
    return (value or b"").split(b"\0")[0].decode("utf-8", "replace")


# -- writing -------------------------------------------------------------------------------------------------


def option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def text_option(code: int, value: str) -> bytes:
    return option(code, value.encode(errors="replace")[:0xFFFF]) if value else b""


def block(kind: int, body: bytes, options: bytes) -> bytes:
    if options:
        options += bytes(4)  # opt_endofopt
    size = 12 + len(body) + len(options)
    return struct.pack("<II", kind, size) + body + options + struct.pack("<I", size)


class Writer:
    def __init__(self, file: BinaryIO, application: str = "", system: str = "") -> None:
        self._file = file
        self._interfaces = 0
        head = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)  # -1: the section's length is not said
        options = text_option(SHB_OS, system) + text_option(SHB_APPLICATION, application)
        file.write(block(SECTION, head, options))

    def interface(self, interface: Interface) -> int:
        """Its number, for `packet`."""
        options = text_option(IF_NAME, interface.name) + text_option(IF_DESCRIPTION, interface.description)
        for address in interface.addresses:  # with the mask or prefix length of a host
            four = len(address) == 4
            options += option(IF_IPV4, address + b"\xff" * 4) if four else option(IF_IPV6, address + b"\x80")
        options += option(IF_MAC, interface.mac) if interface.mac else b""
        options += option(IF_TSRESOL, b"\x09") + text_option(IF_HARDWARE, interface.hardware)
        head = struct.pack("<HHI", interface.linktype, 0, interface.snaplen)
        self._file.write(block(INTERFACE, head, options))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self,
        interface: int,
        ts_ns: int,
        data: bytes,
        length: int | None = None,
        comment: str = "",
        direction: str = "",
    ) -> None:
        """`length`: on the wire, if `data` is cut; `direction`: "in", "out" or "" (unknown)."""
        high, low = ts_ns >> 32 & 0xFFFFFFFF, ts_ns & 0xFFFFFFFF
        head = struct.pack("<IIIII", interface, high, low, len(data), length or len(data))
        options = text_option(COMMENT, comment)
        if direction:
            options += option(EPB_FLAGS, struct.pack("<I", DIRECTIONS[direction]))
        self._file.write(block(ENHANCED_PACKET, head + data + bytes(-len(data) % 4), options))
