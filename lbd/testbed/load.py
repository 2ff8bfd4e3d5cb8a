# SPDX-License-Identifier: Apache-2.0
"""What clients do: curl, wrk, dnsperf and iperf3, run to their end, and what they measured.

Each function takes the namespace to run in and returns a frozen record; a tool that fails raises
TestbedError. Errors that a tool counts (a failed request, a lost query) are figures of the record, not
exceptions.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbd.testbed.netns import Namespace, TestbedError

# wrk prints rounded figures for people; this gives exact ones, after the run, at no cost to it.
WRK_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  local figures = {requests = summary.requests, bytes = summary.bytes, microseconds = summary.duration,
    p50 = latency:percentile(50), p99 = latency:percentile(99), max = latency.max, connect = e.connect,
    read = e.read, write = e.write, status = e.status, timeout = e.timeout}
  for name, value in pairs(figures) do io.write(string.format('@%s %d\\n', name, value)) end
end
"""


@dataclass(frozen=True)
class Curl:
    status: int
    body: str
    seconds: float
    error: str  # empty if there was none


@dataclass(frozen=True)
class Wrk:
    requests: int
    seconds: float
    received: int  # bytes
    connect_errors: int
    read_errors: int
    write_errors: int
    status_errors: int
    timeouts: int
    p50: float  # seconds
    p99: float
    longest: float

    @property
    def errors(self) -> int:
        return self.connect_errors + self.read_errors + self.write_errors + self.status_errors + self.timeouts

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Dnsperf:
    sent: int
    completed: int
    lost: int
    failed: int  # answered with something else than NOERROR
    seconds: float
    mean_latency: float
    max_latency: float

    @property
    def rate(self) -> float:
        return self.completed / self.seconds


@dataclass(frozen=True)
class Iperf:
    bits_per_second: float  # as the receiver counted
    seconds: float
    retransmits: int
    lost_percent: float  # UDP
    client_cpu: float  # percent of a core, of the iperf3 client


def url(address: str, port: int = 80, path: str = "/") -> str:
    return f"http://{f'[{address}]' if ':' in address else address}:{port}{path}"


def curl(ns: Namespace, target: str, *options: str, timeout: float = 5) -> Curl:
    """One request. A request that fails is a Curl with its error, status 0."""
    out = ns.run(
        ["curl", "-sS", "--max-time", f"{timeout:g}", "-w", "\n%{json}", *options, target],
        timeout + 10,
        check=False,
    )
    body, _, report = out.rpartition("\n")
    try:
        seen = json.loads(report)
    except ValueError:
        raise TestbedError(f"curl said {out!r}") from None
    return Curl(int(seen["http_code"]), body, float(seen["time_total"]), seen["errormsg"] or "")


def wrk(
    ns: Namespace,
    target: str,
    directory: Path,
    connections: int = 64,
    seconds: int = 5,
    close: bool = False,
    threads: int = 1,
) -> Wrk:
    """`close`: one connection per request (Connection: close). `directory` is for its script."""
    script = directory / "wrk.lua"
    script.write_text(WRK_DONE)
    argv = [
        "wrk",
        "-t",
        str(threads),
        "-c",
        str(connections),
        "-d",
        f"{seconds}s",
        "--timeout",
        "5s",
        "-s",
        str(script),
    ]
    out = ns.run([*argv, *(["-H", "Connection: close"] if close else []), target], timeout=seconds + 30)
    v = {name: int(value) for name, value in re.findall(r"^@(\w+) (\d+)$", out, re.MULTILINE)}
    if "requests" not in v:
        raise TestbedError(f"wrk said {out!r}")
    return Wrk(
        requests=v["requests"],
        seconds=v["microseconds"] / 1e6,
        received=v["bytes"],
        connect_errors=v["connect"],
        read_errors=v["read"],
        write_errors=v["write"],
        status_errors=v["status"],
        timeouts=v["timeout"],
        p50=v["p50"] / 1e6,
        p99=v["p99"] / 1e6,
        longest=v["max"] / 1e6,
    )


def dnsperf(
    ns: Namespace,
    server: str,
    name: str,
    directory: Path,
    queries: int = 10000,
    outstanding: int = 100,
    clients: int = 10,
    port: int = 53,
    rate: int = 0,
    timeout: float = 5,
) -> Dnsperf:
    """`queries` questions for the addresses of `name`, A and AAAA in turn, `outstanding` of them at a time,
    from `clients` sockets. `directory` is for the file of questions."""
    questions = directory / "questions.txt"
    questions.write_text("".join(f"{name} {('A', 'AAAA')[n % 2]}\n" for n in range(queries)))
    argv = ["dnsperf", "-s", server, "-p", str(port), "-d", str(questions), "-n", "1", "-q", str(outstanding)]
    argv += ["-c", str(clients), "-t", f"{timeout:g}", "-b", "4096", *(["-Q", str(rate)] if rate else [])]
    out = ns.run(argv, timeout=120)

    def figure(label: str) -> float:
        found = re.search(rf"{label}:?\s+([\d.]+)", out)
        if not found:
            raise TestbedError(f"dnsperf said {out!r}")
        return float(found[1])

    completed = int(figure("Queries completed"))
    good = int(figure("NOERROR")) if completed else 0
    latency = re.search(r"Average Latency \(s\):\s+([\d.]+) \(min [\d.]+, max ([\d.]+)\)", out)
    return Dnsperf(
        sent=int(figure("Queries sent")),
        completed=completed,
        lost=int(figure("Queries lost")),
        failed=completed - good,
        seconds=figure(r"Run time \(s\)"),
        mean_latency=float(latency[1]) if latency else 0,
        max_latency=float(latency[2]) if latency else 0,
    )


def iperf3(
    ns: Namespace,
    server: str,
    seconds: int = 3,
    reverse: bool = False,
    streams: int = 1,
    udp: bool = False,
    rate: str = "",
    port: int = 5201,
    prefix: tuple[str, ...] = (),
) -> Iperf:
    """Bulk data to the server; `reverse`: from it. `rate` as iperf3 writes it ("100M"); without, as fast as
    it goes."""
    argv = [*prefix, "iperf3", "-J", "-c", server, "-p", str(port), "-t", str(seconds), "-P", str(streams)]
    argv += ["-R"] * reverse + ["-u"] * udp + (["-b", rate] if rate else []) + ["--connect-timeout", "3000"]
    out = ns.run(argv, timeout=seconds + 30, check=False)
    try:
        report: dict[str, Any] = json.loads(out)
    except ValueError:
        raise TestbedError(f"iperf3 said {out!r}") from None
    if report.get("error"):
        raise TestbedError(f"iperf3: {report['error']}")
    end = report["end"]
    total = end["sum"] if udp else end["sum_received"]
    return Iperf(
        bits_per_second=total["bits_per_second"],
        seconds=total["seconds"],
        retransmits=0 if udp else end["sum_sent"].get("retransmits", 0),
        lost_percent=total.get("lost_percent", 0.0),
        client_cpu=end["cpu_utilization_percent"]["host_total"],
    )
