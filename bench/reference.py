"""What a forwarded frame must look like, to the last byte: worked out in Python from the frame that came, with both checksums anew.

Shares nothing with the engine: no deltas, no tables. Knows IPv4 without options and IPv6 without extension headers, TCP, UDP, SCTP.
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


def crc32c(data: bytes) -> int:
    """SCTP's checksum (RFC 9260, appendix A), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return ~crc & 0xFFFFFFFF


def transport(l4: bytes, proto: int, source: bytes, destination: bytes, sport: int, dport: int) -> bytes:
    if proto == 132:
        bare = struct.pack(">HH", sport, dport) + l4[4:8] + bytes(4) + l4[12:]
        return bare[:8] + struct.pack("<I", crc32c(bare)) + bare[12:]
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


def translated(frame: bytes, path: Path, id: bytes) -> bytes:
    """This frame in the other family (RFC 7915); id: the identification that an IPv4 header gets."""
    if frame[12:14] == b"\x08\0":
        total, proto = struct.unpack_from(">H", frame, 16)[0], frame[23]
        l4 = transport(frame[34 : 14 + total], proto, path.source, path.destination, path.sport, path.dport)
        head = struct.pack(">IHBB", 0x60000000 | frame[15] << 20, len(l4), proto, frame[22] - 1)
        return path.dmac + path.smac + b"\x86\xdd" + head + path.source + path.destination + l4
    size, proto = struct.unpack_from(">H", frame, 18)[0], frame[20]
    l4 = transport(frame[54 : 54 + size], proto, path.source, path.destination, path.sport, path.dport)
    tos = struct.unpack_from(">H", frame, 14)[0] >> 4 & 0xFF
    ip = struct.pack(">BBH2sHBBH", 0x45, tos, 20 + len(l4), id, 0, frame[21] - 1, proto, 0) + path.source + path.destination
    ip = ip[:10] + struct.pack(">H", ones_sum(ip)) + ip[12:]
    return path.dmac + path.smac + b"\x08\0" + ip + l4


SHIM_GRE = (47, b"\0\0\x08\0")


def shim_gue(sport: int, dport: int, size: int) -> tuple[int, bytes]:
    """UDP without a checksum, and GUE of version 0 around IPv4; size: of the packet in it."""
    return 17, struct.pack(">HHHH", sport, dport, 12 + size, 0) + b"\0\x04\0\0"


def tunnelled(frame: bytes, dmac: bytes, smac: bytes, source: bytes, destination: bytes,
              shim: tuple[int, bytes] = (4, b"")) -> bytes:  # fmt: skip
    """IPv4 in IPv4 (RFC 2003) of a packet without options, type of service and DF: the identification is the inner one. What was
    behind the packet to fill the frame is not needed any more. shim: protocol and bytes between the two headers."""
    inner = unchanged(frame, dmac, smac)
    size = struct.unpack_from(">H", inner, 16)[0]
    proto, between = shim
    outer = struct.pack(">BBH2sHBBH", 0x45, 0, 20 + len(between) + size, inner[18:20], 0, 64, proto, 0) + source + destination
    outer = outer[:10] + struct.pack(">H", ones_sum(outer)) + outer[12:]
    return inner[:14] + outer + between + inner[14 : 14 + size]


def ends(frame: bytes) -> tuple[bytes, int, bytes, int]:
    """(source, port, destination, port) of a frame."""
    head, size, at = (20, 4, 26) if frame[12:14] == b"\x08\0" else (40, 16, 22)
    sport, dport = struct.unpack_from(">HH", frame, 14 + head)
    return frame[at : at + size], sport, frame[at + size : at + 2 * size], dport
