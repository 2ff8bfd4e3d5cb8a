# Picking a real server. The master builds each service's table of real servers; a worker uses it in one of three ways (SchedKind).
# A server that went down a moment ago may still be in the table: it is passed over.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld32, lbd_ld64, lbd_mum
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.svc cimport (Svc, Dest, DEST_NONE, DEST_USED, DEST_UP, SCHED_SEQ, SCHED_HASH, SCHED_LEAST, SVC_HASH_PORT,
                               SVC_LEAST_WEIGHTED)

cdef enum:
    HASH_TRIES = 64             # other slots tried when the hashed one's server is down


cdef inline uint32_t slot_dest(Engine *e, const Svc *s, uint32_t slot) noexcept nogil:
    """The slot's real server if it can take a connection, else DEST_NONE."""
    cdef uint32_t d = e.arena[s.table_off + slot]
    if d >= e.max_dest:
        return DEST_NONE
    if (e.dest[d].flags & (DEST_USED | DEST_UP)) != (DEST_USED | DEST_UP) or e.dest[d].weight == 0:
        return DEST_NONE
    return d


cdef inline uint32_t pick_seq(Engine *e, Svc *s) noexcept nogil:
    cdef uint32_t _k, d
    for _k in range(s.table_len):
        s.cursor += 1
        if s.cursor >= s.table_len:
            s.cursor = 0
        d = slot_dest(e, s, s.cursor)
        if d != DEST_NONE:
            return d
    return DEST_NONE


cdef inline uint32_t stable_hash(const Tuple *t, bint port, uint32_t again) noexcept nogil:
    """The client's hash: without a secret, so that every balancer of a cluster, and this one after a restart, picks alike."""
    cdef uint64_t a = lbd_ld64(t.saddr) if t.af == 6 else lbd_ld32(t.saddr)
    cdef uint64_t b = lbd_ld64(t.saddr + 8) if t.af == 6 else 0
    cdef uint64_t h = lbd_mum(a ^ 0xa0761d6478bd642fULL, b ^ 0xe7037ed1a0b428dbULL ^ again)
    if port:
        h ^= <uint64_t> t.sport * 0x8ebc6af09c88c6e3ULL
    return <uint32_t> (lbd_mum(h ^ 0x589965cc75374cc3ULL, 0x1d8e4e27c47d124fULL) >> 16)


cdef inline uint32_t pick_hash(Engine *e, const Svc *s, const Tuple *t) noexcept nogil:
    cdef uint32_t k, d
    for k in range(HASH_TRIES):
        d = slot_dest(e, s, stable_hash(t, s.flags & SVC_HASH_PORT, k) % s.table_len)
        if d != DEST_NONE:
            return d
    return DEST_NONE


cdef inline uint64_t dest_load(Engine *e, uint32_t d) noexcept nogil:
    """Connections over all workers, active ones counting 256 times an inactive one (IPVS's overhead)."""
    cdef uint64_t n = 0
    cdef uint32_t w
    n = <uint64_t> e.dest_stat[d].active * 256 + e.dest_stat[d].inactive
    for w in range(e.workers):
        if e.peer_dest_stat[w] != NULL:
            n += <uint64_t> e.peer_dest_stat[w][d].active * 256 + e.peer_dest_stat[w][d].inactive
    return n


cdef inline uint32_t pick_least(Engine *e, Svc *s) noexcept nogil:
    """The least load, or load / weight; equal ones take turns."""
    cdef uint32_t k, d, best = DEST_NONE
    cdef uint64_t load, weight, best_load = 0, best_weight = 1
    s.cursor += 1
    for k in range(s.table_len):
        d = slot_dest(e, s, (s.cursor + k) % s.table_len)
        if d == DEST_NONE:
            continue
        load = dest_load(e, d)
        weight = e.dest[d].weight if s.flags & SVC_LEAST_WEIGHTED else 1
        if best == DEST_NONE or load * best_weight < best_load * weight:
            best = d
            best_load = load
            best_weight = weight
    return best


cdef inline uint32_t schedule(Engine *e, Svc *s, const Tuple *t) noexcept nogil:
    """A real server for a new connection with this tuple, or DEST_NONE."""
    if s.table_len == 0:
        return DEST_NONE
    if s.sched == SCHED_HASH:
        return pick_hash(e, s, t)
    if s.sched == SCHED_LEAST:
        return pick_least(e, s)
    return pick_seq(e, s)
