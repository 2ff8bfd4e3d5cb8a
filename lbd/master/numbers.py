"""Numbers for what workers know by number: services, real servers, local addresses.

Scope: one kind. A key (what the thing is) keeps its number for as long as it lives, over reloads and over restarts of
the master, which reads the numbers back from a worker's records (`adopt`).

A freed number is used again as late as possible: never-used numbers come first, then the one that was freed longest
ago, and never one that `busy` still reports in use (connections that outlive their real server). Within one update a
number freed is not given out again, so that the order of a batch of commands does not matter to it.

A key that comes back while its former number is still busy gets that one again (`recall`), and its connections count as
its own again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class NumbersUsedUp(Exception):
    """More things than the tables have places for."""


def never_busy(_: int) -> bool:
    return False


class Numbers(Generic[K]):
    def __init__(self, capacity: int, what: str, busy: Callable[[int], bool] = never_busy):
        self.capacity = capacity
        self.what = what  # the setting that holds the capacity, for the refusal
        self.busy = busy
        self._number: dict[K, int] = {}
        self._key: dict[int, K] = {}
        self._fresh = 0  # never used: this one and all above, but for adopted ones
        self._freed: deque[int] = deque()
        self._freed_now: list[int] = []
        self._former: dict[K, int] = {}  # what a freed number stood for, until somebody else gets it
        self._former_key: dict[int, K] = {}

    def __len__(self) -> int:
        return len(self._number)

    def __contains__(self, key: K) -> bool:
        return key in self._number

    def __iter__(self) -> Iterator[K]:
        return iter(self._number)

    def number(self, key: K) -> int | None:
        return self._number.get(key)

    def key(self, number: int) -> K | None:
        return self._key.get(number)

    def items(self) -> Iterable[tuple[K, int]]:
        return self._number.items()

    def former(self) -> Iterable[tuple[K, int]]:
        """What freed numbers stood for, that nobody else has got since."""
        return self._former.items()

    def adopt(self, key: K, number: int) -> None:
        """This key has this number already, in a running worker. The first to say so is believed."""
        if number < self.capacity and number not in self._key and key not in self._number:
            self._number[key] = number
            self._key[number] = key

    def assign(self, key: K) -> int:
        """The key's number, a new one if it has none."""
        number = self._number.get(key)
        if number is None:
            number = self._next()
            self._forget(key, number)
            self._number[key] = number
            self._key[number] = key
        return number

    def recall(self, key: K) -> int | None:
        """The number that this key had and connections still refer to, its own again; None if there is none."""
        number = self._former.get(key)
        if number is None or number not in self._freed or not self.busy(number):
            return None
        self._freed.remove(number)
        self._forget(key, number)
        self._number[key] = number
        self._key[number] = key
        return number

    def release(self, key: K) -> int:
        number = self._number[key]
        self._take_away(key)
        self._freed_now.append(number)
        return number

    def cancel(self, key: K) -> None:
        """Takes back an assign() or recall() that nobody was told of."""
        number = self._number[key]
        self._take_away(key)
        self._freed.appendleft(number)

    def _take_away(self, key: K) -> None:
        number = self._number.pop(key)
        del self._key[number]
        self._former[key] = number
        self._former_key[number] = key

    def _forget(self, key: K, number: int) -> None:
        """What this key and this number were before."""
        self._former_key.pop(self._former.pop(key, -1), None)
        former = self._former_key.pop(number, None)
        if former is not None:
            self._former.pop(former, None)

    def settle(self) -> None:
        """The update is done: what it freed may be given out by the next one."""
        self._freed.extend(self._freed_now)
        self._freed_now.clear()

    def _next(self) -> int:
        while self._fresh < self.capacity:
            number = self._fresh
            self._fresh += 1
            if number in self._key:
                continue
            if not self.busy(number):
                return number
            self._freed.append(number)  # a predecessor of this master freed it
        for _ in range(len(self._freed)):
            number = self._freed.popleft()
            if number in self._key:
                continue
            if not self.busy(number):
                return number
            self._freed.append(number)
        raise NumbersUsedUp(
            f"all {self.capacity} places are taken, or held by connections of removed ones: raise {self.what} and restart"
        )
