# SPDX-License-Identifier: Apache-2.0
"""How much memory lbd takes: everything is allocated at the start, so it follows from the table sizes.

    total = workers × (connections + tables + frames + sockets + process) + shared + templates + master

    connections  125 bytes × connections_ipv4 + 189 bytes × connections_ipv6:
                 records and index, in a file of run_dir
    tables       3.3 MiB of neighbours, routes and rings to and from the master;
                 200 bytes × services + 144 bytes × real_servers
    frames       2049 or 4097 bytes × frames (`frame_size`): the packet, and a byte that says who holds it
    sockets      48 bytes × ring for each interface: the four rings of an AF_XDP socket
    process      10 MiB: interpreter, stacks, datagrams in fragments
    shared       4 bytes × 1024 × services, at least 16 MiB: scheduling tables;
                 for each worker 32 bytes × persistence_templates;
                 for each ordered pair of workers 24 bytes × frames: rings between them
    templates    if a service has persistence: for each worker 192 bytes × persistence_templates, while the
                 file of run_dir that keeps them is written anew: the old one, the new one, and a copy
    master       80 MiB, and 7 KiB for each service and real server of the file

The first three and `shared` are asked of the layouts themselves; the figures above are what they come to, and
tests hold them against each other. `process` and `master` are measured (Python 3.11), and estimates at that.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lbd.config.model import Config

SOCKET_ENTRY = 8 + 8 + 16 + 16  # bytes: fill and completion ring, rx and tx ring
WORKER_PROCESS = 10 << 20
MASTER_PROCESS = 80 << 20
KEPT = 3 * 64  # of a template, while the file is replaced (lbd/master/template.py)
MASTER_ITEM = 7 << 10  # after reloads that change everything; 4 KiB before


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    workers: int
    connections: int  # of each worker, as the next four
    tables: int
    frames: int
    sockets: int
    process: int
    shared: int
    master: int
    templates: int = 0  # at most

    @property
    def worker(self) -> int:
        return self.connections + self.tables + self.frames + self.sockets + self.process

    @property
    def area(self) -> int:
        """The frames of all workers: the one part that huge pages can hold."""
        return self.workers * self.frames

    @property
    def total(self) -> int:
        return self.workers * self.worker + self.shared + self.templates + self.master


def memory(config: Config, mtus: Iterable[int] = ()) -> Memory:
    """`mtus`: of the interfaces, by which packet buffers are larger."""
    # here, since the configuration's model is read where the extensions are not built
    import lbd._fastpath as fastpath
    from lbd.shm import _shm

    sizes = config.sizes(mtus)
    segments = _shm.segment_bytes(sizes)
    items = len(config.service) + sum(len(s.real_server) for s in config.service)
    return Memory(
        workers=sizes["workers"],
        connections=fastpath.conn_bytes(sizes),
        tables=segments["worker"],
        frames=segments["area"] // sizes["workers"],
        sockets=SOCKET_ENTRY * sum(i.ring for i in config.interface),
        process=WORKER_PROCESS,
        shared=segments["host"],
        master=MASTER_PROCESS + MASTER_ITEM * items,
        templates=KEPT * sizes["workers"] * sizes["templates"] if any(s.persistence for s in config.service) else 0,
    )


def memory_text(count: int) -> str:
    """Bytes as people read them: "52.6 MiB"."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
