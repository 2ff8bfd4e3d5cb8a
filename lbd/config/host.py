# SPDX-License-Identifier: Apache-2.0
"""What this host lacks for a configuration. Looks only: no privilege, no side effect, and quick.

Remarks are warnings: the configuration may be meant for another host, or the host may not be ready yet. What
can't be found out is passed over; at the start the daemon finds out for certain.
"""

import grp
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from lbd.config import cpu
from lbd.config.frame import FRAME, MTU_LIMIT, device_mtus, mtu_max
from lbd.config.memory import Memory, memory_text
from lbd.config.model import Config
from lbd.config.problem import Loc
from lbd.config.rule import Finding

LEAST_EPHEMERAL = 1024  # ports that the host needs for its own connections


def remarks(
    config: Config, memory: Memory, mtus: Mapping[str, int] = MappingProxyType({}), root: Path = Path("/")
) -> list[Finding]:
    """`mtus`: of the interfaces; `root`: where proc and sys are found."""
    return [
        *_interfaces(config, root),
        *_mtus(config, mtus),
        *_drivers_frames(config, root),
        *_cores(config, root),
        *_group(config),
        *_ports(config, root),
        *_pages(config, memory, root),
        *_run_dir(config, root),
    ]


def _interfaces(config: Config, root: Path) -> Iterator[Finding]:
    there = {name: number for number, name in socket.if_nameindex()}
    for i, interface in enumerate(config.interface):
        loc = ("interface", i, "name")
        if interface.name not in there:
            listed = ", ".join(sorted(there))
            yield loc, f'this host has no interface "{interface.name}"; it has {listed}'
            continue
        queues = _queues(interface.name, there[interface.name], root)
        workers = config.workers.number
        if queues and queues > workers:
            yield (
                loc,
                f"{queues} receive queues and {workers} workers, but each queue needs a worker of its own; "
                f"write count = {queues}, or run `ethtool -L {interface.name} combined {workers}`",
            )
    named: list[tuple[Loc, str, bool]] = []
    named += [(("service", i, "interface"), s.interface, s.manage) for i, s in enumerate(config.service)]
    named += [
        (("local_address", i, "interface"), a.interface or "", a.manage)
        for i, a in enumerate(config.local_address)
    ]
    named += [
        (("snat", i, "pool", k, "interface"), a.interface or "", a.manage)
        for i, rule in enumerate(config.snat)
        for k, a in enumerate(rule.pool)
    ]
    ours = {i.name for i in config.interface}
    for where, name, manage in named:
        if manage and name and name not in there and name not in ours:
            yield where, f'this host has no interface "{name}", where the address is to be added'


def interface_mtus(config: Config) -> dict[str, int]:
    """Of those that this host has."""
    # here, as in memory.py
    from lbd.xdp.kernel import device_mtu

    return {i.name: min(mtu, MTU_LIMIT) for i in config.interface if (mtu := device_mtu(i.name)) is not None}


def buffer_mtus(config: Config, mtus: Mapping[str, int], root: Path = Path("/")) -> list[int]:
    """What the daemon makes packet buffers for on this host; `mtus`: of the interfaces."""
    return [*mtus.values(), *(mtu for i in config.interface for mtu in device_mtus(i, _drivers(i.name, root)))]


def _drivers(name: str, root: Path) -> list[str]:
    """Of an interface, or of the bond's slaves, as far as sysfs tells."""
    net = root / "sys/class/net"
    try:
        devices = (net / name / "bonding/slaves").read_text().split()
    except OSError:
        devices = [name]
    return [os.path.basename(os.path.realpath(link)) for d in devices if (link := net / d / "device/driver").exists()]


def _drivers_frames(config: Config, root: Path) -> Iterator[Finding]:
    for i in config.interface:
        drivers = _drivers(i.name, root)
        if config.tables.frame_size == FRAME and device_mtus(i, drivers):
            yield (
                ("tables", "frame_size"),
                f"packet buffers of {FRAME} bytes, of which zero-copy on {i.name} ({', '.join(drivers)}) would use 1024: remove it "
                f'or write zero_copy = "off" for {i.name}',
            )


def _mtus(config: Config, mtus: Mapping[str, int]) -> Iterator[Finding]:
    sizes = config.sizes(mtus.values())
    single, most = mtu_max(sizes["frame_size"]), mtu_max(sizes["frame_size"], sizes["chains"])
    for i, interface in enumerate(config.interface):
        mtu = mtus.get(interface.name, 0)
        if mtu > most:
            yield (
                ("interface", i, "name"),
                f"an MTU of {mtu}, and packet buffers are for {most}: `ip link set {interface.name} mtu {most}`",
            )
        elif mtu > single and interface.zero_copy == "require":
            yield (
                ("interface", i, "zero_copy"),
                f"an MTU of {mtu}: packets above {single} bytes lie in several buffers, and few drivers have zero-copy for these",
            )
        elif mtu > single:
            yield (
                ("interface", i, "name"),
                f"an MTU of {mtu}: packets above {single} bytes lie in several buffers, which takes Linux 6.6, a driver with XDP "
                f'multi-buffer (or attach = "generic"), and copies where it has no zero-copy for these',
            )


def _queues(name: str, ifindex: int, root: Path) -> int:
    """Receive queues; 0 if not known. NB: /sys shows the network namespace that it was mounted in."""
    directory = root / "sys/class/net" / name
    try:
        if int((directory / "ifindex").read_text()) != ifindex:
            return 0
        return sum(1 for entry in (directory / "queues").iterdir() if entry.name.startswith("rx-"))
    except (OSError, ValueError):
        return 0


def _cores(config: Config, root: Path) -> Iterator[Finding]:
    usable = os.sched_getaffinity(0)
    for i, core in enumerate(config.workers.cores):
        if core not in usable:
            yield (
                ("workers", "cores", i),
                f"core {core} is not there, or not for this process; {len(usable)} are",
            )
    if not config.workers.cores and config.workers.number > len(usable):
        yield ("workers",), f"{config.workers.number} workers share {len(usable)} cores"
    cores = config.workers.cores[: config.workers.number]
    for i, text in cpu.shared(cores, root).items():
        yield ("workers", "cores", i), text
    there = {name: number for number, name in socket.if_nameindex()}
    for text in cpu.far(cores, [(i.name, there[i.name]) for i in config.interface if i.name in there], root):
        yield ("workers",), text


def _group(config: Config) -> Iterator[Finding]:
    group = config.daemon.group
    if group is not None:
        try:
            grp.getgrnam(group)
        except KeyError:
            yield ("daemon", "group"), f'this host has no group "{group}"; run `groupadd --system {group}`'


def _ports(config: Config, root: Path) -> Iterator[Finding]:
    """lbd reserves its ports from the kernel's automatic choice, on all addresses: some have to remain."""
    try:
        low, high = map(int, (root / "proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return
    taken = {port for lip in config.own_addresses() for port in range(lip.ports.lo, lip.ports.hi + 1)}
    left = sum(1 for port in range(low, high + 1) if port not in taken)
    if left < LEAST_EPHEMERAL and config.own_addresses():
        yield (
            ("local_address", 0, "ports") if config.local_address else ("snat", 0, "pool", 0, "ports"),
            f"of {low}-{high} (net.ipv4.ip_local_port_range) only {left} ports remain for the host's own "
            f"connections, which need {LEAST_EPHEMERAL}; take fewer, or move that range",
        )


def disk_under(path: Path, root: Path = Path("/")) -> str | None:
    """The file system type that this path lies on, if it is one on a disk: a mapped file there is written back to it."""
    try:
        mounts = [line.split() for line in (root / "proc/self/mounts").read_text().splitlines()]
    except OSError:
        return None
    # the longest mount point that the path lies under; of two at one place the later one covers the other
    best = max(((len(m[1]), i) for i, m in enumerate(mounts) if path.is_relative_to(m[1])), default=None)
    kind = mounts[best[1]][2] if best else None
    return None if kind in (None, "tmpfs", "ramfs", "hugetlbfs") else kind


def _run_dir(config: Config, root: Path) -> Iterator[Finding]:
    kind = disk_under(config.daemon.run_dir, root)
    if kind:
        yield (
            ("daemon", "run_dir"),
            f"{config.daemon.run_dir} lies on {kind}: the connection tables in it would be written back to disk for ever; "
            "choose a place on a tmpfs",
        )


def _pages(config: Config, memory: Memory, root: Path) -> Iterator[Finding]:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return
    info = {key: int(value) for key, value in re.findall(r"^(\w+):\s+([0-9]+)", text, re.MULTILINE)}
    page = info.get("Hugepagesize", 0) << 10
    if config.tables.hugepages == "require" and page:
        need, free = -(-memory.area // page), info.get("HugePages_Free", 0)
        if free < need:
            yield (
                ("tables", "hugepages"),
                f"{need} huge pages are needed and {free} are free; run `sysctl vm.nr_hugepages={need}`",
            )
    available = info.get("MemAvailable", 0) << 10
    if 0 < available < memory.total:
        yield (
            ("tables",),
            f"{memory_text(memory.total)} are needed and {memory_text(available)} available; "
            "make the tables smaller",
        )
