"""A worker was killed and a new process takes its table over: index, timers, queues and counts come back from the records alone."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lbd.shm import _shm as shm
from tests.packet.balancer import MS, Balancer
from tests.packet.flow import Flow, Tcp, Udp
from tests.packet.frame import TCP, UDP
from tests.packet.test_table_full import flood, spoofed
from tests.packet.test_timeout import SLOT, TIMEOUT, at, bring

FAMILIES = pytest.mark.parametrize("af", [4, 6])
FRESH = pytest.mark.parametrize("fresh", [False, True], ids=["same segment", "new segment"])


@FAMILIES
@FRESH
@pytest.mark.parametrize("state", TIMEOUT)
def test_every_state_comes_back(state: str, fresh: bool, af: int) -> None:
    """And ends when it would have ended: the time before the restart counts."""
    b = Balancer()
    f = bring(b, state, af)
    at(b, 1_000 + TIMEOUT[state] // 2)
    before = b.engine.conns(), b.engine.used()
    assert b.engine.recover(b.now, fresh) == 1
    assert (b.engine.conns(), b.engine.used()) == before
    b.audit()
    at(b, 1_000 + TIMEOUT[state] - 1)
    assert f.state
    at(b, 1_000 + TIMEOUT[state] + SLOT)
    assert not f.state
    b.audit()


@FAMILIES
@FRESH
def test_flows_go_on(fresh: bool, af: int) -> None:
    b = Balancer()
    tcp, udp = [Tcp(b, af, 1024 + i).open() for i in range(30)], [Udp(b, af, 3000 + i) for i in range(30)]
    for u in udp:
        u.ask()
        u.answer()
    ends = [(f.server, f.lport) for f in (*tcp, *udp)]
    for _ in range(3):
        b.engine.recover(b.now, fresh)
        for t in tcp:
            assert t.client("PA", b"x").verdict == "forward"
            assert t.real("PA", b"y").verdict == "forward"
        for u in udp:
            assert u.ask().verdict == "forward" and u.answer().verdict == "forward"
        assert [(f.server, f.lport) for f in (*tcp, *udp)] == ends
        b.audit()


def test_an_answer_before_the_client_speaks_again() -> None:
    """With a new segment the way back isn't known until the client's next packet: dropped by name, not sent anywhere."""
    b = Balancer()
    f = Tcp(b).open()
    b.engine.recover(b.now, True)
    assert f.real("PA", b"x").reason == "no_route"
    assert f.client("A").verdict == "forward"
    assert f.real("PA", b"x").verdict == "forward"


@FAMILIES
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_half_open_ones_keep_their_age(proto: int, af: int) -> None:
    """The oldest are evicted first after a restart too: to a 1024th of the timeout (0.3 s)."""
    b = Balancer(sizes={"conns4": 256, "conns6": 256})
    for k in range(4):
        order = (2, 0, 3, 1)[k]  # records are not in order of age
        flood(b, af, proto, 64, first=order * 64)
        b.now += 500 * MS
    b.engine.recover(b.now, True)
    b.audit()
    flood(b, af, proto, 128, first=1000)
    left = {c["client"][0] for c in b.engine.conns()}
    old = {spoofed(af, i) for order in (3, 1) for i in range(order * 64, order * 64 + 64)}
    assert left == old | {spoofed(af, i) for i in range(1000, 1128)}


def test_services_that_changed_numbers_are_found_again() -> None:
    """The daemon was started anew with another configuration order: records find their service and real server by address."""
    b = Balancer(servers=2)
    f, gone = Tcp(b, 4).open(), Tcp(b, 6).open()
    server = f.server
    for svc in range(4):
        b.do(shm.svc_del(svc, 2))
    for dest in range(8):
        b.do(shm.dest_del(dest, 2))
    b.engine.recover(b.now, True)
    assert b.engine.conns()[0]["svc"] == 0, "it counts until it is over, or its service is back"
    b.do(shm.dest_set(70, 3, af=4, addr=server, port=8080, svc=9, fresh=True))
    b.engine.set_table(1000, [70])
    b.do(shm.svc_set(9, 3, af=4, addr=bytes([192, 0, 2, 10]), port=80, proto=6, sched=0, table_off=1000, table_len=1, fresh=True))
    assert f.client("PA", b"x").verdict == "forward" and f.server == server
    record = f.record
    assert (record["svc"], record["dest"]) == (9, 70)
    assert [b.engine.dest_stats(70)[k] for k in ("active", "inactive", "in_pkts")] == [1, 0, 1]
    assert gone.client("A").verdict == "forward", "a flow whose service is gone ends in its own time"
    f.client("RA")
    b.later(11)
    assert [b.engine.dest_stats(70)[k] for k in ("active", "inactive")] == [0, 0]


class Restarts(RuleBasedStateMachine):
    """A restart after anything at all: the same connections, and every flow that is alive keeps its real server and port."""

    def __init__(self) -> None:
        super().__init__()
        self.b = Balancer(servers=2, ports=(20000, 20040), sizes={"conns4": 64, "conns6": 64})
        self.flows: list[Flow] = []

    @rule(state=st.sampled_from(sorted(TIMEOUT)), af=st.sampled_from([4, 6]))
    def start(self, state: str, af: int) -> None:
        if self.b.engine.used()[f"conns{af}"] < 40:
            self.flows.append(bring(self.b, state, af, 1024 + len(self.flows)))

    @rule(k=st.integers(0, 200), flags=st.sampled_from(["A", "FA", "RA", "S"]), real=st.booleans())
    def step(self, k: int, flags: str, real: bool) -> None:
        if not self.flows:
            return
        f = self.flows[k % len(self.flows)]
        alive, before = bool(f.state), (f.server, f.lport)
        if isinstance(f, Udp):
            r = f.answer() if real else f.ask()
        elif isinstance(f, Tcp):
            r = f.real(flags) if real else f.client(flags)
        if alive and flags != "S":
            assert r.verdict == "forward" and (f.server, f.lport) == before

    @rule(ms=st.sampled_from([1, 100, 5_000, 31_000, 61_000]))
    def wait(self, ms: int) -> None:
        self.b.later(ms / 1000)

    @rule()
    def restart(self) -> None:
        before = self.b.engine.conns(), self.b.engine.used()
        assert self.b.engine.recover(self.b.now) == len(before[0])
        assert (self.b.engine.conns(), self.b.engine.used()) == before

    @invariant()
    def adds_up(self) -> None:
        self.b.audit()


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@FAMILIES
def test_what_is_gone_counts_until_it_is_over(af: int) -> None:
    """A service, its real servers and a local address were removed, then the worker was killed: the master asks by these numbers
    whether the kernel may have the addresses back."""
    b = Balancer(servers=1)
    f = Tcp(b, af).open()
    number = f.record["svc"] if f.record else None
    lip = 0 if af == 4 else 1
    b.do(shm.svc_del(number, 3))
    b.do(shm.dest_del(number, 3))
    b.do(shm.lip_del(lip, 3))
    b.engine.recover(b.now, False)
    assert b.engine.service_stats(number)["active"] == 1 and b.engine.lip_stats(lip)["in_use"] == 1
    assert (f.client("PA", b"x").verdict, f.real("PA", b"y").verdict) == ("forward", "forward")
    f.client("RA")
    b.later(20)
    assert b.engine.service_stats(number)["active"] == 0 == b.engine.lip_stats(lip)["in_use"]


@FAMILIES
def test_of_two_records_of_one_client_the_later_stays(af: int) -> None:
    """Two workers' files became one: at the one the connection is over, at the other it goes on."""
    old, new = Balancer(servers=1), Balancer(servers=1, ports=(30000, 40000))
    first = Tcp(old, af).open()
    first.close_by_server()
    new.now = old.now + 5_000 * MS
    second = Tcp(new, af).open()
    for into, gone in ((new, old), (old, new)):
        into.now = new.now
        if into is old:
            old = Balancer(servers=1)
            Tcp(old, af).open().close_by_server()
            into = old
            into.now = new.now
        assert into.engine.take_in(gone.engine)[0] >= 1
        assert into.engine.recover(into.now, False) == 1
        [c] = into.engine.conns()
        assert c["state"] == "ESTABLISHED" and c["local"][1] == second.lport
        into.audit()
