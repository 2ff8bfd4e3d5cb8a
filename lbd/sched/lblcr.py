"""Locality-based least connections with replication: as lblc, but a destination address has a set of real servers, that grows
when all of them have too much to do and shrinks when it has not changed for a day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server

KIND = Kind.HOMES
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 64  # HOMES_MAX of sched.pxd
RAMP = 20


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return [s.number for s in servers]
