# SPDX-License-Identifier: Apache-2.0
"""What `lbd demo` does with the testbed: a list of loads, what each must achieve, and the balance of all of
them.

A step runs one load to its end and returns an Outcome; its problems are sentences, and none means that it
worked. Judgement comes from both ends: what the client counted (errors, lost queries) and what nginx counted
on each real server (the spread). The balancer's own figures are shown, and judged where they are the matter:
that every worker received packets, and every real server connections.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lbd.testbed.daemon import Daemon
from lbd.testbed.server import Counts
from lbd.testbed.testbed import FAMILIES, Testbed

SPREAD_LIMIT = 0.01  # between the real servers' shares of rr, of their mean
CURLS = 30
WRK_CONNECTIONS = 64
DNS_OUTSTANDING = 10_000


@dataclass(frozen=True)
class Outcome:
    amount: str
    rate: str
    latency: str
    errors: int
    problems: list[str] = field(default_factory=list)


@dataclass
class Step:
    title: str
    family: int
    run: Callable[[], Outcome]
    outcome: Outcome | None = None


class Scenario:
    def __init__(self, testbed: Testbed, daemon: Daemon, seconds: int = 3) -> None:
        self.testbed, self.daemon, self.seconds = testbed, daemon, seconds
        self.steps = [
            Step(title, family, functools.partial(run, family, *more))
            for title, run, *more in self._loads()
            for family in FAMILIES
        ]
        self._at_start = testbed.counts()

    def _loads(self) -> list[tuple[Any, ...]]:
        return [
            ("curl", self._curl),
            ("wrk, keep-alive", self._wrk, False),
            ("wrk, Connection: close", self._wrk, True),
            (f"dnsperf, {DNS_OUTSTANDING:,} at once", self._dnsperf),
            ("iperf3, to the server", self._iperf3, False),
            ("iperf3, from the server", self._iperf3, True),
        ]

    def run(self, step: Step) -> Outcome:
        """Run it. What a load can't do at all is a problem, too, and the rest goes on."""
        try:
            step.outcome = step.run()
        except Exception as e:
            step.outcome = Outcome("", "", "", 1, [str(e)])
        return step.outcome

    def _curl(self, family: int) -> Outcome:
        answers = [self.testbed.curl(family) for _ in range(CURLS)]
        failed = [a for a in answers if a.status != 200]
        names = {a.body.strip() for a in answers if a.status == 200}
        problems = (
            [f"{len(failed)} of {CURLS} failed: {failed[0].error or failed[0].status}"] if failed else []
        )
        if names != {server.name for server in self.testbed.servers}:
            problems.append(f"answers came from {', '.join(sorted(names)) or 'nobody'} only")
        longest = max(a.seconds for a in answers)
        return Outcome(f"{CURLS} requests", "", f"max {milliseconds(longest)}", len(failed), problems)

    def _wrk(self, family: int, close: bool) -> Outcome:
        before = self.testbed.counts()
        seen = self.testbed.wrk(family, connections=WRK_CONNECTIONS, seconds=self.seconds, close=close)
        counts = difference(self.testbed.counts(), before)
        problems = []
        if seen.errors:
            problems.append(
                f"{seen.connect_errors} connect, {seen.read_errors} read, {seen.write_errors} write, "
                f"{seen.status_errors} status errors, {seen.timeouts} timeouts"
            )
        if not seen.requests:
            problems.append("no request was answered")
        # Only where each request is a connection do shares of connections mean something: rr deals out these
        if close and (share := spread({name: c.connections for name, c in counts.items()})) > SPREAD_LIMIT:
            problems.append(f"connections differ by {share:.1%} between real servers")
        return Outcome(
            f"{seen.requests:,} requests",
            f"{seen.rate:,.0f} /s",
            f"p99 {milliseconds(seen.p99)}",
            seen.errors,
            problems,
        )

    def _dnsperf(self, family: int) -> Outcome:
        queries = 2 * DNS_OUTSTANDING * self.seconds
        seen = self.testbed.dnsperf(family, queries=queries, outstanding=DNS_OUTSTANDING, clients=100)
        problems = [f"{seen.lost} queries lost"] if seen.lost else []
        if seen.failed:
            problems.append(f"{seen.failed} answers with an error")
        latency = f"mean {milliseconds(seen.mean_latency)}"
        return Outcome(
            f"{seen.completed:,} answers", f"{seen.rate:,.0f} /s", latency, seen.lost + seen.failed, problems
        )

    def _iperf3(self, family: int, reverse: bool) -> Outcome:
        seen = self.testbed.iperf3(family, seconds=self.seconds, reverse=reverse)
        amount = seen.bits_per_second * seen.seconds / 8 / 1e6
        problems = [] if amount else ["nothing was received"]
        return Outcome(
            f"{amount:,.0f} MB",
            f"{seen.bits_per_second / 1e9:.2f} Gbit/s",
            f"{seen.retransmits} retrans." if seen.retransmits else "",
            0,
            problems,
        )

    # --- the whole --------------------------------------------------------------------------------

    def served(self) -> dict[str, Counts]:
        """What nginx counted on each real server during this scenario."""
        return difference(self.testbed.counts(), self._at_start)

    def problems(self) -> list[str]:
        """What did not work, over all steps and in the balancer; empty if all did."""
        found = []
        for step in self.steps:
            if step.outcome is None:
                found.append(f"{step.title}, IPv{step.family}: not run")
            else:
                found += [f"{step.title}, IPv{step.family}: {p}" for p in step.outcome.problems]
        for worker in self.daemon.get("/v1/workers")["workers"]:
            if not received(worker):
                found.append(f"worker {worker['number']} received no packet")
            if worker["restarts"]:
                found.append(f"worker {worker['number']} was restarted {worker['restarts']} times")
        for server in self.daemon.get("/v1/real-servers")["real_servers"]:
            # iperf goes by the source address, so that one real server has it all
            if not server["connections"] and not server["service"].startswith("iperf"):
                found.append(f"{server['service']}: no connection to {server['address']}")
        found += self.daemon.get("/v1/status")["problems"]
        return found


def difference(after: dict[str, Counts], before: dict[str, Counts]) -> dict[str, Counts]:
    return {name: counts - before[name] for name, counts in after.items()}


def spread(counts: dict[str, int]) -> float:
    """Between the largest and the smallest, as a share of their mean."""
    mean = sum(counts.values()) / len(counts)
    return (max(counts.values()) - min(counts.values())) / mean if mean else 1.0


def received(worker: dict[str, Any]) -> int:
    return sum(queue["rx_packets"] for queue in worker["queues"])


def sent(worker: dict[str, Any]) -> int:
    return sum(queue["tx_packets"] for queue in worker["queues"])


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
