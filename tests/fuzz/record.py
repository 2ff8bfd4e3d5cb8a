# SPDX-License-Identifier: Apache-2.0
"""Seeds from the packet tests: whatever they do with an engine, as an input of fuzz_engine.pyx.

    python -m tests.fuzz.record DIRECTORY [what pytest is to run]      tests/packet unless told

What the fuzz target has no record for (a NIC's RSS key, other workers' engines) is left out: a seed need not end as its test did.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.fuzz import corpus
from tests.packet import balancer, twin

LONGEST = 8000  # bytes of a seed: what it has beyond is left out
FROM_ONE_TEST = 12  # tests that make engines by the hundred (hypothesis) give these many
START = 5_000_000_000  # the fuzz target's clock


class Recorder(twin.Twin):
    """As Twin, and notes it."""

    made: ClassVar[list["Recorder"]] = []  # since the last test

    def __init__(self, sizes: dict[str, int], worker: int = 0, **more: Any) -> None:
        super().__init__(sizes, worker, **more)
        self.setup = (corpus.TWO_WORKERS if sizes["workers"] > 1 else 0, corpus.BARE | corpus.PERSIST)
        if worker & 1:
            self.setup = (self.setup[0], self.setup[1] | corpus.SECOND_WORKER)
        self.now = START
        self.shift: int | None = None
        self.notes = b""
        self.made.append(self)

    def note(self, record: bytes) -> None:
        if len(self.notes) + len(record) <= LONGEST:
            self.notes += record

    def at(self, now_ns: int) -> None:
        """The clock moves; the first time sets what it began with."""
        if self.shift is None:
            self.shift = now_ns - START
        ms = (now_ns - self.shift - self.now) // 1_000_000
        self.now += ms * 1_000_000
        back, ms = ms < 0, abs(ms)
        for unit, size in ((corpus.KILOSECOND, 1_000_000), (corpus.SECOND, 1000), (corpus.SLOT, 128), (corpus.MS, 1)):
            while ms >= size:
                count = min(ms // size, 255)
                self.note(corpus.wait(unit, count, back))
                ms -= count * size

    def process(self, frames: list[tuple[bytes, int]], now_ns: int, **more: Any) -> list[twin.Result]:
        self.at(now_ns)
        for frame, iface in frames:
            self.note(corpus.frame(frame, iface, **{k: v for k, v in more.items() if k != "number"}))
        self.note(corpus.FLUSH)
        return super().process(frames, now_ns, **more)

    def __getattr__(self, name: str) -> Any:
        both = super().__getattr__(name)

        def noted(*args: Any, **more: Any) -> Any:
            if name == "apply":
                self.note(corpus.command(args[0]))
            elif name == "set_table":
                self.note(corpus.table(*args))
            elif name == "set_owner":
                self.note(corpus.owners(len(set(args[0])) > 1, len(args) > 1 and args[1] is not None))
            elif name == "expire":
                self.at(args[0])
                self.note(corpus.FLUSH)
            elif name == "ending":
                self.at(args[0])
                self.note(corpus.ENDING)
            elif name == "recover":
                self.at(args[0])
                self.note(corpus.recover(bool(more.get("fresh_tables") or args[1:] == (True,))))
            return both(*args, **more)

        return noted

    def take_in(self, gone: twin.Twin) -> tuple[int, int]:
        self.note(corpus.ASIDE)
        if isinstance(gone, Recorder):
            self.note(gone.notes)
        self.note(corpus.TAKE_IN)
        return super().take_in(gone)

    def mark(self, others: list[twin.Twin]) -> None:
        self.note(corpus.TAKEN)
        super().mark(others)


class Writer:
    """A plugin of pytest."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.count = 0

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        for r in Recorder.made[:FROM_ONE_TEST]:
            seed = bytes(r.setup) + r.notes
            if len(r.notes) > 100:
                (self.to / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
                self.count += 1
        Recorder.made.clear()


def main() -> None:
    to = Path(sys.argv[1])
    to.mkdir(parents=True, exist_ok=True)
    balancer.Twin = Recorder  # type: ignore[misc]
    writer = Writer(to)
    status = pytest.main(["-q", "-p", "no:cacheprovider", *(sys.argv[2:] or ["tests/packet"])], plugins=[writer])
    print(f"{writer.count} recorded, {len(list(to.iterdir()))} seeds in {to}")
    sys.exit(status)


if __name__ == "__main__":
    main()
