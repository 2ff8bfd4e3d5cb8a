# Fragmented datagrams under way: a table of them, and the fragments that came before their first one. Ports, and with them the
# connection, are in a datagram's first fragment alone; what is decided for that holds for the rest (frag_flow.pxd decides).
#
# The table is private to the process: after a crash datagrams under way are lost. It is bounded. Full means that the oldest
# datagram goes, whatever it waits for; no room for another held fragment means that the datagram that has waited longest for its
# first one goes. Both are counted. A datagram that is through (all its bytes were seen) leaves its place at once, but is found for
# a second more, for what comes twice. Held fragments are copies, in memory of the table's own: no frame waits, and the account of
# frames knows nothing of this (frag_held.pxd). Once the first fragment has come they are ready; the adapter takes them into frames
# and gives them to the engine again, in the order in which they came.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.string cimport memcmp, memcpy, memset
from lbd.datapath.count cimport Counters
from lbd.datapath.flow cimport Tuple
from lbd.datapath.reason cimport REASON_FRAG_TIMEOUT, REASON_FRAG_TABLE_FULL, VERDICT_DROP

cdef enum:
    FRAG_ENTRIES = 8192         # datagrams that a worker follows: 100 + 4 bytes each
    FRAG_HELD = 512             # pieces of fragments that it holds: 1,816 bytes each. 1.8 MB in all
    FRAG_HELD_EACH = 64         # of one datagram: 64 KiB in an Ethernet's MTU have 45, in jumbo frames not more
    HELD_ROOM = 1792            # bytes of a held one: an AF_XDP frame (2 KiB) without XDP's headroom
    FRAG_GRACE = 1000           # ms
    FRAG_NIL = 0xffffffff

cdef enum FragState:
    FRAG_WAITING = 0            # for its first fragment, or, where that has to know the length (proto is set), for the last
    FRAG_BOUND = 1              # to a connection of this worker
    FRAG_AWAY = 2               # another worker's
    FRAG_KERNEL = 3             # the host's stack's
    FRAG_REFUSED = 4            # the first fragment was dropped, or answered
    FRAG_CHOSEN = 5             # to a real server of a one-packet service

cdef enum FragList:             # each in order of age
    FRAG_SPARE = 0              # through or over: for the next one
    FRAG_AWAITED = 1            # FRAG_WAITING
    FRAG_DECIDED = 2            # the other states

cdef struct Frag:
    Tuple key                   # addresses, protocol (IPv6: 44), and in the ports' place the identification
    uint32_t chain              # next of the bucket: number + 1
    uint32_t bucket
    uint32_t prev               # on its list
    uint32_t next
    uint32_t since              # ms: on this list
    uint32_t ref                # FRAG_BOUND, FRAG_CHOSEN: connection << 1 | direction, when last looked up
    uint32_t ident              # counts datagrams: what a rewritten one's identification is made of
    uint32_t held               # first and last held fragment: number + 1
    uint32_t held_last
    uint32_t bytes              # of payload, passed so far
    uint32_t tick               # FRAG_CHOSEN: when (template.pxd); svc and dest are those that had these numbers then
    uint16_t total              # of payload, once the last fragment has told; 0 = not known
    uint16_t sport              # of the first fragment, network order
    uint16_t dport
    uint16_t svc                # FRAG_CHOSEN
    uint16_t dest
    uint8_t held_n
    uint8_t state               # FragState
    uint8_t list                # FragList
    uint8_t worker              # FRAG_AWAY
    uint8_t proto               # of the connection
    uint8_t table               # family of the table that ref is in

cdef struct Held:
    uint64_t frame              # Pkt.frame, for adapters that number packets
    uint32_t next               # number + 1
    uint16_t len
    uint8_t ifin
    uint8_t flags               # PKT_HANDED, PKT_ROUTED
    uint8_t hops
    uint8_t more                # 1: the fragment goes on in the next one
    uint8_t spare[6]
    uint8_t data[1792]

cdef struct FragTable:
    Frag *entry
    uint32_t *bucket            # heads: number + 1
    Held *held
    uint32_t capacity
    uint32_t bucket_mask
    uint32_t fresh              # entries used so far; those after them never were
    uint32_t head[3]            # by FragList
    uint32_t tail[3]
    uint32_t idents
    uint32_t held_capacity
    uint32_t held_fresh
    uint32_t held_free          # number + 1
    uint32_t held_n             # in use, ready ones among them
    uint32_t ready              # first and last one to be taken: number + 1
    uint32_t ready_last


# --- the table -------------------------------------------------------------------------------------------------------

cdef inline uint32_t frag_buckets(uint32_t entries) noexcept nogil:
    cdef uint32_t n = 1
    while n < entries:
        n <<= 1
    return n


cdef inline uint64_t frag_bytes(uint32_t entries, uint32_t held) noexcept nogil:
    return (sizeof(FragTable) + <uint64_t> entries * sizeof(Frag) + <uint64_t> frag_buckets(entries) * sizeof(uint32_t)
            + <uint64_t> held * sizeof(Held))


cdef inline void frag_clear(FragTable *t) noexcept nogil:
    cdef uint32_t i
    memset(t.bucket, 0, (<uint64_t> t.bucket_mask + 1) * sizeof(uint32_t))
    t.fresh = t.held_fresh = t.held_free = t.held_n = t.ready = t.ready_last = 0
    for i in range(3):
        t.head[i] = t.tail[i] = FRAG_NIL


cdef inline FragTable *frag_map(void *memory, uint32_t entries, uint32_t held) noexcept nogil:
    """An empty table in frag_bytes of memory (aligned as malloc does it)."""
    cdef FragTable *t = <FragTable *> memory
    t.entry = <Frag *> (t + 1)
    t.held = <Held *> (t.entry + entries)
    t.bucket = <uint32_t *> (t.held + held)
    t.capacity = entries
    t.bucket_mask = frag_buckets(entries) - 1
    t.held_capacity = held
    t.idents = 0
    frag_clear(t)
    return t


cdef inline void frag_link(FragTable *t, uint32_t i, uint32_t list, uint32_t since) noexcept nogil:
    cdef Frag *f = t.entry + i
    f.list = list
    f.since = since
    f.next = FRAG_NIL
    f.prev = t.tail[list]
    if f.prev == FRAG_NIL:
        t.head[list] = i
    else:
        t.entry[f.prev].next = i
    t.tail[list] = i


cdef inline void frag_unlink(FragTable *t, uint32_t i) noexcept nogil:
    cdef Frag *f = t.entry + i
    if f.prev == FRAG_NIL:
        t.head[f.list] = f.next
    else:
        t.entry[f.prev].next = f.next
    if f.next == FRAG_NIL:
        t.tail[f.list] = f.prev
    else:
        t.entry[f.next].prev = f.prev


cdef inline void frag_move(FragTable *t, uint32_t i, uint32_t list, uint32_t since) noexcept nogil:
    frag_unlink(t, i)
    frag_link(t, i, list, since)


cdef inline void frag_unhash(FragTable *t, uint32_t i) noexcept nogil:
    cdef uint32_t *p = t.bucket + t.entry[i].bucket
    while p[0] != i + 1:
        p = &t.entry[p[0] - 1].chain
    p[0] = t.entry[i].chain


cdef inline uint32_t frag_lookup(FragTable *t, const Tuple *k, uint64_t h) noexcept nogil:
    """The entry of this key, over or not, or FRAG_NIL."""
    cdef uint32_t n = t.bucket[<uint32_t> h & t.bucket_mask]
    while n and memcmp(&t.entry[n - 1].key, k, sizeof(Tuple)) != 0:
        n = t.entry[n - 1].chain
    return n - 1


cdef inline bint frag_over(const Frag *f, uint32_t now_ms) noexcept nogil:
    return f.list == FRAG_SPARE and now_ms - f.since > FRAG_GRACE


cdef inline uint32_t frag_known(FragTable *t, const Tuple *k, uint64_t h, uint32_t now_ms) noexcept nogil:
    """The datagram of this key, or FRAG_NIL."""
    cdef uint32_t i = frag_lookup(t, k, h)
    if i != FRAG_NIL and frag_over(t.entry + i, now_ms):
        return FRAG_NIL
    return i


cdef inline void held_put_back(FragTable *t, uint32_t n) noexcept nogil:
    """n: number + 1."""
    t.held[n - 1].next = t.held_free
    t.held_free = n
    t.held_n -= 1


cdef inline void frag_end(FragTable *t, uint32_t i, uint32_t reason, uint32_t now_ms, Counters *count) noexcept nogil:
    """Before it is through: what is held of it is dropped."""
    cdef Frag *f = t.entry + i
    cdef uint32_t n
    while f.held:
        n = f.held
        f.held = t.held[n - 1].next
        if not t.held[n - 1].more:
            count.drops[reason] += 1
            count.verdicts[<int> VERDICT_DROP] += 1
        held_put_back(t, n)
    f.held_n = 0
    frag_move(t, i, FRAG_SPARE, now_ms - FRAG_GRACE - 1)


cdef inline uint32_t older(FragTable *t, uint32_t a, uint32_t b) noexcept nogil:
    if a == FRAG_NIL or (b != FRAG_NIL and <int32_t> (t.entry[b].since - t.entry[a].since) < 0):
        return b
    return a


cdef inline uint32_t frag_room(FragTable *t, uint32_t now_ms, Counters *count) noexcept nogil:
    """An entry in no list and no bucket."""
    cdef uint32_t i = t.head[<int> FRAG_SPARE]
    if t.fresh < t.capacity and (i == FRAG_NIL or not frag_over(t.entry + i, now_ms)):
        t.fresh += 1
        return t.fresh - 1
    if i == FRAG_NIL:
        i = older(t, t.head[<int> FRAG_AWAITED], t.head[<int> FRAG_DECIDED])
        frag_end(t, i, REASON_FRAG_TABLE_FULL, now_ms, count)
        count.frag_evicted += 1
    frag_unlink(t, i)
    frag_unhash(t, i)
    return i


cdef inline uint32_t frag_make(FragTable *t, const Tuple *k, uint64_t h, uint32_t now_ms, Counters *count) noexcept nogil:
    """A new datagram of this key, waiting; one before it that had the same key, and nothing held, makes way."""
    cdef uint32_t i = frag_lookup(t, k, h)
    cdef Frag *f
    if i == FRAG_NIL:
        i = frag_room(t, now_ms, count)
        f = t.entry + i
        memcpy(&f.key, k, sizeof(Tuple))
        f.bucket = <uint32_t> h & t.bucket_mask
        f.chain = t.bucket[f.bucket]
        t.bucket[f.bucket] = i + 1
    else:
        frag_unlink(t, i)
        f = t.entry + i
    f.held = f.held_last = f.held_n = 0
    f.bytes = f.total = 0
    f.sport = f.dport = f.proto = 0
    f.state = FRAG_WAITING
    t.idents += 1
    f.ident = t.idents
    frag_link(t, i, FRAG_AWAITED, now_ms)
    return i


cdef inline void frag_passed(FragTable *t, uint32_t i, uint32_t start, uint32_t size, bint last, uint32_t now_ms) noexcept nogil:
    """A fragment of it went its way. What comes twice may make it through too early: then the grace serves the rest."""
    cdef Frag *f = t.entry + i
    f.bytes += size
    if last:
        f.total = start + size
    if f.total and f.bytes >= f.total and f.list != FRAG_SPARE:
        frag_move(t, i, FRAG_SPARE, now_ms)


cdef inline bint expire_list(FragTable *t, uint32_t list, uint32_t now_ms, uint32_t timeout, uint32_t budget,
                             Counters *count) noexcept nogil:
    """True: more may be due."""
    cdef uint32_t i = t.head[list]
    while budget and i != FRAG_NIL and <int32_t> (now_ms - t.entry[i].since - timeout) >= 0:
        frag_end(t, i, REASON_FRAG_TIMEOUT, now_ms, count)
        count.frag_expired += 1
        budget -= 1
        i = t.head[list]
    return budget == 0


cdef inline bint frag_expire(FragTable *t, uint32_t now_ms, uint32_t timeout, uint32_t budget, Counters *count) noexcept nogil:
    cdef bint more = expire_list(t, FRAG_AWAITED, now_ms, timeout, budget, count)
    return expire_list(t, FRAG_DECIDED, now_ms, timeout, budget, count) or more
