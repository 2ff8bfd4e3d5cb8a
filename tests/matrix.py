"""What was tested where: a table of forwarding mode × family × protocol by device, made by the test run itself.

A test says which cells it is evidence for, in the words of its own parameters:

    @pytest.mark.cell("{mode}", "{af}", "{proto}", "engine")

Each of the four may be several, separated by blanks. After a run of everything, build/modes.md has the table: `passes`, `FAILS`,
or `skipped` with its reason; where there is no test, the reason why there can't be one (WHY_NOT), or NOT TESTED. A run of
everything fails if a cell has neither.

`make test` runs everything in three goes (tests/order.py): each leaves what it has seen in build/modes-GO.json, and the last one,
`--go alone`, puts it together.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.order import GOES

MODES = ("fullnat", "nat", "dr", "ipip", "gre", "gue", "snat", "nat64")
FAMILIES = ("IPv4", "IPv6")
PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
DEVICES = ("engine", "veth", "virtio-net", "igb", "vlan", "bond")
SHOWN = 20  # cells that are missing, at the run's end
Cell = tuple[str, str, str, str]  # mode, family, protocol, device
RANK = {"passes": 0, "skipped": 1, "FAILS": 2}

# (mode, family, protocol, device) as regular expressions, and why there is no test; the first that fits is told
WHY_NOT: tuple[tuple[Cell, str], ...] = (
    (("nat64", "IPv4", ".*", ".*"), "its clients are IPv6"),
    (("snat", ".*", "sctp", ".*"), "rules are for TCP, UDP and ICMP echo; the kernel routes the rest"),
)


def why_not(cell: Cell) -> str | None:
    for patterns, reason in WHY_NOT:
        if all(re.fullmatch(pattern, value) for pattern, value in zip(patterns, cell, strict=True)):
            return reason
    return None


ALIAS = {"4": "IPv4", "6": "IPv6", "ipv4": "IPv4", "ipv6": "IPv6", "tunnel": "ipip", "virtio": "virtio-net"}


def cells_of(item: pytest.Item) -> Iterator[Cell]:
    params = getattr(item, "callspec", None)
    # a parameter is known by its name if it has one; what is behind a + tells variants of one cell apart
    names = {k: str(getattr(v, "name", v)).partition("+")[0] for k, v in params.params.items()} if params else {}
    for mark in item.iter_markers("cell"):
        modes, families, protocols, devices = (text.format_map(names).split() for text in mark.args)
        for mode, af, proto, device in itertools.product(modes, families, protocols, devices):
            cell = (ALIAS.get(mode, mode), ALIAS.get(af, af), proto, ALIAS.get(device, device))
            for value, known in zip(cell, (MODES, FAMILIES, PROTOCOLS, DEVICES), strict=True):
                if value not in known:
                    raise pytest.UsageError(f"{item.nodeid}: mark cell: {value!r} is none of {', '.join(known)}")
            yield cell


class Matrix:
    """A pytest plugin."""

    def __init__(self, out: Path, config: pytest.Config) -> None:
        self.out = out
        self.seen: dict[Cell, tuple[str, str]] = {}  # outcome, reason
        some = config.option.keyword or config.option.markexpr or config.args != config.getini("testpaths")
        self.go = None if some else config.getoption("go")
        self.whole = not some and config.getoption("go") in (None, "alone")

    def kept(self, go: str) -> Path:
        return self.out.with_name(f"modes-{go}.json")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if cells := list(cells_of(item)):
                item.user_properties.append(("cells", cells))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            outcome = "FAILS", report.nodeid
        elif report.skipped and report.when in ("setup", "call"):
            longrepr = report.longrepr
            outcome = "skipped", longrepr[2].removeprefix("Skipped: ") if isinstance(longrepr, tuple) else str(longrepr)
        elif report.when == "call":
            outcome = "passes", ""
        else:
            return
        for cell in dict(report.user_properties).get("cells", ()):
            self.saw(tuple(cell), outcome)

    def saw(self, cell: Cell, outcome: tuple[str, str]) -> None:
        if RANK[outcome[0]] >= RANK[self.seen.get(cell, ("passes", ""))[0]]:
            self.seen[cell] = outcome

    def missing(self) -> list[Cell]:
        every = itertools.product(MODES, FAMILIES, PROTOCOLS, DEVICES)
        return [cell for cell in every if cell not in self.seen and why_not(cell) is None]

    def table(self) -> str:
        notes: list[str] = []

        def shown(cell: Cell) -> str:
            outcome, reason = self.seen.get(cell) or ("no", why_not(cell) or "NOT TESTED")
            if outcome == "passes":
                return outcome
            if reason not in notes:
                notes.append(reason)
            return f"{outcome} ({notes.index(reason) + 1})"

        rows = [
            [mode, af, proto, *(shown((mode, af, proto, device)) for device in DEVICES)]
            for mode, af, proto in itertools.product(MODES, FAMILIES, PROTOCOLS)
        ]
        return "\n".join([*markdown(["mode", "family", "protocol", *DEVICES], rows), "", *numbered(notes), ""])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.out.parent.mkdir(exist_ok=True)
        if self.go in GOES[:-1]:
            self.kept(self.go).write_text(json.dumps(list(self.seen.items())))
        elif self.go:
            for kept in filter(Path.exists, map(self.kept, GOES[:-1])):
                for cell, outcome in json.loads(kept.read_text()):
                    self.saw(tuple(cell), tuple(outcome))
        if not self.seen:
            return
        self.out.write_text(self.table())
        if self.whole and self.missing() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.seen:
            return
        terminalreporter.section("modes")
        terminalreporter.write_line(f"{len(self.seen)} cells of mode, family, protocol and device: {self.out}")
        if self.whole:
            missing = self.missing()
            terminalreporter.write_line(f"{len(missing)} cells are not tested, without a reason why they can't be")
            for cell in missing[:SHOWN]:
                terminalreporter.write_line(f"    {' '.join(cell)}")


def markdown(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def numbered(notes: list[str]) -> Iterator[str]:
    for n, note in enumerate(notes, 1):
        yield f"{n}. {note}"
