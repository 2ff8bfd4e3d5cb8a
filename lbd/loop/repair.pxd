# After a start: every frame of this worker's partition, and every frame that its predecessor held of others', has one holder again.
# The predecessor is known to be gone. What the kernel holds comes back through the rings by itself.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from lbd.datapath.compiler cimport lbd_compiler_barrier
from lbd.datapath.pkt cimport BURST_MAX
from lbd.datapath.reason cimport REASON_WORKER_RESTART, VERDICT_DROP
from lbd.loop.state cimport Loop
from lbd.loop.frames cimport frame_free, frame_to_list, frames_publish, wake
from lbd.shm.layout cimport FRAME_FREE, FRAME_HAND, FRAME_HOME, FRAME_WORK, Hand
from lbd.shm.ring cimport (lbd_ring_end, lbd_ring_front, lbd_ring_must_wake, lbd_ring_publish, lbd_ring_ready, lbd_ring_release,
                           lbd_ring_slot)
from lbd.xdp.port cimport Port, port_repair


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
    l.e.count.drops[<int> REASON_WORKER_RESTART] += 1
    l.e.count.verdicts[<int> VERDICT_DROP] += 1
    l.e.count.frames_dropped_restart += 1


cdef inline void drop_first_burst(Loop *l, uint32_t sender) noexcept nogil:
    """The first burst of a ring may have been in work, half rewritten: it is dropped."""
    cdef lbd_ring_end *r = &l.hand_in[sender]
    cdef int ready = lbd_ring_ready(r)
    cdef uint32_t i, n
    cdef Hand h
    if ready <= 0:
        return
    n = BURST_MAX if ready > BURST_MAX else <uint32_t> ready
    for i in range(n):
        memcpy(&h, lbd_ring_front(r, i), sizeof(Hand))
        if h.frame < l.frames_total and l.ledger[h.frame] == <uint8_t> (FRAME_HAND | l.worker << 4):
            frame_free(l, h.frame)
            count_lost(l)
    frames_publish(l)
    lbd_ring_release(r, n)


cdef inline uint32_t greater(uint32_t a, uint32_t b) noexcept nogil:
    return a if a > b else b


cdef inline int repair(Loop *l) noexcept nogil:
    """0, or -1: no memory."""
    cdef uint32_t i, w, first = l.worker * l.frames, largest = 1
    cdef uint32_t *scratch
    cdef uint8_t mine = <uint8_t> (FRAME_WORK | l.worker << 4)
    cdef Port *p
    for i in range(l.port_n):
        p = &l.port[l.port_list[i]]
        largest = greater(largest, greater(greater(p.fill.size, p.rx.size), greater(p.tx.size, p.comp.size)))
    scratch = <uint32_t *> malloc(largest * sizeof(uint32_t))
    if scratch == NULL:
        return -1
    for i in range(l.port_n):
        port_repair(&l.port[l.port_list[i]], scratch)
    free(scratch)
    l.free_n = 0
    for w in range(l.workers):
        if w != l.worker:
            redo_staged(l, w)
    for i in range(first, first + l.frames):
        if l.ledger[i] == FRAME_FREE:
            frame_to_list(l, i)
    for i in range(l.frames_total):
        if l.ledger[i] == mine:
            frame_free(l, i)
            count_lost(l)
    for w in range(l.workers):
        if w != l.worker:
            drop_first_burst(l, w)
    frames_publish(l)
    return 0
