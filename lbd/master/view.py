# SPDX-License-Identifier: Apache-2.0
"""What the daemon says of itself: the JSON of docs/api.md, from the workers' segments and the master's own state.

Scope: reading and adding up; nothing is changed here. Every worker's segment is read as it is: sums over workers are of
slightly different moments, as all such counts are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from lbd import __version__
from lbd.config import cpu
from lbd.config.address import Endpoint
from lbd.config.service import PROTOCOL_NAMES, RealServer, Service
from lbd.config.snat import Snat
from lbd.datapath.reason import REASONS
from lbd.master.compose import in_force, state_in_force
from lbd.master.condition import notes, problems
from lbd.master.reach import ELSEWHERE
from lbd.master.reconcile import Placed
from lbd.master.resources import Port
from lbd.master.runtime import Where
from lbd.master.tunnel_end import COUNTS, counted
from lbd.shm import _shm as shm

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

Json = dict[str, Any]
TRAFFIC = (
    "connections", "incoming_packets", "outgoing_packets", "incoming_bytes", "outgoing_bytes", "active", "inactive"
)  # fmt: skip
NO_TRAFFIC = (0,) * len(TRAFFIC)


def real_server_state(daemon: Daemon, service: Service, real: RealServer) -> str:
    """up down drain maint"""
    name = str(real.address)
    override = daemon.runtime.get(service.name, name)
    weight, up = in_force(real.weight, override, daemon.health.is_up(service.name, name))
    return state_in_force(weight, up, override)


def count_states(states: Iterable[str]) -> Json:
    counts = {"total": 0, "up": 0, "down": 0, "drain": 0, "maint": 0}
    for state in states:
        counts["total"] += 1
        counts[state] += 1
    return counts


# -- status ----------------------------------------------------------------------------------------------------


def status(daemon: Daemon) -> Json:
    config = daemon.config
    ctls = {n: segment.ctl() for n, segment in daemon.segments.items()}
    states = {s.name: [real_server_state(daemon, s, r) for r in s.real_server] for s in config.service}
    sizes = config.sizes()
    return {
        "version": __version__,
        "pid": daemon.pid,
        "state": daemon.state,
        "ready": daemon.ready,
        "problems": problems(daemon),
        "notes": notes(daemon),
        "started": daemon.started,
        "uptime": time.time() - daemon.started,
        "took_over": daemon.took_over,
        "poll": config.workers.poll,
        "config": {
            "path": daemon.path,
            "loaded": daemon.loaded,
            "reloads": daemon.reloads,
            "rejected": daemon.rejected,
            "error": daemon.reload_error,
        },
        "workers": {
            "total": len(daemon.segments),
            "running": sum(daemon.is_alive(n) for n in daemon.segments),
            "restarts": sum(c["restarts"] for c in ctls.values()),
            "places": [{"worker": n, **_place(config.workers.core(n))} for n in daemon.segments],
        },
        "services": {"total": len(config.service), "up": sum("up" in s for s in states.values())},
        "real_servers": count_states(state for each in states.values() for state in each),
        "connections": {
            "ipv4": sum(c["conns4"] for c in ctls.values()),
            "ipv6": sum(c["conns6"] for c in ctls.values()),
            "capacity_ipv4": sizes["conns4"] * sizes["workers"],
            "capacity_ipv6": sizes["conns6"] * sizes["workers"],
        },
        "interfaces": [
            {key: i[key] for key in ("name", "up", "queues", "mode", "node")} for i in interfaces(daemon)["interfaces"]
        ],
        "frames": {
            "total": sizes["frames"] * sizes["workers"],
            "free": sum(c["free_frames"] for c in ctls.values()),
            "hugepages": daemon.resources.area.huge,
        },
    }


# -- services --------------------------------------------------------------------------------------------------


def traffic(counts: tuple[int, ...]) -> Json:
    return dict(zip(TRAFFIC, counts, strict=True))


def service_traffic(daemon: Daemon, number: int | None) -> Json:
    """All workers' counts; none of a service that workers do not know yet."""
    if number is None:
        return traffic(NO_TRAFFIC)
    rows = [segment.service_stats(number)[1:] for segment in daemon.segments.values()]
    return traffic(tuple(map(sum, zip(*rows, strict=True))) or NO_TRAFFIC)


def dest_traffic(daemon: Daemon, number: int | None) -> Json:
    if number is None:
        return traffic(NO_TRAFFIC)
    rows = [segment.dest_stats(number)[1:] for segment in daemon.segments.values()]
    return traffic(tuple(map(sum, zip(*rows, strict=True))) or NO_TRAFFIC)


def dest_condition(daemon: Daemon, number: int | None) -> Json:
    """Each worker counts the templates that it owns, and finds out for itself that a threshold is reached."""
    rows = [segment.dest_condition(number) for segment in daemon.segments.values()] if number is not None else []
    return {"persistent": sum(templates for templates, _ in rows), "overloaded": any(full for _, full in rows)}


def services(daemon: Daemon) -> Iterator[Json]:
    """One after the other: thousands take longer than the loop should stand."""
    for s in daemon.config.service:
        placed = daemon.placed(s)
        number = placed.number if placed else None
        yield {
            "name": s.name,
            "address": str(s.address),
            "protocol": s.protocol,
            "scheduler": s.scheduler,
            "scheduler_flags": list(s.scheduler_flags),
            "mode": s.mode,
            "addresses": [str(point) for point in s.addresses],
            "fwmark": s.fwmark,
            "persistence": s.persistence,
            "persistence_prefix": s.prefix if s.persistence is not None else None,
            "one_packet": s.one_packet,
            "interface": s.interface,
            "manage": s.manage,
            "number": number,
            "slots": len(placed.table) if placed else 0,
            "real_servers": count_states(real_server_state(daemon, s, r) for r in s.real_server),
            "sorry_server": _sorry_server(daemon, s, placed),
            **service_traffic(daemon, number),
        }


def _sorry_server(daemon: Daemon, s: Service, placed: Placed | None) -> Json | None:
    """`in_use`: it gets the new connections, since no real server may."""
    if s.sorry_server is None:
        return None
    number = placed.dests.get((placed.service.key, s.sorry_server.addr.packed, s.sorry_server.port)) if placed else None
    active = not any(r.up and r.weight for r in daemon.composer.service(s.name).real_servers)
    return {"address": str(s.sorry_server), "number": number, "in_use": active, **dest_traffic(daemon, number)}


def real_servers(daemon: Daemon, service: str | None = None, real_server: str | None = None) -> Iterator[Json]:
    for s in daemon.config.service:
        if service in (None, s.name):
            for r in s.real_server:
                if real_server in (None, str(r.address)):
                    yield _real_server(daemon, s, r)


def _real_server(daemon: Daemon, s: Service, r: RealServer) -> Json:
    name = str(r.address)
    override = daemon.runtime.get(s.name, name)
    share = daemon.course.standing(s.name, name).share
    weight = in_force(r.weight, override, True, share)[0]
    placed = daemon.placed(s)
    number = placed.dests.get((placed.service.key, r.address.addr.packed, r.address.port)) if placed else None
    return {
        "service": s.name,
        "address": name,
        "number": number,
        "state": real_server_state(daemon, s, r),
        "weight": weight,
        "configured_weight": r.weight,
        "effective_weight": weight * share / 100,
        "drain": _drain(daemon, (s.name, name)),
        "slow_start": _slow_start(daemon, (s.name, name)),
        "admin": override.state,
        "runtime": (s.name, name) in daemon.runtime,
        "health": _health(daemon, s, name),
        "upper_threshold": r.upper_threshold,
        "lower_threshold": r.lower_threshold,
        **dest_condition(daemon, number),
        **dest_traffic(daemon, number),
    }


def _drain(daemon: Daemon, where: Where) -> Json | None:
    """One with a deadline."""
    drain = daemon.course.drain(where)
    if drain is None:
        return None
    left = drain.left(daemon.course.clock())
    return {**asdict(drain), "left": left, "over": left == 0}


def _slow_start(daemon: Daemon, where: Where) -> Json | None:
    ramp = daemon.course.slow_start(where)
    if ramp is None:
        return None
    now = daemon.course.clock()
    return {"began": ramp.began, "seconds": ramp.seconds, "left": ramp.left(now), "share": ramp.share(now)}


def _health(daemon: Daemon, s: Service, real_server: str) -> Json | None:
    known = daemon.health.states().get((s.name, real_server))
    if s.health is None or known is None:
        return None
    return {
        "type": s.health.type,
        "status": "unknown" if not known.checked and known.up else "up" if known.up else "down",
        "since": known.last_transition or None,
        "detail": known.reason,
        "checks": sum(known.checks.values()),
        "failures": sum(n for result, n in known.checks.items() if result != "success"),
    }


# -- workers, local addresses, drops ---------------------------------------------------------------------------


def workers(daemon: Daemon) -> Json:
    return {"workers": [_worker(daemon, n) for n in daemon.segments]}


def _worker(daemon: Daemon, n: int) -> Json:
    segment = daemon.segments[n]
    ctl, counters = segment.ctl(), segment.counters()
    queues = [_queue(daemon, n, port) for port in daemon.resources.ports if port.worker == n]
    return {
        "number": n,
        "pid": ctl["pid"],
        "state": daemon.supervisor.members[n].state,
        **_place(daemon.config.workers.core(n)),
        "heartbeat_age": max(0.0, time.monotonic() - ctl["heartbeat_ns"] / 1e9),
        "restarts": ctl["restarts"],
        "generation": ctl["gen_applied"],
        "applied": ctl["gen_applied"] >= daemon.reconciler.generation,
        "busy_seconds": counters["busy_ns"] / 1e9,
        "idle_seconds": counters["idle_ns"] / 1e9,
        "sleeping": bool(ctl["sleeping"]),
        "connections_ipv4": ctl["conns4"],
        "connections_ipv6": ctl["conns6"],
        "half_open": ctl["half_open"],
        "frames": ctl["sizes"]["frames"],
        "free_frames": ctl["free_frames"],
        "received_packets": sum(q["rx_packets"] for q in queues),
        "misplaced": counters["misplaced"],
        "handed_out": counters["handed_out"],
        "handed_in": counters["handed_in"],
        "commands_pending": daemon.supervisor.members[n].delivery.waiting,
        "queues": queues,
    }


def _place(core: int | None) -> Json:
    """`siblings`: other CPUs of the same physical core."""
    if core is None:
        return {"core": None, "node": None, "siblings": []}
    return {"core": core, "node": cpu.core_node(core), "siblings": sorted(cpu.siblings(core) - {core})}


def port_mode(daemon: Daemon, port: Port) -> str:
    if port.zero_copy:
        return "zero-copy"
    return "generic" if daemon.config.interface[port.of].attach == "generic" else "copy"


def _queue(daemon: Daemon, n: int, port: Port) -> Json:
    q = daemon.segments[n].queue(port.iface)
    return {
        "interface": port.nic,
        "queue": port.queue,
        "mode": port_mode(daemon, port),
        "rx_packets": q["rx_pkts"],
        "rx_bytes": q["rx_bytes"],
        "tx_packets": q["tx_pkts"],
        "tx_bytes": q["tx_bytes"],
        "rx_dropped": q["rx_dropped"],
        "rx_ring_full": q["rx_ring_full"],
        "rx_fill_ring_empty": q["rx_fill_empty"],
        "tx_full": q["tx_full"],
        "fill_level": q["fill_level"],
        "tx_outstanding": q["tx_outstanding"],
    }


def lips(daemon: Daemon) -> Json:
    each = {n: {number: row for number, *row in segment.lip_stats_all()} for n, segment in daemon.segments.items()}
    rows = []
    pools = {a.address for rule in daemon.config.snat for a in rule.pool}
    for lip in daemon.config.own_addresses():
        number = daemon.reconciler.lips.number(lip.address.packed)
        by_worker = [counts.get(-1 if number is None else number, (0, 0, 0)) for counts in each.values()]
        connections, exhausted, in_use = (sum(column) for column in zip(*by_worker, strict=True)) if by_worker else (0, 0, 0)
        rows.append(
            {
                "address": str(lip.address),
                "interface": lip.interface,
                "used_by": "snat" if lip.address in pools else "fullnat",
                "ports": str(lip.ports),
                "manage": lip.manage,
                "number": number,
                "in_use": in_use,
                "capacity": lip.ports.hi - lip.ports.lo + 1,
                "connections": connections,
                "exhausted": exhausted,
                "workers": [
                    {"worker": n, "in_use": held, "connections": made, "exhausted": missed}
                    for n, (made, missed, held) in zip(each, by_worker, strict=True)
                ],
            }
        )
    return {"lips": rows}


def snat(daemon: Daemon) -> Json:
    return {"snat": [_snat_rule(daemon, rule) for rule in daemon.config.snat]}


def _snat_rule(daemon: Daemon, rule: Snat) -> Json:
    number = daemon.reconciler.rule_number(rule.name)
    plain = rule.model_dump(mode="json")
    return {
        "name": rule.name,
        "number": number,
        **{key: plain[key] for key in ("source", "destination", "protocol", "in_interface", "out_interface")},
        "pool": [str(a.address) for a in rule.pool],
        "tcp_established": rule.tcp_established,
        **service_traffic(daemon, number),
    }


def tunnels(daemon: Daemon) -> Json:
    rows = [
        {**tunnel.model_dump(mode="json"), **dict(zip(COUNTS, counts, strict=True))}
        for tunnel, counts in counted(daemon.config.tunnel, daemon.segments.values())
    ]
    return {"tunnels": rows}


def drops(daemon: Daemon) -> Json:
    each = [segment.counters()["drops"] for segment in daemon.segments.values()]
    rows = []
    for reason, text in REASONS[1:]:
        by_worker = [counts[reason] for counts in each]
        rows.append({"reason": reason, "help": text, "packets": sum(by_worker), "by_worker": by_worker})
    names = {port.iface: port.nic for port in daemon.resources.ports}
    xdp = [
        {"interface": names[number], **actions}
        for number, actions in daemon.resources.program.counters().items()
        if number in names
    ]
    return {"drops": rows, "xdp": xdp}


# -- the network, as workers see it ----------------------------------------------------------------------------


def interfaces(daemon: Daemon) -> Json:
    seen = next((dict(segment.ifaces()) for segment in daemon.segments.values()), {})
    snapshot = daemon.network.snapshot()
    rss = {r.name: r for r in snapshot.rss}
    rows = []
    for number, interface in enumerate(daemon.config.interface):
        link = snapshot.link(interface.name)
        ports = [p for p in daemon.resources.ports if p.of == number]
        known = seen.get(number, {})
        own = [a for a in snapshot.addresses if link is not None and a.ifindex == link.ifindex]
        rows.append(
            {
                "name": interface.name,
                "number": number,
                "ifindex": known.get("ifindex", 0),
                "mac": known.get("mac", bytes(6)).hex(":"),
                "mtu": known.get("mtu", 0),
                "up": bool(known.get("flags", 0) & shm.IFACE_UP),
                "mode": port_mode(daemon, ports[0]) if ports else "none",
                "attach": interface.attach,
                "queues": len(ports),
                "node": next((node for p in ports if (node := cpu.nic_node(p.nic, p.ifindex)) is not None), None),
                "partial_checksums": bool(known.get("flags", 0) & shm.IFACE_PARTIAL),
                "kernel_checksums": bool(known.get("flags", 0) & shm.IFACE_COMPLETES),
                "rss": rss[interface.name].function or "unknown" if interface.name in rss else "unknown",
                "addresses": [str(a.address) for a in own],
            }
        )
    return {"interfaces": rows}


def interface_name(daemon: Daemon, number: int) -> str:
    names = daemon.config.interface
    return names[number].name if number < len(names) else ""


def neighbours(daemon: Daemon) -> Json:
    kernel = {(n.ifindex, n.address.packed): n for n in daemon.network.snapshot().neighbours}
    ifindexes = {place: ifindex for ifindex, place in daemon.applier.places.items()}
    rows = []
    for segment in list(daemon.segments.values())[:1]:
        for _, adj in segment.neighbours():
            learned = bool(adj["flags"] & shm.ADJ_LEARNED)
            known = kernel.get((ifindexes.get((adj["iface"], adj["tags"]), 0), adj["addr"]))
            rows.append(
                {
                    "interface": interface_name(daemon, adj["iface"]),
                    "address": "" if learned or not adj["addr"] else str(ip_address(adj["addr"])),
                    "mac": adj["mac"].hex(":"),
                    "vlan": adj["vlan"] & 0xFFF,
                    "outer_vlan": adj["outer"] & 0xFFF,
                    "valid": bool(adj["flags"] & shm.ADJ_VALID),
                    "state": known.state if known else "",
                    "managed": bool(known and known.managed),
                    "learned": learned,
                }
            )
    return {"neighbours": rows}


def routes(daemon: Daemon) -> Json:
    rows = []
    for segment in list(daemon.segments.values())[:1]:
        for _, r in segment.routes():
            on_link = bool(r["flags"] & shm.ROUTE_ONLINK)
            elsewhere = r["iface"] == ELSEWHERE and len(daemon.config.interface) <= ELSEWHERE
            rows.append(
                {
                    "destination": f"{ip_address(r['prefix'])}/{r['plen']}",
                    "gateway": "" if on_link else str(ip_address(r["gateway"])),
                    "interface": "" if elsewhere else interface_name(daemon, r["iface"]),
                    "metric": r["metric"],
                    "vlan": r["vlan"],
                    "outer_vlan": r["outer"],
                }
            )
    return {"routes": rows}


# -- connections, configuration --------------------------------------------------------------------------------


def conns(daemon: Daemon, limit: int, service: str | None) -> Json:
    """Reads the workers' connection files; for a listing, so a record may change while it is read."""
    names = {p.number: p.service.name for p in daemon.reconciler.placed.values()}
    number = next((n for n, name in names.items() if name == service), None)
    if service is not None and number is None:
        return {"conns": [], "total": 0, "truncated": False}
    rows: list[Json] = []
    for worker in daemon.segments:
        rows += [_conn(c, worker, names) for c in daemon.connections(worker, limit - len(rows), number)]
    if number is None:
        total = sum(c["conns4"] + c["conns6"] for c in (s.ctl() for s in daemon.segments.values()))
    else:
        total = sum(sum(segment.service_stats(number)[-2:]) for segment in daemon.segments.values())
    return {"conns": rows, "total": max(total, len(rows)), "truncated": len(rows) == limit}


def _conn(c: Json, worker: int, names: dict[int, str]) -> Json:
    def end(which: str) -> str:
        address, port = c[which]
        return str(Endpoint(ip_address(address), port))

    return {
        "worker": worker,
        "protocol": PROTOCOL_NAMES.get(c["proto"], "icmp"),
        "mode": c["mode"],
        "state": c["state"].lower(),
        "service": names.get(c["svc"], "") if c["svc"] is not None else "",
        "real_server": end("real_server"),
        "client": end("client"),
        "virtual": end("virtual"),
        "local": end("local"),
        "expires": c["expires_ms"] / 1000,
    }


def templates(daemon: Daemon, limit: int, service: str | None) -> Json:
    """Clients and the real servers that they have, by persistence."""
    known = {p.number: s for s in daemon.config.service if (p := daemon.placed(s)) is not None}
    found = daemon.resources.host.templates(1 << 30 if service is not None else limit)
    rows = [_template(daemon, known[t["svc"]], t) for t in found if t["svc"] in known and service in (None, known[t["svc"]].name)]
    total = sum(segment.counters()["templates"] for segment in daemon.segments.values()) if service is None else len(rows)
    return {"templates": rows[:limit], "total": max(total, len(rows)), "truncated": len(rows) > limit or len(found) == limit}


def _template(daemon: Daemon, s: Service, t: Json) -> Json:
    now, lasts = time.monotonic_ns(), s.persistence or 0.0
    look = 2 * min(lasts / 2, 60.0)  # persist.pxd, look_ms
    key = daemon.reconciler.dests.key(t["dest"])
    net = ip_address(t["net"][: 4 if s.af == 4 else 16])
    return {
        "service": s.name,
        "client": f"{net}/{s.prefix}",
        "real_server": str(Endpoint(ip_address(key[1]), key[2])) if key else "",
        "worker": t["worker"],
        "expires": max(0.0, lasts - (now - t["renewed_ns"]) / 1e9, look - (now - t["alive_ns"]) / 1e9),
    }


def configuration(daemon: Daemon) -> Json:
    return {
        "config": daemon.config.model_dump(mode="json"),
        "runtime": [
            {
                "service": service,
                "real_server": real,
                "weight": o.weight,
                "state": o.state,
                "drain": asdict(o.drain) if o.drain else None,
            }
            for (service, real), o in daemon.runtime.items()
        ],
    }
