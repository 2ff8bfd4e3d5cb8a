"""What the engine is measured with: services, real servers and local addresses of one family, and connections opened through it.

One arm: clients and real servers are behind the same interface. All real servers are behind one router, as they are where there are
thousands of them. Assumes nothing of the engine but its commands (lbd.shm) and what it counts.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from lbd._fastpath import Engine

from bench._engine import Bench, address
from lbd.shm import _shm as shm

CLIENT, SERVICE, SERVER, LOCAL = range(4)
MAC_LB, MAC_ROUTER, MAC_CLIENT = b"\x02\0\0\0\1\0", b"\x02\0\0\0\2\1", b"\x02\0\0\0\0\xc1"
SYN, SYNACK, ACK, RST = 2, 0x12, 0x10, 4
BATCH = 8192
LONG = 100_000_000  # ms: nothing that was established ends during a run
SYN_RECV, ESTABLISHED, CLOSE, UDP, UDP_ONEWAY = 1, 2, 7, 8, 9
PORTS = range(1025, 65536)  # of each local address
SNAT_CLIENTS, SNAT_REMOTES = 4096, 16  # of an SNAT rule
GUE_PORT = 6080


class Mode(NamedTuple):
    number: int
    tunnel: int = 0


MODES = {
    "fullnat": Mode(shm.MODE_FULLNAT),
    "nat": Mode(shm.MODE_NAT),
    "dr": Mode(shm.MODE_DR),
    "tunnel": Mode(shm.MODE_TUNNEL, shm.TUNNEL_IPIP),
    "gre": Mode(shm.MODE_TUNNEL, shm.TUNNEL_GRE),
    "gue": Mode(shm.MODE_TUNNEL, shm.TUNNEL_GUE),
    "nat64": Mode(shm.MODE_FULLNAT),
    "snat": Mode(shm.MODE_SNAT),
}
PROTO = {6: "tcp", 17: "udp", 132: "sctp"}


class Refused(Exception):
    """Counts or bytes that do not agree: there is no figure."""


def server_mac(server: bytes) -> bytes:
    """Of a real server that is a neighbour (DR)."""
    return b"\x02\0\2" + server[-3:]


@dataclass
class Scene:
    """room: connections beyond `flows` that the table has place for. clients: so many have the flows; 0: as few as can. persist:
    clients keep their real servers. one_packet: no connections at all, every datagram is scheduled.
    worker: this one of `workers`, of whom the last owns all flows."""

    af: int = 4
    proto: int = 6
    flows: int = 8192
    services: int = 1
    servers: int = 10  # of each service
    scheduler: str = "rr"
    room: int = 0
    step_ns: int = 0
    slow_slots: int = 64
    mode: str = "fullnat"
    clients: int = 0
    persist: bool = False
    one_packet: bool = False
    workers: int = 1
    worker: int = 0

    def __post_init__(self) -> None:
        connections = 0 if self.one_packet else self.flows + self.room
        self.capacity = max(1024, math.ceil(connections * 1.05))
        self.name = f"{PROTO[self.proto]} ipv{self.af}, {self.mode}, {self.flows} flows, {self.services} services"
        self.server_af = 4 if self.mode == "nat64" else self.af
        ends = SNAT_REMOTES if self.mode == "snat" else self.services * self.servers
        if self.mode == "snat":
            self.clients = SNAT_CLIENTS
        # half the ports of an end's local addresses stay free: they are picked in turn, and seldom met in use
        self.lips = lips = max(1, math.ceil(2 * self.capacity / (len(PORTS) * ends)))
        if lips > 1024:
            raise ValueError(f"flows: {self.flows} need more local addresses than a worker takes; name more servers")
        tables = [self.rule_table(lips)] if self.mode == "snat" else [self.table(n) for n in range(self.services)]
        handed = 2 * BATCH if self.workers > 1 else 64  # frames, and entries of a ring, that are on their way at once
        self.engine = Engine({"workers": self.workers, "services": self.services, "lips": lips,
                              "dests": self.services * self.servers, "conns4": self.capacity if self.af == 4 else 16,
                              "conns6": self.capacity if self.af == 6 else 16, "arena": sum(map(len, tables)),
                              "frames": handed, "hand_ring": handed, "cmd_ring": 64, "evt_ring": 64,
                              "capture_ring": self.slow_slots, "templates": 65536, "frame_size": 2048, "chains": 0},
                             self.worker)  # fmt: skip
        self.engine.set_owner([self.workers - 1] * 1024)
        self.bench = Bench(self.engine, self.af, self.proto, SNAT_REMOTES if self.mode == "snat" else self.services, self.step_ns,
                           self.mode not in ("fullnat", "snat", "nat64"), self.server_af, self.clients)  # fmt: skip
        self.configure_links()
        if self.mode == "snat":
            self.configure_rule(tables[0], lips)
        else:
            self.configure_services(tables)
        self.configure_locals(lips)

    @property
    def one_way(self) -> bool:
        return bool(MODES[self.mode].number & 2)

    def table(self, service: int) -> list[int]:
        numbers = range(service * self.servers, (service + 1) * self.servers)
        if self.scheduler == "rr":
            return list(numbers)
        from lbd.sched import Server, mh

        return list(mh.table([Server(n, 1, address(SERVER, n, self.server_af)) for n in numbers]))

    def rule_table(self, lips: int) -> list[int]:
        """SNAT's: its statistics' place, the pool, a range of sources (words of the host's order)."""
        first = int.from_bytes(address(CLIENT, 0, 4), "big")
        return [0, *range(lips), first, first + self.clients - 1]

    def apply(self, command: bytes) -> None:
        if not self.engine.apply(command):
            raise Refused("the engine refuses a command of the benchmark")

    def configure_links(self) -> None:
        af, router = self.server_af, address(SERVER, 1 << 20, self.server_af)
        self.apply(shm.iface_set(0, 1, mac=MAC_LB, mtu=1500, ifindex=2, flags=shm.IFACE_UP))
        if self.mode == "dr":  # which reaches neighbours alone
            self.apply(shm.route_set(1, af=af, prefix=bytes(len(router)), plen=0, iface=0))
            for n in range(self.services * self.servers):
                server = address(SERVER, n, af)
                self.apply(shm.neigh_set(1, iface=0, af=af, addr=server, mac=server_mac(server)))
        else:
            self.apply(shm.route_set(1, af=af, prefix=bytes(len(router)), plen=0, iface=0, gateway=router))
            self.apply(shm.neigh_set(1, iface=0, af=af, addr=router, mac=MAC_ROUTER))

    def configure_services(self, tables: list[list[int]]) -> None:
        kind = shm.SCHED_SEQ if self.scheduler == "rr" else shm.SCHED_HASH
        flags = 0 if self.scheduler == "rr" else shm.SVC_HASH_PORT
        flags |= (shm.SVC_PERSIST if self.persist else 0) | (shm.SVC_ONE_PACKET if self.one_packet else 0)
        kept = {"persist": LONG, "persist_plen": 8 * len(address(CLIENT, 0, self.af))} if self.persist else {}
        mode, af, at = MODES[self.mode], self.server_af, 0
        for n, slots in enumerate(tables):
            for d in sorted(set(slots)):
                self.apply(shm.dest_set(d, 1, af=af, addr=address(SERVER, d, af), port=80, svc=n, fresh=True, tunnel=mode.tunnel,
                                        tunnel_port=GUE_PORT if self.mode == "gue" else 0))  # fmt: skip
            self.engine.set_table(at, slots)
            self.apply(shm.svc_set(n, 1, af=self.af, addr=address(SERVICE, n, self.af), port=80, proto=self.proto, sched=kind,
                                   flags=flags, table_off=at, table_len=len(slots), fresh=True, mode=mode.number,
                                   **kept))  # fmt: skip
            at += len(slots)

    def configure_rule(self, table: list[int], pool: int) -> None:
        self.apply(shm.dest_set(0, 1, af=4, addr=bytes(4), port=0, svc=0, fresh=True))
        self.engine.set_table(0, table)
        self.apply(shm.snat_set(0, 1, digest=bytes(15) + b"\1", af=4, protocols=shm.SNAT_TCP | shm.SNAT_UDP, order=0, pool=pool,
                                sources=1, table_off=0, fresh=True))  # fmt: skip

    def configure_locals(self, lips: int) -> None:
        af = self.server_af
        for n in range(lips):
            self.apply(shm.lip_set(n, 1, af=af, addr=address(LOCAL, n, af), port_lo=PORTS[0], port_hi=PORTS[-1], fresh=True,
                                   snat=self.mode == "snat"))  # fmt: skip
        for state in (SYN_RECV, ESTABLISHED, UDP, UDP_ONEWAY):
            self.timeout(state, LONG)

    def timeout(self, state: int, ms: int) -> None:
        self.apply(shm.setting(shm.SET_TIMEOUT_BASE + state, ms, 1))

    def used(self) -> int:
        return int(self.engine.used()[f"conns{self.af}"])

    def half_open(self) -> int:
        return int(self.engine.used()["half_open"])

    def drops(self) -> dict[str, int]:
        return dict(self.engine.counters()["drops"])

    def each(self, first: int, n: int, back: bool, flags: int) -> int:
        """One packet of each of these flows; returns ns. Every packet has to be forwarded."""
        ns = 0
        for at in range(first, first + n, BATCH):
            m = min(BATCH, first + n - at)
            self.bench.plan_each(at, m, back, flags)
            ns += self.go(m)
        return ns

    def each_scattered(self, first: int, n: int, flags: int) -> None:
        """The same from the clients, in an order in which neighbours are far apart."""
        for at in range(0, n, BATCH):
            m = min(BATCH, n - at)
            self.bench.plan_scattered(first, n, at, m, flags)
            self.go(m)

    def go(self, planned: int) -> int:
        ns = int(self.bench.go())
        if self.bench.sent() != planned:
            raise Refused(f"{self.name}: {planned - self.bench.sent()} of {planned} packets were not sent ({self.drops()})")
        return ns

    def open(self) -> "Scene":
        """Opens all flows, to where both ends have spoken."""
        if self.one_packet:
            return self
        self.each(0, self.flows, False, SYN)
        return self.finish()

    def finish(self) -> "Scene":
        """The rest of the handshakes, once every flow has its connection."""
        found = self.bench.note(self.flows)
        if found != self.flows or self.used() != self.flows:
            raise Refused(f"{self.used()} connections of {self.flows} flows, {found} of them recognised")
        if not self.one_way:
            self.each(0, self.flows, True, SYNACK)
        if self.proto != 17:
            self.each(0, self.flows, False, ACK)
        if self.half_open() and not (self.one_way and self.proto == 17):  # where nobody answers
            raise Refused(f"{self.half_open()} connections stayed half open")
        return self
