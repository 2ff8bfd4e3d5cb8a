# SPDX-License-Identifier: Apache-2.0
"""What the ends of tunnels and translators without kernel devices share (programs of their own beside this file)."""

import fcntl
import os
import struct
import subprocess

IPIP, IPV6, GRE = 4, 41, 47
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


def checksum(data: bytes) -> int:
    """RFC 1071, folded and inverted; 0 over data that has its own."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def open_tun(name: str, *link: str) -> int:
    """A TUN device of this name, up; `link`: more for `ip link set`."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, *link, "up"], check=True)
    return tun
