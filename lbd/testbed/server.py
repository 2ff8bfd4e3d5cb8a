# SPDX-License-Identifier: Apache-2.0
"""A real server of the testbed: nginx, dnsmasq and iperf3 in a namespace of their own.

Each answers over IPv4 and IPv6 and tells which server it is: nginx in its page and the X-Server header,
dnsmasq in the TXT record of `server.lbd.test`. One nginx worker process each, no access log. `counts` asks
nginx itself how many connections it accepted and how many requests it served: what the balancer says is
judged by that.
"""

import ctypes
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lbd.testbed.netns import TestbedError, log_tail, wait_until
from lbd.testbed.topology import VIP4, VIP6, Host

HTTP_PORT = 8080  # not the service's: FULLNAT translates ports too
DNS_PORT = 53
IPERF_PORT = 5201
DNS_NAME = "www.lbd.test"

NGINX = """\
# one real server; %(name)s
worker_processes 1;
daemon off;
pid %(dir)s/nginx.pid;
error_log %(dir)s/nginx.log warn;
worker_rlimit_nofile 16384;
events { worker_connections 8000; }
http {
    access_log off;
    client_body_temp_path %(dir)s/body;
    proxy_temp_path %(dir)s/proxy;
    fastcgi_temp_path %(dir)s/fastcgi;
    uwsgi_temp_path %(dir)s/uwsgi;
    scgi_temp_path %(dir)s/scgi;
    keepalive_requests 100000000;
    keepalive_timeout 300s;
    default_type text/plain;
    client_max_body_size 0;
    server {
        listen %(address4)s:%(port)d backlog=4096;
        listen [%(address6)s]:%(port)d backlog=4096;
        add_header X-Server %(name)s;
        root %(dir)s/files;
        location = / { return 200 "%(name)s\\n"; }
        location = /address { return 200 "$remote_addr $remote_port\\n"; }
        location = /counts { stub_status; }
    }
}
"""

SERVICES = ("nginx", "dnsmasq", "iperf3")
BIG_FILE = 4 << 20  # bytes, /big


@dataclass(frozen=True)
class Counts:
    connections: int  # accepted
    requests: int

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.connections - other.connections, self.requests - other.requests)


class RealServer:
    def __init__(self, host: Host, directory: Path) -> None:
        self.host, self.name, self.ns, self.directory = host, host.name, host.ns, directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *services: str) -> None:
        """Start these (all, if none is named) and wait until each has its sockets."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for service in services or SERVICES:
            if not self.running(service):
                with open(self.directory / f"{service}.out", "wb") as log:
                    self._running[service] = self.ns.popen(
                        self._argv(service), stdout=log, stderr=subprocess.STDOUT
                    )
        for service in services or SERVICES:
            wait_until(f"{service} of {self.name} listens", partial(self._listens, service), 10)
            if service == "dnsmasq":
                self._enlarge_buffers(self._running[service].pid)

    def running(self, service: str) -> bool:
        return service in self._running and self._running[service].poll() is None

    def stop(self, *services: str) -> None:
        for service in services or SERVICES:
            process = self._running.pop(service, None)
            if process is not None:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def counts(self) -> Counts:
        """nginx's own counters since its start; this question is in them."""
        text = self.ns.run(["curl", "-sS", "-m", "5", f"http://{self.host.address4}:{HTTP_PORT}/counts"])
        match = re.search(r"^ *(\d+) +(\d+) +(\d+) *$", text, re.MULTILINE)
        if not match:
            raise TestbedError(f"{self.name}: nginx does not count: {text!r}")
        return Counts(connections=int(match[2]), requests=int(match[3]))

    def iperf3_idle(self) -> bool:
        """Whether iperf3 can take a test. NB: it closes its listener after each and opens another, so that a
        test that follows at once is refused, reset or told "busy"."""
        said = (self.directory / "iperf3.out").read_text()
        return said.count("Server listening") > said.count("Accepted connection")

    def _argv(self, service: str) -> list[str]:
        d, h = self.directory, self.host
        if service == "nginx":
            values = {
                "name": self.name,
                "dir": d,
                "address4": h.address4,
                "address6": h.address6,
                "port": HTTP_PORT,
            }
            (d / "nginx.conf").write_text(NGINX % values)
            (d / "files").mkdir(exist_ok=True)
            (d / "files/big").write_bytes(bytes(BIG_FILE))
            return ["nginx", "-e", f"{d}/nginx.log", "-p", str(d), "-c", f"{d}/nginx.conf"]
        if service == "dnsmasq":
            return [
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
                "--no-resolv",
                "--no-hosts",
                f"--port={DNS_PORT}",
                f"--listen-address={h.address4},{h.address6}",
                "--bind-interfaces",
                "--user=root",
                "--cache-size=0",
                f"--host-record={DNS_NAME},{VIP4},{VIP6}",
                f"--txt-record=server.lbd.test,{self.name}",
            ]
        if service == "iperf3":
            return ["iperf3", "--server", "--port", str(IPERF_PORT), "--forceflush"]
        raise ValueError(f"no such service: {service} (there are {', '.join(SERVICES)})")

    def _listens(self, service: str) -> bool:
        process = self._running[service]
        if process.poll() is not None:
            said = log_tail(self.directory / f"{service}.out") + log_tail(self.directory / f"{service}.log")
            raise TestbedError(f"{service} of {self.name} ended with status {process.returncode}: {said}")
        port, kind = {
            "nginx": (HTTP_PORT, "tcp"),
            "dnsmasq": (DNS_PORT, "udp"),
            "iperf3": (IPERF_PORT, "tcp"),
        }[service]
        families = ("", "6") if service != "iperf3" else ("6",)  # iperf3 has one socket for both
        return all(_bound(process.pid, kind + family, port) for family in families)

    def _enlarge_buffers(self, pid: int) -> None:
        """Room for thousands of queries at once: the default holds some 270 and drops the rest. dnsmasq has
        no option for it, and the sysctl belongs to the whole machine; so this is done on dnsmasq's own
        sockets."""
        pidfd = os.pidfd_open(pid)
        try:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if not os.readlink(entry).startswith("socket:"):
                        continue
                except FileNotFoundError:
                    continue
                fd = _pidfd_getfd(pidfd, int(entry.name))
                with socket.socket(fileno=fd) as s:
                    if s.type == socket.SOCK_DGRAM and s.family in (socket.AF_INET, socket.AF_INET6):
                        s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, DNS_BUFFER)
        finally:
            os.close(pidfd)


SO_RCVBUFFORCE = 33  # asm-generic/socket.h
DNS_BUFFER = 32 << 20
SYS_PIDFD_GETFD = 438  # the same number on every architecture


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    """Linux 5.6, pidfd_getfd(2): a copy of another process's descriptor."""
    got = int(ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, fd, 0))
    if got < 0:
        raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return got


def _bound(pid: int, protocol: str, port: int) -> bool:
    """Whether the process's namespace has a TCP listener, or a UDP socket, at this port."""
    try:
        rows = Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]
    except OSError:
        return False
    listening = "0A" if protocol.startswith("tcp") else "07"  # TCP_LISTEN; TCP_CLOSE is UDP's only state
    return any(c[1].endswith(f":{port:04X}") and c[3] == listening for c in (row.split() for row in rows))
