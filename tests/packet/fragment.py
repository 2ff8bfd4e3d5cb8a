"""Datagrams in fragments, by scapy: cut, put in some order, sent, and put together again from what came out."""

from collections.abc import Callable, Sequence

from lbd._fastpath import Result
from scapy.layers.inet import IP, TCP, UDP, defragment, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, Balancer, ip, server, server_mac

Cut = list[Packet]  # of one datagram, in order, with Ethernet headers

ORDERS: dict[str, Callable[[Cut], Cut]] = {
    "in order": lambda c: c,
    "reversed": lambda c: c[::-1],
    "last first": lambda c: c[-1:] + c[:-1],
    "first last": lambda c: c[1:] + c[:1],
    "first second": lambda c: c[1:2] + c[:1] + c[2:],
    "twice each": lambda c: [p for p in c for _ in range(2)],
    "twice all": lambda c: c + c,
    "twice all, reversed": lambda c: c[::-1] + c,
}


def payload(size: int, seed: int = 1) -> bytes:
    return bytes((i * 31 + (i >> 8) * seed + seed) & 255 for i in range(size))


def segment(proto: str, sport: int, dport: int, data: bytes, seq: int = 1001, ack: int = 5001) -> Packet:
    if proto == "udp":
        return UDP(sport=sport, dport=dport) / Raw(data)
    return TCP(sport=sport, dport=dport, flags="PA", seq=seq, ack=ack) / Raw(data)


def cut(link: Packet, whole: Packet, size: int = 480, ident: int = 77) -> Cut:
    """whole: an IP packet, of whose payload each fragment gets `size` bytes at most."""
    if IP in whole:
        whole.id = ident
        return [link / p for p in fragment(whole, fragsize=size)]
    data, head = bytes(whole.payload), IPv6(src=whole.src, dst=whole.dst)
    cuts = []
    for o in range(0, len(data), size):
        header = IPv6ExtHdrFragment(id=ident, nh=whole.nh, offset=o // 8, m=int(o + size < len(data)))
        cuts.append(link / head / header / Raw(data[o : o + size]))
    return cuts


def built(p: Packet) -> Packet:
    """With its checksum in it: of the whole, before it is cut."""
    return (IP if IP in p else IPv6)(bytes(p))


def from_client(af: int, l4: Packet, size: int = 480, ident: int = 77, client: str = "") -> Cut:
    link = Ether(src=MAC_CLIENT, dst=MAC_LB0)
    return cut(link, built(ip(af, client or CLIENT[af], VIP[af]) / l4), size, ident)


def from_server(af: int, l4: Packet, dst: str, size: int = 480, ident: int = 99, n: int = 1) -> Cut:
    link = Ether(src=server_mac(n), dst=MAC_LB1)
    return cut(link, built(ip(af, server(af, n), dst) / l4), size, ident)


def send(b: Balancer, frames: Sequence[Packet | bytes], iface: int = 0) -> list[Result]:
    """All that left or is over, in that order: what was held stands where it was released, if it was not held again."""
    results = []
    for frame in frames:
        r = b.send(bytes(frame), iface)
        if r.verdict != "hold":
            results.append(r)
        results += [released for _, _, released in freed(b) if released.verdict != "hold"]
    return results


def freed(b: Balancer) -> list[tuple[bytes, int, Result]]:
    out, b.released = b.released, []
    return out


def frames_out(results: list[Result]) -> list[bytes]:
    for r in results:
        assert (r.verdict, r.reason) == ("forward", "none"), r
    return [frame for r in results for _, frame in r.out]


def inner(frame: bytes, mode: str, shim: int = 0) -> Packet:
    """The IP packet of the client's flow in it. shim: bytes between a tunnel's outer and inner header."""
    p = Ether(frame).payload
    if mode == "tunnel":
        assert not isinstance(p, IP) or p.frag == 0
        data = bytes(p.payload)[shim:]
        p = (IP if data[0] >> 4 == 4 else IPv6)(data)
    return p


def together(frames: list[bytes], mode: str = "fullnat", shim: int = 0) -> Packet:
    """The datagram, put together by scapy (which wants them in order); each fragment's own header is judged here."""
    packets = []
    for frame in dict.fromkeys(frames):
        p = inner(frame, mode, shim)
        if IP in p:
            right = p.copy()
            del right.chksum
            assert bytes(right) == bytes(p), "IPv4 header checksum or length"
        else:
            assert p.plen == len(bytes(p)) - 40
        packets.append(p)
    packets.sort(key=lambda p: p.frag if IP in p else p[IPv6ExtHdrFragment].offset)
    whole = defragment(packets) if IP in packets[0] else [defragment6(packets)]
    assert len(whole) == 1, f"{len(whole)} datagrams"
    return (IP if IP in packets[0] else IPv6)(bytes(whole[0]))


def addresses_of(mode: str, af: int) -> tuple[str, str]:
    """Source and destination of a client's packet, as the real server gets it."""
    if mode == "fullnat":
        return LIP[af], server(af, 1)
    return CLIENT[af], server(af, 1) if mode == "nat" else VIP[af]


def expected(af: int, src: str, dst: str, l4: Packet) -> bytes:
    """The datagram from its addresses on, built by scapy."""
    return bytes(ip(af, src, dst) / l4)[12 if af == 4 else 8 :]


def from_addresses(p: Packet) -> bytes:
    return bytes(p)[12 if IP in p else 8 :]
