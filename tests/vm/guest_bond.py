"""Runs inside the lab VM: a bond of two cables between clients and lbd, which loses a slave, gets it back and is made anew by other
modes; one connection goes on while the slave is away. Services in every mode over the first bond: guest_site.py.

    guest_bond.py NIC-MODEL        eth0, eth2 client's bond | eth1, eth3 balancer's | eth5 balancer | eth4 real server; prints JSON
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.vm import guest_site as site
from tests.vm.guest import LBD, control, process, sh, until
from tests.vm.guest_vlan import NGINX, curl

CONFIG = """
[daemon]
run_dir = "{run}"
[workers]
count = {workers}
heartbeat_limit = "30s"
[tables]
connections_ipv4 = 4096
connections_ipv6 = 4096
frames = 4096
services = 128
real_servers = 128
hugepages = "off"
[[interface]]
name = "bond0"
ring = 512
[[interface]]
name = "eth5"
ring = 512
[[local_address]]
address = "10.77.0.2"
interface = "eth5"
[[local_address]]
address = "fd77::2"
interface = "eth5"
[[service]]
name = "web4"
address = "192.0.2.10:80"
interface = "bond0"
[[service.real_server]]
address = "10.77.0.11:8080"
[[snat]]
name = "out"
source = ["192.0.2.0/24"]
in_interface = "bond0"
[[snat.pool]]
address = "10.77.0.3"
interface = "eth5"
"""
MODES = ("active-backup", "balance-xor xmit_hash_policy layer2+3", "balance-rr")
LACP = "802.3ad lacp_rate fast xmit_hash_policy layer3+4"

STEADY = """
import signal, socket, sys, time
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
sock = socket.create_connection((sys.argv[1], 80), 60)
last = time.monotonic()
while not ended:
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    got = b""
    while not got.endswith(b"hello\\n"):
        more = sock.recv(4096)
        assert more, "closed"
        got += more
    now = time.monotonic()
    print(round(now - last, 2), flush=True)
    last = now
    time.sleep(0.05)
"""


def bond(mode: str) -> None:
    """Both ends, anew."""
    for where, name, slaves, addresses in (("client", "bond1", ("eth0", "eth2"), "192.0.2.100/24 2001:db8:1::100/64"),
                                         ("", "bond0", ("eth1", "eth3"), "192.0.2.1/24 2001:db8:1::1/64")):  # fmt: skip
        ip = f"ip -n {where}" if where else "ip"
        subprocess.run(f"{ip} link del {name}", shell=True, capture_output=True)
        sh(f"{ip} link add {name} type bond mode {mode} miimon 100")
        for slave in slaves:
            sh(f"{ip} link set {slave} down; {ip} link set {slave} master {name}; {ip} link set {slave} up")
        sh(f"{ip} link set {name} up")
        for address in addresses.split():
            sh(f"{ip} addr add {address} dev {name} {'nodad' if ':' in address else ''}")
    sh("ip -n client route add 10.77.0.0/24 via 192.0.2.1")


def network() -> None:
    sh("ip netns add client; ip netns add server; ip -n client link set lo up; ip -n server link set lo up")
    sh("ip link set eth0 netns client; ip link set eth2 netns client; ip link set eth4 netns server")
    sh("ip -n server addr add 10.77.0.11/24 dev eth4; ip -n server link set eth4 up")
    sh("ip addr add 10.77.0.1/24 dev eth5; ip link set eth5 up")
    sh("ip -n server addr add fd77::11/64 dev eth4 nodad; ip addr add fd77::1/64 dev eth5 nodad")
    for name, nics in (("client", ("eth0", "eth2")), ("server", ("eth4",))):
        for nic in nics:
            subprocess.run(f"ip netns exec {name} ethtool -K {nic} tx off tso off gso off", shell=True, capture_output=True)
    for nic in ("eth0", "eth1", "eth2", "eth3"):  # LACP aggregates links of one known speed
        sh(f"{'' if nic in ('eth1', 'eth3') else 'ip netns exec client'} ethtool -s {nic} speed 1000 duplex full")
    bond(LACP)


def main(model: str) -> None:
    work = Path(tempfile.mkdtemp(dir="/dev/shm"))
    run = work / "run"
    run.mkdir(mode=0o700)
    network()
    site.prepare("bond1", "eth4")
    (work / "lbd.toml").write_text(CONFIG.format(run=run, workers=1) + site.configuration("bond0"))
    (work / "nginx.conf").write_text(NGINX.format(dir=work).replace("access_log", "keepalive_requests 1000000; access_log"))
    found: dict = {"model": model}
    with process(["ip", "netns", "exec", "server", "nginx", "-c", str(work / "nginx.conf")], work / "nginx.out"), \
            process([*LBD, "run", str(work / "lbd.toml")], work / "lbd.log") as daemon:  # fmt: skip
        def ask(what: str) -> dict:
            if daemon.poll() is not None:
                raise SystemExit("lbd ended: " + (work / "lbd.log").read_text())
            return control(run, what)

        def slaves() -> dict[str, tuple[int, int]]:
            queues = [q for w in ask("workers")["workers"] for q in w["queues"]]
            return {q["interface"]: (q["rx_packets"], q["tx_packets"]) for q in queues if q["interface"] != "eth5"}

        def pauses() -> list[float]:
            """Before each answer on the one connection."""
            return [float(line) for line in (work / "steady").read_text().split("\n")[:-1]]

        def goes_on(what: str) -> None:
            """At the emulator's pace: three more answers."""
            before = len(pauses())
            until(what, lambda: steady.poll() is not None or len(pauses()) >= before + 3, 120)
            if steady.poll() is not None:
                raise SystemExit(f"{what}: it has ended")

        url, beyond = "http://192.0.2.10/", "http://10.77.0.11:8080/"  # which has no way back but to the pool
        until("lbd is ready", lambda: ask("status").get("ready"), 500)
        until("HTTP over the 802.3ad bond", lambda: curl("client", url), 60)
        argv = ["ip", "netns", "exec", "client", sys.executable, "-c", STEADY, "192.0.2.10"]
        out = (work / "steady").open("w+")
        steady = subprocess.Popen(argv, stdout=out)
        goes_on("the connection is there")
        # of both slaves, as either end says: collecting and distributing
        found["lacp"] = sh("cat /proc/net/bonding/bond0").count("port state: 63")
        before = slaves()
        found["both"] = curl("client", "-H", "Connection: close", *[url] * 20)
        found["spread"] = {name: [a - b for a, b in zip(seen, before[name], strict=True)] for name, seen in slaves().items()}
        found["talks"] = site.play()
        sh("ip -n server route del default")  # SNAT's answers have no other way back from here on
        sh("ip link set eth1 down")
        goes_on("the connection goes on without the slave")
        found["pulled"] = curl("client", "--retry", "3", "--retry-all-errors", *[url] * 10)
        sh("ip link set eth1 up")
        until("the slave is back", lambda: "eth1" not in " ".join(ask("status")["problems"]), 60)
        found["back"] = curl("client", *[url] * 10)
        goes_on("the connection goes on with the slave")
        steady.send_signal(signal.SIGTERM)
        found["steady"] = [steady.wait(90), max(pauses())]
        sh("ip link set eth3 nomaster")
        until("its sockets are closed", lambda: set(slaves()) == {"eth1"}, 60)
        found["removed"] = curl("client", "--retry", "3", "--retry-all-errors", *[url] * 10)
        sh("ip link set eth3 down; ip link set eth3 master bond0; ip link set eth3 up")
        until("it is served again", lambda: set(slaves()) == {"eth1", "eth3"}, 60)
        found["added"] = curl("client", *[url] * 10)
        found["snat"] = {LACP.split()[0]: curl("client", "-H", "Connection: close", *[beyond] * 10)}
        found["modes"] = {}
        for mode in MODES:
            bond(mode)
            until(f"lbd serves {mode}", lambda: ask("status").get("ready") and not ask("status")["problems"], 60)
            until(f"HTTP over {mode}", lambda: curl("client", "-m", "3", url), 60)
            before = slaves()
            right = curl("client", "-H", "Connection: close", *[url] * 10)
            found["snat"][mode.split()[0]] = curl("client", "-H", "Connection: close", *[beyond] * 10)
            found["modes"][mode.split()[0]] = [right, sorted(now[1] - before[name][1] for name, now in slaves().items())]
        time.sleep(3)  # until dead ports' frames are free again
        workers = ask("workers")["workers"]
        found["restarts"] = [w["restarts"] for w in workers]
        held = [sum(q["fill_level"] + q["tx_outstanding"] for q in w["queues"]) for w in workers]
        found["frames"] = [w["frames"] - w["free_frames"] - n for w, n in zip(workers, held, strict=True)]
        found["modes_of_sockets"] = sorted({q["mode"] for w in workers for q in w["queues"]})
        found["drops"] = {d["reason"]: d["packets"] for d in ask("drops")["drops"] if d["packets"]}
    print(json.dumps(found))
    print((work / "lbd.log").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
