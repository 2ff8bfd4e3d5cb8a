"""Frames of every kind that lbd may meet, by name: the material of the truncation and mutation tests and of the fuzzer's corpus.

Sent to a Balancer of this package as they are, by iface 0. SOUND ones are whole and well formed; ODD ones are not, or are the
kernel's. Built with scapy once, at import.
"""

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    RouterAlert,
)  # fmt: skip
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, LLC, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, VIP, ip, server

ETHER = Ether(src=MAC_CLIENT, dst=MAC_LB0)
SYN = TCP(sport=40000, dport=80, flags="S", seq=1000, options=[("MSS", 1460), ("SAckOK", b""), ("WScale", 7)])
ACK = TCP(sport=40000, dport=80, flags="PA", seq=1001, ack=5001) / Raw(b"GET / HTTP/1.1\r\n\r\n")
ASK = UDP(sport=40000, dport=80) / Raw(b"query")
HALF = UDP(sport=40000, dport=80, len=100, chksum=0x1234) / Raw(b"half a query is 24 bytes")


def both(af: int) -> dict[str, Packet]:
    """Kinds that both families have."""
    src, dst = CLIENT[af], VIP[af]
    head = ip(af, src, dst)
    return {
        "syn": head / SYN,
        "syn, bare": head / TCP(sport=40001, dport=80, flags="S"),
        "syn with data": head / SYN / Raw(b"early"),
        "ack with data": head / ACK,
        "fin": head / TCP(sport=40000, dport=80, flags="FA", seq=1001, ack=5001),
        "rst": head / TCP(sport=40000, dport=80, flags="R", seq=1001),
        "all flags": head / TCP(sport=40000, dport=80, flags="FSRPAU"),
        "no flags": head / TCP(sport=40000, dport=80, flags=""),
        "header of 60 bytes": head / TCP(sport=40000, dport=80, flags="A", options=[("NOP", None)] * 40),
        "udp": head / ASK,
        "udp, empty": head / UDP(sport=40000, dport=80),
        "udp, no checksum": head / UDP(sport=40000, dport=80, chksum=0) / Raw(b"x"),
        "udp, large": head / UDP(sport=40000, dport=80) / Raw(b"x" * 1400),
        "other port": head / TCP(sport=40000, dport=22, flags="S"),
        "answer": ip(af, server(af, 1), LIP[af]) / TCP(sport=8080, dport=30000, flags="SA", seq=5000, ack=1001),
        "answer, udp": ip(af, server(af, 1), LIP[af]) / UDP(sport=8080, dport=30000) / Raw(b"answer"),
        "tagged": Dot1Q(vlan=7) / head / SYN,
        "tagged twice": Dot1AD(vlan=9) / Dot1Q(vlan=7) / head / SYN,
        "tagged twice, 802.1q": Dot1Q(vlan=9) / Dot1Q(vlan=7) / head / ASK,
        "tagged three times": Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / head / SYN,
        "priority tag": Dot1Q(vlan=0, prio=5) / head / SYN,
        "somebody else's": ip(af, src, "203.0.113.9" if af == 4 else "2001:db8:9::9") / SYN,
        "gre": head / GRE() / ip(4, "10.0.0.1", "10.0.0.2") / UDP(sport=1, dport=2),
        "ip in ip": head / ip(4, "10.0.0.1", "10.0.0.2") / ASK,
        "esp": head / ESP(spi=1, seq=1, data=b"x" * 24),
        "ah": head / AH(spi=1, seq=1, icv=b"x" * 12) / SYN,
    }


def quoted(af: int, l4: Packet) -> Packet:
    """What a router on the client's side quotes: an answer of ours to the client."""
    return ip(af, VIP[af], CLIENT[af]) / l4


OURS = TCP(sport=80, dport=40000, flags="A", seq=5001, ack=1001)
ERROR4, ERROR6 = IP(src=CLIENT[4], dst=VIP[4]), IPv6(src=CLIENT[6], dst=VIP[6])

V4: dict[str, Packet] = {
    "options: record route": IP(src=CLIENT[4], dst=VIP[4], options=[IPOption_RR()]) / SYN,
    "options: source route": IP(src=CLIENT[4], dst=VIP[4], options=[IPOption_LSRR(routers=["10.0.0.1", "10.0.0.2"])]) / SYN,
    "options: 40 bytes": IP(src=CLIENT[4], dst=VIP[4], options=[IPOption_NOP()] * 40) / ASK,
    "options: timestamp": IP(src=CLIENT[4], dst=VIP[4], options=[IPOption_Timestamp()]) / SYN,
    "first fragment": IP(src=CLIENT[4], dst=VIP[4], flags="MF") / HALF,
    "first fragment, not of eights": IP(src=CLIENT[4], dst=VIP[4], flags="MF") / ASK,
    "later fragment": IP(src=CLIENT[4], dst=VIP[4], frag=100, proto=17) / Raw(b"x" * 40),
    "overwriting fragment": IP(src=CLIENT[4], dst=VIP[4], frag=1, proto=6) / Raw(b"x" * 40),
    "tiny fragment": IP(src=CLIENT[4], dst=VIP[4], flags="MF", proto=6) / Raw(b"12345678"),
    "fragment beyond 65535": IP(src=CLIENT[4], dst=VIP[4], frag=8190, proto=17) / Raw(b"x" * 64),
    "fragment of icmp": IP(src=CLIENT[4], dst=VIP[4], flags="MF") / ICMP() / Raw(b"x" * 32),
    "echo": ERROR4 / ICMP() / Raw(b"ping"),
    "unreachable": ERROR4 / ICMP(type=3, code=1) / quoted(4, OURS),
    "frag needed": ERROR4 / ICMP(type=3, code=4, nexthopmtu=1300) / quoted(4, OURS / Raw(b"x" * 500)),
    "time exceeded, udp": ERROR4 / ICMP(type=11) / quoted(4, UDP(sport=80, dport=40000) / Raw(b"answer")),
    "parameter problem": ERROR4 / ICMP(type=12, ptr=20) / quoted(4, OURS),
    "error with options, quoting options": IP(src=CLIENT[4], dst=VIP[4], options=[IPOption_NOP()] * 4) / ICMP(type=3, code=1)
    / IP(src=VIP[4], dst=CLIENT[4], options=[IPOption_RR()]) / OURS,
    "error about an error": ERROR4 / ICMP(type=3, code=1) / quoted(4, ICMP(type=3, code=1) / IP() / UDP()),
    "error quoting a fragment": ERROR4 / ICMP(type=3, code=1) / IP(src=VIP[4], dst=CLIENT[4], frag=9, proto=6) / Raw(b"x" * 8),
    "redirect": ERROR4 / ICMP(type=5, gw="10.0.0.9") / quoted(4, OURS),
    "source quench": ERROR4 / ICMP(type=4) / quoted(4, OURS),
    "from 0.0.0.0": IP(src="0.0.0.0", dst=VIP[4]) / SYN,
    "from loopback": IP(src="127.0.0.1", dst=VIP[4]) / SYN,
    "from multicast": IP(src="224.0.0.1", dst=VIP[4]) / SYN,
    "from broadcast": IP(src="255.255.255.255", dst=VIP[4]) / ASK,
    "land": IP(src=VIP[4], dst=VIP[4]) / TCP(sport=80, dport=80, flags="S"),
    "ttl 1": IP(src=CLIENT[4], dst=VIP[4], ttl=1) / SYN,
    "ttl 0": IP(src=CLIENT[4], dst=VIP[4], ttl=0) / SYN,
    "version 5": IP(src=CLIENT[4], dst=VIP[4], version=5) / SYN,
    "ihl 4": IP(src=CLIENT[4], dst=VIP[4], ihl=4) / SYN,
    "ihl 15": IP(src=CLIENT[4], dst=VIP[4], ihl=15) / SYN,
    "length too long": IP(src=CLIENT[4], dst=VIP[4], len=2000) / SYN,
    "length too short": IP(src=CLIENT[4], dst=VIP[4], len=19) / SYN,
    "length ends in tcp": IP(src=CLIENT[4], dst=VIP[4], len=39) / TCP(sport=1, dport=80, flags="S"),
    "wrong ip checksum": IP(src=CLIENT[4], dst=VIP[4], chksum=0x1234) / SYN,
    "wrong tcp checksum": IP(src=CLIENT[4], dst=VIP[4]) / TCP(sport=1, dport=80, flags="S", chksum=0x1234),
    "data offset 4": IP(src=CLIENT[4], dst=VIP[4]) / TCP(sport=1, dport=80, flags="S", dataofs=4),
    "data offset 15": IP(src=CLIENT[4], dst=VIP[4]) / TCP(sport=1, dport=80, flags="S", dataofs=15),
    "udp length 7": IP(src=CLIENT[4], dst=VIP[4]) / UDP(sport=1, dport=80, len=7) / Raw(b"x"),
    "udp length beyond": IP(src=CLIENT[4], dst=VIP[4]) / UDP(sport=1, dport=80, len=1000) / Raw(b"x"),
    "udp length within": IP(src=CLIENT[4], dst=VIP[4]) / UDP(sport=1, dport=80, len=9) / Raw(b"xOPTIONS"),
    "sctp": IP(src=CLIENT[4], dst=VIP[4], proto=132) / Raw(b"x" * 20),
}  # fmt: skip


def v6(*chain: Packet, l4: Packet = SYN, **fields: int) -> Packet:
    p: Packet = IPv6(src=CLIENT[6], dst=VIP[6], **fields)
    for header in chain:
        p = p / header
    return p / l4


def quoted6(l4: Packet, *chain: Packet) -> Packet:
    p: Packet = IPv6(src=VIP[6], dst=CLIENT[6])
    for header in chain:
        p = p / header
    return p / l4


V6: dict[str, Packet] = {
    "hop by hop": v6(IPv6ExtHdrHopByHop(options=[RouterAlert()])),
    "destination options": v6(IPv6ExtHdrDestOpt(), l4=ASK),
    "routing header": v6(IPv6ExtHdrRouting(addresses=["2001:db8::5"], segleft=0)),
    "chain of 8": v6(IPv6ExtHdrHopByHop(), *[IPv6ExtHdrDestOpt() for _ in range(7)]),
    "chain of 9": v6(IPv6ExtHdrHopByHop(), *[IPv6ExtHdrDestOpt() for _ in range(8)]),
    "chain of 100": v6(*[IPv6ExtHdrDestOpt() for _ in range(100)]),
    "jumbo": v6(IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=70000)]), plen=0),
    "first fragment": v6(IPv6ExtHdrFragment(m=1), l4=HALF),
    "first fragment, not of eights": v6(IPv6ExtHdrFragment(m=1), l4=ASK),
    "later fragment": v6(IPv6ExtHdrFragment(offset=100, nh=17), l4=Raw(b"x" * 40)),
    "atomic fragment": v6(IPv6ExtHdrFragment(), l4=ASK),
    "later fragment, options in it": v6(IPv6ExtHdrFragment(offset=100, nh=60), l4=Raw(b"x" * 40)),
    "atomic fragment, options in it": v6(IPv6ExtHdrFragment(), IPv6ExtHdrDestOpt(), l4=ASK),
    "fragment behind options": v6(IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1), l4=HALF),
    "fragment of half a chain": v6(IPv6ExtHdrFragment(m=1, nh=60), l4=Raw(b"\x06\x02" + bytes(14))),
    "fragment of a fragment": v6(IPv6ExtHdrFragment(m=1), IPv6ExtHdrFragment(m=1), l4=HALF),
    "tiny fragment": v6(IPv6ExtHdrFragment(m=1, nh=6), l4=Raw(b"12345678")),
    "overwriting fragment": v6(IPv6ExtHdrFragment(offset=1, nh=6), l4=Raw(b"x" * 40)),
    "fragment of icmp": v6(IPv6ExtHdrFragment(m=1), l4=ICMPv6EchoRequest(data=b"x" * 32)),
    "ah behind options": v6(IPv6ExtHdrDestOpt(), AH(spi=1, seq=1, icv=b"x" * 12)),
    "no next header": v6(l4=Raw(b"rest"), nh=59),
    "echo": v6(l4=ICMPv6EchoRequest(data=b"ping")),
    "neighbour solicitation": Ether(src=MAC_CLIENT, dst="33:33:ff:00:00:10")
    / IPv6(src="::", dst="ff02::1:ff00:10") / ICMPv6ND_NS(tgt=VIP[6]),
    "unreachable": ERROR6 / ICMPv6DestUnreach(code=3) / quoted6(OURS),
    "too big": ERROR6 / ICMPv6PacketTooBig(mtu=1300) / quoted6(OURS / Raw(b"x" * 500)),
    "time exceeded, udp": ERROR6 / ICMPv6TimeExceeded() / quoted6(UDP(sport=80, dport=40000) / Raw(b"answer")),
    "parameter problem": ERROR6 / ICMPv6ParamProblem(code=0, ptr=40) / quoted6(OURS),
    "error quoting options": ERROR6 / ICMPv6DestUnreach() / quoted6(OURS, IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()),
    "error behind options": v6(IPv6ExtHdrDestOpt(), l4=ICMPv6DestUnreach() / quoted6(OURS)),
    "error about an error": ERROR6 / ICMPv6DestUnreach() / quoted6(ICMPv6DestUnreach() / IPv6() / UDP()),
    "error quoting a fragment": ERROR6 / ICMPv6DestUnreach() / quoted6(OURS, IPv6ExtHdrFragment(offset=9, nh=6)),
    "error quoting a first fragment, unreachable": ERROR6 / ICMPv6DestUnreach() / quoted6(OURS, IPv6ExtHdrFragment(m=1)),
    "error quoting nine headers": ERROR6 / ICMPv6DestUnreach() / quoted6(OURS, *[IPv6ExtHdrDestOpt() for _ in range(9)]),
    "from ::": IPv6(src="::", dst=VIP[6]) / SYN,
    "from ::1": IPv6(src="::1", dst=VIP[6]) / SYN,
    "from a mapped address": IPv6(src="::ffff:192.0.2.1", dst=VIP[6]) / SYN,
    "from multicast": IPv6(src="ff02::1", dst=VIP[6]) / SYN,
    "hop limit 1": v6(hlim=1),
    "hop limit 0": v6(hlim=0),
    "version 4": v6(version=4),
    "length too long": v6(plen=2000),
    "length too short": v6(plen=19),
    "length 0": v6(plen=0),
    "wrong tcp checksum": v6(l4=TCP(sport=1, dport=80, flags="S", chksum=0x1234)),
    "data offset 4": v6(l4=TCP(sport=1, dport=80, flags="S", dataofs=4)),
    "udp length beyond": v6(l4=UDP(sport=1, dport=80, len=1000) / Raw(b"x")),
}  # fmt: skip

OTHER: dict[str, Packet] = {
    "arp": ETHER / ARP(hwsrc=MAC_CLIENT, psrc=CLIENT[4], pdst=VIP[4]),
    "lldp": Ether(src=MAC_CLIENT, dst=MAC_LB0, type=0x88CC) / Raw(b"\x02\x07\x04\x00\x01\x02\x03\x04\x05\x00\x00"),
    "stp": Dot3(src=MAC_CLIENT, dst="01:80:c2:00:00:00") / LLC() / STP(),
    "unknown ethertype": Ether(src=MAC_CLIENT, dst=MAC_LB0, type=0x1234) / Raw(b"x" * 46),
    "mpls": Ether(src=MAC_CLIENT, dst=MAC_LB0, type=0x8847) / Raw(b"\x00\x01\x01\x40" + bytes(40)),
    "padded to 60 bytes": ETHER / IP(src=CLIENT[4], dst=VIP[4]) / TCP(sport=9, dport=80, flags="S") / Raw(b""),
}


def frame(p: Packet) -> bytes:
    return bytes(p if isinstance(p, Ether | Dot3) else ETHER / p)


TEMPLATES: dict[str, bytes] = (
    {f"4 {name}": frame(p) for name, p in (both(4) | V4).items()}
    | {f"6 {name}": frame(p) for name, p in (both(6) | V6).items()}
    | {name: frame(p) for name, p in OTHER.items()}
)
TEMPLATES["padded to 60 bytes"] = TEMPLATES["padded to 60 bytes"].ljust(60, b"\0")
