"""Weighted failover: the real server with the greatest weight, while it is there. Equal weights: the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server, live

KIND = Kind.FIRST
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 0


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return [s.number for s in sorted(live(servers), key=lambda s: -s.weight)]
