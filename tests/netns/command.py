# SPDX-License-Identifier: Apache-2.0
"""The command `lbd` as an operator runs it, against a daemon of the testbed."""

import json
import subprocess
import sys
from typing import Any

from lbd.testbed.daemon import Daemon

LBD = [sys.executable, "-m", "lbd.cli.main"]


def lbd(daemon: Daemon, *words: str, code: int = 0, timeout: float = 30) -> str:
    """What it prints, errors too, having ended with this exit code."""
    argv = [*LBD, "--socket", str(daemon.control), *words]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    assert done.returncode == code, f"{' '.join(words)}: exit code {done.returncode}: {done.stdout}"
    return done.stdout


def lbd_json(daemon: Daemon, *words: str) -> Any:
    return json.loads(lbd(daemon, "-j", *words))
