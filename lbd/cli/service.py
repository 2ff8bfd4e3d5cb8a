# SPDX-License-Identifier: Apache-2.0
"""`lbd service`, in the columns of ipvsadm -Ln, and `lbd real-server`: list, set, weight, drain, undrain, ready, maint.

What ipvsadm does not know stands behind its own columns: the service's name, and a real server's state when
it takes no connections. The names of modes are those of ipvsadm, FullNat that of its version
for FULLNAT; NAT64 is FULLNAT from an IPv6 service to an IPv4 real server.
"""

import argparse
import sys
import time
from typing import Any
from urllib.parse import quote

from lbd.cli.command import Commands, client, print_json, show
from lbd.cli.outcome import DONE, USAGE, Failure
from lbd.cli.table import count, duration, table

FORWARD = {"fullnat": "FullNat", "nat": "Masq", "dr": "Route", "tunnel": "Tunnel"}
STATS = ("connections", "incoming_packets", "outgoing_packets", "incoming_bytes", "outgoing_bytes")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BAR = 20  # characters
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
    v = verbs.add("weight", "change its weight until the file says otherwise; ends a slow start", set_weight)
    where(v)
    v.add_argument("weight", metavar="WEIGHT", help='0..65535, or "default": the file\'s')
    v = verbs.add(
        "drain",
        "let it keep its connections, and give it no new ones",
        drain,
        more="With --deadline its connections may stay until then; those left are ended. The daemon keeps the time, over its own "
        "restarts too; undrain ends it.",
    )
    where(v)
    v.add_argument("--deadline", type=seconds, metavar="TIME", help="end the connections left after 30s, 10m, 1h …")
    v.add_argument("--stages", type=int, metavar="N", help="lower the weight in N steps over the first half of that time")
    v.add_argument("--reset", action="store_true", help="then send RST to both ends of TCP connections, not only forget them")
    v.add_argument("--wait", action="store_true", help="show the connections left until there are none; ^C leaves the drain on")
    v = verbs.add("undrain", "let a drained one take connections again", undrain)
    where(v)
    for names, state, summary in (
        (("ready", "up"), "ready", "let it take connections again"),
        (("maint", "down"), "maint", "take it out: no new connections, no health checks"),
    ):
        for name in names:
            v = verbs.add(name, summary, set_state)
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
        lines.append(f"{s['protocol'].upper():<4} {s['address']} {s['scheduler']}{options(s)} name {s['name']}")
        lines += [f"{'':<4} {address}" for address in s["addresses"]]
        for r in real_servers[s["name"]]:
            state = ", ".join([*([] if r["state"] == "up" else [r["state"]]), *under_way(r)])
            other = s["mode"] == "fullnat" and s["address"].startswith("[") and not r["address"].startswith("[")
            line = (
                f"  -> {r['address']:<28} {'NAT64' if other else forward:<7} {r['weight']:<6} {r['active']:<10} {r['inactive']:<10}"
            )
            lines.append(f"{line} {state}".rstrip())
        if sorry := s.get("sorry_server"):
            counts = f"{sorry['active']:<10} {sorry['inactive']:<10}"
            lines.append(f"  -> {sorry['address']:<28} {forward:<7} {'-':<6} {counts} sorry{', in use' if sorry['in_use'] else ''}")
    return "\n".join(lines)


def options(s: dict[str, Any]) -> str:
    """In ipvsadm's words."""
    text = f" ({','.join(s['scheduler_flags'])})" if s["scheduler_flags"] else ""
    if s["persistence"] is not None:
        text += f" persistent {s['persistence']:g}"
        prefix, bits = s["persistence_prefix"], 128 if s["address"].startswith("[") else 32
        if prefix != bits:
            mask = 0xFFFFFFFF << 32 - prefix if bits == 32 else 0
            text += f" mask {prefix if bits == 128 else '.'.join(str(mask >> at & 255) for at in (24, 16, 8, 0))}"
    if s["one_packet"]:
        text += " ops"
    return text + (f" fwmark {s['fwmark']}" if s["fwmark"] is not None else "")


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
    titles = ("SERVICE", "ADDRESS", "STATE", ">WEIGHT", "HEALTH", ">ACTIVECONN", ">INACTCONN", ">CLIENTS", ">CONNS", "NOTE")
    rows = []
    for r in document["real_servers"]:
        note = (
            [f"weight {r['configured_weight']} in the file"] if r["weight"] != r["configured_weight"] else []
        )
        note += under_way(r)
        if r["overloaded"]:
            note.append(f"overloaded: {r['upper_threshold']} connections are its threshold")
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
                r["persistent"],
                r["connections"],
                ", ".join(note) or " ",
            )
        )
    return table(titles, rows)


def under_way(r: dict[str, Any]) -> list[str]:
    """Drain with a deadline, slow start."""
    found = []
    share = "" if r["effective_weight"] >= r["weight"] else f"weight {r['effective_weight']:g} of {r['weight']} for now"
    if drain := r["drain"]:
        found.append("deadline is over" if drain["over"] else f"{duration(drain['left'])} to the deadline")
    if ramp := r["slow_start"]:
        found.append(f"slow start, {duration(ramp['left'])} more")
    return [*found, share] if share else found


def set_weight(args: argparse.Namespace) -> int:
    args.values = [f"weight={args.weight}"]
    return set_values(args)


def seconds(text: str) -> float:
    """30s, 10m, 1h, or a number of seconds."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "s")
    if not number.replace(".", "", 1).isdigit() or not number.isascii():
        raise argparse.ArgumentTypeError(f'"{text}" is no time such as 30s, 10m, 1h')
    return float(number) * UNITS[unit]


def drain(args: argparse.Namespace) -> int:
    body: dict[str, Any] = {"state": "drain"}
    if args.deadline is not None:
        body |= {"deadline": args.deadline, "stages": 1 if args.stages is None else args.stages, "reset": args.reset}
    elif args.stages is not None or args.reset:
        raise Failure("--stages and --reset go with --deadline", "give one, such as --deadline 10m", USAGE)
    if not args.wait:
        return change(args, body)
    r = client(args).ask("PATCH", path_of(args), body=body)
    return wait_for(args, r)


def wait_for(args: argparse.Namespace, r: dict[str, Any]) -> int:
    """Looks once a second until no connection is left, or the deadline has ended them."""
    most = max(1, connections(r))
    bar = not args.json and sys.stdout.isatty()
    last = ""
    while r["admin"] == "drain" and connections(r) and not (r["drain"] and r["drain"]["over"] and not r["active"]):
        text = progress(r, most)
        if bar:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif not args.json and text != last:
            print(text, flush=True)
        last = text
        time.sleep(1)
        found = client(args).get("/v1/real-servers", service=args.service)["real_servers"]
        r = next((x for x in found if x["address"] == r["address"]), {**r, "admin": "gone"})
    if bar:
        print("\r\x1b[K", end="")
    if r["admin"] != "drain":
        raise Failure(f"{args.service} {r['address']} is not drained any more", "somebody else has changed it")
    return show(args, r, changed)


def connections(r: dict[str, Any]) -> int:
    return int(r["active"] + r["inactive"])


def progress(r: dict[str, Any], most: int) -> str:
    done = BAR * (most - min(most, connections(r))) // most
    left = f", {duration(r['drain']['left'])} to the deadline" if r["drain"] else ""
    return f"[{'#' * done}{'.' * (BAR - done)}] {count(connections(r), 'connection')} left{left}"


def undrain(args: argparse.Namespace) -> int:
    api = client(args)
    known = api.get("/v1/real-servers", service=args.service)["real_servers"]
    if any(r["address"] == args.address and r["admin"] != "drain" for r in known):
        raise Failure(f"{args.service} {args.address} is not drained", "lbd real-server shows what it is")
    return change(args, {"state": "ready"})


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
    return show(args, client(args).ask("PATCH", path_of(args), body=body), changed)


def path_of(args: argparse.Namespace) -> str:
    return f"/v1/services/{quote(args.service, safe='')}/real-servers/{quote(args.address, safe='')}"


def changed(r: dict[str, Any]) -> str:
    left = r["active"] + r["inactive"]
    rest = f", {left} connections left" if r["state"] in ("drain", "maint") else ""
    more = "".join(f", {text}" for text in under_way(r))
    return f"{r['service']} {r['address']}: {r['state']}, weight {r['weight']}{rest}{more}"
