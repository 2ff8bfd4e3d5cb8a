# SPDX-License-Identifier: Apache-2.0
"""`lbd status`; with --check, for monitoring and keepalived's track_script, the exit code tells."""

import argparse
from typing import Any

from lbd.cli.command import Commands, client, show
from lbd.cli.outcome import DEGRADED, DONE
from lbd.cli.table import count, duration, moment, pairs


def add(commands: Commands) -> None:
    c = commands.add(
        "status",
        "show how the daemon is",
        run,
        more="With --check the exit code is 0 only if it is ready and nothing is degraded, else 4.",
    )
    c.add_argument("--check", action="store_true", help="exit code 4 if degraded or not ready")


def run(args: argparse.Namespace) -> int:
    status = client(args).get("/v1/status")
    show(args, status, text)
    degraded = not status["ready"] or status["problems"]
    return DEGRADED if args.check and degraded else DONE


def text(s: dict[str, Any]) -> str:
    config, workers, services, real = s["config"], s["workers"], s["services"], s["real_servers"]
    conns, frames = s["connections"], s["frames"]
    since = f"since {moment(s['started'])} ({duration(s['uptime'])})"
    took_over = ", took over from a predecessor" if s["took_over"] else ""
    rejected = f", {config['rejected']} refused" if config["rejected"] else ""
    huge = ", huge pages" if frames["hugepages"] else ""
    return pairs(
        [
            ("lbd", f"{s['version']}, {s['state']} {since}, pid {s['pid']}{took_over}"),
            ("ready", "yes" if s["ready"] else "no"),
            ("config", f"{config['path']}, {count(config['reloads'], 'reload')}{rejected}"),
            (
                "workers",
                f"{workers['running']} of {workers['total']} running, {s['poll']} polling, "
                f"{count(workers['restarts'], 'restart')}{places(workers['places'])}",
            ),
            ("services", f"{services['up']} of {services['total']} up"),
            ("real servers", ", ".join(f"{real[k]} {k}" for k in ("up", "down", "drain", "maint"))),
            (
                "connections",
                f"{conns['ipv4']} of {conns['capacity_ipv4']} IPv4, "
                f"{conns['ipv6']} of {conns['capacity_ipv6']} IPv6",
            ),
            ("frames", f"{frames['free']} of {frames['total']} free{huge}"),
            *(
                (
                    "interface",
                    f"{i['name']} {'up' if i['up'] else 'DOWN'}, {count(i['queues'], 'queue')}, {i['mode']}{node(i['node'])}",
                )
                for i in s["interfaces"]
            ),
            *(("problem", problem) for problem in s["problems"]),
            *(("note", note) for note in s.get("notes", ())),
        ]
    )


def node(number: int | None) -> str:
    return "" if number is None else f", NUMA node {number}"


def places(workers: list[dict[str, Any]]) -> str:
    """Cores of pinned workers by their NUMA nodes."""
    found: dict[int | None, list[str]] = {}
    for w in workers:
        if w["core"] is not None:
            found.setdefault(w["node"], []).append(str(w["core"]))
    each = (f", on {'cores' if len(cores) > 1 else 'core'} {' '.join(cores)}{node(n)}" for n, cores in found.items())
    return "".join(each)
