"""A client uses its port again: its SYN on a connection that is over is scheduled like any other."""

import pytest

from lbd.shm import _shm as shm
from tests.packet.balancer import VIP, Balancer, packed
from tests.packet.flow import Tcp
from tests.packet.frame import TCP, from_client

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
@pytest.mark.parametrize("end", ["client", "server", "reset"])
def test_turns_are_kept_however_connections_end(end: str, af: int) -> None:
    b = Balancer(servers=4)
    f = Tcp(b, af)
    got, ports = [], {}
    for _ in range(40):
        f.open()
        got.append(f.server)
        assert ports.setdefault(f.server, f.lport) == f.lport
        if end == "reset":
            f.client("RA")
        else:
            f.close_by_client() if end == "client" else f.close_by_server()
        f.cseq += 100_000
        f.sseq += 100_000
        b.audit()
    assert all(len(set(got[i : i + 4])) == 4 for i in range(37))
    b.later(61)
    assert b.engine.conns() == []
    b.audit()


@FAMILIES
def test_a_retransmitted_syn_is_no_new_connection(af: int) -> None:
    b = Balancer(servers=4)
    f = Tcp(b, af)
    f.client("S")
    first = (f.server, f.lport)
    for _ in range(5):
        f.client("S", seq=f.cseq - 1)
        assert (f.server, f.lport) == first
    assert len(b.engine.conns()) == 1


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


@FAMILIES
def test_a_local_address_that_was_taken_away_gets_nothing_new(af: int) -> None:
    b = Balancer(servers=1)
    f = Tcp(b, af).open()
    old = f.record["local"]
    other = "10.77.0.3" if af == 4 else "fd77::3"
    b.do(shm.lip_set(5, 2, af=af, addr=packed(other), port_lo=10000, port_hi=60000, fresh=True))
    b.do(shm.lip_del(0 if af == 4 else 1, 2))
    f.close_by_server()
    f.cseq += 100_000
    assert b.send(from_client(af, TCP, f.sport, "S", f.cseq)).verdict == "forward"
    assert f.record["local"][0] == packed(other) != old[0]


@FAMILIES
def test_the_address_is_another_services_by_now(af: int) -> None:
    """Whose connection that was is no matter: who has the address schedules."""
    b = Balancer(servers=1)
    f = Tcp(b, af).open()
    f.close_by_server()
    old = f.record["svc"] if f.record else -1
    new, server = 9, packed("10.77.0.12" if af == 4 else "fd77::12")
    b.do(shm.svc_del(old, 2))
    b.do(shm.dest_set(70, 3, af=af, addr=server, port=8080, svc=new, fresh=True))
    b.do(shm.neigh_set(1, iface=1, af=af, addr=server, mac=bytes([2, 0, 0, 0, 2, 2])))
    b.engine.set_table(1000, [70])
    vip = packed(VIP[af])
    b.do(shm.svc_set(new, 3, af=af, addr=vip, port=80, proto=6, sched=b.sched, table_off=1000, table_len=1, fresh=True))
    f.cseq += 100_000
    f.sseq += 100_000
    f.open()
    assert f.server == server and b.engine.service_stats(new)["active"] == 1
    f.close_by_server()
    b.do(shm.svc_del(new, 4))
    f.cseq += 100_000
    r = f.client("S")
    assert (r.verdict, r.reason) == ("kernel", "not_for_us"), "nobody's"
