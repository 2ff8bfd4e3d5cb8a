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
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.cli.service import listing
from lbd.config import loads
from lbd.config.service import Scheduler as ConfiguredScheduler
from lbd.config.service import SchedulerFlag
from lbd.master.arena import Arena
from lbd.master.compose import Composer
from lbd.master.reconcile import Reconciler
from lbd.master.runtime import Override
from lbd.sched import Flag, Kind, Server, conhash, flags_of, mh, names, scheduler
from lbd.sched._table import maglev, ring
from lbd.sched.share import apportion
from lbd.shm import _shm as shm

ROOT = Path(__file__).parents[2]
KEEPS = ("sh", "dh", "lblc", "lblcr")  # a server of weight 0 stays in the table
VECTORS = json.loads((ROOT / "tests/data/maglev-tables.json").read_text())
KATRAN = [v for v in VECTORS["katran"] if v["variant"] == "V2" or len({e["weight"] for e in v["endpoints"]}) == 1]


def servers(*weights: int, first: int = 0) -> list[Server]:
    return [Server(first + i, w, f"10.0.{i >> 8}.{i & 255}:80".encode()) for i, w in enumerate(weights)]


def counts(table: Sequence[int]) -> dict[int, int]:
    return dict(Counter(table))


def populate(m: int, places: list[tuple[int, int]], weights: list[int]) -> list[int]:
    return list(mh.populate(m, places, weights, range(len(weights))))


def test_every_scheduler_of_the_configuration_is_here() -> None:
    assert list(names()) == sorted(get_args(ConfiguredScheduler))
    assert {o for name in names() for o in scheduler(name).OPTIONS} == set(get_args(SchedulerFlag))


def test_numbers_are_those_of_the_datapath() -> None:
    pxd = (ROOT / "lbd/datapath/svc.pxd").read_text()
    enum = {name: int(value) for name, value in re.findall(r"^ +([A-Z_]+) = (\d+)", pxd, re.MULTILINE)}
    kinds = {k: v for k, v in enum.items() if k.startswith("SCHED_")}
    assert kinds.pop("SCHED_COUNT") == len(Kind)
    assert {f"SCHED_{k.name}": k.value for k in Kind} == kinds
    assert all(enum[f"SVC_{flag.name}"] == flag.value for flag in Flag if flag)
    homes = re.search(r"HOMES_MAX = (\d+)", (ROOT / "lbd/datapath/sched.pxd").read_text())
    assert homes and {scheduler(n).LIMIT for n in ("lblc", "lblcr")} == {int(homes[1])}


@pytest.mark.parametrize("name", names())
def test_contract(name: str) -> None:
    method = scheduler(name)
    kept = name in KEEPS
    assert list(method.table([])) == []
    assert len(method.table(servers(0, 0))) == (2 if name.startswith("lblc") else 0)
    assert set(method.table(servers(1, 0, 5, first=40))) == ({40, 41, 42} if kept else {40, 42}), "weight 0"
    gone = [s._replace(weight=0, up=False, rest=5) if s.number == 1 else s for s in servers(1, 5, 5)]
    assert set(method.table(gone)) == ({0, 1, 2} if name.startswith("lblc") else {0, 2}), "who is down is not there"
    assert set(method.table(servers(200, 1))) == {0, 1}, "a small weight is small, not nothing"
    assert method.table(servers(3, 2, 1)) == method.table(servers(3, 2, 1))
    flags = flags_of(method, method.OPTIONS)
    if Flag.HASH_FALLBACK in flags:
        assert method.table(gone, flags) == method.table(servers(1, 5, 5), flags), "with fallback it keeps its place"
        drained = [s._replace(weight=0, rest=5) if s.number == 1 else s for s in servers(1, 5, 5)]
        assert method.table(drained, flags) == method.table(servers(1, 5, 5), flags)


def test_unknown_scheduler_names_those_there_are() -> None:
    for name in ("share", "_table", "random"):
        with pytest.raises(ValueError, match="conhash, dh, fo, lblc, lblcr, lc, mh, nq, ovf, rr, sed, sh, wlc, wrr"):
            scheduler(name)


def test_one_slot_for_each_server() -> None:
    for name in ("rr", "lc", "wlc", "sed", "nq"):
        assert scheduler(name).table(servers(5, 0, 1, 2)) == [0, 2, 3]
    for name in ("fo", "ovf"):
        assert scheduler(name).table(servers(5, 0, 1, 7, 5)) == [3, 0, 4, 2], "the heaviest first, equal ones in order"
    for name in ("lblc", "lblcr"):
        assert scheduler(name).table(servers(5, 0, 1)) == [0, 1, 2]
    assert scheduler("wlc").FLAGS == Flag.LEAST_WEIGHTED and scheduler("lc").FLAGS == Flag.NONE


def test_wrr_interleaves() -> None:
    def table(some: list[Server]) -> list[int]:
        return list(scheduler("wrr").table(some))

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
def test_wrr_is_exact_for_small_weights(weights: list[int]) -> None:
    got = counts(scheduler("wrr").table(servers(*weights)))
    assert all(got[i] * sum(weights) == w * sum(got.values()) for i, w in enumerate(weights))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_sh_is_exact_or_the_kernel_s(weights: list[int]) -> None:
    """Sums up to 16 have the kernel's table, with an incomplete last round; others have whole rounds."""
    table = scheduler("sh").table(servers(*weights))
    got, one_round = counts(table), sum(weights) // gcd(*weights)
    for i, w in enumerate(weights):
        exact = len(table) * w / sum(weights)
        if one_round <= 16:
            assert len(table) == 256 and abs(got[i] - exact) <= exact / 16 + 1
        elif one_round <= 4096:
            assert got[i] == exact and len(table) < 256 + one_round
        else:
            assert abs(got[i] - exact) <= 2 and len(table) == 4096


def test_sh_tables_of_many_servers() -> None:
    for n in (255, 256, 257, 5000):
        assert set(scheduler("sh").table(servers(*[1] * n))) == set(range(n))
    assert counts(scheduler("sh").table(servers(100, 100))) == {0: 128, 1: 128}, "the kernel gives one 156"


# -- from the configuration to the worker's record, and to the eyes -----------------------------------------


FILE = """
[[interface]]
name = "eth0"
[[local_address]]
address = "10.0.0.10"
interface = "eth0"
[[service]]
name = "web"
address = "192.0.2.10:80"
interface = "eth0"
scheduler = "mh"
scheduler_flags = ["mh-fallback", "mh-port"]
[[service.real_server]]
address = "10.0.1.1:80"
weight = 7
[[service.real_server]]
address = "10.0.1.2:80"
"""


def test_flags_and_lost_servers_reach_the_worker() -> None:
    states = {"10.0.1.1:80": Override(), "10.0.1.2:80": Override()}
    composer = Composer(loads(FILE), override=lambda _, real: states[real])
    writes: list[int] = []
    reconciler = Reconciler(16, 16, 16, Arena(4096, lambda at, table: writes.append(len(table))))
    commands = reconciler.update(composer.desired)
    [placed] = reconciler.placed.values()
    record = next(c for c in commands if shm.command_head(c)[0] == shm.CMD_SVC_SET)
    head = 16 + 16 + 2 + 1 + 1  # Cmd, then CmdSvc's vaddr, vport, af, proto
    assert record[head] == shm.SCHED_HASH
    assert int.from_bytes(record[head + 2 : head + 4], "little") == shm.SVC_HASH_FALLBACK | shm.SVC_HASH_PORT
    before = placed.table
    for state in ("drain", "maint"):
        states["10.0.1.1:80"] = Override(state=state)
        composer.touch("web")
        reconciler.update(composer.desired)
        [placed] = reconciler.placed.values()
        assert placed.table is before, f"{state}: with fallback it keeps its place, by the weight of the file"
    assert counts(before)[0] > 5 * counts(before)[1] and writes == [251]


def test_service_shows_scheduler_and_flags() -> None:
    service = {"name": "web", "protocol": "tcp", "address": "192.0.2.10:80", "mode": "fullnat", "scheduler": "mh"}
    plain = {"addresses": [], "persistence": None, "persistence_prefix": None, "one_packet": False, "fwmark": None}
    text = listing([service | plain | {"scheduler_flags": ["mh-fallback", "mh-port"]}], {"web": []})
    assert "TCP  192.0.2.10:80 mh (mh-fallback,mh-port) name web" in text.split("\n"), "as ipvsadm -Ln"


def test_a_refused_server_is_warned_of() -> None:
    def said(scheduler: str, flags: str = "[]") -> list[str]:
        text = FILE.replace('"mh"', f'"{scheduler}"').replace('["mh-fallback", "mh-port"]', flags)
        text = text.replace("weight = 7", "weight = 0")
        return [w.message for w in loads(text).warnings]

    assert said("mh") == said("wlc") == said("sh", '["sh-fallback"]') == []
    assert "are refused, as by IPVS" in said("sh")[0] and "are refused, as by IPVS" in said("dh")[0]


# -- conhash -------------------------------------------------------------------------------------------------


def test_ring_by_hand() -> None:
    """A slot belongs to the first point in it or in the next one that has any; a server's point 0 goes first."""
    points: dict[int, list[tuple[bool, int, int]]] = {}
    for seed, number in ((1, 70), (2, 71)):
        for k in range(4):
            position = mixed(seed + k * 0x9E3779B97F4A7C15) >> 32
            points.setdefault(position * 16 >> 32, []).append((k > 0, position, number))
    for slot, owner in enumerate(ring(16, [1, 2], [4, 4], [70, 71])):
        holder = next((slot + n) % 16 for n in range(16) if (slot + n) % 16 in points)
        assert owner == min(points[holder])[2]


def mixed(x: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    x &= (1 << 64) - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return x ^ x >> 31


@pytest.mark.parametrize("weights", [[1] * 10, [100] * 10, [1, 2, 3, 4], [65535, 1, 1], [7] * 300])
def test_conhash_moves_nobody_else(weights: list[int]) -> None:
    whole = servers(*weights)
    before = conhash.table(whole)
    for lost in range(min(len(weights), 4)):
        for change in ({"up": False, "weight": 0, "rest": weights[lost]}, {"weight": 0, "rest": weights[lost]}):
            after = conhash.table([s._replace(**change) if s.number == lost else s for s in whole])
            assert len(after) == len(before) and lost not in after
            assert all(a == b for a, b in zip(before, after, strict=True) if a != lost)


def test_conhash_follows_weights() -> None:
    got = counts(conhash.table(servers(1, 2, 4, 8, 16)))
    total = sum(got.values())
    assert all(abs(got[i] / total - w / 31) < 0.25 * w / 31 + 0.02 for i, w in enumerate((1, 2, 4, 8, 16)))
    spread = counts(conhash.table(servers(*[1] * 100)))
    assert len(spread) == 100 and max(spread.values()) < 1.6 * 131


# -- Maglev --------------------------------------------------------------------------------------------------


def test_maglev_paper() -> None:
    paper = VECTORS["paper"]
    places = [(e["offset"], e["skip"]) for e in paper["endpoints"]]
    assert populate(paper["m"], places, [1, 1, 1]) == paper["table"]
    assert [i * 2 for i in populate(paper["m"], [places[0], places[2]], [1, 1])] == paper["after_removing_1"]


@pytest.mark.parametrize("vector", KATRAN, ids=lambda v: f"{v['name']}-{v['variant']}")
def test_maglev_katran(vector: dict) -> None:
    ends = vector["endpoints"]
    table = populate(vector["m"], [(e["offset"], e["skip"]) for e in ends], [e["weight"] for e in ends])
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
    got = counts(populate(want["m"], places, want["weights"]))
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


@pytest.mark.parametrize("n", [2, 5, 20, 100])
def test_maglev_with_fallback_moves_none_but_the_dead_s(n: int) -> None:
    whole = servers(*[1] * n)
    dead = [s._replace(weight=0, up=False, rest=1) if s.number == 0 else s for s in whole]
    assert mh.table(dead, Flag.HASH_FALLBACK) == mh.table(whole, Flag.HASH_FALLBACK)


def test_what_would_never_end_is_refused() -> None:
    for places, weights in (([(251, 1)], [1]), ([(0, 0)], [1]), ([(0, 251)], [1]), ([(0, 1)], [0]), ([], [])):
        with pytest.raises(ValueError, match="table"):
            populate(251, places, weights)
    with pytest.raises(ValueError, match="different length"):
        maglev(251, [1], [1, 2], [1], [0])
    with pytest.raises(OverflowError):
        maglev(251, [1], [1], [1 << 32], [0])


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
