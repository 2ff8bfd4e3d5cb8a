"""FULLNAT, packet in → verdict, packet out: both families, TCP and UDP."""

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from tests.packet.balancer import (
    CLIENT,
    LIP,
    MAC_CLIENT,
    MAC_LB0,
    MAC_LB1,
    VIP,
    Balancer,
    checksums_right,
    from_client,
    from_server,
    ip,
    server,
)  # fmt: skip

FAMILIES = pytest.mark.parametrize("af", [4, 6])
PROTOCOLS = pytest.mark.parametrize("proto", ["tcp", "udp"])
LAYER = {4: IP, 6: IPv6}
L4 = {"tcp": TCP, "udp": UDP}


@pytest.mark.cell("fullnat", "{af}", "{proto}", "engine")
@FAMILIES
@PROTOCOLS
def test_there_and_back(af: int, proto: str) -> None:
    b = Balancer()
    opening = TCP(sport=40000, dport=80, flags="S", seq=7) if proto == "tcp" else UDP(sport=40000, dport=80) / Raw(b"query")
    r = b.send(from_client(af, opening))
    assert (r.verdict, r.reason) == ("forward", "none")
    [(iface, frame)] = r.out
    p = Ether(frame)
    assert iface == 1 and p.src == MAC_LB1
    assert p[LAYER[af]].src == LIP[af] and p[LAYER[af]].dst in {server(af, 1), server(af, 2)}
    assert p[L4[proto]].dport == 8080 and 10000 <= p[L4[proto]].sport <= 60000
    assert (p[IP].ttl if af == 4 else p[IPv6].hlim) == 63
    assert checksums_right(frame)

    back = TCP(sport=8080, dport=p[L4[proto]].sport, flags="SA", ack=8) if proto == "tcp" else (
        UDP(sport=8080, dport=p[L4[proto]].sport) / Raw(b"answer"))  # fmt: skip
    r = b.send(from_server(af, p[LAYER[af]].dst, back), 1)
    [(iface, frame)] = r.out
    p = Ether(frame)
    assert iface == 0 and (p.src, p.dst) == (MAC_LB0, MAC_CLIENT)
    assert (p[LAYER[af]].src, p[LAYER[af]].dst) == (VIP[af], CLIENT[af])
    assert (p[L4[proto]].sport, p[L4[proto]].dport) == (80, 40000)
    assert checksums_right(frame)


@FAMILIES
def test_rr_spreads_evenly_and_flows_stick(af: int) -> None:
    b = Balancer(servers=4)
    first = [Ether(b.send(from_client(af, TCP(sport=1024 + i, dport=80, flags="S"))).out[0][1])[LAYER[af]].dst for i in range(100)]
    assert sorted(first.count(server(af, n)) for n in range(1, 5)) == [25] * 4
    again = [Ether(b.send(from_client(af, TCP(sport=1024 + i, dport=80, flags="S"))).out[0][1])[LAYER[af]].dst for i in range(100)]
    assert first == again


@FAMILIES
def test_tags_are_taken_off_and_put_back(af: int) -> None:
    b = Balancer()
    opening = TCP(sport=4000, dport=80, flags="S")
    for tags in (Dot1Q(vlan=7), Dot1AD(vlan=9) / Dot1Q(vlan=7)):
        frame = Ether(src=MAC_CLIENT, dst=MAC_LB0) / tags / ip(af, CLIENT[af], VIP[af]) / opening
        out = Ether(b.send(frame).out[0][1])
        assert Dot1Q not in out and Dot1AD not in out
        back = b.send(from_server(af, out[LAYER[af]].dst, TCP(sport=8080, dport=out[TCP].sport, flags="SA")), 1)
        answer = Ether(back.out[0][1])
        assert answer[Dot1Q].vlan == 7
        assert (Dot1AD in answer) == (Dot1AD in frame)
        assert checksums_right(back.out[0][1])


def test_options_are_skipped_not_choked_on() -> None:
    from scapy.layers.inet import IPOption_RR

    b = Balancer()
    head = IP(src=CLIENT[4], dst=VIP[4], options=[IPOption_RR()])
    r = b.send(Ether(src=MAC_CLIENT, dst=MAC_LB0) / head / TCP(sport=9, dport=80, flags="S"))
    assert r.verdict == "forward" and checksums_right(r.out[0][1])


def test_udp_without_checksum_stays_without() -> None:
    b = Balancer()
    r = b.send(from_client(4, UDP(sport=5, dport=80, chksum=0) / Raw(b"x")))
    assert Ether(r.out[0][1])[UDP].chksum == 0


@FAMILIES
def test_ttl(af: int) -> None:
    from scapy.layers.inet import ICMP
    from scapy.layers.inet6 import ICMPv6TimeExceeded

    b = Balancer()
    fields = {"ttl": 1} if af == 4 else {"hlim": 1}
    r = b.send(from_client(af, TCP(sport=5, dport=80, flags="S"), **fields))
    assert (r.verdict, r.reason) == ("consume", "ttl_expired")
    [(iface, frame)] = r.out
    p = Ether(frame)
    assert iface == 0 and p.dst == MAC_CLIENT
    assert p[LAYER[af]].dst == CLIENT[af]
    if af == 4:
        assert (p[ICMP].type, p[ICMP].code) == (11, 0) and p[IP].src == "192.0.2.1"
        q = p[ICMP].payload
    else:
        assert ICMPv6TimeExceeded in p and p[IPv6].src == "2001:db8:1::1"
        q = p[ICMPv6TimeExceeded].payload
    assert (q.src, q.dst) == (CLIENT[af], VIP[af])


@FAMILIES
def test_too_big(af: int) -> None:
    from scapy.layers.inet import ICMP
    from scapy.layers.inet6 import ICMPv6PacketTooBig

    b = Balancer(mtu=(1500, 1400))
    b.open(af)
    r = b.send(from_client(af, TCP(sport=40000, dport=80, flags="A", seq=1001, ack=5001) / Raw(b"x" * 1440)))
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    p = Ether(r.out[0][1])
    if af == 4:
        assert (p[ICMP].type, p[ICMP].code, p[ICMP].nexthopmtu) == (3, 4, 1400)
    else:
        assert p[ICMPv6PacketTooBig].mtu == 1400


def test_kernel_keeps_the_rest() -> None:
    from scapy.layers.inet import ICMP
    from scapy.layers.l2 import ARP

    b = Balancer()
    ether = Ether(src=MAC_CLIENT, dst=MAC_LB0)  # scapy asks the network for what is left out
    rest = [
        ether / ARP(hwsrc=MAC_CLIENT, psrc=CLIENT[4], pdst=VIP[4]),
        from_client(4, TCP(sport=1, dport=22, flags="S")),
        ether / IP(src=CLIENT[4], dst=VIP[4]) / ICMP(),
        ether / IP(src="10.77.0.11", dst=LIP[4]) / TCP(sport=80, dport=9999),
        ether / IP(src=CLIENT[4], dst="203.0.113.5") / UDP(sport=1, dport=2),
    ]
    assert [b.send(p).verdict for p in rest] == ["kernel"] * len(rest)


@FAMILIES
def test_no_state_no_backend_no_neighbour(af: int) -> None:
    b = Balancer()
    assert b.send(from_client(af, TCP(sport=1, dport=80, flags="A"))).reason == "no_state"
    assert b.send(from_server(af, server(af, 1), TCP(sport=8080, dport=20000, flags="A")), 1).reason == "no_state"
    assert Balancer(servers=0).send(from_client(af, TCP(sport=1, dport=80, flags="S"))).reason == "no_backend"
    b = Balancer(neighbours=False)
    assert b.send(from_client(af, TCP(sport=1, dport=80, flags="S"))).reason == "no_neighbor"
