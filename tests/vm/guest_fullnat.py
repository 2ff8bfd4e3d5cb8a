"""Runs inside the lab VM: HTTP by FULLNAT through lbd over two NIC pairs, and what its status and metrics say of zero-copy.

    guest_fullnat.py NIC-MODEL ZERO_COPY        eth0 client | eth1, eth2 balancer | eth3 real server; prints one JSON object

Everything in here is 70 times slower than on the host: generous time limits, and the heartbeat's limit with them.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

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
[[service]]
name = "web4"
address = "192.0.2.10:80"
interface = "eth1"
[[service.real_server]]
address = "10.77.0.11:8080"
[[service]]
name = "web6"
address = "[2001:db8:1::10]:80"
interface = "eth1"
[[service.real_server]]
address = "[fd77::11]:8080"
"""

NGINX = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s; root {dir};
  server {{ listen 10.77.0.11:8080; listen [fd77::11]:8080; location = / {{ return 200 "hello\\n"; }} }}
}}
"""


CONNECTIONS = 30  # of each family


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
    # igb: one queue per CPU; virtio-net over a cable: one
    workers = len(list(Path("/sys/class/net/eth1/queues").glob("rx-*")))
    (work / "lbd.toml").write_text(CONFIG.format(run=run, zero_copy=zero_copy, workers=workers))
    (work / "nginx.conf").write_text(NGINX.format(dir=work))
    lbd = [sys.executable, "-m", "lbd.cli.main"]
    with process(["ip", "netns", "exec", "server", "nginx", "-c", str(work / "nginx.conf")], work / "nginx.out"), \
            process([*lbd, "run", str(work / "lbd.toml")], work / "lbd.log") as daemon:  # fmt: skip
        def status() -> dict:
            if daemon.poll() is not None:
                raise SystemExit("lbd ended: " + (work / "lbd.log").read_text())
            return json.loads(sh(f"{' '.join(lbd)} -s {run}/control.sock status -j"))

        until("lbd is ready", lambda: status().get("ready"), 240)
        until("HTTP over IPv4", lambda: curl("http://192.0.2.10/") == "hello\n", 60)
        until("HTTP over IPv6", lambda: curl("http://[2001:db8:1::10]/") == "hello\n", 60)
        # a connection each: that answers come back to the worker that chose the local port shows in its hand-over counters
        answers = curl("-H 'Connection: close'", *["http://192.0.2.10/", "http://[2001:db8:1::10]/"] * CONNECTIONS).count("hello\n")
        metrics = urllib.request.urlopen("http://127.0.0.1:9911/metrics", timeout=60).read().decode()
        print(json.dumps({
            "model": model, "kernel": os.uname().release, "answers": answers,
            "status": status()["interfaces"],
            "metric": [line for line in metrics.splitlines() if line.startswith("lbd_xsk_zero_copy{")],
            "workers": json.loads(sh(f"{' '.join(lbd)} -s {run}/control.sock worker -j"))["workers"],
        }))  # fmt: skip
    print((work / "lbd.log").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
