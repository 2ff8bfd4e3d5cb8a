# SPDX-License-Identifier: Apache-2.0
"""What workers report, and what they give back to the kernel; and what is wrong with the network they stand on.

Scope: reactions to events (at most one log line each in ten seconds), the slow path's rings, and the sentences of the
status about interfaces.
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
        places = {place: ifindex for ifindex, place in self._daemon.places.items()}
        ifindex = places.get((event["iface"], event["id"] & 0xFFF))
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
        for number, segment in daemon.segments.items():
            try:
                packets = segment.pop_slow(SLOW_A_TICK)
            except shm.PeerGarbage as error:
                daemon.supervisor.reset(number, str(error))
                continue
            busy |= bool(packets)
            if daemon.slow_path is not None:
                for head, frame in packets:
                    daemon.slow_path.deliver(frame, self._is_partial(head["iface"]))
        return busy

    def _is_partial(self, iface: int) -> bool:
        return any(
            i.number == iface and i.flags & shm.IFACE_PARTIAL for i in self._daemon.composer.desired.interfaces
        )

    # -- the network -----------------------------------------------------------------------------------------

    def network_problems(self) -> list[str]:
        daemon = self._daemon
        found = []
        snapshot = daemon.network.snapshot()
        channels = {c.name: c for c in snapshot.channels}
        attached = daemon.resources.program.attached()
        for number, interface in enumerate(daemon.config.interface):
            name, link = interface.name, snapshot.link(interface.name)
            ports = [p for p in daemon.resources.ports if p.iface == number]
            if link is None:
                found.append(f"{name} has gone: bring it back, then restart lbd")
            elif any(p.ifindex != link.ifindex for p in ports):
                found.append(f"{name} was made anew: restart lbd to serve it")
            elif link.ifindex not in attached:
                found.append(f"the XDP program was taken off {name}: restart lbd")
            elif not link.up:
                found.append(f"{name} is down")
            elif name in channels and channels[name].rx > len(ports):
                found.append(
                    f"{name} has {channels[name].rx} queues now, lbd serves {len(ports)}: traffic of the others is "
                    f"dropped: ethtool -L {name} combined {len(ports)}, or restart lbd with as many workers"
                )
        return found


