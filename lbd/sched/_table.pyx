# SPDX-License-Identifier: Apache-2.0
"""The loops that fill a scheduler's table, slot by slot. What they mean is said where they are called (mh, conhash, share).

Pure. Servers are counted from 0, in the caller's order; a table holds their `numbers`. Typed in _table.pyi.
"""
from cpython cimport array
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
import array

cdef array.array TEMPLATE = array.array("I")
cdef uint32_t EMPTY = 0xffffffff


cdef uint32_t *column(object values, Py_ssize_t n) except NULL:
    """The values as C sees them; to be freed."""
    cdef uint32_t *out = <uint32_t *>malloc(4 * (n + 1))
    cdef Py_ssize_t i = 0
    if out == NULL:
        raise MemoryError()
    try:
        if len(values) != n:
            raise ValueError("columns of different length")
        for value in values:
            out[i] = value
            i += 1
    except BaseException:
        free(out)
        raise
    return out


cdef void claim(uint32_t *slots, uint32_t m, uint32_t n, uint32_t *at, const uint32_t *skip, const uint32_t *weight,
                uint32_t *credit, const uint32_t *numbers) noexcept nogil:
    """Rounds in which the heaviest server claims one slot, and the others as often as their weight allows."""
    cdef uint32_t i, slot, greatest = 0, left = m
    for i in range(n):
        if weight[i] > greatest:
            greatest = weight[i]
        credit[i] = 0
    while left:
        for i in range(n):
            credit[i] += weight[i]
            if credit[i] < greatest:
                continue
            credit[i] -= greatest
            slot = at[i]
            while slots[slot] != EMPTY:
                slot += skip[i]
                if slot >= m:
                    slot -= m
            slots[slot] = numbers[i]
            at[i] = slot
            left -= 1
            if left == 0:
                return


def maglev(uint32_t m, offsets, skips, weights, numbers):
    """Offsets below m, skips from 1 to m - 1, m a prime, weights from 1 to 2^31."""
    cdef uint32_t n = len(numbers), i
    cdef array.array out = array.clone(TEMPLATE, m, zero=False)
    cdef uint32_t *at = NULL
    cdef uint32_t *skip = NULL
    cdef uint32_t *weight = NULL
    cdef uint32_t *credit = NULL
    cdef uint32_t *number = NULL
    try:
        at = column(offsets, n)
        skip = column(skips, n)
        weight = column(weights, n)
        number = column(numbers, n)
        credit = column(weights, n)
        if n == 0:
            raise ValueError("a table needs a server")
        for i in range(n):
            # NB: anything else would never end, or end beyond the table
            if at[i] >= m or not 0 < skip[i] < m or not 0 < weight[i] <= 1 << 31:
                raise ValueError(f"server {i}: offset {at[i]}, skip {skip[i]}, weight {weight[i]} of a table of {m}")
        for i in range(m):
            out.data.as_uints[i] = EMPTY
        with nogil:
            claim(<uint32_t *>out.data.as_uints, m, n, at, skip, weight, credit, number)
    finally:
        free(at)
        free(skip)
        free(weight)
        free(credit)
        free(number)
    return out


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """splitmix64's finaliser: a point of the ring from a server's seed and the point's number."""
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9ULL
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111ebULL
    return x ^ (x >> 31)


def ring(uint32_t m, seeds, points, numbers):
    """A ring of m slots. A slot belongs to the first point within, or else to that of the next slot that has one; a server's own
    first point goes before the others', so that a light server has a slot, too. Who else is there plays no part in that: without
    a server, its slots alone get others."""
    cdef uint32_t n = len(numbers), i, k, position, slot, owner = 0
    cdef uint64_t seed, point
    cdef array.array out = array.clone(TEMPLATE, m, zero=False)
    cdef uint64_t *first = NULL     # by slot: the point that has it: 1 bit not its server's first, 31 of position, 32 of server
    cdef uint32_t *number = NULL
    cdef uint32_t *count = NULL
    try:
        number = column(numbers, n)
        count = column(points, n)
        first = <uint64_t *>malloc(8 * <size_t>m)
        if first == NULL:
            raise MemoryError()
        for slot in range(m):
            first[slot] = <uint64_t>-1
        for i, seed in enumerate(seeds):
            for k in range(count[i]):
                position = <uint32_t>(mix(seed + <uint64_t>k * <uint64_t>0x9e3779b97f4a7c15ULL) >> 32)
                slot = <uint32_t>((<uint64_t>position * m) >> 32)
                point = <uint64_t>(k > 0) << 63 | <uint64_t>(position >> 1) << 32 | i
                if point < first[slot]:
                    first[slot] = point
        for slot in range(m):               # the last slots belong to the first point, round the ring
            if first[slot] != <uint64_t>-1:
                owner = <uint32_t>first[slot]
                break
        for slot in range(m):
            if first[m - 1 - slot] != <uint64_t>-1:
                owner = <uint32_t>first[m - 1 - slot]
            out.data.as_uints[m - 1 - slot] = number[owner]
    finally:
        free(first)
        free(number)
        free(count)
    return out


def spread(shares, numbers):
    """share[i] slots for server i, at even distances: its k-th lies at (2k + 1) / 2 share[i] of the way round, equal ones in the
    servers' order."""
    cdef uint32_t n = len(numbers), i, best
    cdef uint32_t *share = NULL
    cdef uint32_t *number = NULL
    cdef uint32_t *given = NULL
    cdef array.array out
    cdef uint32_t at, total = 0
    try:
        share = column(shares, n)
        number = column(numbers, n)
        given = column(shares, n)
        for i in range(n):
            total += share[i]
            given[i] = 0
        out = array.clone(TEMPLATE, total, zero=False)
        for at in range(total):
            best = EMPTY
            for i in range(n):
                if given[i] == share[i]:
                    continue
                if best == EMPTY or <uint64_t>(2 * given[i] + 1) * share[best] < <uint64_t>(2 * given[best] + 1) * share[i]:
                    best = i
            given[best] += 1
            out.data.as_uints[at] = number[best]
    finally:
        free(share)
        free(number)
        free(given)
    return out
