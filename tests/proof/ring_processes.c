/* SPDX-License-Identifier: Apache-2.0
 *
 * Two real processes over lbd/shm/ring.h in a memfd, each killed (-9) at random moments and replaced once it
 * is known to be gone, as the master does with workers. A record carries its own index; so whatever the dead
 * left behind, a consumer must find at each index the record that belongs there. It sleeps in poll()
 * whenever the ring is empty: a time-out with a record in the ring is a lost wake-up. (A missing fence would
 * hardly ever show here: that is relacy's to prove.)
 *
 * usage: ring_processes KILLS SEED        exit status 0; 1 and a line on stderr if not
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "weaken.h"

#include "lbd/shm/ring.h"

enum { CAPACITY = 16, WORDS = 4, WAKE_MS = 5000 };

static void *memory;
static size_t memory_bytes;
static int event;

static void fail(const char *what)
{
    fprintf(stderr, "ring_processes: %s\n", what);
    _exit(1);
}

static void attach(struct lbd_ring_end *end, int producer)
{
    if (lbd_ring_attach(end, memory, memory_bytes, WORDS * 8, producer) != LBD_RING_OK)
        fail("attach refused");
}

static void wake(struct lbd_ring_end *end)
{
    uint64_t one = 1;

    if (lbd_ring_must_wake(end) && write(event, &one, sizeof one) != sizeof one)
        fail("eventfd");
}

static void produce(unsigned seed)
{
    struct lbd_ring_end end;

    attach(&end, 1);
    wake(&end);
    for (;;) {
        uint32_t room = lbd_ring_room(&end, 1 + (uint32_t)rand_r(&seed) % 5);

        for (uint32_t i = 0; i < room; i++)
            for (int w = 0; w < WORDS; w++)
                ((uint64_t *)lbd_ring_slot(&end, i))[w] = end.own + i;
        if (room > 0)
            lbd_ring_publish(&end, room);
        wake(&end);
        if (lbd_ring_garbage(&end))
            fail("producer saw garbage");
        if (rand_r(&seed) % 4 == 0)
            usleep((useconds_t)(rand_r(&seed) % 100)); /* lets the consumer run dry */
    }
}

static void consume(void)
{
    struct lbd_ring_end end;
    uint64_t record[WORDS], drained;

    attach(&end, 0);
    for (;;) {
        struct pollfd pollfd = {.fd = event, .events = POLLIN};
        int taken = lbd_ring_peek(&end, record, 1);

        if (taken < 0)
            fail("consumer saw garbage");
        if (taken == 1) {
            for (int w = 0; w < WORDS; w++)
                if (record[w] != end.own)
                    fail("a record in the wrong slot");
            lbd_ring_release(&end, 1);
        } else if (lbd_ring_sleep_begin(&end)) {
            if (poll(&pollfd, 1, WAKE_MS) == 0 && !lbd_ring_idle(&end))
                fail("a wake-up was lost");
            lbd_ring_sleep_end(&end);
            if (read(event, &drained, sizeof drained) < 0) {
                /* EAGAIN: a time-out, or a predecessor's wake-up */
            }
        }
    }
}

static pid_t start(int producer, unsigned seed)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (producer)
        produce(seed);
    else
        consume();
    return 0;
}

int main(int argc, char **argv)
{
    int kills = argc == 3 ? atoi(argv[1]) : 0, fd = memfd_create("ring", 0), status;
    unsigned seed = argc == 3 ? (unsigned)atoi(argv[2]) : 0;
    struct lbd_ring *ring;
    uint32_t before;
    pid_t pid[2];

    memory_bytes = lbd_ring_bytes(WORDS * 8, CAPACITY);
    event = eventfd(0, EFD_NONBLOCK);
    if (kills < 1 || fd < 0 || event < 0 || ftruncate(fd, (off_t)memory_bytes) != 0)
        return 2;
    memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED || lbd_ring_init(memory, WORDS * 8, CAPACITY) != LBD_RING_OK)
        return 2;
    ring = memory;
    ring->prod = ring->cons = UINT32_MAX - 1000;
    before = ring->cons;
    pid[0] = start(0, 0);
    pid[1] = start(1, seed);
    for (int n = 0; n < kills; n++) {
        int side = rand_r(&seed) % 2;

        usleep((useconds_t)(rand_r(&seed) % 5000));
        if (kill(pid[side], SIGKILL) != 0 || waitpid(pid[side], &status, 0) != pid[side])
            fail("kill");
        if (!WIFSIGNALED(status)) /* it said why */
            return 1;
        pid[side] = start(side, seed + (unsigned)n);
    }
    /* both alive: it goes on */
    for (int n = 0, left = CAPACITY; n < 5000 && left > 0; n++) {
        uint32_t cons = __atomic_load_n(&ring->cons, __ATOMIC_RELAXED);

        usleep(1000);
        left -= __atomic_load_n(&ring->cons, __ATOMIC_RELAXED) != cons;
        if (n == 4999)
            fail("stands still after the last kill");
    }
    for (int side = 0; side < 2; side++) {
        kill(pid[side], SIGKILL);
        waitpid(pid[side], &status, 0);
        if (!WIFSIGNALED(status))
            return 1;
    }
    printf("%d kills, %u records\n", kills, ring->cons - before);
    return 0;
}
