# SPDX-License-Identifier: Apache-2.0
"""A testbed in which things change while lbd serves: for test_change.py and test_change_config.py.

All along, a client talks over connections that never end, and compares each byte (`client`). Every test ends by `settle`,
leaves everything as it found it, and the last one of a module asks whether `nobody_else_noticed`.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tomlkit

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.load import Wrk
from lbd.testbed.netns import wait_until
from lbd.testbed.server import HTTP_PORT, RealServer
from lbd.testbed.testbed import FAMILIES, config_text, endpoint
from tests.netns import traffic
from tests.netns.command import lbd

STREAMS, FLOWS = 60, 6
MOVING = ("10.79.0.1", "fd79::1")  # a real server's address behind a gateway
MOVING_PORT, WEIGHTED_PORT = 8, 81
KEPT = 12  # connections, so that each worker deals out some to each real server
# health checks of the testbed: 500 ms between two, 400 ms for one, two failures; twice that for a busy machine
NOTICED = 2 * (2 * 0.5 * 1.1 + 0.4)
SOON = 10.0  # what takes no time, on a busy machine


@dataclass
class Site:
    testbed: Testbed
    daemon: Daemon
    client: traffic.Traffic
    settings: dict[str, Any]

    def real_servers(self, service: str) -> dict[str, dict[str, Any]]:
        rows = self.daemon.get(f"/v1/real-servers?service={service}")["real_servers"]
        return {row["address"]: row for row in rows}

    def connections(self, service: str) -> dict[str, int]:
        return {address: row["connections"] for address, row in self.real_servers(service).items()}

    def reload(self, settings: dict[str, Any], code: int = 0) -> str:
        self.daemon.config_file.write_text(config_text(settings))
        return lbd(self.daemon, "reload", code=code)

    @contextmanager
    def load(self, family: int = 4, seconds: int = 3, **options: Any) -> Iterator[Future[Wrk]]:
        """wrk while the block runs; its end is waited for."""
        with ThreadPoolExecutor(1) as pool:
            before = sum(self.connections(f"web{family}").values())
            future = pool.submit(self.testbed.wrk, family, connections=32, seconds=seconds, **options)
            wait_until("wrk is at work", lambda: sum(self.connections(f"web{family}").values()) > before + 30, SOON)
            yield future

    def settle(self) -> None:
        """Nothing is late: every request of the client was answered, on every connection."""
        self.client.ask("pause")
        self.client.wait_quiet(60)
        self.client.ask("go")
        report = self.client.report()
        assert (report["error_count"], report["open"]) == (0, STREAMS), report["errors"]


def config(testbed: Testbed) -> dict[str, Any]:
    settings: dict[str, Any] = tomlkit.parse(traffic.config(testbed)).unwrap()
    settings["service"] += testbed.settings(services=("dns",))["service"]
    for n, family in enumerate(FAMILIES):
        vip, hosts = testbed.vip(family), [s.host for s in testbed.servers]
        common = {"protocol": "tcp", "interface": "eth0"}
        settings["service"] += [
            {
                "name": f"moving{family}",
                "address": endpoint(vip, MOVING_PORT),
                "scheduler": "rr",
                "real_server": [{"address": endpoint(MOVING[n], traffic.SERVER_PORT)}],
            }
            | common,
            {
                "name": f"weighted{family}",
                "address": endpoint(vip, WEIGHTED_PORT),
                "scheduler": "wrr",
                "real_server": [{"address": endpoint((h.address4, h.address6)[n], HTTP_PORT)} for h in hosts],
            }
            | common,
        ]
    return settings


def lead(testbed: Testbed, server: RealServer) -> None:
    """The way to MOVING is by this server."""
    for n, gateway in enumerate((server.host.address4, server.host.address6)):
        testbed.balancer.ip(f"route replace {MOVING[n]} via {gateway}")


def start(testbed: Testbed) -> Site:
    """In a testbed that is up."""
    for server in testbed.servers:
        server.ns.ip(f"address add {MOVING[0]}/32 dev lo", f"address add {MOVING[1]}/128 dev lo nodad")
        # say so when the MAC changes, as hosts and clusters that move addresses do
        server.ns.sysctl(net__ipv4__conf__eth0__arp_notify=1, net__ipv6__conf__eth0__ndisc_notify=1)
    lead(testbed, testbed.servers[0])
    settings = config(testbed)
    daemon = testbed.lbd(config_text(settings))
    client = traffic.Traffic(testbed, streams=STREAMS, flows=FLOWS, pause=0.05, pace=0.05)
    client.wait_open()
    return Site(testbed, daemon, client, settings)


def nobody_else_noticed(site: Site) -> None:
    """Each connection of the client is still there, and every byte was right."""
    site.settle()
    report = site.client.report()
    assert report["requests"] > 1000 and report["replies"] > 0
    assert [w["restarts"] for w in site.daemon.get("/v1/workers")["workers"]] == [0, 0]
