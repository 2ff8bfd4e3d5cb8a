# SPDX-License-Identifier: Apache-2.0
"""The sending end of an IPIP or GRE tunnel, for a kernel without the devices: what is routed into a TUN device leaves by a raw
socket, in a packet to the tunnel's other end. The opposite of src/decap.c.

    python encap.py NAME ipip|gre|gre+csum REMOTE      makes the TUN device NAME, brings it up by `ip`, prints "ready", serves until
                                                       it is killed; REMOTE: IPv4 or IPv6, the way there gives the outer source
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys

IPIP, IPV6, GRE = 4, 41, 47
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
MTU = 1400


def checksum(data: bytes) -> int:
    """RFC 1071, folded and inverted."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def open_tun(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "mtu", str(MTU), "up"], check=True)
    return tun


def wrapped(kind: str, inner: bytes) -> bytes:
    """What follows the outer IP header."""
    if kind == "ipip":
        return inner
    ethertype = 0x0800 if inner[0] >> 4 == 4 else 0x86DD
    if kind == "gre":
        return struct.pack("!HH", 0, ethertype) + inner
    packet = struct.pack("!HHHH", 0x8000, ethertype, 0, 0) + inner
    return packet[:4] + struct.pack("!H", checksum(packet)) + packet[6:]


def main(name: str, kind: str, remote: str) -> None:
    tun = open_tun(name)
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    sockets = {n: socket.socket(family, socket.SOCK_RAW, n) for n in ((GRE,) if kind != "ipip" else (IPIP, IPV6))}
    for s in sockets.values():
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nothing is read
        s.connect((remote, 0))
    print("ready", flush=True)
    while True:
        inner = os.read(tun, 65536)
        number = GRE if kind != "ipip" else IPIP if inner[0] >> 4 == 4 else IPV6
        sockets[number].send(wrapped(kind, inner))


if __name__ == "__main__":
    main(*sys.argv[1:4])
