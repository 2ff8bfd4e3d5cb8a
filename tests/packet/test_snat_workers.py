"""SNAT with several workers: answers and outbound packets meet in one worker, wherever they arrive."""

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach
from scapy.layers.l2 import Ether

from tests.packet.balancer import MAC_LB0, ip
from tests.packet.cluster import Cluster, spread
from tests.packet.gateway import MAC_ROUTER, REMOTE, equip, inbound, outbound, pool, rule
from tests.packet.test_snat import FAMILIES, KINDS, PROTOCOLS, ask, port_of, reply
from tests.unit.test_datapath_hash import KEY as RSS_KEY

WORKERS = pytest.mark.parametrize("workers", [2, 3])


def cluster(workers: int, **more: object) -> Cluster:
    c = Cluster(workers, **more)
    equip(c)
    return c


def talk(c: Cluster, af: int, kind: str, port: int) -> int:
    """Both ways; the port outside."""
    r = c.send(outbound(af, ask(af, kind, port)), 1)
    assert r.verdict == "forward", r
    at = port_of(af, kind, r.out[0][1])
    assert c.send(inbound(af, reply(af, kind, at))).out[0][0] == 1
    if kind == "tcp":
        assert c.send(outbound(af, ask(af, kind, port, "A", seq=1001, ack=5001)), 1).verdict == "forward"
    assert c.send(inbound(af, reply(af, kind, at, "A", seq=5001, ack=1001))).out[0][0] == 1
    return at


@FAMILIES
@WORKERS
@PROTOCOLS
def test_wherever_packets_arrive(workers: int, af: int, kind: str) -> None:
    c = cluster(workers)
    ports = [talk(c, af, kind, port) for port in range(2000, 2060)]
    assert len(set(ports)) == len(ports), "no two flows share a port towards one remote"
    assert max(c.hops) == 1
    assert len({r["worker"] for r in c.conns()}) == workers and len(c.conns()) == 60
    c.audit()


@FAMILIES
@WORKERS
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_known_rss_needs_no_hand_over(workers: int, af: int, kind: str) -> None:
    c = cluster(workers)
    c.set_rss(RSS_KEY, True)
    for port in range(2000, 2060):
        talk(c, af, kind, port)
    assert max(c.hops) == 0 and c.totals("misplaced") == 0
    assert len({r["worker"] for r in c.conns()}) == workers


@FAMILIES
@pytest.mark.parametrize("kind", ["udp", "icmp"])
def test_what_the_nic_hashes_by_addresses_alone(af: int, kind: str) -> None:
    """ICMP always, UDP on many: all of a host pair at one queue, and hand-over spreads them."""
    c = cluster(3)
    c.set_rss(RSS_KEY, False)
    for port in range(2000, 2060):
        talk(c, af, kind, port)
    assert max(c.hops) == 1 and len({r["worker"] for r in c.conns()}) == 3


@FAMILIES
@PROTOCOLS
def test_errors_find_the_flows_worker(af: int, kind: str) -> None:
    c = cluster(3)
    error = ICMP(type=3, code=1) if af == 4 else ICMPv6DestUnreach(code=3)
    for port in range(2000, 2020):
        at = talk(c, af, kind, port)
        quoted = ip(af, pool(af), REMOTE[af]) / ask(af, kind, at, "A", seq=1001, ack=5001)
        r = c.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, REMOTE[af], pool(af)) / error / quoted)
        assert r.verdict == "forward" and r.out[0][0] == 1


@FAMILIES
def test_while_flows_move(af: int) -> None:
    """A part of the owner table has changed: flows stay with their worker, new ones get ports that no old one has."""
    c = cluster(2)
    ports = {kind: {port: talk(c, af, kind, port) for port in range(2000, 2040)} for kind in KINDS}
    old = spread(2)
    c.set_owner([1 - w if n % 3 == 0 else w for n, w in enumerate(old)], old)
    for kind in KINDS:
        for at in ports[kind].values():
            assert c.send(inbound(af, reply(af, kind, at, "A", seq=5001, ack=1001))).out[0][0] == 1
        new = {talk(c, af, kind, port) for port in range(3000, 3040)}
        assert not new & set(ports[kind].values())


@FAMILIES
def test_one_address_for_a_host_in_all_workers(af: int) -> None:
    c = Cluster(3)
    equip(c, rules=False)
    rule(c, af, pools=(2, 3) if af == 4 else (4, 5))
    for n in range(1, 20):
        src = f"10.77.1.{n}" if af == 4 else f"fd77::1:{n}"
        seen = set()
        for port in range(2000, 2010):
            p = Ether(c.send(outbound(af, ask(af, "udp", port), src=src), 1).out[0][1])
            seen.add(p[IP].src if af == 4 else p.payload.src)
        assert len(seen) == 1


