"""Statistics with many real servers, where packets of the fast lane are counted after their burst: as with few of them, and as by
the general way, which counts at once (Twin compares)."""

import pytest

from lbd.shm import _shm as shm
from tests.packet.balancer import Balancer, packed
from tests.packet.flow import Udp
from tests.packet.frame import UDP, from_client, from_server

SERVERS = 2
FIRST = 4 * SERVERS  # number of the first real server beyond the four services' own
MANY = 600


def balancer(mode: int, more: int) -> Balancer:
    b = Balancer(servers=SERVERS, mode=mode, sizes={"dests": 1024})
    for n in range(FIRST, FIRST + more):
        b.do(shm.dest_set(n, 1, af=4, addr=packed(f"10.78.{n >> 8}.{n & 255}"), port=80, svc=0, fresh=True))
    return b


def counted(b: Balancer) -> list[dict[str, int]]:
    return [b.engine.service_stats(n) for n in range(4)] + [b.engine.dest_stats(n) for n in range(FIRST + 1)]


def traffic(b: Balancer) -> None:
    asked = [from_client(af, UDP, 40000 + k, payload=bytes(10 * k)) for af in (4, 6) for k in range(6)]
    for burst in (asked, asked * 5):
        assert all(r.verdict == "forward" for r in b.burst(burst))


def answers(b: Balancer) -> None:
    flows = [Udp(b, af, 41000 + k) for af in (4, 6) for k in range(3)]
    for f in flows:
        f.ask()
    told = [from_server(f.af, UDP, f.server or b"", f.lport, payload=bytes(7)) for f in flows]
    assert all(r.verdict == "forward" for r in b.burst(told * 2, 1))


@pytest.mark.parametrize("mode", [shm.MODE_FULLNAT, shm.MODE_DR, shm.MODE_TUNNEL], ids=["fullnat", "dr", "tunnel"])
def test_many_are_counted_as_few_are(mode: int) -> None:
    few, many = balancer(mode, 0), balancer(mode, MANY)
    for b in few, many:
        traffic(b)
        if mode == shm.MODE_FULLNAT:
            answers(b)
    assert counted(many) == counted(few)
    assert counted(many)[1]["in_pkts"] == 6 * 6 + 3 * (mode == shm.MODE_FULLNAT)


def test_few_again() -> None:
    """Real servers that went are no more of them."""
    b = balancer(shm.MODE_FULLNAT, MANY)
    for n in range(FIRST, FIRST + MANY):
        b.do(shm.dest_del(n, 2))
    traffic(b)
    few = balancer(shm.MODE_FULLNAT, 0)
    traffic(few)
    assert counted(b) == counted(few)
