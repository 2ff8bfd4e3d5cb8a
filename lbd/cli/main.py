# SPDX-License-Identifier: Apache-2.0
"""`lbd COMMAND …`: which commands there are, and how each ends.

Commands may be shortened as far as they stay unambiguous, as in ip(8). Every module of a command has
`add(commands)`, which tells its name, help and arguments, and imports what is slow where it is used.
"""

import os
import sys
from collections.abc import Sequence

from lbd.cli import capture, control, listing, replay, service, status, top, version
from lbd.cli.client import default_socket
from lbd.cli.command import Commands, Parser
from lbd.cli.outcome import DONE, EXIT_CODES, USAGE, Failure

GROUPS = (control, status, service, listing, top, capture, replay)


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
