# SPDX-License-Identifier: Apache-2.0
"""Taking back what a dead lbd left in the kernel: `lbd cleanup`, which systemd runs after any death.

Scope: works off `<run_dir>/managed.json`. The caller has made sure that no daemon is alive; workers that outlived
theirs are looked for here: while one of them forwards, its addresses are needed, and nothing is taken.
Addresses matter most: a router goes on sending to a host that holds a VIP, and the kernel answers RST.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address, ip_interface
from pathlib import Path

from lbd.master import reservation
from lbd.master.handover import SOCKET_NAME
from lbd.master.managed import Managed, current_scope
from lbd.master.netlink import NetlinkThread

_GONE = (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO, errno.ENOENT)


def cleanup(run_dir: Path) -> list[str]:
    """Synchronous, for callers without a loop. Returns what was done, a sentence each.

    What the kernel refuses stays in the record, so that another run tries again.
    """
    if names := serving(run_dir):
        return [f"nothing is taken away: {', '.join(names)} still forwards, for the next lbd run to take over"]
    managed = Managed(run_dir, current_scope())
    if not (managed.addresses or managed.neighbours or managed.ports):
        managed.path.unlink(missing_ok=True)
        return []
    thread = NetlinkThread()
    thread.start()
    try:
        done = _remove_addresses(managed, thread)
        done += _release_neighbours(managed, thread)
        done += _release_ports(managed)
    finally:
        thread.stop()
    if managed.addresses or managed.neighbours or managed.ports:
        managed.write(managed.text())
    else:
        managed.path.unlink(missing_ok=True)
    return done


def serving(run_dir: Path) -> list[str]:
    """Workers that live, by the name of their sockets (handover.py)."""
    found = []
    for path in sorted(run_dir.glob(SOCKET_NAME.format("*"))):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            try:
                sock.connect(str(path))
            except OSError:
                continue
        found.append(path.stem)
    return found


def _remove_addresses(managed: Managed, thread: NetlinkThread) -> list[str]:
    done = []
    for entry in sorted(managed.addresses):
        name, text = entry
        try:
            request = thread.requests.del_address(socket.if_nametoindex(name), ip_interface(text))
            thread.call_blocking(request)
            done.append(f"removed address {text} from {name}")
        except OSError as error:
            if error.errno not in _GONE:
                done.append(f"could not remove address {text} from {name}: {error.strerror}")
                continue
        managed.addresses.discard(entry)
    return done


def _release_neighbours(managed: Managed, thread: NetlinkThread) -> list[str]:
    released = 0
    for name, text in managed.neighbours:
        try:
            request = thread.requests.release_neighbour(socket.if_nametoindex(name), ip_address(text))
            thread.call_blocking(request)
            released += 1
        except OSError as error:
            if error.errno not in _GONE:
                return [f"could not release neighbour {text} on {name}: {error.strerror}"]
    managed.neighbours.clear()
    return [f"released {released} managed neighbours"] if released else []


def _release_ports(managed: Managed) -> list[str]:
    if not managed.ports:
        return []
    text = reservation.format_ranges(reservation.merge(managed.ports))
    try:
        reservation.release(managed.ports)
    except OSError as error:
        return [f"could not give reserved ports {text} back: {error.strerror}"]
    managed.ports.clear()
    return [f"gave reserved ports {text} back"]
