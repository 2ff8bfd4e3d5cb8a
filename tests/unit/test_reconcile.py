"""Reconciliation: numbers, arena, order of commands; and, by a model of a worker's tables, that differences add up to
the whole: after any sequence of updates a worker that got them all equals one that got full() alone."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.master.arena import Arena, ArenaFull
from lbd.master.desired import (
    Desired,  # fmt: skip
    Interface,
    LocalAddress,
    Neighbour,
    RealServer,
    Route,
    Service,
    Tunnel,
)
from lbd.master.numbers import Numbers, NumbersUsedUp
from lbd.master.reconcile import Busy, Reconciler, Records
from lbd.shm import _shm as shm

VIP = bytes([192, 0, 2, 10])
VIP6 = bytes.fromhex("20010db8000000000000000000000010")


# -- a worker's tables, as the commands make them ------------------------------------------------------------


@dataclass
class Model:
    """What command_apply.pxd does to the tables, with the arena that it reads."""

    arena: dict[int, int]
    records: dict[tuple[str, bytes], tuple[bytes, int]] = field(default_factory=dict)  # body, generation
    settings: dict[int, bytes] = field(default_factory=dict)
    fresh: list[tuple[str, int]] = field(default_factory=list)
    gen_applied: int = 0

    SETS = {  # noqa: RUF012
        shm.CMD_SVC_SET: "svc", shm.CMD_DEST_SET: "dest", shm.CMD_LIP_SET: "lip", shm.CMD_IFACE_SET: "iface",
        shm.CMD_NEIGH_SET: "neigh", shm.CMD_ROUTE_SET: "route", shm.CMD_TUNNEL_SET: "tunnel"}  # fmt: skip
    DELS = {  # noqa: RUF012
        shm.CMD_SVC_DEL: "svc", shm.CMD_DEST_DEL: "dest", shm.CMD_LIP_DEL: "lip", shm.CMD_IFACE_DEL: "iface",
        shm.CMD_NEIGH_DEL: "neigh", shm.CMD_ROUTE_DEL: "route", shm.CMD_TUNNEL_DEL: "tunnel"}  # fmt: skip
    SWEEPS = {  # noqa: RUF012
        shm.SWEEP_SVC: "svc", shm.SWEEP_DEST: "dest", shm.SWEEP_LIP: "lip", shm.SWEEP_IFACE: "iface",
        shm.SWEEP_NEIGH: "neigh", shm.SWEEP_ROUTE: "route", shm.SWEEP_TUNNEL: "tunnel"}  # fmt: skip

    def key(self, kind: str, number: int, body: bytes) -> tuple[str, bytes]:
        if kind == "neigh":  # addr, iface
            return kind, body[:16] + body[23:24]
        if kind == "route":  # prefix, af, plen
            return kind, body[:16] + body[32:34]
        if kind == "tunnel":  # all of it
            return kind, body[:34]
        return kind, struct.pack("=I", number)

    def apply(self, commands: Iterable[bytes]) -> None:
        for cmd in commands:
            op, flags, number, gen = shm.command_head(cmd)
            body = cmd[16:]
            if op in self.SETS:
                kind = self.SETS[op]
                if kind in ("svc", "dest", "lip") and flags & shm.CMD_FRESH:
                    self.fresh.append((kind, number))
                self.records[self.key(kind, number, body)] = (body, gen)
            elif op in self.DELS:
                assert self.records.pop(self.key(self.DELS[op], number, body), None), "deleted what was not there"
            elif op == shm.CMD_SWEEP:
                for key, (_, then) in list(self.records.items()):
                    if key[0] == self.SWEEPS.get(number) and then < gen:
                        del self.records[key]
            elif op == shm.CMD_SETTING:
                self.settings[number] = body
            else:
                assert op == shm.CMD_NOP
            assert gen >= self.gen_applied or op == shm.CMD_SWEEP
            self.gen_applied = gen

    def state(self) -> dict[tuple[str, bytes], bytes]:
        return {key: body for key, (body, _) in self.records.items()}

    def tables(self) -> dict[int, list[int]]:
        """Service number -> what a worker reads from the arena; checks that real servers are those of the service."""
        found = {}
        for (kind, number), (body, _) in self.records.items():
            if kind == "svc":
                at, length = struct.unpack_from("=II", body, 24)
                n = struct.unpack("=I", number)[0]
                found[n] = [self.arena[at + i] for i in range(length)]
                for dest in found[n]:
                    dest_body = self.records["dest", struct.pack("=I", dest)][0]
                    assert struct.unpack_from("=H", dest_body, 20)[0] == n, "a table names another service's server"
        return found


def make(slots: int = 4096, services: int = 64, dests: int = 256, lips: int = 16, busy: Busy | None = None):
    memory: dict[int, int] = {}

    def write(at: int, table: list[int]) -> None:
        for i, value in enumerate(table):
            memory[at + i] = value

    return Reconciler(services, dests, lips, Arena(slots, write), busy), Model(memory)


def service(name: str = "web", *servers: RealServer, scheduler: str = "rr", port: int = 80) -> Service:
    return Service(name, VIP, port, 6, scheduler, servers)


def real(n: int, weight: int = 1, up: bool = True) -> RealServer:
    return RealServer(bytes([10, 0, n >> 8, n & 255]), 8080, weight, up)


def ops(commands: list[bytes]) -> list[int]:
    return [shm.command_head(c)[0] for c in commands]


# -- batches -------------------------------------------------------------------------------------------------


def test_first_update_sets_everything_in_order() -> None:
    r, model = make()
    batch = r.update(Desired(
        services=(service("web", real(1), real(2)),),
        local_addresses=(LocalAddress(bytes([10, 0, 0, 10]), 10240, 32767),),
        interfaces=(Interface(0, 3, bytes(6), 1500, 2),),
        neighbours=(Neighbour(0, bytes([10, 0, 0, 1]), b"\2\0\0\0\0\1"),),
        routes=(Route(bytes([10, 0, 0, 0]), 24, 0),),
        settings={shm.SET_POLL_MODE: 1}))  # fmt: skip
    assert ops(batch) == [
        shm.CMD_SETTING, shm.CMD_IFACE_SET, shm.CMD_NEIGH_SET, shm.CMD_ROUTE_SET, shm.CMD_LIP_SET,
        shm.CMD_DEST_SET, shm.CMD_DEST_SET, shm.CMD_SVC_SET, shm.CMD_NOP]  # fmt: skip
    model.apply(batch)
    assert model.tables() == {0: [0, 1]}
    assert model.fresh == [("lip", 0), ("dest", 0), ("dest", 1), ("svc", 0)]
    assert model.gen_applied == r.generation


def test_same_again_is_nothing() -> None:
    r, _ = make()
    assert r.update(Desired(services=(service("web", real(1)),)))
    before = r.generation
    assert r.update(Desired(services=(service("web", real(1)),))) == []
    assert r.generation == before


def test_only_the_difference_is_sent() -> None:
    r, model = make()
    web, dns = service("web", real(1), real(2)), service("dns", real(3), port=53)
    model.apply(r.update(Desired(services=(web, dns))))
    down = replace(web, real_servers=(real(1), real(2, up=False)))
    batch = r.update(Desired(services=(down, dns)))
    assert ops(batch) == [shm.CMD_DEST_SET, shm.CMD_SVC_SET, shm.CMD_NOP]
    model.apply(batch)
    assert model.tables() == {0: [0], 1: [2]}
    # a new name is nobody's business but the master's
    assert r.update(Desired(services=(replace(down, name="www"), dns))) == []
    assert r.placed[web.key].service.name == "www"


def test_end_of_a_real_server_comes_after_the_table_without_it() -> None:
    r, model = make()
    model.apply(r.update(Desired(services=(service("web", real(1), real(2)),))))
    batch = r.update(Desired(services=(service("web", real(2)),)))
    assert ops(batch) == [shm.CMD_SVC_SET, shm.CMD_DEST_DEL, shm.CMD_NOP]
    batch = r.update(Desired())
    assert ops(batch) == [shm.CMD_SVC_DEL, shm.CMD_DEST_DEL, shm.CMD_NOP]


def test_same_table_keeps_its_extent() -> None:
    r, model = make()
    model.apply(r.update(Desired(services=(service("web", real(1), real(2)),))))
    at = r.placed[VIP, 80, 6].table_at
    batch = r.update(Desired(services=(service("web", real(1, weight=7), real(2)),)))
    assert ops(batch) == [shm.CMD_DEST_SET, shm.CMD_NOP], "rr's table does not hang on weights"
    assert r.placed[VIP, 80, 6].table_at == at and r.arena.retired() == 0


POINTS = [(VIP, 443, 6), (VIP, 53, 17)]


def parts(model: Model) -> dict[tuple[int, int], str]:
    """(port, protocol) of every address: is it a service's own, or a further one?"""
    found = {}
    for (kind, _), (body, _) in model.records.items():
        if kind == "svc":
            port, proto, flags = int.from_bytes(body[16:18], "big"), body[19], struct.unpack_from("=H", body, 22)[0]
            found[port, proto] = "further" if flags & shm.SVC_ALIAS else "own"
    return found


def test_further_addresses_come_and_go() -> None:
    r, model = make()
    web = service("web", real(1))
    model.apply(r.update(Desired(services=(web,))))
    batch = r.update(Desired(services=(replace(web, further=tuple(POINTS)),)))
    assert ops(batch) == [shm.CMD_SVC_SET, shm.CMD_SVC_SET, shm.CMD_NOP], "the service itself is as before"
    model.apply(batch)
    assert parts(model) == {(80, 6): "own", (443, 6): "further", (53, 17): "further"}
    assert len(r.services) == 3
    batch = r.update(Desired(services=(replace(web, further=(POINTS[1],)),)))
    assert ops(batch) == [shm.CMD_SVC_DEL, shm.CMD_NOP]
    model.apply(batch)
    assert parts(model) == {(80, 6): "own", (53, 17): "further"} and len(r.services) == 2
    model.apply(r.update(Desired()))
    assert parts(model) == {} and len(r.services) == 0


def test_an_address_goes_from_one_service_to_another() -> None:
    """In one batch: what the one loses the other has, and it is never deleted."""
    r, model = make()
    web, other = replace(service("web", real(1)), further=tuple(POINTS)), service("other", real(2), port=81)
    model.apply(r.update(Desired(services=(web, other))))
    number = r.services.number(POINTS[0])
    batch = r.update(Desired(services=(replace(web, further=(POINTS[1],)), replace(other, further=(POINTS[0],)))))
    assert shm.CMD_SVC_DEL not in ops(batch)
    model.apply(batch)
    assert r.services.number(POINTS[0]) == number and len(r.services) == 4
    # it becomes a service of its own, and the one it was of its further address
    alone = service("web", real(1), port=443)
    batch = r.update(Desired(services=(replace(alone, further=((VIP, 80, 6),)),)))
    model.apply(batch)
    assert parts(model) == {(443, 6): "own", (80, 6): "further"}
    assert r.services.number(POINTS[0]) == number and len(r.services) == 2
    before = model.state()
    model.apply(r.full())
    assert model.state() == before


def test_refused_update_changes_nothing() -> None:
    r, model = make(slots=300, dests=4)
    model.apply(r.update(Desired(services=(service("web", real(1), real(2), scheduler="mh"),))))
    before, free = model.state(), r.arena.free()
    with pytest.raises(ArenaFull, match=r"raise tables\.services and restart"):
        r.update(Desired(services=(service("web", real(1), real(2), scheduler="mh"),
                                   service("b", real(1), port=81), service("c", real(1), scheduler="mh", port=82))))  # fmt: skip
    with pytest.raises(NumbersUsedUp, match=r"tables\.real_servers"):
        r.update(Desired(services=(service("web", *(real(i) for i in range(5))),)))
    assert r.arena.free() == free and len(r.dests) == 2 and len(r.services) == 1
    assert r.update(Desired(services=(service("web", real(1), real(2), scheduler="mh"),))) == []
    model.apply(r.full())
    assert model.state() == before


def test_removed_number_rests_and_comes_back_fresh() -> None:
    r, model = make(dests=3)
    model.apply(r.update(Desired(services=(service("web", real(1), real(2)),))))
    model.apply(r.update(Desired(services=(service("web", real(2)),))))
    model.apply(r.update(Desired(services=(service("web", real(2), real(3)),))))
    assert model.tables() == {0: [1, 2]}, "a number never used comes before one that was freed"
    model.fresh.clear()
    model.apply(r.update(Desired(services=(service("web", real(2), real(3), real(4)),))))
    assert model.tables() == {0: [1, 2, 0]} and model.fresh == [("dest", 0)]


def test_number_in_use_by_connections_is_not_given_out() -> None:
    busy = {0}
    r, model = make(dests=2, busy=Busy(dest=lambda n: n in busy))
    busy.clear()
    model.apply(r.update(Desired(services=(service("web", real(1), real(2)),))))
    model.apply(r.update(Desired(services=(service("web", real(2)),))))
    busy.add(0)
    with pytest.raises(NumbersUsedUp, match="held by connections"):
        r.update(Desired(services=(service("web", real(2), real(3)),)))
    busy.clear()
    model.apply(r.update(Desired(services=(service("web", real(2), real(3)),))))
    assert model.tables() == {0: [1, 0]}


def test_arena_extent_is_free_when_all_have_applied() -> None:
    r, model = make(slots=8)
    model.apply(r.update(Desired(services=(service("web", *(real(i) for i in range(5))),))))
    with pytest.raises(ArenaFull):
        r.update(Desired(services=(service("web", *(real(i) for i in range(6))),)))
    model.apply(r.update(Desired(services=(service("web", real(1), real(2)),))))
    assert r.arena.retired() == 5
    r.arena.collect(r.generation - 2)
    assert r.arena.free() == 1, "not yet applied by everybody"
    r.arena.collect(model.gen_applied)
    assert r.arena.free() == 6 and r.arena.retired() == 0


# -- full synchronisation and adoption -----------------------------------------------------------------------


def records_of(r: Reconciler, model: Model) -> Records:
    """What a new master reads from a worker's segment (daemon.py does the same from WorkerSegment)."""
    by_number = {n: key for key, n in ((p.service.key, p.number) for p in r.placed.values())}
    dests = {n: key for p in r.placed.values() for key, n in p.dests.items()}
    extents = []
    for (kind, _), (body, _) in model.records.items():
        if kind == "svc":
            extents.append(struct.unpack_from("=II", body, 24))
    lips = {r.lips.number(key): key for key in r.lips}
    return Records(by_number, dests, lips, extents, model.gen_applied)


def test_new_master_takes_numbers_and_extents_over() -> None:
    old, model = make()
    model.apply(old.update(Desired(services=(service("gone", real(9), port=99),))))
    model.apply(old.update(Desired(services=(service("web", real(1), real(2)), service("dns", real(3), port=53)))))
    model = Model(model.arena)
    model.apply(old.full())
    before = model.tables()
    new, _ = make()
    new.arena.write = old.arena.write
    new.adopt([records_of(old, model)])
    assert new.generation == old.generation
    new.update(Desired(services=(service("dns", real(3), real(4), port=53),)))
    assert model.tables() == before, "the tables in use are not written over"
    model.fresh.clear()
    model.apply(new.full(records_of(old, model)))
    new.release_adopted()
    assert model.tables() == {2: [3, 0]} and model.fresh == [("dest", 0)]
    new.arena.collect(new.generation)
    assert new.arena.free() == new.arena.slots - 2


def test_worker_that_lags_behind_gets_fresh_statistics_where_numbers_mean_something_else() -> None:
    r, ahead = make()
    ahead.apply(r.update(Desired(services=(service("web", real(1)),))))
    behind = Records({0: (VIP, 443, 6)}, {0: ((VIP, 443, 6), bytes(4), 1), 5: ((VIP, 80, 6), real(1).address, 8080)}, {}, (), 1)
    model = Model(ahead.arena)
    model.apply(r.full(behind))
    assert model.fresh == [("dest", 0), ("svc", 0)]
    model.fresh.clear()
    same = Records({0: (VIP, 80, 6)}, {0: ((VIP, 80, 6), real(1).address, 8080)}, {}, (), 1)
    model.apply(r.full(same))
    model.apply(r.full())
    assert model.fresh == []


# -- any sequence --------------------------------------------------------------------------------------------

weights = st.integers(0, 5)
reals = st.lists(st.builds(real, st.integers(0, 9), weights, st.booleans()), max_size=6, unique_by=lambda s: s.address)
services_ = st.lists(
    st.builds(
        Service,
        name=st.sampled_from(["a", "b"]),
        address=st.sampled_from([VIP, VIP6]),
        port=st.integers(80, 84),
        protocol=st.sampled_from([6, 17]),
        scheduler=st.sampled_from(["rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "mh"]),
        real_servers=reals.map(tuple),
    ),
    max_size=6,
    unique_by=lambda s: s.key,
).map(tuple)
desired_ = st.builds(
    Desired,
    services=services_,
    local_addresses=st.lists(
        st.builds(LocalAddress, st.integers(1, 9).map(lambda n: bytes([10, 0, 0, n])), st.just(1024), st.just(2048)),
        max_size=4, unique_by=lambda x: x.address).map(tuple),
    interfaces=st.lists(st.builds(Interface, st.integers(0, 3), st.integers(1, 9), st.just(bytes(6)),
                                  st.integers(1280, 9000), st.integers(0, 7).map(lambda n: n * 2)),
                        max_size=4, unique_by=lambda x: x.number).map(tuple),
    neighbours=st.lists(st.builds(Neighbour, st.integers(0, 3), st.integers(1, 4).map(lambda n: bytes([10, 0, 0, n])),
                                  st.sampled_from([None, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"])),
                        max_size=5, unique_by=lambda x: (x.iface, x.address)).map(tuple),
    routes=st.lists(st.builds(Route, st.sampled_from([bytes(4), bytes(16)]), st.integers(0, 3), st.integers(0, 3)),
                    max_size=5, unique_by=lambda x: (x.prefix, x.plen)).map(tuple),
    tunnels=st.lists(st.builds(Tunnel, st.sampled_from(["ipip", "gre"]), st.just(bytes(4)), st.sampled_from([b"", b"\1" * 4])),
                     max_size=3, unique=True).map(tuple),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(desired_, st.booleans()), min_size=1, max_size=8))
def test_differences_add_up_to_the_whole(steps: list[tuple[Desired, bool]]) -> None:
    r, model = make(slots=20000)
    for desired, lagging in steps:
        model.apply(r.update(desired))
        wanted = {s.key: s for s in desired.services}
        tables = model.tables()
        assert set(tables) == {r.services.number(key) for key in wanted}
        for key, s in wanted.items():
            numbers = r.placed[key].dests
            alive = {numbers[key, x.address, x.port] for x in s.real_servers if x.up and x.weight}
            assert set(tables[r.placed[key].number]) == alive
        whole = Model(model.arena)
        whole.apply(r.full())
        assert whole.state() == model.state() and whole.tables() == tables
        # and over tables that already hold something, a full synchronisation changes nothing
        again = Model(model.arena, dict(model.records))
        again.apply(r.full())
        assert again.state() == model.state()
        if not lagging:
            r.arena.collect(r.generation)
            used = sum(len(p.table) for p in r.placed.values())
            assert r.arena.free() == r.arena.slots - used and r.arena.retired() == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(desired_, min_size=2, max_size=4))
def test_a_new_master_ends_up_with_what_the_old_one_would(steps: list[Desired]) -> None:
    old, model = make(slots=40000)
    for desired in steps[:-1]:
        model.apply(old.update(desired))
    new, _ = make(slots=40000)
    new.arena.write = old.arena.write
    found = records_of(old, model)
    new.adopt([found])
    last = steps[-1]
    new.update(last)
    model.tables()  # asserts that what is in use still makes sense
    model.apply(new.full(found))
    new.release_adopted()
    new.arena.collect(model.gen_applied)
    fresh = Model(model.arena)
    fresh.apply(new.full())
    assert model.state() == fresh.state() and model.tables() == fresh.tables()
    assert new.arena.free() == new.arena.slots - sum(len(p.table) for p in new.placed.values())
    for key, placed in old.placed.items():  # what lives on keeps its numbers
        if key in new.placed:
            assert new.placed[key].number == placed.number
            both = placed.dests.keys() & new.placed[key].dests.keys()
            assert all(placed.dests[d] == new.placed[key].dests[d] for d in both)


# -- parts ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=60))
def test_arena_never_overlaps_and_joins_again(steps: list[tuple[int, bool]]) -> None:
    arena, used, generation = Arena(64, lambda at, table: None), {}, 0
    for length, collect in steps:
        try:
            at = arena.place([0] * length)
        except ArenaFull:
            for at, n in used.items():
                generation += 1
                arena.give(at, n, generation)
            used.clear()
            arena.collect(generation)
            assert arena.free() == 64
            continue
        taken = {i for a, n in used.items() for i in range(a, a + n)}
        assert not taken & set(range(at, at + length)) and at + length <= 64
        used[at] = length
        if collect:
            arena.collect(generation)


def test_arena_hold_takes_what_is_free_of_it() -> None:
    arena = Arena(32, lambda at, table: None)
    assert arena.hold(4, 8) == [(4, 8)]
    assert arena.hold(0, 16) == [(0, 4), (12, 4)]
    assert arena.hold(30, 100) == [(30, 2)]
    assert arena.free() == 14 and arena.place([1] * 14) == 16


def test_numbers_come_round_in_turn() -> None:
    n: Numbers[str] = Numbers(3, "tables.x")
    assert [n.assign(k) for k in "abc"] == [0, 1, 2]
    n.release("b")
    with pytest.raises(NumbersUsedUp):
        n.assign("d")  # not within the same update
    n.release("a")
    n.settle()
    assert n.assign("d") == 1 and n.key(1) == "d" and "b" not in n
    n.cancel("d")
    assert n.assign("e") == 1


def test_numbers_come_back_to_their_key_while_connections_refer_to_them() -> None:
    busy: set[int] = set()
    n: Numbers[str] = Numbers(3, "tables.x", busy=busy.__contains__)
    assert [n.assign(k) for k in "ab"] == [0, 1]
    n.release("a")
    assert n.recall("a") is None, "not within the same update"
    n.settle()
    assert n.recall("a") is None, "nobody refers to it"
    busy.add(0)
    assert n.recall("b") is None and n.recall("x") is None
    assert n.recall("a") == 0 and n.number("a") == 0 and n.key(0) == "a"
    n.cancel("a")
    assert n.recall("a") == 0, "a cancelled one can be recalled again"
    n.release("a")
    n.settle()
    busy.clear()
    assert [n.assign(k) for k in "cd"] == [2, 0]
    n.release("d")
    n.settle()
    busy.add(0)
    assert n.recall("a") is None, "it was somebody else's since"
    assert n.recall("d") == 0


def test_what_comes_back_while_it_has_connections_goes_on_counting() -> None:
    busy: set[int] = set()
    r, model = make(busy=Busy(dest=busy.__contains__, lip=busy.__contains__))
    lips = tuple(LocalAddress(bytes([10, 0, 0, n]), 1024, 2047) for n in range(2))
    whole = Desired(services=(service("web", real(0), real(1)),), local_addresses=lips)
    part = Desired(services=(service("web", real(0)),), local_addresses=lips[:1])
    model.apply(r.update(whole))
    for held, fresh in ((set(), [("lip", 2), ("dest", 2)]), ({2}, [])):
        model.apply(r.update(part))
        busy |= held
        model.fresh.clear()
        model.apply(r.update(whole))
        assert model.fresh == fresh
    assert r.lips.number(lips[1].address) == 2


def test_numbers_adopted_first_come_first_served() -> None:
    n: Numbers[str] = Numbers(4, "tables.x", busy=lambda i: i == 1)
    n.adopt("a", 0)
    n.adopt("z", 0)
    n.adopt("a", 3)
    n.adopt("far", 99)
    assert n.number("a") == 0 and n.number("z") is None and n.number("far") is None
    assert n.assign("b") == 2, "1 is held by connections that a predecessor knew"
    assert n.assign("c") == 3
