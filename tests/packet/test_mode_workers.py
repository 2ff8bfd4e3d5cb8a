"""The modes with several workers: NAT's answers carry no address of lbd and arrive anywhere; they find the worker."""

import pytest
from scapy.layers.inet import TCP

from lbd.shm import _shm as shm
from tests.packet.balancer import PROTO, VIP, packed, server
from tests.packet.cluster import Cluster, spread
from tests.packet.test_mode import FAMILIES, MODES, answer_of, from_client, segment
from tests.unit.test_datapath_hash import KEY as RSS_KEY

WORKERS = pytest.mark.parametrize("workers", [2, 3])


def cluster(workers: int, mode: str = "nat") -> Cluster:
    return Cluster(workers, mode=MODES[mode], servers=1)


def talk(c: Cluster, af: int, port: int, dport: int = 80) -> None:
    assert c.send(from_client(af, segment("tcp", "S", port, dport))).verdict == "forward"
    r = c.send(answer_of(af, segment("tcp", "SA", 8080, port, seq=5000, ack=1001)), 1)
    assert r.verdict == "forward" and r.out[0][0] == 0, r
    assert c.send(from_client(af, segment("tcp", "A", port, dport, seq=1001, ack=5001))).verdict == "forward"


@FAMILIES
@WORKERS
@pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])
def test_answers_wherever_they_arrive(workers: int, af: int, rss: bool) -> None:
    c = cluster(workers)
    if rss:
        c.set_rss(RSS_KEY, True)
    for port in range(2000, 2060):
        talk(c, af, port)
    assert max(c.hops) == 1
    assert {r["state"] for r in c.conns()} == {"ESTABLISHED"} and len({r["worker"] for r in c.conns()}) == workers
    c.audit()


@FAMILIES
def test_one_real_server_of_two_services(af: int) -> None:
    """Its answers are asked for at the owners by each of the two."""
    c = cluster(3)
    c.do(shm.dest_set(200, 1, af=af, addr=packed(server(af, 1)), port=8080, svc=9, fresh=True))
    for m in c.members:
        m.engine.set_table(1024, [200])
    c.do(shm.svc_set(9, 1, af=af, addr=packed(VIP[af]), port=81, proto=PROTO["tcp"], sched=shm.SCHED_SEQ, table_off=1024,
                     table_len=1, mode=shm.MODE_NAT, fresh=True))  # fmt: skip
    for port in range(2000, 2100):
        talk(c, af, port, 80 + port % 2)
    assert max(c.hops) <= 2


def test_answers_while_flows_move() -> None:
    """The owner table has changed: connections stay where they were opened, and their answers find them there."""
    c = cluster(2)
    for port in range(2000, 2040):
        talk(c, 4, port)
    old = spread(2)
    c.set_owner([1 - w for w in old], old)
    for port in range(2000, 2040):
        r = c.send(answer_of(4, segment("tcp", "PA", 8080, port, b"x", seq=5001, ack=1001)), 1)
        assert r.verdict == "forward"


def test_unknown_ones_end_at_the_kernel() -> None:
    c = cluster(3)
    for port in range(100):
        assert c.send(answer_of(4, TCP(sport=8080, dport=3000 + port, flags="A")), 1).verdict == "kernel"
    assert max(c.hops) <= 3


@FAMILIES
@pytest.mark.parametrize("mode", ["dr", "tunnel"])
def test_one_way(mode: str, af: int) -> None:
    c = cluster(2, mode)
    for port in range(2000, 2040):
        for flags, seq, ack in (("S", 1000, 0), ("A", 1001, 5001)):
            assert c.send(from_client(af, segment("tcp", flags, port, 80, seq=seq, ack=ack))).verdict == "forward"
    assert {r["state"] for r in c.conns()} == {"ESTABLISHED"}
    c.audit()
