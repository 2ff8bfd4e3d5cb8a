# One-packet scheduling (ipvsadm's --ops): every datagram of the service is scheduled anew. Where answers go past lbd (DR, tunnel)
# nothing is kept: a record from the top of the free ones is filled for the packet, and is free as before. Otherwise an answer needs
# its way back: the record stays, aside (conn.pxd, CONN_ASIDE), one for each real server that the client's tuple has met (open.pxd).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from lbd.datapath.conn cimport CONN_NIL, ConnCommon, conn_common, conn_free
from lbd.datapath.engine cimport Engine, Plan
from lbd.datapath.flow cimport Tuple
from lbd.datapath.forward cimport count_packet, drop, send_out, way_out
from lbd.datapath.hdr cimport PROTO_UDP
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.lookup cimport svc_at
from lbd.datapath.nat cimport rewrite
from lbd.datapath.open cimport back_from, conn_fill, conn_room, scheduled
from lbd.datapath.persist cimport HAND_ASK, PICK_ASKED, dest_for
from lbd.datapath.pkt cimport Pkt, PKT_ICMP_ERROR
from lbd.datapath.reason cimport *
from lbd.datapath.svc cimport DEST_NONE, LIP_NONE, MODE_ONE_WAY, SVC_NONE, SVC_ONE_PACKET
from lbd.datapath.tcp cimport STATE_UDP


cdef inline void one_packet(Engine *e, Pkt *p, const Tuple *t, uint32_t svc, uint32_t dest, int af) noexcept nogil:
    cdef Plan plan
    cdef ConnCommon *c
    cdef uint32_t i = conn_room(e, af)
    if i == CONN_NIL:
        drop(p, REASON_CONN_TABLE_FULL)
        return
    plan.dest = dest
    plan.lip = LIP_NONE
    back_from(e, &plan.back, t, svc, dest, af)
    memcpy(plan.back.daddr, t.saddr, 16)
    plan.back.dport = t.sport
    conn_fill(e, i, t, svc, &plan, af)
    c = conn_common(table_of(e, af), i, af)
    c.state = STATE_UDP
    c.adj_rev = e.client_adj            # most come from the same router: way_out looks
    scheduled(e, svc, dest)
    if way_out(e, p, i, c, 0, af):
        rewrite(p, table_of(e, af), i, 0, af)
        if send_out(e, p, i, c, 0, af):
            count_packet(e, p, c, 0)
            p.verdict = VERDICT_FORWARD
            p.reason = REASON_NONE
    e.client_adj = c.adj_rev
    conn_free(table_of(e, af), i, af)


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
    if dest == PICK_ASKED:
        return True
    p.svc = svc
    p.dest = dest
    if dest == DEST_NONE:
        drop(p, REASON_NO_BACKEND)
    else:
        one_packet(e, p, t, svc, dest, af)
    return True
