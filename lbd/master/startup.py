# SPDX-License-Identifier: Apache-2.0
"""The steps by which the daemon comes up, and the refusals on the way: each one line with its remedy.

Scope: single steps; their order is `daemon.py`'s, and each leaves nothing behind if it fails.

    lock        one daemon for a run directory
    probe       kernel, privileges
    interfaces  there, with queues for the workers
    create      segments, frames, connection files, sockets, program: new ones

NB on order in `create`: sockets are bound before the program is attached (a foreign program or a second lbd is found at
the first step that it holds, and nothing of the host's is changed before), and the program redirects nothing until
its maps are filled.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import logging
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from lbd._fastpath import conn_bytes
from lbd.config import Config
from lbd.config.cpu import worker_nodes
from lbd.config.frame import MTU_LIMIT, device_mtus, mtu_max
from lbd.config.host import disk_under
from lbd.config.tunnel import TUNNEL_MAX
from lbd.master.ethtool import driver_of
from lbd.master.heritage import connection_files, keep, kept, previous, reserve, take_in
from lbd.master.nic import Nic, nics, numbered
from lbd.master.record import Link, Snapshot
from lbd.master.refusal import Refusal
from lbd.master.resources import Port, Resources
from lbd.master.rss import ownership
from lbd.master.sockets import Opener, close_ports, queue_counts
from lbd.shm import _shm as shm
from lbd.shm._shm import Area, HostSegment, SegmentError, WorkerSegment
from lbd.xdp import _xsk
from lbd.xdp.kernel import kernel_version, probe

log = logging.getLogger(__name__)

LOCK = "daemon.lock"
HASH_KEY = "hash-key"
HASH_KEY_BYTES = 32
CHAINS_SINCE = (6, 6)  # the kernel that has AF_XDP packets in several buffers (XDP_USE_SG)


# -- lock ------------------------------------------------------------------------------------------------------


def make_run_dir(config: Config) -> Path:
    run_dir = config.daemon.run_dir
    try:
        run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        if config.daemon.group is not None:
            os.chown(run_dir, -1, group_id(config.daemon.group))
    except OSError as error:
        raise Refusal(
            f"run directory {run_dir}: {error.strerror}", "run as root, or set daemon.run_dir to one that you own"
        ) from None
    return run_dir


def group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise Refusal(f"there is no group {name}", f"groupadd --system {name}, or leave daemon.group out") from None


def lock(run_dir: Path) -> int:
    """A descriptor that holds the run directory for as long as it is open."""
    path = run_dir / LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}", "run as root, or choose another daemon.run_dir") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
        os.close(fd)
        raise Refusal(
            f"another lbd (process {holder}) runs in {run_dir}", "stop it (lbd stop), or set another daemon.run_dir"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


# -- probe, interfaces -----------------------------------------------------------------------------------------


def check_host() -> None:
    if problems := probe().problems:
        raise Refusal(problems[0])


def check_interfaces(config: Config, snapshot: Snapshot) -> dict[int, Nic]:
    """What gets sockets, by port number."""
    if not config.interface:
        raise Refusal("no [[interface]] in the configuration", "name those that lbd receives and sends on")
    found = nics(config, snapshot.links)
    for number, interface in enumerate(config.interface):
        if snapshot.link(interface.name) is None:
            raise Refusal(f"there is no interface {interface.name}", "see: ip link; is this the right network namespace?")
        if not any(nic.iface == number for nic in found):
            raise Refusal(f"the bond {interface.name} has no slave", f"ip link set NAME master {interface.name}")
    return numbered(config, found, {})


def link_mtus(config: Config, snapshot: Snapshot) -> dict[str, int]:
    return {link.name: min(link.mtu, MTU_LIMIT) for i in config.interface if (link := snapshot.link(i.name)) is not None}


def needed_mtus(config: Config, snapshot: Snapshot, nics: Mapping[int, Nic]) -> list[int]:
    """What packet buffers are to hold: the interfaces' MTUs, and more where the driver would not make use of all of it."""
    found = list(link_mtus(config, snapshot).values())
    for nic in nics.values():
        found += device_mtus(config.interface[nic.iface], [driver_of(nic.name)])
    return found


def check_frames(config: Config, snapshot: Snapshot, sizes: Mapping[str, int], release: str = "") -> None:
    """Packets have to fit what was made for them: one packet buffer, or several where the kernel can. release: of the kernel."""
    most = mtu_max(sizes["frame_size"], sizes["chains"])
    if sizes["chains"] and kernel_version(release or platform.release()) < CHAINS_SINCE:
        most = mtu_max(sizes["frame_size"])
    for name, mtu in link_mtus(config, snapshot).items():
        if mtu > most:
            several = sizes["chains"] and most < mtu_max(sizes["frame_size"], 1)
            raise Refusal(
                f"{name} has an MTU of {mtu}, and packet buffers of lbd hold {most} bytes"
                + (f" (packets in several take Linux {CHAINS_SINCE[0]}.{CHAINS_SINCE[1]})" if several else ""),
                f"ip link set {name} mtu {most}, or less",
            )


# -- create ----------------------------------------------------------------------------------------------------


def create(config: Config, snapshot: Snapshot) -> Resources:
    nics = check_interfaces(config, snapshot)
    sizes = config.sizes(needed_mtus(config, snapshot, nics))
    check_frames(config, snapshot, sizes)
    queues = queue_counts(config, {c.name: c for c in snapshot.channels}, [nic.name for nic in nics.values()])
    with ExitStack() as stack:
        made = furnish(stack, config, snapshot, nics, queues, sizes)
        program = _xsk.Program.load(
            services=sizes["services"],
            lips=sizes["lips"],
            sources=sizes["dests"],
            tunnels=sizes["dests"] + 2 * TUNNEL_MAX,
            chains=bool(sizes["chains"]),
        )
        stack.callback(program.close)
        for number, nic in nics.items():  # undone by close: no other process has the links yet
            attach(program, config, number, nic)
        for port in made.ports:
            program.set_socket(port.iface, port.queue, port.fd)
        stack.pop_all()
        made.program = program
        if kind := disk_under(config.daemon.run_dir):
            log.warning("%s lies on %s: the connection tables in it are written back to disk", config.daemon.run_dir, kind)
        return made


def furnish(
    stack: ExitStack,
    config: Config,
    snapshot: Snapshot,
    nics: Mapping[int, Nic],
    queues: Mapping[str, int],
    sizes: dict[str, int],
) -> Resources:
    """All that workers need but the program, made anew; connections stay. `nics`: by port number; `queues`: sockets by NIC."""
    run_dir = config.daemon.run_dir
    nodes = worker_nodes(config.workers.cores, sizes["workers"], [(nic.name, nic.ifindex) for nic in nics.values()])
    host = stack.enter_context(HostSegment.create(sizes))
    connections = bool(connection_files(run_dir))
    why = set_owners(host, config, snapshot, queues, connections)
    try:
        area = stack.enter_context(Area.create(sizes, config.tables.hugepages, nodes))
    except SegmentError as error:
        raise Refusal(str(error)) from None
    segments = open_segments(stack, sizes, nodes)
    if config.tables.hugepages != "off":
        for fd in (host.fd, *segments.values()):
            shm.collapse(fd)
    conns = {n: open_connection_file(config, n, stack, nodes[n]) for n in range(sizes["workers"])}
    wake = {n: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for n in range(sizes["workers"])}
    for fd in wake.values():
        stack.callback(os.close, fd)
    ports = Opener(config, area, nics, queues, sizes).open()
    stack.callback(close_ports, ports)
    log.info("%s", why)  # not before: a refusal is one line
    if area.note:
        log.warning("%s", area.note)
    take_in(run_dir, conns, sizes)
    reserve(host, conns, sizes)
    return Resources(sizes, host, area, None, segments, conns, wake, ports)


def open_segments(stack: ExitStack, sizes: dict[str, int], nodes: list[int | None]) -> dict[int, int]:
    """A worker's segment, laid out, by a descriptor: the supervisor maps it again."""
    fds = {}
    for number in range(sizes["workers"]):
        with WorkerSegment.create(sizes, number, nodes[number]) as segment:
            fds[number] = os.dup(segment.fd)
        stack.callback(os.close, fds[number])
    return fds


def set_owners(
    host: HostSegment, config: Config, snapshot: Snapshot, queues: Mapping[str, int], connections: bool
) -> str:
    """Tells how flows find their owner, in words. `connections`: there may be some, of workers that ran before."""
    run_dir, workers = config.daemon.run_dir, config.workers.number
    host.set_hash_key(hash_key(run_dir))
    owners = ownership(list(queues), snapshot.rss, workers, dict(queues))
    before = previous(kept(run_dir) if connections else (), owners, workers)
    first = before or owners
    host.set_rss(first.key, first.known, first.udp_ports)
    host.set_owner(first.table, False)
    if before:
        host.set_owner(owners.table, True, (owners.key, owners.known, owners.udp_ports))
    keep(run_dir, *([owners, before] if before else [owners]))
    return owners.why + ("; connections that there are stay where they are" if before else "")


def hash_key(run_dir: Path) -> bytes:
    """The secret of the connection hash, kept as long as connection files are: where RSS is not known it says
    which worker owns a flow, and by another key recovered connections would be looked for in the wrong table."""
    path = run_dir / HASH_KEY
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}", "run as root, or choose another daemon.run_dir") from None
    with open(fd, "r+b") as file:
        os.fchmod(fd, 0o600)
        key = file.read()
        if len(key) != HASH_KEY_BYTES:
            key = os.urandom(HASH_KEY_BYTES)
            file.seek(0)
            file.write(key)
            file.truncate()
    return key


def open_connection_file(config: Config, number: int, stack: ExitStack, node: int | None = None) -> int:
    """An ordinary file: it outlives every process, so that ports in TIME_WAIT stay known. Its worker checks the content."""
    path = config.daemon.run_dir / f"conn-{number}"
    size = conn_bytes(config.sizes())
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    os.fchmod(fd, 0o600)
    # one that has connections stays where it is: it may be gigabytes, and traffic waits
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, 0)  # of other table sizes: nothing in it can be read
        if node is not None and (why := place(fd, size, node)):
            log.info("%s is not placed on NUMA node %d: %s", path, node, why)
        if config.tables.hugepages != "off":
            os.ftruncate(fd, size)
            shm.collapse(fd)
    try:
        # NB: reserved now; a file system that is full later would end the worker by SIGBUS
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Refusal(
            f"no room in {config.daemon.run_dir} for the connection table of worker {number} ({size >> 20} MiB)",
            "lower tables.connections_ipv4 and connections_ipv6, or set daemon.run_dir to a larger file system",
        ) from None
    return fd


def place(fd: int, size: int, node: int) -> str:
    """Before room is reserved: in a memory file system that is when its pages are chosen."""
    os.ftruncate(fd, size)
    return shm.prefer_node(fd, 0, size, node)


def renew(program: _xsk.Program, links: Iterable[Link], ports: Iterable[Port]) -> None:
    """For new sockets: the program has to run on their queues."""
    veths = {link.ifindex for link in links if link.kind == "veth"}
    for ifindex in veths & {port.ifindex for port in ports} & program.attached().keys():
        program.renew(ifindex)


def attach(program: _xsk.Program, config: Config, number: int, nic: Nic) -> None:
    program.attach(nic.ifindex, nic.name, config.interface[nic.iface].attach)
    program.set_iface(nic.ifindex, number)
