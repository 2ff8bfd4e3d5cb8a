# What becomes of a burst: to a transmit ring, to another worker, to the kernel, or the frame is free again.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_likely, lbd_unlikely, lbd_compiler_barrier
from lbd.datapath.pkt cimport Pkt, PKT_HANDED
from lbd.datapath.reason cimport *
from lbd.loop.bond cimport bond_port
from lbd.loop.state cimport Loop, NO_WORKER
from lbd.loop.frames cimport frame_free
from lbd.loop.capture cimport slow_path
from lbd.shm.layout cimport (Hand, HAND_PROCESS, HAND_TRANSMIT, FRAME_HAND, CHUNK, CHUNK_SHIFT)
from lbd.shm.ring cimport lbd_ring_room, lbd_ring_slot, lbd_ring_refuse
from lbd.xdp.io cimport port_tx_put
from lbd.xdp.port cimport Port


cdef inline void lose(Loop *l, Pkt *p, uint32_t reason) noexcept nogil:
    """Dropped after the engine had decided otherwise. `verdicts` stay as the engine decided: a counter never goes backwards."""
    l.e.count.drops[reason] += 1
    p.verdict = VERDICT_DROP
    p.reason = reason


cdef inline bint hand_to(Loop *l, Pkt *p, uint32_t to, uint32_t kind, uint32_t said) noexcept nogil:
    """Gives the frame to another worker, by descriptor. said: of Engine.hand. False: its ring is full."""
    cdef Hand *h
    cdef uint64_t addr = <uint64_t> (p.data - l.area)
    cdef uint32_t frame = <uint32_t> (addr >> CHUNK_SHIFT)
    if to >= l.workers or to == l.worker or lbd_ring_room(&l.hand_out[to], l.hand_staged[to] + 1) <= l.hand_staged[to]:
        return False
    h = <Hand *> lbd_ring_slot(&l.hand_out[to], l.hand_staged[to])
    h.frame = frame
    h.off = <uint16_t> (addr & (CHUNK - 1))
    h.len = p.len
    h.ifin = p.ifin if kind == HAND_PROCESS else p.ifout
    h.kind = kind
    h.hops = p.hops + 1
    h.flags = p.flags
    h.spare = said
    l.hand_staged[to] += 1
    lbd_compiler_barrier()
    l.ctl.staged_hand[to] = l.hand_out[to].own + l.hand_staged[to]
    lbd_compiler_barrier()
    l.ledger[frame] = <uint8_t> (FRAME_HAND | to << 4)
    l.e.count.handed_out += 1
    return True


cdef inline bint put_out(Loop *l, Port *port, Pkt *p, uint64_t addr) noexcept nogil:
    if lbd_unlikely(not port_tx_put(port, addr, p.len, 0)):
        port.stat.tx_full += 1
        lose(l, p, REASON_TX_RING_FULL)
        return False
    port.stat.tx_pkts += 1
    port.stat.tx_bytes += p.len
    return True


cdef inline void send_out(Loop *l, Pkt *p) noexcept nogil:
    """By this worker's own queue on that interface; else through a worker that has one there."""
    cdef uint32_t iface = p.ifout
    cdef uint64_t addr = <uint64_t> (p.data - l.area)
    if lbd_unlikely(l.port[iface].fd < 0 and l.e.iface[iface].member_n != 0):   # a bond, which has no port: by one of its members'
        iface = bond_port(l, p, l.e.iface + iface)
        p.ifout = iface
    if lbd_likely(l.port[iface].fd >= 0):
        if lbd_likely(put_out(l, &l.port[iface], p, addr)):
            return
    elif l.via[iface] == NO_WORKER:
        lose(l, p, REASON_NO_TX_PORT)
    elif hand_to(l, p, l.via[iface], HAND_TRANSMIT, 0):
        return
    else:
        lose(l, p, REASON_RING_FULL)
    frame_free(l, <uint32_t> (addr >> CHUNK_SHIFT))


cdef inline void dispatch(Loop *l, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i, said
    cdef Pkt *p
    for i in range(n):
        p = pkts + i
        if lbd_likely(p.verdict == VERDICT_FORWARD or p.verdict == VERDICT_CONSUME):
            send_out(l, p)
            continue
        if p.verdict == VERDICT_HANDOVER:
            said = l.e.hand[i]
            l.e.hand[i] = 0
            if hand_to(l, p, p.owner, HAND_PROCESS, said):
                continue
            lose(l, p, REASON_RING_FULL)
        elif p.verdict == VERDICT_KERNEL and not slow_path(l, p):
            lose(l, p, REASON_KERNEL_LIMITED)
        frame_free(l, <uint32_t> (<uint64_t> (p.data - l.area) >> CHUNK_SHIFT))
