# SPDX-License-Identifier: Apache-2.0
"""TCP between real stacks, through each forwarder in turn: bench/veth.py's part `tcp`.

    client ══ eth0:lb:eth1 ══ switch ══ rs1      the testbed, one queue, one real server

wrk asks nginx for a page of four bytes over 64 connections, each kept or each for one request; iperf3 sends bulk data in
either direction. Both ends of a connection share the generator's core. Balancers are addressed at the VIP; for the
others the client addresses the real server.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

from bench.compare import Row, alternate, wanted
from bench.priority import prefer
from bench.veth_forwarder import Service, Site, forwarding
from bench.veth_wire import FRAMES, RING, Placement
from lbd.testbed import Testbed, TestbedError, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.server import HTTP_PORT, IPERF_PORT
from lbd.testbed.testbed import Settings, config_text, merged

LIPS = 16  # each request of wrk's second case is a connection, and its port is not used again within a minute
LIP_PORTS = "10240-65535"


def site(testbed: Testbed, place: Placement) -> Site:
    def start(poll: str) -> Daemon:
        changes: Settings = {
            "workers": {"cores": [place.worker], "count": 1, "poll": poll},
            "tables": {"frames": FRAMES, "hugepages": "auto"},
            "interface": {"ring": RING},
            "local_address": {"ports": LIP_PORTS},
            "metrics": {"listen": ""},
            "daemon": {"log_level": "warning"},
        }
        settings = merged(testbed.settings(["web", "iperf"]), changes)
        for service in settings["service"]:
            service.pop("health", None)  # nobody else checks the real server meanwhile
        return testbed.lbd(config_text(settings), ("taskset", "-c", str(place.others)), wait=False)

    topology, services = testbed.topology, []
    for family in (4, 6):
        server = topology.servers[0].address4 if family == 4 else topology.servers[0].address6
        lips = tuple(topology.lips4 if family == 4 else topology.lips6)
        vip = testbed.vip(family)
        services.append(Service("tcp", vip, 80, (server,), HTTP_PORT, lips))
        services.append(Service("tcp", vip, IPERF_PORT, (server,), IPERF_PORT, lips))
    macs = topology.client.mac, topology.servers[0].mac
    # its connection files tell the next run's lbd which ports the real server has in TIME_WAIT
    return Site(testbed.balancer, *macs, tuple(services), start, fifo=False, forgets=False)


def cases(testbed: Testbed, args: argparse.Namespace) -> dict[str, tuple[str, float | None, Callable[[bool], float]]]:
    """Name: unit, goal beside the bare forwarder, and the measurement; its argument: whether it is a balancer that forwards."""
    host, server, client = testbed.topology.servers[0], testbed.servers[0], testbed.client

    def wrk(balances: bool, close: bool) -> float:
        target = load.url(testbed.vip(4)) if balances else load.url(host.address4, HTTP_PORT)
        seen = load.wrk(client, target, testbed.directory, seconds=args.seconds, close=close)
        if seen.errors > seen.requests / 10000:
            raise TestbedError(f"wrk counts {seen.errors} errors in {seen.requests} requests")
        return seen.rate / 1000

    def iperf3(balances: bool, family: int, reverse: bool) -> float:
        # a new server for each run: a forwarder that ends takes the end of its last test with it
        server.stop("iperf3")
        server.start("iperf3")
        prefer(*server.ns.pids())
        direct = host.address4 if family == 4 else host.address6
        target = testbed.vip(family) if balances else direct
        return load.iperf3(client, target, seconds=args.seconds, reverse=reverse).bits_per_second / 1e9

    found: dict[str, tuple[str, float | None, Callable[[bool], float]]] = {
        "wrk, connections kept": ("1,000 requests/s", 0.95, partial(wrk, close=False)),
        "wrk, one request a connection": ("1,000 requests/s", 0.95, partial(wrk, close=True)),
    }
    for family in args.families:
        for reverse in (False, True):
            name = f"iperf3 {'from' if reverse else 'to'} the server, IPv{family}"
            found[name] = "Gbit/s", None, partial(iperf3, family=family, reverse=reverse)
    chosen = {name: case for name, case in found.items() if wanted(name, args.case)}
    if not chosen:
        raise SystemExit(f"bench/veth: no case of tcp has {' or '.join(args.case)} in its name; there are {', '.join(found)}")
    return chosen


def tcp(args: argparse.Namespace, place: Placement) -> list[Row]:
    rows = []
    names = [name for name in args.forwarders if not name.endswith("inline")]
    with Testbed(f"{args.prefix}-tcp", workers=1, servers=1, lips=LIPS, routing=True) as testbed:
        testbed.balancer.sysctl(net__ipv4__ip_local_port_range="2000 9999")  # the rest is lbd's
        where = site(testbed, place)
        for case, (unit, goal, measure) in cases(testbed, args).items():

            def run(name: str, measure: Callable[[bool], float] = measure) -> float:
                with forwarding(name, where, place, args.poll) as forwarder:
                    # not lbd's master, which may have the core of the connections' ends
                    forwarders = {pid for pid in testbed.balancer.pids() if not forwarder.daemon or pid != forwarder.daemon.pid}
                    prefer(os.getpid(), *testbed.servers[0].ns.pids(), *forwarders)
                    return measure(forwarder.flows is not None)

            seen = alternate(case, unit, args.runs, {name: partial(run, name) for name in names})
            lbd = seen.pop("lbd")
            for name, runs in seen.items():
                rows.append(Row(case, {"poll": args.poll}, unit, lbd, name, runs, goal if name == "AF_XDP" else None))
    return rows
