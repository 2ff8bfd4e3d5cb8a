"""The modes with several workers: NAT's answers carry no address of lbd and arrive anywhere; they find the worker."""

import pytest
from scapy.layers.inet import TCP, fragment

from lbd.shm import _shm as shm
from tests.packet.balancer import PROTO, VIP, packed, server
from tests.packet.cluster import Cluster, spread
from tests.packet.gateway import equip
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


def share(c: Cluster, af: int, services: int) -> None:
    """Port 80 and the ones behind it, a service each, all of them of one real server and port."""
    for m in c.members:
        m.engine.set_table(1024, list(range(200, 200 + services)))
    for n in range(1, services):
        c.do(shm.dest_set(200 + n, 1, af=af, addr=packed(server(af, 1)), port=8080, svc=20 + n, fresh=True))
        c.do(shm.svc_set(20 + n, 1, af=af, addr=packed(VIP[af]), port=80 + n, proto=PROTO["tcp"], sched=shm.SCHED_SEQ,
                         table_off=1024 + n, table_len=1, mode=shm.MODE_NAT, fresh=True))  # fmt: skip


@FAMILIES
@pytest.mark.parametrize(("workers", "services"), [(3, 2), (3, 9), (16, 40)])
def test_one_real_server_of_several_services(af: int, workers: int, services: int) -> None:
    """Its answers are asked for at the owners by each of them: at no worker twice, but for the one that asked first."""
    c = cluster(workers)
    share(c, af, services)
    for port in range(2000, 2200):
        talk(c, af, port, 80 + port % services)
    assert max(c.hops) <= min(services, workers)
    c.audit()


def test_unknown_ones_of_several_services_end_at_the_kernel() -> None:
    c = cluster(16)
    share(c, 4, 40)
    for port in range(100):
        assert c.send(answer_of(4, TCP(sport=8080, dport=3000 + port, flags="A")), 1).verdict == "kernel"
    assert 8 < max(c.hops) <= 16


def test_fragments_of_an_answer_go_its_way() -> None:
    """Whichever worker they arrive at; the first one's way may lead by all of them."""
    c = cluster(8)
    share(c, 4, 20)
    for port in range(2000, 2100):
        talk(c, 4, port, 80 + port % 20)
        whole = answer_of(4, segment("tcp", "A", 8080, port, b"x" * 2000, seq=5001, ack=1001))
        for piece in fragment(whole, 1000):
            r = c.send(piece, 1)
            assert (r.verdict, r.out[0][0]) == ("forward", 0)


@pytest.mark.parametrize("new", [0, 1], ids=["the sender's is old", "the sender's is new"])
def test_answers_while_one_worker_knows_the_new_table(new: int) -> None:
    c = cluster(3)
    for port in range(2000, 2060):
        talk(c, 4, port)
    old = spread(3)
    for m in c.members[new : new + 1]:
        m.engine.set_owner([(w + 1) % 3 for w in old], old)
    for port in range(2000, 2060):
        r = c.send(answer_of(4, segment("tcp", "PA", 8080, port, b"x", seq=5001, ack=1001)), 1)
        assert r.verdict == "forward"


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


def gone(c: Cluster, what: str) -> None:
    """The service's one real server, the service, or its mode."""
    if what == "real server":
        c.do(shm.dest_del(0, 2))
    elif what == "service":
        c.do(shm.svc_del(0, 2))
    else:
        c.do(shm.svc_set(0, 2, af=4, addr=packed(VIP[4]), port=80, proto=6, sched=shm.SCHED_SEQ, table_off=0, table_len=1))


@pytest.mark.parametrize("snat", [False, True], ids=["", "beside SNAT"])
@pytest.mark.parametrize("what", ["real server", "service", "mode"])
def test_answers_when_it_is_one_no_more(what: str, snat: bool) -> None:
    """Connections go on; and what belongs to none ends at the kernel, or where an SNAT rule is for it, as it would without."""
    c = cluster(4)
    for port in range(2000, 2060):
        talk(c, 4, port)
    gone(c, what)
    if snat:
        equip(c)
    for port in range(2000, 2060):
        r = c.send(answer_of(4, segment("tcp", "PA", 8080, port, b"x", seq=5001, ack=1001)), 1)
        assert (r.verdict, r.out[0][0]) == ("forward", 0)
        assert c.send(answer_of(4, segment("tcp", "A", 8080, port + 1000)), 1).verdict == ("drop" if snat else "kernel")
    # packets from clients, of no connection
    strays = [c.send(from_client(4, segment("tcp", flags, 3000 + n, 79))).verdict for n in range(50) for flags in "SA"]
    assert set(strays) == {"kernel"} and max(c.hops) <= 4
    assert (c.send(from_client(4, segment("tcp", "S", 5000, 80))).verdict == "kernel") == (what == "service")


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
