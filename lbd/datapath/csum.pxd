# Internet checksums (RFC 1071), incremental (RFC 1624, equation 3). Sums are over 16-bit words in memory order, so that no
# byte is swapped; a "delta" is the 16-bit ones' complement sum of ~old + new over the words that change.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld16, lbd_ld32, lbd_ld64, lbd_sub_borrow16, lbd_swap16s, lbd_swap32s


cdef inline uint16_t csum_fold(uint64_t s) noexcept nogil:
    """Ones' complement sum of any width down to 16 bits, not complemented. Added to itself with its halves exchanged, a word has
    their sum in its upper one, carry included."""
    cdef uint64_t twice = s + lbd_swap32s(s)
    cdef uint32_t half = <uint32_t> (twice >> 32)
    half += lbd_swap16s(half)
    return <uint16_t> (half >> 16)


cdef inline uint64_t csum_partial(const uint8_t *p, uint32_t n, uint64_t s) noexcept nogil:
    """Adds n bytes to the running sum; an odd last byte counts as the first of a word (RFC 1071)."""
    while n >= 16:
        s += <uint64_t> lbd_ld32(p) + lbd_ld32(p + 4)
        s += <uint64_t> lbd_ld32(p + 8) + lbd_ld32(p + 12)
        p += 16
        n -= 16
    while n >= 4:
        s += lbd_ld32(p)
        p += 4
        n -= 4
    if n >= 2:
        s += lbd_ld16(p)
        p += 2
        n -= 2
    if n:
        s += p[0]                   # little-endian hosts: the byte is the word's first
    return s


cdef inline uint64_t csum_diff(const void *old, const void *new, uint32_t n, uint64_t s) noexcept nogil:
    """Adds ~old + new over n bytes (a multiple of 2) to the running sum."""
    cdef uint32_t i
    for i in range(0, n & ~<uint32_t> 3, 4):
        s += <uint32_t> ~lbd_ld32(<const uint8_t *> old + i)
        s += lbd_ld32(<const uint8_t *> new + i)
    if n & 2:
        s += <uint16_t> ~lbd_ld16(<const uint8_t *> old + (n - 2))
        s += lbd_ld16(<const uint8_t *> new + (n - 2))
    return s


cdef inline uint16_t csum_apply(uint16_t check, uint32_t delta) noexcept nogil:
    """HC' = ~(~HC + delta), RFC 1624 equation 3."""
    cdef uint32_t s = <uint16_t> ~check + delta
    s = (s & 0xffff) + (s >> 16)
    s = (s & 0xffff) + (s >> 16)
    return <uint16_t> ~s


cdef inline uint16_t csum_add(uint16_t check, uint16_t delta) noexcept nogil:
    """csum_apply for a folded delta: ~(~HC + delta) is HC - delta, less one where that borrows."""
    return lbd_sub_borrow16(check, delta)


cdef inline uint16_t csum_sum(uint16_t a, uint16_t b) noexcept nogil:
    """Of two folded ones."""
    cdef uint32_t s = <uint32_t> a + b
    return <uint16_t> (s + (s >> 16))


cdef inline uint16_t csum_reverse(uint16_t delta) noexcept nogil:
    """The delta of the opposite change: its ones' complement negation."""
    return <uint16_t> ~delta


cdef inline uint64_t csum_pseudo(const void *saddr, const void *daddr, uint32_t alen, uint8_t proto,
                                 uint32_t l4_len) noexcept nogil:
    """Pseudo-header sum (RFC 793, RFC 8200 §8.1); alen 4 or 16."""
    cdef uint64_t s = csum_partial(<const uint8_t *> saddr, alen, 0)
    s = csum_partial(<const uint8_t *> daddr, alen, s)
    # length and protocol are big-endian numbers: their words in memory order
    s += ((l4_len & 0xff) << 8) | ((l4_len >> 8) & 0xff)
    s += ((l4_len >> 16) & 0xff) << 8
    s += <uint32_t> proto << 8
    return s
