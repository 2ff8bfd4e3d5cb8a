# SPDX-License-Identifier: Apache-2.0
"""Talking to systemd: one datagram a message, to the socket that $NOTIFY_SOCKET names. Reference: sd_notify(3).

Without the variable every call does nothing. systemd 252 (Debian 12) does not know Type=notify-reload; RELOADING=1 with
MONOTONIC_USEC is sent all the same, as newer ones want it.
"""

from __future__ import annotations

import logging
import os
import socket
import time

log = logging.getLogger(__name__)


def notify(*fields: str) -> bool:
    """True if there was somebody to tell. `notify("READY=1", "STATUS=2 workers")`."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(fields).encode(), "\0" + name[1:] if name[0] == "@" else name)
    except OSError as error:
        log.debug("sd_notify: %s", error)
        return False
    return True


def notify_reloading() -> bool:
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Half of the time within which systemd wants to hear from this process, seconds; None: it does not wait."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
