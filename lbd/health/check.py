# SPDX-License-Identifier: Apache-2.0
"""What a checker is: the settings of a check, and the probe that carries it out once.

Scope: the contract between `core.py` and the checkers, and how a checker is found by its name.

Adding a checker is adding a file: `lbd/health/NAME.py` with a `CHECK`, a class derived from `Check` that adds
its settings as fields and makes its probe. NAME is the `type` of `[service.health]`.

A probe lives from `start()` to its one call of `done`, or to `cancel()`:
    start ──► done(result, reason), exactly once ──► holds no descriptor, no timer
    start ──► cancel ──► the same, without `done`
It never blocks the loop, reads a bounded amount, and ends by itself at `timeout` after its start.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import ip_address
from typing import Any, Protocol

Endpoint = tuple[str, int]  # address, port


class Result(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"  # the real server, or the way to it, said no
    TIMEOUT = "timeout"  # it said too little in time
    ERROR = "error"  # this host could not check (no local port, …): says nothing of the real server


Done = Callable[[Result, str], None]  # the reason is for people: one line, "" for a success


class Probe(Protocol):
    def start(self) -> None: ...
    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(ABC):
    """Settings of one check of one real server. Equal checks are made once, whatever services want them."""

    endpoint: Endpoint
    interval: float = 2.0  # seconds from the start of one check to that of the next, ± 10 %
    timeout: float = 1.0  # seconds from the start to a complete answer
    rise: int = 2  # successes in a row that bring the real server up
    fall: int = 3  # failures in a row that take it down
    source: str | None = None  # local address, e.g. a LIP

    def __post_init__(self) -> None:
        version = family(self.endpoint[0])  # no names: the loop must not wait for a resolver
        if self.source is not None and family(self.source) != version:
            raise ValueError(f"{self.source} cannot be the source of a check of {self.endpoint[0]}")
        if self.interval <= 0 or self.timeout <= 0 or self.rise < 1 or self.fall < 1:
            raise ValueError("interval, timeout, rise and fall of a check must be positive")

    @abstractmethod
    def probe(self, loop: asyncio.AbstractEventLoop, done: Done) -> Probe: ...


def family(address: str) -> int:
    """4 or 6; ValueError if it is no address. As ip_address() would say it, for a tenth of the time."""
    for version, known in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        try:
            socket.inet_pton(known, address)
            return version
        except OSError:
            pass
    return ip_address(address).version  # with a zone, or to be refused


def build_check(kind: str, endpoint: Endpoint, **settings: Any) -> Check:
    """A check by the name of its checker; `settings` are the fields of its class."""
    check = _checker(kind)(endpoint=endpoint, **settings)
    assert isinstance(check, Check)
    return check


@cache
def _checker(kind: str) -> Callable[..., Check]:
    if not kind.isidentifier():
        raise LookupError(f"no such check: {kind}")
    try:
        found = getattr(importlib.import_module(f"lbd.health.{kind}"), "CHECK", None)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise LookupError(f"no such check: {kind}")
    made: Callable[..., Check] = found
    return made
