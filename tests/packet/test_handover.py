"""Flows between workers: wherever a packet arrives, its flow is correct, in three hops at most; ports never overlap; with a known
RSS nothing is handed over at all.
"""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packet.balancer import MAC_LB0, MAC_LB1, VIP, packed, server_mac
from tests.packet.cluster import BUCKETS, Cluster, spread
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import TCP, ethernet, ip_packet, transport
from tests.unit import _engine
from tests.unit.test_datapath_hash import KEY as RSS_KEY

FAMILIES = pytest.mark.parametrize("af", [4, 6])
WORKERS = pytest.mark.parametrize("workers", [2, 3, 5])


def owner_table(seed: int, workers: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(workers) for _ in range(BUCKETS)]


def talk(flows: list[Tcp | Udp]) -> None:
    """A round trip on each; Flow asserts that it comes out right."""
    for f in flows:
        if isinstance(f, Udp):
            assert f.ask().verdict == "forward" and f.answer().verdict == "forward"
        else:
            assert f.client("PA", b"request").verdict == "forward"
            assert f.real("PA", b"answer").verdict == "forward"


@FAMILIES
@WORKERS
def test_flows_are_right_wherever_they_arrive(workers: int, af: int) -> None:
    c = Cluster(workers)
    flows: list[Tcp | Udp] = [Tcp(c, af, 1024 + i).open() for i in range(60)]
    flows += [Udp(c, af, 3000 + i) for i in range(40)]
    for _ in range(3):
        talk(flows)
    assert max(c.hops) == 1, "to the owner, and no further"
    share = c.totals("misplaced") / len(c.hops)
    assert abs(share - (1 - 1 / workers)) < 0.1
    held = Counter(r["worker"] for r in c.conns())
    assert len(held) == workers and min(held.values()) > 100 / workers / 2, "all of them work"
    for f in flows[:60]:
        f.close_by_server() if f.sport % 2 else f.close_by_client()
    assert {r["state"] for r in c.conns() if r["proto"] == TCP} == {"TIME_WAIT", "CLOSE"}
    c.later(61)
    assert all(r["proto"] == 17 for r in c.conns())
    c.audit()


@FAMILIES
@WORKERS
def test_workers_never_choose_the_same_port(workers: int, af: int) -> None:
    """Few ports and one real server, until all are taken: each worker has its own share, and nothing is left over."""
    c = Cluster(workers, servers=1, ports=(20000, 20199))
    opened = sum(Tcp(c, af, 1024 + i).client("S").verdict == "forward" for i in range(1500))
    local = [(r["local"], r["real_server"]) for r in c.conns()]
    assert len(local) == len(set(local)) == opened
    assert 150 <= opened <= 200
    by_worker = Counter(r["worker"] for r in c.conns())
    assert min(by_worker.values()) > 200 / workers / 2


@FAMILIES
@pytest.mark.parametrize("udp_ports", [True, False], ids=["udp by ports", "udp by addresses"])
def test_known_rss(udp_ports: bool, af: int) -> None:
    """The port is chosen such that the NIC brings the answer to the same worker: no hand-over for what the NIC hashes by ports."""
    c = Cluster(4)
    c.set_rss(RSS_KEY, udp_ports)
    tcp = [Tcp(c, af, 1024 + i).open() for i in range(100)]
    talk([*tcp])
    assert set(c.hops) == {0} and c.totals("misplaced") == 0
    assert len(Counter(r["worker"] for r in c.conns())) == 4
    udp = [Udp(c, af, 3000 + i) for i in range(100)]
    talk([*udp])
    if udp_ports:
        assert set(c.hops) == {0}
    else:
        assert max(c.hops) == 1, "all of UDP between two addresses arrives at one worker, which hands on what isn't its"
        assert len(Counter(r["worker"] for r in c.conns() if r["proto"] == 17)) == 4
    c.audit()


@FAMILIES
@WORKERS
def test_a_new_owner_table(workers: int, af: int) -> None:
    """Established flows stay where they were made, found over the previous table; new ones go by the new table, and their ports
    don't collide with those that the other worker gave out."""
    c = Cluster(workers, servers=1, ports=(20000, 20399))
    first, second = owner_table(1, workers), owner_table(2, workers)
    c.set_owner(first)
    old = [Tcp(c, af, 1024 + i).open() for i in range(60)]
    udp = [Udp(c, af, 5000 + i) for i in range(20)]
    talk([*udp])
    where = {r["client"]: r["worker"] for r in c.conns()}
    c.hops.clear()
    c.set_owner(second, first)
    for _ in range(3):
        talk([*old, *udp])
    assert max(c.hops) == min(workers - 1, 2), "the owner now, then the owner before"
    new = [Tcp(c, af, 10000 + i) for i in range(60)]
    made = [f for f in new if f.client("S").verdict == "forward"]
    for f in made:
        f.real("SA")
        f.client("A")
    assert len(made) > 30
    talk([*old, *made, *udp])
    now = {r["client"]: r["worker"] for r in c.conns()}
    assert {k: now[k] for k in where} == where
    local = [(r["local"], r["real_server"], r["proto"]) for r in c.conns()]
    assert len(local) == len(set(local))
    c.set_owner(second)  # the old flows' time is over: the previous table is forgotten
    talk(list(made))
    c.audit()


@FAMILIES
@WORKERS
@pytest.mark.parametrize("udp_ports", [True, False])
def test_another_rss_key_and_table(workers: int, af: int, udp_ports: bool) -> None:
    """`ethtool -X` under way: what is established goes on, handed over at most twice; what is new needs no hand-over at all."""
    c = Cluster(workers, servers=1)
    first, second = owner_table(1, workers), owner_table(2, workers)
    c.set_owner(first)
    c.set_rss(RSS_KEY, udp_ports)
    old = [Tcp(c, af, 1024 + i).open() for i in range(40)]
    udp = [Udp(c, af, 5000 + i) for i in range(20)]
    talk([*udp])
    where = {(r["client"], r["proto"]): r["worker"] for r in c.conns()}
    c.set_owner(second, first)
    c.set_rss(RSS_KEY[::-1], udp_ports, (RSS_KEY, udp_ports))
    c.hops.clear()
    for _ in range(3):
        talk([*old, *udp])
    assert 0 < max(c.hops) <= min(workers - 1, 2)
    c.hops.clear()
    new = [Tcp(c, af, 20000 + i).open() for i in range(40)]
    talk(new)
    assert set(c.hops) == {0}, "their ports are chosen by the new key"
    talk([*old, *new, *udp])
    now = {(r["client"], r["proto"]): r["worker"] for r in c.conns()}
    assert {k: now[k] for k in where} == where
    local = [(r["local"], r["real_server"], r["proto"]) for r in c.conns()]
    assert len(local) == len(set(local)), "no port was given out twice"
    c.audit()


@FAMILIES
def test_segments_of_nobody_end(af: int) -> None:
    """No worker has the connection: dropped after at most three hops, whoever receives it, with a previous table too."""
    c = Cluster(3)
    for previous in (None, owner_table(7, 3)):
        c.set_owner(owner_table(8, 3), previous)
        for i in range(200):
            r = Tcp(c, af, 1024 + i).client("A")
            assert (r.verdict, r.reason) == ("drop", "no_state")
            dst = packed("10.77.0.2" if af == 4 else "fd77::2")
            src = packed("10.77.0.11" if af == 4 else "fd77::11")
            stray = ethernet(MAC_LB1, server_mac(1), ip_packet(src, dst, TCP, transport(TCP, src, dst, 8080, 20000 + i, "A")))
            assert c.send(stray, 1).reason == "no_state"
    assert max(c.hops) == 3


def test_owner_tables_that_disagree_do_not_loop() -> None:
    """A worker that has not seen the new table yet: bounded, counted."""
    c = Cluster(2)
    c.members[0].engine.set_owner([1] * BUCKETS)
    c.members[1].engine.set_owner([0] * BUCKETS)
    r = Tcp(c).client("S")
    assert (r.verdict, r.reason) == ("drop", "hop_limit")
    assert c.totals("misplaced") == 1


def test_an_owner_that_does_not_exist() -> None:
    c = Cluster(2)
    for m in c.members:
        m.engine.set_owner([9] * BUCKETS)
    assert Tcp(c).client("S").reason == "hop_limit"


@FAMILIES
def test_icmp_errors_find_their_flows_worker(af: int) -> None:
    """The quoted tuple decides, whoever receives the error and from which side."""
    c = Cluster(3)
    flows = [Tcp(c, af, 1024 + i).open() for i in range(40)]
    icmp = 1 if af == 4 else 58
    for f in flows:
        vip, me = packed(VIP[af]), f.address
        quoted = ip_packet(vip, me, TCP, transport(TCP, vip, me, 80, f.sport, "A", f.sseq, f.cseq))
        body = bytearray((b"\x03\x01" if af == 4 else b"\x01\x00") + b"\0\0" + bytes(4) + quoted)
        start = 0 if af == 4 else _engine.pseudo_sum(me, vip, icmp, len(body))
        body[2:4] = _engine.checksum(bytes(body), start).to_bytes(2, "big")
        r = c.send(ethernet(MAC_LB0, "02:00:00:00:00:c1", ip_packet(me, vip, icmp, bytes(body))))
        assert r.verdict == "forward", r
        assert r.out[0][0] == 1
    assert c.totals("icmp_mapped") == 40
    assert max(c.hops) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32), st.sampled_from([4, 6]))
def test_any_owner_tables(workers: int, seed: int, af: int) -> None:
    """Tables change three times, each time with the one before still asked; what was opened under the last two keeps working.
    A table is forgotten only when the flows that were opened under it are over: that much the master has to see to."""
    c = Cluster(workers, seed, servers=2)
    rng = random.Random(seed)
    tables = [spread(workers)] + [owner_table(rng.random(), workers) for _ in range(3)]
    before: list[Tcp] = []
    made: list[Tcp] = []
    port = 1024
    for k, table in enumerate(tables):
        for f in before:
            assert f.client("RA").verdict == "forward"
        c.later(11)
        before = made
        c.set_owner(table, tables[k - 1] if k else None)
        made = []
        for _ in range(10):
            port += 1
            f = Tcp(c, af, port)
            if f.client("S").verdict == "forward":
                f.real("SA")
                f.client("A")
                made.append(f)
        talk([*before, *made])
    local = [(r["local"], r["real_server"]) for r in c.conns()]
    assert workers == 1 or len(local) == len(set(local))
    c.audit()
