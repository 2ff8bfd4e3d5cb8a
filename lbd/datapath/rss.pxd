# Toeplitz hash (Microsoft RSS) and the flow owner: who owns a flow is a pure function, the same in every worker, of what a
# packet carries. Where the NICs' key and table are known, it is the NIC's own choice of queue; else the keyed tuple hash.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef inline uint32_t toeplitz(const uint8_t *key, const uint8_t *data, uint32_t n) noexcept nogil:
    """Hash of n bytes (12 for IPv4 with ports, 36 for IPv6) under a key of at least n + 4 bytes. Bit by bit: used when a
    connection is made, not for established packets."""
    cdef uint32_t h = 0
    cdef uint32_t window = (<uint32_t> key[0] << 24) | (<uint32_t> key[1] << 16) | (<uint32_t> key[2] << 8) | key[3]
    cdef uint32_t i, b
    for i in range(n):
        for b in range(8):
            if data[i] & (0x80 >> b):
                h ^= window
            window = (window << 1) | ((key[i + 4] >> (7 - b)) & 1)
    return h
