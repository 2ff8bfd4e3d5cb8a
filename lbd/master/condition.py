# SPDX-License-Identifier: Apache-2.0
"""How the daemon is: ready or not, what is wrong, in sentences for people.

Scope: judging; numbers are `view.py`'s. A problem is something that an operator should see to; what is merely not as fast
as it might be is a note (`Daemon.notes`, `notes` below).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lbd.config import cpu
from lbd.master.nic import nics

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

ALARM_SHOWN = 60.0  # seconds


def problems(d: Daemon) -> list[str]:
    found = list(d.applier.failures.values())
    found += [f"worker {n} is {d.supervisor.members[n].state}" for n in d.segments if not d.is_alive(n)]
    found += interface_problems(d)
    for s in d.config.service:
        if not any(r.up and r.weight for r in d.composer.service(s.name).real_servers):
            sorry = f": its sorry server {s.sorry_server} gets them" if s.sorry_server else ""
            found.append(f"service {s.name} has no real server that can take a connection{sorry}")
    if d.reload_error:
        found.append(f"the last reload was refused: {d.reload_error.splitlines()[0]}")
    now = time.monotonic()
    return found + [text for at, text in d.alarms if now - at < ALARM_SHOWN and text not in found]


def notes(d: Daemon) -> list[str]:
    found = [d.resources.area.note] if d.resources.area.note else []
    copies = [i.name for n, i in enumerate(d.config.interface) if i.zero_copy != "off" and is_copied(d, n)]
    if copies:
        found.append(f"copy mode on {', '.join(copies)}: zero-copy is not to be had")
    cores = d.config.workers.cores[: d.config.workers.number]
    return found + cpu.remarks(cores, dict.fromkeys((p.nic, p.ifindex) for p in d.resources.ports)) + d.notes


def is_copied(d: Daemon, iface: int) -> bool:
    return any(p.of == iface and not p.zero_copy for p in d.resources.ports)


def interface_problems(d: Daemon) -> list[str]:
    found = []
    snapshot = d.network.snapshot()
    channels = {c.name: c for c in snapshot.channels}
    attached = d.resources.program.attached()
    ours = nics(d.config, snapshot.links)
    for number, interface in enumerate(d.config.interface):
        name, link = interface.name, snapshot.link(interface.name)
        if link is None:
            found.append(f"{name} has gone: bring it back")
        elif not link.up:
            found.append(f"{name} is down")
        elif not any(nic.iface == number for nic in ours):
            found.append(f"the bond {name} has no slave: ip link set NAME master {name}")
        if link is not None and link.bond_mode in (3, 6):
            found.append(f"the bond {name} is of a mode that lbd sends by one slave only (balance-alb, broadcast)")
    for nic in ours:
        ports = [p for p in d.resources.ports if p.ifindex == nic.ifindex]
        device = next(link for link in snapshot.links if link.ifindex == nic.ifindex)
        if not ports:
            found.append(f"{nic.name} has no sockets yet")
        elif nic.ifindex not in attached:
            found.append(f"the XDP program was taken off {nic.name}: restart lbd")
        elif not device.up and nic.name != d.config.interface[nic.iface].name:
            found.append(f"{nic.name} is down, a slave of {d.config.interface[nic.iface].name}")
        elif nic.name in channels and channels[nic.name].rx > len(ports):
            found.append(
                f"{nic.name} has {channels[nic.name].rx} queues now, lbd serves {len(ports)}, and drops what comes by the "
                f"others: ethtool -L {nic.name} combined {len(ports)}, or restart lbd with as many workers"
            )
    if not found and d.epochs.waiting and d.epochs.differs() is not None:
        found.append("RSS was changed once more: answers arrive at other workers than planned, slower, for up to an hour")
    return found


def summary(d: Daemon) -> str:
    alive = sum(map(d.is_alive, d.segments))
    down = sum(not s.up for s in d.health.states().values())
    text = f"{alive} workers, {len(d.config.service)} services"
    return f"{text}, {down} real servers down" if down else text
