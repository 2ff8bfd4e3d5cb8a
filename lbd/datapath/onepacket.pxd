# One-packet scheduling (ipvsadm's --ops): every datagram of the service is scheduled anew. Where answers go past lbd (DR, tunnel)
# nothing is kept: a record from the top of the free ones is filled for the packet, and is free as before (DR's neighbours don't
# need even that). Otherwise an answer needs its way back: the record stays, aside (conn.pxd, CONN_ASIDE), one for each real server
# that the client's tuple has met (open.pxd).
#
# A datagram in fragments is one: its first fragment is scheduled, and its table entry (frag.pxd) remembers for the others what was
# chosen. That is done by the fragments' owner or, where answers come back, by the flow's.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_copy12, lbd_ld16, lbd_ld32, lbd_ld64, lbd_likely, lbd_st32, lbd_unlikely
from lbd.datapath.conn cimport CONN_NIL, REF_NONE, ConnCommon, addr6_is, conn_common, conn_free
from lbd.datapath.engine cimport Engine, Plan
from lbd.datapath.fast cimport ends_of
from lbd.datapath.flow cimport Tuple
from lbd.datapath.frag cimport Frag
from lbd.datapath.forward cimport count_packet, drop, send_out, way_out
from lbd.datapath.hdr cimport ETH_HLEN, PROTO_UDP
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.lookup cimport svc_at, svc_by_words, svc_is, svc_key
from lbd.datapath.nat cimport TTL_DELTA, hop, rewrite
from lbd.datapath.neigh cimport Adj
from lbd.datapath.open cimport back_from, client_end, conn_aside, conn_fill, conn_room, mode_of, scheduled
from lbd.datapath.persist cimport HAND_ASK, PICK_ASKED, dest_for, tick_now
from lbd.datapath.pkt cimport Pkt, PKT_ICMP_ERROR, PKT_PARTIAL, PKT_TUNNEL
from lbd.datapath.quic cimport QUIC_NONE
from lbd.datapath.reason cimport *
from lbd.datapath.sched cimport client_hash, next_slot
from lbd.datapath.svc cimport (Dest, DEST_NONE, DEST_UP, DEST_USED, MODE_BITS, MODE_DR, MODE_ONE_WAY, SCHED_HASH, SCHED_SEQ,
                               SVC_ALIAS, SVC_HASH_PORT, SVC_HASH_QID, SVC_NONE, SVC_ONE_PACKET, SVC_PERSIST, SVC_USED, Svc)
from lbd.datapath.tally cimport tally, tally_scheduled
from lbd.datapath.tcp cimport STATE_UDP


cdef enum:
    LANE_SCHED = 0xff & ~(SCHED_SEQ | SCHED_HASH)       # of a scheduler's number what says that it is none of these


cdef inline void by_record(Engine *e, Pkt *p, const Tuple *t, uint32_t svc, uint32_t dest, bint fresh, int af) noexcept nogil:
    """By a record for this packet alone."""
    cdef Plan plan
    cdef ConnCommon *c
    cdef uint32_t i = conn_room(e, af)
    if i == CONN_NIL:
        drop(p, REASON_CONN_TABLE_FULL)
        return
    plan.dest = dest
    plan.mode = e.svc[svc].mode
    back_from(e, &plan.back, t, svc, dest, af)
    client_end(e, t, &plan, af)
    conn_fill(e, i, t, svc, &plan, af)
    c = conn_common(table_of(e, af), i, af)
    c.state = STATE_UDP
    c.adj_rev = e.client_adj            # most come from the same router: way_out looks
    if fresh:
        scheduled(e, svc, dest)
    if way_out(e, p, i, c, 0, af):
        rewrite(e, p, table_of(e, af), i, 0, af)
        if send_out(e, p, i, c, 0, af):
            count_packet(e, p, c, 0)
            p.verdict = VERDICT_FORWARD
            p.reason = REASON_NONE
    e.client_adj = c.adj_rev
    conn_free(table_of(e, af), i, af)


cdef inline bint reaches(const Pkt *p, const Adj *a, int af) noexcept nogil:
    """May this packet, untagged, go that way as it is?"""
    if p.l3_len > a.reach or p.data[ETH_HLEN + (8 if af == 4 else 7)] <= 1:
        return False
    return p.flags & (PKT_TUNNEL | PKT_PARTIAL) == 0


cdef inline bint neighbour(const Engine *e, const Pkt *p, uint32_t dest, int af) noexcept nogil:
    """Is the way to this real server known, and no gateway's? (ADJ_NONE reaches nothing.)"""
    cdef const Dest *d = e.dest + dest
    return d.fib_gen == e.fib_gen[0] and addr6_is(e.adj[d.adj].addr, d.addr) and reaches(p, e.adj + d.adj, af)


cdef inline void to_neighbour(Pkt *p, const Adj *a, uint32_t svc, uint32_t dest, int af) noexcept nogil:
    cdef uint8_t *d = p.data
    lbd_st32(&p.svc, svc | dest << 16)          # and dest
    p.ifout = a.iface
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
    hop(d + ETH_HLEN, TTL_DELTA if af == 4 else 0, af)
    lbd_copy12(d, a.dmac)


cdef inline void one_packet(Engine *e, Pkt *p, const Tuple *t, uint32_t svc, uint32_t dest, bint fresh, int af) noexcept nogil:
    """To this real server, whose answers go past lbd. fresh: it was scheduled now."""
    p.svc = svc
    p.dest = dest
    # what goes to a neighbour needs no record at all
    if lbd_unlikely(e.svc[svc].mode != MODE_DR or p.l3 != ETH_HLEN or not neighbour(e, p, dest, af)):
        by_record(e, p, t, svc, dest, fresh, af)
        return
    if fresh:
        tally_scheduled(e, svc, dest, p.l3_len)
    else:
        tally(e, svc, dest, 0, p.l3_len)
    to_neighbour(p, e.adj + e.dest[dest].adj, svc, dest, af)


cdef inline bint one_packet_settle(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """A packet without a connection. True: it needed none, the verdict is set."""
    cdef const Tuple *t = &e.tuple[i]
    cdef uint32_t svc, dest
    if t.proto != PROTO_UDP or p.flags & PKT_ICMP_ERROR or e.hand[i] & HAND_ASK:
        return False
    svc = svc_at(e, t.daddr, t.dport, t.proto, af)
    if svc == SVC_NONE or not e.svc[svc].flags & SVC_ONE_PACKET or not e.svc[svc].mode & MODE_ONE_WAY:
        return False
    dest = dest_for(e, p, i, svc, t)
    if lbd_unlikely(dest == PICK_ASKED):
        return True
    if dest != DEST_NONE:
        one_packet(e, p, t, svc, dest, True, af)
        return True
    p.svc = svc
    drop(p, REASON_NO_BACKEND)
    return True


# --- in the fast lane ------------------------------------------------------------------------------------------------

cdef inline uint32_t lane_service(Engine *e, const uint8_t *ends, int af) noexcept nogil:
    """The service at the address and port that this datagram is for, or SVC_NONE. ends: of the packet. The last one's is looked at
    first."""
    cdef uint64_t first = lbd_ld32(ends + 4) if af == 4 else lbd_ld64(ends + 16)
    cdef uint64_t second = 0 if af == 4 else lbd_ld64(ends + 24)
    cdef uint16_t vport = lbd_ld16(ends + (10 if af == 4 else 34))
    cdef uint32_t n = e.one_packet_last
    if svc_is(e.svc + n, first, second, svc_key(vport, PROTO_UDP, af)) and e.svc[n].flags & SVC_USED:
        return n
    n = svc_by_words(e, first, second, vport, PROTO_UDP, af)
    if n != SVC_NONE:
        e.one_packet_last = n
    return n


cdef inline bint lane_serves(const Svc *s) noexcept nogil:
    """One packet, DR; its real server by the table alone, at once. Scheduler, mode and flags as one word, little-endian."""
    cdef uint32_t asked = LANE_SCHED | MODE_BITS << 8 | (SVC_ONE_PACKET | SVC_ALIAS | SVC_PERSIST | SVC_HASH_QID) << 16
    if lbd_ld32(&s.sched) & asked != (MODE_DR << 8 | SVC_ONE_PACKET << 16):
        return False
    return s.quic == QUIC_NONE and s.table_len != 0


cdef inline uint32_t lane_slot(const Svc *s, const uint8_t *ends, int af) noexcept nogil:
    cdef bint port = s.flags & SVC_HASH_PORT
    if s.sched == SCHED_SEQ:
        return next_slot(s)
    if af == 4:
        return client_hash(lbd_ld32(ends), 0, lbd_ld16(ends + 8), port, 0) % s.table_len
    return client_hash(lbd_ld64(ends), lbd_ld64(ends + 8), lbd_ld16(ends + 32), port, 0) % s.table_len


cdef inline bint near(const Engine *e, Dest *d) noexcept nogil:
    """A neighbour whose way is known, and that takes every connection: what is asked of it once, while nothing changes."""
    cdef uint32_t gen = e.fib_gen[0]
    if lbd_likely(d.near == gen + 1):
        return True
    if (d.flags & (DEST_USED | DEST_UP)) != (DEST_USED | DEST_UP) or d.weight == 0 or d.upper != 0:
        return False
    if d.fib_gen != gen or not addr6_is(e.adj[d.adj].addr, d.addr):
        return False
    d.near = gen + 1
    return True


cdef inline bint one_packet_lane(Engine *e, Pkt *p) noexcept nogil:
    """A datagram that came in the lane, and has no connection: what one_packet_settle does of nearly all of DR's, without a tuple.
    False: as it came, and so is the scheduler."""
    cdef bint four = p.af == 4
    cdef const uint8_t *ends = ends_of(p.data, 4) if four else ends_of(p.data, 6)
    cdef uint32_t slot, dest, bytes = p.l3_len, svc = lane_service(e, ends, 4) if four else lane_service(e, ends, 6)
    cdef Svc *s = e.svc + svc
    cdef Dest *d
    cdef const Adj *a
    if svc == SVC_NONE or not lane_serves(s):
        return False
    slot = lane_slot(s, ends, 4) if four else lane_slot(s, ends, 6)
    dest = e.arena[s.table_off + slot]
    if dest >= e.max_dest:
        return False
    d = e.dest + dest
    if not near(e, d):
        return False
    a = e.adj + d.adj
    if not (reaches(p, a, 4) if four else reaches(p, a, 6)):
        return False
    if s.sched == SCHED_SEQ:
        s.cursor = slot
    tally_scheduled(e, svc, dest, bytes)
    if four:
        to_neighbour(p, a, svc, dest, 4)
    else:
        to_neighbour(p, a, svc, dest, 6)
    return True


# --- datagrams in fragments ------------------------------------------------------------------------------------------

cdef inline bint choose(const Engine *e, Frag *f, const Pkt *p) noexcept nogil:
    """The first fragment has left: is it a one-packet service's? Then its entry keeps where it went."""
    if p.svc == SVC_NONE or p.dest == DEST_NONE or not e.svc[p.svc].flags & SVC_ONE_PACKET:
        return False
    f.svc = p.svc
    f.dest = p.dest
    f.tick = tick_now(e)
    return True


cdef inline bint still_chosen(const Engine *e, const Frag *f) noexcept nogil:
    """Have neither the service nor the real server gone?"""
    cdef const Svc *s = e.svc + f.svc
    cdef const Dest *d = e.dest + f.dest
    if not s.flags & SVC_USED or s.since > f.tick:
        return False
    return d.flags & DEST_USED and d.svc == f.svc and d.since <= f.tick


cdef inline bint chosen_way(Engine *e, Frag *f, const Tuple *t, uint64_t h, int af) noexcept nogil:
    """Sets f.ref and f.table to the record that answers come back by. False: it is gone."""
    cdef Tuple back
    back_from(e, &back, t, f.svc, f.dest, af)
    f.table = af
    f.ref = conn_aside(e, t, h, &back, mode_of(e, f.svc, f.dest), af)
    return f.ref != REF_NONE
