# SPDX-License-Identifier: Apache-2.0
"""Commands on their way to one worker: in order, and none is lost.

Scope: the queue before the command ring, and the memory of what is in it. Where a command is, and what
moves it on:

    queue    sent, no room in the ring yet            -> pushed    room
    pushed   in the ring, which outlives the worker   -> (gone)    the worker has applied it, its slot is free
                                                      -> queue     the ring had to be emptied (`again`)

So a command may reach a worker twice, never not at all; commands carry absolute values, and bear that. The
ring's own index says what was taken over, not a generation, since commands of one batch may share theirs.
"""

from __future__ import annotations

from collections import deque

from lbd.shm import _shm as shm

GENERATIONS = 1 << 32


class Delivery:
    """Its methods raise PeerGarbage if the worker's index in the ring can't be."""

    def __init__(self, segment: shm.WorkerSegment) -> None:
        self.segment = segment
        self._queue: deque[bytes] = deque()
        self._pushed: deque[bytes] = deque()

    def recall(self) -> None:
        """Knows what a predecessor of this master has pushed."""
        self._pushed.extend(self.segment.pending_commands())

    def send(self, *commands: bytes) -> None:
        self._queue.extend(commands)
        self.push()

    def push(self) -> None:
        """As many as there is room for."""
        self._forget_applied()
        while self._queue and self.segment.push(self._queue[0]):
            self._pushed.append(self._queue.popleft())

    def _forget_applied(self) -> None:
        waiting = self.segment.pending()
        while len(self._pushed) > waiting:
            self._pushed.popleft()

    def again(self) -> None:
        """The ring was emptied: what was in it is sent again, first; but no CMD_STOP, which was its
        predecessor's."""
        self._queue = deque(c for c in [*self._pushed, *self._queue] if not is_stop(c))
        self._pushed.clear()

    def stops(self) -> bool:
        """Is a CMD_STOP on its way? A worker that was killed did not take it; its successor must not
        either."""
        self._forget_applied()
        return any(map(is_stop, [*self._pushed, *self._queue]))

    @property
    def backlog(self) -> bool:
        """Is there anything that did not fit into the ring?"""
        return bool(self._queue)

    @property
    def waiting(self) -> int:
        return len(self._queue) + len(self._pushed)

    def settled(self, gen: int) -> bool:
        """Has the worker taken over every command up to this generation that it was sent?"""
        self.push()
        first = self._pushed or self._queue
        return not first or later(command_gen(first[0]), gen)

    def generation(self) -> int:
        """The latest that the worker has applied or was sent."""
        return max(self.segment.gen_applied, *map(command_gen, [*self._pushed, *self._queue, shm.nop(0)]))


def is_stop(command: bytes) -> bool:
    return shm.command_head(command)[0] == shm.CMD_STOP


def command_gen(command: bytes) -> int:
    return shm.command_head(command)[3]


def later(a: int, b: int) -> bool:
    """Generation a after b? They may wrap."""
    return 0 < (a - b) % GENERATIONS < GENERATIONS // 2
