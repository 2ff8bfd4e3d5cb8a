# After a start: every frame of this worker's partition, and every frame that its predecessor held of others', has one holder again;
# and every entry of the mirrored tables is found by its key again. The predecessor is known to be gone, and may have died between
# any two stores, of this repair too. What the kernel holds comes back through the rings by itself.
#
# Where a frame was when the predecessor died, and what becomes of it:
#
#     in an rx, completion, fill or tx ring   stays there, and is seen again (lbd/xdp/port.pxd)
#     written to a fill or tx ring, staged    in this worker's hands again: free. A packet among them is lost
#     received or taken, in work              free; the packet is lost: half rewritten, perhaps
#     taken to be filled, not yet staged      free (and counted as a packet lost, since it looks like one in work)
#     in a ring to this worker                stays there, untouched: its packet is worked on as if nothing had happened
#     written to a ring to another, staged    published: whole when its staged word was stored
#     sent and reclaimed, not yet freed       free
#
# So one kill costs at most the packets of one burst and those staged from the turn's other bursts; never a frame.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from lbd.datapath.command_apply cimport fast_refresh, svc_hash_in
from lbd.datapath.engine cimport Engine
from lbd.datapath.fib cimport FIB_HASH, FIB_MAX, ROUTE_USED, Route
from lbd.datapath.lookup cimport adj_bucket, route_bucket
from lbd.datapath.neigh cimport ADJ_HASH, ADJ_LEARNED, ADJ_MAX, ADJ_USED, Adj, adj_refresh
from lbd.datapath.reason cimport REASON_WORKER_RESTART, VERDICT_DROP
from lbd.datapath.svc cimport SVC_USED
from lbd.loop.state cimport Loop
from lbd.loop.frames cimport frame_free, frames_publish, wake
from lbd.shm.layout cimport FRAME_FREE, FRAME_HAND, FRAME_HOME, FRAME_WORK, Hand
from lbd.shm.ring cimport (lbd_ring_end, lbd_ring_front, lbd_ring_must_wake, lbd_ring_publish, lbd_ring_ready, lbd_ring_release,
                           lbd_ring_slot)
from lbd.xdp.port cimport Port, port_repair


# --- tables ----------------------------------------------------------------------------------------------------------

cdef inline void tables_repair(Engine *e) noexcept nogil:
    """Services, adjacencies and routes into their hashes, from the entries themselves: a command that was cut short may have left
    one out, or one in whose place is free. The master tells everything once more after a restart, and so completes the entries."""
    cdef uint32_t i, b
    cdef Adj *a
    cdef Route *r
    memset(e.svc_hash, 0, (<uint64_t> e.svc_hash_mask + 1) * sizeof(uint32_t))
    for i in range(e.max_svc):
        if e.svc[i].flags & SVC_USED:
            svc_hash_in(e, i)
    memset(e.adj_hash, 0, ADJ_HASH * sizeof(uint32_t))
    for i in range(ADJ_MAX):
        a = e.adj + i
        if a.flags & ADJ_USED:
            b = adj_bucket(a)
            a.next = e.adj_hash[b]
            e.adj_hash[b] = i + 1
            adj_refresh(a, e.iface)
    fast_refresh(e)
    memset(e.route_hash, 0, FIB_HASH * sizeof(uint32_t))
    for i in range(FIB_MAX):
        r = e.route + i
        if r.flags & ROUTE_USED:
            b = route_bucket(r.prefix, r.plen, r.af)
            r.next = e.route_hash[b]
            e.route_hash[b] = i + 1


# --- frames ----------------------------------------------------------------------------------------------------------

cdef inline void skip_stale(Loop *l, uint32_t sender) noexcept nogil:
    """Entries at the ring's front whose frames the predecessor had taken (turn.pxd hand_take), but not released yet. To be done
    before any of these frames goes anywhere: see turn_handed."""
    cdef lbd_ring_end *r = &l.hand_in[sender]
    cdef int ready = lbd_ring_ready(r)
    cdef uint32_t n = 0
    cdef Hand h
    while <int> n < ready:
        memcpy(&h, lbd_ring_front(r, n), sizeof(Hand))
        if h.frame < l.frames_total and l.ledger[h.frame] == <uint8_t> (FRAME_HAND | l.worker << 4):
            break
        n += 1
    if n:
        lbd_ring_release(r, n)


cdef inline void redo_staged(Loop *l, uint32_t to) noexcept nogil:
    """Entries for other workers that were written whole but not published: publish them."""
    cdef uint32_t i, n
    n = l.ctl.staged_return[to] - l.return_out[to].own
    if n and n <= l.return_out[to].capacity:
        for i in range(n):
            l.ledger[(<const uint32_t *> lbd_ring_slot(&l.return_out[to], i))[0]] = FRAME_HOME
        lbd_ring_publish(&l.return_out[to], n)
    n = l.ctl.staged_hand[to] - l.hand_out[to].own
    if n and n <= l.hand_out[to].capacity:
        for i in range(n):
            l.ledger[(<const Hand *> lbd_ring_slot(&l.hand_out[to], i)).frame] = <uint8_t> (FRAME_HAND | to << 4)
        lbd_ring_publish(&l.hand_out[to], n)
    l.ctl.staged_return[to] = l.return_out[to].own
    l.ctl.staged_hand[to] = l.hand_out[to].own
    if lbd_ring_must_wake(&l.return_out[to]) or lbd_ring_must_wake(&l.hand_out[to]):
        wake(l, to)


cdef inline void count_lost(Loop *l) noexcept nogil:
    """NB: an upper limit: a frame that was just reclaimed looks the same, and there was no packet in it any more."""
    l.e.count.drops[<int> REASON_WORKER_RESTART] += 1
    l.e.count.frames_dropped_restart += 1


cdef inline uint32_t greater(uint32_t a, uint32_t b) noexcept nogil:
    return a if a > b else b


cdef inline int repair(Loop *l) noexcept nogil:
    """0, or -1: no memory. Every step may be repeated by a further successor."""
    cdef uint32_t i, w, first = l.worker * l.frames, largest = 1
    cdef uint32_t *scratch
    cdef uint8_t mine = <uint8_t> (FRAME_WORK | l.worker << 4)
    cdef Port *p
    tables_repair(&l.e)
    for i in range(l.port_n):
        p = &l.port[l.port_list[i]]
        largest = greater(largest, greater(greater(p.fill.size, p.rx.size), greater(p.tx.size, p.comp.size)))
    scratch = <uint32_t *> malloc(largest * sizeof(uint32_t))
    if scratch == NULL:
        return -1
    for w in range(l.workers):
        if w != l.worker:
            skip_stale(l, w)
    for i in range(l.port_n):
        port_repair(&l.port[l.port_list[i]], scratch)
    free(scratch)
    for w in range(l.workers):
        if w != l.worker:
            redo_staged(l, w)
    l.free_n = 0
    for i in range(first, first + l.frames):
        if l.ledger[i] == FRAME_FREE:
            l.free_n += 1
    for i in range(l.frames_total):
        if l.ledger[i] == mine:
            frame_free(l, i)
            count_lost(l)
    frames_publish(l)
    return 0
