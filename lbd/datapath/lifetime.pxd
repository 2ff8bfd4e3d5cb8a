# A connection's life: statistics as it changes state, its place in the timers, its end. Every change of state goes through
# conn_enter, every end through conn_end.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from lbd.datapath.compiler cimport lbd_inlined_void, lbd_scale, lbd_unlikely
from lbd.datapath.engine cimport Engine
from lbd.datapath.conn cimport (ConnTable, ConnCommon, CONN_FREE, CONN_NIL, CONN_ACTIVE, CONN_EXTENDED, conn4, conn6, conn_common,
                                conn_free, conn_index, conn_unindex, conn_alloc)
from lbd.datapath.ext cimport ext_give
from lbd.datapath.hdr cimport is_transport
from lbd.datapath.timer cimport (Timer, timer_link, timer_unlink, timer_start, LIST_HALF_OPEN, LIST_ONEWAY, LIST_NONE, TICK_MASK,
                                 EVICT_LOOK, GOLDEN, WHEEL_SLOTS, WHEEL_SHIFT)
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


cdef inline uint32_t expire_queue(Engine *e, uint32_t where, uint32_t budget, int af) noexcept nogil:
    """Ends what is overdue at the head of a queue in order of age; what has more time, by its service's own timeout, waits in the
    wheel from then on. Returns how many records were looked at."""
    cdef Timer *w = timer_of(e, af)
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef uint32_t i, age, left, n = 0
    while n < budget:
        i = w.head[where]
        if i == CONN_NIL:
            break
        c = conn_common(t, i, af)
        n += 1
        age = e.now_ms - (t.cold[i].created if where == LIST_HALF_OPEN else c.last_seen)
        left = conn_timeout(e, c)
        if <int32_t> (age - queue_timeout(e, where)) < 0:
            break
        if <int32_t> (age - left) < 0:
            timer_unlink(w, t, i)
            timer_start(w, t, i, e.now_ms, left - age)
        else:
            conn_end(e, i, EXPIRE_TIMEOUT, af)
    return n


cdef inline void expire_family(Engine *e, uint32_t budget, int af) noexcept nogil:
    cdef Timer *w = timer_of(e, af)
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef uint32_t i, left, now_tick = e.now_ms >> WHEEL_SHIFT
    cdef uint32_t lag = (now_tick - w.tick) & TICK_MASK
    cdef int32_t idle
    expire_queue(e, LIST_HALF_OPEN, budget, af)
    expire_queue(e, LIST_ONEWAY, budget, af)
    if lag > TICK_MASK // 2:                    # the clock went back (packets of a capture may be out of order)
        w.tick = now_tick
    elif lag > WHEEL_SLOTS:                     # slept longer than a turn: one turn sees every slot
        w.tick = (now_tick - WHEEL_SLOTS) & TICK_MASK
    while budget and w.tick != now_tick:
        i = w.head[w.tick & (WHEEL_SLOTS - 1)]
        if i == CONN_NIL:
            w.tick = (w.tick + 1) & TICK_MASK
            continue
        budget -= 1
        c = conn_common(t, i, af)
        idle = <int32_t> (e.now_ms - c.last_seen)
        left = conn_timeout(e, c)
        if idle >= <int32_t> left:
            conn_end(e, i, EXPIRE_CLOSED if c.state == STATE_CLOSE else EXPIRE_TIMEOUT, af)
        else:
            persist_alive(e, t, i, c, af)
            timer_unlink(w, t, i)
            timer_start(w, t, i, e.now_ms, persist_look(e, c, left - <uint32_t> (idle if idle > 0 else 0)))


cdef inline void engine_expire(Engine *e, uint64_t now_ns, uint32_t budget) noexcept nogil:
    """A bounded look at the timers: called every turn of the loop."""
    e.now_ns = now_ns
    e.now_ms = <uint32_t> (now_ns // 1000000)
    e.oneway_step = oneway_step(e)
    expire_family(e, budget, 4)
    expire_family(e, budget, 6)
    frag_expire(e.frags, e.now_ms, e.frag_timeout, budget, e.count)
    template_expire(e, EXPIRE_SHARE)


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
