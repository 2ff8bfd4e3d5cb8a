# SPDX-License-Identifier: Apache-2.0
"""What an operator changed at run time: weights and states of real servers, over what the configuration says.

Kept in a file of the run directory, so that a crash of the master does not put a drained server back; a proper stop
removes it. A change ends when the configuration's own weight of that real server changes, or the real server goes.

    ready   as configured, or with another weight
    drain   keeps its connections, gets no new ones; with a deadline: until that, then they are ended
    maint   taken out: no new connections, no health checks
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lbd.config import Config
from lbd.master.runfile import write_whole

log = logging.getLogger(__name__)

STATES = ("ready", "drain", "maint")
FULL = 100  # percent
Where = tuple[str, str]  # service name, real server's address and port


@dataclass(frozen=True, slots=True)
class Drain:
    """Until a deadline; times are seconds since 1970."""

    began: float
    deadline: float
    stages: int = 1  # the weight falls in so many equal steps, the first at once, the last half-way to the deadline
    reset: bool = False  # the deadline ends TCP connections with a RST to both ends

    def share(self, now: float) -> int:
        """Percent of the weight."""
        if self.stages == 1:
            return 0
        step = (self.deadline - self.began) / 2 / (self.stages - 1)
        done = min(self.stages, 1 + max(0, int((now - self.began) / step)))
        return FULL * (self.stages - done) // self.stages

    def left(self, now: float) -> float:
        return max(0.0, self.deadline - now)


@dataclass(frozen=True, slots=True)
class Override:
    weight: int | None = None  # None: the configured one
    state: str = "ready"
    drain: Drain | None = None  # state drain: with a deadline

    def share(self, now: float | None = None) -> int:
        """Percent of the weight that the state leaves."""
        if self.state != "drain":
            return FULL
        return 0 if self.drain is None else self.drain.share(time.time() if now is None else now)

    def end(self, now: float) -> str:
        """Are its connections to be ended: "", "expire" or "reset"."""
        if self.state != "drain" or self.drain is None or now < self.drain.deadline:
            return ""
        return "reset" if self.drain.reset else "expire"


PLAIN = Override()


class Runtime:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._all: dict[Where, Override] = {}
        self.ramps: dict[Where, float] = {}  # when slow starts under way began

    def get(self, service: str, real_server: str) -> Override:
        return self._all.get((service, real_server), PLAIN)

    def __contains__(self, where: Where) -> bool:
        return where in self._all

    def items(self) -> Iterator[tuple[Where, Override]]:
        return iter(self._all.items())

    def change(self, where: Where, **values: int | str | Drain | None) -> Override:
        """`weight`, `state` and `drain`, those given; saved at once. A state comes without the deadline of the one before."""
        if "state" in values:
            values = {"drain": None, **values}
        after = replace(self.get(*where), **values)  # type: ignore[arg-type]
        if after == PLAIN:
            self._all.pop(where, None)
        else:
            self._all[where] = after
        self.save()
        return after

    def ramp(self, where: Where, began: float | None) -> None:
        """A slow start has begun, or has ended; saved at once."""
        if self.ramps.get(where) == began:
            return
        if began is None:
            del self.ramps[where]
        else:
            self.ramps[where] = began
        self.save()

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
                drain = Drain(**given) if (given := entry.get("drain")) is not None else None
                if where not in known or state not in STATES or not (weight is None or 0 <= int(weight) <= 65535):
                    continue
                if (override := Override(weight, state, drain)) != PLAIN:
                    self._all[where] = override
                if (began := entry.get("slow_start")) is not None:
                    self.ramps[where] = float(began)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s can't be used, runtime changes from before are lost: %s", self.path, error)

    def save(self) -> None:
        text = json.dumps(
            [
                {"service": where[0], "real_server": where[1], **asdict(self.get(*where)), "slow_start": self.ramps.get(where)}
                for where in {**self._all, **self.ramps}
            ]
        )
        try:
            write_whole(self.path, text.encode())
        except OSError as error:
            log.warning("runtime changes are not saved: %s", error)

    def forget(self) -> None:
        """At a proper stop."""
        self.path.unlink(missing_ok=True)


def weights(config: Config, names: Collection[str] | None = None) -> dict[Where, int]:
    """`names`: of the services that are meant; None: all."""
    some = config.service if names is None else [s for s in config.service if s.name in names]
    return {(s.name, str(r.address)): r.weight for s in some for r in s.real_server}
