# SPDX-License-Identifier: Apache-2.0
"""Workers killed at random moments under 500 open connections with traffic.

Every second kill comes at a chosen instruction (step.py), while wrk loads the worker too: that is when it holds
frames and is in the middle of a table. After each kill all connections must be open and right, frames and records
whole; the summary says how long clients were without service.
"""

import os
import random
import statistics
import threading

from lbd.testbed import Testbed
from tests.netns.chaos import Outage, Victim, kill_worker, pass_time
from tests.netns.traffic import Inside, Traffic, config

STREAMS, FLOWS = 500, 16
STEPS = 20_000  # instructions
LIMIT = 1.0  # seconds


def run(events: int, choice: random.Random) -> None:
    with Testbed(f"lbdt-chaos-{os.getpid()}", workers=2) as testbed:
        daemon = testbed.lbd(config(testbed))
        traffic = Traffic(testbed, streams=STREAMS, flows=FLOWS)
        traffic.wait_open()
        inside = Inside(daemon)
        outages: list[Outage] = []
        for number in range(events):
            victim = Victim(choice.randrange(2), steps=choice.randrange(1, STEPS) if number % 2 else 0)
            load = threading.Thread(
                target=testbed.wrk, args=(choice.choice((4, 6)),), kwargs={"seconds": 2, "close": choice.random() < 0.5}
            )
            if victim.steps:
                load.start()
            pass_time(choice.uniform(0.1, 1.2))
            outage = kill_worker(daemon, inside, traffic, victim)
            outages.append(outage)
            if victim.steps:
                load.join()
            traffic.ask("pause")
            traffic.wait_quiet()
            seen = traffic.report()
            lost = seen["unanswered"]
            where = f"at instruction {victim.steps}" if victim.steps else ""
            print(f"{number:3} worker {victim.worker} {where:20} {outage}, {lost} lost so far", flush=True)
            assert seen["open"] == STREAMS and not seen["error_count"], seen["errors"]
            assert outage.udp < LIMIT, f"without service for {outage.udp:.3f} s"
            inside.settle(STREAMS, FLOWS, others=True)
            if number + 1 < events:
                traffic.ask("go")
        summarize(outages, traffic)
        drops = {d["reason"]: d["packets"] for d in daemon.get("/v1/drops")["drops"] if d["packets"]}
        print(f"packets dropped, by reason: {drops}")
        inside.close()
        assert daemon.stop() == 0


def summarize(outages: list[Outage], traffic: Traffic) -> None:
    for name, values in (
        ("successor runs after", [o.worker for o in outages]),
        ("all flows served after", [o.udp for o in outages]),
        ("longest TCP request", [o.tcp for o in outages]),
    ):
        print(f"{name}: median {statistics.median(values):.3f} s, longest {max(values):.3f} s")
    seen = traffic.report()
    print(f"probes without an answer: {seen['unanswered']}, answered twice: {seen['repeated']}")
