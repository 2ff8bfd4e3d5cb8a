# Sizes from Python, memfd creation, mapping, and the frame area. Part of _shm.pyx.

cdef extern from *:
    """
    #include <unistd.h>
    #include <sys/syscall.h>
    #define LBD_MPOL_PREFERRED 1
    static inline long lbd_prefer_node(void *at, unsigned long bytes, unsigned node)
    {
        unsigned long mask[16] = {0};
        if (node >= 16 * 64)
            return -1;
        mask[node / 64] = 1ul << (node % 64);
        return syscall(SYS_mbind, at, bytes, LBD_MPOL_PREFERRED, mask, 16 * 64 + 1, 0);
    }
    """
    long lbd_prefer_node(void *at, unsigned long size, unsigned node) nogil


def prefer_node(int fd, uint64_t at, uint64_t size, int node):
    """Pages of this part of a shared file (memfd, tmpfs) that are not there yet are to lie on a NUMA node, whoever touches them
    first. `at` is a multiple of a page. "" or why not; on a disk's file system it has no effect."""
    cdef void *base = mmap(NULL, at + size, PROT_READ, MAP_SHARED, fd, 0)
    cdef long rc
    if base == MAP_FAILED:
        return f"mmap: {os.strerror(errno)}"
    rc = lbd_prefer_node(<char *>base + at, size, bounded("node", node, 0, 1023))
    said = "" if rc == 0 else os.strerror(errno)
    munmap(base, at + size)
    return said


def collapse(int fd):
    """Puts a shared file (memfd, tmpfs) into huge pages as far as the machine has some, before anyone works with it; what follows
    its last whole 2 MiB stays as it is. Returns the bytes in huge pages: huge.pxd."""
    cdef uint64_t size = os.fstat(fd).st_size
    cdef uint64_t got
    cdef void *base = huge_map(fd, size, PROT_READ | PROT_WRITE, 0)
    if base == MAP_FAILED:
        return 0
    with nogil:
        got = huge_collapse(fd, base, size)
        munmap(base, size)
    return got


cdef int MFD_NOEXEC_SEAL = 0x8          # Linux 6.3; Python 3.11 does not name it
cdef int SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

ATTACH_TEXT = {
    ATTACH_SHORT: "it is smaller than its head says",
    ATTACH_MAGIC: "it is no segment of lbd, or its creation was not finished",
    ATTACH_VERSION: "it was made by another version of lbd: stop that one first, then start this one",
    ATTACH_HASH: "its table sizes or records differ from this program's: restart lbd to change them",
    ATTACH_SIZES: "its table sizes are out of range",
    ATTACH_OFFSETS: "its head contradicts itself",
    ATTACH_RING: "a ring in it has a broken head",
}


cdef Sizes sizes_struct(dict sizes) except *:
    cdef Sizes s
    cdef const char *fault
    missing = [name for name in SIZE_NAMES if name not in sizes]
    if missing:
        raise ValueError(f"sizes lack {', '.join(missing)}")
    unknown = [str(name) for name in sizes if name not in SIZE_NAMES]
    if unknown:
        raise ValueError(f"sizes have no {', '.join(unknown)}")
    s = {name: bounded(name, sizes[name], 0, 0xffffffff) for name in SIZE_NAMES}
    fault = sizes_fault(&s)
    if fault != NULL:
        raise ValueError(fault.decode())
    return s


def segment_bytes(dict sizes not None):
    """Bytes of one worker segment, of the host segment and of the frame area (ordinary pages)."""
    cdef Sizes s = sizes_struct(sizes)
    cdef Ctl ctl
    cdef HostCtl host
    layout_compute(&s, &ctl)
    host_layout_compute(&s, &host)
    return {"worker": ctl.bytes, "host": host.bytes, "area": area_bytes(&s)}


cdef int new_memfd(str name, uint64_t size, int flags=0) except -1:
    """A memfd of `size` zero bytes that nobody can resize any more."""
    cdef int fd
    flags |= os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | MFD_NOEXEC_SEAL)
    except OSError:
        fd = os.memfd_create(name, flags)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


cdef class Mapping:
    """One descriptor and one mapping of the whole of it."""
    cdef void *base
    cdef readonly uint64_t size
    cdef readonly int fd
    cdef readonly bint read_only

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        # C alone: no Python object may be touched here. The descriptor goes with close(), or with the
        # process.
        if self.base != NULL:
            munmap(self.base, self.size)
            self.base = NULL

    cdef int map(self, int fd, uint64_t size, bint read_only) except -1:
        cdef int access = PROT_READ if read_only else PROT_READ | PROT_WRITE
        cdef void *at = mmap(NULL, size, access, MAP_SHARED, fd, 0)
        if at == MAP_FAILED:
            raise OSError(errno, f"mmap of {size} bytes: {os.strerror(errno)}")
        self.base = at
        self.size = size
        self.fd = fd
        self.read_only = read_only
        return 0

    cdef int map_sealed(self, int fd, bint read_only) except -1:
        """Maps what another process hands over, if it can't be shrunk under the mapping (SIGBUS)."""
        cdef int seals
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise SegmentError(f"descriptor {fd} is no memory segment") from None
        if not seals & fcntl.F_SEAL_SHRINK:
            raise SegmentError(f"segment {fd} is not sealed: it could be shrunk under its readers")
        size = os.fstat(fd).st_size
        if size == 0:
            raise SegmentError(f"segment {fd} is empty")
        return self.map(fd, size, read_only)

    cdef int writable(self) except -1:
        self.mapped()
        if self.read_only:
            raise ValueError("this segment is mapped read-only")
        return 0

    cdef int mapped(self) except -1:
        if self.base == NULL:
            raise ValueError("this segment is closed")
        return 0

    cdef int unmap(self) except -1:
        if self.base != NULL:
            munmap(self.base, self.size)
            self.base = NULL
        return 0

    def close(self):
        """Ends the mapping and closes the descriptor. May be repeated."""
        self.unmap()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def read_only_fd(self):
        """A descriptor of its own, to be closed by the caller, through which the segment can't be written."""
        self.mapped()
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)


cdef class Area(Mapping):
    """The frames of all workers (the UMEM) and the ledger, one byte for each frame: who holds it."""
    cdef Sizes sizes
    cdef readonly bint huge
    cdef readonly str note          # what was not as wished, for log and status; "" otherwise

    @staticmethod
    def create(dict sizes not None, hugepages="auto", nodes=()):
        """hugepages: auto (those that are reserved; if there are too few, such as the kernel can make) | require (reserved ones) |
        off. nodes: of each worker the NUMA node that its frames are to lie on; None: any."""
        cdef Area self = Area.__new__(Area)
        cdef int fd = -1
        if hugepages not in ("auto", "require", "off"):
            raise ValueError(f"hugepages must be auto, require or off, not {hugepages!r}")
        self.sizes = sizes_struct(sizes)
        self.note = missing = ""
        if hugepages != "off":
            size = round_up(area_bytes(&self.sizes), HUGE_PAGE)
            try:
                fd = new_memfd("lbd-area", size, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
                self.map(fd, size, False)
                self.huge = True
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                missing = (f"{size // HUGE_PAGE} huge pages of 2 MiB are missing ({os.strerror(error.errno)}): "
                           f"sysctl vm.nr_hugepages gives them")
                if hugepages == "require":
                    raise SegmentError(missing) from None
        if not self.huge:
            fd = new_memfd("lbd-area", area_bytes(&self.sizes))
            try:
                self.map(fd, area_bytes(&self.sizes), False)
            except OSError:
                os.close(fd)
                raise
        self.place(list(nodes))
        if missing:
            got = collapse(fd)
            if got and got + HUGE_PAGE > self.frame_bytes:      # all but a last piece
                self.huge = True
            else:
                self.note = "; ".join(filter(None, (f"frame area on ordinary pages, {missing}", self.note)))
        return self

    cdef int place(self, list nodes) except -1:
        """Before the first touch, or the pages already lie somewhere; a shared policy, so it holds in workers too."""
        cdef uint64_t ledger = area_ledger_off(&self.sizes)
        self.place_shares(0, <uint64_t>self.sizes.frames * self.sizes.frame_size, nodes)
        # a huge page has the ledger and frames before it
        if ledger % (HUGE_PAGE if self.huge else 4096) == 0:
            self.place_shares(ledger, self.sizes.frames, nodes)
        return 0

    cdef int place_shares(self, uint64_t at, uint64_t share, list nodes) except -1:
        """The workers' parts from `at` on, of `share` bytes each."""
        if share % (HUGE_PAGE if self.huge else 4096):  # a page has parts of several workers
            nodes = nodes[:1]
            share *= self.sizes.workers
        for n, node in enumerate(nodes):
            if node is not None and lbd_prefer_node(<char *>self.base + at, share, bounded("node", node, 0, 1023)) != 0:
                self.note += "; " if self.note else ""
                self.note += f"frames of worker {n} not bound to NUMA node {node}: {os.strerror(errno)}"
            at += share
        return 0

    @staticmethod
    def adopt(int fd, dict sizes not None, bint huge=False):
        """Takes over the descriptor. huge: its maker found it to be so. SegmentError if the segment doesn't fit the sizes."""
        cdef Area self = Area.__new__(Area)
        self.sizes = sizes_struct(sizes)
        self.note = ""
        self.map_sealed(fd, False)
        ought = area_bytes(&self.sizes)
        if self.size != ought and self.size != round_up(ought, HUGE_PAGE):
            self.unmap()
            self.fd = -1
            raise SegmentError(f"frame area {fd} has {self.size} bytes, not {ought}: "
                               f"{ATTACH_TEXT[ATTACH_HASH]}")
        self.huge = huge or os.fstat(fd).st_blksize == HUGE_PAGE
        return self

    @property
    def address(self):
        """Of the first frame in this process, for the registration of a UMEM."""
        self.mapped()
        return <uintptr_t>self.base

    @property
    def frame_bytes(self):
        return area_ledger_off(&self.sizes)

    def ledger(self, worker):
        """One worker's frames by holder: {(owner, iface): frames}; owner is a FRAME_ number."""
        cdef uint32_t counts[256]
        cdef uint32_t i
        cdef const uint8_t *line
        self.mapped()
        memset(counts, 0, sizeof(counts))
        line = <const uint8_t *>self.base + area_ledger_off(&self.sizes)
        line += <uint64_t>bounded("worker", worker, 0, self.sizes.workers - 1) * self.sizes.frames
        for i in range(self.sizes.frames):
            counts[line[i]] += 1
        return {(i & 15, i >> 4): counts[i] for i in range(256) if counts[i]}

    def free_frames(self, worker):
        """Numbers of one worker's free frames; while it is stopped, they may be taken."""
        cdef uint64_t first = <uint64_t>bounded("worker", worker, 0, self.sizes.workers - 1) * self.sizes.frames
        cdef const uint8_t *line
        cdef uint32_t i
        self.mapped()
        line = <const uint8_t *>self.base + area_ledger_off(&self.sizes) + first
        return [first + i for i in range(self.sizes.frames) if line[i] == c_lay.FRAME_FREE]
