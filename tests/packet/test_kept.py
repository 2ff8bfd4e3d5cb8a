"""Persistence templates kept while lbd is stopped: rows that name service and real server by address, back into tables with other
numbers, another number of workers, another time."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.shm import _shm as shm
from tests.packet.balancer import PROTO, VIP, Balancer, packed, server
from tests.packet.cluster import Cluster
from tests.packet.option import NUMBER, persist, server_of, set_server, set_service, syn
from tests.packet.test_persist import client

ROW = 64
SECOND = 1_000_000_000
FAMILIES = pytest.mark.parametrize("af", [4, 6])


def name(af: int, n: int, plen: int = 0, proto: str = "tcp") -> bytes:
    """As lbd/master/template.py has it, written out here."""
    vip, real = packed(VIP[af]).ljust(16, b"\0"), packed(server(af, n)).ljust(16, b"\0")
    return vip + struct.pack("!HBB", 80, af, PROTO[proto]) + real + struct.pack("!HBB", 8080, af, plen or 8 * len(packed(VIP[af])))


def numbers(af: int, servers: int, given: int = 0) -> dict[bytes, tuple[int, int]]:
    """Real servers and their numbers in a Balancer with `given` of them for each service."""
    first = NUMBER[af, "tcp"] * (given or servers)
    return {name(af, n): (NUMBER[af, "tcp"], first + n - 1) for n in range(1, servers + 1)}


def used(workers: int, af: int = 4, clients: int = 64, seconds: float = 360) -> tuple[Cluster, dict[int, bytes]]:
    c = Cluster(workers, join=True, servers=4, sizes={"templates": 512})
    set_service(c, af, servers=4, **persist(seconds, 32 if af == 4 else 128))
    return c, {n: server_of(syn(c, 1000, af, client(af, n))) for n in range(1, clients + 1)}


def kept(c: Cluster) -> bytes:
    rows = c.members[0].engine.templates_kept(c.now)
    assert len(rows) % ROW == 0
    return rows


def again(rows: bytes, workers: int, now: int, known: dict[bytes, tuple[int, int]], af: int = 4, **more: object) -> Cluster:
    """Another lbd, with those templates, at that time."""
    c = Cluster(workers, join=True, **{"servers": 4, "sizes": {"templates": 512}, **more})  # type: ignore[arg-type]
    set_service(c, af, servers=more.get("servers", 4), **persist(360, 32 if af == 4 else 128))  # type: ignore[arg-type]
    c.members[0].engine.templates_return(rows, known, now)
    c.now = now
    for m in c.members:
        m.now = now
        m.engine.recover(now)
    return c


@FAMILIES
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 3), (3, 2)])
def test_clients_keep_their_servers(af: int, before: int, after: int) -> None:
    old, had = used(before, af)
    new = again(kept(old), after, old.now + 60 * SECOND, numbers(af, 4), af)
    assert new.totals("templates") == 64
    assert {n: server_of(syn(new, 2000, af, client(af, n))) for n in had} == had
    assert new.totals("templates_asked") == 0 and new.totals("templates") == 64
    new.audit()
    new.audit_templates(16)


def test_a_row() -> None:
    b = Balancer(servers=1)
    set_service(b, servers=1, **persist(360, 24))
    syn(b, 1000, client=client(4, 7))
    rows = b.engine.templates_kept(b.now)
    tick = b.now >> 26
    assert rows == name(4, 1, 24) + packed("198.51.0.0").ljust(16, b"\0") + struct.pack("=II", tick, tick)


def test_by_address_not_by_number() -> None:
    """Real servers 3 and 4 stand at other places, 1 and 2 are gone: only their clients are scheduled anew."""
    old, had = used(2)
    third, fourth = (packed(server(4, n)) for n in (3, 4))
    rows = kept(old)
    known = {name(4, 3): (0, 1), name(4, 4): (0, 0)}
    new = Cluster(2, join=True, servers=4, sizes={"templates": 512})
    set_service(new, **persist(360))
    for number, n in ((1, 3), (0, 4)):
        new.do(shm.dest_set(number, 1, af=4, addr=packed(server(4, n)), port=8080, svc=0))
    assert new.members[0].engine.templates_return(rows, known, old.now) == sum(s in (third, fourth) for s in had.values())
    for m in new.members:
        m.now = old.now
        m.engine.recover(m.now)
    for n, s in had.items():
        if s in (third, fourth):
            assert server_of(syn(new, 2000, client=client(4, n))) == s


def test_services_that_are_told_later() -> None:
    """What the command ring has no room for comes when the worker runs already."""
    old, had = used(1, clients=8)
    new = Cluster(1, join=True, servers=4, sizes={"templates": 512})
    new.do(shm.svc_del(0, 2))
    assert new.members[0].engine.templates_return(kept(old), {name(4, n): (9, n - 1) for n in range(1, 5)}, old.now) == 8
    new.now = old.now + SECOND
    new.members[0].engine.recover(new.now)
    for _ in range(8):
        new.expire(new.now)
    assert new.totals("templates") == 8
    for n in range(1, 5):
        set_server(new, n, servers=4, svc=9)
    new.do(shm.svc_set(9, 3, af=4, addr=packed(VIP[4]), port=80, proto=6, sched=new.sched, mode=new.mode, table_off=0,
                       table_len=4, **persist(360)))  # fmt: skip
    assert {n: server_of(syn(new, 2000, af=4, client=client(4, n))) for n in had} == had
    new.audit_templates(16)
    new.do(shm.svc_del(9, 5))
    for _ in range(8):
        new.expire(new.now)
    assert new.totals("templates") == 0


def test_time_goes_on_meanwhile() -> None:
    """What is left is what was left less the time between; and what is over stays away."""
    old, had = used(1, clients=8)
    old.now += 200 * SECOND
    for n in range(1, 5):
        assert server_of(syn(old, 3000, client=client(4, n))) == had[n]
    rows = kept(old)
    new = again(rows, 1, old.now + 165 * SECOND, numbers(4, 4))
    lasting = {n: server_of(syn(new, 2000, client=client(4, n))) for n in range(1, 5)}
    assert lasting == {n: had[n] for n in range(1, 5)}
    new.now += 1 * SECOND
    for _ in range(8):
        new.expire(new.now)
    assert new.totals("templates") == 4, "the others were not renewed for 365 s"
    old.now += 400 * SECOND
    assert kept(old) == b"", "over"


def test_what_is_not_kept() -> None:
    """Of a service without persistence, of a number with another meaning, and of a real server that is gone."""
    b = Balancer(servers=2)
    set_service(b, servers=2, **persist(360))
    for n in range(1, 5):
        syn(b, 1000, client=client(4, n))
    assert len(b.engine.templates_kept(b.now)) == 4 * ROW
    b.later(1)
    set_server(b, 1, servers=2, fresh=True)
    assert len(b.engine.templates_kept(b.now)) == 2 * ROW
    b.do(shm.dest_del(1, 2))
    assert b.engine.templates_kept(b.now) == b""
    syn(b, 1001, client=client(4, 9))
    assert len(b.engine.templates_kept(b.now)) == ROW
    set_service(b, servers=2)
    assert b.engine.templates_kept(b.now) == b""


def test_of_too_many_the_later_ones() -> None:
    old, _ = used(4, clients=1)
    for n in range(2, 200):
        old.now += SECOND // 4
        syn(old, 1000, client=client(4, n))
    new = again(kept(old), 1, old.now, numbers(4, 4), sizes={"templates": 64})
    nets = {net[:4] for _, _, net in new.members[0].engine.templates()}
    assert len(nets) == new.totals("templates") == 64 and {client(4, n) for n in range(196, 200)} <= nets


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_rows_say(data: st.DataObject) -> None:
    """Bytes that nobody wrote (a checksum keeps them away): tables are sound, nothing comes from the future."""
    old, _ = used(1, clients=8)
    rows = bytearray(kept(old))
    for _ in range(data.draw(st.integers(0, 40))):
        rows[data.draw(st.integers(0, len(rows) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(rows[: data.draw(st.integers(0, len(rows)))])
    new = again(cut, 2, old.now, numbers(4, 4))
    assert new.totals("templates") == len({t for m in new.members for t in m.engine.templates()}) <= len(cut) // ROW
    for n in range(1, 9):
        assert syn(new, 2000, client=client(4, n)).verdict == "forward"
    new.now += 400 * SECOND
    for _ in range(4):
        new.expire(new.now)
    new.audit_templates(16)  # (one that says to be older than its real server counted for none)
    assert {net for _, _, net in new.members[0].engine.templates()} <= {client(4, n).ljust(16, b"\0") for n in range(1, 9)}
