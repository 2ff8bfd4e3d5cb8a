# Picking a real server for a new connection, with the meaning that each scheduler has in IPVS (docs/schedulers.md has the
# differences). The master builds the service's table of real servers (lbd/sched/); the service's SchedKind says how it is used.
# A server that went down a moment ago may still be in the table. Loads are those of all workers together.
# What a worker remembers (cursor, homes) is in its own record of the service: no allocation, nothing to expire but by reading it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ld32, lbd_ld64, lbd_likely, lbd_mum, lbd_prefetch, lbd_scale
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport PROTO_UDP
from lbd.datapath.svc cimport (Svc, Dest, DEST_NONE, DEST_OVERLOAD, DEST_USED, DEST_UP, SCHED_SEQ, SCHED_HASH, SCHED_LEAST,
                               SCHED_SED, SCHED_NQ, SCHED_FIRST, SCHED_OVF, SCHED_SOURCE, SCHED_DEST, SCHED_HOME, SCHED_HOMES,
                               SVC_HASH_PORT, SVC_HASH_FALLBACK, SVC_LEAST_WEIGHTED)

cdef enum:
    SLOT_NONE = 0xffffffff
    HASH_TRIES = 64             # other slots tried by hash before the next ones in the table's order
    GOLDEN_32 = 0x61C88647      # IPVS's hash_32 (linux/hash.h)
    HOMES_MAX = 64              # servers that the mask of homes can hold
    HOMES_EXPIRE = 86400000     # ms: a home unused for a day is forgotten, a second one unchanged for a day is given up


# --- one real server -------------------------------------------------------------------------------------------------

cdef inline uint64_t dest_total(Engine *e, uint32_t d) noexcept nogil:
    """Connections over all workers."""
    cdef uint64_t n = <uint64_t> e.dest_stat[d].active + e.dest_stat[d].inactive
    cdef uint32_t w
    for w in range(e.workers):
        if e.peer_dest_stat[w] != NULL:
            n += <uint64_t> e.peer_dest_stat[w][d].active + e.peer_dest_stat[w][d].inactive
    return n


cdef inline bint dest_full(Engine *e, uint32_t d) noexcept nogil:
    """Of one with a threshold: overloaded from `upper` connections on, until there are fewer than `lower`. Seen when one is to be
    scheduled: workers that do so at the same moment may open one too many each."""
    cdef Dest *dest = e.dest + d
    cdef uint64_t n = dest_total(e, d)
    if n >= dest.upper:
        dest.flags |= DEST_OVERLOAD
    elif dest.flags & DEST_OVERLOAD:
        if n < dest.lower or (dest.lower == 0 and n * 4 < <uint64_t> dest.upper * 3):
            dest.flags &= <uint8_t> ~DEST_OVERLOAD
    return dest.flags & DEST_OVERLOAD != 0


cdef inline bint dest_takes(Engine *e, uint32_t d) noexcept nogil:
    """May it get a new connection? What else keeps one away from a real server belongs here."""
    if (e.dest[d].flags & (DEST_USED | DEST_UP)) != (DEST_USED | DEST_UP) or e.dest[d].weight == 0:
        return False
    return lbd_likely(e.dest[d].upper == 0) or not dest_full(e, d)


cdef inline uint32_t slot_dest(Engine *e, const Svc *s, uint32_t slot) noexcept nogil:
    """The slot's real server if it can take a connection, else DEST_NONE."""
    cdef uint32_t d = e.arena[s.table_off + slot]
    if d >= e.max_dest or not dest_takes(e, d):
        return DEST_NONE
    return d


cdef inline uint64_t dest_load(Engine *e, uint32_t d) noexcept nogil:
    """Connections over all workers, active ones counting 256 times an inactive one (IPVS's overhead)."""
    cdef uint64_t n = <uint64_t> e.dest_stat[d].active * 256 + e.dest_stat[d].inactive
    cdef uint32_t w
    for w in range(e.workers):
        if e.peer_dest_stat[w] != NULL:
            n += <uint64_t> e.peer_dest_stat[w][d].active * 256 + e.peer_dest_stat[w][d].inactive
    return n


cdef inline uint64_t dest_active(Engine *e, const Svc *s, uint32_t d) noexcept nogil:
    """Active connections over all workers; with UDP none is active, so that all of them count."""
    cdef uint64_t n = e.dest_stat[d].active
    cdef bint all = s.proto == PROTO_UDP
    cdef uint32_t w
    if all:
        n += e.dest_stat[d].inactive
    for w in range(e.workers):
        if e.peer_dest_stat[w] != NULL:
            n += e.peer_dest_stat[w][d].active
            if all:
                n += e.peer_dest_stat[w][d].inactive
    return n


# --- in turn, in order -----------------------------------------------------------------------------------------------

cdef inline uint32_t pick_seq(Engine *e, Svc *s) noexcept nogil:
    cdef uint32_t _k, d
    for _k in range(s.table_len):
        s.cursor = next_slot(s)
        d = slot_dest(e, s, s.cursor)
        if d != DEST_NONE:
            return d
    return DEST_NONE


cdef inline uint32_t pick_first(Engine *e, const Svc *s) noexcept nogil:
    """The table is sorted by weight. SCHED_OVF: a server with more active connections than its weight is passed over."""
    cdef uint32_t k, d
    for k in range(s.table_len):
        d = slot_dest(e, s, k)
        if d != DEST_NONE and (s.sched != SCHED_OVF or dest_active(e, s, d) <= e.dest[d].weight):
            return d
    return DEST_NONE


# --- by hash ---------------------------------------------------------------------------------------------------------

cdef inline uint32_t client_hash(uint64_t first, uint64_t second, uint16_t sport, bint port, uint32_t again) noexcept nogil:
    """The client's hash: without a secret, so that every balancer of a cluster, and this one after a restart, picks alike. first,
    second: its address, 16 bytes, IPv4 padded with zeros."""
    cdef uint64_t h = lbd_mum(first ^ 0xa0761d6478bd642fULL, second ^ 0xe7037ed1a0b428dbULL ^ again)
    if port:
        h ^= <uint64_t> sport * 0x8ebc6af09c88c6e3ULL
    return <uint32_t> (lbd_mum(h ^ 0x589965cc75374cc3ULL, 0x1d8e4e27c47d124fULL) >> 16)


cdef inline uint32_t stable_hash(const Tuple *t, bint port, uint32_t again) noexcept nogil:
    cdef uint64_t a = lbd_ld64(t.saddr) if t.af == 6 else lbd_ld32(t.saddr)
    cdef uint64_t b = lbd_ld64(t.saddr + 8) if t.af == 6 else 0
    return client_hash(a, b, t.sport, port, again)


cdef inline uint32_t hash_slot(const Svc *s, const Tuple *t) noexcept nogil:
    return stable_hash(t, s.flags & SVC_HASH_PORT, 0) % s.table_len


cdef inline uint32_t next_slot(const Svc *s) noexcept nogil:
    """SCHED_SEQ: whose turn it is."""
    cdef uint32_t k = s.cursor + 1
    return k if k < s.table_len else 0


cdef inline uint32_t pick_hash(Engine *e, const Svc *s, const Tuple *t) noexcept nogil:
    cdef bint port = s.flags & SVC_HASH_PORT
    cdef uint32_t k, h = hash_slot(s, t)
    cdef uint32_t d = slot_dest(e, s, h)
    if d != DEST_NONE or not s.flags & SVC_HASH_FALLBACK:
        return d
    for k in range(1, HASH_TRIES):
        d = slot_dest(e, s, stable_hash(t, port, k) % s.table_len)
        if d != DEST_NONE:
            return d
    # few are left. The master leaves the table empty when none is, so this ends soon
    for k in range(s.table_len):
        d = slot_dest(e, s, (h + k) % s.table_len)
        if d != DEST_NONE:
            return d
    return DEST_NONE


cdef inline uint32_t kernel_hash(const uint8_t *addr, uint32_t port, int af) noexcept nogil:
    """hash_32 of IPVS's sh and dh before it is cut to bits: the address, folded, and the port, both in host order."""
    cdef uint32_t a = lbd_ld32(addr)
    if af == 6:
        a ^= lbd_ld32(addr + 4) ^ lbd_ld32(addr + 8) ^ lbd_ld32(addr + 12)
    return (lbd_bswap32(a) + port) * <uint32_t> GOLDEN_32


cdef inline uint32_t pick_source(Engine *e, const Svc *s, const Tuple *t) noexcept nogil:
    """lbd_scale takes the hash's upper bits, as hash_32 does, if the table's length is a power of two."""
    cdef uint32_t port = lbd_bswap16(t.sport) if s.flags & SVC_HASH_PORT else 0
    cdef uint32_t k, h = lbd_scale(kernel_hash(t.saddr, port, t.af), s.table_len)
    cdef uint32_t d = slot_dest(e, s, h)
    if d != DEST_NONE or not s.flags & SVC_HASH_FALLBACK:
        return d
    for k in range(s.table_len):
        # IPVS salts the hash with the offset (k + h) and adds, so that its search begins at 2h
        d = slot_dest(e, s, ((k + h) % s.table_len + h) % s.table_len)
        if d != DEST_NONE:
            return d
    return DEST_NONE


# --- by load ---------------------------------------------------------------------------------------------------------

cdef inline uint64_t dest_cost(Engine *e, const Svc *s, uint32_t d) noexcept nogil:
    """What its weight divides."""
    cdef uint64_t n
    if s.sched != SCHED_SED and s.sched != SCHED_NQ:
        return dest_load(e, d)
    n = dest_active(e, s, d)
    return 0 if n == 0 and s.sched == SCHED_NQ else n + 1


cdef inline uint32_t pick_least(Engine *e, Svc *s) noexcept nogil:
    """The least cost, or cost / weight; equal ones take turns."""
    cdef uint32_t k, d, best = DEST_NONE
    cdef uint64_t cost, weight, best_cost = 0, best_weight = 1
    cdef bint weighted = s.sched != SCHED_LEAST or s.flags & SVC_LEAST_WEIGHTED
    s.cursor += 1
    for k in range(s.table_len):
        d = slot_dest(e, s, (s.cursor + k) % s.table_len)
        if d == DEST_NONE:
            continue
        cost = dest_cost(e, s, d)
        weight = e.dest[d].weight if weighted else 1
        if best == DEST_NONE or cost * best_weight < best_cost * weight:
            best = d
            best_cost = cost
            best_weight = weight
    return best


# --- by locality -----------------------------------------------------------------------------------------------------

cdef inline uint32_t slot_least(Engine *e, const Svc *s, uint64_t among, bint most) noexcept nogil:
    """Of these slots (all: everyone, beyond HOMES_MAX too) that with the least load / weight, or the most; or SLOT_NONE. Equal
    ones: the first from a place of the service's own, or many services would have their homes on their first servers."""
    cdef uint32_t n, k, d, best = SLOT_NONE, start = <uint32_t> (s - e.svc) % s.table_len
    cdef uint64_t load, weight, best_load = 0, best_weight = 1
    for n in range(s.table_len):
        k = (start + n) % s.table_len
        if among != <uint64_t> -1 and (k >= HOMES_MAX or not (among >> k) & 1):
            continue
        d = slot_dest(e, s, k)
        if d == DEST_NONE:
            continue
        load = dest_load(e, d)
        weight = e.dest[d].weight
        if (best == SLOT_NONE or (not most and load * best_weight < best_load * weight)
                or (most and load * best_weight > best_load * weight)):
            best = k
            best_load = load
            best_weight = weight
    return best


cdef inline bint overloaded(Engine *e, const Svc *s, uint32_t d) noexcept nogil:
    """More active connections than weight, while another server has less than half of its own."""
    cdef uint32_t k, other
    if dest_active(e, s, d) <= e.dest[d].weight:
        return False
    for k in range(s.table_len):
        other = slot_dest(e, s, k)
        if other != DEST_NONE and dest_active(e, s, other) * 2 < e.dest[other].weight:
            return True
    return False


cdef inline void homes_tend(Engine *e, Svc *s) noexcept nogil:
    """Before it is used: forgets homes of another table or of long ago."""
    if s.homes_table != s.table_off or e.now_ms - s.cursor > HOMES_EXPIRE:
        s.homes = 0
        s.homes_table = s.table_off
    s.cursor = e.now_ms


cdef inline void homes_shed(Engine *e, Svc *s) noexcept nogil:
    """Several, and unchanged for a day: the most loaded is given up."""
    cdef uint32_t k
    if s.homes & (s.homes - 1) and e.now_ms - s.homes_changed > HOMES_EXPIRE:
        k = slot_least(e, s, s.homes, True)
        if k != SLOT_NONE:
            s.homes &= ~(<uint64_t> 1 << k)
            s.homes_changed = e.now_ms


cdef inline uint32_t pick_home(Engine *e, Svc *s) noexcept nogil:
    cdef uint32_t k, d
    cdef uint64_t bit
    homes_tend(e, s)
    k = slot_least(e, s, s.homes, False)
    if s.sched == SCHED_HOMES:
        homes_shed(e, s)
    if k != SLOT_NONE:
        d = slot_dest(e, s, k)
        if not overloaded(e, s, d):
            return d
    k = slot_least(e, s, <uint64_t> -1, False)
    if k == SLOT_NONE:
        return DEST_NONE
    bit = <uint64_t> 1 << k if k < HOMES_MAX else 0
    if s.sched == SCHED_HOME:
        s.homes = bit
    elif not s.homes & bit:
        s.homes |= bit
        s.homes_changed = e.now_ms
    return slot_dest(e, s, k)


cdef inline void schedule_prefetch(Engine *e, const Svc *s, const Tuple *t) noexcept nogil:
    """A large table's slot, known by the client's hash alone, on its way into the cache."""
    if s.sched == SCHED_HASH and s.table_len:
        lbd_prefetch(e.arena + s.table_off + hash_slot(s, t))


cdef inline uint32_t pick_at_once(Engine *e, Svc *s, const Tuple *t) noexcept nogil:
    """What the two schedulers for the greatest rates say at their first look, nearly always; DEST_NONE: `schedule` knows more."""
    if s.table_len == 0:
        return DEST_NONE
    if s.sched == SCHED_HASH:
        return slot_dest(e, s, hash_slot(s, t))
    if s.sched != SCHED_SEQ:
        return DEST_NONE
    s.cursor = next_slot(s)
    return slot_dest(e, s, s.cursor)


cdef inline uint32_t pick(Engine *e, Svc *s, const Tuple *t) noexcept nogil:
    """By the service's scheduler, or DEST_NONE."""
    if s.table_len == 0:
        return DEST_NONE
    if s.sched == SCHED_SEQ:
        return pick_seq(e, s)
    if s.sched == SCHED_HASH:
        return pick_hash(e, s, t)
    if s.sched == SCHED_LEAST or s.sched == SCHED_SED or s.sched == SCHED_NQ:
        return pick_least(e, s)
    if s.sched == SCHED_FIRST or s.sched == SCHED_OVF:
        return pick_first(e, s)
    if s.sched == SCHED_SOURCE:
        return pick_source(e, s, t)
    if s.sched == SCHED_DEST:
        return slot_dest(e, s, lbd_scale(kernel_hash(t.daddr, 0, t.af), s.table_len))
    if s.sched == SCHED_HOME or s.sched == SCHED_HOMES:
        return pick_home(e, s)
    return pick_seq(e, s)


cdef inline bint refuses_some(const Svc *s) noexcept nogil:
    """Does the scheduler refuse clients of a real server that can't take them, though another one could?"""
    if s.sched == SCHED_HASH or s.sched == SCHED_SOURCE:
        return s.flags & SVC_HASH_FALLBACK == 0
    return s.sched == SCHED_DEST


cdef inline uint32_t schedule(Engine *e, Svc *s, const Tuple *t) noexcept nogil:
    """A real server for a new connection with this tuple; if none can take one, the sorry server; or DEST_NONE."""
    cdef uint32_t d = pick(e, s, t)
    if d != DEST_NONE or s.sorry == 0:
        return d
    if s.table_len and refuses_some(s):
        return DEST_NONE
    return s.sorry - 1 if dest_takes(e, s.sorry - 1) else <uint32_t> DEST_NONE
