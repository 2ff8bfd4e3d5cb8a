# One turn of the loop, and the loop: receive from every port and every other worker, work, send, reclaim, refill, look at timers
# and
# commands; and how to sleep when there is nothing to do.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_compiler_barrier, lbd_prefetchw, lbd_unlikely, lbd_likely
from lbd.datapath.pkt cimport Pkt, PKT_HANDED, BURST_MAX
from lbd.datapath.pipeline cimport engine_burst
from lbd.datapath.frag cimport HELD_ROOM
from lbd.datapath.frag_held cimport frag_piece, frag_ready, frag_take
from lbd.datapath.lifetime cimport engine_expire, expire_more
from lbd.datapath.ending cimport ending_next
from lbd.datapath.command cimport (Cmd, CmdValue, CmdCapture, CMD_STOP, CMD_CAPTURE, CMD_SETTING, CMD_OWNER, CMD_PORT_GONE,
                                   SET_POLL_MODE)
from lbd.datapath.command_apply cimport command_apply
from lbd.datapath.reason cimport VERDICT_CONSUME, VERDICT_FORWARD, REASON_WORKER_RESTART
from lbd.datapath.link cimport adj_tags
from lbd.datapath.neigh cimport Adj
from lbd.loop.bond cimport iface_of
from lbd.loop.state cimport *
from lbd.loop.chain cimport (CHAIN_SPARE, XDP_PKT_CONTD, chain_add, chain_begin, chain_is_sound, chain_refuse, chains_gather,
                             chains_whole)
from lbd.loop.frames cimport frame_free, frames_collect, frame_is_free, frames_free, frames_of_gone, frames_publish, frames_take
from lbd.loop.dispatch cimport dispatch, send_out
from lbd.loop.capture cimport capture_before, capture_after
from lbd.loop.epoch cimport owner_read
from lbd.shm.layout cimport (Hand, HAND_MORE, HAND_REST, HAND_TRANSMIT, Evt, CHUNK, FRAME_HAND, FRAME_WORK, EVT_NEIGH_WANTED,
                             EVT_LIP_EXHAUSTED, EVT_TABLE_FULL, EVT_BAD_COMMAND, WORKER_RUNNING, WORKER_STOPPING)
from lbd.shm.ring cimport (lbd_ring_end, lbd_ring_ready, lbd_ring_front, lbd_ring_release, lbd_ring_peek, lbd_ring_push,
                           lbd_ring_must_wake, lbd_ring_idle, lbd_sleep_begin, lbd_sleep_end)
from lbd.xdp.libxdp cimport xdp_desc, xsk_ring_cons__rx_desc
from lbd.xdp.port cimport Port, port_rx_pending, port_comp_pending
from lbd.xdp.io cimport (port_rx_cancel, port_rx_peek, port_rx_release_marked, port_fill, port_fill_room, port_wake_rx,
                         port_tx_submit, port_reclaim, port_kick, port_publish, port_statistics)

cdef enum:
    ENDING_LOOKS = 4096         # records looked at in a millisecond while connections are ended


# --- packets ---------------------------------------------------------------------------------------------------------

cdef inline void work(Loop *l, uint32_t n) noexcept nogil:
    """Decides and sends the n packets of l.pkt."""
    if lbd_unlikely(l.capture_points):
        capture_before(l, l.pkt, n)
    engine_burst(&l.e, l.pkt, n, l.now)
    if lbd_unlikely(l.capture_points):
        capture_after(l, l.pkt, n)
    dispatch(l, l.pkt, n)


cdef inline void pkt_init(uint8_t *area, Pkt *p, uint64_t addr, uint32_t length, uint32_t iface, uint32_t flags,
                          uint32_t hops) noexcept nogil:
    p.data = area + addr
    p.frame = addr
    p.len = length
    p.ifin = iface
    p.flags = flags
    p.hops = hops
    p.chain = 0


cdef inline uint32_t turn_receive(Loop *l, Port *port) noexcept nogil:
    cdef uint32_t i, idx = 0, bytes = 0, options = 0
    cdef uint32_t iface = iface_of(l, port.iface)
    cdef uint32_t n = port_rx_peek(port, BURST_MAX, &idx)
    cdef uint32_t length, said, shift = port.shift
    cdef uint64_t addr
    cdef uint8_t *area = l.area
    cdef uint8_t *ledger = port.ledger
    cdef uint8_t work_byte = port.work
    cdef const xdp_desc *d
    cdef Pkt *p
    if n == 0:
        return 0
    for i in range(n):
        d = xsk_ring_cons__rx_desc(&port.rx, idx + i)
        p = l.pkt + i
        addr, length, said = d.addr, d.len, d.options
        pkt_init(area, p, addr, length, iface, 0, 0)
        p.chain = said & XDP_PKT_CONTD
        ledger[addr >> shift] = work_byte
        options |= said
        bytes += length
        if i < 4:
            lbd_prefetchw(p.data)
    if lbd_unlikely(options & XDP_PKT_CONTD):
        return receive_chains(l, port, n)
    port_rx_release_marked(port, n)
    port.stat.rx_pkts += n
    port.stat.rx_bytes += bytes
    work(l, n)
    return n


cdef inline uint32_t receive_chains(Loop *l, Port *port, uint32_t n) noexcept nogil:
    """n descriptors are peeked, marked and written to l.pkt; some packets have several."""
    cdef uint32_t i, whole = chains_whole(l.pkt, n)
    if whole < n:
        port_rx_cancel(port, n - whole)
    if whole == 0:
        return 0
    port_rx_release_marked(port, whole)
    for i in range(whole):
        port.stat.rx_bytes += l.pkt[i].len
    n = chains_gather(l, whole)
    port.stat.rx_pkts += n
    work(l, n)
    return whole


cdef inline bint hand_take(Loop *l, const Hand *h) noexcept nogil:
    """A descriptor from another worker: True if it is to be believed; the frame is in this worker's hands then. From here on the
    entry is stale, which is how a successor knows what of the ring was in work (repair.pxd)."""
    if h.frame >= l.frames_total or h.len == 0 or (<uint32_t> h.off + h.len - 1) >> l.frame_shift or h.ifin >= 16:
        return False
    if l.ledger[h.frame] != <uint8_t> (FRAME_HAND | l.worker << 4):
        return False
    l.ledger[h.frame] = <uint8_t> (FRAME_WORK | l.worker << 4)
    lbd_compiler_barrier()              # before the frame is changed
    return True


cdef inline Pkt *hand_join(Loop *l, const Hand *h, Pkt *p, Pkt *out, uint32_t k) noexcept nogil:
    """An entry whose frame was taken. p: the packet that the entries before it began and did not end, or NULL; k: how many are
    complete. The packet that it belongs to: l.pkt + k, or `out` of one that is to be sent. NULL: it is dropped."""
    cdef uint64_t addr = (<uint64_t> h.frame << l.frame_shift) + h.off
    cdef bint send = h.kind & HAND_TRANSMIT
    if lbd_unlikely(h.kind & HAND_REST):
        if p != NULL and chain_add(l, p, addr, h.len):
            return p
        frame_free(l, h.frame)          # what came before it was lost with a worker
        if p != NULL:
            chain_refuse(l, p)
        return NULL
    if lbd_unlikely(p != NULL):
        chain_refuse(l, p)
    p = out if send else l.pkt + k
    pkt_init(l.area, p, addr, h.len, h.ifin, h.flags if send else h.flags | PKT_HANDED, h.hops)
    l.e.hand[k] = h.spare
    if lbd_unlikely(h.kind & HAND_MORE):
        chain_begin(l, p, <uint32_t> CHAIN_SPARE if send else k)
        if not send and not chain_is_sound(l, p):
            chain_refuse(l, p)
            return NULL
    return p


cdef inline void hand_transmit(Loop *l, Pkt *p) noexcept nogil:
    p.ifout = p.ifin
    p.l4 = 0                            # not told
    p.verdict = VERDICT_FORWARD
    l.e.count.verdicts[<int> VERDICT_FORWARD] += 1
    send_out(l, p)


cdef inline uint32_t hands_whole(lbd_ring_end *r, uint32_t n) noexcept nogil:
    """Of n entries at the front, as many as make whole packets. All, if that can't be."""
    cdef uint32_t whole = n
    while whole and (<const Hand *> lbd_ring_front(r, whole - 1)).kind & HAND_MORE:
        whole -= 1
    return whole if whole else n


cdef inline uint32_t turn_handed(Loop *l, uint32_t sender) noexcept nogil:
    cdef lbd_ring_end *r = &l.hand_in[sender]
    cdef int ready = lbd_ring_ready(r)
    cdef uint32_t i, n, k = 0
    cdef Hand h
    cdef Pkt out
    cdef Pkt *p = NULL
    if ready <= 0:
        return 0
    n = hands_whole(r, BURST_MAX if ready > BURST_MAX else <uint32_t> ready)
    for i in range(n):
        memcpy(&h, lbd_ring_front(r, i), sizeof(Hand))
        if not hand_take(l, &h):
            continue
        p = hand_join(l, &h, p, &out, k)
        if p == NULL or h.kind & HAND_MORE:
            continue
        if p == &out:
            hand_transmit(l, p)
        else:
            k += 1
        p = NULL
    if lbd_unlikely(p != NULL):
        chain_refuse(l, p)
    l.e.count.handed_in += n
    if k:
        work(l, k)
        memset(l.e.hand, 0, k * sizeof(uint32_t))
    # Released before these frames go on: one that went home could come back by this very ring, and make its old entry look good to
    # the successor of a worker killed here. What is staged is not lost by that, its staged word stands (frames.pxd).
    lbd_ring_release(r, n)
    frames_publish(l)
    return n


cdef inline uint64_t frame_take(Loop *l) noexcept nogil:
    """A free frame (there is one) into this worker's hands; its address."""
    cdef uint32_t frame = 0
    frames_take(l, &frame, 1)
    return <uint64_t> frame << l.frame_shift


cdef inline uint32_t turn_frags(Loop *l) noexcept nogil:
    """Fragments that the engine held, and whose first one has come: into free frames, and on. Those without frames wait."""
    cdef uint32_t pieces, n = 0
    cdef uint64_t room = (<uint64_t> 1 << l.frame_shift) - HELD_ROOM
    cdef uint64_t addr
    while n < BURST_MAX:
        pieces = frag_ready(l.e.frags)
        if pieces == 0 or pieces > l.free_n:
            break
        pkt_init(l.area, l.pkt + n, frame_take(l) + room, 0, 0, 0, 0)
        frag_take(l.e.frags, l.pkt + n)
        if lbd_unlikely(pieces > 1):
            chain_begin(l, l.pkt + n, n)
        while pieces > 1:
            addr = frame_take(l) + room
            chain_add(l, l.pkt + n, addr, frag_piece(l.e.frags, l.area + addr))
            pieces -= 1
        n += 1
    engine_burst(&l.e, l.pkt, n, l.now)
    if lbd_unlikely(l.capture_points):
        l.capture_staged = 0            # the point of receipt saw them before
        capture_after(l, l.pkt, n)
    dispatch(l, l.pkt, n)
    return n


cdef inline void turn_reclaim(Loop *l, Port *port) noexcept nogil:
    """All that is sent: what is left would keep an idle worker from sleeping long."""
    cdef uint32_t frames[256]
    cdef uint32_t n = 256
    while n == 256:
        n = port_reclaim(port, frames, 256)
        frames_free(l, frames, n)


cdef inline void turn_port(Loop *l, Port *port) noexcept nogil:
    """Transmit what was put, take back what is sent, give the kernel frames to receive into."""
    cdef uint32_t frames[256]
    cdef uint32_t n
    port_tx_submit(port)
    if port.zero_copy:
        turn_reclaim(l, port)           # drivers complete by themselves, and what is completed needs no call
        port_kick(port, KICK_TRIES)
    else:
        port_kick(port, KICK_TRIES)
        turn_reclaim(l, port)           # what this call has sent, mostly
    n = port_fill_room(port, 256)
    if n >= port.fill_least:
        port_fill(port, frames, frames_take(l, frames, n))
    port_wake_rx(port)


cdef inline bint turn_ending(Loop *l) noexcept nogil:
    """Connections of a drained real server end: a bounded part of them. True: there are more."""
    cdef uint32_t _, frame = 0, looks = ENDING_LOOKS
    cdef Pkt p
    for _ in range(BURST_MAX):
        if frames_take(l, &frame, 1) == 0:
            break
        memset(&p, 0, sizeof(Pkt))
        pkt_init(l.area, &p, (<uint64_t> frame << l.frame_shift) + CHUNK // 4, 0, 0, 0, 0)
        if not ending_next(&l.e, &p, &looks):
            frame_is_free(l, frame)
            break
        send_out(l, &p)
    return l.e.ending_left != 0


# --- commands and events ---------------------------------------------------------------------------------------------

cdef inline void tell(Loop *l, uint32_t op, uint32_t id, uint64_t value, const uint8_t *addr, uint32_t af,
                      uint32_t iface) noexcept nogil:
    cdef Evt v
    memset(&v, 0, sizeof(Evt))
    v.op = op
    v.id = id
    v.value = value
    if addr != NULL:
        memcpy(v.addr, addr, 16)
    v.af = af
    v.iface = iface
    if lbd_ring_push(&l.evt, &v, 1) != 1:
        l.e.count.events_lost += 1


cdef inline void owner_refresh(Loop *l) noexcept nogil:
    owner_read(&l.e, l.host)


cdef inline void command_run(Loop *l, const Cmd *c) noexcept nogil:
    cdef const CmdCapture *cap
    l.e.count.commands += 1
    if not command_apply(&l.e, c):
        l.e.count.bad_commands += 1
        tell(l, EVT_BAD_COMMAND, c.op, c.id, NULL, 0, 0)
    elif c.op == CMD_STOP:
        l.stop = 1
    elif c.op == CMD_PORT_GONE:
        frames_of_gone(l, c.id)
    elif c.op == CMD_OWNER:
        owner_refresh(l)
    elif c.op == CMD_SETTING and c.id == SET_POLL_MODE:
        l.poll_mode = <uint32_t> (<const CmdValue *> c.body).value
        l.ctl.poll_mode = l.poll_mode
    elif c.op == CMD_CAPTURE:
        cap = <const CmdCapture *> c.body
        l.capture_points = cap.points
        l.capture_snap = cap.snaplen
        l.capture_svc = cap.svc
        l.ctl.capture_points = cap.points


cdef inline uint32_t turn_commands(Loop *l) noexcept nogil:
    """Applied before released: a successor of a worker killed in between applies them again, which does no harm."""
    cdef Cmd c
    cdef uint32_t n = 0
    if lbd_likely(lbd_ring_ready(&l.cmd) <= 0):
        return 0
    l.e.now_ns = l.now
    l.e.now_ms = <uint32_t> (l.now // 1000000)
    while n < 64 and lbd_ring_peek(&l.cmd, &c, 1) == 1:
        command_run(l, &c)
        lbd_store32_release(&l.ctl.gen_applied, c.gen)
        lbd_ring_release(&l.cmd, 1)
        n += 1
    return n


cdef inline void turn_events(Loop *l) noexcept nogil:
    """What the engine noticed, at most ten times a second."""
    cdef uint32_t i
    cdef Adj *a
    l.events_sent = l.now
    for i in range(l.e.wanted_n):
        a = l.e.adj + l.e.wanted[i]
        tell(l, EVT_NEIGH_WANTED, 0, adj_tags(a), a.addr, a.af, a.iface)
    l.e.wanted_n = 0
    if l.e.lip_exhausted_n:
        tell(l, EVT_LIP_EXHAUSTED, l.e.lip_exhausted, l.e.lip_exhausted_n, NULL, 0, 0)
        l.e.lip_exhausted_n = 0
    if l.e.table_full_n:
        tell(l, EVT_TABLE_FULL, 0, l.e.table_full_n, NULL, 0, 0)
        l.e.table_full_n = 0


cdef inline void turn_publish(Loop *l) noexcept nogil:
    """Gauges, and the kernel's socket counters: once a second and before sleeping."""
    cdef uint32_t i
    l.ctl.free_frames = l.free_n
    l.ctl.conns4 = l.e.t4.used
    l.ctl.conns6 = l.e.t6.used
    l.ctl.half_open = l.e.w4.half_open + l.e.w6.half_open
    for i in range(l.port_n):
        port_publish(&l.port[l.port_list[i]])
        if l.now - l.published >= 1000000000:
            port_statistics(&l.port[l.port_list[i]])
    if l.now - l.published >= 1000000000:
        l.published = l.now


# --- sleep -----------------------------------------------------------------------------------------------------------

cdef inline bint nothing_to_do(Loop *l) noexcept nogil:
    cdef uint32_t i
    if not lbd_ring_idle(&l.cmd) or l.e.frags.ready:
        return False
    for i in range(l.workers):
        if i != l.worker and not (lbd_ring_idle(&l.hand_in[i]) and lbd_ring_idle(&l.return_in[i])):
            return False
    for i in range(l.port_n):
        if port_rx_pending(&l.port[l.port_list[i]]):
            return False
    return True


cdef inline int loop_watch(Loop *l, int fd, uint32_t events) noexcept nogil:
    cdef epoll_event event
    memset(&event, 0, sizeof(event))
    event.events = events
    return 0 if epoll_ctl(l.epoll, EPOLL_CTL_ADD, fd, &event) == 0 else -1


cdef inline int loop_watch_all(Loop *l) noexcept nogil:
    """Where all sockets are zero-copy, what loop_sleep waits for. 0, or -1 with errno.

    By epoll's edges: poll() would ask every socket before and after it sleeps, and a zero-copy socket that is asked wakes its
    driver (an interrupt, a round of its NAPI), be there something to send or not. epoll asks those alone that had packets. But it
    watches always, and copy mode tells whoever watches of each packet that is sent: veth forwards a tenth to a quarter fewer
    64-byte packets then. So poll() there."""
    cdef uint32_t i
    for i in range(l.port_n):
        if not l.port[l.port_list[i]].zero_copy:
            return 0
    l.epoll = epoll_create1(EPOLL_CLOEXEC)
    if l.epoll < 0 or loop_watch(l, l.wake_fd[l.worker], EPOLLIN) != 0:
        return -1
    for i in range(l.port_n):
        if loop_watch(l, l.port[l.port_list[i]].fd, EPOLLIN | EPOLLET) != 0:
            return -1
    return 0


cdef inline void loop_poll(Loop *l, int timeout) noexcept nogil:
    cdef pollfd fds[17]
    cdef uint32_t i
    for i in range(l.port_n):
        fds[i].fd = l.port[l.port_list[i]].fd
        fds[i].events = POLLIN
        fds[i].revents = 0
    fds[l.port_n].fd = l.wake_fd[l.worker]
    fds[l.port_n].events = POLLIN
    fds[l.port_n].revents = 0
    poll(fds, l.port_n + 1, timeout)


cdef inline void loop_wait(Loop *l, int timeout) noexcept nogil:
    cdef epoll_event events[17]
    cdef uint32_t i
    for i in range(l.port_n):
        port_wake_rx(&l.port[l.port_list[i]])       # a driver may have run out of frames just now
    epoll_wait(l.epoll, events, 17, timeout)


cdef inline void loop_sleep(Loop *l) noexcept nogil:
    """Waits for a packet, a command or another worker. Two words say that it sleeps: one for the master (command ring), one for the
    workers; whoever has put something into a ring clears its word and writes the eventfd (lbd/shm/ring.h)."""
    cdef uint32_t i
    cdef uint64_t ignored
    cdef int timeout = SLEEP_MS
    for i in range(l.port_n):
        if l.port[l.port_list[i]].need_kick:
            timeout = 1             # the kernel owes completions, or has to be asked again
        elif l.port[l.port_list[i]].tx_outstanding and timeout > 10:
            timeout = 10
    turn_publish(l)
    eventfd_read(l.wake_fd[l.worker], &ignored)
    lbd_sleep_begin(&l.ctl.sleeping)
    lbd_sleep_begin(&l.host.sleeping[l.worker])
    if nothing_to_do(l):
        l.e.count.sleeps += 1
        if l.epoll >= 0:
            loop_wait(l, timeout)
        else:
            loop_poll(l, timeout)
    lbd_sleep_end(&l.ctl.sleeping)
    lbd_sleep_end(&l.host.sleeping[l.worker])


# --- the loop --------------------------------------------------------------------------------------------------------

cdef inline uint32_t turn(Loop *l) noexcept nogil:
    """One turn; returns the packets seen."""
    cdef uint32_t i, n = 0
    for i in range(l.port_n):
        n += turn_receive(l, &l.port[l.port_list[i]])
    if l.workers > 1:
        for i in range(l.workers):
            if i != l.worker:
                n += turn_handed(l, i)
        frames_collect(l)
    if lbd_unlikely(l.e.frags.ready):
        n += turn_frags(l)
    if l.workers > 1:
        frames_publish(l)
    for i in range(l.port_n):
        turn_port(l, &l.port[l.port_list[i]])
    if l.workers > 1:
        frames_publish(l)           # what was reclaimed for others
    return n


cdef inline uint32_t size_bucket(uint32_t n) noexcept nogil:
    cdef uint32_t b = 0
    while n > 1 and b < 7:
        n = (n + 1) >> 1
        b += 1
    return b


cdef inline uint32_t turn_tend(Loop *l, uint32_t *tick) noexcept nogil:
    """Commands, each turn; timers, about every millisecond (tick: the last one that saw them), and each turn while something is
    overdue; events. Returns how much there was to do: no sleep meanwhile."""
    cdef uint32_t n = turn_commands(l)
    if <uint32_t> (l.now >> 20) != tick[0]:
        tick[0] = <uint32_t> (l.now >> 20)
        l.overdue = engine_expire(&l.e, l.now, EXPIRE_BUDGET)
        if lbd_unlikely(l.e.ending_left != 0):
            turn_ending(l)
        if l.now - l.events_sent >= 100000000:
            turn_events(l)
            turn_publish(l)
    elif l.overdue:
        l.overdue = expire_more(&l.e, EXPIRE_BUDGET)
    return n + (l.e.ending_left != 0) + l.overdue


cdef inline void turn_end(Loop *l, uint32_t n, uint64_t after) noexcept nogil:
    """The clock goes on to `after`; n: what the turn had to do, 0 = it was idle."""
    cdef uint64_t spent = after - l.now
    lbd_store64_relaxed(&l.ctl.heartbeat_ns, after)
    l.now = after
    if n:
        l.e.count.bursts += 1
        l.e.count.burst_size[size_bucket(n)] += 1
        l.e.count.busy_ns += spent
    else:
        l.e.count.idle_ns += spent


cdef inline void worker_loop(Loop *l) noexcept nogil:
    """Until CMD_STOP, or `quit` set by another thread of this process."""
    cdef uint32_t n, tick = 0
    cdef uint64_t after
    l.now = lbd_monotonic()
    while not l.stop and not lbd_load32_acquire(&l.quit):
        n = turn(l)
        n += turn_tend(l, &tick)
        turn_end(l, n, lbd_monotonic())
        if n:
            l.idle = 0
            continue
        l.idle += 1
        if l.poll_mode == POLL_INTERRUPT or (l.poll_mode == POLL_ADAPTIVE and l.idle > IDLE_TURNS):
            loop_sleep(l)
            after = lbd_monotonic()
            l.e.count.idle_ns += after - l.now
            l.now = after
            l.idle = 0 if l.poll_mode == POLL_INTERRUPT else IDLE_TURNS // 2
