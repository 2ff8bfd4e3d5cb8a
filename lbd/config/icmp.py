# SPDX-License-Identifier: Apache-2.0
"""Services of ICMP: what goes with pings, which have no ports. As in rule.py; see docs/protocols.md."""

from collections.abc import Iterator

from lbd.config.address import Endpoint
from lbd.config.rule import Finding, View


def errors(view: View) -> list[Finding]:
    return [*_ports(view), *_sorry_port(view)]


def _ports(view: View) -> Iterator[Finding]:
    for outer, service in view.services():
        if service.protocol != "icmp" or not view.good(outer, "protocol"):
            continue
        named = [((*outer, "address"), service.address)]
        named += [((*loc, "address"), server.address) for loc, server in view.real_servers(outer, service)]
        for at, point in view.each(service.addresses, *outer, "addresses"):
            if point.protocol:
                yield at, f"must be of ICMP, as the service, not {point.protocol}; make it a service of its own"
            else:
                named.append((at, point.endpoint))
        if service.sorry_server is not None:
            named.append(((*outer, "sorry_server"), service.sorry_server))
        for loc, endpoint in named:
            if endpoint.port and view.good(loc[:-1], str(loc[-1])):
                yield loc, f'must have no port, since ICMP has none, not {endpoint.port}; write "{endpoint.addr}"'


def _sorry_port(view: View) -> Iterator[Finding]:
    """It has one but for ICMP."""
    for loc, service in view.services():
        sorry = service.sorry_server
        if service.protocol != "icmp" and sorry is not None and not sorry.port and view.good(loc, "protocol", "sorry_server"):
            yield (*loc, "sorry_server"), f'needs a port; write "{Endpoint(sorry.addr, service.port or 80)}"'
