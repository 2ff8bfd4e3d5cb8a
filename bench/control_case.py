# SPDX-License-Identifier: Apache-2.0
"""What control.py measures of a daemon, one function a question; each checks that what it timed has happened.

Times are monotonic seconds of this process, but for health checks: the daemon's own wall clock says when a verdict fell. A
change has had its effect when every worker's segment shows the generation that carries it, and the record in it is the new one.
"""

import contextlib
import gzip
import json
import multiprocessing
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.control_site import LEAVING, PORT, Site, Watched, real_server
from lbd.testbed.daemon import UnixConnection
from lbd.testbed.netns import TestbedError

LOOK = 0.0001  # seconds between looks at the workers' segments
LIMIT = 10.0


@dataclass
class Row:
    """A case: its samples and, of the same run, a floor's or a peer's."""

    case: str
    unit: str
    samples: list[float]
    goal: float | None = None  # the median is to be below
    peer: str = ""
    peer_samples: list[float] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        median = statistics.median(self.samples)
        found: dict[str, Any] = {"case": self.case, "params": self.params, "unit": self.unit, "runs": len(self.samples)}
        figures = {"median": median, "min": min(self.samples), "max": max(self.samples)}
        found |= {name: round(value, 4) for name, value in figures.items()}
        found |= {"goal": self.goal, "met": None if self.goal is None else median < self.goal}
        if self.peer_samples:
            other = statistics.median(self.peer_samples)
            found |= {"peer": self.peer, "peer_median": round(other, 4), "ratio": round(median / other, 2)}
        return found


# -- a change and its effect -----------------------------------------------------------------------------------


def wait_effect(daemon: Watched, before: list[int], done: Callable[[], bool], clock: Callable[[], float]) -> float:
    """When a worker had applied something new, and all have what `done` looks for."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        now = daemon.generations()
        if now != before:
            at = clock()
            if done():
                return at
            before = now
        time.sleep(LOOK)
    raise TestbedError(f"no effect on the workers within {LIMIT:g} s")


def weight_by_api(daemon: Watched, services: int, servers: int, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the request to its effect; and of a request that does nothing, to its answer."""
    found, idle = [], []
    for n in range(count):
        number = random.randrange(services * servers)
        path = f"/v1/services/service-{number // servers}/real-servers/{real_server(number)}:{PORT}"
        numbers = daemon.get(f"/v1/real-servers?service=service-{number // servers}")["real_servers"]
        dest = numbers[number % servers]["number"]
        weight = 1000 + n

        def told(dest: int = dest, weight: int = weight) -> bool:
            return all(record["weight"] == weight for record in daemon.dest(dest))

        began = time.monotonic()
        daemon.request("GET", "/healthz")
        idle.append((time.monotonic() - began) * 1000)
        before = daemon.generations()
        began = time.monotonic()
        daemon.control.request("PATCH", path, json.dumps({"weight": weight}))
        found.append((wait_effect(daemon, before, told, time.monotonic) - began) * 1000)
        daemon.control.getresponse().read()
        daemon.request("PATCH", path, {"weight": None})
    return found, idle


def health(site: Site, daemon: Watched, count: int) -> list[float]:
    """Milliseconds from a check's verdict to its effect, down and up in turn."""
    found = []
    dest = daemon.get(f"/v1/real-servers?service={LEAVING}")["real_servers"][0]["number"]
    for n in range(count):
        gone = n % 2 == 0
        before = daemon.generations()
        site.leave(gone)
        at = wait_effect(daemon, before, lambda gone=gone: all(d["up"] != gone for d in map(flags, daemon.dest(dest))), time.time)  # type: ignore[misc]
        known = daemon.get(f"/v1/real-servers?service={LEAVING}")["real_servers"][0]["health"]
        if known["status"] != ("down" if gone else "up"):
            raise TestbedError(f"workers were told, but the check says {known}")
        found.append((at - known["since"]) * 1000)
    return found


def flags(record: dict[str, Any]) -> dict[str, Any]:
    return {"up": bool(record["flags"] & 2)}  # DEST_UP of svc.pxd


def reload(daemon: Watched, file: Path, text: str, number: int, servers: int, count: int) -> tuple[list[float], list[float]]:
    """Seconds from POST /v1/reload to its answer, and to the effect of the one weight that differs."""
    answers, effects = [], []
    service, place = number // servers, number % servers
    dest = daemon.get(f"/v1/real-servers?service=service-{service}")["real_servers"][place]["number"]
    line = f'address = "{real_server(number)}:{PORT}"\nweight = '
    head, _, rest = text.partition(line)
    tail = rest.partition("\n")[2]
    for n in range(count):
        weight = 2000 + n
        file.write_text(f"{head}{line}{weight}\n{tail}")
        before = daemon.generations()
        began = time.monotonic()
        daemon.control.request("POST", "/v1/reload")
        done = lambda weight=weight: all(d["weight"] == weight for d in daemon.dest(dest))  # noqa: E731
        effects.append(wait_effect(daemon, before, done, time.monotonic) - began)  # type: ignore[arg-type]
        changes = json.loads(daemon.control.getresponse().read())["changes"]
        answers.append(time.monotonic() - began)
        if len(changes) != 1:
            raise TestbedError(f"one weight was changed, but the reload says {changes[:5]}")
    file.write_text(text)
    daemon.request("POST", "/v1/reload")
    return answers, effects


def reload_all(daemon: Watched, file: Path, text: str, real_servers: int) -> float:
    """Seconds of a reload in which every weight differs, and back."""
    file.write_text(re.sub(r"^weight = ([0-9]+)$", r"weight = 1\1", text, flags=re.MULTILINE))
    began = time.monotonic()
    changes = json.loads(daemon.request("POST", "/v1/reload"))["changes"]
    took = time.monotonic() - began
    if len(changes) != real_servers:
        raise TestbedError(f"{real_servers} weights were changed, but the reload says {len(changes)}")
    file.write_text(text)
    daemon.request("POST", "/v1/reload")
    return took


# -- a long answer, and the loop meanwhile -----------------------------------------------------------------------


def _ping(path: Path, end: Connection) -> None:
    """Another process: asks for nothing, again and again, and tells the longest time to an answer (ms)."""
    connection = UnixConnection(path, 60)
    longest = 0.0
    end.send("on")
    while not end.poll():
        began = time.monotonic()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        longest = max(longest, (time.monotonic() - began) * 1000)
        time.sleep(0.001)
    end.send(longest)


@contextlib.contextmanager
def pinged(daemon: Watched) -> Iterator[list[float]]:
    """Gets one element at the end: how long the loop did not answer, at most."""
    found: list[float] = []
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_ping, args=(daemon.daemon.control, there))
    process.start()
    try:
        if here.recv() != "on":
            raise TestbedError("no ping")
        yield found
        here.send("off")
        found.append(here.recv())
        process.join(10)
    finally:
        process.kill()
        process.join()


@dataclass
class Answer:
    """What one request takes."""

    wall: float  # ms
    loop: float  # ms of CPU time of the event loop's thread
    blocked: float  # ms that the loop did not answer anybody else, at most
    text: bytes


def ask(daemon: Watched, path: str) -> Answer:
    """As Prometheus asks: compressed. Once with others asking beside it, and once alone for the CPU time."""
    zipped = {"Accept-Encoding": "gzip"}
    with pinged(daemon) as blocked:
        began = time.monotonic()
        text = daemon.request("GET", path, headers=zipped)
        wall = (time.monotonic() - began) * 1000
    cpu = daemon.loop_seconds()
    daemon.request("GET", path, headers=zipped)
    loop = (daemon.loop_seconds() - cpu) * 1000
    return Answer(wall, loop, blocked[0], gzip.decompress(text) if text[:2] == b"\x1f\x8b" else text)


def series(page: bytes) -> int:
    return sum(1 for line in page.splitlines() if line and not line.startswith(b"#"))


# -- peers ------------------------------------------------------------------------------------------------------


def child(code: str, *arguments: str) -> dict[str, float]:
    """What a fresh Python prints as JSON; `launched` is the time before its start."""
    head = f"launched = {time.time()!r}\n"
    done = subprocess.run([sys.executable, "-c", head + code, *arguments], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


PARSE = """
import json, sys, time, tomllib
import lbd.master.daemon
text = open(sys.argv[1]).read()
began = time.time()
plain = tomllib.loads(text)
status = open("/proc/self/status").read()
resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
print(json.dumps({"parse": time.time() - began, "whole": time.time() - launched, "resident": resident * 1024}))
"""

EXPOSE = """
import json, sys, time
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
class Static:
    def collect(self):
        for n in range(10):
            family = CounterMetricFamily(f"lbd_real_server_{n}", "A count.", labels=["service", "real_server"])
            for i in range(int(sys.argv[1]) // 10):
                family.add_metric([f"service-{i // 10}", f"10.96.{i >> 8}.{i & 255}:8080"], i)
            yield family
registry = CollectorRegistry()
registry.register(Static())
began = time.process_time()
generate_latest(registry)
print(json.dumps({"expose": (time.process_time() - began) * 1000}))
"""


def parse_floor(file: Path) -> dict[str, float]:
    return child(PARSE, str(file))


def expose_peer(count: int) -> float:
    return child(EXPOSE, str(count))["expose"]


def dumps_floor(text: bytes) -> float:
    """Milliseconds that json.dumps alone takes for the same answer."""
    plain = json.loads(text)
    began = time.process_time()
    json.dumps(plain)
    return (time.process_time() - began) * 1000


def command(daemon: Watched, *words: str) -> float:
    """Milliseconds of an `lbd` command, start of Python and all."""
    argv = [sys.executable, "-m", "lbd.cli.main", "--socket", str(daemon.daemon.control), *words]
    began = time.monotonic()
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return (time.monotonic() - began) * 1000


def loop_share(daemon: Watched, seconds: float) -> float:
    """Of a core that the event loop takes by itself, health checks and all."""
    before, began = daemon.loop_seconds(), time.monotonic()
    time.sleep(seconds)  # a rate needs a time
    return (daemon.loop_seconds() - before) / (time.monotonic() - began)
