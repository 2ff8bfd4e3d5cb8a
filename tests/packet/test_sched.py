"""Every scheduler over packets: connections opened and closed through the engine, each as the oracle of IPVS says.

The worker's own counts of connections decide here, and commands carry table, kind and flags as the master sends them.
"""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import TCP

from lbd.sched import Server, flags_of, names, scheduler
from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, VIP, Balancer, from_client, from_server, packed, server
from tests.unit import ipvs_oracle as ipvs
from tests.unit.ipvs_oracle import Real

SERVERS = 4
WEIGHTS = (3, 1, 2, 1)
ORACLES = {"lc": ipvs.lc, "wlc": ipvs.wlc, "sed": ipvs.sed, "nq": ipvs.nq, "fo": ipvs.fo, "ovf": ipvs.ovf}


class Scheduled:
    """Balancer with its IPv4 TCP service, or IPv6, under a scheduler."""

    def __init__(self, name: str, options: tuple[str, ...] = (), af: int = 4) -> None:
        self.b, self.af, self.svc = Balancer(servers=SERVERS), af, 0 if af == 4 else 2
        self.method = scheduler(name)
        self.flags = flags_of(self.method, options)
        self.weights = list(WEIGHTS)
        self.port = 20000
        self.open: list[tuple[int, int, int]] = []  # client's port, real server, local port
        self.update()

    def update(self) -> None:
        af, first = self.af, self.svc * SERVERS
        servers = []
        for n, weight in enumerate(self.weights):
            self.b.do(shm.dest_set(first + n, 2, af=af, addr=packed(server(af, n + 1)), port=8080, svc=self.svc, weight=weight))
            servers.append(Server(first + n, weight, packed(server(af, n + 1)), True, WEIGHTS[n]))
        table = self.method.table(servers, self.flags)
        self.b.engine.set_table(1024, list(table))
        self.b.do(shm.svc_set(self.svc, 2, af=af, addr=packed(VIP[af]), port=80, proto=6, sched=self.method.KIND,
                              flags=self.flags, table_off=1024, table_len=len(table)))  # fmt: skip

    def reals(self) -> list[Real]:
        stats = [self.b.engine.dest_stats(self.svc * SERVERS + n) for n in range(SERVERS)]
        return [Real(w, True, s["active"], s["inactive"]) for w, s in zip(self.weights, stats, strict=True)]

    def connect(self) -> int | None:
        """The real server of a new, established connection; None: refused."""
        self.port += 1
        got = self.b.send(from_client(self.af, TCP(sport=self.port, dport=80, flags="S", seq=1000)))
        if not got.out:
            assert got.reason == "no_backend"
            return None
        conn = next(c for c in self.b.engine.conns() if c["client"][1] == self.port)
        picked, lport = conn["dest"] - self.svc * SERVERS, conn["local"][1]
        address = server(self.af, picked + 1)
        reply = TCP(sport=8080, dport=lport, flags="SA", seq=5000, ack=1001)
        self.b.send(from_server(self.af, address, reply, picked + 1), 1)
        self.b.send(from_client(self.af, TCP(sport=self.port, dport=80, flags="A", seq=1001, ack=5001)))
        self.open.append((self.port, picked, lport))
        return picked

    def close(self, index: int) -> None:
        port, picked, lport = self.open.pop(index)
        self.b.send(from_client(self.af, TCP(sport=port, dport=80, flags="FA", seq=1001, ack=5001)))
        end = TCP(sport=8080, dport=lport, flags="FA", seq=5001, ack=1002)
        self.b.send(from_server(self.af, server(self.af, picked + 1), end, picked + 1), 1)


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("name", names())
def test_connections_as_ipvs(name: str, af: int) -> None:
    chance, s = random.Random(7), Scheduled(name, af=af)
    locality = ipvs.Locality(name == "lblcr") if name.startswith("lblc") else None
    picked = []
    for turn in range(90):
        if turn in (40, 70):
            s.weights[0] = 0 if turn == 40 else 3
            s.update()
        if s.open and chance.random() < 0.35:
            s.close(chance.randrange(len(s.open)))
        reals = s.reals()
        now = s.b.now // 1_000_000
        right = ORACLES[name](reals) if name in ORACLES else locality.choices(reals, now)[0] if locality else None
        got = s.connect()
        picked.append(got)
        if locality:
            locality.took(got, None, now)
        assert got is None or reals[got].open
        if right is not None:
            assert (got in right) if right else got is None
        elif name == "sh":
            assert got == sh(s, af)
        elif name == "dh":
            assert got == ipvs.dh(reals, packed(VIP[af]))
    if name in ("rr", "wrr"):
        shares = [1, 1, 1, 1] if name == "rr" else list(WEIGHTS)
        one_round = sum(shares)
        first = picked[: 40 - 40 % one_round]
        assert [first.count(n) for n in range(SERVERS)] == [len(first) * w // one_round for w in shares]
    s.b.audit()


def sh(s: Scheduled, af: int) -> int | None:
    """The test's weights sum to 7 and the client is one and the same, so all its connections go to one server."""
    return ipvs.sh(s.reals(), packed(CLIENT[af]), 0, False)


def test_port_and_fallback_reach_the_worker() -> None:
    for name in ("sh", "mh"):
        s = Scheduled(name, (f"{name}-port", f"{name}-fallback"))
        assert {s.connect() for _ in range(60)} == {0, 1, 2, 3}
        s.weights[2] = 0
        s.update()
        assert {s.connect() for _ in range(60)} == {0, 1, 3}
        plain = Scheduled(name, (f"{name}-port",))
        plain.weights[2] = 0
        plain.update()
        assert {plain.connect() for _ in range(60)} == {0, 1, 3, None}


def test_conhash_follows_the_client_not_the_port() -> None:
    s = Scheduled("conhash")
    assert len({s.connect() for _ in range(20)}) == 1
