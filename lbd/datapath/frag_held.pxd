# Held fragments: copies of those that came before their datagram's first one (frag.pxd), in pieces of up to HELD_ROOM bytes; a
# fragment of an Ethernet's usual MTU is one piece.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from lbd.datapath.chain cimport least, pkt_copy
from lbd.datapath.count cimport Counters
from lbd.datapath.engine cimport CHAIN_MAX, Engine
from lbd.datapath.frag cimport (FRAG_AWAITED, FRAG_DECIDED, FRAG_HELD_EACH, FRAG_NIL, FRAG_SPARE, Frag, FragTable, HELD_ROOM, Held,
                                frag_end, frag_move, held_put_back)
from lbd.datapath.pkt cimport Pkt, PKT_HANDED, PKT_ROUTED
from lbd.datapath.reason cimport REASON_FRAG_TABLE_FULL, REASON_NONE, REASON_TOO_BIG_FRAME


cdef inline uint32_t held_room(FragTable *t, uint32_t i, uint32_t now_ms, Counters *count) noexcept nogil:
    """A free place (number + 1) for a fragment of datagram i, made by ending the one that has waited longest; 0: none."""
    cdef uint32_t n, oldest
    if t.held_free == 0 and t.held_fresh == t.held_capacity:
        oldest = t.head[<int> FRAG_AWAITED]
        while oldest != FRAG_NIL and (oldest == i or t.entry[oldest].held_n == 0):
            oldest = t.entry[oldest].next
        if oldest == FRAG_NIL:
            return 0
        frag_end(t, oldest, REASON_FRAG_TABLE_FULL, now_ms, count)
        count.frag_evicted += 1
    n = t.held_free
    if n:
        t.held_free = t.held[n - 1].next
    else:
        t.held_fresh += 1
        n = t.held_fresh
    t.held_n += 1
    return n


cdef inline uint32_t held_chain(FragTable *t, uint32_t i, uint32_t pieces, uint32_t now_ms, Counters *count) noexcept nogil:
    """Free places, one behind the other, for so many pieces: the first one (number + 1); 0: there are not so many."""
    cdef uint32_t _, n, first = 0
    for _ in range(pieces):
        n = held_room(t, i, now_ms, count)
        if n == 0:
            while first:
                n = first
                first = t.held[n - 1].next
                held_put_back(t, n)
            return 0
        t.held[n - 1].next = first
        first = n
    return first


cdef inline uint32_t held_write(const Engine *e, FragTable *t, uint32_t n, const Pkt *p) noexcept nogil:
    """The packet into the places from n on; the last one of them."""
    cdef uint32_t at = 0, last = n
    cdef Held *h
    while at < p.len:
        last = n
        h = t.held + (n - 1)
        h.frame = p.frame
        h.len = least(p.len - at, HELD_ROOM)
        h.ifin = p.ifin
        h.flags = p.flags & (PKT_HANDED | PKT_ROUTED)
        h.hops = p.hops
        pkt_copy(e, p, at, h.len, h.data)
        at += h.len
        h.more = at < p.len
        n = h.next
    return last


cdef inline uint32_t frag_hold(const Engine *e, FragTable *t, uint32_t i, const Pkt *p) noexcept nogil:
    """Keeps a copy of the packet, as it came, until the first fragment of datagram i has come. Else the reason why not."""
    cdef Frag *f = t.entry + i
    cdef uint32_t n = 0, last, pieces = (p.len + HELD_ROOM - 1) // HELD_ROOM, why = REASON_FRAG_TABLE_FULL
    if pieces > CHAIN_MAX:                  # the adapter has as many frames for it at most
        why = REASON_TOO_BIG_FRAME
    elif f.held_n + pieces <= FRAG_HELD_EACH:
        n = held_chain(t, i, pieces, e.now_ms, e.count)
    if n == 0:
        if f.held_n == 0:
            frag_end(t, i, why, e.now_ms, e.count)
        return why
    last = held_write(e, t, n, p)
    if f.held_n:
        t.held[f.held_last - 1].next = n
    else:
        f.held = n
    f.held_last = last
    f.held_n += pieces
    e.count.frag_held += 1
    return REASON_NONE


cdef inline void frag_release(FragTable *t, uint32_t i) noexcept nogil:
    """What is held of it is ready."""
    cdef Frag *f = t.entry + i
    if f.held_n == 0:
        return
    if t.ready:
        t.held[t.ready_last - 1].next = f.held
    else:
        t.ready = f.held
    t.ready_last = f.held_last
    f.held = f.held_last = f.held_n = 0


cdef inline void frag_decide(FragTable *t, uint32_t i, uint32_t state, uint32_t now_ms) noexcept nogil:
    """Its first fragment has gone its way."""
    t.entry[i].state = state
    if t.entry[i].list != FRAG_SPARE:
        frag_move(t, i, FRAG_DECIDED, now_ms)
    frag_release(t, i)


cdef inline uint32_t frag_ready(const FragTable *t) noexcept nogil:
    """Pieces of the next ready fragment, 0: there is none."""
    cdef uint32_t pieces = 1, n = t.ready
    if n == 0:
        return 0
    while t.held[n - 1].more:
        n = t.held[n - 1].next
        pieces += 1
    return pieces


cdef inline uint32_t frag_piece(FragTable *t, uint8_t *to) noexcept nogil:
    """The next ready piece, into a frame with HELD_ROOM for it; its length."""
    cdef uint32_t n = t.ready
    cdef const Held *h = t.held + (n - 1)
    cdef uint32_t len = h.len
    memcpy(to, h.data, len)
    t.ready = h.next
    held_put_back(t, n)
    return len


cdef inline void frag_take(FragTable *t, Pkt *p) noexcept nogil:
    """The first piece of the next ready fragment into p's frame, as a packet for the next burst. (frag_ready tells whether there is
    one, and whether frag_piece has more.)"""
    cdef const Held *h = t.held + (t.ready - 1)
    p.frame = h.frame
    p.ifin = h.ifin
    p.flags = h.flags
    p.hops = h.hops
    p.chain = 0
    p.len = frag_piece(t, p.data)
