"""Datagrams in fragments of one-packet services: each is scheduled once, and all of it goes to that real server."""

from itertools import chain, zip_longest

import pytest
from lbd._fastpath import Result
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from lbd.shm import _shm as shm
from tests.packet import fragment
from tests.packet.balancer import LIP, Balancer, packed, server, server_mac
from tests.packet.cluster import Cluster
from tests.packet.fragment import ORDERS, Cut, from_addresses, from_client, payload, segment, send, together
from tests.packet.option import NUMBER, set_server, set_service
from tests.packet.test_frag import FAMILIES, MODE, MODES, port_of

WORKERS = pytest.mark.parametrize("workers", [1, 3])
SERVERS = 3
SIZE = 1200  # of a datagram: 3 fragments


def cluster(workers: int, mode: str, af: int, *, cross: bool = False, flags: int = 0, **more: int) -> Cluster:
    c = Cluster(workers, join=True, mode=MODES[mode], servers=SERVERS, cross=cross)
    set_service(c, af, "udp", servers=SERVERS, flags=shm.SVC_ONE_PACKET | flags, **more)
    return c


def datagram(af: int, n: int) -> Cut:
    return from_client(af, segment("udp", 40000, 80, payload(SIZE, n)), ident=n + 1)


def given_to(frame: bytes, mode: str, af: int) -> int:
    """Which real server (from 1) got it."""
    if mode == "dr":
        return next(n for n in range(1, SERVERS + 1) if Ether(frame).dst == server_mac(n))
    outer = Ether(frame).payload
    assert isinstance(outer, IP if af == 4 else IPv6)
    return next(n for n in range(1, SERVERS + 1) if outer.dst == server(af, n))


def whole_at_one(frames: list[bytes], mode: str, af: int, n: int, far: int = 0) -> int:
    """Datagram n, put together from them, is what was sent; its real server."""
    far = far or af
    [which] = {given_to(f, mode, far) for f in frames}
    whole = together(frames, mode)
    src, dst = (LIP[far], server(far, which)) if mode == "fullnat" else fragment.addresses_of(mode, af)
    dst = server(af, which) if mode == "nat" else dst
    l4 = segment("udp", whole.payload.sport, port_of(mode), payload(SIZE, n))
    assert from_addresses(whole) == fragment.expected(far, src, dst, l4)
    return which


@MODE
@FAMILIES
@WORKERS
@pytest.mark.parametrize("order", ["in order", "reversed", "first second", "twice each"])
def test_to_one_server(mode: str, af: int, workers: int, order: str) -> None:
    c = cluster(workers, mode, af)
    had = set()
    for n in range(5):
        cut = ORDERS[order](datagram(af, n))
        frames = fragment.frames_out(send(c, cut))
        assert len(frames) == len(cut)
        had.add(whole_at_one(frames, mode, af, n))
    assert had == {1, 2, 3}
    assert c.totals("frag_forwarded") == 5 * len(cut) and max(c.hops) <= 3
    kept = len(c.conns())
    assert kept == 0 if MODES[mode] & shm.MODE_DR else kept == SERVERS
    c.audit()


@MODE
@FAMILIES
def test_counted_once(mode: str, af: int) -> None:
    c = cluster(1, mode, af)
    cut = datagram(af, 1)
    send(c, cut)
    send(c, datagram(af, 2))
    assert {r.verdict for r in send(c, cut[:1])} == {"forward"}  # comes twice
    stats = c.members[0].engine.service_stats(NUMBER[af, "udp"])
    assert (stats["conns"], stats["in_pkts"]) == (2, 2 * len(cut) + 1)


@MODE
@FAMILIES
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("order", ["in order", "reversed", "last first"])
def test_several_at_once(mode: str, af: int, workers: int, order: str) -> None:
    """Of one client and port: each datagram goes where it was scheduled, however its fragments mix with the others'."""
    c = cluster(workers, mode, af)
    mixed = [p for p in chain(*zip_longest(*(ORDERS[order](datagram(af, n)) for n in range(4)))) if p is not None]
    results = send(c, mixed)
    frames = fragment.frames_out(results)
    assert len(frames) == len(mixed)
    whole: dict[bytes, list[bytes]] = {}
    for f in frames:
        inner = fragment.inner(f, mode)
        key = inner.id if af == 4 else inner.getlayer("IPv6 Extension Header - Fragmentation header").id
        whole.setdefault(key, []).append(f)
    assert len(whole) == 4
    if mode in ("dr", "tunnel"):
        assert {whole_at_one(f, mode, af, key - 1) for key, f in whole.items()} == {1, 2, 3}
    else:                                           # (whose identifications lbd gives)
        assert all(len({given_to(f, mode, af) for f in frames}) == 1 and together(frames) for frames in whole.values())


@WORKERS
@pytest.mark.parametrize("order", ["in order", "reversed"])
def test_nat64(workers: int, order: str) -> None:
    c = cluster(workers, "fullnat", 6, cross=True)
    had = {whole_at_one(fragment.frames_out(send(c, ORDERS[order](datagram(6, n)))), "fullnat", 6, n, far=4) for n in range(6)}
    assert had == {1, 2, 3}
    c.audit()


@MODE
@pytest.mark.parametrize("order", ["in order", "reversed", "twice all"])
def test_with_persistence(mode: str, order: str) -> None:
    """The client's template may be another worker's: the first fragment goes there and comes back, and the others behind it."""
    for seed in range(2):
        c = cluster(3, mode, 4, flags=shm.SVC_PERSIST, persist=60000, persist_plen=32)
        c.rng.seed(seed)
        had = {whole_at_one(fragment.frames_out(send(c, ORDERS[order](datagram(4, n)))), mode, 4, n) for n in range(4)}
        assert len(had) == 1


def rest_after(mode: str, change: str) -> list[Result]:
    """What becomes of the rest of a datagram when its real server changes behind its first fragment."""
    b = Balancer(mode=MODES[mode], servers=1)
    set_service(b, 4, "udp", servers=1, flags=shm.SVC_ONE_PACKET)
    cut = datagram(4, 1)
    assert b.send(bytes(cut[0])).verdict == "forward"
    b.now += 10**9
    b.engine.expire(b.now)
    if change == "down":
        set_server(b, 1, 4, "udp", servers=1, weight=0)
    elif change == "removed":
        b.do(shm.dest_del(NUMBER[4, "udp"], 2))
    else:
        b.do(shm.dest_set(NUMBER[4, "udp"], 2, af=4, addr=packed(server(4, 2)), port=8080, svc=NUMBER[4, "udp"], fresh=True))
    return send(b, cut[1:])


@MODE
def test_a_drained_server_gets_the_rest(mode: str) -> None:
    assert {(r.verdict, r.reason) for r in rest_after(mode, "down")} == {("forward", "none")}


@MODE
@pytest.mark.parametrize("change", ["removed", "another"])
def test_a_server_that_is_gone_gets_no_more_and_no_other_gets_it(mode: str, change: str) -> None:
    assert {(r.verdict, r.reason) for r in rest_after(mode, change)} == {("drop", "frag_orphan")}


@pytest.mark.parametrize("mode", ["dr", "tunnel"])
def test_later_ones_are_judged_as_any(mode: str) -> None:
    b = Balancer(mode=MODES[mode], servers=1)
    set_service(b, 4, "udp", servers=1, flags=shm.SVC_ONE_PACKET)
    first, second, *_ = from_client(4, segment("udp", 40000, 80, payload(SIZE)))
    b.send(bytes(first))
    second[IP].ttl = 1
    del second[IP].chksum
    assert b.send(bytes(second)).reason == "ttl_expired"


@FAMILIES
def test_too_large_a_fragment(af: int) -> None:
    """The first one is answered, the others of its datagram are dropped, whatever the mode."""
    for mode in MODES:
        b = Balancer(mode=MODES[mode], servers=1, mtu=(1500, 1280))
        set_service(b, af, "udp", servers=1, flags=shm.SVC_ONE_PACKET)
        cut = from_client(af, segment("udp", 40000, 80, payload(3000)), size=1400)
        assert [r.reason for r in send(b, cut)] == ["mtu_exceeded"] + ["frag_orphan"] * (len(cut) - 1)

