"""Persistence: which real server a client's connections get, how long, and where the template comes from with several workers."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.shm import _shm as shm
from tests.packet.balancer import Balancer, packed, server
from tests.packet.cluster import Cluster
from tests.packet.frame import TCP, from_client, from_server
from tests.packet.option import NUMBER, ask, persist, sent, server_of, set_server, set_service, syn

FAMILIES = pytest.mark.parametrize("af", [4, 6])
JOIN = pytest.mark.parametrize("join", [False, True], ids=["asked each time", "read in shared memory"])
WORKERS = pytest.mark.parametrize("workers", [1, 2, 3])


def client(af: int, n: int, net: int = 0) -> bytes:
    return packed(f"198.51.{net}.{n}" if af == 4 else f"2001:db8:{net}::{n:x}")


@FAMILIES
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_one_client_one_server(af: int, proto: str) -> None:
    b = Balancer(servers=4)
    set_service(b, af, proto, servers=4, **persist(360, 32 if af == 4 else 128))
    send = syn if proto == "tcp" else ask
    had = [server_of(send(b, port, af, client(af, n))) for port in range(1000, 1004) for n in range(1, 9)]
    assert had == had[:8] * 4
    assert {had.count(s) for s in had} == {8}  # round robin over the clients
    assert b.engine.counters()["templates"] == 8
    first = NUMBER[af, proto] * 4
    assert [b.engine.dest_stats(first + n)["templates"] for n in range(4)] == [2, 2, 2, 2]
    b.audit()


@pytest.mark.parametrize(("af", "plen", "nets"), [(4, 24, ("198.51.7.1", "198.51.7.200", "198.51.8.1")),
                                                  (4, 20, ("198.51.0.1", "198.51.15.9", "198.51.16.1")),
                                                  (6, 64, ("2001:db8:0:1::1", "2001:db8:0:1:ff::2", "2001:db8:0:2::1")),
                                                  (6, 57, ("2001:db8::1", "2001:db8:0:7f::2", "2001:db8:0:80::1"))])  # fmt: skip
def test_clients_of_a_network_are_one(af: int, plen: int, nets: tuple[str, str, str]) -> None:
    b = Balancer()
    set_service(b, af, **persist(360, plen))
    one, same, other = (server_of(syn(b, 1000, af, packed(a))) for a in nets)
    assert one == same != other


def test_lasts_from_the_last_connection_opened() -> None:
    b = Balancer()
    set_service(b, **persist(10))
    a = server_of(syn(b, 1000))
    b.send(from_client(4, TCP, 1000, "R", 1001))  # nothing lives
    for _ in range(5):
        b.later(9)
        assert server_of(syn(b, 1001)) == a
        b.send(from_client(4, TCP, 1001, "R", 1001))
    b.later(10.2)
    assert b.engine.counters()["templates"] == 0  # swept
    assert server_of(syn(b, 1002)) != a


@pytest.mark.parametrize("timeout", [4, 60, 360])
def test_lasts_while_a_connection_lives(timeout: int) -> None:
    """As IPVS: the template's end is put off while it has connections, though the client opens no new ones."""
    b = Balancer()
    set_service(b, **persist(timeout), timeout_established=7200_000)
    b.open(4, 1000)
    [record] = b.engine.conns()
    a = record["real_server"][0]
    for _ in range(20):
        b.later(timeout / 3)
    assert server_of(syn(b, 1001)) == a
    b.send(from_client(4, TCP, 1000, "R", 1001, 5001))
    b.send(from_client(4, TCP, 1001, "R", 1001))
    for _ in range(12):
        b.later(timeout / 4 + 1.5)  # the first is remembered as closed for 10 s
    assert b.engine.counters()["templates"] == 0


def test_udp_keeps_it_alive_too() -> None:
    b = Balancer(mode=shm.MODE_DR)  # one way: lbd never sees an answer
    set_service(b, 4, "udp", **persist(80))
    a = ask(b, 1000).dest
    for _ in range(60):
        b.later(5)
        assert ask(b, 1000).dest == a
    assert ask(b, 1001).dest == a


def test_weight_0_keeps_its_clients() -> None:
    b = Balancer()
    set_service(b, **persist(360))
    a = server_of(syn(b, 1000))
    n = 1 if a == packed(server(4, 1)) else 2
    set_server(b, n, weight=0)
    assert server_of(syn(b, 1001)) == a
    assert server_of(syn(b, 1000, client=client(4, 9))) != a


def test_who_is_down_loses_its_clients() -> None:
    b = Balancer()
    svc = set_service(b, **persist(360))
    a = server_of(syn(b, 1000))
    n = 1 if a == packed(server(4, 1)) else 2
    set_server(b, n, up=False)
    other = server_of(syn(b, 1001))
    assert other != a
    set_server(b, n, up=True)
    assert server_of(syn(b, 1002)) == other  # the template is the other one's now
    assert [b.engine.dest_stats(d)["templates"] for d in (0, 1)] == ([0, 1] if n == 1 else [1, 0])
    assert svc == 0 and b.engine.counters()["templates"] == 1


def test_numbers_given_anew_have_no_clients() -> None:
    """A real server's or a service's number that means another one: what was remembered of the former is nothing to it."""
    b = Balancer(servers=1)
    set_service(b, servers=1, **persist(360))
    syn(b, 1000)
    assert b.engine.dest_stats(0)["templates"] == 1
    b.later(1)
    set_server(b, 1, servers=1, fresh=True)
    assert b.engine.dest_stats(0)["templates"] == 0
    assert syn(b, 1001).verdict == "forward"
    assert b.engine.dest_stats(0)["templates"] == 1
    b.later(1)
    set_service(b, servers=1, **persist(360), fresh=True)
    b.later(1)
    assert b.engine.counters()["templates"] == 0
    assert b.engine.dest_stats(0)["templates"] == 0


def test_service_without_persistence_forgets() -> None:
    b = Balancer()
    set_service(b, **persist(360))
    syn(b, 1000)
    set_service(b)
    b.later(1)
    assert b.engine.counters()["templates"] == 0 and b.engine.templates() == []


def test_full_table_forgets_who_came_back_longest_ago() -> None:
    b = Balancer(sizes={"templates": 8})  # one set
    set_service(b, **persist(3600))
    for n in range(8):
        syn(b, 1000, client=client(4, n))
        b.later(1)
    syn(b, 1001, client=client(4, 0))  # 1 is the oldest now
    b.later(1)
    syn(b, 1000, client=client(4, 99))
    counters = b.engine.counters()
    assert counters["templates"] == 8 and counters["templates_evicted"] == 1
    assert {t[2][:4] for t in b.engine.templates()} == {client(4, n) for n in (0, 2, 3, 4, 5, 6, 7, 99)}


def test_an_expired_one_makes_room_first() -> None:
    b = Balancer(sizes={"templates": 8})
    set_service(b, **persist(10))
    for n in range(8):
        syn(b, 1000 + n, client=client(4, n))
        b.send(from_client(4, TCP, 1000 + n, "R", 1001, client=client(4, n)))
    b.now += 11_000_000_000  # and nobody has swept
    syn(b, 1000, client=client(4, 99))
    assert b.engine.counters()["templates_evicted"] == 0


def test_survives_its_worker() -> None:
    b = Balancer()
    set_service(b, **persist(360))
    had = {n: server_of(syn(b, 1000, client=client(4, n))) for n in range(1, 9)}
    b.later(1)
    b.engine.recover(b.now)
    assert b.engine.counters()["templates"] == 8
    assert sum(b.engine.dest_stats(d)["templates"] for d in (0, 1)) == 8
    assert {n: server_of(syn(b, 1001, client=client(4, n))) for n in range(1, 9)} == had


def test_comes_back_after_a_reset_to_the_same() -> None:
    """A SYN on a connection that is over is scheduled as any other: by the template."""
    b = Balancer(servers=4)
    set_service(b, servers=4, **persist(360))
    a = server_of(syn(b, 1000))
    b.send(from_server(4, TCP, a, 10001, "RA", 5000, 1001), 1)
    for n in range(4):
        syn(b, 1000, client=client(4, n + 1))
    assert server_of(syn(b, 1000)) == a


# --- several workers -------------------------------------------------------------------------------------------------

@FAMILIES
@WORKERS
@JOIN
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_any_worker_gives_the_same_server(af: int, workers: int, join: bool, proto: str) -> None:
    c = Cluster(workers, join=join, servers=4, sizes={"templates": 512})
    set_service(c, af, proto, servers=4, **persist(360, 32 if af == 4 else 128))
    send = syn if proto == "tcp" else ask
    had: dict[int, bytes] = {}
    for port in range(1000, 1012):
        for n in range(1, 33):
            got = server_of(send(c, port, af, client(af, n)))
            assert got == had.setdefault(n, got)
    assert len(set(had.values())) == 4
    assert c.totals("templates") == 32
    if workers > 1:
        assert 3 <= max(c.hops) <= 4 and c.totals("templates_asked")
        assert {m.engine.counters()["templates"] > 0 for m in c.members} == {True}
    else:
        assert max(c.hops) == 0
    if join and workers > 1:
        assert c.totals("templates_asked") <= 32  # only for new clients
    c.audit()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 2), (4, 1)])
def test_another_number_of_workers(before: int, after: int) -> None:
    """Their templates come along: each client keeps its real server, and whoever asks finds it where it is now."""
    old = Cluster(before, join=True, servers=4, sizes={"templates": 512})
    set_service(old, servers=4, **persist(360))
    had = {n: server_of(syn(old, 1000, client=client(4, n))) for n in range(1, 65)}
    new = Cluster(after, join=True, servers=4, sizes={"templates": 512})
    set_service(new, servers=4, **persist(360))
    new.members[0].engine.carry_templates(old.members[0].engine)
    for m in new.members:
        m.now = old.now
        m.engine.recover(m.now)
    assert new.totals("templates") == 64
    assert {n: server_of(syn(new, 2000, client=client(4, n))) for n in range(1, 65)} == had
    assert new.totals("templates_asked") == 0 and new.totals("templates") == 64
    new.audit()


def test_of_too_many_those_that_came_last_come_along() -> None:
    old = Cluster(4, join=True, servers=4, sizes={"templates": 64})
    set_service(old, servers=4, **persist(360))
    for n in range(1, 129):
        syn(old, 1000, client=client(4, n))
        old.later(1)
    new = Cluster(1, join=True, servers=4, sizes={"templates": 64})
    set_service(new, servers=4, **persist(360))
    new.members[0].engine.carry_templates(old.members[0].engine)
    kept = {net for _, _, net in new.members[0].engine.templates()}
    lost = {net for _, _, net in old.members[0].engine.templates()} - kept
    assert len(kept) == 64 and {client(4, n) for n in range(121, 129)} <= {net[:4] for net in kept} and lost


@JOIN
def test_while_flows_move(join: bool) -> None:
    """Another owner table, the previous one asked still: templates have their owners by another rule, and stay."""
    c = Cluster(2, join=join, servers=4, sizes={"templates": 512})
    set_service(c, 4, "udp", servers=4, **persist(360))
    had = {n: server_of(ask(c, 1000, client=client(4, n))) for n in range(1, 33)}
    old = [w % 2 for w in range(1024)]
    c.set_owner([w // 2 % 2 for w in range(1024)], old)
    for port in (1001, 1002):
        for n in range(1, 33):
            assert server_of(ask(c, port, client=client(4, n))) == had[n]
    assert max(c.hops) <= 5


@JOIN
def test_nobody_to_be_had_is_said_by_the_flows_owner(join: bool) -> None:
    c = Cluster(3, join=join)
    set_service(c, **persist(360))
    for n in (1, 2):
        set_server(c, n, up=False)
    for n in range(1, 20):
        r = syn(c, 1000, client=client(4, n))
        assert (r.verdict, r.reason) == ("drop", "no_backend")
    assert c.totals("templates") == 0


def test_one_asked_too_late_opens_all_the_same() -> None:
    """Two first packets of one client cross: the second finds the template that the first one's owner made."""
    c = Cluster(2, join=False, servers=4)
    set_service(c, servers=4, **persist(360))
    frames = [from_client(4, TCP, port, "S", 1000) for port in range(1000, 1040)]
    servers = set()
    under_way = []
    for frame in frames:
        for w, m in enumerate(c.members):
            r = m.send(frame)
            if r.verdict == "handover" and r.hand:
                under_way.append((w, frame, r))
                break
            if r.verdict == "forward":
                servers.add(server_of(r))
                break
    for w, frame, r in under_way:
        answer = c.members[r.owner].send(frame, handed=True, hops=1, hand=r.hand)
        assert (answer.verdict, answer.owner) == ("handover", w)
        servers.add(server_of(c.members[w].send(frame, handed=True, hops=2, hand=answer.hand)))
    assert len(servers) == 1 and under_way


@pytest.mark.parametrize("hand", [0x80000000 | 1 << 16, 0x40000000, 0x4000FFFF, 0x40001234, 0xFFFFFFFF, 0x80FF0000, 5])
def test_what_another_worker_says_is_checked(hand: int) -> None:
    """Garbage with a hand-over: a verdict, whatever it is, and nothing of another service."""
    b = Balancer(workers=2)
    set_service(b, **persist(360))
    for port in range(1000, 1020):
        r = b.send(from_client(4, TCP, port, "S", 1000), handed=True, hops=2, hand=hand)
        assert r.verdict in ("forward", "drop", "handover")
        assert r.dest in (None, 0, 1)


# --- against a model -------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(1, 6)),
        st.tuples(st.just("close"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.sampled_from([1, 5, 11, 40])),
        st.tuples(st.just("weight"), st.tuples(st.integers(1, 3), st.booleans())),
        st.tuples(st.just("up"), st.tuples(st.integers(1, 3), st.booleans())),
    ),
    max_size=40,
)


class Model:
    """IPVS's rules: a template lasts TIMEOUT from the last connection opened; while one of its connections lives it is there; a
    real server that is down loses its clients. In between (a connection ended less than TIMEOUT ago) either is right."""

    TIMEOUT = 20.0

    def __init__(self) -> None:
        self.now = 0.0
        self.template: dict[int, tuple[bytes, float]] = {}
        self.live: dict[int, tuple[int, bytes]] = {}  # port -> client, server
        self.ended: dict[int, float] = {}  # client -> when its last connection of the template ended

    def must_get(self, client: int, down: set[bytes]) -> bytes | None:
        """None: whatever the scheduler says."""
        server, since = self.template.get(client, (b"", 0.0))
        if not server or server in down:
            return None
        lives = any(c == client and s == server for c, s in self.live.values())
        return server if lives or self.now - since < self.TIMEOUT - 0.2 else None

    def must_be_gone(self, client: int) -> bool:
        server, since = self.template.get(client, (b"", 0.0))
        lives = any(c == client and s == server for c, s in self.live.values())
        return bool(server) and not lives and self.now - max(since, self.ended.get(client, 0.0)) > self.TIMEOUT + 0.2


@settings(max_examples=120, deadline=None)
@given(steps=STEPS, workers=st.integers(1, 3), join=st.booleans())
def test_against_a_model(steps: list, workers: int, join: bool) -> None:
    c = Cluster(workers, join=join, servers=3)
    set_service(c, 4, "tcp", servers=3, **persist(Model.TIMEOUT), timeout_established=7200_000)
    weights, up = {1: 1, 2: 1, 3: 1}, {1: True, 2: True, 3: True}
    model, ports = Model(), count(1000)
    for verb, what in steps:
        down = {packed(server(4, n)) for n in up if not up[n]}
        if verb == "open":
            port, must = next(ports), model.must_get(what, down)
            r = syn(c, port, client=client(4, what))
            if must is None and r.verdict == "drop" and not any(up[n] and weights[n] for n in up):
                assert r.reason == "no_backend"
                continue
            got = server_of(r)
            assert must is None or got == must
            assert got not in down
            model.template[what] = (got, model.now)
            if join or workers == 1:  # else nobody hears that it lives but its own worker
                c.send(from_server(4, TCP, got, sent(r).sport, "SA", 5000, 1001), 1)
                c.send(from_client(4, TCP, port, "A", 1001, 5001, client=client(4, what)))
                model.live[port] = (what, got)
        elif verb == "close":
            if not model.live:
                continue
            port = sorted(model.live)[what % len(model.live)]
            who, had = model.live.pop(port)
            c.send(from_client(4, TCP, port, "R", 1001, 5001, client=client(4, who)))
            for _ in range(12):
                model.now += 1
                c.now += 1_000_000_000
                c.expire(c.now)  # TIME_WAIT's like, of 10 s, is over
            if model.template[who][0] == had:
                model.ended[who] = model.now
        elif verb == "wait":
            for _ in range(what):
                model.now += 1
                c.now += 1_000_000_000
                c.expire(c.now)
        else:
            n, value = what
            (weights if verb == "weight" else up)[n] = value
            set_server(c, n, servers=3, weight=int(weights[n]), up=up[n])
        there = {t[2][:4] for m in (c.members if not join else c.members[:1]) for t in m.engine.templates()}
        for n in range(1, 7):
            if model.must_be_gone(n):
                assert client(4, n) not in there
    c.audit_templates(3)

