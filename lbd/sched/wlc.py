"""Weighted least connections: the real server with the fewest connections for its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server, live

KIND = Kind.LEAST
FLAGS = Flag.LEAST_WEIGHTED
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 20


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return [s.number for s in live(servers)]
