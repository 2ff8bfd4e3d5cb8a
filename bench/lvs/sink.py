# SPDX-License-Identifier: Apache-2.0
"""What left the balancer, from the dump that the emulator wrote of its outgoing wire: every packet is judged, none is sampled.

A packet counts if addresses, ports, TTL, MAC addresses, both checksums and the payload are those that its mode must give; each
number once. Pure: bytes in, counts and problems out.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench.lvs.mode import CLIENT_NET, LIP, MACS, MODES, OUT_ADDRESS, PORT, SERVER, SERVER_MAC, SYSTEMS, Mode, number, vip

MAGIC, WARM, THROUGH, ASIDE = b"LBDV", 0, 1, 2  # as in gen.c
CLIENTS = IPv4Network(CLIENT_NET)
ETHERNET = bytes.fromhex((SERVER_MAC + MACS["out0"]).replace(":", "")) + b"\x08\x00"


@dataclass
class Seen:
    """Of a case."""

    numbers: set[int] = field(default_factory=set)
    packets: int = 0
    problems: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def frames(path: Path) -> Iterator[bytes]:
    """Of a pcap file; the emulator's is in this machine's byte order."""
    data = path.read_bytes()
    at = 24
    while at + 16 <= len(data):
        (length,) = struct.unpack_from("=8xI4x", data, at)
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


def csum(data: bytes) -> int:
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip_problem(ip: bytes) -> str:
    if len(ip) < 20 or ip[0] != 0x45 or struct.unpack_from("!H", ip, 2)[0] > len(ip):
        return "no whole IPv4 header"
    return "IP checksum" if csum(ip[:20]) != 0xFFFF else ""


def judge(frame: bytes, mode: Mode) -> str:
    """What is wrong with a packet that left, or ""."""
    ip = frame[14:]
    if frame[:14] != ETHERNET:
        return "MAC addresses"
    if problem := ip_problem(ip):
        return problem
    ttls = (63,) if mode.daddr else (63, 64)  # DR and tunnel may leave the client's header as it is
    if mode.outer:
        if ip[9] != 4 or str(IPv4Address(ip[12:16])) not in (OUT_ADDRESS, LIP) or str(IPv4Address(ip[16:20])) != SERVER:
            return "outer header"
        ip = ip[20:]
        if problem := ip_problem(ip):
            return f"inner {problem}"
    ip = ip[: struct.unpack_from("!H", ip, 2)[0]]
    source, target = IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
    if (source != IPv4Address(mode.saddr)) if mode.saddr else (source not in CLIENTS):
        return f"source {source}"
    if target != IPv4Address(mode.daddr or vip(mode)):
        return f"destination {target}"
    if ip[8] not in ttls:
        return f"TTL {ip[8]}"
    udp = ip[20:]
    if ip[9] != 17 or struct.unpack_from("!H", udp, 2)[0] != PORT:
        return "protocol or port"
    return "UDP checksum" if csum(ip[12:20] + struct.pack("!HH", 17, len(udp)) + udp) != 0xFFFF else ""


def read(path: Path) -> dict[tuple[str, str], Seen]:
    """By (system, mode)."""
    cases = {number(system, mode): (system, mode) for system in SYSTEMS for mode in MODES}
    seen = {(system, mode.name): Seen() for system, mode in cases.values()}
    for frame in frames(path):
        at = frame.find(MAGIC)
        if at < 0:
            continue  # the hosts' own: ARP
        case, kind, serial = struct.unpack_from("!HHI", frame, at + 4)
        system, mode = cases[case]
        one = seen[system, mode.name]
        if kind == WARM:
            continue
        one.packets += 1
        if problem := "sent aside" if kind != THROUGH else judge(frame, mode):
            one.problems[problem] += 1
        elif serial in one.numbers:
            one.problems["twice"] += 1
        one.numbers.add(serial)
    return seen
