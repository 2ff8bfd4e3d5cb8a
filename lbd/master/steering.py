# SPDX-License-Identifier: Apache-2.0
"""Which packets the XDP program takes away from the kernel: its maps follow what workers know.

Scope: services, local addresses, real servers whose answers, or whose tunnels' ICMP errors, are lbd's; for SNAT rules see
snat_steering.py. (Interfaces and sockets are put there once, by `startup.py`, and by the supervisor when a socket is opened
anew.) Reads the maps back, so that a new master finds what its predecessor steered.

    service         not steered ──every worker has applied it──► steered ──not wanted, and it has no connection──► not steered
    local address   not steered ──wanted──► steered ──not wanted, and no connection holds a port of it──► not steered
    answers         not steered ──wanted──► steered ──not wanted, applied, and no real server there has connections──► not steered

So of a batch of changes, `prepare` comes before workers are told, and `extend` after all of them have applied it.

Prohibited: steering a service before every worker knows it (its packets would go to the kernel); unsteering one that has
connections (the kernel would answer RST; what opens none goes there by way of the workers); letting a worker open connections from
a local address that is not steered, or unsteering one that is in use: the answers would reach the kernel, which would answer RST.
NB: for the same reason ports that a local address gives up stay steered until lbd is restarted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lbd.master.desired import ICMP, ICMPV6, Desired, Service
from lbd.master.encode import family
from lbd.master.snat_steering import SnatSteering

log = logging.getLogger(__name__)

ServiceAt = tuple[int, bytes, int, int]  # af, address, port, protocol
LipAt = tuple[int, bytes]  # af, address
Ports = tuple[int, int]
TunnelAt = tuple[int, bytes, bytes, int, int]  # af, local address, remote address, protocol, port; as Program.set_tunnel
TUNNEL_PROTOCOLS = {"ipip": 4, "gre": 47, "gue": 17}


class Steering:
    """`program`: lbd.xdp._xsk.Program. `in_use`: whether connections hold ports of a local address; `serving`: whether a service
    that was has some; `answering`: of places that answers in mode nat come from, those where a real server has some."""

    def __init__(
        self,
        program: Any,
        in_use: Callable[[bytes], bool],
        serving: Callable[[ServiceAt], bool],
        answering: Callable[[set[ServiceAt]], set[ServiceAt]],
    ) -> None:
        self._program = program
        self._in_use = in_use
        self._serving = serving
        self._answering = answering
        self._services: set[ServiceAt] = set(program.services())
        self._lips: dict[LipAt, Ports] = dict(program.lips())
        self._sources: set[ServiceAt] = set(program.sources())
        self._sources_wanted: set[ServiceAt] = set()
        self._echo: set[LipAt] = set()  # of the local addresses those that are known to send echo requests
        self._snat = SnatSteering(program)
        self._tunnels: set[TunnelAt] = set(program.tunnels())
        self._ends: set[TunnelAt] = set()  # of tunnels that end here
        self._wanted: tuple[Mapping[ServiceAt, int], Mapping[LipAt, Ports]] = ({}, {})
        self._seen: Desired | None = None  # what that follows from; None: something failed on the way
        self._due = False  # something is wanted, and not steered yet

    def prepare(self, desired: Desired) -> None:
        """Before workers are told."""
        if self._seen is not None and same(self._seen, desired):
            self._seen = desired  # not the first of those alike: it would keep all that has been replaced since
            self.tend()
            return
        self._seen = None
        self._due = True
        self._wanted = wanted(desired)
        lips = self._wanted[1]
        self._answers(sources(desired))
        self._ends = ends(desired)
        self._wrapped(wrapped(desired))
        self._snat.prepare(desired)
        echo = senders(desired)
        for lip, (lo, hi) in lips.items():
            now = self._lips.get(lip, (lo, hi))
            ports = (min(lo, now[0]), max(hi, now[1]))
            if self._lips.get(lip) != ports or (lip in echo) != (lip in self._echo):
                self._program.set_lip(*lip, *ports, echo=lip in echo)
                self._lips[lip] = ports
        self._echo = echo
        self.tend()
        self._seen = desired

    def _answers(self, wanted: set[ServiceAt]) -> None:
        """Before there are connections that have them; what no connection waits for, workers give to the kernel.
        NB: a real server that is gone, or a service whose mode was changed, may still have connections: so they stay till then."""
        self._sources_wanted = wanted
        for at in wanted - self._sources:
            self._program.set_source(*at)
            self._sources.add(at)

    def _wrapped(self, wanted: set[TunnelAt]) -> None:
        """Errors about tunnels that are no more go to the kernel, which passes over them. What comes in a tunnel is lbd's when
        workers know it (`extend`)."""
        for at in wanted - self._tunnels:
            self._program.set_tunnel(*at)
            self._tunnels.add(at)
        for at in self._tunnels - wanted - self._ends:
            self._program.del_tunnel(*at)
            self._tunnels.discard(at)

    def extend(self) -> None:
        """After every worker has applied what `prepare` was given last."""
        if not self._due:
            return
        for service, number in self._wanted[0].items():
            if service not in self._services:
                self._program.set_service(*service, number)
                self._services.add(service)
        for at in self._ends - self._tunnels:
            self._program.set_tunnel(*at)
            self._tunnels.add(at)
        self._snat.extend()
        self._due = False

    def tend(self) -> None:
        """Now and then: what was only waiting for its last connection."""
        for service in self._services - self._wanted[0].keys():
            if not self._serving(service):
                self._program.del_service(*service)
                self._services.discard(service)
        for at in self._lips.keys() - self._wanted[1].keys():
            if not self._in_use(at[1]):
                self._program.del_lip(*at)
                del self._lips[at]
        if self._due or not self.outlived:  # workers may still open connections to what they do not know is gone
            return
        for source in self.outlived - self._answering(self.outlived):
            self._program.del_source(*source)
            self._sources.discard(source)

    @property
    def outlived(self) -> set[ServiceAt]:
        """Where answers come from that nothing is wanted from any more."""
        return self._sources - self._sources_wanted

    @property
    def leaving(self) -> set[bytes]:
        """Addresses of services, and local ones, that are not wanted any more, but steered still."""
        services = {at[1] for at in self._services - self._wanted[0].keys()}
        return services | {address for _, address in self._lips.keys() - self._wanted[1].keys()}

    def stop(self) -> None:
        """Nothing is taken away from the kernel any more."""
        self._snat.stop()
        for at in tuple(self._services):
            self._program.del_service(*at)
            self._services.discard(at)
        for at in tuple(self._sources):
            self._program.del_source(*at)
            self._sources.discard(at)
        self._ends = set()
        self._wrapped(set())
        for lip in tuple(self._lips):
            self._program.del_lip(*lip)
            del self._lips[lip]


def same(one: Desired, other: Desired) -> bool:
    """Nothing of it would be steered otherwise: as it is with all changes of real servers, which are most."""
    if one.local_addresses is not other.local_addresses or len(one.services) != len(other.services):
        return False
    if one.snat is not other.snat or (one.snat and (one.own is not other.own or one.interfaces is not other.interfaces)):
        return False
    if one.tunnels is not other.tunnels:
        return False
    pairs = zip(one.services, other.services, strict=True)
    return all(a is b or (a.keys == b.keys and not {"nat", "tunnel"} & {a.mode, b.mode} and kept(a, b)) for a, b in pairs)


def kept(a: Service, b: Service) -> bool:
    """Whether they send echo requests alike from local addresses."""
    return asking(a) == asking(b)


def asking(s: Service) -> set[int]:
    """Families that the service sends echo requests in, from local addresses: its real servers'."""
    if s.mode != "fullnat" or s.protocol not in (ICMP, ICMPV6):
        return set()
    return {family(r.address) for r in s.real_servers} | {family(s.address), *([family(s.sorry[0])] if s.sorry else [])}


def sources(desired: Desired) -> set[ServiceAt]:
    """Where answers come from that carry no address of lbd."""
    return {
        (family(address), address, own or port, protocol)
        for s in desired.services
        if s.mode == "nat"
        for _, port, protocol in s.keys
        for address, own in (*((r.address, r.port) for r in s.real_servers), *([s.sorry] if s.sorry else []))
    }


def senders(desired: Desired) -> set[LipAt]:
    """Local addresses that lbd sends ICMP echo requests from, with identifiers of its own: those of SNAT pools, and where there are
    ICMP services of mode fullnat all of their families."""
    families = set().union(*(asking(s) for s in desired.services))
    lips = ((family(a.address), a.address, a.snat) for a in desired.local_addresses)
    return {(af, address) for af, address, snat in lips if snat or af in families}


def ends(desired: Desired) -> set[TunnelAt]:
    return {(family(t.local), t.local, t.remote, TUNNEL_PROTOCOLS[t.kind], 0) for t in desired.tunnels}


def wrapped(desired: Desired) -> set[TunnelAt]:
    """Real servers that packets are wrapped for, and how."""
    return {
        (family(address), b"", address, TUNNEL_PROTOCOLS[tunnel.kind], tunnel.port)
        for s in desired.services
        if s.mode == "tunnel"
        for address, tunnel in (
            *((r.address, r.tunnel) for r in s.real_servers),
            *([(s.sorry[0], s.sorry_tunnel)] if s.sorry else []),
        )
    }


def wanted(desired: Desired) -> tuple[dict[ServiceAt, int], dict[LipAt, Ports]]:
    services = {
        (family(address), address, port, protocol): n
        for n, s in enumerate(desired.services)
        for address, port, protocol in s.keys
    }
    lips = {(family(lip.address), lip.address): (lip.port_lo, lip.port_hi) for lip in desired.local_addresses}
    return services, lips
