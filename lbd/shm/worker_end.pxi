# The worker's side of its segment, in Python: what tests use to play a worker. Part of _shm.pyx.
#
# The real one is C in lbd/_fastpath.pyx. Both sides of every ring and record can so be tested without a
# packet engine.

@cython.final
cdef class WorkerEnd:
    cdef WorkerSegment segment
    cdef lbd_ring_end ends[4]

    def __init__(self, WorkerSegment segment not None):
        cdef uint64_t off
        cdef uint32_t entry, capacity
        cdef int i, rc
        segment.writable()
        self.segment = segment
        for i in range(RING_NAMES):
            ring_shape(&segment.lay, i, &off, &entry, &capacity)
            rc = lbd_ring_attach(&self.ends[i], segment.at(off), lbd_ring_bytes(entry, capacity), entry,
                                 i != RING_CMD)
            if rc != LBD_RING_OK:
                raise PeerGarbage(f"the {RINGS[i]} ring's head is garbage ({rc})")

    def publish(self, *, state=None, pid=None, heartbeat_ns=None, gen_applied=None, sleeping=None):
        """Stores fields of the head."""
        cdef Ctl *head = self.segment.head
        self.segment.writable()
        if heartbeat_ns is not None:
            lbd_store64(&head.heartbeat_ns, heartbeat_ns)
        if pid is not None:
            lbd_store32(&head.pid, pid)
        if gen_applied is not None:
            lbd_store32(&head.gen_applied, gen_applied)
        if sleeping is not None:
            lbd_store32(&head.sleeping, sleeping)
        if state is not None:
            lbd_store32(&head.state, state)

    def next_command(self):
        """The oldest command, not yet given back (see `done`), or None."""
        cdef uint8_t cmd[128]
        self.segment.mapped()
        if lbd_ring_peek(&self.ends[RING_CMD], cmd, 1) != 1:
            return None
        return (<const char *>cmd)[:sizeof(cmd)]

    def done(self):
        """The command was applied: gives its slot back."""
        self.segment.mapped()
        if lbd_ring_ready(&self.ends[RING_CMD]) > 0:
            lbd_ring_release(&self.ends[RING_CMD], 1)

    def emit(self, int op, *, id=0, value=0, af=0, bytes addr=b"", iface=0):
        """Pushes an event; False if there is no room."""
        cdef Evt e
        memset(&e, 0, sizeof(e))
        e.op = op
        e.id = id
        e.value = value
        e.af = af
        e.iface = iface
        memcpy(e.addr, PyBytes_AS_STRING(addr), min(<size_t>len(addr), sizeof(e.addr)))
        self.segment.mapped()
        return lbd_ring_push(&self.ends[RING_EVT], &e, 1) == 1

    def emit_packet(self, str ring not None, bytes packet not None, *, caplen=None, iface=0, point=0,
                    reason=0, ts_ns=0):
        """Pushes a captured or slow-path packet; `caplen` may lie."""
        cdef uint8_t slot[2048]
        cdef CaptureHead *head = <CaptureHead *>slot
        cdef size_t fits = min(<size_t>len(packet), sizeof(slot) - sizeof(CaptureHead))
        memset(slot, 0, sizeof(slot))
        head.ts_ns = ts_ns
        head.len = len(packet)
        head.caplen = fits if caplen is None else caplen
        head.point = point
        head.iface = iface
        head.reason = reason
        memcpy(slot + sizeof(CaptureHead), PyBytes_AS_STRING(packet), fits)
        self.segment.mapped()
        return lbd_ring_push(&self.ends[RINGS.index(ring)], slot, 1) == 1
