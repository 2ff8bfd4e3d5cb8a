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
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
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
        version = ip_address(self.endpoint[0]).version  # no names: the loop must not wait for a resolver
        if self.source is not None and ip_address(self.source).version != version:
            raise ValueError(f"{self.source} cannot be the source of a check of {self.endpoint[0]}")
        if self.interval <= 0 or self.timeout <= 0 or self.rise < 1 or self.fall < 1:
            raise ValueError("interval, timeout, rise and fall of a check must be positive")

    @abstractmethod
    def probe(self, loop: asyncio.AbstractEventLoop, done: Done) -> Probe: ...


def build_check(kind: str, endpoint: Endpoint, **settings: Any) -> Check:
    """A check by the name of its checker; `settings` are the fields of its class."""
    if not kind.isidentifier():
        raise LookupError(f"no such check: {kind}")
    try:
        found = getattr(importlib.import_module(f"lbd.health.{kind}"), "CHECK", None)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise LookupError(f"no such check: {kind}")
    check = found(endpoint=endpoint, **settings)
    assert isinstance(check, Check)
    return check
