# SPDX-License-Identifier: Apache-2.0
"""Killing a worker under echo traffic, and measuring what clients notice of it."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from lbd.shm import _shm as shm
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import TestbedError, wait_until
from tests.netns.step import kill_after
from tests.netns.traffic import Inside, Traffic, worker_pids

AFTER = 0.3  # seconds of traffic after every flow was served again, so that TCP's retransmissions are seen too


@dataclass(frozen=True)
class Victim:
    worker: int
    number: int = signal.SIGKILL  # of the signal
    steps: int = 0  # instructions from a moment on in which it runs; 0: at once


@dataclass(frozen=True)
class Outage:
    """Seconds from the kill on."""

    worker: float  # to the successor's first turn
    udp: float  # to the first reply to a later probe, of the flow for which it took longest
    tcp: float  # longest that a request took

    def __str__(self) -> str:
        return f"worker up {self.worker:.3f} s, flows served {self.udp:.3f} s, longest request {self.tcp:.3f} s"


def pass_time(seconds: float) -> None:
    """Traffic goes on meanwhile: this is the distance between events, not the wait for one."""
    time.sleep(seconds)


def wait_busy(pid: int, seconds: float = 0.5) -> None:
    """Until it is seen running, not asleep in poll(); if that doesn't happen soon, never mind."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and state(pid) not in ("R", ""):
        pass


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def kill_worker(daemon: Daemon, inside: Inside, traffic: Traffic, victim: Victim, seconds: float = 20) -> Outage:
    """The signal, and all until every flow is served again. TestbedError if it takes longer than `seconds`."""
    pid = worker_pids(daemon)[victim.worker]
    segment = inside.segments[victim.worker]
    restarts = segment.restarts
    traffic.ask("mark")
    if victim.steps:
        wait_busy(pid)
        kill_after(pid, victim.steps)
        traffic.ask("mark")
    else:
        os.kill(pid, victim.number)
    start = time.monotonic()
    try:
        wait_until(
            f"worker {victim.worker} runs again",
            lambda: segment.restarts != restarts and segment.state == shm.WORKER_RUNNING,
            seconds,
            every=0.002,
        )
    except TestbedError as e:
        raise TestbedError(f"{e}\n{daemon.log()}") from None
    up = time.monotonic() - start
    wait_until("every flow is served", lambda: traffic.report()["not_resumed"] == 0, seconds)
    pass_time(AFTER)
    seen = traffic.report()
    late = max(seen["longest"], seen["late"])
    return Outage(up, max(seen["resumed"], seen["silence"]), late)
