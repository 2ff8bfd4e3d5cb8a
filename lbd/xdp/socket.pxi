# Opening of AF_XDP sockets by the kernel's own calls. Part of _xsk.pyx.
#
# Order, and why: UMEM (or sharing it), ring sizes, fill ring mapped and filled, then bind: igb never starts
# to receive if its fill ring is empty at bind. The socket stays open as long as any process has its
# descriptor.

cdef enum:
    XDP_MAX_TX_SKB_BUDGET = 9           # Linux 6.17: packets that one sendto() in copy mode takes; 32 before
    TX_BUDGET_LEAST = 32
    SO_PREFER_BUSY_POLL = 69
    SO_BUSY_POLL_BUDGET = 70
    AF_XDP = 44
    XDP_USE_SG = 16                     # Linux 6.6: packets may lie in several frames
    COPY_SKB_FRAMES = 2                 # what a queued frame counts against SO_SNDBUF, in frames, rounded up
    XDP_UMEM_TX_METADATA_LEN = 4        # Linux 6.11

cdef struct UmemReg:                    # struct xdp_umem_reg of linux/if_xdp.h: Debian 12's ends before the last word
    uint64_t addr
    uint64_t len
    uint32_t chunk_size
    uint32_t headroom
    uint32_t flags
    uint32_t tx_metadata_len

LARGE_MTU = CHUNK_LARGE - XDP_HEADROOM - 22      # Ethernet and two tags
CLOSE_SECONDS = 1.0                     # so long may a queue answer EBUSY after its last socket was closed


@dataclass(frozen=True, slots=True)
class Socket:
    """A bound socket; the caller owns `fd`. Closing its last copy frees the queue."""
    fd: int
    ifindex: int
    queue: int
    fill: int
    comp: int
    rx: int
    tx: int
    zero_copy: bool
    completes: bool     # the kernel completes transport checksums that a descriptor says are partial (io.pxd)


cdef int set_option(int fd, int level, int name, const void *value, uint32_t size) noexcept:
    return 0 if setsockopt(fd, level, name, value, size) == 0 else errno


cdef int set_number(int fd, int level, int name, int value) noexcept:
    return set_option(fd, level, name, &value, sizeof(value))


cdef int require(int code, str action, str remedy="") except -1:
    if code:
        raise XdpError(code, action, remedy)
    return 0


cdef int fill_ring(int fd, uint32_t size, list frames, uint32_t frame_size) except -1:
    """Frame numbers into the fill ring of a socket that is not bound yet."""
    cdef xdp_mmap_offsets off
    cdef uint32_t length = sizeof(off)
    cdef uint8_t *base
    cdef uint64_t *ring
    cdef size_t bytes_
    cdef uint32_t i
    if getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &off, &length) != 0:
        raise XdpError(errno, "reading the rings' offsets")
    bytes_ = off.fr.desc + size * sizeof(uint64_t)
    base = <uint8_t *>mmap(NULL, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                           <long>XDP_UMEM_PGOFF_FILL_RING)
    if <void *>base == MAP_FAILED:
        raise XdpError(errno, "mapping the fill ring")
    ring = <uint64_t *>(base + off.fr.desc)
    for i in range(<uint32_t>len(frames)):
        ring[i] = <uint64_t>frames[i] * frame_size
    (<uint32_t *>(base + off.fr.producer))[0] = <uint32_t>len(frames)
    munmap(base, bytes_)
    return 0


cdef bint register(int fd, UmemReg reg, bint metadata) except -1:
    """The area of frames. metadata: before each frame that is sent, if the kernel knows how. Does it?"""
    cdef int code
    if metadata:
        reg.flags, reg.tx_metadata_len = XDP_UMEM_TX_METADATA_LEN, sizeof(TxMetadata)
        if set_option(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)) == 0:
            return True
        reg.flags, reg.tx_metadata_len = 0, 0
    code = set_option(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg))
    require(code, f"registering {reg.len} bytes of frames", MEMLOCK if code == E.ENOBUFS else "")
    return False


cdef int bind_queue(int fd, int ifindex, int queue, int flags, int shared) noexcept:
    cdef sockaddr_xdp where
    memset(&where, 0, sizeof(where))
    where.sxdp_family = AF_XDP
    where.sxdp_flags = flags
    where.sxdp_ifindex = ifindex
    where.sxdp_queue_id = queue
    where.sxdp_shared_umem_fd = shared
    return 0 if bind(fd, <const sockaddr *>&where, sizeof(where)) == 0 else errno


def bind_error(int code, int ifindex, str ifname, int queue, bint demanded, bint shared, bint chains):
    """The refusal of bind(), in words."""
    what = f"{ifname} queue {queue}"
    if code == E.EBUSY:
        holder = queue_holder(ifindex, queue) or "this kernel can't tell which"
        return XdpError(code, f"{what} busy", f"another AF_XDP program uses it, stop it first: {holder}")
    if code == E.EINVAL and not demanded and not shared:
        return XdpError(code, f"binding {what}", f"has {ifname} so many queues? (ethtool -l {ifname})")
    if code in (E.EOPNOTSUPP, E.EINVAL, E.ENOENT) and demanded and chains:
        return XdpError(code, f"zero-copy on {what}", "the driver can't, or not for packets in several frames: "
                        f'zero_copy = "auto" takes copies instead, or lower the MTU of all interfaces to {LARGE_MTU}')
    if code in (E.EOPNOTSUPP, E.EINVAL, E.ENOENT) and demanded:
        return XdpError(code, f"zero-copy on {what}", "the driver can't, or not as the NIC is set up: "
                        'zero_copy = "auto" takes copies instead, and so do all other interfaces then')
    if code in (E.EOPNOTSUPP, E.EINVAL, E.ENOENT) and shared:
        return XdpError(code, f"sharing frames with {what}",
                        "the sockets of a worker must all be zero-copy, or all copy: set zero_copy alike")
    if code == E.ENODEV:
        return XdpError(code, f"binding {what}", f"is there no interface {ifname} any more?")
    if code == E.ENOBUFS:
        return XdpError(code, f"binding {what}", MEMLOCK)
    return XdpError(code, f"binding {what}")


def bind_patiently(int fd, int ifindex, int queue, int flags, int shared_with):
    """As bind_queue; a queue that was closed just now is waited for."""
    code = bind_queue(fd, ifindex, queue, flags, shared_with)
    deadline = time.monotonic() + CLOSE_SECONDS
    while code == E.EBUSY and time.monotonic() < deadline:
        time.sleep(0.02)
        code = bind_queue(fd, ifindex, queue, flags, shared_with)
    return code


def open_socket(*, int ifindex, str ifname, int queue, int iface, uintptr_t area, uint64_t area_bytes,
                uint32_t fill, uint32_t comp, uint32_t rx, uint32_t tx, prefill_frames, str zero_copy="auto",
                shared_with=None, uint32_t tx_budget=64, uint32_t frame_size=CHUNK, bint chains=False, bint completes=False):
    """Open, fill and bind one socket. XdpError if it can't be; nothing is left open then.

    area, area_bytes: where the frames are mapped here, all of them; the ledger follows, and the bytes of
    `prefill_frames` (numbers of free frames) are set in it. iface: lbd's number of the interface.
    zero_copy: auto (what the driver offers) | require | off; it must be "off" with a generic attachment,
    where a driver may bind zero-copy and receive nothing. shared_with: fd of the worker's first socket,
    whose UMEM and mode are used: the kernel wants all sockets of one UMEM zero-copy, or all copy. chains: packets may
    lie in several frames, of frame_size bytes. completes: the kernel shall complete checksums, if it can (of a shared UMEM:
    it does).
    Waits up to a second for a queue that was closed just now.
    """
    cdef UmemReg reg
    cdef list frames = list(prefill_frames)
    cdef uint8_t *ledger = <uint8_t *>area + area_bytes
    cdef uint64_t total = area_bytes // frame_size
    cdef uint32_t number
    cdef int fd, flags, code
    if zero_copy not in ("auto", "require", "off"):
        raise ValueError(f"zero_copy must be auto, require or off, not {zero_copy!r}")
    if len(frames) > fill:
        raise ValueError(f"{len(frames)} frames do not fit a fill ring of {fill}")
    if frames and not 0 <= min(frames) <= max(frames) < total:
        raise ValueError(f"frame numbers must be below {total}")
    if not 0 <= iface < 16:
        raise ValueError(f"interface number {iface} is not below 16")
    fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
    if fd < 0:
        raise XdpError(errno, "opening an AF_XDP socket", NEED_RAW if errno == E.EPERM else
                       "the kernel must be built with CONFIG_XDP_SOCKETS")
    try:
        if shared_with is None:
            memset(&reg, 0, sizeof(reg))
            reg.addr, reg.len, reg.chunk_size = area, area_bytes, frame_size
            completes = register(fd, reg, completes)
        for option, size in ((XDP_UMEM_FILL_RING, fill), (XDP_UMEM_COMPLETION_RING, comp), (XDP_RX_RING, rx),
                             (XDP_TX_RING, tx)):
            require(set_number(fd, SOL_XDP, option, size),
                    f"making a ring of {size} entries for {ifname} queue {queue}", "use a power of two")
        # Copy mode alone, and without them it is only slower: an older kernel or a missing capability is no
        # error.
        set_number(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, max(TX_BUDGET_LEAST, min(tx_budget, tx)))
        set_number(fd, SOL_SOCKET, SO_SNDBUFFORCE, min(tx * frame_size * COPY_SKB_FRAMES, 1 << 29))
        fill_ring(fd, fill, frames, frame_size)
        for number in frames:
            ledger[number] = FRAME_FILL | iface << 4
        flags = XDP_SHARED_UMEM
        if shared_with is None:
            flags = XDP_USE_NEED_WAKEUP | {"auto": 0, "require": XDP_ZEROCOPY, "off": XDP_COPY}[zero_copy]
            flags |= XDP_USE_SG if chains else 0
        code = bind_patiently(fd, ifindex, queue, flags, -1 if shared_with is None else shared_with)
        if code:
            raise bind_error(code, ifindex, ifname, queue, zero_copy == "require", shared_with is not None, chains)
        done = Socket(fd, ifindex, queue, fill, comp, rx, tx, is_zero_copy(fd), completes)
        if done.zero_copy != (zero_copy == "require") and zero_copy != "auto":
            raise XdpError(E.EINVAL, f"sharing frames with {ifname} queue {queue}, zero_copy {zero_copy}",
                           "the sockets of a worker must all be zero-copy, or all copy: set zero_copy alike")
        return done
    except BaseException:
        close(fd)
        for number in frames:
            ledger[number] = FRAME_FREE
        raise


def is_zero_copy(int fd):
    cdef xdp_options options
    cdef uint32_t length = sizeof(options)
    options.flags = 0
    if getsockopt(fd, SOL_XDP, XDP_OPTIONS, &options, &length) != 0:
        raise XdpError(errno, "reading an AF_XDP socket's options")
    return bool(options.flags & XDP_OPTIONS_ZEROCOPY)


def statistics(int fd):
    """The kernel's counters of a socket, by the names of QueueStat."""
    cdef xdp_statistics s
    cdef uint32_t length = sizeof(s)
    memset(&s, 0, sizeof(s))
    if getsockopt(fd, SOL_XDP, XDP_STATISTICS, &s, &length) != 0:
        raise XdpError(errno, "reading an AF_XDP socket's statistics")
    return {
        "rx_dropped": s.rx_dropped,
        "rx_invalid_descs": s.rx_invalid_descs,
        "tx_invalid_descs": s.tx_invalid_descs,
        "rx_ring_full": s.rx_ring_full,
        "rx_fill_empty": s.rx_fill_ring_empty_descs,
        "tx_ring_empty": s.tx_ring_empty_descs,
    }


def busy_poll(int fd, int usec, int budget):
    """The worker's calls drive the NIC from now on. False: they don't, the driver (veth) has no NAPI ids."""
    cdef int napi = 0
    cdef uint32_t length = sizeof(napi)
    for option, value in ((SO_PREFER_BUSY_POLL, 1), (SO_BUSY_POLL, usec), (SO_BUSY_POLL_BUDGET, budget)):
        code = set_number(fd, SOL_SOCKET, option, value)
        require(code, "setting busy poll", "run as root, or give CAP_NET_ADMIN" if code == E.EPERM else "")
    if getsockopt(fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &napi, &length) != 0:
        return False
    return napi != 0
