"""Least connections: the real server with the fewest, whatever its weight (0 still means none)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server, live

KIND = Kind.LEAST
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 0


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return [s.number for s in live(servers)]
