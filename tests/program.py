# SPDX-License-Identifier: Apache-2.0
"""Programs in C that tests run."""

import subprocess
from pathlib import Path


def compiled(source: Path, *libraries: str) -> Path:
    """DIR/src/NAME.c as DIR/bin/NAME, made anew when the source is newer."""
    program = source.parent.with_name("bin") / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, source, *libraries], check=True)
    return program
