# SPDX-License-Identifier: Apache-2.0
"""Which packets the XDP program takes away from the kernel: its maps follow what workers know.

Scope: services and local addresses. (Interfaces and sockets are put there once, by `startup.py`, and by the supervisor
when a socket is opened anew.) Reads the maps back, so that a new master finds what its predecessor steered.

    not steered ──every worker applied it──► steered ──not wanted any more──► not steered ──► workers are told

Prohibited: steering a service before every worker knows it (its packets would be dropped as `no_service`), and telling
workers of its end while packets still come. A local address goes last of all: while connections hold ports of it, their
answers must not reach the kernel, which would answer RST.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lbd.master.desired import Desired
from lbd.master.encode import family

log = logging.getLogger(__name__)

ServiceAt = tuple[int, bytes, int, int]  # af, address, port, protocol
LipAt = tuple[int, bytes]  # af, address
Ports = tuple[int, int]


class Steering:
    """`program`: lbd.xdp._xsk.Program. `in_use`: connections that hold a port of a local address."""

    def __init__(self, program: Any, in_use: Callable[[bytes], int]) -> None:
        self._program = program
        self._in_use = in_use
        self._services: set[ServiceAt] = set(program.services())
        self._lips: dict[LipAt, Ports] = dict(program.lips())
        self._wanted: tuple[Mapping[ServiceAt, int], Mapping[LipAt, Ports]] = ({}, {})

    def withdraw(self, desired: Desired) -> None:
        """Before workers are told: what is not wanted any more. Local addresses in use stay until they are not."""
        self._wanted = wanted(desired)
        services, _ = self._wanted
        for at in self._services - services.keys():
            self._program.del_service(*at)
            self._services.discard(at)
        self.tend()

    def extend(self) -> None:
        """After every worker has applied what `withdraw` was given last: what is new."""
        services, lips = self._wanted
        for at, ports in lips.items():
            if self._lips.get(at) != ports:
                self._program.set_lip(*at, *ports)
                self._lips[at] = ports
        for service, number in services.items():
            if service not in self._services:
                self._program.set_service(*service, number)
                self._services.add(service)

    def tend(self) -> None:
        """Now and then: local addresses that were only waiting for their last connection."""
        for at in self._lips.keys() - self._wanted[1].keys():
            if self._in_use(at[1]) == 0:
                self._program.del_lip(*at)
                del self._lips[at]

    @property
    def leaving(self) -> set[bytes]:
        """Local addresses that are not wanted any more, but steered still."""
        return {address for _, address in self._lips.keys() - self._wanted[1].keys()}

    def stop(self) -> None:
        """Nothing is taken away from the kernel any more."""
        for at in tuple(self._services):
            self._program.del_service(*at)
            self._services.discard(at)
        for lip in tuple(self._lips):
            self._program.del_lip(*lip)
            del self._lips[lip]


def wanted(desired: Desired) -> tuple[dict[ServiceAt, int], dict[LipAt, Ports]]:
    services = {
        (family(s.address), s.address, s.port, s.protocol): n for n, s in enumerate(desired.services)
    }
    lips = {(family(lip.address), lip.address): (lip.port_lo, lip.port_hi) for lip in desired.local_addresses}
    return services, lips
