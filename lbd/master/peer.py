# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a unix socket, as the kernel saw it when the connection was made.

Reference: unix(7), SO_PEERCRED; SO_PEERGROUPS (Linux 4.13).
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from dataclasses import dataclass

SO_PEERGROUPS = 59


@dataclass(frozen=True, slots=True)
class Peer:
    pid: int
    uid: int
    groups: frozenset[int]  # the primary one included

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"


def peer_of(fd: int) -> Peer:
    # dup: the socket object closes what it is given
    with socket.socket(fileno=os.dup(fd)) as sock:
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(pid, uid, frozenset((gid, *_groups(sock))))


def _groups(sock: socket.socket) -> array.array[int]:
    groups = array.array("I")
    room = 256
    while True:
        try:
            groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, room * groups.itemsize))
            return groups
        except OSError as error:
            if error.errno != errno.ERANGE or room >= 65536:
                return groups
            room *= 16
