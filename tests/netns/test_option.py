# SPDX-License-Identifier: Apache-2.0
"""Services' options on real traffic, two workers whose queues know nothing of each other: a group of addresses with persistence,
every port of a VIP, datagrams scheduled one by one."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from lbd.master import template
from lbd.testbed import Testbed, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text, endpoint
from tests.netns.conftest import make

pytestmark = [pytest.mark.root, pytest.mark.netns]
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

SECOND = 81  # the group's other port
REQUESTS = 20_000


@pytest.fixture(scope="module")
def options() -> Iterator[tuple[Testbed, Daemon]]:
    with make(workers=2, clients=4) as testbed:
        settings = testbed.settings(services=("web", "dns"))
        for service in settings["service"]:
            service.pop("health", None)
            family = 6 if service["address"].startswith("[") else 4
            vip = testbed.vip(family)
            if service["name"].startswith("web"):
                service |= {"addresses": [endpoint(vip, SECOND)], "persistence": "6m", "fwmark": family, "scheduler": "rr"}
            else:
                service |= {"one_packet": True, "scheduler": "rr"}
        for family in (4, 6):
            hosts = [s.host.address4 if family == 4 else s.host.address6 for s in testbed.servers]
            settings["service"].append(
                {
                    "name": f"any{family}", "address": testbed.vip(family), "interface": "eth0", "persistence": "6m",
                    "real_server": [{"address": host} for host in hosts],
                }
            )  # fmt: skip
        yield testbed, testbed.lbd(config_text(settings))


def served(testbed: Testbed, run: Callable[[], None]) -> dict[str, int]:
    """Requests that each real server got meanwhile, without the one that asks for its count."""
    before = {name: c.requests for name, c in testbed.counts().items()}
    run()
    return {name: c.requests - before[name] - 1 for name, c in testbed.counts().items()}


def wrk(testbed: Testbed, family: int, port: int, least: int, close: bool) -> None:
    requests = 0
    while requests < least:
        url = load.url(testbed.vip(family), port)
        result = load.wrk(testbed.client, url, testbed.directory, connections=16, seconds=2, close=close)
        assert result.errors == 0 and result.requests, result
        requests += result.requests


@families
def test_a_client_of_a_group_has_one_server(options: tuple[Testbed, Daemon], family: int) -> None:
    testbed, daemon = options

    def load_both() -> None:
        for port in (80, SECOND):
            wrk(testbed, family, port, REQUESTS // 2, close=False)
            wrk(testbed, family, port, 1_000, close=True)

    got = served(testbed, load_both)
    assert sorted(n > 0 for n in got.values()) == [*[False] * (len(got) - 1), True], got
    assert sum(got.values()) >= REQUESTS
    # another address is another client; round robin gives it another server
    clients = testbed.topology.client_addresses4 if family == 4 else testbed.topology.client_addresses6
    names = {c: set() for c in clients}
    for client in clients:
        for port in (80, SECOND, 80, SECOND):
            took = load.curl(testbed.client, load.url(testbed.vip(family), port), "--interface", client)
            assert took.status == 200
            names[client].add(took.body)
    assert all(len(each) == 1 for each in names.values()), names
    found = [t for t in daemon.get("/v1/templates")["templates"] if t["service"] == f"web{family}"]
    assert {t["client"].split("/")[0] for t in found} == set(clients)
    rows = [r for r in daemon.get("/v1/real-servers")["real_servers"] if r["service"] == f"web{family}"]
    assert sum(r["persistent"] for r in rows) == len(clients)
    assert len(clients) < 2 or len([r for r in rows if r["persistent"]]) > 1


@families
def test_templates_outlive_a_worker(options: tuple[Testbed, Daemon], family: int) -> None:
    testbed, daemon = options
    curl = lambda: load.curl(testbed.client, load.url(testbed.vip(family))).body  # noqa: E731
    before = curl()
    pids = [w["pid"] for w in daemon.get("/v1/workers")["workers"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until("both have successors", lambda: not {w["pid"] for w in daemon.get("/v1/workers")["workers"]} & {*pids, 0}, 10)
    daemon.wait_ready()
    assert {curl() for _ in range(12)} == {before}


@families
def test_every_port(options: tuple[Testbed, Daemon], family: int) -> None:
    """nginx listens on 8080 of the real servers; to the VIP's own it goes by the service without a port."""
    testbed, daemon = options
    assert load.curl(testbed.client, load.url(testbed.vip(family), 8080)).status == 200
    took = load.curl(testbed.client, load.url(testbed.vip(family), 8079))
    assert took.status == 0, "refused by the real server: nobody listens there"
    [row] = [s for s in daemon.get("/v1/services")["services"] if s["name"] == f"any{family}"]
    assert row["connections"] >= 2 and row["address"].endswith(":0")


def test_each_query_is_scheduled(options: tuple[Testbed, Daemon]) -> None:
    testbed, daemon = options
    result = testbed.dnsperf(4)
    assert result.lost == 0 and result.completed > 1000
    rows = [r for r in daemon.get("/v1/real-servers")["real_servers"] if r["service"] == "dns4"]
    counts = [r["connections"] for r in rows]
    assert sum(counts) >= result.completed and max(counts) - min(counts) <= 0.02 * sum(counts) + 4


def chosen(testbed: Testbed) -> dict[str, str]:
    """Which real server each client has."""
    clients = {4: testbed.topology.client_addresses4, 6: testbed.topology.client_addresses6}
    return {
        client: load.curl(testbed.client, load.url(testbed.vip(family)), "--interface", client).body
        for family in clients for client in clients[family]
    }  # fmt: skip


def remembered(daemon: Daemon) -> set[tuple[str, str, str]]:
    found = daemon.get("/v1/templates")["templates"]
    return {(t["service"], t["client"], t["real_server"]) for t in found if t["service"].startswith("web")}


def test_clients_keep_their_servers_when_all_is_killed(options: tuple[Testbed, Daemon]) -> None:
    """The last one of this module. (A stop, and another number of workers: test_crew.py.)"""
    testbed, daemon = options
    had, known = chosen(testbed), remembered(daemon)
    assert len(known) == len(had) and len(set(had.values())) > 1
    all_of_them = len(daemon.get("/v1/templates")["templates"])
    wait_until("they are written down", lambda: len(template.read(daemon.run_dir)) == all_of_them * template.ROW, 10)
    workers = [w["pid"] for w in daemon.get("/v1/workers")["workers"]]
    daemon.kill()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_until("all are gone", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), 10)
    again = testbed.lbd(daemon.config_file.read_text())
    assert not again.get("/v1/status")["took_over"] and "clients keep the real servers that they had\n" in again.log()
    assert remembered(again) == known and chosen(testbed) == had
