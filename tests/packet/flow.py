"""One flow through a Balancer, both ends played: sequence numbers are kept, what comes out is checked and read back.

    f = Tcp(b); f.open(); f.client("FA"); f.state
"""

from typing import Any

from lbd._fastpath import Result

from tests.packet.balancer import CLIENT, LIP, VIP, Balancer, packed
from tests.packet.frame import FLAGS, TCP, UDP, Seen, from_client, from_server, read


class Flow:
    proto = TCP

    def __init__(self, b: Balancer, af: int = 4, sport: int = 40000, client: bytes | None = None):
        self.b, self.af, self.sport = b, af, sport
        self.far = b.far(af)  # family of the real server's side
        self.address = client or packed(CLIENT[af])
        self.server: bytes | None = None  # real server and local port, once a packet has come through
        self.lport = 0

    @property
    def record(self) -> dict[str, Any] | None:
        for c in self.b.engine.conns():
            if c["client"] == (self.address, self.sport) and c["proto"] == self.proto and not c["resting"]:
                return c
        return None

    @property
    def state(self) -> str:
        record = self.record
        return record["state"] if record else ""

    def arrived(self, r: Result, from_client_side: bool) -> Seen | None:
        """The packet that left, if one did, checked."""
        if r.verdict != "forward":
            return None
        [(iface, frame)] = r.out
        p = read(frame)
        if from_client_side:
            assert iface == 1 and p.src == packed(LIP[self.far]) and p.dport == 8080
            self.server, self.lport = p.dst, p.sport
        else:
            assert iface == 0 and (p.src, p.dst) == (packed(VIP[self.af]), self.address)
            assert (p.sport, p.dport) == (80, self.sport)
        return p


class Udp(Flow):
    proto = UDP

    def ask(self, payload: bytes = b"q") -> Result:
        r = self.b.send(from_client(self.af, UDP, self.sport, payload=payload, client=self.address))
        self.arrived(r, True)
        return r

    def answer(self, payload: bytes = b"a") -> Result:
        assert self.server is not None
        r = self.b.send(from_server(self.far, UDP, self.server, self.lport, payload=payload), 1)
        self.arrived(r, False)
        return r


class Tcp(Flow):
    def __init__(self, b: Balancer, af: int = 4, sport: int = 40000, client: bytes | None = None, *, isn: int = 1000,
                 server_isn: int = 70000):  # fmt: skip
        super().__init__(b, af, sport, client)
        self.cseq, self.sseq = isn, server_isn  # the next number each end will use
        self.moved = 0  # what lbd adds to the client's numbers

    def client(self, flags: str, payload: bytes = b"", seq: int | None = None, ack: int | None = None) -> Result:
        """seq, ack: in place of the right ones, which then do not advance."""
        used = self.cseq if seq is None else seq
        acked = (self.sseq if ack is None else ack) if "A" in flags else 0
        r = self.b.send(from_client(self.af, TCP, self.sport, flags, used, acked, payload, client=self.address))
        p = self.arrived(r, True)
        if p:
            if flags == "S":
                self.moved = (p.seq - used) % 2**32
            assert (p.seq, p.ack, p.payload) == ((used + self.moved) % 2**32, acked % 2**32, payload)
            assert p.flags == sum(FLAGS[f] for f in flags)
        if seq is None:
            self.cseq += len(payload) + ("S" in flags) + ("F" in flags)
        return r

    def real(self, flags: str, payload: bytes = b"", seq: int | None = None, ack: int | None = None) -> Result:
        """The same from the real server."""
        assert self.server is not None
        used = self.sseq if seq is None else seq
        acked = (self.cseq if ack is None else ack) if "A" in flags else 0
        r = self.b.send(from_server(self.far, TCP, self.server, self.lport, flags, used, acked + self.moved, payload), 1)
        p = self.arrived(r, False)
        if p:
            assert (p.seq, p.ack, p.payload) == (used % 2**32, acked % 2**32, payload)
        if seq is None:
            self.sseq += len(payload) + ("S" in flags) + ("F" in flags)
        return r

    def open(self) -> "Tcp":
        for r in (self.client("S"), self.real("SA"), self.client("A")):
            assert r.verdict == "forward", r
        return self

    def close_by_client(self) -> None:
        self.client("FA")
        self.real("FA")
        self.client("A")

    def close_by_server(self) -> None:
        self.real("FA")
        self.client("FA")
        self.real("A")
