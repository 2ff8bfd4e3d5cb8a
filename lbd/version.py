# SPDX-License-Identifier: Apache-2.0
"""Versions of lbd and of the libraries that it is linked with."""

import ctypes
import re
from pathlib import Path

from lbd import __version__


def versions() -> dict[str, str]:
    """A library that is not there has the version ""."""
    return {"lbd": __version__, **{name: library_version(name) for name in ("libxdp", "libbpf")}}


def library_version(name: str) -> str:
    """Of the file that the loader takes: libxdp has no call that tells its version."""
    try:
        ctypes.CDLL(f"{name}.so.1")
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return ""
    found = re.search(rf"\S*/{name}[^/\s]*\.so\.([0-9][0-9.]*)$", maps, re.MULTILINE)
    return found[1] if found else ""
