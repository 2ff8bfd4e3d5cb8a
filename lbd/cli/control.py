# SPDX-License-Identifier: Apache-2.0
"""Commands about lbd as a whole: run, check, reload, stop, cleanup, demo, config."""

import argparse
import json
import sys
from pathlib import Path

from lbd.cli.client import Client
from lbd.cli.command import Commands, Parser, client, print_json, show
from lbd.cli.outcome import DONE, REFUSED, UNREACHABLE, Failure

DEFAULT_FILE = "/etc/lbd/lbd.toml"


def add(commands: Commands) -> None:
    c = commands.add("run", "run the daemon, in the foreground", run, asks=False)
    c.add_argument(
        "file", nargs="?", default=DEFAULT_FILE, metavar="FILE", help="configuration (%(default)s)"
    )
    c = commands.add(
        "check",
        "say what is wrong with a configuration, and what it takes",
        check,
        more="Changes nothing. Exit code 1 if the configuration can't be used; warnings alone give 0.",
    )
    c.add_argument(
        "file", nargs="?", default=DEFAULT_FILE, metavar="FILE", help="configuration (%(default)s)"
    )
    commands.add("reload", "have the daemon read its configuration again and apply the difference", reload)
    commands.add("stop", "end the daemon; the next one takes its connections over", stop)
    c = commands.add(
        "cleanup",
        "remove what a daemon that was killed left in the kernel: managed addresses, neighbours, ports",
        cleanup,
        more="Needs no daemon, and refuses while one answers.",
    )
    c.add_argument("--run-dir", default="/run/lbd", metavar="DIR", help="its daemon.run_dir (%(default)s)")
    c = commands.add("demo", "balance real traffic between network namespaces, and show it", demo, asks=False)
    c.late = add_demo
    c = commands.add("config", "about the configuration's format", config, asks=False)
    kinds = Commands(c.add_subparsers(metavar="WHAT", required=True))
    kinds.add("schema", "print the JSON Schema of the configuration file", schema, asks=False)


def run(args: argparse.Namespace) -> int:
    from lbd.master import daemon

    return int(daemon.main(args.file) or 0)


def check(args: argparse.Namespace) -> int:
    from lbd.config.check import run_check

    return run_check(args.file, args.json, sys.stdout)


def reload(args: argparse.Namespace) -> int:
    changes = client(args).ask("POST", "/v1/reload")
    return show(args, changes, lambda d: "\n".join(d["changes"]) or "nothing has changed")


def stop(args: argparse.Namespace) -> int:
    return show(args, client(args).ask("POST", "/v1/stop"), lambda d: str(d["state"]))


def cleanup(args: argparse.Namespace) -> int:
    run_dir = Path(args.run_dir)
    path = run_dir / "control.sock"
    try:
        Client(str(path)).get("/v1/status")
    except Failure as failure:
        if failure.code != UNREACHABLE:
            raise
    else:
        raise Failure(f"a daemon answers at {path}", "lbd stop ends it, and cleans up by itself")
    from lbd.master.cleanup import cleanup as take_back

    try:
        done = take_back(run_dir)
    except OSError as error:
        raise Failure(f"can't clean up: {error}", "run it as root") from None
    failed = [line for line in done if line.startswith("could not")]
    if args.json:
        print_json({"done": [line for line in done if line not in failed], "failed": failed})
    else:
        for line in done:
            print(f"lbd: {line}", file=sys.stderr) if line in failed else print(line)
        if not done:
            print("nothing to do")
    return REFUSED if failed else DONE


def add_demo(parser: Parser) -> None:
    from lbd.cli import demo as testbed

    testbed.add_arguments(parser)


def demo(args: argparse.Namespace) -> int:
    from lbd.cli import demo as testbed

    return testbed.run(args)


def config(args: argparse.Namespace) -> int:
    raise AssertionError("a subcommand is required")


def schema(args: argparse.Namespace) -> int:
    from lbd.config.schema import schema as json_schema

    json.dump(json_schema(), sys.stdout, indent=2)
    print()
    return DONE
