# SPDX-License-Identifier: Apache-2.0
"""Series of workers, queues, tables and the network, from the workers' segments. Few, and read at every
scrape.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lbd.config import Config
from lbd.config.service import Service
from lbd.master.exposition import Exposition
from lbd.master.metric import BATCH_BUCKETS
from lbd.master.tunnel_end import COUNTS as TUNNEL_COUNTS
from lbd.master.tunnel_end import counted
from lbd.shm import _shm as shm

if TYPE_CHECKING:
    from lbd.master.checks import Checks
    from lbd.master.course import Course
    from lbd.master.reconcile import Placed, Reconciler
    from lbd.master.resources import Port
    from lbd.master.runtime import Runtime

QUEUE = {
    "rx_packets_total": "rx_pkts",
    "rx_bytes_total": "rx_bytes",
    "tx_packets_total": "tx_pkts",
    "tx_bytes_total": "tx_bytes",
    "tx_full_total": "tx_full",
    "tx_kicks_total": "tx_kicks",
    "tx_errors_total": "tx_errors",
    "fill_level": "fill_level",
    "tx_outstanding": "tx_outstanding",
}
SOCKET = {
    "rx_dropped_total": "rx_dropped",
    "rx_invalid_descs_total": "rx_invalid_descs",
    "tx_invalid_descs_total": "tx_invalid_descs",
    "rx_ring_full_total": "rx_ring_full",
    "rx_fill_ring_empty_descs_total": "rx_fill_empty",
    "tx_ring_empty_descs_total": "tx_ring_empty",
}
RINGS = {"cmd": "command", "evt": "event", "capture": "capture", "slow": "slow_path"}

ANSWERED = ("ttl_expired", "mtu_exceeded")  # reasons for which lbd sends an ICMP error
COUNTS = {
    "misplaced_packets": "misplaced",
    "sleeps": "sleeps",
    "wakes": "wakes",
    "commands": "commands",
    "bad_commands": "bad_commands",
    "events_lost": "events_lost",
    "capture_lost": "capture_lost",
}


class Daemon(Protocol):
    """What is read of the daemon, here and in exporter.py."""

    @property
    def config(self) -> Config: ...
    @property
    def segments(self) -> Mapping[int, shm.WorkerSegment]: ...  # by worker
    @property
    def ports(self) -> Sequence[Port]: ...
    @property
    def program(self) -> Any: ...  # lbd.xdp._xsk.Program
    @property
    def health(self) -> Checks: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def course(self) -> Course: ...
    @property
    def reconciler(self) -> Reconciler: ...
    @property
    def netlink_events(self) -> Mapping[str, int]: ...  # notifications by kind
    @property
    def started(self) -> float: ...
    @property
    def loaded(self) -> float: ...
    @property
    def reloads(self) -> int: ...
    @property
    def rejected(self) -> int: ...
    @property
    def reload_error(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    def placed(self, service: Service) -> Placed | None: ...
    def is_alive(self, worker: int) -> bool: ...


# -- packets and connections, summed over workers ------------------------------------------------------------


def packets(page: Exposition, daemon: Daemon) -> None:
    each = [segment.counters() for segment in daemon.segments.values()]

    def total(kind: str) -> list[tuple[tuple[str], int]]:
        return [((name,), sum(c[kind][name] for c in each)) for name in (each[0][kind] if each else ())]

    # a hand-over is no verdict: the packet gets one at its owner; nor is a hold: it gets one later
    page.rows("lbd_packets_total", (row for row in total("verdicts") if row[0][0] not in ("handover", "hold")))
    page.rows("lbd_drops_total", (row for row in total("drops") if row[0] != ("none",)))
    sent = [(("sent", reason), n) for (reason,), n in total("consumed") if n or reason in ANSWERED]
    forwarded = sum(c["icmp_mapped"] for c in each)
    page.rows("lbd_icmp_total", [*sent, (("forwarded", "error"), forwarded)])
    page.rows("lbd_fragments_total", [((what,), sum(c[f"frag_{what}"] for c in each)) for what in ("forwarded", "held")])
    lost = {"timeout": "frag_expired", "table_full": "frag_evicted"}
    page.rows("lbd_fragmented_datagrams_lost_total", [((why,), sum(c[key] for c in each)) for why, key in lost.items()])
    quic = (("by_id", "quic_by_id"), ("unknown_id", "quic_unknown"), ("no_id", "quic_no_id"))
    page.rows("lbd_quic_packets_total", (((result,), sum(c[key] for c in each)) for result, key in quic))
    page.rows("lbd_slow_path_packets_total", [(("to_kernel",), sum(c["kernel_out"] for c in each))])
    page.one("lbd_connections_opened_total", sum(c["conns_made"] for c in each))
    page.rows("lbd_connections_expired_total", total("conns_expired"))


def tunnels(page: Exposition, daemon: Daemon) -> None:
    rows = list(counted(daemon.config.tunnel, daemon.segments.values()))
    for place, name in enumerate(TUNNEL_COUNTS):
        what = "refused_packets" if name == "refused" else name
        page.rows(f"lbd_tunnel_{what}_total", (((t.name,), counts[place]) for t, counts in rows))


def connections(page: Exposition, daemon: Daemon) -> None:
    heads = {n: segment.ctl() for n, segment in daemon.segments.items()}
    families = (("ipv4", "conns4"), ("ipv6", "conns6"))
    page.rows(
        "lbd_connection_table_entries",
        (((n, family), head[key]) for n, head in heads.items() for family, key in families),
    )
    page.rows(
        "lbd_connection_table_capacity",
        (((n, family), head["sizes"][key]) for n, head in heads.items() for family, key in families),
    )
    counts = {n: segment.counters() for n, segment in daemon.segments.items()}
    page.rows("lbd_persistence_templates", (((n,), c["templates"]) for n, c in counts.items()))
    page.rows("lbd_persistence_templates_capacity", (((n,), head["sizes"]["templates"]) for n, head in heads.items()))
    page.rows("lbd_persistence_evicted_total", (((n,), c["templates_evicted"]) for n, c in counts.items()))
    page.rows("lbd_persistence_asked_total", (((n,), c["templates_asked"]) for n, c in counts.items()))
    page.rows("lbd_half_open_connections", (((n,), head["half_open"]) for n, head in heads.items()))
    used: Counter[int | None] = Counter()  # by number; a LIP that no worker knows has none
    exhausted: Counter[int | None] = Counter()
    by_worker: dict[int, dict[int, tuple[int, int]]] = {}
    for n, segment in daemon.segments.items():
        rows = segment.lip_stats_all()
        by_worker[n] = {number: (in_use, missed) for number, _, missed, in_use in rows}
        for number, _, missed, in_use in rows:
            used[number] += in_use
            exhausted[number] += missed
    lips = [
        (str(lip.address), lip.ports.hi - lip.ports.lo + 1, daemon.reconciler.lips.number(lip.address.packed))
        for lip in daemon.config.own_addresses()
    ]
    page.rows("lbd_local_ports_in_use", (((name,), used[n]) for name, _, n in lips))
    page.rows("lbd_local_ports_capacity", (((name,), ports) for name, ports, _ in lips))
    page.rows("lbd_local_port_exhausted_total", (((name,), exhausted[n]) for name, _, n in lips))
    for name, at in (("lbd_worker_local_ports_in_use", 0), ("lbd_worker_local_port_exhausted_total", 1)):
        page.rows(name, (((w, lip), rows[n][at]) for w, rows in by_worker.items() for lip, _, n in lips if n in rows))


# -- workers -------------------------------------------------------------------------------------------------


class Workers:
    """Keeps what a worker's earlier processes used, since theirs ends with them."""

    def __init__(self) -> None:
        self._cpu: dict[int, CpuTime] = {}

    def write(self, page: Exposition, daemon: Daemon) -> None:
        segments = daemon.segments
        heads = {n: segment.ctl() for n, segment in segments.items()}
        counts = {n: segment.counters() for n, segment in segments.items()}
        received: Counter[int] = Counter()
        for port in daemon.ports:
            received[port.worker] += segments[port.worker].queue(port.iface)["rx_pkts"]
        cores = {n: daemon.config.workers.core(n) for n in segments}
        page.rows("lbd_worker_up", (((n,), int(daemon.is_alive(n))) for n in segments))
        page.rows("lbd_worker_info", (((n, "" if core is None else core), 1) for n, core in cores.items()))
        for name, key in (("busy", "busy_ns"), ("idle", "idle_ns")):
            page.rows(f"lbd_worker_{name}_seconds_total", (((n,), c[key] / 1e9) for n, c in counts.items()))
        page.histogram(
            "lbd_worker_batch_packets",
            (((n,), c["burst_size"], received[n] + c["handed_in"]) for n, c in counts.items()),
            BATCH_BUCKETS,
        )
        page.rows("lbd_worker_restarts_total", (((n,), head["restarts"]) for n, head in heads.items()))
        rings = {n: segment.ring_stats() for n, segment in segments.items()}
        page.rows(
            "lbd_worker_ring_full_total",
            (((n, name), rings[n][ring][1]) for n in segments for ring, name in RINGS.items()),
        )
        page.rows(
            "lbd_worker_handed_packets_total",
            (((n, way), c[f"handed_{way}"]) for n, c in counts.items() for way in ("in", "out")),
        )
        for name, key in COUNTS.items():
            page.rows(f"lbd_worker_{name}_total", (((n,), c[key]) for n, c in counts.items()))
        self._processes(page, {n: head["pid"] for n, head in heads.items()})
        page.rows("lbd_umem_frames", (((n,), head["sizes"]["frames"]) for n, head in heads.items()))
        page.rows("lbd_umem_free_frames", (((n,), head["free_frames"]) for n, head in heads.items()))

    def _processes(self, page: Exposition, pids: dict[int, int]) -> None:
        cpu = {n: self._cpu.setdefault(n, CpuTime()).of(pid) for n, pid in pids.items()}
        page.rows("lbd_worker_process_cpu_seconds_total", (((n,), seconds) for n, seconds in cpu.items()))
        page.rows(
            "lbd_worker_process_resident_memory_bytes", (((n,), resident(pid)) for n, pid in pids.items())
        )


class CpuTime:
    """Of one process after the other."""

    def __init__(self) -> None:
        self._pid = 0
        self._before = 0.0
        self._last = 0.0

    def of(self, pid: int) -> float:
        if pid != self._pid:
            self._before += self._last
            self._pid, self._last = pid, 0.0
        self._last = max(self._last, cpu_seconds(pid))
        return self._before + self._last


def cpu_seconds(pid: int) -> float:
    """0 if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


# -- queues and network --------------------------------------------------------------------------------------


def queues(page: Exposition, daemon: Daemon) -> None:
    names = {port.iface: port.nic for port in daemon.ports}
    seen = [(port, daemon.segments[port.worker].queue(port.iface)) for port in daemon.ports]
    by_worker = [((names[p.iface], p.queue, p.worker), q) for p, q in seen]
    sockets = [((names[p.iface], p.queue), p, q) for p, q in seen]
    for name, key in QUEUE.items():
        page.rows(f"lbd_queue_{name}", ((labels, q[key]) for labels, q in by_worker))
    for name, key in SOCKET.items():
        page.rows(f"lbd_xsk_{name}", ((labels, q[key]) for labels, _, q in sockets))
    page.rows("lbd_xsk_zero_copy", ((labels, int(p.zero_copy)) for labels, p, _ in sockets))
    actions = daemon.program.counters()
    page.rows(
        "lbd_xdp_actions_total",
        (
            ((names[iface], action), n)
            for iface, each in actions.items()
            if iface in names
            for action, n in each.items()
        ),
    )


def network(page: Exposition, daemon: Daemon) -> None:
    """As the first worker knows it: all are told the same."""
    for segment in list(daemon.segments.values())[:1]:
        found: Counter[tuple[int, str]] = Counter()
        for _, adj in segment.neighbours():
            found[adj["iface"], neighbour_state(adj["flags"])] += 1
        page.rows(
            "lbd_neighbors",
            (
                ((interface.name, state), found[n, state])
                for n, interface in enumerate(daemon.config.interface)
                for state in ("resolved", "unresolved", "learned")
            ),
        )
        page.one("lbd_routes", segment.ctl()["route_count"])


def neighbour_state(flags: int) -> str:
    if flags & shm.ADJ_LEARNED:
        return "learned"
    return "resolved" if flags & shm.ADJ_VALID else "unresolved"
