# SPDX-License-Identifier: Apache-2.0
"""What workers inherit from others of another number: their connections, and by which rule those found their owners.

Scope: two kinds of files in the run directory, which outlive every process.

    owners      the rules: who owns which flows, in force and before that
    conn-N      the connections of worker N

With M workers where there were N, those of worker j >= M go to worker j % M, and so do the buckets that j owned: by the old rule,
kept as the previous one, each of them is found where it lies now. Of a third rule nothing is kept: what was made by it may not be
found where packets of one direction come to another worker.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lbd._fastpath import conn_mark, conn_merge
from lbd.master.rss import Ownership, same
from lbd.master.runfile import boot, write_whole
from lbd.shm import _shm as shm

log = logging.getLogger(__name__)

OWNERS = "owners"


def keep(run_dir: Path, *rules: Ownership) -> None:
    """In force, and the one before if there is one; whoever starts next finds them. What can't be written is only told: nothing
    that runs now depends on it."""
    path = run_dir / OWNERS
    rows = [asdict(rule) | {"key": rule.key.hex()} for rule in rules]
    try:
        write_whole(path, json.dumps({"boot": boot(), "rules": rows}).encode())
    except OSError as error:
        log.warning("%s can't be written: %s", path, error.strerror or error)


def kept(run_dir: Path) -> list[Ownership]:
    """None of them: of another boot, or nothing that can be read."""
    try:
        found = json.loads((run_dir / OWNERS).read_text())
        return [rule(row) for row in found["rules"]] if found["boot"] == boot() else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def rule(row: Mapping[str, Any]) -> Ownership:
    table = tuple(int(worker) for worker in row["table"])
    if len(table) != shm.OWNER_BUCKETS or min(table) < 0:
        raise ValueError("not a table of owners")
    return Ownership(bytes.fromhex(row["key"]), bool(row["known"]), bool(row["udp_ports"]), table, str(row["why"]))


def previous(before: Iterable[Ownership], now: Ownership, workers: int) -> Ownership | None:
    """The last rule that said something else than this one, by the workers that there are now."""
    folded = (replace(rule, table=tuple(worker % workers for worker in rule.table)) for rule in before)
    return next((rule for rule in folded if not same(rule, now)), None)


def connection_files(run_dir: Path) -> dict[int, Path]:
    return {int(path.name[5:]): path for path in run_dir.glob("conn-*") if path.name[5:].isdecimal()}


def reserve(host: shm.HostSegment, conns: Mapping[int, int], sizes: Mapping[str, int]) -> None:
    """Where owners differ from before: ports that connections hold are for nobody else, whoever owns them now."""
    if host.owners()[1] is not None:
        for conn in conns.values():
            conn_mark(conn, host.fd, sizes)
        host.set_taken()


def take_in(run_dir: Path, conns: Mapping[int, int], sizes: Mapping[str, int]) -> None:
    """Connections of workers that there are no more (no number of `conns`, worker -> file) go to those that there are. Nobody runs
    over any of these files."""
    for number, path in sorted(connection_files(run_dir).items()):
        if number in conns:
            continue
        heir = number % len(conns)
        with open(path, "r+b") as file:
            try:
                moved, left = conn_merge(conns[heir], file.fileno(), sizes)
            except OSError:  # of other table sizes
                moved = left = 0
        path.unlink()
        if moved:
            log.info("worker %d takes over %d connections of worker %d", heir, moved, number)
        if left:
            log.warning("%d connections of worker %d found no room at worker %d and are lost", left, number, heir)
