# SPDX-License-Identifier: Apache-2.0
"""Lists of what the daemon has: conn, worker, lip, snat, tunnel, drops, interface, neigh, route."""

import argparse
from typing import Any

from lbd.cli.command import Commands, client, show
from lbd.cli.outcome import USAGE, Failure
from lbd.cli.table import duration, table

Document = dict[str, Any]


def add(commands: Commands) -> None:
    c = commands.add("conn", "list connections", conns)
    c.add_argument("--service", metavar="NAME", help="of this service only")
    c.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (%(default)s)")
    c.add_argument("--persistent", action="store_true", help="clients and the real servers that persistence gave them")
    commands.add("worker", "list worker processes and their queues", workers)
    commands.add("lip", "list local addresses, how many ports of each are in use, and by which workers", lips)
    commands.add("snat", "list SNAT rules, in their order, and what they translate", snat)
    commands.add("tunnel", "list tunnels that end here, and how much was taken out of each", tunnels)
    c = commands.add("drops", "list reasons of drops and how often each occurred (docs/drops.md)", drops)
    c.add_argument("-a", "--all", action="store_true", help="those that never occurred, too")
    commands.add("interface", "list interfaces as the workers see them", interfaces)
    commands.add("neigh", "list neighbours as the workers see them", neighbours)
    commands.add("route", "list routes as the workers see them", routes)


# -- connections ---------------------------------------------------------------------------------------------


def conns(args: argparse.Namespace) -> int:
    if args.limit < 1:
        raise Failure("--limit is 1 at least", code=USAGE)
    query = {"service": args.service} if args.service else {}
    if args.persistent:
        return show(args, client(args).get("/v1/templates", limit=args.limit, **query), template_table)
    return show(args, client(args).get("/v1/conns", limit=args.limit, **query), conn_table)


def template_table(document: Document) -> str:
    titles = ("CLIENT", "REAL SERVER", ">EXPIRES", ">WORKER", "SERVICE")
    rows = [
        (t["client"], t["real_server"], duration(t["expires"]), t["worker"], t["service"]) for t in document["templates"]
    ]
    more = f"\n… {len(rows)} of {document['total']}; --limit shows more" if document["truncated"] else ""
    return table(titles, rows) + more


def conn_table(document: Document) -> str:
    titles = ("PROT", "STATE", "CLIENT", "VIRTUAL", "LOCAL", "REAL SERVER", ">EXPIRES", ">WORKER", "SERVICE")
    rows = [
        (
            c["protocol"],
            c["state"],
            c["client"],
            c["virtual"],
            c["local"],
            c["real_server"],
            duration(c["expires"]),
            c["worker"],
            c["service"],
        )
        for c in document["conns"]
    ]
    more = f"\n… {len(rows)} of {document['total']}; --limit shows more" if document["truncated"] else ""
    return table(titles, rows) + more


# -- workers -------------------------------------------------------------------------------------------------


def workers(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/workers"), worker_tables)


def worker_tables(document: Document) -> str:
    known = document["workers"]
    titles = (
        *(">WORKER", ">PID", "STATE", ">CORE", ">NODE", ">BUSY", ">CONNS", ">HALF-OPEN", ">FREE FRAMES"),
        *(">RECEIVED", ">MISPLACED", ">RESTARTS", "CONFIGURATION"),
    )
    rows = [
        (
            w["number"],
            w["pid"],
            w["state"],
            w["core"],
            w["node"],
            share(w["busy_seconds"], w["idle_seconds"]),
            w["connections_ipv4"] + w["connections_ipv6"],
            w["half_open"],
            f"{w['free_frames']}/{w['frames']}",
            w["received_packets"],
            w["misplaced"],
            w["restarts"],
            "applied" if w["applied"] else f"{w['commands_pending']} commands behind",
        )
        for w in known
    ]
    queue_titles = (
        *(">WORKER", "INTERFACE", ">QUEUE", "MODE", ">RX PACKETS", ">RX BYTES", ">TX PACKETS", ">TX BYTES"),
        *(">RX DROPPED", ">RX RING FULL", ">FILL EMPTY", ">TX FULL"),
    )
    queues = [
        (
            w["number"],
            q["interface"],
            q["queue"],
            q["mode"],
            q["rx_packets"],
            q["rx_bytes"],
            q["tx_packets"],
            q["tx_bytes"],
            q["rx_dropped"],
            q["rx_ring_full"],
            q["rx_fill_ring_empty"],
            q["tx_full"],
        )
        for w in known
        for q in w["queues"]
    ]
    return f"{table(titles, rows)}\n\n{table(queue_titles, queues)}"


def share(busy: float, idle: float) -> str:
    return f"{100 * busy / (busy + idle):.0f}%" if busy + idle else "-"


# -- local addresses, drops ----------------------------------------------------------------------------------


def lips(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/lips"), lip_table)


def lip_table(document: Document) -> str:
    titles = ("ADDRESS", "INTERFACE", "USED BY", "PORTS", ">IN USE", ">CAPACITY", ">CONNS", ">EXHAUSTED", "IN USE BY WORKER")
    keys = ("address", "interface", "used_by", "ports", "in_use", "capacity", "connections", "exhausted")

    def by_worker(lip: dict[str, Any]) -> str:
        return " ".join(f"{w['worker']}:{w['in_use']}" for w in lip["workers"])

    return table(titles, ([*(lip[key] for key in keys), by_worker(lip)] for lip in document["lips"]))


def snat(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/snat"), snat_table)


def snat_table(document: Document) -> str:
    titles = (
        *("RULE", "SOURCE", "DESTINATION", "PROTOCOL", "IN", "OUT", "POOL", ">CONNS", ">ACTIVE", ">INACTIVE"),
        *(">PACKETS OUT", ">PACKETS BACK"),
    )
    rows = [
        (
            r["name"],
            some(r["source"]),
            some(r["destination"]) or "all",
            r["protocol"],
            r["in_interface"] or "any",
            r["out_interface"] or "any",
            some(r["pool"]),
            r["connections"],
            r["active"],
            r["inactive"],
            r["incoming_packets"],
            r["outgoing_packets"],
        )
        for r in document["snat"]
    ]
    return table(titles, rows)


def tunnels(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/tunnels"), tunnel_table)


def tunnel_table(document: Document) -> str:
    titles = ("TUNNEL", "TYPE", "LOCAL", "REMOTE", ">PACKETS", ">BYTES", ">REFUSED")
    keys = ("packets", "bytes", "refused")
    rows = ((t["name"], t["type"], t["local"], t["remote"] or "any", *(t[k] for k in keys)) for t in document["tunnels"])
    return table(titles, rows)


def some(many: list[str]) -> str:
    """The first two, and how many more."""
    return ",".join(many[:2]) + (f",+{len(many) - 2}" if len(many) > 2 else "")


def drops(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/drops"), lambda d: drop_tables(d, args.all))


def drop_tables(document: Document, every: bool) -> str:
    known = [d for d in document["drops"] if every or d["packets"]]
    text = table(("REASON", ">PACKETS", "MEANING"), ((d["reason"], d["packets"], d["help"]) for d in known))
    if not known:
        text = "no drops"
    actions = document.get("xdp") or []
    if actions:
        names = [key for key in actions[0] if key != "interface"]
        titles = ("INTERFACE", *(f">XDP {name.upper()}" for name in names))
        text += "\n\n" + table(titles, ((a["interface"], *(a.get(n, 0) for n in names)) for a in actions))
    return text


# -- the network ---------------------------------------------------------------------------------------------


def interfaces(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/interfaces"), interface_table)


def interface_table(document: Document) -> str:
    titles = (
        *(">NUMBER", "NAME", "STATE", "MODE", "ATTACHED", ">QUEUES", "MAC", ">MTU", "RSS", "CHECKSUMS"),
        "ADDRESSES",
    )
    rows = [
        (
            i["number"],
            i["name"],
            "up" if i["up"] else "down",
            i["mode"],
            i["attach"],
            i["queues"],
            i["mac"],
            i["mtu"],
            i["rss"],
            "partial" if i["partial_checksums"] else "complete",
            " ".join(i["addresses"]),
        )
        for i in document["interfaces"]
    ]
    return table(titles, rows)


def neighbours(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/neighbours"), neighbour_table)


def neighbour_table(document: Document) -> str:
    titles = ("INTERFACE", "ADDRESS", "MAC", ">VLAN", "USABLE", "KERNEL", "ORIGIN")
    rows = [
        (
            n["interface"],
            n["address"],
            n["mac"],
            n["vlan"] or None,
            n["valid"],
            n["state"],
            "a client's packets" if n["learned"] else "managed" if n["managed"] else "kernel",
        )
        for n in document["neighbours"]
    ]
    return table(titles, rows)


def routes(args: argparse.Namespace) -> int:
    return show(args, client(args).get("/v1/routes"), route_table)


def route_table(document: Document) -> str:
    titles = ("DESTINATION", "GATEWAY", "INTERFACE", ">METRIC", ">VLAN")
    rows = (
        (
            r["destination"],
            r["gateway"] or "on link",
            r["interface"] or "not lbd's",
            r["metric"],
            r["vlan"] or None,
        )
        for r in document["routes"]
    )
    return table(titles, rows)
