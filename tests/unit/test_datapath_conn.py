# SPDX-License-Identifier: Apache-2.0
"""The connection table against a dict: insert, look up both directions, delete, full records, full index, chains."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit import _engine

SECRET = bytes(range(32))
FAMILIES = pytest.mark.parametrize("af", [4, 6])


class Flow(NamedTuple):
    """Both directions' tuples: (source, destination, sport, dport)."""

    proto: int
    forth: tuple[bytes, bytes, int, int]
    back: tuple[bytes, bytes, int, int]


def flow(af: int, client: int, cport: int, lport: int, server: int = 1, proto: int = 6) -> Flow:
    def address(net: int, n: int) -> bytes:
        return bytes([10, net, n >> 8 & 255, n & 255]) if af == 4 else bytes([0xFD, net]) + n.to_bytes(14, "big")

    forth = (address(1, client), address(2, 1), cport, 80)
    return Flow(proto, forth, (address(3, server), address(4, 1), 8080, lport))


def insert(table: _engine.Table, f: Flow) -> int | None:
    return table.insert(*f.forth, f.proto, *f.back)


flows = st.builds(
    flow, st.just(4), st.integers(0, 3), st.integers(1, 20), st.integers(1, 40), st.integers(0, 2), st.sampled_from([6, 17])
)


class AgainstDict(RuleBasedStateMachine):
    """Few records and few overflow buckets, so that both run out."""

    af = 4

    @initialize(capacity=st.integers(1, 24), overflow=st.integers(0, 3))
    def make(self, capacity: int, overflow: int) -> None:
        self.table = _engine.Table(self.af, capacity, SECRET, overflow)
        self.capacity = capacity
        self.model: dict[int, Flow] = {}
        self.seen: set[Flow] = set()

    def taken(self, f: Flow) -> bool:
        return any(g.proto == f.proto and (g.forth == f.forth or g.back == f.back) for g in self.model.values())

    @rule(f=flows)
    def add(self, f: Flow) -> None:
        f = f._replace(forth=self.wide(f.forth), back=self.wide(f.back))
        self.seen.add(f)
        if self.taken(f):
            return  # the engine looks first
        i = insert(self.table, f)
        if len(self.model) < self.capacity:
            assert i is not None, "16 primary buckets of 10 hold 48 entries"
        else:
            assert i is None
        if i is not None:
            assert i not in self.model
            self.model[i] = f

    def wide(self, end: tuple[bytes, bytes, int, int]) -> tuple[bytes, bytes, int, int]:
        return end if self.af == 4 else (end[0] + bytes(12), end[1] + bytes(12), end[2], end[3])

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        i = data.draw(st.sampled_from(sorted(self.model)))
        self.table.delete(i)
        del self.model[i]

    @invariant()
    def every_flow_is_found_where_it_is(self) -> None:
        if not hasattr(self, "table"):
            return
        for i, f in self.model.items():
            assert self.table.lookup(*f.forth, f.proto) == (i, 0)
            assert self.table.lookup(*f.back, f.proto) == (i, 1)
        for f in self.seen - set(self.model.values()):
            if not self.taken(f):
                assert self.table.lookup(*f.forth, f.proto) is None
                assert self.table.lookup(*f.back, f.proto) is None
        index = self.table.index()
        assert self.table.used() == len(self.model)
        assert index["entries"] == 2 * len(self.model)
        assert index["chained"] + index["free"] == index["overflow"]


class AgainstDict6(AgainstDict):
    af = 6


TestAgainstDict4 = AgainstDict.TestCase
TestAgainstDict6 = AgainstDict6.TestCase
TestAgainstDict4.settings = TestAgainstDict6.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


@FAMILIES
def test_a_full_table_holds_what_it_says(af: int) -> None:
    """Every record in use, both directions indexed: the index's size must never be the limit (10,000 flows, as many tuples)."""
    n = 10000
    table = _engine.Table(af, n, SECRET)
    made = [flow(af, i & 0xFFFF, 1 + i % 60000, 1 + i % 60000, i // 60000) for i in range(n)]
    assert all(insert(table, f) is not None for f in made)
    assert insert(table, flow(af, 60001, 1, 1, 9)) is None
    index = table.index()
    assert index["entries"] == 2 * n
    assert index["longest"] <= 4, "chain of buckets"
    assert index["free"] > index["overflow"] // 2, "one primary bucket in twenty overflows"
    for i in range(n):
        table.delete(i)
    index = table.index()
    assert index["entries"] == 0 and index["chained"] == 0 and table.used() == 0
    assert all(table.lookup(*f.forth, 6) is None for f in made[:100])


@FAMILIES
def test_without_overflow_buckets_the_index_refuses_and_leaves_no_half(af: int) -> None:
    """A bucket takes ten entries; chosen tuples of one bucket (the test knows the key) fill it and its chain."""
    table = _engine.Table(af, 2000, SECRET, overflow=1)
    buckets = 2000 * 200 // 625 + 16
    chosen = []
    for i in range(200000):
        f = flow(af, i & 0xFFFF, 1 + i % 60000, 1 + i % 50000, 1 + i // 50000)
        forth = _engine.flow_hash(SECRET, *f.forth, 6) & 0xFFFFFFFF
        if forth * buckets >> 32 == 7:
            chosen.append(f)
        if len(chosen) == 40:
            break
    assert len(chosen) == 40
    held = {}
    for f in chosen:
        i = insert(table, f)
        if i is not None:
            held[i] = f
    assert 18 <= len(held) <= 20, "ten in the bucket, ten in the only overflow bucket"
    assert table.index()["entries"] == 2 * len(held) and table.used() == len(held)
    for i, f in held.items():
        assert table.lookup(*f.forth, 6) == (i, 0) and table.lookup(*f.back, 6) == (i, 1)
    for i in held:
        table.delete(i)
    assert table.index() == {"entries": 0, "chained": 0, "free": 1, "longest": 1, "overflow": 1}


@given(st.integers(1, 1 << 20), st.sampled_from([4, 6]))
@settings(max_examples=20, deadline=None)
def test_any_capacity_can_be_laid_out(capacity: int, af: int) -> None:
    assert _engine.Table(af, min(capacity, 70000), SECRET).capacity() == min(capacity, 70000)
