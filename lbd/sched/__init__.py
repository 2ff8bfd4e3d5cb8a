"""Schedulers: how a service's real servers become the table of numbers that workers look up.

A scheduler is a module of this package with three names:

    KIND             how a worker uses the table: in turn, by hash, or by least connections (svc.pxd, SchedKind)
    FLAGS            SvcFlag bits that go with it
    table(servers)   the slots: dest numbers

Adding one is adding a file; its name is the word in the configuration. `servers` holds every real server of the
service in the order of the configuration. Weight 0 (drained, down, in maintenance) gets no slot, but the server stays
in the list, so that a table's size need not change when a server comes and goes. No server left: an empty table.

Pure: the same servers always give the same table, in every process and after every restart.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol, cast


class Kind(IntEnum):
    """SchedKind of svc.pxd."""

    SEQ = 0
    HASH = 1
    LEAST = 2


class Flag(IntFlag):
    """The bits of svc.pxd's SvcFlag that a scheduler sets."""

    NONE = 0
    HASH_PORT = 2
    LEAST_WEIGHTED = 4


class Server(NamedTuple):
    """A real server as schedulers see it."""

    number: int  # dest number: what the slots hold
    weight: int  # 0: takes no new connection
    key: bytes  # what it is wherever it is known: address and port


class Scheduler(Protocol):
    KIND: Kind
    FLAGS: Flag

    @staticmethod
    def table(servers: Sequence[Server]) -> list[int]: ...


def names() -> list[str]:
    """The schedulers there are: modules that are neither private nor shared parts."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in ("share",))


def scheduler(name: str) -> Scheduler:
    if name not in names():
        raise ValueError(f"no scheduler named {name!r}; there are: {', '.join(names())}")
    return cast(Scheduler, importlib.import_module(f"{__name__}.{name}"))
