# SPDX-License-Identifier: Apache-2.0
"""What lbd says of itself while it serves: each command of `lbd`, tables and JSON, and the metrics; held against what the
client and the kernel know.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbd import __version__
from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import endpoint
from tests.netns import traffic
from tests.netns.command import lbd, lbd_json
from tests.netns.metrics import scrape

pytestmark = [pytest.mark.root, pytest.mark.netns]

STREAMS, FLOWS = 24, 8
Site = tuple[Testbed, Daemon, traffic.Traffic]


@pytest.fixture(scope="module")
def site(make_shared: Callable[..., Testbed]) -> Site:
    """A client talks all the time: half of its connections IPv4, half IPv6."""
    testbed = make_shared(workers=2).up()
    daemon = testbed.lbd(traffic.config(testbed))
    client = traffic.Traffic(testbed, streams=STREAMS, flows=FLOWS, pause=0.02)
    client.wait_open()
    wait_until("probes are answered", lambda: client.report()["replies"] > 10 * FLOWS, 10)
    return testbed, daemon, client


def rows(text: str) -> list[list[str]]:
    """Words of the lines of a table, without its titles."""
    return [line.split() for line in text.strip().splitlines()[1:]]


def test_status(site: Site) -> None:
    _, daemon, _ = site
    wait_until("a busy worker's heartbeat is seen", daemon.ready, 10)
    status = lbd_json(daemon, "status")
    assert status == lbd_json(daemon, "status", "--check") | {"uptime": status["uptime"], "frames": status["frames"]}
    assert (status["version"], status["pid"], status["state"], status["ready"]) == (__version__, daemon.pid, "running", True)
    assert (status["problems"], status["notes"]) == ([], [])
    places = status["workers"].pop("places")
    assert status["workers"] == {"total": 2, "running": 2, "restarts": 0} and [p["worker"] for p in places] == [0, 1]
    assert status["services"] == {"total": 6, "up": 6}
    assert status["real_servers"] == {"total": 18, "up": 18, "down": 0, "drain": 0, "maint": 0}
    connections = status["connections"]
    assert (connections["ipv4"], connections["ipv6"]) == ((STREAMS + FLOWS) // 2,) * 2
    assert status["interfaces"] == [{"name": n, "up": True, "queues": 2, "mode": "copy", "node": None} for n in ("eth0", "eth1")]
    text = lbd(daemon, "status")
    for words in (f"{__version__}, running since", f"pid {daemon.pid}", "2 of 2 running, adaptive polling", "6 of 6 up",
                  "18 up, 0 down", f"{(STREAMS + FLOWS) // 2} of 524288 IPv4", "eth1 up, 2 queues, copy"):  # fmt: skip
        assert words in text, text


def test_service(site: Site) -> None:
    testbed, daemon, _ = site
    known = {s["name"]: s for s in lbd_json(daemon, "service")["services"]}
    assert known.keys() == {f"{n}{f}" for n in ("web", "echo-tcp", "echo-udp") for f in (4, 6)}
    for family in (4, 6):
        tcp, udp = known[f"echo-tcp{family}"], known[f"echo-udp{family}"]
        assert (tcp["address"], tcp["protocol"]) == (endpoint(testbed.vip(family), traffic.PORT), "tcp")
        assert (tcp["active"], tcp["inactive"], tcp["connections"]) == (STREAMS // 2, 0, STREAMS // 2)
        assert (udp["active"], udp["inactive"], udp["connections"]) == (0, FLOWS // 2, FLOWS // 2)
        for service in (tcp, udp):
            assert service["incoming_packets"] > 50 and service["outgoing_packets"] > 50
            assert service["incoming_bytes"] > 60 * service["incoming_packets"] > 0
    text = lbd(daemon, "service", "echo-tcp4")
    assert "TCP  192.0.2.10:7 rr name echo-tcp4" in text and "web4" not in text
    active = [int(n) for n in re.findall(r"-> 10\.77\.0\.\d+:7007 +FullNat +1 +(\d+) +0", text)]
    assert len(active) == 3 and sum(active) == STREAMS // 2
    stats = re.search(r"^TCP +192\.0\.2\.10:7 +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", lbd(daemon, "service", "--stats"), re.M)
    assert stats and int(stats[1]) == STREAMS // 2 and int(stats[2]) > 100
    assert "no service" in lbd(daemon, "service", "nonsense", code=1)


def test_real_server(site: Site) -> None:
    _, daemon, _ = site
    known = lbd_json(daemon, "real-server")["real_servers"]
    assert len(known) == 18
    assert {r["health"]["status"] for r in known if r["service"].startswith("web")} == {"up"}
    assert sum(r["active"] for r in known if r["service"] == "echo-tcp6") == STREAMS // 2
    assert all((r["weight"], r["state"], r["admin"]) == (1, "up", "ready") for r in known)
    listed = rows(lbd(daemon, "real-server", "list", "web4"))
    assert [r[:5] for r in listed] == [["web4", f"10.77.0.1{n}:8080", "up", "1", "up"] for n in (1, 2, 3)]
    assert "nonsense" in lbd(daemon, "real-server", "drain", "web4", "nonsense", code=1)


def test_conn(site: Site) -> None:
    """Clients' ends are the sockets that the client's kernel knows."""
    testbed, daemon, _ = site
    found = lbd_json(daemon, "conn", "--limit", "1000")
    assert (found["total"], found["truncated"]) == (STREAMS + FLOWS, False)
    tcp = [c for c in found["conns"] if c["protocol"] == "tcp"]
    ends = {line.split()[2] for line in testbed.client.run(["ss", "-Htn", "state", "established"]).splitlines()}
    assert {c["client"] for c in tcp} == ends and len(tcp) == STREAMS
    assert {c["state"] for c in tcp} == {"established"}
    assert not [c for c in tcp if not 800 < c["expires"] <= 900.1]
    assert {c["service"] for c in tcp} == {"echo-tcp4", "echo-tcp6"} and {c["worker"] for c in tcp} == {0, 1}
    lips = {*testbed.topology.lips4, *testbed.topology.lips6}
    assert {c["local"].rpartition(":")[0].strip("[]") for c in tcp} <= lips
    seen = {end for s in testbed.servers for end in peers(s.ns.run(["ss", "-Htn", "state", "established", "sport", "= :7007"]))}
    assert {c["local"] for c in tcp} == seen
    text = lbd(daemon, "conn", "--service", "echo-udp6", "--limit", "3")
    assert len(re.findall(r"^udp +udp .* echo-udp6$", text, re.M)) == 3 and "3 of 4; --limit shows more" in text


def peers(text: str) -> list[str]:
    """The other ends of the sockets that ss listed; IPv4 ends of IPv6 sockets as what they are."""
    return [line.split()[3].replace("[::ffff:", "").replace("]", "") if "::ffff:" in line else line.split()[3]
            for line in text.splitlines()]  # fmt: skip


def test_worker(site: Site) -> None:
    _, daemon, _ = site
    known = lbd_json(daemon, "worker")["workers"]
    assert [w["number"] for w in known] == [0, 1]
    for w in known:
        assert Path(f"/proc/{w['pid']}").exists() and w["state"] == "running" and w["applied"]
        assert sorted((q["interface"], q["queue"]) for q in w["queues"]) == [("eth0", w["number"]), ("eth1", w["number"])]
        assert all(q["rx_packets"] > 0 and q["tx_packets"] > 0 and q["mode"] == "copy" for q in w["queues"])
        assert 0 < w["misplaced"] < w["received_packets"] and 0 < w["free_frames"] < w["frames"]
        assert w["restarts"] == w["commands_pending"] == 0 and w["busy_seconds"] > 0
    assert sum(w["connections_ipv4"] + w["connections_ipv6"] for w in known) == STREAMS + FLOWS
    assert sum(w["handed_out"] for w in known) == pytest.approx(sum(w["handed_in"] for w in known), rel=0.1)
    text = lbd(daemon, "worker")
    for w in known:
        assert re.search(rf"^ +{w['number']} +{w['pid']} +running .* applied$", text, re.M), text
    assert len(re.findall(r"^ +[01] +eth[01] +[01] +copy", text, re.M)) == 4


def test_lip(site: Site) -> None:
    testbed, daemon, _ = site
    known = lbd_json(daemon, "lip")["lips"]
    assert [row["address"] for row in known] == [*testbed.topology.lips4, *testbed.topology.lips6]
    assert sum(row["in_use"] for row in known) == STREAMS + FLOWS
    assert all(row["exhausted"] == 0 and row["capacity"] > 10_000 and row["interface"] == "eth1" for row in known)
    assert [r[0] for r in rows(lbd(daemon, "lip"))] == [row["address"] for row in known]


def test_drops(site: Site) -> None:
    """A segment of no connection; the table has it, by its reason."""
    testbed, daemon, _ = site

    def no_state() -> int:
        return int(next(d["packets"] for d in lbd_json(daemon, "drops")["drops"] if d["reason"] == "no_state"))

    before = no_state()
    ack = ["python3", "-c", STRAY.format(vip=testbed.vip(4), mac=testbed.topology.lb_macs["eth0"])]
    testbed.client.run(ack)
    wait_until("it is counted", lambda: no_state() == before + 1, 10)
    assert re.search(r"^no_state +\d+", lbd(daemon, "drops"), re.M)
    assert "martian" in lbd(daemon, "drops", "-a")
    assert all(x["redirect"] > 0 and x["drop"] == 0 for x in lbd_json(daemon, "drops")["xdp"])


# An ACK out of nowhere, by a raw socket: the kernel makes the IP header, and the checksum isn't looked at
STRAY = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
s.sendto(bytes.fromhex("303900500000000100000001501000010000" "0000"), ("{vip}", 0))
"""


def test_top(site: Site) -> None:
    _, daemon, _ = site
    text = lbd(daemon, "top", "-n1", "-d", "0.5")
    assert text.startswith(f"lbd {__version__}  up ") and "workers 2/2  real servers 18/18 up" in text
    assert re.search(r"^echo-tcp4 +tcp 192\.0\.2\.10:7 +3/3 +12 +0 ", text, re.M), text
    page = lbd_json(daemon, "top", "-n1", "-d", "0.5", "--real-servers")
    services, workers = page["tables"][:2]
    echo = next(row for row in services if row["SERVICE"] == "echo-udp4")
    assert float(echo["IN pps"]) > 10 and float(echo["OUT pps"]) > 10
    assert len([row for row in services if row["SERVICE"].startswith("  ")]) == 18
    assert [row["WORKER"] for row in workers] == [0, 1] and all(row["STATE"] == "running" for row in workers)


def test_interface_neigh_and_route(site: Site) -> None:
    """As the kernel of the balancer has them."""
    testbed, daemon, _ = site

    def kernel(*words: str) -> Any:
        return json.loads(testbed.balancer.run(["ip", "-j", *words]))

    links = {link["ifname"]: link for link in kernel("addr")}
    interfaces = lbd_json(daemon, "interface")["interfaces"]
    for i in interfaces:
        link = links[i["name"]]
        assert (i["ifindex"], i["mac"], i["mtu"], i["up"]) == (link["ifindex"], link["address"], link["mtu"], True)
        addresses = {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]}
        assert set(i["addresses"]) == addresses and i["queues"] == 2
    assert [r[1:4] for r in rows(lbd(daemon, "interface"))] == [["eth0", "up", "copy"], ["eth1", "up", "copy"]]
    neighbours = {n["address"]: n for n in lbd_json(daemon, "neigh")["neighbours"] if n["address"]}
    for server in testbed.servers:
        for address in (server.host.address4, server.host.address6):
            seen = neighbours[address]
            assert (seen["interface"], seen["mac"], seen["valid"], seen["managed"]) == ("eth1", server.host.mac, True, True)
    assert re.search(rf"^eth1 +10\.77\.0\.11 +{testbed.servers[0].host.mac} +- +yes .* managed$", lbd(daemon, "neigh"), re.M)
    routes = {r["destination"]: r for r in lbd_json(daemon, "route")["routes"]}
    for route in [*kernel("route"), *kernel("-6", "route")]:
        if route["dst"].startswith(("10.77.", "192.0.2.", "fd77::", "2001:db8:1::")) and "/" in route["dst"]:
            assert routes[route["dst"]]["interface"] == route["dev"], route
    assert re.search(r"^10\.77\.0\.0/24 +on link +eth1", lbd(daemon, "route"), re.M)


def test_capture_is_read_by_wireshark(site: Site, tmp_path: Path) -> None:
    _, daemon, _ = site
    if not shutil.which("tshark"):
        pytest.skip("needs tshark and capinfos (Debian package tshark)")
    file = tmp_path / "f.pcapng"
    assert "20 packets captured" in lbd(daemon, "capture", "-c", "20", "-w", str(file))
    said = subprocess.run(["capinfos", "-c", "-t", str(file)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"Number of packets: +20$", said, re.M) and "pcapng" in said
    fields = ["-T", "fields", *(w for f in ("frame.comment", "frame.interface_name", "ip.dst", "ipv6.dst") for w in ("-e", f))]
    said = subprocess.run(["tshark", "-r", str(file), *fields], capture_output=True, text=True, check=True).stdout
    lines = [line.split("\t") for line in said.splitlines()]
    assert len(lines) == 20
    for comment, interface, four, six in lines:
        assert re.fullmatch(r"worker [01], forward, service echo-(tcp|udp)[46], real server \S+:7007", comment), comment
        assert interface in ("eth0", "eth1") and (four or six)


def test_json_is_the_apis(site: Site) -> None:
    _, daemon, _ = site
    for command, path in (("lip", "lips"), ("interface", "interfaces"), ("route", "routes")):
        assert lbd_json(daemon, command).keys() == daemon.get(f"/v1/{path}").keys()
    assert lbd(daemon, "--version").startswith(f"lbd {__version__}")
    gone = subprocess.run(["true"], check=True) and daemon.run_dir / "nobody.sock"
    assert "no daemon answers" in lbd(daemon, "--socket", str(gone), "status", code=3)


# -- metrics -------------------------------------------------------------------------------------------------


def test_promtool_finds_nothing_in_the_metrics(site: Site) -> None:
    testbed, _, _ = site
    if not shutil.which("promtool"):
        pytest.skip("needs promtool (Debian package prometheus)")
    page = scrape(testbed)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page.text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert page.value("lbd_ready") == 1 and page.values("lbd_worker_up") == [1, 1]


def test_counters_never_go_backwards(site: Site) -> None:
    """Over a reload, a worker that is killed, and traffic all along."""
    testbed, daemon, client = site
    pages = [scrape(testbed).counters()]
    daemon.config_file.write_text(daemon.config_file.read_text().replace('scheduler = "rr"', 'scheduler = "wrr"'))
    assert "scheduler is now wrr" in lbd(daemon, "reload")
    pages.append(scrape(testbed).counters())
    victim = daemon.get("/v1/workers")["workers"][1]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until("the worker is back", lambda: restarted(daemon) == 1 and daemon.get("/v1/status")["ready"], 20)
    pages.append(scrape(testbed).counters())
    requests = client.report()["requests"]
    wait_until("traffic goes on", lambda: client.report()["requests"] > requests + 200, 20)
    pages.append(scrape(testbed).counters())
    for before, after in itertools.pairwise(pages):
        assert before.keys() <= after.keys()
        back = {k: (v, after[k]) for k, v in before.items() if after[k] < v}
        assert not back, back
    grown = [name for (name, _), v in pages[-1].items() if name == "lbd_service_incoming_packets_total" and v > 0]
    assert len(grown) == 4
    report = client.report()
    assert (report["error_count"], report["open"]) == (0, STREAMS), report["errors"]


def restarted(daemon: Daemon) -> int:
    return int(daemon.get("/v1/status")["workers"]["restarts"])
