# SPDX-License-Identifier: Apache-2.0
"""Random events of all kinds, on one set of connections that must survive them all.

    worker killed; killed again while its successor repairs; both workers killed; stopped (found by its heartbeat)
    master killed and started again, alone or together with a worker
    meanwhile, at random: HTTP load, connections that come and go; reloads, weights, real servers drained
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomlkit

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text
from tests.netns.chaos import Victim, kill_worker, pass_time
from tests.netns.traffic import Inside, Traffic, config, programs, worker_pids

STREAMS, FLOWS = 500, 16


class Mix:
    def __init__(self, testbed: Testbed, choice: random.Random) -> None:
        self.testbed, self.choice = testbed, choice
        self.text = config(testbed)
        self.daemon: Daemon = testbed.lbd(self.text)
        self.traffic = Traffic(testbed, streams=STREAMS, flows=FLOWS)
        self.traffic.wait_open()
        self.inside = Inside(self.daemon)
        self.attached = programs(testbed.balancer)
        self.faults: list[str] = []
        self.events: list[Callable[[], str]] = [
            self.kill_worker, self.kill_worker, self.kill_twice, self.kill_workers, self.hang_worker, self.kill_master,
            self.kill_both,
        ]  # fmt: skip

    # -- events, each with what it did in words

    def kill_worker(self) -> str:
        victim = Victim(self.choice.randrange(2), steps=self.choice.choice((0, self.choice.randrange(1, 20_000))))
        return f"worker {victim.worker} killed: {kill_worker(self.daemon, self.inside, self.traffic, victim)}"

    def kill_twice(self) -> str:
        """The second time at a random moment of the first 100 ms: before, in or after the repair."""
        worker = self.choice.randrange(2)
        first = worker_pids(self.daemon)[worker]
        os.kill(first, signal.SIGKILL)
        moment = time.monotonic() + self.choice.uniform(0, 0.1)
        segment = self.inside.segments[worker]
        wait_until("there is a successor", lambda: segment.pid not in (0, first), 20, every=0.001)
        while time.monotonic() < moment:
            pass
        state = segment.ctl()["state"]
        os.kill(segment.pid, signal.SIGKILL)
        return f"worker {worker} killed twice, the second time in state {state}"

    def kill_workers(self) -> str:
        """Both at once: nobody forwards, and one process stands by for two."""
        restarts = [segment.restarts for segment in self.inside.segments]
        for pid in worker_pids(self.daemon):
            os.kill(pid, signal.SIGKILL)
        wait_until("both are started again", lambda: all(
            segment.restarts > before for segment, before in zip(self.inside.segments, restarts, strict=True)
        ), 20)  # fmt: skip
        return "both workers killed"

    def hang_worker(self) -> str:
        victim = Victim(self.choice.randrange(2), signal.SIGSTOP)
        return f"worker {victim.worker} stopped: {kill_worker(self.daemon, self.inside, self.traffic, victim)}"

    def kill_master(self) -> str:
        self.daemon.kill()
        pass_time(self.choice.uniform(0, 1))
        self.daemon = self.testbed.lbd(self.text)
        assert self.daemon.get("/v1/status")["took_over"]
        return "master killed"

    def kill_both(self) -> str:
        pid = worker_pids(self.daemon)[1]  # worker 0's socket is what `Inside` asked, too
        pids = [pid, self.daemon.pid]
        self.choice.shuffle(pids)
        for each in pids:
            os.kill(each, signal.SIGKILL)
        self.daemon.process.wait()
        self.daemon = self.testbed.lbd(self.text)
        assert self.daemon.get("/v1/status")["took_over"]
        return f"master and worker 1 killed, {'master' if pids[0] != pid else 'worker'} first"

    # -- what goes on meanwhile

    def disturb(self) -> None:
        family = self.choice.choice((4, 6))
        self.choice.choice(
            (
                lambda: self.load(family),
                lambda: self.load(family, close=True),
                lambda: self.load(family, path="/big", connections=4),
                self.change,
            )
        )()

    def load(self, family: int, **options: Any) -> None:
        seen = self.testbed.wrk(family, seconds=2, **options)
        if not seen.requests or seen.errors:
            self.faults.append(f"wrk {options}: {seen}")

    def change(self) -> None:
        """Configuration and runtime changes, a few; the daemon may be killed meanwhile."""
        for _ in range(5):
            try:
                server = self.choice.choice(self.daemon.get("/v1/real-servers?service=web4")["real_servers"])
                weight = self.choice.choice((None, 0, 1, 5))
                self.daemon.call("PATCH", f"/v1/services/web4/real-servers/{server['address']}", {"weight": weight})
                settings = tomlkit.parse(self.text).unwrap()
                settings["service"][0]["scheduler"] = self.choice.choice(("rr", "wrr", "wlc", "mh"))
                Path(self.daemon.config_file).write_text(config_text(settings))
                self.daemon.call("POST", "/v1/reload")
            except (OSError, RuntimeError):
                pass
            pass_time(0.2)

    # -- judgement

    def check(self) -> None:
        self.traffic.ask("mark")
        wait_until("every flow is served", lambda: self.traffic.report()["not_resumed"] == 0, 15)
        self.traffic.ask("pause")
        self.traffic.wait_quiet()
        seen = self.traffic.report()
        assert seen["open"] == STREAMS and not seen["error_count"], seen["errors"]
        assert programs(self.testbed.balancer) == self.attached
        assert not self.faults, self.faults
        self.inside.settle(STREAMS, FLOWS, others=True)
        self.traffic.ask("go")


def run(events: int, choice: random.Random) -> None:
    with Testbed(f"lbdt-chaos-{os.getpid()}", workers=2) as testbed:
        mix = Mix(testbed, choice)
        for number in range(events):
            disturbance = threading.Thread(target=mix.disturb)
            disturbance.start()
            pass_time(choice.uniform(0.1, 1.0))
            done = choice.choice(mix.events)()
            disturbance.join()
            mix.check()
            print(f"{number:3} {done}", flush=True)
        drops = {d["reason"]: d["packets"] for d in mix.daemon.get("/v1/drops")["drops"] if d["packets"]}
        print(f"packets dropped, by reason: {drops}")
        assert mix.daemon.stop() == 0
