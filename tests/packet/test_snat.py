"""SNAT: what an internal host's packets become, by family and protocol, to the byte, and which packets a rule is for.

What is expected is built by scapy from the packet that was sent, checksums and lengths computed anew.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet import fragment
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, Balancer, ip, mac, packed
from tests.packet.gateway import (
    DEST,
    HOST,
    MAC_HOST,
    REMOTE,
    ROUTER,
    RULE,
    Gateway,
    came_back,
    engines,
    equip,
    inbound,
    left,
    outbound,
    pool,
    rule,
)

FAMILIES = pytest.mark.parametrize("af", [4, 6])
KINDS = ["tcp", "udp", "icmp"]
PROTOCOLS = pytest.mark.parametrize("kind", KINDS)


def ask(af: int, kind: str, port: int, flags: str = "S", payload: bytes = b"", seq: int = 1000, ack: int = 0) -> Packet:
    """From the internal host; `port`: its own, or its identifier."""
    if kind == "icmp":
        l4 = ICMP(type=8, id=port, seq=1) if af == 4 else ICMPv6EchoRequest(id=port, seq=1)
        l4 = l4 / Raw(payload) if af == 4 else ICMPv6EchoRequest(id=port, seq=1, data=payload)
        return l4
    l4 = TCP(sport=port, dport=443, flags=flags, seq=seq, ack=ack) if kind == "tcp" else UDP(sport=port, dport=53)
    return l4 / Raw(payload) if payload else l4


def reply(af: int, kind: str, port: int, flags: str = "SA", payload: bytes = b"", seq: int = 5000, ack: int = 1001) -> Packet:
    """Of the remote, to `port` of the pool's address, or of the host's, as the host gets it."""
    if kind == "icmp":
        return ICMP(type=0, id=port, seq=1) / Raw(payload) if af == 4 else ICMPv6EchoReply(id=port, seq=1, data=payload)
    l4 = TCP(sport=443, dport=port, flags=flags, seq=seq, ack=ack) if kind == "tcp" else UDP(sport=53, dport=port)
    return l4 / Raw(payload) if payload else l4


def port_of(af: int, kind: str, frame: bytes) -> int:
    p = Ether(frame)
    if kind == "icmp":
        return int(p[ICMP].id if af == 4 else p[ICMPv6EchoRequest].id)
    return int(p[TCP if kind == "tcp" else UDP].sport)


def hops(af: int, n: int) -> dict[str, int]:
    return {"ttl": n} if af == 4 else {"hlim": n}


def open_flow(b: Balancer, af: int, kind: str, port: int = 40000, **ends: str) -> int:
    """Its first packet goes out; the port that it got."""
    r = b.send(outbound(af, ask(af, kind, port), **ends), 1)
    assert r.verdict == "forward", r
    return port_of(af, kind, r.out[0][1])


# --- translation ------------------------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
@pytest.mark.cell("snat", "{af}", "{kind}", "engine")
def test_there_and_back(af: int, kind: str) -> None:
    b = Gateway()
    [(iface, frame)] = b.send(outbound(af, ask(af, kind, 40000, payload=b"question")), 1).out
    port = port_of(af, kind, frame)
    assert iface == 0 and 20000 <= port <= 29999
    assert frame == bytes(left(af, ask(af, kind, port, payload=b"question"), **hops(af, 63)))
    [(iface, frame)] = b.send(inbound(af, reply(af, kind, port, payload=b"answer!"), **hops(af, 50))).out
    assert iface == 1
    assert frame == bytes(came_back(af, reply(af, kind, 40000, payload=b"answer!"), **hops(af, 49)))
    [c] = b.engine.conns()
    assert (c["mode"], c["client"], c["virtual"]) == ("snat", (packed(HOST[af]), 40000), c["real_server"])
    assert c["local"] == (packed(pool(af)), port) and c["real_server"][0] == packed(REMOTE[af])
    stat = b.engine.service_stats(RULE[af])
    assert (stat["conns"], stat["in_pkts"], stat["out_pkts"]) == (1, 1, 1)
    assert b.engine.dest_stats(DEST[af])["in_pkts"] == 1
    b.audit()


@FAMILIES
def test_a_whole_tcp_connection(af: int) -> None:
    """Established packets take the fast lane (the twin engine compares both ways), and it ends as any connection."""
    b = Gateway()
    port = open_flow(b, af, "tcp")
    flow = [
        (False, reply(af, "tcp", port), "SYN_RECV"),
        (True, ask(af, "tcp", 40000, "A", seq=1001, ack=5001), "ESTABLISHED"),
        (True, ask(af, "tcp", 40000, "PA", b"x" * 100, seq=1001, ack=5001), "ESTABLISHED"),
        (False, reply(af, "tcp", port, "PA", b"y" * 200, seq=5001, ack=1101), "ESTABLISHED"),
        (True, ask(af, "tcp", 40000, "FA", seq=1101, ack=5201), "CLOSE_WAIT"),
        (False, reply(af, "tcp", port, "FA", seq=5201, ack=1102), "LAST_ACK"),
        (True, ask(af, "tcp", 40000, "A", seq=1102, ack=5202), "CLOSE"),
    ]
    for out, l4, state in flow:
        r = b.send(outbound(af, l4) if out else inbound(af, l4), 1 if out else 0)
        assert r.verdict == "forward", (r, state)
        assert [c["state"] for c in b.engine.conns()] == [state]
        l4 = l4.copy()
        if out:
            l4.sport = port
            assert r.out == [(0, bytes(left(af, l4, **hops(af, 63))))]
        else:
            l4.dport = 40000
            assert r.out == [(1, bytes(came_back(af, l4, **hops(af, 63))))]
    b.audit()


@FAMILIES
def test_udp_without_a_checksum_stays_without(af: int) -> None:
    if af == 4:
        b = Gateway()
        r = b.send(outbound(af, UDP(sport=40000, dport=53, chksum=0) / Raw(b"x")), 1)
        assert Ether(r.out[0][1])[UDP].chksum == 0


@given(payload=st.binary(max_size=300), port=st.integers(0, 65535), kind=st.sampled_from(KINDS), af=st.sampled_from([4, 6]))
@settings(max_examples=200, deadline=None)
def test_reverse_of_forward_is_the_identity(payload: bytes, port: int, kind: str, af: int) -> None:
    """An echo: what the remote sends back with ends exchanged comes to the host as it would without lbd between."""
    b = IDENTITY
    b.later(0.001)
    sent = outbound(af, ask(af, kind, port, payload=payload))
    r = b.send(sent, 1)
    assert r.verdict == "forward", r
    got = Ether(r.out[0][1])
    at = port_of(af, kind, r.out[0][1])
    assert bytes(got) == bytes(left(af, ask(af, kind, at, payload=payload), **hops(af, 63)))
    r = b.send(inbound(af, reply(af, kind, at, payload=payload)))
    assert r.verdict == "forward", r
    assert r.out == [(1, bytes(came_back(af, reply(af, kind, port, payload=payload), **hops(af, 63))))]


IDENTITY = Gateway()


# --- which packets ----------------------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_only_the_rules_sources(af: int, kind: str) -> None:
    b = Gateway()
    other = "10.78.0.1" if af == 4 else "fd78::1"
    r = b.send(outbound(af, ask(af, kind, 40000), src=other), 1)
    assert (r.verdict, r.reason) == ("kernel", "not_for_us")
    assert not b.engine.conns()


@FAMILIES
@pytest.mark.parametrize("allowed", KINDS)
@PROTOCOLS
def test_protocol(af: int, kind: str, allowed: str) -> None:
    b = Balancer()
    equip(b, rules=False)
    rule(b, af, protocols={"tcp": shm.SNAT_TCP, "udp": shm.SNAT_UDP, "icmp": shm.SNAT_ICMP}[allowed])
    r = b.send(outbound(af, ask(af, kind, 40000)), 1)
    assert r.verdict == ("forward" if kind == allowed else "kernel")


@FAMILIES
def test_destination_ranges(af: int) -> None:
    b = Balancer()
    equip(b, rules=False)
    near, far = ("203.0.113.0/24", "198.18.0.0/15") if af == 4 else ("2001:db8:9::/48", "2001:db8:200::/48")
    rule(b, af, destination=tuple(sorted((near, far), key=lambda n: packed(n.split("/")[0]))))
    ends = [("203.0.113.0", True), ("203.0.113.255", True), ("203.0.114.0", False), ("203.0.112.255", False),
            ("198.18.0.0", True), ("198.19.255.255", True), ("198.20.0.0", False), ("8.8.8.8", False)]  # fmt: skip
    if af == 6:
        ends = [("2001:db8:9::", True), ("2001:db8:9:ffff:ffff:ffff:ffff:ffff", True), ("2001:db8:a::", False),
                ("2001:db8:8:ffff::", False), ("2001:db8:200::1", True), ("2001:db8:201::", False)]  # fmt: skip
    for dst, fits in ends:
        r = b.send(outbound(af, ask(af, "udp", 40000), dst=dst), 1)
        assert (r.verdict == "forward") == fits, (dst, r)


@FAMILIES
def test_interfaces(af: int) -> None:
    """in_interface and out_interface; the way out is by the mirrored route."""
    for more, fits in (({"ifin": 1}, True), ({"ifin": 0}, False), ({"ifout": 0}, True), ({"ifout": 1}, False)):
        b = Balancer()
        equip(b, rules=False)
        rule(b, af, **more)
        assert (b.send(outbound(af, ask(af, "udp", 40000)), 1).verdict == "forward") == fits, more


@FAMILIES
def test_rules_in_their_order(af: int) -> None:
    """The first that fits, whatever number it has; a command changes the order."""
    b = Balancer()
    equip(b, rules=False)
    first, second = (2, 3) if af == 4 else (4, 5)
    rule(b, af, number=20, order=5, pools=(second,))
    rule(b, af, number=21, order=2, pools=(first,), protocols=shm.SNAT_UDP)
    layer = IP if af == 4 else IPv6
    assert Ether(b.send(outbound(af, ask(af, "udp", 1)), 1).out[0][1])[layer].src == pool(af, 1)
    assert Ether(b.send(outbound(af, ask(af, "tcp", 1)), 1).out[0][1])[layer].src == pool(af, 2)
    rule(b, af, number=21, order=9, pools=(first,), protocols=shm.SNAT_UDP)
    assert Ether(b.send(outbound(af, ask(af, "udp", 2)), 1).out[0][1])[layer].src == pool(af, 2)
    b.do(shm.svc_del(20, 2))
    assert Ether(b.send(outbound(af, ask(af, "udp", 3)), 1).out[0][1])[layer].src == pool(af, 1)
    assert b.send(outbound(af, ask(af, "tcp", 3)), 1).verdict == "kernel"
    assert b.send(outbound(af, ask(af, "tcp", 1, "A", seq=1001, ack=1)), 1).verdict == "forward", "connections outlive their rule"


@FAMILIES
@pytest.mark.parametrize("dst", ["224.0.0.5", "255.255.255.255", "127.0.0.1", "0.0.0.0", "ff02::5", "fe80::1", "::1"])
def test_what_no_router_forwards(af: int, dst: str) -> None:
    if (":" in dst) == (af == 6):
        b = Gateway()
        assert b.send(outbound(af, ask(af, "udp", 40000), dst=dst), 1).verdict == "kernel"


@FAMILIES
def test_a_service_comes_first(af: int) -> None:
    """Internal hosts reach lbd's own VIP through its service."""
    b = Gateway()
    r = b.send(outbound(af, TCP(sport=40000, dport=80, flags="S"), dst=VIP[af]), 1)
    assert r.verdict == "forward" and r.svc == (0 if af == 4 else 2)
    assert Ether(r.out[0][1])[IP if af == 4 else IPv6].src == LIP[af]


@FAMILIES
def test_each_sends_from_its_own_addresses(af: int) -> None:
    """FULLNAT never takes a pool's address, SNAT never a LIP."""
    b = Gateway()
    layer = IP if af == 4 else IPv6
    for port in range(2000, 2040):
        r = b.send(Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af]) / TCP(sport=port, dport=80, flags="S"))
        assert Ether(r.out[0][1])[layer].src == LIP[af]
        assert Ether(b.send(outbound(af, ask(af, "tcp", port)), 1).out[0][1])[layer].src == pool(af)
    b.audit()


@FAMILIES
def test_a_host_keeps_its_address(af: int) -> None:
    """Pooling is paired (RFC 4787 REQ-2), and hosts are spread over the pool."""
    b = Balancer()
    equip(b, rules=False)
    rule(b, af, pools=(2, 3) if af == 4 else (4, 5))
    layer = IP if af == 4 else IPv6
    used = {}
    for n in range(1, 40):
        src = f"10.77.1.{n}" if af == 4 else f"fd77::1:{n}"
        flows = [outbound(af, ask(af, kind, port), src=src) for kind in KINDS for port in (7, 8)]
        seen = {Ether(b.send(flow, 1).out[0][1])[layer].src for flow in flows}
        assert len(seen) == 1
        used[src] = seen.pop()
    assert set(used.values()) == {pool(af, 1), pool(af, 2)}


# --- ports ------------------------------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_exhaustion(af: int, kind: str) -> None:
    """Of eight ports towards one remote; another remote has all of them again, and the second address eight more."""
    b = Balancer()
    equip(b, ports=(20000, 20007), rules=False)
    lips = (2, 3) if af == 4 else (4, 5)
    rule(b, af, pools=lips[:1])
    assert {open_flow(b, af, kind, n) for n in range(1, 9)} == set(range(20000, 20008))
    r = b.send(outbound(af, ask(af, kind, 9)), 1)
    assert (r.verdict, r.reason) == ("drop", "local_port_exhausted")
    assert b.engine.lip_stats(lips[0])["exhausted"] == 1 and b.engine.lip_stats(lips[0])["in_use"] == 8
    other = "203.0.113.10" if af == 4 else "2001:db8:9::a"
    assert open_flow(b, af, kind, 9, dst=other) in range(20000, 20008)
    rule(b, af, pools=lips)
    assert len({open_flow(b, af, kind, n) for n in range(10, 18)}) == 8
    b.later(400)
    assert not b.engine.conns() and b.engine.lip_stats(lips[0])["in_use"] == 0
    open_flow(b, af, kind, 1)


@FAMILIES
def test_timeouts(af: int) -> None:
    """Echo flows last 60 seconds from their last packet (RFC 5508 REQ-1), established TCP as long as the rule says (RFC 5382)."""
    b = Balancer()
    equip(b, rules=False)
    rule(b, af, timeout_established=7_440_000)
    at = open_flow(b, af, "icmp")
    b.later(50)
    b.send(inbound(af, reply(af, "icmp", at)))
    b.later(59)
    assert b.send(outbound(af, ask(af, "icmp", 40000)), 1).verdict == "forward" and len(b.engine.conns()) == 1
    b.later(61)
    assert not b.engine.conns()
    at = open_flow(b, af, "tcp")
    b.send(inbound(af, reply(af, "tcp", at)))
    b.send(outbound(af, ask(af, "tcp", 40000, "A", seq=1001, ack=5001)), 1)
    b.later(7_430)
    assert [c["state"] for c in b.engine.conns()] == ["ESTABLISHED"]
    b.later(20)
    assert not b.engine.conns()


# --- what comes from outside ------------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_nobody_else_comes_in(af: int, kind: str) -> None:
    """Filtering is by address and port: another remote, or another port of it, does not reach the host."""
    b = Gateway()
    at = open_flow(b, af, kind)
    other = "203.0.113.10" if af == 4 else "2001:db8:9::a"
    r = b.send(inbound(af, reply(af, kind, at), src=other))
    assert r.verdict == ("kernel" if kind == "icmp" else "drop") and not r.out
    if kind != "icmp":
        l4 = TCP(sport=80, dport=at, flags="S") if kind == "tcp" else UDP(sport=54, dport=at)
        assert (b.send(inbound(af, l4)).verdict, b.send(inbound(af, l4)).reason) == ("drop", "no_state")
    free = 29998 if at != 29998 else 29997
    assert not b.send(inbound(af, reply(af, kind, free))).out


@FAMILIES
def test_the_pool_addresses_other_traffic_is_the_kernels(af: int) -> None:
    """Ports outside lbd's range, and a ping to the address."""
    b = Gateway()
    assert b.send(inbound(af, TCP(sport=1, dport=22, flags="S"))).verdict == "kernel"
    assert b.send(inbound(af, ask(af, "icmp", 7))).verdict == "kernel"


@FAMILIES
def test_an_answer_with_identifier_0_is_no_request(af: int) -> None:
    b = Gateway()
    assert open_flow(b, af, "icmp", 0)
    assert b.send(outbound(af, reply(af, "icmp", 0)), 1).verdict == "kernel"


@FAMILIES
def test_tcp_opens_with_a_syn(af: int) -> None:
    b = Gateway()
    r = b.send(outbound(af, ask(af, "tcp", 40000, "A")), 1)
    assert (r.verdict, r.reason) == ("drop", "no_state")


@FAMILIES
def test_simultaneous_open(af: int) -> None:
    """RFC 5382 REQ-2: the peers' SYNs cross."""
    b = Gateway()
    at = open_flow(b, af, "tcp")
    steps = [
        (False, reply(af, "tcp", at, "S", seq=5000, ack=0)),
        (True, ask(af, "tcp", 40000, "SA", seq=1000, ack=5001)),
        (False, reply(af, "tcp", at, "SA", seq=5000, ack=1001)),
        (True, ask(af, "tcp", 40000, "A", seq=1001, ack=5001)),
    ]
    for out, l4 in steps:
        assert b.send(outbound(af, l4) if out else inbound(af, l4), 1 if out else 0).verdict == "forward"
    assert [c["state"] for c in b.engine.conns()] == ["ESTABLISHED"]


@FAMILIES
def test_the_same_port_anew(af: int) -> None:
    """A host's connection to the same place after its end: the same record, the same port."""
    b = Gateway()
    at = open_flow(b, af, "tcp")
    b.send(inbound(af, reply(af, "tcp", at, "RA", seq=0, ack=1001)))
    b.send(outbound(af, ask(af, "tcp", 40000, "R", seq=1001)), 1)
    assert open_flow(b, af, "tcp") in range(20000, 30000)
    assert len(b.engine.conns()) == 1
    b.audit()


# --- the way out ------------------------------------------------------------------------------------------------------


@FAMILIES
def test_no_route(af: int) -> None:
    b = Balancer()
    equip(b)
    b.do(shm.route_del(2, af=af, prefix=packed("0.0.0.0" if af == 4 else "::"), plen=0))
    r = b.send(outbound(af, ask(af, "udp", 40000)), 1)
    assert (r.verdict, r.reason) == ("drop", "no_route")


@FAMILIES
def test_each_remote_by_its_route(af: int) -> None:
    """The next hop is the remote's, not the rule's; a new route moves connections."""
    b = Gateway()
    near = "10.77.200.9" if af == 4 else "fd77:0:9::9"
    b.do(shm.route_set(1, af=af, prefix=packed("10.77.200.0" if af == 4 else "fd77:0:9::"), plen=24 if af == 4 else 48, iface=1))
    b.do(shm.neigh_set(1, iface=1, af=af, addr=packed(near), mac=mac("02:00:00:00:09:09")))
    assert b.send(outbound(af, ask(af, "udp", 1), dst=near), 1).out[0][0] == 1
    [(iface, frame)] = b.send(outbound(af, ask(af, "udp", 1)), 1).out
    assert iface == 0
    b.do(shm.route_set(2, af=af, prefix=packed(REMOTE[af]), plen=32 if af == 4 else 128, iface=1, gateway=packed(near)))
    [(iface, frame)] = b.send(outbound(af, ask(af, "udp", 1)), 1).out
    assert iface == 1 and Ether(frame).dst == "02:00:00:00:09:09"


@FAMILIES
def test_unknown_neighbour_is_wanted(af: int) -> None:
    b = Gateway()
    b.do(shm.neigh_set(2, iface=0, af=af, addr=packed(ROUTER[af]), mac=None))
    r = b.send(outbound(af, ask(af, "icmp", 1)), 1)
    assert (r.verdict, r.reason) == ("drop", "no_neighbor")


@FAMILIES
@PROTOCOLS
def test_hops_used_up(af: int, kind: str) -> None:
    """Answered to the internal host, quoting its own packet."""
    b = Gateway()
    r = b.send(outbound(af, ask(af, kind, 40000), **hops(af, 1)), 1)
    assert (r.verdict, r.reason) == ("consume", "ttl_expired")
    [(iface, frame)] = r.out
    p = Ether(frame)
    assert iface == 1 and p.dst == MAC_HOST and p[IP if af == 4 else IPv6].dst == HOST[af]


@FAMILIES
@PROTOCOLS
def test_too_large(af: int, kind: str) -> None:
    b = Balancer(mtu=(1300, 1500))
    equip(b)
    r = b.send(outbound(af, ask(af, kind, 40000, payload=b"x" * 1350)), 1)
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded") and r.out[0][0] == 1


@FAMILIES
@pytest.mark.parametrize("kind", ["udp", "icmp"])
@pytest.mark.parametrize("order", ["in order", "reversed", "first second"])
def test_fragments(af: int, kind: str, order: str) -> None:
    b = Gateway()
    data = fragment.payload(3000)

    def through(packet: Packet, iface: int) -> Packet:
        cut = fragment.cut(Ether(src=packet.src, dst=packet.dst), fragment.built(packet.payload))
        return fragment.together(fragment.frames_out(fragment.send(b, fragment.ORDERS[order](cut), iface)))

    got = through(outbound(af, ask(af, kind, 40000, payload=data)), 1)
    port = port_of(af, kind, bytes(Ether(src=MAC_HOST, dst=MAC_LB1) / got))
    wanted = fragment.expected(af, pool(af), REMOTE[af], ask(af, kind, port, payload=data))
    assert fragment.from_addresses(got) == wanted and 20000 <= port <= 29999
    got = through(inbound(af, reply(af, kind, port, payload=data)), 0)
    assert fragment.from_addresses(got) == fragment.expected(af, REMOTE[af], HOST[af], reply(af, kind, 40000, payload=data))
    b.audit()


@FAMILIES
@pytest.mark.parametrize("order", fragment.ORDERS)
def test_fragments_of_other_icmp(af: int, order: str) -> None:
    """No rule is for it, and it must not leave as it is: dropped as soon as the first one shows what it is, nothing waits."""
    b = Gateway()
    head = ip(af, HOST[af], REMOTE[af], **{"proto" if af == 4 else "nh": 1 if af == 4 else 58})
    other = head / Raw(bytes([13 if af == 4 else 139, 0]) + fragment.payload(3000))
    cut = fragment.ORDERS[order](fragment.cut(Ether(src=MAC_HOST, dst=MAC_LB1), other))
    results = fragment.send(b, cut, 1)
    assert len(results) == len(cut) and {r.reason for r in results} == {"frag_unsupported", "frag_orphan"}
    assert b.engine.used()["held"] == 0
    b.audit()


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_fragments_do_not_leave_with_an_internal_address(af: int, kind: str) -> None:
    b = Gateway()
    proto = {"tcp": 6, "udp": 17, "icmp": 1 if af == 4 else 58}[kind]
    for offset in (0, 100):
        if af == 4:
            p = IP(src=HOST[4], dst=REMOTE[4], flags="MF" if offset == 0 else 0, frag=offset, proto=proto)
        else:
            p = IPv6(src=HOST[6], dst=REMOTE[6]) / IPv6ExtHdrFragment(nh=proto, offset=offset, m=int(offset == 0))
        r = b.send(Ether(src=MAC_HOST, dst=MAC_LB1) / p / Raw(b"x" * 64), 1)
        assert r.verdict in ("drop", "forward", "hold")
        assert all(packed(HOST[af]) not in frame for _, frame in r.out)
        if kind == "icmp" and offset == 0:
            assert r.reason == "frag_unsupported", "no echo"
    p = IP(src="10.78.0.1", dst=REMOTE[4], flags="MF") / UDP() / Raw(b"x" * 64)
    assert b.send(Ether(src=MAC_HOST, dst=MAC_LB1) / p, 1).verdict == "kernel"


@FAMILIES
def test_checksums_are_verified_where_told(af: int) -> None:
    b = Gateway()
    b.do(shm.setting(shm.SET_VERIFY_CSUM, 1, 1))
    good = bytes(outbound(af, ask(af, "icmp", 40000, payload=b"x" * 9)))
    bad = bytearray(good)
    bad[-1] ^= 1
    assert b.send(bytes(bad), 1).reason == "bad_checksum"
    assert b.send(good, 1).verdict == "forward"


@FAMILIES
def test_commands_are_checked(af: int) -> None:
    b = Gateway()
    table = {"digest": bytes(16), "af": af, "protocols": 1, "order": 0, "pool": 1, "sources": 1, "table_off": 4095}
    for e in engines(b):
        assert not e.apply(shm.snat_set(30, 1, **table)), "its table would end beyond the arena"
    with pytest.raises(ValueError):
        shm.snat_set(30, 1, **{**table, "protocols": 8})
    with pytest.raises(ValueError):
        shm.snat_set(30, 1, **{**table, "pool": 0})


@FAMILIES
@PROTOCOLS
def test_recovery(af: int, kind: str) -> None:
    """A successor finds connections, their rule and their pool's address again."""
    b = Gateway()
    at = open_flow(b, af, kind)
    b.engine.recover(b.now)
    [c] = b.engine.conns()
    assert (c["mode"], c["svc"], c["dest"]) == ("snat", RULE[af], DEST[af])
    assert b.engine.lip_stats(2 if af == 4 else 4)["in_use"] == 1
    assert b.send(inbound(af, reply(af, kind, at))).out[0][0] == 1
    assert b.send(outbound(af, ask(af, kind, 40000)), 1).verdict == "forward"
    b.audit()


@FAMILIES
def test_recovery_when_the_rule_is_another(af: int) -> None:
    """The numbers mean something else in this run: the connection finds the rule that is for it now."""
    b = Gateway()
    at = open_flow(b, af, "udp")
    rule(b, af, source=["10.99.0.0/16" if af == 4 else "fd99::/32"])
    rule(b, af, number=33, order=1)
    b.engine.recover(b.now)
    assert [c["svc"] for c in b.engine.conns()] == [None]
    assert b.send(outbound(af, ask(af, "udp", 40000)), 1).verdict == "forward"
    [c] = b.engine.conns()
    assert (c["svc"], c["dest"]) == (33, 123) and c["local"][1] == at
    assert b.engine.service_stats(33)["inactive"] == 1


