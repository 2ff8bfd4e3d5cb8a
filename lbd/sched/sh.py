"""Source hashing: a client's address decides, in proportion to the weights.

A server that comes or goes moves most clients; where that matters, `mh` is the scheduler to take.
"""

from __future__ import annotations

from collections.abc import Sequence

from lbd.sched import Flag, Kind, Server
from lbd.sched.share import interleave

KIND = Kind.HASH
FLAGS = Flag.NONE
SLOTS_MAX = 4096


def table(servers: Sequence[Server]) -> list[int]:
    # one slot per unit of weight: any whole number of rounds is exact, so one is enough
    return interleave(servers, SLOTS_MAX)
