"""Frames by struct, for floods and state machines: what scapy builds in a millisecond takes microseconds here.

Checksums are computed anew over the bytes at hand (tests/unit/test_datapath_csum.py holds the function used against a model).
"""

import struct
from typing import NamedTuple

from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, mac, packed, server_mac
from tests.unit import _engine

FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}
TCP, UDP = 6, 17


class Seen(NamedTuple):
    """A TCP or UDP packet, read back."""

    af: int
    proto: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    ttl: int
    payload: bytes
    macs: bytes


def transport(proto: int, src: bytes, dst: bytes, sport: int, dport: int, flags: str = "", seq: int = 0, ack: int = 0,
              payload: bytes = b"") -> bytes:  # fmt: skip
    if proto == TCP:
        bits = sum(FLAGS[f] for f in flags)
        head = struct.pack("!HHIIBBHHH", sport, dport, seq % 2**32, ack % 2**32, 0x50, bits, 8192, 0, 0)
        at = 16
    else:
        head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
        at = 6
    l4 = bytearray(head + payload)
    check = _engine.checksum(bytes(l4), _engine.pseudo_sum(src, dst, proto, len(l4)))
    struct.pack_into("!H", l4, at, check or (0xFFFF if proto == UDP else 0))
    return bytes(l4)


def ip_packet(src: bytes, dst: bytes, proto: int, l4: bytes, ttl: int = 64) -> bytes:
    if len(src) == 16:
        return struct.pack("!IHBB", 6 << 28, len(l4), proto, ttl) + src + dst + l4
    head = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 1, 0x4000, ttl, proto, 0) + src + dst)
    struct.pack_into("!H", head, 10, _engine.checksum(bytes(head)))
    return bytes(head) + l4


def ethernet(dst: str, src: str, ip: bytes) -> bytes:
    return mac(dst) + mac(src) + (b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd") + ip


def from_client(af: int, proto: int, sport: int, flags: str = "", seq: int = 0, ack: int = 0, payload: bytes = b"", *,
                client: bytes | None = None, dport: int = 80, ttl: int = 64, src_mac: str = MAC_CLIENT) -> bytes:  # fmt: skip
    src, dst = client or packed(CLIENT[af]), packed(VIP[af])
    return ethernet(
        MAC_LB0, src_mac, ip_packet(src, dst, proto, transport(proto, src, dst, sport, dport, flags, seq, ack, payload), ttl)
    )


def from_server(af: int, proto: int, address: bytes, lport: int, flags: str = "", seq: int = 0, ack: int = 0,
                payload: bytes = b"", *, sport: int = 8080, ttl: int = 64) -> bytes:  # fmt: skip
    dst = packed(LIP[af])
    l4 = transport(proto, address, dst, sport, lport, flags, seq, ack, payload)
    return ethernet(MAC_LB1, server_mac(1), ip_packet(address, dst, proto, l4, ttl))


def read(frame: bytes) -> Seen:
    """Fails unless lengths are consistent and every checksum is right (or, UDP, absent)."""
    ip = frame[14:]
    af = ip[0] >> 4
    if af == 4:
        assert frame[12:14] == b"\x08\x00" and ip[0] == 0x45
        total = struct.unpack_from("!H", ip, 2)[0]
        assert _engine.checksum(ip[:20]) == 0
        proto, ttl, src, dst, l4 = ip[9], ip[8], ip[12:16], ip[16:20], ip[20:total]
    else:
        assert frame[12:14] == b"\x86\xdd"
        total = 40 + struct.unpack_from("!H", ip, 4)[0]
        proto, ttl, src, dst, l4 = ip[6], ip[7], ip[8:24], ip[24:40], ip[40:total]
    assert total == len(ip)
    check = struct.unpack_from("!H", l4, 16 if proto == TCP else 6)[0]
    if proto == TCP or check:
        assert _engine.checksum(l4, _engine.pseudo_sum(src, dst, proto, len(l4))) == 0
    sport, dport = struct.unpack_from("!HH", l4)
    if proto == UDP:
        assert struct.unpack_from("!H", l4, 4)[0] == len(l4)
        return Seen(af, proto, src, dst, sport, dport, 0, 0, 0, ttl, l4[8:], frame[:12])
    seq, ack, _, flags = struct.unpack_from("!IIBB", l4, 4)
    return Seen(af, proto, src, dst, sport, dport, seq, ack, flags, ttl, l4[20:], frame[:12])
