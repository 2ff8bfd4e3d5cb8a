"""Weighted least connections: the real server with the fewest connections for its weight."""

from __future__ import annotations

from collections.abc import Sequence

from lbd.sched import Flag, Kind, Server

KIND = Kind.LEAST
FLAGS = Flag.LEAST_WEIGHTED


def table(servers: Sequence[Server]) -> list[int]:
    return [s.number for s in servers if s.weight > 0]
