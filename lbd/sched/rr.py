"""Round robin: each real server in turn, whatever its weight (0 still means none)."""

from __future__ import annotations

from collections.abc import Sequence

from lbd.sched import Flag, Kind, Server

KIND = Kind.SEQ
FLAGS = Flag.NONE


def table(servers: Sequence[Server]) -> list[int]:
    return [s.number for s in servers if s.weight > 0]
