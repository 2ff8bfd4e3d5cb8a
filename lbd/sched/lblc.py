"""Locality-based least connections: a destination address keeps its real server while that can take more; else it moves to
the weighted least loaded. For clusters of caches.

Every real server has a slot, whatever its state, so that the table, and with it what a worker remembers of it, stays when
one goes down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server

KIND = Kind.HOME
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 64  # HOMES_MAX of sched.pxd
RAMP = 20


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return [s.number for s in servers]
