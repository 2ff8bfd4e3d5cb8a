"""Runs inside the lab VM: HTTP through lbd over two NIC pairs, by every mode in one daemon, and what its status and metrics say of
zero-copy.

    guest_mode.py NIC-MODEL ZERO_COPY        eth0 client | eth1, eth2 balancer | eth3 real server; prints one JSON object

The real server answers DR and tunnel clients itself, from VIPs on its lo, by way of the balancer's kernel; its kernel takes the
tunnels apart. Everything in here is 70 times slower than on the host: generous time limits, and the heartbeat's limit with them.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

try:
    from tests.vm import guest_rss
except ImportError:
    import guest_rss  # where this is the program

CONFIG = """
[daemon]
run_dir = "{run}"
[workers]
count = {workers}
heartbeat_limit = "30s"
poll = "adaptive"
[tables]
connections_ipv4 = 4096
connections_ipv6 = 4096
frames = 4096
services = 16
real_servers = 64
hugepages = "off"
[[interface]]
name = "eth1"
zero_copy = "{zero_copy}"
ring = 512
[[interface]]
name = "eth2"
zero_copy = "{zero_copy}"
ring = 512
[[local_address]]
address = "10.77.0.2"
interface = "eth2"
[[local_address]]
address = "fd77::2"
interface = "eth2"
[metrics]
listen = "127.0.0.1:9911"
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


CONNECTIONS = {"fullnat": 30, "nat": 10, "dr": 6, "tunnel": 6}  # by mode, of each family
NEAR = {4: "192.0.2.10", 6: "2001:db8:1::10"}  # added by lbd
# on the real server's lo
FAR = {"dr": {4: "198.51.100.1", 6: "2001:db8:51::1"}, "tunnel": {4: "198.51.100.2", 6: "2001:db8:51::2"}}
SERVER = {4: "10.77.0.11", 6: "fd77::11"}


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def virtual(mode: str, family: int) -> str:
    port = 80 if mode == "fullnat" else 81 if mode == "nat" else 8080
    return endpoint(FAR[mode][family] if mode in FAR else NEAR[family], port)


def service(mode: str, family: int) -> str:
    manage = "false" if mode in FAR else "true"
    return f"""
[[service]]
name = "{mode}{family}"
address = "{virtual(mode, family)}"
mode = "{mode}"
interface = "eth1"
manage = {manage}
[[service.real_server]]
address = "{endpoint(SERVER[family], 8080)}"
"""


def sh(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def until(what: str, test, seconds: float = 100):
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            if last := test():
                return last
        except RuntimeError as e:
            last = e
        time.sleep(0.2)
    raise SystemExit(f"{what}: not within {seconds:.0f} s: {last}\n" + "".join(p.read_text() for p in logs))


logs: list[Path] = []


def control(run: Path, what: str) -> dict:
    """GET /v1/`what` of the daemon; starting the command for it would take seconds here."""

    class Unix(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(60)
            self.sock.connect(str(run / "control.sock"))

    try:
        connection = Unix("lbd")
        connection.request("GET", f"/v1/{what}")
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException) as e:
        raise RuntimeError(f"control socket: {e}") from None


def network() -> None:
    """Client and real server in namespaces of their own; the balancer is the VM itself."""
    for name, nic, near, near6, far, far6, lb in (
        ("client", "eth0", "192.0.2.100/24", "2001:db8:1::100/64", "192.0.2.1/24", "2001:db8:1::1/64", "eth1"),
        ("server", "eth3", "10.77.0.11/24", "fd77::11/64", "10.77.0.1/24", "fd77::1/64", "eth2"),
    ):
        sh(f"ip netns add {name} && ip link set {nic} netns {name} && ip -n {name} link set lo up")
        sh(f"ip netns exec {name} sysctl -qw net.ipv6.conf.{nic}.accept_dad=0; sysctl -qw net.ipv6.conf.{lb}.accept_dad=0")
        sh(f"ip -n {name} addr add {near} dev {nic}; ip -n {name} addr add {near6} dev {nic} nodad; ip -n {name} link set {nic} up")
        sh(f"ip addr add {far} dev {lb}; ip addr add {far6} dev {lb} nodad; ip link set {lb} up")
        # checksums leave complete: a zero-copy socket shows the frame as it came over the emulated cable
        subprocess.run(f"ip netns exec {name} ethtool -K {nic} tx off tso off gso off", shell=True, capture_output=True)


def routes() -> None:
    """The real server's answers go by the balancer, for NAT through lbd and for the others through its kernel."""
    for family in (4, 6):
        plen, near, far = (32, "192.0.2.1", "10.77.0.1") if family == 4 else (128, "2001:db8:1::1", "fd77::1")
        sh(f"ip -n server -{family} route add default via {far}")
        for vip in (FAR["dr"][family], FAR["tunnel"][family]):
            sh(f"ip -n client -{family} route add {vip}/{plen} via {near}")
            sh(f"ip -n server addr add {vip}/{plen} dev lo")
    sh("modprobe ipip; modprobe ip6_tunnel")
    for end in ("tunl0", "ip6tnl0"):
        sh(f"ip -n server link set {end} up")
    for ns in ("", "ip netns exec server "):
        # what comes out of a tunnel, and what a real server sends from a VIP, has no way back by the interface that it came by
        sh(f"{ns}sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'")
    sh("ip netns exec server sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")


@contextlib.contextmanager
def process(argv: list[str], log: Path) -> Iterator[subprocess.Popen]:
    logs.append(log)
    with open(log, "ab") as out:
        p = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield p
    finally:
        p.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            p.wait(30)
        p.kill()


def curl(*urls: str) -> str:
    return sh("ip netns exec client curl -gsS -m 20 " + " ".join(urls))


def main(model: str, zero_copy: str) -> None:
    work = Path(tempfile.mkdtemp(dir="/dev/shm"))
    run = work / "run"
    run.mkdir(mode=0o700)
    network()
    routes()
    # igb: one queue per CPU; virtio-net over a cable: one
    workers = len(list(Path("/sys/class/net/eth1/queues").glob("rx-*")))
    services = "".join(service(mode, family) for mode in CONNECTIONS for family in (4, 6))
    (work / "lbd.toml").write_text(CONFIG.format(run=run, zero_copy=zero_copy, workers=workers) + services)
    (work / "nginx.conf").write_text(NGINX.format(dir=work))
    lbd = [sys.executable, "-m", "lbd.cli.main"]
    with process(["ip", "netns", "exec", "server", "nginx", "-c", str(work / "nginx.conf")], work / "nginx.out"), \
            process([*lbd, "run", str(work / "lbd.toml")], work / "lbd.log") as daemon:  # fmt: skip
        def asked(what: str) -> dict:
            if daemon.poll() is not None:
                raise SystemExit("lbd ended: " + (work / "lbd.log").read_text())
            return control(run, what)

        until("lbd is ready", lambda: asked("status").get("ready"), 500)
        answers, handed = {}, {}
        for mode, number in CONNECTIONS.items():
            for family in (4, 6):
                url = f"http://{virtual(mode, family)}/"
                until(f"HTTP by {mode}, IPv{family}", lambda url=url: curl(url) == "hello\n", 60)
                # a connection each: that answers come back to the worker that chose the port shows in its hand-over counters
                answers[f"{mode}{family}"] = curl("-H 'Connection: close'", *[url] * number).count("hello\n")
            handed[mode] = [(w["handed_out"], w["handed_in"], w["misplaced"]) for w in asked("workers")["workers"]]
        vips = [f"http://{virtual(mode, family)}/" for mode in ("fullnat", "nat") for family in (4, 6)]
        rss = guest_rss.change(work, vips, asked, until, sh, curl) if workers > 1 else None
        metrics = urllib.request.urlopen("http://127.0.0.1:9911/metrics", timeout=60).read().decode()
        print(json.dumps({
            "model": model, "kernel": os.uname().release, "answers": answers, "handed": handed, "rss": rss,
            "status": asked("status")["interfaces"],
            "metric": [line for line in metrics.splitlines() if line.startswith("lbd_xsk_zero_copy{")],
            "workers": asked("workers")["workers"],
            "services": {s["name"]: s for s in asked("services")["services"]},
            "drops": {d["reason"]: d["packets"] for d in asked("drops")["drops"] if d["packets"]},
        }))  # fmt: skip
    print((work / "lbd.log").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
