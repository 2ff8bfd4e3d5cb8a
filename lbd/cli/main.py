# SPDX-License-Identifier: Apache-2.0
"""`lbd COMMAND …`: which commands there are, and how each ends.

Commands may be shortened as far as they stay unambiguous, as in ip(8). Every module of a command has
`add(commands)`, which tells its name, help and arguments, and imports what is slow where it is used.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lbd.cli import capture, control, listing, replay, service, status, top, version
from lbd.cli.client import default_socket
from lbd.cli.command import Commands
from lbd.cli.outcome import DONE, EXIT_CODES, USAGE, Failure

GROUPS = (control, status, service, listing, top, capture, replay)


class Parser(argparse.ArgumentParser):
    """Takes shortened commands, and says what is wrong in one line."""

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


def parser() -> Parser:
    codes = "\n".join(f"  {code}  {meaning}" for code, meaning in EXIT_CODES)
    root = Parser(
        prog="lbd",
        description="Layer-4 load balancer in user space over AF_XDP.",
        epilog=f"Commands may be shortened while that is unambiguous: lbd sta.\n\nexit codes:\n{codes}",
    )
    root.add_argument("--version", action="store_true", help="versions of lbd, its libraries and the kernel")
    root.add_argument("-j", "--json", action="store_true", help="JSON, as in docs/api.md")
    root.add_argument("-s", "--socket", default=default_socket(), help="the daemon's socket (%(default)s)")
    commands = Commands(root.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser))
    for group in GROUPS:
        group.add(commands)
    root.set_defaults(run=None)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    root = parser()
    args = root.parse_args(argv)
    if args.version:
        return version.run(args)
    if args.run is None:
        root.print_help()
        return USAGE
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except Failure as failure:
        print(f"lbd: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:  # the reader has seen enough: lbd conn | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
