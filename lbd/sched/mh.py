"""Maglev hashing, weighted: a server that comes or goes moves few other flows, and any lbd with the same servers
builds the same table.

Reference: D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4.
Each server claims slots in the order of its own permutation of the table, offset + n * skip mod m, one after the other;
servers claim as often as their weight relative to the greatest allows. (Weighted so, the construction is Katran's V2,
against whose tables tests/data/maglev-tables.json holds it.)

The table's size m is a prime, at least 100 times the number of servers, so that shares differ by 1 % at most. It
counts the drained and the dead too: or the death of one might change m, and with it everybody's server.

As in IPVS, a server of weight 0 keeps its slots by the weight that it had. Its clients are refused, or, with mh-fallback,
go elsewhere, while nobody else's server changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from lbd.sched import Flag, Kind, Server, live, seated
from lbd.sched._table import maglev

KIND = Kind.HASH
FLAGS = Flag.NONE
OPTIONS: Mapping[str, Flag] = {"mh-fallback": Flag.HASH_FALLBACK, "mh-port": Flag.HASH_PORT}
LIMIT = 0
RAMP = 8

PRIMES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)


def table_size(servers: int) -> int:
    return next((p for p in PRIMES if p >= 100 * servers), PRIMES[-1])


def place(key: bytes, m: int) -> tuple[int, int]:
    """A server's offset and skip, from two independent halves of a stable hash of what it is."""
    digest = blake2b(key, digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") % m, int.from_bytes(digest[8:], "big") % (m - 1) + 1


def populate(m: int, places: Sequence[tuple[int, int]], weights: Sequence[int], numbers: Sequence[int]) -> array[int]:
    """Numbers of servers by slot. Places are (offset, skip); weights are above 0."""
    return maglev(m, [offset for offset, _ in places], [skip for _, skip in places], weights, numbers)


def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]:
    if not live(servers):
        return []
    # NB: ordered by key: who claims first must not hang on the order in the configuration
    here = sorted((s for s in seated(servers, flags) if s.place > 0), key=lambda s: s.key)
    m = table_size(len(servers))
    return populate(m, [place(s.key, m) for s in here], [s.place * s.share for s in here], [s.number for s in here])
