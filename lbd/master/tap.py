# SPDX-License-Identifier: Apache-2.0
"""A TAP device: the way by which packets that belong to the kernel (verdict `kernel`) get back to it.

Scope: making it. It lives as long as its descriptor, so no death of lbd leaves one behind.
References: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_TUNSETIFF = 0x400454CA
_SIOCSIFHWADDR = 0x8924
_IFF_TAP, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x8000
_ARPHRD_ETHER = 1


@dataclass(slots=True)
class Tap:
    name: str
    ifindex: int
    fd: int  # non-blocking; write() = one frame to the kernel, read() = one frame from it

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create_tap(name: str, mac: bytes | None = None) -> Tap:
    """Made in the calling thread's network namespace; down. Refused where the name is taken."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise OSError(errno.EBUSY, f"an interface {name} exists already: remove it") from None
            raise
        if mac is not None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                request = struct.pack("16sH6s16x", name.encode(), _ARPHRD_ETHER, mac)
                fcntl.ioctl(sock, _SIOCSIFHWADDR, request)
        # clients' packets come in here that the routing table expects elsewhere: loose reverse path filter
        # at most
        _set("ipv4", name, "rp_filter", "2")
        # no link-local address, so no duplicate detection and no router solicitation by this door
        _set("ipv6", name, "addr_gen_mode", "1")
        return Tap(name, socket.if_nametoindex(name), fd)
    except BaseException:
        os.close(fd)
        raise


def _set(family: str, name: str, setting: str, value: str) -> None:
    path = Path("/proc/sys/net") / family / "conf" / name / setting
    if path.exists():  # IPv6 may be switched off
        path.write_text(value)
