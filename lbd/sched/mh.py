"""Maglev hashing, weighted: a server that comes or goes moves few other flows, and any lbd with the same servers
builds the same table.

Reference: D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4.
Each server claims slots in the order of its own permutation of the table, offset + n * skip mod m, one after the other;
servers claim as often as their weight relative to the greatest allows. (Weighted so, the construction is Katran's V2,
against whose tables tests/data/maglev-tables.json holds it.)

The table's size m is a prime, at least 100 times the number of servers, so that shares differ by 1 % at most. It
counts the drained and the dead too: or the death of one might change m, and with it everybody's server.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from heapq import heapify, heapreplace

from lbd.sched import Flag, Kind, Server

KIND = Kind.HASH
FLAGS = Flag.NONE

PRIMES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)


def table_size(servers: int) -> int:
    return next((p for p in PRIMES if p >= 100 * servers), PRIMES[-1])


def place(key: bytes, m: int) -> tuple[int, int]:
    """A server's offset and skip, from two independent halves of a stable hash of what it is."""
    digest = blake2b(key, digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") % m, int.from_bytes(digest[8:], "big") % (m - 1) + 1


def populate(m: int, places: Sequence[tuple[int, int]], weights: Sequence[int]) -> list[int]:
    """Indexes of servers by slot. Places are (offset, skip); weights are above 0."""
    turns = turn_order(m, weights)
    slots = [-1] * m
    at = [offset for offset, _ in places]
    skips = [skip for _, skip in places]
    for i in turns:
        slot = at[i]
        skip = skips[i]
        while slots[slot] >= 0:
            slot += skip
            if slot >= m:
                slot -= m
        slots[slot] = i
        at[i] = slot
    return slots


def turn_order(m: int, weights: Sequence[int]) -> list[int]:
    """Whose turn it is, m times: server i claims its k-th slot in round ceil(k * greatest / weight)."""
    n = len(weights)
    greatest = max(weights)
    if min(weights) == greatest:
        return (list(range(n)) * (m // n + 1))[:m]
    # the rounds by a heap, not one after the other: most servers sit out most rounds when weights differ much
    claims = [(-(-greatest // w), i, 1) for i, w in enumerate(weights)]
    heapify(claims)
    turns = []
    for _ in range(m):
        _, i, k = claims[0]
        turns.append(i)
        heapreplace(claims, (-(-(k + 1) * greatest // weights[i]), i, k + 1))
    return turns


def table(servers: Sequence[Server]) -> list[int]:
    # NB: ordered by key: who claims first must not hang on the order in the configuration
    live = sorted((s for s in servers if s.weight > 0), key=lambda s: s.key)
    if not live:
        return []
    m = table_size(len(servers))
    slots = populate(m, [place(s.key, m) for s in live], [s.weight for s in live])
    return [live[i].number for i in slots]
