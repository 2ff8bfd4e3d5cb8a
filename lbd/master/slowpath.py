# SPDX-License-Identifier: Apache-2.0
"""Packets that workers give back to the host's own stack (verdict `kernel`), written to the TAP `lbd-tap`.

Scope: frame in, frame out; the ring is the worker segment's, the device `tap.py`'s. The kernel then treats the frame as
received on the TAP, so three things are made right:

- the destination MAC becomes the TAP's: any other would count as somebody else's (PACKET_OTHERHOST);
- VLAN tags go: the TAP has no VLAN interfaces;
- a checksum that a local stack left to its "hardware" (veth: of TCP and UDP only the pseudo-header's sum stands there, of
  SCTP 0) is completed, since over a TAP the kernel verifies. One that is wrong stays wrong.

Workers limit the rate (SET_KERNEL_RATE) and count; what the TAP does not take is dropped and counted here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from lbd.master.tap import Tap

NAME = "lbd-tap"
MAC = bytes.fromhex("026c62642d74")  # locally administered; "lbd-t"

# RFC 7600's IPv4 dummy address, of the TAP alone. NB: on an interface without any IPv4 address the kernel refuses every
# packet unless its reverse path filter is off; with one, a loose filter (tap.py) lets clients' packets in.
DUMMY_ADDRESS = "192.0.0.8/32"

_VLAN = (0x8100, 0x88A8)
_CHECKSUM_AT = {6: 16, 17: 6}  # offset of the checksum in the transport header
_MF_OR_OFFSET = 0x3FFF
SCTP = 132


def _crc_table() -> tuple[int, ...]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return tuple(table)


_CRC32C = _crc_table()


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def fold(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ones_sum(data: bytes) -> int:
    """Ones' complement sum of 16-bit words (RFC 1071), not complemented."""
    if len(data) % 2:
        data += b"\0"
    return fold(sum(struct.unpack(f"!{len(data) // 2}H", data)))


def untagged(frame: bytes) -> bytes:
    """Without its VLAN tags."""
    while len(frame) >= 18 and int.from_bytes(frame[12:14], "big") in _VLAN:
        frame = frame[:12] + frame[16:]
    return frame


def complete_checksum(frame: bytes) -> bytes:
    """An untagged frame, its TCP or UDP checksum computed if only the pseudo-header's sum stands in the field, SCTP's if 0 does."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) >= 34 and frame[14] >> 4 == 4:
        l4 = 14 + (frame[14] & 15) * 4
        end = 14 + int.from_bytes(frame[16:18], "big")
        proto, addresses = frame[23], frame[26:34]
        if int.from_bytes(frame[20:22], "big") & _MF_OR_OFFSET:
            return frame
    elif kind == b"\x86\xdd" and len(frame) >= 54 and frame[14] >> 4 == 6:
        l4, proto, addresses = 54, frame[20], frame[22:54]
        end = l4 + int.from_bytes(frame[18:20], "big")
    else:
        return frame
    if proto == SCTP and l4 + 12 <= end <= len(frame):
        if frame[l4 + 8 : l4 + 12] == bytes(4):
            return frame[: l4 + 8] + crc32c(frame[l4:end]).to_bytes(4, "little") + frame[l4 + 12 :]
        return frame
    at = l4 + _CHECKSUM_AT.get(proto, 0)
    if at == l4 or end > len(frame) or at + 2 > end:
        return frame
    pseudo = ones_sum(addresses + struct.pack("!HH", proto, end - l4))
    if int.from_bytes(frame[at : at + 2], "big") != pseudo:
        return frame
    # the field holds the pseudo-header's sum, so the sum over the segment covers both
    checksum = 0xFFFF ^ ones_sum(frame[l4:end])
    return frame[:at] + (checksum or 0xFFFF).to_bytes(2, "big") + frame[at + 2 :]


class SlowPath:
    def __init__(self, write: Callable[[bytes], object], mac: bytes = MAC) -> None:
        self._write = write
        self._mac = mac
        self.delivered = 0
        self.refused = 0  # the TAP did not take it

    def deliver(self, frame: bytes, partial: bool) -> None:
        """`partial`: it came in where checksums may be incomplete (IFACE_PARTIAL)."""
        frame = self._mac + untagged(frame)[6:]
        try:
            self._write(complete_checksum(frame) if partial else frame)
            self.delivered += 1
        except OSError:
            self.refused += 1


def tap_writer(tap: Tap) -> Callable[[bytes], int]:
    return lambda frame: os.write(tap.fd, frame)
