"""Tags: a table of how the client's side and the real servers' side are tagged, in every mode and family; what an answer carries;
and what is a VLAN device's own (MTU, MAC, state). Packets out are scapy's, built from what went in, not the engine's."""

import pytest
from lbd._fastpath import Result
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, OWN, VIP, Balancer, ip, mac, packed, server, server_mac

Q, AD = 0x8100, 0x88A8
Tags = tuple[tuple[int, int], ...]  # from the outside in: protocol, VLAN id
KINDS: dict[str, Tags] = {
    "plain": (), "7": ((Q, 7),), "ad7": ((AD, 7),), "9.7": ((AD, 9), (Q, 7)), "q9.7": ((Q, 9), (Q, 7)), "9.ad7": ((AD, 9), (AD, 7)),
}  # fmt: skip
PORTS = {shm.MODE_FULLNAT: 8080, shm.MODE_NAT: 8080, shm.MODE_DR: 80, shm.MODE_TUNNEL: 80}
DEVICE, OTHER = shm.IFACE_MAX, shm.IFACE_MAX + 1  # numbers of VLAN devices


def word(tags: Tags) -> int:
    """As lbd/datapath/link.pxd says, written down once more."""
    if not tags:
        return 0
    tpid = 1 if tags[-1][0] == AD else 0
    if len(tags) == 1:
        return tpid << 32 | tags[0][1]
    return (tpid | (2 if tags[0][0] == Q else 0)) << 32 | tags[0][1] << 16 | tags[1][1]


def link(src: str, dst: str, tags: Tags, prio: int = 0) -> Packet:
    p = Ether(src=src, dst=dst)
    for protocol, vid in tags:
        p /= Dot1Q(vlan=vid, prio=prio) if protocol == Q else Dot1AD(vlan=vid, prio=prio)
    return p


def tags_of(frame: bytes) -> Tags:
    at, found = 12, []
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        found.append((int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")))
        at += 4
    return tuple(found)


def behind(b: Balancer, tags: Tags, gen: int = 2) -> None:
    """Real servers, of both families, are reached by these tags on iface 1."""
    for af, prefix, plen in ((4, "10.77.0.0", 24), (6, "fd77::", 64)):
        b.do(shm.route_set(gen, af=af, prefix=packed(prefix), plen=plen, iface=1, tags=word(tags)))
        for n in range(1, b.servers + 1):
            b.do(shm.neigh_set(gen, iface=1, af=af, addr=packed(server(af, n)), mac=mac(server_mac(n)), tags=word(tags)))


def device(b: Balancer, tags: Tags, *, number: int = DEVICE, lower: int = 1, mtu: int = 1500, up: bool = True,
           address: str = MAC_LB1, own: tuple[str, str] = OWN[1], gen: int = 3) -> None:  # fmt: skip
    b.do(shm.iface_set(number, gen, mac=mac(address), mtu=mtu, ifindex=30, flags=shm.IFACE_UP if up else 0, addr4=packed(own[0]),
                       addr6=packed(own[1]), lower=lower, tags=word(tags)))  # fmt: skip


def request(af: int, tags: Tags, l4: Packet, prio: int = 0) -> Packet:
    return link(MAC_CLIENT, MAC_LB0, tags, prio) / ip(af, CLIENT[af], VIP[af]) / l4


def sent(r: Result) -> tuple[int, bytes]:
    assert r.verdict == "forward", r
    [(iface, frame)] = r.out
    return iface, frame


@pytest.mark.parametrize("far", KINDS)
@pytest.mark.parametrize("near", KINDS)
@pytest.mark.parametrize("mode", PORTS)
@pytest.mark.parametrize("af", [4, 6])
def test_tags_in_and_out(af: int, mode: int, near: str, far: str) -> None:
    """A TCP handshake from tagged clients to tagged real servers: the next hop's tags are pushed, the answer has the client's."""
    b = Balancer(servers=1, mode=mode)
    behind(b, KINDS[far])
    iface, frame = sent(b.send(request(af, KINDS[near], TCP(sport=40000, dport=80, flags="S", seq=1000))))
    assert iface == 1 and tags_of(frame) == KINDS[far]
    p = Ether(frame)
    assert (p.dst, p.src) == (server_mac(1), MAC_LB1)
    layer = IP if af == 4 else IPv6
    inner = p[layer].payload[layer] if mode == shm.MODE_TUNNEL else p[layer]
    if mode == shm.MODE_TUNNEL:
        assert p[layer].dst == server(af, 1) and inner.dst == VIP[af]
    l4 = inner[TCP]
    assert (inner.src, inner.dst, l4.dport) == {
        shm.MODE_FULLNAT: (LIP[af], server(af, 1), 8080), shm.MODE_NAT: (CLIENT[af], server(af, 1), 8080),
        shm.MODE_DR: (CLIENT[af], VIP[af], 80), shm.MODE_TUNNEL: (CLIENT[af], VIP[af], 80),
    }[mode]  # fmt: skip
    expected = bytes(inner)
    del l4.chksum
    assert bytes(inner) == expected, "the checksum that scapy computes"
    if mode in (shm.MODE_DR, shm.MODE_TUNNEL):
        return
    answer = link(server_mac(1), MAC_LB1, KINDS[far]) / ip(af, server(af, 1), inner.src) / TCP(
        sport=8080, dport=l4.sport, flags="SA", seq=5000, ack=1001)  # fmt: skip
    iface, frame = sent(b.send(answer, 1))
    assert iface == 0 and frame == bytes(
        link(MAC_LB0, MAC_CLIENT, KINDS[near]) / ip(af, VIP[af], CLIENT[af], **({"ttl": 63} if af == 4 else {"hlim": 63}))
        / TCP(sport=80, dport=40000, flags="SA", seq=5000, ack=1001)
    )  # fmt: skip


@pytest.mark.parametrize("af", [4, 6])
def test_one_arm(af: int) -> None:
    """Clients in VLAN 7, real servers in VLAN 8, of one port; the answer is found whatever tag it comes by."""
    b = Balancer(servers=1)
    seven, eight = ((Q, 7),), ((Q, 8),)
    for prefix, plen in (("10.77.0.0", 24), ("fd77::", 64)):
        of = 4 if plen == 24 else 6
        b.do(shm.route_set(2, af=of, prefix=packed(prefix), plen=plen, iface=0, tags=8))
        b.do(shm.neigh_set(2, iface=0, af=of, addr=packed(server(of, 1)), mac=mac(server_mac(1)), tags=8))
    iface, frame = sent(b.send(request(af, seven, UDP(sport=40000, dport=80) / Raw(b"q"))))
    assert (iface, tags_of(frame), frame[6:12]) == (0, eight, mac(MAC_LB0))
    got = Ether(frame)[UDP]
    answer = link(server_mac(1), MAC_LB0, eight) / ip(af, server(af, 1), LIP[af]) / UDP(sport=8080, dport=got.sport) / Raw(b"a")
    iface, frame = sent(b.send(answer, 0))
    assert (iface, tags_of(frame), frame[:6]) == (0, seven, mac(MAC_CLIENT))


def test_a_client_s_priority_comes_back_and_changes_with_it() -> None:
    b = Balancer(servers=1)
    back = lambda lport: link(server_mac(1), MAC_LB1, ()) / ip(4, server(4, 1), LIP[4]) / UDP(sport=8080, dport=lport) / Raw(b"a")  # noqa: E731
    for prio in (0, 5, 5, 2):
        _, frame = sent(b.send(request(4, KINDS["7"], UDP(sport=40000, dport=80) / Raw(b"q"), prio)))
        _, frame = sent(b.send(back(Ether(frame)[UDP].sport), 1))
        assert tags_of(frame) == ((Q, prio << 13 | 7),)


@pytest.mark.parametrize("af", [4, 6])
def test_a_vlan_device_has_an_mtu_of_its_own(af: int) -> None:
    """Too large for the VLAN, not for the port: an ICMP error with the VLAN's MTU, from the address of the VLAN that it came by."""
    b = Balancer(servers=1)
    behind(b, KINDS["9.7"])
    device(b, KINDS["9.7"], mtu=1400)
    device(b, KINDS["7"], number=OTHER, lower=0, address=MAC_LB0, own=("192.0.2.7", "2001:db8:1::7"))
    head = 48 if af == 6 else 28
    fits, not_ = (UDP(sport=40000, dport=80) / Raw(bytes(size - head)) for size in (1400, 1401))
    sent(b.send(request(af, KINDS["7"], fits)))
    r = b.send(request(af, KINDS["7"], not_, prio=3))
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    [(iface, frame)] = r.out
    p = Ether(frame)
    assert iface == 0 and tags_of(frame) == ((Q, 3 << 13 | 7),) and p.dst == MAC_CLIENT
    if af == 4:
        assert p[IP].src == "192.0.2.7" and (p[ICMP].type, p[ICMP].code, p[ICMP].nexthopmtu) == (3, 4, 1400)
    else:
        assert p[IPv6].src == "2001:db8:1::7" and p[ICMPv6PacketTooBig].mtu == 1400
    b.do(shm.iface_del(DEVICE, 4))  # it goes: the port's MTU counts, for connections that are there too
    sent(b.send(request(af, KINDS["7"], not_)))


@pytest.mark.parametrize("af", [4, 6])
def test_a_vlan_device_that_goes_down_comes_back_and_has_a_mac_of_its_own(af: int) -> None:
    b = Balancer(servers=1)
    behind(b, KINDS["7"])
    ask = request(af, (), UDP(sport=40000, dport=80) / Raw(b"q"))
    assert sent(b.send(ask))[1][6:12] == mac(MAC_LB1)
    device(b, KINDS["7"], up=False)
    assert b.send(ask).reason == "link_down"
    device(b, KINDS["7"], address="02:00:00:00:77:77")
    assert sent(b.send(ask))[1][6:12] == mac("02:00:00:00:77:77")
    device(b, KINDS["7"], lower=0, up=False)  # the number is another device's now
    assert sent(b.send(ask))[1][6:12] == mac(MAC_LB1)
    device(b, KINDS["7"], up=False, gen=8)
    assert b.send(ask).reason == "link_down"
    b.do(shm.sweep(shm.SWEEP_IFACE, 9))
    for i, m in enumerate((MAC_LB0, MAC_LB1)):
        b.do(shm.iface_set(i, 10, mac=mac(m), mtu=1500, ifindex=i + 2))
    assert sent(b.send(ask))[1][6:12] == mac(MAC_LB1), "swept: the tags are the port's own again"


def test_next_hops_of_one_address_in_several_vlans_are_several() -> None:
    b = Balancer(servers=1)
    ask = request(4, (), UDP(sport=40000, dport=80) / Raw(b"q"))
    for n, kind in enumerate(KINDS.values()):
        b.do(shm.neigh_set(2, iface=1, af=4, addr=packed(server(4, 1)), mac=mac(server_mac(16 + n)), tags=word(kind)))
    for n, kind in enumerate(KINDS.values()):
        b.do(shm.route_set(2, af=4, prefix=packed("10.77.0.0"), plen=24, iface=1, tags=word(kind)))
        frame = sent(b.send(ask))[1]
        assert (frame[:6], tags_of(frame)) == (mac(server_mac(16 + n)), kind)
        b.do(shm.neigh_del(2, iface=1, af=4, addr=packed(server(4, 1)), tags=word(kind)))
        assert b.send(ask).reason == "no_neighbor"
    b.engine.recover(b.now)


def test_an_untagged_gateway_is_not_taken_for_a_tagged_one() -> None:
    """The same MAC, with and without a tag: answers follow the last packet."""
    b = Balancer(servers=1)
    for kind in ("7", "plain", "9.7", "plain", "ad7", "7"):
        _, frame = sent(b.send(request(4, KINDS[kind], UDP(sport=40000, dport=80) / Raw(b"q"))))
        lport = Ether(frame)[UDP].sport
        answer = link(server_mac(1), MAC_LB1, ()) / ip(4, server(4, 1), LIP[4]) / UDP(sport=8080, dport=lport) / Raw(b"a")
        assert tags_of(sent(b.send(answer, 1))[1]) == KINDS[kind]
