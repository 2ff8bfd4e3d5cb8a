# SPDX-License-Identifier: Apache-2.0
"""Who owns which bucket of flows: by the NICs' own choice of queue where all of them tell it alike, else by a plain table.

Scope: pure. "Known" means that the flow owner's hash is what every NIC computes, so that a local port can be chosen that
brings the answer back to the same queue. It takes all of: Toeplitz, one key, one table, ports hashed for TCP over both
families, and for UDP the same fields for both. Anything else counts as unknown, and hand-over between workers does the
work: never wrong, only slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lbd.master.record import Rss
from lbd.shm import _shm as shm

RXH_ADDRESSES = 0x10 | 0x20
RXH_PORTS = 0x40 | 0x80
KEY_MAX = 64
KEY_MIN = 40  # IPv6 with ports: 36 bytes and a window of 4


@dataclass(frozen=True, slots=True)
class Ownership:
    key: bytes
    known: bool
    udp_ports: bool
    table: tuple[int, ...]  # worker of each bucket
    why: str  # one sentence for the log


def same(a: Ownership, b: Ownership) -> bool:
    """Do they say the same of every flow?"""
    if (a.known, a.udp_ports, a.table) != (b.known, b.udp_ports, b.table):
        return False
    return not a.known or a.key.rstrip(b"\0") == b.key.rstrip(b"\0")  # else it is another hash that they go by


def plain(workers: int, why: str) -> Ownership:
    table = tuple(i % workers for i in range(shm.OWNER_BUCKETS))
    return Ownership(os.urandom(KEY_MAX), False, False, table, why)


def ownership(interfaces: Sequence[str], told: Iterable[Rss], workers: int, queues: dict[str, int]) -> Ownership:
    """`queues`: how many of each interface have a socket."""
    by_name = {r.name: r for r in told}
    missing = [name for name in interfaces if name not in by_name]
    if missing or not interfaces:
        return plain(workers, f"RSS of {', '.join(missing)} is not known" if missing else "no interfaces")
    first = by_name[interfaces[0]]
    for name in interfaces:
        problem = _problem(by_name[name], first, queues.get(name, 0))
        if problem:
            return plain(workers, f"RSS of {name} is of no use: {problem}")
    fields = dict(first.fields)
    udp_ports = fields["udp4"] == RXH_ADDRESSES | RXH_PORTS
    table = tuple(first.table[i % len(first.table)] % workers for i in range(shm.OWNER_BUCKETS))
    return Ownership(first.key, True, udp_ports, table, "flows are owned by the NICs' choice of queue")


def _problem(r: Rss, first: Rss, queues: int) -> str:
    fields = dict(r.fields)
    if r.function != "toeplitz":
        return f"its hash is {r.function or 'not told'}"
    if not KEY_MIN <= len(r.key) <= KEY_MAX or not any(r.key):
        return f"its key has {len(r.key)} bytes"
    if not r.table or shm.OWNER_BUCKETS % len(r.table):
        return f"its table has {len(r.table)} entries"
    if max(r.table) >= queues:
        return "its table names queues that lbd does not serve"
    if any(fields.get(flow) != RXH_ADDRESSES | RXH_PORTS for flow in ("tcp4", "tcp6")):
        return "it does not hash addresses and ports of TCP"
    if fields.get("udp4") != fields.get("udp6") or fields.get("udp4") not in (
        RXH_ADDRESSES,
        RXH_ADDRESSES | RXH_PORTS,
    ):
        return "it hashes other fields of UDP"
    if (r.key, r.table, r.fields) != (first.key, first.table, first.fields):
        return f"it differs from that of {first.name}"
    return ""
