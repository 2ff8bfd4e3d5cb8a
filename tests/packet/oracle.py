"""What must hold of any packet in and what came of it, however broken it was: lengths that fit, checksums never made right.

A reader of its own, in Python, which shares nothing with the engine's parser.
"""

from dataclasses import dataclass

from lbd._fastpath import Result

from lbd.datapath.reason import NAMES
from tests.unit.test_datapath_crc32c import model as crc32c
from tests.unit.test_datapath_csum import model

VERDICTS = {"forward", "drop", "kernel", "consume", "hold"}
TAGS = {0x8100, 0x88A8}
EXTENSIONS = {0, 43, 60, 135}


@dataclass
class Read:
    """An IP packet as far as it can be read; fits: every length is within the one around it."""

    fits: bool = False
    af: int = 0
    proto: int = -1
    tags: int = 0
    ttl: int = 0
    head_right: bool = False  # IPv4 header checksum
    right: bool | None = None  # transport checksum; None: absent, or not a transport that has one
    total: int = 0


def big(data: bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(data[at : at + size], "big")


def read(frame: bytes) -> Read:
    r = Read()
    at = 12
    while len(frame) >= at + 2 and big(frame, at) in TAGS and r.tags < 2:
        at += 4
        r.tags += 1
    ip = frame[at + 2 :]
    kind = big(frame, at) if len(frame) >= at + 2 else 0
    if kind == 0x0800 and len(ip) >= 20 and ip[0] >> 4 == 4:
        head, r.total, r.af, r.proto, r.ttl = (ip[0] & 15) * 4, big(ip, 2), 4, ip[9], ip[8]
        if head < 20 or not head <= r.total <= len(ip):
            return r
        r.head_right = model(ip[:head]) == 0
        l4, addresses = ip[head : r.total], ip[12:20]
        if big(ip, 6) & 0x3FFF:
            r.fits = True
            return r
    elif kind == 0x86DD and len(ip) >= 40 and ip[0] >> 4 == 6:
        r.total, r.af, r.proto, r.ttl, r.head_right = 40 + big(ip, 4), 6, ip[6], ip[7], True
        if r.total > len(ip):
            return r
        addresses, off = ip[8:40], 40
        while r.proto in EXTENSIONS:
            if off + 8 > r.total or off + (ip[off + 1] + 1) * 8 > r.total:
                return r
            r.proto, off = ip[off], off + (ip[off + 1] + 1) * 8
        l4 = ip[off : r.total]
    else:
        return r
    r.fits = transport_fits(r.proto, l4)
    if r.fits:
        r.right = transport_right(r, l4, addresses)
    return r


def transport_fits(proto: int, l4: bytes) -> bool:
    if proto == 6:
        return len(l4) >= 20 and 20 <= (l4[12] >> 4) * 4 <= len(l4)
    if proto == 17:
        return len(l4) >= 8 and 8 <= big(l4, 4) <= len(l4)
    if proto == 132:
        return len(l4) >= 16 and big(l4, 14) >= 4
    return True


def transport_right(r: Read, l4: bytes, addresses: bytes) -> bool | None:
    if r.proto == 1:
        return len(l4) >= 8 and model(l4) == 0
    if r.proto == 132:
        return crc32c(l4[:8] + bytes(4) + l4[12:]) == int.from_bytes(l4[8:12], "little")
    if r.proto not in (6, 17, 58):
        return None
    if r.proto == 17:
        l4 = l4[: big(l4, 4)]
        if big(l4, 6) == 0:
            return None
    return model(addresses + len(l4).to_bytes(4, "big") + bytes([0, 0, 0, r.proto]) + l4) == 0


def judge(frame: bytes, r: Result) -> None:
    assert r.verdict in VERDICTS and r.reason in NAMES
    if r.verdict in ("drop", "kernel"):
        assert r.out == [] and r.reason != "none"
        return
    if r.verdict == "hold":
        assert r.out == [] and r.reason == "none" and read(frame).fits
        return
    [(iface, out)] = r.out
    sent, got = read(frame), read(out)
    assert iface in (0, 1)
    assert sent.fits and sent.head_right, "what isn't sound goes nowhere"
    assert got.fits and got.head_right and got.af == sent.af
    if r.verdict == "consume":
        assert r.reason in ("ttl_expired", "mtu_exceeded") and got.right
        assert got.proto == (1 if got.af == 4 else 58)
        return
    assert r.reason == "none"
    assert (got.proto, got.total, got.ttl) == (sent.proto, sent.total, sent.ttl - 1)
    assert got.right == sent.right, "a wrong checksum stays wrong, a right one right, a missing one missing"
    if got.proto in (1, 58):
        assert got.right
    assert len(out) - 4 * got.tags == len(frame) - 4 * sent.tags
