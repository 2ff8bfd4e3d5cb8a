"""Runs inside the lab VM: every mode in one daemon over two NIC pairs, and what its status and metrics say of zero-copy.

    guest_mode.py NIC-MODEL ZERO_COPY        eth0 client | eth1, eth2 balancer | eth3 real server; prints one JSON object

HTTP by every mode of services, the kernel's own tunnels to lbd, then TCP, UDP, SCTP and SNAT (guest_site.py). Everything in here is
70 times slower than on the host: generous time limits, and the heartbeat's limit with them.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.vm import guest_decap as decap
from tests.vm import guest_rss
from tests.vm import guest_site as site
from tests.vm.guest import LBD, control, endpoint, note, process, sh, until

FRAMES = 4096  # of each worker
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
frames = {frames}
services = 128
real_servers = 128
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



CONNECTIONS = {"fullnat": 30, "nat": 10, "dr": 6, "tunnel": 6, "gre": 6, "gue": 6, "nat64": 6}  # by mode, of each family
CASES = [(mode, family) for mode in CONNECTIONS for family in (4, 6) if (mode, family) != ("nat64", 4)]
NEAR_PORTS = {"fullnat": 80, "nat": 81, "nat64": 82}


def virtual(mode: str, family: int) -> str:
    return endpoint(site.vip(mode, family), NEAR_PORTS.get(mode, 8080))


def service(mode: str, family: int) -> str:
    return f"""
[[service]]
name = "{mode}{family}"
address = "{virtual(mode, family)}"
mode = "{site.word(mode)}"
interface = "eth1"
manage = {str(mode not in site.FAR).lower()}
{site.TUNNEL.get(mode, "")}
[[service.real_server]]
address = "{endpoint(site.SERVER[site.real(mode, family)], 8080)}"
"""


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


def curl(*urls: str) -> str:
    return sh("ip netns exec client curl -gsS -m 20 " + " ".join(urls))


def buffers(pid: int) -> int:
    """Bytes of all packet buffers and their ledger."""
    fds = Path(f"/proc/{pid}/fd")
    return max(fd.stat().st_size for fd in fds.iterdir() if "lbd-area" in os.readlink(fd))


def main(model: str, zero_copy: str) -> None:
    work = Path(tempfile.mkdtemp(dir="/dev/shm"))
    run = work / "run"
    run.mkdir(mode=0o700)
    network()
    site.prepare("eth0", "eth3")
    decap.devices()
    # igb: one queue per CPU; virtio-net over a cable: one
    workers = len(list(Path("/sys/class/net/eth1/queues").glob("rx-*")))
    services = "".join(service(mode, family) for mode, family in CASES) + site.configuration("eth1") + decap.CONFIG
    (work / "lbd.toml").write_text(CONFIG.format(run=run, zero_copy=zero_copy, workers=workers, frames=FRAMES) + services)
    (work / "nginx.conf").write_text(NGINX.format(dir=work))
    note("the network is there")
    with process(["ip", "netns", "exec", "server", "nginx", "-c", str(work / "nginx.conf")], work / "nginx.out"), \
            process([*LBD, "run", str(work / "lbd.toml")], work / "lbd.log") as daemon:  # fmt: skip
        def asked(what: str) -> dict:
            if daemon.poll() is not None:
                raise SystemExit("lbd ended: " + (work / "lbd.log").read_text())
            return control(run, what)

        until("lbd is ready", lambda: asked("status").get("ready"), 500)
        def counted() -> list[list[int]]:
            return [[w["handed_out"], w["handed_in"], w["misplaced"]] for w in asked("workers")["workers"]]

        def since(before: list[list[int]]) -> list[list[int]]:
            return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(counted(), before, strict=True)]

        area = buffers(daemon.pid) // workers // FRAMES
        answers, handed = {}, {}
        for mode, family in CASES:
            url, before = f"http://{virtual(mode, family)}/", counted()
            until(f"HTTP by {mode}, IPv{family}", lambda url=url: curl(url) == "hello\n", 60)
            # a connection each: that answers come back to the worker that chose the port shows in its hand-over counters
            answers[f"{mode}{family}"] = curl("-H 'Connection: close'", *[url] * CONNECTIONS[mode]).count("hello\n")
            handed[f"{mode}{family}"] = since(before)
        vips = [f"http://{virtual(mode, family)}/" for mode in ("fullnat", "nat") for family in (4, 6)]
        rss = guest_rss.change(work, vips, asked, until, sh, curl) if workers > 1 else None
        tunnelled = decap.play(site.NEAR, NEAR_PORTS["fullnat"], curl)
        talks = site.play()
        for family in (4, 6):
            before = counted()
            said = [site.talk("server", site.SERVER[family], site.REMOTE[family], site.PORTS["snat"], "tcp") for _ in range(6)]
            answers[f"snat{family}"], handed[f"snat{family}"] = said.count("right"), since(before)
        metrics = urllib.request.urlopen("http://127.0.0.1:9911/metrics", timeout=60).read().decode()
        print(json.dumps({
            "model": model, "buffers": area, "kernel": os.uname().release, "answers": answers, "handed": handed, "rss": rss,
            "tunnelled": tunnelled, "tunnels": asked("tunnels")["tunnels"], "talks": talks,
            "status": asked("status")["interfaces"],
            "metric": [line for line in metrics.splitlines() if line.startswith("lbd_xsk_zero_copy{")],
            "workers": asked("workers")["workers"],
            "services": {s["name"]: s for s in asked("services")["services"]},
            "drops": {d["reason"]: d["packets"] for d in asked("drops")["drops"] if d["packets"]},
        }))  # fmt: skip
    print((work / "lbd.log").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
