# SPDX-License-Identifier: Apache-2.0
"""The NIC's taking of VLAN tags off received frames: switched off where lbd serves VLANs.

Scope: one switch of `ethtool -K NIC rxvlan`. With it on, the tag is beside the frame, where an AF_XDP socket does not see it:
packets of a VLAN would look like untagged ones, and be answered so. The kernel reads tags in frames as well as beside them.
What was on before is on again after a stop; a crash leaves it off, which costs the kernel little.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import socket
import struct
from collections.abc import Callable, Collection

from lbd.master.record import Link

log = logging.getLogger(__name__)

_SIOCETHTOOL = 0x8946
_ETHTOOL_GFLAGS, _ETHTOOL_SFLAGS = 0x25, 0x26
_ETH_FLAG_RXVLAN = 1 << 8


def read_flags(sock: socket.socket, name: str) -> int:
    return _ask(sock, name, _ETHTOOL_GFLAGS, 0)


def write_flags(sock: socket.socket, name: str, flags: int) -> None:
    _ask(sock, name, _ETHTOOL_SFLAGS, flags)


def _ask(sock: socket.socket, name: str, command: int, flags: int) -> int:
    """One ioctl of struct ethtool_value."""
    value = ctypes.create_string_buffer(struct.pack("=II", command, flags), 8)
    fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(value)))
    return int(struct.unpack("=II", value.raw)[1])


class TagOffload:
    """Calls of `keep` and `restore` block while a driver changes its mind: in the netlink thread, then."""

    def __init__(self, on_alarm: Callable[[str], None]) -> None:
        self._alarm = on_alarm
        self._switched: set[str] = set()
        self._stuck: set[str] = set()

    def keep(self, nics: Collection[Link], links: Collection[Link]) -> None:
        """Of these NICs, those that VLAN devices are on: directly, or on the bond that they belong to."""
        under = {link.link for link in links if link.kind == "vlan"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for nic in nics:
                if under & {nic.ifindex, nic.master} and nic.name not in self._stuck:
                    self._switch_off(sock, nic.name)

    def _switch_off(self, sock: socket.socket, name: str) -> None:
        try:
            flags = read_flags(sock, name)
            if not flags & _ETH_FLAG_RXVLAN:
                return
            write_flags(sock, name, flags & ~_ETH_FLAG_RXVLAN)
            stays = bool(read_flags(sock, name) & _ETH_FLAG_RXVLAN)
        except OSError as error:
            log.debug("ethtool %s: %s", name, error)
            stays = True
        if stays:
            self._stuck.add(name)
            self._alarm(f"{name} takes VLAN tags off received frames, and its driver won't have that changed (ethtool -K {name}"
                        " rxvlan off): VLANs on it can't be served")  # fmt: skip
        else:
            self._switched.add(name)
            log.info("%s leaves VLAN tags in received frames now (rxvlan off)", name)

    def restore(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for name in sorted(self._switched):
                try:
                    write_flags(sock, name, read_flags(sock, name) | _ETH_FLAG_RXVLAN)
                except OSError as error:
                    log.warning("ethtool -K %s rxvlan on: %s", name, error)
        self._switched.clear()
