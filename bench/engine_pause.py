"""10 M connections filled, kept and expired: how long a single turn of the loop takes at worst, and what of that is the machine's.

Each turn (a burst of 64 and, once a millisecond, the timers) is timed by two clocks: the wall's, and this thread's processor time,
which stands still while another program has the core, but not during interrupts or while the host takes the core away. So all of it
is done three times, exactly alike (the loop's clock goes on by a fixed step), and of each turn the shortest of the three counts:
what lbd itself does in that turn it does each time. As many empty rounds of the same length, three times too, show what noise is
left.

One thing a machine does each time alike, too: the host of a virtual one takes away memory that was not used for some seconds, and
the first access to each such page waits for it, which is the same turn in all three, where the timers go through the table in
order. So each pass begins, before its clock, with a word read of every page of the tables; how many were away is counted.
"""

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain

from bench._engine import spin
from bench.engine_case import Context, check_known, huge_share
from bench.figure import Figure
from bench.scene import BATCH, ESTABLISHED, SYN, Refused, Scene

GOAL_US = 100.0
ALIKE = 3
TURN_NS = 20_000  # by which the loop's clock goes on: 64 packets at 3.2 million a second
WHEEL_S = 132  # the timing wheel turns once in 131 s: then every record is looked at


class Clocks:
    """Turns of one phase, by wall clock and by processor time; in ns."""

    def __init__(self, turns: int = 0) -> None:
        self.wall, self.cpu = array("I", bytes(4 * turns)), array("I", bytes(4 * turns))
        self.away = 0  # pages of the tables that the host had taken
        self._wall, self._cpu = array("I", bytes(4 * BATCH)), array("I", bytes(4 * BATCH))

    def go(self, scene: Scene, n: int) -> None:
        """A timed pass of what is planned, in bursts of 64."""
        self.away += scene.bench.touch()
        scene.bench.go(wall=self._wall, cpu=self._cpu)
        if scene.bench.sent() != n:
            raise Refused(f"{scene.name}: {scene.bench.sent()} of {n} packets were sent ({scene.drops()})")
        turns = -(-n // 64)
        self.wall.extend(self._wall[:turns])
        self.cpu.extend(self._cpu[:turns])


def empty(turns: int, length: int) -> Clocks:
    clocks = Clocks(turns)
    spin(turns, length, clocks.wall, clocks.cpu)
    return clocks


def own(runs: list[Clocks]) -> list[int]:
    """Of each turn the shortest of its runs, by processor time."""
    return [min(turn) for turn in zip(*(clocks.cpu for clocks in runs), strict=True)]


def tail(ns: Iterable[int], prefix: str) -> dict[str, float]:
    """In µs: the longest, the 99.99th percentile, and how many above the goal."""
    order = sorted(ns)
    return {
        f"{prefix}max": round(order[-1] / 1e3, 1),
        f"{prefix}p9999": round(order[max(0, len(order) - 1 - len(order) // 10_000)] / 1e3, 1),
        f"{prefix}above_{GOAL_US:.0f}": sum(1 for x in order if x > GOAL_US * 1e3),
    }


def figure(phase: str, connections: int, runs: list[Clocks]) -> Figure:
    turns = own(runs)
    noise = [empty(len(turns), sorted(turns)[len(turns) // 2]) for _ in runs]
    more = tail(turns, "own_") | tail(own(noise), "noise_")
    for name, clocks in (("", runs), ("noise_", noise)):
        more |= tail(chain(*(c.wall for c in clocks)), f"raw_{name}wall_")
        more |= tail(chain(*(c.cpu for c in clocks)), f"raw_{name}cpu_")
    more["pages_away"] = sum(clocks.away for clocks in runs)
    params = {"connections": connections, "turns": len(turns)}
    seen, bare = [x / 1e3 for x in turns], [x / 1e3 for x in own(noise)]
    return Figure(f"a turn's length, {phase}", params, "µs", seen, "empty rounds", bare, GOAL_US, "own_max", more)


def fill(scene: Scene, ctx: Context, clocks: Clocks) -> None:
    for at in range(0, scene.flows, BATCH):
        n = min(BATCH, scene.flows - at)
        scene.bench.plan_each(at, n, False, SYN)
        clocks.go(scene, n)
        if at % (scene.flows // 64 // BATCH * BATCH or BATCH) == 0:
            ctx.step()


def keep(scene: Scene, passes: int, ctx: Context, clocks: Clocks) -> None:
    """Traffic over all of them while the wheel, a whole turn behind, looks at as many records as it may, each millisecond."""
    scene.bench.forward_clock(WHEEL_S * 10**9)
    for number in range(passes):
        scene.bench.plan_known(BATCH, scene.flows, 2)
        clocks.go(scene, BATCH)
        check_known(scene, BATCH)
        if number % (passes // 32 or 1) == 0:
            ctx.step()


def expire(scene: Scene, ctx: Context, clocks: Clocks) -> None:
    """All end but 8,192, which have traffic meanwhile; a millisecond passes with each turn, so that each sees to the timers."""
    ms = 10**6
    scene.bench.forward_clock(100_000 * ms)
    scene.bench.plan_each(0, BATCH, False, 0x10)
    scene.go(BATCH)
    scene.timeout(ESTABLISHED, 10_000)
    scene.bench.skip(ms + ms // 10)
    before, unchanged = scene.used(), 0
    while scene.used() > BATCH and unchanged < 4000:
        scene.bench.plan_each(0, BATCH, False, 0x10)
        clocks.go(scene, BATCH)
        unchanged = unchanged + 1 if scene.used() == before else 0
        if scene.used() * 64 // scene.flows != before * 64 // scene.flows:
            ctx.step()
        before = scene.used()
    scene.bench.skip(0)
    if scene.used() != BATCH:
        raise Refused(f"{scene.name}: {scene.used()} connections were left, not the {BATCH} that had traffic")


def phases(ctx: Context, connections: int) -> tuple[dict[str, Clocks], float]:
    """The turns of each phase; the share of memory that lay in huge pages."""
    scene = Scene(flows=connections, step_ns=TURN_NS)
    filling, keeping, expiring = Clocks(), Clocks(), Clocks()
    fill(scene, ctx, filling)
    scene.finish()
    keep(scene, ctx.passes * 16, ctx, keeping)
    expire(scene, ctx, expiring)
    return {"filling (SYN)": filling, "keeping (traffic, timers)": keeping, "expiring": expiring}, huge_share()


def pauses(ctx: Context, connections: int) -> Iterator[Figure]:
    alike = [phases(ctx, connections) for _ in range(ALIKE)]
    for phase in alike[0][0]:
        found = figure(phase, connections, [run[phase] for run, _ in alike])
        found.more["huge_pages"] = round(min(share for _, share in alike), 2)
        yield found
