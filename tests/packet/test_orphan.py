"""What becomes of a connection whose real server is gone: it goes on; or ends, where its service says so."""

import pytest

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, VIP, Balancer, packed
from tests.packet.cluster import Cluster
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import FLAGS, TCP, from_client, from_server, read
from tests.packet.standing import dest, index_of, service

FAMILIES = pytest.mark.parametrize("af", [4, 6])
NODEST, QUIESCENT = shm.SVC_EXPIRE_NODEST, shm.SVC_EXPIRE_QUIESCENT
GONE = {"removed": NODEST, "down": NODEST, "drained": QUIESCENT}
HOW = pytest.mark.parametrize("how", GONE)


def take_away(b: Balancer, af: int, n: int, how: str, proto: str = "tcp") -> None:
    if how == "removed":
        b.do(shm.dest_del(dest(b, af, n, proto), 3))
    elif how == "down":
        dest(b, af, n, proto, up=False)
    else:
        dest(b, af, n, proto, weight=0)


def settled(f: Tcp) -> Tcp:
    """Its packets take the fast lane."""
    f.open()
    for _ in range(3):
        assert f.client("PA", b"q").verdict == "forward" and f.real("PA", b"a").verdict == "forward"
    return f


def lose(b: Balancer, af: int, how: str, flags: int) -> Tcp:
    service(b, af, flags=flags)
    f = settled(Tcp(b, af))
    assert f.server is not None
    take_away(b, af, index_of(b, af, f.server), how)
    return f


def the_reset(result: object, af: int, f: Tcp) -> None:
    """A RST to the client, from the service, that the client believes."""
    assert (result.verdict, result.reason) == ("consume", "server_gone")
    [(iface, frame)] = result.out
    p = read(frame)
    assert iface == 0 and p.macs == bytes.fromhex("0200000000c1" "020000000100")
    assert (p.src, p.dst, p.sport, p.dport) == (packed(VIP[af]), f.address, 80, f.sport)
    assert p.flags == FLAGS["R"] and p.seq == f.sseq and p.payload == b"" and p.ttl == 64


@FAMILIES
@HOW
def test_by_default_it_goes_on(how: str, af: int) -> None:
    b = Balancer()
    f = lose(b, af, how, 0)
    assert f.client("PA", b"more").verdict == "forward" and f.real("PA", b"more").verdict == "forward"
    b.audit()


@FAMILIES
@HOW
@pytest.mark.parametrize("flags", [NODEST, QUIESCENT])
def test_each_flag_has_its_own_cause(how: str, flags: int, af: int) -> None:
    b = Balancer()
    f = lose(b, af, how, flags)
    result = f.client("PA", b"more")
    assert (result.verdict == "forward") == (flags != GONE[how])


@FAMILIES
@HOW
def test_the_client_is_told_at_its_next_packet(how: str, af: int) -> None:
    b = Balancer()
    f = lose(b, af, how, GONE[how])
    the_reset(f.client("PA", b"more"), af, f)
    assert f.state == ""
    assert f.real("A").reason == "no_state"
    b.audit()
    assert b.engine.counters()["conns_expired"][4] == 1


@FAMILIES
@HOW
def test_a_syn_from_the_same_port_opens_another(how: str, af: int) -> None:
    b = Balancer()
    f = lose(b, af, how, GONE[how])
    before = f.server
    f.cseq += 100_000
    f.open()
    assert f.server != before and len(b.engine.conns()) == 1
    b.audit()


@FAMILIES
@HOW
def test_udp_goes_on_with_another(how: str, af: int) -> None:
    b = Balancer()
    service(b, af, "udp", flags=GONE[how])
    u = Udp(b, af)
    for _ in range(3):
        u.ask()
        u.answer()
    before = u.server
    assert before is not None
    take_away(b, af, index_of(b, af, before), how, "udp")
    assert u.ask().verdict == "forward" and u.server != before
    assert u.answer().verdict == "forward" and len(b.engine.conns()) == 1
    b.audit()


@FAMILIES
def test_what_the_real_server_still_sends_is_forwarded(af: int) -> None:
    """Until the client's next packet; and that is seen, however much the real server has sent meanwhile."""
    b = Balancer()
    f = lose(b, af, "down", NODEST)
    for _ in range(5):
        assert f.real("PA", b"more").verdict == "forward"
    the_reset(f.client("A"), af, f)


@FAMILIES
def test_a_segment_without_ack_is_answered_by_its_length(af: int) -> None:
    b = Balancer()
    f = lose(b, af, "down", NODEST)
    [(_, frame)] = b.send(from_client(af, TCP, f.sport, "F", f.cseq, 0, b"xyz")).out
    p = read(frame)
    assert (p.flags, p.seq, p.ack) == (FLAGS["R"] | FLAGS["A"], 0, (f.cseq + 4) % 2**32)


@FAMILIES
def test_a_reset_is_not_answered(af: int) -> None:
    b = Balancer()
    f = lose(b, af, "down", NODEST)
    r = f.client("RA")
    assert (r.verdict, r.reason, r.out) == ("drop", "server_gone", [])
    assert f.state == ""


@FAMILIES
def test_one_that_comes_back_in_time_has_lost_nothing(af: int) -> None:
    b = Balancer()
    f = lose(b, af, "down", NODEST)
    assert f.server is not None
    dest(b, af, index_of(b, af, f.server))
    assert f.client("PA", b"more").verdict == "forward" and f.state == "ESTABLISHED"


@FAMILIES
def test_others_are_left_alone(af: int) -> None:
    b = Balancer(servers=3)
    service(b, af, flags=NODEST | QUIESCENT)
    flows = [settled(Tcp(b, af, 40000 + n)) for n in range(9)]
    strangers = [settled(Tcp(b, 10 - af, 50000 + n)) for n in range(3)]
    gone = flows[0].server
    assert gone is not None
    dest(b, af, index_of(b, af, gone), up=False)
    for f in flows:
        assert f.client("A").verdict == ("consume" if f.server == gone else "forward")
    assert all(f.client("A").verdict == "forward" for f in strangers)
    b.audit()


@FAMILIES
def test_the_option_may_come_later(af: int) -> None:
    b = Balancer()
    f = lose(b, af, "down", 0)
    assert f.client("PA", b"more").verdict == "forward"
    service(b, af, flags=NODEST)
    the_reset(f.client("PA", b"more"), af, f)


@FAMILIES
def test_closed_connections_hold_their_port(af: int) -> None:
    b = Balancer()
    service(b, af, flags=NODEST)
    f = settled(Tcp(b, af))
    f.close_by_server()
    assert f.server is not None and f.state == "TIME_WAIT"
    dest(b, af, index_of(b, af, f.server), up=False)
    f.client("A")
    assert f.state == "TIME_WAIT"


@FAMILIES
@pytest.mark.parametrize("how", ["drained", "down"])
def test_a_recovered_record_finds_its_real_server(how: str, af: int) -> None:
    """Whatever its standing: it is in no scheduling table then."""
    b = Balancer()
    service(b, af, flags=NODEST)
    f = settled(Tcp(b, af))
    assert f.server is not None
    b.do(shm.svc_del(0 if af == 4 else 2, 3))
    b.engine.recover(b.now, True)
    service(b, af, flags=NODEST)
    b.engine.set_table((0 if af == 4 else 2) * 64, [])
    take_away(b, af, index_of(b, af, f.server), how)
    r = f.client("PA", b"more")
    assert r.verdict == ("consume" if how == "down" else "forward")
    b.audit()


@FAMILIES
@pytest.mark.parametrize("mode", [shm.MODE_NAT, shm.MODE_DR, shm.MODE_TUNNEL])
def test_in_every_mode(mode: int, af: int) -> None:
    b = Balancer(mode=mode)
    service(b, af, flags=NODEST)
    for flags, seq, ack in (("S", 1000, 0), ("A", 1001, 5001)):
        if flags == "A" and mode == shm.MODE_NAT:
            record = b.engine.conns()[0]
            answer = bytearray(from_server(af, TCP, record["real_server"][0], 40000, "SA", 5000, 1001))
            at = 14 + (16 if af == 4 else 24)
            size = 4 if af == 4 else 16
            frame = bytes(answer)
            assert frame[at : at + size] != packed(CLIENT[af])
            b.send(readdressed(frame, af), 1)
        assert b.send(from_client(af, TCP, 40000, flags, seq, ack)).verdict == "forward"
    [record] = b.engine.conns()
    assert record["state"] == "ESTABLISHED"
    dest(b, af, index_of(b, af, record["real_server"][0]), up=False)
    r = b.send(from_client(af, TCP, 40000, "PA", 1001, 5001, b"q"))
    assert (r.verdict, r.reason) == ("consume", "server_gone")
    p = read(r.out[0][1])
    assert (p.src, p.dst, p.seq, p.flags) == (packed(VIP[af]), packed(CLIENT[af]), 5001, FLAGS["R"])
    assert b.engine.conns() == []
    b.audit()


def readdressed(frame: bytes, af: int) -> bytes:
    """A real server's packet to the LIP, sent to the client itself."""
    from scapy.layers.inet import IP
    from scapy.layers.inet import TCP as ScapyTcp
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    p = Ether(frame)
    layer = IP if af == 4 else IPv6
    p[layer].dst = CLIENT[af]
    del p[ScapyTcp].chksum
    if af == 4:
        del p[IP].chksum
    return bytes(p)


@FAMILIES
def test_at_whichever_worker(af: int) -> None:
    b = Cluster(workers=3, seed=af)
    for m in b.members:
        service(m, af, flags=NODEST)
    flows = [Tcp(b, af, 40000 + n).open() for n in range(24)]
    gone = flows[0].server
    assert gone is not None
    for m in b.members:
        dest(m, af, index_of(m, af, gone), up=False)
    lost = [f for f in flows if f.server == gone]
    assert 6 < len(lost) < 18
    for f in flows:
        r = f.client("PA", b"q")
        assert r.verdict == ("consume" if f in lost else "forward"), r
    for f in lost:
        f.cseq += 100_000
        assert f.open().server != gone
