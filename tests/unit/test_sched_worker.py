"""The worker's part of scheduling against an oracle of IPVS: sequences of connections, ends, weights and failures."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit._sched import Service

from lbd.sched import Flag, Server, flags_of, names, scheduler
from tests.unit import ipvs_oracle as ipvs
from tests.unit.ipvs_oracle import Real

ORACLES = {"lc": ipvs.lc, "wlc": ipvs.wlc, "sed": ipvs.sed, "nq": ipvs.nq, "fo": ipvs.fo, "ovf": ipvs.ovf}
VIP = bytes([192, 0, 2, 10])


class Lab:
    """The same real servers for lbd and for the oracle."""

    def __init__(self, name: str, reals: list[Real], options: tuple[str, ...] = (), proto: int = 6) -> None:
        self.method, self.reals, self.proto = scheduler(name), reals, proto
        self.flags = flags_of(self.method, options)
        self.rest = [r.weight for r in reals]
        self.worker = Service(len(reals))
        self.update()

    def server(self, i: int, weight: int, up: bool) -> None:
        """As the worker has it, before the master has made a new table."""
        self.reals[i].weight, self.reals[i].up = weight, up
        self.rest[i] = weight or self.rest[i]
        self.worker.server(i, weight, up)

    def update(self) -> None:
        """As the master does it: real servers first, then the table."""
        servers = []
        for i, r in enumerate(self.reals):
            self.worker.server(i, r.weight, r.up)
            key = f"10.0.{i >> 8}.{i & 255}:80".encode()
            servers.append(Server(i, r.weight if r.up else 0, key, r.up, self.rest[i]))
        self.worker.table(self.method.KIND, self.flags, self.method.table(servers, self.flags), proto=self.proto)

    def load(self, i: int, active: int, inactive: int = 0) -> None:
        self.reals[i].active, self.reals[i].inactive = active, inactive
        self.worker.load(i, active, inactive)

    def pick(self, n: int = 0, port: int = 40000, now: int = 1000) -> int | None:
        return self.worker.pick(client(n), port, VIP, now)  # type: ignore[no-any-return]


def client(n: int) -> bytes:
    return (0x0A000000 + n).to_bytes(4, "big")


def reals(*weights: int) -> list[Real]:
    return [Real(w) for w in weights]


WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=6)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["conn", "conn", "conn", "end", "rest", "weight", "up"]), st.integers(0, 5), st.integers(0, 5)),
    max_size=60,
)


def happen(lab: Lab, kind: str, i: int, value: int) -> None:
    """Anything but a new connection."""
    i %= len(lab.reals)
    r = lab.reals[i]
    if kind == "end" and r.inactive:
        lab.load(i, r.active, r.inactive - 1)
    elif kind == "rest" and r.active:
        lab.load(i, r.active - 1, r.inactive + 1)
    elif kind == "weight":
        lab.server(i, value, r.up)
        lab.update()
    elif kind == "up":
        lab.server(i, r.weight, value > 1)
        if value != 0:  # or the master is a little behind with the news that it is down
            lab.update()


# -- by load -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORACLES)
@given(weights=WEIGHTS, events=EVENTS)
@settings(max_examples=150, deadline=None)
def test_by_load_as_ipvs(name: str, weights: list[int], events: list[tuple[str, int, int]]) -> None:
    lab = Lab(name, reals(*weights))
    for kind, i, value in events:
        if kind != "conn":
            happen(lab, kind, i, value)
            continue
        right = ORACLES[name](lab.reals)
        got = lab.pick(i)
        if name in ("fo", "ovf") and got is not None and right:
            # sorted by the master: a weight that changed a moment ago counts from the next table on
            lab.update()
            got = lab.pick(i)
        assert (got in right) if right else got is None
        if got is not None:
            lab.load(got, lab.reals[got].active + 1, lab.reals[got].inactive)


@pytest.mark.parametrize(
    ("name", "weights", "picks"),
    [
        ("sed", [3, 2], [0, 1, 0, None, None]),  # 1/3, 1/2, 2/3, then 3/3 = 2/2
        ("nq", [3, 2, 1], [None, None, None, 0, None, None]),  # the idle ones first; then 2/3, then 3/3 = 2/2
        ("wlc", [2, 1], [None, None, 0, None]),
        ("fo", [1, 3, 3, 2], [1, 1, 1]),
        ("ovf", [1, 3, 2], [1, 1, 1, 1, 2, 2, 2, 0, 0, "refused"]),
    ],
)
def test_first_connections(name: str, weights: list[int], picks: list[object]) -> None:
    """None stands where equals may take turns."""
    lab = Lab(name, reals(*weights))
    for n, expected in enumerate(picks):
        got = lab.pick(n)
        assert got == expected or expected is None or (expected == "refused" and got is None)
        if got is not None:
            lab.load(got, lab.reals[got].active + 1)


def test_lc_ignores_weights_and_equals_take_turns() -> None:
    lab = Lab("lc", reals(9, 1, 1))
    assert Counter(lab.pick() for _ in range(30)) == {0: 10, 1: 10, 2: 10}
    lab.load(1, 0, 255)
    lab.load(2, 1, 0)
    lab.load(0, 0, 256)
    assert lab.pick() == 1, "256 inactive ones weigh as much as an active one"


def test_loads_of_all_workers_count() -> None:
    worker = Service(2, workers=3)
    for name in ("wlc", "sed", "nq", "ovf"):
        method = scheduler(name)
        for i in range(2):
            worker.server(i, 5)
        worker.table(method.KIND, method.FLAGS, [0, 1])
        worker.load(0, 2)
        worker.load(1, 0)
        worker.load(1, 9, worker=2)
        assert worker.pick(client(1)) == 0, name


def test_without_tcp_every_flow_counts_as_active() -> None:
    """IPVS has no active UDP connections: sed would always take the heaviest."""
    lab = Lab("sed", reals(2, 1), proto=17)
    lab.load(0, 0, 9)
    assert lab.pick() == 1


# -- in turn -------------------------------------------------------------------------------------------------


@given(WEIGHTS, EVENTS)
@settings(max_examples=150, deadline=None)
def test_rr_as_ipvs(weights: list[int], events: list[tuple[str, int, int]]) -> None:
    lab = Lab("rr", reals(*[1] * len(weights)))
    for i, w in enumerate(weights):
        lab.server(i, w, True)  # the table has them all; those of weight 0 are passed over
    last = None
    for kind, i, value in events:
        if kind == "up":
            lab.server(i % len(weights), lab.reals[i % len(weights)].weight, value > 1)
        elif kind == "conn":
            got = lab.pick(i)
            if last is None:
                assert got is None or lab.reals[got].open
            else:
                assert got == ipvs.rr(lab.reals, last)
            last = got if got is not None else last


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_wrr_gives_each_round_what_ipvs_gives(weights: list[int]) -> None:
    lab = Lab("wrr", reals(*weights))
    right = Counter(ipvs.wrr_round(weights))
    for _ in range(3):
        assert Counter(lab.pick() for _ in range(right.total())) == right


def test_the_oracle_s_wrr_is_the_documented_one() -> None:
    assert ipvs.wrr_round([4, 3, 2]) == [0, 0, 1, 0, 1, 2, 0, 1, 2]


# -- by hash -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("sh-port",), ("sh-fallback",), ("sh-fallback", "sh-port")])
@given(
    states=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=5),
    clients=st.lists(st.tuples(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
                               st.integers(1, 65535)), min_size=1, max_size=30),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_sh_bucket_for_bucket_as_the_kernel(
    options: tuple[str, ...], states: list[tuple[int, bool]], clients: list[tuple[bytes, int]]
) -> None:
    """Weights that need no better table than the kernel's: their divisor is 1 and their sum at most 16."""
    if "sh-fallback" in options:
        states = [(min(w, 1), True) for w, _ in states]  # who is down keeps its place then; a kernel knows nobody down
    states.append((1, True))
    lab = Lab("sh", [Real(w, up) for w, up in states], options)
    for address, port in clients:
        right = ipvs.sh(lab.reals, address, port if "sh-port" in options else 0, "sh-fallback" in options)
        assert lab.worker.pick(address, port) == right


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=9),
       st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)))  # fmt: skip
@settings(deadline=None)
def test_dh_as_the_kernel(states: list[tuple[int, bool]], vip: bytes) -> None:
    lab = Lab("dh", [Real(w, up) for w, up in states])
    assert lab.worker.pick(bytes(len(vip)), 40000, vip) == ipvs.dh(lab.reals, vip)


@pytest.mark.parametrize("name", ["sh", "mh"])
def test_fallback_moves_only_the_clients_of_the_lost(name: str) -> None:
    """And without it they are refused as long as the server has weight 0, and spread when it is down."""
    flags = (f"{name}-fallback",)
    for weight, up in ((0, True), (5, False)):
        with_it, without = Lab(name, reals(5, 5, 2, 1), flags), Lab(name, reals(5, 5, 2, 1))
        before = [with_it.pick(n) for n in range(2000)]
        assert set(before) == {0, 1, 2, 3}
        for lab in (with_it, without):
            lab.server(1, weight, up)
        late = [with_it.pick(n) for n in range(2000)]  # the table is still the old one
        assert [without.pick(n) is None for n in range(2000)].count(True) == before.count(1)
        for lab in (with_it, without):
            lab.update()
        after = [with_it.pick(n) for n in range(2000)]
        assert all(a == b for a, b in zip(before, after, strict=True) if b != 1 and a != 1)
        assert late == after and 1 not in after and None not in after
        assert len({a for a, b in zip(after, before, strict=True) if b == 1}) >= 2, "they spread over those that are left"
        refused = [without.pick(n) for n in range(2000)].count(None)
        assert bool(refused) == up and (refused == before.count(1) or name == "sh" or not up)


@pytest.mark.parametrize("name", ["sh", "mh"])
def test_fallback_finds_the_last_one(name: str) -> None:
    lab = Lab(name, reals(*[1] * 200), (f"{name}-fallback",))
    for i in range(200):
        lab.server(i, i == 77, True)
    lab.update()
    assert {lab.pick(n) for n in range(300)} == {77}
    lab.server(77, 0, True)
    assert lab.pick() is None
    lab.update()
    assert lab.pick() is None


@pytest.mark.parametrize(("name", "option"), [("sh", "sh-port"), ("mh", "mh-port")])
def test_port_option(name: str, option: str) -> None:
    plain, ported = Lab(name, reals(1, 1, 1)), Lab(name, reals(1, 1, 1), (option,))
    assert len({plain.pick(7, port) for port in range(1024, 1100)}) == 1
    spread = Counter(ported.pick(7, port) for port in range(1024, 4024))
    assert min(spread.values()) > 850


MIXED = [1, 5, 100, 37, 64, 12, 8, 99, 50, 3]


@pytest.mark.parametrize(
    ("name", "options", "weights", "moved"),
    [
        ("mh", (), [1] * 2, 0.0),
        ("mh", (), [1] * 10, 0.035),
        ("mh", (), [1] * 50, 0.025),
        ("mh", (), MIXED, 0.03),
        ("mh", ("mh-fallback",), MIXED, 0.0),
        ("sh", ("sh-fallback",), MIXED, 0.0),
        ("conhash", (), [1] * 10, 0.0),
        ("conhash", (), MIXED, 0.0),
    ],
)
def test_clients_that_move_when_one_is_lost(name: str, options: tuple[str, ...], weights: list[int], moved: float) -> None:
    """The bounds of docs/schedulers.md."""
    lab = Lab(name, reals(*weights), options)
    many = [n * 2654435761 % (1 << 32) for n in range(10_000)]
    before = [lab.worker.pick(n.to_bytes(4, "big")) for n in many]
    for lost in range(0, len(weights), max(1, len(weights) // 5)):
        lab.server(lost, weights[lost], False)
        lab.update()
        after = [lab.worker.pick(n.to_bytes(4, "big")) for n in many]
        others = [(b, a) for b, a in zip(before, after, strict=True) if b != lost]
        assert sum(b != a for b, a in others) <= moved * len(others)
        lab.server(lost, weights[lost], True)
        lab.update()
    assert before == [lab.worker.pick(n.to_bytes(4, "big")) for n in many], "back as it was"


@pytest.mark.parametrize(("name", "more"), [("mh", 0.05), ("sh", 0.06), ("conhash", 0.3)])
@pytest.mark.parametrize("weights", [[1] * 3, [1] * 10, [1, 2, 3, 4]], ids=str)
def test_clients_follow_the_weights(name: str, more: float, weights: list[int]) -> None:
    lab, chance = Lab(name, reals(*weights)), random.Random(3)
    got = Counter(lab.worker.pick(chance.randbytes(4)) for _ in range(60_000))
    for i, w in enumerate(weights):
        assert abs(got[i] * sum(weights) / (60_000 * w) - 1) < more


# -- by locality ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lblc", "lblcr"])
@given(weights=WEIGHTS, events=EVENTS, pauses=st.lists(st.sampled_from([1, 1000, ipvs.DAY_MS, ipvs.DAY_MS + 5]), min_size=60))
@settings(max_examples=200, deadline=None)
def test_locality_as_ipvs(name: str, weights: list[int], events: list[tuple[str, int, int]], pauses: list[int]) -> None:
    lab, oracle, now = Lab(name, reals(*weights)), ipvs.Locality(name == "lblcr"), 1000
    for (kind, i, value), pause in zip(events, pauses, strict=False):
        if kind != "conn":
            happen(lab, kind, i, value)
            continue
        now += pause
        right, leaving = oracle.choices(lab.reals, now)
        before = set(oracle.homes)
        got = lab.pick(i, now=now)
        assert (got in right) if right else got is None
        homes = set(lab.worker.homes())
        gone = next(iter(before - homes), None) if name == "lblcr" else None
        assert bool(leaving) == (gone is not None) or (leaving and got in leaving and gone is None)
        assert gone is None or gone in leaving
        oracle.took(got, gone if gone is not None else (got if leaving else None), now)
        if leaving and gone is None:  # it left, and was the least loaded of all: it came back at once
            oracle.homes.add(got)
        assert homes == oracle.homes
        if got is not None:
            lab.load(got, lab.reals[got].active + 1, lab.reals[got].inactive)


def test_lblc_moves_when_full_and_lblcr_adds() -> None:
    for name, homes in (("lblc", [1]), ("lblcr", [0, 1])):
        lab = Lab(name, reals(2, 2))
        assert [lab.pick() for _ in range(3)] == [0, 0, 0]
        lab.load(0, 3)
        assert lab.pick() == 1 and lab.worker.homes() == homes
        lab.load(1, 1)
        assert lab.pick() == 1
        lab.load(0, 0)
        assert lab.pick() == (1 if name == "lblc" else 0), "lblcr takes the less loaded of its set"


def test_lblcr_gives_a_server_up_after_a_day() -> None:
    lab = Lab("lblcr", reals(2, 2))
    lab.pick(now=1000)
    lab.load(0, 3)
    assert lab.pick(now=2000) == 1 and lab.worker.homes() == [0, 1]
    for hours in range(1, 25):
        lab.pick(now=2000 + hours * 3600 * 1000)
    assert lab.worker.homes() == [0, 1]
    lab.pick(now=2001 + ipvs.DAY_MS)
    assert lab.worker.homes() == [1], "the more loaded one"


def test_homes_survive_a_failure_and_are_forgotten_after_a_day() -> None:
    lab = Lab("lblc", reals(1, 1, 1))
    lab.load(0, 1)
    assert lab.pick() == 1
    lab.server(2, 1, False)
    lab.update()
    lab.load(1, 1)
    lab.load(0, 0)
    assert lab.pick(now=ipvs.DAY_MS) == 1, "another one's failure changes nothing"
    assert lab.pick(now=2 * ipvs.DAY_MS + 5) == 0


def test_services_begin_at_different_servers() -> None:
    firsts = set()
    for number in range(4):
        worker = Service(4, number=number)
        for i in range(4):
            worker.server(i, 1)
        worker.table(scheduler("lblc").KIND, 0, [0, 1, 2, 3])
        firsts.add(worker.pick(client(1)))
    assert firsts == {0, 1, 2, 3}


def test_beyond_the_mask_lblc_works_without_memory() -> None:
    worker = Service(100)
    for i in range(100):
        worker.server(i, 1, i == 90)
    worker.table(scheduler("lblc").KIND, 0, list(range(100)))
    assert worker.pick(client(1)) == 90 and worker.homes() == []


# -- all -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
@given(weights=WEIGHTS, events=EVENTS, fallback=st.booleans())
@settings(max_examples=100, deadline=None)
def test_nobody_who_must_not_gets_a_connection(name: str, weights: list[int], events: list[tuple[str, int, int]],
                                               fallback: bool) -> None:  # fmt: skip
    options = tuple(o for o in scheduler(name).OPTIONS if fallback)
    lab = Lab(name, reals(*weights), options)
    for n, (kind, i, value) in enumerate(events):
        if kind != "conn":
            happen(lab, kind, i, value)
            continue
        got = lab.pick(i + 7 * n, port=1024 + n)
        assert got is None or lab.reals[got].open
        if got is not None:
            lab.load(got, lab.reals[got].active + 1, lab.reals[got].inactive)
    lab.update()
    refuses = name in ("dh", "ovf") or (name in ("sh", "mh") and not fallback)
    if not refuses and any(r.open for r in lab.reals):
        assert lab.pick() is not None, "with somebody there, nobody is refused"


def test_flags_are_those_of_the_record() -> None:
    mh = scheduler("mh")
    assert flags_of(mh, ["mh-port", "mh-fallback"]) == Flag.HASH_PORT | Flag.HASH_FALLBACK
    assert flags_of(scheduler("wlc"), []) == Flag.LEAST_WEIGHTED
