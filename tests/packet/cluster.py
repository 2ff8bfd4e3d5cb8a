"""Several engines as the workers of one host: one secret, one owner table; what is handed over goes to the worker it names."""

import random
from typing import Any

from lbd._fastpath import Result

from tests.packet.balancer import Balancer
from tests.unit import _engine

BUCKETS = 1024
HOPS_MAX = 3  # or for an answer in mode NAT each worker; and two more to ask for a client's real server


def spread(workers: int) -> list[int]:
    return [i % workers for i in range(BUCKETS)]


class Cluster(Balancer):
    """Looks like one Balancer; each packet arrives at a worker of `where`'s choice (random unless told)."""

    def __init__(self, workers: int = 2, seed: int = 1, join: bool = False, **more: Any):
        """join: they see each other's statistics and persistence templates, as workers of one host do."""
        self.members = [Balancer(workers=workers, worker=w, **more) for w in range(workers)]
        if join:
            for m in self.members:
                m.engine.join({n: other.engine for n, other in enumerate(self.members)})
        self.mode, self.sched = self.members[0].mode, self.members[0].sched
        self.rng = random.Random(seed)
        self.hops: list[int] = []  # of every packet
        self.rss: tuple[bytes, bool] | None = None
        self.table = spread(workers)
        self.now = self.members[0].now
        self.worker_of_last = 0
        self.released = []

    # --- what Balancer has, over all members ---
    @property
    def engine(self) -> "Cluster":  # type: ignore[override]
        return self

    def do(self, command: bytes) -> None:
        for m in self.members:
            m.do(command)

    def far(self, af: int) -> int:
        return self.members[0].far(af)

    def conns(self) -> list[dict]:
        return [c | {"worker": w} for w, m in enumerate(self.members) for c in m.engine.conns()]

    def expire(self, now: int) -> None:
        for m in self.members:
            m.now = now
            m.engine.expire(now)

    def set_owner(self, table: list[int], previous: list[int] | None = None) -> None:
        self.table = table
        for m in self.members:
            m.engine.set_owner(table, previous)

    def set_rss(self, key: bytes, udp_ports: bool, previous: tuple[bytes, bool] | None = None) -> None:
        """From now on the NIC is known, and packets arrive where it puts them. previous: it was known before, and was so."""
        self.rss = (key, udp_ports)
        for m in self.members:
            m.engine.set_rss(key, udp_ports)
            if previous is not None:
                m.engine.set_rss(*previous, 1)

    def arrives_at(self, frame: bytes) -> int:
        if self.rss is None:
            return self.rng.randrange(len(self.members))
        key, udp_ports = self.rss
        ip = frame[14:]
        addresses, at, proto = (ip[12:20], 20, ip[9]) if ip[0] >> 4 == 4 else (ip[8:40], 40, ip[6])
        data = addresses + (ip[at : at + 4] if proto == 6 or (proto == 17 and udp_ports) else b"")
        return self.table[_engine.toeplitz(key, data) % BUCKETS]

    def send(self, packet: bytes, iface: int = 0, **more: int) -> Result:
        frame = bytes(packet)
        worker = self.arrives_at(frame)
        m = self.members[worker]
        m.now = self.now
        return self.go_on(worker, frame, iface, m.send(frame, iface))

    def go_on(self, worker: int, frame: bytes, iface: int, r: Result) -> Result:
        """After the first worker's verdict, to the last one's."""
        hops, way, more = 0, [worker], 0
        while r.verdict == "handover":
            assert r.owner != worker, "handed to itself"
            assert not r.out
            worker, hops = r.owner, hops + 1
            more = max(more, 2 if r.hand else 0)
            # a fragment's way to the fragments' owner is one more; from there on its hops count anew
            most = max(HOPS_MAX, len(self.members)) + more
            assert r.hops < most and hops <= most + 1, "goes round in circles"
            m = self.members[worker]
            m.now = self.now
            r = m.send(frame, iface, handed=True, hops=r.hops + 1, flags=r.flags, hand=r.hand)
            way.append(worker)
        self.hops.append(hops)
        self.worker_of_last = worker
        for w in way:                       # after it, as the rings between workers keep order
            self.collect(w)
        return r

    def collect(self, worker: int) -> None:
        """Fragments that this worker had held."""
        for frame, iface, r in self.members[worker].freed():
            self.released.append((frame, iface, self.go_on(worker, frame, iface, r)))

    def audit(self) -> None:
        for m in self.members:
            m.audit()

    def audit_templates(self, dests: int) -> None:
        """Each is counted once, at its owner, for its real server."""
        found = {t for m in self.members for t in m.engine.templates()}
        assert self.totals("templates") == len(found)
        for d in range(dests):
            assert sum(m.engine.dest_stats(d)["templates"] for m in self.members) == sum(t[1] == d for t in found)

    def totals(self, counter: str) -> int:
        return sum(m.engine.counters()[counter] for m in self.members)
