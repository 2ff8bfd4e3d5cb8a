# A Port: one AF_XDP socket in a worker's hands; rings mapped, frames accounted for, repaired after a crash.
#
# Scope: the socket is open, bound and filled (the master did that, _xsk.pyx) and came as a descriptor.
# Nothing here opens or closes one, allocates, blocks or takes the GIL; io.pxd moves the packets. Frames (the
# kernel's chunks) of 2 or 4 KiB.
#
# Who holds a frame is in the ledger: a byte a frame, FILL and TX with the iface, WORK with the worker in the
# high half; shared memory, outlives the worker. Each step of io.pxd is written so that a kill -9 between any
# two stores leaves a state that port_repair can tell from the rest:
#
#     step             stores, in this order                                killed in between: the frame is
#     port_fill        slot; STAGED word; ledger = FILL; producer           staged: free, as before
#     port_tx_put      slot; STAGED word; ledger = TX; (submit:) producer   staged: in the worker's hands
#         of several: all slots; STAGED word; all bytes of the ledger
#     port_rx_release  ledger = WORK; consumer                              still in the rx ring
#     port_reclaim     ledger = WORK; consumer                              still in the completion ring
#
# Prohibited:
#   - to look at the ledger before the rings: a frame that is in a ring is there, whatever the ledger says;
#   - to transmit, hand over or free a received frame before port_rx_release: a successor would receive it
#     again. Copy the descriptors into the burst, release, then work;
#   - to fill or transmit a frame that is not in the worker's hands.
# After port_repair a frame whose ledger says FILL or TX is in a ring or in the kernel (the NIC, an skb) and
# comes back by itself: never guess it free. Counts are exact at any time, in zero-copy too, since ring words
# count from 0: port_rx_held = fill.producer - rx.consumer, port_tx_held = tx.producer - completion.consumer.
#
# Reference: kernel Documentation/networking/af_xdp.rst, net/xdp/xsk.c, net/xdp/xsk_queue.h.
from libc.errno cimport errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from lbd.shm.layout cimport CHUNK_SHIFT, FRAME_FILL, FRAME_FREE, FRAME_TX, FRAME_WORK, QueueStat
from lbd.xdp.libxdp cimport (
    XDP_MMAP_OFFSETS, XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_STATISTICS,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, xdp_desc, xdp_mmap_offsets, xdp_options,
    xdp_ring_offset, xdp_statistics, xsk_ring_cons, xsk_ring_cons__comp_addr, xsk_ring_cons__rx_desc,
    xsk_ring_prod, xsk_ring_prod__fill_addr, xsk_ring_prod__tx_desc,
)

cdef extern from *:
    """
    #include <sys/mman.h>
    #include <sys/socket.h>
    #ifndef SOL_XDP
    #define SOL_XDP 283
    #endif
    /* Against the compiler alone: a process that is killed has made its stores in program order. */
    #define port_in_order() __atomic_signal_fence(__ATOMIC_SEQ_CST)
    #define port_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    """
    enum: SOL_XDP
    enum: SOL_SOCKET
    enum: SO_COOKIE
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_SHARED
    enum: MAP_POPULATE
    void *MAP_FAILED
    void port_in_order() noexcept nogil
    uint32_t port_load(const uint32_t *p) noexcept nogil
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int munmap(void *addr, size_t length) noexcept nogil
    int getsockopt(int fd, int level, int name, void *value, uint32_t *length) noexcept nogil

cdef enum PortRing:
    RING_FILL = 0
    RING_RX = 1
    RING_TX = 2
    RING_COMP = 3
    RING_FILL_STAGED = 4    # written, not published: between put and submit, or left so by a crash
    RING_TX_STAGED = 5

cdef enum:                  # words of QueueStat.spare (written by the worker; live as long as the segment)
    WORD_FILL_STAGED = 0    # what the fill ring's producer will be once everything written is published
    WORD_TX_STAGED = 1      # the same of the tx ring
    WORD_COOKIE = 2         # low half of SO_COOKIE: the socket that these words and the statistics speak of

cdef struct TxMetadata:     # before a packet: struct xsk_tx_metadata of linux/if_xdp.h (6.8), which Debian 12 lacks
    uint64_t flags
    uint16_t csum_start                 # from the packet's first byte: what is to be summed up
    uint16_t csum_offset                # from there
    uint32_t launch[3]                  # (a union of 16 bytes)

cdef struct PortMap:
    void *base
    size_t length

cdef struct Port:           # private to the worker
    # hot: one line for each direction
    xsk_ring_cons rx
    xsk_ring_prod fill
    xsk_ring_prod tx
    xsk_ring_cons comp
    uint8_t *ledger         # one byte a frame, by frame number
    uint8_t *area           # first frame
    QueueStat *stat         # in the worker segment
    uint32_t frames_total   # in the area
    uint32_t shift          # a frame has 1 << shift bytes
    uint32_t tx_outstanding     # submitted and not yet reclaimed
    int fd
    uint8_t iface           # lbd's number, 0..15
    uint8_t zero_copy       # 1: the kernel bound it so (XDP_OPTIONS)
    uint8_t busy_poll       # 1: a receive call drives the NIC's NAPI (SO_PREFER_BUSY_POLL), so always make it
    uint8_t work            # ledger byte of a frame in this worker's hands: FRAME_WORK | worker << 4
    uint8_t fill_least      # places in the fill ring from which on it is filled again: the kernel reads on in other lines
    uint8_t need_kick       # 1: submitted descriptors may still lie in the tx ring
    # cold
    uint32_t ifindex
    uint32_t queue
    xdp_statistics last     # as read last; the kernel counts per socket, QueueStat over all sockets
    PortMap maps[4]         # by PortRing


# ---- set-up and tear-down -----------------------------------------------------------------------------

cdef inline int port_map_ring(Port *p, PortRing which, uint64_t pgoff, const xdp_ring_offset *off,
                              uint32_t size, uint32_t entry) noexcept nogil:
    """Map one ring; indices from the shared words, so a successor goes on where its predecessor stopped."""
    cdef size_t length = off.desc + <size_t>size * entry
    cdef uint8_t *base = <uint8_t *>mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                                         p.fd, <long>pgoff)
    cdef xsk_ring_prod *prod
    cdef xsk_ring_cons *cons
    if <void *>base == MAP_FAILED:
        return -errno
    p.maps[<int>which].base = base
    p.maps[<int>which].length = length
    if which == RING_FILL or which == RING_TX:
        prod = &p.fill if which == RING_FILL else &p.tx
        prod.size = size
        prod.mask = size - 1
        prod.producer = <uint32_t *>(base + off.producer)
        prod.consumer = <uint32_t *>(base + off.consumer)
        prod.flags = <uint32_t *>(base + off.flags)
        prod.ring = base + off.desc
        prod.cached_prod = port_load(prod.producer)
        prod.cached_cons = port_load(prod.consumer) + size
    else:
        cons = &p.rx if which == RING_RX else &p.comp
        cons.size = size
        cons.mask = size - 1
        cons.producer = <uint32_t *>(base + off.producer)
        cons.consumer = <uint32_t *>(base + off.consumer)
        cons.flags = <uint32_t *>(base + off.flags)
        cons.ring = base + off.desc
        cons.cached_prod = port_load(cons.producer)
        cons.cached_cons = port_load(cons.consumer)
    return 0


cdef inline void port_unmap(Port *p) noexcept nogil:
    """Harmless when repeated. The socket stays open: its descriptor is the caller's."""
    cdef int i
    for i in range(4):
        if p.maps[i].base != NULL:
            munmap(p.maps[i].base, p.maps[i].length)
            p.maps[i].base = NULL
    p.stat.bound = 0


cdef inline uint64_t port_least(uint64_t a, uint64_t b) noexcept nogil:
    return a if a < b else b


cdef inline int port_map(Port *p, int fd, uint32_t fill, uint32_t comp,
                         uint32_t rx, uint32_t tx) noexcept nogil:
    """Map the four rings (sizes as the master opened them). 0 or -errno, with nothing mapped.

    Set before: area, ledger, work, frames_total, shift, stat, iface, ifindex, queue, busy_poll. To do after:
    port_repair, whether the socket is new or a dead predecessor's.
    """
    cdef xdp_mmap_offsets off
    cdef xdp_options options
    cdef xdp_statistics now
    cdef uint64_t cookie = 0
    cdef uint32_t length = sizeof(off)
    cdef int rc
    p.fd = fd
    if p.work == FRAME_FREE:
        p.work = FRAME_WORK     # worker 0
    if p.shift == 0:
        p.shift = CHUNK_SHIFT
    memset(p.maps, 0, sizeof(p.maps))
    memset(&p.last, 0, sizeof(p.last))
    memset(&now, 0, sizeof(now))
    options.flags = 0
    if getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &off, &length) != 0:
        return -errno
    length = sizeof(cookie)
    if getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0:
        return -errno
    length = sizeof(options)
    getsockopt(fd, SOL_XDP, XDP_OPTIONS, &options, &length)
    rc = port_map_ring(p, RING_FILL, XDP_UMEM_PGOFF_FILL_RING, &off.fr, fill, sizeof(uint64_t))
    if rc == 0:
        rc = port_map_ring(p, RING_RX, XDP_PGOFF_RX_RING, &off.rx, rx, sizeof(xdp_desc))
    if rc == 0:
        rc = port_map_ring(p, RING_TX, XDP_PGOFF_TX_RING, &off.tx, tx, sizeof(xdp_desc))
    if rc == 0:
        rc = port_map_ring(p, RING_COMP, XDP_UMEM_PGOFF_COMPLETION_RING, &off.cr, comp, sizeof(uint64_t))
    if rc != 0:
        port_unmap(p)
        return rc
    if p.stat.spare[WORD_COOKIE] != <uint32_t>cookie:       # another socket than these words speak of
        p.stat.spare[WORD_FILL_STAGED] = p.fill.cached_prod
        p.stat.spare[WORD_TX_STAGED] = p.tx.cached_prod
        port_in_order()
        p.stat.spare[WORD_COOKIE] = <uint32_t>cookie
    else:       # the predecessor's: what it had counted already; if in doubt all, so nothing counts twice
        length = sizeof(now)
        getsockopt(fd, SOL_XDP, XDP_STATISTICS, &now, &length)
        p.last.rx_dropped = port_least(p.stat.rx_dropped, now.rx_dropped)
        p.last.rx_invalid_descs = port_least(p.stat.rx_invalid_descs, now.rx_invalid_descs)
        p.last.tx_invalid_descs = port_least(p.stat.tx_invalid_descs, now.tx_invalid_descs)
        p.last.rx_ring_full = port_least(p.stat.rx_ring_full, now.rx_ring_full)
        p.last.rx_fill_ring_empty_descs = port_least(p.stat.rx_fill_empty, now.rx_fill_ring_empty_descs)
        p.last.tx_ring_empty_descs = port_least(p.stat.tx_ring_empty, now.tx_ring_empty_descs)
    p.fill_least = <uint8_t> (64 if fill >= 256 else fill // 4)
    p.zero_copy = 1 if options.flags & XDP_OPTIONS_ZEROCOPY else 0
    p.tx_outstanding = p.tx.cached_prod - p.comp.cached_cons
    p.need_kick = 1             # the predecessor may have died between submit and kick
    p.stat.bound = 1 + p.zero_copy
    return 0


# ---- accounting and repair ----------------------------------------------------------------------------

cdef inline uint32_t port_rx_held(Port *p) noexcept nogil:
    """Frames on the receive side: in the fill ring, in the kernel or the NIC, in the rx ring."""
    return port_load(p.fill.producer) - port_load(p.rx.consumer)


cdef inline uint32_t port_tx_held(Port *p) noexcept nogil:
    """Frames on the transmit side: in the tx ring, in the kernel or the NIC, in the completion ring."""
    return port_load(p.tx.producer) - port_load(p.comp.consumer)


cdef inline uint32_t port_fill_pending(Port *p) noexcept nogil:
    """Frames in the fill ring that the kernel has not taken yet."""
    return port_load(p.fill.producer) - port_load(p.fill.consumer)


cdef inline uint32_t port_rx_pending(Port *p) noexcept nogil:
    """Received descriptors that wait for this worker."""
    return port_load(p.rx.producer) - p.rx.cached_cons


cdef inline uint32_t port_tx_pending(Port *p) noexcept nogil:
    """Published descriptors that the kernel has not taken yet."""
    return port_load(p.tx.producer) - port_load(p.tx.consumer)


cdef inline uint32_t port_comp_pending(Port *p) noexcept nogil:
    """Transmitted frames that wait to be reclaimed."""
    return port_load(p.comp.producer) - p.comp.cached_cons


cdef inline uint32_t port_ring_frames(Port *p, PortRing which, uint32_t *out, uint32_t max) noexcept nogil:
    """Numbers of the frames in one ring, at most `max`.

    The kernel goes on meanwhile and moves frames from fill to rx and from tx to completion: read the rings in
    the order of PortRing, so that a frame may be seen twice but is never missed for having moved.
    """
    cdef uint32_t i, frame, first, last, n = 0
    if which == RING_FILL:
        first, last = port_load(p.fill.consumer), port_load(p.fill.producer)
    elif which == RING_RX:
        first, last = port_load(p.rx.consumer), port_load(p.rx.producer)
    elif which == RING_TX:
        first, last = port_load(p.tx.consumer), port_load(p.tx.producer)
    elif which == RING_COMP:
        first, last = port_load(p.comp.consumer), port_load(p.comp.producer)
    elif which == RING_FILL_STAGED:
        first, last = port_load(p.fill.producer), p.stat.spare[WORD_FILL_STAGED]
        if last - first > p.fill.size:
            return 0
    else:
        first, last = port_load(p.tx.producer), p.stat.spare[WORD_TX_STAGED]
        if last - first > p.tx.size:
            return 0
    for i in range(last - first):
        if n == max:
            break
        if which == RING_FILL or which == RING_FILL_STAGED:
            frame = <uint32_t>(xsk_ring_prod__fill_addr(&p.fill, first + i)[0] >> p.shift)
        elif which == RING_RX:
            frame = <uint32_t>(xsk_ring_cons__rx_desc(&p.rx, first + i).addr >> p.shift)
        elif which == RING_COMP:
            frame = <uint32_t>(xsk_ring_cons__comp_addr(&p.comp, first + i)[0] >> p.shift)
        else:
            frame = <uint32_t>(xsk_ring_prod__tx_desc(&p.tx, first + i).addr >> p.shift)
        if frame < p.frames_total:
            out[n] = frame
            n += 1
    return n


cdef inline uint32_t port_repair(Port *p, uint32_t *scratch) noexcept nogil:
    """After port_map: make the ledger agree with the rings, take back what a dead predecessor had staged.

    `scratch` has room for as many numbers as the largest ring has entries. Returns how many were taken back.
    Afterwards, and for all ports done: WORK and FREE are the worker's to free, FILL and TX are the kernel's.
    """
    cdef uint32_t i, n, back = 0
    n = port_ring_frames(p, RING_FILL_STAGED, scratch, p.fill.size)
    for i in range(n):
        p.ledger[scratch[i]] = FRAME_FREE       # which it was before: nothing is lost with it
    back += n
    n = port_ring_frames(p, RING_TX_STAGED, scratch, p.tx.size)
    for i in range(n):
        p.ledger[scratch[i]] = p.work
    back += n
    port_in_order()
    p.stat.spare[WORD_FILL_STAGED] = p.fill.producer[0]
    p.stat.spare[WORD_TX_STAGED] = p.tx.producer[0]
    n = port_ring_frames(p, RING_FILL, scratch, p.fill.size)
    for i in range(n):
        p.ledger[scratch[i]] = <uint8_t>(FRAME_FILL | p.iface << 4)
    n = port_ring_frames(p, RING_RX, scratch, p.rx.size)
    for i in range(n):
        p.ledger[scratch[i]] = <uint8_t>(FRAME_FILL | p.iface << 4)
    n = port_ring_frames(p, RING_TX, scratch, p.tx.size)
    for i in range(n):
        p.ledger[scratch[i]] = <uint8_t>(FRAME_TX | p.iface << 4)
    n = port_ring_frames(p, RING_COMP, scratch, p.comp.size)
    for i in range(n):
        p.ledger[scratch[i]] = <uint8_t>(FRAME_TX | p.iface << 4)
    return back
