# SPDX-License-Identifier: Apache-2.0
"""Where everything lies in the shared segments, and whether a segment that somebody handed over may be
believed.

Scope: arithmetic only; no mapping, no descriptor, no Python. The master lays out a segment that it has just
created (`layout_compute`, `segment_init`), and whoever maps one checks it (`segment_check`) before following
an offset.

Every offset is a pure function of Sizes. So a check does not test offsets for plausibility: it computes the
layout again from the sizes in the head and demands equality, word by word. The layout hash covers Sizes and
the size of every struct, so that two builds with different structs refuse each other.

Assumes: what is written here is written before any other process has the descriptor, and is constant from
then on.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from lbd.datapath.command cimport Cmd
from lbd.datapath.fib cimport FIB_HASH, FIB_MAX, Route
from lbd.datapath.neigh cimport ADJ_HASH, ADJ_MAX, Adj, Iface, LINK_MAX
from lbd.datapath.pkt cimport IFACE_MAX, WORKER_MAX
from lbd.datapath.svc cimport Dest, Lip, LipStat, Svc, SvcStat
from lbd.datapath.taken cimport TAKEN_BITS
from lbd.datapath.template cimport Template
from lbd.datapath.tunnel_end cimport TUNNEL_MAX, TunnelEnd
from lbd.shm.layout cimport (
    CAPTURE_SLOT, CHUNK, CHUNK_LARGE, Counters, Ctl, Evt, Hand, HostCtl, OWNER_BUCKETS, QueueStat, SEG_MAGIC,
    SEG_VERSION, Sizes,
)
from lbd.shm.ring cimport lbd_ring, lbd_ring_bytes, lbd_ring_init


cdef enum:
    PAGE = 4096
    LINE = 64
    RETURN_ENTRY = 8        # entry of a return ring: frame number uint32, 4 bytes of zero

cdef enum AttachResult:
    ATTACH_OK = 0
    ATTACH_SHORT = -1       # the mapping is smaller than a head, or than what the head says
    ATTACH_MAGIC = -2       # not one of our segments, or its creation was not finished
    ATTACH_VERSION = -3     # made by another version of lbd
    ATTACH_HASH = -4        # other table sizes or other structs than the caller's
    ATTACH_SIZES = -5       # sizes outside their ranges
    ATTACH_OFFSETS = -6     # the head contradicts itself
    ATTACH_RING = -7        # the head of a ring is not what its place says

# A ring's place in a worker segment, for code that loops over them.
cdef enum:                  # RingName
    RING_CMD = 0
    RING_EVT = 1
    RING_CAPTURE = 2
    RING_SLOW = 3
    RING_NAMES = 4


# -- Sizes ---------------------------------------------------------------------------------------------------

cdef inline bint is_pow2(uint64_t n) noexcept nogil:
    return n != 0 and (n & (n - 1)) == 0


cdef inline uint64_t round_up(uint64_t n, uint64_t unit) noexcept nogil:
    return (n + unit - 1) & ~(unit - 1)


cdef inline const char *sizes_fault(const Sizes *s) noexcept nogil:
    """The first thing wrong with the sizes, as a sentence; NULL: nothing."""
    if s.workers < 1 or s.workers > WORKER_MAX:
        return b"workers must be 1..16"
    if s.services < 1 or s.services > 65535 or s.dests < 1 or s.dests > 65535 or s.lips < 1 or s.lips > 65535:
        return b"services, dests and lips must be 1..65535: their numbers have 16 bits"
    if s.conns4 < 1 or s.conns4 > 1 << 28 or s.conns6 < 1 or s.conns6 > 1 << 28:
        return b"conns4 and conns6 must be 1..2^28"
    if not is_pow2(s.frames) or s.frames < 64 or s.frames > 1 << 22:
        return b"frames must be a power of two in 64..2^22"
    if (s.frame_size != CHUNK and s.frame_size != CHUNK_LARGE) or s.chains > 1:
        return b"frame_size must be 2048 or 4096, and chains 0 or 1"
    if s.arena < 1 or s.arena > 1 << 28:
        return b"arena must be 1..2^28 slots"
    if not is_pow2(s.templates) or s.templates < 8 or s.templates > 1 << 24:
        return b"templates must be a power of two in 8..2^24"
    if not (is_pow2(s.cmd_ring) and is_pow2(s.evt_ring) and is_pow2(s.capture_ring) and is_pow2(s.hand_ring)):
        return b"cmd_ring, evt_ring, capture_ring and hand_ring must be powers of two"
    if s.cmd_ring > 1 << 20 or s.evt_ring > 1 << 20 or s.capture_ring > 1 << 16 or s.hand_ring > 1 << 20:
        return b"a ring is too large: cmd_ring, evt_ring, hand_ring up to 2^20, capture_ring up to 2^16"
    return NULL


cdef inline uint32_t svc_hash_buckets(const Sizes *s) noexcept nogil:
    """Buckets of the service hash: a power of two, at least twice the services. uint32: number + 1."""
    cdef uint32_t n = 64
    while n < 2 * s.services:
        n <<= 1
    return n


cdef inline uint32_t hash_word(uint32_t h, uint32_t word) noexcept nogil:
    """FNV-1a, by words: guards against mistakes, not against an adversary."""
    return (h ^ word) * <uint32_t>16777619


cdef inline uint32_t layout_hash(const Sizes *s) noexcept nogil:
    cdef uint32_t h = <uint32_t>2166136261
    cdef const uint32_t *word = <const uint32_t *>s
    cdef size_t i
    for i in range(sizeof(Sizes) // 4):
        h = hash_word(h, word[i])
    h = hash_word(h, sizeof(Ctl))
    h = hash_word(h, sizeof(HostCtl))
    h = hash_word(h, sizeof(Svc))
    h = hash_word(h, sizeof(SvcStat))
    h = hash_word(h, sizeof(Dest))
    h = hash_word(h, sizeof(Lip))
    h = hash_word(h, sizeof(LipStat))
    h = hash_word(h, sizeof(Iface))
    h = hash_word(h, sizeof(QueueStat))
    h = hash_word(h, sizeof(Adj))
    h = hash_word(h, sizeof(Route))
    h = hash_word(h, TUNNEL_MAX * sizeof(TunnelEnd))
    h = hash_word(h, sizeof(Counters))
    h = hash_word(h, sizeof(Cmd))
    h = hash_word(h, sizeof(Evt))
    h = hash_word(h, sizeof(Hand))
    h = hash_word(h, sizeof(lbd_ring))
    h = hash_word(h, LINK_MAX)
    h = hash_word(h, sizeof(Template))
    h = hash_word(h, ADJ_MAX)
    h = hash_word(h, ADJ_HASH)
    h = hash_word(h, FIB_MAX)
    h = hash_word(h, FIB_HASH)
    h = hash_word(h, CAPTURE_SLOT)
    return h


# -- Worker segment ------------------------------------------------------------------------------------------

cdef inline uint64_t section(uint64_t *at, uint64_t bytes, uint64_t align) noexcept nogil:
    """Offset of a section of `bytes`; `at` moves behind it."""
    cdef uint64_t off = round_up(at[0], align)
    at[0] = off + bytes
    return off


cdef inline int layout_compute(const Sizes *sizes, Ctl *ctl) noexcept nogil:
    """Fills the constant part of the head: magic, version, hash, sizes, offsets. The rest becomes 0."""
    cdef Sizes s
    cdef uint64_t at = sizeof(Ctl)
    memcpy(&s, sizes, sizeof(Sizes))
    if sizes_fault(&s) != NULL:
        return ATTACH_SIZES
    memset(ctl, 0, sizeof(Ctl))
    ctl.magic = SEG_MAGIC
    ctl.version = SEG_VERSION
    ctl.layout_hash = layout_hash(&s)
    ctl.sizes = s
    ctl.off_counters = section(&at, sizeof(Counters), PAGE)
    ctl.off_queue = section(&at, IFACE_MAX * sizeof(QueueStat), LINE)
    ctl.off_iface = section(&at, LINK_MAX * sizeof(Iface), LINE)
    ctl.off_svc = section(&at, s.services * sizeof(Svc), LINE)
    ctl.off_svc_stat = section(&at, s.services * sizeof(SvcStat), LINE)
    ctl.off_svc_hash = section(&at, svc_hash_buckets(&s) * sizeof(uint32_t), LINE)
    ctl.off_dest = section(&at, s.dests * sizeof(Dest), LINE)
    ctl.off_dest_stat = section(&at, s.dests * sizeof(SvcStat), LINE)
    ctl.off_lip = section(&at, s.lips * sizeof(Lip), LINE)
    ctl.off_lip_stat = section(&at, s.lips * sizeof(LipStat), LINE)
    ctl.off_adj = section(&at, ADJ_MAX * sizeof(Adj), LINE)
    ctl.off_adj_hash = section(&at, ADJ_HASH * sizeof(uint32_t), LINE)
    ctl.off_route = section(&at, FIB_MAX * sizeof(Route), LINE)
    ctl.off_route_hash = section(&at, FIB_HASH * sizeof(uint32_t), LINE)
    ctl.off_tunnel = section(&at, TUNNEL_MAX * sizeof(TunnelEnd), LINE)
    ctl.off_cmd = section(&at, lbd_ring_bytes(sizeof(Cmd), s.cmd_ring), PAGE)
    ctl.off_evt = section(&at, lbd_ring_bytes(sizeof(Evt), s.evt_ring), PAGE)
    ctl.off_capture = section(&at, lbd_ring_bytes(CAPTURE_SLOT, s.capture_ring), PAGE)
    ctl.off_slow = section(&at, lbd_ring_bytes(CAPTURE_SLOT, s.capture_ring), PAGE)
    ctl.bytes = round_up(at, PAGE)
    return ATTACH_OK


cdef inline void ring_shape(const Ctl *ctl, int name, uint64_t *off, uint32_t *entry,
                            uint32_t *capacity) noexcept nogil:
    """Where a ring of the worker segment lies (RingName), and its form."""
    if name == RING_CMD:
        off[0] = ctl.off_cmd
        entry[0] = sizeof(Cmd)
        capacity[0] = ctl.sizes.cmd_ring
    elif name == RING_EVT:
        off[0] = ctl.off_evt
        entry[0] = sizeof(Evt)
        capacity[0] = ctl.sizes.evt_ring
    else:
        off[0] = ctl.off_capture if name == RING_CAPTURE else ctl.off_slow
        entry[0] = CAPTURE_SLOT
        capacity[0] = ctl.sizes.capture_ring


cdef inline int segment_init(void *base, uint64_t bytes, const Sizes *sizes, uint32_t worker) noexcept nogil:
    """Lays out a new, zeroed worker segment of `bytes`."""
    cdef Ctl ctl
    cdef uint64_t off
    cdef uint32_t entry, capacity
    cdef int name, rc = layout_compute(sizes, &ctl)
    if rc != ATTACH_OK:
        return rc
    if bytes < ctl.bytes:
        return ATTACH_SHORT
    ctl.worker = worker
    ctl.poll_mode = 1           # adaptive, until a command says otherwise
    for name in range(RING_NAMES):
        ring_shape(&ctl, name, &off, &entry, &capacity)
        if lbd_ring_init(<uint8_t *>base + off, entry, capacity) != 0:
            return ATTACH_RING
    memcpy(base, &ctl, sizeof(Ctl))
    return ATTACH_OK


cdef inline int head_check(uint32_t magic, uint32_t version, uint32_t found,
                           uint32_t expected) noexcept nogil:
    """What both kinds of segment share."""
    if magic != SEG_MAGIC:
        return ATTACH_MAGIC
    if version != SEG_VERSION:
        return ATTACH_VERSION
    if expected != 0 and found != expected:
        return ATTACH_HASH
    return ATTACH_OK


cdef inline bint same_until(const uint64_t *a, const uint64_t *b, const void *b_end) noexcept nogil:
    """Equal from a on, and from b up to b_end?"""
    return memcmp(a, b, <size_t>(<const uint8_t *>b_end - <const uint8_t *>b)) == 0


cdef inline int segment_check(const void *base, uint64_t bytes, uint32_t expected) noexcept nogil:
    """May this mapping of `bytes` be used as a worker segment? `expected`: the layout hash that the caller
    knows, or 0 to accept any sizes that this build could have laid out."""
    cdef Ctl head, ought
    cdef int rc
    if bytes < sizeof(Ctl):
        return ATTACH_SHORT
    memcpy(&head, base, sizeof(Ctl))
    rc = head_check(head.magic, head.version, head.layout_hash, expected)
    if rc != ATTACH_OK:
        return rc
    rc = layout_compute(&head.sizes, &ought)
    if rc != ATTACH_OK:
        return rc
    if head.layout_hash != ought.layout_hash:
        return ATTACH_HASH
    if head.worker >= head.sizes.workers or not same_until(&head.off_svc, &ought.off_svc, &ought.pid) \
            or head.bytes != ought.bytes:
        return ATTACH_OFFSETS
    if bytes < head.bytes:
        return ATTACH_SHORT
    return ATTACH_OK


# -- Host segment --------------------------------------------------------------------------------------------

cdef inline int host_layout_compute(const Sizes *sizes, HostCtl *ctl) noexcept nogil:
    """Fills the constant part of the host segment's head; the rest becomes 0."""
    cdef Sizes s
    cdef uint64_t at = sizeof(HostCtl)
    memcpy(&s, sizes, sizeof(Sizes))
    if sizes_fault(&s) != NULL:
        return ATTACH_SIZES
    memset(ctl, 0, sizeof(HostCtl))
    ctl.magic = SEG_MAGIC
    ctl.version = SEG_VERSION
    ctl.layout_hash = layout_hash(&s)
    ctl.sizes = s
    ctl.off_owner = section(&at, 2 * OWNER_BUCKETS, PAGE)
    ctl.off_arena = section(&at, s.arena * sizeof(uint32_t), LINE)
    ctl.off_template = section(&at, <uint64_t>s.workers * s.templates * sizeof(Template), LINE)
    ctl.off_taken = section(&at, TAKEN_BITS // 8, LINE)
    # a ring of frames on their way home holds every frame of that home: it can't be full
    ctl.hand_bytes = round_up(lbd_ring_bytes(sizeof(Hand), s.hand_ring), PAGE)
    ctl.return_bytes = round_up(lbd_ring_bytes(RETURN_ENTRY, s.frames), PAGE)
    ctl.off_hand = section(&at, ctl.hand_bytes * s.workers * s.workers, PAGE)
    ctl.off_return = section(&at, ctl.return_bytes * s.workers * s.workers, PAGE)
    ctl.bytes = round_up(at, PAGE)
    return ATTACH_OK


cdef inline uint64_t hand_ring_off(const HostCtl *ctl, uint32_t sender, uint32_t receiver) noexcept nogil:
    """Ring of packets from one worker to another."""
    return ctl.off_hand + (<uint64_t>sender * ctl.sizes.workers + receiver) * ctl.hand_bytes


cdef inline uint64_t return_ring_off(const HostCtl *ctl, uint32_t sender, uint32_t home) noexcept nogil:
    """Ring of the frames that `sender` is done with, to the worker that they belong to."""
    return ctl.off_return + (<uint64_t>sender * ctl.sizes.workers + home) * ctl.return_bytes


cdef inline int host_init(void *base, uint64_t bytes, const Sizes *sizes) noexcept nogil:
    """Lays out a new, zeroed host segment of `bytes`. Owners all 0, keys all 0: the caller sets them."""
    cdef HostCtl ctl
    cdef uint32_t sender, to
    cdef uint8_t *at
    cdef int rc = host_layout_compute(sizes, &ctl)
    if rc != ATTACH_OK:
        return rc
    if bytes < ctl.bytes:
        return ATTACH_SHORT
    for sender in range(ctl.sizes.workers):
        for to in range(ctl.sizes.workers):
            at = <uint8_t *>base + hand_ring_off(&ctl, sender, to)
            if lbd_ring_init(at, sizeof(Hand), ctl.sizes.hand_ring) != 0:
                return ATTACH_RING
            at = <uint8_t *>base + return_ring_off(&ctl, sender, to)
            if lbd_ring_init(at, RETURN_ENTRY, ctl.sizes.frames) != 0:
                return ATTACH_RING
    memcpy(base, &ctl, sizeof(HostCtl))
    return ATTACH_OK


cdef inline int host_check(const void *base, uint64_t bytes, uint32_t expected) noexcept nogil:
    """segment_check's twin for the host segment."""
    cdef HostCtl head, ought
    cdef int rc
    if bytes < sizeof(HostCtl):
        return ATTACH_SHORT
    memcpy(&head, base, sizeof(HostCtl))
    rc = head_check(head.magic, head.version, head.layout_hash, expected)
    if rc != ATTACH_OK:
        return rc
    rc = host_layout_compute(&head.sizes, &ought)
    if rc != ATTACH_OK:
        return rc
    if head.layout_hash != ought.layout_hash:
        return ATTACH_HASH
    if not same_until(&head.off_owner, &ought.off_owner, &ought.stopping) or head.bytes != ought.bytes:
        return ATTACH_OFFSETS
    if bytes < head.bytes:
        return ATTACH_SHORT
    return ATTACH_OK


# -- Area ----------------------------------------------------------------------------------------------------

cdef inline uint64_t area_ledger_off(const Sizes *s) noexcept nogil:
    """Frames come first, worker by worker; then the ledger, a byte for each."""
    return <uint64_t>s.workers * s.frames * s.frame_size


cdef inline uint64_t area_bytes(const Sizes *s) noexcept nogil:
    """NB: an area of huge pages is larger: rounded up to their size."""
    return round_up(area_ledger_off(s) + <uint64_t>s.workers * s.frames, PAGE)
