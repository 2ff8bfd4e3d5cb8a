# The tuple of a packet as it lies in a burst, and its keyed hash.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld32, lbd_ld64, lbd_mum, lbd_st32

cdef struct Tuple:              # 40 bytes; network order; IPv4 uses the first 4 bytes of each address
    uint8_t saddr[16]
    uint8_t daddr[16]
    uint16_t sport
    uint16_t dport
    uint8_t proto
    uint8_t af
    uint16_t spare


cdef inline void ports_put(Tuple *t, uint16_t sport, uint16_t dport) noexcept nogil:
    """Both at once, as tuple_hash reads them: a load of what two stores have put together has to wait for the cache."""
    lbd_st32(&t.sport, sport | <uint32_t> dport << 16)


# 64-bit hash under the host's 4-word secret: low half picks the bucket, high half the tag and the owner.
# Folded 64x64→128 multiplications of secret-masked words: without the secret, colliding tuples can't be chosen.

cdef inline uint64_t hash4(uint64_t addrs, uint64_t rest, const uint64_t *key) noexcept nogil:
    """addrs: source, destination; rest: ports, protocol."""
    return lbd_mum(lbd_mum(addrs ^ key[0], rest ^ key[1]) ^ key[2], key[3])


cdef inline uint64_t hash6(const uint8_t *saddr, const uint8_t *daddr, uint64_t rest, const uint64_t *key) noexcept nogil:
    cdef uint64_t h = lbd_mum(lbd_ld64(saddr) ^ key[0], lbd_ld64(saddr + 8) ^ key[1])
    h ^= lbd_mum(lbd_ld64(daddr) ^ key[2], lbd_ld64(daddr + 8) ^ key[3])
    return lbd_mum(h ^ rest ^ key[1], key[0] ^ rest)


cdef inline uint64_t tuple_hash(const Tuple *t, const uint64_t *key, int af) noexcept nogil:
    cdef uint64_t rest = <uint64_t> lbd_ld32(&t.sport) | (<uint64_t> t.proto << 32)
    if af == 4:
        return hash4(<uint64_t> lbd_ld32(t.saddr) | (<uint64_t> lbd_ld32(t.daddr) << 32), rest, key)
    return hash6(t.saddr, t.daddr, rest, key)


cdef inline uint64_t ends_hash(const uint8_t *ends, uint8_t proto, const uint64_t *key, int af) noexcept nogil:
    """The same of what a packet carries side by side: source, destination address, source, destination port."""
    if af == 4:
        return hash4(lbd_ld64(ends), <uint64_t> lbd_ld32(ends + 8) | (<uint64_t> proto << 32), key)
    return hash6(ends, ends + 16, <uint64_t> lbd_ld32(ends + 32) | (<uint64_t> proto << 32), key)
