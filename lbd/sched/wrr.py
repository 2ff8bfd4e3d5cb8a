"""Weighted round robin: in turn, as often as the weight says, evenly interleaved: weights 2, 1, 1 give a b c a."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server
from lbd.sched.share import interleave

KIND = Kind.SEQ
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 20
SLOTS_MAX = 4096


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    return interleave(servers, SLOTS_MAX)
