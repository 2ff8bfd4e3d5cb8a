"""ICMP errors about a tunnel's outer header: what a router on the way to the real server says, what the client is told of it."""

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, OWN, VIP, Balancer, ip, packed, server, server_mac
from tests.packet.cluster import Cluster
from tests.packet.test_mode import client_flow, segment
from tests.packet.test_tunnel import FAMILIES, KIND, KINDS, OUTER, PORT, PROTOS, Kind, balancer, data, from_client, too_big

ROUTER = {4: "10.99.0.1", 6: "fd99::1"}
FRAG_NEEDED, TOO_BIG = (3, 4), (2, 0)


def error(oaf: int, what: tuple[int, int], sent: bytes, mtu: int = 0, quote: int = 0, to: str = "") -> Packet:
    """About `sent`, a frame of lbd's, of which so many bytes of IP are quoted (0: as many as a router of today quotes)."""
    told = Raw(sent[14:][: quote or (548 if oaf == 4 else 1232)])
    link = Ether(src=server_mac(9), dst=MAC_LB1)
    if oaf == 4:
        return link / IP(src=ROUTER[4], dst=to or LIP[4]) / ICMP(type=what[0], code=what[1], nexthopmtu=mtu) / told
    kind = {1: ICMPv6DestUnreach, 2: ICMPv6PacketTooBig, 3: ICMPv6TimeExceeded, 4: ICMPv6ParamProblem}[what[0]]
    return link / IPv6(src=ROUTER[6], dst=to or LIP[6]) / kind(code=what[1], **({"mtu": mtu} if what[0] == 2 else {})) / told


def told(af: int, quoted: bytes, mtu: int | None) -> bytes:
    """What the client gets: too big for `mtu`, None: unreachable."""
    link = Ether(src=MAC_LB0, dst=MAC_CLIENT)
    if af == 4:
        icmp = ICMP(type=3, code=1) if mtu is None else ICMP(type=3, code=4, nexthopmtu=mtu)
        return bytes(link / IP(src=OWN[0][0], dst=CLIENT[4], id=0, ttl=64) / icmp / Raw(quoted[:548]))
    icmp6 = ICMPv6DestUnreach(code=3) if mtu is None else ICMPv6PacketTooBig(mtu=mtu)
    return bytes(link / IPv6(src=OWN[0][1], dst=CLIENT[6]) / icmp6 / Raw(quoted[:1232]))


def opened(kind: Kind, af: int, oaf: int, proto: str = "tcp", **more: object) -> tuple[Balancer, bytes]:
    """And a large packet of its, as it left."""
    b = balancer(kind, af, oaf, **more)
    b.send(from_client(af, client_flow(proto)[0]))
    if proto == "udp":
        return b, b.send(from_client(af, segment("udp", "", 40000, 80, b"x" * 1300))).out[0][1]
    return b, b.send(data(af, 1400)).out[0][1]


def inner(kind: Kind, oaf: int, sent: bytes) -> bytes:
    return sent[14 + (20 if oaf == 4 else 40) + kind.shim :]


def over(kind: Kind, oaf: int) -> int:
    return (20 if oaf == 4 else 40) + kind.shim


@KIND
@OUTER
@FAMILIES
@PROTOS
def test_too_big_is_relayed_and_remembered(kind: Kind, oaf: int, af: int, proto: str) -> None:
    b, sent = opened(kind, af, oaf, proto)
    mtu = 1400
    r = b.send(error(oaf, FRAG_NEEDED if oaf == 4 else TOO_BIG, sent, mtu), 1)
    left = mtu - over(kind, oaf)
    size = 548 if oaf == 4 else 1232
    quoted = inner(kind, oaf, sent[: 14 + size])
    assert (r.verdict, r.out) == ("forward", [(0, told(af, quoted, left))])
    if proto == "tcp":
        r = b.send(data(af, left + 1))
        assert (r.verdict, r.reason) == ("consume", "mtu_exceeded") and too_big(af, r.out[0][1]) == left
        assert b.send(data(af, left)).verdict == "forward"
        b.later(601)
        assert b.send(data(af, left + 1)).verdict == "forward", "forgotten after ten minutes"
    assert b.engine.counters()["icmp_mapped"] == 1
    b.audit()


@FAMILIES
@OUTER
def test_what_else_is_said(af: int, oaf: int) -> None:
    """Unreachable, of whatever kind, and TTL used up: the client's own packet is unreachable."""
    unreachable = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 13), (11, 0)] if oaf == 4 else [(1, 0), (1, 1), (1, 3), (1, 4), (3, 0)]
    nothing = [(3, 5), (11, 1), (12, 0)] if oaf == 4 else [(3, 1), (4, 0)]
    b, sent = opened(KINDS[1], af, oaf)
    for what in unreachable:
        r = b.send(error(oaf, what, sent), 1)
        quoted = inner(KINDS[1], oaf, sent[: 14 + (548 if oaf == 4 else 1232)])
        assert (r.verdict, r.out) == ("forward", [(0, told(af, quoted, None))])
    for what in nothing:
        r = b.send(error(oaf, what, sent), 1)
        assert (r.verdict, r.reason) == ("drop", "icmp_unsupported")
    b.audit()


@KIND
@OUTER
@FAMILIES
def test_short_quotes(kind: Kind, oaf: int, af: int) -> None:
    """What is quoted must hold the inner ports and, since that tells a blind sender, 4 bytes more."""
    b, sent = opened(kind, af, oaf)
    need = over(kind, oaf) + (20 if af == 4 else 40) + 8
    for size in range(1, need):
        r = b.send(error(oaf, FRAG_NEEDED if oaf == 4 else TOO_BIG, sent, 1400, size), 1)
        least = (20 if oaf == 4 else 40) + 8
        assert (r.verdict, r.reason) == ("drop", "malformed" if size < least else "icmp_short"), size
    assert b.send(data(af, 1400)).verdict == "forward", "nothing was learned"
    r = b.send(error(oaf, FRAG_NEEDED if oaf == 4 else TOO_BIG, sent, 1400, need), 1)
    assert r.out == [(0, told(af, inner(kind, oaf, sent[: 14 + need]), 1400 - over(kind, oaf)))]
    b.audit()


def forged(kind: Kind, oaf: int, af: int, sent: bytes) -> dict[str, Packet]:
    what = FRAG_NEEDED if oaf == 4 else TOO_BIG
    at = 14 + over(kind, oaf) + (20 if af == 4 else 40)
    seq = bytearray(sent)
    seq[at + 4 : at + 8] = bytes([0x40, 0, 0, 0])
    to = bytearray(sent)
    to[14 + (19 if oaf == 4 else 39)] ^= 3
    sport = bytearray(sent)
    sport[at] ^= 1
    wrong = bytearray(bytes(error(oaf, what, sent, 1000)))
    wrong[-1] ^= 1
    return {
        "sequence number": error(oaf, what, bytes(seq), 1000), "real server": error(oaf, what, bytes(to), 1000),
        "flow": error(oaf, what, bytes(sport), 1000), "checksum": Ether(bytes(wrong)),
        "about another host": error(oaf, what, sent, 1000, to=OWN[1][0 if oaf == 4 else 1]),
    }  # fmt: skip


@KIND
@OUTER
@FAMILIES
def test_forged_ones_change_nothing(kind: Kind, oaf: int, af: int) -> None:
    b, sent = opened(kind, af, oaf)
    for name, packet in forged(kind, oaf, af, sent).items():
        r = b.send(packet, 1)
        assert r.verdict == ("kernel" if name == "about another host" else "drop"), name
        assert r.reason == ("bad_checksum" if name == "checksum" else "icmp_unmatched"), name
    assert b.send(data(af, 1400)).verdict == "forward"
    b.audit()


@OUTER
def test_what_the_host_wraps_itself_is_the_kernels(oaf: int) -> None:
    """A tunnel of its own to the same real server: nothing in it is for a service."""
    b, _ = opened(KINDS[0], 4, oaf)
    other = ip(oaf, LIP[oaf], server(oaf, 1), **({"proto": 4} if oaf == 4 else {"nh": 4}))
    inside = IP(src="10.1.1.1", dst="10.2.2.2") / segment("tcp", "A", 22, 999)
    mine = Ether(src=MAC_LB1, dst=server_mac(1)) / other / Raw(bytes(inside))
    r = b.send(error(oaf, (3, 1) if oaf == 4 else (1, 3), bytes(mine)), 1)
    assert (r.verdict, r.reason) == ("kernel", "icmp_unmatched")


@pytest.mark.parametrize("said,believed", [(0, 576), (100, 576), (600, 600), (9000, 9000)])
def test_odd_mtus(said: int, believed: int) -> None:
    """A router of before RFC 1191 says none; less than 576 is not believed."""
    b, sent = opened(KINDS[0], 4, 4)
    r = b.send(error(4, FRAG_NEEDED, sent, said), 1)
    assert too_big(4, r.out[0][1]) == believed - 20
    room = min(believed, 1500) - 20
    assert b.send(data(4, room)).verdict == "forward" and b.send(data(4, room + 1)).verdict == "consume"


def test_ipv6_is_never_told_less_than_1280() -> None:
    b, sent = opened(KINDS[0], 6, 4)
    r = b.send(error(4, FRAG_NEEDED, sent, 1200), 1)
    assert too_big(6, r.out[0][1]) == 1280


def test_what_may_be_fragmented_is_not_refused() -> None:
    b, sent = opened(KINDS[0], 4, 4)
    b.send(error(4, FRAG_NEEDED, sent, 1000), 1)
    assert b.send(data(4, 1400, df=False)).verdict == "forward"
    assert b.send(data(4, 1400)).verdict == "consume"


def test_a_later_real_server_does_not_inherit_it() -> None:
    b, sent = opened(KINDS[0], 4, 4)
    b.send(error(4, FRAG_NEEDED, sent, 1000), 1)
    b.do(shm.dest_set(0, 2, af=4, addr=packed(server(4, 1)), port=80, svc=0, fresh=True))
    assert b.send(data(4, 1400)).verdict == "forward"


def test_the_way_to_the_client() -> None:
    b, sent = opened(KINDS[0], 4, 4)
    b.do(shm.iface_set(0, 2, mac=bytes([2, 0, 0, 0, 1, 0]), mtu=1500, ifindex=2, flags=0))
    r = b.send(error(4, FRAG_NEEDED, sent, 1400), 1)
    assert (r.verdict, r.reason) == ("drop", "link_down")


def test_no_address_of_its_own() -> None:
    """The VIP stands in, as for lbd's other errors."""
    b, sent = opened(KINDS[0], 4, 4)
    b.do(shm.iface_set(0, 2, mac=bytes([2, 0, 0, 0, 1, 0]), mtu=1500, ifindex=2))
    assert Ether(b.send(error(4, FRAG_NEEDED, sent, 1400), 1).out[0][1])[IP].src == VIP[4]


@KIND
@OUTER
@FAMILIES
@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers(kind: Kind, oaf: int, af: int, workers: int) -> None:
    """It arrives at any worker, and the flow's owner relays it."""
    port = PORT if kind.protocol == 17 else 0
    c = Cluster(workers, mode=shm.MODE_TUNNEL, servers=1, tunnel=kind.way, tunnel_port=port, cross=af != oaf)
    for n in range(3000, 3020):
        c.send(from_client(af, segment("tcp", "S", n, 80)))
        sent = c.send(from_client(af, segment("tcp", "A", n, 80, b"x" * 1000, seq=1001, ack=1))).out[0][1]
        r = c.send(error(oaf, FRAG_NEEDED if oaf == 4 else TOO_BIG, sent, 1300), 1)
        assert r.verdict == "forward" and too_big(af, r.out[0][1]) == max(1300 - over(kind, oaf), 1280 if af == 6 else 0)
    assert max(c.hops) == 1 and c.totals("icmp_mapped") == 20
    c.audit()


def test_flow_labels_do_not_matter() -> None:
    b, sent = opened(KINDS[0], 6, 6)
    changed = bytearray(sent)
    changed[17] ^= 0x5A
    assert b.send(error(6, TOO_BIG, bytes(changed), 1400), 1).verdict == "forward"


def test_options_in_the_quoted_outer_header() -> None:
    b, sent = opened(KINDS[0], 4, 4)
    longer = bytearray(sent[:34] + b"\x01" * 4 + sent[34:])
    longer[14] = 0x46
    r = b.send(error(4, FRAG_NEEDED, bytes(longer), 1400, 200), 1)
    assert r.verdict == "forward" and too_big(4, r.out[0][1]) == 1380


