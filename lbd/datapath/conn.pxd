# The connection table of one address family: records (hot and cold apart) and an index of both directions' tuples.
#
# Lives in a file that outlives every process. The records are the truth: `live` is stored last when a record is made and cleared
# first when it goes, so that a worker killed anywhere leaves whole records alone; index, lists, free list and counts are rebuilt
# from them (conn_rebuild). Nothing is allocated after start; a full table evicts (see timer.pxd) or refuses.
#
# Memory per connection: IPv4 64 hot + 32 cold + 23.04 index + 4 in the stack of free ones + 2 of extensions = 125 bytes, IPv6 189
# (asserted).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport (lbd_copy16, lbd_ld32, lbd_ld64, lbd_st32, lbd_st64, lbd_scale, lbd_ctz, lbd_compiler_barrier,
                                    lbd_prefetchw, lbd_unlikely)
from lbd.datapath.flow cimport Tuple, ends_hash

cdef extern from * nogil:
    """
    /* bit i set: slot i (of 10) of this bucket carries the tag */
    static inline uint32_t lbd_tag_match(const uint16_t *tags, uint16_t tag)
    {
    #if defined(__SSE2__)
        __m128i t = _mm_set1_epi16((short)tag);
        __m128i a = _mm_cmpeq_epi16(_mm_load_si128((const __m128i *)tags), t);
        __m128i b = _mm_cmpeq_epi16(_mm_load_si128((const __m128i *)(tags + 8)), t);
        return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(a, b)) & 0x3ff;
    #else
        uint32_t m = 0;
        for (int i = 0; i < 10; i++) m |= (uint32_t)(tags[i] == tag) << i;
        return m;
    #endif
    }
    """
    uint32_t lbd_tag_match(const uint16_t *tags, uint16_t tag) noexcept

cdef enum:
    REF_NONE = 0xffffffff
    REF_LOOK = 0xfffffffe       # of a probe: none in the primary bucket, but there are more. From here on up no ref is one
    CONN_NIL = 0xffffffff
    BUCKET_SLOTS = 10
    BUCKET_FILL_X100 = 625      # entries per primary bucket when the table is full, times 100
    BUCKET_SPARE = 8            # one overflow bucket for so many primary ones

cdef enum Live:                 # ConnCommon.live
    CONN_FREE = 0
    CONN_LIVE = 1
    CONN_RESTING = 2            # over, and its client's tuple went on to another real server: holds its local port, nothing else
    CONN_ASIDE = 3              # of a one-packet service: there for its real server's answers; its client's packets don't find it

cdef enum ConnFlag:
    CONN_SYNACK = 1             # the real server has answered the SYN
    CONN_MODE = 14              # SvcMode, shifted by CONN_MODE_SHIFT, and its two bits that are asked for alone:
    CONN_ONE_WAY = 4            # MODE_ONE_WAY: only the client's end is in the index
    CONN_WRAPS = 8              # MODE_WRAPS
    CONN_ACTIVE = 16            # counted as active (else inactive) in the statistics
    CONN_IMPORTED = 32          # recovered from an earlier life
    CONN_OTHER_FAMILY = 64      # the real server is of the other family (tunnel, NAT64): its address is in conn_server's places
    CONN_EXTENDED = 128         # has an extension record (ext.pxd): not for the fast lane

cdef enum:
    CONN_MODE_SHIFT = 1

cdef struct ConnCommon:         # 24 bytes: what both families keep the same way
    uint32_t last_seen          # ms of the worker's clock (CLOCK_MONOTONIC), wraps
    uint32_t fib_gen            # adj_fwd is good while it equals the engine's
    uint16_t adj_fwd            # towards the real server
    uint16_t adj_rev            # towards the client
    uint16_t svc                # numbers of this run; SVC_NONE, DEST_NONE after both are gone
    uint16_t dest
    uint16_t lip
    uint16_t l4_delta           # checksum delta client → real server: addresses and ports; mode tunnel: GUE's port, network order
    uint8_t proto               # NB: proto, state, flags, live are read as one word by fast.pxd
    uint8_t state               # TcpState; UDP uses STATE_UDP
    uint8_t flags               # ConnFlag
    uint8_t live                # Live; stored last, cleared first

# A record begins with its two ends, each as its packets carry it, source first: what comes from one end leaves with the halves of
# the other one exchanged (conn_side). FULLNAT's second end is real server → LIP (NAT64's too, in mapped form: nat64.pxd), every
# other mode's real server → client: laddr and lport are then the client's. A mode that leaves the packet's ends as they are (DR,
# tunnel) uses the second one to know the server.
cdef struct Conn4:              # 64 bytes
    uint32_t caddr              # client; network order all
    uint32_t vaddr              # virtual service
    uint16_t cport
    uint16_t vport
    uint32_t daddr              # real server
    uint32_t laddr              # local address (LIP)
    uint16_t dport
    uint16_t lport
    ConnCommon c
    uint16_t ip_delta[2]        # checksum delta of the IPv4 header by direction: addresses and TTL - 1; mode tunnel: [1] TunnelWay
    uint32_t seq_client         # next sequence number expected from the client (highest seen), host order
    uint32_t seq_server         # the same from the real server
    uint32_t ext                # extension record, 0 = none

cdef struct Conn6:              # 128 bytes
    uint8_t caddr[16]
    uint8_t vaddr[16]
    uint16_t cport
    uint16_t vport
    uint8_t daddr[16]
    uint8_t laddr[16]
    uint16_t dport
    uint16_t lport
    ConnCommon c
    uint32_t seq_client
    uint32_t seq_server
    uint32_t ext
    uint32_t spare[5]           # [0]: mode tunnel: its TunnelWay

cdef struct ConnCold:           # 32 bytes
    uint32_t next               # list the record is on (timer wheel slot, half-open), CONN_NIL = end
    uint32_t prev
    uint16_t where              # list number (timer.pxd)
    uint16_t spare
    uint32_t created            # ms
    uint32_t timeout            # ms; override of the state's, 0 = none
    uint32_t daddr_rest[3]      # CONN_OTHER_FAMILY in a Conn4: the 12 bytes of the real server's address after `daddr`

cdef struct Bucket:             # 64 bytes, one cache line
    uint16_t tag[10]            # 0 = empty
    uint32_t ref[10]            # connection << 1 | direction (0: from the client, 1: from the real server)
    uint32_t next               # overflow bucket, 0 = none

cdef struct ConnTable:          # process-private view of one family's part of the connection file
    uint8_t *hot
    ConnCold *cold
    Bucket *index
    uint64_t *key               # 4-word secret
    uint32_t capacity
    uint32_t buckets            # primary
    uint32_t overflow           # overflow buckets: numbers buckets .. buckets + overflow - 1
    uint32_t overflow_free      # head of the free overflow chain, 0 = none
    uint32_t used
    uint32_t *free              # stack of free records' numbers
    uint32_t free_n
    uint32_t af
    uint32_t stride             # of hot: 64 or 128

cdef inline uint32_t conn_buckets(uint32_t capacity) noexcept nogil:
    return <uint32_t> (<uint64_t> capacity * 2 * 100 // BUCKET_FILL_X100) + 16


cdef inline uint32_t conn_overflow(uint32_t capacity) noexcept nogil:
    return conn_buckets(capacity) // BUCKET_SPARE + 16


cdef inline Conn4 *conn4(ConnTable *t, uint32_t i) noexcept nogil:
    return (<Conn4 *> t.hot) + i


cdef inline Conn6 *conn6(ConnTable *t, uint32_t i) noexcept nogil:
    return (<Conn6 *> t.hot) + i


cdef inline ConnCommon *conn_common(ConnTable *t, uint32_t i, int af) noexcept nogil:
    if af == 4:
        return &conn4(t, i).c
    return &conn6(t, i).c


cdef inline uint8_t *conn_side(ConnTable *t, uint32_t i, uint32_t direction, int af) noexcept nogil:
    """One end as its packets carry it: source, destination address, source, destination port."""
    if af == 4:
        return <uint8_t *> conn4(t, i) + 12 * direction
    return <uint8_t *> conn6(t, i) + 36 * direction


cdef inline void end_put(uint8_t *end, const Tuple *t, int af) noexcept nogil:
    """One end of a record (conn_side), in the words that the rewrite will read it by: a load of what several stores have put
    together waits until they are in the cache, and with them all stores before."""
    if af == 4:
        lbd_st64(end, <uint64_t> lbd_ld32(t.saddr) | <uint64_t> lbd_ld32(t.daddr) << 32)
        lbd_st32(end + 8, lbd_ld32(&t.sport))
        return
    lbd_copy16(end, t.saddr)
    lbd_copy16(end + 16, t.daddr)
    lbd_st32(end + 32, lbd_ld32(&t.sport))


cdef inline uint32_t conn_mode(const ConnCommon *c) noexcept nogil:
    return (c.flags & CONN_MODE) >> CONN_MODE_SHIFT


cdef inline bint conn_local(const ConnCommon *c) noexcept nogil:
    """Has it a local address and port (FULLNAT, NAT64)?"""
    return c.flags & (CONN_MODE & ~CONN_WRAPS) == 0


cdef inline int conn_server(ConnTable *t, uint32_t i, uint8_t *addr, int af) noexcept nogil:
    """The real server's address (16 bytes, IPv4 padded with zeros); returns its family."""
    memset(addr, 0, 16)
    if af == 4:
        memcpy(addr, &conn4(t, i).daddr, 4)
        if conn4(t, i).c.flags & CONN_OTHER_FAMILY:
            memcpy(addr + 4, t.cold[i].daddr_rest, 12)
            return 6
        return 4
    if not conn6(t, i).c.flags & CONN_OTHER_FAMILY:
        memcpy(addr, conn6(t, i).daddr, 16)
        return 6
    memcpy(addr, conn6(t, i).daddr + (0 if conn6(t, i).c.flags & CONN_ONE_WAY else 12), 4)
    return 4


cdef inline uint32_t *conn_edges(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """Next sequence number expected: from the client, from the real server."""
    if af == 4:
        return &conn4(t, i).seq_client
    return &conn6(t, i).seq_client


cdef inline Bucket *conn_bucket(ConnTable *t, uint64_t h) noexcept nogil:
    return t.index + lbd_scale(<uint32_t> h, t.buckets)


cdef inline uint16_t conn_tag(uint64_t h) noexcept nogil:
    cdef uint16_t tag = <uint16_t> (h >> 48)
    return tag if tag else 1


cdef inline bint conn4_is(const Conn4 *c, const Tuple *t, uint32_t direction) noexcept nogil:
    """Does this record's direction carry this packet's tuple?"""
    if direction == 0:
        return (c.caddr == lbd_ld32(t.saddr) and c.vaddr == lbd_ld32(t.daddr) and c.cport == t.sport
                and c.vport == t.dport and c.c.proto == t.proto and c.c.live == 1)
    return (c.daddr == lbd_ld32(t.saddr) and c.laddr == lbd_ld32(t.daddr) and c.dport == t.sport
            and c.lport == t.dport and c.c.proto == t.proto and c.c.live != CONN_FREE)


cdef inline bint addr6_is(const uint8_t *a, const uint8_t *b) noexcept nogil:
    return lbd_ld64(a) == lbd_ld64(b) and lbd_ld64(a + 8) == lbd_ld64(b + 8)


cdef inline bint conn6_is(const Conn6 *c, const Tuple *t, uint32_t direction) noexcept nogil:
    if direction == 0:
        return (c.cport == t.sport and c.vport == t.dport and c.c.proto == t.proto and c.c.live == 1
                and addr6_is(c.caddr, t.saddr) and addr6_is(c.vaddr, t.daddr))
    return (c.dport == t.sport and c.lport == t.dport and c.c.proto == t.proto and c.c.live != CONN_FREE
            and addr6_is(c.daddr, t.saddr) and addr6_is(c.laddr, t.daddr))


cdef inline bint conn_is(ConnTable *t, uint32_t ref, const Tuple *k, int af) noexcept nogil:
    if af == 4:
        return conn4_is(conn4(t, ref >> 1), k, ref & 1)
    return conn6_is(conn6(t, ref >> 1), k, ref & 1)


cdef inline uint32_t conn_lookup(ConnTable *t, const Tuple *k, uint64_t h, int af) noexcept nogil:
    """ref of the connection and direction that this tuple belongs to, or REF_NONE."""
    cdef Bucket *b = conn_bucket(t, h)
    cdef uint16_t tag = conn_tag(h)
    cdef uint32_t m, ref
    while True:
        m = lbd_tag_match(b.tag, tag)
        while m:
            ref = b.ref[lbd_ctz(m)]
            if conn_is(t, ref, k, af):
                return ref
            m &= m - 1
        if b.next == 0:
            return REF_NONE
        b = t.index + b.next


cdef inline bint conn_leads(ConnTable *t, uint32_t ref, const Tuple *k, const uint8_t *daddr, uint16_t dport, uint8_t live,
                            int af) noexcept nogil:
    """A record of this client's tuple, to this real server, and in this way alive?"""
    cdef Conn4 *c
    cdef Conn6 *d
    if ref & 1 or conn_common(t, ref >> 1, af).live != live or conn_common(t, ref >> 1, af).proto != k.proto:
        return False
    if af == 4:
        c = conn4(t, ref >> 1)
        return (c.caddr == lbd_ld32(k.saddr) and c.vaddr == lbd_ld32(k.daddr) and c.cport == k.sport and c.vport == k.dport
                and c.daddr == lbd_ld32(daddr) and c.dport == dport)
    d = conn6(t, ref >> 1)
    return (d.cport == k.sport and d.vport == k.dport and d.dport == dport and addr6_is(d.caddr, k.saddr)
            and addr6_is(d.vaddr, k.daddr) and addr6_is(d.daddr, daddr))


cdef inline uint32_t conn_towards(ConnTable *t, const Tuple *k, uint64_t h, const uint8_t *daddr, uint16_t dport, uint8_t live,
                                  int af) noexcept nogil:
    """Like conn_lookup, for the record of this client's tuple to one real server that is resting, or aside (`live`)."""
    cdef Bucket *b = conn_bucket(t, h)
    cdef uint32_t m, ref
    while True:
        m = lbd_tag_match(b.tag, conn_tag(h))
        while m:
            ref = b.ref[lbd_ctz(m)]
            if conn_leads(t, ref, k, daddr, dport, live, af):
                return ref
            m &= m - 1
        if b.next == 0:
            return REF_NONE
        b = t.index + b.next


cdef inline bint index_insert(ConnTable *t, uint64_t h, uint32_t ref) noexcept nogil:
    """False when the bucket chain is full and no overflow bucket is left."""
    cdef Bucket *b = conn_bucket(t, h)
    cdef uint32_t m, n
    while True:
        m = lbd_tag_match(b.tag, 0)
        if m:
            n = lbd_ctz(m)
            b.ref[n] = ref
            b.tag[n] = conn_tag(h)
            return True
        if b.next == 0:
            break
        b = t.index + b.next
    n = t.overflow_free
    if n == 0:
        return False
    t.overflow_free = t.index[n].next
    memset(t.index + n, 0, sizeof(Bucket))
    t.index[n].ref[0] = ref
    t.index[n].tag[0] = conn_tag(h)
    b.next = n
    return True


cdef inline void index_delete(ConnTable *t, uint64_t h, uint32_t ref) noexcept nogil:
    cdef Bucket *b = conn_bucket(t, h)
    cdef Bucket *before = NULL
    cdef uint16_t tag = conn_tag(h)
    cdef uint32_t m, n
    while True:
        m = lbd_tag_match(b.tag, tag)
        while m:
            n = lbd_ctz(m)
            if b.ref[n] == ref:
                b.tag[n] = 0
                if before != NULL and lbd_tag_match(b.tag, 0) == 0x3ff:   # an empty overflow bucket goes back
                    n = before.next
                    before.next = b.next
                    b.next = t.overflow_free
                    t.overflow_free = n
                return
            m &= m - 1
        if b.next == 0:
            return
        before = b
        b = t.index + b.next


cdef inline void conn_tuple(ConnTable *t, uint32_t i, uint32_t direction, Tuple *k, int af) noexcept nogil:
    """The tuple that packets of this direction carry."""
    cdef Conn4 *c
    cdef Conn6 *d
    memset(k, 0, sizeof(Tuple))
    k.af = af
    if af == 4:
        c = conn4(t, i)
        k.proto = c.c.proto
        if direction == 0:
            (<uint32_t *> k.saddr)[0] = c.caddr
            (<uint32_t *> k.daddr)[0] = c.vaddr
            k.sport = c.cport
            k.dport = c.vport
        else:
            (<uint32_t *> k.saddr)[0] = c.daddr
            (<uint32_t *> k.daddr)[0] = c.laddr
            k.sport = c.dport
            k.dport = c.lport
        return
    d = conn6(t, i)
    k.proto = d.c.proto
    if direction == 0:
        k.saddr = d.caddr
        k.daddr = d.vaddr
        k.sport = d.cport
        k.dport = d.vport
    else:
        k.saddr = d.daddr
        k.daddr = d.laddr
        k.sport = d.dport
        k.dport = d.lport


cdef inline bint conn_index_at(ConnTable *t, uint32_t i, uint64_t forth, uint64_t back, int af) noexcept nogil:
    """Enters its directions, whose hashes are known, into the index; all or nothing."""
    if not index_insert(t, forth, i << 1):
        return False
    if conn_common(t, i, af).flags & CONN_ONE_WAY or index_insert(t, back, i << 1 | 1):
        return True
    index_delete(t, forth, i << 1)
    return False


cdef inline uint64_t conn_hash(ConnTable *t, uint32_t i, uint32_t direction, int af) noexcept nogil:
    return ends_hash(conn_side(t, i, direction, af), conn_common(t, i, af).proto, t.key, af)


cdef inline bint conn_index(ConnTable *t, uint32_t i, int af) noexcept nogil:
    return conn_index_at(t, i, conn_hash(t, i, 0, af), conn_hash(t, i, 1, af), af)


cdef inline uint32_t conn_entries(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """How many of its directions, from 0 on, are in the index."""
    return 1 if conn_common(t, i, af).flags & CONN_ONE_WAY else 2


cdef inline void conn_unindex(ConnTable *t, uint32_t i, int af) noexcept nogil:
    cdef uint32_t d
    for d in range(conn_entries(t, i, af)):
        index_delete(t, conn_hash(t, i, d, af), i << 1 | d)


cdef inline void conn_unindex_prefetch(ConnTable *t, uint32_t i, int af) noexcept nogil:
    cdef uint32_t d
    for d in range(conn_entries(t, i, af)):
        lbd_prefetchw(conn_bucket(t, conn_hash(t, i, d, af)))


cdef inline uint32_t conn_alloc(ConnTable *t) noexcept nogil:
    """A free record's number, or CONN_NIL."""
    if t.free_n == 0:
        return CONN_NIL
    t.free_n -= 1
    t.used += 1
    return t.free[t.free_n]


cdef inline void conn_free(ConnTable *t, uint32_t i, int af) noexcept nogil:
    conn_common(t, i, af).live = 0
    t.free[t.free_n] = i
    t.free_n += 1
    t.used -= 1


cdef inline void conn_clear(ConnTable *t) noexcept nogil:
    """Empties index and free lists; the records stay as they are (conn_rebuild enters the live ones again)."""
    cdef uint32_t n
    memset(t.index, 0, <size_t> (t.buckets + t.overflow) * sizeof(Bucket))
    t.overflow_free = 0
    for n in range(t.buckets + t.overflow - 1, t.buckets - 1, -1):
        t.index[n].next = t.overflow_free
        t.overflow_free = n
    t.free_n = 0
    t.used = 0
