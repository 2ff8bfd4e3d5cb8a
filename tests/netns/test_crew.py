# SPDX-License-Identifier: Apache-2.0
"""Another number of workers under traffic (lbd/master/crew.py), and over a restart: connections go on."""

import re
from collections.abc import Callable

import pytest

from lbd.testbed import Testbed, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from tests.netns.command import lbd as command
from tests.netns.traffic import Inside, Traffic, config

pytestmark = [pytest.mark.root, pytest.mark.netns]

STREAMS, FLOWS = 60, 4


def queues(testbed: Testbed, count: int) -> None:
    """With XDP a veth must not receive by fewer queues than its peer sends by."""
    balancer, peers = testbed.balancer, ((testbed.client, "eth0"), (testbed.topology.switch, "lb"))
    ends = [(balancer, "eth0"), (balancer, "eth1")]
    for ns, name in [*ends, *peers] if count > 1 else [*peers, *ends]:
        ns.run(["ethtool", "-L", name, "rx", str(count), "tx", str(count)])


def working(lbd: Daemon) -> list[int]:
    """Connections of each worker."""
    return [w["connections_ipv4"] + w["connections_ipv6"] for w in lbd.get("/v1/workers")["workers"]]


def unharmed(traffic: Traffic) -> None:
    """Requests go on, on all connections that there were."""
    traffic.ask("mark")
    wait_until("requests go on", lambda: traffic.report()["requests"] > 5 * STREAMS and traffic.report()["late"] < 5, 20)
    wait_until("every flow goes on", lambda: traffic.report()["not_resumed"] == 0, 20)
    report = traffic.report()
    assert report["open"] == STREAMS and not report["error_count"], report["errors"]


def persistent(text: str) -> str:
    return "".join(f'{line}\npersistence = "6m"\n' if line.startswith('name = "web') else f"{line}\n" for line in text.splitlines())


def servers(testbed: Testbed) -> dict[str, str]:
    """Which real server each client is given, over both families."""
    addresses = [(f, a) for f, of in ((4, testbed.topology.client_addresses4), (6, testbed.topology.client_addresses6)) for a in of]
    return {a: load.curl(testbed.client, load.url(testbed.vip(f)), "--interface", a).body for f, a in addresses}


def remembered(lbd: Daemon) -> dict[str, str]:
    return {row["client"]: row["real_server"] for row in lbd.get("/v1/templates")["templates"]}


@pytest.mark.slow
def test_more_workers_and_fewer(make_testbed: Callable[..., Testbed]) -> None:
    testbed = make_testbed(workers=2, clients=4).up()
    queues(testbed, 1)
    one, two = (persistent(config(testbed, workers={"count": n})) for n in (1, 2))
    lbd = testbed.lbd(one)
    traffic = Traffic(testbed, streams=STREAMS, flows=FLOWS)
    traffic.wait_open()
    assert len(working(lbd)) == 1
    had = servers(testbed)
    known = remembered(lbd)
    assert len(known) == len(had)

    lbd.config_file.write_text(two)
    assert "2 workers, but no interface has more than 1 receive queues" in command(lbd, "reload", code=1)
    traffic.ask("pause")  # what a veth receives by a queue that has just come goes to the kernel, past XDP
    traffic.wait_quiet()
    queues(testbed, 2)
    assert "workers: count is now 2, was 1" in command(lbd, "reload")
    assert "workers were replaced: 2 now" in lbd.log()
    assert remembered(lbd) == known and servers(testbed) == had, "clients keep their real servers"
    traffic.ask("go")
    unharmed(traffic)
    assert lbd.get("/v1/status")["ready"]
    more = Traffic(testbed, streams=STREAMS, flows=FLOWS)
    more.wait_open()
    assert min(working(lbd)) > STREAMS // 4, "new ones are opened by both"
    unharmed(more)

    lbd.config_file.write_text(persistent(config(testbed, workers={"count": 2, "fifo_priority": 1})))
    assert "fifo_priority is now 1" in command(lbd, "reload")
    for each in (traffic, more):
        unharmed(each)

    lbd.config_file.write_text(one)
    said = command(lbd, "reload", code=1)
    assert "flows got other owners less than an hour ago" in said and re.search(r"reload after \d\d:\d\d, in (59|60) minutes", said)
    for each in (traffic, more):
        unharmed(each)
        each.ask("pause")
        each.wait_quiet()
    held = sum(working(lbd))
    assert lbd.stop() == 0
    queues(testbed, 1)
    again = testbed.lbd(one)
    [found] = working(again)
    assert 2 * (STREAMS + FLOWS) <= found <= held  # some of the clients' short ones have ended
    assert not (again.run_dir / "conn-1").exists()
    assert remembered(again) == known
    for each in (traffic, more):
        each.ask("go")
        unharmed(each)
        each.ask("pause")
        each.wait_quiet()
    inside = Inside(again)
    inside.settle(2 * STREAMS, 2 * FLOWS)
    inside.close()
    for each in (traffic, more):
        each.stop()
    assert servers(testbed) == had, "clients keep their real servers over a stop, too"
    assert again.stop() == 0
