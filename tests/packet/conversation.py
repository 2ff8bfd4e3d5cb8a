"""A flow with a large packet each way, in every mode, of every protocol and family; and a checksum as a local stack leaves it."""

from collections.abc import Callable
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData, SCTPChunkInit
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_LB1, Balancer, from_client, ip, server, server_mac

MODES: dict[str, dict[str, Any]] = {
    "fullnat": {},
    "nat": {"mode": shm.MODE_NAT},
    "dr": {"mode": shm.MODE_DR},
    "ipip": {"mode": shm.MODE_TUNNEL},
    "gre": {"mode": shm.MODE_TUNNEL, "tunnel": shm.TUNNEL_GRE | shm.TUNNEL_CSUM},
    "gue": {"mode": shm.MODE_TUNNEL, "tunnel": shm.TUNNEL_GUE | shm.TUNNEL_CSUM, "tunnel_port": 6080},
    "nat64": {"cross": True},
}
ONE_WAY = ("dr", "ipip", "gre", "gue")
Seen = list[tuple[Any, ...]]


def balancer(mode: str, **more: Any) -> Balancer:
    return Balancer(**{"servers": 1, "mtu": (9000, 9100), "protocols": ("tcp", "udp", "sctp"), **MODES[mode], **more})


def layer4(proto: str, sport: int, dport: int, data: bytes = b"", flags: str = "A") -> Packet:
    if proto == "tcp":
        return TCP(sport=sport, dport=dport, flags=flags, seq=1001 - (flags == "S"), ack=0 if flags == "S" else 5001) / Raw(data)
    if proto == "udp":
        return UDP(sport=sport, dport=dport) / Raw(data)
    if flags == "S":
        return SCTP(sport=sport, dport=dport, tag=0) / SCTPChunkInit(init_tag=7, init_tsn=1)
    return SCTP(sport=sport, dport=dport, tag=7) / SCTPChunkData(data=data)


def partial(frame: bytes) -> bytes:
    """As a local stack leaves it: the pseudo-header's sum in the checksum's place, for SCTP nothing."""
    p = Ether(frame)
    l3 = p.getlayer(IP) or p.getlayer(IPv6)
    whole = bytearray(frame)
    at = 14 + (20 if IP in p else 40)
    if SCTP in p:
        whole[at + 8 : at + 12] = bytes(4)
        return bytes(whole)
    addresses = whole[26:34] if IP in p else whole[22:54]
    proto, size = (l3.proto, l3.len - 20) if IP in p else (l3.nh, l3.plen)
    data = bytes(addresses) + proto.to_bytes(2, "big") + size.to_bytes(2, "big")
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at += 16 if TCP in p else 6
    whole[at : at + 2] = total.to_bytes(2, "big")
    return bytes(whole)


def told(b: Balancer, frames: list[tuple[bytes, int]], cut: int) -> Seen:
    seen: Seen = []
    for frame, iface in frames:
        results = [b.send(frame, iface, cut=cut), *(r for _, _, r in b.freed())]
        seen += [(r.verdict, r.reason, r.svc, r.dest, r.out) for r in results]
    return [*seen, b.engine.counters()]


def port_seen(b: Balancer, frame: bytes, mode: str) -> int:
    """Opens a flow; the port that answers go to."""
    [(_, out)] = b.send(frame).out
    p = Ether(out)
    l4 = next(p[layer] for layer in (TCP, SCTP, UDP) if layer in p)
    return 40000 if mode in ONE_WAY else int(l4.sport)


def conversation(
    mode: str, af: int, proto: str, change: Callable[[bytes], bytes], data: bytes, **more: Any
) -> Callable[[int], Seen]:
    """A flow with a large packet each way, cut as is asked."""

    def run(cut: int) -> Seen:
        b = balancer(mode, **more)
        lport = port_seen(b, bytes(from_client(af, layer4(proto, 40000, 80, flags="S"))), mode)
        frames = [(change(bytes(from_client(af, layer4(proto, 40000, 80, data)))), 0)]
        if mode not in ONE_WAY:
            raf = b.far(af)
            head = ip(raf, server(raf, 1), CLIENT[af] if mode == "nat" else LIP[raf])
            frames.append((change(bytes(Ether(src=server_mac(1), dst=MAC_LB1) / head / layer4(proto, 8080, lport, data))), 1))
        return told(b, frames, cut)

    return run
