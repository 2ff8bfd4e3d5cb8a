# SPDX-License-Identifier: Apache-2.0
"""CRC32c: published vectors, and moved on = computed anew.

Vectors: RFC 3720, appendix B.4 (iSCSI uses the same polynomial), and the check value of the catalogue of CRC algorithms.
The model is the textbook's: one bit at a time.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.master import slowpath
from tests.unit import _engine

READ_PDU = bytes.fromhex("01c0000000000000000000000000000014000000000004000000001400000018280000000000000002000000" "00000000")
VECTORS = {
    "32 zeros": (bytes(32), 0x8A9136AA),
    "32 ones": (b"\xff" * 32, 0x62A8AB43),
    "rising": (bytes(range(32)), 0x46DD794E),
    "falling": (bytes(range(31, -1, -1)), 0x113FDB5C),
    "iSCSI read command": (READ_PDU, 0xD9963A56),
    "check": (b"123456789", 0xE3069283),
    "nothing": (b"", 0),
}


def model(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("data,crc", VECTORS.values(), ids=VECTORS)
def test_vectors(data: bytes, crc: int) -> None:
    assert model(data) == _engine.crc32c(data) == slowpath.crc32c(data) == crc


@given(st.binary(max_size=300))
def test_any_length(data: bytes) -> None:
    assert _engine.crc32c(data) == slowpath.crc32c(data) == model(data)


@settings(max_examples=300)
@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.binary(max_size=600), st.integers(0, 2**32 - 1))
def test_moved_is_computed_anew(old: bytes, new: bytes, rest: bytes, error: int) -> None:
    """And a checksum that was wrong is as wrong as before."""
    crc = _engine.crc32c(old + rest)
    assert _engine.crc32c_moved(crc ^ error, old, new, 4 + len(rest)) == _engine.crc32c(new + rest) ^ error


@pytest.mark.parametrize("size", [4, 12, 255, 256, 257, 1480, 9000, 65515, 65535])
def test_moved_over_every_size(size: int) -> None:
    rest = bytes(i * 7 & 255 for i in range(size - 4))
    old, new = b"\x9c\x40\x00\x50", b"\x27\x10\x1f\x90"
    assert _engine.crc32c_moved(_engine.crc32c(old + rest), old, new, size) == _engine.crc32c(new + rest)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_products(a: int, b: int) -> None:
    right = 0
    for k in range(32):
        right ^= (a << k) * (b >> k & 1)
    assert _engine.products(a, b) == (right, right)
