"""Fragments with several workers: whoever receives which of them, they find their first one's connection."""

import pytest
from lbd._fastpath import Result
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6ExtHdrFragment
from scapy.packet import Packet

from tests.packet import fragment
from tests.packet.balancer import CLIENT, LIP, server
from tests.packet.cluster import Cluster, spread
from tests.packet.fragment import ORDERS, from_addresses, from_client, from_server, payload, segment, send, together
from tests.packet.test_frag import FAMILIES, MODE, MODES, ORDER, SIZE, TWO_WAYS, port_of
from tests.unit.test_datapath_hash import KEY as RSS_KEY

FLOWS = 4
WORKERS = pytest.mark.parametrize("workers", [2, 3])
RSS = pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])


def cluster(workers: int, mode: str = "fullnat", rss: bool = False) -> Cluster:
    c = Cluster(workers, mode=MODES[mode], servers=1)
    if rss:
        c.set_rss(RSS_KEY, True)
    return c


def port(c: Cluster, mode: str, sport: int) -> int:
    return next(r["local"][1] for r in c.conns() if r["client"][1] == sport) if mode == "fullnat" else sport


@MODE
@FAMILIES
@WORKERS
@RSS
@ORDER
def test_from_clients(workers: int, mode: str, af: int, rss: bool, order: str) -> None:
    c = cluster(workers, mode, rss)
    for n in range(FLOWS):
        sport = 40000 + n
        cut = from_client(af, segment("udp", sport, 80, payload(SIZE, n)), ident=n)
        frames = fragment.frames_out(send(c, ORDERS[order](cut)))
        assert len(frames) == len(ORDERS[order](cut))
        l4 = segment("udp", port(c, mode, sport), port_of(mode), payload(SIZE, n))
        assert from_addresses(together(frames, mode)) == fragment.expected(af, *fragment.addresses_of(mode, af), l4)
    assert max(c.hops) <= 3
    assert len(c.conns()) == FLOWS
    c.audit()


@TWO_WAYS
@FAMILIES
@WORKERS
@RSS
@pytest.mark.parametrize("order", ["in order", "reversed", "first second"])
def test_from_real_servers(workers: int, mode: str, af: int, rss: bool, order: str) -> None:
    c = cluster(workers, mode, rss)
    for n in range(FLOWS):
        sport = 40000 + n
        assert c.send(bytes(from_client(af, segment("udp", sport, 80, b"question"), size=1400)[0])).verdict == "forward"
        l4 = segment("udp", 8080, port(c, mode, sport), payload(SIZE, n))
        cut = from_server(af, l4, LIP[af] if mode == "fullnat" else CLIENT[af], ident=n)
        frames = fragment.frames_out(send(c, ORDERS[order](cut), 1))
        want = fragment.expected(af, *_ends(af), segment("udp", 80, sport, payload(SIZE, n)))
        assert from_addresses(together(frames)) == want
    assert max(c.hops) <= 3
    assert len(c.conns()) == FLOWS
    c.audit()


def _ends(af: int) -> tuple[str, str]:
    from tests.packet.balancer import VIP

    return VIP[af], CLIENT[af]


@FAMILIES
@WORKERS
def test_identifications_of_all_workers_differ(workers: int, af: int) -> None:
    c = cluster(workers)
    seen = set()
    for n in range(60):
        frames = fragment.frames_out(send(c, from_client(af, segment("udp", 40000 + n, 80, payload(900, n)), ident=7)))
        [ident] = {ident_of(fragment.inner(f, "fullnat")) for f in frames}
        seen.add(ident)
    assert len(seen) == 60 and len({r["worker"] for r in c.conns()}) == workers
    c.audit()


def ident_of(p: Packet) -> int:
    found: int = p.id if IP in p else p[IPv6ExtHdrFragment].id
    return found


@FAMILIES
@pytest.mark.parametrize("order", ["in order", "reversed", "last first"])
def test_while_flows_move(af: int, order: str) -> None:
    """The owner table has changed: a flow's fragments go round by the worker that has its connection."""
    c = cluster(3)
    for n in range(20):
        c.send(bytes(from_client(af, segment("udp", 40000 + n, 80, b"question"), size=1400)[0]))
    old = spread(3)
    c.set_owner([(w + 1) % 3 if i % 2 else w for i, w in enumerate(old)], old)
    before = {r["client"]: r["local"] for r in c.conns()}
    for n in range(40):
        cut = from_client(af, segment("udp", 40000 + n, 80, payload(SIZE, n)), ident=n)
        frames = fragment.frames_out(send(c, ORDERS[order](cut)))
        l4 = segment("udp", port(c, "fullnat", 40000 + n), 8080, payload(SIZE, n))
        assert from_addresses(together(frames)) == fragment.expected(af, LIP[af], server(af, 1), l4)
    after = {r["client"]: r["local"] for r in c.conns()}
    assert len(after) == 40 and before.items() <= after.items()
    assert max(c.hops) <= 4
    c.audit()


@FAMILIES
def test_never_completed(af: int) -> None:
    """Each waits at one worker alone, the owner of its datagram."""
    c = cluster(3)
    for n in range(60):
        cut = from_client(af, segment("udp", 40000, 80, payload(SIZE)), ident=n)
        assert send(c, cut[1:]) == []
    held = [m.engine.used()["held"] for m in c.members]
    assert min(held) > 20 and sum(held) == 60 * (len(cut) - 1)
    c.expire(c.now + 31 * 10**9)
    assert [m.engine.used()["held"] for m in c.members] == [0, 0, 0]
    c.audit()


def in_bursts(c: Cluster, frames: list[bytes], iface: int) -> list[Result]:
    """All of them in one burst, at each worker that they come to; what becomes of them in the end."""
    done, todo = [], [(0, frames, {})]
    while todo:
        worker, batch, more = todo.pop(0)
        engine, onward = c.members[worker].engine, {}
        results = list(zip(batch, engine.process([(f, iface) for f in batch], c.now, **more), strict=True))
        while released := engine.released(c.now):
            results += [(frame, r) for _, frame, _, r in released]
        for frame, r in results:
            if r.verdict == "handover":
                onward.setdefault((r.owner, r.hops, r.flags), []).append(frame)
            elif r.verdict != "hold":
                done.append(r)
        todo += [(w, some, {"handed": True, "hops": hops + 1, "flags": flags}) for (w, hops, flags), some in onward.items()]
    return done


@FAMILIES
def test_a_first_one_that_comes_back_with_the_others_behind_it(af: int) -> None:
    """What a real server of mode nat sends past lbd: two workers are asked for its connection, and the one that had it at first
    gives it to the kernel, all of it."""
    c = cluster(2, "nat")
    old = spread(2)
    c.set_owner([1 - w for w in old], old)
    for n in range(40):
        cut = from_server(af, segment("udp", 8080, 40000 + n, payload(SIZE, n)), CLIENT[af], ident=n)
        results = in_bursts(c, [bytes(p) for p in cut], 1)
        assert [(r.verdict, r.reason) for r in results] == [("kernel", "not_for_us")] * len(cut), n
        assert [m.engine.used()["held"] for m in c.members] == [0, 0]


@FAMILIES
@TWO_WAYS
def test_the_kernels(mode: str, af: int) -> None:
    c = cluster(3, mode)
    for n in range(20):
        cut = from_client(af, segment("udp", 40000, 53, payload(SIZE)), ident=n)
        assert {r.verdict for r in send(c, cut[1:] + cut[:1])} == {"kernel"}
    assert max(c.hops) <= 3
    c.audit()
