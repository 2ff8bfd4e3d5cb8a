# SPDX-License-Identifier: Apache-2.0
"""Which health checks the configuration asks for, and what they say, by (service, real server).

Scope: between `lbd.health`, which knows of neither, and the daemon. A real server in maintenance is not checked, and
forgets what was known of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable, Mapping

from lbd.config import Config
from lbd.config.service import Service
from lbd.health.check import Check, Result, build_check
from lbd.health.core import Health
from lbd.health.target import Status
from lbd.master.runtime import Runtime, Where

log = logging.getLogger(__name__)

NONE: Mapping[Hashable, Check] = {}


class Checks:
    """`on_transition(where, up)`: this real server came or went."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_transition: Callable[[Where, bool], None],
        on_result: Callable[[Where, Result, float], None],
    ) -> None:
        self._on_transition = on_transition
        self._made: dict[str, tuple[Service, dict[Hashable, Check]]] = {}  # by name; of all real servers, maintained or not
        self._health = Health(self._turned, loop, on_result=on_result)  # type: ignore[arg-type]

    def configure(self, config: Config, runtime: Runtime, down: Collection[Where] = ()) -> None:
        """`down`: known to be down from before a restart of the master."""
        targets: dict[Hashable, Check] = {}
        made = {}
        for service in config.service:
            known = self._made.get(service.name)
            if known is None:
                known = (service, checks_of(service))
            elif known[0] is not service:
                known = (service, known[1] if checked_alike(known[0], service) else checks_of(service, known[1]))
            made[service.name] = known
            targets.update(known[1])
        self._made = made
        for where, override in runtime.items():
            if override.state == "maint":
                targets.pop(where, None)
        self._health.set(targets, down)

    def states(self) -> Mapping[Where, Status]:
        return self._health.states()  # type: ignore[return-value]

    def is_up(self, service: str, real_server: str) -> bool:
        status = self._health.states().get((service, real_server))
        return status is None or status.up

    def stop(self) -> None:
        self._health.stop()

    def _turned(self, key: Hashable, up: bool, reason: str) -> None:
        assert isinstance(key, tuple)
        service, real_server = key
        if up:
            log.info("service %s: real server %s is up", service, real_server)
        else:
            log.warning("service %s: real server %s is down: %s", service, real_server, reason)
        self._on_transition((service, real_server), up)


def checked_alike(one: Service, other: Service) -> bool:
    """As after most reloads: weights differ."""
    return one.health == other.health and [r.address for r in one.real_server] == [r.address for r in other.real_server]


def checks_of(service: Service, before: Mapping[Hashable, Check] = NONE) -> dict[Hashable, Check]:
    """Those of `before` themselves that are still the same: `lbd.health` goes on with these, and a second of each would stay."""
    health = service.health
    if health is None:
        return {}
    settings = {name: getattr(health, name) for name in type(health).model_fields if name not in ("type", "port")}
    made: dict[Hashable, Check] = {}
    for r in service.real_server:
        key = (service.name, str(r.address))
        check = build_check(health.type, (str(r.address.addr), health.port or r.address.port), **settings)
        made[key] = was if (was := before.get(key)) == check and was is not None else check
    return made
