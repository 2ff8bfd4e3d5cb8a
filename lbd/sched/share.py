"""Weights to slots: how many slots each server gets, and an order that spreads them evenly. Used by wrr and sh.

Weights are divided by their greatest common divisor. If the sum is still above `limit`, the slots are apportioned by
largest remainder (Hamilton's method), with at least one slot each: the error of a share is then below one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from lbd.sched import Server, live
from lbd.sched._table import spread


def apportion(weights: Sequence[int], limit: int) -> list[int]:
    """Slots for each weight (all above 0), at most `limit` together unless there are more weights than that."""
    divisor = gcd(*weights)
    shares = [w // divisor for w in weights]
    total = sum(shares)
    if total <= limit:
        return shares
    spare = max(limit - len(shares), 0)  # one each first, so that a small weight is small and not nothing
    scaled = [1 + w * spare // total for w in shares]
    remainders = sorted(range(len(shares)), key=lambda i: (-(shares[i] * spare % total), i))
    for i in remainders[: len(shares) + spare - sum(scaled)]:
        scaled[i] += 1
    return scaled


def interleave(servers: Sequence[Server], limit: int) -> Sequence[int]:
    """Numbers in a sequence in which each server comes up at even distances, first in the servers' order.

    The k-th slot of a server with s slots lies at (2k + 1) / 2s of the way round (Sainte-Laguë's order).
    """
    able = live(servers)
    if not able:
        return []
    shares = apportion([s.weight * s.share for s in able], limit)
    numbers = [s.number for s in able]
    return numbers if max(shares) == 1 else spread(shares, numbers)
