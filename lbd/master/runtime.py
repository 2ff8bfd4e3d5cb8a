# SPDX-License-Identifier: Apache-2.0
"""What an operator changed at run time: weights and states of real servers, over what the configuration says.

Kept in a file of the run directory, so that a crash of the master does not put a drained server back; a proper stop
removes it. A change ends when the configuration's own weight of that real server changes, or the real server goes.

    ready   as configured, or with another weight
    drain   keeps its connections, gets no new ones
    maint   taken out: no new connections, no health checks
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lbd.config import Config

log = logging.getLogger(__name__)

STATES = ("ready", "drain", "maint")
Where = tuple[str, str]  # service name, real server's address and port


@dataclass(frozen=True, slots=True)
class Override:
    weight: int | None = None  # None: the configured one
    state: str = "ready"


PLAIN = Override()


class Runtime:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._all: dict[Where, Override] = {}

    def get(self, service: str, real_server: str) -> Override:
        return self._all.get((service, real_server), PLAIN)

    def __contains__(self, where: Where) -> bool:
        return where in self._all

    def items(self) -> Iterator[tuple[Where, Override]]:
        return iter(self._all.items())

    def change(self, where: Where, **values: int | str | None) -> Override:
        """`weight` and `state`, those given; saved at once."""
        after = replace(self.get(*where), **values)  # type: ignore[arg-type]
        if after == PLAIN:
            self._all.pop(where, None)
        else:
            self._all[where] = after
        self.save()
        return after

    def follow(self, old: Config, new: Config) -> set[Where]:
        """After a reload: what the new configuration overrules is dropped. Which those were."""
        names = {where[0] for where in self._all}
        before, after = weights(old, names), weights(new, names)
        gone = {where for where in self._all if where not in after or before.get(where, after[where]) != after[where]}
        for where in gone:
            del self._all[where]
        if gone:
            self.save()
        return gone

    # -- file ------------------------------------------------------------------------------------------------

    def load(self, config: Config) -> None:
        """What is there from before a crash, as far as it fits the configuration."""
        try:
            saved = json.loads(self.path.read_text())
            known = weights(config)
            for entry in saved:
                where = (str(entry["service"]), str(entry["real_server"]))
                weight, state = entry["weight"], entry["state"]
                if where in known and state in STATES and (weight is None or 0 <= int(weight) <= 65535):
                    self._all[where] = Override(weight, state)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s can't be used, runtime changes from before are lost: %s", self.path, error)

    def save(self) -> None:
        text = json.dumps([{"service": s, "real_server": r, **asdict(o)} for (s, r), o in self._all.items()])
        fresh = self.path.with_suffix(".new")
        try:
            fresh.write_text(text)
            os.replace(fresh, self.path)
        except OSError as error:
            log.warning("runtime changes are not saved: %s", error)

    def forget(self) -> None:
        """At a proper stop."""
        self.path.unlink(missing_ok=True)


def weights(config: Config, names: Collection[str] | None = None) -> dict[Where, int]:
    """`names`: of the services that are meant; None: all."""
    some = config.service if names is None else [s for s in config.service if s.name in names]
    return {(s.name, str(r.address)): r.weight for s in some for r in s.real_server}
