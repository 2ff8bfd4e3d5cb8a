# Packets that lie in several frames (AF_XDP multi-buffer): all headers are in the first one, which Pkt.data points into; the rest
# is payload that the engine neither moves nor changes. Pkt.len is the whole packet's. What reads beyond the headers goes by these
# functions, or is refused (REASON_MULTI_BUFFER).
#
# The engine may make a packet longer or shorter at its beginning, and cut it (an ICMP error in its place): the adapter sends as
# many bytes as Pkt.len says from Pkt.data on, in as many frames as that takes.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from lbd.datapath.compiler cimport lbd_likely
from lbd.datapath.crc32c cimport lbd_crc32c_add, sctp_checksum
from lbd.datapath.csum cimport csum_fold, csum_partial
from lbd.datapath.engine cimport Chain, Engine
from lbd.datapath.pkt cimport Pkt

cdef enum:
    CHAIN_HEAD = 1408           # bytes that the first frame of several holds at least: headers, and what an ICMP error quotes
    CHAIN_L4 = 320              # of these from the transport header on: its options, SCTP's first chunks, a QUIC connection id


cdef inline uint32_t least(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint32_t pkt_head(const Engine *e, const Pkt *p) noexcept nogil:
    """Bytes from data on that lie in the first frame."""
    if lbd_likely(p.chain == 0):
        return p.len
    return least(p.len, <uint32_t> (e.chain[p.chain - 1].end - p.data))


cdef inline uint64_t sum_behind(uint64_t s, uint64_t more, uint32_t before) noexcept nogil:
    """s and the sum of what follows `before` bytes: after an odd number its bytes change places (RFC 1071 §2 B)."""
    cdef uint32_t part = csum_fold(more)
    if before & 1:
        part = (part & 0xff) << 8 | part >> 8
    return csum_fold(s) + part


cdef inline uint64_t chain_sum(const Chain *c, const uint8_t *at, uint32_t n, uint64_t s) noexcept nogil:
    cdef uint32_t k, done = least(n, <uint32_t> (c.end - at)), part
    s = csum_partial(at, done, s)
    for k in range(c.n):
        part = least(n - done, c.len[k])
        s = sum_behind(s, csum_partial(c.data[k], part, 0), done)
        done += part
    return s


cdef inline uint64_t pkt_sum(const Engine *e, const Pkt *p, const uint8_t *at, uint32_t n, uint64_t s) noexcept nogil:
    """csum_partial of n bytes of the packet from `at` on, which is in the first frame."""
    if lbd_likely(p.chain == 0):
        return csum_partial(at, n, s)
    return chain_sum(e.chain + (p.chain - 1), at, n, s)


cdef inline uint32_t pkt_sctp_checksum(const Engine *e, const Pkt *p, uint32_t n) noexcept nogil:
    """sctp_checksum of the n bytes from the transport header on. CRC32c goes on from frame to frame."""
    cdef const uint8_t *l4 = p.data + p.l4
    cdef uint32_t k, part, done, crc
    cdef const Chain *c
    if lbd_likely(p.chain == 0):
        return sctp_checksum(l4, n)
    c = e.chain + (p.chain - 1)
    done = least(n, <uint32_t> (c.end - l4))
    crc = ~sctp_checksum(l4, done)
    for k in range(c.n):
        part = least(n - done, c.len[k])
        crc = lbd_crc32c_add(crc, c.data[k], part)
        done += part
    return ~crc


cdef inline void pkt_copy(const Engine *e, const Pkt *p, uint32_t at, uint32_t n, uint8_t *to) noexcept nogil:
    """n bytes from offset `at` on; they are there."""
    cdef uint32_t k, part, skip, head = pkt_head(e, p)
    cdef const Chain *c
    if at < head:
        part = least(n, head - at)
        memcpy(to, p.data + at, part)
        to += part
        n -= part
        at += part
    if n == 0 or p.chain == 0:
        return
    c = e.chain + (p.chain - 1)
    skip = at - head
    for k in range(c.n):
        if skip >= c.len[k]:
            skip -= c.len[k]
            continue
        part = least(n, c.len[k] - skip)
        memcpy(to, c.data[k] + skip, part)
        skip = 0
        to += part
        n -= part
