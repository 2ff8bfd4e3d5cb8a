# Packets through a Port: receive, fill, transmit, reclaim, kick. The worker's side of an AF_XDP socket.
#
# Scope: inline functions on the Port of port.pxd, which has the rules of who may hold a frame when; libxdp's
# ring inlines do the memory ordering. Nothing blocks, allocates or takes the GIL; what fails is returned or
# counted in the queue's QueueStat. A descriptor a frame; packets of several are lbd/loop/chain.pxd's.
#
# A worker's turn on a port:
#     n = port_rx_peek(p, BURST_MAX, &idx); copy the n descriptors; port_rx_release(p, n); work on them
#     port_tx_put(p, ...) each, port_tx_submit(p); port_kick(p, tries)      every turn, new or not
#     port_reclaim(p, frames, max), to be free or sent home; port_fill(p, frames, n); port_wake_rx(p)
#     now and then: port_publish(p), port_statistics(p)
#
# Reference: kernel Documentation/networking/af_xdp.rst, net/xdp/xsk.c.
from libc.errno cimport EAGAIN, EBUSY, EINTR, ENETDOWN, ENOBUFS, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from lbd.shm.layout cimport FRAME_FILL, FRAME_TX
from lbd.xdp.libxdp cimport (
    XDP_STATISTICS, xdp_desc, xdp_statistics, xsk_cons_nb_avail, xsk_prod_nb_free, xsk_ring_cons__cancel,
    xsk_ring_cons__comp_addr, xsk_ring_cons__peek, xsk_ring_cons__release, xsk_ring_cons__rx_desc, xsk_ring_prod__fill_addr,
    xsk_ring_prod__needs_wakeup, xsk_ring_prod__submit, xsk_ring_prod__tx_desc,
)
from lbd.xdp.port cimport (
    RING_COMP, RING_FILL, RING_FILL_STAGED, RING_RX, RING_TX, RING_TX_STAGED, SOL_XDP, WORD_FILL_STAGED,
    WORD_TX_STAGED, Port, PortRing, TxMetadata, getsockopt, port_comp_pending, port_fill_pending, port_in_order,
    port_load, port_map, port_repair, port_ring_frames, port_rx_held, port_rx_pending, port_tx_held,
    port_tx_pending, port_unmap,
)

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/types.h>
    """
    enum: MSG_DONTWAIT
    ssize_t sendto(int fd, const void *buf, size_t n, int flags, const void *to, uint32_t ton) noexcept nogil
    ssize_t recvfrom(int fd, void *buf, size_t n, int flags, void *sender, uint32_t *sn) noexcept nogil


cdef enum:
    XDP_TX_METADATA = 2                 # descriptor option: a TxMetadata lies just before the packet
    XDP_TXMD_FLAGS_CHECKSUM = 2         # of it: the checksum at csum_start + csum_offset is partial


# ---- receive ------------------------------------------------------------------------------------------

cdef inline uint32_t port_rx_peek(Port *p, uint32_t max, uint32_t *idx) noexcept nogil:
    """Received descriptors, at most `max`, from *idx on: xsk_ring_cons__rx_desc(&p.rx, idx + i) reads one."""
    return xsk_ring_cons__peek(&p.rx, max, idx)


cdef inline void port_rx_mark(Port *p, uint32_t n, uint8_t holder) noexcept nogil:
    """Enters `holder` in the ledger for the last `n` peeked frames."""
    cdef uint32_t i, first = p.rx.cached_cons - n
    cdef uint32_t shift = p.shift
    cdef uint8_t *ledger = p.ledger
    for i in range(n):
        ledger[xsk_ring_cons__rx_desc(&p.rx, first + i).addr >> shift] = holder


cdef inline void port_rx_cancel(Port *p, uint32_t n) noexcept nogil:
    """The last `n` peeked descriptors stay in the ring: the packet that they begin is not all there."""
    port_rx_mark(p, n, <uint8_t>(FRAME_FILL | p.iface << 4))
    xsk_ring_cons__cancel(&p.rx, n)


cdef inline void port_rx_release_marked(Port *p, uint32_t n) noexcept nogil:
    """The last `n` peeked descriptors are copied, and the ledger says that their frames are in the worker's hands (`p.work`): their
    slots are the kernel's."""
    xsk_ring_cons__release(&p.rx, n)


cdef inline void port_rx_release(Port *p, uint32_t n) noexcept nogil:
    """The last `n` peeked descriptors are copied: frames in the worker's hands, slots the kernel's."""
    port_rx_mark(p, n, p.work)
    port_rx_release_marked(p, n)


cdef inline uint32_t port_fill_room(Port *p, uint32_t n) noexcept nogil:
    """How many of `n` frames the fill ring takes now."""
    cdef uint32_t room = xsk_prod_nb_free(&p.fill, n)
    return n if n < room else room


cdef inline uint32_t port_fill(Port *p, const uint32_t *frames, uint32_t n) noexcept nogil:
    """Give the kernel free frames to receive into; returns how many, from the start of `frames`, went."""
    cdef uint32_t i, first, shift = p.shift
    cdef uint8_t *ledger = p.ledger
    cdef uint8_t fill = <uint8_t>(FRAME_FILL | p.iface << 4)
    n = port_fill_room(p, n)
    if n == 0:
        return 0
    first = p.fill.cached_prod
    for i in range(n):
        xsk_ring_prod__fill_addr(&p.fill, first + i)[0] = <uint64_t>frames[i] << shift
    p.fill.cached_prod = first + n
    port_in_order()
    p.stat.spare[WORD_FILL_STAGED] = first + n
    port_in_order()
    for i in range(n):
        ledger[frames[i]] = fill
    xsk_ring_prod__submit(&p.fill, n)
    return n


cdef inline void port_wake_rx(Port *p) noexcept nogil:
    """Tell a driver that ran out of frames of new ones (zero-copy), or let it poll (busy poll)."""
    if p.busy_poll or xsk_ring_prod__needs_wakeup(&p.fill):
        recvfrom(p.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)


# ---- transmit -----------------------------------------------------------------------------------------

cdef inline uint32_t port_tx_reserve(Port *p, uint32_t n) noexcept nogil:
    """How many of `n` packets the tx ring takes now. The rest: drop and count tx_full; never wait."""
    cdef uint32_t room = xsk_prod_nb_free(&p.tx, n)
    return n if n < room else room


cdef inline bint port_tx_sound(uint64_t addr, uint32_t length, uint32_t shift, uint32_t frames_total) noexcept nogil:
    """Within one frame, and not empty? NB: the kernel skips an invalid descriptor without a completion; the frame would be lost to
    both sides."""
    cdef uint32_t left = <uint32_t> ~addr & ((<uint32_t> 1 << shift) - 1)      # bytes after the first one
    return length - 1 <= left and addr >> shift < frames_total


cdef inline void port_tx_write(Port *p, uint32_t slot, uint64_t addr, uint32_t length, uint32_t options) noexcept nogil:
    """A sound descriptor into `slot`, one of the next free ones (port_tx_reserve). To do after, of one or several: port_tx_stage,
    then the ledger of each frame: port_tx_byte."""
    cdef xdp_desc *d = xsk_ring_prod__tx_desc(&p.tx, slot)
    d.addr = addr
    (<uint64_t *>&d.len)[0] = length | <uint64_t>options << 32        # and options, little-endian


cdef inline void port_tx_stage(Port *p, uint32_t end) noexcept nogil:
    """All slots before `end` are written, unpublished: from here on a successor takes their frames back."""
    port_in_order()
    p.stat.spare[WORD_TX_STAGED] = end
    port_in_order()
    p.tx.cached_prod = end


cdef inline uint8_t port_tx_byte(const Port *p) noexcept nogil:
    """What the ledger says of a frame that is put."""
    return <uint8_t>(FRAME_TX | p.iface << 4)


cdef inline bint port_tx_put(Port *p, uint64_t addr, uint32_t length, uint32_t options) noexcept nogil:
    """Write one descriptor, unpublished. False: ring full, or not within one frame; the frame stays yours."""
    cdef uint32_t slot = p.tx.cached_prod
    if xsk_prod_nb_free(&p.tx, 1) == 0 or not port_tx_sound(addr, length, p.shift, p.frames_total):
        return False
    port_tx_write(p, slot, addr, length, options)
    port_tx_stage(p, slot + 1)
    p.ledger[addr >> p.shift] = port_tx_byte(p)
    return True


cdef inline void port_tx_completes(uint8_t *packet, uint16_t start, uint16_t offset) noexcept nogil:
    """Writes before a packet where its partial checksum is; its descriptor gets XDP_TX_METADATA, and its socket was opened for
    that. Copy mode: the kernel completes the checksum, or leaves it if the packet stays on this host. Documentation/networking/
    xsk-tx-metadata.rst."""
    cdef TxMetadata *m = <TxMetadata *> (packet - sizeof(TxMetadata))
    memset(m, 0, sizeof(TxMetadata))
    m.flags = XDP_TXMD_FLAGS_CHECKSUM
    m.csum_start = start
    m.csum_offset = offset


cdef inline uint32_t port_tx_submit(Port *p) noexcept nogil:
    """Publish what was put since the last time; returns how many descriptors. port_kick has to follow."""
    cdef uint32_t n = p.tx.cached_prod - p.tx.producer[0]
    if n:
        xsk_ring_prod__submit(&p.tx, n)
        p.tx_outstanding += n
        p.need_kick = 1
    return n


cdef inline uint32_t port_reclaim(Port *p, uint32_t *frames, uint32_t max) noexcept nogil:
    """Transmitted frames, at most `max`, back in the worker's hands: to be freed or sent home."""
    cdef uint32_t i, frame, idx = 0, shift = p.shift, n = xsk_ring_cons__peek(&p.comp, max, &idx)
    cdef uint8_t *ledger = p.ledger
    cdef uint8_t work = p.work
    for i in range(n):
        frame = <uint32_t>(xsk_ring_cons__comp_addr(&p.comp, idx + i)[0] >> shift)
        frames[i] = frame
        ledger[frame] = work
    if n:
        xsk_ring_cons__release(&p.comp, n)
        p.tx_outstanding -= n
    return n


cdef inline int port_kick(Port *p, uint32_t tries) noexcept nogil:
    """Make the kernel transmit what lies in the tx ring, by at most `tries` calls. 0 or -errno; never blocks.

    Call it every turn, also when nothing was submitted: what EAGAIN left is retried here. Copy mode sends in
    this call alone, and stops after its budget (32 descriptors, or XDP_MAX_TX_SKB_BUDGET) with EAGAIN: a
    further try goes on if the last one took some away. Zero-copy: only if the driver asks for it, and then
    also while frames are outstanding, since some drivers complete transmissions in that call alone.
    """
    cdef uint32_t before, after
    cdef int err = 0
    if not p.need_kick:
        return 0
    after = port_load(p.tx.consumer)
    while after != p.tx.producer[0] or p.zero_copy:
        if p.zero_copy and not xsk_ring_prod__needs_wakeup(&p.tx):
            break
        if tries == 0:
            break
        tries -= 1
        before = after
        p.stat.tx_kicks += 1
        err = 0
        if sendto(p.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0:
            err = errno
            if err != EAGAIN and err != EBUSY and err != ENOBUFS and err != ENETDOWN and err != EINTR:
                p.stat.tx_errors += 1
        after = port_load(p.tx.consumer)
        if p.zero_copy or after == before:      # the driver works on its own time; or it is stuck: next turn
            break
    if after == p.tx.producer[0] and (p.zero_copy == 0 or p.tx_outstanding == 0):
        p.need_kick = 0
    return -err


# ---- counters -----------------------------------------------------------------------------------------

cdef inline void port_publish(Port *p) noexcept nogil:
    """The two gauges of QueueStat: cheap, with the other counters every N bursts."""
    p.stat.fill_level = port_fill_pending(p)
    p.stat.tx_outstanding = p.tx_outstanding


cdef inline void port_statistics(Port *p) noexcept nogil:
    """The kernel's counters of this socket, added up in QueueStat: a system call, once a second will do."""
    cdef xdp_statistics now
    cdef uint32_t length = sizeof(now)
    memset(&now, 0, sizeof(now))
    if getsockopt(p.fd, SOL_XDP, XDP_STATISTICS, &now, &length) != 0:
        return
    p.stat.rx_dropped += now.rx_dropped - p.last.rx_dropped
    p.stat.rx_invalid_descs += now.rx_invalid_descs - p.last.rx_invalid_descs
    p.stat.tx_invalid_descs += now.tx_invalid_descs - p.last.tx_invalid_descs
    p.stat.rx_ring_full += now.rx_ring_full - p.last.rx_ring_full
    p.stat.rx_fill_empty += now.rx_fill_ring_empty_descs - p.last.rx_fill_ring_empty_descs
    p.stat.tx_ring_empty += now.tx_ring_empty_descs - p.last.tx_ring_empty_descs
    p.last = now
