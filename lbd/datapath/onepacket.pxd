# One-packet scheduling (ipvsadm's --ops): every datagram of the service is scheduled anew. Where answers go past lbd (DR, tunnel)
# nothing is kept: a record from the top of the free ones is filled for the packet, and is free as before (DR's neighbours don't
# need even that). Otherwise an answer needs its way back: the record stays, aside (conn.pxd, CONN_ASIDE), one for each real server
# that the client's tuple has met (open.pxd).
#
# A datagram in fragments is one: its first fragment is scheduled, and its table entry (frag.pxd) remembers for the others what was
# chosen. That is done by the fragments' owner or, where answers come back, by the flow's.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport (lbd_apart, lbd_copy12, lbd_inlined, lbd_ld16, lbd_ld32, lbd_ld64, lbd_likely, lbd_st32,
                                    lbd_unlikely)
from lbd.datapath.conn cimport CONN_NIL, REF_NONE, ConnCommon, addr6_is, conn_common, conn_free
from lbd.datapath.engine cimport Engine, Plan
from lbd.datapath.fast cimport ends_of, lane_bytes, leaves_by
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
from lbd.datapath.parse cimport KIND_FAST
from lbd.datapath.pkt cimport Pkt, PKT_HANDED, PKT_ICMP_ERROR, PKT_PARTIAL, PKT_TUNNEL
from lbd.datapath.quic cimport QUIC_NONE
from lbd.datapath.reason cimport *
from lbd.datapath.sched cimport client_hash, next_slot
from lbd.datapath.svc cimport (Dest, DEST_NONE, DEST_UP, DEST_USED, MODE_BITS, MODE_DR, MODE_ONE_WAY, SCHED_HASH, SCHED_SEQ,
                               SVC_ALIAS, SVC_HASH_PORT, SVC_HASH_QID, SVC_NONE, SVC_ONE_PACKET, SVC_PERSIST, SVC_USED, Svc)
from lbd.datapath.tally cimport DESTS_NEAR, stat_scheduled, tally, tally_scheduled
from lbd.datapath.tcp cimport STATE_UDP


cdef enum:
    LANE_SCHED = 0xff & ~(SCHED_SEQ | SCHED_HASH)       # of a scheduler's number what says that it is none of these
    NOT_SPORT = 0xffff0000ffffffff                      # of destination, source port and destination port, little-endian


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


cdef inline bint reaches(const Adj *a, const uint8_t *frame, uint32_t bytes, int af) noexcept nogil:
    """May an untagged packet of so many layer 3 bytes go that way as it is?"""
    return bytes <= a.reach and frame[ETH_HLEN + (8 if af == 4 else 7)] > 1


cdef inline bint neighbour(const Engine *e, const Pkt *p, uint32_t dest, int af) noexcept nogil:
    """Is the way to this real server known, and no gateway's? (ADJ_NONE reaches nothing.)"""
    cdef const Dest *d = e.dest + dest
    if p.flags & (PKT_TUNNEL | PKT_PARTIAL) or d.fib_gen != e.fib_gen[0] or not addr6_is(e.adj[d.adj].addr, d.addr):
        return False
    return reaches(e.adj + d.adj, p.data, p.l3_len, af)


cdef inline void to_neighbour(Pkt *p, uint8_t *frame, const Adj *a, uint32_t svc, uint32_t dest, int af) noexcept nogil:
    """But for verdict and interface."""
    lbd_st32(&p.svc, svc | dest << 16)          # and dest
    hop(frame + ETH_HLEN, TTL_DELTA if af == 4 else 0, af)
    lbd_copy12(frame, a.dmac)


cdef inline void one_packet(Engine *e, Pkt *p, const Tuple *t, uint32_t svc, uint32_t dest, bint fresh, int af) noexcept nogil:
    """To this real server, whose answers go past lbd. fresh: it was scheduled now."""
    cdef const Adj *a = e.adj + e.dest[dest].adj
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
    to_neighbour(p, p.data, a, svc, dest, af)
    p.ifout = a.iface                           # not by leaves_by: a fragment stays one
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE


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
    return svc_by_words(e, first, second, vport, PROTO_UDP, af)


cdef inline bint lane_serves(const Svc *s) noexcept nogil:
    """One packet, DR; its real server by the table alone, at once. Scheduler, mode and flags as one word, little-endian."""
    cdef uint32_t asked = LANE_SCHED | MODE_BITS << 8 | (SVC_ONE_PACKET | SVC_ALIAS | SVC_PERSIST | SVC_HASH_QID) << 16
    if lbd_ld32(&s.sched) & asked != (MODE_DR << 8 | SVC_ONE_PACKET << 16):
        return False
    return s.quic == QUIC_NONE and s.table_len != 0


cdef inline bint near(Dest *d, const Adj *adj, uint32_t gen) noexcept nogil:
    """A neighbour whose way is known, and that takes every connection: what is asked of it once, while nothing changes. gen:
    Engine.fib_gen."""
    if lbd_likely(d.near == gen + 1):
        return True
    if (d.flags & (DEST_USED | DEST_UP)) != (DEST_USED | DEST_UP) or d.weight == 0 or d.upper != 0:
        return False
    if d.fib_gen != gen or not addr6_is(adj[d.adj].addr, d.addr):
        return False
    d.near = gen + 1
    return True


cdef inline bint strange(const Engine *e, const Pkt *p, uint32_t i, int af) noexcept nogil:
    """A datagram of this family that came in the lane, and has no candidate? (One from another worker may carry a question,
    Engine.hand; one with a partial checksum is to be completed.)"""
    if e.kind[i] != KIND_FAST or p.ref != REF_NONE or p.flags & (PKT_HANDED | PKT_PARTIAL | PKT_TUNNEL):
        return False
    return lbd_ld16(&p.af) == (af | PROTO_UDP << 8)         # and proto, little-endian


cdef inline bint is_for(const uint8_t *ends, uint64_t first, uint64_t second, uint16_t vport, int af) noexcept nogil:
    """To this address (16 bytes as two words, IPv4 padded with zeros) and port? ends: of a packet."""
    if af == 4:
        return lbd_ld64(ends + 4) & <uint64_t> NOT_SPORT == (first | <uint64_t> vport << 48)
    return lbd_ld64(ends + 16) == first and lbd_ld64(ends + 24) == second and lbd_ld16(ends + 34) == vport


cdef inline uint32_t lane_hash(const uint8_t *ends, uint32_t ports, int af) noexcept nogil:
    """stable_hash of the client. ports: the bits of its port that take part."""
    if af == 4:
        return client_hash(lbd_ld32(ends), 0, lbd_ld16(ends + 8) & ports, True, 0)
    return client_hash(lbd_ld64(ends), lbd_ld64(ends + 8), lbd_ld16(ends + 32) & ports, True, 0)


cdef inline lbd_inlined run_by(Engine *e, Pkt *pkts, uint32_t first, uint32_t n, uint32_t svc, bint turns, int af) noexcept nogil:
    """Of this service, which the first is for. turns: its real servers have the datagrams in turn, not by hash."""
    cdef Svc *s = e.svc + svc
    cdef const uint32_t *table = e.arena + s.table_off
    cdef uint64_t va = lbd_ld64(s.vaddr), vb = lbd_ld64(s.vaddr + 8)
    cdef uint32_t i = first, slot = 0, dest, bytes, all_bytes = 0, gen = e.fib_gen[0]
    cdef uint32_t slots = s.table_len, ports = 0xffff if s.flags & SVC_HASH_PORT else 0
    cdef uint16_t vport = s.vport
    cdef bint few = e.dests <= DESTS_NEAR
    cdef uint8_t *frame
    cdef Pkt *p
    cdef Dest *d
    cdef const Adj *a
    p = pkts + i
    while True:
        frame = p.data
        slot = next_slot(s) if turns else lane_hash(ends_of(frame, af), ports, af) % slots
        dest = table[slot]
        if dest >= e.max_dest:
            break
        d = e.dest + dest
        if not near(d, e.adj, gen):
            break
        a = e.adj + d.adj
        bytes = lane_bytes(p)
        if not reaches(a, frame, bytes, af):
            break
        if turns:
            s.cursor = slot
        if lbd_likely(few):
            all_bytes += bytes
            stat_scheduled(e.dest_stat + dest, 1, bytes)
        else:
            tally_scheduled(e, svc, dest, bytes)
        to_neighbour(p, frame, a, svc, dest, af)
        leaves_by(p, a)
        i += 1
        p += 1
        if i == n or not strange(e, p, i, af) or not is_for(ends_of(p.data, af), va, vb, vport, af):
            break
    if lbd_likely(few):
        stat_scheduled(e.svc_stat + svc, i - first, all_bytes)
    return i - first


cdef inline lbd_inlined runs_of(Engine *e, Pkt *pkts, uint32_t first, uint32_t n, int af) noexcept nogil:
    cdef uint32_t i = first, k, svc
    while i < n and strange(e, pkts + i, i, af):
        svc = lane_service(e, ends_of(pkts[i].data, af), af)
        if svc == SVC_NONE or not lane_serves(e.svc + svc):
            break
        e.one_packet_last = svc
        k = run_by(e, pkts, i, n, svc, True, af) if e.svc[svc].sched == SCHED_SEQ else run_by(e, pkts, i, n, svc, False, af)
        if k == 0:
            break
        i += k
    return i - first


cdef inline lbd_apart one_packet_run(Engine *e, Pkt *pkts, uint32_t first, uint32_t n) noexcept nogil:
    """Of n packets, as many from the first on, which came in the lane, as are of its family, for one-packet services, and can be
    sent at once: what one_packet_settle does of nearly all of DR's, without a tuple. Returns how many. The others are as they came,
    and so is the scheduler. Runs of packets for the same service share what is asked of that."""
    return runs_of(e, pkts, first, n, 4) if pkts[first].af == 4 else runs_of(e, pkts, first, n, 6)


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
