/* SPDX-License-Identifier: Apache-2.0
 *
 * The single-producer, single-consumer ring between two processes (master and worker, worker and worker).
 *
 * Scope: fixed-size records through shared memory, no lock, no system call, no allocation, no pointer in the
 * shared part (each process maps it where it likes). What a record means, its check, and the eventfd that
 * wakes a sleeping consumer are the caller's.
 *
 * This is the one piece of the data plane that is C and not Cython: so that the *same lines* are run by both
 * ends and by the proofs in tests/proof (relacy explores the memory model, TSan watches real threads; runs on
 * x86 alone prove nothing: a relaxed publish shows no error there). The relacy proof replaces the macros of
 * section 1 and nothing else. Compiles as C11 and as C++.
 *
 * Assumes: one producer and one consumer at a time (a successor attaches when its predecessor is known to be
 * gone: pidfd), 64-byte cache lines, both ends of the same byte order (it is one machine).
 *
 * 1. Memory-order macros      4. Init and attach        7. Sleep and wake
 * 2. Results                  5. Producer
 * 3. Layout                   6. Consumer
 *
 * -- Life of a record ------------------------------------------------------------------------------------
 *
 * Indexes run freely through all of u32; slot = index & (capacity - 1); prod - cons = records in the ring.
 *
 *   state        holds when                       goes to     by whom, through
 *   empty        prod == cons                     publishing  producer: room, slot
 *   publishing   the producer writes slots at     holding     producer: publish (release store of prod)
 *                prod and above; nobody else      as before   producer dies: nothing was visible
 *                sees them
 *   holding      0 < prod - cons <= capacity      consuming   consumer: ready > 0, front or peek
 *   full         prod - cons == capacity          consuming   the same; meanwhile room is 0, and what
 *                                                             finds none is counted in `full`
 *   consuming    the consumer reads slots from    holding,    consumer: release (release store of cons)
 *                cons up to prod                  or empty
 *                                                 as before   consumer dies: its successor sees the records
 *                                                             again (so commands carry absolute values, and
 *                                                             repeating one is harmless)
 *   sleeping     sleeping == 1, and after that    awake       producer: must_wake exchanges the flag to 0
 *                the consumer saw it empty                    and its caller writes the eventfd
 *                                                 awake       consumer: sleep_end (time-out, other event)
 *   garbage      a peer's index left its range    empty       the segment's owner: ends the peer,
 *                (sticky in the end that saw it)              ring_init, both ends attach anew
 *
 *   prohibited                                because
 *   two live producers, or two consumers      an index has one writer; there is no compare-and-swap
 *   publishing more than room said            it overwrites records that the consumer may be reading
 *   releasing more than ready said            it frees slots that the producer has not filled
 *   full: dropping the oldest record          the oldest is the consumer's; the producer refuses the newest
 *   an index that moves backwards             does not happen between honest ends: taken as garbage
 *   garbage: going on at the next good index  a peer that wrote one bad index is not believed about the next
 *   ring_init while an end is attached        that end's private index would go on from the old one
 *   checking front() bytes, then using them   the peer can change them in between; peek copies the record
 *                                             once, and the copy is what is checked and used
 *   sleeping without sleep_begin's re-check   a record published just before would lie there with no wake-up
 *   a new producer that relies on the old     that one may have died between the exchange and the eventfd;
 *   one's wake-up                             so the first must_wake after attach is always 1
 *
 * -- Memory order, line by line ----------------------------------------------------------------------------
 *
 *   PUBLISH   prod = own + n, release    slot writes come before the index that shows them
 *   SEE       load prod, acquire         slot reads come after the index that allowed them
 *   FREE      cons = own + n, release    slot reads come before the index that gives the slots back
 *   SEE_FREE  load cons, acquire         slot writes come after the index that gave the slots back: without
 *                                        it, or without FREE, a new record may reach a reader of the old one
 *   SLEEP     sleeping = 1; full fence; load prod     } store buffering (Dekker): with one fence missing each
 *   WAKE      prod = own; full fence; load sleeping   } side may miss the other's store, on x86 too, and the
 *                                                       consumer sleeps on a record
 *   own       private to struct lbd_ring_end; only attach loads it from the ring. What orders a predecessor's
 *             last store before that load is the way its death became known
 *   peer      in struct lbd_ring_end, may be old: that means less room or fewer records, never more
 *   magic     release in init, acquire in attach: the layout is complete before it can be recognised
 */
#ifndef LBD_SHM_RING_H
#define LBD_SHM_RING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* -- 1. Memory-order macros ------------------------------------------------------------------------------
 * A proof defines LBD_RING_PORT and brings its own version of this block (types that the checker sees,
 * accesses that it schedules). The four orders and two fences are named by role, so that a proof can weaken
 * one of them and show that it is caught.
 */
#ifndef LBD_RING_PORT

typedef uint32_t lbd_atomic_u32;
typedef uint64_t lbd_atomic_u64;
typedef unsigned char lbd_slot;   /* a unit of entry_size, as it lies in the ring */
typedef unsigned char lbd_record; /* the same unit in private memory */

#define LBD_RELAXED __ATOMIC_RELAXED
#define LBD_ACQUIRE __ATOMIC_ACQUIRE
#define LBD_RELEASE __ATOMIC_RELEASE
#define LBD_LOAD(p, order) __atomic_load_n((p), (order))
#define LBD_STORE(p, v, order) __atomic_store_n((p), (v), (order))
#define LBD_EXCHANGE_RELAXED(p, v) __atomic_exchange_n((p), (v), __ATOMIC_RELAXED)
#define LBD_FENCE_SEQ() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#define LBD_PUT(to, from, units) memcpy((to), (from), (units))
/* NB: the barrier keeps the compiler from reading the shared record a second time where the copy is used. */
#define LBD_TAKE(to, from, units)          \
    do {                                   \
        memcpy((to), (from), (units));     \
        __asm__ __volatile__("" ::: "memory"); \
    } while (0)
#define LBD_ASSERT(x) ((void)0)

#endif

#ifndef LBD_ORDER_PUBLISH
#define LBD_ORDER_PUBLISH LBD_RELEASE
#endif
#ifndef LBD_ORDER_SEE
#define LBD_ORDER_SEE LBD_ACQUIRE
#endif
#ifndef LBD_ORDER_FREE
#define LBD_ORDER_FREE LBD_RELEASE
#endif
#ifndef LBD_ORDER_SEE_FREE
#define LBD_ORDER_SEE_FREE LBD_ACQUIRE
#endif
#ifndef LBD_FENCE_SLEEP
#define LBD_FENCE_SLEEP() LBD_FENCE_SEQ()
#endif
#ifndef LBD_FENCE_WAKE
#define LBD_FENCE_WAKE() LBD_FENCE_SEQ()
#endif

/* -- 2. Results ------------------------------------------------------------------------------------------ */

enum lbd_ring_result {
    LBD_RING_OK = 0,
    LBD_RING_GARBAGE = -1,    /* an index outside its range: reset the peer */
    LBD_RING_SHORT = -2,      /* the segment is smaller than the ring it holds (or than a header) */
    LBD_RING_MAGIC = -3,      /* not a ring, or init has not finished */
    LBD_RING_VERSION = -4,    /* another layout: one of the two programs is older */
    LBD_RING_ENTRY_SIZE = -5, /* not the record size asked for; in init: 0 or no multiple of 8 */
    LBD_RING_CAPACITY = -6,   /* not a power of two in 1 .. LBD_RING_CAPACITY_MAX */
    LBD_RING_ALIGNMENT = -7   /* the mapping does not start on a cache line */
};

/* -- 3. Layout -------------------------------------------------------------------------------------------
 * Four cache lines, then capacity * entry_size bytes. One writer per line, apart from the wake line.
 */
#define LBD_RING_MAGIC_WORD 0x7264626cu /* "lbdr", little endian */
#define LBD_RING_LAYOUT 1
#define LBD_RING_CAPACITY_MAX (1u << 24)
#define LBD_RING_LINE 64

struct lbd_ring {
    /* line 0: written by init, then read only. Each end reads it once, in attach. */
    lbd_atomic_u32 magic; /* LBD_RING_MAGIC_WORD; stored last */
    uint16_t version;     /* LBD_RING_LAYOUT */
    uint16_t entry_size;  /* bytes, a multiple of 8 */
    uint32_t capacity;    /* records, a power of two */
    uint8_t pad0[52];
    /* line 1: the producer's */
    lbd_atomic_u32 prod; /* index behind the last published record */
    uint32_t pad1;
    lbd_atomic_u64 full; /* records refused since init, because the ring was full; for the exporter */
    uint8_t pad2[48];
    /* line 2: the consumer's */
    lbd_atomic_u32 cons; /* index of the oldest record not yet released */
    uint8_t pad3[60];
    /* line 3: set by the consumer, cleared by either */
    lbd_atomic_u32 sleeping; /* 1: the consumer waits for its eventfd. Unused where a word outside is set */
    uint8_t pad4[60];
};

#ifndef LBD_RING_PORT
#ifdef __cplusplus
#define LBD_STATIC_ASSERT(x, text) static_assert(x, text)
#else
#define LBD_STATIC_ASSERT(x, text) _Static_assert(x, text)
#endif
LBD_STATIC_ASSERT(sizeof(struct lbd_ring) == 4 * LBD_RING_LINE, "the header is four cache lines");
LBD_STATIC_ASSERT(offsetof(struct lbd_ring, prod) == 1 * LBD_RING_LINE, "line 1 is the producer's");
LBD_STATIC_ASSERT(offsetof(struct lbd_ring, cons) == 2 * LBD_RING_LINE, "line 2 is the consumer's");
LBD_STATIC_ASSERT(offsetof(struct lbd_ring, sleeping) == 3 * LBD_RING_LINE, "line 3 is for waking");
LBD_STATIC_ASSERT(offsetof(struct lbd_ring, full) % 8 == 0, "a 64-bit atomic is naturally aligned");
#endif

/* One side's private view, in its own memory: never shared, and what the peer writes cannot change `own`. */
struct lbd_ring_end {
    struct lbd_ring *ring;
    lbd_slot *entries;        /* behind the header, in this process's mapping */
    lbd_atomic_u32 *sleeping; /* the ring's own word, or one that many rings of one consumer share */
    uint32_t capacity;
    uint32_t mask; /* capacity - 1 */
    uint32_t entry_size;
    uint32_t own;     /* this side's index, as last stored to the ring */
    uint32_t peer;    /* the other side's index, as last loaded */
    uint32_t garbage; /* 1: the peer wrote a bad index; stays until the next attach */
    uint32_t kick;    /* producer: 1 until the first must_wake */
};

/* -- 4. Init and attach ---------------------------------------------------------------------------------- */

/* Bytes of a ring; 0 where no such ring can be (init would refuse it). */
static inline size_t lbd_ring_bytes(uint32_t entry_size, uint32_t capacity)
{
    if (entry_size == 0 || entry_size % 8 != 0 || entry_size > UINT16_MAX)
        return 0;
    if (capacity == 0 || (capacity & (capacity - 1)) != 0 || capacity > LBD_RING_CAPACITY_MAX)
        return 0;
    return sizeof(struct lbd_ring) + (size_t)capacity * entry_size;
}

/* Makes an empty ring. Only while no end is attached. */
static inline int lbd_ring_init(void *mem, uint32_t entry_size, uint32_t capacity)
{
    struct lbd_ring *ring = (struct lbd_ring *)mem;

    if (entry_size == 0 || entry_size % 8 != 0 || entry_size > UINT16_MAX)
        return LBD_RING_ENTRY_SIZE;
    if (lbd_ring_bytes(entry_size, capacity) == 0)
        return LBD_RING_CAPACITY;
#ifndef LBD_RING_PORT
    if ((uintptr_t)mem % LBD_RING_LINE != 0)
        return LBD_RING_ALIGNMENT;
#endif
    LBD_STORE(&ring->magic, 0u, LBD_RELAXED);
    ring->version = LBD_RING_LAYOUT;
    ring->entry_size = (uint16_t)entry_size;
    ring->capacity = capacity;
    LBD_STORE(&ring->prod, 0u, LBD_RELAXED);
    LBD_STORE(&ring->full, 0u, LBD_RELAXED);
    LBD_STORE(&ring->cons, 0u, LBD_RELAXED);
    LBD_STORE(&ring->sleeping, 0u, LBD_RELAXED);
    LBD_STORE(&ring->magic, LBD_RING_MAGIC_WORD, LBD_RELEASE);
    return LBD_RING_OK;
}

/* Takes over one side where the last owner of that side left it. `end` is written only on success.
 *
 * The memory may be hostile: each header word is read once, and what was read is what is checked and kept.
 */
static inline int lbd_ring_attach(struct lbd_ring_end *end, void *mem, size_t mem_bytes, uint32_t entry_size,
                                  int producer)
{
    struct lbd_ring *ring = (struct lbd_ring *)mem;
    uint32_t capacity, prod, cons;

#ifndef LBD_RING_PORT
    if ((uintptr_t)mem % LBD_RING_LINE != 0)
        return LBD_RING_ALIGNMENT;
#endif
    if (mem_bytes < sizeof(struct lbd_ring))
        return LBD_RING_SHORT;
    if (LBD_LOAD(&ring->magic, LBD_ACQUIRE) != LBD_RING_MAGIC_WORD)
        return LBD_RING_MAGIC;
    if (*(volatile uint16_t *)&ring->version != LBD_RING_LAYOUT)
        return LBD_RING_VERSION;
    if (entry_size == 0 || entry_size % 8 != 0 || *(volatile uint16_t *)&ring->entry_size != entry_size)
        return LBD_RING_ENTRY_SIZE;
    capacity = *(volatile uint32_t *)&ring->capacity;
    if (lbd_ring_bytes(entry_size, capacity) == 0)
        return LBD_RING_CAPACITY;
    if (lbd_ring_bytes(entry_size, capacity) > mem_bytes)
        return LBD_RING_SHORT;
    prod = LBD_LOAD(&ring->prod, LBD_ACQUIRE);
    cons = LBD_LOAD(&ring->cons, LBD_ACQUIRE);
    if (prod - cons > capacity)
        return LBD_RING_GARBAGE;

    end->ring = ring;
    end->entries = (lbd_slot *)(ring + 1);
    end->sleeping = &ring->sleeping;
    end->capacity = capacity;
    end->mask = capacity - 1;
    end->entry_size = entry_size;
    end->own = producer ? prod : cons;
    end->peer = producer ? cons : prod;
    end->garbage = 0;
    end->kick = producer ? 1 : 0;
    return LBD_RING_OK;
}

/* Sleeps on, or wakes through, a word outside the ring: a consumer of many rings has one. For both ends. */
static inline void lbd_ring_wake_word(struct lbd_ring_end *end, lbd_atomic_u32 *sleeping)
{
    end->sleeping = sleeping;
}

/* 1 once the peer wrote an index that can't be. Then room, space and push are 0, ready and peek negative. */
static inline int lbd_ring_garbage(const struct lbd_ring_end *end)
{
    return (int)end->garbage;
}

/* -- 5. Producer ----------------------------------------------------------------------------------------- */

/* How many records fit, by the consumer's index as it is now. 0 after garbage. */
static inline uint32_t lbd_ring_space(struct lbd_ring_end *end)
{
    uint32_t cons = LBD_LOAD(&end->ring->cons, LBD_ORDER_SEE_FREE);

    /* cons may move from where it was last seen up to prod, and nowhere else */
    if (cons - end->peer > end->own - end->peer)
        end->garbage = 1;
    if (end->garbage)
        return 0;
    end->peer = cons;
    return end->capacity - (end->own - cons);
}

/* How many of n records fit; asks the shared line only if the last answer does not suffice. */
static inline uint32_t lbd_ring_room(struct lbd_ring_end *end, uint32_t n)
{
    uint32_t room = end->garbage ? 0 : end->capacity - (end->own - end->peer);

    if (room < n)
        room = lbd_ring_space(end);
    return room < n ? room : n;
}

/* The i-th free slot, i < room. Private to the producer until publish. */
static inline lbd_slot *lbd_ring_slot(const struct lbd_ring_end *end, uint32_t i)
{
    return end->entries + (size_t)((end->own + i) & end->mask) * end->entry_size;
}

/* Shows the next n filled slots to the consumer. */
static inline void lbd_ring_publish(struct lbd_ring_end *end, uint32_t n)
{
    LBD_ASSERT(n <= end->capacity - (end->own - end->peer));
    end->own += n;
    LBD_STORE(&end->ring->prod, end->own, LBD_ORDER_PUBLISH);
}

/* Counts n records that found no room (push does it by itself). */
static inline void lbd_ring_refuse(struct lbd_ring_end *end, uint32_t n)
{
    LBD_STORE(&end->ring->full, LBD_LOAD(&end->ring->full, LBD_RELAXED) + n, LBD_RELAXED);
}

/* Copies and publishes up to n records; how many. The rest is counted as refused. */
static inline uint32_t lbd_ring_push(struct lbd_ring_end *end, const void *records, uint32_t n)
{
    const lbd_record *from = (const lbd_record *)records;
    uint32_t room = lbd_ring_room(end, n);
    uint32_t i;

    for (i = 0; i < room; i++)
        LBD_PUT(lbd_ring_slot(end, i), from + (size_t)i * end->entry_size, end->entry_size);
    if (room > 0)
        lbd_ring_publish(end, room);
    if (room < n)
        lbd_ring_refuse(end, n - room);
    return room;
}

/* -- 6. Consumer ----------------------------------------------------------------------------------------- */

/* Loads the producer's index, which may lie from where it was last seen to one full ring ahead of cons. */
static inline int lbd_ring_see(struct lbd_ring_end *end)
{
    uint32_t prod = LBD_LOAD(&end->ring->prod, LBD_ORDER_SEE);

    if (prod - end->peer > end->capacity - (end->peer - end->own))
        end->garbage = 1;
    if (end->garbage)
        return LBD_RING_GARBAGE;
    end->peer = prod;
    return LBD_RING_OK;
}

/* How many records wait, or LBD_RING_GARBAGE. Asks the shared line only when the last batch is used up: there
 * may be more than it says, but 0 is 0. */
static inline int lbd_ring_ready(struct lbd_ring_end *end)
{
    if (end->garbage || (end->peer == end->own && lbd_ring_see(end) != LBD_RING_OK))
        return LBD_RING_GARBAGE;
    return (int)(end->peer - end->own);
}

/* The i-th waiting record, i < ready, in place. NB: the peer can still write there, so it is for records that
 * need no check (or whose fields are each loaded once and masked at use); else peek. */
static inline const lbd_slot *lbd_ring_front(const struct lbd_ring_end *end, uint32_t i)
{
    return end->entries + (size_t)((end->own + i) & end->mask) * end->entry_size;
}

/* Gives the oldest n slots back; front() pointers to them are dead. */
static inline void lbd_ring_release(struct lbd_ring_end *end, uint32_t n)
{
    LBD_ASSERT(n <= end->peer - end->own);
    end->own += n;
    LBD_STORE(&end->ring->cons, end->own, LBD_ORDER_FREE);
}

/* Copies up to n records without releasing them; how many, or LBD_RING_GARBAGE. For commands: peek, check the
 * copy, apply, release: whoever dies in between does it again (at least once). */
static inline int lbd_ring_peek(struct lbd_ring_end *end, void *records, uint32_t n)
{
    lbd_record *to = (lbd_record *)records;
    int ready = lbd_ring_ready(end);
    uint32_t i;

    if (ready < 0)
        return ready;
    if ((uint32_t)ready < n)
        n = (uint32_t)ready;
    for (i = 0; i < n; i++)
        LBD_TAKE(to + (size_t)i * end->entry_size, lbd_ring_front(end, i), end->entry_size);
    return (int)n;
}

/* peek and release at once: for records that may die with their reader (at most once). */
static inline int lbd_ring_pop(struct lbd_ring_end *end, void *records, uint32_t n)
{
    int taken = lbd_ring_peek(end, records, n);

    if (taken > 0)
        lbd_ring_release(end, (uint32_t)taken);
    return taken;
}

/* -- 7. Sleep and wake -----------------------------------------------------------------------------------
 * One ring:    if (lbd_ring_sleep_begin(end)) { poll(eventfd); lbd_ring_sleep_end(end); }
 * Many rings:  lbd_sleep_begin(word); if all lbd_ring_idle(end_i) { poll(eventfd); } lbd_sleep_end(word);
 * Producer:    publish; if (lbd_ring_must_wake(end)) write(eventfd);
 *
 * NB: read the eventfd empty before sleep_begin, never between sleep_begin and poll: that would eat the
 * wake-up of a record that came in between.
 *
 * Whoever exchanges the word from 1 to 0 writes the eventfd: once per sleep, however many producers share the
 * word. If the consumer was not asleep after all, the eventfd stays readable: an empty turn, no lost wake-up.
 */

/* The consumer says that it is about to sleep. What it finds empty *after* this will wake it. */
static inline void lbd_sleep_begin(lbd_atomic_u32 *sleeping)
{
    LBD_STORE(sleeping, 1u, LBD_RELAXED);
    LBD_FENCE_SLEEP();
}

static inline void lbd_sleep_end(lbd_atomic_u32 *sleeping)
{
    LBD_STORE(sleeping, 0u, LBD_RELAXED);
}

/* 1: nothing waits (asked of the shared line). 0: records, or garbage, to be dealt with by the next ready. */
static inline int lbd_ring_idle(struct lbd_ring_end *end)
{
    if (end->garbage || end->peer != end->own)
        return 0;
    return lbd_ring_see(end) == LBD_RING_OK && end->peer == end->own;
}

/* 1: the ring is empty and the next publish wakes: the caller may sleep. 0: not now, and the flag is down. */
static inline int lbd_ring_sleep_begin(struct lbd_ring_end *end)
{
    lbd_sleep_begin(end->sleeping);
    if (lbd_ring_idle(end))
        return 1;
    lbd_sleep_end(end->sleeping);
    return 0;
}

static inline void lbd_ring_sleep_end(struct lbd_ring_end *end)
{
    lbd_sleep_end(end->sleeping);
}

/* 1: write the eventfd. Asked after each publish, or once after a burst of them; and once right after attach,
 * where it is always 1: the predecessor may have died between its exchange and its write. */
static inline int lbd_ring_must_wake(struct lbd_ring_end *end)
{
    LBD_FENCE_WAKE();
    if (end->kick) {
        end->kick = 0;
        LBD_STORE(end->sleeping, 0u, LBD_RELAXED);
        return 1;
    }
    if (LBD_LOAD(end->sleeping, LBD_RELAXED) == 0)
        return 0;
    return LBD_EXCHANGE_RELAXED(end->sleeping, 0u) != 0;
}

#endif
