# SPDX-License-Identifier: Apache-2.0
"""`lbd --version`: lbd, the libraries that it was linked with, the kernel."""

import argparse
import os

from lbd.cli.command import print_json
from lbd.cli.outcome import DONE


def run(args: argparse.Namespace) -> int:
    from lbd.version import versions

    known = {**versions(), "kernel": os.uname().release}
    if args.json:
        print_json(known)
    else:
        lbd = known.pop("lbd")
        print(f"lbd {lbd} (" + ", ".join(f"{n} {v or 'not found'}" for n, v in known.items()) + ")")
    return DONE
