"""Local ports: never two live connections with the same (local address, port, real server, protocol), TIME_WAIT included, over
restarts too; none left is counted by address, and over when ports are free again.
"""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lbd.shm import _shm as shm
from tests.packet.balancer import MS, Balancer, packed
from tests.packet.cluster import Cluster
from tests.packet.flow import Flow, Tcp, Udp
from tests.packet.frame import TCP, from_client
from tests.unit.test_datapath_hash import KEY as RSS_KEY

FAMILIES = pytest.mark.parametrize("af", [4, 6])


def packet(sport: int) -> bytes:
    return from_client(4, TCP, sport, "S")


def tuples(b: Balancer) -> list[tuple]:
    return [(c["local"], c["real_server"], c["proto"]) for c in b.engine.conns()]


@FAMILIES
def test_used_up_and_free_again(af: int) -> None:
    b = Balancer(servers=1, ports=(20000, 20009))
    flows = [Tcp(b, af, 1000 + i).open() for i in range(10)]
    assert len(set(tuples(b))) == 10
    late = Tcp(b, af, 2000)
    assert (late.client("S").reason, late.client("S").reason) == ("local_port_exhausted",) * 2
    lip = 0 if af == 4 else 1
    assert b.engine.lip_stats(lip) == {"conns": 10, "exhausted": 2, "in_use": 10}
    assert b.engine.lip_stats(1 - lip)["exhausted"] == 0
    flows[3].client("RA")
    b.later(10.2)
    assert late.client("S").verdict == "forward"
    assert late.lport == flows[3].lport
    b.audit()


def test_ports_are_counted_for_each_real_server_and_protocol() -> None:
    """The same port serves once towards each real server, and once more for UDP."""
    b = Balancer(servers=3, ports=(20000, 20004))
    for i in range(15):
        assert Tcp(b, 4, 1000 + i).client("S").verdict == "forward"
        u = Udp(b, 4, 1000 + i)
        assert u.ask().verdict == "forward"
    assert Counter(t[0][1] for t in tuples(b)) == dict.fromkeys(range(20000, 20005), 6)
    assert Tcp(b, 4, 5000).client("S").reason == "local_port_exhausted"


def test_a_second_address_takes_over() -> None:
    b = Balancer(servers=1, ports=(20000, 20003))
    b.do(shm.lip_set(5, 1, af=4, addr=packed("10.77.0.3"), port_lo=20000, port_hi=20003, fresh=True))
    for i in range(8):
        assert b.send(packet(1000 + i)).verdict == "forward"
    assert Counter(c["local"][0] for c in b.engine.conns()) == {packed("10.77.0.2"): 4, packed("10.77.0.3"): 4}
    assert b.send(packet(5000)).reason == "local_port_exhausted"
    assert b.engine.lip_stats(0)["exhausted"] >= 1 and b.engine.lip_stats(5)["exhausted"] >= 1


def test_no_local_address() -> None:
    b = Balancer()
    for lip in (0, 1):
        b.do(shm.lip_del(lip, 2))
    assert Tcp(b).client("S").reason == "local_port_exhausted"


@FAMILIES
@pytest.mark.parametrize("restart", [False, True])
def test_the_servers_time_wait_holds_the_port(af: int, restart: bool) -> None:
    """60 s after the real server closed first, or both at once, its stack still answers for that tuple."""
    for simultaneous in (False, True):
        b = Balancer(servers=1, ports=(20000, 20000))
        b.do(shm.setting(shm.SET_PORT_REST, 60_000, 1))
        f = Tcp(b, af).open()
        if simultaneous:
            before = f.cseq
            f.client("FA")
            f.real("FA", ack=before)
        else:
            f.close_by_server()
        assert f.state == "TIME_WAIT"
        closed = b.now
        for second in (1, 10, 11, 30, 59, 59.9):
            b.now = closed + int(second * 1000) * MS
            if restart:
                b.engine.recover(b.now, fresh_tables=True)
            b.engine.expire(b.now)
            assert Tcp(b, af, 50000).client("S").reason == "local_port_exhausted", f"{second} s after"
        b.now = closed + 60_200 * MS
        b.engine.expire(b.now)
        assert Tcp(b, af, 50000).client("S").verdict == "forward"


@FAMILIES
def test_the_clients_time_wait_does_not(af: int) -> None:
    """The client closed first: the real server has forgotten the connection with the last ACK."""
    b = Balancer(servers=1, ports=(20000, 20000))
    f = Tcp(b, af).open()
    f.close_by_client()
    b.later(10.2)
    assert Tcp(b, af, 50000).client("S").verdict == "forward"


def test_stretches_of_long_lived_connections_block_nobody() -> None:
    """5,000 of 6,000 ports held in a row, for hours, and the next one in turn lies before them: others are found at once."""
    b = Balancer(servers=1, ports=(20000, 25999), sizes={"conns4": 8192})
    held = [Tcp(b, 4, 1024 + i).open() for i in range(5000)]
    for i in range(1000):
        f = Tcp(b, 4, 10000 + i).open()
        f.client("RA")
    b.later(11)
    assert b.engine.lip_stats(0)["in_use"] == len(held) == 5000
    assert {b.send(packet(20000 + i)).verdict for i in range(500)} == {"forward"}
    assert b.engine.lip_stats(0)["exhausted"] == 0


@FAMILIES
def test_a_burst_between_ports_in_use(af: int) -> None:
    """Many connections at once where two ports of three are held: each gets one of the free ones, none is left over or missing."""
    b = Balancer(servers=1, ports=(20000, 20095))
    flows = [Tcp(b, af, 1000 + i).open() for i in range(96)]
    for f in flows[::3]:
        f.client("RA")
    b.later(11)
    free = {f.lport for f in flows[::3]}
    held = {c["local"][1] for c in b.engine.conns()}
    new = [bytes(from_client(af, TCP, 2000 + i, "S")) for i in range(40)]
    # the first 20 meet ports in use, so that of the others they are looked at in advance
    results = [r for at in (0, 20) for r in b.burst(new[at : at + 20])]
    assert Counter(r.reason for r in results) == {"none": 32, "local_port_exhausted": 8}
    assert {c["local"][1] for c in b.engine.conns()} - held == free
    assert len(set(tuples(b))) == 96
    assert b.engine.lip_stats(0 if af == 4 else 1)["in_use"] == 96
    b.audit()


class Ports(RuleBasedStateMachine):
    """Everything that takes and frees ports, in any order; six ports and two real servers, so that they run out and come again."""

    def __init__(self) -> None:
        super().__init__()
        self.b = Balancer(servers=2, ports=(20000, 20005))
        self.flows: list[Flow] = []
        self.client = 1024
        # tuple → since when the real server holds it in TIME_WAIT, and the number that it expects there
        self.rests: dict[tuple, tuple[int, int]] = {}

    def judge(self, f: Flow) -> None:
        """The real server takes this SYN: it holds the tuple no longer, or after a rest the number is beyond the old ones."""
        mine = next(t for t in tuples(self.b) if t[0][1] == f.lport and t[1][0] == f.server and t[2] == f.proto)
        since, edge = self.rests.pop(mine, (-(10**12), 0))
        if self.b.now < since + 60_000 * MS:
            assert isinstance(f, Tcp) and self.b.now >= since + 1_000 * MS, "the real server still holds this tuple"
            assert 0 < (f.cseq - 1 + f.moved - edge) % 2**32 < 2**31, "this number is an old one to the real server"

    def new(self, f: Flow, verdict: str) -> None:
        if verdict != "forward":
            return
        self.judge(f)
        self.flows.append(f)

    @rule(af=st.sampled_from([4, 6]), isn=st.integers(0, 2**32 - 1))
    def open_tcp(self, af: int, isn: int) -> None:
        self.client += 1
        f = Tcp(self.b, af, self.client, isn=isn)
        r = f.client("S")
        assert r.reason in ("none", "local_port_exhausted")
        self.new(f, r.verdict)
        if r.verdict == "forward":
            f.real("SA")
            f.client("A")

    @rule(af=st.sampled_from([4, 6]))
    def half_open(self, af: int) -> None:
        self.client += 1
        f = Tcp(self.b, af, self.client)
        self.new(f, f.client("S").verdict)

    @rule()
    def ask(self) -> None:
        self.client += 1
        u = Udp(self.b, 4, self.client)
        self.new(u, u.ask().verdict)

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), how=st.sampled_from(["client", "server", "both", "reset"]))
    def close(self, data: st.DataObject, how: str) -> None:
        f = data.draw(st.sampled_from(self.flows))
        if not isinstance(f, Tcp) or f.state != "ESTABLISHED":
            return
        record = f.record
        mine = (record["local"], record["real_server"], record["proto"])
        if how == "client":
            f.close_by_client()
        elif how == "reset":
            f.client("RA")
        else:
            before = f.cseq
            if how == "server":
                f.close_by_server()
            else:
                f.client("FA")
                f.real("FA", ack=before)
                f.client("A")
            self.rests[mine] = self.b.now, f.cseq + f.moved

    @precondition(lambda self: self.flows)
    @rule(data=st.data())
    def the_client_uses_its_port_again(self, data: st.DataObject) -> None:
        """Scheduled as any new connection; towards a real server that it had before, by the port that it had there."""
        f = data.draw(st.sampled_from(self.flows))
        if not isinstance(f, Tcp) or f.state not in ("TIME_WAIT", "CLOSE", "LAST_ACK"):
            return
        had = {c["real_server"][0]: c["local"][1] for c in self.b.engine.conns() if c["client"] == (f.address, f.sport)}
        f.cseq += 100_000
        r = f.client("S")
        assert r.reason in ("none", "local_port_exhausted")
        if r.verdict != "forward":
            return
        if f.server in had:
            assert f.lport == had[f.server]
        else:
            self.judge(f)
        f.real("SA")
        f.client("A")
        record = f.record
        self.rests.pop((record["local"], record["real_server"], record["proto"]), None)

    @rule(seconds=st.sampled_from([0.2, 1, 9.9, 10.3, 59.5, 60.3, 130, 901]))
    def wait(self, seconds: float) -> None:
        self.b.later(seconds)

    @rule(fresh=st.booleans())
    def restart(self, fresh: bool) -> None:
        before = sorted(tuples(self.b))
        assert self.b.engine.recover(self.b.now, fresh) == len(before)
        assert sorted(tuples(self.b)) == before

    @invariant()
    def no_tuple_twice(self) -> None:
        assert max(Counter(tuples(self.b)).values(), default=1) == 1
        self.b.audit()


TestPorts = Ports.TestCase
TestPorts.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


@FAMILIES
@pytest.mark.parametrize("known", [False, True], ids=["hash", "rss"])
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_have_equal_shares_of_the_ports(workers: int, known: bool, af: int) -> None:
    """Together they use every one: none is left to nobody, and none has much more than another when clients are refused."""
    ports = 60 * workers
    c = Cluster(workers, servers=1, ports=(20000, 20000 + ports - 1))
    if known:
        c.set_rss(RSS_KEY, False)
    lip = 0 if af == 4 else 1

    def held() -> list[int]:
        return [m.engine.lip_stats(lip)["in_use"] for m in c.members]

    verdicts = Counter(c.send(from_client(af, TCP, 1024 + n, "S")).verdict for n in range(ports // 2))
    assert verdicts == {"forward": ports // 2}, "half of them are there for anybody"
    assert min(held()) > 15
    for n in range(5 * ports):
        c.send(from_client(af, TCP, 10000 + n, "S"))
    assert sum(held()) == ports and min(held()) > 38, held()
    assert len({r["local"] for r in c.conns()}) == ports
    assert sum(m.engine.lip_stats(lip)["exhausted"] for m in c.members) > 0
    c.audit()
