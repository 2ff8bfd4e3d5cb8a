# SPDX-License-Identifier: Apache-2.0
"""`lbd replay`: captures through the packet engine, offline (lbd/replay.py)."""

import argparse
import json
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
    c.add_argument("--time", action="store_true", help="say how long the engine took")


def run(args: argparse.Namespace) -> int:
    if args.repeat < 1:
        raise Failure("--repeat is 1 at least", code=USAGE)
    if args.output == args.verdicts == "-":
        raise Failure("-o and --verdicts can't both be standard output", code=USAGE)
    from lbd.replay import Replay, ReplayError, read_inputs

    config = load_config(args.config)
    try:
        inputs = read_inputs(config, args.inputs, args.interface)
        replay = Replay(config, inputs.interfaces)
    except ReplayError as error:
        raise Failure(str(error)) from None
    except MemoryError:
        raise Failure(
            "not enough memory for the tables", "make [tables] of the configuration smaller"
        ) from None
    for note in inputs.notes:
        print(f"lbd: {note}", file=sys.stderr)
    summary = Summary(inputs.skipped)
    with ExitStack() as files:
        sinks: list[Summary | Verdicts | Packets] = [summary]
        sinks += [Verdicts(files, args.verdicts)] if args.verdicts else []
        sinks += [Packets(files, args.output, config)] if args.output else []
        for outcome in outcomes(replay, inputs, args.repeat, summary):
            for sink in sinks:
                sink.write(outcome)
    summary.connections = replay.engine.counters()["conns_made"]
    if args.json and "-" not in (args.output, args.verdicts):
        print_json(summary.document())
    else:
        print(summary.text(args.time), file=sys.stderr)
    return DONE


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


def progress(packets: Iterable[T], done: int, total: int) -> Iterator[T]:
    """A line on a terminal that says how far it is, where that takes long."""
    shown = total >= PROGRESS_FROM and sys.stderr.isatty()
    for n, packet in enumerate(packets, done):
        if shown and n % 4096 == 0:
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
        }

    def text(self, timed: bool) -> str:
        packets = self.verdicts.total()
        parts = ", ".join(f"{n} {verdict}" for verdict, n in self.verdicts.items())
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common())
        lines = [f"{count(packets, 'packet')}: {parts}" + (f" ({reasons})" if reasons else "")]
        lines[0] += f"; {count(self.connections, 'connection')} opened"
        if self.skipped:
            lines.append(f"{count(self.skipped, 'packet')} that lbd itself had sent or dropped passed over")
        if timed and packets:
            rate = quantity(packets / self.seconds) if self.seconds else "?"
            each = 1e9 * self.seconds / packets
            speed = f"{self.seconds:.3f} s, {each:.0f} ns per packet, {rate} packets per second"
            lines.append(f"{speed}, Python around the engine included")
        return "\n".join(lines)


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
