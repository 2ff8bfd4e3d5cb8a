"""A configured engine for packet tables: one client side (iface 0), one server side (iface 1), a VIP of each family.

Addresses: client 192.0.2.100 / 2001:db8:1::100 behind MAC C; VIP 192.0.2.10, 2001:db8:1::10; LIP 10.77.0.2, fd77::2;
real servers 10.77.0.11.., fd77::11.. on iface 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import product

from lbd._fastpath import Result
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.twin import Twin

SIZES = {
    "workers": 1, "services": 64, "dests": 256, "lips": 16, "conns4": 1024, "conns6": 1024, "frames": 256,
    "arena": 4096, "cmd_ring": 64, "evt_ring": 64, "capture_ring": 16, "hand_ring": 64, "templates": 64,
    "frame_size": 2048, "chains": 0,
}  # fmt: skip
MAC_CLIENT, MAC_LB0, MAC_LB1 = "02:00:00:00:00:c1", "02:00:00:00:01:00", "02:00:00:00:01:01"
CLIENT = {4: "192.0.2.100", 6: "2001:db8:1::100"}
VIP = {4: "192.0.2.10", 6: "2001:db8:1::10"}
LIP = {4: "10.77.0.2", 6: "fd77::2"}
OWN = {0: ("192.0.2.1", "2001:db8:1::1"), 1: ("10.77.0.1", "fd77::1")}
PROTO = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}
ICMPV6 = 58
MS = 1_000_000


def packed(text: str) -> bytes:
    return ip_address(text).packed


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def proto_number(name: str, af: int) -> int:
    return ICMPV6 if (name, af) == ("icmp", 6) else PROTO[name]


def server(af: int, n: int) -> str:
    return f"10.77.0.{10 + n}" if af == 4 else f"fd77::{10 + n}"


def server_mac(n: int) -> str:
    return f"02:00:00:00:02:{n:02x}"


@dataclass
class Balancer:
    servers: int = 2
    workers: int = 1
    worker: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    mtu: tuple[int, int] = (1500, 1500)
    ports: tuple[int, int] = (10000, 60000)
    partial: bool = False
    completes: bool = False  # the kernel would complete partial checksums
    sched: int = shm.SCHED_SEQ
    mode: int = shm.MODE_FULLNAT
    protocols: tuple[str, ...] = ("tcp", "udp")
    cross: bool = False  # real servers of the other family (tunnel; FULLNAT: the IPv6 services', which makes NAT64)
    tunnel: int = shm.TUNNEL_IPIP
    tunnel_port: int = 0
    source: dict[int, str] = field(default_factory=dict)  # of tunnels, by family
    neighbours: bool = True
    start_ms: int = 1_000
    frags: tuple[int, int] | None = None  # datagrams in fragments followed, and fragments held, if not as many as usual
    packets: int = field(default=0, init=False)  # given to the engine so far
    released: list[tuple[bytes, int, Result]] = field(default_factory=list, init=False)  # fragments that were held: frame, iface

    def __post_init__(self) -> None:
        more = {"frags": self.frags} if self.frags else {}
        self.engine = Twin({**SIZES, "workers": self.workers, **self.sizes}, self.worker, **more)
        self.now = self.start_ms * MS
        self.engine.expire(self.now)
        up = shm.IFACE_UP | (shm.IFACE_PARTIAL if self.partial else 0) | (shm.IFACE_COMPLETES if self.completes else 0)
        for i, m in enumerate((MAC_LB0, MAC_LB1)):
            a4, a6 = OWN[i]
            self.do(shm.iface_set(i, 1, mac=mac(m), mtu=self.mtu[i], ifindex=i + 2, flags=up, addr4=packed(a4), addr6=packed(a6)))
        for af, prefix, plen in ((4, "10.77.0.0", 24), (6, "fd77::", 64)):
            self.do(shm.route_set(1, af=af, prefix=packed(prefix), plen=plen, iface=1))
        number = 0
        port = 80 if self.mode & 2 else 8080
        for svc, (af, proto) in enumerate(product((4, 6), self.protocols)):
            first = number
            raf = self.far(af)
            ports = (80, port) if proto != "icmp" else (0, 0)
            for n in range(1, self.servers + 1):
                if self.neighbours:
                    self.do(shm.neigh_set(1, iface=1, af=raf, addr=packed(server(raf, n)), mac=mac(server_mac(n))))
                self.do(shm.dest_set(number, 1, af=raf, addr=packed(server(raf, n)), port=ports[1], svc=svc, fresh=True,
                                     tunnel=self.tunnel, tunnel_port=self.tunnel_port))  # fmt: skip
                number += 1
            self.engine.set_table(svc * 64, list(range(first, number)))
            self.do(shm.svc_set(svc, 1, af=af, addr=packed(VIP[af]), port=ports[0], proto=proto_number(proto, af), sched=self.sched,
                                table_off=svc * 64, table_len=self.servers, mode=self.mode, fresh=True,
                                **{f"source{f}": packed(a) for f, a in self.source.items()}))  # fmt: skip
        for lip, af in enumerate((4, 6)):
            self.do(shm.lip_set(lip, 1, af=af, addr=packed(LIP[af]), port_lo=self.ports[0], port_hi=self.ports[1], fresh=True))

    def far(self, af: int) -> int:
        """Family of the real servers of a service."""
        return 10 - af if self.cross and (af == 6 or self.mode != shm.MODE_FULLNAT) else af

    def do(self, command: bytes) -> None:
        assert self.engine.apply(command), "the engine refused a command of the test's set-up"

    def send(self, packet: Packet | bytes, iface: int = 0, **more: int) -> Result:
        self.packets += 1
        result = self.engine.process([(bytes(packet), iface)], self.now, **more)[0]
        self.release()
        return result

    def burst(self, packets: list[bytes], iface: int = 0) -> list[Result]:
        self.packets += len(packets)
        results = self.engine.process([(p, iface) for p in packets], self.now)
        self.release()
        return results

    def release(self) -> None:
        while more := self.engine.released(self.now):
            self.released += [(frame, iface, r) for _, frame, iface, r in more]

    def freed(self) -> Iterator[tuple[bytes, int, Result]]:
        """What was held, and is not any more, since this was asked for the last time."""
        while self.released:
            yield self.released.pop(0)

    def audit(self) -> None:
        """What must add up at any time: each packet has one verdict, each connection is counted once wherever it counts."""
        counters, conns, used = self.engine.counters(), self.engine.conns(), self.engine.used()
        # a fragment that is held counts as that, and once more when it is forwarded or dropped
        verdicts = counters["verdicts"]
        assert sum(verdicts.values()) - verdicts["hold"] + used["held"] == self.packets
        assert sum(counters["drops"].values()) == counters["verdicts"]["drop"]
        assert sum(counters["consumed"].values()) == counters["verdicts"]["consume"]
        assert used["conns4"] + used["conns6"] == len(conns)
        assert used["half_open"] >= sum(c["state"] in ("SYN_RECV", "INIT") for c in conns)
        for svc in range(2 * len(self.protocols)):
            stat, mine = self.engine.service_stats(svc), [c for c in conns if c["svc"] == svc]
            assert stat["active"] == sum(c["state"] == "ESTABLISHED" for c in mine)
            assert stat["active"] + stat["inactive"] == len(mine)
        for dest in range(2 * len(self.protocols) * self.servers):
            stat = self.engine.dest_stats(dest)
            assert stat["active"] + stat["inactive"] == sum(c["dest"] == dest for c in conns)
        for lip, af in enumerate((4, 6)):
            held = sum(c["mode"] in ("fullnat", "nat64") and len(c["local"][0]) == (4 if af == 4 else 16) for c in conns)
            assert self.engine.lip_stats(lip)["in_use"] == held

    def later(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)
        self.engine.expire(self.now)

    def open(self, af: int, sport: int = 40000, proto: str = "tcp") -> tuple[Packet, str, int]:
        """A connection, established if TCP; returns the first packet as the real server got it, its address, and the local port."""
        if proto == "udp":
            got = Ether(self.send(from_client(af, UDP(sport=sport, dport=80) / Raw(b"q"))).out[0][1])
        else:
            got = Ether(self.send(from_client(af, TCP(sport=sport, dport=80, flags="S", seq=1000))).out[0][1])
        far = self.far(af)
        layer = IP if far == 4 else IPv6
        l4 = got[TCP] if proto == "tcp" else got[UDP]
        address, lport = got[layer].dst, l4.sport
        if proto == "tcp":
            self.send(from_server(far, address, TCP(sport=8080, dport=lport, flags="SA", seq=5000, ack=1001)), 1)
            self.send(from_client(af, TCP(sport=sport, dport=80, flags="A", seq=1001, ack=5001)))
        return got, address, lport


def ip(af: int, src: str, dst: str, **fields: int) -> Packet:
    return IP(src=src, dst=dst, **fields) if af == 4 else IPv6(src=src, dst=dst, **fields)


def from_client(af: int, l4: Packet, **fields: int) -> Packet:
    return Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af], **fields) / l4


def from_server(af: int, address: str, l4: Packet, n: int = 1, **fields: int) -> Packet:
    return Ether(src=server_mac(n), dst=MAC_LB1) / ip(af, address, LIP[af], **fields) / l4


def checksums_right(frame: bytes) -> bool:
    """Scapy computes every checksum anew: do the bytes stay the same?"""
    p = Ether(frame)
    for layer in (IP, TCP, UDP):
        if layer in p:
            del p[layer].chksum
    return bytes(p) == frame
