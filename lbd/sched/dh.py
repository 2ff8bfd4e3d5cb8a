"""Destination hashing: the destination's address decides, whatever the weights (0 still means none).

As in IPVS, down to the hash: one bucket after the other for each real server in turn, the last of the configuration first.
A service has one address, so all of its connections go to one real server; services differ. A server of weight 0 keeps its
buckets, and what is hashed to it is refused: there is no fallback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server, live, seated

KIND = Kind.DEST
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {}
LIMIT = 0
RAMP = 0
BUCKETS = 256  # IP_VS_DH_TAB_SIZE


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    if not live(servers):
        return []
    numbers = [s.number for s in seated(servers, flags)[::-1]]
    size = max(BUCKETS, 1 << (len(numbers) - 1).bit_length())
    return (numbers * (size // len(numbers) + 1))[:size]
