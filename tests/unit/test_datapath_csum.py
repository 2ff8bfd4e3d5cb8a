# SPDX-License-Identifier: Apache-2.0
"""Internet checksums: published vectors, and incremental = computed anew for every input, 0x0000 and 0xffff included.

tests/data/inet-checksum.json: RFC 1071 §3, RFC 1624 §4, and VPP's unit test, recomputed. The model here is a sum over big-endian
words, written without a look at csum.pxd.
"""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit import _engine

VECTORS = json.loads((Path(__file__).parents[1] / "data/inet-checksum.json").read_text())
EDGE = st.sampled_from([b"\x00\x00", b"\xff\xff", b"\x00\x01", b"\xff\xfe", b"\x01\x00", b"\xfe\xff"])
WORD = EDGE | st.binary(min_size=2, max_size=2)


def words(data: bytes) -> list[int]:
    data += b"\0" * (len(data) % 2)
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def model(data: bytes) -> int:
    total = sum(words(data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def swapped(value: int) -> int:
    return (value & 0xFF) << 8 | value >> 8


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: f"{c['name']} {c.get('n', '')}")
def test_vectors(case: dict) -> None:
    if "n" in case:
        data = bytes(0xF0 + ((7 * i) & 0xF) for i in range(case["n"]))
    else:
        data = bytes.fromhex(case["data_hex"])
    assert _engine.checksum(data) == int(case["csum"], 16)


def test_incremental_vectors() -> None:
    for case in VECTORS["incremental"]:
        d = _engine.delta(bytes.fromhex(case["m"]), bytes.fromhex(case["m_new"]))
        assert _engine.apply(int(case["hc"], 16), d) == int(case["hc_new"], 16)


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_checksum_is_the_models(data: bytes) -> None:
    assert _engine.checksum(data) == model(data)


@settings(deadline=None)
@given(st.integers(0, 65535), st.sampled_from([4, 16]), st.integers(1, 255), st.data())
def test_pseudo_header(length: int, alen: int, proto: int, data: st.DataObject) -> None:
    source, destination = data.draw(st.binary(min_size=alen, max_size=alen)), data.draw(st.binary(min_size=alen, max_size=alen))
    pseudo = source + destination + length.to_bytes(4, "big") + bytes([0, 0, 0, proto])
    assert _engine.checksum(b"", _engine.pseudo_sum(source, destination, proto, length)) == model(pseudo)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=18), st.lists(WORD, max_size=12))
@example([(b"\xff\xff", b"\x00\x00")], [])
@example([(b"\x00\x00", b"\xff\xff")], [b"\x00\x00"])
@example([(b"\x55\x55", b"\x32\x85")], [])
def test_incremental_is_exact(changes: list[tuple[bytes, bytes]], rest: list[bytes]) -> None:
    """The header's other words stay; the sum of a real header is never zero (version, protocol), so neither is it here."""
    old = b"".join(a for a, _ in changes)
    new = b"".join(b for _, b in changes)
    constant = b"".join(rest) + b"\x45\x00"
    d = _engine.delta(old, new)
    assert _engine.apply(model(old + constant), d) == model(new + constant)
    assert _engine.apply(model(new + constant), _engine.reverse(d)) == model(old + constant)


@settings(deadline=None)
@given(st.integers(0, 0xFFFF), st.lists(st.tuples(WORD, WORD), min_size=1, max_size=6))
def test_a_wrong_checksum_stays_wrong(check: int, changes: list[tuple[bytes, bytes]]) -> None:
    old = b"\x45\x00" + b"".join(a for a, _ in changes)
    new = b"\x45\x00" + b"".join(b for _, b in changes)
    right = model(old + check.to_bytes(2, "big")) == 0
    after = _engine.apply(check, _engine.delta(old, new))
    assert (model(new + after.to_bytes(2, "big")) == 0) == right


@settings(deadline=None)
@given(st.integers(0, 0xFFFF))
def test_reverse_undoes(check: int) -> None:
    for old, new in (("0000", "ffff"), ("ffff", "0000"), ("1234", "1234"), ("0001", "8000")):
        d = _engine.delta(bytes.fromhex(old), bytes.fromhex(new))
        back = _engine.apply(_engine.apply(check, d), _engine.reverse(d))
        assert back == check or {back, check} == {0, 0xFFFF}  # the two zeros of ones' complement
