# SPDX-License-Identifier: Apache-2.0
"""How a command is declared, and what those that ask the daemon have in common."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from lbd.cli.client import Client
from lbd.cli.outcome import DONE, USAGE

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Takes shortened commands, and says what is wrong in one line.

    `late` adds arguments whose declaration is slow to import, when they are needed.
    """

    late: Callable[["Parser"], None] | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **settings)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # the one place where argparse looks a command up (3.11 to 3.14)
        if action.nargs == argparse.PARSER and arg_strings and isinstance(action.choices, dict):
            arg_strings = [self._command(arg_strings[0], list(action.choices)), *arg_strings[1:]]
        return super()._get_values(action, arg_strings)

    def _command(self, given: str, known: list[str]) -> str:
        found = [name for name in known if name.startswith(given)]
        if given in known or len(found) == 1:
            return given if given in known else found[0]
        if found:
            self.error(f'"{given}" may be {", ".join(found)}')
        import difflib

        near = difflib.get_close_matches(given, known, 1)
        self.error(f'no command "{given}"' + (f', did you mean "{near[0]}"?' if near else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"lbd: {message}; see {self.prog} -h\n")

    def parse_known_args(self, *args: Any, **settings: Any) -> Any:
        self.complete()
        return super().parse_known_args(*args, **settings)

    def complete(self) -> None:
        if self.late is not None:
            late, self.late = self.late, None
            late(self)


def shared(short_socket: bool = True) -> argparse.ArgumentParser:
    """-j and -s, which stand before or behind the command."""
    parent = argparse.ArgumentParser(add_help=False)
    hidden = argparse.SUPPRESS  # as default: what was given before the command stays
    parent.add_argument("-j", "--json", action="store_true", default=hidden, help="JSON, as in docs/api.md")
    names = ("-s", "--socket") if short_socket else ("--socket",)
    parent.add_argument(*names, default=hidden, metavar="SOCKET", help="the daemon's socket")
    return parent


class Commands:
    """The commands of one level."""

    def __init__(self, parsers: Any) -> None:
        self._parsers = parsers

    def add(
        self,
        name: str,
        summary: str,
        run: Run,
        *,
        more: str = "",
        asks: bool = True,
        short_socket: bool = True,
    ) -> Parser:
        """`asks`: the command asks the daemon, or prints JSON with -j, and so has the shared options."""
        command: Parser = self._parsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + "." + (f"\n\n{more}" if more else ""),
            parents=[shared(short_socket)] if asks else [],
        )
        command.set_defaults(run=run)
        return command


def client(args: argparse.Namespace) -> Client:
    return Client(args.socket)


def show(args: argparse.Namespace, document: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> int:
    """The document as JSON if -j, else as text."""
    if args.json:
        print_json(document)
    else:
        shown = text(document)
        if shown:
            print(shown)
    return DONE


def print_json(document: object) -> None:
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
