# SPDX-License-Identifier: Apache-2.0
"""`lbd demo`: the testbed, lbd in it, real load through it, and what came of it.

    lbd demo         set up, load, show, judge, take down; exit code 0 only if everything worked
    lbd demo up      set up and leave it standing, with lbd running
    lbd demo down    take away what `up`, or a demo that was killed, left

On a terminal a table is kept up to date (rich); elsewhere each step prints a line when it has ended. Scope:
this file shows; what is done and judged is in lbd/testbed/scenario.py.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from lbd.cli.outcome import DONE, REFUSED, Failure
from lbd.cli.table import quantity, table

if TYPE_CHECKING:
    from rich.console import Group

    from lbd.testbed.daemon import Daemon
    from lbd.testbed.scenario import Scenario, Step
    from lbd.testbed.testbed import Testbed

PREFIX = "lbd-demo"
TOOLS = {
    "ip": "iproute2", "tc": "iproute2", "ethtool": "ethtool", "sysctl": "procps", "nginx": "nginx",
    "dnsmasq": "dnsmasq-base", "curl": "curl", "wrk": "wrk", "dnsperf": "dnsperf", "iperf3": "iperf3",
}  # fmt: skip
REFRESH = 0.5  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("up", "down"), help="leave it standing, or take it away")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes (%(default)s)")
    parser.add_argument("--servers", type=int, default=3, metavar="N", help="real servers (%(default)s)")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="length of each load (%(default)s)")
    parser.add_argument("--prefix", default=PREFIX, help="of the namespaces' names (%(default)s)")
    parser.add_argument("--plain", action="store_true", help="lines instead of a table, also on a terminal")


def run(args: argparse.Namespace) -> int:
    from lbd.testbed import Testbed, TestbedError

    if os.geteuid():
        raise Failure("lbd demo makes network namespaces, which takes root", "sudo lbd demo")
    testbed = Testbed(args.prefix, workers=args.workers, servers=args.servers)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through the cleaning up
    try:
        if args.action == "down":
            testbed.down()
            return DONE
        missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
        if missing:
            raise Failure("programs that the demo drives are missing", f"apt-get install {' '.join(missing)}")
        return stand(testbed) if args.action == "up" else demonstrate(testbed, args)
    except TestbedError as e:
        raise Failure(str(e)) from None


def stand(testbed: "Testbed") -> int:
    testbed.up()
    try:
        daemon = testbed.lbd()
    except BaseException:
        testbed.down()
        raise
    prefix = testbed.prefix
    print(describe(testbed))
    print(
        f"""Try:
  ip netns exec {prefix}-client curl http://192.0.2.10/
  ip netns exec {prefix}-client wrk -c 64 -d 5 'http://[2001:db8:1::10]/'
  {sys.argv[0]} -s {daemon.control} top
  {sys.argv[0]} -s {daemon.control} service
Configuration {daemon.config_file}, log {daemon.log_file}
Take it away: {sys.argv[0]} demo down{"" if prefix == PREFIX else f" --prefix {prefix}"}"""
    )
    return DONE


def describe(testbed: "Testbed") -> str:
    client, lb = testbed.client.name, testbed.balancer.name
    rows: list[tuple[object, ...]] = [
        ("client", client, "192.0.2.100, 2001:db8:1::100"),
        (
            "lbd",
            lb,
            f"{testbed.vip(4)}, {testbed.vip(6)}: tcp 80, udp 53, tcp 5201; {testbed.workers} workers",
        ),
    ]
    rows += [("real server", s.ns.name, f"{s.host.address4}, {s.host.address6}") for s in testbed.servers]
    return table(["", "namespace", "addresses"], rows) + "\n"


def demonstrate(testbed: "Testbed", args: argparse.Namespace) -> int:
    from lbd.testbed.scenario import Scenario

    started = time.monotonic()
    with testbed:
        print(describe(testbed))
        daemon = testbed.lbd()
        print(f"lbd is ready after {time.monotonic() - started:.1f} s\n", flush=True)
        scenario = Scenario(testbed, daemon, args.seconds)
        if sys.stdout.isatty() and not args.plain:
            run_live(scenario)
        else:
            run_plain(scenario)
        problems = scenario.problems()
        print(summary(scenario))
    if problems:
        print("demo: FAILED\n" + "\n".join(f"  {problem}" for problem in problems))
        return REFUSED
    print(f"demo: everything worked ({time.monotonic() - started:.0f} s)")
    return DONE


# --- while it runs --------------------------------------------------------------------------------


def run_plain(scenario: "Scenario") -> None:
    for step in scenario.steps:
        outcome = scenario.run(step)
        words = [outcome.amount, outcome.rate, outcome.latency, f"{outcome.errors} errors"]
        print(f"{step.title}, IPv{step.family}: " + ", ".join(w for w in words if w), flush=True)
        for problem in outcome.problems:
            print(f"    {problem}", flush=True)
    print()


def run_live(scenario: "Scenario") -> None:
    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(), auto_refresh=False)
    rates = Rates(scenario.daemon)
    with live:
        for step in scenario.steps:
            thread = threading.Thread(target=scenario.run, args=(step,), daemon=True)
            thread.start()
            while thread.is_alive():
                live.update(live_view(scenario, step, rates), refresh=True)
                thread.join(REFRESH)
        live.update(live_view(scenario, None, rates), refresh=True)


class Rates:
    """Packets per second of each worker, between two calls."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._last: dict[int, tuple[float, int, int]] = {}

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        from lbd.testbed.scenario import received, sent

        rows = []
        for worker in self._daemon.get("/v1/workers")["workers"]:
            now, rx, tx = time.monotonic(), received(worker), sent(worker)
            then, rx_then, tx_then = self._last.get(worker["number"], (now - 1, rx, tx))
            self._last[worker["number"]] = (now, rx, tx)
            seconds = max(now - then, 0.001)
            connections = worker["connections_ipv4"] + worker["connections_ipv6"]
            rows.append(
                (
                    str(worker["number"]),
                    f"{quantity((rx - rx_then) / seconds)}/s",
                    f"{quantity((tx - tx_then) / seconds)}/s",
                    f"{connections:,}",
                    quantity(worker["misplaced"]),
                )
            )
        return rows


def live_view(scenario: "Scenario", running: "Step | None", rates: Rates) -> "Group":
    from rich.console import Group
    from rich.table import Table

    # without lines and as narrow as it is, it fits a terminal of 80 columns and 24 lines
    loads, workers = (Table(box=None, padding=(0, 1, 0, 0), pad_edge=False) for _ in range(2))
    for name in ("", "load", "amount", "rate", "latency", "errors"):
        loads.add_column(name, justify="left" if name in ("", "load") else "right", no_wrap=True)
    for step in scenario.steps:
        name = f"{step.title}, IPv{step.family}"
        if step.outcome is None:
            style = "bold" if step is running else "dim"
            loads.add_row("▶" if step is running else " ", f"[{style}]{name}[/]", "", "", "", "")
        else:
            o = step.outcome
            mark = "[red]✗[/]" if o.problems else "[green]✓[/]"
            loads.add_row(mark, name, o.amount, o.rate, o.latency, str(o.errors))
    for name in ("worker", "received", "sent", "connections", "owned by another"):
        workers.add_column(name, justify="right", min_width=10)
    try:
        for row in rates.rows():
            workers.add_row(*row)
    except Exception as e:  # the balancer does not answer at this moment: the loads will tell
        workers.add_row("", str(e), "", "", "")
    return Group(loads, "", workers, "")


# --- at the end -----------------------------------------------------------------------------------


def summary(scenario: "Scenario") -> str:
    from lbd.testbed.scenario import received, sent

    daemon = scenario.daemon
    servers: list[dict[str, Any]] = daemon.get("/v1/real-servers")["real_servers"]
    workers: list[dict[str, Any]] = daemon.get("/v1/workers")["workers"]
    drops: list[dict[str, Any]] = [d for d in daemon.get("/v1/drops")["drops"] if d["packets"]]

    def figures(w: dict[str, Any]) -> list[str]:
        connections = w["connections_ipv4"] + w["connections_ipv6"]
        values = (received(w), sent(w), w["misplaced"], w["handed_out"], w["handed_in"], connections)
        return [f"{value:,}" for value in values]

    rows = []
    for server, counts in zip(scenario.testbed.servers, scenario.served().values(), strict=True):
        addresses = (f"{server.host.address4}:", f"[{server.host.address6}]:")
        own = [s for s in servers if s["address"].startswith(addresses)]

        def by(service: str, own: list[dict[str, Any]] = own) -> str:
            return f"{sum(s['connections'] for s in own if s['service'].startswith(service)):,}"

        octets = sum(s["incoming_bytes"] + s["outgoing_bytes"] for s in own)
        rows.append((server.name, f"{counts.requests:,}", by("web"), by("dns"), by("iperf"), quantity(octets, "B")))
    errors = sum(step.outcome.errors for step in scenario.steps if step.outcome)
    parts = [
        "Real servers (requests as nginx counted them, connections as lbd did)",
        table(["", ">HTTP requests", ">connections: web", ">dns", ">iperf3", ">bytes"], rows),
        "",
        "Workers",
        table(
            ["", ">received", ">sent", ">owned by another", ">handed over", ">taken over", ">connections"],
            [(w["number"], *figures(w)) for w in workers],
        ),
        "",
        f"Errors: {errors:,}",
        "Drops: " + (", ".join(f"{d['reason']} {d['packets']:,}" for d in drops) or "none"),
        "",
    ]
    return "\n".join(parts)
