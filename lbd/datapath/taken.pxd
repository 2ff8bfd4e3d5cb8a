# Local ports that connections of before a change of workers hold. They stay with their workers, which may not be those that own
# their answers by the rule of now: a port that its owner finds free in its own table may be in use in another one's.
#
# A filter of one bit for each (real server, local address, port), by the tuple hash of the answers: set for all of them before the
# first worker starts, and good as long as owners don't change again. A bit that is set may mean nothing; one that isn't, does.
#
#   1 million connections set 12 % of the bits, 16 million 85 %: so many ports are passed by.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from lbd.datapath.conn cimport CONN_FREE, CONN_OTHER_FAMILY, ConnCommon, ConnTable, conn_common, conn_local, conn_tuple
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.hdr cimport PROTO_ICMP, PROTO_ICMPV6

cdef enum:
    TAKEN_BITS = 8388608        # a megabyte of the host segment


cdef inline bint is_taken(const Engine *e, uint64_t h) noexcept nogil:
    """Maybe. h: tuple_hash of the answers."""
    cdef uint32_t bit = <uint32_t> (h >> 16) & (TAKEN_BITS - 1)
    return (e.taken[bit >> 3] >> (bit & 7)) & 1


cdef inline void back_on_wire(ConnTable *t, uint32_t i, Tuple *k, int af) noexcept nogil:
    """The answers' tuple, as they carry it: NAT64's are of IPv4."""
    cdef Tuple mapped
    conn_tuple(t, i, 1, k, af)
    if af == 6 and conn_common(t, i, af).flags & CONN_OTHER_FAMILY:
        memcpy(&mapped, k, sizeof(Tuple))
        memset(k.saddr, 0, 16)
        memset(k.daddr, 0, 16)
        memcpy(k.saddr, mapped.saddr + 12, 4)
        memcpy(k.daddr, mapped.daddr + 12, 4)
        k.af = 4
        if k.proto == PROTO_ICMPV6:
            k.proto = PROTO_ICMP


cdef inline void taken_mark(uint8_t *taken, ConnTable *t, const uint64_t *key, int af) noexcept nogil:
    """All ports of this table's connections."""
    cdef ConnCommon *c
    cdef Tuple k
    cdef uint32_t i, bit
    for i in range(t.capacity):
        c = conn_common(t, i, af)
        if c.live == CONN_FREE or not conn_local(c):
            continue
        back_on_wire(t, i, &k, af)
        bit = <uint32_t> (tuple_hash(&k, key, k.af) >> 16) & (TAKEN_BITS - 1)
        taken[bit >> 3] |= <uint8_t> (1 << (bit & 7))
