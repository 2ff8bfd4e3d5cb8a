# SPDX-License-Identifier: Apache-2.0
"""Other workers over the same connections (lbd/master/crew.py, heritage.py): each flow is found, from both ends, wherever its
packets arrive; nothing of it changes."""

import dataclasses
import json
from pathlib import Path

import pytest

from lbd.master.heritage import keep, kept, previous
from lbd.master.rss import Ownership
from tests.packet.balancer import Balancer
from tests.packet.cluster import Cluster, spread
from tests.packet.flow import Flow, Tcp, Udp
from tests.packet.test_mode import answer_of, from_client, segment
from tests.packet.test_mode_workers import cluster, talk
from tests.packet.test_reuse import GAP, OLD_EDGE, reopened
from tests.unit.test_datapath_hash import KEY as RSS_KEY

FAMILIES = pytest.mark.parametrize("af", [4, 6])
COUNTS = pytest.mark.parametrize("before,after", [(1, 2), (2, 1), (2, 4), (4, 2), (3, 4), (4, 3), (4, 1), (5, 3)])
RSS = pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])


def ownership(workers: int, rss: bool) -> Ownership:
    return Ownership(RSS_KEY if rss else bytes(64), rss, rss, tuple(spread(workers)), "")


def succeed(old: Cluster, new: Cluster, rss: bool) -> None:
    """What the master does between the two."""
    before, after = len(old.members), len(new.members)
    for w, member in enumerate(old.members):
        moved, left = new.members[w % after].engine.take_in(member.engine)
        assert left == 0 and moved == sum(c["worker"] == w for c in old_conns(old))
    rule = previous([ownership(before, rss)], ownership(after, rss), after)
    if rss:
        new.set_rss(RSS_KEY, True, (RSS_KEY, True))
    new.set_owner(spread(after), list(rule.table) if rule else None)
    new.now = old.now
    for member in new.members:
        member.now = old.now
        member.engine.recover(old.now, True)
        if rule:
            member.engine.mark([m.engine for m in new.members])


def old_conns(c: Cluster) -> list[dict[str, object]]:
    return c.before if hasattr(c, "before") else c.conns()


@FAMILIES
@COUNTS
@RSS
def test_fullnat(before: int, after: int, rss: bool, af: int) -> None:
    old = Cluster(before)
    if rss:
        old.set_rss(RSS_KEY, True)
    tcp = [Tcp(old, af, 2000 + n).open() for n in range(40)]
    udp = [Udp(old, af, 3000 + n) for n in range(20)]
    for u in udp:
        u.ask(), u.answer()
    ends = {f.sport: (f.server, f.lport) for f in (*tcp, *udp)}
    old.before = old.conns()  # type: ignore[attr-defined]
    new = Cluster(after, seed=2)
    succeed(old, new, rss)
    flows: list[Flow] = [*tcp, *udp]
    for f in flows:
        f.b = new
    made = len(new.conns())
    for t in tcp:
        assert (t.client("PA", b"x").verdict, t.real("PA", b"y").verdict) == ("forward", "forward")
    for u in udp:
        assert (u.ask().verdict, u.answer().verdict) == ("forward", "forward")
    assert {f.sport: (f.server, f.lport) for f in flows} == ends and len(new.conns()) == made == 60
    more = [Tcp(new, af, 4000 + n).open() for n in range(40)]
    assert len({t.record["worker"] for t in more if t.record}) == after
    for t in [*tcp, *more]:
        t.close_by_server()
        assert t.state == "TIME_WAIT"
    new.audit()


@FAMILIES
@COUNTS
def test_nat(before: int, after: int, af: int) -> None:
    old = cluster(before)
    for port in range(2000, 2040):
        talk(old, af, port)
    old.before = old.conns()  # type: ignore[attr-defined]
    new = cluster(after)
    succeed(old, new, False)
    for port in range(2000, 2040):
        assert new.send(from_client(af, segment("tcp", "A", port, 80, b"x", seq=1001, ack=5001))).verdict == "forward"
        assert new.send(answer_of(af, segment("tcp", "A", 8080, port, b"y", seq=5001, ack=1002)), 1).verdict == "forward"
    assert len(new.conns()) == 40
    new.audit()


def test_no_room_is_told() -> None:
    small = {"conns4": 64, "conns6": 64}
    into, gone = Balancer(sizes=small), Balancer(sizes=small)
    for n in range(40):
        Udp(into, 4, 2000 + n).ask(), Udp(gone, 4, 3000 + n).ask()
    assert into.engine.take_in(gone.engine) == (24, 16)
    assert into.engine.recover(into.now, True) == 64
    assert into.engine.take_in(gone.engine) == (0, 16), "those that were moved are there once"


@FAMILIES
def test_moved_numbers_move_too(af: int) -> None:
    """A connection with an extension record (seq.pxd)."""
    old, f = reopened(af, OLD_EDGE)
    assert f.moved == GAP
    new = Balancer(servers=1, ports=(20000, 20000))
    assert Udp(new, af, 2000).ask().verdict == "forward", "its record is where the other one was"
    assert new.engine.take_in(old.engine) == (1, 0)
    new.now = f.b.now
    new.engine.recover(new.now, True)
    f.b = new
    assert (f.client("PA", b"x").verdict, f.real("PA", b"y").verdict) == ("forward", "forward")
    assert new.engine.used()["extensions"] == 1


def test_the_last_rule_that_was_another() -> None:
    two, four = ownership(2, False), ownership(4, False)
    assert previous([], two, 2) is None and previous([two], two, 2) is None
    assert previous([four], two, 2) is None, "i % 4 % 2 is i % 2"
    assert previous([two], four, 4) == two
    assert previous([four, two], four, 4) == two, "nothing has changed: connections of before are still there"
    other = dataclasses.replace(ownership(2, True), key=bytes(range(40)))
    assert previous([other, two], ownership(2, True), 2) == other
    assert previous([dataclasses.replace(two, key=b"another")], two, 2) is None, "the key means nothing where RSS is not known"


def test_rules_are_kept(tmp_path: Path) -> None:
    two, four = ownership(2, True), ownership(4, False)
    assert kept(tmp_path) == []
    keep(tmp_path, two, four)
    assert kept(tmp_path) == [two, four] and (tmp_path / "owners").stat().st_mode & 0o777 == 0o600
    whole = json.loads((tmp_path / "owners").read_text())
    short = {"rules": [whole["rules"][0] | {"table": [1]}]}
    damaged = [json.dumps(whole | change) for change in ({"boot": "another"}, {"rules": [{}]}, short)]
    for damage in ("", "{", "[]", "null", '{"boot": 1}', *damaged):
        (tmp_path / "owners").write_text(damage)
        assert kept(tmp_path) == [], damage
