"""A client uses its port again: its SYN on a connection that is over is scheduled like any other."""

import pytest

from tests.packet.balancer import Balancer
from tests.packet.flow import Tcp

FAMILIES = pytest.mark.parametrize("af", [4, 6])


def again(f: Tcp) -> None:
    f.close_by_server()
    assert f.state == "TIME_WAIT"
    f.cseq += 100_000
    f.sseq += 100_000
    f.open()


@FAMILIES
def test_round_robin_goes_on_round(af: int) -> None:
    b = Balancer(servers=3)
    f = Tcp(b, af).open()
    seen = [f.server]
    for _ in range(29):
        again(f)
        seen.append(f.server)
    assert sorted(seen.count(s) for s in set(seen)) == [10, 10, 10]
    svc = 0 if af == 4 else 2
    assert b.engine.service_stats(svc)["conns"] == 30
    b.audit()


@FAMILIES
def test_one_port_per_real_server_however_often(af: int) -> None:
    """Each real server sees the client's tuple from one port, whose TIME_WAIT its own stack can judge; the table stays small."""
    b = Balancer(servers=3)
    f = Tcp(b, af).open()
    ports = {(f.server, f.lport)}
    for _ in range(20):
        again(f)
        ports.add((f.server, f.lport))
    assert len(ports) == 3
    records = b.engine.conns()
    assert len(records) == 3 and sum(r["resting"] for r in records) == 2
    b.engine.recover(b.now)
    assert sorted(map(str, b.engine.conns())) == sorted(map(str, records))
    again(f)
    assert (f.server, f.lport) in ports


@FAMILIES
def test_a_resting_record_forwards_nothing_and_holds_its_port(af: int) -> None:
    b = Balancer(servers=2)
    f = Tcp(b, af).open()
    first, port = f.server, f.lport
    again(f)
    assert f.server != first
    second = f.server
    f.server, f.lport = first, port
    assert f.real("FA").reason == "no_state"
    f.server = second
    assert len({(c["real_server"], c["local"]) for c in b.engine.conns()}) == 2
    b.later(61)
    assert [c["resting"] for c in b.engine.conns()] == [False]
