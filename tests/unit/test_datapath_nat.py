# SPDX-License-Identifier: Apache-2.0
"""FULLNAT's rewrite on packets from the IP header on: there and back is the identity, checksums are what computing anew gives,
a wrong checksum stays wrong, a missing one stays missing, a partial one is completed, or stays partial for the kernel.
"""

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit import _engine
from tests.unit.test_datapath_csum import model

SECRET = bytes(range(32))
TCP, UDP = 6, 17
CHECK_AT = {TCP: 16, UDP: 6}


@dataclass(frozen=True)
class Rewrite:
    """A packet's ends before and after: client, virtual service, local address, real server."""

    af: int
    proto: int
    ends: tuple[bytes, bytes, bytes, bytes]
    ports: tuple[int, int, int, int]
    ttl: int
    payload: bytes


@st.composite
def rewrites(draw: st.DrawFn) -> Rewrite:
    af = draw(st.sampled_from([4, 6]))
    size = 4 if af == 4 else 16
    address = st.binary(min_size=size, max_size=size) | st.sampled_from([b"\xff" * size, b"\x00" * size])
    port = st.integers(0, 65535) | st.sampled_from([0, 0xFFFF, 80])
    return Rewrite(
        af, draw(st.sampled_from([TCP, UDP])), draw(st.tuples(address, address, address, address)),
        draw(st.tuples(port, port, port, port)), draw(st.integers(2, 255)), draw(st.binary(max_size=40)),
    )  # fmt: skip


def checksummed(af: int, proto: int, ip: bytearray, l4: bytearray) -> bytes:
    """The packet with both checksums computed anew; UDP's zero is sent as all ones (RFC 768)."""
    addresses = bytes(ip[12:20] if af == 4 else ip[8:40])
    at = CHECK_AT[proto]
    l4[at : at + 2] = b"\0\0"
    check = model(addresses + len(l4).to_bytes(4, "big") + bytes([0, 0, 0, proto]) + bytes(l4))
    if proto == UDP and check == 0:
        check = 0xFFFF
    l4[at : at + 2] = check.to_bytes(2, "big")
    if af == 4:
        ip[10:12] = b"\0\0"
        ip[10:12] = model(bytes(ip)).to_bytes(2, "big")
    return bytes(ip + l4)


def packet(r: Rewrite, source: int, destination: int, ttl: int) -> bytes:
    """From end `source` to end `destination` (indices into r.ends)."""
    ports = r.ports[source].to_bytes(2, "big") + r.ports[destination].to_bytes(2, "big")
    if r.proto == TCP:
        l4 = bytearray(ports + bytes.fromhex("000003e8000013885018200000000000") + r.payload)
    else:
        l4 = bytearray(ports + (8 + len(r.payload)).to_bytes(2, "big") + b"\0\0" + r.payload)
    if r.af == 4:
        ip = bytearray(bytes.fromhex("4500") + (20 + len(l4)).to_bytes(2, "big") + bytes.fromhex("12344000"))
        ip += bytes([ttl, r.proto, 0, 0]) + r.ends[source] + r.ends[destination]
    else:
        ip = bytearray(bytes.fromhex("60000000") + len(l4).to_bytes(2, "big") + bytes([r.proto, ttl]))
        ip += r.ends[source] + r.ends[destination]
    return checksummed(r.af, r.proto, ip, l4)


CLIENT, VIRTUAL, LOCAL, SERVER = range(4)


class Record:
    """One connection's record, and the rewrite of a packet in either direction."""

    def __init__(self, r: Rewrite):
        self.r = r
        self.l4 = 20 if r.af == 4 else 40
        self.table = _engine.Table(r.af, 1, SECRET)
        c, v, l, d = r.ends
        cport, vport, lport, dport = r.ports
        self.table.insert(c, v, cport, vport, r.proto, d, l, dport, lport)

    def forth(self, p: bytes, partial: bool = False) -> bytes:
        return _engine.rewrite(self.table, 0, 0, p, self.l4, self.r.proto, partial)

    def back(self, p: bytes, partial: bool = False, completes: bool = False) -> bytes:
        return _engine.rewrite(self.table, 0, 1, p, self.l4, self.r.proto, partial, completes)


ONES, ZEROS = b"\xff" * 4, b"\x00" * 4
CORNER = Rewrite(4, UDP, (ONES, ONES, ZEROS, ZEROS), (0xFFFF, 0xFFFF, 0, 0), 64, b"")


@settings(max_examples=600, deadline=None)
@given(rewrites())
@example(CORNER)
@example(Rewrite(4, TCP, (ZEROS, ZEROS, ONES, ONES), (0, 0, 0xFFFF, 0xFFFF), 255, b"\xff"))
@example(Rewrite(6, UDP, (b"\xff" * 16, b"\xff" * 16, bytes(16), bytes(16)), (0xFFFF, 0xFFFF, 0, 0), 2, b""))
def test_rewritten_equals_built_anew(r: Rewrite) -> None:
    record = Record(r)
    assert record.forth(packet(r, CLIENT, VIRTUAL, r.ttl)) == packet(r, LOCAL, SERVER, r.ttl - 1)
    assert record.back(packet(r, SERVER, LOCAL, r.ttl)) == packet(r, VIRTUAL, CLIENT, r.ttl - 1)


@settings(max_examples=300, deadline=None)
@given(rewrites())
def test_there_and_back_is_the_identity(r: Rewrite) -> None:
    """A real server that echoes: swap the ends, and what comes back differs by its direction and two hops alone."""
    record = Record(r)
    there = record.forth(packet(r, CLIENT, VIRTUAL, r.ttl))
    assert there == packet(r, LOCAL, SERVER, r.ttl - 1)
    if r.ttl > 2:
        assert record.back(packet(r, SERVER, LOCAL, r.ttl - 1)) == packet(r, VIRTUAL, CLIENT, r.ttl - 2)


@settings(max_examples=300, deadline=None)
@given(rewrites(), st.integers(0, 0xFFFF))
def test_a_wrong_transport_checksum_stays_wrong(r: Rewrite, check: int) -> None:
    record = Record(r)
    sent = bytearray(packet(r, CLIENT, VIRTUAL, r.ttl))
    at = record.l4 + CHECK_AT[r.proto]
    right = bytes(sent[at : at + 2])
    sent[at : at + 2] = check.to_bytes(2, "big")
    got = record.forth(bytes(sent))
    expected = packet(r, LOCAL, SERVER, r.ttl - 1)
    if r.proto == UDP and check == 0:
        assert got[at : at + 2] == b"\0\0", "none sent, none made"
    elif check.to_bytes(2, "big") == right or {check, int.from_bytes(right, "big")} == {0, 0xFFFF}:
        assert got == expected
    else:
        assert got[at : at + 2] != expected[at : at + 2]
    assert got[:at] == expected[:at] and got[at + 2 :] == expected[at + 2 :]


@settings(max_examples=300, deadline=None)
@given(rewrites())
@example(CORNER)
def test_a_partial_checksum_is_completed(r: Rewrite) -> None:
    record = Record(r)
    sent = partial(r, packet(r, SERVER, LOCAL, r.ttl))
    whole = packet(r, VIRTUAL, CLIENT, r.ttl - 1)
    assert record.back(sent, partial=True) == whole
    assert record.back(sent, partial=True, completes=True) == partial(r, whole)
    assert record.back(packet(r, SERVER, LOCAL, r.ttl), completes=True) == whole


def partial(r: Rewrite, whole: bytes) -> bytes:
    """As a local TCP stack leaves it, to its NIC: with the folded pseudo-header sum."""
    sent, l4 = bytearray(whole), 20 if r.af == 4 else 40
    at = l4 + CHECK_AT[r.proto]
    addresses = bytes(sent[12:20] if r.af == 4 else sent[8:40])
    pseudo = addresses + (len(sent) - l4).to_bytes(4, "big") + bytes([0, 0, 0, r.proto])
    sent[at : at + 2] = (model(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(sent)


def test_udp_shorter_than_ip_says() -> None:
    """RFC 9868: bytes after the UDP length belong to no checksum."""
    r = Rewrite(4, UDP, (b"\x0a\0\0\1", b"\x0a\0\0\2", b"\x0a\0\0\3", b"\x0a\0\0\4"), (1, 80, 2, 8080), 64, b"query")
    record = Record(r)

    def padded(p: bytes) -> bytes:
        ip = bytearray(p[:20])
        ip[2:4] = (len(p) + 4).to_bytes(2, "big")
        ip[10:12] = b"\0\0"
        ip[10:12] = model(bytes(ip)).to_bytes(2, "big")
        return bytes(ip) + p[20:] + b"OPTS"

    sent = bytearray(padded(packet(r, CLIENT, VIRTUAL, 64)))
    pseudo = bytes(sent[12:20]) + (13).to_bytes(4, "big") + bytes([0, 0, 0, UDP])
    sent[26:28] = (model(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    assert record.forth(bytes(sent), partial=True) == padded(packet(r, LOCAL, SERVER, 63))


@pytest.mark.parametrize("chain, result", [
    ([(0, 0)], (0, 8)), ([(60, 0), (43, 1), (135, 0)], (0, 32)), ([(0, 0)] * 8, (0, 64)), ([(0, 0)] * 9, (-2, None)),
    ([(0, 0), (44, 0)], (1, 8)), ([(51, 4)], (-2, None)), ([(0, 255)], (-1, None)),
])  # fmt: skip
def test_extension_headers(chain: list[tuple[int, int]], result: tuple[int, int | None]) -> None:
    """(kind, length field) each, then TCP."""
    data = b""
    for i, (_, length) in enumerate(chain):
        following = chain[i + 1][0] if i + 1 < len(chain) else 6
        data += bytes([following, length]) + bytes(6) + (bytes(8 * length) if length < 255 else b"")
    got, off, _ = _engine.walk_headers(data, 0, chain[0][0])
    assert got == result[0]
    if result[1] is not None:
        assert off == result[1]


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, 255))
def test_extension_headers_never_beyond_the_end(data: bytes, proto: int) -> None:
    result, off, _ = _engine.walk_headers(data, 0, proto)
    assert result in (0, 1, -1, -2)
    assert off <= len(data) or result == -1
