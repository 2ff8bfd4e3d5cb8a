"""Runs inside the lab VM: one trunk, lbd on one end of it; clients and real servers in VLANs of the other.

    guest_vlan.py NIC-MODEL        eth0 trunk's far end | eth1 balancer, one arm; prints one JSON object

The worker runs on core 1, which is NUMA node 1's.

VLAN 7: clients; VLAN 8: real servers; 9 (802.1ad) around 5: more clients, of a VLAN device that comes and goes while lbd runs.
Services in every mode between 7 and 8: guest_site.py.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.vm import guest_site as site
from tests.vm.guest import LBD, control, process, sh, until

CONFIG = """
[daemon]
run_dir = "{run}"
[workers]
count = {workers}
cores = [1]
heartbeat_limit = "30s"
[tables]
connections_ipv4 = 4096
connections_ipv6 = 4096
frames = 4096
services = 128
real_servers = 128
hugepages = "off"
[[interface]]
name = "eth1"
ring = 512
[[local_address]]
address = "10.77.0.2"
interface = "eth1.8"
[[local_address]]
address = "fd77::2"
interface = "eth1.8"
[[service]]
name = "web4"
address = "192.0.2.10:80"
interface = "eth1.7"
[[service.real_server]]
address = "10.77.0.11:8080"
[[service]]
name = "web6"
address = "[2001:db8:1::10]:80"
interface = "eth1.7"
[[service.real_server]]
address = "[fd77::11]:8080"
[[service]]
name = "nat4"
address = "192.0.2.11:80"
interface = "eth1.7"
mode = "nat"
[[service.real_server]]
address = "10.77.0.11:8080"
[[snat]]
name = "out"
source = ["192.0.2.0/24"]
destination = ["10.77.0.11/32"]
in_interface = "eth1"
[[snat.pool]]
address = "10.77.0.3"
interface = "eth1.8"
"""

NGINX = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s; root {dir};
  server {{ listen 8080; listen [::]:8080; location = / {{ return 200 "hello\\n"; }} }}
}}
"""


def network() -> None:
    """The far end's VLAN devices go to namespaces of their own; the balancer's stay here."""
    sh("ip link set eth0 up; ip link set eth1 up")
    for name, tags, near, near6, far, far6 in (
        ("client", "7", "192.0.2.100/24", "2001:db8:1::100/64", "192.0.2.1/24", "2001:db8:1::1/64"),
        ("server", "8", "10.77.0.11/24", "fd77::11/64", "10.77.0.1/24", "fd77::1/64"),
    ):
        sh(f"ip link add link eth0 name eth0.{tags} type vlan id {tags}; ip netns add {name}; ip -n {name} link set lo up")
        sh(f"ip link set eth0.{tags} netns {name}; ip -n {name} link set eth0.{tags} up")
        sh(f"ip -n {name} addr add {near} dev eth0.{tags}; ip -n {name} addr add {near6} dev eth0.{tags} nodad")
        sh(f"ip link add link eth1 name eth1.{tags} type vlan id {tags}; ip link set eth1.{tags} up")
        sh(f"ip link set eth1.{tags} address 02:00:00:00:00:{tags.zfill(2)}")
        sh(f"ip addr add {far} dev eth1.{tags}; ip addr add {far6} dev eth1.{tags} nodad")
    sh("ip -n server route add default via 10.77.0.1; ip -n client route add 10.77.0.0/24 via 192.0.2.1")
    sh("ip netns add deep; ip -n deep link set lo up")
    sh("ip link add link eth0 name eth0.9 type vlan proto 802.1ad id 9; ip link set eth0.9 up")
    sh("ip link add link eth0.9 name deep type vlan id 5; ip link set deep netns deep; ip -n deep link set deep up")
    sh("ip -n deep addr add 198.51.100.100/24 dev deep; ip -n deep route add default via 198.51.100.1")
    subprocess.run("ethtool -K eth0 tx off tso off gso off", shell=True, capture_output=True)


def qinq(there: bool) -> None:
    """The balancer's end of the VLAN in a VLAN."""
    if there:
        sh("ip link add link eth1 name outer type vlan proto 802.1ad id 9; ip link set outer up")
        sh("ip link add link outer name inner type vlan id 5; ip link set inner up; ip addr add 198.51.100.1/24 dev inner")
    else:
        sh("ip link del outer")


def curl(namespace: str, *urls: str) -> int:
    """How many answers were right."""
    done = subprocess.run(["ip", "netns", "exec", namespace, "curl", "-gsS", "-m", "10", *urls], capture_output=True, text=True)
    return done.stdout.count("hello\n")


def pages(pid: int) -> dict[str, list[int]]:
    """Of what a worker shares with others, but for what all of them write, those on each NUMA node."""
    found: dict[str, list[int]] = {}
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        if name := re.search(r"file=\S*?(lbd-area|lbd-worker|conn)-?\d*", line):
            counts = found.setdefault(name[1], [0, 0])
            for node, number in re.findall(r" N(\d)=(\d+)", line):
                counts[int(node)] += int(number)
    return found


def main(model: str) -> None:
    work = Path(tempfile.mkdtemp(dir="/dev/shm"))
    run = work / "run"
    run.mkdir(mode=0o700)
    network()
    site.prepare("eth0.7", "eth0.8")
    workers = len(list(Path("/sys/class/net/eth1/queues").glob("rx-*")))
    (work / "lbd.toml").write_text(CONFIG.format(run=run, workers=workers) + site.configuration("eth1.7"))
    (work / "nginx.conf").write_text(NGINX.format(dir=work))
    found: dict = {"model": model}
    with process(["ip", "netns", "exec", "server", "nginx", "-c", str(work / "nginx.conf")], work / "nginx.out"), \
            process([*LBD, "run", str(work / "lbd.toml")], work / "lbd.log") as daemon:  # fmt: skip
        def ask(what: str) -> dict:
            if daemon.poll() is not None:
                raise SystemExit("lbd ended: " + (work / "lbd.log").read_text())
            return control(run, what)

        until("lbd is ready", lambda: ask("status").get("ready"), 500)
        four, six, nat = "http://192.0.2.10/", "http://[2001:db8:1::10]/", "http://192.0.2.11/"
        beyond = "http://10.77.0.11:8080/"  # by SNAT
        for url in (four, six, nat, beyond):
            until(f"HTTP to {url}", lambda url=url: curl("client", url), 60)
        found["seven"] = [curl("client", *[url] * 10) for url in (four, six, nat, beyond)]
        found["talks"] = site.play()
        found["before"] = curl("deep", "-m", "2", four)
        rules = ask("snat")["snat"]
        found["snat"] = [len(rules), rules[0]["connections"] >= 2]
        qinq(True)
        until("HTTP from the VLAN in a VLAN", lambda: curl("deep", four), 60)
        found["deep"] = [curl("deep", *[url] * 10) for url in (four, nat)]
        found["neighbours"] = [(n["vlan"], n["outer_vlan"], n["learned"]) for n in ask("neighbours")["neighbours"]]
        sh("ip link set eth1.8 down")
        until("the servers' VLAN is down", lambda: not curl("client", "-m", "2", four), 30)
        sh("ip link set eth1.8 up; ip addr add fd77::1/64 dev eth1.8 nodad 2>/dev/null || :")
        until("and up again", lambda: curl("client", four) and curl("client", six), 60)
        qinq(False)
        found["after"] = [curl("deep", "-m", "2", four), curl("client", *[four] * 10)]
        found["drops"] = {d["reason"]: d["packets"] for d in ask("drops")["drops"] if d["packets"]}
        found["restarts"] = [w["restarts"] for w in ask("workers")["workers"]]
        found["places"] = ask("status")["workers"]["places"]
        found["pages"] = pages(ask("workers")["workers"][0]["pid"])
        found["mode"] = [i["mode"] for i in ask("status")["interfaces"]]
    found["rxvlan"] = [line.strip() for line in sh("ethtool -k eth1").splitlines() if "rx-vlan-offload" in line]
    found["log"] = [line for line in (work / "lbd.log").read_text().splitlines() if "rxvlan" in line]
    print(json.dumps(found))
    print((work / "lbd.log").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
