# SPDX-License-Identifier: Apache-2.0
"""The record of what lbd added to the kernel, so that it can be taken away after any death.

Scope: the file `<run_dir>/managed.json` and its content. Who adds and removes is `kernel.py`; `cleanup.py`
works it off.

    not ours ──recorded──► ours ──kernel: add──► there ──kernel: remove──► gone ──forgotten──► not ours

Prohibited: adding before the record is saved (a crash between would leave an address that nobody removes),
and forgetting before the kernel has removed it. What was there before lbd came is never recorded, hence
never removed. A record of another boot or network namespace says nothing about this one, and counts as empty.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from lbd.master.runfile import boot, write_whole

log = logging.getLogger(__name__)

Entry = tuple[str, str]  # interface, address: "eth0", "192.0.2.10/32" (neighbours without the length)
PortRange = tuple[int, int]  # first, last

FILE = "managed.json"
_VERSION = 1


def current_scope() -> str:
    """This boot, this network namespace (of the calling thread)."""
    return f"{boot()}:{os.stat('/proc/thread-self/ns/net').st_ino}"


class Managed:
    def __init__(self, run_dir: Path, scope: str) -> None:
        self.path = run_dir / FILE
        self.scope = scope
        self.addresses: set[Entry] = set()
        self.neighbours: set[Entry] = set()
        self.ports: set[PortRange] = set()
        self._load()

    def _load(self) -> None:
        try:
            raw = json.loads(self.path.read_text())
            if raw["version"] != _VERSION or raw["scope"] != self.scope:
                log.info("%s is of another boot, namespace or version: not used", self.path)
                return
            self.addresses = {(str(name), str(address)) for name, address in raw["addresses"]}
            self.neighbours = {(str(name), str(address)) for name, address in raw["neighbours"]}
            self.ports = {(int(first), int(last)) for first, last in raw["ports"]}
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.error("%s cannot be read: what an earlier lbd added stays: %s", self.path, error)

    def text(self) -> str:
        def rows(entries: Iterable[tuple[object, object]]) -> list[list[object]]:
            return sorted((list(entry) for entry in entries), key=str)

        content = {
            "version": _VERSION,
            "scope": self.scope,
            "addresses": rows(self.addresses),
            "neighbours": rows(self.neighbours),
            "ports": rows(self.ports),
        }
        return json.dumps(content, indent=1) + "\n"

    def write(self, text: str) -> None:
        write_whole(self.path, text.encode())
