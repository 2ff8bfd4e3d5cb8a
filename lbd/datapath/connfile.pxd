# The connection file's layout: head, then per family records, cold parts and index. It outlives every process; who opens it checks
# the head and either takes its live records over or formats it.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from lbd.datapath.compiler cimport lbd_compiler_barrier
from lbd.datapath.engine cimport ConnExt, Engine, EXT_FREE
from lbd.datapath.ext cimport conn_ext, ext_count, ext_is, ext_number, ext_rebuild, ext_ref
from lbd.datapath.conn cimport (Conn4, Conn6, ConnCold, Bucket, ConnTable, ConnCommon, CONN_NIL, conn_buckets, conn_overflow,
                                conn_clear, conn4, conn6, conn_local, conn_mode, conn_server, conn_tuple,
                                conn_common, CONN_EXTENDED, CONN_IMPORTED, CONN_ACTIVE, CONN_FREE, CONN_LIVE, CONN_OTHER_FAMILY,
                                REF_NONE, conn_index, conn_lookup, conn_unindex)
from lbd.datapath.lifetime cimport table_of, timer_of, rebuild_family, conn_schedule, conn_timeout, stat_count
from lbd.datapath.timer cimport Timer, timer_clear, timer_link, timer_start, timer_unlink, WHEEL_SLOTS
from lbd.datapath.tcp cimport state_active, state_half_open, STATE_SYN_RECV, STATE_UDP_ONEWAY
from lbd.datapath.svc cimport SVC_NONE, DEST_NONE, LIP_NONE, LIP_USED, SVC_USED, MODE_NAT, MODE_NAT64, MODE_SNAT, Svc
from lbd.datapath.neigh cimport ADJ_MAX, ADJ_NONE
from lbd.datapath.lookup cimport conn_lip, dest_port_is, svc_at
from lbd.datapath.persist cimport persist_look
from lbd.datapath.snat cimport conn_is_snat, snat_covers
from lbd.datapath.flow cimport Tuple, tuple_hash

cdef enum:
    CONN_MAGIC = 0x4e4f434c         # "LCON"
    CONN_VERSION = 4
    CONN_PAGE = 4096

cdef struct ConnHead:
    uint32_t magic
    uint32_t version
    uint32_t conns4
    uint32_t conns6
    uint32_t record4                # sizeof, so that a build with another layout formats instead of misreading
    uint32_t record6
    uint32_t cold
    uint32_t ready                  # 1 once formatted
    uint8_t boot_id[16]             # the clock of last_seen is this boot's


cdef inline uint64_t conn_family_bytes(uint32_t n, uint32_t record) noexcept nogil:
    return (<uint64_t> n * record + <uint64_t> n * sizeof(ConnCold)
            + (<uint64_t> conn_buckets(n) + conn_overflow(n)) * sizeof(Bucket) + <uint64_t> n * sizeof(uint32_t) + 4 * 64)


cdef inline uint64_t conn_file_bytes(uint32_t conns4, uint32_t conns6) noexcept nogil:
    cdef uint64_t n = CONN_PAGE + conn_family_bytes(conns4, sizeof(Conn4)) + conn_family_bytes(conns6, sizeof(Conn6))
    n += <uint64_t> ext_count(conns4, conns6) * sizeof(ConnExt) + 64
    return (n + CONN_PAGE - 1) & ~<uint64_t> (CONN_PAGE - 1)


cdef inline uint8_t *line_up(uint8_t *p) noexcept nogil:
    return <uint8_t *> ((<uint64_t> p + 63) & ~<uint64_t> 63)


cdef inline uint8_t *conn_map(ConnTable *t, uint8_t *at, uint32_t n, uint32_t af, uint64_t *key) noexcept nogil:
    t.af = af
    t.capacity = n
    t.stride = sizeof(Conn4) if af == 4 else sizeof(Conn6)
    t.buckets = conn_buckets(n)
    t.overflow = conn_overflow(n)
    t.key = key
    t.hot = line_up(at)
    t.cold = <ConnCold *> line_up(t.hot + <uint64_t> n * t.stride)
    t.index = <Bucket *> line_up(<uint8_t *> (t.cold + n))
    t.free = <uint32_t *> line_up(<uint8_t *> (t.index + t.buckets + t.overflow))
    return <uint8_t *> (t.free + n)


cdef inline void conn_map_all(Engine *e, void *base, uint32_t conns4, uint32_t conns6, uint64_t *key) noexcept nogil:
    """Lays the engine's tables over the file's bytes, and reads nothing of them."""
    cdef uint8_t *at = conn_map(&e.t4, <uint8_t *> base + CONN_PAGE, conns4, 4, key)
    e.ext = <ConnExt *> line_up(conn_map(&e.t6, at, conns6, 6, key))
    e.ext_n = ext_count(conns4, conns6)


cdef inline bint svc_is(Engine *e, const ConnCommon *c, const void *vaddr, uint16_t vport, int af) noexcept nogil:
    """Or was it, and is nobody else by now? Its number counts its connections until they are over."""
    cdef uint8_t addr[16]
    cdef const Svc *s
    if c.svc >= e.max_svc:
        return False
    s = e.svc + c.svc
    memset(addr, 0, 16)
    memcpy(addr, vaddr, 4 if af == 4 else 16)
    if s.flags & SVC_USED:
        return svc_at(e, addr, vport, c.proto, af) == c.svc
    return s.af == af and s.proto == c.proto and (s.vport == vport or s.vport == 0) and memcmp(s.vaddr, addr, 16) == 0


cdef inline bint dest_is(Engine *e, uint32_t dest, uint32_t svc, const void *daddr, uint16_t dport, uint16_t vport,
                         int daf) noexcept nogil:
    """The same of a real server."""
    if dest >= e.max_dest:
        return False
    return (dest_port_is(e.dest + dest, dport, vport) and e.dest[dest].af == daf and e.dest[dest].svc == svc
            and memcmp(e.dest[dest].addr, daddr, 16) == 0)


cdef inline uint32_t lip_of(Engine *e, uint32_t i, const ConnCommon *c, int af) noexcept nogil:
    """The local address's number, also of one that is gone: it counts ports until they are free."""
    cdef uint8_t addr[16]
    cdef int laf = af
    cdef uint32_t n = conn_lip(e, table_of(e, af), i, af)
    if n != LIP_NONE or not conn_local(c) or c.lip >= e.max_lip:
        return n
    memset(addr, 0, 16)
    if af == 4:
        memcpy(addr, &conn4(&e.t4, i).laddr, 4)
    elif c.flags & CONN_OTHER_FAMILY:
        memcpy(addr, conn6(&e.t6, i).laddr + 12, 4)
        laf = 4
    else:
        memcpy(addr, conn6(&e.t6, i).laddr, 16)
    return c.lip if e.lip[c.lip].af == laf and memcmp(e.lip[c.lip].addr, addr, 16) == 0 else LIP_NONE


cdef inline bint rule_is(Engine *e, uint32_t i, const ConnCommon *c, int af) noexcept nogil:
    """A connection of SNAT, and its rule still for such?"""
    cdef Tuple k
    cdef Svc *s
    if not conn_is_snat(table_of(e, af), i, af) or c.svc >= e.max_svc:
        return False
    s = e.svc + c.svc
    if not s.flags & SVC_USED or s.mode != MODE_SNAT or e.arena[s.table_off] != c.dest:
        return False
    conn_tuple(table_of(e, af), i, 0, &k, af)
    return snat_covers(e, s, &k, af)


cdef inline void numbers_check(Engine *e, uint32_t i, ConnCommon *c, int af) noexcept nogil:
    """A recovered record's numbers stand if they still mean the same addresses; else they are looked up at its next packet."""
    cdef const void *vaddr
    cdef uint8_t daddr[16]
    cdef uint16_t vport, dport
    cdef int daf = conn_server(table_of(e, af), i, daddr, af)
    if af == 4:
        vaddr = &conn4(&e.t4, i).vaddr
        vport, dport = conn4(&e.t4, i).vport, conn4(&e.t4, i).dport
    else:
        vaddr = conn6(&e.t6, i).vaddr
        vport, dport = conn6(&e.t6, i).vport, conn6(&e.t6, i).dport
    if not rule_is(e, i, c, af) and (not svc_is(e, c, vaddr, vport, af)
                                     or not dest_is(e, c.dest, c.svc, daddr, dport, vport, daf)):
        c.svc = SVC_NONE
        c.dest = DEST_NONE
        c.flags |= CONN_IMPORTED
        if conn_mode(c) == MODE_NAT:
            e.nat_gone = 1
    elif not e.svc[c.svc].flags & SVC_USED:
        c.flags |= CONN_IMPORTED            # it may be back by another number
    c.lip = lip_of(e, i, c, af)
    if c.lip != LIP_NONE:
        e.lip_stat[c.lip].in_use += 1
    if conn_local(c) and (c.lip == LIP_NONE or not e.lip[c.lip].flags & LIP_USED):
        c.flags |= CONN_IMPORTED
    if conn_mode(c) == MODE_NAT64:
        e.nat64 = 1
    c.adj_fwd = ADJ_NONE
    c.fib_gen = e.fib_gen[0] - 1


cdef inline void queues_rebuild(Engine *e, int af) noexcept nogil:
    """Half-open and unanswered ones into their queues, oldest first (to a 1024th of the longer timeout): sorted by age with the
    wheel's slots, still empty, for buckets."""
    cdef ConnTable *t = table_of(e, af)
    cdef Timer *w = timer_of(e, af)
    cdef ConnCommon *c
    cdef uint32_t i, age, span = e.timeout[<int> STATE_SYN_RECV]
    if span < e.timeout[<int> STATE_UDP_ONEWAY]:
        span = e.timeout[<int> STATE_UDP_ONEWAY]
    for i in range(t.capacity):
        c = conn_common(t, i, af)
        if c.live and state_half_open(c.state):
            age = e.now_ms - (t.cold[i].created if c.state == STATE_SYN_RECV else c.last_seen)
            if age > span:
                age = span
            timer_link(w, t, i, <uint32_t> (<uint64_t> age * (WHEEL_SLOTS - 1) // (<uint64_t> span + 1)))
    for age in range(WHEEL_SLOTS - 1, -1, -1):
        while w.head[age] != CONN_NIL:
            i = w.head[age]
            timer_unlink(w, t, i)
            conn_schedule(e, i, conn_common(t, i, af), af)


cdef inline uint32_t conn_recover(Engine *e, bint fresh_tables, int af) noexcept nogil:
    """Index, lists and counts of one family from its live records. fresh_tables: the adjacency numbers mean nothing any more."""
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef uint32_t i, idle, left
    conn_clear(t)
    timer_clear(timer_of(e, af), e.now_ms)
    rebuild_family(e, af)
    queues_rebuild(e, af)
    for i in range(t.capacity):
        c = conn_common(t, i, af)
        if not c.live:
            continue
        numbers_check(e, i, c, af)
        if c.flags & CONN_EXTENDED and not ext_is(e, t, i, af):
            c.flags &= <uint8_t> ~CONN_EXTENDED
        if fresh_tables or c.adj_rev >= ADJ_MAX:
            c.adj_rev = ADJ_NONE
        if state_active(c.state):
            c.flags |= CONN_ACTIVE
        else:
            c.flags &= <uint8_t> ~CONN_ACTIVE
        stat_count(e, c, 1)
        if not state_half_open(c.state):
            idle = e.now_ms - c.last_seen
            left = conn_timeout(e, c)
            timer_start(timer_of(e, af), t, i, e.now_ms, persist_look(e, c, left - idle) if idle < left else 0)
    return t.used


cdef inline void conn_format(Engine *e, ConnHead *h, const uint8_t *boot_id, uint32_t conns4, uint32_t conns6) noexcept nogil:
    h.ready = 0
    memset(<void *> e.t4.hot, 0, <uint64_t> conns4 * sizeof(Conn4))
    memset(<void *> e.t6.hot, 0, <uint64_t> conns6 * sizeof(Conn6))
    memset(<void *> e.ext, 0xff, <uint64_t> e.ext_n * sizeof(ConnExt))
    h.magic = CONN_MAGIC
    h.version = CONN_VERSION
    h.conns4 = conns4
    h.conns6 = conns6
    h.record4 = sizeof(Conn4)
    h.record6 = sizeof(Conn6)
    h.cold = sizeof(ConnCold)
    memcpy(h.boot_id, boot_id, 16)
    h.ready = 1


cdef inline bint conn_head_is(const ConnHead *h, const uint8_t *boot_id, uint32_t conns4, uint32_t conns6) noexcept nogil:
    """Of this boot, this build, these sizes, and formatted?"""
    return (h.magic == CONN_MAGIC and h.version == CONN_VERSION and h.conns4 == conns4 and h.conns6 == conns6 and h.ready == 1
            and h.record4 == sizeof(Conn4) and h.record6 == sizeof(Conn6) and h.cold == sizeof(ConnCold)
            and memcmp(h.boot_id, boot_id, 16) == 0)


cdef inline uint32_t conn_file_attach(Engine *e, void *base, const uint8_t *boot_id, uint32_t conns4, uint32_t conns6,
                                      bint fresh_tables) noexcept nogil:
    """Lays the engine's connection tables over the file's bytes; e.now_ms is set. Returns the connections recovered."""
    cdef ConnHead *h = <ConnHead *> base
    cdef uint32_t i, n
    conn_map_all(e, base, conns4, conns6, e.hash_key)
    if not conn_head_is(h, boot_id, conns4, conns6):
        conn_format(e, h, boot_id, conns4, conns6)
    for i in range(e.max_svc):
        e.svc_stat[i].active = 0
        e.svc_stat[i].inactive = 0
    for i in range(e.max_dest):
        e.dest_stat[i].active = 0
        e.dest_stat[i].inactive = 0
    for i in range(e.max_lip):
        e.lip_stat[i].in_use = 0
    n = conn_recover(e, fresh_tables, 4) + conn_recover(e, fresh_tables, 6)
    ext_rebuild(e)
    return n


# --- the file of a worker that is no more ----------------------------------------------------------------------------

cdef struct Merged:
    uint32_t moved
    uint32_t left                   # no room for them
    uint32_t at                     # where the next free record is looked for
    uint32_t ext_at                 # the same of extensions


cdef inline bint ext_move(Engine *to, uint32_t k, Engine *gone, uint32_t i, Merged *m, int af) noexcept nogil:
    """Of a record that was copied from i to k. False: there is no room for it."""
    cdef ConnExt *x = conn_ext(gone, table_of(gone, af), i, af)
    while m.ext_at < to.ext_n and to.ext[m.ext_at].ref != EXT_FREE:
        m.ext_at += 1
    if m.ext_at >= to.ext_n:
        return False
    to.ext[m.ext_at] = x[0]
    to.ext[m.ext_at].ref = ext_ref(k, af)
    ext_number(table_of(to, af), k, af)[0] = m.ext_at
    return True


cdef inline bint record_move(Engine *to, Engine *gone, uint32_t i, Merged *m, int af) noexcept nogil:
    """False: there is no room for it."""
    cdef ConnTable *t = table_of(to, af)
    cdef ConnTable *g = table_of(gone, af)
    cdef ConnCommon *c = conn_common(g, i, af)
    cdef ConnCommon *d
    cdef uint8_t *source = g.hot + <uint64_t> i * g.stride
    cdef Conn6 copy                         # large enough for either
    while m.at < t.capacity and conn_common(t, m.at, af).live != CONN_FREE:
        m.at += 1
    if m.at >= t.capacity:
        return False
    d = conn_common(t, m.at, af)
    memcpy(&copy, source, g.stride)
    (<ConnCommon *> (<uint8_t *> &copy + (<uint8_t *> c - source))).live = CONN_FREE         # stored last
    memcpy(t.hot + <uint64_t> m.at * t.stride, &copy, g.stride)
    t.cold[m.at] = g.cold[i]
    if c.flags & CONN_EXTENDED:
        if not ext_is(gone, g, i, af):
            d.flags &= <uint8_t> ~CONN_EXTENDED
        elif not ext_move(to, m.at, gone, i, m, af):
            return False
    lbd_compiler_barrier()
    d.live = c.live
    return True


cdef inline void family_merge(Engine *to, Engine *gone, Merged *m, int af) noexcept nogil:
    cdef ConnTable *g = table_of(gone, af)
    cdef ConnCommon *c
    cdef uint32_t i
    m.at = 0
    for i in range(g.capacity):
        c = conn_common(g, i, af)
        if c.live == CONN_FREE:
            continue
        if record_move(to, gone, i, m, af):
            c.live = CONN_FREE              # killed before this: it is there twice, until these files are made one again
            m.moved += 1
        else:
            m.left += 1


cdef inline bint twin_ends(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """Of one client's tuple there is one live record. Two files that became one may have had one each: the later stays. False: that
    is the other one."""
    cdef ConnCommon *c = conn_common(t, i, af)
    cdef ConnCommon *d
    cdef Tuple k
    cdef uint32_t ref
    conn_tuple(t, i, 0, &k, af)
    ref = conn_lookup(t, &k, tuple_hash(&k, t.key, af), af)
    if ref == REF_NONE or ref & 1:
        return True
    d = conn_common(t, ref >> 1, af)
    if <int32_t> (d.last_seen - c.last_seen) >= 0:
        return False
    conn_unindex(t, ref >> 1, af)
    d.live = CONN_FREE
    return True


cdef inline void twins_end(ConnTable *t, int af) noexcept nogil:
    """The index is only for this: whoever attaches makes it anew."""
    cdef ConnCommon *c
    cdef uint32_t i
    conn_clear(t)
    for i in range(t.capacity - 1, -1, -1):
        c = conn_common(t, i, af)
        if c.live != CONN_LIVE:
            continue
        if twin_ends(t, i, af):
            conn_index(t, i, af)
        else:
            c.live = CONN_FREE


cdef inline Merged conn_file_merge(Engine *to, void *into, Engine *gone, void *other, const uint8_t *boot_id, uint32_t conns4,
                                   uint32_t conns6) noexcept nogil:
    """Moves the live records of one file into another, while nobody runs over either. Whoever attaches to that one finds them as
    recovered connections. The engines are scratch."""
    cdef uint64_t key[4]
    cdef Merged m
    memset(key, 0, sizeof(key))
    memset(&m, 0, sizeof(Merged))
    m.ext_at = 1                            # number 0 is none
    if not conn_head_is(<ConnHead *> other, boot_id, conns4, conns6):
        return m
    conn_map_all(to, into, conns4, conns6, key)
    conn_map_all(gone, other, conns4, conns6, NULL)
    if not conn_head_is(<ConnHead *> into, boot_id, conns4, conns6):
        conn_format(to, <ConnHead *> into, boot_id, conns4, conns6)
    family_merge(to, gone, &m, 4)
    family_merge(to, gone, &m, 6)
    twins_end(&to.t4, 4)
    twins_end(&to.t6, 6)
    return m
