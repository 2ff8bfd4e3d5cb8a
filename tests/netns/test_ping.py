# SPDX-License-Identifier: Apache-2.0
"""Services of ICMP: `ping` through lbd with two workers, in every mode, to the kernels of real servers. One VIP for each mode."""

import re
from collections.abc import Callable

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import Namespace, wait_until
from lbd.testbed.testbed import config_text, endpoint
from lbd.testbed.topology import LB_CLIENT, LB_SERVER
from tests.netns.test_mode import DECAP, stats
from tests.program import compiled

pytestmark = [pytest.mark.root, pytest.mark.netns]
families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
GUE_PORT = 6080
BARE = {4: "192.0.2.11", 6: "2001:db8:1::11"}  # VIPs without a service of ICMP
TUNNELS = ("ipip", "gre", "gue")
MODES = ("fullnat", "nat", "dr", *TUNNELS)
RUNS, PINGS = 6, 4
REFUSING = """
table inet refusing {
    chain in {
        type filter hook input priority 0;
        icmp type echo-request reject with icmp type admin-prohibited;
        icmpv6 type echo-request reject with icmpv6 type admin-prohibited;
    }
}
"""


def vip(mode: str, family: int) -> str:
    """fullnat's is managed by lbd; none of the others is the balancer's own."""
    if mode == "fullnat":
        return Testbed.vip(family)
    return f"198.51.100.{20 + MODES.index(mode)}" if family == 4 else f"2001:db8:51::{20 + MODES.index(mode)}"


def service(testbed: Testbed, mode: str, family: int) -> dict[str, object]:
    way = {"tunnel": {"type": mode, **({"port": GUE_PORT} if mode == "gue" else {})}} if mode in TUNNELS else {}
    return {
        "name": f"{mode}{family}", "address": vip(mode, family), "protocol": "icmp", "mode": "tunnel" if way else mode,
        "scheduler": "rr", "interface": "eth0", "manage": mode == "fullnat", **way,
        "real_server": [{"address": s.host.address4 if family == 4 else s.host.address6} for s in testbed.servers],
    }  # fmt: skip


@pytest.fixture(scope="module")
def lab(make_shared: Callable[..., Testbed]) -> tuple[Testbed, Daemon]:
    """Real servers have the VIPs of dr and tunnels on lo, the tunnels' ends, and lbd's host as their gateway."""
    testbed = make_shared(workers=2).up()
    far = [vip(mode, family) for mode in MODES[1:] for family in (4, 6)]
    for address in far:
        testbed.client.ip(f"route add {address} via {LB_CLIENT[':' in address]}")
    testbed.balancer.sysctl(
        net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1, net__ipv4__conf__all__rp_filter=0,
        net__ipv4__conf__eth1__rp_filter=0,
    )  # fmt: skip
    for server in testbed.servers:
        server.ns.sysctl(
            net__ipv4__conf__all__arp_ignore=1, net__ipv4__conf__all__arp_announce=2, net__ipv4__conf__all__rp_filter=0,
            net__ipv4__conf__default__rp_filter=0,
        )  # fmt: skip
        server.ns.ip(f"route add default via {LB_SERVER[0]}", f"route add ::/0 via {LB_SERVER[1]}")
        server.ns.ip("link set lo up", *(f"addr add {a} dev lo" for a in far if a not in (vip("nat", 4), vip("nat", 6))))
        said = server.directory / "decap.out"
        with open(said, "wb") as out:
            testbed.popen(server.ns, [str(compiled(DECAP)), "tun0", str(GUE_PORT)], stdout=out)
        wait_until("the tunnels' end is there", lambda said=said: said.read_text() == "ready\n", 10)  # type: ignore[misc]
    settings = testbed.settings(services=("web",))
    settings["service"] += [service(testbed, mode, family) for mode in MODES for family in (4, 6)]
    for web in list(settings["service"][:2]):
        family = 6 if web["address"].startswith("[") else 4
        settings["service"].append(web | {"name": f"bare{family}", "address": endpoint(BARE[family], 80)})
    return testbed, testbed.lbd(config_text(settings))


def ping(ns: Namespace, family: int, address: str, *options: str) -> int:
    """Until PINGS of them, or some more, are answered; how many were sent."""
    said = ns.run(["ping", f"-{family}", "-c", str(PINGS), "-i", "0.01", "-w", "5", *options, address])
    found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert found and int(found[2]) >= PINGS, said
    return int(found[1])


@pytest.mark.cell("{mode}", "{family}", "icmp", "veth")
@families
@pytest.mark.parametrize("mode", MODES)
def test_every_ping_is_answered(lab: tuple[Testbed, Daemon], mode: str, family: int) -> None:
    """Each run is a flow of its own and goes to one real server, which answers: by lbd, or past it."""
    testbed, daemon = lab
    sent = sum(
        ping(testbed.client, family, vip(mode, family), "-e", str(1000 + n), "-s", str(56 + 100 * n)) for n in range(RUNS)
    )
    row = stats(daemon, f"{mode}{family}")
    assert (row["protocol"], row["connections"], row["incoming_packets"]) == ("icmp", RUNS, sent)
    assert RUNS * PINGS <= row["outgoing_packets"] <= sent if mode in ("fullnat", "nat") else row["outgoing_packets"] == 0
    dealt = daemon.get(f"/v1/real-servers?service={mode}{family}")["real_servers"]
    assert all(r["connections"] for r in dealt) and sum(r["connections"] for r in dealt) == RUNS, dealt
    for c in daemon.get(f"/v1/conns?service={mode}{family}")["conns"]:
        assert (c["protocol"], c["state"]) == ("icmp", "icmp") and 0 < c["expires"] <= 60, c


@families
def test_pings_of_the_host(lab: tuple[Testbed, Daemon], family: int) -> None:
    """From a local address, with an identifier that lbd may have, too; of it, and of the balancer's other addresses."""
    testbed, daemon = lab
    lip = (testbed.topology.lips4 if family == 4 else testbed.topology.lips6)[0]
    real = testbed.servers[0].host
    there = real.address4 if family == 4 else real.address6
    before = [stats(daemon, f"fullnat{family}")[key] for key in ("incoming_packets", "outgoing_packets")]
    for ident in ("7", "20000"):
        for size in ("56", "3000"):
            ping(testbed.balancer, family, there, "-I", lip, "-e", ident, "-s", size)
        ping(testbed.servers[0].ns, family, lip, "-e", ident)
        ping(testbed.client, family, LB_CLIENT[family == 6], "-e", ident)
    assert [stats(daemon, f"fullnat{family}")[key] for key in ("incoming_packets", "outgoing_packets")] == before


@families
@pytest.mark.parametrize("mode", ("fullnat", "nat", "dr", "ipip"))
def test_large_pings(lab: tuple[Testbed, Daemon], mode: str, family: int) -> None:
    """In fragments, both ways, by two workers."""
    testbed, daemon = lab
    if mode in TUNNELS:  # the first one is told how long fragments may be
        testbed.client.run(["ping", f"-{family}", "-c", "1", "-W", "1", "-s", "3000", vip(mode, family)], check=False)
    before = stats(daemon, f"{mode}{family}")
    sent = sum(ping(testbed.client, family, vip(mode, family), "-e", str(3000 + n), "-s", "3000") for n in range(4))
    row = stats(daemon, f"{mode}{family}")
    assert row["connections"] - before["connections"] == 4
    assert row["incoming_packets"] - before["incoming_packets"] >= 3 * 4 * PINGS
    assert row["incoming_packets"] - before["incoming_packets"] <= 3 * sent + 4
    back = row["outgoing_packets"] - before["outgoing_packets"]
    assert 3 * 4 * PINGS <= back <= 3 * sent if mode in ("fullnat", "nat") else back == 0


@families
def test_large_ones_of_a_vip_without_such_a_service(lab: tuple[Testbed, Daemon], family: int) -> None:
    """Are the kernel's, as small ones."""
    testbed, daemon = lab
    services = (f"bare{family}", f"fullnat{family}")
    before = [stats(daemon, name)["incoming_packets"] for name in services]
    for size in ("56", "3000"):
        ping(testbed.client, family, BARE[family], "-s", size)
    assert [stats(daemon, name)["incoming_packets"] for name in services] == before


@families
def test_a_real_server_that_refuses(lab: tuple[Testbed, Daemon], family: int) -> None:
    """The client is told, as if the VIP's host had said so. (Round robin, by each worker.)"""
    testbed, _ = lab
    server = testbed.servers[0]
    address = vip("fullnat", family)
    server.ns.run(["nft", "-f", "-"], text=REFUSING)
    try:
        said = [
            testbed.run(testbed.client, ["sh", "-c", f"ping -{family} -c 1 -W 1 -e {2000 + n} {address}; true"]) for n in range(6)
        ]
        refused, answered = (sum(word in text for text in said) for word in (f"From {address}", "1 received"))
        assert refused and answered and refused + answered == 6, said
    finally:
        server.ns.run(["nft", "delete", "table", "inet", "refusing"])
