# Local address and port for a new FULLNAT, NAT64 or SNAT connection. (The other modes have none.) Services send from any local
# address, an SNAT rule from those of its pool.
#
# There is no bitmap of ports: the connection table is the truth, so a port is free towards a real server when no record, TIME_WAIT
# included, has (real server, LIP, port). The port is chosen such that the answer's flow owner is this worker: on a NIC with known
# RSS the answer arrives here by itself; elsewhere hand-over brings it here.
#
# A port that the real server still holds in TIME_WAIT may be taken after a rest by a SYN whose number lies beyond the old
# connection's last, as every second random number does. Where several ports in a row don't fit, its numbers are moved (seq.pxd).
#
# Here `af` is the family that answers come in on the wire. IPv4 connections and NAT64's share the local addresses of IPv4, but lie
# in two tables: a port is free if it is so in both.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.string cimport memcpy
from lbd.datapath.compiler cimport lbd_bswap16, lbd_prefetch, lbd_scale
from lbd.datapath.engine cimport Engine, Plan
from lbd.datapath.flow cimport Tuple, ports_put, tuple_hash
from lbd.datapath.conn cimport (Bucket, CONN_EXTENDED, CONN_IMPORTED, ConnCommon, conn_bucket, conn_common, conn_edges, conn_lookup,
                                conn_tag, lbd_tag_match, REF_NONE)
from lbd.datapath.ext cimport conn_ext
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.nat64 cimport proto6, tuple_map
from lbd.datapath.owner cimport flow_owner
from lbd.datapath.snat cimport snat_lip
from lbd.datapath.svc cimport Lip, LIP_NONE, MODE_SNAT, Svc
from lbd.datapath.taken cimport is_taken
from lbd.datapath.tcp cimport STATE_TIME_WAIT

cdef enum:
    PORT_TRIES = 128            # ports tried per LIP and connection, times the number of workers
    PORT_RUN = 16               # the first of them one after another, the others anywhere in the range
    PORTS_MET = 1024            # connections whose ports are looked at in advance after one that was in use
    REUSE_TRIES = 8             # ports tried, after one that would do with other numbers, for one that does without

cdef enum Fit:                  # of a port for a new connection, better ones greater
    FIT_NOT = 0
    FIT_MOVED = 1               # in TIME_WAIT: with other sequence numbers
    FIT_REUSED = 2              # in TIME_WAIT
    FIT_FREE = 3


cdef inline bint port_is_ours(Engine *e, const Tuple *back, uint64_t h, int af) noexcept nogil:
    """Does the answer come to this worker, and is this port for it to give? While the previous epoch's rule holds, what its owner
    chose lies in its table, not in this one: then it has to be this worker by that rule, too, or the port has to be nobody's."""
    if flow_owner(e, back, h, af, 0) != e.worker:
        return False
    if not e.owner_prev_valid or flow_owner(e, back, h, af, 1) == e.worker:
        return True
    return e.taken_valid and not is_taken(e, h)


cdef inline uint32_t server_edge(Engine *e, uint32_t i, int af) noexcept nogil:
    """The next sequence number from this record's client, as its real server has it."""
    cdef uint32_t edge = conn_edges(table_of(e, af), i, af)[0]
    if conn_common(table_of(e, af), i, af).flags & CONN_EXTENDED:
        edge += conn_ext(e, table_of(e, af), i, af).delta[0]
    return edge


cdef inline void port_holder(Engine *e, Plan *plan, int af) noexcept nogil:
    """Sets plan.over, and over_af if there is one: the connection that has plan.back's port (its hash: plan.hash)."""
    cdef Tuple k
    plan.over = conn_lookup(table_of(e, af), &plan.back, plan.hash, af)
    plan.over_af = af
    if af == 4 and e.nat64 and plan.over == REF_NONE:
        tuple_map(&k, &plan.back, proto6(plan.back.proto))
        plan.over = conn_lookup(&e.t6, &k, tuple_hash(&k, e.hash_key, 6), 6)
        plan.over_af = 6


cdef inline void port_prefetch(Engine *e, const Plan *plan, int af) noexcept nogil:
    """For port_holder."""
    cdef Tuple k
    lbd_prefetch(conn_bucket(table_of(e, af), plan.hash))
    if af == 4 and e.nat64:
        tuple_map(&k, &plan.back, proto6(plan.back.proto))
        lbd_prefetch(conn_bucket(&e.t6, tuple_hash(&k, e.hash_key, 6)))


cdef inline uint32_t port_fit(Engine *e, Plan *plan, int af) noexcept nogil:
    """Of plan.back's port (its hash: plan.hash). Sets plan.over and over_af."""
    cdef ConnCommon *c
    port_holder(e, plan, af)
    if plan.over == REF_NONE:
        return FIT_FREE
    c = conn_common(table_of(e, plan.over_af), plan.over >> 1, plan.over_af)
    # NB: of an imported one it is not settled yet whether the LIP's count has it
    if c.state != STATE_TIME_WAIT or c.flags & CONN_IMPORTED or e.now_ms - c.last_seen < e.port_rest or e.ext_free == 0:
        return FIT_NOT
    return FIT_REUSED if <int32_t> (plan.isn - server_edge(e, plan.over >> 1, plan.over_af)) > 0 else FIT_MOVED


cdef inline bint laddr_from(Engine *e, uint32_t n, Plan *plan, int af) noexcept nogil:
    """Tries one LIP: fills plan.back.daddr and dport (network order) with a pair that fits and returns True, or False."""
    cdef Lip *lip = e.lip + n
    cdef Tuple *back = &plan.back
    cdef uint32_t fit
    cdef uint16_t moved = 0                     # a port that fits with other numbers
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
        ports_put(back, back.sport, lbd_bswap16(<uint16_t> (lip.port_lo + lip.cursor)))
        h = tuple_hash(back, e.hash_key, af)
        if not port_is_ours(e, back, h, af):
            continue
        plan.hash = h
        fit = port_fit(e, plan, af)
        if fit >= FIT_REUSED:
            return True
        if fit == FIT_MOVED and not moved:
            moved = back.dport
            tries = REUSE_TRIES if tries > REUSE_TRIES else tries
            scatter = 0
    if not moved:
        return False
    back.dport = moved
    plan.hash = tuple_hash(back, e.hash_key, af)
    return port_fit(e, plan, af) != FIT_NOT


cdef inline uint32_t laddr_count(const Engine *e, const Svc *s, int af) noexcept nogil:
    """Addresses that the service may send from."""
    if s.mode == MODE_SNAT:
        return s.snat_pool
    return e.lip4_n if af == 4 else e.lip6_n


cdef inline uint32_t laddr_turn(Engine *e, const Svc *s, const Tuple *t, uint32_t k, int af) noexcept nogil:
    """The one to try k-th (there are some), or LIP_NONE: FULLNAT's in turn, SNAT's by the client."""
    if s.mode == MODE_SNAT:
        return snat_lip(e, s, t, k, af)
    e.lip_cursor += 1
    return e.lip4[e.lip_cursor % e.lip4_n] if af == 4 else e.lip6[e.lip_cursor % e.lip6_n]


cdef inline uint32_t laddr_guess(Engine *e, const Svc *s, const Tuple *t, Plan *plan, int af) noexcept nogil:
    """Like laddr_pick, but whether the port fits is left to be seen: where to look is known early, and can be prefetched."""
    cdef uint32_t _k, n = LIP_NONE
    cdef Lip *lip
    if laddr_count(e, s, af):
        n = laddr_turn(e, s, t, 0, af)
    if n == LIP_NONE:
        return LIP_NONE
    lip = e.lip + n
    memcpy(plan.back.daddr, lip.addr, 16)
    for _k in range(PORT_RUN):
        lip.cursor += 1
        if lip.cursor > <uint32_t> lip.port_hi - lip.port_lo:
            lip.cursor = 0
        ports_put(&plan.back, plan.back.sport, lbd_bswap16(<uint16_t> (lip.port_lo + lip.cursor)))
        plan.hash = tuple_hash(&plan.back, e.hash_key, af)
        if port_is_ours(e, &plan.back, plan.hash, af):
            return n
    return LIP_NONE


cdef inline bint port_seems_free(Engine *e, const Plan *plan, int af) noexcept nogil:
    """Known by a look at the bucket; False: perhaps not."""
    cdef const Bucket *b = conn_bucket(table_of(e, af), plan.hash)
    return lbd_tag_match(b.tag, conn_tag(plan.hash)) == 0 and b.next == 0 and (af == 6 or e.nat64 == 0)


cdef inline bint laddr_guess_again(Engine *e, const Svc *s, const Tuple *t, Plan *plan, int af) noexcept nogil:
    """After laddr_guess and port_prefetch, some time later. True: that port does not fit, and another guess is on its way; or there
    is none (plan.lip)."""
    if plan.lip == LIP_NONE or port_seems_free(e, plan, af) or port_fit(e, plan, af) >= FIT_REUSED:
        return False
    e.ports_met = PORTS_MET
    plan.lip = laddr_guess(e, s, t, plan, af)
    if plan.lip != LIP_NONE:
        port_prefetch(e, plan, af)
    return True


cdef inline uint32_t laddr_pick(Engine *e, const Svc *s, const Tuple *t, Plan *plan, int af) noexcept nogil:
    """t: the client's tuple; plan.back: the answer's with source (real server, remote) and proto set. Fills in a local address and
    port, plan.hash and plan.over; returns the LIP's number or LIP_NONE (exhausted: counted per LIP)."""
    cdef uint32_t k, n
    for k in range(laddr_count(e, s, af)):
        n = laddr_turn(e, s, t, k, af)
        if n == LIP_NONE:
            continue
        if laddr_from(e, n, plan, af):
            e.lip_stat[n].conns += 1
            e.lip_stat[n].in_use += 1
            return n
        e.lip_stat[n].exhausted += 1
        e.lip_exhausted = n
        e.lip_exhausted_n += 1
    return LIP_NONE
