# SPDX-License-Identifier: Apache-2.0
"""`lbd service`, in the columns of ipvsadm -Ln, and `lbd real-server`: list, set, drain, ready, maint.

What ipvsadm does not know stands behind its own columns: the service's name, and a real server's state when
it takes no connections. The names of modes are those of ipvsadm, FullNat that of its version
for FULLNAT; NAT64 is FULLNAT from an IPv6 service to an IPv4 real server.
"""

import argparse
from typing import Any
from urllib.parse import quote

from lbd.cli.command import Commands, client, print_json, show
from lbd.cli.outcome import DONE, USAGE, Failure
from lbd.cli.table import table

FORWARD = {"fullnat": "FullNat", "nat": "Masq", "dr": "Route", "tunnel": "Tunnel"}
STATS = ("connections", "incoming_packets", "outgoing_packets", "incoming_bytes", "outgoing_bytes")
ADDRESS = "its address and port: 10.0.1.1:8080, [2001:db8::1]:8080"


def add(commands: Commands) -> None:
    c = commands.add("service", "list services and their real servers, as ipvsadm -Ln does", services)
    c.add_argument("name", nargs="?", metavar="SERVICE", help="this one only")
    c.add_argument("--stats", action="store_true", help="what went through, as ipvsadm -Ln --stats does")

    c = commands.add("real-server", "list real servers, change their weight or state", real_servers)
    c.set_defaults(service=None)
    verbs = Commands(c.add_subparsers(metavar="VERB"))
    v = verbs.add("list", "list real servers with health and traffic (the default)", real_servers)
    v.add_argument("service", nargs="?", metavar="SERVICE", help="of this service only")
    v = verbs.add("set", "change weight or state until the file says otherwise", set_values)
    where(v)
    v.add_argument(
        "values",
        nargs="+",
        metavar="KEY=VALUE",
        help="weight=0..65535 or weight=default (the file's); state=ready, drain or maint",
    )
    for state, summary in (
        ("ready", "let it take connections again"),
        ("drain", "let it keep its connections, and give it no new ones"),
        ("maint", "take it out: no new connections, no health checks"),
    ):
        v = verbs.add(state, summary, set_state)
        where(v)
        v.set_defaults(state=state)


def where(command: argparse.ArgumentParser) -> None:
    command.add_argument("service", metavar="SERVICE", help="name of the service")
    command.add_argument("address", metavar="ADDRESS", help=ADDRESS)


# -- services ------------------------------------------------------------------------------------------------


def services(args: argparse.Namespace) -> int:
    api = client(args)
    known = [s for s in api.get("/v1/services")["services"] if args.name in (None, s["name"])]
    if args.name is not None and not known:
        raise Failure(f'no service "{args.name}"', "lbd service lists them")
    if args.json:
        print_json({"services": known})
        return DONE
    query = {"service": args.name} if args.name else {}
    real = api.get("/v1/real-servers", **query)["real_servers"]
    of = {s["name"]: [r for r in real if r["service"] == s["name"]] for s in known}
    print(stats(known, of) if args.stats else listing(known, of))
    return DONE


def listing(services: list[dict[str, Any]], real_servers: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
    ]
    for s in services:
        forward = FORWARD.get(s["mode"], s["mode"])
        flags = f" ({','.join(s['scheduler_flags'])})" if s["scheduler_flags"] else ""
        lines.append(f"{s['protocol'].upper():<4} {s['address']} {s['scheduler']}{flags} name {s['name']}")
        for r in real_servers[s["name"]]:
            state = "" if r["state"] == "up" else r["state"]
            other = s["mode"] == "fullnat" and s["address"].startswith("[") and not r["address"].startswith("[")
            line = (
                f"  -> {r['address']:<28} {'NAT64' if other else forward:<7} {r['weight']:<6} {r['active']:<10} {r['inactive']:<10}"
            )
            lines.append(f"{line} {state}".rstrip())
        if sorry := s.get("sorry_server"):
            counts = f"{sorry['active']:<10} {sorry['inactive']:<10}"
            lines.append(f"  -> {sorry['address']:<28} {forward:<7} {'-':<6} {counts} sorry{', in use' if sorry['in_use'] else ''}")
    return "\n".join(lines)


def stats(services: list[dict[str, Any]], real_servers: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes",
        "  -> RemoteAddress:Port",
    ]
    for s in services:
        lines.append(f"{s['protocol'].upper():<4} {s['address']:<28}{figures(s)}")
        lines += [f"  -> {r['address']:<28}{figures(r)}" for r in real_servers[s["name"]]]
        if sorry := s.get("sorry_server"):
            lines.append(f"  -> {sorry['address']:<28}{figures(sorry)} sorry")
    return "\n".join(lines)


def figures(row: dict[str, Any]) -> str:
    return "".join(f" {large(row[key]):>8}" for key in STATS)


def large(number: int) -> str:
    """As ipvsadm shortens numbers (print_largenum)."""
    for limit, unit, letter in (
        (10**8, 1, ""),
        (10**9, 10**3, "K"),
        (10**11, 10**6, "M"),
        (10**14, 10**9, "G"),
    ):
        if number < limit:
            return f"{number // unit}{letter}"
    return f"{number // 10**12}T"


# -- real servers --------------------------------------------------------------------------------------------


def real_servers(args: argparse.Namespace) -> int:
    query = {"service": args.service} if args.service else {}
    return show(args, client(args).get("/v1/real-servers", **query), real_server_table)


def real_server_table(document: dict[str, Any]) -> str:
    titles = ("SERVICE", "ADDRESS", "STATE", ">WEIGHT", "HEALTH", ">ACTIVE", ">INACTIVE", ">CONNS", "NOTE")
    rows = []
    for r in document["real_servers"]:
        note = (
            [f"weight {r['configured_weight']} in the file"] if r["weight"] != r["configured_weight"] else []
        )
        health = r["health"]
        if health and health["status"] == "down" and health["detail"]:
            note.append(health["detail"])
        rows.append(
            (
                r["service"],
                r["address"],
                r["state"],
                r["weight"],
                health["status"] if health else None,
                r["active"],
                r["inactive"],
                r["connections"],
                ", ".join(note) or " ",
            )
        )
    return table(titles, rows)


def set_state(args: argparse.Namespace) -> int:
    return change(args, {"state": args.state})


def set_values(args: argparse.Namespace) -> int:
    body: dict[str, Any] = {}
    for given in args.values:
        key, _, value = given.partition("=")
        if key == "weight" and value == "default":
            body["weight"] = None
        elif key == "weight" and value.isascii() and value.isdigit() and int(value[:9]) <= 65535:
            body["weight"] = int(value)
        elif key == "state" and value in ("ready", "drain", "maint"):
            body["state"] = value
        else:
            raise Failure(
                f'"{given}" is not understood', "give weight=0..65535 or state=ready, drain, maint", USAGE
            )
    return change(args, body)


def change(args: argparse.Namespace, body: dict[str, Any]) -> int:
    path = f"/v1/services/{quote(args.service, safe='')}/real-servers/{quote(args.address, safe='')}"
    return show(args, client(args).ask("PATCH", path, body=body), changed)


def changed(r: dict[str, Any]) -> str:
    left = r["active"] + r["inactive"]
    rest = f", {left} connections left" if r["state"] in ("drain", "maint") else ""
    return f"{r['service']} {r['address']}: {r['state']}, weight {r['weight']}{rest}"
