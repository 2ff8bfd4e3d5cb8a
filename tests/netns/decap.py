# SPDX-License-Identifier: Apache-2.0
"""The other end of an IPIP, GRE or GUE tunnel, for a kernel without the devices: raw sockets, UDP sockets, and a TUN device for
what was inside. Packets whose tunnel headers are not as they must be are left out.

    python decap.py NAME [PORT]     makes the TUN device NAME, brings it up by `ip`, prints "ready", serves until it is killed;
                                    PORT: GUE's
"""

import os
import select
import socket
import struct
import sys

from tun import GRE, IPIP, IPV6, checksum, open_tun

ETHERTYPES = {0x0800: 4, 0x86DD: 6}
UDP_NO_CHECK6_RX = 102


def gre(data: bytes) -> bytes:
    flags, ethertype = struct.unpack_from("!HH", data)
    if flags not in (0, 0x8000) or (flags and checksum(data)):
        return b""
    inner = data[8 if flags else 4 :]
    return inner if ETHERTYPES.get(ethertype) == inner[0] >> 4 else b""


def gue(data: bytes) -> bytes:
    inner = data[4:]
    return inner if data[:4] in (b"\0\4\0\0", b"\0\x29\0\0") and inner[0] >> 4 == (4 if data[1] == IPIP else 6) else b""


def open_sockets(port: int) -> dict[socket.socket, tuple[int, int]]:
    """With the family and the protocol of each."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in (IPIP, IPV6, GRE):
            found[socket.socket(family, socket.SOCK_RAW, protocol)] = (family, protocol)
        if port:
            s = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                s.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
            s.bind(("", port))
            found[s] = (family, socket.IPPROTO_UDP)
    for s in found:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    return found


def main(name: str, port: int) -> None:
    tun = open_tun(name)
    sockets = open_sockets(port)
    print("ready", flush=True)
    while True:
        for s in select.select(list(sockets), [], [])[0]:
            family, protocol = sockets[s]
            packet = s.recv(65536)
            if family == socket.AF_INET and protocol != socket.IPPROTO_UDP:  # raw IPv4 sockets show the header
                packet = packet[(packet[0] & 15) * 4 :]
            inner = gre(packet) if protocol == GRE else gue(packet) if protocol == socket.IPPROTO_UDP else packet
            if inner:
                os.write(tun, inner)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
