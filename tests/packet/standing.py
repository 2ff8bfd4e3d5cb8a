"""Services and real servers of a Balancer, set anew with another standing: flags, weight, sorry server, timeouts."""

from typing import Any

from lbd.shm import _shm as shm
from tests.packet.balancer import PROTO, VIP, Balancer, packed, server

SERVICES = {(4, "tcp"): 0, (4, "udp"): 1, (6, "tcp"): 2, (6, "udp"): 3}


def service(b: Balancer, af: int, proto: str = "tcp", table_len: int | None = None, **more: Any) -> None:
    n = SERVICES[af, proto]
    length = b.servers if table_len is None else table_len
    b.do(shm.svc_set(n, 2, af=af, addr=packed(VIP[af]), port=80, proto=PROTO[proto], sched=b.sched, table_off=n * 64,
                     table_len=length, mode=b.mode, **more))  # fmt: skip


def dest(b: Balancer, af: int, n: int, proto: str = "tcp", **more: Any) -> int:
    """n: from 1. Its number."""
    svc = SERVICES[af, proto]
    number = svc * b.servers + n - 1
    raf = b.far(af)
    b.do(shm.dest_set(number, 2, af=raf, addr=packed(server(raf, n)), port=80 if b.mode & 2 else 8080, svc=svc, **more))
    return number


def index_of(b: Balancer, af: int, address: bytes) -> int:
    """Which real server (from 1) has this address."""
    raf = 6 if len(address) == 16 else 4
    return next(n for n in range(1, b.servers + 1) if packed(server(raf, n)) == address)


def sorry(b: Balancer, af: int, proto: str = "tcp", number: int = 200, n: int = 60) -> bytes:
    """A sorry server, reachable; its address. The service has to be told of its number."""
    address = packed(server(af, n))
    b.do(shm.neigh_set(2, iface=1, af=af, addr=address, mac=bytes.fromhex("0200000002ff")))
    b.do(shm.dest_set(number, 2, af=af, addr=address, port=80 if b.mode & 2 else 8080, svc=SERVICES[af, proto],
                      flags=shm.DEST_SORRY, fresh=True))  # fmt: skip
    return address
