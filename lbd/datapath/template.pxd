# Persistence templates: which real server a client has. All workers' lie in the host segment, a part of the table for each: the
# template's owner alone makes, changes and frees it; whoever opens a connection reads it there. What only says when it was used
# last (`renewed`, `alive`) any worker writes, in single words: the last one to do so is as right as the others.
#
# Times are ticks of 2^26 ns (67 ms) of CLOCK_MONOTONIC: 32 bits of them don't wrap while a host runs.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    TICK_SHIFT = 26
    TICK_NS = 67108864
    WAYS = 8                # entries of a set: where a client's template may lie

cdef struct Template:       # 32 bytes
    uint32_t seq            # odd while its owner is writing; a reader that finds it changed has read nothing
    uint32_t renewed        # tick when a connection was opened by it last
    uint32_t alive          # tick when one of its connections was seen last
    uint16_t svc            # service number + 1; 0 = free
    uint16_t dest
    uint8_t net[16]         # the client's address cut to the service's persist_plen, IPv4 in the first 4 bytes


cdef extern from * nogil:
    """
    #define lbd_seq_begin(p)    __atomic_load_n((p), __ATOMIC_ACQUIRE)
    static inline int lbd_seq_same(const uint32_t *p, uint32_t seq)
    {
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        return __atomic_load_n(p, __ATOMIC_RELAXED) == seq;
    }
    static inline void lbd_seq_open(uint32_t *p)
    {
        __atomic_store_n(p, *p | 1, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_RELEASE);
    }
    #define lbd_seq_close(p)    __atomic_store_n((p), *(p) + 1, __ATOMIC_RELEASE)
    #define lbd_word_load(p)    __atomic_load_n((p), __ATOMIC_RELAXED)
    #define lbd_word_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    """
    uint32_t lbd_seq_begin(const uint32_t *) noexcept
    bint lbd_seq_same(const uint32_t *, uint32_t) noexcept
    void lbd_seq_open(uint32_t *) noexcept
    void lbd_seq_close(uint32_t *) noexcept
    uint32_t lbd_word_load(const uint32_t *) noexcept
    void lbd_word_store(uint32_t *, uint32_t) noexcept
