"""Services with options, on top of what Balancer sets up: its four services (by family and protocol) are set anew."""

from typing import Any

from lbd._fastpath import Result

from lbd.shm import _shm as shm
from tests.packet.balancer import PROTO, VIP, Balancer, packed, server
from tests.packet.frame import TCP, UDP, Seen, from_client, read

NUMBER = {(4, "tcp"): 0, (4, "udp"): 1, (6, "tcp"): 2, (6, "udp"): 3}


def set_service(b: Balancer, af: int = 4, proto: str = "tcp", *, servers: int = 2, **more: Any) -> int:
    """Its number. `more`: of svc_set, in place of Balancer's."""
    n = NUMBER[af, proto]
    settings: dict[str, Any] = {"port": 80, "sched": b.sched, "mode": b.mode, "table_off": n * 64, "table_len": servers}
    b.do(shm.svc_set(n, 1, af=af, addr=packed(VIP[af]), proto=PROTO[proto], **{**settings, **more}))
    return n


def set_server(b: Balancer, n: int, af: int = 4, proto: str = "tcp", *, servers: int = 2, **more: Any) -> int:
    """The n-th (from 1) real server of that service; its number."""
    number = NUMBER[af, proto] * servers + n - 1
    settings: dict[str, Any] = {"port": 8080, "svc": NUMBER[af, proto]}
    b.do(shm.dest_set(number, 1, af=af, addr=packed(server(af, n)), **{**settings, **more}))
    return number


def persist(seconds: float, plen: int = 32) -> dict[str, int]:
    return {"flags": shm.SVC_PERSIST, "persist": int(seconds * 1000), "persist_plen": plen}


def syn(b: Any, sport: int, af: int = 4, client: bytes | None = None, dport: int = 80) -> Result:
    return b.send(from_client(af, TCP, sport, "S", 1000, client=client, dport=dport))


def ask(b: Any, sport: int, af: int = 4, client: bytes | None = None, dport: int = 80, payload: bytes = b"q") -> Result:
    return b.send(from_client(af, UDP, sport, payload=payload, client=client, dport=dport))


def sent(r: Result) -> Seen:
    assert r.verdict == "forward", r
    [(_, frame)] = r.out
    return read(frame)


def server_of(r: Result) -> bytes:
    """Of nat and fullnat."""
    return sent(r).dst
