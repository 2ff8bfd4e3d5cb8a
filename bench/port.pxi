# One port of a worker, its rings in plain memory: the kernel's end of them is played by the benchmark.

cdef int ring_prod(xsk_ring_prod *r, uint32_t size, uint32_t entry) except -1:
    r.producer = <uint32_t *> aligned_alloc(64, 192)        # producer, consumer and flags on a line each, as the kernel has them
    r.ring = aligned_alloc(64, <size_t> size * entry)
    if r.producer == NULL or r.ring == NULL:
        raise MemoryError()
    memset(r.producer, 0, 192)
    memset(r.ring, 0, <size_t> size * entry)
    r.consumer = r.producer + 16
    r.flags = r.producer + 32
    r.size = size
    r.mask = size - 1
    r.cached_prod = 0
    r.cached_cons = size
    return 0


cdef int ring_cons(xsk_ring_cons *r, uint32_t size, uint32_t entry) except -1:
    ring_prod(<xsk_ring_prod *> r, size, entry)     # libxdp: the same struct by another name
    r.cached_cons = 0
    return 0


cdef void ring_forget(xsk_ring_prod *r) noexcept nogil:
    free(r.producer)
    free(r.ring)


cdef int port_in_memory(Loop *l, uint8_t *seg, int fd) except -1:
    """Port 0, the only one: clients and real servers are behind the same interface. Zero-copy without need_wakeup: no system
    calls."""
    cdef Port *p = &l.port[0]
    cdef uint32_t i
    for i in range(16):
        l.port[i].fd = -1
        l.wake_fd[i] = -1
    l.port_n = 1
    p.fd = fd
    p.zero_copy = 1
    p.ledger = l.ledger
    p.area = l.area
    p.frames_total = l.frames_total
    p.shift = l.frame_shift
    p.stat = <QueueStat *> (seg + (<Ctl *> seg).off_queue)
    p.work = <uint8_t> (FRAME_WORK | l.worker << 4)
    ring_cons(&p.rx, BATCH, sizeof(xdp_desc))
    ring_prod(&p.tx, BATCH, sizeof(xdp_desc))
    ring_prod(&p.fill, 2 * BATCH, sizeof(uint64_t))
    ring_cons(&p.comp, BATCH, sizeof(uint64_t))
    return 0


cdef void port_forget(Port *p) noexcept nogil:
    ring_forget(&p.tx)
    ring_forget(&p.fill)
    ring_forget(<xsk_ring_prod *> &p.rx)
    ring_forget(<xsk_ring_prod *> &p.comp)


cdef int master_rings(Loop *l, uint8_t *seg, uint8_t *host, lbd_ring_end *slow_out) except -1:
    """The rings from and to the master, whose end of the slow path is played here too."""
    cdef Ctl *c = <Ctl *> seg
    cdef size_t slow = lbd_ring_bytes(CAPTURE_SLOT, c.sizes.capture_ring)
    l.ctl = c
    l.host = <HostCtl *> host
    if (lbd_ring_attach(&l.cmd, seg + c.off_cmd, lbd_ring_bytes(sizeof(Cmd), c.sizes.cmd_ring), sizeof(Cmd), 0)
            or lbd_ring_attach(&l.evt, seg + c.off_evt, lbd_ring_bytes(sizeof(Evt), c.sizes.evt_ring), sizeof(Evt), 1)
            or lbd_ring_attach(&l.slow, seg + c.off_slow, slow, CAPTURE_SLOT, 1)
            or lbd_ring_attach(slow_out, seg + c.off_slow, slow, CAPTURE_SLOT, 0)):
        raise ValueError("a ring of the engine's segment refuses to be attached")
    return 0
