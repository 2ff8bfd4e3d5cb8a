# SPDX-License-Identifier: Apache-2.0
"""Types of lbd/shm/_shm.pyx; what each thing means is said there."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

SCHED_SEQ: int
SCHED_HASH: int
SCHED_LEAST: int
SCHED_SED: int
SCHED_NQ: int
SCHED_FIRST: int
SCHED_OVF: int
SCHED_SOURCE: int
SCHED_DEST: int
SCHED_HOME: int
SCHED_HOMES: int
SCHED_COUNT: int
SVC_USED: int
SVC_HASH_PORT: int
SVC_LEAST_WEIGHTED: int
SVC_HASH_FALLBACK: int
SVC_PERSIST: int
SVC_ALIAS: int
SVC_ONE_PACKET: int
SVC_EXPIRE_NODEST: int
SVC_EXPIRE_QUIESCENT: int
SVC_HASH_QID: int
MODE_FULLNAT: int
MODE_NAT: int
MODE_DR: int
MODE_TUNNEL: int
MODE_SNAT: int
SNAT_TCP: int
SNAT_UDP: int
SNAT_ICMP: int
SNAT_ANY: int
SNAT_MAX: int
LIP_SNAT: int
TUNNEL_IPIP: int
TUNNEL_GRE: int
TUNNEL_GUE: int
TUNNEL_CSUM: int
DEST_USED: int
DEST_UP: int
DEST_SORRY: int
DEST_END: int
DEST_RESET: int
DEST_OVERLOAD: int
SVC_NONE: int
DEST_NONE: int
LIP_NONE: int
IFACE_USED: int
IFACE_UP: int
IFACE_PARTIAL: int
IFACE_ZERO_COPY: int
IFACE_COMPLETES: int
ADJ_USED: int
ADJ_VALID: int
ADJ_LEARNED: int
ADJ_MAX: int
ROUTE_USED: int
ROUTE_ONLINK: int
FIB_MAX: int
IFACE_MAX: int
LINK_MAX: int
MEMBER_MAX: int
TPID_AD: int
TPID_OUTER_Q: int
BOND_NONE: int
BOND_TURN: int
BOND_L2: int
BOND_L23: int
BOND_L34: int
WORKER_MAX: int
CMD_NOP: int
CMD_SVC_SET: int
CMD_SVC_DEL: int
CMD_DEST_SET: int
CMD_DEST_DEL: int
CMD_LIP_SET: int
CMD_LIP_DEL: int
CMD_IFACE_SET: int
CMD_IFACE_DEL: int
CMD_NEIGH_SET: int
CMD_NEIGH_DEL: int
CMD_ROUTE_SET: int
CMD_ROUTE_DEL: int
CMD_SETTING: int
CMD_SWEEP: int
CMD_OWNER: int
CMD_CAPTURE: int
CMD_STOP: int
CMD_TUNNEL_SET: int
CMD_TUNNEL_DEL: int
CMD_SNAT_SET: int
CMD_FRESH: int
SWEEP_SVC: int
SWEEP_DEST: int
SWEEP_LIP: int
SWEEP_NEIGH: int
SWEEP_ROUTE: int
SWEEP_IFACE: int
SWEEP_TUNNEL: int
SET_POLL_MODE: int
SET_VERIFY_CSUM: int
SET_RETURN_ROUTE: int
SET_ICMP_RATE: int
SET_KERNEL_RATE: int
SET_FRAG_TIMEOUT: int
SET_PORT_REST: int
SET_TIMEOUT_BASE: int
CAPTURE_RX: int
CAPTURE_TX: int
CAPTURE_DROP: int
WORKER_STARTING: int
WORKER_ATTACHING: int
WORKER_RUNNING: int
WORKER_STOPPING: int
WORKER_STOPPED: int
EVT_RUNNING: int
EVT_NEIGH_WANTED: int
EVT_LIP_EXHAUSTED: int
EVT_TABLE_FULL: int
EVT_BAD_COMMAND: int
EVT_PEER_RESET: int
FRAME_FREE: int
FRAME_FILL: int
FRAME_WORK: int
FRAME_TX: int
FRAME_HAND: int
FRAME_HOME: int
CHUNK: int
CHUNK_LARGE: int
XDP_HEADROOM: int
CAPTURE_SLOT: int
OWNER_BUCKETS: int
SEG_VERSION: int
REASON_COUNT: int

VERDICTS: tuple[str, ...]
EXPIRE_REASONS: tuple[str, ...]
WORKER_STATES: tuple[str, ...]
EVENTS: tuple[str, ...]
FRAME_OWNERS: tuple[str, ...]
SIZE_NAMES: tuple[str, ...]
RINGS: tuple[str, ...]

Sizes = dict[str, int]
SvcStatTuple = tuple[int, int, int, int, int, int, int, int]
LipStatTuple = tuple[int, int, int, int]

class SegmentError(Exception): ...
class PeerGarbage(Exception): ...

def segment_bytes(sizes: Sizes) -> dict[str, int]: ...

# -- commands

def nop(gen: int) -> bytes: ...
def svc_set(
    id: int,
    gen: int,
    *,
    af: int,
    addr: bytes,
    port: int,
    proto: int,
    sched: int,
    flags: int = 0,
    table_off: int = 0,
    table_len: int = 0,
    timeout_established: int = 0,
    timeout_fin: int = 0,
    timeout_udp: int = 0,
    sorry: int | None = None,
    mode: int = 0,
    source4: bytes = ...,
    source6: bytes = ...,
    quic: int = 0,
    quic_len: int = 0,
    quic_config: int = 0,
    persist: int = 0,
    persist_plen: int = 0,
    target: int = 0,
    fresh: bool = False,
) -> bytes: ...
def snat_set(
    id: int,
    gen: int,
    *,
    digest: bytes,
    af: int,
    protocols: int,
    order: int,
    pool: int,
    sources: int,
    dests: int = 0,
    ifin: int = ...,
    ifout: int = ...,
    table_off: int,
    timeout_established: int = 0,
    fresh: bool = False,
) -> bytes: ...
def svc_del(id: int, gen: int) -> bytes: ...
def dest_set(
    id: int,
    gen: int,
    *,
    af: int,
    addr: bytes,
    port: int,
    svc: int,
    weight: int = 1,
    up: bool = True,
    flags: int = 0,
    tunnel: int = 0,
    tunnel_port: int = 0,
    quic_id: int | None = None,
    upper: int = 0,
    lower: int = 0,
    fresh: bool = False,
) -> bytes: ...
def dest_del(id: int, gen: int) -> bytes: ...
def lip_set(
    id: int, gen: int, *, af: int, addr: bytes, port_lo: int, port_hi: int, snat: bool = False, fresh: bool = False
) -> bytes: ...
def lip_del(id: int, gen: int) -> bytes: ...
def iface_set(
    id: int,
    gen: int,
    *,
    mac: bytes,
    mtu: int,
    ifindex: int,
    flags: int = ...,
    addr4: bytes = ...,
    addr6: bytes = ...,
    lower: int = 0,
    tags: int = 0,
    policy: int = ...,
    members: Sequence[int] = ...,
    of: int | None = None,
) -> bytes: ...
def iface_del(id: int, gen: int) -> bytes: ...
def neigh_set(
    gen: int, *, iface: int, af: int, addr: bytes, mac: bytes | None = None, tags: int = 0
) -> bytes: ...
def neigh_del(gen: int, *, iface: int, af: int, addr: bytes, tags: int = 0) -> bytes: ...
def route_set(
    gen: int,
    *,
    af: int,
    prefix: bytes,
    plen: int,
    iface: int,
    gateway: bytes | None = None,
    metric: int = 0,
    tags: int = 0,
) -> bytes: ...
def route_del(gen: int, *, af: int, prefix: bytes, plen: int) -> bytes: ...
def tunnel_set(gen: int, *, af: int, kind: int, local: bytes, remote: bytes = ...) -> bytes: ...
def tunnel_del(gen: int, *, af: int, kind: int, local: bytes, remote: bytes = ...) -> bytes: ...
def setting(id: int, value: int, gen: int) -> bytes: ...
def sweep(kind: int, gen: int) -> bytes: ...
def owner(gen: int) -> bytes: ...
def capture(gen: int, *, points: int = 0, snaplen: int = ..., svc: int = ...) -> bytes: ...
def port_gone(id: int, gen: int) -> bytes: ...
def stop(gen: int) -> bytes: ...
def command_head(cmd: bytes) -> tuple[int, int, int, int]: ...

# -- segments

class Mapping:
    size: int
    fd: int
    read_only: bool
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def read_only_fd(self) -> int: ...

def collapse(fd: int) -> int: ...
def prefer_node(fd: int, at: int, size: int, node: int) -> str: ...

class Area(Mapping):
    huge: bool
    note: str
    @staticmethod
    def create(sizes: Sizes, hugepages: str = "auto", nodes: Sequence[int | None] = ()) -> Area: ...
    @staticmethod
    def adopt(fd: int, sizes: Sizes, huge: bool = False) -> Area: ...
    @property
    def address(self) -> int: ...
    @property
    def frame_bytes(self) -> int: ...
    def ledger(self, worker: int) -> dict[tuple[int, int], int]: ...
    def free_frames(self, worker: int) -> list[int]: ...

class WorkerSegment(Mapping):
    wake_fd: int
    @staticmethod
    def create(sizes: Sizes, worker: int, node: int | None = None) -> WorkerSegment: ...
    @staticmethod
    def adopt(fd: int, sizes: Sizes | None = None, read_only: bool = False) -> WorkerSegment: ...
    @property
    def sizes(self) -> Sizes: ...
    @property
    def worker(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def state(self) -> int: ...
    @property
    def heartbeat_ns(self) -> int: ...
    @property
    def gen_applied(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    def set_starting(self, now_ns: int, again: bool) -> None: ...
    def ctl(self) -> dict[str, Any]: ...
    def counters(self) -> dict[str, Any]: ...
    def queue(self, iface: int) -> dict[str, int]: ...
    def service_stats(self, id: int) -> SvcStatTuple: ...
    def dest_stats(self, id: int) -> SvcStatTuple: ...
    def dest_condition(self, id: int) -> tuple[int, bool]: ...
    def dest_conditions(self) -> list[tuple[int, int, bool]]: ...
    def lip_stats(self, id: int) -> LipStatTuple: ...
    def service_stats_all(self) -> list[SvcStatTuple]: ...
    def dest_stats_all(self) -> list[SvcStatTuple]: ...
    def lip_stats_all(self) -> list[LipStatTuple]: ...
    def services(self) -> list[tuple[int, dict[str, Any]]]: ...
    def dests(self) -> list[tuple[int, dict[str, Any]]]: ...
    def lips(self) -> list[tuple[int, dict[str, Any]]]: ...
    def tunnels(self) -> list[tuple[int, bytes, bytes, int, int, int]]: ...
    def ifaces(self) -> list[tuple[int, dict[str, Any]]]: ...
    def neighbours(self) -> list[tuple[int, dict[str, Any]]]: ...
    def routes(self) -> list[tuple[int, dict[str, Any]]]: ...
    def reset_ring(self, name: str) -> None: ...
    def push(self, cmd: bytes) -> bool: ...
    def wake(self) -> None: ...
    def pending(self) -> int: ...
    def quiet(self) -> bool: ...
    def pending_commands(self) -> list[bytes]: ...
    def pop_events(self, max: int = 64) -> list[dict[str, Any]]: ...
    def pop_capture(self, max: int = 64) -> list[tuple[dict[str, int], bytes]]: ...
    def pop_slow(self, max: int = 64) -> list[tuple[dict[str, int], bytes]]: ...
    def ring_stats(self) -> dict[str, tuple[int, int]]: ...
    def broken_rings(self) -> list[str]: ...

class HostSegment(Mapping):
    @staticmethod
    def create(sizes: Sizes) -> HostSegment: ...
    @staticmethod
    def adopt(fd: int, sizes: Sizes | None = None, read_only: bool = False) -> HostSegment: ...
    @property
    def sizes(self) -> Sizes: ...
    def ctl(self) -> dict[str, Any]: ...
    def write_table(self, off: int, values: Sequence[int]) -> None: ...
    def read_table(self, off: int, n: int) -> list[int]: ...
    def copy_tables(self, other: HostSegment) -> None: ...
    def set_taken(self) -> None: ...
    def templates(self, limit: int) -> list[dict[str, Any]]: ...
    def set_owner(
        self, workers: Sequence[int], keep_previous: bool = True, rss: tuple[bytes, bool, bool] | None = None
    ) -> None: ...
    def retire_previous(self) -> None: ...
    def owners(self) -> tuple[list[int], list[int] | None]: ...
    def set_hash_key(self, key: bytes) -> None: ...
    def set_rss(self, key: bytes, known: bool, udp_ports: bool) -> None: ...
    def set_stopping(self, stopping: bool) -> None: ...

class WorkerEnd:
    def __init__(self, segment: WorkerSegment) -> None: ...
    def publish(
        self,
        *,
        state: int | None = None,
        pid: int | None = None,
        heartbeat_ns: int | None = None,
        gen_applied: int | None = None,
        sleeping: int | None = None,
    ) -> None: ...
    def next_command(self) -> bytes | None: ...
    def done(self) -> None: ...
    def emit(
        self, op: int, *, id: int = 0, value: int = 0, af: int = 0, addr: bytes = b"", iface: int = 0
    ) -> bool: ...
    def emit_packet(
        self,
        ring: str,
        packet: bytes,
        *,
        caplen: int | None = None,
        iface: int = 0,
        point: int = 0,
        reason: int = 0,
        ts_ns: int = 0,
    ) -> bool: ...
