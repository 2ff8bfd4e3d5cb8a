"""IPVS's schedulers as its documentation and observed behaviour have them, written apart from lbd: what a kernel would pick.

Scope: one service. A list of real servers stands in the order of the configuration; those that are down are not in IPVS
(keepalived takes them out), those of weight 0 are. Where the kernel takes the first of equals, any of them is right here:
`choices` gives a set. Facts: Linux 6.1, ip_vs_{rr,wrr,lc,wlc,sed,nq,fo,ovf,sh,dh,lblc,lblcr}.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd

DAY_MS = 24 * 3600 * 1000


@dataclass
class Real:
    weight: int = 1
    up: bool = True
    active: int = 0
    inactive: int = 0

    @property
    def overhead(self) -> int:
        return self.active * 256 + self.inactive

    @property
    def open(self) -> bool:
        return self.up and self.weight > 0


def least(reals: list[Real], cost: object, among: set[int] | None = None) -> set[int]:
    able = [i for i, r in enumerate(reals) if r.open and (among is None or i in among)]
    costs = {i: cost(reals[i]) for i in able}  # type: ignore[operator]
    return {i for i in able if costs[i] == min(costs.values())}


def lc(reals: list[Real]) -> set[int]:
    return least(reals, lambda r: r.overhead)


def wlc(reals: list[Real], among: set[int] | None = None) -> set[int]:
    return least(reals, lambda r: Fraction(r.overhead, r.weight), among)


def sed(reals: list[Real]) -> set[int]:
    return least(reals, lambda r: Fraction(r.active + 1, r.weight))


def nq(reals: list[Real]) -> set[int]:
    idle = {i for i, r in enumerate(reals) if r.open and r.active == 0}
    return idle or sed(reals)


def fo(reals: list[Real]) -> set[int]:
    return least(reals, lambda r: -r.weight)


def ovf(reals: list[Real]) -> set[int]:
    return least(reals, lambda r: -r.weight, {i for i, r in enumerate(reals) if r.active <= r.weight})


def rr(reals: list[Real], last: int) -> int | None:
    n = len(reals)
    return next(((last + k) % n for k in range(1, n + 1) if reals[(last + k) % n].open), None)


def wrr_round(weights: list[int]) -> list[int]:
    """One period of wrr: 4, 3, 2 gives 0 0 1 0 1 2 0 1 2."""
    step, current, order = gcd(*weights), max(weights), []
    while current > 0:
        order += [i for i, w in enumerate(weights) if w >= current]
        current -= step
    return order


# -- hashes --------------------------------------------------------------------------------------------------


def hash_32(value: int, bits: int) -> int:
    return (value * 0x61C88647 & 0xFFFFFFFF) >> (32 - bits)


def folded(address: bytes) -> int:
    words = [int.from_bytes(address[i : i + 4], "big") for i in range(0, len(address), 4)]
    result = 0
    for word in words:
        result ^= word
    return result


def sh_buckets(reals: list[Real]) -> list[int]:
    order = [i for i in reversed(range(len(reals))) if reals[i].up]  # a new one goes to the head of the kernel's list
    buckets: list[int] = []
    while order and len(buckets) < 256:
        for i in order:
            buckets += [i] * max(1, reals[i].weight)
    return buckets[:256]


def sh(reals: list[Real], client: bytes, port: int, fallback: bool) -> int | None:
    buckets = sh_buckets(reals)
    if not buckets:
        return None
    key = hash_32(port + folded(client) & 0xFFFFFFFF, 8)
    if reals[buckets[key]].open:
        return buckets[key]
    for offset in range(256 if fallback else 0):
        other = ((offset + key) % 256 + key) & 255
        if reals[buckets[other]].open:
            return buckets[other]
    return None


def dh(reals: list[Real], vip: bytes) -> int | None:
    order = [i for i in reversed(range(len(reals))) if reals[i].up]
    if not order:
        return None
    found = order[hash_32(folded(vip), 8) % len(order)]
    return found if reals[found].open else None


# -- locality ------------------------------------------------------------------------------------------------


@dataclass
class Locality:
    """One destination address of lblc, or of lblcr (`replicate`)."""

    replicate: bool
    homes: set[int] = field(default_factory=set)
    used: int | None = None
    changed: int = 0

    def overloaded(self, reals: list[Real], i: int) -> bool:
        busy = reals[i].active > reals[i].weight
        return busy and any(r.open and r.active * 2 < r.weight for r in reals)

    def choices(self, reals: list[Real], now: int) -> tuple[set[int], set[int]]:
        """What may be picked, and who may leave the set because it is old."""
        if self.used is None or now - self.used > DAY_MS:
            self.homes = set()
        self.used = now
        near = wlc(reals, self.homes)
        leaving: set[int] = set()
        if self.replicate and len(self.homes) > 1 and now - self.changed > DAY_MS:
            open_homes = {i for i in self.homes if reals[i].open}
            leaving = least(reals, lambda r: -Fraction(r.overhead, r.weight), open_homes)
        good = {i for i in near if not self.overloaded(reals, i)}
        # whichever of equals is looked at: overloaded ones send the connection to anybody
        return (good if near and good == near else good | wlc(reals)), leaving

    def took(self, i: int | None, gone: int | None, now: int) -> None:
        if gone is not None:
            self.homes.discard(gone)
            self.changed = now
        if i is None:
            return
        if not self.replicate:
            self.homes = {i}
        elif i not in self.homes and i != gone:
            self.homes.add(i)
            self.changed = now
