"""A full connection table: half-open TCP goes first, then unanswered UDP, oldest first, counted; established flows survive."""

import pytest

from tests.packet.balancer import MS, SIZES, Balancer
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import TCP, UDP, from_client

FAMILIES = pytest.mark.parametrize("af", [4, 6])
CAPACITY = 256
EVICTED = 3  # index of conns_expired


def small(**more: int) -> Balancer:
    return Balancer(sizes={"conns4": CAPACITY, "conns6": CAPACITY}, **more)


def spoofed(af: int, n: int) -> bytes:
    return bytes([198, 18, n >> 8, n & 255]) if af == 4 else bytes.fromhex("20010db8ffff") + n.to_bytes(10, "big")


def flood(b: Balancer, af: int, proto: int, count: int, first: int = 0) -> list[str]:
    """From so many sources, in bursts of 64, a millisecond apart; the verdicts."""
    out = []
    frames = [
        from_client(af, proto, 1024 + i % 60000, "S" if proto == TCP else "", seq=i, client=spoofed(af, i))
        for i in range(first, first + count)
    ]
    for at in range(0, count, 64):
        b.now += MS
        before = b.engine.counters()["conns_expired"][EVICTED]
        out += [r.verdict for r in b.burst(frames[at : at + 64])]
        assert b.engine.counters()["conns_expired"][EVICTED] - before <= 64, "at most one eviction for a packet"
    return out


@FAMILIES
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_established_flows_survive_a_flood_of_ten_times_the_table(proto: int, af: int) -> None:
    b = small(ports=(1024, 65000))
    tcp = [Tcp(b, af, 2000 + i).open() for i in range(CAPACITY // 4)]
    udp = [Udp(b, af, 3000 + i) for i in range(CAPACITY // 4)]
    for u in udp:
        u.ask()
        u.answer()
    assert set(flood(b, af, proto, 10 * CAPACITY)) == {"forward"}
    assert b.engine.used()[f"conns{af}"] == CAPACITY
    assert b.engine.counters()["conns_expired"][EVICTED] == 10 * CAPACITY - CAPACITY // 2
    for t in tcp:
        assert t.client("PA", b"still here").verdict == "forward"
        assert t.real("A").verdict == "forward" and t.state == "ESTABLISHED"
    for u in udp:
        assert u.ask().verdict == "forward" and u.answer().verdict == "forward"
    b.audit()


@FAMILIES
def test_the_oldest_goes_first(af: int) -> None:
    b = small()
    flood(b, af, TCP, CAPACITY)
    flood(b, af, TCP, 100, first=CAPACITY)
    left = {c["client"][0] for c in b.engine.conns()}
    assert left == {spoofed(af, i) for i in range(100, CAPACITY + 100)}


@FAMILIES
def test_half_open_goes_before_unanswered_udp(af: int) -> None:
    b = small()
    flood(b, af, UDP, CAPACITY // 2)
    flood(b, af, TCP, CAPACITY // 2, first=1000)
    flood(b, af, UDP, CAPACITY // 2, first=2000)
    assert {c["proto"] for c in b.engine.conns()} == {UDP}
    flood(b, af, UDP, 10, first=3000)
    left = {c["client"][0] for c in b.engine.conns()}
    assert spoofed(af, 9) not in left and spoofed(af, 10) in left


def test_of_one_way_udp_the_silent_ones_go_first() -> None:
    b = small()
    flood(b, 4, UDP, CAPACITY)
    b.now += 1000 * MS
    b.engine.expire(b.now)  # each millisecond it is told how full the table is
    flood(b, 4, UDP, CAPACITY // 2)  # these speak again
    flood(b, 4, UDP, CAPACITY // 2, first=1000)
    left = {c["client"][0] for c in b.engine.conns()}
    assert left == {spoofed(4, i) for i in [*range(CAPACITY // 2), *range(1000, 1000 + CAPACITY // 2)]}


@FAMILIES
def test_answered_udp_makes_room_when_nothing_else_does(af: int) -> None:
    """A name server's clients: each question from a new port, each answered, 300 s each. More of them than the table has room for
    must not shut others out; of the flows looked at, the one that was silent longest goes, and TCP stays."""
    b = small(ports=(1024, 65000))
    tcp = [Tcp(b, af, 2000 + i).open() for i in range(CAPACITY // 2)]
    busy = [Udp(b, af, 3000 + i) for i in range(8)]
    for i in range(20 * CAPACITY):
        b.now += MS
        u = Udp(b, af, 10000 + i)
        assert u.ask().verdict == "forward" and u.answer().verdict == "forward"
        if i % 8 == 0:
            for f in busy:
                assert f.ask().verdict == "forward" and f.answer().verdict == "forward"
    assert b.engine.counters()["conns_made"] == CAPACITY // 2 + 20 * CAPACITY + 8, "flows that speak often were never evicted"
    new = Tcp(b, af, 1999).open()
    assert all(t.client("A").verdict == "forward" and t.state == "ESTABLISHED" for t in (*tcp, new))
    b.audit()


@FAMILIES
def test_syn_and_reset_leave_nothing(af: int) -> None:
    """A blind sender knows its own numbers and can reset what it opened: no safer from eviction than the SYN alone."""
    b = small(ports=(1024, 65000))
    for i in range(4 * CAPACITY):
        f = Tcp(b, af, 1024 + i, isn=i)
        f.client("S")
        f.client("R")
    assert b.engine.used() == {"conns4": 0, "conns6": 0, "half_open": 0, "extensions": 0, "held": 0}
    assert Tcp(b, af, 50000).open().state == "ESTABLISHED"
    assert b.engine.counters()["conns_expired"][2] == 4 * CAPACITY
    b.audit()


@FAMILIES
def test_nothing_to_evict(af: int) -> None:
    """All records are answered connections: new ones are refused, counted, and get in once there is room."""
    b = small()
    flows = [Tcp(b, af, 2000 + i).open() for i in range(CAPACITY)]
    for proto in (TCP, UDP):
        assert set(flood(b, af, proto, 100)) == {"drop"}
    assert b.engine.counters()["drops"] == {"conn_table_full": 200}
    assert b.engine.counters()["conns_expired"][EVICTED] == 0
    assert all(f.client("A").verdict == "forward" for f in flows)
    flows[0].client("RA")
    b.later(11)
    assert flood(b, af, TCP, 2) == ["forward", "forward"], "one place by the reset, and that one half open"
    b.audit()


def test_families_do_not_share_their_places() -> None:
    b = small()
    flood(b, 4, TCP, 2 * CAPACITY)
    f = Tcp(b, 6).open()
    flood(b, 4, TCP, CAPACITY)
    assert f.state == "ESTABLISHED" and b.engine.used()["conns6"] == 1


def test_a_flood_leaves_nothing_behind() -> None:
    b = small()
    flood(b, 4, TCP, 10 * CAPACITY)
    b.later(61)
    assert b.engine.used() == {"conns4": 0, "conns6": 0, "half_open": 0, "extensions": 0, "held": 0}
    assert b.engine.lip_stats(0)["in_use"] == 0
    b.audit()


def test_a_real_client_gets_through_a_flood() -> None:
    """As long as its handshake is quicker than the flood takes to turn the table over."""
    b = small()
    flood(b, 4, TCP, 5 * CAPACITY)
    f = Tcp(b, 4, 60001)
    f.client("S")
    flood(b, 4, TCP, CAPACITY // 2, first=20000)
    f.real("SA")
    f.client("A")
    flood(b, 4, TCP, 5 * CAPACITY, first=30000)
    assert f.state == "ESTABLISHED"


@pytest.mark.parametrize("capacity", [64, 100])
def test_the_smallest_tables(capacity: int) -> None:
    b = Balancer(sizes={**SIZES, "workers": 1, "conns4": capacity, "conns6": capacity})
    assert set(flood(b, 4, TCP, 1000)) == {"forward"}
    assert b.engine.used()["conns4"] == capacity


@FAMILIES
def test_every_flow_of_a_full_table_is_found_both_ways(af: int) -> None:
    """One of 60 or so lies in an overflow bucket, which the probe goes on to."""
    b = Balancer(sizes={"conns4": 1024, "conns6": 1024})
    flows = [Udp(b, af, 2000 + i) for i in range(1024)]
    for u in flows:
        assert u.ask().verdict == u.answer().verdict == "forward"
    for at in range(0, len(flows), 64):
        some = flows[at : at + 64]
        frames = [from_client(af, UDP, 2000 + at + i, payload=b"again") for i in range(len(some))]
        assert [(r.verdict, r.dest) for r in b.burst(frames)] == [("forward", u.ask().dest) for u in some]
    assert b.engine.counters()["conns_made"] == len(flows)
