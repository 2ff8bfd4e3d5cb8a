# SPDX-License-Identifier: Apache-2.0
"""How a command is declared, and what those that ask the daemon have in common."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from lbd.cli.client import Client
from lbd.cli.outcome import DONE

Run = Callable[[argparse.Namespace], int]


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
    ) -> argparse.ArgumentParser:
        """`asks`: the command asks the daemon, or prints JSON with -j, and so has the shared options."""
        command: argparse.ArgumentParser = self._parsers.add_parser(
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
