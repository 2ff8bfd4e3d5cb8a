"""Two workers on a core each: all packets come to the first, whose flows they are not, and go on to the second by the rings between
workers; frames go home by another ring. What either does for a packet, beside one worker alone that receives its own.

So it is where a NIC's RSS is not known, for half of the packets of two workers. Both run at the same time: entries, descriptors,
headers and the ledger come from the other core's cache. A worker that has nothing to do spins, and no system call is made.
"""

import os
from collections.abc import Iterator
from threading import Thread

from bench._engine import Hop
from bench.engine_case import WARM, WAYS, Context, all_sent, check_known, known_pass
from bench.figure import Figure
from bench.scene import BATCH, PROTO, Refused, Scene


def serve(hop: Hop, core: int) -> None:
    os.sched_setaffinity(0, {core})  # of this thread
    hop.serve()


def hop_pass(hop: Hop, first: Scene, second: Scene) -> tuple[float, float]:
    """ns per packet of the first and of the second worker."""
    second.bench.plan_known(BATCH, second.flows, 2)
    ns = hop.go()
    if first.drops():
        raise Refused(f"{second.name}: the first worker dropped {first.drops()}")
    all_sent(second, BATCH)
    check_known(second, BATCH)
    return ns[0] / BATCH, ns[1] / BATCH


def hop(ctx: Context, flows: int) -> Iterator[Figure]:
    """Nothing where this process may use one core alone."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    alone = Scene(flows=flows).open()
    first, second = Scene(flows=1, workers=2, worker=0), Scene(flows=flows, workers=2, worker=1).open()
    both = Hop(first.bench, second.bench)
    thread = Thread(target=serve, args=(both, cores[1]))
    seen: list[tuple[float, float]] = []
    beside: list[float] = []
    os.sched_setaffinity(0, {cores[0]})
    thread.start()
    try:
        for number in range(-WARM, ctx.passes):
            ns = hop_pass(both, first, second)
            own = known_pass(alone, 2, whole=True)
            if number >= 0:
                seen.append(ns)
                beside.append(own)
            ctx.step()
    finally:
        both.stop()
        thread.join()
        os.sched_setaffinity(0, cores)
    params = {"proto": PROTO[alone.proto], "ip": alone.af, "flows": flows, "way": WAYS[2], "burst": 64}
    for which, part in enumerate(("first", "second")):
        case = f"handed to another worker, at the {part} one"
        yield Figure(case, params, "ns", [ns[which] for ns in seen], "whole turn alone", beside)
