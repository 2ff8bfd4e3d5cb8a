"""Consistent hashing, as DPVS's: points on a ring, 160 for each unit of weight; a client belongs to the next point.

A server that goes moves no flow but its own, one that comes takes its flows from everybody. The price is evenness: shares
scatter by about a tenth (docs/schedulers.md), where those of `mh` differ by 1 %. A server without weight has no points.

The ring is cut into as many slots as a Maglev table would have, each owned by the first point within, or the next one.
Points beyond 16 for a slot change nothing: there are then half as many, or a quarter ..., for each unit of weight.
Reference: D. Karger et al., "Consistent Hashing and Random Trees", STOC 1997; DPVS's ip_vs_conhash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from lbd.sched import FULL, Flag, Kind, Server, live
from lbd.sched._table import ring
from lbd.sched.mh import table_size

KIND = Kind.HASH
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 8
REPLICAS = 160
POINTS_PER_SLOT = 16


def seed(key: bytes) -> int:
    """Where a server's points begin."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    here = sorted(live(servers), key=lambda s: s.key)
    if not here:
        return []
    m = table_size(len(servers))
    # NB: of all servers, dead ones too: the others' points must not hang on who is there
    total = REPLICAS * sum(s.place for s in servers)
    shift = max(0, (total // (POINTS_PER_SLOT * m)).bit_length())
    points = [max(1, (REPLICAS * s.weight * s.share // FULL) >> shift) for s in here]
    return ring(m, [seed(s.key) for s in here], points, [s.number for s in here])
