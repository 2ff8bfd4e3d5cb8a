/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory-order proof of lbd/shm/ring.h under relacy: the header itself, not a copy of it. relacy runs the
 * threads as fibers, picks the interleaving and, for each load, any of the values that C++11 allows; it
 * reports data races on the slots, failed assertions and deadlocks.
 *
 * usage: ring_relacy SCENARIO WEAKENING RECORDS random ITERATIONS    random schedules and values
 *        ring_relacy SCENARIO WEAKENING RECORDS bound SWITCHES       all that at most SWITCHES forced thread
 *                                                                    switches can give
 * WEAKENING: none, publish, see, free, see_free, sleep_fence, wake_fence, kick.
 * Ends with a line `RESULT <relacy's word> in iteration <n>`, after the history of the failed run if there is
 * one. Exit status 0 for SUCCESS, 1 for a failure, 2 for a bad usage.
 *
 * Bounds, so that nobody takes it for more: capacity 2 and a handful of records; relacy keeps the last three
 * values of an atomic, and its full fence orders a little more than C++11's (so the fences are proven in
 * scenarios of their own). Indexes start just below 2^32: the third record wraps.
 */
#include <cstdlib>
#include <iostream>
#include <string>

#include <relacy/relacy.hpp>

/* -- Port of section 1 of ring.h ------------------------------------------------------------------------- */

#define LBD_RING_PORT

typedef rl::atomic<uint32_t> lbd_atomic_u32;
typedef rl::atomic<uint64_t> lbd_atomic_u64;
typedef rl::var<uint32_t> lbd_slot; /* one unit of entry_size; relacy watches each */
typedef uint32_t lbd_record;

#define LBD_RELAXED rl::mo_relaxed
#define LBD_ACQUIRE rl::mo_acquire
#define LBD_RELEASE rl::mo_release
#define LBD_LOAD(p, order) (p)->load((order), $)
#define LBD_STORE(p, v, order) (p)->store((v), (order), $)
#define LBD_EXCHANGE_RELAXED(p, v) (p)->exchange((v), rl::mo_relaxed, $)
#define LBD_FENCE_SEQ() rl::atomic_thread_fence(rl::mo_seq_cst, $)
#define LBD_PUT(to, from, units)                        \
    do {                                                \
        for (uint32_t unit = 0; unit < (units); unit++) \
            (to)[unit]($) = (from)[unit];               \
    } while (0)
#define LBD_TAKE(to, from, units)                                  \
    do {                                                           \
        for (uint32_t unit = 0; unit < (units); unit++)            \
            (to)[unit] = const_cast<lbd_slot *>(from)[unit]($);    \
    } while (0)
#define LBD_ASSERT(x) RL_ASSERT(x)

/* The weakenings, chosen at run time: one compilation serves them all. */
static rl::memory_order publish_order = rl::mo_release, see_order = rl::mo_acquire;
static rl::memory_order free_order = rl::mo_release, see_free_order = rl::mo_acquire;
static bool sleep_fence = true, wake_fence = true, kick = true;

#define LBD_ORDER_PUBLISH publish_order
#define LBD_ORDER_SEE see_order
#define LBD_ORDER_FREE free_order
#define LBD_ORDER_SEE_FREE see_free_order
#define LBD_FENCE_SLEEP() (sleep_fence ? LBD_FENCE_SEQ() : (void)0)
#define LBD_FENCE_WAKE() (wake_fence ? LBD_FENCE_SEQ() : (void)0)

#include "lbd/shm/ring.h"

/* -- The shared memory of a scenario --------------------------------------------------------------------- */

enum { CAPACITY = 2, UNITS = 8 };
static uint32_t records_total; /* that each producer sends */
static uint32_t const START = UINT32_MAX - 1; /* the third record wraps */

struct shared_ring {
    lbd_ring header;
    lbd_slot entries[CAPACITY * UNITS]; /* where header + 1 points */

    void make()
    {
        RL_ASSERT((char *)entries == (char *)(&header + 1));
        RL_ASSERT(lbd_ring_init(&header, UNITS, CAPACITY) == LBD_RING_OK);
        header.prod.store(START, rl::mo_relaxed, $);
        header.cons.store(START, rl::mo_relaxed, $);
    }
    void attach(lbd_ring_end *end, bool producer)
    {
        size_t const bytes = lbd_ring_bytes(UNITS, CAPACITY);

        RL_ASSERT(lbd_ring_attach(end, &header, bytes, UNITS, producer) == LBD_RING_OK);
    }
};

/* Record n carries n in all its units; a torn or stale one does not. */
static void fill(uint32_t *record, uint32_t n)
{
    for (int unit = 0; unit < UNITS; unit++)
        record[unit] = n;
}

static void check(uint32_t const *record, uint32_t n)
{
    for (int unit = 0; unit < UNITS; unit++)
        RL_ASSERT(record[unit] == n);
}

static void push_one(lbd_ring_end *end, uint32_t n)
{
    uint32_t record[UNITS];

    fill(record, n);
    while (lbd_ring_push(end, record, 1) == 0) {
        RL_ASSERT(!lbd_ring_garbage(end));
        rl::yield(1, $);
    }
}

/* -- Scenarios ------------------------------------------------------------------------------------------- */

/* Producer: by copy and in place, one and two at a time. Consumer: by copy and in place. Nobody sleeps. */
struct flow : rl::test_suite<flow, 2> {
    shared_ring ring;

    void before() { ring.make(); }
    void thread(unsigned index)
    {
        lbd_ring_end end;

        ring.attach(&end, index == 0);
        if (index == 0)
            produce(&end);
        else
            consume(&end);
    }
    void produce(lbd_ring_end *end)
    {
        uint32_t record[UNITS];

        for (uint32_t n = 0; n < records_total;) {
            uint32_t room = lbd_ring_room(end, rl::rand(2) + 1);

            RL_ASSERT(!lbd_ring_garbage(end) && room <= CAPACITY);
            if (room > records_total - n)
                room = records_total - n;
            if (room == 0) {
                push_one(end, n++);
                continue;
            }
            for (uint32_t i = 0; i < room; i++) {
                fill(record, n + i);
                LBD_PUT(lbd_ring_slot(end, i), record, (uint32_t)UNITS);
            }
            lbd_ring_publish(end, room);
            n += room;
        }
    }
    void consume(lbd_ring_end *end)
    {
        uint32_t records[CAPACITY * UNITS];

        for (uint32_t n = 0; n < records_total;) {
            int ready = rl::rand(2) ? lbd_ring_ready(end) : lbd_ring_peek(end, records, CAPACITY);

            RL_ASSERT(ready >= 0 && ready <= CAPACITY);
            for (int i = 0; i < ready; i++) {
                LBD_TAKE(records, lbd_ring_front(end, i), (uint32_t)UNITS);
                check(records, n + i);
            }
            if (ready > 0)
                lbd_ring_release(end, ready);
            else
                rl::yield(1, $);
            n += ready;
        }
    }
};

/* The consumer dies between copy and release, its successor attaches: the unreleased records come again, in
 * order, and nothing else does. */
struct consumer_dies : rl::test_suite<consumer_dies, 3> {
    shared_ring ring;
    rl::generic_event death; /* what a pidfd tells */
    uint32_t released;       /* written by the first consumer, read by the second after its death */

    void before()
    {
        ring.make();
        death.init(false, false, $);
        released = 0;
    }
    void after() { death.deinit($); }
    void thread(unsigned index)
    {
        lbd_ring_end end;

        if (index == 0) {
            ring.attach(&end, true);
            for (uint32_t n = 0; n < records_total; n++)
                push_one(&end, n);
        } else if (index == 1) {
            ring.attach(&end, false);
            released = consume(&end, 0, rl::rand(records_total));
            death.set($);
        } else {
            death.wait(false, false, $);
            ring.attach(&end, false);
            consume(&end, released, records_total);
        }
    }
    /* up to `last`, then one more copy without a release */
    uint32_t consume(lbd_ring_end *end, uint32_t n, uint32_t last)
    {
        uint32_t record[UNITS];
        int taken;

        while (n < last) {
            taken = lbd_ring_pop(end, record, 1);
            RL_ASSERT(taken >= 0);
            if (taken)
                check(record, n++);
            else
                rl::yield(1, $);
        }
        if (lbd_ring_peek(end, record, 1) == 1)
            check(record, n);
        return n;
    }
};

/* The producer dies with filled but unpublished slots, its successor attaches: none of them is ever seen. */
struct producer_dies : rl::test_suite<producer_dies, 3> {
    shared_ring ring;
    rl::generic_event death;
    uint32_t published;

    void before()
    {
        ring.make();
        death.init(false, false, $);
        published = 0;
    }
    void after() { death.deinit($); }
    void thread(unsigned index)
    {
        uint32_t record[UNITS];
        lbd_ring_end end;

        if (index == 0) {
            uint32_t const last = rl::rand(records_total);

            ring.attach(&end, true);
            for (published = 0; published < last; published++)
                push_one(&end, published);
            fill(record, 0xdead);
            for (uint32_t i = 0; i < lbd_ring_room(&end, CAPACITY); i++)
                LBD_PUT(lbd_ring_slot(&end, i), record, (uint32_t)UNITS);
            death.set($);
        } else if (index == 1) {
            death.wait(false, false, $);
            ring.attach(&end, true);
            for (uint32_t n = published; n < records_total; n++)
                push_one(&end, n);
        } else {
            ring.attach(&end, false);
            for (uint32_t n = 0; n < records_total;) {
                int taken = lbd_ring_pop(&end, record, 1);

                RL_ASSERT(taken >= 0);
                if (taken)
                    check(record, n++);
                else
                    rl::yield(1, $);
            }
        }
    }
};

/* The consumer sleeps whenever the ring is empty. A lost wake-up is a deadlock. */
struct sleep_one : rl::test_suite<sleep_one, 2> {
    shared_ring ring;
    rl::generic_event eventfd;

    void before()
    {
        ring.make();
        eventfd.init(false, false, $);
    }
    void after() { eventfd.deinit($); }
    void thread(unsigned index)
    {
        uint32_t record[UNITS];
        lbd_ring_end end;

        ring.attach(&end, index == 0);
        if (index == 0) {
            if (lbd_ring_must_wake(&end))
                eventfd.set($);
            for (uint32_t n = 0; n < records_total; n++) {
                push_one(&end, n);
                if (lbd_ring_must_wake(&end))
                    eventfd.set($);
            }
            return;
        }
        for (uint32_t n = 0; n < records_total;) {
            if (lbd_ring_pop(&end, record, 1)) {
                check(record, n++);
            } else if (lbd_ring_sleep_begin(&end)) {
                eventfd.wait(false, false, $);
                lbd_ring_sleep_end(&end);
            }
        }
    }
};

/* The producer dies between taking the sleeping flag and writing the eventfd: its successor's first must_wake
 * makes up for it. */
struct waker_dies : rl::test_suite<waker_dies, 3> {
    shared_ring ring;
    rl::generic_event eventfd, death;

    void before()
    {
        ring.make();
        eventfd.init(false, false, $);
        death.init(false, false, $);
    }
    void after()
    {
        eventfd.deinit($);
        death.deinit($);
    }
    void thread(unsigned index)
    {
        uint32_t record[UNITS];
        lbd_ring_end end;

        if (index == 0) {
            ring.attach(&end, true);
            end.kick = 0; /* it did that long ago */
            push_one(&end, 0);
            lbd_ring_must_wake(&end); /* and never gets to the eventfd */
            death.set($);
        } else if (index == 1) {
            death.wait(false, false, $);
            ring.attach(&end, true);
            if (!kick)
                end.kick = 0;
            if (lbd_ring_must_wake(&end))
                eventfd.set($);
        } else {
            ring.attach(&end, false);
            while (!lbd_ring_pop(&end, record, 1))
                if (lbd_ring_sleep_begin(&end)) {
                    eventfd.wait(false, false, $);
                    lbd_ring_sleep_end(&end);
                }
            check(record, 0);
        }
    }
};

/* Two producers, two rings, one consumer with one word for both. */
struct sleep_many : rl::test_suite<sleep_many, 3> {
    shared_ring rings[2];
    lbd_atomic_u32 sleeping;
    rl::generic_event eventfd;

    void before()
    {
        rings[0].make();
        rings[1].make();
        sleeping.store(0, rl::mo_relaxed, $);
        eventfd.init(false, false, $);
    }
    void after() { eventfd.deinit($); }
    void thread(unsigned index)
    {
        if (index < 2)
            produce(index);
        else
            consume();
    }
    void produce(unsigned index)
    {
        lbd_ring_end end;

        rings[index].attach(&end, true);
        lbd_ring_wake_word(&end, &sleeping);
        end.kick = 0; /* the wake-up after attach would hide what is to be shown */
        for (uint32_t n = 0; n < records_total; n++) {
            push_one(&end, n);
            if (lbd_ring_must_wake(&end))
                eventfd.set($);
        }
    }
    void consume()
    {
        uint32_t record[UNITS], seen[2] = {0, 0};
        lbd_ring_end ends[2];

        for (int i = 0; i < 2; i++) {
            rings[i].attach(&ends[i], false);
            lbd_ring_wake_word(&ends[i], &sleeping);
        }
        for (;;) {
            for (int i = 0; i < 2; i++)
                while (lbd_ring_pop(&ends[i], record, 1))
                    check(record, seen[i]++);
            if (seen[0] + seen[1] == 2 * records_total)
                return;
            lbd_sleep_begin(&sleeping);
            if (lbd_ring_idle(&ends[0]) && lbd_ring_idle(&ends[1]))
                eventfd.wait(false, false, $);
            lbd_sleep_end(&sleeping);
        }
    }
};

/* -- Command line ---------------------------------------------------------------------------------------- */

static int usage(char const *what)
{
    std::cerr << "ring_relacy: " << what << "\n";
    return 2;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return usage("SCENARIO WEAKENING RECORDS random|bound NUMBER");
    std::string const scenario = argv[1], weak = argv[2], search = argv[4];
    unsigned long const number = std::strtoul(argv[5], 0, 10);
    rl::test_params params;
    std::ostream silent(0);

    if (weak == "publish")
        publish_order = rl::mo_relaxed;
    else if (weak == "see")
        see_order = rl::mo_relaxed;
    else if (weak == "free")
        free_order = rl::mo_relaxed;
    else if (weak == "see_free")
        see_free_order = rl::mo_relaxed;
    else if (weak == "sleep_fence")
        sleep_fence = false;
    else if (weak == "wake_fence")
        wake_fence = false;
    else if (weak == "kick")
        kick = false;
    else if (weak != "none")
        return usage("no such weakening");

    records_total = std::strtoul(argv[3], 0, 10);
    if (search == "random") {
        params.search_type = rl::sched_random;
        params.iteration_count = number;
    } else if (search == "bound") {
        params.search_type = rl::sched_bound;
        params.context_bound = number;
    } else {
        return usage("no such search");
    }
    params.output_stream = &std::cout; /* NB: no stringstream, relacy would let it grow in a fiber's heap */
    params.progress_stream = &silent;
    params.execution_depth_limit = 10000;
    if (scenario == "flow")
        rl::simulate<flow>(params);
    else if (scenario == "consumer_dies")
        rl::simulate<consumer_dies>(params);
    else if (scenario == "producer_dies")
        rl::simulate<producer_dies>(params);
    else if (scenario == "sleep_one")
        rl::simulate<sleep_one>(params);
    else if (scenario == "waker_dies")
        rl::simulate<waker_dies>(params);
    else if (scenario == "sleep_many")
        rl::simulate<sleep_many>(params);
    else
        return usage("no such scenario");
    std::cout << "RESULT " << rl::test_result_str(params.test_result) << " in iteration "
              << params.stop_iteration << "\n";
    return params.test_result != rl::test_result_success;
}
