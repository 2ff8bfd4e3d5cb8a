"""A drained real server's connections end: the records at once, or with a RST to both ends that each believes."""

import pytest

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MS, VIP, Balancer, packed, server
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import FLAGS, TCP, from_client, read
from tests.packet.standing import dest, index_of
from tests.packet.test_reuse import reopened

FAMILIES = pytest.mark.parametrize("af", [4, 6])
END, RESET = shm.DEST_END, shm.DEST_END | shm.DEST_RESET
RST = FLAGS["R"] | FLAGS["A"]


def drained(b: Balancer, af: int, flags: int, proto: str = "tcp", count: int = 6) -> tuple[list[Tcp], list[Tcp]]:
    """Flows of the real server that is drained to its end now, and the others."""
    flows = [Tcp(b, af, 40000 + n).open() for n in range(count)]
    for f in flows:
        f.client("PA", b"q")
        f.real("PA", b"answer")
    gone = flows[0].server
    assert gone is not None
    dest(b, af, index_of(b, af, gone), proto, weight=0, flags=flags)
    return [f for f in flows if f.server == gone], [f for f in flows if f.server != gone]


@FAMILIES
def test_records_go(af: int) -> None:
    b = Balancer()
    ended, kept = drained(b, af, END)
    assert b.engine.ending(b.now) == []
    assert all(f.state == "" for f in ended) and all(f.state == "ESTABLISHED" for f in kept)
    assert [f.client("A").reason for f in ended] == ["no_state"] * len(ended)
    assert all(f.client("A").verdict == "forward" for f in kept)
    b.audit()


@FAMILIES
def test_both_ends_are_told(af: int) -> None:
    b = Balancer()
    ended, kept = drained(b, af, RESET)
    told = [(iface, read(frame)) for iface, frame in b.engine.ending(b.now)]
    assert len(told) == 2 * len(ended) == b.engine.counters()["resets_sent"]
    for f in ended:
        [to_client] = [p for iface, p in told if iface == 0 and p.dport == f.sport]
        assert (to_client.src, to_client.dst, to_client.sport) == (packed(VIP[af]), f.address, 80)
        assert (to_client.seq, to_client.ack, to_client.flags) == (f.sseq, f.cseq, RST)
        [to_server] = [p for iface, p in told if iface == 1 and p.sport == f.lport]
        assert (to_server.src, to_server.dst, to_server.dport) == (packed(LIP[af]), f.server, 8080)
        assert (to_server.seq, to_server.ack, to_server.flags) == (f.cseq, f.sseq, RST)
        assert f.state == "CLOSE"
    assert all(f.state == "ESTABLISHED" for f in kept)
    b.audit()
    b.later(11)
    assert len(b.engine.conns()) == len(kept)
    b.audit()


@FAMILIES
def test_who_missed_it_is_told_again(af: int) -> None:
    """Packets under way make a RST's number old; the receiver asks (RFC 5961), and is answered with the number that it names."""
    b = Balancer()
    [f, *_], _ = drained(b, af, RESET)
    b.engine.ending(b.now)
    for _ in range(2):
        p = read(f.client("A").out[0][1])
        assert (p.flags, p.seq, p.dst) == (FLAGS["R"], f.sseq, f.address)
        p = read(f.real("PA", b"late").out[0][1])
        assert (p.flags, p.seq, p.dst, p.dport) == (FLAGS["R"], f.cseq, f.server, 8080)
    assert f.client("RA").out == []


@FAMILIES
def test_each_end_in_its_own_numbers(af: int) -> None:
    """A connection whose numbers lbd moves: by a port that the real server held in TIME_WAIT."""
    b, f = reopened(af, 5)
    assert f.moved
    f.client("PA", b"q")
    f.real("PA", b"answer")
    dest(b, af, 1, weight=0, flags=RESET)
    to_server, to_client = sorted((read(frame) for _, frame in b.engine.ending(b.now)), key=lambda p: p.dport != 8080)
    assert (to_server.dst, to_server.seq, to_server.ack) == (f.server, f.cseq + f.moved, f.sseq)
    assert (to_client.dst, to_client.seq, to_client.ack) == (f.address, f.sseq, f.cseq)
    assert read(f.real("A").out[0][1]).seq == f.cseq + f.moved
    b.audit()


@FAMILIES
def test_a_few_at_a_time(af: int) -> None:
    b = Balancer()
    ended, _ = drained(b, af, RESET, count=40)
    told, rounds = 0, 0
    while rounds < 10_000 and len([f for f in ended if f.state == "ESTABLISHED"]):
        told += len(b.engine.ending(b.now, 16))
        rounds += 1
    assert rounds > 60 and told == 2 * len(ended)
    b.audit()


@FAMILIES
def test_half_open_ones_too(af: int) -> None:
    b = Balancer()
    f, g = Tcp(b, af, 1), Tcp(b, af, 3)
    f.client("S")
    Tcp(b, af, 2).client("S")
    g.client("S")
    g.real("SA")
    assert f.server == g.server is not None
    dest(b, af, index_of(b, af, f.server), weight=0, flags=RESET)
    told = [read(frame) for iface, frame in b.engine.ending(b.now) if iface == 0]
    assert {(p.dport, p.seq, p.ack, p.flags) for p in told} == {(1, 0, f.cseq, RST), (3, g.sseq, g.cseq, RST)}
    b.audit()


@FAMILIES
def test_udp_has_nobody_to_tell(af: int) -> None:
    b = Balancer()
    u = Udp(b, af)
    u.ask()
    u.answer()
    before = u.server
    assert before is not None
    dest(b, af, index_of(b, af, before), "udp", weight=0, flags=RESET)
    assert b.engine.ending(b.now) == [] and u.state == ""
    assert u.ask().verdict == "forward" and u.server != before
    b.audit()


@FAMILIES
def test_a_client_that_sends_first_is_answered(af: int) -> None:
    b = Balancer()
    [f, *_], _ = drained(b, af, RESET)
    b.do(shm.route_set(9, af=4, prefix=packed("10.250.0.0"), plen=24, iface=1))  # nothing is settled any more
    p = read(f.client("PA", b"q").out[0][1])
    assert (p.flags, p.seq) == (FLAGS["R"], f.sseq) and f.state == "ESTABLISHED"
    assert len([1 for iface, _ in b.engine.ending(b.now) if iface == 1]) >= 1 and f.state == "CLOSE"


@FAMILIES
def test_a_new_connection_from_the_same_port(af: int) -> None:
    b = Balancer()
    [f, *_], _ = drained(b, af, RESET)
    b.engine.ending(b.now)
    before = f.server
    f.cseq += 100_000
    f.open()
    assert f.server != before and f.client("PA", b"q").verdict == "forward"
    b.audit()


@FAMILIES
def test_undrained(af: int) -> None:
    b = Balancer()
    [f, *_], _ = drained(b, af, END)
    b.engine.ending(b.now)
    assert f.server is not None
    dest(b, af, index_of(b, af, f.server))
    for n in range(2):
        g = Tcp(b, af, 50000 + n).open()
        assert g.client("PA", b"q").verdict == "forward"
    assert b.engine.ending(b.now) == []
    b.audit()


@FAMILIES
def test_a_successor_goes_on_where_it_was_killed(af: int) -> None:
    b = Balancer()
    ended, kept = drained(b, af, RESET, count=20)
    b.engine.ending(b.now, 1500)  # it is somewhere in the middle
    b.engine.recover(b.now)
    b.do(shm.nop(3))
    told = b.engine.ending(b.now)
    assert all(f.state == "CLOSE" for f in ended) and all(f.state == "ESTABLISHED" for f in kept)
    assert len(told) <= 2 * len(ended)
    b.audit()


@FAMILIES
@pytest.mark.parametrize("mode", [shm.MODE_NAT, shm.MODE_DR, shm.MODE_TUNNEL])
def test_in_every_mode(mode: int, af: int) -> None:
    """Past lbd go the real server's answers in dr and tunnel: its numbers are not known, so the client is told when it sends."""
    b = Balancer(mode=mode, servers=1)
    b.send(from_client(af, TCP, 40000, "S", 1000))
    if mode == shm.MODE_NAT:
        from tests.packet.frame import from_server
        from tests.packet.test_orphan import readdressed

        b.send(readdressed(from_server(af, TCP, packed(server(af, 1)), 40000, "SA", 5000, 1001), af), 1)
    b.send(from_client(af, TCP, 40000, "A", 1001, 5001))
    b.send(from_client(af, TCP, 40000, "PA", 1001, 5001, b"quest"))
    assert b.engine.conns()[0]["state"] == "ESTABLISHED"
    dest(b, af, 1, weight=0, flags=RESET)
    told = b.engine.ending(b.now)
    frames = [frame for iface, frame in told if iface == 1]
    assert len(frames) == 1 and len(told) == (2 if mode == shm.MODE_NAT else 1)
    frame = frames[0]
    if mode == shm.MODE_TUNNEL:
        frame = frame[:12] + (b"\x08\x00" if af == 4 else b"\x86\xdd") + frame[14 + (20 if af == 4 else 40) :]
    p = read(frame)
    target = packed(server(af, 1)) if mode == shm.MODE_NAT else packed(VIP[af])
    assert (p.src, p.dst, p.sport, p.seq) == (packed(CLIENT[af]), target, 40000, 1006) and p.flags & FLAGS["R"]
    r = read(b.send(from_client(af, TCP, 40000, "A", 1006, 5001)).out[0][1])
    assert (r.dst, r.flags, r.seq) == (packed(CLIENT[af]), FLAGS["R"], 5001)
    b.audit()


@FAMILIES
def test_without_a_way_out_the_record_ends_all_the_same(af: int) -> None:
    b = Balancer(servers=1)
    f = Tcp(b, af).open()
    b.do(shm.neigh_set(5, iface=1, af=af, addr=packed(server(af, 1)), mac=None))
    dest(b, af, 1, weight=0, flags=RESET)
    assert [iface for iface, _ in b.engine.ending(b.now)] == [0]
    assert f.state == "CLOSE"
    b.now += 11_000 * MS
    b.engine.expire(b.now)
    assert b.engine.conns() == []
