# SPDX-License-Identifier: Apache-2.0
"""The check `tcp`: the real server takes a connection. Nothing is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from lbd.health.check import Check, Done, Result
from lbd.health.connection import ConnectionProbe


class TcpProbe(ConnectionProbe):
    def connected(self) -> None:
        self.finish(Result.SUCCESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpCheck(Check):
    def probe(self, loop: asyncio.AbstractEventLoop, done: Done) -> TcpProbe:
        return TcpProbe(self, loop, done)


CHECK = TcpCheck
