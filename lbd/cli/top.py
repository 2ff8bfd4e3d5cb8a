# SPDX-License-Identifier: Apache-2.0
"""`lbd top`: rates, live. On a terminal redrawn by rich; otherwise one plain page after another."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from lbd.cli.client import Client
from lbd.cli.command import Commands, client, print_json
from lbd.cli.outcome import DONE, USAGE, Failure
from lbd.cli.table import duration, quantity, table

if TYPE_CHECKING:
    from rich.console import RenderableType

SORT = {"in": "pps in", "out": "pps out", "conns": "connections per second", "active": "connections now"}


def add(commands: Commands) -> None:
    c = commands.add("top", "show rates of services, workers and drops, live", run)
    c.add_argument("-n", "--iterations", type=int, metavar="N", help="pages (no end; 1 without a terminal)")
    c.add_argument(
        "-d", "--delay", type=float, default=1.0, metavar="SECONDS", help="between pages (%(default)s)"
    )
    c.add_argument("--sort", choices=SORT, default="in", help="services by (%(default)s)")
    c.add_argument("--real-servers", action="store_true", help="a line for each real server, too")


class Sample(NamedTuple):
    """All that one page is made of, at one moment."""

    at: float
    status: dict[str, Any]
    services: list[dict[str, Any]]
    real_servers: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    drops: list[dict[str, Any]]


class Page(NamedTuple):
    head: str
    tables: list[tuple[tuple[str, ...], list[tuple[object, ...]]]]
    problems: list[str]

    def plain(self) -> str:
        parts = [self.head, *(table(titles, rows) for titles, rows in self.tables if rows)]
        return "\n\n".join([*parts, *(["\n".join(self.problems)] if self.problems else [])])


def take(api: Client, real_servers: bool) -> Sample:
    return Sample(
        time.monotonic(),
        api.get("/v1/status"),
        api.get("/v1/services")["services"],
        api.get("/v1/real-servers")["real_servers"] if real_servers else [],
        api.get("/v1/workers")["workers"],
        api.get("/v1/drops")["drops"],
    )


# -- from samples to a page ----------------------------------------------------------------------------------


class Rates:
    """Per second, between two samples' rows; a row that is new, or began anew, has none yet."""

    def __init__(self, before: dict[str, Any] | None, now: dict[str, Any], seconds: float) -> None:
        self._before = before
        self._now = now
        self._seconds = seconds

    def __getitem__(self, key: str) -> float:
        if self._before is None or self._seconds <= 0:
            return 0.0
        return max(0.0, float(self._now[key] - self._before[key])) / self._seconds


def page(before: Sample, now: Sample, sort: str = "in") -> Page:
    s = now.status
    conns = s["connections"]
    received = rates(before.workers, now.workers, ("number",), now.at - before.at)
    dropped = rates(before.drops, now.drops, ("reason",), now.at - before.at)
    head = (
        f"lbd {s['version']}  up {duration(s['uptime'])}  {s['state']}  "
        f"workers {s['workers']['running']}/{s['workers']['total']}  "
        f"real servers {s['real_servers']['up']}/{s['real_servers']['total']} up  "
        f"connections {conns['ipv4'] + conns['ipv6']}  "
        f"received {quantity(sum(r['received_packets'] for r in received))} pps  "
        f"dropped {quantity(sum(r['packets'] for r in dropped))} pps"
    )
    tables = [service_table(before, now, sort), worker_table(before, now), drop_table(before, now)]
    return Page(head, tables, s["problems"])


def rates(
    before: list[dict[str, Any]], now: list[dict[str, Any]], key: tuple[str, ...], s: float
) -> list[Rates]:
    known = {tuple(row[k] for k in key): row for row in before}
    return [Rates(known.get(tuple(row[k] for k in key)), row, s) for row in now]


def traffic(row: dict[str, Any], r: Rates) -> tuple[object, ...]:
    return (
        row["active"],
        row["inactive"],
        quantity(r["connections"]),
        quantity(r["incoming_packets"]),
        quantity(r["outgoing_packets"]),
        quantity(8 * r["incoming_bytes"]),
        quantity(8 * r["outgoing_bytes"]),
    )


def service_table(before: Sample, now: Sample, sort: str) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    seconds = now.at - before.at
    order = {"in": "incoming_packets", "out": "outgoing_packets", "conns": "connections"}
    seen = list(zip(now.services, rates(before.services, now.services, ("name",), seconds), strict=True))
    seen.sort(key=lambda p: -p[0]["active"] if sort == "active" else -p[1][order[sort]])
    below: dict[str, list[tuple[object, ...]]] = {}
    for row, r in zip(
        now.real_servers,
        rates(before.real_servers, now.real_servers, ("service", "address"), seconds),
        strict=True,
    ):
        line = (f"  {row['address']}", " ", row["state"], *traffic(row, r))
        below.setdefault(row["service"], []).append(line)
    rows: list[tuple[object, ...]] = []
    for row, r in seen:
        up = f"{row['real_servers']['up']}/{row['real_servers']['total']}"
        rows.append((row["name"], f"{row['protocol']} {row['address']}", up, *traffic(row, r)))
        rows += below.get(row["name"], [])
    titles = (
        "SERVICE",
        "ADDRESS",
        "UP",
        ">ACTIVE",
        ">INACTIVE",
        ">CONN/s",
        ">IN pps",
        ">OUT pps",
        ">IN bit/s",
    )
    return (*titles, ">OUT bit/s"), rows


def worker_table(before: Sample, now: Sample) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    rows: list[tuple[object, ...]] = []
    for w, r in zip(
        now.workers, rates(before.workers, now.workers, ("number",), now.at - before.at), strict=True
    ):
        busy, idle, received = r["busy_seconds"], r["idle_seconds"], r["received_packets"]
        rows.append(
            (
                w["number"],
                w["state"],
                f"{100 * busy / (busy + idle):.0f}%" if busy + idle else "-",
                quantity(received),
                f"{100 * min(1.0, r['misplaced'] / received):.0f}%" if received else "-",
                w["connections_ipv4"] + w["connections_ipv6"],
                w["half_open"],
                w["free_frames"],
            )
        )
    titles = (
        ">WORKER",
        "STATE",
        ">BUSY",
        ">RECEIVED pps",
        ">MISPLACED",
        ">CONNS",
        ">HALF-OPEN",
        ">FREE FRAMES",
    )
    return titles, rows


def drop_table(before: Sample, now: Sample) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    seen = zip(now.drops, rates(before.drops, now.drops, ("reason",), now.at - before.at), strict=True)
    rows = [(d["reason"], quantity(r["packets"]), d["packets"]) for d, r in seen if r["packets"]]
    return ("DROPPED BECAUSE", ">pps", ">TOTAL"), [tuple(row) for row in rows]


# -- showing -------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    if args.delay <= 0 or (args.iterations is not None and args.iterations < 1):
        raise Failure("-n and -d are more than 0", code=USAGE)
    terminal = sys.stdout.isatty() and not args.json
    pages = args.iterations or (None if terminal else 1)
    return live(args, pages) if terminal else plain(args, pages or 1)


def plain(args: argparse.Namespace, pages: int) -> int:
    api = client(args)
    before = take(api, args.real_servers)
    for n in range(pages):
        time.sleep(args.delay)
        now = take(api, args.real_servers)
        shown = page(before, now, args.sort)
        if args.json:
            print_json({"head": shown.head, "tables": [as_rows(*t) for t in shown.tables]})
        else:
            print(("\n" if n else "") + shown.plain(), flush=True)
        before = now
    return DONE


def as_rows(titles: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[dict[str, object]]:
    return [dict(zip((t.removeprefix(">") for t in titles), row, strict=True)) for row in rows]


def live(args: argparse.Namespace, pages: int | None) -> int:
    from rich.console import Console
    from rich.live import Live

    api = client(args)
    before = take(api, args.real_servers)
    console = Console(no_color=bool(os.environ.get("NO_COLOR")))
    with Live(console=console, screen=pages is None, auto_refresh=False) as screen:
        while pages is None or pages > 0:
            time.sleep(args.delay)
            now = take(api, args.real_servers)
            screen.update(rendered(page(before, now, args.sort)), refresh=True)
            before = now
            pages = pages and pages - 1
    return DONE


def rendered(shown: Page) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(shown.head, style="bold")]
    parts += [Text(problem, style="red") for problem in shown.problems]
    for titles, rows in shown.tables:
        if rows:
            drawn = Table(box=None, pad_edge=False, header_style="reverse")
            for title in titles:
                drawn.add_column(title.removeprefix(">"), justify="right" if title[0] == ">" else "left")
            for row in rows:
                drawn.add_row(*(Text(str(cell), style=STYLES.get(str(cell), "")) for cell in row))
            parts += [Text(""), drawn]
    return Group(*parts)


STYLES = {"up": "green", "running": "green", "down": "bold red", "drain": "yellow", "maint": "yellow"}
