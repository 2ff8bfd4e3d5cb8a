# SPDX-License-Identifier: Apache-2.0
"""A change of RSS while workers run: flows get other owners, and those that there are stay where they are.

Scope: when, and telling workers. Who owns what is `rss.py`'s.

Nothing is wrong before: an answer that a NIC brings to another worker than was planned is handed over, only slower. So a change is
followed when it has stood for a while (two NICs are changed one after the other), and not soon again: workers ask the owner by
this epoch and by the one before, and who was made in an epoch before that is not found any more where a NIC brings its packets
elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from lbd.master.heritage import keep
from lbd.master.rss import Ownership, ownership, same
from lbd.shm import _shm as shm

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

log = logging.getLogger(__name__)

QUIET = 3.0  # seconds that a change has to stand
APART = 3600.0  # between changes that are followed
KINDS = {"rss", "channels", "link"}


class Epochs:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._timer: asyncio.TimerHandle | None = None
        self._changed = float("-inf")  # when a change was followed last

    def look(self, kinds: set[str]) -> None:
        if kinds & KINDS:
            self._soon(QUIET)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def waiting(self) -> float:
        """Seconds until a further change may be followed."""
        return max(0.0, self._changed + APART - time.monotonic())

    def changed(self) -> None:
        """Flows have other owners from now on."""
        self._changed = time.monotonic()

    def differs(self) -> Ownership | None:
        """What the NICs do now, where that is not what workers go by."""
        d = self._daemon
        queues: dict[str, int] = {}
        for port in d.resources.ports:
            queues[port.nic] = queues.get(port.nic, 0) + 1
        now = ownership(list(queues), d.network.snapshot().rss, len(d.segments), queues)
        ours = self.in_force()
        return None if same(ours, now) or not (ours.known or now.known) else now

    def in_force(self) -> Ownership:
        host = self._daemon.resources.host
        head = host.ctl()
        known, udp_ports, key = bool(head["rss_known"]), bool(head["rss_udp_ports"]), head["rss_key"].rstrip(b"\0")
        return Ownership(key, known, udp_ports, tuple(host.owners()[0]), "")

    def _soon(self, delay: float) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(delay, self._follow)

    def _follow(self) -> None:
        self._timer = None
        d = self._daemon
        now = self.differs()
        if now is None or d.state not in ("running", "reloading"):
            return
        if self.waiting:
            self._soon(self.waiting)
            return
        before = self.in_force()
        d.resources.host.set_owner(now.table, True, (now.key, now.known, now.udp_ports))
        d.supervisor.broadcast(shm.owner(d.reconciler.generation))
        keep(d.config.daemon.run_dir, now, before)
        self.changed()
        log.warning("RSS was changed: %s; connections that there are stay with their workers", now.why)
