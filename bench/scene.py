"""What the engine is measured with: services, real servers and local addresses of one family, and connections opened through it.

One arm: clients and real servers are behind the same interface. All real servers are behind one router, as they are where there are
thousands of them. Assumes nothing of the engine but its commands (lbd.shm) and what it counts.
"""

import math
from dataclasses import dataclass

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
MODES = {"fullnat": shm.MODE_FULLNAT, "nat": shm.MODE_NAT, "dr": shm.MODE_DR, "tunnel": shm.MODE_TUNNEL}


class Refused(Exception):
    """Counts or bytes that do not agree: there is no figure."""


@dataclass
class Scene:
    """room: connections beyond `flows` that the table has place for."""

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

    def __post_init__(self) -> None:
        self.capacity = max(1024, math.ceil((self.flows + self.room) * 1.05))
        self.name = f"{'tcp' if self.proto == 6 else 'udp'} ipv{self.af}, {self.flows} flows, {self.services} services"
        tables = [self.table(n) for n in range(self.services)]
        # half the ports of a real server's local addresses stay free: they are picked in turn, and seldom met in use
        self.lips = lips = max(1, math.ceil(2 * self.capacity / (len(PORTS) * self.services * self.servers)))
        if lips > 1024:
            raise ValueError(f"flows: {self.flows} need more local addresses than a worker takes; name more servers")
        self.engine = Engine({"workers": 1, "services": self.services, "dests": self.services * self.servers, "lips": lips,
                              "conns4": self.capacity if self.af == 4 else 16, "conns6": self.capacity if self.af == 6 else 16,
                              "frames": 64, "arena": sum(map(len, tables)), "cmd_ring": 64, "evt_ring": 64,
                              "capture_ring": self.slow_slots, "hand_ring": 64,
                              "templates": 65536})  # fmt: skip
        self.bench = Bench(self.engine, self.af, self.proto, self.services, self.step_ns, self.mode != "fullnat")
        self.configure(tables, lips)

    @property
    def one_way(self) -> bool:
        return self.mode in ("dr", "tunnel")

    def table(self, service: int) -> list[int]:
        numbers = range(service * self.servers, (service + 1) * self.servers)
        if self.scheduler == "rr":
            return list(numbers)
        from lbd.sched import Server, mh

        return list(mh.table([Server(n, 1, address(SERVER, n, self.af)) for n in numbers]))

    def apply(self, command: bytes) -> None:
        if not self.engine.apply(command):
            raise Refused("the engine refuses a command of the benchmark")

    def configure(self, tables: list[list[int]], lips: int) -> None:
        af, router = self.af, address(SERVER, 1 << 20, self.af)
        self.apply(shm.iface_set(0, 1, mac=MAC_LB, mtu=1500, ifindex=2, flags=shm.IFACE_UP))
        if self.mode == "dr":  # which reaches neighbours alone
            self.apply(shm.route_set(1, af=af, prefix=bytes(len(router)), plen=0, iface=0))
            for n in range(self.services * self.servers):
                self.apply(shm.neigh_set(1, iface=0, af=af, addr=address(SERVER, n, af), mac=MAC_ROUTER))
        else:
            self.apply(shm.route_set(1, af=af, prefix=bytes(len(router)), plen=0, iface=0, gateway=router))
            self.apply(shm.neigh_set(1, iface=0, af=af, addr=router, mac=MAC_ROUTER))
        kind = shm.SCHED_SEQ if self.scheduler == "rr" else shm.SCHED_HASH
        flags = 0 if self.scheduler == "rr" else shm.SVC_HASH_PORT
        at = 0
        for n, slots in enumerate(tables):
            for d in sorted(set(slots)):
                self.apply(shm.dest_set(d, 1, af=af, addr=address(SERVER, d, af), port=80, svc=n, fresh=True))
            self.engine.set_table(at, slots)
            self.apply(shm.svc_set(n, 1, af=af, addr=address(SERVICE, n, af), port=80, proto=self.proto, sched=kind, flags=flags,
                                   table_off=at, table_len=len(slots), fresh=True, mode=MODES[self.mode]))  # fmt: skip
            at += len(slots)
        for n in range(lips):
            self.apply(shm.lip_set(n, 1, af=af, addr=address(LOCAL, n, af), port_lo=PORTS[0], port_hi=PORTS[-1], fresh=True))
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
        self.each(0, self.flows, False, SYN)
        return self.finish()

    def finish(self) -> "Scene":
        """The rest of the handshakes, once every flow has its connection."""
        found = self.bench.note(self.flows)
        if found != self.flows or self.used() != self.flows:
            raise Refused(f"{self.used()} connections of {self.flows} flows, {found} of them recognised")
        if not self.one_way:
            self.each(0, self.flows, True, SYNACK)
        if self.proto == 6:
            self.each(0, self.flows, False, ACK)
        if self.half_open():
            raise Refused(f"{self.half_open()} connections stayed half open")
        return self
