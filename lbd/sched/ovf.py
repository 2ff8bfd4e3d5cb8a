"""Weighted overflow: the real server with the greatest weight, until its active connections exceed that weight; then the next.

All of them full: new connections are refused, as by IPVS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server, live

KIND = Kind.OVF
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 20


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return [s.number for s in sorted(live(servers), key=lambda s: -s.weight)]
