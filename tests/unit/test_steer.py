"""Which packets the XDP program takes, by BPF_PROG_TEST_RUN: no interface, no socket, no traffic.

The socket map is empty, so a packet of lbd's is dropped for want of a socket, and all others pass: XDP_DROP
and XDP_PASS tell the decision. A table of packets, then truncation, damage, and the maps themselves.
"""

import ctypes
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, GRE, LLC, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

from bench.steer import AF_XDP, LOOPBACK, XDP_REDIRECT, RunOpts, packed
from lbd.xdp._xsk import Program, XdpError

pytestmark = pytest.mark.root

PASS, OURS = "pass", "ours"
VERDICTS = {1: OURS, 2: PASS}  # enum xdp_action: XDP_DROP, XDP_PASS
MACS = bytes.fromhex("020000000002020000000001")

CLIENT, VIP, LIP, SERVER = "198.51.100.7", "192.0.2.10", "10.0.0.10", "10.0.1.1"
CLIENT6, VIP6, LIP6, SERVER6 = "2001:db8:c::7", "2001:db8::10", "fd00::10", "fd00:1::1"
NAT, NAT6 = "10.0.2.1", "fd00:2::1"  # real servers of mode nat
LO, HI = 10240, 60000


WRAPPED, WRAPPED6, GUE = "10.0.1.7", "fd00:1::7", 6080  # a real server of mode tunnel
END, END6, PEER, PEER6 = "10.0.0.1", "fd00::1", "203.0.113.9", "2001:db8:f::9"  # where tunnels end; from PEER alone: GRE
TUNNELS = [
    *((*packed(server)[:1], b"", packed(server)[1], proto, GUE if proto == 17 else 0)
      for server in (WRAPPED, WRAPPED6) for proto in (4, 47, 17)),
    (4, packed(END)[1], b"", 4, 0), (6, packed(END6)[1], b"", 4, 0),
    (4, packed(END)[1], packed(PEER)[1], 47, 0), (6, packed(END6)[1], packed(PEER6)[1], 47, 0),
]  # fmt: skip


class Steer:
    """The loaded program and what runs it."""

    def __init__(self, services: int = 64, lips: int = 64) -> None:
        self.program = Program.load(services=services, lips=lips)
        self.libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)

    def decide(self, frame: bytes) -> str:
        return VERDICTS[self.verdict(frame)]

    def verdict(self, frame: bytes) -> int:
        opts = RunOpts(sz=ctypes.sizeof(RunOpts), data_in=frame, data_size_in=len(frame), repeat=1)
        if self.libbpf.bpf_prog_test_run_opts(self.program.fds["prog"], ctypes.byref(opts)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(opts.retval)


@pytest.fixture(scope="module")
def steer() -> Iterator[Steer]:
    steer = Steer()
    p = steer.program
    p.set_iface(LOOPBACK, 3)
    p.set_service(*packed(VIP), 80, 6)
    p.set_service(*packed(VIP), 53, 17)
    p.set_service(*packed("192.0.2.11"), 53, 17)
    p.set_service(*packed(VIP), 3868, 132)
    p.set_service(*packed(VIP6), 3868, 132)
    p.set_service(*packed(VIP6), 80, 6)
    p.set_service(*packed("2001:db8::11"), 53, 17)
    for lip in (LIP, LIP6):
        p.set_lip(*packed(lip), LO, HI)
    for at in TUNNELS:
        p.set_tunnel(*at)
    for real_server in (NAT, NAT6):
        p.set_source(*packed(real_server), 8080, 17)
    yield steer
    p.close()


def ether(**fields: object) -> Ether:
    """NB: with both addresses given, or scapy would ask the network for the MAC of every destination."""
    return Ether(**({"dst": "02:00:00:00:00:02", "src": "02:00:00:00:00:01"} | fields))


def to4(**fields: object) -> IP:
    return IP(src=CLIENT, dst=VIP, **fields)


def to6(**fields: object) -> IPv6:
    return IPv6(src=CLIENT6, dst=VIP6, **fields)


HTTP = TCP(sport=40000, dport=80, flags="S")
DNS = UDP(sport=40000, dport=53) / Raw(b"query")
SENT4 = IP(src=VIP, dst=CLIENT) / TCP(sport=80, dport=40000)  # what lbd sent, as an ICMP error quotes it
SENT6 = IPv6(src=VIP6, dst=CLIENT6) / TCP(sport=80, dport=40000)
LIP_SENT4 = IP(src=LIP, dst=SERVER) / TCP(sport=LO, dport=8080)
LIP_SENT6 = IPv6(src=LIP6, dst=SERVER6) / UDP(sport=HI, dport=53)
ROUTER4 = IP(src="10.9.9.9", dst=VIP)
ROUTER6 = IPv6(src="fd00:9::9", dst=VIP6)
PAD8 = [PadN(optdata=b"\0" * 4)]
HOP = IPv6ExtHdrHopByHop(options=PAD8)
OPT = IPv6ExtHdrDestOpt(options=PAD8)


def later4(proto: int, dst: str = VIP) -> Packet:
    return IP(src=CLIENT, dst=dst, proto=proto, frag=185, flags="MF") / Raw(b"x" * 64)


def later6(next_header: int, dst: str = VIP6) -> Packet:
    return IPv6(src=CLIENT6, dst=dst) / IPv6ExtHdrFragment(nh=next_header, offset=185, m=1) / Raw(b"x" * 64)


IPIP4, IPIP6 = IP(src=CLIENT, dst=END), IPv6(src=CLIENT6, dst=END6)
GRE4, GRE6 = IP(src=PEER, dst=END, proto=47), IPv6(src=PEER6, dst=END6, nh=47)
INSIDE4, INSIDE6 = IP(src=CLIENT, dst=VIP), IPv6(src=CLIENT6, dst=VIP6)


def gue(inner: Packet, port: int = GUE) -> Packet:
    return UDP(sport=50000, dport=port) / Raw(bytes([0, 4 if isinstance(inner, IP) else 41, 0, 0]) + bytes(inner))


def gre(inner: Packet, **fields: int) -> Packet:
    return GRE(proto=0x0800 if isinstance(inner, IP) else 0x86DD, **fields) / inner


def about4(*wrapped: Packet, dst: str = WRAPPED, **fields: object) -> Packet:
    """What a router says of a packet that the host sent from a LIP."""
    packet: Packet = IP(src=LIP, dst=dst, **fields)
    for layer in wrapped:
        packet /= layer
    return IP(src="10.9.9.9", dst=LIP) / ICMP(type=3, code=4) / packet


def about6(*wrapped: Packet, dst: str = WRAPPED6, **fields: object) -> Packet:
    packet: Packet = IPv6(src=LIP6, dst=dst, **fields)
    for layer in wrapped:
        packet /= layer
    return IPv6(src="fd00:9::9", dst=LIP6) / ICMPv6PacketTooBig() / packet


TUNNELLED: list[tuple[str, Packet, str]] = [
    ("too big, of what lbd wrapped: 4 in 4", about4(INSIDE4 / HTTP), OURS),
    ("too big, of what lbd wrapped: 6 in 4", about4(INSIDE6 / HTTP), OURS),
    ("too big, of what lbd wrapped: 4 in 6", about6(INSIDE4 / HTTP), OURS),
    ("too big, of what lbd wrapped: 6 in 6", about6(INSIDE6 / HTTP), OURS),
    ("too big, of what lbd wrapped: GRE", about4(gre(INSIDE4 / HTTP)), OURS),
    ("too big, of what lbd wrapped: GRE in IPv6", about6(gre(INSIDE4 / HTTP)), OURS),
    ("too big, of what lbd wrapped: GUE", about4(gue(INSIDE4 / HTTP)), OURS),
    ("too big, of what lbd wrapped: GUE in IPv6", about6(gue(INSIDE6 / HTTP)), OURS),
    ("too big, of UDP to another port", about4(UDP(sport=60001, dport=6081) / Raw(b"x" * 64)), PASS),
    ("too big, of the host's own UDP", about4(UDP(sport=GUE, dport=53)), PASS),
    ("too big, of a tunnel to another host", about4(INSIDE4 / HTTP, dst=SERVER), PASS),
    ("too big, of a tunnel to another host, IPv6", about6(INSIDE6 / HTTP, dst=SERVER6), PASS),
    ("too big, of a later fragment of a tunnel's", about4(Raw(b"x" * 64), proto=4, frag=100), PASS),
    ("too big, of ESP to a real server", about4(Raw(b"x" * 64), proto=50), PASS),
    ("a real server's tunnel back", IP(src=WRAPPED, dst=LIP) / INSIDE4 / HTTP, PASS),
    ("IPIP for a service: 4 in 4", IPIP4 / INSIDE4 / HTTP, OURS),
    ("IPIP for a service: 6 in 4", IPIP4 / INSIDE6 / HTTP, OURS),
    ("IPIP for a service: 4 in 6", IPIP6 / INSIDE4 / HTTP, OURS),
    ("IPIP for a service: 6 in 6", IPIP6 / INSIDE6 / HTTP, OURS),
    ("IPIP behind options", IP(src=CLIENT, dst=END, options=[IPOption_NOP()] * 4) / INSIDE4 / HTTP, OURS),
    ("IPIP behind an encapsulation limit", IPv6(src=CLIENT6, dst=END6) / OPT / INSIDE6 / HTTP, OURS),
    ("IPIP, options inside", IPIP4 / IP(dst=VIP, options=[IPOption_NOP()] * 4) / HTTP, OURS),
    ("IPIP, extension headers inside", IPIP6 / IPv6(dst=VIP6) / HOP / OPT / HTTP, OURS),
    ("IPIP, another port inside", IPIP4 / INSIDE4 / TCP(dport=22), PASS),
    ("IPIP, another address inside", IPIP6 / IPv6(dst="2001:db8::99") / HTTP, PASS),
    ("IPIP, ping inside", IPIP4 / INSIDE4 / ICMP(), PASS),
    ("IPIP, LIP's port inside", IPIP4 / IP(src=SERVER, dst=LIP) / TCP(dport=LO), OURS),
    ("IPIP, fragment inside", IPIP4 / later4(17), OURS),
    ("IPIP, fragment of an address that begins like the outer one", IPIP6 / later4(17, "253.0.0.0"), PASS),
    ("IPIP, an error about a service's packet inside", IPIP4 / ROUTER4 / ICMP(type=3) / SENT4, OURS),
    ("IPIP, an error about the host's packet inside", IPIP6 / ROUTER6 / ICMPv6PacketTooBig() / IPv6(src=VIP6) / TCP(sport=9), PASS),
    ("IPIP, an error about what lbd wrapped inside", IPIP4 / about4(INSIDE4 / HTTP), OURS),
    ("IPIP, a tunnel inside", IPIP4 / IPIP4 / INSIDE4 / HTTP, PASS),
    ("IPIP in fragments", IP(src=CLIENT, dst=END, flags="MF", proto=4) / INSIDE4 / HTTP, PASS),
    ("IPIP in a later fragment", IP(src=CLIENT, dst=END, frag=9, proto=4) / Raw(b"x" * 64), PASS),
    ("IPIP to another address", IP(src=CLIENT, dst="10.0.0.2") / INSIDE4 / HTTP, PASS),
    ("IPIP to a VIP", IP(src=CLIENT, dst=VIP) / INSIDE4 / HTTP, PASS),
    ("IPIP from a real server of mode tunnel to nobody", IP(src=WRAPPED, dst="0.0.0.0") / INSIDE4 / HTTP, PASS),
    ("GRE for a service", GRE4 / gre(INSIDE4 / HTTP), OURS),
    ("GRE for a service: 6 in 4", GRE4 / gre(INSIDE6 / HTTP), OURS),
    ("GRE for a service: 4 in 6", GRE6 / gre(INSIDE4 / HTTP), OURS),
    ("GRE for a service: 6 in 6", GRE6 / gre(INSIDE6 / HTTP), OURS),
    ("GRE with a checksum", GRE4 / gre(INSIDE4 / HTTP, chksum_present=1), OURS),
    ("GRE with a key", GRE4 / gre(INSIDE4 / HTTP, key_present=1, key=5), PASS),
    ("GRE with sequence numbers", GRE4 / gre(INSIDE4 / HTTP, seqnum_present=1, seqence_number=1), PASS),
    ("GRE of version 1", GRE4 / gre(INSIDE4 / HTTP, version=1), PASS),
    ("GRE with Ethernet inside", GRE4 / GRE(proto=0x6558) / ether() / INSIDE4 / HTTP, PASS),
    ("GRE from another peer", IP(src=CLIENT, dst=END, proto=47) / gre(INSIDE4 / HTTP), PASS),
    ("GRE from another peer, IPv6", IPv6(src=CLIENT6, dst=END6, nh=47) / gre(INSIDE6 / HTTP), PASS),
]  # fmt: skip
# what it is, layer 3 and above, what the program decides
TABLE: list[tuple[str, Packet, str]] = [
    ("TCP to a service", to4() / HTTP, OURS),
    ("UDP to a service", to4() / DNS, OURS),
    ("TCP to a service, IPv6", to6() / HTTP, OURS),
    ("UDP to a service, IPv6", IPv6(dst="2001:db8::11") / DNS, OURS),
    ("a service's address, another port", to4() / TCP(dport=22), PASS),
    ("a service's address and port, another protocol", to4() / UDP(dport=80), PASS),
    ("a service's port, another address", IP(dst="192.0.2.12") / HTTP, PASS),
    ("a service's source, not its destination", IP(src=VIP, dst=CLIENT) / TCP(sport=80, dport=9), PASS),
    ("an IPv6 address that begins like a service's IPv4 one", IPv6(dst="c000:20a::") / HTTP, PASS),
    ("IPv4 options", to4(options=[IPOption_NOP()] * 8) / HTTP, OURS),
    ("IPv4 options, all 40 bytes", to4(options=[IPOption_NOP()] * 40) / HTTP, OURS),
    ("IPv4 options, another port", to4(options=[IPOption_NOP()] * 8) / TCP(dport=81), PASS),
    ("IPv4 with a header length below 20", to4(ihl=4) / HTTP, PASS),
    ("IPv4 that says version 5", to4(version=5) / HTTP, PASS),
    ("IPv6 that says version 4", to6(version=4) / HTTP, PASS),
    ("hop-by-hop options", to6() / HOP / HTTP, OURS),
    ("three extension headers", to6() / HOP / OPT / IPv6ExtHdrRouting(segleft=0) / HTTP, OURS),
    ("authentication header", to6() / AH(nh=6, payloadlen=4, icv=b"\0" * 12) / HTTP, OURS),
    ("six extension headers", to6() / HOP / OPT / OPT / OPT / OPT / OPT / HTTP, OURS),
    ("seven extension headers", to6() / HOP / OPT / OPT / OPT / OPT / OPT / OPT / HTTP, PASS),
    ("extension headers, another port", to6() / HOP / OPT / TCP(dport=443), PASS),
    ("no next header", to6(nh=59) / Raw(b"x" * 40), PASS),
    ("ESP", to6(nh=50) / Raw(b"x" * 40), PASS),
    ("first fragment of a service's", to4(flags="MF") / DNS, OURS),
    ("first fragment to another port", to4(flags="MF", id=2) / UDP(dport=5353), PASS),
    ("later fragment, protocol with a service there", later4(17), OURS),
    ("later fragment, last one", to4(proto=6, frag=9) / Raw(b"x" * 16), OURS),
    ("later fragment, protocol without a service there", later4(6, "192.0.2.11"), PASS),
    ("later fragment of ICMP", later4(1), PASS),
    ("later fragment, address without a service", later4(17, "192.0.2.12"), PASS),
    ("later fragment to a LIP", later4(17, LIP), OURS),
    ("first fragment from a NAT real server", IP(src=NAT, dst=CLIENT, flags="MF") / UDP(sport=8080, dport=9), OURS),
    ("first fragment from a NAT real server, another port",
     IP(src=NAT, dst=CLIENT, flags="MF", id=2) / UDP(sport=8081, dport=9), PASS),
    ("later fragment from a NAT real server", IP(src=NAT, dst=CLIENT, proto=17, frag=9) / Raw(b"x" * 16), OURS),
    ("later fragment from a NAT real server, another protocol", IP(src=NAT, dst=CLIENT, proto=6, frag=9) / Raw(b"x" * 16), PASS),
    ("later fragment from a NAT real server, IPv6",
     IPv6(src=NAT6, dst=CLIENT6) / IPv6ExtHdrFragment(nh=17, offset=9) / Raw(b"x" * 16), OURS),
    ("first fragment, IPv6", to6() / IPv6ExtHdrFragment(nh=6, m=1) / HTTP, OURS),
    ("atomic fragment, IPv6", to6() / IPv6ExtHdrFragment(nh=6) / HTTP, OURS),
    ("first fragment to another port, IPv6", to6() / IPv6ExtHdrFragment(nh=6, m=1, id=2) / TCP(dport=22), PASS),
    ("later fragment, IPv6", later6(6), OURS),
    ("later fragment that began with options, IPv6", later6(60), OURS),
    ("later fragment, protocol without a service there, IPv6", later6(17), PASS),
    ("later fragment of ICMPv6", later6(58), PASS),
    ("later fragment to a LIP, IPv6", later6(17, LIP6), OURS),
    ("later fragment of ICMPv6 to a LIP", later6(58, LIP6), PASS),
    ("LIP, lowest port", IP(src=SERVER, dst=LIP) / TCP(dport=LO), OURS),
    ("LIP, highest port", IP(src=SERVER, dst=LIP) / UDP(dport=HI), OURS),
    ("LIP, below the range", IP(src=SERVER, dst=LIP) / TCP(dport=LO - 1), PASS),
    ("LIP, above the range", IP(src=SERVER, dst=LIP) / TCP(dport=HI + 1), PASS),
    ("LIP, SSH", IP(src=SERVER, dst=LIP) / TCP(dport=22), PASS),
    ("LIP, IPv6, lowest port", IPv6(src=SERVER6, dst=LIP6) / TCP(dport=LO), OURS),
    ("LIP, IPv6, above the range", IPv6(src=SERVER6, dst=LIP6) / TCP(dport=HI + 1), PASS),
    ("a router's hello to a LIP", IP(src=SERVER, dst=LIP, proto=89) / Raw(b"x" * 40), PASS),
    ("unreachable, of a service's packet", ROUTER4 / ICMP(type=3, code=4) / SENT4, OURS),
    ("time exceeded, of a service's packet", ROUTER4 / ICMP(type=11) / SENT4, OURS),
    ("parameter problem, of a service's packet", ROUTER4 / ICMP(type=12) / SENT4, OURS),
    ("redirect, of a service's packet", ROUTER4 / ICMP(type=5) / SENT4, PASS),
    ("unreachable, with options in the quoted header",
     ROUTER4 / ICMP(type=3) / IP(src=VIP, dst=CLIENT, options=[IPOption_NOP()] * 4) / TCP(sport=80), OURS),
    ("unreachable, 8 bytes of transport quoted", ROUTER4 / ICMP(type=3) / Raw(bytes(SENT4)[:28]), OURS),
    ("unreachable, nothing of transport quoted", ROUTER4 / ICMP(type=3) / Raw(bytes(SENT4)[:20]), PASS),
    ("unreachable, of the host's own packet from a VIP",
     ROUTER4 / ICMP(type=3) / IP(src=VIP, dst=CLIENT) / TCP(sport=55555, dport=80), PASS),
    ("unreachable, of a packet to a service", ROUTER4 / ICMP(type=3) / to4() / HTTP, PASS),
    ("unreachable, of a LIP's packet", ROUTER4 / ICMP(type=3) / LIP_SENT4, OURS),
    ("unreachable, of a health check from a LIP",
     ROUTER4 / ICMP(type=3) / IP(src=LIP, dst=SERVER) / TCP(sport=LO - 1, dport=8080), PASS),
    ("unreachable, of an echo request", ROUTER4 / ICMP(type=3) / IP(src=VIP, dst=CLIENT) / ICMP(), PASS),
    ("unreachable, of a later fragment",
     ROUTER4 / ICMP(type=3) / IP(src=VIP, proto=6, frag=9) / Raw(b"x" * 8), OURS),
    ("unreachable in fragments", IP(src="10.9.9.9", dst=VIP, flags="MF") / ICMP(type=3) / SENT4, PASS),
    ("unreachable, IPv6", ROUTER6 / ICMPv6DestUnreach() / SENT6, OURS),
    ("packet too big", ROUTER6 / ICMPv6PacketTooBig() / SENT6, OURS),
    ("time exceeded, IPv6", ROUTER6 / ICMPv6TimeExceeded() / SENT6, OURS),
    ("parameter problem, IPv6", ROUTER6 / ICMPv6ParamProblem() / SENT6, OURS),
    ("packet too big, extension headers before and inside",
     ROUTER6 / HOP / ICMPv6PacketTooBig() / IPv6(src=VIP6) / HOP / OPT / TCP(sport=80), OURS),
    ("packet too big, of a LIP's packet", ROUTER6 / ICMPv6PacketTooBig() / LIP_SENT6, OURS),
    ("packet too big, of the host's own packet",
     ROUTER6 / ICMPv6PacketTooBig() / IPv6(src=VIP6) / TCP(sport=55555), PASS),
    ("an ICMPv6 type in IPv4", to4(proto=58) / Raw(b"\1\0\0\0\0\0\0\0" + bytes(SENT4)), PASS),
    ("ping", to4() / ICMP(type=8), PASS),
    ("ping, IPv6", to6() / ICMPv6EchoRequest(), PASS),
    ("neighbour solicitation", IPv6(dst="ff02::1:ff00:10") / ICMPv6ND_NS(tgt=VIP6), PASS),
    ("VRRP", IP(dst="224.0.0.18", proto=112) / Raw(b"x" * 20), PASS),
    ("OSPF", IP(dst="224.0.0.5", proto=89) / Raw(b"x" * 44), PASS),
    ("SCTP to a service", to4() / SCTP(sport=40000, dport=3868) / SCTPChunkInit(), OURS),
    ("SCTP to a service, IPv6", to6() / SCTP(sport=40000, dport=3868) / SCTPChunkInit(), OURS),
    ("SCTP to a service, options", to4(options=[IPOption_NOP()] * 8) / SCTP(dport=3868), OURS),
    ("SCTP to a service, extension headers", to6() / HOP / SCTP(dport=3868), OURS),
    ("SCTP to another port", to4() / SCTP(dport=80), PASS),
    ("TCP to a port of SCTP's", to4() / TCP(dport=3868), PASS),
    ("SCTP to a LIP", IP(src=SERVER, dst=LIP) / SCTP(dport=LO), OURS),
    ("SCTP to a LIP, below the range", IPv6(src=SERVER6, dst=LIP6) / SCTP(dport=LO - 1), PASS),
    ("later fragment of SCTP", later4(132), OURS),
    ("later fragment of SCTP, no service of it there", later4(132, "192.0.2.11"), PASS),
    ("unreachable, of SCTP's packet", ROUTER4 / ICMP(type=3) / IP(src=VIP, dst=CLIENT) / SCTP(sport=3868, dport=9), OURS),
    ("packet too big, of SCTP's packet", ROUTER6 / ICMPv6PacketTooBig() / IPv6(src=VIP6) / SCTP(sport=3868), OURS),
    ("a protocol without ports", to4(proto=136) / Raw(b"\x9c\x40\0\x50" + b"x" * 20), PASS),
]  # fmt: skip


def frames_of(packet: Packet) -> dict[str, bytes]:
    """The packet untagged and with the tags that a port may see."""
    return {
        "untagged": bytes(ether() / packet),
        "VLAN": bytes(ether() / Dot1Q(vlan=7, prio=3) / packet),
        "QinQ": bytes(ether() / Dot1AD(vlan=100) / Dot1Q(vlan=7) / packet),
        "VLAN in VLAN": bytes(ether() / Dot1Q(vlan=100) / Dot1Q(vlan=7) / packet),
    }


TABLE += TUNNELLED


@pytest.mark.parametrize(("packet", "decision"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_decision(steer: Steer, packet: Packet, decision: str) -> None:
    decided = {tags: steer.decide(frame) for tags, frame in frames_of(packet).items()}
    assert decided == dict.fromkeys(decided, decision)


@pytest.mark.parametrize(
    "frame",
    [
        ether() / ARP(pdst=VIP),
        ether() / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / to4() / HTTP,
        ether(type=0x88CC) / Raw(b"x" * 50),
        ether(type=0x8809) / Raw(b"x" * 50),
        ether(dst="01:80:c2:00:00:00", type=38) / LLC() / Raw(b"x" * 35),
        ether(type=0x86DD) / to4() / HTTP,
        ether(type=0x0800) / to6() / HTTP,
    ],
    ids=["ARP", "three tags", "LLDP", "LACP", "spanning tree", "IPv4 called IPv6", "IPv6 called IPv4"],
)
def test_frames_that_are_never_ours(steer: Steer, frame: Packet) -> None:
    assert steer.decide(bytes(frame)) == PASS


@pytest.mark.parametrize(
    ("packet", "needed"),
    [
        (to4() / HTTP, 20 + 4),
        (to6() / HTTP, 40 + 4),
        (to6() / HOP / OPT / HTTP, 40 + 8 + 8 + 4),
        (to6() / AH(nh=6, payloadlen=4, icv=b"\0" * 12) / HTTP, 40 + 24 + 4),
        (later6(6), 40 + 8),
        (ROUTER4 / ICMP(type=3, code=4) / SENT4, 20 + 8 + 20 + 4),
        (ROUTER6 / ICMPv6PacketTooBig() / SENT6, 40 + 8 + 40 + 4),
        (IPIP4 / INSIDE6 / HTTP, 20 + 40 + 4),
        (GRE6 / gre(INSIDE4 / HTTP, chksum_present=1), 40 + 8 + 20 + 4),
        (GRE4 / gre(ROUTER4 / ICMP(type=3) / SENT4), 20 + 4 + 20 + 8 + 20 + 4),
        (about4(INSIDE4 / HTTP), 20 + 8 + 20),
        (about6(gue(INSIDE4 / HTTP)), 40 + 8 + 40 + 4),
    ],
    ids=["TCP", "TCP IPv6", "extension headers", "authentication header", "fragment", "ICMP", "ICMPv6", "IPIP", "GRE",
         "ICMP in GRE", "ICMP about IPIP", "ICMPv6 about GUE"],
)
def test_truncated_at_every_byte(steer: Steer, packet: Packet, needed: int) -> None:
    """Ours as soon as the ports are there, the kernel's before; no error. (A test run takes no runts.)"""
    for frame in frames_of(packet).values():
        ends = len(frame) - len(packet) + needed
        for size in range(14, len(frame) + 1):
            assert steer.decide(frame[:size]) == (OURS if size >= ends else PASS), size


def parts4(dport: int, ident: int, proto: int = 17, dst: str = VIP, src: str = CLIENT, sport: int = 9) -> list[Packet]:
    """The fragments of a datagram, the first one first."""
    l4 = (UDP if proto == 17 else TCP)(sport=sport, dport=dport)
    head = IP(src=src, dst=dst, id=ident, flags="MF")
    return [head / l4 / Raw(b"x" * 64), IP(src=src, dst=dst, id=ident, proto=proto, frag=9) / Raw(b"x" * 64)]


def parts6(dport: int, ident: int, proto: int = 17, dst: str = VIP6, src: str = CLIENT6, sport: int = 9) -> list[Packet]:
    l4 = (UDP if proto == 17 else TCP)(sport=sport, dport=dport)
    head = IPv6(src=src, dst=dst)
    return [head / IPv6ExtHdrFragment(id=ident, m=1) / l4 / Raw(b"x" * 64),
            head / IPv6ExtHdrFragment(id=ident, nh=60, offset=9) / Raw(b"x" * 64)]  # fmt: skip


@pytest.mark.parametrize("parts", [parts4, parts6], ids=["IPv4", "IPv6"])
def test_later_fragments_go_where_the_first_one_went(steer: Steer, parts: Callable[..., list[Packet]]) -> None:
    """To a port of a service's address, or of a LIP, that is the kernel's; from a NAT real server's other port."""
    six = parts is parts6
    kinds: list[tuple[str, dict[str, Any]]] = [
        (PASS, {"dport": 5353}),
        (OURS, {"dport": 80 if six else 53, "proto": 6 if six else 17}),
        (PASS, {"dport": 22, "dst": LIP6 if six else LIP}),
        (OURS, {"dport": LO, "dst": LIP6 if six else LIP}),
        (PASS, {"dport": 9, "src": NAT6 if six else NAT, "dst": CLIENT6 if six else CLIENT, "sport": 53}),
        (OURS, {"dport": 9, "src": NAT6 if six else NAT, "dst": CLIENT6 if six else CLIENT, "sport": 8080}),
    ]
    for ident, (decision, fields) in enumerate(kinds, 1000):
        first, later = (bytes(ether() / p) for p in parts(ident=ident, **fields))
        assert steer.decide(first) == decision
        assert steer.decide(later) == decision
        assert steer.decide(bytes(ether() / parts(ident=ident + 100, **fields)[1])) == OURS, "nothing is known of that one"


@pytest.mark.parametrize("parts", [parts4, parts6], ids=["IPv4", "IPv6"])
def test_an_identification_comes_again(steer: Steer, parts: Callable[..., list[Packet]]) -> None:
    """IPv4 has 65,536 of them: what the last datagram that had it was is not what this one is."""
    ours = {"dport": 80, "proto": 6} if parts is parts6 else {"dport": 53}
    for decision, fields in ((PASS, {**ours, "dport": 5353}), (OURS, ours), (PASS, {**ours, "dport": 5353}), (OURS, ours)):
        assert [steer.decide(bytes(ether() / p)) for p in parts(ident=77, **fields)] == [decision] * 2


def test_as_many_datagrams_are_remembered_as_there_is_room(steer: Steer) -> None:
    for ident in range(20000):
        assert steer.decide(flood(ident, 0x2000)) == PASS
    assert steer.decide(flood(19999, 9)) == PASS
    assert steer.decide(flood(1, 9)) == OURS


def flood(ident: int, offset: int) -> bytes:
    head = MACS + b"\x08\x00" + struct.pack("!BBHHHBBH", 0x45, 0, 60, ident, offset, 64, 17, 0)
    return head + socket.inet_aton(CLIENT) + socket.inet_aton(VIP) + struct.pack("!HHHH", 9, 5353, 100, 0) + bytes(32)


def test_damaged_frames_get_a_verdict(steer: Steer) -> None:
    chance = random.Random(1)
    frames = [frame for row in TABLE for frame in frames_of(row[1]).values()]
    for frame in frames * 5:
        damaged = bytearray(frame)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(12, len(damaged))] = chance.randrange(256)
        assert steer.decide(bytes(damaged[: chance.randint(14, len(damaged))])) in (PASS, OURS)


def test_every_decision_is_counted(steer: Steer) -> None:
    before = steer.program.counters()[3]
    steer.decide(bytes(ether() / to4() / HTTP))
    steer.decide(bytes(ether() / ARP()))
    steer.decide(bytes(ether() / ARP()))
    after = steer.program.counters()[3]
    grown = {action: after[action] - before[action] for action in after}
    assert grown == {"pass": 2, "redirect": 0, "drop": 1}


def test_an_interface_that_is_not_lbds_passes_everything(steer: Steer) -> None:
    steer.program.del_iface(LOOPBACK)
    try:
        assert steer.decide(bytes(ether() / to4() / HTTP)) == PASS
    finally:
        steer.program.set_iface(LOOPBACK, 3)
    assert steer.decide(bytes(ether() / to4() / HTTP)) == OURS


@pytest.fixture
def empty() -> Iterator[Steer]:
    steer = Steer()
    steer.program.set_iface(LOOPBACK, 0)
    yield steer
    steer.program.close()


@pytest.fixture
def many() -> Iterator[Steer]:
    steer = Steer(8192, 1024)
    steer.program.set_iface(LOOPBACK, 0)
    yield steer
    steer.program.close()


def test_a_service_comes_and_goes_with_its_fragments(empty: Steer) -> None:
    whole, part = bytes(ether() / to4() / DNS), bytes(ether() / later4(17))
    p = empty.program
    vip = packed(VIP)
    p.set_service(*vip, 53, 17, 4)
    p.set_service(*vip, 5353, 17, 5)
    p.set_service(*vip, 80, 6)
    assert (empty.decide(whole), empty.decide(part)) == (OURS, OURS)
    p.del_service(*vip, 53, 17)
    assert (empty.decide(whole), empty.decide(part)) == (PASS, OURS)  # 5353 is still there
    p.del_service(*vip, 5353, 17)
    assert empty.decide(part) == PASS
    assert p.services() == {(*vip, 80, 6): 0}
    p.del_service(*vip, 5353, 17)  # again: harmless
    p.del_service(*vip, 80, 6)
    assert p.services() == {}


@pytest.mark.parametrize("family", [4, 6])
def test_every_port_of_an_address(empty: Steer, family: int) -> None:
    """Port 0 stands for all of the protocol; another service's port, another protocol and another address are not touched."""
    vip, client, other = (VIP, CLIENT, "192.0.2.12") if family == 4 else (VIP6, CLIENT6, "2001:db8::12")
    layer = IP if family == 4 else IPv6

    def decide(to: str, l4: Packet) -> str:
        return empty.decide(bytes(ether() / layer(src=client, dst=to) / l4))

    p = empty.program
    p.set_service(*packed(vip), 80, 6)
    assert decide(vip, TCP(dport=81)) == "pass"
    p.set_service(*packed(vip), 0, 6)
    for port in (1, 80, 443, 65535):
        assert decide(vip, TCP(dport=port)) == "ours"
        assert decide(vip, UDP(dport=port)) == decide(other, TCP(dport=port)) == "pass"
    assert (family, packed(vip)[1], 0, 6) in p.services()
    p.del_service(*packed(vip), 0, 6)
    assert decide(vip, TCP(dport=81)) == "pass" and decide(vip, TCP(dport=80)) == "ours"


@pytest.mark.parametrize("family", [4, 6])
def test_every_port_of_a_real_server(empty: Steer, family: int) -> None:
    """Mode nat, of a service without a port: all that it sends by the protocol may be an answer."""
    server, client = (SERVER, CLIENT) if family == 4 else (SERVER6, CLIENT6)
    layer = IP if family == 4 else IPv6

    def decide(l4: Packet) -> str:
        return empty.decide(bytes(ether() / layer(src=server, dst=client) / l4))

    p = empty.program
    p.set_source(*packed(server), 8080, 6)
    assert decide(TCP(sport=81)) == "pass" and decide(TCP(sport=8080)) == "ours"
    p.set_source(*packed(server), 0, 6)
    assert decide(TCP(sport=81)) == "ours" and decide(UDP(sport=81)) == "pass"
    p.del_source(*packed(server), 0, 6)
    assert decide(TCP(sport=81)) == "pass" and decide(TCP(sport=8080)) == "ours"


def test_a_lip_comes_and_goes(empty: Steer) -> None:
    frame = bytes(ether() / IP(dst=LIP) / TCP(dport=LO))
    empty.program.set_lip(*packed(LIP), LO, HI)
    assert empty.decide(frame) == OURS
    empty.program.set_lip(*packed(LIP), LO + 1, HI)
    assert empty.decide(frame) == PASS
    assert empty.program.lips() == {packed(LIP): (LO + 1, HI)}
    empty.program.del_lip(*packed(LIP))
    assert empty.program.lips() == {}


def test_tunnels_come_and_go(empty: Steer) -> None:
    p = empty.program
    p.set_service(*packed(VIP), 80, 6)
    told, inside = bytes(ether() / about4(gre(INSIDE4 / HTTP))), bytes(ether() / GRE4 / gre(INSIDE4 / HTTP))
    server = (4, b"", packed(WRAPPED)[1], 47, 0)
    ends = [(4, packed(END)[1], b"", 47, 0), (4, packed(END)[1], packed(PEER)[1], 47, 0)]
    for at in (server, *ends):
        p.set_tunnel(*at)
    assert p.tunnels() == {server, *ends}
    assert (empty.decide(told), empty.decide(inside)) == (OURS, OURS)
    p.del_tunnel(*ends[0])
    assert empty.decide(inside) == OURS
    p.del_tunnel(*ends[1])
    p.del_tunnel(*ends[1])  # again: harmless
    assert (empty.decide(told), empty.decide(inside)) == (OURS, PASS)
    p.del_tunnel(*server)
    assert empty.decide(told) == PASS and p.tunnels() == set()
    with pytest.raises(ValueError, match="no address"):
        p.set_tunnel(4, b"", b"", 4)


def test_a_successor_takes_the_program_over(empty: Steer) -> None:
    p = empty.program
    p.set_service(*packed(VIP), 53, 17, 4)
    p.set_service(*packed(VIP6), 80, 6, 5)
    p.set_lip(*packed(LIP6), LO, HI)
    p.set_tunnel(6, b"", packed(WRAPPED6)[1], 17, GUE)
    fds = {name: os.dup(fd) for name, fd in p.fds.items()}
    p.close()
    q = Program.adopt(fds)
    try:
        assert q.services() == {(*packed(VIP), 53, 17): 4, (*packed(VIP6), 80, 6): 5}
        assert q.lips() == {packed(LIP6): (LO, HI)}
        assert q.ifaces() == {LOOPBACK: 0}
        assert q.tunnels() == {(6, b"", packed(WRAPPED6)[1], 17, GUE)}
        empty.program = q
        q.del_service(*packed(VIP), 53, 17)
        assert empty.decide(bytes(ether() / later4(17))) == PASS  # what the predecessor set is known to it
    finally:
        q.close()


def test_another_programs_maps_are_not_taken_over(empty: Steer) -> None:
    fds = empty.program.fds
    with pytest.raises(XdpError, match="stop lbd, then start it"):
        Program.adopt(fds | {"map:settings": fds["map:counters"]})
    with pytest.raises(XdpError, match="map:lips6 not handed over"):
        Program.adopt({name: fd for name, fd in fds.items() if name != "map:lips6"})
    older = {name: fd for name, fd in fds.items() if not name.startswith(("map:vips", "map:lips"))}
    with pytest.raises(XdpError, match=r"another version: .*stop lbd, then start it"):
        Program.adopt(older | {"map:settings": fds["map:vip_addrs"]})


def test_a_full_map_is_a_clear_refusal(empty: Steer) -> None:
    with pytest.raises(XdpError, match="services is too small"):
        for port in range(1, 100):
            empty.program.set_service(*packed(VIP), port, 6)


ADDRESSES = [f"192.0.2.{n}" for n in range(40)] + [f"2001:db8::{n:x}" for n in range(8)]
PORTS = [*range(1, 100), *range(9990, 10010), 65535]


def test_many_services_share_slots_and_come_and_go(many: Steer) -> None:
    """More than a hundred pairs of these have the same near slot: each is found, until it goes, and no other is."""
    chance = random.Random(3)
    all_of_them = [(*packed(a), port, proto) for a in ADDRESSES for port in PORTS for proto in (6, 17)]
    chance.shuffle(all_of_them)
    there: set[tuple[int, bytes, int, int]] = set()
    many.program.set_lip(*packed(LIP), 9999, 10001)  # so that services are looked for among LIPs too
    for turn in range(4):
        if turn == 2:  # a successor knows which share a slot
            fds = {name: os.dup(fd) for name, fd in many.program.fds.items()}
            many.program.close()
            many.program = Program.adopt(fds)
        going = set(chance.sample(sorted(there), len(there) // 2))
        coming = set(chance.sample(all_of_them, 2000)) - there
        for service in going:
            many.program.del_service(*service)
        for service in coming:
            many.program.set_service(*service)
        there = there - going | coming
        asked = [*chance.sample(sorted(there), 1000), *chance.sample(all_of_them, 2000), *going]
        wrong = [at for at in asked if many.decide(frame_to(*at)) != (OURS if at in there else PASS)]
        assert wrong == []
        assert many.program.services().keys() == there


def test_many_local_addresses_share_slots_and_change_their_ports(many: Steer) -> None:
    chance = random.Random(4)
    some = [bytes([10, chance.randrange(256), chance.randrange(256), chance.randrange(256)]) for _ in range(900)]
    all_of_them = [*{(4, addr) for addr in some}, *((6, packed(LIP6)[1][:14] + addr[:2]) for addr in some[:20])]
    there: dict[tuple[int, bytes], tuple[int, int]] = {}
    for turn in range(6):
        if turn == 3:
            fds = {name: os.dup(fd) for name, fd in many.program.fds.items()}
            many.program.close()
            many.program = Program.adopt(fds)
        for lip in chance.sample(sorted(there), len(there) // 2):
            many.program.del_lip(*lip)
            del there[lip]
        for lip in chance.sample(all_of_them, 500):
            lo = chance.choice([1, 1024, 10240, 40000])
            there[lip] = (lo, chance.choice([lo, lo + 1000, 60000, 65535]))
            many.program.set_lip(*lip, *there[lip])
        for lip in all_of_them:
            lo, hi = there.get(lip, (1, 0))
            ports = {1, 1023, 1024, 10239, 10240, 65535, max(lo - 1, 1), lo, max(hi, 1), min(hi + 1, 65535)}
            got = {port: many.decide(frame_to(*lip, port, 6)) for port in ports}
            assert got == {port: OURS if lo <= port <= hi else PASS for port in ports}
    assert many.program.lips() == there


def test_a_service_at_a_local_address_has_its_port_within_lbds_range(empty: Steer) -> None:
    for address in (LIP, LIP6):
        empty.program.set_lip(*packed(address), LO, LO + 9)
        empty.program.set_service(*packed(address), HI, 6)
        empty.program.set_service(*packed(address), LO, 6)
        found = [empty.decide(frame_to(*packed(address), port, 6)) for port in (LO - 1, LO, LO + 9, LO + 10, HI)]
        assert found == [PASS, OURS, OURS, PASS, OURS]
        empty.program.del_lip(*packed(address))
        found = [empty.decide(frame_to(*packed(address), port, 6)) for port in (LO - 1, LO, LO + 9, LO + 10, HI)]
        assert found == [PASS, OURS, PASS, PASS, OURS]


@pytest.mark.parametrize("number", [0, 1, 15])
def test_an_interface_has_a_number(empty: Steer, number: int) -> None:
    """Packets go to its sockets and are counted as its."""
    p = empty.program
    p.set_service(*packed(VIP), 80, 6)
    p.set_iface(LOOPBACK, number)
    p.set_iface(4711, 7)
    assert p.ifaces() == {LOOPBACK: number, 4711: 7}
    other = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
    with other:
        frame = bytes(ether() / to4() / HTTP)
        p.set_socket(7, 0, other.fileno())
        assert empty.decide(frame) == OURS  # dropped: that is another interface's socket
        p.set_socket(number, 0, other.fileno())
        assert empty.verdict(frame) == XDP_REDIRECT
    assert p.counters() == {
        number: {"pass": 0, "redirect": 1, "drop": 1},
        7: {"pass": 0, "redirect": 0, "drop": 0},
    }
    p.del_iface(LOOPBACK)
    assert p.ifaces() == {4711: 7}
    with pytest.raises(ValueError, match="is not below 16"):
        p.set_iface(LOOPBACK, 16)


def frame_to(af: int, addr: bytes, port: int, proto: int) -> bytes:
    """Written by hand: scapy takes a millisecond."""
    ports = struct.pack("!HH", 4000, port) + bytes(16)
    if af == 4:
        return MACS + struct.pack("!HBBHHHBBH4s4s", 0x0800, 0x45, 0, 40, 0, 0, 64, proto, 0, bytes(4), addr) + ports
    return MACS + struct.pack("!HIHBB16s16s", 0x86DD, 6 << 28, 20, proto, 64, bytes(16), addr) + ports


@pytest.mark.parametrize("bad", [(4, b"12345"), (6, b"1234"), (5, b"1234")])
def test_addresses_are_checked(empty: Steer, bad: tuple[int, bytes]) -> None:
    with pytest.raises(ValueError, match="no address of family"):
        empty.program.set_lip(*bad, LO, HI)


def test_the_program_has_no_gpl_only_helper() -> None:
    """Its licence line says Apache-2.0, so the kernel would refuse it otherwise; the loaded one proves it."""
    source = Path(__file__).parents[2] / "lbd/xdp/steer.bpf.c"
    assert 'SEC("license") = "Apache-2.0"' in source.read_text()
