# What becomes of a burst's fragments. The first one of a datagram has the ports: it goes the general way, and opens a connection
# if need be. What became of it is remembered (frag.pxd), and the later ones follow; they wait if they are early. Their addresses
# are rewritten; the datagram's transport checksum lies in the first one, and takes the same delta as a whole packet's.
#
# Where that delta depends on the datagram's length (sums_length of forward.pxd), the first one is held, too, until the last one has
# told.
#
# Several workers: whoever receives a fragment gives it to the fragments' owner (owner.pxd), which sees all of a datagram. It sends
# the first one the way that any packet goes from there, and remembers to which worker; that one remembers what it did. So the
# later ones go the first one's way, behind it: rings keep order.
#
# A datagram that is rewritten gets an identification of this worker's own: its new source is shared with others' datagrams, whose
# identifications may be the same (RFC 6864 §5), by chance or by the intent of a client that wants another's reassembled wrongly.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ld16, lbd_ld32, lbd_st16, lbd_st32
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport FRAG_FIRST, FRAG_LATER, Pkt, PKT_HANDED, PKT_ROUTED
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.hdr cimport IP_MF, IP_OFFMASK, IpHdr, PROTO_FRAGMENT
from lbd.datapath.csum cimport csum_add, csum_diff, csum_fold
from lbd.datapath.reason cimport *
from lbd.datapath.conn cimport CONN_ONE_WAY, REF_NONE, conn_common, conn_is, conn_lookup
from lbd.datapath.frag cimport (FRAG_AWAITED, FRAG_AWAY, FRAG_BOUND, FRAG_CHOSEN, FRAG_KERNEL, FRAG_NIL, FRAG_REFUSED,
                                FRAG_WAITING, Frag, frag_known, frag_make, frag_move, frag_passed)
from lbd.datapath.frag_held cimport frag_decide, frag_hold, frag_release
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.nat64 cimport proto6, tuple_map
from lbd.datapath.onepacket cimport choose, chosen_way, one_packet, still_chosen
from lbd.datapath.owner cimport fragment_owner
from lbd.datapath.forward cimport drop, forward_known
from lbd.datapath.open cimport HOPS_ASKING, HOPS_MAX, hand_on
from lbd.datapath.parse cimport KIND_LEFT
from lbd.datapath.svc cimport MODE_ONE_WAY


cdef inline uint32_t frag_offset(const Pkt *p, int af, bint *last) noexcept nogil:
    """Where its payload begins in the datagram's, and whether it ends there; of a packet that was not rewritten."""
    cdef uint32_t at
    if af == 4:
        at = lbd_bswap16((<const IpHdr *> (p.data + p.l3)).frag_off)
        last[0] = not at & IP_MF
        return (at & IP_OFFMASK) * 8
    at = lbd_bswap16(lbd_ld16(p.data + p.l3 + p.inner + 2))
    last[0] = not at & 1
    return at & ~<uint32_t> 7


cdef inline void frag_key(Tuple *k, const Tuple *t, uint32_t ident, int af) noexcept nogil:
    memset(k, 0, sizeof(Tuple))
    memcpy(k.saddr, t.saddr, 32)
    lbd_st32(&k.sport, ident)
    k.proto = t.proto if af == 4 else PROTO_FRAGMENT
    k.af = af


cdef inline bint hand_to_owner(Engine *e, Pkt *p, const Tuple *k, uint64_t h, int af) noexcept nogil:
    """Every fragment passes the fragments' owner, once; who gets one that did not was taken for it by the sender, and is it. Its
    hops are counted anew from there. True: handed over."""
    cdef uint32_t owner
    if p.flags & PKT_ROUTED:
        return False
    if e.workers > 1 and not p.flags & PKT_HANDED:
        owner = fragment_owner(e, k, h, af)
        if owner != e.worker and owner < e.workers and p.hops < HOPS_MAX:
            e.count.misplaced += 1
            return hand_on(p, owner)
    p.flags |= PKT_ROUTED
    p.hops = 0
    return False


cdef inline void ident_write(Engine *e, Pkt *p, const Frag *f) noexcept nogil:
    """Into a packet that was rewritten (by a record that stays)."""
    cdef uint32_t ident = f.ident * e.workers + e.worker
    cdef IpHdr *ip
    cdef uint16_t new
    if f.ref == REF_NONE or conn_common(table_of(e, f.table), f.ref >> 1, f.table).flags & CONN_ONE_WAY:
        return
    if p.af == 4:
        ip = <IpHdr *> (p.data + p.l3)
        new = lbd_bswap16(<uint16_t> ident)
        ip.check = csum_add(ip.check, csum_fold(csum_diff(&ip.id, &new, 2, 0)))
        ip.id = new
    else:
        lbd_st32(p.data + p.l3 + p.inner + 4, lbd_bswap32(ident))


cdef inline bint is_bound(Engine *e, const Frag *f, const Tuple *t, int af) noexcept nogil:
    """Is f.ref still this tuple's connection?"""
    cdef Tuple k
    if f.ref == REF_NONE:
        return False
    if f.table == af:
        return conn_is(table_of(e, af), f.ref, t, af)
    tuple_map(&k, t, proto6(t.proto))
    return conn_is(&e.t6, f.ref, &k, 6)


cdef inline bint bind(Engine *e, Frag *f, const Tuple *t, uint64_t h, int af) noexcept nogil:
    """Sets f.ref and f.table by a tuple as packets carry it. False: it has no connection."""
    cdef Tuple k
    f.table = af
    f.ref = conn_lookup(table_of(e, af), t, h, af)
    if af == 4 and f.ref == REF_NONE and e.nat64:
        tuple_map(&k, t, proto6(t.proto))
        f.table = 6
        f.ref = conn_lookup(&e.t6, &k, tuple_hash(&k, e.hash_key, 6), 6)
    return f.ref != REF_NONE


cdef inline void hold(Engine *e, Pkt *p, uint32_t n) noexcept nogil:
    cdef uint32_t why = frag_hold(e, e.frags, n, p)
    if why != REASON_NONE:
        drop(p, why)
        return
    p.verdict = VERDICT_HOLD
    p.reason = REASON_NONE


# --- the first one ---------------------------------------------------------------------------------------------------

cdef inline bint as_chosen(Engine *e, Pkt *p, const Tuple *t, Frag *f, int af) noexcept nogil:
    """To the real server that its datagram was given: a later fragment, or a first one that comes twice and is not scheduled twice.
    False: that is gone."""
    if not still_chosen(e, f):
        return False
    if e.svc[f.svc].mode & MODE_ONE_WAY:
        f.ref = REF_NONE
        one_packet(e, p, t, f.svc, f.dest, False, af)
        return True
    if not chosen_way(e, f, t, tuple_hash(t, e.hash_key, af), af):
        return False
    forward_known(e, p, f.ref, af)
    return True


cdef inline bint frag_first(Engine *e, Pkt *p, const Tuple *t, int af) noexcept nogil:
    """Before it goes the general way. True: it has its verdict."""
    cdef Tuple k
    cdef uint64_t h
    cdef uint32_t n
    cdef Frag *f
    frag_key(&k, t, p.frag_id, af)
    h = tuple_hash(&k, e.hash_key, af)
    if hand_to_owner(e, p, &k, h, af):
        return True
    n = frag_known(e.frags, &k, h, e.now_ms)
    if n != FRAG_NIL:
        f = e.frags.entry + n
        if f.state != FRAG_WAITING and (f.sport != t.sport or f.dport != t.dport or f.proto != t.proto):
            n = FRAG_NIL                    # another datagram: the sender is through with its identifications
    if n == FRAG_NIL:
        n = frag_make(e.frags, &k, h, e.now_ms, e.count)
    f = e.frags.entry + n
    f.sport = t.sport
    f.dport = t.dport
    f.proto = t.proto
    p.beyond = f.total - p.frag_size if f.total > p.frag_size else 0
    if f.state == FRAG_AWAY:                # it came back, the later ones behind it: where it goes from here is not known yet
        f.state = FRAG_WAITING
        frag_move(e.frags, n, FRAG_AWAITED, e.now_ms)
    return f.state == FRAG_CHOSEN and as_chosen(e, p, t, f, af)


cdef inline void frag_bind(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """The first one has its verdict: the others follow."""
    cdef const Tuple *t = &e.tuple[i]
    cdef Tuple k
    cdef Frag *f
    cdef uint32_t n, state = FRAG_REFUSED
    if not p.flags & PKT_ROUTED:            # on its way to the fragments' owner
        return
    frag_key(&k, t, p.frag_id, af)
    n = frag_known(e.frags, &k, tuple_hash(&k, e.hash_key, af), e.now_ms)
    if n == FRAG_NIL:                       # others of this burst took its place
        if p.verdict == VERDICT_HOLD:
            drop(p, REASON_FRAG_TABLE_FULL)
        return
    f = e.frags.entry + n
    if p.verdict == VERDICT_HOLD:
        hold(e, p, n)
        if p.verdict == VERDICT_HOLD:
            return
    if p.verdict == VERDICT_FORWARD:
        if bind(e, f, t, e.hash[i], af):    # else it ended the connection
            state = FRAG_BOUND
            ident_write(e, p, f)
        elif choose(e, f, p):
            state = FRAG_CHOSEN
            if not e.svc[f.svc].mode & MODE_ONE_WAY and chosen_way(e, f, t, e.hash[i], af):
                ident_write(e, p, f)
        e.count.frag_forwarded += 1
    elif p.verdict == VERDICT_HANDOVER:
        state = FRAG_AWAY
        f.worker = p.owner
    elif p.verdict == VERDICT_KERNEL:
        state = FRAG_KERNEL
    frag_decide(e.frags, n, state, e.now_ms)
    frag_passed(e.frags, n, 0, p.frag_size, False, e.now_ms)


# --- the later ones --------------------------------------------------------------------------------------------------

cdef inline bint as_bound(Engine *e, Pkt *p, const Tuple *t, Frag *f, int af) noexcept nogil:
    """By its datagram's connection; of that one's records by the live one, if it went on to another real server meanwhile. False:
    it is gone."""
    if not is_bound(e, f, t, af) and not bind(e, f, t, tuple_hash(t, e.hash_key, af), af):
        return False
    if f.table == af:
        forward_known(e, p, f.ref, af)
    else:
        forward_known(e, p, f.ref, 6)
    return True


cdef inline void follow(Engine *e, Pkt *p, const Tuple *k, Frag *f, int af) noexcept nogil:
    """The way of the first one."""
    cdef Tuple t
    cdef bint there
    memcpy(&t, k, sizeof(Tuple))
    t.sport = f.sport
    t.dport = f.dport
    t.proto = p.proto = f.proto
    if f.state == FRAG_CHOSEN:
        there = as_chosen(e, p, &t, f, af)
    else:
        there = as_bound(e, p, &t, f, af)
    if not there:
        drop(p, REASON_FRAG_ORPHAN)
    elif p.verdict == VERDICT_FORWARD:
        ident_write(e, p, f)
        e.count.frag_forwarded += 1


cdef inline void frag_later(Engine *e, Pkt *p, const Tuple *k, uint64_t h, int af) noexcept nogil:
    cdef bint last = False, sent_on = (p.flags & PKT_ROUTED) != 0
    cdef uint32_t n, start
    cdef Frag *f
    if hand_to_owner(e, p, k, h, af):
        return
    n = frag_known(e.frags, k, h, e.now_ms)
    if n == FRAG_NIL:
        if sent_on:                         # the first one came by here, but that is forgotten
            drop(p, REASON_FRAG_ORPHAN)
            return
        n = frag_make(e.frags, k, h, e.now_ms, e.count)
    f = e.frags.entry + n
    start = frag_offset(p, af, &last)
    if f.state == FRAG_WAITING:
        hold(e, p, n)
        if last and p.verdict == VERDICT_HOLD:
            f.total = start + p.frag_size
            if f.proto:                     # the first one is among them, and has waited for this
                frag_release(e.frags, n)
        return
    if f.state == FRAG_BOUND or f.state == FRAG_CHOSEN:
        follow(e, p, k, f, af)
    elif f.state == FRAG_AWAY:
        if p.hops >= HOPS_ASKING:
            drop(p, REASON_HOP_LIMIT)
        else:
            hand_on(p, f.worker)
    elif f.state == FRAG_KERNEL:
        p.verdict = VERDICT_KERNEL
        p.reason = REASON_NOT_FOR_US
    else:
        drop(p, REASON_FRAG_ORPHAN)
    frag_passed(e.frags, n, start, p.frag_size, last, e.now_ms)


cdef inline bint frag_settle(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """True: it has its verdict. (A first one may go on.)"""
    if p.frag == FRAG_FIRST:
        return frag_first(e, p, &e.tuple[i], af) or e.kind[i] == KIND_LEFT
    frag_later(e, p, &e.tuple[i], e.hash[i], af)
    return True
