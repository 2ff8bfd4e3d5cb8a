# An IPv4 header of five words, made from nothing: put together in registers and summed there, since words that are read back just
# after their bytes were stored one by one have to wait for the stores.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_bswap32, lbd_inlined_void, lbd_st16, lbd_st32
from lbd.datapath.csum cimport csum_fold


cdef inline lbd_inlined_void ip4_write(uint8_t *at, uint32_t len, uint8_t tos, uint16_t id, uint16_t frag_off, uint8_t ttl,
                                       uint8_t proto, uint32_t saddr, uint32_t daddr) noexcept nogil:
    """len: of the packet, header included; id, frag_off and addresses in network order."""
    cdef uint32_t first = lbd_bswap32(0x45000000 + (<uint32_t> tos << 16) + <uint16_t> len)
    cdef uint32_t second = id | <uint32_t> frag_off << 16
    cdef uint32_t third = ttl | <uint32_t> proto << 8
    cdef uint16_t check = <uint16_t> ~csum_fold(<uint64_t> first + second + third + saddr + daddr)
    lbd_st32(at, first)
    lbd_st32(at + 4, second)
    lbd_st16(at + 8, third)
    lbd_st16(at + 10, check)
    lbd_st32(at + 12, saddr)
    lbd_st32(at + 16, daddr)
