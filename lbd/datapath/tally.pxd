# Packets and bytes of a service and of a real server, as forwarded packets are counted.
#
# A packet's instructions fill the core's window, so a line of statistics that is not near is waited for, each alone. Where there
# are many real servers the fast lane's counts are put down instead, their lines fetched meanwhile, and entered after the burst.
from libc.stdint cimport uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_inlined_void, lbd_prefetchw, lbd_unlikely
from lbd.datapath.engine cimport Due, Engine
from lbd.datapath.svc cimport SvcStat

cdef enum:
    DESTS_NEAR = 512            # real servers whose statistics (64 bytes each) stay near the core by themselves


cdef inline void stat_packet(SvcStat *s, uint64_t direction, uint32_t bytes) noexcept nogil:
    """in_pkts and in_bytes, or out_pkts and out_bytes, which follow them."""
    cdef uint64_t *pair = &s.in_pkts + 2 * direction
    pair[0] += 1
    pair[1] += bytes


cdef inline lbd_inlined_void stat_both(SvcStat *s, SvcStat *d, uint64_t direction, uint64_t bytes) noexcept nogil:
    """stat_packet of a service and a real server. In this order gcc adds in place: a pair alone it would put together in a vector
    register, by more instructions."""
    cdef uint64_t *ours = &s.in_pkts + 2 * direction
    cdef uint64_t *theirs = &d.in_pkts + 2 * direction
    ours[0] += 1
    theirs[0] += 1
    ours[1] += bytes
    theirs[1] += bytes


cdef inline void tally_later(Engine *e, uint32_t svc, uint32_t dest, uint64_t direction, uint64_t bytes) noexcept nogil:
    """By tally_enter."""
    cdef Due *due = e.due + e.due_n
    lbd_prefetchw(e.svc_stat + svc)
    lbd_prefetchw(e.dest_stat + dest)
    due.svc, due.dest, due.direction, due.bytes = svc, dest, direction, bytes
    e.due_n += 1


cdef inline lbd_inlined_void tally(Engine *e, uint32_t svc, uint32_t dest, uint64_t direction, uint64_t bytes) noexcept nogil:
    """Of a packet in a burst."""
    if lbd_unlikely(e.dests > DESTS_NEAR):
        tally_later(e, svc, dest, direction, bytes)
    else:
        stat_both(e.svc_stat + svc, e.dest_stat + dest, direction, bytes)


cdef inline void stat_scheduled(SvcStat *s, uint32_t packets, uint64_t bytes) noexcept nogil:
    """Of a client's packets that were given to a real server one by one, each of which counts as a connection."""
    s.conns += packets
    s.in_bytes += bytes
    s.in_pkts += packets


cdef inline void tally_scheduled(Engine *e, uint32_t svc, uint32_t dest, uint64_t bytes) noexcept nogil:
    """Of a client's packet that was given to a real server by itself, which counts as a connection."""
    e.svc_stat[svc].conns += 1
    e.dest_stat[dest].conns += 1
    tally(e, svc, dest, 0, bytes)


cdef inline void tally_enter(Engine *e) noexcept nogil:
    """What the burst's packets put down."""
    cdef uint32_t k
    cdef const Due *due
    for k in range(e.due_n):
        due = e.due + k
        stat_both(e.svc_stat + due.svc, e.dest_stat + due.dest, due.direction, due.bytes)
    e.due_n = 0
