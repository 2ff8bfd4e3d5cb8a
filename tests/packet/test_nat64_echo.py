"""Pings through NAT64: IPv6 clients, IPv4 real servers, identifiers of lbd's own. What is expected is built by scapy in the other
family, fragments put together from what leaves."""

import struct

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrRouting
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lbd.shm import _shm as shm
from tests.packet import fragment
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, Balancer, packed, server, server_mac
from tests.packet.cluster import Cluster, spread
from tests.packet.fragment import ORDERS, frames_out, payload, send
from tests.packet.test_echo import ID, PORTS, ask, others, ping, pong, reply
from tests.packet.test_nat64_icmp import error, judge
from tests.unit.test_datapath_hash import KEY as RSS_KEY

SETTINGS = {"cross": True, "servers": 1, "protocols": ("icmp",)}
ORDER = pytest.mark.parametrize("order", ORDERS)
WORKERS = pytest.mark.parametrize("workers", [2, 3])
RSS = pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])


def balancer(**more: object) -> Balancer:
    return Balancer(**{**SETTINGS, **more})  # type: ignore[arg-type]


def from_client(l4: Packet, **fields: int) -> Packet:
    return Ether(src=MAC_CLIENT, dst=MAC_LB0) / IPv6(src=CLIENT[6], dst=VIP[6], **fields) / l4


def from_server(l4: Packet, **fields: object) -> Packet:
    return Ether(src=server_mac(1), dst=MAC_LB1) / IP(src=server(4, 1), dst=LIP[4], **fields) / l4


def to_client(l4: Packet, tos: int = 0, hops: int = 63) -> bytes:
    return bytes(Ether(src=MAC_LB0, dst=MAC_CLIENT) / IPv6(src=VIP[6], dst=CLIENT[6], tc=tos, hlim=hops) / l4)


def judged(frame: bytes, data: bytes, seq: int, tos: int = 0, hops: int = 63) -> int:
    """What the real server got: a request of ICMP, whole and right, from the local address. Its identifier."""
    p = Ether(frame)
    df = p[IP].len > 1260
    head = IP(src=LIP[4], dst=server(4, 1), tos=tos, ttl=hops, flags="DF" if df else 0, id=0 if df else p[IP].id)
    assert frame == bytes(Ether(src=MAC_LB1, dst=server_mac(1)) / head / ask(4, p[ICMP].id, data, seq))
    return int(p[ICMP].id)


def opened(b: Balancer, ident: int = ID) -> int:
    """A flow's identifier on the other side."""
    r = b.send(ping(6, ident))
    assert r.verdict == "forward", r
    return int(Ether(r.out[0][1])[ICMP].id)


@pytest.mark.cell("nat64", "6", "icmp", "engine")
@pytest.mark.parametrize("tos,hops", [(0, 64), (0xB9, 2), (0x03, 255)])
def test_there_and_back(tos: int, hops: int) -> None:
    b = balancer()
    seen = set()
    for seq, data in enumerate((b"", b"x", b"question", b"odd length", b"q" * 1300), 1):
        r = b.send(from_client(ask(6, data=data, seq=seq), tc=tos, hlim=hops, fl=0x12345))
        assert r.verdict == "forward" and r.out[0][0] == 1, r
        there = judged(r.out[0][1], data, seq, tos, hops - 1)
        seen.add(there)
        r = b.send(from_server(reply(4, there, data, seq), tos=tos, ttl=hops, id=7), 1)
        assert (r.verdict, r.out) == ("forward", [(0, to_client(reply(6, data=data, seq=seq), tos, hops - 1))])
    assert len(seen) == 1 and PORTS[0] <= seen.pop() <= PORTS[1]
    [c] = b.engine.conns()
    assert (c["state"], c["mode"], c["proto"], c["client"]) == ("ICMP", "nat64", 58, (packed(CLIENT[6]), ID))
    assert (c["real_server"], c["local"][0]) == ((packed(server(4, 1)), 0), packed(LIP[4]))
    b.audit()


@limits(max_examples=100, deadline=None)
@given(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=1200), st.integers(0, 255), st.integers(2, 255))
def test_any_ping(ident: int, seq: int, data: bytes, tos: int, hops: int) -> None:
    b = balancer()
    there = judged(b.send(from_client(ask(6, ident, data, seq), tc=tos, hlim=hops)).out[0][1], data, seq, tos, hops - 1)
    r = b.send(from_server(reply(4, there, data, seq), tos=tos, ttl=hops), 1)
    assert r.out == [(0, to_client(reply(6, ident, data, seq), tos, hops - 1))]


def test_a_wrong_checksum_stays_as_wrong() -> None:
    b = balancer()
    there = opened(b)
    asked, answered = ask(6), reply(4, there)
    asked.cksum, answered.chksum = 0x1234, 0x1234
    out = bytearray(b.send(from_client(asked)).out[0][1])
    right = ICMP(bytes(ask(4, there))).chksum

    def sum_of(a: int, b: int) -> int:
        return (a + b) % 0xFFFF

    was = ICMPv6EchoRequest(bytes(IPv6(bytes(IPv6(src=CLIENT[6], dst=VIP[6]) / ask(6))).payload)).cksum
    assert sum_of(struct.unpack_from("!H", out, 36)[0], was) == sum_of(right, 0x1234), "by as much as it was"
    b.do(shm.setting(shm.SET_VERIFY_CSUM, 1, 2))
    assert b.send(from_client(asked)).reason == "bad_checksum"
    assert b.send(from_server(answered), 1).reason == "bad_checksum"
    assert b.send(from_server(reply(4, there)), 1).verdict == "forward"


def test_flows_outlive_the_process() -> None:
    b = balancer()
    there = opened(b)
    before = b.engine.conns()
    assert b.engine.recover(b.now, True) == 1 and b.engine.conns() == before
    assert opened(b) == there
    assert b.send(from_server(reply(4, there)), 1).out == [(0, to_client(reply(6)))]


def test_timeout() -> None:
    b = balancer()
    opened(b)
    b.later(59)
    assert len(b.engine.conns()) == 1
    b.later(2)
    assert b.engine.conns() == []
    b.audit()


def test_identifiers_are_shared_with_fullnat_of_ipv4() -> None:
    """To one real server each is given once, whichever family asks."""
    b = balancer(ports=(10000, 10003))
    seen = []
    for n in range(2):
        out = Ether(b.send(ping(4, ID + n)).out[0][1])
        seen += [out[ICMP].id, opened(b, ID + n)]
    assert sorted(seen) == [10000, 10001, 10002, 10003]
    for af in (4, 6):
        r = b.send(ping(af, 7))
        assert (r.verdict, r.reason) == ("drop", "local_port_exhausted")
    # each one's answer finds the one that asked
    r = b.send(pong(4, LIP[4], seen[0]), 1)
    assert Ether(r.out[0][1])[IP].dst == CLIENT[4]
    r = b.send(pong(4, LIP[4], seen[1]), 1)
    assert Ether(r.out[0][1])[IPv6].dst == CLIENT[6]
    b.audit()


def test_what_stays_the_kernels() -> None:
    b = balancer()
    opened(b)
    for af in (4, 6):
        for what, packet in others(af):
            if (af, what) == (4, "the same with an identifier like lbd's"):
                continue  # perhaps that one
            assert b.send(packet, 1 if packet[Ether].dst == MAC_LB1 else 0).verdict == "kernel", what
    assert len(b.engine.conns()) == 1


def test_what_has_no_equal() -> None:
    b = balancer()
    opened(b)
    head = Ether(src=MAC_CLIENT, dst=MAC_LB0) / IPv6(src=CLIENT[6], dst=VIP[6])
    r = b.send(head / IPv6ExtHdrRouting(addresses=["2001:db8::5"], segleft=1) / ask(6))
    assert (r.verdict, r.reason) == ("drop", "untranslatable")


def test_mapped_addresses_on_the_wire() -> None:
    b = balancer()
    there = opened(b)
    forged = IPv6(src=f"::ffff:{server(4, 1)}", dst=f"::ffff:{LIP[4]}") / reply(6, there)
    r = b.send(Ether(src=server_mac(1), dst=MAC_LB1) / forged, 1)
    assert r.verdict in ("drop", "kernel") and r.out == []


def test_too_big_for_either_link() -> None:
    b = balancer(mtu=(1400, 1300))
    there = opened(b)
    r = b.send(from_client(ask(6, data=b"x" * 1400)))
    assert r.reason == "mtu_exceeded" and Ether(r.out[0][1])[ICMPv6PacketTooBig].mtu == 1320
    r = b.send(from_server(reply(4, there, b"x" * 1400)), 1)
    assert r.reason == "mtu_exceeded" and Ether(r.out[0][1])[ICMP].nexthopmtu == 1380


# --- errors about them ------------------------------------------------------------------------------------------------


def quotes(side: str, there: int, data: bytes) -> tuple[bytes, bytes]:
    """The quoted packet as it comes, and as it must leave."""
    if side == "server":
        came, leaves = ask(4, there, data), ask(6, data=data)
        return bytes(IP(src=LIP[4], dst=server(4, 1), ttl=3, id=9) / came), bytes(IPv6(src=CLIENT[6], dst=VIP[6], hlim=3) / leaves)
    came, leaves = reply(6, data=data), reply(4, there, data)
    df = 28 + len(data) > 1260
    head = IP(src=server(4, 1), dst=LIP[4], ttl=3, id=0, flags="DF" if df else 0)
    return bytes(IPv6(src=VIP[6], dst=CLIENT[6], hlim=3) / came), bytes(head / leaves)


@pytest.mark.parametrize("data", [b"", b"odd", b"x" * 200], ids=len)
@pytest.mark.parametrize(("side", "kind", "rest", "to", "want"), [
    ("server", (3, 1), 0, (1, 0), 0), ("server", (3, 10), 0, (1, 1), 0), ("server", (11, 0), 0, (3, 0), 0),
    ("server", (3, 4), 1400, (2, 0), 1420), ("client", (1, 0), 0, (3, 1), 0), ("client", (3, 0), 0, (11, 0), 0),
    ("client", (2, 0), 1400, (3, 4), 1380),
])  # fmt: skip
def test_errors(side: str, kind: tuple[int, int], rest: int, to: tuple[int, int], want: int, data: bytes) -> None:
    """About requests from the real server's side, about answers from the client's."""
    b = balancer()
    there = opened(b)
    before = b.engine.conns()
    came, leaves = quotes(side, there, data)
    judge(b.send(error(side, kind, rest, came), 1 if side == "server" else 0), side, to, want, leaves)
    assert b.engine.conns() == before and b.engine.counters()["icmp_mapped"] == 1
    other, _ = quotes(side, there + 1, data)
    r = b.send(error(side, kind, rest, other), 1 if side == "server" else 0)
    if side == "server":
        assert (r.verdict, r.reason) == ("kernel", "icmp_unmatched"), "the host may have asked"
    b.audit()


@pytest.mark.parametrize("side", ["client", "server"])
def test_short_quotes(side: str) -> None:
    """Eight bytes of the ping: its checksum, of what was not quoted too, is right over there."""
    b = balancer()
    there = opened(b)
    came, leaves = quotes(side, there, b"z" * 100)
    kind, to = ((3, 1), (1, 0)) if side == "server" else ((1, 0), (3, 1))
    head = {"client": (40, 20), "server": (20, 40)}[side]
    r = b.send(error(side, kind, 0, came[: head[0] + 8]), 1 if side == "server" else 0)
    judge(r, side, to, 0, leaves[: head[1] + 8])


# --- in fragments -----------------------------------------------------------------------------------------------------

SIZE = 2901
DATA = payload(SIZE)


def asked(b: Balancer, order: str, ident: int = ID) -> int:
    """A large ping; its identifier where it arrives, whole and right."""
    cut = ORDERS[order](fragment.from_client(6, ask(6, ident, DATA), ident=ident))
    frames = frames_out(send(b, cut))
    assert len(frames) == len(cut) and len({Ether(f)[IP].id for f in frames}) == 1
    whole = fragment.together(frames)
    there = int(whole[ICMP].id)
    assert fragment.from_addresses(whole) == fragment.expected(4, LIP[4], server(4, 1), ask(4, there, DATA))
    return there


def answered(b: Balancer, order: str, there: int, ident: int = ID) -> None:
    cut = ORDERS[order](fragment.from_server(4, reply(4, there, DATA), LIP[4], ident=ident))
    frames = frames_out(send(b, cut, 1))
    assert len(frames) == len(cut) and len({Ether(f)[IPv6ExtHdrFragment].id for f in frames}) == 1
    whole = fragment.together(frames)
    assert fragment.from_addresses(whole) == fragment.expected(6, VIP[6], CLIENT[6], reply(6, ident, DATA))


@pytest.mark.cell("nat64", "6", "icmp", "engine")
@ORDER
def test_large_ones(order: str) -> None:
    """The checksum is in the first fragment, and changes with the length, which the last one tells."""
    b = balancer()
    answered(b, order, asked(b, order))
    assert len(b.engine.conns()) == 1 and b.engine.used()["held"] == 0
    b.audit()


@WORKERS
@RSS
@pytest.mark.parametrize("order", ["in order", "reversed", "first second"])
def test_large_ones_by_whichever_worker(workers: int, rss: bool, order: str) -> None:
    c = Cluster(workers, **SETTINGS)
    if rss:
        c.set_rss(RSS_KEY, True)
    for n in range(2000, 2006):
        answered(c, order, asked(c, order, n), n)  # type: ignore[arg-type]
    assert len(c.conns()) == 6 and max(c.hops) <= 3
    c.audit()


def test_the_last_one_does_not_come() -> None:
    b = balancer()
    *most, _ = fragment.from_client(6, ask(6, data=DATA))
    assert send(b, most) == []
    assert b.engine.used()["held"] == len(most)
    b.later(31)
    assert b.engine.counters()["drops"]["frag_timeout"] == len(most) and b.engine.used()["held"] == 0
    b.audit()


# --- several workers --------------------------------------------------------------------------------------------------


@WORKERS
@RSS
def test_wherever_they_arrive(workers: int, rss: bool) -> None:
    c = Cluster(workers, **SETTINGS)
    if rss:
        c.set_rss(RSS_KEY, True)
    used = {}
    for ident in range(2000, 2040):
        used[ident] = opened(c, ident)  # type: ignore[arg-type]
        r = c.send(from_server(reply(4, used[ident])), 1)
        assert r.out == [(0, to_client(reply(6, ident)))], r
        quoted = bytes(IP(src=LIP[4], dst=server(4, 1)) / ask(4, used[ident]))
        assert c.send(error("server", (3, 1), 0, quoted), 1).verdict == "forward"
    assert len(set(used.values())) == 40 and max(c.hops) <= 1
    assert {r["worker"] for r in c.conns()} == set(range(workers))
    c.audit()


def test_others_answers_while_owners_change() -> None:
    """Connections stay with their workers: an identifier that the worker of before has given is not given again."""
    c = Cluster(2, **SETTINGS, ports=(10000, 10031))
    used = {ident: opened(c, ident) for ident in range(2000, 2010)}  # type: ignore[arg-type]
    table = spread(2)
    c.set_owner([1 - w for w in table], table)
    for a in c.members:
        a.engine.mark([m.engine for m in c.members])
    for ident in range(3000, 3010):
        r = c.send(ping(6, ident))
        if r.verdict == "forward":
            used[ident] = int(Ether(r.out[0][1])[ICMP].id)
        else:
            assert r.reason == "local_port_exhausted"
    assert len(set(used.values())) == len(used) > 12
    for ident, there in used.items():
        assert c.send(from_server(reply(4, there)), 1).out == [(0, to_client(reply(6, ident)))]


def test_a_real_server_that_echoes_is_not_asked_back() -> None:
    """Its own ping of the local address is the kernel's, though the tuple is the flow's but for the direction."""
    b = balancer()
    there = opened(b)
    assert b.send(from_server(ask(4, there)), 1).verdict == "kernel"
