"""Schedulers: how a service's real servers become the table of numbers that workers look up.

A scheduler is a module of this package with these names:

    KIND                    how a worker uses the table (svc.pxd, SchedKind)
    FLAGS                   SvcFlag bits that always go with it
    OPTIONS                 flags that a service may ask for, by ipvsadm's names, and their bits
    LIMIT                   real servers that it can handle; 0: any number
    RAMP                    steps in which a real server's share of its weight grows (slow start); 0: it does not heed weights so
    table(servers, flags)   the slots: dest numbers

Adding one is adding a file; its name is the word in the configuration. `servers` holds every real server of the
service in the order of the configuration, also those that can't take a connection now: a table's size need not change
when a server comes and goes, and a hash may keep its place. Nobody left who can: an empty table.

Pure: the same servers always give the same table, in every process and after every restart.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import cache
from typing import NamedTuple, Protocol, cast


class Kind(IntEnum):
    """SchedKind of svc.pxd."""

    SEQ = 0
    HASH = 1
    LEAST = 2
    SED = 3
    NQ = 4
    FIRST = 5
    OVF = 6
    SOURCE = 7
    DEST = 8
    HOME = 9
    HOMES = 10


class Flag(IntFlag):
    """The bits of svc.pxd's SvcFlag that a scheduler sets."""

    NONE = 0
    HASH_PORT = 2
    LEAST_WEIGHTED = 4
    HASH_FALLBACK = 8


FULL = 100


class Server(NamedTuple):
    """A real server as schedulers see it."""

    number: int  # dest number: what the slots hold
    weight: int  # 0: takes no new connection
    key: bytes  # what it is wherever it is known: address and port
    up: bool = True  # False: as if it were not there (keepalived then takes it out of IPVS)
    rest: int = 0  # weight 0: what it was before, or is in the configuration (IPVS: last_weight)
    share: int = FULL  # percent of the weight that counts for now

    @property
    def place(self) -> int:
        """The weight by which a hash keeps its place."""
        return self.weight or self.rest


class Scheduler(Protocol):
    KIND: Kind
    FLAGS: Flag
    OPTIONS: Mapping[str, Flag]
    LIMIT: int
    RAMP: int

    @staticmethod
    def table(servers: Sequence[Server], flags: Flag = Flag.NONE) -> Sequence[int]: ...


@cache
def names() -> tuple[str, ...]:
    """The schedulers there are: modules that are neither private nor shared parts."""
    found = (m.name for m in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name != "share" and not name.startswith("_")))


@cache
def scheduler(name: str) -> Scheduler:
    if name not in names():
        raise ValueError(f"no scheduler named {name!r}; there are: {', '.join(names())}")
    return cast(Scheduler, importlib.import_module(f"{__name__}.{name}"))


def flags_of(method: Scheduler, options: Iterable[str]) -> Flag:
    """Its own flags, and those asked for by name."""
    flags = method.FLAGS
    for option in options:
        flags |= method.OPTIONS[option]
    return flags


def live(servers: Iterable[Server]) -> list[Server]:
    """Those that can take a new connection."""
    return [s for s in servers if s.weight > 0 and s.up]


def seated(servers: Iterable[Server], flags: Flag) -> list[Server]:
    """Those that have a place in a hash. With fallback also who is down: its clients alone then go elsewhere."""
    return [s for s in servers if s.up or flags & Flag.HASH_FALLBACK]
