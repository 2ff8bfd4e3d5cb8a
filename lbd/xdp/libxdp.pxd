# The parts of linux/if_xdp.h and of libxdp's xdp/xsk.h that lbd uses: declarations only, names untouched.
#
# Of libxdp only the ring inlines serve (static inline in the header, nothing of the library is called): its
# sockets can't be handed from process to process before 1.4, so _xsk.pyx opens them by plain system calls.
# Reference: kernel Documentation/networking/af_xdp.rst; xdp/xsk.h of libxdp 1.3.1.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "linux/if_xdp.h" nogil:
    enum:
        XDP_SHARED_UMEM
        XDP_COPY
        XDP_ZEROCOPY
        XDP_USE_NEED_WAKEUP
        XDP_MMAP_OFFSETS
        XDP_RX_RING
        XDP_TX_RING
        XDP_UMEM_REG
        XDP_UMEM_FILL_RING
        XDP_UMEM_COMPLETION_RING
        XDP_STATISTICS
        XDP_OPTIONS
        XDP_OPTIONS_ZEROCOPY
        XDP_RING_NEED_WAKEUP

    const uint64_t XDP_PGOFF_RX_RING
    const uint64_t XDP_PGOFF_TX_RING
    const uint64_t XDP_UMEM_PGOFF_FILL_RING
    const uint64_t XDP_UMEM_PGOFF_COMPLETION_RING

    struct sockaddr_xdp:
        uint16_t sxdp_family
        uint16_t sxdp_flags
        uint32_t sxdp_ifindex
        uint32_t sxdp_queue_id
        uint32_t sxdp_shared_umem_fd

    struct xdp_ring_offset:
        uint64_t producer
        uint64_t consumer
        uint64_t desc
        uint64_t flags

    struct xdp_mmap_offsets:
        xdp_ring_offset rx
        xdp_ring_offset tx
        xdp_ring_offset fr
        xdp_ring_offset cr

    struct xdp_statistics:
        uint64_t rx_dropped
        uint64_t rx_invalid_descs
        uint64_t tx_invalid_descs
        uint64_t rx_ring_full
        uint64_t rx_fill_ring_empty_descs
        uint64_t tx_ring_empty_descs

    struct xdp_options:
        uint32_t flags

    struct xdp_desc:
        uint64_t addr
        uint32_t len
        uint32_t options

cdef extern from "xdp/xsk.h" nogil:
    struct xsk_ring_prod:
        uint32_t cached_prod
        uint32_t cached_cons
        uint32_t mask
        uint32_t size
        uint32_t *producer
        uint32_t *consumer
        void *ring
        uint32_t *flags

    struct xsk_ring_cons:
        uint32_t cached_prod
        uint32_t cached_cons
        uint32_t mask
        uint32_t size
        uint32_t *producer
        uint32_t *consumer
        void *ring
        uint32_t *flags

    uint64_t *xsk_ring_prod__fill_addr(xsk_ring_prod *fill, uint32_t idx)
    const uint64_t *xsk_ring_cons__comp_addr(const xsk_ring_cons *comp, uint32_t idx)
    xdp_desc *xsk_ring_prod__tx_desc(xsk_ring_prod *tx, uint32_t idx)
    const xdp_desc *xsk_ring_cons__rx_desc(const xsk_ring_cons *rx, uint32_t idx)
    int xsk_ring_prod__needs_wakeup(const xsk_ring_prod *r)
    uint32_t xsk_prod_nb_free(xsk_ring_prod *r, uint32_t nb)
    uint32_t xsk_cons_nb_avail(xsk_ring_cons *r, uint32_t nb)
    uint32_t xsk_ring_prod__reserve(xsk_ring_prod *prod, uint32_t nb, uint32_t *idx)
    void xsk_ring_prod__submit(xsk_ring_prod *prod, uint32_t nb)
    uint32_t xsk_ring_cons__peek(xsk_ring_cons *cons, uint32_t nb, uint32_t *idx)
    void xsk_ring_cons__cancel(xsk_ring_cons *cons, uint32_t nb)
    void xsk_ring_cons__release(xsk_ring_cons *cons, uint32_t nb)
