# Local address and port for a new FULLNAT connection. (The other modes have none.)
#
# There is no bitmap of ports: the connection table is the truth, so a port is free towards a real server when no record, TIME_WAIT
# included, has (real server, LIP, port). The port is chosen such that the answer's flow owner is this worker: on a NIC with known
# RSS the answer arrives here by itself; elsewhere hand-over brings it here.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from lbd.datapath.compiler cimport lbd_bswap16, lbd_scale
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.conn cimport conn_lookup, REF_NONE
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.owner cimport flow_owner
from lbd.datapath.svc cimport Lip, LIP_NONE

cdef enum:
    PORT_TRIES = 128            # ports tried per LIP and connection, times the number of workers
    PORT_RUN = 16               # the first of them one after another, the others anywhere in the range


cdef inline bint port_is_ours(Engine *e, const Tuple *back, uint64_t h, int af) noexcept nogil:
    """Does the answer come to this worker? By the previous epoch's rule too, while that holds: what its owner chose lies in its
    table, not in this one."""
    if flow_owner(e, back, h, af, 0) != e.worker:
        return False
    return not e.owner_prev_valid or flow_owner(e, back, h, af, 1) == e.worker


cdef inline uint32_t laddr_from(Engine *e, uint32_t n, Tuple *back, uint64_t *hash_out, int af) noexcept nogil:
    """Tries one LIP: fills back.daddr and back.dport (network order) with a free pair and returns True, or False."""
    cdef Lip *lip = e.lip + n
    cdef uint32_t span = <uint32_t> lip.port_hi - lip.port_lo + 1
    cdef uint32_t tries = PORT_TRIES * e.workers
    cdef uint32_t scatter = (PORT_TRIES - PORT_RUN) * e.workers
    cdef uint64_t h = 0
    memcpy(back.daddr, lip.addr, 16)
    if tries >= span:
        tries = span
        scatter = 0
    while tries:
        if tries <= scatter:                    # long-lived connections may hold whole stretches: leave this one
            lip.cursor = lbd_scale(<uint32_t> (h + tries * 0x9e3779b97f4a7c15ULL), span)
        tries -= 1
        lip.cursor += 1
        if lip.cursor >= span:
            lip.cursor = 0
        back.dport = lbd_bswap16(<uint16_t> (lip.port_lo + lip.cursor))
        h = tuple_hash(back, e.hash_key, af)
        if port_is_ours(e, back, h, af) and conn_lookup(table_of(e, af), back, h, af) == REF_NONE:
            hash_out[0] = h
            return True
    return False


cdef inline uint32_t laddr_guess(Engine *e, Tuple *back, uint64_t *hash_out, int af) noexcept nogil:
    """Like laddr_pick, but whether the port is free is left to be seen: where to look is known early, and can be prefetched."""
    cdef uint32_t _k, n, count = e.lip4_n if af == 4 else e.lip6_n
    cdef Lip *lip
    if count == 0:
        return LIP_NONE
    e.lip_cursor += 1
    n = e.lip4[e.lip_cursor % count] if af == 4 else e.lip6[e.lip_cursor % count]
    lip = e.lip + n
    memcpy(back.daddr, lip.addr, 16)
    for _k in range(PORT_RUN):
        lip.cursor += 1
        if lip.cursor > <uint32_t> lip.port_hi - lip.port_lo:
            lip.cursor = 0
        back.dport = lbd_bswap16(<uint16_t> (lip.port_lo + lip.cursor))
        hash_out[0] = tuple_hash(back, e.hash_key, af)
        if port_is_ours(e, back, hash_out[0], af):
            return n
    return LIP_NONE


cdef inline uint32_t laddr_pick(Engine *e, Tuple *back, uint64_t *hash_out, int af) noexcept nogil:
    """back: the answer's tuple with source (real server) and proto set. Fills in a free local address and port; returns the LIP's
    number or LIP_NONE (exhausted: counted per LIP)."""
    cdef uint32_t count = e.lip4_n if af == 4 else e.lip6_n
    cdef uint32_t _k, n
    for _k in range(count):
        e.lip_cursor += 1
        n = e.lip4[e.lip_cursor % count] if af == 4 else e.lip6[e.lip_cursor % count]
        if laddr_from(e, n, back, hash_out, af):
            e.lip_stat[n].conns += 1
            e.lip_stat[n].in_use += 1
            return n
        e.lip_stat[n].exhausted += 1
        e.lip_exhausted = n
        e.lip_exhausted_n += 1
    return LIP_NONE
