# SPDX-License-Identifier: Apache-2.0
"""Free frames of a worker's partition (lbd/loop/frames.pxd)."""

from __future__ import annotations

import random
import statistics
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit._engine import FREE_WINDOW_FRAMES, Frames

from lbd.shm import _shm as shm

STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 256), st.integers(0, 2**32)), max_size=60)


@given(steps=STEPS, size=st.sampled_from([64, 256, 1024, 4096]), worker=st.integers(0, 2))
@settings(deadline=None)
def test_each_frame_is_taken_once(steps: list[tuple[bool, int, int]], size: int, worker: int) -> None:
    """Against a set: as many as are asked for, if they are free; none twice, none of others; given back in any order."""
    frames = Frames(size, worker, 3)
    held: set[int] = set()
    for take, n, seed in steps:
        if take:
            got = frames.take(n)
            assert len(got) == min(n, size - len(held))
            assert not held & set(got) and len(set(got)) == len(got)
            held |= set(got)
        else:
            back = random.Random(seed).sample(sorted(held), min(n, len(held)))
            frames.give(back)
            held -= set(back)
        assert frames.free == size - len(held)
        ledger = frames.ledger
        assert {i for i, byte in enumerate(ledger) if byte} == held
        assert {ledger[i] for i in held} <= {shm.FRAME_WORK | worker << 4}
    assert all(worker * size <= i < (worker + 1) * size for i in held)


@pytest.mark.parametrize("order", ["as they came", "mixed"])
def test_neighbours_stay_together(order: str) -> None:
    """Of 8,192 frames 2,048 wait in a fill ring and up to 256 are sent: those that go round stay few, and go by their addresses,
    also when they are given back out of order."""
    frames, mix = Frames(8192, 0, 1), random.Random(7)
    ring = deque(frame for _ in range(8) for frame in frames.take(256))
    sent: list[int] = []
    seen: list[list[int]] = []
    for _ in range(400):
        sent += [ring.popleft() for _ in range(64)]
        if len(sent) > 256:
            if order == "mixed":
                mix.shuffle(sent)
            frames.give(sent[:64])
            del sent[:64]
        seen.append(frames.take(64))
        ring.extend(seen[-1])
    late = seen[200:]
    assert len({frame for got in late for frame in got}) <= 2048 + 256 + 2 * FREE_WINDOW_FRAMES
    for got in late:
        lines = [frame // 8 for frame in got]
        assert sum(b < a for a, b in pairwise(lines)) <= 1, "once round, at most"
        assert statistics.median(b - a for a, b in pairwise(lines)) <= 1
    if order == "as they came":
        assert late[0] == [8 * line + k for line in range(late[0][0] // 8, late[0][0] // 8 + 8) for k in (0, 2, 4, 6, 1, 3, 5, 7)]
