# SPDX-License-Identifier: Apache-2.0
"""`lbd replay`: captures through the packet engine, offline (lbd/replay.py)."""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from lbd import __version__
from lbd.cli.command import Commands, print_json
from lbd.cli.outcome import DONE, USAGE, Failure
from lbd.cli.table import count, quantity

if TYPE_CHECKING:
    from lbd.config import Config
    from lbd.replay import Inputs, Outcome, Replay

T = TypeVar("T")
PROGRESS_FROM = 20_000  # packets: less takes no time


def add(commands: Commands) -> None:
    c = commands.add(
        "replay",
        "run captured packets through the packet engine, offline",
        run,
        more="Needs no root and no daemon. Every real server counts as up; static [[neighbor]] and\n"
        "[[route]] entries of the configuration stand in for the kernel. An interface of a capture is\n"
        "the [[interface]] of that name, or else the one at its file's place in the order of files.\n"
        "There is one worker, whatever the configuration says.",
    )
    c.add_argument("config", metavar="CONFIG", help="configuration")
    c.add_argument("inputs", nargs="+", metavar="IN", help="pcap or pcapng files with Ethernet headers")
    c.add_argument(
        "-o", "--output", metavar="FILE", help="pcapng of what leaves, by interface; - for standard output"
    )
    c.add_argument("--verdicts", metavar="FILE", help="a JSON line for each packet; - for standard output")
    c.add_argument(
        *("-i", "--interface"),
        action="append",
        default=[],
        metavar="NAME",
        help="that the packets came in by: one for all files, or repeated for each",
    )
    c.add_argument("--repeat", type=int, default=1, metavar="N", help="run all of it N times, time going on")
    c.add_argument(
        "--time",
        action="store_true",
        help="run all of it once, and N times again to say what a packet takes in the engine alone",
    )


def run(args: argparse.Namespace) -> int:
    if args.repeat < 1:
        raise Failure("--repeat is 1 at least", code=USAGE)
    if args.output == args.verdicts == "-":
        raise Failure("-o and --verdicts can't both be standard output", code=USAGE)
    from lbd.replay import ReplayError, read_inputs

    config = load_config(args.config)
    try:
        inputs = read_inputs(config, args.inputs, args.interface)
        for note in inputs.notes:
            print(f"lbd: {note}", file=sys.stderr)
        summary = once(args, config, inputs)
        if args.time and inputs.packets:
            summary.timing = timed(config, inputs, args.repeat)
    except ReplayError as error:
        raise Failure(str(error)) from None
    except MemoryError:
        raise Failure(
            "not enough memory for the tables", "make [tables] of the configuration smaller"
        ) from None
    if args.json and "-" not in (args.output, args.verdicts):
        print_json(summary.document())
    else:
        print(summary.text(), file=sys.stderr)
    return DONE


def once(args: argparse.Namespace, config: "Config", inputs: "Inputs") -> "Summary":
    """All packets, N times unless that is what is to be timed, and what comes of each to where it is wanted."""
    from lbd.replay import Replay

    replay = Replay(config, inputs.interfaces)
    summary = Summary(inputs.skipped)
    with ExitStack() as files:
        sinks: list[Summary | Verdicts | Packets] = [summary]
        sinks += [Verdicts(files, args.verdicts)] if args.verdicts else []
        sinks += [Packets(files, args.output, config)] if args.output else []
        for outcome in outcomes(replay, inputs, 1 if args.time else args.repeat, summary):
            for sink in sinks:
                sink.write(outcome)
    summary.connections = replay.engine.counters()["conns_made"]
    return summary


def timed(config: "Config", inputs: "Inputs", repeat: int) -> "Timing":
    """All packets N times through a fresh engine, a pass each."""
    from lbd.replay import SECOND, Replay, bursts

    replay = Replay(config, inputs.interfaces)
    timing = Timing(len(inputs.packets), sum(1 for _ in bursts(inputs.packets, SECOND)))
    for n in progress(range(repeat), 0, repeat * len(inputs.packets), len(inputs.packets)):
        if n:
            replay.rewind()
        timing.add(*replay.time(inputs.packets))
    return timing


def load_config(path: str) -> "Config":
    from lbd.config import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        raise Failure(f"{path} can't be used\n{error}", f"lbd check {path} says all about it") from None


def outcomes(replay: "Replay", inputs: "Inputs", repeat: int, summary: "Summary") -> Iterator["Outcome"]:
    total = repeat * len(inputs.packets)
    for n in range(repeat):
        if n:
            replay.rewind()
        done = n * len(inputs.packets)
        yield from summary.clocked(replay.run(progress(inputs.packets, done, total)))


def progress(packets: Iterable[T], done: int, total: int, each: int = 1) -> Iterator[T]:
    """A line on a terminal that says how far it is, where that takes long. each: packets that one item stands for."""
    shown = total >= PROGRESS_FROM and sys.stderr.isatty()
    for n, packet in zip(itertools.count(done, each), packets, strict=False):
        if shown and (n % 4096 == 0 or each > 1):
            bar = "#" * (30 * n // total)
            print(
                f"\r[{bar:<30}] {100 * n // total:3}% of {quantity(total)}",
                end="",
                file=sys.stderr,
                flush=True,
            )
        yield packet
    if shown:
        print(f"\r{'':60}\r", end="", file=sys.stderr, flush=True)


# -- what comes of it ----------------------------------------------------------------------------------------


class Summary:
    def __init__(self, skipped: int) -> None:
        self.skipped = skipped
        self.verdicts = Counter(dict.fromkeys(("forward", "drop", "kernel", "consume"), 0))
        self.reasons: Counter[str] = Counter()
        self.connections = 0
        self.seconds = 0.0
        self.timing: Timing | None = None

    def clocked(self, results: Iterator["Outcome"]) -> Iterator["Outcome"]:
        """Counts the time that the engine takes, not what is done with the results."""
        while True:
            start = time.perf_counter()
            outcome = next(results, None)
            self.seconds += time.perf_counter() - start
            if outcome is None:
                return
            yield outcome

    def write(self, outcome: "Outcome") -> None:
        self.verdicts[outcome.verdict] += 1
        if outcome.verdict != "forward":
            self.reasons[outcome.reason] += 1

    def document(self) -> dict[str, Any]:
        return {
            "packets": self.verdicts.total(),
            "skipped": self.skipped,
            "verdicts": dict(self.verdicts),
            "reasons": dict(self.reasons.most_common()),
            "connections": self.connections,
            "seconds": round(self.seconds, 6),
            **({"timing": self.timing.document()} if self.timing else {}),
        }

    def text(self) -> str:
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common())
        lines = [f"{count(self.verdicts.total(), 'packet')}: {by_verdict(self.verdicts)}" + (f" ({reasons})" if reasons else "")]
        lines[0] += f"; {count(self.connections, 'connection')} opened"
        if self.skipped:
            lines.append(f"{count(self.skipped, 'packet')} that lbd itself had sent or dropped passed over")
        if self.timing:
            lines += self.timing.lines(self.verdicts)
        return "\n".join(lines)


def by_verdict(verdicts: "Counter[str]") -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())


class Timing:
    """The engine alone, of each pass over all packets."""

    def __init__(self, packets: int, bursts: int) -> None:
        self.packets = packets  # of a pass
        self.burst = packets / bursts
        self.ns: list[float] = []  # per packet
        self.verdicts = Counter(dict.fromkeys(("forward", "drop", "kernel", "consume"), 0))
        self.first: Counter[str] = Counter()

    def add(self, ns: int, verdicts: "Counter[str]") -> None:
        self.ns.append(ns / self.packets)
        self.verdicts.update({name: n for name, n in verdicts.items() if n})
        self.first = self.first or verdicts

    def document(self) -> dict[str, Any]:
        return {
            "passes": len(self.ns),
            "packets": self.verdicts.total(),
            "verdicts": dict(self.verdicts),
            "burst": round(self.burst, 1),
            "ns_per_packet": {
                "median": round(statistics.median(self.ns), 1),
                "min": round(min(self.ns), 1),
                "max": round(max(self.ns), 1),
            },
        }

    def lines(self, untimed: "Counter[str]") -> Iterator[str]:
        median = statistics.median(self.ns)
        yield (
            f"engine alone, {len(self.ns)} × all packets, in bursts of {self.burst:.1f}: "
            f"median {median:.1f} ns per packet ({min(self.ns):.1f} to {max(self.ns):.1f}), "
            f"{quantity(1e9 / median)} packets per second; {by_verdict(self.verdicts)}"
        )
        if +self.first != +untimed:
            yield f"the first timed pass had other verdicts than the untimed one: {by_verdict(+self.first)}"


def create(files: ExitStack, name: str, mode: str) -> Any:
    if name == "-":
        return sys.stdout.buffer if "b" in mode else sys.stdout
    try:
        return files.enter_context(open(name, mode))
    except OSError as error:
        raise Failure(f"{name} can't be written: {error.strerror}") from None


class Verdicts:
    def __init__(self, files: ExitStack, name: str) -> None:
        self._file = create(files, name, "w")

    def write(self, outcome: "Outcome") -> None:
        self._file.write(json.dumps(outcome.line()) + "\n")


class Packets:
    """Timestamps are those of the packets that caused them."""

    def __init__(self, files: ExitStack, name: str, config: "Config") -> None:
        from lbd.pcap import Interface, Writer

        self._writer = Writer(create(files, name, "wb"), f"lbd {__version__} replay")
        for interface in config.interface:
            self._writer.interface(Interface(interface.name))

    def write(self, outcome: "Outcome") -> None:
        for iface, data in outcome.out:
            words = [f"input {outcome.packet.number}", outcome.verdict]
            words += [f"service {outcome.service}"] if outcome.service else []
            words += [f"real server {outcome.real_server}"] if outcome.real_server else []
            self._writer.packet(iface, outcome.packet.ts_ns, data, comment=", ".join(words), direction="out")
