"""What a forwarded frame must look like, to the last byte: worked out in Python from the frame that came, with both checksums anew.

Shares nothing with the engine: no deltas, no tables. Knows IPv4 without options and IPv6 without extension headers, TCP and UDP.
"""

import struct
from typing import NamedTuple


class Path(NamedTuple):
    """Addresses that a packet leaves with; network order."""

    dmac: bytes
    smac: bytes
    source: bytes
    sport: int
    destination: bytes
    dport: int


def ones_sum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of what has none yet, as a number."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport(l4: bytes, proto: int, source: bytes, destination: bytes, sport: int, dport: int) -> bytes:
    at = 16 if proto == 6 else 6
    bare = struct.pack(">HH", sport, dport) + l4[4:at] + b"\0\0" + l4[at + 2 :]
    check = ones_sum(source + destination + struct.pack(">II", len(bare), proto) + bare)
    if proto == 17 and check == 0:
        check = 0xFFFF  # RFC 768
    return bare[:at] + struct.pack(">H", check) + bare[at + 2 :]


def forwarded(frame: bytes, path: Path, hops: int = 1) -> bytes:
    """This frame on its way out by `path`; the bytes behind the IP packet (padding) go along."""
    ether = path.dmac + path.smac + frame[12:14]
    if frame[12:14] == b"\x08\0":
        head, total = 20, struct.unpack_from(">H", frame, 16)[0]
        proto, ip = frame[23], bytearray(frame[14:34])
        ip[8] -= hops
        ip[10:12] = b"\0\0"
        ip[12:20] = path.source + path.destination
        ip[10:12] = struct.pack(">H", ones_sum(bytes(ip)))
    else:
        head, total = 40, 40 + struct.unpack_from(">H", frame, 18)[0]
        proto, ip = frame[20], bytearray(frame[14:54])
        ip[7] -= hops
        ip[8:40] = path.source + path.destination
    l4 = transport(frame[14 + head : 14 + total], proto, path.source, path.destination, path.sport, path.dport)
    return ether + bytes(ip) + l4 + frame[14 + total :]


def unchanged(frame: bytes, dmac: bytes, smac: bytes) -> bytes:
    """As DR leaves it: link layer and TTL."""
    source, sport, destination, dport = ends(frame)
    return forwarded(frame, Path(dmac, smac, source, sport, destination, dport))


def tunnelled(frame: bytes, dmac: bytes, smac: bytes, source: bytes, destination: bytes) -> bytes:
    """IPv4 in IPv4 (RFC 2003) of a packet without options, type of service and DF: the identification is the inner one. What was
    behind the packet to fill the frame is not needed any more."""
    inner = unchanged(frame, dmac, smac)
    size = struct.unpack_from(">H", inner, 16)[0]
    outer = struct.pack(">BBH2sHBBH", 0x45, 0, 20 + size, inner[18:20], 0, 64, 4, 0) + source + destination
    outer = outer[:10] + struct.pack(">H", ones_sum(outer)) + outer[12:]
    return inner[:14] + outer + inner[14 : 14 + size]


def ends(frame: bytes) -> tuple[bytes, int, bytes, int]:
    """(source, port, destination, port) of a frame."""
    head, size, at = (20, 4, 26) if frame[12:14] == b"\x08\0" else (40, 16, 22)
    sport, dport = struct.unpack_from(">HH", frame, 14 + head)
    return frame[at : at + size], sport, frame[at + size : at + 2 * size], dport
