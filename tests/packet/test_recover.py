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
    b.now += TIMEOUT[state] // 2 * MS
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
    assert b.engine.conns()[0]["svc"] is None
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
    """Two balancers live through the same; one is restarted now and then. They can't be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = [Balancer(servers=2, ports=(20000, 20040), sizes={"conns4": 64, "conns6": 64}) for _ in range(2)]
        self.flows: list[tuple[Flow, Flow]] = []

    @rule(state=st.sampled_from(sorted(TIMEOUT)), af=st.sampled_from([4, 6]))
    def start(self, state: str, af: int) -> None:
        port = 1024 + len(self.flows)
        first, second = (bring(b, state, af, port) for b in self.pair)
        self.flows.append((first, second))

    @rule(k=st.integers(0, 200), flags=st.sampled_from(["A", "FA", "RA", "S"]), real=st.booleans())
    def step(self, k: int, flags: str, real: bool) -> None:
        if not self.flows:
            return
        got = []
        for f in self.flows[k % len(self.flows)]:
            if isinstance(f, Udp):
                r = f.answer() if real else f.ask()
            elif isinstance(f, Tcp):
                r = f.real(flags) if real else f.client(flags)
            got.append((r.verdict, r.reason, r.svc, r.dest, f.server, f.lport))
        assert got[0] == got[1]

    @rule(ms=st.sampled_from([1, 100, 5_000, 31_000, 61_000]))
    def wait(self, ms: int) -> None:
        for b in self.pair:
            b.later(ms / 1000)

    @rule()
    def restart_one(self) -> None:
        b = self.pair[1]
        b.engine.recover(b.now)
        b.audit()

    @invariant()
    def they_are_the_same(self) -> None:
        tables = [sorted(b.engine.conns(), key=lambda c: (c["proto"], c["client"], c["expires_ms"])) for b in self.pair]
        for t in tables:
            for c in t:
                del c["expires_ms"]
        # what is due may be gone in one a wheel slot earlier than in the other; nothing here waits for less than 100 ms
        if tables[0] != tables[1]:
            for b in self.pair:
                b.later(0.6)
            tables = [sorted((c["proto"], c["client"], c["local"], c["state"]) for c in b.engine.conns()) for b in self.pair]
            assert tables[0] == tables[1]


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
