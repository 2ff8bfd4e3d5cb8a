# SPDX-License-Identifier: Apache-2.0
"""Log lines as journald likes them on standard error: `<6>lbd.master.daemon: text`, one priority for every line.

Reference: sd-daemon(3). Nothing is ever logged per packet; whoever logs an event that may repeat keeps a `Pace`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = max((n for n in PRIORITY if n <= record.levelno), default=logging.DEBUG)
        prefix = f"<{PRIORITY[level]}>"
        text = f"{record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return "\n".join(prefix + line for line in text.split("\n"))


def set_up_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    for noisy in ("aiohttp", "pyroute2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Pace:
    """Says whether an event of this kind may be logged now: once in `gap` seconds, with how many were held back."""

    def __init__(self, gap: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.gap = gap
        self.clock = clock
        self._next: dict[object, float] = {}
        self._held: dict[object, int] = {}

    def allows(self, about: object) -> int:
        """0: not now. Else how many events this line stands for."""
        now = self.clock()
        self._held[about] = self._held.get(about, 0) + 1
        if now < self._next.get(about, now):
            return 0
        self._next[about] = now + self.gap
        return self._held.pop(about)
