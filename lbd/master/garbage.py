# SPDX-License-Identifier: Apache-2.0
"""Python's cyclic garbage collector, kept out of the way of large configurations.

Scope: when it runs. A configuration of 20,000 real servers is half a million objects that live for as long as it does. While
they are made, the collector looks at all that is there already, again and again (measured: 0.3 s of the loop that makes the
health checks' records alone), and later with every full collection. So it rests while they are made, and then counts them as
permanent. What has no cycles, as the configuration itself, is freed all the same, by its reference counts.

What is left to it is what comes and goes: timers and sockets of health checks, 70,000 objects of 20,000 checks, for which a
full collection holds the loop for 35 ms. Python's own thresholds have one with every scrape; those here, with some dozens.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (20_000, 10, 50)  # objects made and not freed; collections of the youngest, of the next generation


def collect_seldom() -> None:
    gc.set_threshold(*THRESHOLDS)


@contextmanager
def resting() -> Iterator[None]:
    """What the block makes, and all that was there before, is never looked at again; unless it fails."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was:
            gc.enable()
