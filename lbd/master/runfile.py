# SPDX-License-Identifier: Apache-2.0
"""Small files of the run directory that the next lbd reads: written as a whole, and good for one boot."""

from __future__ import annotations

import os
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot() -> str:
    """The kernel's name of this boot, a UUID."""
    return BOOT_ID.read_text().strip()


def write_whole(path: Path, *parts: bytes | bytearray) -> None:
    """Mode 0600. A reader sees the old file or the new one, whenever a process dies; OSError leaves the old one.

    No fsync: a power cut takes what is recorded along with the record.
    """
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.writelines(parts)
        fresh.replace(path)
    except OSError:  # half of it would keep full what is
        fresh.unlink(missing_ok=True)
        raise
