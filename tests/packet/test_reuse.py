"""A client that comes back from the same port: scheduled like any other, and never seen by one real server from two ports.

A client's stack may use a port again as soon as its connection is over. The old record then rests: it holds the port that its real
server may have in TIME_WAIT, and is opened again when that server's turn comes.
"""

from collections import Counter

import pytest

from tests.packet.balancer import Balancer, server
from tests.packet.flow import Tcp
from tests.packet.frame import TCP, from_server

FAMILIES = pytest.mark.parametrize("af", [4, 6])
ENDS = pytest.mark.parametrize("end", ["client", "server", "reset"])


def over(f: Tcp, end: str) -> None:
    if end == "client":
        f.close_by_client()
    elif end == "server":
        f.close_by_server()
    else:
        f.client("RA")
    f.cseq += 100_000
    f.sseq += 100_000


@FAMILIES
@ENDS
def test_turns_are_kept(end: str, af: int) -> None:
    """rr over four servers by one client with one port: each gets every fourth, always from the same local port."""
    b = Balancer(servers=4)
    f = Tcp(b, af)
    got, ports = [], {}
    for _ in range(40):
        f.open()
        got.append(f.server)
        assert ports.setdefault(f.server, f.lport) == f.lport
        over(f, end)
        b.audit()
    assert set(Counter(got).values()) == {10}
    assert all(len(set(got[i : i + 4])) == 4 for i in range(37))
    assert len(b.engine.conns()) == 4 and sum(c["resting"] for c in b.engine.conns()) == 3
    assert sum(b.engine.dest_stats(d)["conns"] for d in range(16)) == 40
    b.later(61)
    assert b.engine.conns() == []
    b.audit()


@FAMILIES
def test_a_resting_record_has_no_part_in_traffic(af: int) -> None:
    b = Balancer(servers=2)
    f = Tcp(b, af).open()
    first, port = f.server, f.lport
    over(f, "server")
    f.open()
    assert f.server != first
    late = b.send(from_server(af, TCP, first, port, "FA", 70000, 1001), 1)
    assert (late.verdict, late.reason) == ("drop", "no_state")
    assert f.client("PA", b"x").verdict == "forward" and f.real("PA", b"y").verdict == "forward"
    assert f.state == "ESTABLISHED"


@FAMILIES
def test_resting_records_survive_a_restart_and_hold_their_port(af: int) -> None:
    b = Balancer(servers=2, ports=(20000, 20000))
    f = Tcp(b, af).open()
    first = f.server
    over(f, "server")
    f.open()
    before = b.engine.conns()
    assert b.engine.recover(b.now, True) == 2
    assert [(c["local"], c["resting"], c["state"]) for c in b.engine.conns()] == [
        (c["local"], c["resting"], c["state"]) for c in before
    ]
    assert Tcp(b, af, 5000).client("S").reason == Tcp(b, af, 5000).client("S").reason == "local_port_exhausted"
    over(f, "client")
    while f.server != first:
        f.open()
        if f.server != first:
            over(f, "client")
    assert f.state == "ESTABLISHED"
    b.audit()


@FAMILIES
def test_a_half_open_connection_is_left_with_its_server(af: int) -> None:
    """A retransmitted SYN is not a new connection."""
    b = Balancer(servers=4)
    f = Tcp(b, af)
    f.client("S")
    first = (f.server, f.lport)
    for _ in range(5):
        f.client("S", seq=f.cseq - 1)
        assert (f.server, f.lport) == first
    assert len(b.engine.conns()) == 1


def test_no_server_is_left() -> None:
    from lbd.shm import _shm as shm
    from tests.packet.balancer import packed

    b = Balancer(servers=1)
    f = Tcp(b).open()
    over(f, "client")
    b.do(shm.dest_set(0, 2, af=4, addr=packed(server(4, 1)), port=8080, svc=0, up=False))
    assert f.client("S").reason == "no_backend"
    assert len(b.engine.conns()) == 1
