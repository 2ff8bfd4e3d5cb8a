"""Least connections: the real server with the fewest, whatever its weight (0 still means none)."""

from __future__ import annotations

from collections.abc import Sequence

from lbd.sched import Flag, Kind, Server

KIND = Kind.LEAST
FLAGS = Flag.NONE


def table(servers: Sequence[Server]) -> list[int]:
    return [s.number for s in servers if s.weight > 0]
