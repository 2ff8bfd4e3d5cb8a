"""When connections end: after their state's timeout since the last packet, never before, at most one wheel slot (128 ms) later.

The clock is the test's; nothing sleeps. Every test also runs across the wrap of the 32-bit millisecond clock (49 days).
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from lbd.shm import _shm as shm
from tests.packet.balancer import MS, Balancer
from tests.packet.flow import Flow, Tcp, Udp
from tests.packet.standing import service

FAMILIES = pytest.mark.parametrize("af", [4, 6])
CLOCKS = pytest.mark.parametrize("start_ms", [1_000, 2**32 - 1_500, 2**32 + 77], ids=["early", "wraps", "wrapped"])
SLOT = 128
LATE = 300_000 // 64  # an unanswered flow's queue is in order of age to a 64th of its time
STATES = ["NONE", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "FIN_WAIT", "TIME_WAIT", "CLOSE", "UDP", "UDP_ONEWAY"]
TIMEOUT = {  # ms; the engine's defaults, IPVS's but for TIME_WAIT
    "SYN_RECV": 60_000, "ESTABLISHED": 900_000, "CLOSE_WAIT": 60_000, "LAST_ACK": 30_000, "FIN_WAIT": 120_000,
    "TIME_WAIT": 60_000, "CLOSE": 10_000, "UDP": 300_000, "UDP_ONEWAY": 300_000,
}  # fmt: skip


def bring(b: Balancer, state: str, af: int, sport: int = 40000) -> Flow:
    """A flow in this state, its last packet now."""
    if state.startswith("UDP"):
        u = Udp(b, af, sport)
        u.ask()
        if state == "UDP":
            u.answer()
        return u
    f = Tcp(b, af, sport)
    if state == "SYN_RECV":
        f.client("S")
        return f
    f.open()
    if state in ("CLOSE_WAIT", "LAST_ACK"):
        f.client("FA")
        if state == "LAST_ACK":
            f.real("FA")
    elif state in ("FIN_WAIT", "TIME_WAIT"):
        f.real("FA")
        if state == "TIME_WAIT":
            f.client("FA")
    elif state == "CLOSE":
        f.client("RA")
    assert f.state == state
    return f


def at(b: Balancer, ms: float) -> None:
    b.now = int(ms * MS)
    b.engine.expire(b.now)


@FAMILIES
@CLOCKS
@pytest.mark.parametrize("state", TIMEOUT)
def test_each_state_ends_in_time(state: str, start_ms: int, af: int) -> None:
    b = Balancer(start_ms=start_ms)
    f = bring(b, state, af)
    due = start_ms + TIMEOUT[state]
    for ms in range(start_ms, due, TIMEOUT[state] // 7):
        at(b, ms)
    at(b, due - 1)
    assert f.state, "ended early"
    at(b, due + SLOT)
    assert not f.state, "still there"
    b.audit()
    index = 1 if state == "CLOSE" else 0
    assert b.engine.counters()["conns_expired"][index] == 1


@CLOCKS
@pytest.mark.parametrize("state", ["ESTABLISHED", "UDP", "UDP_ONEWAY", "TIME_WAIT"])
def test_a_packet_gives_the_whole_time_again(state: str, start_ms: int) -> None:
    b = Balancer(start_ms=start_ms)
    f = bring(b, state, 4)
    last = start_ms + TIMEOUT[state] - 50
    at(b, last)
    if isinstance(f, Udp):
        f.ask()
    else:
        f.client("A")
    at(b, last + TIMEOUT[state] - 1)
    assert f.state
    at(b, last + TIMEOUT[state] + SLOT)
    assert not f.state


def test_a_client_that_only_repeats_its_syn_gets_no_more_time() -> None:
    b = Balancer()
    f = bring(b, "SYN_RECV", 4)
    for s in (1, 3, 7, 15, 31, 59):
        at(b, 1_000 + s * 1000)
        f.client("S", seq=f.cseq - 1)
    at(b, 1_000 + TIMEOUT["SYN_RECV"] + SLOT)
    assert not f.state


def test_one_way_udp_keeps_its_real_server() -> None:
    """Syslog, telemetry: never answered, for hours; not moved to another server every five minutes."""
    b = Balancer()
    u = Udp(b)
    u.ask()
    first = (u.server, u.lport)
    for s in range(0, 7200, 10):
        at(b, 1_000 + s * 1000)
        assert u.ask().verdict == "forward"
    assert (u.server, u.lport) == first and b.engine.counters()["conns_made"] == 1
    b.audit()


def test_unanswered_flows_that_send_on_are_in_order_of_age_to_a_64th() -> None:
    """Flows that send at moments of their own, each for the last time, end in time, or so much later; then those that never did."""
    b = Balancer(start_ms=10_000)
    ends = {}
    flows = [bring(b, "UDP_ONEWAY", 4, 30_000 + n) for n in range(40)]
    for step in range(200):
        at(b, 10_000 + step * 331)
        for n, f in enumerate(flows):
            if (step * 7 + n) % (3 + n % 11) == 0 and step < 100 + n:
                assert isinstance(f, Udp)
                f.ask()
                ends[f] = b.now // MS + TIMEOUT["UDP"]
    for ms in range(min(ends.values()) - 1_000, max(ends.values()) + LATE + 1_000, 97):
        at(b, ms)
        for f, due in ends.items():
            assert f.state or ms >= due, f"{due - ms} ms early"
            assert not f.state or ms < due + LATE + SLOT, f"{ms - due} ms late"
    b.audit()


def test_of_unanswered_flows_the_silent_ones_go_first_once_the_table_fills() -> None:
    """With less than an eighth of the records left, a flow that sends goes back to the queue's end, however short it was silent."""
    b = Balancer(sizes={"conns4": 256})
    speaks = [bring(b, "UDP_ONEWAY", 4, n) for n in range(1, 101)]
    silent = [bring(b, "UDP_ONEWAY", 4, n) for n in range(101, 226)]
    at(b, 1_000 + 2 * SLOT)
    for f in speaks:
        assert isinstance(f, Udp)
        f.ask()
    for n in range(1000, 1000 + 31 + len(silent)):
        bring(b, "UDP_ONEWAY", 4, n)
    assert all(f.state for f in speaks) and not any(f.state for f in silent)
    b.audit()


@FAMILIES
def test_timeouts_are_settings(af: int) -> None:
    b = Balancer()
    b.do(shm.setting(16 + STATES.index("ESTABLISHED"), 5000, 1))
    short, long = Tcp(b, af, 1).open(), Tcp(b, af, 2).open()
    at(b, 1_000 + 4999)
    assert short.state
    long.client("A")
    at(b, 1_000 + 5000 + SLOT)
    assert (short.state, long.state) == ("", "ESTABLISHED")


def test_a_services_own_timeout() -> None:
    b = Balancer()
    b.do(shm.svc_set(0, 2, af=4, addr=bytes([192, 0, 2, 10]), port=80, proto=6, sched=shm.SCHED_SEQ, table_off=0, table_len=2,
                     timeout_established=3_000_000))  # fmt: skip
    f, other = Tcp(b, 4).open(), Tcp(b, 6).open()
    at(b, 1_000 + 900_000 + SLOT)
    assert (f.state, other.state) == ("ESTABLISHED", "")
    at(b, 1_000 + 3_000_000 + SLOT)
    assert not f.state


OWN = {"ESTABLISHED": 700_000, "CLOSE_WAIT": 200_000, "LAST_ACK": 200_000, "FIN_WAIT": 200_000, "TIME_WAIT": 200_000,
       "UDP": 20_000, "UDP_ONEWAY": 20_000}  # fmt: skip


@FAMILIES
@pytest.mark.parametrize("state", TIMEOUT)
def test_a_services_own_timeout_of_each_state(state: str, af: int) -> None:
    b = Balancer()
    proto = "udp" if state.startswith("UDP") else "tcp"
    service(b, af, proto, timeout_established=700_000, timeout_fin=200_000, timeout_udp=20_000)
    f, other = bring(b, state, af), bring(b, state, 10 - af)
    due, theirs = 1_000 + OWN.get(state, TIMEOUT[state]), 1_000 + TIMEOUT[state]
    for ms in sorted({due - 1, due + SLOT, theirs - 1, theirs + SLOT}):
        at(b, ms)
        for flow, end in ((f, due), (other, theirs)):
            if ms < end:
                assert flow.state, f"ended {end - ms} ms early"
            elif ms >= end + SLOT:
                assert not flow.state, f"{ms - end} ms late"
        b.audit()


@pytest.mark.parametrize("own", [5_000, 400_000, 3_000_000])
def test_unanswered_flows_of_different_timeouts_do_not_hold_each_other_up(own: int) -> None:
    """They lie in one queue by age, until the least of the timeouts; who has more goes on into the wheel."""
    b = Balancer()
    service(b, 4, "udp", timeout_udp=own)
    flows: list[tuple[Flow, int]] = []
    for n in range(40):
        af = 4 if n % 3 else 6
        at(b, 1_000 + n * 700)
        flows.append((bring(b, "UDP_ONEWAY", af, 30000 + n), 1_000 + n * 700 + (own if af == 4 else TIMEOUT["UDP"])))
    for ms in range(29_000, max(due for _, due in flows) + 2_000, 997):
        at(b, ms)
        for f, due in flows:
            assert bool(f.state) == (ms < due) or due <= ms < due + SLOT
    b.audit()


def test_a_flood_is_evicted_oldest_first_with_an_own_timeout() -> None:
    """While they are in the queue; beyond it they still make room."""
    b = Balancer(sizes={"conns4": 256})
    service(b, 4, "udp", timeout_udp=3_000_000)
    first = bring(b, "UDP_ONEWAY", 4, 1)
    for n in range(2, 257):
        bring(b, "UDP_ONEWAY", 4, n)
    at(b, 2_000)
    assert first.state
    bring(b, "UDP_ONEWAY", 4, 300)
    assert not first.state
    at(b, 1_000 + TIMEOUT["UDP"] + SLOT)
    assert len(b.engine.conns()) == 256, "longer than the queue's time"
    for n in range(400, 500):
        assert bring(b, "UDP_ONEWAY", 4, n).state == "UDP"
    assert b.engine.counters()["conns_expired"][3] == 101
    b.audit()


def test_timeouts_beyond_the_clocks_reach_are_refused() -> None:
    b = Balancer()
    for name in ("timeout_established", "timeout_fin", "timeout_udp"):
        assert not b.engine.apply(shm.svc_set(0, 2, af=4, addr=bytes([192, 0, 2, 10]), port=80, proto=6, sched=0, **{name: 2**30}))
    for ms in (2**30, 2**31, 2**32, 2**63):
        assert not b.engine.apply(shm.setting(18, ms, 1))
    f = Tcp(b).open()
    at(b, 2_000)
    assert f.state


@pytest.mark.parametrize("behind_ms", [1, 128, 256, 300, 512, 1_000, 130_000, 131_072, 140_000, 10**6])
def test_a_look_after_any_pause_costs_what_is_there(behind_ms: int) -> None:
    """Nobody has looked for a while, and nothing is due: a record is looked at twice at most, and the wheel catches up."""
    b = Balancer()
    b.do(shm.setting(18, 10**8, 1))
    for i in range(50):
        Tcp(b, 4, 1000 + i).open()
    b.now += behind_ms * MS
    b.engine.expire(b.now, budget=120)
    looked_again = b.now
    b.engine.expire(looked_again, budget=120)
    f = Tcp(b, 4, 5000).open()
    f.client("R")
    assert f.state == "CLOSE"
    b.now += (TIMEOUT["CLOSE"] + SLOT) * MS
    b.engine.expire(b.now, budget=120)
    assert not f.state, "the wheel is stuck behind"
    assert len(b.engine.conns()) == 50


def test_a_clock_that_goes_back_ends_nothing() -> None:
    """Packets of a capture may be out of order."""
    b = Balancer(start_ms=10_000_000)
    f = Tcp(b).open()
    at(b, 9_990_000)
    at(b, 5_000_000)
    assert f.state
    at(b, 10_000_000 + TIMEOUT["ESTABLISHED"] - 1)
    assert f.state
    at(b, 10_000_000 + TIMEOUT["ESTABLISHED"] + 132_000)  # one turn: the wheel had been set back
    assert not f.state


class Clockwork(RuleBasedStateMachine):
    """Many flows, packets and looks at random times: at every look, exactly those that are due are gone."""

    flows = Bundle("flows")

    def __init__(self) -> None:
        super().__init__()
        self.b = Balancer(start_ms=2**32 - 200_000)
        self.ports = iter(range(1024, 60000))
        self.seen: dict[int, tuple[Flow, str, int]] = {}  # port → flow, state, time of the packet that counts

    @property
    def ms(self) -> int:
        return self.b.now // MS

    @rule(target=flows, state=st.sampled_from(sorted(TIMEOUT)), af=st.sampled_from([4, 6]))
    def start(self, state: str, af: int) -> int:
        port = next(self.ports)
        self.seen[port] = (bring(self.b, state, af, port), state, self.ms)
        return port

    @rule(port=flows)
    def touch(self, port: int) -> None:
        """A packet from the client that leaves the state alone."""
        f, state, since = self.seen.get(port, (None, "", 0))
        if f is None or self.ms >= since + TIMEOUT[state]:
            return
        if isinstance(f, Udp):
            f.ask()
        elif isinstance(f, Tcp):
            f.client("S" if state == "SYN_RECV" else "A", seq=f.cseq - 1)
        if state in ("SYN_RECV", "LAST_ACK"):
            assert f.state in ("SYN_RECV", "LAST_ACK", "CLOSE")
            if state == "LAST_ACK":
                self.seen[port] = (f, "CLOSE", self.ms)
            return
        self.seen[port] = (f, state, self.ms)

    @rule(ms=st.integers(1, 200) | st.sampled_from([127, 128, 129, 9_999, 29_999, 60_000, 131_072, 299_999, 900_000]))
    def wait(self, ms: int) -> None:
        self.b.now += ms * MS
        self.b.engine.expire(self.b.now)

    @invariant()
    def those_that_are_due_are_gone(self) -> None:
        there = {c["client"][1] for c in self.b.engine.conns()}
        for port, (_, state, since) in list(self.seen.items()):
            idle = self.ms - since
            if idle < TIMEOUT[state]:
                assert port in there, f"{state} ended {TIMEOUT[state] - idle} ms early"
            elif idle >= TIMEOUT[state] + SLOT + (LATE if state == "UDP_ONEWAY" else 0):
                assert port not in there, f"{state} is {idle - TIMEOUT[state]} ms late"
            if port not in there:
                del self.seen[port]
        self.b.audit()


TestClockwork = Clockwork.TestCase
TestClockwork.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
