"""A Balancer that is an SNAT gateway, too: internal hosts 10.77.0.0/16 and fd77::/32 on iface 1, everything else by a router on
iface 0. Remotes 203.0.113.9, 2001:db8:9::9; pools 198.51.100.1.., 2001:db8:51::1..
"""

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lbd.shm import _shm as shm
from tests.packet.balancer import MAC_LB0, MAC_LB1, Balancer, ip, mac, packed

HOST = {4: "10.77.0.50", 6: "fd77::50"}
REMOTE = {4: "203.0.113.9", 6: "2001:db8:9::9"}
ROUTER = {4: "192.0.2.254", 6: "2001:db8:1::fe"}
INTERNAL = {4: ["10.77.0.0/16"], 6: ["fd77::/32"]}
MAC_HOST, MAC_ROUTER = "02:00:00:00:03:50", "02:00:00:00:00:fe"
RULE = {4: 10, 6: 11}  # service numbers
DEST = {4: 100, 6: 101}
EVERY = shm.SNAT_TCP | shm.SNAT_UDP | shm.SNAT_ICMP


def pool(af: int, n: int = 1) -> str:
    return f"198.51.100.{n}" if af == 4 else f"2001:db8:51::{n}"


def words(*texts: str) -> list[int]:
    """Of networks or single addresses, in ascending order, as a rule has them in the arena."""
    out = []
    for network in map(ip_network, texts):
        for address in (network[0], network[-1]):
            out += [int.from_bytes(address.packed[n : n + 4], "big") for n in range(0, len(address.packed), 4)]
    return out


def rule(b: Any, af: int, *, number: int = 0, source: list[str] | None = None, destination: tuple[str, ...] = (),
         pools: tuple[int, ...] = (), at: int = 0, **more: Any) -> None:  # fmt: skip
    number = number or RULE[af]
    at = at or number * 64
    lips = pools or ((2,) if af == 4 else (4,))
    sources = source or INTERNAL[af]
    dest = more.pop("dest", number + 90)
    b.do(shm.dest_set(dest, 1, af=af, addr=bytes(4 if af == 4 else 16), port=0, svc=number, fresh=True))
    for e in engines(b):
        e.set_table(at, [dest, *lips, *words(*sources), *words(*destination)])
    b.do(shm.snat_set(number, 1, digest=number.to_bytes(16, "big"), af=af, table_off=at, pool=len(lips), sources=len(sources),
                      dests=len(destination), **{"protocols": EVERY, "order": number, "fresh": True, **more}))  # fmt: skip


def engines(b: Any) -> list[Any]:
    return [m.engine for m in b.members] if hasattr(b, "members") else [b.engine]


def equip(b: Any, *, ports: tuple[int, int] = (20000, 29999), pools: int = 2, rules: bool = True) -> None:
    """A Balancer or Cluster becomes a gateway as well."""
    for af, default in ((4, "0.0.0.0"), (6, "::")):
        b.do(shm.neigh_set(1, iface=0, af=af, addr=packed(ROUTER[af]), mac=mac(MAC_ROUTER)))
        b.do(shm.route_set(1, af=af, prefix=packed(default), plen=0, iface=0, gateway=packed(ROUTER[af])))
        for n in range(pools):
            b.do(shm.lip_set(2 * (af // 2 - 1) + n, 1, af=af, addr=packed(pool(af, n + 1)), port_lo=ports[0], port_hi=ports[1],
                             snat=True, fresh=True))  # fmt: skip
        if rules:
            rule(b, af)


@dataclass
class Gateway(Balancer):
    def __post_init__(self) -> None:
        super().__post_init__()
        equip(self)


def outbound(af: int, l4: Packet, *, src: str = "", dst: str = "", **fields: int) -> Packet:
    return Ether(src=MAC_HOST, dst=MAC_LB1) / ip(af, src or HOST[af], dst or REMOTE[af], **fields) / l4


def inbound(af: int, l4: Packet, *, src: str = "", dst: str = "", **fields: int) -> Packet:
    return Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, src or REMOTE[af], dst or pool(af), **fields) / l4


def left(af: int, l4: Packet, *, src: str = "", dst: str = "", **fields: int) -> Packet:
    """What leaves to the outside."""
    return Ether(src=MAC_LB0, dst=MAC_ROUTER) / ip(af, src or pool(af), dst or REMOTE[af], **fields) / l4


def came_back(af: int, l4: Packet, *, src: str = "", dst: str = "", **fields: int) -> Packet:
    """What the internal host gets."""
    return Ether(src=MAC_LB1, dst=MAC_HOST) / ip(af, src or REMOTE[af], dst or HOST[af], **fields) / l4
