# SPDX-License-Identifier: Apache-2.0
"""Warnings: what works, but perhaps not as it is meant. As in rule.py, without a look at the host."""

from collections.abc import Iterator

from lbd.config.problem import Loc
from lbd.config.rule import Finding, Rule, View
from lbd.config.service import PROTOCOL_NAMES
from lbd.config.value import duration_text
from lbd.sched import scheduler

EPHEMERAL = (32768, 60999)  # default of net.ipv4.ip_local_port_range
REAL_SERVER_TIME_WAIT = 60.0  # Linux's TCP_TIMEWAIT_LEN
NO_RAMP = {
    "fo": "the heaviest real server gets everything",
    "sh": "each step would send most clients to another real server",
}


def warnings(view: View) -> list[Finding]:
    return [finding for rule in RULES for finding in rule(view)]


def _idle_services(view: View) -> Iterator[Finding]:
    for loc, service in view.services():
        if not view.whole(*loc, "real_server"):
            continue
        if not service.real_server:
            yield (
                loc,
                f'service "{service.name}" has no real server; its connections are dropped until it gets one',
            )
        elif not any(r.weight for r in service.real_server):
            yield loc, f'all weights of service "{service.name}" are 0; it takes no new connection'


def _foreign_interfaces(view: View) -> Iterator[Finding]:
    if not view.whole("interface") or not view.config.interface:
        return
    known = {i.name for i in view.config.interface} | {"lo"}
    holders: list[tuple[Loc, str | None, bool]] = [
        *((loc, s.interface, s.manage) for loc, s in view.services()),
        *((loc, a.interface, a.manage) for loc, a in view.own_addresses()),
    ]
    for loc, name, manage in holders:
        # eth0.7 and eth0.9.7 are what VLANs on eth0 are called
        if manage and name is not None and name.partition(".")[0] not in known:
            listed = ", ".join(sorted(known))
            yield (*loc, "interface"), f'"{name}" is no interface of lbd ({listed}); is it meant?'


def _ineffective(view: View) -> Iterator[Finding]:
    workers = view.config.workers
    if workers.count and len(workers.cores) > workers.count and view.good(("workers",), "count"):
        yield ("workers", "cores"), f"only the first {workers.count} are used, as `count` says"
    for loc, service in view.services():
        protocols = {PROTOCOL_NAMES[proto] for proto, _, _ in service.points}
        unused: tuple[str, ...] = ("tcp_established", "tcp_fin") if protocols <= {"udp", "icmp"} else ()
        unused += ("udp_timeout",) if "udp" not in protocols else ()
        for key in unused:
            if getattr(service, key) is not None and view.good(loc, "protocol"):
                kind = f"{'an' if service.protocol == 'icmp' else 'a'} {service.protocol.upper()}"
                yield (*loc, key), f"has no effect on {kind} service; remove it"
        if service.persistence is None and service.persistence_prefix is not None and view.good(loc, "persistence"):
            yield (*loc, "persistence_prefix"), "has no effect without `persistence`; remove it"
        for at, server in view.real_servers(loc, service) if service.limited else ():
            if server.lower_threshold and not server.upper_threshold and view.good(at, "upper_threshold"):
                yield (*at, "lower_threshold"), "has no effect without `upper_threshold`; remove it"


def _slow_start(view: View) -> Iterator[Finding]:
    for outer, service in view.services():
        if not view.good(outer, "scheduler") or scheduler(service.scheduler).RAMP:
            continue
        why = f"has no effect with scheduler {service.scheduler}: {NO_RAMP.get(service.scheduler, 'it does not heed weights')}"
        remedy = "use mh" if service.scheduler in ("sh", "dh") else "use w" + service.scheduler.removeprefix("w")
        text = f"{why}; remove it" + (f", or {remedy}" if service.scheduler != "fo" else "")
        if service.slow_start is not None:
            yield (*outer, "slow_start"), text
        for loc, server in view.real_servers(outer, service):
            if server.slow_start:
                yield (*loc, "slow_start"), text


def _refused(view: View) -> Iterator[Finding]:
    for outer, service in view.services():
        name = service.scheduler
        if name not in ("sh", "dh") or "sh-fallback" in service.scheduler_flags or not view.good(outer, "scheduler_flags"):
            continue
        for loc, server in view.real_servers(outer, service):
            if server.weight == 0 and view.good(loc, "weight"):
                remedy = 'write scheduler_flags = ["sh-fallback"], or remove it' if name == "sh" else "remove it"
                yield (*loc, "weight"), f"clients that {name} hashes to this real server are refused, as by IPVS; {remedy}"


def _ports(view: View) -> Iterator[Finding]:
    low, high = EPHEMERAL
    for loc, lip in view.own_addresses():
        first, last = max(lip.ports.lo, low), min(lip.ports.hi, high)
        if first <= last:
            left = (high - low) - (last - first)
            yield (
                (*loc, "ports"),
                f"{lip.ports} overlaps {low}-{high}, the kernel's ports for the host's own connections; "
                f"{left} remain to it: end at {low - 1}, or move net.ipv4.ip_local_port_range",
            )


def _time_wait(view: View) -> Iterator[Finding]:
    def odd(time_wait: float) -> str:
        return (
            f"a real server remembers a closed connection for {duration_text(REAL_SERVER_TIME_WAIT)} "
            f"and may refuse a port that comes back after {duration_text(time_wait)}"
        )

    time_wait = view.config.timeouts.tcp_time_wait
    if time_wait < REAL_SERVER_TIME_WAIT:
        yield ("timeouts", "tcp_time_wait"), odd(time_wait)
    for loc, service in view.services():
        if service.mode == "fullnat" and service.tcp_fin is not None and service.tcp_fin < REAL_SERVER_TIME_WAIT:
            yield (*loc, "tcp_fin"), odd(service.tcp_fin)


def _frames(view: View) -> Iterator[Finding]:
    need = 2 * sum(i.ring for i in view.config.interface)
    frames = view.config.tables.frames
    if frames < need and view.whole("interface") and view.good(("tables",), "frames"):
        yield (
            ("tables", "frames"),
            f"{frames} are fewer than {need}, twice the sum of the rings: they can run out under load; "
            f"write frames = {1 << (need - 1).bit_length()}, or make the rings smaller",
        )


RULES: tuple[Rule, ...] = (_idle_services, _foreign_interfaces, _ineffective, _slow_start, _refused, _ports, _time_wait, _frames)
