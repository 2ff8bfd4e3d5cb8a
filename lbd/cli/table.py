# SPDX-License-Identifier: Apache-2.0
"""Plain text for people: aligned tables, durations, large numbers, points in time. No colour, no terminal
needed.
"""

import time
from collections.abc import Iterable, Sequence

GAP = "  "


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A title starting with ">" aligns its column to the right; the last column is not padded."""
    cells = [[title.removeprefix(">") for title in titles], *([_cell(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    right = [title.startswith(">") for title in titles]
    lines = []
    for row in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def pairs(items: Iterable[tuple[str, object]]) -> str:
    """Names and what they are, below each other."""
    known = list(items)
    width = max((len(name) for name, _ in known), default=0)
    return "\n".join(f"{name.ljust(width)}{GAP}{value}" for name, value in known)


def duration(seconds: float) -> str:
    """950ms 12.3s 4m05s 3h12m 5d03h: two figures' worth."""
    if seconds < 0:
        return "0s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def quantity(value: float, unit: str = "") -> str:
    """Three figures and a decimal prefix: 0, 12, 1.23k, 45.6M."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5 or prefix == "P":
            break
        value /= 1000
    if prefix == "" and (value == int(value) or abs(value) >= 100):
        figures = f"{value:.0f}"
    else:
        figures = (
            f"{value:.0f}"
            if abs(value) >= 99.95
            else f"{value:.1f}"
            if abs(value) >= 9.995
            else f"{value:.2f}"
        )
    return f"{figures}{prefix}{unit}"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
