# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md, docs/drops.md and docs/metrics.md, made from the code: `python -m lbd.cli.reference docs`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbd.cli.advice import ADVICE
from lbd.cli.command import Parser
from lbd.cli.main import parser
from lbd.cli.outcome import EXIT_CODES, USAGE
from lbd.datapath.reason import REASONS

BAR = r"\|"  # in a table
MADE = "<!-- Made by `python -m lbd.cli.reference docs`; edit {} instead. -->"


# -- commands ------------------------------------------------------------------------------------------------


def cli() -> str:
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES)
    root = parser()
    parts = [
        f"""# The command `lbd`

{MADE.format("lbd/cli/")}

Commands may be shortened while that is unambiguous, as in ip(8): `lbd sta`, `lbd rea l`. Commands that ask
the daemon use its socket, `/run/lbd/control.sock` or `-s SOCKET` or `$LBD_SOCKET`; whoever may write to it
(root, the group `daemon.group`) may use them. With `-j` they print JSON as in [api.md](api.md), which is
stable; the tables are for people. Errors are one line on standard error, with the remedy. There is colour
in `lbd top` alone, on a terminal, and not if `NO_COLOR` is set.

| exit code | meaning |
|---|---|
{codes}
"""
    ]
    for name, command in subcommands(root):
        parts.append(section(f"lbd {name}", command))
    return "\n".join(parts)


def subcommands(command: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def section(name: str, command: argparse.ArgumentParser, level: str = "##") -> str:
    if isinstance(command, Parser):
        command.complete()
    inner = list(subcommands(command))
    rows = [row(a) for a in arguments(command)]
    lines = [f"{level} `{synopsis(name, command)}`", "", " ".join((command.description or "").split())]
    if rows:
        lines += ["", "| argument | meaning |", "|---|---|", *rows]
    lines.append("")
    return "\n".join([*lines, *(section(f"{name} {n}", c, level + "#") for n, c in inner)])


def arguments(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """Without -h, and -j and -s, which most commands have."""
    left_out = {"help", "json", "socket"}
    return [
        a
        for a in command._actions
        if a.dest not in left_out and not isinstance(a, argparse._SubParsersAction)
    ]


def synopsis(name: str, command: argparse.ArgumentParser) -> str:
    words = [name]
    for a in arguments(command):
        word = (
            a.option_strings[0] + (f" {value(a)}" if a.nargs != 0 else "") if a.option_strings else value(a)
        )
        words.append(word if a.required and a.nargs != "?" else f"[{word}]")
    inner = [n for n, _ in subcommands(command)]
    if len(inner) > 1:
        words.append(f"[{'|'.join(inner)}]")
    return " ".join(words)


def value(action: argparse.Action) -> str:
    name = str(action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper()))
    return f"{name}…" if action.nargs == "+" else name


def row(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or value(action)
    if action.option_strings and action.nargs != 0:
        names += f" {value(action)}"
    filled: dict[str, Any] = {**vars(action), "prog": "lbd"}
    return f"| `{names.replace('|', BAR)}` | {(action.help or '') % filled} |"


# -- drops, metrics ------------------------------------------------------------------------------------------


def drops() -> str:
    parts = [
        f"""# Why packets are dropped

{MADE.format("lbd/datapath/reason.py and lbd/cli/advice.py")}

Every packet that does not go on is counted by its reason, per worker. `lbd drops` lists the counts, `lbd
top` the rates, the metric is `lbd_drops_total{{reason="…"}}`, and `lbd capture --point drop -w FILE` shows
the packets themselves. Nothing is logged per packet.
"""
    ]
    parts += [f"## {name}\n\n{sentence(text)}\n\n{ADVICE[name]}\n" for name, text in REASONS[1:]]
    return "\n".join(parts)


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def metrics() -> str:
    from lbd.master.metric import SECTIONS

    parts = [
        f"""# Metrics

{MADE.format("lbd/master/metric.py")}

`metrics.listen` (127.0.0.1:9911 unless said otherwise) serves them at `/metrics`, as the control socket
does. Text format and OpenMetrics, by the scraper's `Accept`. Besides these there are prometheus-client's
`process_*` of the master.

- Counters of packets, bytes and connections are sums over all workers and survive the restart of a worker
  or of the master; those of health checks, requests and processes begin anew with the master. Series of a
  service or real server end when it is removed.
- `service` is the name in the configuration, `vip` and `real_server` are addresses with a port, `worker` is
  a number. Series of workers and queues carry no service. No client's address is ever in a label.
- Load is `rate(lbd_worker_busy_seconds_total) / (rate(busy) + rate(idle))`: a core that polls is always at
  100 % for the operating system.
"""
    ]
    for s in SECTIONS:
        rows = [
            f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |"
            for m in s.metrics
        ]
        head = f"## {s.title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
        parts.append(head + "\n".join(rows) + "\n")
    return "\n".join(parts)


PAGES = {"cli.md": cli, "drops.md": drops, "metrics.md": metrics}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m lbd.cli.reference DIRECTORY", file=sys.stderr)
        return USAGE
    for name, make in PAGES.items():
        (Path(arguments[0]) / name).write_text(make())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
