# SPDX-License-Identifier: Apache-2.0
"""The other end of an IP-in-IP tunnel, for a kernel without the device: raw sockets, and a TUN device for what was inside.

    python decap.py NAME        makes the TUN device NAME, brings it up by `ip`, prints "ready", serves until it is killed
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

IPIP, IPV6 = 4, 41
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


def main(name: str) -> None:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    outer = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in (IPIP, IPV6):
            s = socket.socket(family, socket.SOCK_RAW, protocol)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            outer[s] = family
    print("ready", flush=True)
    while True:
        for s in select.select(list(outer), [], [])[0]:
            packet = s.recv(65536)
            os.write(tun, packet[(packet[0] & 15) * 4 :] if outer[s] == socket.AF_INET else packet)


if __name__ == "__main__":
    main(sys.argv[1])
