"""Runs inside the lab VM: the kernel's own SCTP through lbd over veth, in every mode, both families. Prints one JSON object.

    client | veth | balancer (the VM itself, lbd) | veth | server

The veth devices keep their offloads: what the kernel's SCTP sends comes without a checksum (NETIF_F_SCTP_CRC), and what it gets is
verified by it. DR and tunnel: the server has the VIP on lo and answers from it, routed by the balancer's kernel; ipip is its tunl0.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.vm import guest_site as site
from tests.vm.guest import LBD, control, endpoint, note, process, sh, until
from tests.vm.guest_site import CLIENT, NEAR, SERVER

PORTS = {"fullnat": 3868, "nat": 3869, "dr": 3870, "tunnel": 3871}
FAR = {4: "198.51.100.10", 6: "2001:db8:51::10"}
MESSAGES = (1, 100, 1000, 1400, 5000, 30000)

CONFIG = """
[daemon]
run_dir = "{run}"
[workers]
count = 1
heartbeat_limit = "30s"
[tables]
connections_ipv4 = 4096
connections_ipv6 = 4096
frames = 4096
services = 16
real_servers = 64
hugepages = "off"
[[interface]]
name = "veth-c"
ring = 512
[[interface]]
name = "veth-s"
ring = 512
[[local_address]]
address = "10.77.0.2"
interface = "veth-s"
[[local_address]]
address = "fd77::2"
interface = "veth-s"
"""


def vip(mode: str, family: int) -> str:
    return (FAR if mode in ("dr", "tunnel") else NEAR)[family]


def config(run: Path) -> str:
    text = CONFIG.format(run=run)
    for mode, port in PORTS.items():
        for family in (4, 6):
            managed = 'interface = "veth-c"' if mode in ("fullnat", "nat") else "manage = false"
            text += f"""
[[service]]
name = "{mode}{family}"
address = "{endpoint(vip(mode, family), port)}"
protocol = "sctp"
mode = "{mode}"
{managed}
[[service.real_server]]
address = "{endpoint(SERVER[family], port)}"
"""
    return text


def network() -> None:
    sh("modprobe -a sctp ipip ip6_tunnel")
    for name, near, near6, far, far6, lb in (
        ("client", "192.0.2.100/24", "2001:db8:1::100/64", "192.0.2.1/24", "2001:db8:1::1/64", "veth-c"),
        ("server", f"{SERVER[4]}/24", f"{SERVER[6]}/64", "10.77.0.1/24", "fd77::1/64", "veth-s"),
    ):
        ns = f"ip -n {name}"
        sh(f"ip netns add {name}; ip link add {lb} type veth peer name eth0 netns {name}; {ns} link set lo up")
        sh(f"ip addr add {far} dev {lb}; ip addr add {far6} dev {lb} nodad; ip link set {lb} up")
        sh(f"{ns} addr add {near} dev eth0; {ns} addr add {near6} dev eth0 nodad; {ns} link set eth0 up")
        sh(f"{ns} route add default via {far.split('/')[0]}; {ns} -6 route add default via {far6.split('/')[0]}")
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
    sh("sysctl -qw net.ipv4.conf.veth-s.rp_filter=0 net.ipv4.conf.veth-c.rp_filter=0")
    inside = "ip netns exec server"
    sh(f"{inside} sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.rp_filter=0")
    sh(f"ip -n server addr add {FAR[4]}/32 dev lo; ip -n server addr add {FAR[6]}/128 dev lo nodad")
    sh("ip -n server link set tunl0 up; ip -n server link set ip6tnl0 up")
    sh(f"{inside} sysctl -qw net.ipv4.conf.tunl0.rp_filter=0 net.ipv4.conf.default.rp_filter=0")


def main() -> None:
    work = Path(tempfile.mkdtemp(dir="/dev/shm"))
    run = work / "run"
    run.mkdir(mode=0o700)
    network()
    (work / "lbd.toml").write_text(config(run))
    points = [(vip(mode, family) if mode in ("dr", "tunnel") else SERVER[family], port, "sctp")
              for mode, port in PORTS.items() for family in (4, 6)]  # fmt: skip
    site.Echo("server", points)
    offload = [line.strip() for line in sh("ip netns exec client ethtool -k eth0").splitlines() if "sctp" in line]
    note("the network is there")
    with process([*LBD, "run", str(work / "lbd.toml")], work / "lbd.log"):
        until("lbd is ready", lambda: control(run, "status").get("ready"), 500)
        seen = {}
        for mode, port in PORTS.items():
            for family in (4, 6):
                said = site.talk("client", CLIENT[family], vip(mode, family), port, "sctp", MESSAGES)
                seen[f"{mode} {family}"] = said
                note(mode, family, said)
        states = {c["state"] for c in control(run, "conns")["conns"]}
        errors = sh("ip netns exec client cat /proc/net/sctp/snmp; ip netns exec server cat /proc/net/sctp/snmp")
        print(json.dumps({
            "kernel": os.uname().release, "offload": offload, "seen": seen, "states": sorted(states),
            "connections": {s["name"]: s["connections"] for s in control(run, "services")["services"]},
            "checksum_errors": [int(line.split()[1]) for line in errors.splitlines() if line.startswith("SctpChecksumErrors")],
        }))  # fmt: skip
    print((work / "lbd.log").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main()
