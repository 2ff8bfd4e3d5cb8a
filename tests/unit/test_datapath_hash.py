# SPDX-License-Identifier: Apache-2.0
"""The hashes: Toeplitz against the published vectors, the keyed flow hash, the schedulers' stable hash.

tests/data/rss-toeplitz.json: Microsoft's RSS verification suite, as VPP's and DPDK's unit tests have it.
"""

import json
import random
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import _engine

VECTORS = json.loads((Path(__file__).parents[1] / "data/rss-toeplitz.json").read_text())
KEY = bytes.fromhex(VECTORS["key_hex"])
SECRET = bytes(range(100, 132))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: c["src"])
def test_toeplitz_vectors(case: dict) -> None:
    addresses = ip_address(case["src"]).packed + ip_address(case["dst"]).packed
    ports = case["sport"].to_bytes(2, "big") + case["dport"].to_bytes(2, "big")
    assert _engine.toeplitz(KEY, addresses) == int(case["hash_ip"], 16)
    assert _engine.toeplitz(KEY, addresses + ports) == int(case["hash_ip_tcp"], 16)


@settings(deadline=None)
@given(st.binary(min_size=12, max_size=36), st.binary(min_size=40, max_size=40), st.data())
def test_toeplitz_is_linear(data: bytes, key: bytes, draw: st.DataObject) -> None:
    """hash(a xor b) = hash(a) xor hash(b): what the definition promises, and a wrong window breaks."""
    other = draw.draw(st.binary(min_size=len(data), max_size=len(data)))
    both = bytes(a ^ b for a, b in zip(data, other, strict=True))
    assert _engine.toeplitz(key, both) == _engine.toeplitz(key, data) ^ _engine.toeplitz(key, other)


def flow(i: int, af: int, key: bytes = SECRET) -> int:
    source = (0x0A000000 + i).to_bytes(4, "big") if af == 4 else bytes.fromhex("20010db8") + i.to_bytes(12, "big")
    destination = bytes([192, 0, 2, 10]) if af == 4 else bytes.fromhex("20010db8") + bytes(11) + b"\x10"
    return _engine.flow_hash(key, source, destination, 1024 + i % 50000, 80, 6)


@pytest.mark.parametrize("af", [4, 6])
def test_flow_hash_spreads(af: int) -> None:
    """Sequential tuples, as scanners and benchmarks make them: no part that is used (bucket, owner, tag) clusters."""
    hashes = [flow(i, af) for i in range(32768)]
    assert len(set(hashes)) == len(hashes)
    for shift, bits in ((22, 10), (32, 10), (48, 10)):
        per = Counter(h >> shift & (1 << bits) - 1 for h in hashes)
        chi = sum((per[k] - 32) ** 2 / 32 for k in range(1 << bits))
        assert 800 < chi < 1250, f"bits {shift}..: chi² {chi:.0f} of 1023 degrees"  # 1023 ± 5 σ


@pytest.mark.parametrize("af", [4, 6])
def test_flow_hash_needs_the_secret(af: int) -> None:
    """Tuples that share a bucket under one key are spread under another."""
    bucket = [i for i in range(65536) if flow(i, af) & 0xFFFFFFFF < 1 << 24]  # a 256th of the table
    assert len(bucket) > 150
    other = sum(flow(i, af, bytes(range(32))) & 0xFFFFFFFF < 1 << 24 for i in bucket)
    assert other < 10


@pytest.mark.parametrize("af", [4, 6])
def test_flow_hash_sees_every_field(af: int) -> None:
    size = 4 if af == 4 else 16
    rng = random.Random(1)
    for _ in range(100):
        s, d = rng.randbytes(size), rng.randbytes(size)
        sport, dport = rng.randrange(65536), rng.randrange(65536)
        first = _engine.flow_hash(SECRET, s, d, sport, dport, 6)
        bit = 1 << rng.randrange(8)
        at = rng.randrange(size)
        flipped = bytes([*s[:at], s[at] ^ bit, *s[at + 1 :]])
        others = {
            _engine.flow_hash(SECRET, flipped, d, sport, dport, 6),
            _engine.flow_hash(SECRET, d, s, sport, dport, 6),
            _engine.flow_hash(SECRET, s, d, sport ^ 1, dport, 6),
            _engine.flow_hash(SECRET, s, d, sport, dport ^ 1, 6),
            _engine.flow_hash(SECRET, s, d, sport, dport, 17),
        }
        assert first not in others and len(others) == 5


def test_stable_hash_is_stable() -> None:
    """Balancers of a cluster, and versions of lbd, must agree: these values never change."""
    assert _engine.stable_hash(bytes([192, 0, 2, 1]), 1000, False) == _engine.stable_hash(bytes([192, 0, 2, 1]), 2000, False)
    got = [
        _engine.stable_hash(bytes([192, 0, 2, 1]), 1000, False),
        _engine.stable_hash(bytes([192, 0, 2, 1]), 1000, True),
        _engine.stable_hash(ip_address("2001:db8::1").packed, 1000, True),
        _engine.stable_hash(bytes([192, 0, 2, 1]), 1000, False, 1),
    ]
    assert got == [2267422821, 3760336273, 1797798906, 1736083013]
