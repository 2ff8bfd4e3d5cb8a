# A burst's way through the engine, in stages that each take the whole burst and prefetch for the next:
#     parse → probe (bucket line) → settle (connection line: forward) → open (what has no connection)
# The adapter has filled e's burst (data, len, room, ifin, flags, hops) and afterwards acts on verdict, ifout, data, len.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from lbd.datapath.compiler cimport lbd_apart, lbd_prefetch, lbd_prefetchw, lbd_likely, lbd_unlikely, lbd_ctz, lbd_bswap16
from lbd.datapath.engine cimport Engine, Plan
from lbd.datapath.pkt cimport FRAG_FIRST, FRAG_NONE, FRAME_SLACK, Pkt, PKT_HANDED, PKT_ICMP_ERROR, BURST_MAX
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.hdr cimport PROTO_UDP
from lbd.datapath.reason cimport *
from lbd.datapath.fast cimport (fast_far, fast_forward, fast_hash, fast_leave, fast_parse4, fast_parse6, lane_checksum, lane_finish,
                                lane_takes)
from lbd.datapath.parse cimport parse, KIND_DONE, KIND_FAST, KIND_ICMP, KIND_OUTER
from lbd.datapath.conn cimport (ConnTable, Bucket, REF_LOOK, REF_NONE, conn_bucket, conn_tag, conn_lookup, conn_is, conn4, conn6,
                                lbd_tag_match)
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.forward cimport forward_known, forward_icmp
from lbd.datapath.nat64 cimport far_prefetch, proto6, tuple_map
from lbd.datapath.onepacket cimport one_packet_run, one_packet_settle
from lbd.datapath.owner cimport owner_by_rss, owner_of
from lbd.datapath.orphan cimport orphan_settle, orphaned
from lbd.datapath.relay cimport relay
from lbd.datapath.frag_flow cimport frag_bind, frag_settle
from lbd.datapath.open cimport (STEP_AGAIN, STEP_DONE, STEP_OPEN, guess_again, hand_on, looks_new, may_open, met_before,
                                open_planned, plan_open, resets, start_anew, starts_anew, SVC_UNASKED)
from lbd.datapath.svc cimport SVC_NONE, DEST_NONE
from lbd.datapath.tally cimport tally_enter

cdef enum:
    AHEAD = 6                   # packets ahead of the parser whose headers are prefetched
    GUESSES = 3                 # further local ports for a new connection, before it is looked for one after the other


cdef inline void hashed(Engine *e, uint32_t i, uint64_t h, int af) noexcept nogil:
    e.hash[i] = h
    lbd_prefetch(conn_bucket(table_of(e, af), h))


cdef inline void prepare(Pkt *p) noexcept nogil:
    """For the general way; the fast lane sets them when it forwards."""
    p.svc = SVC_NONE
    p.dest = DEST_NONE
    p.frag = FRAG_NONE
    p.verdict = VERDICT_DROP
    p.reason = REASON_MALFORMED


cdef inline bint fast_keep(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """What fast_parse4 or fast_parse6 has parsed."""
    e.kind[i] = KIND_FAST
    hashed(e, i, fast_hash(e, p, af), af)
    return True


cdef inline bint fast_parse(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    if not lane_takes(e, p):
        return False
    if fast_parse4(p):
        return fast_keep(e, p, i, 4)
    if fast_parse6(p):
        return fast_keep(e, p, i, 6)
    return False


cdef inline void slow_parse(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    prepare(p)
    e.kind[i] = parse(e, p, &e.tuple[i])
    if e.kind[i] == KIND_DONE:
        return
    if p.af == 4:
        hashed(e, i, tuple_hash(&e.tuple[i], e.hash_key, 4), 4)
    else:
        hashed(e, i, tuple_hash(&e.tuple[i], e.hash_key, 6), 6)


cdef inline void stage_parse(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef Pkt *p
    # what leaves by a tunnel or in the longer family begins in the cache line before, which receiving does not touch
    cdef bint grows = (e.tunnel_services | e.nat64) != 0
    for i in range(n):
        if i + AHEAD < n:
            lbd_prefetchw(pkts[i + AHEAD].data)
            if lbd_unlikely(grows):
                lbd_prefetchw(pkts[i + AHEAD].data - FRAME_SLACK)
        p = pkts + i
        if lbd_unlikely(not fast_parse(e, p, i)):
            slow_parse(e, p, i)


cdef inline uint32_t candidate(ConnTable *t, const Bucket *b, uint64_t h, int af) noexcept nogil:
    """The first in this bucket by tag, its record on the way into the cache. REF_NONE: there is none. REF_LOOK: none here, but it
    goes on in an overflow bucket."""
    cdef uint32_t m = lbd_tag_match(b.tag, conn_tag(h))
    cdef uint32_t ref
    if lbd_unlikely(m == 0):
        return REF_NONE if b.next == 0 else REF_LOOK
    ref = b.ref[lbd_ctz(m)]
    if af == 4:
        lbd_prefetchw(conn4(t, ref >> 1))
    else:
        lbd_prefetchw(conn6(t, ref >> 1))
        lbd_prefetchw(<uint8_t *> conn6(t, ref >> 1) + 64)
    return ref


cdef inline uint32_t probe(ConnTable *t, uint64_t h, int af) noexcept nogil:
    cdef const Bucket *b = conn_bucket(t, h)
    cdef uint32_t ref = candidate(t, b, h, af)
    if lbd_unlikely(ref == REF_LOOK):
        lbd_prefetch(t.index + b.next)
    return ref


cdef inline uint32_t probe_on(ConnTable *t, uint64_t h, int af) noexcept nogil:
    """Of one that was to be looked for further on: in the first overflow bucket. A table that is nearly full has one of 60 there;
    without this look each would wait for two lines, one after the other, and then go the general way."""
    return candidate(t, t.index + conn_bucket(t, h).next, h, af)


cdef inline void stage_probe(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint8_t beyond[64]
    cdef uint32_t i, k, on = 0, far = 0
    e.far_probed = e.nat64
    for i in range(n):
        if lbd_unlikely(e.kind[i] == KIND_DONE):
            continue
        pkts[i].ref = probe(&e.t4, e.hash[i], 4) if pkts[i].af == 4 else probe(&e.t6, e.hash[i], 6)
        if lbd_unlikely(pkts[i].ref >= REF_LOOK):
            if lbd_unlikely(pkts[i].ref == REF_LOOK):
                beyond[on] = i
                on += 1
            if e.far_probed and pkts[i].af == 4:
                if e.kind[i] == KIND_FAST:
                    fast_leave(e, pkts + i, &e.tuple[i])
                far_prefetch(e, i)
                e.later[far] = i
                far += 1
    for k in range(on):
        i = beyond[k]
        pkts[i].ref = probe_on(&e.t4, e.hash[i], 4) if pkts[i].af == 4 else probe_on(&e.t6, e.hash[i], 6)
    if lbd_unlikely(far):
        stage_probe_far(e, far)


cdef inline void stage_probe_far(Engine *e, uint32_t n) noexcept nogil:
    """Of the n packets of e.later, IPv4 without a connection in their own table: in the other one."""
    cdef uint8_t beyond[64]
    cdef uint32_t k, on = 0
    for k in range(n):
        e.far_ref[e.later[k]] = probe(&e.t6, e.far_hash[e.later[k]], 6)
        beyond[on] = e.later[k]
        on += e.far_ref[e.later[k]] == REF_LOOK
    for k in range(on):
        e.far_ref[beyond[k]] = probe_on(&e.t6, e.far_hash[beyond[k]], 6)


cdef inline bint settle_known(Engine *e, Pkt *p, uint32_t i, const Tuple *k, uint64_t h, uint32_t ref, int af) noexcept nogil:
    """The general way of a packet that has a connection, in the table of af by tuple k and its hash; ref: a candidate, or REF_NONE.
    False: it has none."""
    cdef ConnTable *t = table_of(e, af)
    # the probe may be stale (a packet before this one made or ended the connection) or a tag's coincidence: look properly
    if lbd_unlikely(ref >= REF_LOOK or not conn_is(t, ref, k, af)):
        ref = conn_lookup(t, k, h, af)
    if ref == REF_NONE:
        return False
    if lbd_unlikely(e.kind[i] == KIND_ICMP):
        forward_icmp(e, p, ref, k.proto, af)
    elif lbd_unlikely(e.kind[i] == KIND_OUTER):
        relay(e, p, ref, af)
    elif lbd_unlikely(starts_anew(e, p, ref, af)):
        start_anew(e, p, i, k, h, ref, af)
    elif lbd_unlikely(orphaned(e, ref, af)):
        return orphan_settle(e, p, ref, af)
    else:
        forward_known(e, p, ref, af)
    return True


cdef inline bint settle_far(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    """An IPv4 packet that the IPv4 table does not know: a NAT64 real server's?"""
    cdef Tuple k
    tuple_map(&k, &e.tuple[i], proto6(e.tuple[i].proto))
    if lbd_likely(p.ref >= REF_LOOK and e.far_probed and k.proto == e.tuple[i].proto):
        return settle_known(e, p, i, &k, e.far_hash[i], e.far_ref[i], 6)
    return settle_known(e, p, i, &k, tuple_hash(&k, e.hash_key, 6), REF_NONE, 6)


cdef inline bint settle_fast(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    if lbd_unlikely(e.kind[i] != KIND_FAST):
        return False
    if lbd_unlikely(p.ref >= REF_LOOK):
        if e.far_probed == 0 or p.af != 4 or p.ref != REF_NONE or e.far_ref[i] >= REF_LOOK:
            return False
        return fast_far(e, p, e.far_ref[i])
    if p.af == 4:
        return fast_forward(e, p, p.ref, 4)
    return fast_forward(e, p, p.ref, 6)


cdef inline void verdict_count(Engine *e, const Pkt *p) noexcept nogil:
    e.count.verdicts[p.verdict] += 1
    if p.verdict == VERDICT_DROP:
        e.count.drops[p.reason] += 1
    elif p.verdict == VERDICT_CONSUME:
        e.count.consumed[p.reason] += 1


cdef inline bint settle(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    """The general way. False: the packet has no connection (yet)."""
    if e.kind[i] == KIND_DONE:
        return True
    if p.af == 6:
        if lbd_unlikely(p.frag != FRAG_NONE) and frag_settle(e, p, i, 6):
            return True
        return settle_known(e, p, i, &e.tuple[i], e.hash[i], p.ref, 6)
    if lbd_unlikely(p.frag != FRAG_NONE) and frag_settle(e, p, i, 4):
        return True
    if settle_known(e, p, i, &e.tuple[i], e.hash[i], p.ref, 4):
        return True
    return e.nat64 != 0 and settle_far(e, p, i)


cdef inline bint settle_one_packet(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    """Without a connection, and needing none."""
    if p.af == 4:
        return one_packet_settle(e, p, i, 4)
    return one_packet_settle(e, p, i, 6)


cdef inline bint missed(const Engine *e, const Pkt *p, uint32_t i, uint64_t made) noexcept nogil:
    """Known without another look that it has no connection: the probe found none, and none was made since (made: how many were by
    then). Not of a fragment, which goes by its datagram."""
    return (p.ref == REF_NONE and e.kind[i] != KIND_DONE and e.count.conns_made == made and p.frag == FRAG_NONE
            and e.nat64 == 0)


cdef inline void conclude(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    """It has its verdict."""
    if lbd_unlikely(p.frag == FRAG_FIRST):
        if e.tuple[i].af == 4:              # (p.af: a tunnel's, perhaps)
            frag_bind(e, p, i, 4)
        else:
            frag_bind(e, p, i, 6)
    verdict_count(e, p)


cdef inline uint32_t look_again(Engine *e, Pkt *p, uint32_t i, Plan *plan, uint32_t svc, uint64_t made) noexcept nogil:
    """What had no connection when the burst came to it (made: connections made by then) may have one now. Returns a Step."""
    if (e.count.conns_made != made or p.frag != FRAG_NONE) and settle(e, p, i):
        return STEP_DONE
    if p.af == 4:
        return plan_open(e, p, i, plan, 0, 4) if may_open(e, p, i, svc, 4) else STEP_DONE
    return plan_open(e, p, i, plan, 0, 6) if may_open(e, p, i, svc, 6) else STEP_DONE


cdef inline void stage_guess(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    """Where ports are in use, of those of the planned connections among n: what does not fit is guessed again, a few times, all
    before the first is opened. To look for one when it is needed is to wait for line after line."""
    cdef uint8_t left[64]
    cdef uint32_t k, j, m, last = 0, _round
    for k in range(n):
        left[last] = k
        last += e.step[k] == STEP_OPEN
    e.ports_met -= last if last < e.ports_met else e.ports_met
    for _round in range(GUESSES):
        m = 0
        for j in range(last):
            k = left[j]
            left[m] = k
            if pkts[e.later[k]].af == 4:
                m += guess_again(e, pkts + e.later[k], e.later[k], &e.plan[k], 4)
            else:
                m += guess_again(e, pkts + e.later[k], e.later[k], &e.plan[k], 6)
        last = m


cdef inline void stage_open(Engine *e, Pkt *pkts, uint32_t n, uint64_t made) noexcept nogil:
    """The n packets of e.later: look which are new, plan, open (see open.pxd). made: connections made before this burst."""
    cdef uint8_t seen[128]
    cdef uint32_t svc[64]
    cdef uint32_t k, i, n4 = 0, n6 = 0
    cdef bint new, reset = False
    memset(seen, 0, sizeof(seen))
    for k in range(n):
        i = e.later[k]
        e.step[k] = STEP_AGAIN
        # a RST (ABORT) may end what an earlier packet opens, and a later one opens it again: from there on in order, one by one
        if resets(pkts + i):
            reset = True
        svc[k] = SVC_UNASKED
        new = looks_new(e, pkts + i, i, &svc[k], 4) if pkts[i].af == 4 else looks_new(e, pkts + i, i, &svc[k], 6)
        if new and not reset and not met_before(seen, e.hash, i):
            e.step[k] = STEP_OPEN
    for k in range(n):
        i = e.later[k]
        if e.step[k] != STEP_OPEN:
            continue
        if pkts[i].af == 4:
            e.step[k] = plan_open(e, pkts + i, i, &e.plan[k], n4, 4)
            n4 += e.step[k] == STEP_OPEN
        else:
            e.step[k] = plan_open(e, pkts + i, i, &e.plan[k], n6, 6)
            n6 += e.step[k] == STEP_OPEN
    if e.ports_met:
        stage_guess(e, pkts, n)
    for k in range(n):
        i = e.later[k]
        if e.step[k] == STEP_AGAIN:
            e.step[k] = look_again(e, pkts + i, i, &e.plan[k], svc[k], made)
        if e.step[k] == STEP_OPEN:
            if pkts[i].af == 4:
                open_planned(e, pkts + i, i, &e.plan[k], 4)
            else:
                open_planned(e, pkts + i, i, &e.plan[k], 6)
        conclude(e, pkts + i, i)


cdef inline uint32_t settle_run(Engine *e, Pkt *pkts, uint32_t i, uint32_t n, uint64_t made) noexcept nogil:
    """How many of the n packets, from the i-th on, are settled since they are for a one-packet service and known to have no
    connection: the probe found none, and none was made since (made: how many were by then)."""
    cdef Pkt *p = pkts + i
    if e.kind[i] != KIND_FAST or p.ref != REF_NONE or p.proto != PROTO_UDP or e.count.conns_made != made:
        return 0
    if p.af == 4 and e.far_probed:
        if e.far_ref[i] != REF_NONE:
            return 0
        n = i + 1                               # the next one may have one in the other table
    return one_packet_run(e, pkts, i, n)


cdef inline bint settle_elsewhere(Engine *e, Pkt *p, uint32_t i, uint64_t made) noexcept nogil:
    """A packet of the lane that has no connection here: another worker's, by its hash alone? Where the NICs' choice of queue isn't
    known that is what most such packets are, and what hand_over would find after a longer way."""
    cdef uint32_t owner
    if (e.workers == 1 or e.kind[i] != KIND_FAST or p.ref != REF_NONE or e.count.conns_made != made or p.flags & PKT_HANDED
            or (p.hops | e.hand[i] | e.far_probed | e.one_packet_services | e.nat_services | e.nat_gone) != 0
            or owner_by_rss(e, p.proto, e.epoch)):
        return False
    owner = owner_of(e, <uint32_t> (e.hash[i] >> 32), e.epoch)
    if owner == e.worker or owner >= e.workers:
        return False
    prepare(p)
    e.count.misplaced += 1
    hand_on(p, owner)
    verdict_count(e, p)
    return True


cdef inline bint settle_general(Engine *e, Pkt *p, uint32_t i, uint64_t made) noexcept nogil:
    """False: the packet has no connection (yet). made: connections made before this burst."""
    if e.kind[i] == KIND_FAST:
        fast_leave(e, p, &e.tuple[i])
        prepare(p)
    if ((not missed(e, p, i, made) and settle(e, p, i))
            or (e.one_packet_services and settle_one_packet(e, p, i))):
        conclude(e, p, i)
        return True
    return False


cdef inline lbd_apart settle_others(Engine *e, Pkt *pkts, uint32_t i, uint32_t n, uint64_t made, uint32_t *later) noexcept nogil:
    """The i-th packet, which the lane has not settled, and those after it that it needn't be asked about, having no candidate.
    Returns the number of the next one that is for the lane. later: how many are in e.later."""
    cdef uint32_t k
    while True:
        k = 0
        if e.one_packet_services:
            k = settle_run(e, pkts, i, n, made)
            i += k
        if k:
            e.count.verdicts[<int> VERDICT_FORWARD] += k
        else:
            if not settle_elsewhere(e, pkts + i, i, made) and not settle_general(e, pkts + i, i, made):
                e.later[later[0]] = i
                later[0] += 1
            i += 1
        if i == n or e.far_probed or (e.kind[i] == KIND_FAST and pkts[i].ref < REF_LOOK):
            return i


cdef inline void stage_settle(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i = 0, fast = 0, later = 0
    cdef uint64_t made = e.count.conns_made
    while i < n:
        if lbd_likely(settle_fast(e, pkts + i, i)):
            fast += 1
            i += 1
        else:
            i = settle_others(e, pkts, i, n, made, &later)
    e.count.verdicts[<int> VERDICT_FORWARD] += fast
    if lbd_unlikely(later):
        stage_open(e, pkts, later, made)


cdef inline void stage_partial(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    """Behind a local stack: which checksums of what is in the lane are partial."""
    cdef uint32_t i
    for i in range(n):
        if e.kind[i] == KIND_FAST:
            lane_checksum(e, pkts + i)


cdef inline void stage_finish(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        lane_finish(e, pkts + i)


cdef inline void engine_burst(Engine *e, Pkt *pkts, uint32_t n, uint64_t now_ns) noexcept nogil:
    """Decides and rewrites n (≤ BURST_MAX) packets in place; now_ns: CLOCK_MONOTONIC, or a capture's own time."""
    e.now_ns = now_ns
    e.now_ms = <uint32_t> (now_ns // 1000000)
    stage_parse(e, pkts, n)
    if lbd_unlikely(e.partial):
        stage_partial(e, pkts, n)
    stage_probe(e, pkts, n)
    stage_settle(e, pkts, n)
    if lbd_unlikely(e.partial):
        stage_finish(e, pkts, n)
    if lbd_unlikely(e.due_n):
        tally_enter(e)
