# Which worker owns a flow: a pure function, the same in every worker.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.rss cimport toeplitz
from lbd.datapath.hdr cimport PROTO_TCP, PROTO_UDP

cdef enum:
    OWNER_BUCKETS = 1024


cdef inline bint owner_by_rss(const Engine *e, uint32_t proto, uint32_t at) noexcept nogil:
    """Does the NICs' choice of queue say whose it is? Not of UDP on NICs that hash it by addresses alone: there no choice of port
    could bring an answer to another queue; and not of all else, of which NICs don't tell. Then the upper half of the keyed tuple
    hash says so."""
    return e.rss_known[at] and (proto == PROTO_TCP or (proto == PROTO_UDP and e.rss_udp_ports[at]))


cdef inline uint32_t owner_hash(Engine *e, const Tuple *t, uint64_t h, int af, uint32_t at) noexcept nogil:
    cdef uint8_t data[36]
    cdef uint32_t alen = 4 if af == 4 else 16
    if not owner_by_rss(e, t.proto, at):
        return <uint32_t> (h >> 32)
    memcpy(data, t.saddr, alen)
    memcpy(data + alen, t.daddr, alen)
    memcpy(data + 2 * alen, &t.sport, 4)
    return toeplitz(e.rss_key + 64 * at, data, 2 * alen + 4)


cdef inline uint32_t fragment_owner(Engine *e, const Tuple *k, uint64_t h, int af) noexcept nogil:
    """Of a datagram's fragments; k: its key (frag.pxd), h: that one's hash. NICs hash fragments by addresses alone: with RSS known,
    whoever receives them is their owner."""
    cdef uint8_t data[32]
    cdef uint32_t n = <uint32_t> (h >> 32)
    cdef uint32_t alen = 4 if af == 4 else 16
    if e.rss_known[e.epoch]:
        memcpy(data, k.saddr, alen)
        memcpy(data + alen, k.daddr, alen)
        n = toeplitz(e.rss_key + 64 * e.epoch, data, 2 * alen)
    return e.owner[e.epoch * OWNER_BUCKETS + (n & (OWNER_BUCKETS - 1))]


cdef inline uint32_t owner_of(const Engine *e, uint32_t hash, uint32_t at) noexcept nogil:
    return e.owner[at * OWNER_BUCKETS + (hash & (OWNER_BUCKETS - 1))]


cdef inline uint32_t flow_owner(Engine *e, const Tuple *t, uint64_t h, int af, uint32_t age) noexcept nogil:
    """age 0: by the epoch in force, 1: by the one before."""
    cdef uint32_t at = e.epoch ^ age
    if e.workers == 1:
        return 0
    return owner_of(e, owner_hash(e, t, h, af, at), at)
