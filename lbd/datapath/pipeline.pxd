# A burst's way through the engine, in stages that each take the whole burst and prefetch for the next:
#     parse → probe (bucket line) → settle (connection line: forward, or the miss path)
# The adapter has filled e's burst (data, len, room, ifin, flags, hops) and afterwards acts on verdict, ifout, data, len.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from lbd.datapath.compiler cimport lbd_prefetch, lbd_prefetchw, lbd_likely, lbd_unlikely, lbd_ctz, lbd_bswap16
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt, PKT_HANDED, PKT_ICMP_ERROR, BURST_MAX
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.reason cimport *
from lbd.datapath.fast cimport fast_parse, fast_forward
from lbd.datapath.parse cimport parse, KIND_DONE, KIND_FAST, KIND_ICMP
from lbd.datapath.conn cimport (ConnTable, Bucket, REF_NONE, conn_bucket, conn_tag, conn_lookup, conn_is, conn4, conn6,
                                lbd_tag_match)
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.forward cimport forward_known, forward_icmp, conn_open, start_anew, starts_anew, drop
from lbd.datapath.owner cimport flow_owner
from lbd.datapath.sched cimport schedule
from lbd.datapath.lookup cimport svc_lookup, lip_lookup
from lbd.datapath.svc cimport SVC_NONE, DEST_NONE, LIP_NONE
from lbd.datapath.hdr cimport PROTO_TCP, TCP_SYN, TCP_ACK, TCP_RST

cdef enum:
    HOPS_MAX = 3                # this epoch's owner, the previous epoch's, and back
    AHEAD = 6                   # packets ahead of the parser whose headers are prefetched


cdef inline void hash_and_prefetch(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    cdef uint64_t h = tuple_hash(&e.tuple[i], e.hash_key, af)
    e.hash[i] = h
    lbd_prefetch(conn_bucket(table_of(e, af), h))


cdef inline void prepare(Pkt *p) noexcept nogil:
    """For the general way; the fast lane sets them when it forwards."""
    p.svc = SVC_NONE
    p.dest = DEST_NONE
    p.verdict = VERDICT_DROP
    p.reason = REASON_MALFORMED


cdef inline void stage_parse(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef Pkt *p
    for i in range(n):
        if i + AHEAD < n:
            lbd_prefetchw(pkts[i + AHEAD].data)
        p = pkts + i
        if lbd_likely(fast_parse(e, p, &e.tuple[i])):
            e.kind[i] = KIND_FAST
        else:
            prepare(p)
            e.kind[i] = parse(e, p, &e.tuple[i])
        if lbd_likely(e.kind[i] != KIND_DONE):
            if p.af == 4:
                hash_and_prefetch(e, p, i, 4)
            else:
                hash_and_prefetch(e, p, i, 6)


cdef inline uint32_t probe(ConnTable *t, uint64_t h, int af) noexcept nogil:
    """First candidate by tag in the primary bucket, its record on the way into the cache; REF_NONE: none."""
    cdef Bucket *b = conn_bucket(t, h)
    cdef uint32_t m = lbd_tag_match(b.tag, conn_tag(h))
    cdef uint32_t ref
    if m == 0:
        return REF_NONE
    ref = b.ref[lbd_ctz(m)]
    if af == 4:
        lbd_prefetchw(conn4(t, ref >> 1))
    else:
        lbd_prefetchw(conn6(t, ref >> 1))
        lbd_prefetchw(<uint8_t *> conn6(t, ref >> 1) + 64)
    return ref


cdef inline void stage_probe(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if lbd_unlikely(e.kind[i] == KIND_DONE):
            continue
        if pkts[i].af == 4:
            pkts[i].ref = probe(&e.t4, e.hash[i], 4)
        else:
            pkts[i].ref = probe(&e.t6, e.hash[i], 6)


cdef inline bint hand_over(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """On a local miss: is the flow another worker's? This epoch's owner is asked, and it asks the previous epoch's where that is
    still valid; there on a miss the packet comes back, and the owner may open a connection. At most three hops."""
    cdef uint32_t owner
    if e.workers == 1:
        return False
    owner = flow_owner(e, &e.tuple[i], e.hash[i], af, 0)
    if owner != e.worker and not p.flags & PKT_HANDED:
        e.count.misplaced += 1
    if owner == e.worker:
        # a SYN opens a connection: no need to ask where it lived before
        if not e.owner_prev_valid or p.hops > 1 or (
                p.proto == PROTO_TCP and (p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN and e.kind[i] != KIND_ICMP):
            return False
        owner = flow_owner(e, &e.tuple[i], e.hash[i], af, 1)
        if owner == e.worker:
            return False
    if p.hops >= HOPS_MAX or owner >= e.workers:
        drop(p, REASON_HOP_LIMIT)
        return True
    p.verdict = VERDICT_HANDOVER
    p.reason = REASON_NONE
    p.owner = owner
    return True


cdef inline void miss(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """No connection here: another worker's, a new one, or nobody's."""
    cdef Tuple *t = &e.tuple[i]
    cdef uint32_t dest, ref, svc
    if hand_over(e, p, i, af):
        return
    if e.kind[i] == KIND_ICMP:
        drop(p, REASON_ICMP_UNMATCHED)
        if svc_lookup(e, t.daddr, t.dport, t.proto, af) == SVC_NONE and not lip_port(e, t, af):
            p.verdict = VERDICT_KERNEL
        return
    svc = svc_lookup(e, t.daddr, t.dport, t.proto, af)
    if svc == SVC_NONE:
        if not lip_port(e, t, af):
            p.verdict = VERDICT_KERNEL
            p.reason = REASON_NOT_FOR_US
            return
        drop(p, REASON_NO_STATE)
        return
    p.svc = svc
    if t.proto == PROTO_TCP and (p.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN:
        drop(p, REASON_NO_STATE)
        return
    dest = schedule(e, e.svc + svc, t)
    if dest == DEST_NONE:
        drop(p, REASON_NO_BACKEND)
        return
    ref = conn_open(e, p, t, svc, dest, af)
    if ref != REF_NONE:
        forward_known(e, p, ref, af)


cdef inline bint lip_port(Engine *e, const Tuple *t, int af) noexcept nogil:
    """Is its destination a local address and a port of lbd's own range? The address's other ports are the kernel's."""
    cdef uint32_t lip = lip_lookup(e, t.daddr, af)
    return lip != LIP_NONE and e.lip[lip].port_lo <= lbd_bswap16(t.dport) <= e.lip[lip].port_hi


cdef inline void settle(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """The general way."""
    cdef ConnTable *t = table_of(e, af)
    cdef Tuple *k = &e.tuple[i]
    cdef uint32_t ref = p.ref
    # the probe may be stale (a packet before this one made or ended the connection) or a tag's coincidence: look properly
    if lbd_unlikely(ref == REF_NONE or not conn_is(t, ref, k, af)):
        ref = conn_lookup(t, k, e.hash[i], af)
    if lbd_unlikely(ref == REF_NONE):
        miss(e, p, i, af)
    elif lbd_unlikely(e.kind[i] == KIND_ICMP):
        forward_icmp(e, p, ref, k.proto, af)
    elif lbd_unlikely(starts_anew(e, p, ref, af)):
        start_anew(e, p, k, e.hash[i], ref, af)
    else:
        forward_known(e, p, ref, af)


cdef inline bint settle_fast(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    if e.kind[i] != KIND_FAST or p.ref == REF_NONE:
        return False
    if p.af == 4:
        return fast_forward(e, p, &e.tuple[i], p.ref, 4)
    return fast_forward(e, p, &e.tuple[i], p.ref, 6)


cdef inline void verdict_count(Engine *e, const Pkt *p) noexcept nogil:
    e.count.verdicts[p.verdict] += 1
    if p.verdict == VERDICT_DROP:
        e.count.drops[p.reason] += 1
    elif p.verdict == VERDICT_CONSUME:
        e.count.consumed[p.reason] += 1


cdef inline void settle_slowly(Engine *e, Pkt *p, uint32_t i) noexcept nogil:
    if e.kind[i] != KIND_DONE:
        if e.kind[i] == KIND_FAST:
            prepare(p)
        if p.af == 4:
            settle(e, p, i, 4)
        else:
            settle(e, p, i, 6)
    verdict_count(e, p)


cdef inline void stage_settle(Engine *e, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i, fast = 0
    for i in range(n):
        if lbd_likely(settle_fast(e, pkts + i, i)):
            fast += 1
        else:
            settle_slowly(e, pkts + i, i)
    e.count.verdicts[<int> VERDICT_FORWARD] += fast


cdef inline void engine_burst(Engine *e, Pkt *pkts, uint32_t n, uint64_t now_ns) noexcept nogil:
    """Decides and rewrites n (≤ BURST_MAX) packets in place; now_ns: CLOCK_MONOTONIC, or a capture's own time."""
    e.now_ns = now_ns
    e.now_ms = <uint32_t> (now_ns // 1000000)
    stage_parse(e, pkts, n)
    stage_probe(e, pkts, n)
    stage_settle(e, pkts, n)
