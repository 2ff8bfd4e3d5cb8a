/* SPDX-License-Identifier: Apache-2.0
 *
 * Two real threads over lbd/shm/ring.h, to be compiled with -fsanitize=thread: TSan follows the orders as the
 * source states them, so it reports a relaxed publish although x86 would never show it.
 *
 * usage: ring_threads RECORDS        exit status 0, 1 (a wrong record), 66 (TSan's: a race)
 *
 * No sleeping here: TSan knows no fences, and an eventfd orders what the ring should order. That is relacy's.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "weaken.h"

#include "lbd/shm/ring.h"

enum { CAPACITY = 64, WORDS = 4, BURST = 7 };

static _Alignas(LBD_RING_LINE) unsigned char memory[sizeof(struct lbd_ring) + CAPACITY * WORDS * 8];
static uint64_t total;

static void *produce(void *unused)
{
    struct lbd_ring_end end;
    uint64_t records[BURST][WORDS], n = 0;

    (void)unused;
    if (lbd_ring_attach(&end, memory, sizeof memory, sizeof records[0], 1) != LBD_RING_OK)
        abort();
    while (n < total) {
        uint32_t burst = n % BURST + 1, done;

        if (burst > total - n)
            burst = (uint32_t)(total - n);
        if (n % 2) {
            for (uint32_t i = 0; i < burst; i++)
                for (int w = 0; w < WORDS; w++)
                    records[i][w] = n + i;
            done = lbd_ring_push(&end, records, burst);
        } else {
            done = lbd_ring_room(&end, burst);
            for (uint32_t i = 0; i < done; i++)
                for (int w = 0; w < WORDS; w++)
                    ((uint64_t *)lbd_ring_slot(&end, i))[w] = n + i;
            lbd_ring_publish(&end, done);
        }
        n += done;
        if (done == 0)
            sched_yield();
    }
    return NULL;
}

static void *consume(void *wrong)
{
    struct lbd_ring_end end;
    uint64_t copy[BURST][WORDS], n = 0;

    if (lbd_ring_attach(&end, memory, sizeof memory, sizeof copy[0], 0) != LBD_RING_OK)
        abort();
    while (n < total) {
        int taken = n % 2 ? lbd_ring_peek(&end, copy, BURST) : lbd_ring_ready(&end);

        for (int i = 0; i < taken; i++) {
            const uint64_t *record = n % 2 ? copy[i] : (const uint64_t *)lbd_ring_front(&end, (uint32_t)i);

            for (int w = 0; w < WORDS; w++)
                *(uint64_t *)wrong += record[w] != n + (uint64_t)i;
        }
        if (taken < 0)
            abort();
        if (taken > 0)
            lbd_ring_release(&end, (uint32_t)taken);
        else
            sched_yield();
        n += (uint64_t)taken;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct lbd_ring *ring = (struct lbd_ring *)memory;
    pthread_t producer, consumer;
    uint64_t wrong = 0;

    total = argc == 2 ? strtoull(argv[1], NULL, 10) : 0;
    if (total == 0 || lbd_ring_init(memory, WORDS * 8, CAPACITY) != LBD_RING_OK)
        return 2;
    ring->prod = ring->cons = UINT32_MAX - 1000; /* wraps under way */
    pthread_create(&producer, NULL, produce, NULL);
    pthread_create(&consumer, NULL, consume, &wrong);
    pthread_join(producer, NULL);
    pthread_join(consumer, NULL);
    printf("%llu records, %llu wrong words\n", (unsigned long long)total, (unsigned long long)wrong);
    return wrong != 0;
}
