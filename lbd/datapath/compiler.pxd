# What C compilers offer and Cython does not name: prefetch, branch hints, barriers, unaligned loads, wide multiply.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    #define lbd_likely(x)   __builtin_expect(!!(x), 1)
    #define lbd_unlikely(x) __builtin_expect(!!(x), 0)
    /* What a function of the fast lane returns, a number or nothing, tells gcc too where it is compiled: wherever it is called, so
       that its literal arguments (families, directions) decide there, or apart, so that it takes no registers from its caller. Else
       this is gcc's choice, which changes with the size of the module. */
    #define lbd_inlined __attribute__((always_inline)) int
    #define lbd_inlined_void __attribute__((always_inline)) void
    #define lbd_apart __attribute__((noinline)) int
    /* The empty asm: a function that does nothing but prefetch is without effect for gcc, which drops its calls unless it has
       inlined them by then. */
    static inline void lbd_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); __asm__ volatile (""); }
    static inline void lbd_prefetchw(const void *p) { __builtin_prefetch(p, 1, 3); __asm__ volatile (""); }
    /* Orders stores as another process sees them after this one was killed: on one machine only the compiler can disturb that. */
    #define lbd_compiler_barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)
    static inline uint16_t lbd_ld16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
    static inline uint32_t lbd_ld32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
    static inline uint64_t lbd_ld64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    static inline void lbd_st16(void *p, uint16_t v) { memcpy(p, &v, 2); }
    static inline void lbd_st32(void *p, uint32_t v) { memcpy(p, &v, 4); }
    static inline void lbd_st64(void *p, uint64_t v) { memcpy(p, &v, 8); }
    static inline void lbd_copy12(void *d, const void *s) { memcpy(d, s, 12); }
    static inline void lbd_copy16(void *d, const void *s) { memcpy(d, s, 16); }
    static inline uint64_t lbd_mum(uint64_t a, uint64_t b)
    {
        unsigned __int128 m = (unsigned __int128)a * b;
        return (uint64_t)m ^ (uint64_t)(m >> 64);
    }
    static inline uint32_t lbd_scale(uint32_t h, uint32_t n) { return (uint32_t)(((uint64_t)h * n) >> 32); }
    /* the halves of a word exchanged */
    static inline uint64_t lbd_swap32s(uint64_t x) { return x << 32 | x >> 32; }
    static inline uint32_t lbd_swap16s(uint32_t x) { return x << 16 | x >> 16; }
    /* ones' complement: the carry comes back in */
    static inline uint64_t lbd_add_carry(uint64_t a, uint64_t b)
    {
        uint64_t s;
        int carry = __builtin_add_overflow(a, b, &s);
        return s + (uint64_t)carry;
    }
    static inline uint16_t lbd_sub_borrow16(uint16_t a, uint16_t b)
    {
        uint16_t d;
        int borrow = __builtin_sub_overflow(a, b, &d);
        return (uint16_t)(d - borrow);
    }
    /* x % 65535 == 0, by the inverse of 65535 modulo 2^64 */
    static inline int lbd_is_multiple_of_65535(uint64_t x) { return x * 0xfffefffefffeffffull <= 0xffffffffffffffffull / 65535; }
    /* a 4-byte address at the beginning of 16 bytes, the rest 0 */
    static inline void lbd_copy4_wide(void *d, const void *s)
    {
        uint32_t v[4] = { 0, 0, 0, 0 };
        memcpy(v, s, 4);
        memcpy(d, v, 16);
    }
    static inline int lbd_ctz(uint32_t x) { return __builtin_ctz(x); }
    #define lbd_bswap16(x) __builtin_bswap16(x)
    #define lbd_bswap32(x) __builtin_bswap32(x)
    #define lbd_bswap64(x) __builtin_bswap64(x)
    """
    ctypedef int lbd_inlined
    ctypedef void lbd_inlined_void
    ctypedef int lbd_apart
    bint lbd_likely(bint) noexcept
    bint lbd_unlikely(bint) noexcept
    void lbd_prefetch(const void *) noexcept
    void lbd_prefetchw(const void *) noexcept
    void lbd_compiler_barrier() noexcept
    uint16_t lbd_ld16(const void *) noexcept
    uint32_t lbd_ld32(const void *) noexcept
    uint64_t lbd_ld64(const void *) noexcept
    void lbd_st16(void *, uint16_t) noexcept
    void lbd_st32(void *, uint32_t) noexcept
    void lbd_st64(void *, uint64_t) noexcept
    void lbd_copy12(void *, const void *) noexcept
    void lbd_copy16(void *, const void *) noexcept
    uint64_t lbd_mum(uint64_t, uint64_t) noexcept
    uint32_t lbd_scale(uint32_t, uint32_t) noexcept
    uint64_t lbd_swap32s(uint64_t) noexcept
    uint32_t lbd_swap16s(uint32_t) noexcept
    uint64_t lbd_add_carry(uint64_t, uint64_t) noexcept
    uint16_t lbd_sub_borrow16(uint16_t, uint16_t) noexcept
    bint lbd_is_multiple_of_65535(uint64_t) noexcept
    void lbd_copy4_wide(void *, const void *) noexcept
    int lbd_ctz(uint32_t) noexcept
    uint16_t lbd_bswap16(uint16_t) noexcept
    uint32_t lbd_bswap32(uint32_t) noexcept
    uint64_t lbd_bswap64(uint64_t) noexcept
