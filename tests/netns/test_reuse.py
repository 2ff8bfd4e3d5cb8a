# SPDX-License-Identifier: Apache-2.0
"""Short connections by the thousand through one local address and one real server: local ports come round long before the real
server's kernel has forgotten them (TIME_WAIT), and it takes every SYN at once."""

from collections.abc import Callable

import pytest

from lbd.testbed import Testbed
from lbd.testbed.testbed import config_text, merged
from tests.netns.metrics import scrape

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.alone]

PORTS = 4096  # each may serve ten times a second


def syns_again(testbed: Testbed) -> int:
    """That clients sent a second time, since nobody had answered within a second."""
    names, values = (line.split() for line in testbed.client.run(["grep", "^TcpExt:", "/proc/net/netstat"]).splitlines())
    return int(values[names.index("TCPSynRetrans")])


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_ports_in_time_wait_serve_again_at_once(make_testbed: Callable[..., Testbed], family: int) -> None:
    testbed = make_testbed(servers=1, workers=2).up()
    changes = {"local_address": {"ports": f"10240-{10240 + PORTS - 1}"}, "packet": {"port_rest": "100ms"}}
    settings = merged(testbed.settings(["web"], [family]), changes)
    settings["local_address"] = settings["local_address"][:1]
    settings["service"][0].pop("health")
    daemon = testbed.lbd(config_text(settings))
    requests, again = 0, syns_again(testbed)
    while requests < 3 * PORTS:
        result = testbed.wrk(family, connections=16, seconds=2, close=True)
        assert result.requests and result.errors == 0, result
        requests += result.requests
    assert syns_again(testbed) - again <= 0.001 * requests, "each was taken, unless the machine stood still for a second"
    page = scrape(testbed)
    assert sum(page.values("lbd_connections_expired_total", reason="reused")) > 0.5 * requests
    assert not any(drop["packets"] for drop in daemon.get("/v1/drops")["drops"] if drop["reason"] == "local_port_exhausted")
