"""Allocator of the scheduling-table arena in the host segment (uint32 slots; the master writes, workers read).

Scope: which slots are taken, nothing of what is in them. First fit over a sorted list of free extents.

An extent's states and the only ways between them:

    free      --place-->    taken     a table was written there (hold: a running worker was found to use one)
    taken     --give-->     retired   no later command names it; a worker may still read it
    retired   --collect-->  free      every worker has applied the generation that stopped using it
    taken     --cancel-->   free      no command ever named it

Prohibited: taken -> free at once, since a worker that has not applied the change yet would read another service's table.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence


class ArenaFull(Exception):
    """No free extent is long enough."""


class Arena:
    def __init__(self, slots: int, write: Callable[[int, Sequence[int]], object]):
        self.slots = slots
        self.write = write  # (offset, slots): into the segment
        self._free: list[tuple[int, int]] = [(0, slots)] if slots else []  # (offset, length), sorted, never adjacent
        self._retired: list[tuple[int, int, int]] = []  # (generation, offset, length)

    def place(self, table: Sequence[int]) -> int:
        """Writes the table to a free extent, which is now taken; its offset."""
        at = self._take(len(table))
        if table:
            self.write(at, table)
        return at

    def hold(self, at: int, length: int) -> list[tuple[int, int]]:
        """Takes this very extent, as far as it is still free: what running workers were found to use. What was taken."""
        end = min(at + length, self.slots)
        kept: list[tuple[int, int]] = []
        held: list[tuple[int, int]] = []
        for start, room in self._free:
            low, high = max(start, at), min(start + room, end)
            if low >= high:
                kept.append((start, room))
                continue
            held.append((low, high - low))
            kept += [(a, b - a) for a, b in ((start, low), (high, start + room)) if b > a]
        self._free = kept
        return held

    def give(self, at: int, length: int, generation: int) -> None:
        """Not used any more once every worker has applied `generation`."""
        if length > 0:
            self._retired.append((generation, at, length))

    def cancel(self, at: int, length: int) -> None:
        """Takes back a place() that no command has named."""
        if length > 0:
            self._release(at, length)

    def collect(self, applied: int) -> None:
        """`applied`: the generation that every worker has applied. Frees what was retired up to it."""
        done = [r for r in self._retired if r[0] <= applied]
        if done:
            self._retired = [r for r in self._retired if r[0] > applied]
            for _, at, length in done:
                self._release(at, length)

    def free(self) -> int:
        return sum(room for _, room in self._free)

    def retired(self) -> int:
        return sum(length for _, _, length in self._retired)

    def _take(self, length: int) -> int:
        if length == 0:
            return 0
        for i, (at, room) in enumerate(self._free):
            if room >= length:
                self._free[i : i + 1] = [(at + length, room - length)] if room > length else []
                return at
        raise ArenaFull(
            f"no room for a scheduling table of {length} slots ({self.free()} of {self.slots} are free): "
            "raise tables.services and restart"
        )

    def _release(self, at: int, length: int) -> None:
        i = bisect_left(self._free, (at, 0))
        if i < len(self._free) and self._free[i][0] == at + length:  # joins the next one
            length += self._free.pop(i)[1]
        if i > 0 and sum(self._free[i - 1]) == at:  # and the one before
            before, room = self._free.pop(i - 1)
            at, length = before, room + length
        insort(self._free, (at, length))
