# One-packet scheduling (ipvsadm's --ops): every datagram of the service is scheduled anew. Where answers go past lbd (DR, tunnel)
# nothing is kept: a record from the top of the free ones is filled for the packet, and is free as before (DR's neighbours don't
# need even that). Otherwise an answer needs its way back: the record stays, aside (conn.pxd, CONN_ASIDE), one for each real server
# that the client's tuple has met (open.pxd).
#
# A datagram in fragments is one: its first fragment is scheduled, and its table entry (frag.pxd) remembers for the others what was
# chosen. That is done by the fragments' owner or, where answers come back, by the flow's.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_copy12, lbd_unlikely
from lbd.datapath.conn cimport CONN_NIL, REF_NONE, ConnCommon, addr6_is, conn_common, conn_free
from lbd.datapath.engine cimport Engine, Plan
from lbd.datapath.flow cimport Tuple
from lbd.datapath.frag cimport Frag
from lbd.datapath.forward cimport count_packet, drop, send_out, way_out
from lbd.datapath.hdr cimport ETH_HLEN, PROTO_UDP
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.lookup cimport svc_at
from lbd.datapath.nat cimport TTL_DELTA, hop, rewrite
from lbd.datapath.neigh cimport ADJ_NONE, Adj
from lbd.datapath.open cimport back_from, client_end, conn_aside, conn_fill, conn_room, mode_of, scheduled
from lbd.datapath.persist cimport HAND_ASK, PICK_ASKED, dest_for, tick_now
from lbd.datapath.pkt cimport Pkt, PKT_ICMP_ERROR, PKT_PARTIAL, PKT_TUNNEL
from lbd.datapath.reason cimport *
from lbd.datapath.svc cimport Dest, DEST_NONE, DEST_USED, MODE_DR, MODE_ONE_WAY, SVC_NONE, SVC_ONE_PACKET, SVC_USED, Svc
from lbd.datapath.tally cimport tally
from lbd.datapath.tcp cimport STATE_UDP


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


cdef inline bint neighbour(Engine *e, Pkt *p, uint32_t svc, uint32_t dest, bint fresh, int af) noexcept nogil:
    """To a real server of DR whose way is known, what needs no record at all. False: as it came."""
    cdef const Dest *d = e.dest + dest
    cdef const Adj *a = e.adj + d.adj
    cdef uint8_t *ip = p.data + p.l3
    if e.svc[svc].mode != MODE_DR or d.fib_gen != e.fib_gen[0] or d.adj == ADJ_NONE or p.l3 != ETH_HLEN:
        return False
    if p.l3_len > a.reach or ip[8 if af == 4 else 7] <= 1 or p.flags & (PKT_TUNNEL | PKT_PARTIAL):
        return False
    if not addr6_is(a.addr, d.addr):            # behind a gateway
        return False
    hop(ip, TTL_DELTA if af == 4 else 0, af)
    lbd_copy12(p.data, a.dmac)
    if fresh:
        scheduled(e, svc, dest)
    tally(e, svc, dest, 0, p.l3_len)
    p.ifout = a.iface
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
    return True


cdef inline void one_packet(Engine *e, Pkt *p, const Tuple *t, uint32_t svc, uint32_t dest, bint fresh, int af) noexcept nogil:
    """To this real server, whose answers go past lbd. fresh: it was scheduled now."""
    p.svc = svc
    p.dest = dest
    if lbd_unlikely(not neighbour(e, p, svc, dest, fresh, af)):
        by_record(e, p, t, svc, dest, fresh, af)


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
