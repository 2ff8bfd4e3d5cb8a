# SPDX-License-Identifier: Apache-2.0
"""Tunnels that end at lbd, on real traffic: curl and wrk behind IPIP and GRE (encap.py: this kernel may have no device for it), two
workers, nginx as real servers; answers come back past the tunnel. A kernel's own tunnels: tests/vm/test_mode.py.

    client ─ TUN w-KIND ─ encap.py ══ tunnel ══ 192.0.2.1 [ lbd ] ── nginx
"""

import filecmp
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lbd.testbed import Testbed, load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text, endpoint
from lbd.testbed.topology import LB_CLIENT, LB_SERVER
from tests.netns.command import lbd
from tests.netns.test_mode import NGINX

pytestmark = [pytest.mark.root, pytest.mark.netns]

KINDS = {"ipip": "ipip", "gre": "gre", "gre+csum": "gre"}  # the sender's, and lbd's word
WAYS = [("ipip", 4), ("ipip", 6), ("gre", 4), ("gre+csum", 6)]  # and by which family outside
PORTS = {"fullnat": 80, "nat": 81}
PORT = 8081  # of the real servers
UPLOAD = 8 << 20


def device(kind: str, outer: int) -> str:
    return f"w{list(KINDS).index(kind)}{outer}"


def configuration(testbed: Testbed, kinds: Iterable[str] = ("ipip", "gre")) -> str:
    settings = testbed.settings(services=())
    settings["tunnel"] = [
        {"name": f"{kind}{outer}", "type": kind, "local": LB_CLIENT[outer == 6],
         "remote": (testbed.topology.client_addresses4 if outer == 4 else testbed.topology.client_addresses6)[0]}
        for kind in kinds for outer in (4, 6)
    ]  # fmt: skip
    for mode, port in PORTS.items():
        for family in (4, 6):
            servers = [s.host.address4 if family == 4 else s.host.address6 for s in testbed.servers]
            settings["service"].append(
                {"name": f"{mode}{family}", "address": endpoint(testbed.vip(family), port), "mode": mode, "scheduler": "rr",
                 "interface": "eth0", "real_server": [{"address": endpoint(a, PORT)} for a in servers]}
            )  # fmt: skip
    return config_text(settings)


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> tuple[Testbed, Daemon]:
    testbed = make_shared(workers=2).up()
    for server in testbed.servers:
        server.ns.ip(f"route add default via {LB_SERVER[0]}", f"route add ::/0 via {LB_SERVER[1]}")
        (server.directory / "files").chmod(0o777)  # nginx's worker writes there what is put
        conf = server.directory / "far.conf"
        conf.write_text(NGINX % {"dir": server.directory, "port": PORT, "name": server.host.name})
        testbed.popen(server.ns, ["nginx", "-e", f"{server.directory}/far.log", "-p", str(server.directory), "-c", str(conf)])
        for address in (server.host.address4, server.host.address6):
            url = load.url(address, PORT)
            wait_until(f"{url} answers", lambda url=url, ns=server.ns: load.curl(ns, url).status == 200, 10)  # type: ignore[misc]
    client = testbed.client
    client.sysctl(net__ipv4__conf__all__rp_filter=0, net__ipv4__conf__default__rp_filter=0)
    for kind, outer in WAYS:
        name = device(kind, outer)
        said = testbed.directory / f"{name}.out"
        with open(said, "wb") as out:
            argv = [sys.executable, str(Path(__file__).with_name("encap.py")), name, kind, LB_CLIENT[outer == 6]]
            testbed.popen(client, argv, stdout=out)
        wait_until(f"the tunnel {name} is there", lambda said=said: said.read_text() == "ready\n", 10)  # type: ignore[misc]
    return testbed, testbed.lbd(configuration(testbed))


def enter(testbed: Testbed, kind: str, outer: int) -> None:
    """From here on the client's way to the VIPs is by this tunnel."""
    addresses = testbed.topology.client_addresses4[0], testbed.topology.client_addresses6[0]
    for family, plen, address in ((4, 32, addresses[0]), (6, 128, addresses[1])):
        testbed.client.ip(f"route replace {testbed.vip(family)}/{plen} dev {device(kind, outer)} src {address}")


def counts(daemon: Daemon, kind: str, outer: int) -> dict[str, Any]:
    [row] = [t for t in daemon.get("/v1/tunnels")["tunnels"] if t["name"] == f"{KINDS[kind]}{outer}"]
    return dict(row)


@pytest.mark.parametrize(("kind", "outer"), WAYS)
def test_what_comes_in_a_tunnel_is_balanced(site: tuple[Testbed, Daemon], kind: str, outer: int) -> None:
    """Each family inside, FULLNAT and NAT, short connections and a large upload; all of it counted as that tunnel's."""
    testbed, daemon = site
    enter(testbed, kind, outer)
    before = counts(daemon, kind, outer)
    requests = 0
    for mode, family in (("fullnat", 4), ("nat", 6)):
        url = load.url(testbed.vip(family), PORTS[mode])
        result = load.wrk(testbed.client, url, testbed.directory, connections=8, seconds=1, close=True)
        assert result.errors == 0 and result.requests > 50, (mode, family, result)
        requests += result.requests
    for mode, family in (("fullnat", 6), ("nat", 4)):
        put(testbed, family, PORTS[mode])
    seen = counts(daemon, kind, outer)
    assert seen["packets"] - before["packets"] > 4 * requests, "each packet of the clients came so"
    assert seen["bytes"] - before["bytes"] > 2 * UPLOAD and seen["refused"] == 0
    [row] = [line.split() for line in lbd(daemon, "tunnel").splitlines() if line.startswith(f"{KINDS[kind]}{outer} ")]
    assert seen["packets"] <= int(row[4]) < seen["packets"] + 100, "an end's last packets may come late"


def put(testbed: Testbed, family: int, port: int) -> None:
    sent = testbed.directory / "sent"
    sent.write_bytes(random.Random(family).randbytes(UPLOAD))
    took = load.curl(testbed.client, load.url(testbed.vip(family), port, "/put"), "-T", str(sent), timeout=60)
    assert took.status in (201, 204), took
    files = [s.directory / "files/put" for s in testbed.servers]
    assert sum(f.exists() and filecmp.cmp(f, sent, shallow=False) for f in files) == 1
    for f in files:
        f.unlink(missing_ok=True)


def test_both_workers_took_part_and_nothing_was_lost(site: tuple[Testbed, Daemon]) -> None:
    _, daemon = site
    assert all(w["received_packets"] > 1000 for w in daemon.get("/v1/workers")["workers"])
    dropped = {d["reason"]: d["packets"] for d in daemon.get("/v1/drops")["drops"] if d["packets"]}
    assert set(dropped) <= {"no_neighbor", "no_state"}, dropped


def test_a_reload_ends_a_tunnel_and_brings_it_back(site: tuple[Testbed, Daemon]) -> None:
    """What comes in it is the kernel's again, which has no use for it; the other tunnel stays, with its counts."""
    testbed, daemon = site
    url = load.url(testbed.vip(4), 80)
    kept = counts(daemon, "ipip", 4)
    daemon.config_file.write_text(configuration(testbed, ["ipip"]))
    lbd(daemon, "reload")
    assert {t["name"] for t in daemon.get("/v1/tunnels")["tunnels"]} == {"ipip4", "ipip6"}
    enter(testbed, "gre", 4)
    assert load.curl(testbed.client, url, timeout=0.5).status == 0
    enter(testbed, "ipip", 4)
    assert load.curl(testbed.client, url).status == 200
    assert counts(daemon, "ipip", 4)["packets"] > kept["packets"]
    daemon.config_file.write_text(configuration(testbed))
    lbd(daemon, "reload")
    enter(testbed, "gre", 4)
    assert load.curl(testbed.client, url).status == 200
    again = counts(daemon, "gre", 4)
    assert 4 < again["packets"] < 20, "it began anew"
