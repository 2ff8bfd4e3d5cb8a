# A connection's life: statistics as it changes state, its place in the timers, its end. Every change of state goes through
# conn_enter, every end through conn_end.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from lbd.datapath.compiler cimport lbd_apart, lbd_inlined_void, lbd_prefetchw, lbd_scale, lbd_unlikely
from lbd.datapath.engine cimport Engine
from lbd.datapath.conn cimport (ConnTable, ConnCommon, CONN_FREE, CONN_NIL, CONN_ACTIVE, CONN_EXTENDED, conn4, conn6, conn_common,
                                conn_free, conn_index, conn_side, conn_unindex, conn_unindex_prefetch, conn_alloc)
from lbd.datapath.ext cimport ext_give
from lbd.datapath.hdr cimport is_transport
from lbd.datapath.timer cimport (Timer, timer_link, timer_unlink, timer_start, timer_restart, LIST_HALF_OPEN, LIST_ONEWAY,
                                 LIST_NONE, TICK_MASK, EVICT_LOOK, GOLDEN, WHEEL_SLOTS, WHEEL_SHIFT)
from lbd.datapath.tcp cimport (STATE_NONE, STATE_SYN_RECV, STATE_ESTABLISHED, STATE_CLOSE_WAIT, STATE_TIME_WAIT, STATE_CLOSE,
                               STATE_ICMP, STATE_UDP, STATE_UDP_ONEWAY, STATE_COUNT, timeout_of, state_active)
from lbd.datapath.persist cimport EXPIRE_SHARE, persist_alive, persist_look, template_expire
from lbd.datapath.svc cimport Svc, SVC_NONE, DEST_NONE, LIP_NONE, SVC_USED
from lbd.datapath.echo cimport is_icmp
from lbd.datapath.frag cimport frag_expire
from lbd.datapath.count cimport EXPIRE_TIMEOUT, EXPIRE_EVICTED, EXPIRE_CLOSED

cdef enum:
    ONEWAY_STEP = 127           # the least oneway_step
    ONEWAY_SHIFT = 7            # the most, of the queue's time
    ONEWAY_ROOM_SHIFT = 3       # of a table's records: with fewer left it is the least
    EXPIRE_AHEAD = 16           # records of a list whose memory is asked for at once


cdef inline ConnTable *table_of(Engine *e, int af) noexcept nogil:
    if af == 4:
        return &e.t4
    return &e.t6


cdef inline Timer *timer_of(Engine *e, int af) noexcept nogil:
    if af == 4:
        return &e.w4
    return &e.w6


cdef inline void stat_count(Engine *e, ConnCommon *c, int by) noexcept nogil:
    """This connection enters (+1) or leaves (-1) the active or inactive count of its service and real server."""
    if c.svc != SVC_NONE:
        if c.flags & CONN_ACTIVE:
            e.svc_stat[c.svc].active += by
        else:
            e.svc_stat[c.svc].inactive += by
    if c.dest != DEST_NONE:
        if c.flags & CONN_ACTIVE:
            e.dest_stat[c.dest].active += by
        else:
            e.dest_stat[c.dest].inactive += by


cdef inline uint32_t own_timeout(const Svc *s, uint32_t state) noexcept nogil:
    """A service's own, as ipvsadm's --set has three of them; 0: none. Half-open connections have none: their queue needs one."""
    if state == STATE_ESTABLISHED:
        return s.timeout_established
    if STATE_CLOSE_WAIT <= state <= STATE_TIME_WAIT:
        return s.timeout_fin
    if state == STATE_UDP or state == STATE_UDP_ONEWAY:
        return s.timeout_udp
    return 0


cdef inline uint32_t conn_timeout(Engine *e, const ConnCommon *c) noexcept nogil:
    cdef uint32_t own = 0
    if c.svc != SVC_NONE:
        own = own_timeout(e.svc + c.svc, c.state)
    return own if own else e.timeout[timeout_of(c.proto, c.state)]


cdef inline uint32_t queue_timeout(const Engine *e, uint32_t where) noexcept nogil:
    """How long a record stays in a queue in order of age: the least that any in it may have."""
    if where == LIST_HALF_OPEN:
        return e.timeout[<int> STATE_SYN_RECV]
    if e.oneway_least < e.timeout[<int> STATE_UDP_ONEWAY]:
        return e.oneway_least
    return e.timeout[<int> STATE_UDP_ONEWAY]


cdef inline void conn_schedule(Engine *e, uint32_t i, ConnCommon *c, int af) noexcept nogil:
    """Puts the record (on no list now) where its state belongs."""
    if c.state == STATE_SYN_RECV:
        timer_link(timer_of(e, af), table_of(e, af), i, LIST_HALF_OPEN)
    elif c.state == STATE_UDP_ONEWAY:
        timer_link(timer_of(e, af), table_of(e, af), i, LIST_ONEWAY)
    else:
        timer_start(timer_of(e, af), table_of(e, af), i, e.now_ms, persist_look(e, c, conn_timeout(e, c)))


cdef inline void conn_enter(Engine *e, uint32_t i, ConnCommon *c, uint32_t state, int af) noexcept nogil:
    """Changes the state: statistics, timer."""
    stat_count(e, c, -1)
    c.state = state
    if state_active(state):
        c.flags |= CONN_ACTIVE
    else:
        c.flags &= <uint8_t> ~CONN_ACTIVE
    stat_count(e, c, 1)
    timer_unlink(timer_of(e, af), table_of(e, af), i)
    conn_schedule(e, i, c, af)


cdef inline uint32_t oneway_step(const Engine *e) noexcept nogil:
    """By how much (ms, xor) two packets of an unanswered flow differ that moves to its queue's end with the second. While there is
    room nobody is evicted from the head, and the order may be coarse; but templates are told that their connections live. (The xor
    is at least the difference, and at a flow's first packet in a block of 2^n ms at least 2^n: flows are twice the step out of
    order at most, and end so much late.)"""
    cdef uint32_t step = queue_timeout(e, LIST_ONEWAY) >> ONEWAY_SHIFT
    if (step < ONEWAY_STEP or e.persist_services or e.t4.free_n < e.t4.capacity >> ONEWAY_ROOM_SHIFT
            or e.t6.free_n < e.t6.capacity >> ONEWAY_ROOM_SHIFT):
        return ONEWAY_STEP
    return step


cdef inline void oneway_again(Engine *e, uint32_t i, ConnCommon *c, int af) noexcept nogil:
    """Keeps its queue in order of age."""
    timer_unlink(timer_of(e, af), table_of(e, af), i)
    timer_link(timer_of(e, af), table_of(e, af), i, LIST_ONEWAY)
    persist_alive(e, table_of(e, af), i, c, af)             # no timer looks at it there


cdef inline void udp_unanswered(Engine *e, uint32_t i, ConnCommon *c, uint64_t direction, int af) noexcept nogil:
    if direction == 1:
        conn_enter(e, i, c, STATE_UDP, af)
    elif lbd_unlikely((e.now_ms ^ c.last_seen) > e.oneway_step):
        oneway_again(e, i, c, af)


cdef inline lbd_inlined_void udp_step(Engine *e, uint32_t i, ConnCommon *c, uint64_t direction, int af) noexcept nogil:
    """A UDP flow's packet, before last_seen is set."""
    if lbd_unlikely(c.state == STATE_UDP_ONEWAY):
        udp_unanswered(e, i, c, direction, af)


cdef inline void conn_end(Engine *e, uint32_t i, uint32_t why, int af) noexcept nogil:
    """Takes the connection out of everything and frees its record."""
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c = conn_common(t, i, af)
    c.live = 0                      # first: from here on it doesn't exist for a successor
    stat_count(e, c, -1)
    if c.lip != LIP_NONE:
        e.lip_stat[c.lip].in_use -= 1
    if c.flags & CONN_EXTENDED:
        ext_give(e, t, i, af)
    timer_unlink(timer_of(e, af), t, i)
    conn_unindex(t, i, af)
    conn_free(t, i, af)
    e.count.conns_expired[why] += 1


cdef inline uint32_t idlest_udp(Engine *e, int af) noexcept nogil:
    """Of EVICT_LOOK records, others each time, spread over the table: the UDP or echo flow silent for longest, or CONN_NIL.
    (Unanswered ones that are left now lie in the wheel, for a timeout of their service's own.)"""
    cdef Timer *w = timer_of(e, af)
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef uint32_t _, idle, longest = 0, best = CONN_NIL
    w.hand += 1
    for _ in range(EVICT_LOOK):
        w.hand = (w.hand + lbd_scale(GOLDEN, t.capacity)) % t.capacity
        c = conn_common(t, w.hand, af)
        if c.live and (c.state == STATE_UDP or c.state == STATE_UDP_ONEWAY or c.state == STATE_ICMP):
            idle = e.now_ms - c.last_seen
            if best == CONN_NIL or idle > longest:
                best = w.hand
                longest = idle
    return best


cdef inline bint evict(Engine *e, int af) noexcept nogil:
    """Makes room by the policy of timer.pxd. False: nothing may go."""
    cdef Timer *w = timer_of(e, af)
    cdef uint32_t i = w.head[LIST_HALF_OPEN]
    if i == CONN_NIL:
        i = w.head[LIST_ONEWAY]
    if i == CONN_NIL:
        i = idlest_udp(e, af)
    if i == CONN_NIL:
        return False
    conn_end(e, i, EXPIRE_EVICTED, af)
    return True


cdef inline uint32_t list_first(Engine *e, uint32_t where, uint32_t *first, uint32_t most, int af) noexcept nogil:
    """The numbers of a list's first records, at most so many; returns how many. Once traffic has moved its records, a list goes
    criss-cross through the table: the memory of all is asked for at once, and that of the one where the next call begins."""
    cdef ConnTable *t = table_of(e, af)
    cdef uint32_t n = 0, i = timer_of(e, af).head[where]
    while n < most and i != CONN_NIL:
        lbd_prefetchw(conn_side(t, i, 0, af))
        if af == 6:
            lbd_prefetchw(conn_common(t, i, af))
        first[n] = i
        n += 1
        i = t.cold[i].next
    if i != CONN_NIL:
        lbd_prefetchw(t.cold + i)
    return n


cdef inline int32_t conn_age(Engine *e, uint32_t where, uint32_t i, int af) noexcept nogil:
    """ms of what counts against its timeout."""
    cdef ConnTable *t = table_of(e, af)
    return <int32_t> (e.now_ms - (t.cold[i].created if where == LIST_HALF_OPEN else conn_common(t, i, af).last_seen))


cdef inline bint head_due(Engine *e, uint32_t where, int af) noexcept nogil:
    """Is the first of a list to be looked at? In a slot of the wheel that has come up each is."""
    cdef uint32_t i = timer_of(e, af).head[where]
    return i != CONN_NIL and (where < LIST_HALF_OPEN or conn_age(e, where, i, af) >= <int32_t> queue_timeout(e, where))


cdef inline lbd_apart expire_first(Engine *e, uint32_t where, uint32_t most, int af) noexcept nogil:
    """Of a list whose head is due the first records, at most EXPIRE_AHEAD: what is overdue ends; what has more time waits in the
    wheel from then on (of a queue in order of age, by its service's own timeout). Returns how many these were."""
    cdef Timer *w = timer_of(e, af)
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef uint32_t first[EXPIRE_AHEAD]
    cdef uint32_t k, i, left, over = 0
    cdef uint32_t n = list_first(e, where, first, most if most < EXPIRE_AHEAD else EXPIRE_AHEAD, af)
    cdef int32_t age
    for k in range(n):
        i = first[k]
        c = conn_common(t, i, af)
        age = conn_age(e, where, i, af)
        if where >= LIST_HALF_OPEN and age < <int32_t> queue_timeout(e, where):
            n = k
            break
        left = conn_timeout(e, c)
        if age >= <int32_t> left:
            conn_unindex_prefetch(t, i, af)
            first[over] = i
            over += 1
        else:
            persist_alive(e, t, i, c, af)
            timer_restart(w, t, i, e.now_ms, persist_look(e, c, left - <uint32_t> (age if age > 0 else 0)))
    for k in range(over):
        i = first[k]
        conn_end(e, i, EXPIRE_CLOSED if conn_common(t, i, af).state == STATE_CLOSE else EXPIRE_TIMEOUT, af)
    return n


cdef inline uint32_t expire_due(Engine *e, uint32_t where, uint32_t budget, int af) noexcept nogil:
    """Returns what of the budget was used: all of it where more may be due."""
    cdef uint32_t used = 0
    while used < budget and head_due(e, where, af):
        used += expire_first(e, where, budget - used, af)
    return used


cdef inline bint expire_family(Engine *e, uint32_t budget, int af) noexcept nogil:
    cdef Timer *w = timer_of(e, af)
    cdef uint32_t used = 0, now_tick = e.now_ms >> WHEEL_SHIFT
    cdef uint32_t lag = (now_tick - w.tick) & TICK_MASK
    cdef bint more = expire_due(e, LIST_HALF_OPEN, budget, af) == budget
    more |= expire_due(e, LIST_ONEWAY, budget, af) == budget
    if lag > TICK_MASK // 2:                    # the clock went back (packets of a capture may be out of order)
        w.tick = now_tick
    elif lag > WHEEL_SLOTS:                     # slept longer than a turn: one turn sees every slot
        w.tick = (now_tick - WHEEL_SLOTS) & TICK_MASK
    while w.tick != now_tick:
        used += expire_due(e, w.tick & (WHEEL_SLOTS - 1), budget - used, af)
        if used == budget:
            return True
        w.tick = (w.tick + 1) & TICK_MASK
    return more


cdef inline bint expire_more(Engine *e, uint32_t budget) noexcept nogil:
    """Looks at what is due, in each list at so much. True: there may be more."""
    cdef bint more = frag_expire(e.frags, e.now_ms, e.frag_timeout, budget, e.count)
    more |= expire_family(e, budget, 4)
    return expire_family(e, budget, 6) or more


cdef inline bint engine_expire(Engine *e, uint64_t now_ns, uint32_t budget) noexcept nogil:
    """A bounded look at all timers, about every millisecond. True: expire_more, in the turns until the next."""
    e.now_ns = now_ns
    e.now_ms = <uint32_t> (now_ns // 1000000)
    e.oneway_step = oneway_step(e)
    template_expire(e, EXPIRE_SHARE)
    return expire_more(e, budget)


cdef inline void rebuild_family(Engine *e, int af) noexcept nogil:
    """After a start: index, free list, queues and counts from the live records. Services and real servers are found again by
    their addresses (`rebind`, called by the caller of this for each record), since numbers belong to one run."""
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef uint32_t i
    for i in range(t.capacity - 1, -1, -1):
        c = conn_common(t, i, af)
        t.cold[i].where = LIST_NONE
        if (c.live != CONN_FREE and 0 < c.state < STATE_COUNT and (is_transport(c.proto) or is_icmp(c.proto))
                and conn_index(t, i, af)):
            t.used += 1
            continue
        c.live = 0
        t.free[t.free_n] = i
        t.free_n += 1
