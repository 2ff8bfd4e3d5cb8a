"""Runs inside the lab VM: the kernel's own SCTP through lbd over veth, in every mode, both families. Prints one JSON object.

    client | veth | balancer (the VM itself, lbd) | veth | server

The veth devices keep their offloads: what the kernel's SCTP sends comes without a checksum (NETIF_F_SCTP_CRC), and what it gets is
verified by it. Services and addresses: guest_site.py.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.vm import guest_site as site
from tests.vm.guest import LBD, control, note, process, sh, until

CASES = [case for case in site.CASES if case[2] == "sctp"]
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


def network() -> None:
    for name, near in (("client", "veth-c"), ("server", "veth-s")):
        sh(f"ip netns add {name}; ip link add {near} type veth peer name eth0 netns {name}; ip -n {name} link set lo up")
        site.side(name, "eth0", near)
    site.prepare("eth0", "eth0")


def main() -> None:
    work = Path(tempfile.mkdtemp(dir="/dev/shm"))
    run = work / "run"
    run.mkdir(mode=0o700)
    network()
    (work / "lbd.toml").write_text(CONFIG.format(run=run) + site.configuration("veth-c", CASES, ()))
    offload = [line.strip() for line in sh("ip netns exec client ethtool -k eth0").splitlines() if "sctp" in line]
    note("the network is there")
    with process([*LBD, "run", str(work / "lbd.toml")], work / "lbd.log"):
        until("lbd is ready", lambda: control(run, "status").get("ready"), 500)
        talks = site.play(CASES, (), MESSAGES)
        states = {c["state"] for c in control(run, "conns")["conns"]}
        errors = sh("ip netns exec client cat /proc/net/sctp/snmp; ip netns exec server cat /proc/net/sctp/snmp")
        print(json.dumps({
            "kernel": os.uname().release, "offload": offload, "talks": talks, "states": sorted(states),
            "connections": {s["name"]: s["connections"] for s in control(run, "services")["services"]},
            "checksum_errors": [int(line.split()[1]) for line in errors.splitlines() if line.startswith("SctpChecksumErrors")],
        }))  # fmt: skip
    print((work / "lbd.log").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main()
