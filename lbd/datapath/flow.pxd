# The tuple of a packet as it lies in a burst, and its keyed hash.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld32, lbd_ld64, lbd_mum

cdef struct Tuple:              # 40 bytes; network order; IPv4 uses the first 4 bytes of each address
    uint8_t saddr[16]
    uint8_t daddr[16]
    uint16_t sport
    uint16_t dport
    uint8_t proto
    uint8_t af
    uint16_t spare


cdef inline uint64_t tuple_hash(const Tuple *t, const uint64_t *key, int af) noexcept nogil:
    """64-bit hash under the host's 4-word secret: low half picks the bucket, high half the tag and the owner.
    Folded 64x64→128 multiplications of secret-masked words: without the secret, colliding tuples can't be chosen."""
    cdef uint64_t b = <uint64_t> lbd_ld32(&t.sport) | (<uint64_t> t.proto << 32)
    cdef uint64_t h
    if af == 4:
        h = <uint64_t> lbd_ld32(t.saddr) | (<uint64_t> lbd_ld32(t.daddr) << 32)
        h = lbd_mum(h ^ key[0], b ^ key[1])
        return lbd_mum(h ^ key[2], key[3])
    h = lbd_mum(lbd_ld64(t.saddr) ^ key[0], lbd_ld64(t.saddr + 8) ^ key[1])
    h ^= lbd_mum(lbd_ld64(t.daddr) ^ key[2], lbd_ld64(t.daddr + 8) ^ key[3])
    return lbd_mum(h ^ b ^ key[1], key[0] ^ b)
