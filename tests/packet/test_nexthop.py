"""The way out: routes by longest prefix, neighbours that change, tags, links that go down, and the way back to the client."""

import pytest

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, MAC_LB0, MAC_LB1, OWN, VIP, Balancer, mac, packed, server
from tests.packet.flow import Tcp
from tests.packet.frame import TCP, ethernet, from_client, from_server, ip_packet, transport

FAMILIES = pytest.mark.parametrize("af", [4, 6])
NEW_MAC = "02:00:00:00:07:07"


def opened(af: int, **more: int) -> tuple[Balancer, Tcp]:
    b = Balancer(servers=1, **more)
    return b, Tcp(b, af).open()


def iface(b: Balancer, number: int, up: bool = True, gen: int = 2) -> None:
    a4, a6 = OWN[number]
    flags = shm.IFACE_UP if up else 0
    link = mac(MAC_LB1 if number else MAC_LB0)
    b.do(shm.iface_set(number, gen, mac=link, mtu=1500, ifindex=number + 2, flags=flags, addr4=packed(a4), addr6=packed(a6)))


@FAMILIES
def test_a_new_mac_is_used_at_once(af: int) -> None:
    b, f = opened(af)
    b.do(shm.neigh_set(2, iface=1, af=af, addr=f.server, mac=mac(NEW_MAC)))
    assert f.client("A").out[0][1][:6] == mac(NEW_MAC)


@FAMILIES
def test_a_neighbour_that_goes_and_comes_back(af: int) -> None:
    b, f = opened(af)
    b.do(shm.neigh_del(2, iface=1, af=af, addr=f.server))
    assert (f.client("A").reason, f.state) == ("no_neighbor", "ESTABLISHED")
    b.do(shm.neigh_set(3, iface=1, af=af, addr=f.server, mac=mac(NEW_MAC)))
    assert f.client("A").out[0][1][:6] == mac(NEW_MAC)


@FAMILIES
def test_links_go_down_and_up(af: int) -> None:
    b, f = opened(af)
    iface(b, 1, up=False)
    assert f.client("A").reason == "link_down"
    iface(b, 1, gen=3)
    assert f.client("A").verdict == "forward"
    iface(b, 0, up=False, gen=4)
    assert f.real("A").reason == "link_down"


@FAMILIES
def test_the_longest_prefix_wins_and_routes_change(af: int) -> None:
    """A gateway on a tagged link takes over, then leaves again; connections follow."""
    b, f = opened(af)
    gateway = packed("10.77.9.9" if af == 4 else "fd77::99:9")
    bits = 32 if af == 4 else 128
    b.do(shm.neigh_set(2, iface=1, af=af, addr=gateway, mac=mac(NEW_MAC), tags=70))
    assert f.client("A").out[0][1][:6] != mac(NEW_MAC)
    for plen in (bits - 3, bits):  # 10.77.0.8/29 and the server itself
        masked = int.from_bytes(f.server, "big") >> bits - plen << bits - plen
        prefix = masked.to_bytes(bits // 8, "big")
        b.do(shm.route_set(2, af=af, prefix=prefix, plen=plen, iface=1, gateway=gateway, tags=70))
        r = b.send(from_client(af, TCP, f.sport, "A", f.cseq, f.sseq))
        [(out, frame)] = r.out
        assert out == 1 and frame[:6] == mac(NEW_MAC) and frame[12:16] == b"\x81\x00\x00\x46"
        b.do(shm.route_del(2, af=af, prefix=prefix, plen=plen))
        assert f.client("A").out[0][1][:6] != mac(NEW_MAC)
    default = bytes(bits // 8)
    b.do(shm.route_set(2, af=af, prefix=default, plen=0, iface=0))
    assert f.client("A").out[0][0] == 1, "the shorter one is not asked"


@FAMILIES
def test_no_route(af: int) -> None:
    b, f = opened(af)
    prefix = (packed("10.77.0.0"), 24) if af == 4 else (packed("fd77::"), 64)
    b.do(shm.route_del(2, af=af, prefix=prefix[0], plen=prefix[1]))
    assert f.client("A").reason == "no_route"
    assert Tcp(b, af, 5).client("S").reason == "no_route"
    b.do(shm.route_set(3, af=af, prefix=prefix[0], plen=prefix[1], iface=1))
    assert f.client("A").verdict == "forward"


@FAMILIES
def test_answers_go_where_the_clients_last_packet_came_from(af: int) -> None:
    """Another gateway's MAC, another tag: from the next packet on."""
    b, f = opened(af)
    assert f.real("A").out[0][1][:6] == mac("02:00:00:00:00:c1")
    b.send(from_client(af, TCP, f.sport, "A", f.cseq, f.sseq, src_mac=NEW_MAC))
    assert f.real("A").out[0][1][:6] == mac(NEW_MAC)
    frame = from_client(af, TCP, f.sport, "A", f.cseq, f.sseq, src_mac=NEW_MAC)
    b.send(frame[:12] + b"\x81\x00\x00\x05" + frame[12:])
    [(_, answer)] = b.send(from_server(af, TCP, f.server, f.lport, "A", f.sseq, f.cseq), 1).out
    assert answer[:6] == mac(NEW_MAC) and answer[12:16] == b"\x81\x00\x00\x05"


@FAMILIES
def test_answers_by_route(af: int) -> None:
    b = Balancer(servers=1)
    b.do(shm.setting(2, 1, 1))
    client = packed(CLIENT[af])
    prefix = (packed("192.0.2.0"), 24) if af == 4 else (packed("2001:db8:1::"), 64)
    b.do(shm.route_set(2, af=af, prefix=prefix[0], plen=prefix[1], iface=0))
    b.do(shm.neigh_set(2, iface=0, af=af, addr=client, mac=mac(NEW_MAC)))
    f = Tcp(b, af).open()
    assert f.real("A").out[0][1][:6] == mac(NEW_MAC)


def test_more_clients_macs_than_adjacencies() -> None:
    """A flat network, or somebody who makes MACs up: learned ones give way, neighbours by address stay."""
    b = Balancer(sizes={"conns4": 16384}, ports=(1024, 65000))
    for i in range(9000):
        source = f"02:aa:00:00:{i >> 8:02x}:{i & 255:02x}"
        r = b.send(from_client(4, TCP, 1024 + i, "S", src_mac=source))
        assert r.verdict == "forward"
        if i % 1000 == 0:
            record = next(c for c in b.engine.conns() if c["client"][1] == 1024 + i)
            back = b.send(from_server(4, TCP, record["real_server"][0], record["local"][1], "SA", 5, 1), 1)
            assert back.out[0][1][:6] == mac(source)
    f = Tcp(b, 4, 60000).open()
    assert f.client("A").out[0][1][:6] == mac("02:00:00:00:02:01" if f.server == packed(server(4, 1)) else "02:00:00:00:02:02")


def test_more_neighbours_than_adjacencies() -> None:
    """All places taken by next hops with a MAC: more are refused, those in use go on. A place without a MAC is used again."""
    b, f = opened(4)

    def neighbour(i: int, link: str | None) -> bool:
        return b.engine.apply(shm.neigh_set(2, iface=1, af=4, addr=bytes([10, 78, i >> 8, i & 255]), mac=link and mac(link)))

    made = sum(neighbour(i, NEW_MAC) for i in range(9000))
    assert 8000 < made < 8192
    assert f.client("A").verdict == "forward"
    assert f.real("A").reason == "no_route", "its client's place went first, and there is none to learn it again"
    assert not neighbour(9000, NEW_MAC)
    assert neighbour(0, None) and neighbour(1, None)
    assert f.client("A").verdict == "forward" and f.real("A").verdict == "forward"
    assert neighbour(9000, NEW_MAC)


@FAMILIES
def test_a_local_address_that_comes_back_counts_its_connections_again(af: int) -> None:
    b, f = opened(af)
    lip = 0 if af == 4 else 1
    b.do(shm.lip_del(lip, 2))
    b.engine.recover(b.now, True)
    assert f.client("A").verdict == "forward"
    record = f.record["local"][0]
    other = lip + 5  # or its own number again, as long as that is in use
    b.do(shm.lip_set(other, 3, af=af, addr=record, port_lo=10000, port_hi=60000, fresh=True))
    assert f.client("A").verdict == "forward"
    assert [b.engine.lip_stats(n)["in_use"] for n in (lip, other)] == [0, 1]


@FAMILIES
def test_an_address_of_ours_without_a_route_back(af: int) -> None:
    """Own errors go back the way that the packet came, and come from the address asked if the interface has none."""
    b = Balancer()
    b.do(shm.iface_set(0, 2, mac=mac(MAC_LB0), mtu=1500, ifindex=2, flags=shm.IFACE_UP))
    src, dst = packed(CLIENT[af]), packed(VIP[af])
    frame = ethernet(MAC_LB0, NEW_MAC, ip_packet(src, dst, TCP, transport(TCP, src, dst, 5, 80, "S"), ttl=1))
    r = b.send(frame)
    assert r.verdict == "consume"
    ip = r.out[0][1][14:]
    assert (ip[12:16] if af == 4 else ip[8:24]) == dst
