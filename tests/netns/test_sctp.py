# SPDX-License-Identifier: Apache-2.0
"""SCTP through lbd with two workers, in every mode: associations between two ends in user space (sctp_end.py; the kernel's own SCTP
is in tests/vm/test_sctp.py)."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text, endpoint
from lbd.testbed.topology import LB_SERVER
from tests.netns.test_mode import FAR_VIP, far_routes, far_servers, stats

pytestmark = [pytest.mark.root, pytest.mark.netns]
END = str(Path(__file__).with_name("sctp_end.py"))
PORTS = {"fullnat": 3868, "nat": 3869, "dr": 3870, "tunnel": 3871, "nat64": 3872}
ASSOCIATIONS = 60


def services(testbed: Testbed, modes: tuple[str, ...], vip: dict[int, str], **more: object) -> list[dict[str, object]]:
    return [
        {
            "name": f"{mode}{family}", "address": endpoint(vip[family], PORTS[mode]), "protocol": "sctp",
            "mode": "fullnat" if mode == "nat64" else mode, "scheduler": "rr", **more, "real_server": [
                {"address": endpoint(s.host.address4 if family == 4 or mode == "nat64" else s.host.address6, PORTS[mode])}
                for s in testbed.servers
            ],
        }
        for mode in modes for family in (4, 6) if (mode, family) != ("nat64", 4)
    ]  # fmt: skip


def serve(testbed: Testbed, modes: tuple[str, ...], vip: dict[int, str]) -> None:
    """A real server answers from the address that was asked for: its own, or the VIP."""
    for server in testbed.servers:
        for mode in modes:
            own = {4: server.host.address4, 6: server.host.address6}
            for address in (vip if mode in ("dr", "tunnel") else own).values():
                said = server.directory / f"sctp-{mode}-{':' in address}.out"
                with open(said, "wb") as out:
                    argv = [sys.executable, END, "server", address, str(PORTS[mode]), server.host.name]
                    testbed.popen(server.ns, argv, stdout=out)
                wait_until("the SCTP server is there", lambda said=said: said.read_text() == "ready\n", 10)  # type: ignore[misc]


def talk(testbed: Testbed, daemon: Daemon, mode: str, family: int, address: str) -> None:
    argv = [sys.executable, END, "client", address, str(PORTS[mode]), str(ASSOCIATIONS), "1200"]
    seen = json.loads(testbed.run(testbed.client, argv, timeout=120))
    assert seen["wrong"] == 0
    assert sorted(seen["served"]) == sorted(s.host.name for s in testbed.servers)
    assert sum(seen["served"].values()) == ASSOCIATIONS
    row = stats(daemon, f"{mode}{family}")
    assert (row["protocol"], row["connections"]) == ("sctp", ASSOCIATIONS)
    assert (row["outgoing_packets"] == 0) == (mode in ("dr", "tunnel"))
    for c in daemon.get(f"/v1/conns?service={mode}{family}")["conns"]:
        assert c["protocol"] == "sctp" and c["state"] in ("closed", "shutdown_sent", "shutdown_ack_sent"), c


@pytest.fixture(scope="module")
def near(make_shared: Callable[..., Testbed]) -> tuple[Testbed, Daemon]:
    testbed = make_shared(workers=2).up()
    vip = {family: testbed.vip(family) for family in (4, 6)}
    for server in testbed.servers:
        server.ns.ip(f"route add default via {LB_SERVER[0]}", f"route add ::/0 via {LB_SERVER[1]}")
    serve(testbed, ("fullnat", "nat", "nat64"), vip)
    settings = testbed.settings()
    alike = {key: value for key, value in settings["service"][0].items() if key in ("interface", "manage")}
    settings["service"] += services(testbed, ("fullnat", "nat", "nat64"), vip, **alike)
    return testbed, testbed.lbd(config_text(settings))


@pytest.mark.cell("{mode}", "{family}", "sctp", "veth")
@pytest.mark.parametrize(("mode", "family"), [("fullnat", 4), ("fullnat", 6), ("nat", 4), ("nat", 6), ("nat64", 6)])
def test_two_ways(near: tuple[Testbed, Daemon], mode: str, family: int) -> None:
    testbed, daemon = near
    talk(testbed, daemon, mode, family, testbed.vip(family))


def test_a_port_without_a_service_is_the_kernels(near: tuple[Testbed, Daemon]) -> None:
    """Which has no SCTP, and says so."""
    testbed, daemon = near
    before = daemon.get("/v1/services")["services"]
    script = (
        "from socket import *; s, i = socket(AF_INET, SOCK_RAW, 132), socket(AF_INET, SOCK_RAW, 1); i.settimeout(5);"
        f"s.sendto(bytes.fromhex('9c4000090000000000000000') + bytes(20), ('{testbed.vip(4)}', 0)); print(i.recv(100)[20:22].hex())"
    )
    assert testbed.run(testbed.client, [sys.executable, "-c", script]) == "0302\n", "protocol unreachable"
    assert daemon.get("/v1/services")["services"] == before


@pytest.fixture(scope="module", params=["dr", "tunnel", "gre", "gue"])
def far(request: pytest.FixtureRequest, make_shared: Callable[..., Testbed]) -> tuple[str, Testbed, Daemon]:
    mode = "dr" if request.param == "dr" else "tunnel"
    way = {"tunnel": {"type": request.param}} if request.param in ("gre", "gue") else {}
    testbed = make_shared(workers=2, routing=True).up()
    far_servers(testbed, mode == "tunnel")
    far_routes(testbed)
    serve(testbed, (mode,), FAR_VIP)
    settings = testbed.settings(services=())
    settings["service"] += services(testbed, (mode,), FAR_VIP, manage=False, **way)
    return mode, testbed, testbed.lbd(config_text(settings))


@pytest.mark.cell("{far}", "{family}", "sctp", "veth")
@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_one_way(far: tuple[str, Testbed, Daemon], family: int) -> None:
    mode, testbed, daemon = far
    talk(testbed, daemon, mode, family, FAR_VIP[family])
