# What becomes of a burst: to a transmit ring, to another worker, to the kernel, or the frame is free again.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld64, lbd_likely, lbd_unlikely, lbd_compiler_barrier
from lbd.datapath.hdr cimport PROTO_TCP
from lbd.datapath.pkt cimport Pkt, PKT_COMPLETE
from lbd.datapath.reason cimport *
from lbd.loop.bond cimport bond_port
from lbd.loop.state cimport Loop, NO_WORKER
from lbd.loop.chain cimport chain_fit, chain_free, chain_of, chain_send, packet_free
from lbd.loop.frames cimport frame_of
from lbd.loop.capture cimport slow_path
from lbd.shm.layout cimport FRAME_HAND, HAND_MORE, HAND_PROCESS, HAND_REST, HAND_TRANSMIT, Hand
from lbd.shm.ring cimport lbd_ring_room, lbd_ring_slot, lbd_ring_refuse
from lbd.xdp.io cimport (XDP_TX_METADATA, port_tx_byte, port_tx_completes, port_tx_put, port_tx_reserve, port_tx_sound,
                         port_tx_stage, port_tx_write)
from lbd.xdp.port cimport Port


cdef inline void lose(Loop *l, Pkt *p, uint32_t reason) noexcept nogil:
    """Dropped after the engine had decided otherwise. `verdicts` stay as the engine decided: a counter never goes backwards."""
    l.e.count.drops[reason] += 1
    p.verdict = VERDICT_DROP
    p.reason = reason


cdef inline void hand_write(Loop *l, const Pkt *p, uint32_t to, uint32_t at, const uint8_t *data, uint32_t n, uint32_t kind,
                            uint32_t said) noexcept nogil:
    """The at-th unpublished entry: n bytes from data on."""
    cdef Hand *h = <Hand *> lbd_ring_slot(&l.hand_out[to], at)
    h.frame = frame_of(l, data)
    h.off = <uint16_t> (<uint64_t> (data - l.area) - (<uint64_t> h.frame << l.frame_shift))
    h.len = n
    h.ifin = p.ifout if kind & HAND_TRANSMIT else p.ifin
    h.kind = kind
    h.hops = p.hops + 1
    h.flags = p.flags
    h.spare = said


cdef inline void hand_stage(Loop *l, uint32_t to, uint32_t end) noexcept nogil:
    """All unpublished entries before `end` are written: from here on a successor publishes them. Of one packet all, or none."""
    lbd_compiler_barrier()
    l.hand_staged[to] = end
    l.ctl.staged_hand[to] = l.hand_out[to].own + end
    lbd_compiler_barrier()


cdef inline bint hand_to(Loop *l, Pkt *p, uint32_t to, uint32_t kind, uint32_t said) noexcept nogil:
    """Gives the packet to another worker, by descriptor. said: of Engine.hand. False: its ring is full."""
    cdef uint32_t k, at, head = p.len, more = 0
    cdef uint8_t owner = <uint8_t> (FRAME_HAND | to << 4)
    if to >= l.workers or to == l.worker:
        return False
    if lbd_unlikely(p.chain):
        more = chain_fit(l, p, &head)
    at = l.hand_staged[to]
    if lbd_ring_room(&l.hand_out[to], at + more + 1) <= at + more:
        return False
    hand_write(l, p, to, at, p.data, head, kind | (HAND_MORE if more else 0), said)
    for k in range(more):
        hand_write(l, p, to, at + 1 + k, chain_of(l, p).data[k], chain_of(l, p).len[k],
                   kind | HAND_REST | (HAND_MORE if k + 1 < more else 0), 0)
    hand_stage(l, to, at + more + 1)
    l.ledger[frame_of(l, p.data)] = owner
    for k in range(more):
        l.ledger[frame_of(l, chain_of(l, p).data[k])] = owner
    if lbd_unlikely(p.chain):
        chain_free(l, p, more)
    l.e.count.handed_out += 1
    return True


cdef inline uint32_t hand_alike(Loop *l, const Pkt *pkts, uint32_t *said, uint32_t n) noexcept nogil:
    """Of n packets, the first of which is another worker's, as many from there on as are the same one's, in one frame each, and
    find room in its ring. said: of Engine.hand, each 0 again when it is on its way. Returns how many."""
    cdef uint32_t to = pkts[0].owner, k = 0, j, at, room
    cdef uint8_t owner = <uint8_t> (FRAME_HAND | to << 4)
    if to >= l.workers or to == l.worker:
        return 0
    at = l.hand_staged[to]
    room = lbd_ring_room(&l.hand_out[to], at + n)       # NB: 0 after a peer's garbage, whatever is staged
    while at + k < room and pkts[k].verdict == VERDICT_HANDOVER and pkts[k].owner == to and not pkts[k].chain:
        hand_write(l, pkts + k, to, at + k, pkts[k].data, pkts[k].len, HAND_PROCESS, said[k])
        said[k] = 0
        k += 1
    hand_stage(l, to, at + k)
    for j in range(k):
        l.ledger[frame_of(l, pkts[j].data)] = owner
    l.e.count.handed_out += k
    return k


cdef inline bint put_out(Loop *l, Port *port, Pkt *p, uint32_t options) noexcept nogil:
    if lbd_unlikely(not port_tx_put(port, <uint64_t> (p.data - l.area), p.len, options)):
        return False
    port.stat.tx_pkts += 1
    port.stat.tx_bytes += p.len
    return True


cdef inline bint put_chain(Loop *l, Port *port, Pkt *p, uint32_t options) noexcept nogil:
    if not chain_send(l, port, p, options):
        return False
    port.stat.tx_pkts += 1
    port.stat.tx_bytes += p.len
    return True


cdef inline void send_otherwise(Loop *l, Pkt *p) noexcept nogil:
    """By a bond, in several frames, with a checksum for the kernel to complete, through another worker, or not at all."""
    cdef uint32_t iface = p.ifout, options = 0
    if p.flags & PKT_COMPLETE:
        options = XDP_TX_METADATA
        if p.l4:                        # else the worker that it comes from has done so
            port_tx_completes(p.data, p.l4, 16 if p.proto == PROTO_TCP else 6)
    if l.port[iface].fd < 0 and l.e.iface[iface].member_n != 0:         # a bond, which has no port: by one of its members'
        iface = bond_port(l, p, l.e.iface + iface)
        p.ifout = iface
    if l.port[iface].fd >= 0:
        if put_chain(l, &l.port[iface], p, options) if p.chain else put_out(l, &l.port[iface], p, options):
            return
        l.port[iface].stat.tx_full += 1
        lose(l, p, REASON_TX_RING_FULL)
    elif l.via[iface] == NO_WORKER:
        lose(l, p, REASON_NO_TX_PORT)
    elif hand_to(l, p, l.via[iface], HAND_TRANSMIT, 0):
        return
    else:
        lose(l, p, REASON_RING_FULL)
    packet_free(l, p)


cdef inline bint plain(const Pkt *p) noexcept nogil:
    """In one frame, with nothing for the kernel to do about it."""
    return (p.chain | p.flags & PKT_COMPLETE) == 0


cdef inline void send_out(Loop *l, Pkt *p) noexcept nogil:
    """By this worker's own queue on that interface; else through a worker that has one there."""
    cdef Port *port = &l.port[p.ifout]
    if lbd_likely(port.fd >= 0):
        if lbd_likely(plain(p)):
            if lbd_likely(put_out(l, port, p, 0)):
                return
    send_otherwise(l, p)


cdef inline bint leaves(const Pkt *p) noexcept nogil:
    return p.verdict == VERDICT_FORWARD or p.verdict == VERDICT_CONSUME


cdef inline bint alike(const Pkt *p, uint8_t iface) noexcept nogil:
    """It leaves, by this interface, and is plain: ifout, verdict, flags and chain as one word, little-endian. (FORWARD and CONSUME
    differ by one bit.)"""
    cdef uint64_t asked = (<uint64_t> 0xff << 48 | <uint64_t> PKT_COMPLETE << 32
                           | (0xff ^ VERDICT_FORWARD ^ VERDICT_CONSUME) << 8 | 0xff)
    return lbd_ld64(&p.ifout) & asked == (iface | (VERDICT_FORWARD & VERDICT_CONSUME) << 8)


cdef inline uint32_t send_alike(Loop *l, Pkt *pkts, uint32_t n) noexcept nogil:
    """Of n packets, the first of which leaves and is plain, as many from there on as leave by the same port, are plain, and can be
    put. Returns how many: nearly always all of a burst."""
    cdef uint8_t iface = pkts[0].ifout
    cdef Port *port = &l.port[iface]
    cdef const uint8_t *area = l.area
    cdef uint32_t k = 0, j, length, bytes = 0, slot = port.tx.cached_prod, shift = port.shift, frames_total = port.frames_total
    cdef uint64_t addr
    cdef uint8_t *ledger = port.ledger
    cdef uint8_t put = port_tx_byte(port)
    if lbd_unlikely(port.fd < 0):
        return 0
    n = port_tx_reserve(port, n)
    while k < n:
        addr = <uint64_t> (pkts[k].data - area)
        length = pkts[k].len
        if lbd_unlikely(not alike(pkts + k, iface)) or lbd_unlikely(not port_tx_sound(addr, length, shift, frames_total)):
            break
        port_tx_write(port, slot + k, addr, length, 0)
        bytes += length
        k += 1
    port_tx_stage(port, slot + k)
    for j in range(k):
        ledger[<uint64_t> (pkts[j].data - area) >> shift] = put
    port.stat.tx_pkts += k
    port.stat.tx_bytes += bytes
    return k


cdef inline void dispatch(Loop *l, Pkt *pkts, uint32_t n) noexcept nogil:
    cdef uint32_t i = 0, k, said
    cdef Pkt *p
    while i < n:
        p = pkts + i
        if lbd_likely(leaves(p)):
            k = send_alike(l, p, n - i) if lbd_likely(plain(p)) else 0
            i += k
            if lbd_likely(k):
                continue
            send_out(l, p)
            i += 1
            continue
        if p.verdict == VERDICT_HANDOVER:
            k = hand_alike(l, p, l.e.hand + i, n - i)
            i += k
            if lbd_likely(k):
                continue
            said = l.e.hand[i]
            l.e.hand[i] = 0
            if hand_to(l, p, p.owner, HAND_PROCESS, said):
                i += 1
                continue
            lose(l, p, REASON_RING_FULL)
        elif p.verdict == VERDICT_KERNEL and not slow_path(l, p):
            lose(l, p, REASON_KERNEL_LIMITED)
        packet_free(l, p)
        i += 1
