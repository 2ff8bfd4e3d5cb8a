"""Source hashing: a client's address decides, in proportion to the weights.

As in IPVS, down to the hash: real servers have buckets one after the other, as many as their weight, round and round until
the 256 of the table are full, the last of the configuration first (IPVS's list begins with what was added last). So an lbd
beside a kernel with the same services sends a client to the same real server. Two things are better: weights are divided by
their greatest common divisor, and where fewer than 16 rounds fit, so that the incomplete last one makes shares uneven, the
table has another size and whole rounds.

A server of weight 0 keeps a bucket. Its clients are refused, or, with sh-fallback, go elsewhere.
A server that comes or goes moves most clients; where that matters, `mh` is the scheduler to take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbd.sched import Flag, Kind, Server, live, seated
from lbd.sched.share import apportion

KIND = Kind.SOURCE
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {"sh-fallback": Flag.HASH_FALLBACK, "sh-port": Flag.HASH_PORT}
LIMIT = 0
RAMP = 0
BUCKETS = 256  # IP_VS_SH_TAB_SIZE
ROUNDS = 16  # at least so many of them fit into those
ROUND_MAX = 4096


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    if not live(servers):
        return []
    here = seated(servers, flags)[::-1]
    # NB: with fallback a server without weight keeps all of its buckets (IPVS: one), or its going would move everybody
    weights = [(s.place if flags & Flag.HASH_FALLBACK else s.weight) or 1 for s in here]
    shares = apportion(weights, ROUND_MAX)
    one_round = [s.number for s, share in zip(here, shares, strict=True) for _ in range(share)]
    buckets = one_round * -(-BUCKETS // len(one_round))
    return buckets[:BUCKETS] if len(one_round) * ROUNDS <= BUCKETS else buckets
