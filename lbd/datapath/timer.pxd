# When a connection is looked at again: a lazy timing wheel, and two queues in order of age.
#
# A packet writes last_seen and nothing else. A record sits in the wheel slot where its timeout could end at the earliest; when the
# slot comes up, it is expired or moved on. Half-open TCP and unanswered UDP don't lie in the wheel but in a queue each: all stay
# in it for one and the same time, so the head is the oldest; from there a full table evicts. A half-open connection's time runs
# from its first SYN; an unanswered UDP flow goes back to the queue's end when it sends, at most once in 128 ms, and
# while there is room for new ones once in a 64th of the queue's time (lifetime.pxd). Where services have UDP timeouts of their own,
# the queue's time is the least of all, and what has more goes on into the wheel.
#
# Eviction policy (documented for users): the oldest half-open TCP connection goes first, then the oldest unanswered UDP flow, then
# an echo flow or a UDP flow answered, or beyond the queue, the one silent longest of a few looked at: to be answered proves nothing
# about a client, and a name server's clients come from a new port each time. TCP connections that were established are never
# evicted: with nothing else left the new one is refused (conn_table_full).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from lbd.datapath.conn cimport ConnTable, ConnCold, CONN_NIL

cdef enum:
    WHEEL_SLOTS = 1024
    WHEEL_SHIFT = 7             # a slot is 128 ms: the wheel turns once in 131 s
    TICK_MASK = 0x1ffffff       # ticks wrap where the clock's milliseconds do (49 days)
    TIMEOUT_MAX = 0x3fffffff    # ms (12 days): differences of times stay positive numbers of 32 bits
    LIST_HALF_OPEN = 1024
    LIST_ONEWAY = 1025
    LIST_COUNT = 1026
    LIST_NONE = 0xffff
    EVICT_LOOK = 64             # records looked at for an answered UDP flow to evict, so far apart:
    GOLDEN = 0x9e3779b9         # of the table, a golden section of 2^32

cdef struct Timer:              # one per connection table, process-private, rebuilt on attach
    uint32_t head[1026]
    uint32_t tail[1026]
    uint32_t tick               # next wheel position to look at, in 128 ms since the clock's zero; at most the clock's own
    uint32_t half_open          # records in the two queues
    uint32_t hand               # where the search for an answered UDP flow to evict goes on


cdef inline void timer_link(Timer *w, ConnTable *t, uint32_t i, uint32_t where) noexcept nogil:
    """Appends record i to a list."""
    cdef ConnCold *c = t.cold + i
    c.where = where
    c.next = CONN_NIL
    c.prev = w.tail[where]
    if c.prev == CONN_NIL:
        w.head[where] = i
    else:
        t.cold[c.prev].next = i
    w.tail[where] = i
    if where >= LIST_HALF_OPEN:
        w.half_open += 1


cdef inline void timer_unlink(Timer *w, ConnTable *t, uint32_t i) noexcept nogil:
    cdef ConnCold *c = t.cold + i
    cdef uint32_t where = c.where
    if where == LIST_NONE:
        return
    if c.prev == CONN_NIL:
        w.head[where] = c.next
    else:
        t.cold[c.prev].next = c.next
    if c.next == CONN_NIL:
        w.tail[where] = c.prev
    else:
        t.cold[c.next].prev = c.prev
    c.where = LIST_NONE
    if where >= LIST_HALF_OPEN:
        w.half_open -= 1


cdef inline uint32_t timer_slot(Timer *w, uint32_t now_ms, uint32_t left_ms) noexcept nogil:
    """Wheel slot that comes up when left_ms are over, less than a slot late; what is further off gets the wheel's last one, from
    where it is moved on. NB: counted from the wheel's position, not from the clock, which may be ahead: a record that is moved
    while its slot is emptied must never land in that slot again."""
    cdef uint32_t ahead = (((now_ms + left_ms) >> WHEEL_SHIFT) - w.tick) & TICK_MASK
    if ahead >= WHEEL_SLOTS:
        ahead = WHEEL_SLOTS - 1
    return (w.tick + ahead) & (WHEEL_SLOTS - 1)


cdef inline void timer_start(Timer *w, ConnTable *t, uint32_t i, uint32_t now_ms, uint32_t left_ms) noexcept nogil:
    timer_link(w, t, i, timer_slot(w, now_ms, left_ms))


cdef inline void timer_restart(Timer *w, ConnTable *t, uint32_t i, uint32_t now_ms, uint32_t left_ms) noexcept nogil:
    timer_unlink(w, t, i)
    timer_start(w, t, i, now_ms, left_ms)


cdef inline void timer_clear(Timer *w, uint32_t now_ms) noexcept nogil:
    cdef uint32_t n
    for n in range(LIST_COUNT):
        w.head[n] = CONN_NIL
        w.tail[n] = CONN_NIL
    w.tick = now_ms >> WHEEL_SHIFT
    w.half_open = 0
    w.hand = 0
