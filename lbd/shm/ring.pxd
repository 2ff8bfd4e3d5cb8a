# SPDX-License-Identifier: Apache-2.0
# Extern declarations of lbd/shm/ring.h, names untouched.
#
# The state table, the memory-order argument and the contract of each function are in the header. `own`,
# `peer` and the other fields of an end are the ring's: read them in tests, write them nowhere.
from libc.stddef cimport size_t
from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef extern from "lbd/shm/ring.h" nogil:
    enum lbd_ring_result:
        LBD_RING_OK
        LBD_RING_GARBAGE
        LBD_RING_SHORT
        LBD_RING_MAGIC
        LBD_RING_VERSION
        LBD_RING_ENTRY_SIZE
        LBD_RING_CAPACITY
        LBD_RING_ALIGNMENT

    enum:
        LBD_RING_MAGIC_WORD
        LBD_RING_LAYOUT
        LBD_RING_CAPACITY_MAX

    # in shared memory
    struct lbd_ring:
        uint32_t magic
        uint16_t version
        uint16_t entry_size
        uint32_t capacity
        uint32_t prod
        uint64_t full
        uint32_t cons
        uint32_t sleeping

    # private to one process
    struct lbd_ring_end:
        lbd_ring *ring
        unsigned char *entries
        uint32_t *sleeping
        uint32_t capacity
        uint32_t mask
        uint32_t entry_size
        uint32_t own
        uint32_t peer
        uint32_t garbage
        uint32_t kick

    size_t lbd_ring_bytes(uint32_t entry_size, uint32_t capacity) noexcept
    int lbd_ring_init(void *mem, uint32_t entry_size, uint32_t capacity) noexcept
    int lbd_ring_attach(lbd_ring_end *end, void *mem, size_t mem_bytes, uint32_t entry_size,
                        int producer) noexcept
    void lbd_ring_wake_word(lbd_ring_end *end, uint32_t *sleeping) noexcept
    int lbd_ring_garbage(const lbd_ring_end *end) noexcept

    # producer
    uint32_t lbd_ring_space(lbd_ring_end *end) noexcept
    uint32_t lbd_ring_room(lbd_ring_end *end, uint32_t n) noexcept
    unsigned char *lbd_ring_slot(const lbd_ring_end *end, uint32_t i) noexcept
    void lbd_ring_publish(lbd_ring_end *end, uint32_t n) noexcept
    void lbd_ring_refuse(lbd_ring_end *end, uint32_t n) noexcept
    uint32_t lbd_ring_push(lbd_ring_end *end, const void *records, uint32_t n) noexcept
    int lbd_ring_must_wake(lbd_ring_end *end) noexcept

    # consumer
    int lbd_ring_ready(lbd_ring_end *end) noexcept
    const unsigned char *lbd_ring_front(const lbd_ring_end *end, uint32_t i) noexcept
    void lbd_ring_release(lbd_ring_end *end, uint32_t n) noexcept
    int lbd_ring_peek(lbd_ring_end *end, void *records, uint32_t n) noexcept
    int lbd_ring_pop(lbd_ring_end *end, void *records, uint32_t n) noexcept
    int lbd_ring_idle(lbd_ring_end *end) noexcept
    int lbd_ring_sleep_begin(lbd_ring_end *end) noexcept
    void lbd_ring_sleep_end(lbd_ring_end *end) noexcept
    void lbd_sleep_begin(uint32_t *sleeping) noexcept
    void lbd_sleep_end(uint32_t *sleeping) noexcept
