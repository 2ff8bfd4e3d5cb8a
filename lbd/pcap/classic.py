# SPDX-License-Identifier: Apache-2.0
"""Classic pcap (draft-ietf-opsawg-pcap): one header, one link type, one interface without a name.

Both byte orders, microseconds and nanoseconds. The link type's upper bits (FCS length) are ignored.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from lbd.pcap.packet import ETHERNET, LENGTH_MAX, Interface, Packet, Source

# the first four bytes: (byte order of struct, nanoseconds per unit of the second timestamp field)
MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
SECOND = 1_000_000_000


def read(source: Source, magic: bytes) -> Iterator[Packet]:
    """Packets of a file whose first four bytes were read already."""
    order, unit = MAGIC[magic]
    major, _, _, _, snaplen, linktype = struct.unpack(order + "HHiIII", source.exactly(20, "the file header"))
    if major != 2:
        raise source.error(4, f"pcap version {major} is unknown")
    interface = Interface(linktype=linktype & 0xFFFF, snaplen=snaplen)
    head = struct.Struct(order + "IIII")
    while True:
        at = source.offset
        raw = source.take(head.size)
        if not raw:
            return
        raw += source.exactly(head.size - len(raw), "a packet header") if len(raw) < head.size else b""
        seconds, fraction, caplen, length = head.unpack(raw)
        if caplen > LENGTH_MAX:
            raise source.error(at, f"a packet of {caplen} bytes: this is no packet header")
        data = source.exactly(caplen, "a packet")
        yield Packet(seconds * SECOND + fraction * unit, data, max(length, caplen), interface)


class Writer:
    """Little endian, nanoseconds."""

    def __init__(self, file: BinaryIO, linktype: int = ETHERNET, snaplen: int = 262144) -> None:
        self._file = file
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, snaplen, linktype))

    def packet(self, ts_ns: int, data: bytes, length: int | None = None) -> None:
        seconds, fraction = divmod(ts_ns, SECOND)
        self._file.write(struct.pack("<IIII", seconds, fraction, len(data), length or len(data)) + data)
