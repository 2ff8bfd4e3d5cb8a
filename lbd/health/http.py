# SPDX-License-Identifier: Apache-2.0
"""The check `http`: a GET is answered by HTTP/1.x headers, complete, with an expected status.

Scope: just enough of RFC 9112 for that. The body is not waited for: its length is the application's affair,
and a real server that answers a gigabyte, or never ends, has answered. Interim answers (1xx) are skipped.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from lbd.health.check import Check, Done, Result
from lbd.health.connection import ConnectionProbe

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_HEADERS_END = re.compile(rb"\n\r?\n")
_MAGIC = b"HTTP/1."
_TEXT = re.compile(r"[!-~]+")  # no blanks, no control characters: nothing that could end a line


class HttpProbe(ConnectionProbe):
    check: HttpCheck

    def __init__(self, check: HttpCheck, loop: asyncio.AbstractEventLoop, done: Done) -> None:
        super().__init__(check, loop, done)
        self._answer = bytearray()
        self._searched = 0

    def connected(self) -> None:
        self.send(self.check.request())

    def received(self, data: bytes) -> None:
        self._answer += data
        while True:
            answer = self._answer
            if not answer.startswith(_MAGIC[: len(answer)]):
                self.finish(Result.FAILURE, f"not HTTP: {bytes(answer[:20])!r}")
                return
            end = _HEADERS_END.search(answer, max(0, self._searched - 2))
            if end is None:
                self._searched = len(answer)
                return
            line = _STATUS_LINE.match(answer)
            if line is None:
                self.finish(Result.FAILURE, f"not an HTTP status line: {bytes(answer[:40])!r}")
                return
            status = int(line.group(1))
            if status >= 200 or status == 101:
                self._judge(status)
                return
            del answer[: end.end()]
            self._searched = 0

    def _judge(self, status: int) -> None:
        if status in self.check.status:
            self.finish(Result.SUCCESS)
        else:
            expected = ", ".join(str(good) for good in sorted(self.check.status))
            self.finish(Result.FAILURE, f"HTTP status {status}, expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCheck(Check):
    path: str = "/"
    status: frozenset[int] = frozenset((200,))
    host: str | None = None  # for the Host field; the endpoint unless given

    def __post_init__(self) -> None:
        super(
            HttpCheck, self
        ).__post_init__()  # slots: a bare super() would mean the class before they were added
        object.__setattr__(self, "status", frozenset(self.status))
        if not (self.path.startswith("/") and _TEXT.fullmatch(self.path)):
            raise ValueError(f"{self.path!r} is not a path for an HTTP request")
        if self.host is not None and not _TEXT.fullmatch(self.host):
            raise ValueError(f"{self.host!r} is not a host name")

    def request(self) -> bytes:
        address, port = self.endpoint
        host = self.host or (f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
        lines = (f"GET {self.path} HTTP/1.1", f"Host: {host}", "User-Agent: lbd", "Connection: close", "", "")
        return "\r\n".join(lines).encode()

    def probe(self, loop: asyncio.AbstractEventLoop, done: Done) -> HttpProbe:
        return HttpProbe(self, loop, done)


CHECK = HttpCheck
