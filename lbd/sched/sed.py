"""Shortest expected delay: the real server with the least (active connections + 1) / weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server, live

KIND = Kind.SED
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 20


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return [s.number for s in live(servers)]
