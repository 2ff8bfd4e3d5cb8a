# SPDX-License-Identifier: Apache-2.0
"""Killing a worker under echo traffic, and measuring what clients notice of it."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from lbd.shm import _shm as shm
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from tests.netns.traffic import Inside, Traffic, worker_pids

AFTER = 0.3  # seconds of traffic after every flow was served again, so that TCP's retransmissions are seen too


@dataclass(frozen=True)
class Victim:
    worker: int
    number: int = signal.SIGKILL  # of the signal
    busy: bool = False  # wait for a moment in which it has work


@dataclass(frozen=True)
class Outage:
    """Seconds from the kill on."""

    worker: float  # to the successor's first turn
    udp: float  # to the first reply to a later probe, of the flow for which it took longest
    tcp: float  # longest that a request took
    repeated: int  # probes answered twice
    unanswered: int  # probes without a reply, so far

    def __str__(self) -> str:
        return (
            f"worker up {self.worker:.3f} s, flows served {self.udp:.3f} s, longest request {self.tcp:.3f} s, "
            f"{self.unanswered} probes unanswered"
        )


def pass_time(seconds: float) -> None:
    """Traffic goes on meanwhile: this is the distance between events, not the wait for one."""
    time.sleep(seconds)


def wait_busy(pid: int, seconds: float = 0.5) -> None:
    """Until it is seen running, not asleep in poll(); if that doesn't happen soon, never mind."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R":
                return
        except OSError:
            return


def kill_worker(daemon: Daemon, inside: Inside, traffic: Traffic, victim: Victim, seconds: float = 20) -> Outage:
    """The signal, and all until every flow is served again. TestbedError if it takes longer than `seconds`."""
    pid = worker_pids(daemon)[victim.worker]
    segment = inside.segments[victim.worker]
    restarts = segment.restarts
    traffic.ask("mark")
    if victim.busy:
        wait_busy(pid)
    start = time.monotonic()
    os.kill(pid, victim.number)
    wait_until(
        f"worker {victim.worker} runs again",
        lambda: segment.restarts != restarts and segment.state == shm.WORKER_RUNNING,
        seconds,
        every=0.002,
    )
    up = time.monotonic() - start
    wait_until("every flow is served", lambda: traffic.report()["not_resumed"] == 0, seconds)
    pass_time(AFTER)
    seen = traffic.report()
    late = max(seen["longest"], seen["late"])
    return Outage(up, max(seen["resumed"], seen["silence"]), late, seen["repeated"], seen["unanswered"])
