# SPDX-License-Identifier: Apache-2.0
"""What forwards between eth0 and eth1 of a namespace: lbd, and what it is compared with.

    lbd                FULLNAT, one worker
    AF_XDP             the bare forwarder of veth/fwd.c: other MAC addresses, nothing else
    kernel             the kernel routes
    nftables           the kernel translates both addresses (DNAT and SNAT with connection tracking), and routes

Each forwards on the worker's core: lbd's worker and the bare forwarder are pinned there, and for the kernel's two eth0's
and eth1's NAPI runs in threads pinned there. "…, inline": without those threads the kernel does all in the softirq of
whoever sends, on the sender's core, the other one idle; best for throughput, since no frame changes cores.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.veth_wire import BATCH, BUDGET, FRAMES, RING, Placement, running
from lbd.testbed import Namespace
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until

KERNEL = ("kernel", "nftables", "kernel, inline", "nftables, inline")
FORWARDERS = ("lbd", "AF_XDP", *KERNEL)


@dataclass(frozen=True)
class Service:
    """What nftables translates, as lbd's configuration has it."""

    protocol: str
    address: str
    port: int
    servers: tuple[str, ...]
    server_port: int
    lips: tuple[str, ...]  # of the same family, neighbouring addresses

    def rules(self, name: str) -> str:
        ip = "ip6" if ":" in self.address else "ip"
        servers = ", ".join(f"{n} : {a} . {self.server_port}" for n, a in enumerate(self.servers))
        choice = f"numgen inc mod {len(self.servers)} map {{ {servers} }}"
        lips = f"{self.lips[0]}-{self.lips[-1]}" if len(self.lips) > 1 else self.lips[0]
        return f"""table {ip} {name} {{
            chain prerouting {{ type nat hook prerouting priority dstnat
                {ip} daddr {self.address} {self.protocol} dport {self.port} dnat {ip} to {choice}
            }}
            chain postrouting {{ type nat hook postrouting priority srcnat
                oifname "eth1" {self.protocol} dport {self.server_port} snat to {lips}
            }}
        }}
        """


@dataclass
class Site:
    """A namespace with eth0 and eth1, and what a forwarder has to know of it."""

    lb: Namespace
    near: str  # the MAC address of the station behind eth0
    far: str  # behind eth1
    services: tuple[Service, ...]
    lbd: Callable[[str], Daemon]  # starts it; the argument is the poll mode
    fifo: bool  # forwarders at SCHED_FIFO 1
    complete: bool = True  # the bare forwarder completes partial checksums
    forgets: bool = True  # lbd begins with no connections, not with those of its last run
    foreign: set[int] = field(default_factory=set)  # NAPI threads of other namespaces' eth0 and eth1

    def __post_init__(self) -> None:
        self.foreign.update(napi_pids())


@dataclass
class Forwarder:
    """One that runs."""

    name: str
    daemon: Daemon | None = None
    flows: Callable[[], int] | None = None  # how many it holds now


@contextmanager
def forwarding(name: str, site: Site, place: Placement, poll: str) -> Iterator[Forwarder]:
    if name == "lbd":
        with balancing(site, poll) as daemon:
            yield Forwarder(name, daemon, lambda: sum(daemon.get("/v1/status")["connections"][f] for f in ("ipv4", "ipv6")))
        return
    with ExitStack() as stack:
        if name == "AF_XDP":
            options = ["-d", site.near, "-e", site.far, "-b", BATCH, "-x", BUDGET, "-R", RING, "-F", FRAMES, "-t", 600]
            options += ["-w"] * (poll != "busy") + ["-c"] * site.complete
            argv = ("fwd", "-i", "eth0", "-o", "eth1", *options)
            stack.enter_context(running(site.lb, place.worker, *argv, fifo=site.fifo))
            yield Forwarder(name)
            return
        if not name.endswith("inline"):
            stack.enter_context(napi_threads(site, place.worker))
        if name.startswith("nftables"):
            stack.enter_context(translating(site))
            count = ["sysctl", "-n", "net.netfilter.nf_conntrack_count"]
            yield Forwarder(name, flows=lambda: int(site.lb.run(count)))
        else:
            yield Forwarder(name)


@contextmanager
def balancing(site: Site, poll: str) -> Iterator[Daemon]:
    daemon = site.lbd(poll)
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.end()
        site.lb.end_processes()
        for file in daemon.run_dir.glob("conn-*") if site.forgets else ():
            file.unlink()


@contextmanager
def translating(site: Site) -> Iterator[None]:
    """Rules, the service's and the local addresses; afterwards as before, connections forgotten."""
    services = site.services
    owned = sorted({(s.address, "eth0") for s in services} | {(lip, "eth1") for s in services for lip in s.lips})
    addresses = [f"{a}/{128 if ':' in a else 32} dev {device}" for a, device in owned]
    site.lb.ip(*(f"address add {a}{' nodad' if ':' in a else ''}" for a in addresses))
    try:
        site.lb.run(["nft", "-f", "-"], text="".join(s.rules(f"bench{n}") for n, s in enumerate(services)))
        yield
    finally:
        site.lb.run(["nft", "flush", "ruleset"])
        site.lb.run(["conntrack", "-F"], check=False)
        site.lb.ip(*(f"address del {a}" for a in addresses))


@contextmanager
def napi_threads(site: Site, core: int) -> Iterator[None]:
    """eth0's and eth1's NAPI in kernel threads on this core, with the priority that other forwarders have there."""
    set_threaded(site.lb, 1)
    try:
        wait_until("NAPI has its threads", lambda: len(napi_pids() - site.foreign) >= 2, 5)
        for pid in napi_pids() - site.foreign:
            os.sched_setaffinity(pid, {core})
            if site.fifo:
                os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
            else:
                os.setpriority(os.PRIO_PROCESS, pid, -20)
        yield
    finally:
        set_threaded(site.lb, 0)


def set_threaded(ns: Namespace, on: int) -> None:
    ns.run(["sh", "-c", "; ".join(f"echo {on} > /sys/class/net/{d}/threaded" for d in ("eth0", "eth1"))])


def napi_pids() -> set[int]:
    """Kernel threads are called napi/DEVICE-NUMBER, whatever the namespace of the device."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text()
        except OSError:
            continue
        if name.startswith(("napi/eth0-", "napi/eth1-")):
            found.add(int(process.name))
    return found
