# SPDX-License-Identifier: Apache-2.0
"""What workers report, and what they give back to the kernel.

Scope: reactions to events (at most one log line each in ten seconds), and the slow path's rings.
"""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from lbd.master.journal import Pace
from lbd.shm import _shm as shm

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

log = logging.getLogger(__name__)

SLOW_A_TICK = 256  # packets of each worker that go to the kernel per look


class Events:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._pace = Pace()

    # -- from workers ----------------------------------------------------------------------------------------

    def take(self, worker: int, event: dict[str, Any]) -> None:
        op = event["op"]
        if op == shm.EVT_RUNNING:
            log.info("worker %d runs, %d connections recovered", worker, event["value"])
        elif op == shm.EVT_NEIGH_WANTED:
            self._want_neighbour(event)
        elif op == shm.EVT_LIP_EXHAUSTED:
            address = self._daemon.reconciler.lips.key(event["id"])
            self._paced(
                logging.WARNING,
                ("lip", event["id"]),
                f"local address {ip_address(address) if address else '?'} has no free port left: add local addresses",
            )
        elif op == shm.EVT_TABLE_FULL:
            self._paced(
                logging.WARNING,
                "table",
                "the connection table is full, new connections push out half-open ones: raise tables.connections_ipv4"
                " or connections_ipv6",
            )
        elif op == shm.EVT_BAD_COMMAND:
            self._paced(logging.ERROR, "command", f"worker {worker} refused a command ({event['id']}): please report it")
        elif op == shm.EVT_PEER_RESET:
            self._paced(logging.ERROR, "peer", f"worker {worker} found garbage in ring {event['id']}")

    def _want_neighbour(self, event: dict[str, Any]) -> None:
        places = {place: ifindex for ifindex, place in self._daemon.applier.places.items()}
        ifindex = places.get((event["iface"], event["value"]))
        if ifindex is not None:
            self._daemon.network.probe(ifindex, ip_address(event["addr"]))

    def _paced(self, level: int, about: object, text: str) -> None:
        if count := self._pace.allows(about):
            log.log(level, "%s%s", text, f" ({count} times)" if count > 1 else "")

    # -- to the kernel ---------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Packets for the kernel, from all rings to the TAP; True if there were any."""
        daemon = self._daemon
        busy = False
        for member in tuple(daemon.supervisor.members.values()):
            try:
                packets = member.segment.pop_slow(SLOW_A_TICK)
            except shm.PeerGarbage as error:
                daemon.supervisor.reset(member.number, str(error))
                continue
            busy |= bool(packets)
            if daemon.slow_path is not None:
                for head, frame in packets:
                    daemon.slow_path.deliver(frame, self._is_partial(head["iface"]))
        return busy

    def _is_partial(self, iface: int) -> bool:
        return any(i.number == iface and i.flags & shm.IFACE_PARTIAL for i in self._daemon.composer.desired.interfaces)
