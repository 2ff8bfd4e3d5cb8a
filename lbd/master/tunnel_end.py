# SPDX-License-Identifier: Apache-2.0
"""What came in the tunnels that end here, from the workers' records of them."""

from collections.abc import Iterable, Iterator

from lbd.config.tunnel import Tunnel
from lbd.master.encode import KINDS
from lbd.shm import _shm as shm

COUNTS = ("packets", "bytes", "refused")
NOTHING = (0,) * len(COUNTS)


def counted(tunnels: Iterable[Tunnel], segments: Iterable[shm.WorkerSegment]) -> Iterator[tuple[Tunnel, tuple[int, ...]]]:
    """Each tunnel with its COUNTS, all workers' together."""
    total: dict[tuple[int, bytes, bytes], tuple[int, ...]] = {}
    for segment in segments:
        for kind, local, remote, *counts in segment.tunnels():
            known = total.get((kind, local, remote), NOTHING)
            total[kind, local, remote] = tuple(map(int.__add__, known, counts))
    for t in tunnels:
        remote = t.remote.packed if t.remote is not None else b""
        yield t, total.get((KINDS[t.type], t.local.packed, remote), NOTHING)
