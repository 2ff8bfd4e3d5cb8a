# SPDX-License-Identifier: Apache-2.0
"""Rules of what services may be told besides: any port, further addresses, persistence, one packet, thresholds.
As in rule.py."""

from collections.abc import Iterator

from lbd.config.address import Endpoint
from lbd.config.rule import Finding, Rule, View


def errors(view: View) -> list[Finding]:
    return [finding for rule in RULES for finding in rule(view)]


def _any_port(view: View) -> Iterator[Finding]:
    for loc, service in view.services():
        if service.protocol == "icmp":  # has none: icmp.py
            continue
        if service.persistence is None and view.good(loc, "persistence", "address"):
            for key, endpoint in [("address", service.address), *(("addresses", p.endpoint) for p in service.addresses)]:
                if endpoint.port == 0:
                    with_port = Endpoint(endpoint.addr, 80)
                    wrong = "zero port specified for non-persistent service: without a port every one is meant"
                    yield (*loc, key), f'{wrong}; write "{with_port}", or add persistence = "6m"'
                    break
        elif any(port == 0 for _, _, port in service.points):
            for inner, server in view.real_servers(loc, service):
                if server.address.port:
                    yield (
                        (*inner, "address"),
                        f"must have no port, since the service has any, and each goes on as it is; "
                        f'write "{server.address.addr}"',
                    )


def _further(view: View) -> Iterator[Finding]:
    for loc, service in view.services():
        own = set(service.points[:1])
        for at, point in view.each(service.addresses, *loc, "addresses"):
            if point.endpoint.af != service.af:
                yield at, f"must be IPv{service.af} as `address`, not IPv{point.endpoint.af}; make it a service of its own"
        for key in service.points[1:]:
            if key in own:
                yield (*loc, "addresses"), f"{Endpoint(key[1], key[2])} stands twice; remove one"
            own.add(key)


def _marks(view: View) -> Iterator[Finding]:
    first: dict[int, str] = {}
    for loc, service in view.services():
        if service.fwmark is not None and first.setdefault(service.fwmark, service.name) != service.name:
            yield (*loc, "fwmark"), f'service "{first[service.fwmark]}" has this number; choose another'


def _persistence(view: View) -> Iterator[Finding]:
    for loc, service in view.services():
        if service.af == 4 and (service.persistence_prefix or 0) > 32:
            wrong = f"must be at most 32 for IPv4, not {service.persistence_prefix}"
            yield (*loc, "persistence_prefix"), f"{wrong}; the mask 255.255.255.0 is 24"


def _one_packet(view: View) -> Iterator[Finding]:
    for loc, service in view.services():
        if service.one_packet and view.good(loc, "protocol") and any(proto != 17 for proto, _, _ in service.points):
            yield (*loc, "one_packet"), 'is for UDP alone; write protocol = "udp", or remove it'


def _thresholds(view: View) -> Iterator[Finding]:
    for outer, service in view.services():
        if not service.limited:
            continue
        for loc, server in view.real_servers(outer, service):
            if view.good(loc, "upper_threshold") and server.lower_threshold > server.upper_threshold > 0:
                wrong = f"must be at most upper_threshold, which is {server.upper_threshold}, not {server.lower_threshold}"
                yield (*loc, "lower_threshold"), f"{wrong}; raise that, or lower this"


def _checked_port(view: View) -> Iterator[Finding]:
    for outer, service in view.services():
        if service.health is None or service.health.port is not None:
            continue
        for _, server in view.real_servers(outer, service):
            if server.address.port == 0:
                has = "has none" if service.protocol == "icmp" else "gets several"
                needs = f"needs a port for the health check, since {server.address.addr} {has}"
                yield (*outer, "health"), f"{needs}; add port = {service.port or 80}"
                break


RULES: tuple[Rule, ...] = (_any_port, _further, _marks, _persistence, _one_packet, _thresholds, _checked_port)
