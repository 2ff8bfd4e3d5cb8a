# What few connections need beyond their record: an extension record (ConnExt, engine.pxd), from a pool in the connection file. A
# record with CONN_EXTENDED has one; its packets take the general way. None free: whoever asked does without.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset
from lbd.datapath.engine cimport ConnExt, Engine, EXT_FREE, EXT_SHARE
from lbd.datapath.conn cimport CONN_EXTENDED, ConnCommon, ConnTable, conn4, conn6, conn_common


cdef inline uint32_t ext_count(uint32_t conns4, uint32_t conns6) noexcept nogil:
    """Records of the pool; number 0 is never used."""
    return (conns4 + conns6) // EXT_SHARE + 16


cdef inline uint32_t *ext_number(ConnTable *t, uint32_t i, int af) noexcept nogil:
    return &conn4(t, i).ext if af == 4 else &conn6(t, i).ext


cdef inline uint32_t ext_ref(uint32_t i, int af) noexcept nogil:
    """Which record an extension belongs to."""
    return i << 1 | (af == 6)


cdef inline ConnExt *conn_ext(Engine *e, ConnTable *t, uint32_t i, int af) noexcept nogil:
    """Of a record with CONN_EXTENDED."""
    return e.ext + ext_number(t, i, af)[0]


cdef inline ConnExt *ext_take(Engine *e, ConnTable *t, uint32_t i, int af) noexcept nogil:
    """An extension for record i, otherwise all zeros, or NULL: none is free."""
    cdef uint32_t n = e.ext_free
    cdef ConnExt *x
    if n == 0:
        return NULL
    x = e.ext + n
    e.ext_free = x.next
    memset(x, 0, sizeof(ConnExt))
    x.ref = ext_ref(i, af)
    ext_number(t, i, af)[0] = n
    conn_common(t, i, af).flags |= CONN_EXTENDED
    return x


cdef inline void ext_free(Engine *e, uint32_t n) noexcept nogil:
    e.ext[n].ref = EXT_FREE
    e.ext[n].next = e.ext_free
    e.ext_free = n


cdef inline void ext_give(Engine *e, ConnTable *t, uint32_t i, int af) noexcept nogil:
    """Record i needs its extension no longer."""
    cdef uint32_t *n = ext_number(t, i, af)
    conn_common(t, i, af).flags &= <uint8_t> ~CONN_EXTENDED
    ext_free(e, n[0])
    n[0] = 0


cdef inline bint ext_is(Engine *e, ConnTable *t, uint32_t i, int af) noexcept nogil:
    """After a crash: is the record's extension its own?"""
    cdef uint32_t n = ext_number(t, i, af)[0]
    return 0 < n < e.ext_n and e.ext[n].ref == ext_ref(i, af)


cdef inline void ext_rebuild(Engine *e) noexcept nogil:
    """Once all records are recovered: those that no live one has are free."""
    cdef uint32_t n, i
    cdef int af
    cdef ConnTable *t
    cdef ConnCommon *c
    e.ext_free = 0
    for n in range(e.ext_n - 1, 0, -1):
        i = e.ext[n].ref >> 1
        af = 6 if e.ext[n].ref & 1 else 4
        t = &e.t6 if af == 6 else &e.t4
        if e.ext[n].ref != EXT_FREE and i < t.capacity:
            c = conn_common(t, i, af)
            if c.live and c.flags & CONN_EXTENDED and ext_number(t, i, af)[0] == n:
                continue
        ext_free(e, n)
