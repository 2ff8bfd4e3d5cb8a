"""Any-port services, services of several addresses, one-packet scheduling, thresholds: packet in, verdict and packet out."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, PROTO, VIP, Balancer, checksums_right, mac, packed, server, server_mac
from tests.packet.cluster import Cluster
from tests.packet.frame import TCP as TCP_NUMBER
from tests.packet.frame import UDP as UDP_NUMBER
from tests.packet.frame import from_client as frame
from tests.packet.frame import from_server as back
from tests.packet.frame import read, transport
from tests.packet.option import NUMBER, ask, persist, sent, set_server, set_service, syn
from tests.packet.test_mode import MODES, answer_of, expected, from_client, segment

FAMILIES = pytest.mark.parametrize("af", [4, 6])
PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])
ONE_WAY = pytest.mark.parametrize("mode", ["dr", "tunnel"])
BOTH_WAYS = pytest.mark.parametrize("mode", ["fullnat", "nat"])
ALL = {"fullnat": shm.MODE_FULLNAT, **MODES}
FULL = {4: 32, 6: 128}


def any_port(b: Any, af: int, proto: str, **more: Any) -> None:
    """The Balancer's service of this family and protocol, of port 0."""
    servers = more.pop("servers", 1)
    for n in range(1, servers + 1):
        set_server(b, n, af, proto, servers=servers, port=0)
    set_service(b, af, proto, servers=servers, port=0, **persist(360, FULL[af]), **more)


def out(r: Any) -> Any:
    assert r.verdict == "forward", r
    assert checksums_right(r.out[0][1])
    return Ether(r.out[0][1])


# --- any port --------------------------------------------------------------------------------------------------------

@FAMILIES
@PROTOS
@pytest.mark.parametrize("mode", ALL)
def test_any_port_goes_on_as_it_is(mode: str, af: int, proto: str) -> None:
    b = Balancer(mode=ALL[mode], servers=1)
    any_port(b, af, proto)
    for port in (1, 80, 443, 65535):
        p = out(b.send(from_client(af, segment(proto, "S", 4000, port))))
        layer = p[TCP] if proto == "tcp" else p[UDP]
        assert layer.dport == port
        if mode in ("fullnat", "nat"):
            assert (p[IP] if af == 4 else p[IPv6]).dst == server(af, 1)
            l4 = segment(proto, "SA", port, layer.sport, seq=5000, ack=1001)
            answer = answer_of(af, l4) if mode == "nat" else from_server_any(b, af, l4)
            back = out(b.send(answer, 1))
            layer = back[TCP] if proto == "tcp" else back[UDP]
            assert (layer.sport, layer.dport) == (port, 4000)
            assert (back[IP] if af == 4 else back[IPv6]).src == VIP[af]
    b.audit()


def from_server_any(b: Balancer, af: int, l4: Any) -> Any:
    from tests.packet.balancer import from_server

    return from_server(af, server(af, 1), l4)


@FAMILIES
def test_a_port_of_another_service_is_that_ones(af: int) -> None:
    b = Balancer(servers=1)
    any_port(b, af, "tcp")
    b.engine.set_table(1024, [200])
    b.do(shm.dest_set(200, 1, af=af, addr=packed(server(af, 1)), port=8443, svc=9, fresh=True))
    b.do(shm.svc_set(9, 1, af=af, addr=packed(VIP[af]), port=443, proto=6, sched=0, table_off=1024, table_len=1, fresh=True))
    assert (r := syn(b, 1000, af, dport=443)).svc == 9 and sent(r).dport == 8443
    assert (r := syn(b, 1000, af, dport=444)).svc == NUMBER[af, "tcp"] and sent(r).dport == 444
    b.do(shm.svc_del(9, 1))
    assert syn(b, 1001, af, dport=443).svc == NUMBER[af, "tcp"]


def test_other_protocols_and_addresses_are_not_meant() -> None:
    b = Balancer(servers=1)
    any_port(b, 4, "tcp")
    assert ask(b, 1000, dport=9999).verdict == "kernel"
    assert syn(b, 1000, 6, dport=9999).verdict == "kernel"
    set_service(b, servers=1)  # and it ends
    assert syn(b, 1000, dport=9999).verdict == "kernel"


@FAMILIES
@pytest.mark.parametrize("workers", [2, 3])
def test_any_port_answers_find_their_worker(af: int, workers: int) -> None:
    """Mode nat: what the real server sends carries no address of lbd, and its port is the client's choice."""
    c = Cluster(workers, mode=shm.MODE_NAT, servers=1)
    any_port(c, af, "tcp")
    for port in range(2000, 2060):
        assert c.send(from_client(af, segment("tcp", "S", 4000 + port, port))).verdict == "forward"
        back = out(c.send(answer_of(af, segment("tcp", "SA", port, 4000 + port, seq=5000, ack=1001)), 1))
        assert (back[TCP].sport, back[TCP].dport) == (port, 4000 + port)
    stranger = answer_of(af, segment("tcp", "SA", 1, 1, seq=5000, ack=1001))
    assert c.send(stranger, 1).verdict == "kernel"


def test_any_port_is_recovered() -> None:
    b = Balancer(servers=1)
    any_port(b, 4, "tcp")
    syn(b, 1000, dport=1234)
    b.engine.recover(b.now)
    assert [(c["svc"], c["dest"]) for c in b.engine.conns()] == [(0, 0)]
    b.audit()


# --- several addresses -----------------------------------------------------------------------------------------------

OTHER = {4: "192.0.2.11", 6: "2001:db8:1::11"}


def group(b: Any, af: int, mode: int, *, servers: int = 2, port: int = 0, **more: Any) -> int:
    """The TCP service at VIP:80, VIP:443, OTHER:80 and, by UDP, VIP:53."""
    for n in range(1, servers + 1):
        set_server(b, n, af, servers=servers, port=port)
    svc = set_service(b, af, servers=servers, mode=mode, **more)
    for number, (address, at, proto) in enumerate(((VIP[af], 443, "tcp"), (OTHER[af], 80, "tcp"), (VIP[af], 53, "udp")), 40):
        b.do(shm.svc_set(number, 1, af=af, addr=packed(address), port=at, proto=PROTO[proto], sched=0, mode=mode,
                         flags=shm.SVC_ALIAS, target=svc))  # fmt: skip
    return svc


def to(af: int, address: str, l4: Any) -> Any:
    p = from_client(af, l4)
    p[IP if af == 4 else IPv6].dst = address
    return p


POINTS = [(VIP, 80, "tcp"), (VIP, 443, "tcp"), (OTHER, 80, "tcp"), (VIP, 53, "udp")]


@FAMILIES
@pytest.mark.parametrize("mode", ALL)
def test_one_service_at_several_addresses(mode: str, af: int) -> None:
    b = Balancer(mode=ALL[mode], servers=2)
    svc = group(b, af, ALL[mode])
    for n, (vip, port, proto) in enumerate(POINTS * 2):
        r = b.send(to(af, vip[af], segment(proto, "S", 1000 + n, port)))
        p = out(r)
        assert r.svc == svc and (p[TCP] if proto == "tcp" else p[UDP]).dport == port
        assert r.dest == (NUMBER[af, "tcp"] * 2) + (n + 1) % 2  # one round for all of them
    assert b.engine.service_stats(svc)["conns"] == 8
    assert all(b.engine.service_stats(n)["conns"] == 0 for n in (40, 41, 42))


@FAMILIES
def test_a_real_server_with_a_port_gets_all_there(af: int) -> None:
    b = Balancer(servers=2)
    group(b, af, shm.MODE_FULLNAT, port=8080)
    for n, (vip, port, proto) in enumerate(POINTS):
        p = out(b.send(to(af, vip[af], segment(proto, "S", 1000 + n, port))))
        assert (p[TCP] if proto == "tcp" else p[UDP]).dport == 8080


@FAMILIES
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("join", [False, True])
def test_persistence_across_them(af: int, workers: int, join: bool) -> None:
    """What fwmark services are used for: ports 80 and 443 of one client are one real server's."""
    c = Cluster(workers, servers=4, join=join, sizes={"templates": 512})
    group(c, af, shm.MODE_FULLNAT, servers=4, **persist(360, FULL[af]))
    seen = set()
    for n in range(1, 20):
        client = f"198.51.7.{n}" if af == 4 else f"2001:db8:7::{n}"
        got = set()
        for vip, port, proto in POINTS:
            p = to(af, vip[af], segment(proto, "S", 1000, port))
            p[IP if af == 4 else IPv6].src = client
            got.add(sent(c.send(bytes(p))).dst)
        assert len(got) == 1
        seen |= got
    assert len(seen) == 4 and c.totals("templates") == 19


@FAMILIES
@pytest.mark.parametrize("workers", [2, 3])
def test_answers_of_any_address_find_their_worker(af: int, workers: int) -> None:
    c = Cluster(workers, mode=shm.MODE_NAT, servers=1)
    group(c, af, shm.MODE_NAT, servers=1)
    for n in range(60):
        vip, port, proto = POINTS[n % 4]
        assert c.send(to(af, vip[af], segment(proto, "S", 2000 + n, port))).verdict == "forward"
        back = out(c.send(answer_of(af, segment(proto, "SA", port, 2000 + n, seq=5000, ack=1001)), 1))
        assert (back[IP] if af == 4 else back[IPv6]).src == vip[af]
    assert max(c.hops) <= 3


def test_an_address_leaves_and_comes_back() -> None:
    b = Balancer()
    svc = group(b, 4, shm.MODE_FULLNAT)
    assert b.send(to(4, OTHER[4], segment("tcp", "S", 1000, 80))).svc == svc
    b.do(shm.svc_del(41, 1))
    assert b.send(to(4, OTHER[4], segment("tcp", "S", 1001, 80))).verdict == "kernel"
    assert b.send(to(4, OTHER[4], segment("tcp", "A", 1000, 80, seq=1001))).verdict == "forward"  # its connections go on
    b.do(shm.svc_set(41, 1, af=4, addr=packed(OTHER[4]), port=80, proto=6, sched=0, flags=shm.SVC_ALIAS, target=svc))
    assert b.send(to(4, OTHER[4], segment("tcp", "S", 1001, 80))).svc == svc
    b.do(shm.svc_del(svc, 1))
    assert b.send(to(4, OTHER[4], segment("tcp", "S", 1002, 80))).verdict == "kernel"


def test_a_number_changes_its_part() -> None:
    """A further address becomes a service with further addresses of its own, in any order of the commands."""
    b = Balancer(workers=2, mode=shm.MODE_NAT)
    group(b, 4, shm.MODE_NAT)
    b.do(shm.svc_set(41, 1, af=4, addr=packed(VIP[4]), port=444, proto=6, sched=0, mode=shm.MODE_NAT,
                     flags=shm.SVC_ALIAS, target=40))  # fmt: skip
    b.do(shm.svc_set(40, 1, af=4, addr=packed(VIP[4]), port=443, proto=6, sched=0, mode=shm.MODE_NAT, table_off=0, table_len=2))
    for number in (43, 44):
        b.do(shm.svc_set(number, 1, af=4, addr=packed(VIP[4]), port=number, proto=6, sched=0, mode=shm.MODE_NAT,
                         flags=shm.SVC_ALIAS, target=0))  # fmt: skip
    for number in (42, 44, 43, 41, 40, 0):
        b.do(shm.svc_del(number, 1))
    assert b.send(from_client(4, segment("tcp", "S", 1000, 80))).verdict in ("kernel", "handover")


def test_aliases_are_recovered() -> None:
    b = Balancer()
    group(b, 4, shm.MODE_FULLNAT)
    for n, (vip, port, proto) in enumerate(POINTS):
        b.send(to(4, vip[4], segment(proto, "S", 1000 + n, port)))
    b.engine.recover(b.now)
    assert {c["svc"] for c in b.engine.conns()} == {0} and all(c["dest"] is not None for c in b.engine.conns())


# --- one packet ------------------------------------------------------------------------------------------------------

@FAMILIES
@ONE_WAY
@pytest.mark.parametrize("cross", [False, True])
def test_each_datagram_is_scheduled(mode: str, af: int, cross: bool) -> None:
    if cross and mode == "dr":
        pytest.skip("dr has no other family")
    b = Balancer(mode=MODES[mode], servers=1, cross=cross)
    set_service(b, af, "udp", servers=1, flags=shm.SVC_ONE_PACKET)
    l4 = segment("udp", "", 4000, 80, payload=b"x" * 20)
    for _ in range(3):
        assert b.send(from_client(af, l4)).out == [(1, expected(mode, af, l4, cross=cross))]
    assert b.engine.conns() == [] and b.engine.used()["conns4"] == 0
    stat = b.engine.service_stats(NUMBER[af, "udp"])
    assert (stat["conns"], stat["in_pkts"], stat["active"], stat["inactive"]) == (3, 3, 0, 0)
    b.audit()


@FAMILIES
@ONE_WAY
def test_they_take_turns(mode: str, af: int) -> None:
    b = Balancer(mode=MODES[mode], servers=4)
    set_service(b, af, "udp", servers=4, flags=shm.SVC_ONE_PACKET)
    results = b.burst([bytes(from_client(af, segment("udp", "", 4000, 80, payload=b"x"))) for _ in range(16)])
    assert [r.dest for r in results] == [results[n % 4].dest for n in range(16)] and len({r.dest for r in results}) == 4


@ONE_WAY
def test_one_packet_is_judged_as_any(mode: str) -> None:
    b = Balancer(mode=MODES[mode], servers=1, mtu=(1500, 600))
    set_service(b, 4, "udp", servers=1, flags=shm.SVC_ONE_PACKET)
    large = segment("udp", "", 4000, 80, payload=b"x" * 900)
    assert b.send(from_client(4, large)).reason == "mtu_exceeded"
    p = from_client(4, segment("udp", "", 4000, 80, payload=b"x"))
    p[IP].ttl = 1
    assert b.send(p).reason == "ttl_expired"
    set_server(b, 1, 4, "udp", servers=1, weight=0)
    assert b.send(from_client(4, segment("udp", "", 4000, 80))).reason == "no_backend"


@FAMILIES
@pytest.mark.parametrize("sched", [shm.SCHED_SEQ, shm.SCHED_HASH])
def test_what_was_known_of_a_real_server_ends_with_it(af: int, sched: int) -> None:
    """The lane asks once of a neighbour what it has to know; every change is a reason to ask again."""
    b = Balancer(mode=shm.MODE_DR, servers=4, sched=sched)
    options: dict[str, Any] = {"servers": 4, "flags": shm.SVC_ONE_PACKET | shm.SVC_HASH_PORT | shm.SVC_HASH_FALLBACK}
    set_service(b, af, "udp", **options)
    questions = [bytes(from_client(af, segment("udp", "", 4000 + n, 80, payload=b"x"))) for n in range(32)]

    def served() -> dict[int | None, set[str]]:
        out: dict[int | None, set[str]] = {}
        for r in b.burst(questions):
            out.setdefault(r.dest, set()).add(r.out[0][1][:6].hex(":") if r.verdict == "forward" else r.reason)
        return out

    first = NUMBER[af, "udp"] * 4
    everybody = {first + n: {server_mac(n + 1)} for n in range(4)}
    assert served() == served() == everybody
    set_server(b, 2, af, "udp", servers=4, weight=0)
    assert served() == served() == {d: m for d, m in everybody.items() if d != first + 1}
    set_server(b, 2, af, "udp", servers=4, upper=1)  # which nothing reaches: one packet is no connection that lasts
    assert served() == everybody
    b.do(shm.neigh_set(1, iface=1, af=af, addr=packed(server(af, 2)), mac=mac("02:00:00:00:09:09")))
    assert served() == everybody | {first + 1: {"02:00:00:00:09:09"}}
    b.do(shm.dest_del(first + 3, 1))
    assert first + 3 not in served()
    gateway = {"gateway": packed(server(af, 1)), "iface": 1}
    b.do(shm.route_set(1, af=af, prefix=packed(server(af, 3)), plen=32 if af == 4 else 128, **gateway))
    assert served()[first + 2] == {"no_route"}
    b.do(shm.svc_del(NUMBER[af, "udp"], 1))
    assert {r.verdict for r in b.burst(questions)} == {"kernel"}
    b.do(shm.svc_set(40, 1, af=af, addr=packed(VIP[af]), port=80, proto=17, sched=sched, mode=shm.MODE_DR, fresh=True,
                     table_off=NUMBER[af, "udp"] * 64, table_len=1, flags=shm.SVC_ONE_PACKET))  # fmt: skip
    assert {(r.svc, r.dest) for r in b.burst(questions) + b.burst(questions)} == {(40, first)}


@pytest.mark.parametrize("many", [0, 600])
@pytest.mark.parametrize("sched", [shm.SCHED_SEQ, shm.SCHED_HASH])
def test_datagrams_among_others_in_a_burst(sched: int, many: int) -> None:
    """The lane takes them by runs, which everything else ends: another service or family, what has a connection or opens one, what
    can't be sent at once. The order of scheduling is theirs all the same (Twin compares). many: real servers of no interest, by
    which statistics are entered after the burst."""
    b = Balancer(mode=shm.MODE_DR, servers=3, sched=sched, mtu=(1500, 600), sizes={"dests": 1024})
    for n in range(100, 100 + many):
        b.do(shm.dest_set(n, 1, af=4, addr=packed(f"10.78.{n >> 8}.{n & 255}"), port=80, svc=0, fresh=True))
    before = [ask(b, 1000, af).dest for af in (4, 6)]
    options: dict[str, Any] = {"servers": 3, "flags": shm.SVC_ONE_PACKET | shm.SVC_HASH_PORT}
    for af in (4, 6):
        set_service(b, af, "udp", **options)
        b.do(shm.svc_set(40 + af, 1, af=af, addr=packed(VIP[af]), port=53, proto=17, sched=sched, mode=shm.MODE_DR, fresh=True,
                         table_off=NUMBER[af, "udp"] * 64, table_len=2, flags=shm.SVC_ONE_PACKET))  # fmt: skip

    def packet(n: int) -> bytes:
        af, kind, port = random.choice((4, 4, 4, 6)), random.randrange(40), 2000 + n
        if kind < 4:
            return frame(af, TCP_NUMBER, port, "S" if kind < 2 else "A", 1000)
        if kind < 6:
            return frame(af, UDP_NUMBER, 1000, payload=b"x")  # of a flow with a connection
        if kind == 6:
            return frame(af, UDP_NUMBER, port, payload=bytes(700))
        if kind == 7:
            return frame(af, UDP_NUMBER, port, ttl=1)
        if kind == 8:
            return frame(af, UDP_NUMBER, port)[:-1]
        if kind == 9:
            return frame(af, UDP_NUMBER, port, dport=54)
        return frame(af, UDP_NUMBER, port, payload=bytes(kind), dport=53 if kind < 16 else 80)

    random = Random(sched + many)
    seen: Counter[Any] = Counter()
    for _ in range(12):
        packets = [packet(n) for n in range(64)]
        for p, r in zip(packets, b.burst(packets), strict=True):
            seen[r.verdict, r.reason, r.svc] += 1
            if r.verdict == "forward":
                read(r.out[0][1])
            if r.svc in (1, 3) and int.from_bytes(p[34:36] if p[12] == 8 else p[54:56], "big") == 1000 and r.verdict == "forward":
                assert r.dest == before[r.svc // 2]
    assert {r for _, r, _ in seen} >= {"none", "malformed", "mtu_exceeded", "ttl_expired", "no_state", "not_for_us"}
    assert all(seen["forward", "none", svc] > 10 for svc in (1, 3, 44, 46))
    for svc in (1, 3, 44, 46):
        stat = b.engine.service_stats(svc)
        assert stat["in_pkts"] == seen["forward", "none", svc] + (svc < 40)
    for n in range(12):
        b.engine.dest_stats(n)                  # (Twin)


def test_datagrams_beside_nat64() -> None:
    """IPv4 packets without a connection of their family are looked up among the other's, one by one."""
    b = Balancer(servers=2, cross=True)
    set_service(b, 4, "udp", mode=shm.MODE_DR, flags=shm.SVC_ONE_PACKET)
    answers = []
    for sport in range(3000, 3006):
        got = Ether(b.send(from_client(6, segment("udp", "", sport, 80, payload=b"q"))).out[0][1])
        answers.append((got[IP].dst, got[UDP].sport))
    ask(b, 1000)
    questions = [frame(4, UDP_NUMBER, 1000 + n, payload=b"x") for n in range(18)]
    mixed = []
    for n, (address, lport) in enumerate(answers):
        mixed += [*questions[3 * n : 3 * n + 3], back(4, UDP_NUMBER, packed(address), lport, payload=b"a")]
    results = b.burst(mixed)
    assert [r.verdict for r in results] == ["forward"] * 24
    assert [read(r.out[0][1]).af for r in results] == [4, 4, 4, 6] * 6
    assert b.engine.service_stats(NUMBER[4, "udp"])["in_pkts"] == 19


@pytest.mark.parametrize("workers", [2, 3])
def test_no_worker_is_asked_for_another_ones(workers: int) -> None:
    c = Cluster(workers, mode=shm.MODE_DR, servers=2)
    set_service(c, 4, "udp", flags=shm.SVC_ONE_PACKET)
    for port in range(1000, 1050):
        assert c.send(from_client(4, segment("udp", "", port, 80, payload=b"x"))).verdict == "forward"
    assert max(c.hops) == 0 and c.totals("handed_out") == 0


@FAMILIES
@BOTH_WAYS
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_answers_of_each_find_their_way(mode: str, af: int, workers: int) -> None:
    c = Cluster(workers, mode=ALL[mode], servers=3)
    set_service(c, af, "udp", servers=3, flags=shm.SVC_ONE_PACKET)
    met: dict[bytes, int] = {}
    for _ in range(12):
        r = c.send(bytes(from_client(af, segment("udp", "", 4000, 80, payload=b"q"))))
        p = sent(r)
        assert met.setdefault(p.dst, p.sport) == p.sport or workers > 1  # the same local port for the same real server
        met[p.dst] = p.sport
    assert len(met) == 3
    for address, lport in met.items():
        l4 = transport(UDP_NUMBER, address, packed(CLIENT[af]), 8080, lport, payload=b"a")
        back = read(c.send(answer_from(mode, af, address, lport, l4), 1).out[0][1])
        assert (back.src, back.sport, back.dst, back.dport) == (packed(VIP[af]), 80, packed(CLIENT[af]), 4000)
    c.audit()


def answer_from(mode: str, af: int, address: bytes, lport: int, l4: bytes) -> bytes:
    from tests.packet.balancer import LIP, MAC_LB1, server_mac
    from tests.packet.frame import ethernet, ip_packet

    dst = packed(CLIENT[af] if mode == "nat" else LIP[af])
    l4 = transport(UDP_NUMBER, address, dst, 8080, lport, payload=b"a")
    return ethernet(MAC_LB1, server_mac(1), ip_packet(address, dst, UDP_NUMBER, l4))


def test_one_packet_with_persistence_goes_to_the_clients_server() -> None:
    c = Cluster(2, join=True, mode=shm.MODE_DR, servers=4)
    set_service(c, 4, "udp", servers=4, flags=shm.SVC_ONE_PACKET | shm.SVC_PERSIST, persist=60000, persist_plen=32)
    assert len({ask(c, 1000 + n, payload=b"x").dest for n in range(20)}) == 1
    assert c.conns() == []


def test_connections_from_before_go_on() -> None:
    """The option came by a reload: a flow that has a connection keeps it."""
    b = Balancer(mode=shm.MODE_DR, servers=2)
    before = ask(b, 1000).dest
    set_service(b, 4, "udp", flags=shm.SVC_ONE_PACKET)
    assert [ask(b, 1000).dest for _ in range(4)] == [before] * 4
    assert len({ask(b, 1001).dest for _ in range(4)}) == 2


# --- thresholds ------------------------------------------------------------------------------------------------------

SCHEDULERS = [shm.SCHED_SEQ, shm.SCHED_LEAST, shm.SCHED_SED, shm.SCHED_NQ, shm.SCHED_FIRST, shm.SCHED_HOME]


@pytest.mark.parametrize("sched", SCHEDULERS)
@pytest.mark.parametrize("join", [False, True])
def test_full_is_passed_over(sched: int, join: bool) -> None:
    c = Cluster(1 if not join else 3, join=join, servers=2, sched=sched)
    set_server(c, 1, upper=10)
    for port in range(1000, 1060):
        assert syn(c, port).verdict == "forward"
    assert sum(m.engine.dest_stats(0)["inactive"] + m.engine.dest_stats(0)["active"] for m in c.members) == 10
    c.audit()


def test_nobody_left() -> None:
    b = Balancer(servers=1)
    set_server(b, 1, servers=1, upper=3)
    assert [syn(b, port).reason for port in range(1000, 1005)] == ["none"] * 3 + ["no_backend"] * 2


@pytest.mark.parametrize(("upper", "lower", "again"), [(8, 0, 5), (8, 3, 2), (8, 8, 7), (1, 0, 0)])
def test_it_comes_back_below_the_lower_one(upper: int, lower: int, again: int) -> None:
    b = Balancer(servers=1)
    set_server(b, 1, servers=1, upper=upper, lower=lower)
    for port in range(1000, 1000 + upper):
        assert syn(b, port).verdict == "forward"
    left = upper
    for port in range(1000, 1000 + upper):
        assert syn(b, 5000).reason == "no_backend"
        b.send(bytes(Ether(bytes(from_client(4, segment("tcp", "R", port, 80, seq=1001))))))
        left -= 1
        if left == again:
            break
    assert left == again
    assert syn(b, 5000).verdict == "forward"


def test_weight_changes_do_not_lift_it() -> None:
    b = Balancer(servers=1)
    set_server(b, 1, servers=1, upper=8)
    for port in range(1000, 1008):
        syn(b, port)
    assert syn(b, 2000).reason == "no_backend"
    b.send(from_client(4, segment("tcp", "R", 1000, 80, seq=1001)))
    set_server(b, 1, servers=1, upper=8, weight=5)
    assert syn(b, 2000).reason == "no_backend"  # 7, not below 6
    set_server(b, 1, servers=1, upper=9)
    assert syn(b, 2000).verdict == "forward"


def test_a_burst_counts_itself() -> None:
    b = Balancer(servers=2)
    set_server(b, 1, upper=5)
    results = b.burst([bytes(from_client(4, segment("tcp", "S", port, 80))) for port in range(1000, 1040)])
    assert [r.dest for r in results].count(0) == 5


def test_persistent_clients_come_in_all_the_same() -> None:
    b = Balancer(servers=2)
    set_service(b, **persist(360))
    first = syn(b, 1000).dest
    set_server(b, first + 1, upper=1)
    assert syn(b, 1001).dest == first
    assert all(b.send(p).dest != first for p in (from_other(n) for n in range(4)))


def from_other(n: int) -> Any:
    p = from_client(4, segment("tcp", "S", 1000, 80) / Raw(b""))
    p[IP].src = f"198.51.100.{n + 1}"
    return p


@FAMILIES
def test_no_longer_packet_by_packet(af: int) -> None:
    """In mode nat the client's own end is in use by the record that its datagrams shared: it makes room."""
    b = Balancer(servers=1, mode=shm.MODE_NAT)
    set_service(b, af, "udp", servers=1, flags=shm.SVC_ONE_PACKET)
    assert ask(b, 5000, af).verdict == "forward"
    assert ask(b, 5000, af).verdict == "forward"
    set_service(b, af, "udp", servers=1)
    assert ask(b, 5000, af).verdict == "forward"
    assert len(b.engine.conns()) == 1
