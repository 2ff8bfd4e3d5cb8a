# Copies of packets for the master: `lbd capture`, and the slow path to the host's stack.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.chain cimport pkt_copy
from lbd.datapath.compiler cimport lbd_unlikely
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.reason cimport VERDICT_DROP, REASON_KERNEL_LIMITED
from lbd.datapath.icmp_err cimport token_take
from lbd.datapath.command cimport CAPTURE_RX, CAPTURE_TX, CAPTURE_DROP
from lbd.datapath.svc cimport SVC_NONE
from lbd.loop.state cimport Loop, lbd_realtime
from lbd.shm.layout cimport CaptureHead, CAPTURE_SLOT
from lbd.shm.ring cimport lbd_ring_end, lbd_ring_room, lbd_ring_slot, lbd_ring_publish, lbd_ring_must_wake

cdef enum:
    CAPTURE_ROOM = 2016         # bytes of packet in a slot: CAPTURE_SLOT - sizeof(CaptureHead)


cdef inline CaptureHead *copy_packet(Loop *l, lbd_ring_end *r, uint32_t at, const Pkt *p, uint32_t first, uint32_t snap,
                                     uint32_t iface) noexcept nogil:
    """Writes the packet, from its byte number `first` on, to the at-th unpublished slot; NULL: the ring is full."""
    cdef CaptureHead *h
    cdef uint32_t n = p.len - first
    if lbd_ring_room(r, at + 1) <= at:
        return NULL
    if n > snap:
        n = snap
    if n > CAPTURE_ROOM:
        n = CAPTURE_ROOM
    h = <CaptureHead *> lbd_ring_slot(r, at)
    h.ts_ns = lbd_realtime()
    h.len = p.len
    h.caplen = n
    h.iface = iface
    h.worker = l.worker
    h.seq = l.capture_seq
    l.capture_seq += 1
    h.more = 0
    pkt_copy(&l.e, p, first, n, <uint8_t *> h + sizeof(CaptureHead))
    return h


cdef inline void head_verdict(CaptureHead *h, const Pkt *p, uint32_t point) noexcept nogil:
    h.point = point
    h.verdict = p.verdict
    h.reason = p.reason
    h.svc = p.svc
    h.dest = p.dest


cdef inline bint wanted(Loop *l, const Pkt *p) noexcept nogil:
    return l.capture_svc == SVC_NONE or l.capture_svc == p.svc


cdef inline void capture_before(Loop *l, const Pkt *pkts, uint32_t n) noexcept nogil:
    """Receive point: the bytes as they came, copied before the engine rewrites them."""
    cdef uint32_t i
    cdef CaptureHead *h
    l.capture_staged = 0
    if not l.capture_points & CAPTURE_RX:
        return
    for i in range(n):
        h = copy_packet(l, &l.capture, l.capture_staged, pkts + i, 0, l.capture_snap, pkts[i].ifin)
        if h == NULL:
            l.e.count.capture_lost += n - i
            return
        h.point = 0
        l.capture_staged += 1


cdef inline void capture_after(Loop *l, const Pkt *pkts, uint32_t n) noexcept nogil:
    """Verdicts for the receive point (a record of another service keeps point 0, and the reader passes over it); then the transmit
    and drop points."""
    cdef uint32_t i, received = l.capture_staged
    cdef CaptureHead *h
    for i in range(received):
        if wanted(l, pkts + i):
            head_verdict(<CaptureHead *> lbd_ring_slot(&l.capture, i), pkts + i, CAPTURE_RX)
    for i in range(n):
        if not wanted(l, pkts + i):
            continue
        if pkts[i].verdict == VERDICT_DROP:
            if not l.capture_points & CAPTURE_DROP:
                continue
        elif not (l.capture_points & CAPTURE_TX and (pkts[i].verdict == 1 or pkts[i].verdict == 3)):
            continue
        h = copy_packet(l, &l.capture, l.capture_staged, pkts + i, 0, l.capture_snap,
                        pkts[i].ifin if pkts[i].verdict == VERDICT_DROP else pkts[i].ifout)
        if h == NULL:
            l.e.count.capture_lost += 1
            continue
        head_verdict(h, pkts + i, CAPTURE_DROP if pkts[i].verdict == VERDICT_DROP else CAPTURE_TX)
        l.capture_staged += 1
    if l.capture_staged:
        lbd_ring_publish(&l.capture, l.capture_staged)


cdef inline bint slow_path(Loop *l, Pkt *p) noexcept nogil:
    """A packet for the host's stack: to the master, which writes it to the TAP; a large one in several records. False: over the
    rate, or no room."""
    cdef CaptureHead *h
    cdef uint32_t k, n = (p.len + CAPTURE_ROOM - 1) // CAPTURE_ROOM
    if not token_take(&l.e.kernel_bucket, l.now) or lbd_ring_room(&l.slow, n) < n:
        return False
    for k in range(n):
        h = copy_packet(l, &l.slow, k, p, k * CAPTURE_ROOM, CAPTURE_ROOM, p.ifin)
        head_verdict(h, p, 0)
        h.more = k + 1 < n
    lbd_ring_publish(&l.slow, n)
    l.e.count.kernel_out += 1
    return True
