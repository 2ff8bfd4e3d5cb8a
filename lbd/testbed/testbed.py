# SPDX-License-Identifier: Apache-2.0
"""The whole testbed: namespaces, real servers, lbd, and clients that load it.

    with Testbed("lbdt-web", workers=2) as testbed:
        lbd = testbed.lbd(testbed.config())
        assert testbed.wrk(family=6, close=True).errors == 0

`down` takes away everything of this prefix, whoever set it up and however far that came, so that it also
cleans up after a crash; `up` begins with it. Files (configurations, logs, run directory) lie in `directory`
until then.
"""

import copy
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import tomlkit

from lbd.testbed import load
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import Argv, Namespace, wait_until
from lbd.testbed.server import DNS_NAME, DNS_PORT, HTTP_PORT, IPERF_PORT, Counts, RealServer
from lbd.testbed.topology import VIP4, VIP6, Topology

Settings = dict[str, Any]
FAMILIES = (4, 6)

# name, protocol, VIP's port, real servers' port, scheduler
SERVICES = {
    "web": ("tcp", 80, HTTP_PORT, "rr"),
    "dns": ("udp", 53, DNS_PORT, "rr"),
    "iperf": ("tcp", 5201, IPERF_PORT, "sh"),  # both connections of a test must reach the same iperf3
}


class Testbed:
    __test__ = False  # not a test, whatever pytest makes of the name

    def __init__(
        self, prefix: str, workers: int = 2, servers: int = 3, directory: Path | None = None, **topology: Any
    ) -> None:
        """`topology`: see Topology (lips, clients, client_mtu, server_mtu, routing)."""
        self.prefix, self.workers = prefix, workers
        self.directory = directory or Path("/dev/shm") / prefix
        self.topology = Topology(prefix, queues=workers, servers=servers, **topology)
        self.client, self.balancer = self.topology.client.ns, self.topology.lb
        self.servers = [RealServer(host, self.directory / host.name) for host in self.topology.servers]
        self.daemons: list[Daemon] = []
        self._started: list[subprocess.Popen[bytes]] = []

    # --- set up and take down ---------------------------------------------------------------------

    def up(self) -> "Testbed":
        self.down()
        try:
            self.directory.mkdir(parents=True)
            self.topology.up()
            for server in self.servers:
                server.start()
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        for daemon in self.daemons:
            daemon.end()  # it withdraws its addresses and detaches while the rest still stands
        try:
            self.topology.down()
        finally:
            for process in self._started:
                process.kill()  # for the case that its namespace was gone before it got there
                process.wait()
            for server in self.servers:
                server.stop()
            self.daemons, self._started = [], []
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> "Testbed":
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # --- lbd --------------------------------------------------------------------------------------

    def settings(self, services: Iterable[str] = SERVICES, families: Iterable[int] = FAMILIES) -> Settings:
        """The configuration as nested dictionaries, to be changed at will and given to `config_text`."""
        families = tuple(families)
        topology = self.topology
        lips = [lip for f in families for lip in (topology.lips4 if f == 4 else topology.lips6)]
        return {
            "daemon": {"run_dir": str(self.directory / "lbd")},
            "workers": {"count": self.workers},
            # A burst of 10,000 queries waits in the rings of two queues, all of it
            "tables": {"frames": 32768, "hugepages": "off"},
            "interface": [
                {"name": name, "ring": 8192, "zero_copy": "off"}
                for name in ("eth0", "eth1")  # veth has none
            ],
            "local_address": [{"address": lip, "interface": "eth1"} for lip in lips],
            "metrics": {"listen": "127.0.0.1:9911"},
            "service": [self._service(name, family) for name in services for family in families],
        }

    def _service(self, name: str, family: int) -> Settings:
        protocol, vport, port, scheduler = SERVICES[name]
        hosts = [server.host for server in self.servers]
        service: Settings = {
            "name": f"{name}{family}",
            "address": endpoint(self.vip(family), vport),
            "protocol": protocol,
            "scheduler": scheduler,
            "interface": "eth0",
            "real_server": [
                {"address": endpoint(host.address4 if family == 4 else host.address6, port)} for host in hosts
            ],
        }
        if name == "web":
            service["health"] = {
                "type": "http",
                "interval": "500ms",
                "timeout": "400ms",
                "rise": 1,
                "fall": 2,
            }
        return service

    def config(
        self, services: Iterable[str] = SERVICES, families: Iterable[int] = FAMILIES, **changes: Settings
    ) -> str:
        """The configuration as TOML. `changes` are merged into the tables of their names; into each of them
        where there are several: config(workers={"poll": "busy"}, service={"scheduler": "wlc"})."""
        return config_text(merged(self.settings(services, families), changes))

    def lbd(self, config: str | None = None, prefix: tuple[str, ...] = (), wait: bool = True) -> Daemon:
        """Start `lbd run` in the balancer's namespace; `prefix` is a command to run it by.
        `wait`: until it is ready and the real servers are up."""
        file = self.directory / "lbd.toml"
        file.write_text(config or self.config())
        run_dir = Path(str(tomlkit.parse(file.read_text()).unwrap()["daemon"]["run_dir"]))
        daemon = Daemon(self.balancer, file, run_dir, self.directory / "lbd.log", prefix)
        self.daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    # --- load -------------------------------------------------------------------------------------

    @staticmethod
    def vip(family: int) -> str:
        return VIP4 if family == 4 else VIP6

    def run(self, ns: Namespace, argv: Argv, timeout: float = 30, check: bool = True) -> str:
        return ns.run(argv, timeout, check)

    def popen(self, ns: Namespace, argv: Argv, **options: Any) -> subprocess.Popen[bytes]:
        """A command in a namespace; it is ended with the testbed."""
        process = ns.popen(argv, **options)
        self._started.append(process)
        return process

    def curl(self, family: int = 4, path: str = "/", *options: str, timeout: float = 5) -> load.Curl:
        return load.curl(self.client, load.url(self.vip(family), path=path), *options, timeout=timeout)

    def wrk(self, family: int = 4, path: str = "/", **options: Any) -> load.Wrk:
        return load.wrk(self.client, load.url(self.vip(family), path=path), self.directory, **options)

    def dnsperf(self, family: int = 4, **options: Any) -> load.Dnsperf:
        return load.dnsperf(self.client, self.vip(family), DNS_NAME, self.directory, **options)

    def iperf3(self, family: int = 4, **options: Any) -> load.Iperf:
        wait_until("iperf3 is idle", lambda: all(server.iperf3_idle() for server in self.servers), 10)
        return load.iperf3(self.client, self.vip(family), **options)

    def counts(self) -> dict[str, Counts]:
        """What each real server's nginx has counted so far."""
        return {server.name: server.counts() for server in self.servers}


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def merged(settings: Settings, changes: Settings) -> Settings:
    """`settings` with `changes`: tables of the same name are merged, and so is each of an array of tables."""
    result = copy.deepcopy(settings)
    for name, change in changes.items():
        old = result.get(name)
        if isinstance(change, dict) and isinstance(old, list):
            result[name] = [merged(entry, change) for entry in old]
        elif isinstance(change, dict) and isinstance(old, dict):
            result[name] = merged(old, change)
        else:
            result[name] = change
    return result


def config_text(settings: Settings) -> str:
    return tomlkit.dumps(settings)
