# What no balancer with one bucket and one record per packet can beat: hash known, bucket line read and compared, record line
# written, in two prefetched stages over a table of the engine's shape. And an empty loop: what the machine itself takes away.

cdef extern from * nogil:
    """
    static inline uint64_t floor_mix(uint64_t x)        /* splitmix64 */
    {
        x += 0x9e3779b97f4a7c15ull;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
        return x ^ (x >> 31);
    }
    static inline uint32_t floor_find(const uint16_t *tag, uint16_t want)       /* first of 10 tags, or 10 */
    {
        uint32_t m = 0, i;
        for (i = 0; i < 10; i++)
            m |= (uint32_t)(tag[i] == want) << i;
        return m ? (uint32_t)__builtin_ctz(m) : 10;
    }
    """
    uint64_t floor_mix(uint64_t) noexcept
    uint32_t floor_find(const uint16_t *, uint16_t) noexcept

cdef enum:
    GOLDEN64 = 0x9e3779b97f4a7c15ULL

cdef struct FloorBucket:        # one cache line
    uint16_t tag[10]
    uint32_t ref[10]
    uint32_t spare


cdef class Floor:
    """records: of `lines` cache lines each, two index entries a record (both directions) in buckets of ten, filled like the
    engine's."""
    cdef FloorBucket *index
    cdef uint8_t *record
    cdef uint64_t *hashes
    cdef uint32_t buckets
    cdef uint32_t stride
    cdef uint32_t records
    cdef uint64_t rng

    def __cinit__(self, records: int, lines: int = 1, fill: float = 6.25):
        cdef uint32_t i
        self.records, self.stride, self.rng = records, 64 * lines, 1
        self.buckets = <uint32_t> (2 * records / fill) + 16
        self.index = <FloorBucket *> huge_zeroed(<uint64_t> self.buckets * sizeof(FloorBucket))
        self.record = <uint8_t *> huge_zeroed(<uint64_t> records * self.stride)
        self.hashes = <uint64_t *> malloc(BATCH * sizeof(uint64_t))
        if self.index == NULL or self.record == NULL or self.hashes == NULL:
            raise MemoryError()
        with nogil:
            for i in range(2 * self.records):
                self.enter(i)

    cdef FloorBucket *bucket(self, uint64_t h) noexcept nogil:
        return self.index + lbd_scale(<uint32_t> h, self.buckets)

    cdef void enter(self, uint32_t ref) noexcept nogil:
        cdef uint64_t h = floor_mix(ref)
        cdef uint32_t k = floor_find(self.bucket(h).tag, 0)
        if k < 10:                                  # where the bucket is full: not there, one in twenty or so
            self.bucket(h).tag[k] = <uint16_t> (h >> 48) | 1
            self.bucket(h).ref[k] = ref

    def __dealloc__(self):
        free(self.index)
        free(self.record)
        free(self.hashes)

    cdef void stages(self, uint32_t n, uint32_t burst) noexcept nogil:
        cdef uint32_t ref[64]
        cdef uint32_t i = 0, k, m
        cdef FloorBucket *b
        while i < n:
            for k in range(burst):
                lbd_prefetch(self.bucket(self.hashes[i + k]))
            for k in range(burst):
                b = self.bucket(self.hashes[i + k])
                m = floor_find(b.tag, <uint16_t> (self.hashes[i + k] >> 48) | 1)
                ref[k] = b.ref[m] if m < 10 else 0
                lbd_prefetchw(self.record + <uint64_t> (ref[k] >> 1) * self.stride)
                if self.stride > 64:
                    lbd_prefetchw(self.record + <uint64_t> (ref[k] >> 1) * self.stride + 64)
            for k in range(burst):
                (<uint32_t *> (self.record + <uint64_t> (ref[k] >> 1) * self.stride))[0] += 1
                if self.stride > 64:
                    (<uint32_t *> (self.record + <uint64_t> (ref[k] >> 1) * self.stride + 64))[0] += 1
            i += burst

    cdef void enters(self, uint32_t n, uint32_t burst) noexcept nogil:
        """What a new record takes: a place in two buckets looked for, both and the record written. (The places stay free, so that
        it can be repeated.)"""
        cdef uint32_t i = 0, k, d
        cdef uint64_t h
        cdef uint8_t *r
        while i < n:
            for k in range(burst):
                h = self.hashes[i + k]
                lbd_prefetchw(self.bucket(h))
                lbd_prefetchw(self.bucket(h * GOLDEN64))
                lbd_prefetchw(self.record + <uint64_t> lbd_scale(<uint32_t> (h >> 32), self.records) * self.stride)
            for k in range(burst):
                h = self.hashes[i + k]
                r = self.record + <uint64_t> lbd_scale(<uint32_t> (h >> 32), self.records) * self.stride
                memset(r, <int> k, self.stride)
                for d in range(2):
                    self.bucket(h).spare = floor_find(self.bucket(h).tag, 0)
                    h *= GOLDEN64
            i += burst

    def go(self, burst: int = 64, new: bool = False) -> int:
        """One pass of a batch over random records, either direction; new: of entering some. Returns ns of this
        thread's time."""
        cdef uint32_t i, b = burst
        cdef bint enter = new
        cdef uint64_t start
        if b < 1 or b > 64 or BATCH % b:
            raise ValueError("burst: a power of two up to 64")
        with nogil:
            for i in range(BATCH):
                self.rng = floor_mix(self.rng)
                self.hashes[i] = floor_mix(lbd_scale(<uint32_t> (self.rng >> 32), 2 * self.records))
            start = bench_thread_clock()
            if enter:
                self.enters(BATCH, b)
            else:
                self.stages(BATCH, b)
            start = bench_thread_clock() - start
        return start


def spin(turns: int, work_ns: int, wall: object, cpu: object) -> None:
    """As many rounds of nothing, of work_ns each, timed as turns are: what they take longer is the machine's doing."""
    cdef uint32_t[::1] w = wall
    cdef uint32_t[::1] c = cpu
    cdef uint32_t i, n = min(turns, len(wall), len(cpu))
    cdef uint64_t before, after, thread, last = work_ns
    with nogil:
        for i in range(n):
            thread = bench_thread_clock()
            before = after = lbd_monotonic()
            while after - before < last:
                after = lbd_monotonic()
            w[i] = <uint32_t> (after - before)
            c[i] = <uint32_t> (bench_thread_clock() - thread)
