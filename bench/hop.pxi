# Two workers of one host, on a core each: what the first one receives is for flows of the second, which gets the descriptor by a
# ring, forwards and sends; the frame goes home by another ring.

cdef int hop_rings(Loop *l, uint8_t *host, uint32_t other) except -1:
    """The four rings to and from the other worker, in this host segment."""
    cdef HostCtl *h = <HostCtl *> host
    if (lbd_ring_attach(&l.hand_out[other], host + hand_ring_off(h, l.worker, other), h.hand_bytes, sizeof(Hand), 1)
            or lbd_ring_attach(&l.hand_in[other], host + hand_ring_off(h, other, l.worker), h.hand_bytes, sizeof(Hand), 0)
            or lbd_ring_attach(&l.return_out[other], host + return_ring_off(h, l.worker, other), h.return_bytes, RETURN_ENTRY, 1)
            or lbd_ring_attach(&l.return_in[other], host + return_ring_off(h, other, l.worker), h.return_bytes, RETURN_ENTRY, 0)):
        raise ValueError("a ring between the two workers refuses to be attached")
    return 0


cdef void hop_complete(Port *port) noexcept nogil:
    """The kernel's part at the second worker: all that it has submitted is sent."""
    cdef uint32_t i, first = port.tx.consumer[0], n = port.tx.producer[0] - first
    for i in range(n):
        (<uint64_t *> port.comp.ring)[(port.comp.producer[0] + i) & port.comp.mask] = (
            (<xdp_desc *> port.tx.ring)[(first + i) & port.tx.mask].addr)
    port.comp.producer[0] += n
    port.tx.consumer[0] = first + n


@cython.no_gc_clear
cdef class Hop:
    """first, second: workers 0 and 1 of two, on the same commands; the second one owns all flows, and plans the packets. serve()
    runs in a thread of its own until stop(); go() is a pass."""
    cdef Bench first
    cdef Bench second
    cdef uint32_t served        # packets that the second worker has forwarded, and whose frames it has sent home
    cdef uint32_t quit
    cdef uint64_t busy_ns       # of the second worker, in turns that found any

    def __cinit__(self, first: Bench, second: Bench):
        if (first.loop.e.workers, first.loop.worker, second.loop.e.workers, second.loop.worker) != (2, 0, 2, 1):
            raise ValueError("not workers 0 and 1 of two")
        self.first, self.second = first, second
        hop_rings(first.loop, second.engine.host, 1)
        hop_rings(second.loop, second.engine.host, 0)
        free(first.loop.area)
        free(first.loop.ledger)
        first.loop.area = first.loop.port[0].area = second.loop.area
        first.loop.ledger = first.loop.port[0].ledger = second.loop.ledger
        second.loop.port[0].tx.producer[0] = second.loop.port[0].tx.consumer[0] = second.loop.port[0].tx.cached_prod

    def __dealloc__(self):
        if self.first is not None:
            self.first.loop.area = self.first.loop.ledger = NULL

    def serve(self) -> None:
        cdef Loop *loop = self.second.loop
        cdef uint32_t n, tick = 0, done = 0
        cdef uint64_t before
        with nogil:
            while not lbd_load32_acquire(&self.quit):
                hop_complete(&loop.port[0])
                loop.now = before = lbd_monotonic()
                n = turn(loop)
                turn_tend(loop, &tick)
                turn_end(loop, n, lbd_monotonic())
                done += n
                if n:
                    self.busy_ns += loop.now - before
                elif self.served != done:
                    lbd_store32_release(&self.served, done)

    def stop(self) -> None:
        lbd_store32_release(&self.quit, 1)

    def go(self, burst: int = 64) -> tuple:
        """A pass of what the second worker has planned, all of it received by the first: ns of both, the first one's by its
        thread's processor time."""
        cdef Run r
        cdef uint32_t served = self.served
        cdef uint64_t ns, busy = self.busy_ns
        memset(&r, 0, sizeof(Run))
        r.loop, r.packets, r.burst, r.whole, r.handed = self.first.loop, self.second.planned, burst, 1, 1
        self.second.tx_first = self.second.loop.port[0].tx.cached_prod
        with nogil:
            self.first.load(self.second.frames, r.packets)
            self.second.half = self.first.half
            self.first.loop.now = lbd_monotonic()
            ns = bench_thread_clock()
            bench_measured(&r)
            ns = bench_thread_clock() - ns
            while lbd_load32_acquire(&self.served) - served < r.packets:
                pass
            frames_collect(self.first.loop)
        return ns, self.busy_ns - busy
