# SPDX-License-Identifier: Apache-2.0
"""The packet engine's two lives: `Worker`, over shared segments and AF_XDP sockets, and `Engine`, over private memory.

`Worker.run` polls without the GIL (lbd/loop/turn.pxd) until the master's CMD_STOP. `Engine.process` runs the same engine_burst
on packets given as bytes: replay, tests, the fuzzer and benchmarks see exactly what the daemon does. Typed in _fastpath.pyi.
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.errno cimport errno
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close, getpid

from lbd.datapath.command cimport Cmd
from lbd.datapath.command_apply cimport command_apply, lip_refresh, service_refresh
from lbd.datapath.conn cimport (BUCKET_FILL_X100, BUCKET_SPARE, CONN_RESTING, Bucket, Conn4, Conn6, ConnCold, ConnCommon,
                                ConnTable, conn4, conn6, conn_common, conn_mode, conn_server)
from lbd.datapath.connfile cimport Merged, conn_file_attach, conn_file_bytes, conn_file_merge, conn_map_all
from lbd.datapath.ending cimport ending_next
from lbd.datapath.chain cimport CHAIN_HEAD, pkt_copy
from lbd.datapath.engine cimport CHAIN_MAX, Chain, ConnExt, EXT_FREE, EXT_SHARE, Engine as CEngine
from lbd.datapath.frag cimport FRAG_ENTRIES, FRAG_HELD, HELD_ROOM, frag_bytes, frag_clear, frag_map
from lbd.datapath.frag_held cimport frag_piece, frag_ready, frag_take
from lbd.datapath.hdr cimport PROTO_SCTP
from lbd.datapath.kept cimport KEPT_NAME, Kept, template_return, templates_keep
from lbd.datapath.lifetime cimport engine_expire
from lbd.datapath.count cimport Counters
from lbd.datapath.fib cimport FIB_MAX, ROUTE_USED, Route
from lbd.datapath.hdr cimport VLAN_HLEN, GueHdr, Ip6Hdr, UdpHdr
from lbd.datapath.neigh cimport Adj, Iface
from lbd.datapath.persist cimport template_carry, template_recover
from lbd.datapath.pipeline cimport engine_burst
from lbd.datapath.pkt cimport BURST_MAX, FRAME_SLACK, IFACE_MAX, PKT_HANDED, PKT_ROUTED, Pkt
from lbd.datapath.reason cimport VERDICT_CONSUME, VERDICT_FORWARD, VERDICT_HANDOVER
from lbd.datapath.snat cimport conn_is_snat
from lbd.datapath.svc cimport (MODE_DR, MODE_FULLNAT, MODE_NAT, MODE_NAT64, MODE_TUNNEL, DEST_NONE, SVC_NONE, Dest, Lip,
                               LipStat, Svc, SvcStat)
from lbd.datapath.tunnel_end cimport TUNNEL_MAX, TunnelEnd
from lbd.datapath.tcp cimport (STATE_CLOSE, STATE_CLOSE_WAIT, STATE_COUNT, STATE_ESTABLISHED, STATE_FIN_WAIT, STATE_LAST_ACK,
                               STATE_NONE, STATE_SYN_RECV, STATE_TIME_WAIT, STATE_UDP, STATE_UDP_ONEWAY, STATE_ICMP,
                               TIMEOUT_SCTP_ESTABLISHED, TIMEOUT_SCTP_SHUTDOWN, timeout_of)
from lbd.datapath.taken cimport taken_mark
from lbd.datapath.template cimport Template
from lbd.loop.epoch cimport owner_read
from lbd.loop.repair cimport repair
from lbd.loop.state cimport (Loop, NO_WORKER, POLL_ADAPTIVE, lbd_monotonic, lbd_store32_release)
from lbd.loop.turn cimport tell, owner_refresh, turn_commands, turn_publish, loop_watch_all, worker_loop as c_worker_loop
from lbd.shm.attach cimport (RETURN_ENTRY, area_ledger_off, hand_ring_off, host_check, host_init, host_layout_compute,
                             layout_compute, return_ring_off, segment_check, segment_init, sizes_fault, svc_hash_buckets)
from lbd.shm.huge cimport huge_map, huge_zeroed
from lbd.shm.layout cimport (CAPTURE_SLOT, CHUNK, CHUNK_SHIFT, EVT_RUNNING, FRAME_WORK, Ctl, Evt, Hand, HostCtl, QueueStat, Sizes,
                             WORKER_ATTACHING, WORKER_RUNNING, WORKER_STOPPED)
from lbd.shm.ring cimport lbd_ring_attach, lbd_ring_bytes, lbd_ring_end, lbd_ring_wake_word
from lbd.xdp.port cimport Port, port_map, port_unmap

import os

from lbd.datapath.reason import NAMES

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)

cdef extern from "<sys/mman.h>" nogil:
    int MAP_POPULATE

cdef extern from * nogil:
    """
    #define lbd_static_assert(what) do { _Static_assert((what), "layout"); } while (0)
    """
    void lbd_static_assert(bint) noexcept


cdef inline void layout_promises() noexcept nogil:
    """Checked by the C compiler. 128 bytes per established IPv4 connection, all told: record, cold part, free list,
    its share of the extensions, both index entries."""
    lbd_static_assert(sizeof(Conn4) == 64)
    lbd_static_assert(sizeof(Conn6) == 128)
    lbd_static_assert(sizeof(Bucket) == 64)
    lbd_static_assert(sizeof(Pkt) == 64)
    lbd_static_assert(sizeof(Svc) == 128)
    lbd_static_assert(sizeof(Dest) == 80)
    lbd_static_assert(sizeof(Template) == 32)
    lbd_static_assert(sizeof(Cmd) == 128)
    lbd_static_assert(sizeof(Evt) == 64)
    lbd_static_assert(sizeof(Hand) == 16)
    # the most that a packet grows by: two tags, and IPv6 and GUE around it
    lbd_static_assert(2 * VLAN_HLEN + sizeof(Ip6Hdr) + sizeof(UdpHdr) + sizeof(GueHdr) <= FRAME_SLACK)
    lbd_static_assert(sizeof(ConnExt) == 2 * EXT_SHARE)
    lbd_static_assert((sizeof(Conn4) + sizeof(ConnCold) + sizeof(uint32_t) + 2) * BUCKET_FILL_X100 * BUCKET_SPARE
                      + 2 * sizeof(Bucket) * 100 * (BUCKET_SPARE + 1) <= 128 * BUCKET_FILL_X100 * BUCKET_SPARE)


STATE_NAMES = ("NONE", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "FIN_WAIT", "TIME_WAIT", "CLOSE", "UDP", "UDP",
               "ICMP")
SCTP_STATE_NAMES = ("NONE", "INIT", "ESTABLISHED", "SHUTDOWN_RECEIVED", "SHUTDOWN_ACK_SENT", "SHUTDOWN_SENT", "TIME_WAIT", "CLOSED",
                    "UDP", "UDP", "ICMP")      # as the real server sees it, which is how IPVS names them
MODE_NAMES = {MODE_FULLNAT: "fullnat", MODE_NAT: "nat", MODE_DR: "dr", MODE_NAT64: "nat64", MODE_TUNNEL: "tunnel"}
VERDICTS = ("drop", "forward", "kernel", "consume", "handover", "hold")
SIZE_FIELDS = ("workers", "services", "dests", "lips", "conns4", "conns6", "frames", "arena", "cmd_ring", "evt_ring",
               "capture_ring", "hand_ring", "templates", "frame_size", "chains")


# The symbol that the purity test disassembles: everything the loop does is inlined below it.
cdef public int worker_loop_run(void *loop) noexcept nogil:
    layout_promises()
    c_worker_loop(<Loop *> loop)
    return 0


cdef Sizes sizes_of(dict d) except *:
    cdef Sizes s
    memset(&s, 0, sizeof(Sizes))
    unknown = set(d) ^ set(SIZE_FIELDS)
    if unknown:
        raise ValueError("sizes: missing or unknown: " + ", ".join(sorted(unknown)))
    s.workers, s.services, s.dests, s.lips = d["workers"], d["services"], d["dests"], d["lips"]
    s.conns4, s.conns6, s.frames, s.arena = d["conns4"], d["conns6"], d["frames"], d["arena"]
    s.cmd_ring, s.evt_ring, s.capture_ring, s.hand_ring = d["cmd_ring"], d["evt_ring"], d["capture_ring"], d["hand_ring"]
    s.templates, s.frame_size, s.chains = d["templates"], d["frame_size"], d["chains"]
    if sizes_fault(&s) != NULL:
        raise ValueError("sizes: " + sizes_fault(&s).decode())
    return s


def conn_bytes(sizes: dict) -> int:
    """Bytes of a worker's connection file."""
    return conn_file_bytes(sizes["conns4"], sizes["conns6"])


def conn_record_bytes() -> dict:
    """Bytes of memory per connection, all told, by address family."""
    index = 2.0 * 64 * 100 / BUCKET_FILL_X100 * (1 + 1.0 / BUCKET_SPARE)
    rest = sizeof(ConnCold) + sizeof(uint32_t) + index + 1.0 * sizeof(ConnExt) / EXT_SHARE
    return {4: sizeof(Conn4) + rest, 6: sizeof(Conn6) + rest}


cdef uint32_t frame_shift(uint32_t frame_size) noexcept nogil:
    return <uint32_t> CHUNK_SHIFT + (frame_size != CHUNK)


cdef bytes boot_id():
    with open("/proc/sys/kernel/random/boot_id") as f:
        return bytes.fromhex(f.read().strip().replace("-", ""))


cdef void engine_defaults(CEngine *e) noexcept nogil:
    """Timeouts until the master says otherwise, in ms: IPVS's, but for TIME_WAIT (Linux servers hold it 60 s)."""
    e.timeout[<int> STATE_NONE] = 2000
    e.port_rest = 1000
    e.timeout[<int> STATE_SYN_RECV] = 60000
    e.timeout[<int> STATE_ESTABLISHED] = 900000
    e.timeout[<int> STATE_CLOSE_WAIT] = 60000
    e.timeout[<int> STATE_LAST_ACK] = 30000
    e.timeout[<int> STATE_FIN_WAIT] = 120000
    e.timeout[<int> STATE_TIME_WAIT] = 60000
    e.timeout[<int> STATE_CLOSE] = 10000
    e.timeout[<int> STATE_UDP] = 300000
    e.timeout[<int> STATE_UDP_ONEWAY] = 300000
    e.timeout[<int> TIMEOUT_SCTP_ESTABLISHED] = 900000
    e.timeout[<int> TIMEOUT_SCTP_SHUTDOWN] = 60000
    e.timeout[<int> STATE_ICMP] = 60000
    e.icmp_bucket.rate = 1000
    e.kernel_bucket.rate = 1000
    e.frag_timeout = 30000


cdef void engine_over(CEngine *e, uint8_t *seg, uint8_t *host, uint32_t worker) noexcept nogil:
    """Points the engine at the tables of a worker segment and a host segment."""
    cdef Ctl *c = <Ctl *> seg
    cdef HostCtl *h = <HostCtl *> host
    cdef uint32_t i
    memset(e, 0, sizeof(CEngine))
    e.svc = <Svc *> (seg + c.off_svc)
    e.svc_stat = <SvcStat *> (seg + c.off_svc_stat)
    e.svc_hash = <uint32_t *> (seg + c.off_svc_hash)
    e.dest = <Dest *> (seg + c.off_dest)
    e.dest_stat = <SvcStat *> (seg + c.off_dest_stat)
    e.lip = <Lip *> (seg + c.off_lip)
    e.lip_stat = <LipStat *> (seg + c.off_lip_stat)
    e.iface = <Iface *> (seg + c.off_iface)
    e.adj = <Adj *> (seg + c.off_adj)
    e.adj_hash = <uint32_t *> (seg + c.off_adj_hash)
    e.route = <Route *> (seg + c.off_route)
    e.route_hash = <uint32_t *> (seg + c.off_route_hash)
    e.tunnel = <TunnelEnd *> (seg + c.off_tunnel)
    e.count = <Counters *> (seg + c.off_counters)
    e.fib_gen = &c.fib_gen
    e.arena = <uint32_t *> (host + h.off_arena)
    e.owner = host + h.off_owner
    e.template = <Template *> (host + h.off_template)
    e.max_template = c.sizes.templates
    e.taken = host + h.off_taken
    e.hash_key = h.hash_key
    e.rss_key = h.rss_key
    e.max_svc = c.sizes.services
    e.max_dest = c.sizes.dests
    e.max_lip = c.sizes.lips
    e.svc_hash_mask = svc_hash_buckets(&c.sizes) - 1
    e.arena_slots = c.sizes.arena
    e.worker = worker
    e.workers = c.sizes.workers
    owner_read(e, h)
    engine_defaults(e)
    for i in range(FIB_MAX):
        if e.route[i].flags & ROUTE_USED:
            if e.route[i].af == 4:
                e.plen4[e.route[i].plen] += 1
            else:
                e.plen6[e.route[i].plen] += 1
    lip_refresh(e)
    service_refresh(e)


cdef tuple endpoint(const uint8_t *addr, int af, uint16_t port):
    return (<bytes> addr[:4 if af == 4 else 16], ((port & 0xff) << 8) | (port >> 8))


cdef dict conn_dict(CEngine *e, uint32_t i, int af, uint32_t now_ms):
    cdef ConnCommon *c
    cdef Conn4 *a
    cdef Conn6 *b
    cdef uint8_t server[16]
    if af == 4:
        c = conn_common(&e.t4, i, 4)
        a = conn4(&e.t4, i)
        ends = {"client": endpoint(<uint8_t *> &a.caddr, 4, a.cport), "virtual": endpoint(<uint8_t *> &a.vaddr, 4, a.vport),
                "local": endpoint(<uint8_t *> &a.laddr, 4, a.lport), "real_server": endpoint(<uint8_t *> &a.daddr, 4, a.dport)}
    else:
        c = conn_common(&e.t6, i, 6)
        b = conn6(&e.t6, i)
        ends = {"client": endpoint(b.caddr, 6, b.cport), "virtual": endpoint(b.vaddr, 6, b.vport),
                "local": endpoint(b.laddr, 6, b.lport), "real_server": endpoint(b.daddr, 6, b.dport)}
    if conn_mode(c) == MODE_NAT64:              # in mapped form
        ends["local"] = (ends["local"][0][12:], ends["local"][1])
    snat = conn_is_snat(&e.t4, i, 4) if af == 4 else conn_is_snat(&e.t6, i, 6)
    daf = conn_server(&e.t4 if af == 4 else &e.t6, i, server, af)
    ends.update(
        real_server=(<bytes> server[:4 if daf == 4 else 16], ends["real_server"][1]),
        mode="snat" if snat else MODE_NAMES.get(conn_mode(c), "?"),
        resting=c.live == CONN_RESTING, proto=c.proto,
        state=(SCTP_STATE_NAMES if c.proto == PROTO_SCTP else STATE_NAMES)[c.state if c.state < STATE_COUNT else 0],
        expires_ms=<int32_t> (e.timeout[timeout_of(c.proto, c.state & 15)] - (now_ms - c.last_seen)),
        svc=c.svc if c.svc != SVC_NONE else None, dest=c.dest if c.dest != DEST_NONE else None)
    return ends


cdef list conn_list(CEngine *e, uint32_t now_ms, uint32_t limit, uint32_t svc):
    """Live records, at most `limit`; svc: of this service only, SVC_NONE: of all."""
    cdef uint32_t i
    cdef ConnCommon *c
    cdef ConnTable *t
    out = []
    for af in (4, 6):
        t = &e.t4 if af == 4 else &e.t6
        for i in range(t.capacity):
            c = conn_common(t, i, 4) if af == 4 else conn_common(t, i, 6)
            if c.live != 0 and (svc == SVC_NONE or c.svc == svc):
                if len(out) == limit:
                    return out
                out.append(conn_dict(e, i, af, now_ms))
    return out


cdef class Mapped:
    """A shared file by its descriptor, for as long as this is there. Raises OSError if it can't be mapped, or has fewer than
    `least` bytes."""
    cdef uint8_t *base
    cdef uint64_t bytes

    def __cinit__(self, int fd, str what, uint64_t least=0, bint write=False):
        cdef void *at
        self.bytes = os.fstat(fd).st_size
        if self.bytes < least:
            raise OSError(f"{what} is shorter than its tables")
        at = mmap(NULL, self.bytes, PROT_READ | PROT_WRITE if write else PROT_READ, MAP_SHARED, fd, 0)
        if at == MAP_FAILED:
            raise OSError(f"{what}: mmap failed")
        self.base = <uint8_t *> at

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.bytes)


cdef Mapped conn_file(int fd, dict sizes, bint write=False):
    return Mapped(fd, "connection file", conn_file_bytes(sizes["conns4"], sizes["conns6"]), write)


def connections(fd: int, sizes: dict, limit: int = 1000, svc: int | None = None, timeouts: dict | None = None) -> list:
    """A worker's connections as its file shows them, while the worker goes on: for listings, not for decisions.

    timeouts: state number → ms, where they differ from the defaults. Raises OSError if the file can't be mapped."""
    cdef Mapped file = conn_file(fd, sizes)
    cdef CEngine *e = <CEngine *> calloc(1, sizeof(CEngine))
    try:
        engine_defaults(e)
        for state, ms in (timeouts or {}).items():
            e.timeout[<uint32_t> state & 15] = ms
        conn_map_all(e, file.base, sizes["conns4"], sizes["conns6"], NULL)
        return conn_list(e, <uint32_t> (lbd_monotonic() // 1000000), limit, SVC_NONE if svc is None else svc)
    finally:
        free(e)


def conn_merge(into: int, gone: int, sizes: dict) -> tuple:
    """Moves the connections of one worker's file (`gone`) into another's (`into`), while neither worker runs: those moved, and
    those that found no room. Raises OSError if a file can't be mapped."""
    cdef Mapped to = conn_file(into, sizes, True), other = conn_file(gone, sizes, True)
    cdef bytes boot = boot_id()
    cdef uint32_t conns4 = sizes["conns4"], conns6 = sizes["conns6"]
    cdef CEngine *e = <CEngine *> calloc(2, sizeof(CEngine))
    cdef Merged m = conn_file_merge(e, to.base, e + 1, other.base, boot, conns4, conns6)
    free(e)
    return m.moved, m.left


def conn_mark(conn: int, host: int, sizes: dict) -> None:
    """Sets the bits of taken.pxd in a host segment (by descriptor, with its hash key) for a worker's connections. Raises OSError if
    one can't be mapped."""
    cdef Mapped file = conn_file(conn, sizes), segment = Mapped(host, "host segment", 0, True)
    cdef uint32_t conns4 = sizes["conns4"], conns6 = sizes["conns6"]
    cdef CEngine *e = <CEngine *> calloc(1, sizeof(CEngine))
    mark_all(e, file.base, segment.base, conns4, conns6)
    free(e)


def templates_carry(into: int, gone: int) -> None:
    """The persistence templates of one host segment (by descriptor) into another one, which has none and its hash key, for as many
    workers as that is made for; no worker runs. Raises OSError if one can't be mapped."""
    cdef Mapped to = Mapped(into, "host segment", 0, True), other = Mapped(gone, "host segment")
    carry_all(to.base, other.base)


cdef void carry_all(uint8_t *into, const uint8_t *gone):
    cdef const HostCtl *g = <const HostCtl *> gone
    cdef CEngine *e = <CEngine *> calloc(1, sizeof(CEngine))
    template_tables(e, into)
    template_carry(e, <const Template *> (gone + g.off_template), <uint64_t> g.sizes.workers * g.sizes.templates)
    free(e)


def templates_kept(segment: int, host: int) -> bytearray | None:
    """All persistence templates of a host segment that last still, 64 bytes each (kept.pxd), by the tables of a worker's segment
    (both by descriptor), while workers go on or when they have ended. None: that worker is in the midst of a batch of commands, or
    had none yet, so that its tables don't say what is configured. Raises OSError if one can't be mapped."""
    cdef Mapped tables = Mapped(segment, "worker segment", sizeof(Ctl)), shared = Mapped(host, "host segment", sizeof(HostCtl))
    cdef Ctl *c = <Ctl *> tables.base
    cdef CEngine *e = <CEngine *> calloc(1, sizeof(CEngine))
    try:
        if not c.gen_applied & 1:               # odd: a batch's end (reconcile.py)
            return None
        template_tables(e, shared.base)
        e.svc = <Svc *> (tables.base + c.off_svc)
        e.dest = <Dest *> (tables.base + c.off_dest)
        e.max_svc, e.max_dest = c.sizes.services, c.sizes.dests
        return pack_templates(e)
    finally:
        free(e)


def templates_return(host: int, kept: bytes, numbers: dict) -> int:
    """What templates_kept gave into a host segment of now, which has its hash key and none; before the first worker runs. numbers:
    the first KEPT_NAME bytes → (service, real server); those of others are left out. How many found their place."""
    cdef Mapped shared = Mapped(host, "host segment", sizeof(HostCtl), True)
    cdef CEngine *e = <CEngine *> calloc(1, sizeof(CEngine))
    try:
        template_tables(e, shared.base)
        return unpack_templates(e, kept, numbers)
    finally:
        free(e)


cdef void template_tables(CEngine *e, uint8_t *host):
    cdef HostCtl *h = <HostCtl *> host
    e.template = <Template *> (host + h.off_template)
    e.max_template = h.sizes.templates
    e.workers = h.sizes.workers
    e.hash_key = h.hash_key
    e.now_ns = lbd_monotonic()


cdef bytearray pack_templates(CEngine *e):
    """Once in memory, however many they are."""
    cdef uint64_t i, n = 0
    cdef bytearray rows
    cdef Kept *to
    with nogil:
        for i in range(<uint64_t> e.workers * e.max_template):
            n += e.template[i].svc != 0
    rows = bytearray(n * sizeof(Kept))
    to = <Kept *> <char *> rows
    with nogil:
        n = templates_keep(e, to, n)
    del rows[n * sizeof(Kept):]
    return rows


cdef uint64_t unpack_templates(CEngine *e, bytes kept, dict numbers) except? 0:
    cdef const char *at = kept
    cdef uint64_t i, n = 0
    for i in range(len(kept) // sizeof(Kept)):
        found = numbers.get(at[i * sizeof(Kept):i * sizeof(Kept) + KEPT_NAME])
        if found is not None:
            n += template_return(e, <const Kept *> (at + i * sizeof(Kept)), found[0], found[1])
    return n


cdef void mark_all(CEngine *e, void *base, uint8_t *host, uint32_t conns4, uint32_t conns6) noexcept nogil:
    cdef HostCtl *h = <HostCtl *> host
    conn_map_all(e, base, conns4, conns6, h.hash_key)
    taken_mark(host + h.off_taken, &e.t4, h.hash_key, 4)
    taken_mark(host + h.off_taken, &e.t6, h.hash_key, 6)


cdef dict counters_dict(CEngine *e):
    c = e.count
    return {
        "drops": {name: c.drops[i] for i, name in enumerate(NAMES) if c.drops[i]},
        "consumed": {name: c.consumed[i] for i, name in enumerate(NAMES) if c.consumed[i]},
        "verdicts": {name: c.verdicts[i] for i, name in enumerate(VERDICTS)},
        "conns_made": c.conns_made, "conns_expired": [c.conns_expired[i] for i in range(6)],
        "misplaced": c.misplaced, "handed_out": c.handed_out, "handed_in": c.handed_in,
        "templates": c.templates, "templates_evicted": c.templates_evicted, "templates_asked": c.templates_asked,
        "icmp_sent": c.icmp_sent, "resets_sent": c.resets_sent, "icmp_mapped": c.icmp_mapped, "bad_commands": c.bad_commands,
        "frag_forwarded": c.frag_forwarded, "frag_held": c.frag_held, "frag_expired": c.frag_expired,
        "frag_evicted": c.frag_evicted,
        "quic_by_id": c.quic_by_id, "quic_unknown": c.quic_unknown, "quic_no_id": c.quic_no_id,
    }


cdef class Result:
    """What became of one packet."""
    cdef readonly str verdict       # forward drop kernel consume handover
    cdef readonly str reason
    cdef readonly object svc        # numbers, or None
    cdef readonly object dest
    cdef readonly list out          # (iface, bytes) of what left
    cdef readonly int owner         # handover: the worker it belongs to
    cdef readonly int flags         # PktFlag and hops so far, for that one
    cdef readonly int hops
    cdef readonly object hand       # and what is said with it (Engine.hand)

    def __repr__(self):
        return f"Result({self.verdict}, {self.reason}, svc={self.svc}, dest={self.dest}, out={len(self.out)})"


cdef class Engine:
    """The engine over private memory. Frames are copied to blocks of exactly their size plus the slack that AF_XDP guarantees too,
    so
    that a sanitizer sees every byte read beyond a packet."""
    def __cinit__(self, sizes: dict, worker: int = 0, hash_key: bytes = b"lbd offline engine: a fixed key.",
                  fast: bool = True, frags: tuple = (FRAG_ENTRIES, FRAG_HELD)):
        """fast: False sends every packet the general way; the outcome must be the same (lbd/datapath/fast.pxd). frags: datagrams in
        fragments that are followed at once, and fragments that are held."""
        cdef Sizes s = sizes_of(sizes)
        cdef Ctl ctl
        cdef HostCtl host
        cdef uint64_t n
        self.sizes = dict(sizes)
        memset(&host, 0, sizeof(HostCtl))
        layout_compute(&s, &ctl)
        host_layout_compute(&s, &host)
        n = conn_file_bytes(s.conns4, s.conns6)
        self.e = <CEngine *> aligned_alloc(64, (sizeof(CEngine) + 63) & ~63)
        self.seg = <uint8_t *> huge_zeroed(ctl.bytes)
        self.host = <uint8_t *> huge_zeroed(host.bytes)
        self.conn = huge_zeroed(n)
        self.frags = calloc(1, frag_bytes(frags[0], frags[1]))
        if self.e == NULL or self.seg == NULL or self.host == NULL or self.conn == NULL or self.frags == NULL:
            raise MemoryError()
        segment_init(self.seg, ctl.bytes, &s, worker)
        host_init(self.host, host.bytes, &s)
        memcpy((<HostCtl *> self.host).hash_key, <const uint8_t *> hash_key, 32)
        for i in range(1024):
            self.host[(<HostCtl *> self.host).off_owner + i] = i % s.workers
            self.host[(<HostCtl *> self.host).off_owner + 1024 + i] = i % s.workers
        engine_over(self.e, self.seg, self.host, worker)
        self.e.fast_off = not fast
        self.e.frags = frag_map(self.frags, frags[0], frags[1])
        conn_file_attach(self.e, self.conn, boot_id(), s.conns4, s.conns6, True)

    def __dealloc__(self):
        free(self.e)
        free(self.seg)
        free(self.host)
        free(self.conn)
        free(self.frags)

    def apply(self, cmd: bytes) -> bool:
        """One command record; False if the engine refuses it."""
        cdef Cmd c
        if len(cmd) != sizeof(Cmd):
            raise ValueError(f"a command has {sizeof(Cmd)} bytes, not {len(cmd)}")
        memcpy(&c, <const uint8_t *> cmd, sizeof(Cmd))
        return command_apply(self.e, &c)

    def set_table(self, off: int, slots: list) -> None:
        """Writes a scheduling table into the arena."""
        if off < 0 or off + len(slots) > self.e.arena_slots:
            raise ValueError("table beyond the arena")
        for i, d in enumerate(slots):
            self.e.arena[off + i] = d

    def set_rss(self, key: bytes, udp_ports: bool = False, age: int = 0) -> None:
        """From now on owners are what a NIC with this Toeplitz key computes. age 1: they were so by the table before."""
        cdef bytes padded = key.ljust(64, b"\0")
        cdef uint32_t at = <uint32_t> bool(age)
        memcpy((<HostCtl *> self.host).rss_key + 64 * at, <const uint8_t *> padded, 64)
        self.e.rss_known[at] = 1
        self.e.rss_udp_ports[at] = udp_ports

    def set_owner(self, workers: list, previous: list | None = None) -> None:
        """Who owns which of the 1024 buckets; previous: the table before this one, asked on a miss too."""
        if len(workers) != 1024 or (previous is not None and len(previous) != 1024):
            raise ValueError("an owner table has 1024 buckets")
        for epoch, table in enumerate((workers, previous or workers)):
            for i, w in enumerate(table):
                self.e.owner[epoch * 1024 + i] = w
        self.e.owner_prev_valid = previous is not None

    cdef bytes content(self, void *pkt):
        """All of a packet."""
        cdef Pkt *p = <Pkt *> pkt
        cdef bytearray all = bytearray(p.len)
        pkt_copy(self.e, p, 0, p.len, <uint8_t *> all)
        return bytes(all)

    cdef object result(self, void *pkt):
        cdef Pkt *p = <Pkt *> pkt
        cdef Result r = Result.__new__(Result)
        r.verdict = VERDICTS[p.verdict]
        r.reason = NAMES[p.reason]
        r.svc = p.svc if p.svc != SVC_NONE else None
        r.dest = p.dest if p.dest != DEST_NONE else None
        r.owner = p.owner
        r.flags = p.flags
        r.hops = p.hops
        r.hand = 0
        r.out = []
        if p.verdict == VERDICT_FORWARD or p.verdict == VERDICT_CONSUME:
            r.out.append((p.ifout, self.content(p)))
        return r

    cdef int place(self, Pkt *p, uint32_t i, const uint8_t *data, uint32_t n, uint32_t cut) except -1:
        """n bytes into blocks of memory of their own: the i-th packet of a burst, in frames of `cut` bytes (0: in one)."""
        cdef Chain *c = self.e.chain + i
        cdef uint32_t at = n if cut == 0 or n < cut else cut
        p.data = <uint8_t *> malloc(FRAME_SLACK + at)
        if p.data == NULL:
            raise MemoryError()
        p.frame = <uint64_t> p.data         # the block, until the packet is processed
        p.data += FRAME_SLACK
        memcpy(p.data, data, at)
        p.len = n
        c.n = 0
        if at == n:
            return 0
        c.end = p.data + at
        p.chain = i + 1
        while at < n:
            c.len[c.n] = n - at if n - at < cut else cut
            c.data[c.n] = <uint8_t *> malloc(c.len[c.n])
            if c.data[c.n] == NULL:
                raise MemoryError()
            memcpy(c.data[c.n], data + at, c.len[c.n])
            at += c.len[c.n]
            c.n += 1
        return 0

    def process(self, frames, now_ns: int, handed: bool = False, hops: int = 0, flags: int = 0, number: int = 0,
                hand: int = 0, cut: int = 0) -> list:
        """frames: (bytes, iface) each, at most 64: one burst at this time. Returns a Result for each. The verdict `hold` is not the
        last word: see `released`, to be called after each burst. handed, hops, flags, hand: as the worker before said (Result);
        number: of the first one, `released` tells it. cut: what is longer lies in several AF_XDP frames of so many bytes."""
        cdef Pkt pkt[64]
        cdef uint8_t *block[64]
        cdef uint32_t n = len(frames)
        cdef uint32_t i, k
        if cut and not CHAIN_HEAD <= cut <= 65535:
            raise ValueError(f"the first of several frames holds at least {CHAIN_HEAD} bytes")
        if n > BURST_MAX:
            raise ValueError("a burst has at most 64 packets")
        memset(pkt, 0, sizeof(pkt))
        for data, iface in frames:
            if type(data) is not bytes or len(data) > 65535 or not 0 <= iface < IFACE_MAX:
                raise ValueError("a frame that is no bytes or too long, or no such interface")
            if cut and len(data) > cut * CHAIN_MAX:
                raise ValueError(f"a packet has {CHAIN_MAX} frames at most")
        for i in range(n):
            data, iface = frames[i]
            self.place(&pkt[i], i, <const uint8_t *> data, len(data), cut)
            block[i] = <uint8_t *> pkt[i].frame
            pkt[i].ifin = iface
            pkt[i].flags = (flags & PKT_ROUTED) | (PKT_HANDED if handed else 0)
            pkt[i].hops = hops
            pkt[i].frame = <uint64_t> number + i
            self.e.hand[i] = hand
        engine_burst(self.e, pkt, n, now_ns)
        out = [self.result(&pkt[i]) for i in range(n)]
        for i in range(n):
            (<Result> out[i]).hand = self.e.hand[i] if pkt[i].verdict == VERDICT_HANDOVER else 0
            self.e.hand[i] = 0
        for i in range(n):
            free(block[i])
            for k in range(self.e.chain[i].n):
                free(self.e.chain[i].data[k])
        return out

    cdef uint32_t take(self, Pkt *pkt, uint8_t *block) noexcept:
        """A burst of fragments that were held: their number. block: room for BURST_MAX pieces."""
        cdef Chain *c
        cdef uint32_t pieces, used = 0, n = 0
        memset(pkt, 0, BURST_MAX * sizeof(Pkt))
        while True:
            pieces = frag_ready(self.e.frags)
            if pieces == 0 or used + pieces > BURST_MAX:
                return n
            pkt[n].data = block + used * (FRAME_SLACK + HELD_ROOM) + FRAME_SLACK
            frag_take(self.e.frags, &pkt[n])
            used += 1
            c = self.e.chain + n
            c.n = 0
            if pieces > 1:
                c.end = pkt[n].data + pkt[n].len
                pkt[n].chain = n + 1
            while pieces > 1:
                c.data[c.n] = block + used * (FRAME_SLACK + HELD_ROOM) + FRAME_SLACK
                c.len[c.n] = frag_piece(self.e.frags, c.data[c.n])
                pkt[n].len += c.len[c.n]
                c.n += 1
                used += 1
                pieces -= 1
            n += 1

    def released(self, now_ns: int) -> list:
        """The fragments whose first one has come meanwhile, as a burst: (number, frame, iface, Result) each, at most 64."""
        cdef Pkt pkt[64]
        cdef uint8_t *block
        cdef uint32_t i, n
        if not self.e.frags.ready:
            return []
        block = <uint8_t *> malloc(BURST_MAX * (FRAME_SLACK + HELD_ROOM))
        if block == NULL:
            raise MemoryError()
        n = self.take(pkt, block)
        frames = [(pkt[i].frame, self.content(&pkt[i]), pkt[i].ifin) for i in range(n)]
        engine_burst(self.e, pkt, n, now_ns)
        out = [(number, data, iface, self.result(&pkt[i])) for i, (number, data, iface) in enumerate(frames)]
        free(block)
        return out

    def expire(self, now_ns: int, budget: int = 1 << 20) -> None:
        engine_expire(self.e, now_ns, budget)

    def ending(self, now_ns: int, looks: int = 1 << 30) -> list:
        """What is sent as connections of drained real servers are ended: (iface, bytes) each."""
        cdef Pkt p
        cdef uint8_t room[512]
        cdef uint32_t left = looks
        self.e.now_ns = now_ns
        self.e.now_ms = <uint32_t> (<uint64_t> now_ns // 1000000)
        out = []
        while True:
            memset(&p, 0, sizeof(Pkt))
            p.data = room + 256
            if not ending_next(self.e, &p, &left):
                return out
            out.append((p.ifout, <bytes> p.data[:p.len]))

    def recover(self, now_ns: int, fresh_tables: bool = False) -> int:
        """What a new process of the same worker does: everything from the live records. Returns how many."""
        self.e.now_ms = <uint32_t> (<uint64_t> now_ns // 1000000)
        template_recover(self.e)
        return conn_file_attach(self.e, self.conn, boot_id(), self.sizes["conns4"], self.sizes["conns6"], fresh_tables)

    def take_in(self, gone: Engine) -> tuple:
        """The connections of a worker that is no more, as conn_merge has it. Then recover. `gone` is of no use any more."""
        cdef CEngine *e = <CEngine *> calloc(2, sizeof(CEngine))
        cdef Merged m
        try:
            m = conn_file_merge(e, self.conn, e + 1, gone.conn, boot_id(), self.sizes["conns4"], self.sizes["conns6"])
            return m.moved, m.left
        finally:
            free(e)

    def mark(self, others: list) -> None:
        """Before this worker starts: ports of these ones' connections, which are all that there are, may not be chosen."""
        cdef CEngine *e = <CEngine *> calloc(1, sizeof(CEngine))
        cdef Engine other
        for other in others:
            mark_all(e, other.conn, self.host, self.sizes["conns4"], self.sizes["conns6"])
        self.e.taken_valid = 1
        free(e)

    def join(self, others: dict) -> None:
        """The workers of one host, by number, this one among them: from now on they see each other's real-server statistics, and
        share the first one's persistence templates. `others` must outlive this engine."""
        cdef Engine other
        for number, other in others.items():
            if number == 0:
                self.e.template = other.e.template
            if other is not self:
                self.e.peer_dest_stat[<uint32_t> number] = other.e.dest_stat

    def carry_templates(self, gone: Engine) -> None:
        """Those that the workers of another host had, before those of this one start."""
        template_carry(self.e, gone.e.template, <uint64_t> gone.e.max_template * gone.e.workers)

    def templates_kept(self, now_ns: int) -> bytes:
        """As the function of this name."""
        self.e.now_ns = now_ns
        return bytes(pack_templates(self.e))

    def templates_return(self, kept: bytes, numbers: dict, now_ns: int) -> int:
        """As the function of this name; then recover."""
        self.e.now_ns = now_ns
        return unpack_templates(self.e, kept, numbers)

    def templates(self) -> list:
        """Persistence templates of all workers as this engine sees them: (service, real server, network)."""
        cdef uint64_t i, n = <uint64_t> self.e.max_template * self.e.workers
        cdef Template *m = self.e.template
        return [(m[i].svc - 1, m[i].dest, <bytes> m[i].net[:16]) for i in range(n) if m[i].svc]

    def conns(self, limit: int = 1 << 30) -> list:
        return conn_list(self.e, self.e.now_ms, limit, SVC_NONE)

    def counters(self) -> dict:
        return counters_dict(self.e)

    def used(self) -> dict:
        """Records in use by family, half open ones among them; extensions; fragments held."""
        return {"conns4": self.e.t4.used, "conns6": self.e.t6.used, "half_open": self.e.w4.half_open + self.e.w6.half_open,
                "extensions": sum(self.e.ext[n].ref != EXT_FREE for n in range(1, self.e.ext_n)), "held": self.e.frags.held_n}

    def service_stats(self, svc: int) -> dict:
        cdef SvcStat *s = self.e.svc_stat + <uint32_t> svc
        return {"conns": s.conns, "in_pkts": s.in_pkts, "out_pkts": s.out_pkts, "in_bytes": s.in_bytes, "out_bytes": s.out_bytes,
                "active": s.active, "inactive": s.inactive}

    def dest_stats(self, dest: int) -> dict:
        cdef SvcStat *s = self.e.dest_stat + <uint32_t> dest
        return {"conns": s.conns, "in_pkts": s.in_pkts, "out_pkts": s.out_pkts, "in_bytes": s.in_bytes, "out_bytes": s.out_bytes,
                "active": s.active, "inactive": s.inactive, "templates": s.templates}

    def lip_stats(self, lip: int) -> dict:
        cdef LipStat *s = self.e.lip_stat + <uint32_t> lip
        return {"conns": s.conns, "exhausted": s.exhausted, "in_use": s.in_use}

    def tunnel_stats(self) -> list:
        """Of the tunnels that end here, in the order of their records: (packets, octets, refused)."""
        cdef TunnelEnd *k = self.e.tunnel
        return [(k[i].packets, k[i].octets, k[i].refused) for i in range(TUNNEL_MAX) if k[i].used]

    def time(self, bursts: list) -> tuple:
        """Bursts of (frames as in `process`, now_ns), one after the other: ns spent in engine_burst alone, packets by verdict.

        All frames are written beforehand, 2 KiB apart as in a worker's area. One reading of the clock per burst is in the time."""
        cdef Pkt pkt[64]
        cdef Pkt *all = NULL
        cdef uint8_t *area = NULL
        cdef uint64_t spent = 0, start, now, end = 0
        cdef uint64_t verdicts[8]
        cdef uint32_t i, n, k = 0
        frames = [frame for burst, _ in bursts for frame in burst]
        if any(type(d) is not bytes or len(d) > 65535 or not 0 <= iface < IFACE_MAX for d, iface in frames):
            raise ValueError("a frame that is no bytes or too long, or no such interface")
        if any(len(burst) > BURST_MAX for burst, _ in bursts):
            raise ValueError("a burst has at most 64 packets")
        places = [(4 * FRAME_SLACK + len(data) + 2047) & ~2047 for data, _ in frames]   # XDP's headroom, and the frame
        all = <Pkt *> calloc(len(frames) + 1, sizeof(Pkt))
        area = <uint8_t *> aligned_alloc(2048, sum(places) + 2048)
        if all == NULL or area == NULL:
            free(all)
            free(area)
            raise MemoryError()
        for i, (data, iface) in enumerate(frames):
            all[i].data = area + end + 4 * FRAME_SLACK
            all[i].len = len(data)
            all[i].ifin = iface
            memcpy(all[i].data, <const uint8_t *> data, len(data))
            end += <uint64_t> places[i]
        memset(verdicts, 0, sizeof(verdicts))
        for burst, now in bursts:
            n = len(burst)
            memcpy(pkt, all + k, n * sizeof(Pkt))
            engine_expire(self.e, now, 1 << 20)
            start = lbd_monotonic()
            engine_burst(self.e, pkt, n, now)
            spent += lbd_monotonic() - start
            for i in range(n):
                verdicts[pkt[i].verdict] += 1
            k += n
            if self.e.frags.fresh:
                frag_clear(self.e.frags)        # what it holds is not to wait for the next pass
        free(all)
        free(area)
        return spent, {name: verdicts[i] for i, name in enumerate(VERDICTS)}


cdef class Worker:
    """One worker process's packet loop over descriptors that the master opened; see the module's documentation of `run`."""
    cdef Loop *loop
    cdef void *frags
    cdef readonly int number
    cdef list maps              # (address, length) to unmap

    def __cinit__(self, number: int, segment_fd: int, host_fd: int, area_fd: int, conn_fd: int, peers: dict, ports: list,
                  wake: dict, via: dict | None = None):
        """peers: worker → its segment's descriptor; ports: dicts of iface, ifindex, queue, fd, fill, comp, rx, tx; wake: worker →
        eventfd (own included); via: iface → a worker with a queue there, for interfaces on which this one has none."""
        cdef Ctl *c
        cdef HostCtl *h
        cdef uint32_t i, w
        self.number = number
        self.maps = []
        self.loop = <Loop *> aligned_alloc(64, (sizeof(Loop) + 63) & ~63)
        if self.loop == NULL:
            raise MemoryError()
        memset(self.loop, 0, sizeof(Loop))
        self.loop.epoll = -1
        loop = self.loop
        c = loop.ctl = <Ctl *> self.map(segment_fd, True)
        if segment_check(c, os.fstat(segment_fd).st_size, 0) != 0 or c.worker != number:
            raise ValueError("worker segment: not laid out by this version of lbd")
        h = loop.host = <HostCtl *> self.map(host_fd, True)
        if host_check(h, os.fstat(host_fd).st_size, c.layout_hash) != 0:
            raise ValueError("host segment: not laid out by this version of lbd")
        loop.worker = number
        loop.workers = c.sizes.workers
        loop.frames = c.sizes.frames
        loop.frames_total = c.sizes.frames * c.sizes.workers
        loop.frame_shift = frame_shift(c.sizes.frame_size)
        loop.area = <uint8_t *> self.map(area_fd, True)
        loop.ledger = loop.area + area_ledger_off(&c.sizes)
        engine_over(&loop.e, <uint8_t *> c, <uint8_t *> h, number)
        self.frags = calloc(1, frag_bytes(FRAG_ENTRIES, FRAG_HELD))
        if self.frags == NULL:
            raise MemoryError()
        loop.e.frags = frag_map(self.frags, FRAG_ENTRIES, FRAG_HELD)
        for w, fd in peers.items():
            if w != number:
                self.peer(w, fd)
        for i in range(16):
            loop.port[i].fd = -1
            loop.via[i] = NO_WORKER
            loop.wake_fd[i] = -1
        for iface, to in (via or {}).items():
            loop.via[<uint32_t> iface] = to
        for w, fd in wake.items():
            os.set_blocking(fd, False)
            loop.wake_fd[w] = fd
        self.rings(conn_fd)
        for d in ports:
            self.port(d)
        loop.poll_mode = c.poll_mode if c.poll_mode <= 2 else POLL_ADAPTIVE

    cdef int port(self, dict d) except -1:
        """A queue's socket, mapped."""
        cdef Loop *loop = self.loop
        cdef Ctl *c = loop.ctl
        cdef Port *p
        p = &loop.port[<uint32_t> d["iface"]]
        p.area = loop.area
        p.ledger = loop.ledger
        p.work = <uint8_t> (FRAME_WORK | self.number << 4)
        p.frames_total = loop.frames_total
        p.shift = loop.frame_shift
        p.stat = (<QueueStat *> (<uint8_t *> c + c.off_queue)) + <uint32_t> d["iface"]
        p.iface = d["iface"]
        p.ifindex = d["ifindex"]
        p.queue = d["queue"]
        rc = port_map(p, d["fd"], d["fill"], d["comp"], d["rx"], d["tx"])
        if rc != 0:
            p.fd = -1
            raise OSError(-rc, f"mapping the rings of interface {d['ifindex']} queue {d['queue']}: {os.strerror(-rc)}")
        loop.port_list[loop.port_n] = d["iface"]
        loop.port_n += 1
        return 0

    cdef void *map(self, int fd, bint write) except NULL:
        cdef uint64_t n = os.fstat(fd).st_size
        cdef void *p = huge_map(fd, n, PROT_READ | PROT_WRITE if write else PROT_READ, MAP_POPULATE)
        if p == MAP_FAILED:
            raise OSError("mmap of a shared segment failed")
        self.maps.append((<uint64_t> p, n))
        return p

    cdef int peer(self, uint32_t w, int fd) except -1:
        """Another worker's real-server statistics, for least-connection schedulers."""
        cdef Ctl *c = <Ctl *> self.map(fd, False)
        if w >= 16 or segment_check(c, os.fstat(fd).st_size, self.loop.ctl.layout_hash) != 0:
            raise ValueError("a peer's segment is not laid out by this version of lbd")
        self.loop.e.peer_dest_stat[w] = <SvcStat *> (<uint8_t *> c + c.off_dest_stat)
        return 0

    cdef int ring(self, lbd_ring_end *end, void *at, uint64_t n, uint32_t entry, bint producer, str name) except -1:
        cdef int rc = lbd_ring_attach(end, at, n, entry, producer)
        if rc != 0:
            raise ValueError(f"ring {name}: refused ({rc})")
        return 0

    cdef int rings(self, int conn_fd) except -1:
        cdef Loop *loop = self.loop
        cdef Ctl *c = loop.ctl
        cdef HostCtl *h = loop.host
        cdef uint8_t *seg = <uint8_t *> c
        cdef uint8_t *host = <uint8_t *> h
        cdef uint32_t w
        self.ring(&loop.cmd, seg + c.off_cmd, lbd_ring_bytes(sizeof(Cmd), c.sizes.cmd_ring), sizeof(Cmd), False, "command")
        self.ring(&loop.evt, seg + c.off_evt, lbd_ring_bytes(sizeof(Evt), c.sizes.evt_ring), sizeof(Evt), True, "event")
        self.ring(&loop.capture, seg + c.off_capture, lbd_ring_bytes(CAPTURE_SLOT, c.sizes.capture_ring), CAPTURE_SLOT, True,
                  "capture")
        self.ring(&loop.slow, seg + c.off_slow, lbd_ring_bytes(CAPTURE_SLOT, c.sizes.capture_ring), CAPTURE_SLOT, True, "slow path")
        lbd_ring_wake_word(&loop.cmd, &c.sleeping)
        for w in range(loop.workers):
            if w == loop.worker:
                continue
            self.ring(&loop.hand_out[w], host + hand_ring_off(h, loop.worker, w), h.hand_bytes, sizeof(Hand), True,
                      f"to worker {w}")
            self.ring(&loop.hand_in[w], host + hand_ring_off(h, w, loop.worker), h.hand_bytes, sizeof(Hand), False,
                      f"from worker {w}")
            self.ring(&loop.return_out[w], host + return_ring_off(h, loop.worker, w), h.return_bytes, RETURN_ENTRY, True,
                      f"frames to {w}")
            self.ring(&loop.return_in[w], host + return_ring_off(h, w, loop.worker), h.return_bytes, RETURN_ENTRY, False,
                      f"frames from {w}")
            lbd_ring_wake_word(&loop.hand_out[w], &h.sleeping[w])
            lbd_ring_wake_word(&loop.return_out[w], &h.sleeping[w])
            lbd_ring_wake_word(&loop.hand_in[w], &h.sleeping[loop.worker])
            lbd_ring_wake_word(&loop.return_in[w], &h.sleeping[loop.worker])
        self.map_connections(conn_fd)
        return 0

    cdef int map_connections(self, int fd) except -1:
        cdef uint64_t need = conn_file_bytes(self.loop.ctl.sizes.conns4, self.loop.ctl.sizes.conns6)
        if os.fstat(fd).st_size < need:
            raise ValueError("connection file is shorter than its tables")
        self.loop.e.t4.hot = <uint8_t *> self.map(fd, True)        # laid out by attach()
        return 0

    def attach(self) -> int:
        """Repairs what a predecessor may have left half done: connection index, frames. Returns the connections recovered."""
        cdef Loop *loop = self.loop
        cdef void *conn = loop.e.t4.hot
        cdef bytes boot = boot_id()
        cdef const uint8_t *boot_bytes = boot
        cdef uint32_t n
        cdef bint fresh
        loop.ctl.state = WORKER_ATTACHING
        loop.ctl.pid = getpid()
        loop.now = lbd_monotonic()
        loop.ctl.heartbeat_ns = loop.now
        loop.e.now_ns = loop.now
        loop.e.now_ms = <uint32_t> (loop.now // 1000000)
        fresh = loop.ctl.started_ns == 0
        with nogil:
            # A new segment: what the master has told so far, so that the records of an earlier lbd meet their services now. What
            # the ring had no room for comes later, and those records are looked up at their next packet.
            while fresh and turn_commands(loop):
                pass
            template_recover(&loop.e)
            n = conn_file_attach(&loop.e, conn, boot_bytes, loop.ctl.sizes.conns4, loop.ctl.sizes.conns6, fresh)
            loop.ctl.heartbeat_ns = lbd_monotonic()
        if repair(loop) != 0:
            raise MemoryError()
        if loop_watch_all(loop) != 0:
            raise OSError(errno, os.strerror(errno))
        loop.ctl.started_ns = loop.now
        owner_refresh(loop)
        tell(loop, EVT_RUNNING, 0, n, NULL, 0, 0)
        return n

    def run(self) -> int:
        """Polls until CMD_STOP or stop(); the GIL is free meanwhile. Returns 0."""
        cdef Loop *loop = self.loop
        cdef int rc
        lbd_store32_release(&loop.ctl.state, WORKER_RUNNING)
        with nogil:
            rc = worker_loop_run(loop)
            turn_publish(loop)
        lbd_store32_release(&loop.ctl.state, WORKER_STOPPED)
        return rc

    def stop(self) -> None:
        """From another thread: leave the loop."""
        lbd_store32_release(&self.loop.quit, 1)

    def frames(self) -> dict:
        """Ledger of this worker's partition: how many frames each kind of holder has. For tests and `lbd worker`."""
        out = [0] * 6
        for i in range(self.loop.worker * self.loop.frames, (self.loop.worker + 1) * self.loop.frames):
            out[self.loop.ledger[i] & 15] += 1
        return dict(zip(("free", "fill", "work", "tx", "hand", "home"), out))

    def __dealloc__(self):
        cdef uint32_t i
        if self.loop == NULL:
            return
        if self.loop.epoll >= 0:
            close(self.loop.epoll)
        for i in range(self.loop.port_n):
            port_unmap(&self.loop.port[self.loop.port_list[i]])
        for address, length in self.maps or ():
            munmap(<void *> <uint64_t> address, length)
        free(self.frags)
        free(self.loop)
