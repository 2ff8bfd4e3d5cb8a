# SPDX-License-Identifier: Apache-2.0
"""The testbed itself, by plain routing: what later tests take for granted of servers, loads, queues and
cleaning up.

The balancer's kernel routes here; nothing of lbd's datapath is involved.
"""

import json
import os
from collections.abc import Callable

import pytest

import lbd.testbed.server
from lbd.config import loads
from lbd.testbed import Namespace, Testbed, TestbedError, load
from lbd.testbed.netns import wait_until
from lbd.testbed.server import DNS_NAME, HTTP_PORT, RealServer

pytestmark = [pytest.mark.root, pytest.mark.netns]

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
Make = Callable[..., Testbed]


def address(server: RealServer, family: int) -> str:
    return server.host.address4 if family == 4 else server.host.address6


@families
def test_each_real_server_answers_with_its_name(routed: Testbed, family: int) -> None:
    for server in routed.servers:
        answer = load.curl(routed.client, load.url(address(server, family), HTTP_PORT))
        assert (answer.status, answer.body, answer.error) == (200, f"{server.name}\n", "")


def test_curl_reports_a_failure_instead_of_raising(routed: Testbed) -> None:
    answer = load.curl(routed.client, load.url(routed.servers[0].host.address4, 1))
    assert answer.status == 0 and "connect" in answer.error.lower()


@families
def test_wrk_agrees_with_the_counters_of_nginx(routed: Testbed, family: int) -> None:
    server = routed.servers[0]
    target = load.url(address(server, family), HTTP_PORT)
    before = server.counts()
    kept = load.wrk(routed.client, target, routed.directory, connections=16, seconds=1)
    between = server.counts()
    closed = load.wrk(routed.client, target, routed.directory, connections=16, seconds=1, close=True)
    after = server.counts()
    assert kept.errors == closed.errors == 0
    # wrk leaves out the requests under way when it stops: one a connection; 1 is the question for the
    # counters
    assert kept.requests <= (between - before).requests <= kept.requests + 16 + 1
    assert 16 + 1 <= (between - before).connections <= 16 + 2  # wrk tries the address with one of its own
    assert closed.requests <= (after - between).connections <= closed.requests + 2 * 16 + 1


@families
def test_no_query_of_ten_thousand_at_once_is_lost(routed: Testbed, family: int) -> None:
    """Without larger socket buffers dnsmasq loses all but some 200 of such a burst."""
    for server in routed.servers[:1]:
        result = load.dnsperf(
            routed.client, address(server, family), DNS_NAME, routed.directory, queries=20000,
            outstanding=10000, clients=50
        )  # fmt: skip
        assert (result.completed, result.lost, result.failed) == (20000, 0, 0)


@families
@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_iperf3_measures_both_directions(routed: Testbed, family: int, reverse: bool) -> None:
    server = routed.servers[0]
    wait_until("iperf3 is idle", server.iperf3_idle, 10)
    result = load.iperf3(routed.client, address(server, family), seconds=1, reverse=reverse)
    assert result.bits_per_second > 100e6


def test_iperf3_refused_is_an_error(routed: Testbed) -> None:
    with pytest.raises(TestbedError, match=r"iperf3: .*(unable to connect|Connection refused)"):
        load.iperf3(routed.client, routed.servers[0].host.address4, seconds=1, port=5999)


def sent_by_queue(ns: Namespace, device: str) -> list[int]:
    """Packets that left by each transmit queue; veth delivers them to the same queue of the other end."""
    disciplines = json.loads(ns.run(["tc", "-s", "-j", "qdisc", "show", "dev", device]))
    return [d["packets"] for d in disciplines if d["kind"] == "pfifo"]


def test_both_directions_reach_both_queues_of_the_balancer(routed: Testbed) -> None:
    """NB: a bridge behind two multi-queue veths sends everything to queue 0; see lbd/testbed/topology.py."""
    ends = [(routed.client, "eth0"), (routed.topology.switch, "lb")]
    before = [sent_by_queue(*end) for end in ends]
    target = load.url(routed.servers[0].host.address4, HTTP_PORT)
    assert load.wrk(routed.client, target, routed.directory, connections=64, seconds=1).errors == 0
    for end, old in zip(ends, before, strict=True):
        packets = [new - was for new, was in zip(sent_by_queue(*end), old, strict=True)]
        assert len(packets) == 2 and min(packets) > 0.1 * sum(packets), (end, packets)


def test_a_real_server_stops_and_starts_again(routed: Testbed) -> None:
    server = routed.servers[1]
    target = load.url(server.host.address4, HTTP_PORT)
    server.stop("nginx")
    assert load.curl(routed.client, target).status == 0
    server.start("nginx")
    assert load.curl(routed.client, target).status == 200
    assert server.running("dnsmasq") and server.running("iperf3")


def test_the_configuration_is_valid_and_changes_reach_every_table(make_testbed: Make) -> None:
    testbed = make_testbed(workers=2, servers=2)
    config = loads(
        testbed.config(workers={"poll": "busy"}, service={"scheduler": "wlc"}, interface={"ring": 512})
    )
    assert not config.warnings
    assert {s.name for s in config.service} == {"web4", "web6", "dns4", "dns6", "iperf4", "iperf6"}
    assert {s.scheduler for s in config.service} == {"wlc"}
    assert [i.ring for i in config.interface] == [512, 512]
    assert (config.workers.number, config.workers.poll) == (2, "busy")
    assert [s.name for s in loads(testbed.config(services=["dns"], families=[6])).service] == ["dns6"]


def test_a_smaller_mtu_behind_the_balancer_is_told_to_the_client(make_testbed: Make) -> None:
    with make_testbed(workers=1, servers=1, routing=True, server_mtu=1400) as testbed:
        target = testbed.servers[0].host.address4
        body = testbed.directory / "body"
        body.write_bytes(bytes(1 << 20))
        target_url = load.url(target, HTTP_PORT)
        assert load.curl(testbed.client, target_url, "--data-binary", f"@{body}").status == 200
        assert "mtu 1400" in testbed.client.run(["ip", "route", "get", target])


def test_down_leaves_nothing_and_can_be_repeated(make_testbed: Make) -> None:
    testbed = make_testbed(servers=1).up()
    namespaces = testbed.topology.namespaces
    # what outlives its parent, as a worker of lbd does
    testbed.balancer.run(["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 &"])
    wait_until("it runs", lambda: any(name(p) == "sleep" for p in testbed.balancer.pids()), 5)
    stray = [pid for ns in namespaces for pid in ns.pids()]
    assert len(stray) >= 4  # nginx and its worker, dnsmasq, iperf3, sleep
    testbed.down()
    assert not any(ns.exists() for ns in namespaces)
    assert not testbed.directory.exists()
    assert not [pid for pid in stray if name(pid)]
    testbed.down()


def name(pid: int) -> str:
    """A living process's name; nothing of a zombie, whoever has to collect it."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            _, _, rest = f.read().partition("(")
    except OSError:
        return ""
    comm, _, state = rest.rpartition(")")
    return "" if state.split()[0] == "Z" else comm


def test_up_that_fails_cleans_up_and_quotes_what_failed(
    make_testbed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lbd.testbed.server, "NGINX", "nonsense on;\n")
    testbed = make_testbed(servers=1)
    with pytest.raises(TestbedError, match=r"nginx of rs1 ended with status 1: .*nonsense"):
        testbed.up()
    assert not any(ns.exists() for ns in testbed.topology.namespaces)
    assert not testbed.directory.exists()


def test_up_replaces_what_a_crashed_run_left(make_testbed: Make) -> None:
    first = make_testbed(servers=1).up()
    second = Testbed(first.prefix, servers=1)
    with second.up():
        answer = load.curl(second.balancer, load.url(second.servers[0].host.address4, HTTP_PORT))
        assert answer.status == 200
    assert not first.servers[0].running("nginx")
    assert not os.path.exists(first.topology.lb.path)
