# SPDX-License-Identifier: Apache-2.0
"""Configuration, health, runtime changes and the mirrored kernel, put together: the desired state.

Scope: pure. Keeps what it made last, part by part, and makes a part anew only when told that something in it changed
(`touch`, `look`): a health transition among thousands of services costs one service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from lbd.config import Config
from lbd.config.quic import FORMS, id_length, server_id
from lbd.config.service import RealServer as ConfiguredServer
from lbd.config.service import Service as ConfiguredService
from lbd.config.snat import AddressRange, Snat
from lbd.config.tunnel import Encapsulation as ConfiguredEncapsulation
from lbd.config.tunnel import ServerEncapsulation, effective
from lbd.master.course import WHOLE, Standing
from lbd.master.desired import IPIP, Desired, Encapsulation, LocalAddress, Range, RealServer, Service, SnatRule, Tunnel
from lbd.master.reach import NextHops, Reach
from lbd.master.record import Address4or6
from lbd.master.runtime import PLAIN, Override
from lbd.sched import FULL
from lbd.shm import _shm as shm

POLL_MODES = ("busy", "adaptive", "interrupt")
KERNEL_RATE = 1000  # packets per second and worker that the exception path carries
# tcp.pxd's TcpState, or place among the timeouts, for each field of [timeouts]
TIMEOUT_STATES = {
    "tcp_syn_recv": 1,
    "tcp_established": 2,
    "tcp_close_wait": 3,
    "tcp_last_ack": 4,
    "tcp_fin_wait": 5,
    "tcp_time_wait": 6,
    "tcp_close": 7,
    "udp": 8,
    "sctp_established": 14,
    "sctp_shutdown": 15,
    "icmp": 10,
}
UDP_ONEWAY = 9
SNAT_PROTOCOLS = {"tcp": shm.SNAT_TCP, "udp": shm.SNAT_UDP, "icmp": shm.SNAT_ICMP}
PARTS = ("snat", "tunnels", "local_addresses", "interfaces", "neighbours", "routes", "own", "settings")


def local_addresses(config: Config) -> tuple[LocalAddress, ...]:
    pools = {a.address for rule in config.snat for a in rule.pool}
    return tuple(
        LocalAddress(a.address.packed, a.ports.lo, a.ports.hi, a.address in pools) for a in config.own_addresses()
    )


def snat_rules(config: Config) -> tuple[SnatRule, ...]:
    numbers = {interface.name: n for n, interface in enumerate(config.interface)}
    return tuple(snat_rule(n, rule, numbers) for n, rule in enumerate(config.snat))


def snat_rule(order: int, rule: Snat, numbers: Mapping[str, int]) -> SnatRule:
    return SnatRule(
        name=rule.name,
        order=order,
        protocols=SNAT_PROTOCOLS.get(rule.protocol, sum(SNAT_PROTOCOLS.values())),
        source=disjoint(rule.source),
        destination=disjoint(rule.destination),
        pool=tuple(a.address.packed for a in rule.pool),
        in_interface=numbers[rule.in_interface] if rule.in_interface is not None else None,
        out_interface=numbers[rule.out_interface] if rule.out_interface is not None else None,
        timeout_established=milliseconds(rule.tcp_established),
    )


def disjoint(ranges: Iterable[AddressRange]) -> tuple[Range, ...]:
    """Ascending, joined where they overlap or touch. Of one family."""
    joined: list[AddressRange] = []
    for some in sorted(ranges, key=lambda r: int(r.first)):
        if joined and int(some.first) <= int(joined[-1].last) + 1:
            joined[-1] = AddressRange(joined[-1].first, max(joined[-1].last, some.last, key=int))
        else:
            joined.append(some)
    return tuple((r.first.packed, r.last.packed) for r in joined)


def always_up(service: str, real_server: str) -> bool:
    return True


def no_override(service: str, real_server: str) -> Override:
    return PLAIN


def no_course(service: str, real_server: str) -> Standing:
    return WHOLE


class Composer:
    def __init__(
        self,
        config: Config,
        healthy: Callable[[str, str], bool] = always_up,
        override: Callable[[str, str], Override] = no_override,
        standing: Callable[[str, str], Standing] = no_course,
    ) -> None:
        self.healthy = healthy
        self.override = override
        self.standing = standing
        self._services: dict[str, tuple[ConfiguredService, Service]] = {}
        self._destinations: frozenset[Address4or6] | None = None
        self._hops: tuple[object, NextHops] | None = None  # of what they were found from
        self.desired = Desired()
        self.configure(config)

    # -- what changed ----------------------------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        self.config = config
        self._destinations = None
        kept = self._services
        self._services = {}
        for service in config.service:
            old = kept.get(service.name)
            if old is None or (old[0] is not service and old[0] != service):
                old = (service, self._service(service))
            self._services[service.name] = old
        self._join(
            snat=snat_rules(config),
            tunnels=tuple(
                Tunnel(t.type, t.local.packed, t.remote.packed if t.remote is not None else b"") for t in config.tunnel
            ),
            local_addresses=local_addresses(config),
            settings=settings(config),
        )

    def touch(self, *names: str) -> None:
        """Health or a runtime change of one of these services' real servers."""
        for name in names:
            if name in self._services:
                service = self._services[name][0]
                self._services[name] = (service, self._service(service))
        self._join()

    def refresh(self) -> None:
        self.touch(*self._services)

    def service(self, name: str) -> Service:
        return self._services[name][1]

    def look(self, reach: Reach, *, neighbours: bool = True, routes: bool = True) -> None:
        """A new snapshot of the kernel; what it left alone need not be made anew."""
        parts: dict[str, object] = {"interfaces": reach.interfaces()}
        if neighbours:
            parts["neighbours"] = reach.neighbours(self.next_hops(reach))
        if routes:
            parts["routes"] = reach.routes(self.destinations())
            parts["own"] = reach.own_addresses()  # which routes follow, too
        self._join(**parts)

    # -- what follows ----------------------------------------------------------------------------------------

    def destinations(self) -> frozenset[Address4or6]:
        """Addresses of the real servers, and of the sorry servers."""
        if self._destinations is None:
            self._destinations = frozenset(r.addr for s in self.config.service for r in s.servers)
        return self._destinations

    def next_hops(self, reach: Reach) -> NextHops:
        """Found again only if routes or destinations are others: most looks are for neighbours and addresses."""
        source = (reach.snapshot.routes, reach.places, self.destinations(), self.config.snat)
        if self._hops is None or self._hops[0] != source:
            self._hops = (source, reach.next_hops(self.destinations()) | reach.gateways())
        return self._hops[1]

    def _join(self, **parts: object) -> None:
        now = self.desired
        last = {name: getattr(now, name) for name in PARTS}
        parts = {name: last[name] if last[name] == part else part for name, part in parts.items()}
        services = tuple(service for _, service in self._services.values())
        self.desired = Desired(services, **{**last, **parts})

    def _service(self, s: ConfiguredService) -> Service:
        return Service(
            name=s.name,
            address=s.vip.packed,
            port=s.port,
            protocol=s.proto,
            scheduler=s.scheduler,
            real_servers=tuple(self._real_server(s, r) for r in s.real_server),
            timeout_established=milliseconds(s.tcp_established) if s.tcp_established is not None else 0,
            scheduler_flags=s.scheduler_flags,
            mode=s.mode,
            timeout_fin=milliseconds(s.tcp_fin) if s.tcp_fin is not None else 0,
            timeout_udp=milliseconds(s.udp_timeout) if s.udp_timeout is not None else 0,
            expire=("nodest",) * s.expire_nodest + ("quiescent",) * s.expire_quiescent,
            sorry=(s.sorry_server.addr.packed, s.sorry_server.port) if s.sorry_server is not None else None,
            sources=(s.tunnel.source.packed,) if s.tunnel is not None and s.tunnel.source is not None else (),
            sorry_tunnel=encapsulation(s, None, s.sorry_server.af) if s.sorry_server is not None else IPIP,
            hash_qid=s.hash_target == "qid",
            quic=(FORMS[s.quic], id_length(s), s.quic_config) if s.quic else (0, 0, 0),
            further=tuple((addr.packed, port, proto) for proto, addr, port in s.points[1:]),
            persistence=milliseconds(s.persistence) if s.persistence is not None else 0,
            persistence_prefix=s.prefix if s.persistence is not None else 0,
            one_packet=s.one_packet,
        )

    def _real_server(self, s: ConfiguredService, r: ConfiguredServer) -> RealServer:
        name = str(r.address)
        override = self.override(s.name, name)
        standing = self.standing(s.name, name)
        weight, up = in_force(r.weight, override, self.healthy(s.name, name), standing.share)
        return RealServer(
            r.address.addr.packed,
            r.address.port,
            weight,
            up,
            rest=0 if weight else override.weight or r.weight,
            share=standing.share if weight else FULL,
            end=standing.end,
            tunnel=encapsulation(s, r.tunnel, r.af),
            quic_id=server_id(s, r),
            upper=r.upper_threshold,
            lower=r.lower_threshold,
        )


def encapsulation(s: ConfiguredService, own: ServerEncapsulation | None, af: int) -> Encapsulation:
    if s.mode != "tunnel":
        return IPIP
    kind, port, checksum = effective(s.tunnel or ConfiguredEncapsulation(), own, af)
    return Encapsulation(kind, port, checksum == "full")


def in_force(configured: int, override: Override, healthy: bool, share: int | None = None) -> tuple[int, bool]:
    """Weight and whether it may serve. `share`: what a drain in stages leaves of it, in percent; None: as it is now."""
    weight = configured if override.weight is None else override.weight
    if override.state == "drain" and (override.drain is None or not (override.share() if share is None else share)):
        weight = 0
    return weight, healthy and override.state != "maint"


def state_in_force(weight: int, up: bool, override: Override) -> str:
    """up, down, drain or maint, of what in_force gave."""
    if override.state == "maint":
        return "maint"
    if override.state == "drain" and up:
        return "drain"  # in stages it has some of its weight still
    return "down" if not up else "up" if weight > 0 else "drain"


def milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def settings(config: Config) -> dict[int, int]:
    base = shm.SET_TIMEOUT_BASE
    values = {
        shm.SET_POLL_MODE: POLL_MODES.index(config.workers.poll),
        shm.SET_VERIFY_CSUM: int(config.packet.verify_checksums),
        shm.SET_RETURN_ROUTE: int(config.packet.return_path == "route"),
        shm.SET_ICMP_RATE: config.packet.icmp_rate,
        shm.SET_KERNEL_RATE: KERNEL_RATE,
        shm.SET_FRAG_TIMEOUT: milliseconds(config.packet.fragment_timeout),
        shm.SET_PORT_REST: milliseconds(config.packet.port_rest),
    }
    for name, state in TIMEOUT_STATES.items():
        values[base + state] = milliseconds(getattr(config.timeouts, name))
    values[base + UDP_ONEWAY] = values[base + TIMEOUT_STATES["udp"]]
    return values
