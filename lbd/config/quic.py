# SPDX-License-Identifier: Apache-2.0
"""QUIC connection ids in the configuration: which number is a real server's, and what does not go together. See docs/quic.md."""

from __future__ import annotations

from collections.abc import Iterator

from lbd.config.problem import Loc
from lbd.config.rule import Finding, View
from lbd.config.service import RealServer, Service

FORMS = {"quic-lb": 1, "katran": 2, "dpvs": 3}  # QuicForm of quic.pxd
DIGITS = {"quic-lb": 16, "katran": 8}  # of a server's id, at most


def id_length(service: Service) -> int:
    """Bytes of a server's id."""
    if service.quic == "quic-lb":
        return max((len(r.quic_id) // 2 for r in service.real_server if r.quic_id), default=1)
    return service.quic_id_length if service.quic == "dpvs" else 0


def server_id(service: Service, real: RealServer) -> int | None:
    if service.quic == "dpvs":
        return int.from_bytes(real.address.addr.packed[-service.quic_id_length :], "big")
    return int(real.quic_id, 16) if service.quic and real.quic_id else None


def errors(view: View) -> list[Finding]:
    return [*_findings(view)]


def _findings(view: View) -> Iterator[Finding]:
    for loc, service in view.services():
        if not view.good(loc, "protocol", "quic", "hash_target", "scheduler"):
            continue
        yield from _service(loc, service)
        yield from _real_servers(view, loc, service)


def _service(loc: Loc, service: Service) -> Iterator[Finding]:
    if service.quic and service.protocol != "udp":
        yield (*loc, "quic"), f'needs protocol = "udp", not "{service.protocol}": QUIC is carried by it'
    if service.hash_target == "qid" and service.protocol != "udp":
        yield (*loc, "hash_target"), 'qid needs protocol = "udp"; write hash_target = "sip"'
    if service.hash_target == "qid" and service.scheduler != "conhash":
        yield (*loc, "hash_target"), f'goes with scheduler = "conhash", not with "{service.scheduler}"; remove it'
    for key, form in (("quic_config", "quic-lb"), ("quic_id_length", "dpvs")):
        if key in service.model_fields_set and service.quic != form:
            yield (*loc, key), f'goes with quic = "{form}" alone; remove it'


def _real_servers(view: View, outer: Loc, service: Service) -> Iterator[Finding]:
    first: dict[object, Loc] = {}
    length = 0
    for loc, real in view.real_servers(outer, service):
        if not view.good(loc, "quic_id", "address"):
            continue
        if service.quic in DIGITS:
            if real.quic_id is None:
                yield loc, f'needs quic_id, by which quic = "{service.quic}" knows it; write quic_id = "2a" or the like'
                continue
            digits = len(real.quic_id)
            if digits > DIGITS[service.quic]:
                yield (*loc, "quic_id"), f"has {digits} digits; {service.quic} has {DIGITS[service.quic]} at most"
                continue
            length = length or digits
            if service.quic == "quic-lb" and digits != length:
                yield (*loc, "quic_id"), f"has {digits} digits, another one {length}: all ids of a service are of one length"
                continue
        elif real.quic_id is not None:
            why = "dpvs takes it from the address" if service.quic else "the service has no `quic`"
            yield (*loc, "quic_id"), f"has no effect: {why}; remove it"
            continue
        if service.quic:
            key = (server_id(service, real), real.address.port if service.quic == "dpvs" else 0)
            if first.setdefault(key, loc) != loc:
                yield from _same(service, loc, first[key])


def _same(service: Service, loc: Loc, other: Loc) -> Iterator[Finding]:
    name = f"real_server[{other[-1]}]"
    if service.quic == "dpvs":
        yield (*loc, "address"), f"ends as that of {name}, so that connection ids can't tell them apart; raise quic_id_length"
    else:
        yield (*loc, "quic_id"), f"{name} has this id already; choose another"
