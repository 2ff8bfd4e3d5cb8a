# SPDX-License-Identifier: Apache-2.0
"""What no single field can tell: duplicates, families, references, sizes that must fit each other.

The rules see a View: the configuration without the values that are wrong in themselves, so that all
problems are reported at once. A rule says nothing where such a gap could be the reason (`view.good`,
`view.whole`). What only looks odd is in oddity.py.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lbd.config import snat_rule
from lbd.config.interface import LocalAddress
from lbd.config.model import Config
from lbd.config.problem import Loc
from lbd.config.service import RealServer, Service
from lbd.config.snat import PoolAddress
from lbd.config.tunnel import Encapsulation, ServerEncapsulation
from lbd.config.value import duration_text, shown
from lbd.sched import scheduler

Finding = tuple[Loc, str]
T = TypeVar("T")


@dataclass(frozen=True)
class View:
    config: Config
    bad: frozenset[Loc] = frozenset()  # values that were taken out, by their paths in the file
    kept: dict[Loc, list[int]] = field(default_factory=dict)  # arrays that lost elements: those that stay

    def each(self, items: Sequence[T], *loc: str | int) -> Iterator[tuple[Loc, T]]:
        """The elements of an array, each with its path in the file."""
        numbers = self.kept.get(loc)
        for i, item in enumerate(items):
            yield (*loc, numbers[i] if numbers else i), item

    def services(self) -> Iterator[tuple[Loc, Service]]:
        return self.each(self.config.service, "service")

    def real_servers(self, loc: Loc, service: Service) -> Iterator[tuple[Loc, RealServer]]:
        return self.each(service.real_server, *loc, "real_server")

    def pools(self) -> Iterator[tuple[Loc, PoolAddress]]:
        for outer, rule in self.each(self.config.snat, "snat"):
            yield from self.each(rule.pool, *outer, "pool")

    def own_addresses(self) -> Iterator[tuple[Loc, LocalAddress]]:
        """Local addresses, and those of SNAT pools."""
        yield from self.each(self.config.local_address, "local_address")
        yield from self.pools()

    def whole(self, *loc: str | int) -> bool:
        """Whether nothing was taken out of this array."""
        return loc not in self.kept and loc not in self.bad

    def good(self, loc: Loc, *keys: str) -> bool:
        """Whether these keys of a table are as the file has them."""
        return not any((*loc, key) in self.bad for key in keys)


def errors(view: View) -> list[Finding]:
    return [finding for rule in RULES for finding in rule(view)]


def _repeated(items: Iterable[tuple[Loc, Hashable]]) -> Iterator[tuple[Loc, str]]:
    """Those that were there before, each with the name of the first of its kind: `service[0]`."""
    first: dict[Hashable, Loc] = {}
    for loc, key in items:
        if first.setdefault(key, loc) != loc:
            yield loc, _element(first[key])


def _element(loc: Loc) -> str:
    return f"{loc[-2]}[{loc[-1]}]"


def _names(view: View) -> Iterator[Finding]:
    for loc, first in _repeated((loc, s.name) for loc, s in view.services()):
        yield (*loc, "name"), f"must be unique; {first} has this name: choose another"
    for loc, first in _repeated((loc, i.name) for loc, i in view.each(view.config.interface, "interface")):
        yield (*loc, "name"), f"stands twice; {first} is the same interface: remove one"


def _addresses(view: View) -> Iterator[Finding]:
    known = ((loc, key) for loc, s in view.services() if view.good(loc, "protocol") for key in dict.fromkeys(s.points))
    for loc, first in _repeated(known):
        yield (*loc, "address"), f"{first} has this address, port and protocol: join the two, or change one"
    vips = {vip: s.name for s in view.config.service for vip in s.vips}
    lips = {lip.address for lip in view.config.own_addresses()}
    local = list(view.each(view.config.local_address, "local_address"))
    for loc, first in _repeated((loc, lip.address) for loc, lip in local):
        yield (*loc, "address"), f"{first} is the same address: remove one"
    for loc, lip in view.own_addresses():
        if lip.address in vips:
            vip = f'{lip.address}, that of service "{vips[lip.address]}"'
            yield (*loc, "address"), f"must not be a VIP, as is {vip}: use another address"
    for outer, service in view.services():
        servers = list(view.real_servers(outer, service))
        for loc, first in _repeated((loc, r.address) for loc, r in servers):
            yield (*loc, "address"), f"{first} is the same real server: remove one, or add up the weights"
        for loc, server in servers:
            addr = server.address.addr
            if addr in vips or addr in lips:
                own = "VIP" if addr in vips else "local address"
                yield (
                    (*loc, "address"),
                    f"must not be a {own} of lbd itself: use the real server's own address",
                )


def _sorry_servers(view: View) -> Iterator[Finding]:
    vips = {s.vip for s in view.config.service}
    lips = {lip.address for lip in view.config.local_address}
    for outer, service in view.services():
        sorry = service.sorry_server
        if sorry is None or not view.good(outer, "sorry_server", "address", "mode"):
            continue
        loc = (*outer, "sorry_server")
        if sorry.addr in vips or sorry.addr in lips:
            own = "VIP" if sorry.addr in vips else "local address"
            yield loc, f"must not be a {own} of lbd itself: use the server's own address"
        elif any(r.address == sorry for r in service.real_server):
            yield loc, "must not be one of the real servers: they have all failed when it is needed; use another server"
        if sorry.af != service.af and service.mode != "tunnel" and (service.mode, service.af) != ("fullnat", 6):
            yield loc, f"must be IPv{service.af} as the service's address, not IPv{sorry.af}"
        if service.mode in ("dr", "tunnel") and sorry.port != service.port:
            yield loc, f"must have port {service.port} as the service, not {sorry.port}: mode {service.mode} changes no port"


def _families(view: View) -> Iterator[Finding]:
    have = {lip.af for lip in view.config.local_address}
    for outer, service in view.services():
        af = service.af
        for loc, server in view.real_servers(outer, service):
            if server.af == af or service.mode == "tunnel" or (service.mode, af) == ("fullnat", 6):
                continue
            wrong = f"must be IPv{af} as the service's address, not IPv{server.af}"
            why = f"{service.mode} does not translate between them"
            if service.mode == "fullnat":
                why = "fullnat translates from an IPv6 service to IPv4 real servers, not the other way round"
            yield (*loc, "address"), f"{wrong}; {why}"
        if service.mode != "fullnat" or not view.whole("local_address"):
            continue
        sorry = {service.sorry_server.af} if service.sorry_server is not None else set()
        for needed in sorted(({server.af for server in service.real_server} | sorry) - have):
            example = "10.0.0.10" if needed == 4 else "fd00::10"
            needs = f"needs a local address of IPv{needed} for fullnat to send from"
            why = ", to IPv4 real servers" if needed != af else ""
            yield outer, f'{needs}{why}; add [[local_address]] with address = "{example}" or the like'


def _modes(view: View) -> Iterator[Finding]:
    for outer, service in view.services():
        if service.mode not in ("dr", "tunnel") or not view.good(outer, "mode", "address"):
            continue
        port = service.fixed_port
        for loc, server in view.real_servers(outer, service):
            if server.address.port != port and service.port:
                must = f"must have port {port} as the service" if port else "must have no port, since the service has several"
                wrong = f"{must}, not {server.address.port}"
                yield (*loc, "address"), f"{wrong}: mode {service.mode} changes no port; or use nat or fullnat"


def _encapsulations(view: View) -> Iterator[Finding]:
    """What a table `tunnel` says must have an effect."""
    for outer, service in view.services():
        own = service.tunnel or Encapsulation()
        tables: list[tuple[Loc, Encapsulation | ServerEncapsulation | None]] = [((*outer, "tunnel"), service.tunnel)]
        tables += [((*loc, "tunnel"), r.tunnel) for loc, r in view.real_servers(outer, service)]
        for loc, table in tables:
            if table is None:
                continue
            if service.mode != "tunnel" and view.good(outer, "mode"):
                yield loc, f'has no effect in mode {service.mode}; remove it, or write mode = "tunnel"'
            kind = table.type or own.type
            if not view.good(loc, "type") or not view.good((*outer, "tunnel"), "type"):
                continue
            if kind != "gue" and "port" in table.model_fields_set and view.good(loc, "port"):
                yield (*loc, "port"), f'is GUE\'s, and the type is {kind}; remove it, or write type = "gue"'
            if kind == "ipip" and table.checksum == "full":
                yield (*loc, "checksum"), 'ipip has none; remove it, or write type = "gre" or type = "gue"'
        families = {r.af for r in service.real_server}
        if own.source is not None and families and own.source.version not in families and view.whole(*outer, "real_server"):
            yield (*outer, "tunnel", "source"), f"no real server is of IPv{own.source.version}; use an address of their family"


def _tunnel_ends(view: View) -> Iterator[Finding]:
    ends = list(view.each(view.config.tunnel, "tunnel"))
    for loc, first in _repeated((loc, t.name) for loc, t in ends):
        yield (*loc, "name"), f"must be unique; {first} has this name: choose another"
    for loc, first in _repeated((loc, t.key) for loc, t in ends):
        yield (*loc, "local"), f"{first} has this type, local and remote address: remove one"
    for loc, tunnel in ends:
        if tunnel.remote is not None and tunnel.remote.version != tunnel.local.version:
            yield (*loc, "remote"), f"must be IPv{tunnel.local.version} as `local`; {tunnel.remote} is not"


def _managed(view: View) -> Iterator[Finding]:
    for loc, lip in view.own_addresses():
        if lip.manage and lip.interface is None and view.good(loc, "manage", "interface"):
            yield (
                loc,
                "needs `interface`, where to add it; or write manage = false if the host has it already",
            )
    first: dict[object, tuple[Loc, Service]] = {}
    for loc, service in view.services():
        for vip in service.vips:
            where, other = first.setdefault(vip, (loc, service))
            if not all(view.good(at, "manage", "interface") for at in (loc, where)):
                continue
            for key in ("manage", "interface"):
                if getattr(service, key) != getattr(other, key):
                    same = f"{_element(where)}, whose VIP {vip} is the same"
                    yield (*loc, key), f"must be as in {same}; write it in both, and alike"


def _interfaces(view: View) -> Iterator[Finding]:
    config = view.config
    if not view.whole("interface"):
        return
    if not config.interface:
        yield (
            ("interface",),
            'is missing; lbd needs one to work on: add [[interface]] with name = "eth0" or the like',
        )
        return
    known = [i.name for i in config.interface]
    users = [(loc, n.interface) for loc, n in view.each(config.neighbor, "neighbor")]
    users += [(loc, r.interface) for loc, r in view.each(config.route, "route")]
    named = [((*loc, "interface"), name) for loc, name in users]
    for loc, rule in view.each(config.snat, "snat"):
        ways = (("in_interface", rule.in_interface), ("out_interface", rule.out_interface))
        named += [((*loc, key), name) for key, name in ways if name is not None]
    for loc, name in named:
        if name not in known:
            wrong = f"must be an interface of lbd ({', '.join(known)}), not {shown(name)}"
            yield loc, f"{wrong}; or add it as an [[interface]]"


def _static(view: View) -> Iterator[Finding]:
    neighbors = view.each(view.config.neighbor, "neighbor")
    for loc, first in _repeated((loc, (n.interface, n.address)) for loc, n in neighbors):
        yield (*loc, "address"), f"{first} is the same neighbour: remove one"
    routes = list(view.each(view.config.route, "route"))
    for loc, first in _repeated((loc, r.destination) for loc, r in routes):
        yield (*loc, "destination"), f"{first} has the same destination: remove one"
    for loc, route in routes:
        if route.gateway is not None and route.gateway.version != route.af:
            yield (*loc, "gateway"), f"must be IPv{route.af} as the destination; {route.gateway} is not"


def _workers(view: View) -> Iterator[Finding]:
    workers = view.config.workers
    for loc, first in _repeated(view.each(workers.cores, "workers", "cores")):
        yield loc, f"is the same core as {first}; give each worker its own"
    limit = len(workers.cores)
    if workers.count and limit and workers.count > limit and view.whole("workers", "cores"):
        yield (
            ("workers", "count"),
            f"must be at most {limit}, as many as `cores` has, not {workers.count}; list more cores, or none",
        )


def _capacity(view: View) -> Iterator[Finding]:
    real_servers = sum(len(s.real_server) + (s.sorry_server is not None) for s in view.config.service)
    rules = len(view.config.snat)  # each takes one of both
    services = sum(1 + len(s.addresses) for s in view.config.service)  # each address has a place
    for key, have in (("services", services + rules), ("real_servers", real_servers + rules)):
        room = getattr(view.config.tables, key)
        if have > room and view.good(("tables",), key):
            yield ("tables", key), f"must be at least {have}, as many as the file has, not {room}; {_more(key, have)}"
    room, have = view.config.tables.real_servers, sum(map(_answers, view.config.service))
    if have > room and view.good(("tables",), "real_servers"):
        what = "as many as there are ports that real servers of mode nat answer from"
        yield ("tables", "real_servers"), f"must be at least {have}, {what}, not {room}; {_more('real_servers', have)}"


def _more(key: str, have: int) -> str:
    return f"write {key} = {min(1 << have.bit_length(), 65535)}" if have <= 65535 else "remove some"


def _answers(service: Service) -> int:
    """Places in the XDP program's table of what is an answer: by real server, port and protocol."""
    if service.mode != "nat":
        return 0
    points = service.points
    return len({(r.address.addr, r.address.port or port, proto) for r in service.real_server for proto, _, port in points})


def _health(view: View) -> Iterator[Finding]:
    for outer, service in view.services():
        loc, health = (*outer, "health"), service.health
        if health is None or not view.good(loc, "timeout", "interval"):
            continue
        if health.timeout > health.interval:
            key = "timeout" if "timeout" in health.model_fields_set else "interval"
            times = duration_text(health.timeout), duration_text(health.interval)
            wrong = "timeout {} must not be longer than interval {}".format(*times)
            yield (*loc, key), f"{wrong}; shorten it, or check less often"


def _schedulers(view: View) -> Iterator[Finding]:
    for loc, service in view.services():
        if not view.good(loc, "scheduler"):
            continue
        name, flags = service.scheduler, service.scheduler_flags
        method = scheduler(name)
        for i, flag in enumerate(flags):
            if flag not in method.OPTIONS:
                have = f"has {' and '.join(shown(f) for f in method.OPTIONS)}" if method.OPTIONS else "has none"
                yield (*loc, "scheduler_flags", i), f"{shown(flag)} is no flag of {shown(name)}, which {have}; remove it"
            elif flag in flags[:i]:
                yield (*loc, "scheduler_flags", i), f"{shown(flag)} stands there already; remove one"
        number, room = len(service.real_server), method.LIMIT
        if room and number > room:
            yield (*loc, "scheduler"), f"{name} takes at most {room} real servers, not {number}; split the service, or use wlc"


Rule = Callable[[View], Iterable[Finding]]
RULES: tuple[Rule, ...] = (
    _names,
    _addresses,
    _sorry_servers,
    _families,
    _modes,
    _encapsulations,
    _tunnel_ends,
    _managed,
    _interfaces,
    _static,
    _workers,
    _capacity,
    _health,
    _schedulers,
    *snat_rule.RULES,
)
