# SPDX-License-Identifier: Apache-2.0
"""A configuration alone, turned into an engine's commands: for `lbd replay`, which has no kernel to mirror.

Every real server counts as up. Static [[neighbor]] and [[route]] entries stand in for the kernel's, and interfaces
get the MACs that are given, or locally administered ones by their number: 02:00:00:00:00:01 is the first.
"""

from __future__ import annotations

from collections.abc import Mapping

from lbd.config import Config
from lbd.master.arena import Arena
from lbd.master.compose import Composer
from lbd.master.reach import Reach
from lbd.master.reconcile import Reconciler
from lbd.master.record import Link, Snapshot

MTU = 1500


def offline_mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number + 1])


def offline_commands(
    config: Config, macs: Mapping[str, bytes] | None = None, mtu: int = MTU
) -> tuple[list[bytes], list[tuple[int, list[int]]], Reconciler]:
    """(commands, scheduling tables as (offset, slots), the numbers behind them)."""
    tables: list[tuple[int, list[int]]] = []
    sizes = config.sizes()
    links = tuple(
        Link(n + 1, i.name, (macs or {}).get(i.name, offline_mac(n)), mtu, True, "", None, None)
        for n, i in enumerate(config.interface)
    )
    composer = Composer(config)
    composer.look(Reach(config, Snapshot(links, (), (), (), (), ())))
    arena = Arena(sizes["arena"], lambda at, table: tables.append((at, list(table))))
    reconciler = Reconciler(sizes["services"], sizes["dests"], sizes["lips"], arena)
    return reconciler.update(composer.desired), tables, reconciler
