#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make bench-control: what many services cost the master. Needs root; a real daemon with two workers, in namespaces of its own.

    start     from the process's start to READY=1, and to the first connection through lbd
    change    one real server's weight over the API, and a health check's verdict: until every worker has applied it
    reload    one weight differs in the file
    scrape    /metrics: CPU time of the event loop, and how long the loop answered nobody else
    list      /v1/real-servers and /v1/services, `lbd service -j`
    memory    resident, of the master, the most so far; share of a core that it takes idle, its health checks included

Beside each stands a floor of the same run, since absolute figures of a shared machine drift: what Python takes to import the same
modules and parse the same file with tomllib, a request that does nothing, prometheus-client's text of as many series, json.dumps
of the same answer. Method: docs/performance.md. Results: bench/out/control.json.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import control_case as case  # noqa: E402
from bench.compare import machine  # noqa: E402
from bench.control_case import Row  # noqa: E402
from bench.control_site import NICE, Site, Watched, vip  # noqa: E402
from bench.priority import prefer  # noqa: E402
from lbd.testbed.netns import TestbedError  # noqa: E402

GOALS = {"start": 2.0, "reload": 1.0, "change": 5.0, "scrape": 50.0, "memory": 300.0}


class Run:
    def __init__(self, site: Site, args: argparse.Namespace) -> None:
        self.site, self.args = site, args
        self.params = self.sized(args.services)
        self.text = self.config(args.services)
        self.rows: list[Row] = []

    def sized(self, services: int) -> dict[str, Any]:
        args = self.args
        each = {"interval": args.interval, "scheduler": args.scheduler}
        return {"services": services, "real_servers": services * args.servers, **each}

    def config(self, services: int) -> str:
        return self.site.config(services, self.args.servers, self.args.interval, self.args.scheduler)

    def add(self, name: str, unit: str, samples: list[float], **more: Any) -> None:
        row = Row(name, unit, samples, params=more.pop("params", self.params), **more)
        self.rows.append(row)
        print(line(row.plain()), flush=True)

    def everything(self) -> None:
        self.starts()
        with self.site.daemon(self.text) as daemon:
            self.changes(daemon)
            self.reloads(daemon)
            self.lists(daemon)
            scrapes = [case.ask(daemon, "/metrics") for _ in range(self.args.runs)]
            count = case.series(scrapes[0].text)
            self.scrape("of all", scrapes, count, self.params, None)
            self.idle(daemon)
            self.memory(daemon)
            self.everything_differs(daemon)
        self.few()

    def starts(self) -> None:
        ready, cpu, first, stops, floor = [], [], [], [], []
        file = self.site.directory / "lbd.toml"
        for _ in range(self.args.runs):
            with self.site.daemon(self.text) as daemon:
                first.append(self.site.dial(vip(self.args.services - 1), 20) - daemon.started)
                ready.append(daemon.ready)
                cpu.append(daemon.ready_cpu)
            stops.append(daemon.stopping)
            floor.append(case.parse_floor(file)["whole"])
        peer = {"peer": "imports and tomllib alone", "peer_samples": floor}
        self.add("start: ready", "s", ready, goal=GOALS["start"], **peer)
        self.add("start: CPU time of the master", "s", cpu)
        self.add("start: first connection", "s", first, goal=GOALS["start"], **peer)
        self.add("stop", "s", stops)

    def changes(self, daemon: Watched) -> None:
        found, idle = case.weight_by_api(daemon, self.args.services, self.args.servers, self.args.changes)
        self.add("change: weight by API", "ms", found, goal=GOALS["change"], peer="empty request", peer_samples=idle)
        self.add("change: health verdict", "ms", case.health(self.site, daemon, self.args.changes), goal=GOALS["change"])

    def reloads(self, daemon: Watched) -> None:
        file = self.site.directory / "lbd.toml"
        number = self.args.services * self.args.servers // 2
        answers, effects = case.reload(daemon, file, self.text, number, self.args.servers, self.args.runs)
        floor = [case.parse_floor(file)["parse"] for _ in range(self.args.runs)]
        self.add("reload: answered", "s", answers, goal=GOALS["reload"], peer="tomllib alone", peer_samples=floor)
        self.add("reload: effect", "s", effects, goal=GOALS["reload"], peer="tomllib alone", peer_samples=floor)

    def lists(self, daemon: Watched) -> None:
        for path in ("/v1/real-servers", "/v1/services", "/v1/status"):
            seen = [case.ask(daemon, path) for _ in range(self.args.runs)]
            floor = [case.dumps_floor(seen[0].text) for _ in seen]
            peer = {"peer": "json.dumps alone", "peer_samples": floor}
            self.add(f"list: {path}, loop", "ms", [a.loop for a in seen], **peer)
            self.add(f"list: {path}, blocked", "ms", [a.blocked for a in seen])
        self.add("list: lbd service -j", "ms", [case.command(daemon, "-j", "service") for _ in range(self.args.runs)])

    def scrape(self, what: str, seen: list[case.Answer], count: int, params: dict[str, Any], goal: float | None) -> None:
        params = {**params, "series": count}
        peer = {"peer": "prometheus-client", "peer_samples": [case.expose_peer(count) for _ in range(3)]}
        self.add(f"scrape {what}: loop", "ms", [a.loop for a in seen], goal=goal, params=params, **peer)
        self.add(f"scrape {what}: blocked", "ms", [a.blocked for a in seen], goal=goal, params=params)
        self.add(f"scrape {what}: answered", "ms", [a.wall for a in seen], params=params)

    def idle(self, daemon: Watched) -> None:
        self.add("idle: share of a core", "%", [case.loop_share(daemon, 5) * 100])

    def memory(self, daemon: Watched) -> None:
        floor = [case.parse_floor(self.site.directory / "lbd.toml")["resident"] / 1e6]
        peer = {"peer": "imports and tomllib alone", "peer_samples": floor}
        self.add("memory", "MB", [daemon.resident("VmHWM") / 1e6], goal=GOALS["memory"], **peer)

    def everything_differs(self, daemon: Watched) -> None:
        file, real_servers = self.site.directory / "lbd.toml", self.args.services * self.args.servers + 2
        took = [case.reload_all(daemon, file, self.text, real_servers) for _ in range(self.args.runs)]
        self.add("reload: every weight differs", "s", took)
        self.add("memory: after those reloads", "MB", [daemon.resident("VmHWM") / 1e6], goal=GOALS["memory"])

    def few(self) -> None:
        """As many services as make so many series."""
        series_each = 13 + 17 * self.args.servers
        services = max(1, self.args.series // series_each)
        with self.site.daemon(self.config(services)) as daemon:
            seen = [case.ask(daemon, "/metrics") for _ in range(self.args.runs)]
            count = case.series(seen[0].text)
            if not 0.9 * self.args.series < count < 1.1 * self.args.series + 2000:
                raise TestbedError(f"{count} series, {self.args.series} were meant")
            self.scrape(f"of {self.args.series}", seen, count, self.sized(services), GOALS["scrape"])


def line(row: dict[str, Any]) -> str:
    goal = "" if row["goal"] is None else f"goal {row['goal']:g}: {'met' if row['met'] else 'MISSED'}"
    peer = f"{row['ratio']:g} x {row['peer']} ({row['peer_median']:.2f})" if "peer" in row else ""
    figures = f"{row['median']:9.2f} {row['unit']:2}  ({row['min']:.2f}-{row['max']:.2f})"
    return f"{row['case']:34} {figures:36} {goal:20} {peer}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=2000)
    parser.add_argument("--servers", type=int, default=10, help="real servers of each")
    parser.add_argument("--interval", default="10s", help="between two health checks of a real server")
    parser.add_argument("--scheduler", default="wrr")
    parser.add_argument("--series", type=int, default=40_000, help="of the scrape that has a goal")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("-o", type=Path, default=ROOT / "bench/out/control.json")
    args = parser.parse_args()
    if os.geteuid():
        sys.exit("bench/control: needs root (network namespaces)")
    prefer(os.getpid(), nice=NICE)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("bench/control: ended by a signal"))
    with Site(f"lbdt-{os.getpid()}") as site:
        run = Run(site, args)
        run.everything()
    rows = [row.plain() | {"machine": machine()} for row in run.rows]
    args.o.parent.mkdir(parents=True, exist_ok=True)
    args.o.write_text(json.dumps(rows, indent=1) + "\n")
    missed = [row["case"] for row in rows if row["met"] is False]
    print(f"missed: {', '.join(missed) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
