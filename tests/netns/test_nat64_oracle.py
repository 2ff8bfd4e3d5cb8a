# SPDX-License-Identifier: Apache-2.0
"""The same packets through Debian's tayga, an independent translator, and through lbd's engine: the same bytes come out.

tayga knows RFC 6145, which RFC 7915 has succeeded. Addresses and ports are made the same: it maps the client to the LIP and the
VIP to the real server, one to one; lbd has one local port, the client's, and the service's port is the real server's.
What still differs is listed with its reason (`plain`, DIFFERENT).
"""

import itertools
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_LSRR, IPOption_RR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from lbd.testbed import Namespace
from lbd.testbed.netns import wait_until
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, PROTO, VIP, Balancer, packed, server, server_mac
from tests.packet.test_nat64_icmp import TABLE
from tests.unit import _engine

pytestmark = [pytest.mark.root, pytest.mark.netns]

CPORT, PORT = 40000, 8080
SERVER = server(4, 1)
CONF = f"""\
tun-device nat64
ipv4-addr 10.77.0.250
ipv6-addr 2001:db8:77::250
map {LIP[4]} {CLIENT[6]}
map {SERVER} {VIP[6]}
"""


def balancer() -> Balancer:
    """Both flows established."""
    b = Balancer(cross=True, servers=1, ports=(CPORT, CPORT))
    for svc, proto in ((2, "tcp"), (3, "udp")):
        at = {"table_off": svc * 64, "table_len": 1}
        b.do(shm.svc_set(svc, 2, af=6, addr=packed(VIP[6]), port=PORT, proto=PROTO[proto], sched=0, **at))
    for packet in (
        v6(TCP(sport=CPORT, dport=PORT, flags="S", seq=1000)),
        v4(TCP(sport=PORT, dport=CPORT, flags="SA", seq=5000, ack=1001)),
        v6(TCP(sport=CPORT, dport=PORT, flags="A", seq=1001, ack=5001)),
        v6(UDP(sport=CPORT, dport=PORT) / Raw(b"q")),
        v4(UDP(sport=PORT, dport=CPORT) / Raw(b"a")),
    ):
        assert through_engine(b, bytes(packet))
    return b


def through_engine(b: Balancer, packet: bytes) -> list[bytes]:
    """What of it leaves in the other family."""
    b.now += 1_000_000_000
    if packet[0] >> 4 == 6:
        r = b.send(bytes(Ether(src=MAC_CLIENT, dst=MAC_LB0, type=0x86DD)) + packet, 0)
    else:
        r = b.send(bytes(Ether(src=server_mac(1), dst=MAC_LB1, type=0x0800)) + packet, 1)
    return [frame[14:] for _, frame in r.out] if r.verdict == "forward" else []


def v6(l4: Packet, *chain: Packet, **fields: int) -> Packet:
    p: Packet = IPv6(src=CLIENT[6], dst=VIP[6], **fields)
    for header in chain:
        p = p / header
    return p / l4


def v4(l4: Packet, **fields: object) -> Packet:
    return IP(src=SERVER, dst=LIP[4], **fields) / l4


def segments(sport: int, dport: int) -> Iterator[tuple[str, Packet]]:
    numbers = {"seq": 1001, "ack": 5001} if sport == CPORT else {"seq": 5001, "ack": 1001}
    for size in (0, 1, 9, 500, 1180):
        data = [Raw(bytes(i % 251 for i in range(size)))] if size else []
        for l4 in (TCP(sport=sport, dport=dport, flags="PA", **numbers), UDP(sport=sport, dport=dport)):
            yield f"{l4.name}, {size} bytes", l4 / data[0] if data else l4
    options = [("MSS", 1440), ("SAckOK", b""), ("Timestamp", (1, 2)), ("WScale", 7)]
    yield "TCP with options", TCP(sport=sport, dport=dport, flags="A", options=options, **numbers)


def packets6() -> Iterator[tuple[str, Packet]]:
    for name, l4 in segments(CPORT, PORT):
        yield name, v6(l4)
    ask = UDP(sport=CPORT, dport=PORT) / Raw(b"question")
    for tc, hops, label in ((0xFF, 2, 0), (0xB8, 255, 0xFFFFF), (3, 64, 1)):
        yield f"class {tc:#x}, {hops} hops, label {label:#x}", v6(ask, tc=tc, hlim=hops, fl=label)
    yield "above 1280 bytes", v6(UDP(sport=CPORT, dport=PORT) / Raw(b"x" * 1300))
    yield "hop-by-hop options", v6(ask, IPv6ExtHdrHopByHop())
    yield "destination options, twice", v6(ask, IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt())
    yield "a finished routing header", v6(ask, IPv6ExtHdrRouting(addresses=["2001:db8::5"], segleft=0))
    yield "a routing header", v6(ask, IPv6ExtHdrRouting(addresses=["2001:db8::5"], segleft=1))
    yield "no checksum, IPv6", v6(UDP(sport=CPORT, dport=PORT, chksum=0) / Raw(b"x"))


def packets4() -> Iterator[tuple[str, Packet]]:
    for name, l4 in segments(PORT, CPORT):
        yield name, v4(l4, flags="DF", id=7)
    answer = UDP(sport=PORT, dport=CPORT) / Raw(b"answer")
    for tos, ttl in ((0xFF, 2), (0xB8, 255), (3, 64)):
        yield f"type of service {tos:#x}, {ttl} hops", v4(answer, tos=tos, ttl=ttl, flags="DF")
    yield "may be fragmented", v4(answer, id=99)
    yield "may be fragmented, above 1260 bytes", v4(UDP(sport=PORT, dport=CPORT) / Raw(b"x" * 1300), id=99)
    yield "record route", v4(answer, flags="DF", options=[IPOption_RR()])
    routed = v4(UDP(sport=PORT, dport=CPORT, chksum=0x1234) / Raw(b"x"), flags="DF", options=[IPOption_LSRR(routers=["10.0.0.1"])])
    yield "source route", routed
    yield "no checksum, IPv4", v4(UDP(sport=PORT, dport=CPORT, chksum=0) / Raw(b"answer"), flags="DF")


def icmp(packet: Packet, kind: tuple[int, int], rest: int, quoted: bytes) -> bytes:
    """The whole packet with this ICMP message."""
    body = bytearray(struct.pack("!BBHI", *kind, 0, rest) + quoted)
    six = IPv6 in packet
    start = _engine.pseudo_sum(packed(packet[IPv6].src), packed(packet[IPv6].dst), 58, len(body)) if six else 0
    struct.pack_into("!H", body, 2, _engine.checksum(bytes(body), start))
    return bytes(packet / Raw(bytes(body)))


def errors6() -> Iterator[tuple[str, bytes]]:
    """Of the client, about what it was sent."""
    head = IPv6(src=CLIENT[6], dst=VIP[6], nh=58, tc=0x10)
    rows = [(t, c, 1300 if t == 2 else 0) for t, c, _ in TABLE["icmp6"]] + [(4, 0, p) for p, _ in TABLE["pointer6"]]
    tcp, udp = TCP(sport=PORT, dport=CPORT, flags="A", seq=5001, ack=1001), UDP(sport=PORT, dport=CPORT)
    for l4 in (tcp / Raw(b"odd"), udp / Raw(b"odd!")):
        quoted = bytes(IPv6(src=VIP[6], dst=CLIENT[6], hlim=3, tc=0x20) / l4)
        for t, c, rest in rows:
            yield f"ICMPv6 {t}, {c}, {rest} about {l4.name}", icmp(head, (t, c), rest, quoted)


def errors4() -> Iterator[tuple[str, bytes]]:
    head = IP(src=SERVER, dst=LIP[4], proto=1, tos=0x10, flags="DF")
    rows = [(t, c, 1300 if (t, c) == (3, 4) else 0) for t, c, _ in TABLE["icmp4"]]
    rows += [(12, 0, p << 24) for p, _ in TABLE["pointer4"]]
    tcp, udp = TCP(sport=CPORT, dport=PORT, flags="A", seq=1001, ack=5001), UDP(sport=CPORT, dport=PORT)
    for l4 in (tcp / Raw(b"odd"), udp / Raw(b"odd!")):
        quoted = bytes(IP(src=LIP[4], dst=SERVER, ttl=3, tos=0x20, flags="DF") / l4)
        for t, c, rest in rows:
            yield f"ICMP {t}, {c}, {rest:#x} about {l4.name}", icmp(head, (t, c), rest, quoted)


CASES: dict[str, bytes] = dict(
    itertools.chain(
        ((f"to IPv4: {name}", bytes(p)) for name, p in packets6()),
        ((f"to IPv6: {name}", bytes(p)) for name, p in packets4()),
        errors6(),
        errors4(),
    )
)


@pytest.fixture(scope="module")
def tayga(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[bytes]]]:
    """What became of each case."""
    if not shutil.which("tayga"):
        pytest.skip("needs tayga (make setup installs it)")
    directory = tmp_path_factory.mktemp("tayga")
    (directory / "tayga.conf").write_text(CONF)
    ns = Namespace("lbdt-tayga")
    ns.remove()
    ns.add()
    try:
        ns.sysctl(net__ipv6__conf__all__disable_ipv6=1, net__ipv6__conf__default__disable_ipv6=1)
        with open(directory / "log", "wb") as log:
            ns.popen(["tayga", "--nodetach", "--config", directory / "tayga.conf"], stdout=log, stderr=log)
        wait_until("tayga has its device", lambda: "nat64" in ns.run(["ip", "-br", "link"]), 10)
        ns.ip("link set nat64 mtu 1500 up")
        marker = bytes(v6(UDP(sport=1, dport=1) / Raw(b"marker0000")))
        script = Path(__file__).with_name("through_tun.py")
        text = "\n".join(p.hex() for p in (marker, *CASES.values())) + "\n"
        lines = ns.run(["python3", script, "nat64"], text=text, timeout=60).splitlines()
        yield {name: translated(packet, line) for (name, packet), line in zip(CASES.items(), lines, strict=True)}
    finally:
        ns.remove()


def translated(packet: bytes, line: str) -> list[bytes]:
    """Of what came back what is of the other family."""
    return [p for p in map(bytes.fromhex, filter(None, line.split(","))) if p[0] >> 4 != packet[0] >> 4]


def plain(packet: bytes) -> bytes:
    """Without what is each translator's own: the identification, and DF, which tayga sets on all and lbd by the later RFC's
    rule. In the quoted packet too."""
    if packet[0] >> 4 != 4:
        return packet
    p = bytearray(packet)
    places = [0, 28] if p[9] == 1 else [0]
    for at in places:
        p[at + 4 : at + 6] = bytes(2)
        p[at + 6] &= 0xBF
        p[at + 10 : at + 12] = bytes(2)
        struct.pack_into("!H", p, at + 10, _engine.checksum(bytes(p[at : at + 20])))
    if p[9] == 1:
        p[22:24] = bytes(2)
        struct.pack_into("!H", p, 22, _engine.checksum(bytes(p[20:])))
    return bytes(p)


# By the beginning of the case's name: what lbd does, and tayga 0.9.2 otherwise
DIFFERENT = {
    "to IPv4: a routing header": "dropped, as RFC 7915 §5.1 demands; tayga passes over segments that are left",
    "to IPv6: source route": "dropped, as §4.1 demands; tayga passes over it",
    "to IPv6: may be fragmented, above 1260": "whole, since the link takes it (docs/modes/nat64.md); tayga makes fragments",
    "to IPv6: no checksum": "computed (§4.5); tayga drops it",
    "ICMPv6 1, 3, ": "address unreachable is host unreachable (§5.2); tayga drops it",
    "ICMPv6 4, 0, ": "pointers by figure 6; tayga drops parameter problems that have one",
    "ICMP 12, ": "pointers by figure 3; tayga drops parameter problems",
}


@pytest.mark.parametrize("kind", ["to IPv4", "to IPv6", "ICMPv6", "ICMP "])
def test_the_same_as_tayga(tayga: dict[str, list[bytes]], kind: str) -> None:
    b = balancer()
    alike = 0
    for name, packet in CASES.items():
        if not name.startswith(kind):
            continue
        mine, theirs = (list(map(plain, found)) for found in (through_engine(b, packet), tayga[name]))
        if name.startswith(tuple(DIFFERENT)):
            if len(mine) != len(theirs) or not mine:
                continue
            assert mine != theirs, f"{name}: no difference any more"
        assert mine == theirs, f"{name}\nin {packet.hex()}\nlbd {[p.hex() for p in mine]}\ntayga {[p.hex() for p in theirs]}"
        alike += bool(mine)
    assert alike >= {"to IPv4": 15, "to IPv6": 15, "ICMPv6": 16, "ICMP ": 30}[kind]


def test_what_lbd_does_where_it_differs(tayga: dict[str, list[bytes]]) -> None:
    b = balancer()
    for beginning in DIFFERENT:
        seen = [(through_engine(b, packet), tayga[name]) for name, packet in CASES.items() if name.startswith(beginning)]
        assert seen
        if "dropped" in DIFFERENT[beginning]:
            assert all(mine == [] and len(theirs) == 1 for mine, theirs in seen)
        elif "fragments" in DIFFERENT[beginning]:
            assert all(len(mine) == 1 and len(theirs) == 2 for mine, theirs in seen)
        else:
            assert any(len(mine) == 1 for mine, _ in seen) and all(theirs == [] for _, theirs in seen)
