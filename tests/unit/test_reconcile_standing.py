"""How a real server's standing becomes commands: a share of its weight, the end of its connections, the sorry server."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from lbd.master.arena import Arena
from lbd.master.desired import Desired, RealServer, Service
from lbd.master.reconcile import Reconciler
from lbd.sched import names, scheduler
from lbd.shm import _shm as shm

WEIGHTED = ("wlc", "sed", "nq")


def real(n: int, weight: int = 1, **more: Any) -> RealServer:
    return RealServer(bytes([10, 0, 1, n]), 8080, weight, more.pop("up", True), **more)


def service(*servers: RealServer, scheduler: str = "wrr", **more: Any) -> Service:
    return Service("web", bytes([192, 0, 2, 1]), 80, 6, scheduler, servers, **more)


class Lab:
    def __init__(self) -> None:
        self.tables: dict[int, list[int]] = {}
        self.reconciler = Reconciler(4, 16, 4, Arena(1 << 20, lambda at, table: self.tables.update({at: list(table)})))

    def update(self, s: Service) -> dict[int, dict[str, Any]]:
        """Real servers as workers know them then."""
        batch = self.reconciler.update(Desired((s,)))
        engine = {}
        for command in batch:
            op, _, number, _ = shm.command_head(command)
            if op == shm.CMD_DEST_SET:
                flags, weight = command[16 + 19], int.from_bytes(command[16 + 22 : 16 + 24], "little")
                engine[number] = {"flags": flags, "weight": weight}
        return engine

    @property
    def table(self) -> list[int]:
        [placed] = self.reconciler.placed.values()
        return list(placed.table)


def test_a_share_of_a_weight_of_one() -> None:
    lab = Lab()
    assert [d["weight"] for d in lab.update(service(real(1), real(2), scheduler="wlc")).values()] == [1, 1]
    told = lab.update(service(real(1), real(2, share=5), scheduler="wlc"))
    assert [told[n]["weight"] for n in (0, 1)] == [100, 5]
    told = lab.update(service(real(1), real(2), scheduler="wlc"))
    assert [told[n]["weight"] for n in (0, 1)] == [1, 1]


@pytest.mark.parametrize("weights", [(65535, 1), (1000, 3), (1, 1)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_shares_are_true_to_the_weights(name: str, weights: tuple[int, int]) -> None:
    told = Lab().update(service(real(1, weights[0]), real(2, weights[1], share=50), scheduler=name))
    a, b = told[0]["weight"], told[1]["weight"]
    assert 0 < b <= a <= 65535
    assert b / a == pytest.approx(weights[1] / weights[0] / 2, abs=1 / 65535)


@pytest.mark.parametrize("name", ["ovf", "lblc", "lblcr"])
def test_where_weight_is_a_limit_it_is_no_other_measure(name: str) -> None:
    told = Lab().update(service(real(1, 200), real(2, 200, share=10), scheduler=name))
    assert [told[n]["weight"] for n in (0, 1)] == [200, 20]


@pytest.mark.parametrize("name", [n for n in names() if not scheduler(n).RAMP])
def test_others_ignore_it(name: str) -> None:
    lab, plain = Lab(), Lab()
    assert lab.update(service(real(1, 3), real(2, 3, share=10), scheduler=name)) == plain.update(
        service(real(1, 3), real(2, 3), scheduler=name)
    )
    assert lab.table == plain.table


def test_wrr_in_slots() -> None:
    lab = Lab()
    for share, slots in ((5, 1), (50, 10), (100, 20)):
        lab.update(service(real(1), real(2, share=share)))
        assert lab.table.count(1) * 20 == slots * lab.table.count(0)


@pytest.mark.parametrize("name", ["mh", "conhash"])
def test_a_step_of_a_hash_moves_few_clients(name: str) -> None:
    """Of ten servers one grows: each step takes for it what it gains, and hardly anything changes among the others."""
    lab = Lab()
    steps = scheduler(name).RAMP
    servers = [real(n) for n in range(1, 10)]
    tables = []
    for k in range(steps):
        lab.update(service(*servers, real(10, share=100 * (k + 1) // steps), scheduler=name))
        tables.append(lab.table)
    lab.update(service(*servers, real(10), scheduler=name))
    assert tables[-1] == lab.table, "the last step is the whole weight"
    m = len(lab.table)
    for before, after in pairwise(tables):
        moved = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        others = [pair for pair in moved if 9 not in pair]
        assert 0 < len(moved) < m * (0.1 / steps * 1.8 + 0.02), f"{len(moved)} of {m} moved"
        if name == "conhash":
            assert others == []
        else:
            assert len(others) < m * 0.03, f"{len(others)} of {m} moved among others"
    shares = [t.count(9) / m for t in tables]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.1, abs=0.03)


def test_the_end_of_its_connections() -> None:
    lab = Lab()
    lab.update(service(real(1), real(2)))
    assert lab.update(service(real(1), real(2, 0, end="expire"))) == {1: {"flags": shm.DEST_UP | shm.DEST_END, "weight": 0}}
    both = shm.DEST_UP | shm.DEST_END | shm.DEST_RESET
    assert lab.update(service(real(1), real(2, 0, end="reset"))) == {1: {"flags": both, "weight": 0}}
    assert lab.update(service(real(1), real(2))) == {1: {"flags": shm.DEST_UP, "weight": 1}}


def test_the_sorry_server_has_a_number_and_no_slot() -> None:
    lab = Lab()
    s = service(real(1), sorry=(bytes([10, 0, 1, 9]), 80))
    told = lab.update(s)
    assert told == {0: {"flags": shm.DEST_UP, "weight": 1}, 1: {"flags": shm.DEST_UP | shm.DEST_SORRY, "weight": 1}}
    assert lab.table == [0]
    lab.update(replace(s, real_servers=(real(1, up=False),)))
    assert lab.table == []
    [placed] = lab.reconciler.placed.values()
    assert placed.dests[(s.key, bytes([10, 0, 1, 9]), 80)] == 1
    lab.update(replace(s, sorry=None))
    assert len(lab.reconciler.dests) == 1


def test_a_sorry_server_that_becomes_a_real_one_keeps_its_number() -> None:
    lab = Lab()
    lab.update(service(real(1), sorry=(bytes([10, 0, 1, 9]), 8080)))
    assert lab.update(service(real(1), real(9))) == {1: {"flags": shm.DEST_UP, "weight": 1}}
