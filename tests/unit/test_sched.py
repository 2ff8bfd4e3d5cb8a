"""Schedulers' tables: shares, order, stability, and Maglev against published tables.

tests/data/maglev-tables.json: (offset, skip, weight) -> table, from the paper (NSDI 2016, table 1), from Katran's
MaglevHash (V1 weights only the first round, V2 all of them; lbd's construction is V2) and Cilium's slot counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.sched import Flag, Kind, Server, mh, names, scheduler
from lbd.sched.share import apportion

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests/data/maglev-tables.json").read_text())
KATRAN = [v for v in VECTORS["katran"] if v["variant"] == "V2" or len({e["weight"] for e in v["endpoints"]}) == 1]


def servers(*weights: int, first: int = 0) -> list[Server]:
    return [Server(first + i, w, f"10.0.{i >> 8}.{i & 255}:80".encode()) for i, w in enumerate(weights)]


def counts(table: list[int]) -> dict[int, int]:
    return dict(Counter(table))


def test_every_scheduler_of_the_configuration_is_here() -> None:
    from lbd.config.service import Service

    literal = Service.model_fields["scheduler"].annotation
    assert names() == sorted(literal.__args__)


def test_numbers_are_those_of_the_datapath() -> None:
    pxd = (ROOT / "lbd/datapath/svc.pxd").read_text()
    enum = {name: int(value) for name, value in re.findall(r"^ +([A-Z_]+) = (\d+)", pxd, re.MULTILINE)}
    assert {f"SCHED_{k.name}": k.value for k in Kind} == {k: v for k, v in enum.items() if k.startswith("SCHED_")}
    assert enum["SVC_HASH_PORT"] == Flag.HASH_PORT and enum["SVC_LEAST_WEIGHTED"] == Flag.LEAST_WEIGHTED


@pytest.mark.parametrize("name", names())
def test_contract(name: str) -> None:
    method = scheduler(name)
    assert method.table([]) == []
    assert method.table(servers(0, 0)) == []
    assert set(method.table(servers(1, 0, 5, first=40))) == {40, 42}, "weight 0 gets no slot"
    assert set(method.table(servers(200, 1))) == {0, 1}, "a small weight is small, not nothing"
    assert method.table(servers(3, 2, 1)) == method.table(servers(3, 2, 1))


def test_unknown_scheduler_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="lc, mh, rr, sh, wlc, wrr"):
        scheduler("share")


def test_rr_lc_wlc_have_a_slot_for_each_server() -> None:
    for name in ("rr", "lc", "wlc"):
        assert scheduler(name).table(servers(5, 0, 1, 2)) == [0, 2, 3]
    assert scheduler("wlc").FLAGS == Flag.LEAST_WEIGHTED and scheduler("lc").FLAGS == Flag.NONE


def test_wrr_interleaves() -> None:
    table = scheduler("wrr").table
    assert table(servers(2, 1, 1)) == [0, 1, 2, 0]
    assert table(servers(1, 1, 1)) == [0, 1, 2]
    assert table(servers(200, 100)) == [0, 1, 0]
    assert counts(table(servers(5, 3, 1))) == {0: 5, 1: 3, 2: 1}
    longest_wait = re.split("[^1]", "".join(map(str, table(servers(1, 9)))))
    assert max(map(len, longest_wait)) == 5, "the light one stands in the middle"


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=60), st.integers(60, 5000))
def test_shares_keep_to_limit_and_weight(weights: list[int], limit: int) -> None:
    shares = apportion(weights, limit)
    assert sum(shares) <= limit and min(shares) >= 1
    for w, s in zip(weights, shares, strict=True):
        exact = w * sum(shares) / sum(weights)
        assert s >= exact - len(weights) - 1 and s <= exact + 2


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_wrr_and_sh_are_exact_for_small_weights(weights: list[int]) -> None:
    for name in ("wrr", "sh"):
        got = counts(scheduler(name).table(servers(*weights)))
        assert all(got[i] * sum(weights) == w * sum(got.values()) for i, w in enumerate(weights))


# -- Maglev --------------------------------------------------------------------------------------------------


def test_maglev_paper() -> None:
    paper = VECTORS["paper"]
    places = [(e["offset"], e["skip"]) for e in paper["endpoints"]]
    assert mh.populate(paper["m"], places, [1, 1, 1]) == paper["table"]
    assert [i * 2 for i in mh.populate(paper["m"], [places[0], places[2]], [1, 1])] == paper["after_removing_1"]


@pytest.mark.parametrize("vector", KATRAN, ids=lambda v: f"{v['name']}-{v['variant']}")
def test_maglev_katran(vector: dict) -> None:
    ends = vector["endpoints"]
    table = mh.populate(vector["m"], [(e["offset"], e["skip"]) for e in ends], [e["weight"] for e in ends])
    ring = [ends[i]["num"] for i in table]
    if "ring" in vector:
        assert ring == vector["ring"]
    else:
        assert {str(k): v for k, v in counts(ring).items()} == vector["counts"]
        assert hashlib.sha256(array("i", ring).tobytes()).hexdigest() == vector["ring_sha256_le_i32"]


def test_maglev_counts_follow_weights_as_cilium_s_do() -> None:
    """Counts do not hang on the permutations: any two constructions by the same weights agree within a slot or two."""
    want = VECTORS["cilium_counts"]
    places = [mh.place(bytes([i]), want["m"]) for i in range(len(want["weights"]))]
    got = counts(mh.populate(want["m"], places, want["weights"]))
    assert all(abs(got[i] - n) <= 2 for i, n in enumerate(want["expected_counts"]))


def test_maglev_is_even() -> None:
    for n in (1, 2, 3, 10, 100, 400):
        got = counts(mh.table(servers(*[1] * n)))
        assert len(got) == n and max(got.values()) - min(got.values()) <= 1


@pytest.mark.parametrize("n", [2, 5, 20, 100])
def test_maglev_moves_few_when_one_dies(n: int) -> None:
    before = mh.table(servers(*[1] * n))
    after = mh.table(servers(0, *[1] * (n - 1)))
    assert len(before) == len(after), "the dead one still counts for the size"
    moved = sum(1 for a, b in zip(before, after, strict=True) if a != 0 and a != b)
    others = sum(1 for a in before if a != 0)
    assert moved <= 0.04 * others, "the paper's figure for tables of 100 slots a server is about 1 to 2 %"
    assert 0 not in after


def test_maglev_does_not_hang_on_the_order() -> None:
    some = servers(1, 2, 3, 4)
    assert mh.table(some) == mh.table(some[::-1])


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_maglev_follows_weights(weights: list[int]) -> None:
    table = mh.table(servers(*weights))
    got = counts(table)
    for i, w in enumerate(weights):
        # below one slot each; the greatest bears the sum of the others' errors
        assert abs(got.get(i, 0) - len(table) * w / sum(weights)) <= max(2, len(weights) - 1)


def test_maglev_sizes() -> None:
    assert [mh.table_size(n) for n in (1, 2, 3, 10, 11, 655, 656, 5000)] == [
        251, 251, 509, 1021, 2039, 65521, 131071, 131071]  # fmt: skip
