# SPDX-License-Identifier: Apache-2.0
"""What instructions per packet let one expect of a machine: computed, not measured. README.md, "On bare metal", has the formula."""

import math
from collections.abc import Iterator
from typing import Any

GHZ, IPC = 3.0, (1.0, 2.0)
CORES = (1, 2, 4, 8, 16)
GBE = (10, 25, 100)
FRAMES = {"64 bytes": 64.0, "IMIX": (7 * 64 + 4 * 594 + 1518) / 12}
WIRE = 20  # preamble, start delimiter, gap


def line_rate(gbe: float, frame: float) -> float:
    """Mpps."""
    return gbe * 1e3 / ((frame + WIRE) * 8)


def mpps(instructions: float, cores: int) -> tuple[float, float]:
    """Least and most."""
    each = cores * GHZ * 1e3 / instructions
    return each * IPC[0], each * IPC[1]


def span(least: float, most: float) -> str:
    return f"{least:.1f}-{most:.1f}"


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown tables of the cases that have a figure, of the last NIC."""
    nic = rows[-1]["params"]["nic"]
    have = [r for r in rows if r["median"] and r["params"]["nic"] == nic and r["case"] != "forward"]
    cores = " | ".join(f"{n} core{'s' * (n > 1)}" for n in CORES)
    yield f"| computed for {nic}: Mpps at {GHZ:g} GHz, IPC {IPC[0]:g} to {IPC[1]:g} | {cores} |"
    yield "|---" * (len(CORES) + 1) + "|"
    for r in have:
        yield f"| {r['params']['system']}, {r['case']} | " + " | ".join(span(*mpps(r["median"], n)) for n in CORES) + " |"
    yield ""
    heads = [(gbe, name) for name in FRAMES for gbe in GBE]
    yield f"| computed for {nic}: cores for line rate | " + " | ".join(
        f"{gbe} GbE, {name} ({line_rate(gbe, FRAMES[name]):.2f} Mpps)" for gbe, name in heads) + " |"
    yield "|---" * (len(heads) + 1) + "|"
    for r in have:
        least, most = mpps(r["median"], 1)
        rates = [line_rate(gbe, FRAMES[name]) for gbe, name in heads]
        cells = [f"{math.ceil(rate / most)}-{math.ceil(rate / least)}" for rate in rates]
        yield f"| {r['params']['system']}, {r['case']} | " + " | ".join(cells) + " |"
