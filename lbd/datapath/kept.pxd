# Persistence templates as they are kept while lbd is stopped: each says by addresses which service and which real server it is of,
# since numbers mean something for one run alone. Times stay ticks of CLOCK_MONOTONIC, which goes on until the host is booted anew.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_compiler_barrier
from lbd.datapath.engine cimport Engine
from lbd.datapath.persist cimport template_hash, template_lasts, template_put, tick_now
from lbd.datapath.svc cimport Dest, DEST_SORRY, DEST_USED, SVC_USED, Svc
from lbd.datapath.template cimport Template, lbd_seq_begin, lbd_seq_same

cdef enum:
    KEPT_NAME = 40          # bytes at the start of a Kept that say which service and real server it is of

cdef struct Kept:           # 64 bytes, network order where a packet has it
    uint8_t vaddr[16]       # the service's (first) address, IPv4 in the first 4 bytes
    uint16_t vport
    uint8_t af
    uint8_t proto
    uint8_t daddr[16]       # the real server's
    uint16_t dport
    uint8_t daf
    uint8_t plen            # bits of the client's address that make the client
    uint8_t net[16]         # as Template's
    uint32_t renewed
    uint32_t alive


cdef inline bint kept_name(const Engine *e, Kept *k, const Template *m) noexcept nogil:
    """What the numbers of m (a copy) mean. False: nothing any more, or another thing. Workers may go on meanwhile: numbers mean
    nothing for a moment between two meanings, so they are read in this order."""
    cdef const Svc *s = e.svc + (<uint32_t> m.svc - 1)
    cdef const Dest *d = e.dest + m.dest
    if <uint32_t> m.svc > e.max_svc or m.dest >= e.max_dest:
        return False
    memcpy(k.vaddr, s.vaddr, 16)
    k.vport, k.af, k.proto, k.plen = s.vport, s.af, s.proto, s.persist_plen
    memcpy(k.daddr, d.addr, 16)
    k.dport, k.daf = d.port, d.af
    lbd_compiler_barrier()
    if not s.flags & SVC_USED or d.flags & (DEST_USED | DEST_SORRY) != DEST_USED or d.svc != m.svc - 1:
        return False
    lbd_compiler_barrier()
    return d.since <= m.renewed and template_lasts(e, s, m.renewed, m.alive)


cdef inline uint64_t templates_keep(const Engine *e, Kept *to, uint64_t room) noexcept nogil:
    """All workers' that last still, at most `room` of them; how many. e has tables of one worker's, and the time."""
    cdef const Template *at
    cdef Template m
    cdef uint64_t i, n = 0
    cdef uint32_t seq
    for i in range(<uint64_t> e.workers * e.max_template):
        at = e.template + i
        if at.svc == 0:
            continue
        seq = lbd_seq_begin(&at.seq)
        memcpy(&m, at, sizeof(Template))
        if seq & 1 or m.svc == 0 or not lbd_seq_same(&at.seq, seq):
            continue
        if n == room:
            break
        memset(to + n, 0, sizeof(Kept))
        if not kept_name(e, to + n, &m):
            continue
        memcpy(to[n].net, m.net, 16)
        to[n].renewed = m.renewed
        to[n].alive = m.alive
        n += 1
    return n


cdef inline bint template_return(const Engine *e, const Kept *k, uint32_t svc, uint32_t dest) noexcept nogil:
    """One of them to where its owner looks for it, by the numbers of now; before the first worker runs. False: its times can't be,
    or there are as many that were renewed later."""
    cdef Template m
    cdef uint32_t now = tick_now(e)
    if k.renewed > now or k.alive > now:
        return False
    memset(&m, 0, sizeof(Template))
    m.renewed = k.renewed
    m.alive = k.alive
    m.svc = <uint16_t> (svc + 1)
    m.dest = <uint16_t> dest
    memcpy(m.net, k.net, 16)
    return template_put(e, &m, template_hash(e, svc, m.net))
