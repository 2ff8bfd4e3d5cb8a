# CRC32c (RFC 9260, appendix A), SCTP's checksum, and how it changes with the first four bytes of what it covers.
#
# A CRC is linear: bytes that change by `diff` (exclusive or) change it by diff * x^(8 n) modulo the polynomial, n being the bytes
# from there to the end. So new ports cost two carry-less multiplications, whatever the packet's length, and a checksum that was
# wrong before stays wrong.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld32, lbd_st32

cdef extern from * nogil:
    """
    #if defined(__SSE4_2__)
    #include <nmmintrin.h>
    #endif
    #if defined(__x86_64__)
    #include <wmmintrin.h>
    #endif
    enum { LBD_CRC32C_POLY = 0x82f63b78u };     /* reflected: bit 31 is x^0 */
    static uint32_t lbd_crc32c_byte[256];       /* register after one byte */
    static uint32_t lbd_crc32c_x8n[2][256];     /* x^(8 n), n = i and n = 256 i */

    static inline uint32_t lbd_crc32c_u32(uint32_t crc, uint32_t v)
    {
    #if defined(__SSE4_2__)
        return _mm_crc32_u32(crc, v);
    #else
        crc ^= v;
        for (int i = 0; i < 4; i++) crc = crc >> 8 ^ lbd_crc32c_byte[crc & 255];
        return crc;
    #endif
    }
    /* the register after n more bytes */
    static inline uint32_t lbd_crc32c_add(uint32_t crc, const uint8_t *p, uint32_t n)
    {
    #if defined(__SSE4_2__) && defined(__x86_64__)
        uint64_t wide = crc, v;
        for (; n >= 8; n -= 8, p += 8) { memcpy(&v, p, 8); wide = _mm_crc32_u64(wide, v); }
        crc = (uint32_t)wide;
    #endif
        for (; n; n--, p++) crc = crc >> 8 ^ lbd_crc32c_byte[(crc ^ *p) & 255];
        return crc;
    }
    static inline uint64_t lbd_clmul_steps(uint32_t a, uint32_t b)
    {
        uint64_t p = 0;
        for (int i = 0; i < 32; i++) p ^= ((uint64_t)b << i) & (0 - (uint64_t)(a >> i & 1));
        return p;
    }
    #if defined(__x86_64__)
    /* x86-64-v3 does not promise the instruction, though whatever is that has it */
    __attribute__((target("pclmul"))) static uint64_t lbd_clmul_at_once(uint32_t a, uint32_t b)
    {
        return (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi32_si128((int)a), _mm_cvtsi32_si128((int)b), 0));
    }
    static inline uint64_t lbd_clmul(uint32_t a, uint32_t b)
    {
        return __builtin_cpu_supports("pclmul") ? lbd_clmul_at_once(a, b) : lbd_clmul_steps(a, b);
    }
    #else
    #define lbd_clmul lbd_clmul_steps
    #endif
    /* a * b modulo the polynomial: the product's 64 bits, lower powers above, reduced as four bytes of a message are */
    static inline uint32_t lbd_crc32c_mul(uint32_t a, uint32_t b)
    {
        uint64_t p = lbd_clmul(a, b) << 1;
        return (uint32_t)(p >> 32) ^ lbd_crc32c_u32(0, (uint32_t)p);
    }
    static inline uint32_t lbd_crc32c_shift(uint32_t v, uint32_t n)
    {
        v = lbd_crc32c_mul(v, lbd_crc32c_x8n[0][n & 255]);
        return n < 256 ? v : lbd_crc32c_mul(v, lbd_crc32c_x8n[1][n >> 8 & 255]);
    }
    __attribute__((constructor)) static void lbd_crc32c_init(void)
    {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = i;
            for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? LBD_CRC32C_POLY : 0);
            lbd_crc32c_byte[i] = crc;
        }
        for (int row = 0; row < 2; row++) {
            uint32_t v = 1u << 31, step = row ? lbd_crc32c_mul(lbd_crc32c_x8n[0][255], 1u << 23) : 1u << 23;
            for (int i = 0; i < 256; i++, v = lbd_crc32c_mul(v, step)) lbd_crc32c_x8n[row][i] = v;
        }
    }
    """
    uint64_t lbd_clmul(uint32_t a, uint32_t b) noexcept
    uint64_t lbd_clmul_steps(uint32_t a, uint32_t b) noexcept
    uint32_t lbd_crc32c_add(uint32_t crc, const uint8_t *p, uint32_t n) noexcept
    uint32_t lbd_crc32c_shift(uint32_t v, uint32_t n) noexcept

cdef enum:
    SCTP_CHECK_AT = 8           # of four bytes


cdef inline uint32_t crc32c(const uint8_t *p, uint32_t n) noexcept nogil:
    return ~lbd_crc32c_add(0xffffffff, p, n)


cdef inline uint32_t crc32c_moved(uint32_t crc, uint32_t diff, uint32_t n) noexcept nogil:
    """The CRC of n (below 65,536) bytes after their first four changed by `diff`, as it lies in memory."""
    return crc ^ lbd_crc32c_shift(diff, n)


cdef inline uint32_t sctp_checksum(const uint8_t *l4, uint32_t len) noexcept nogil:
    """Over all but the checksum's own field, which counts as 0."""
    cdef uint32_t zero = 0
    cdef uint32_t crc = lbd_crc32c_add(lbd_crc32c_add(0xffffffff, l4, SCTP_CHECK_AT), <const uint8_t *> &zero, 4)
    return ~lbd_crc32c_add(crc, l4 + SCTP_CHECK_AT + 4, len - SCTP_CHECK_AT - 4)


cdef inline void sctp_ports_changed(uint8_t *l4, uint32_t len, uint32_t before) noexcept nogil:
    """before: both ports as they were. len: of the whole SCTP packet, though of one quoted by ICMP less may be there."""
    cdef uint32_t diff = before ^ lbd_ld32(l4)
    if diff:
        lbd_st32(l4 + SCTP_CHECK_AT, crc32c_moved(lbd_ld32(l4 + SCTP_CHECK_AT), diff, len))
