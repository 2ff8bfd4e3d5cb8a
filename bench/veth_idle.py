# SPDX-License-Identifier: Apache-2.0
"""CPU time that lbd takes without any traffic, by poll mode: bench/veth.py's part `idle`.

Of all threads of the worker and of the master, from each process's own clock (clock_getcpuclockid(3): the scheduler's
accounting, in nanoseconds), as a percentage of one core; and how often they were woken.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from bench.compare import Row
from bench.veth_forwarder import forwarding
from bench.veth_latency import MODES
from bench.veth_pps import site
from bench.veth_wire import Placement, Wire
from lbd.testbed.daemon import Daemon

GOAL = 1.0  # percent of a core, adaptive
CPUCLOCK_SCHED = 2  # linux/posix-timers: the clock of a process is ~pid << 3 | this
SETTLE = 2.0  # seconds after the start that do not count


@dataclass(frozen=True)
class Used:
    seconds: float
    wakeups: int

    @classmethod
    def by(cls, pid: int) -> "Used":
        wakeups = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                status = (task / "status").read_text()
            except OSError:  # a thread that has ended meanwhile
                continue
            wakeups += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return cls(time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED), wakeups)


def processes(daemon: Daemon) -> dict[str, int]:
    """pid by role."""
    return {"worker": daemon.get("/v1/workers")["workers"][0]["pid"], "master": daemon.pid}


def usage(daemon: Daemon, seconds: float) -> dict[str, tuple[float, float]]:
    """Percent of a core and wakeups per second, by role."""
    pids = processes(daemon)
    time.sleep(SETTLE)  # the measured span itself, and what goes before it: nothing is waited for
    begin, before = time.monotonic(), {role: Used.by(pid) for role, pid in pids.items()}
    time.sleep(seconds)
    after, span = {role: Used.by(pid) for role, pid in pids.items()}, time.monotonic() - begin
    return {
        role: ((after[role].seconds - used.seconds) / span * 100, (after[role].wakeups - used.wakeups) / span)
        for role, used in before.items()
    }


def idle(args: argparse.Namespace, place: Placement) -> list[Row]:
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with Wire(f"{args.prefix}-idle") as wire:
        where = site(wire, place, False)
        for number in range(args.runs):
            for poll in MODES:
                with forwarding("lbd", where, place, poll) as forwarder:
                    assert forwarder.daemon
                    for role, figures in usage(forwarder.daemon, args.idle_seconds).items():
                        seen.setdefault((poll, role), []).append(figures)
            last = ", ".join(f"{poll} {role} {figures[-1][0]:.2f}" for (poll, role), figures in seen.items())
            print(f"idle, run {number + 1}: {last} %", flush=True)
    rows = []
    for (poll, role), of_runs in seen.items():
        params = {"poll": poll, "process": role, "wakeups_per_second": round(max(w for _, w in of_runs), 1)}
        goal = GOAL if poll == "adaptive" and role == "worker" else None
        rows.append(Row(f"idle, {poll}, {role}", params, "% of a core", [percent for percent, _ in of_runs], goal=goal))
    return rows
