# SPDX-License-Identifier: Apache-2.0
"""`lbd capture`: what workers received, sent and dropped, as pcapng; tcpdump can't see redirected frames.

What stands in the file is in recording.py.
"""

import argparse
import http.client
import os
import signal
import sys
from typing import BinaryIO, NoReturn

from lbd.cli.command import Commands, client
from lbd.cli.outcome import DONE, USAGE, Failure
from lbd.cli.table import count, quantity

POINTS = ("rx", "tx", "drop")
SNAPLEN_MAX = 2016


def add(commands: Commands) -> None:
    c = commands.add(
        "capture",
        "copy packets to a pcapng file, with worker, verdict and reason",
        run,
        more="Here -s is the snap length, as in tcpdump; the daemon's socket is --socket.",
        short_socket=False,
    )
    c.add_argument("-w", "--write", required=True, metavar="FILE", help="where to; - is standard output")
    c.add_argument("-c", "--count", type=int, metavar="N", help="stop after so many packets")
    c.add_argument(
        "-s", "--snaplen", type=int, default=SNAPLEN_MAX, metavar="BYTES", help="of each (%(default)s)"
    )
    c.add_argument("--point", default="rx,tx,drop", metavar="POINTS", help="of rx, tx, drop (%(default)s)")
    c.add_argument("--service", metavar="NAME", help="packets of this service only")


def run(args: argparse.Namespace) -> int:
    points = args.point.split(",")
    if not set(points) <= set(POINTS):
        raise Failure(f"--point {args.point}: there are rx, tx and drop", "part them by commas", USAGE)
    if args.count is not None and args.count < 1:
        raise Failure("-c is 1 at least", code=USAGE)
    if args.snaplen < 1:
        raise Failure("-s is 1 at least", code=USAGE)
    from lbd.cli.recording import File, Names, comment, records

    api = client(args)
    interfaces = api.get("/v1/interfaces")["interfaces"]
    snaplen = min(args.snaplen, SNAPLEN_MAX)
    query: dict[str, object] = {"points": ",".join(points), "snaplen": snaplen}
    query |= {"service": args.service} if args.service else {}
    with api.stream("/v1/capture", **query) as stream, output(args.write) as file:
        before = signal.signal(signal.SIGTERM, interrupted)
        written = 0
        try:
            pcapng = File(file, interfaces, snaplen)
            names = Names(api)
            for record in records(stream):
                if record is None:
                    file.flush()
                    progress(written)
                    continue
                pcapng.write(record, comment(record, names))
                written += 1
                if written == args.count:
                    break
        except (KeyboardInterrupt, BrokenPipeError):
            pass
        except (http.client.HTTPException, ConnectionError) as error:
            print(f"lbd: the daemon ended the capture: {error or type(error).__name__}", file=sys.stderr)
        finally:
            signal.signal(signal.SIGTERM, before)
        end = "\r" if sys.stderr.isatty() else ""
        print(f"{end}{count(written, 'packet')} captured", file=sys.stderr)
        flush(file)
    return DONE


def output(name: str) -> BinaryIO:
    if name == "-":
        if sys.stdout.isatty():
            raise Failure(
                "packets on a terminal are no use", "pipe them: lbd capture -w - | tshark -r -", USAGE
            )
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    try:
        return open(name, "wb")
    except OSError as error:
        raise Failure(f"{name} can't be written: {error.strerror}") from None


def flush(file: BinaryIO) -> None:
    try:
        file.flush()
    except BrokenPipeError:  # the reader has gone; its business
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def progress(written: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{quantity(written)} packets", end="", file=sys.stderr, flush=True)


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt
