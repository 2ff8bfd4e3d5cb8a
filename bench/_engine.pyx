# SPDX-License-Identifier: Apache-2.0
"""A worker's loop in memory: the shipped turn over AF_XDP rings that this process plays the kernel for, and the floor beside it.

`Bench` lends an offline Engine a Loop (lbd/loop/state.pxd) with one port, whose rings are plain memory, and times passes of a batch
of frames. Nothing of what a worker does is written anew: `turn_receive` (descriptor → engine → transmit descriptor) or, whole,
`turn` (also reclaim and refill); then commands, timers once a millisecond, counters and the clock, as in `worker_loop`. What is
left out is the kernel: DMA, and system calls (none is made: as zero-copy without need_wakeup).

Frames are written before the clock starts, as a NIC would; they come from the cache (8,192 frames, 2 KiB apart).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
cimport cython

from lbd._fastpath cimport Engine
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_prefetch, lbd_prefetchw, lbd_scale
from lbd.datapath.command cimport Cmd
from lbd.datapath.conn cimport Bucket, ConnCold, ConnTable, conn_tuple
from lbd.datapath.engine cimport Engine as CEngine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.lifetime cimport engine_expire, table_of
from lbd.loop.frames cimport frames_collect
from lbd.loop.state cimport EXPIRE_BUDGET, Loop, lbd_load32_acquire, lbd_monotonic, lbd_store32_release
from lbd.loop.turn cimport turn, turn_end, turn_receive, turn_tend
from lbd.shm.attach cimport RETURN_ENTRY, hand_ring_off, return_ring_off, round_up
from lbd.shm.huge cimport HUGE_PAGE, huge_zeroed
from lbd.shm.layout cimport CAPTURE_SLOT, CHUNK, CHUNK_SHIFT, FRAME_WORK, Ctl, Evt, Hand, HostCtl, QueueStat
from lbd.shm.ring cimport lbd_ring_attach, lbd_ring_bytes, lbd_ring_end, lbd_ring_ready, lbd_ring_release
from lbd.xdp.libxdp cimport xdp_desc, xsk_ring_cons, xsk_ring_prod
from lbd.xdp.port cimport Port

import math
import os

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    /* functions of their own, with symbols: callgrind counts from the first instruction of bench_counted to its last */
    __attribute__((noinline, noclone, used)) int bench_measured(void *);
    __attribute__((noinline, noclone, used)) int bench_counted(void *);
    #ifdef __AVX512F__
    #define BENCH_AVX512 1
    #else
    #define BENCH_AVX512 0
    #endif
    #ifdef __AVX2__
    #define BENCH_AVX2 1
    #else
    #define BENCH_AVX2 0
    #endif
    #ifdef __SANITIZE_ADDRESS__
    #define BENCH_ASAN 1
    #else
    #define BENCH_ASAN 0
    #endif
    #define bench_thread_clock() lbd_clock(CLOCK_THREAD_CPUTIME_ID)
    #define bench_read(p) (*(const volatile uint8_t *)(p))
    """
    uint8_t bench_read(const uint8_t *) noexcept
    void *aligned_alloc(size_t, size_t)
    uint64_t bench_thread_clock() noexcept
    const char *bench_compiler "__VERSION__"
    int bench_avx2 "BENCH_AVX2"
    int bench_avx512 "BENCH_AVX512"
    int bench_asan "BENCH_ASAN"
    int bench_cython "CYTHON_HEX_VERSION"

cdef enum:
    BATCH = 8192                # frames of a pass, at most
    AWAY_NS = 20000             # a word read in more time was not in this machine's memory
    HEADROOM = 256              # XDP's

include "traffic.pxi"
include "floor.pxi"
include "port.pxi"

cdef struct Run:                # one pass
    Loop *loop
    uint32_t packets
    uint32_t burst
    uint32_t whole              # 1: `turn`; 0: receive to transmit descriptor alone
    uint32_t handed             # 1: all goes on to another worker, so that nothing is sent from here
    uint32_t step_ns            # 0: the clock is read after each turn; else it goes on by this much
    uint64_t ahead_ns           # by which the loop's clock is ahead of CLOCK_MONOTONIC
    uint64_t skip_ns            # more of that with each turn
    uint32_t tick
    uint32_t turns
    uint32_t *wall              # ns of each turn, or NULL
    uint32_t *cpu               # the same by this thread's processor time
    uint32_t kept               # room in both
    uint32_t counted            # passes under callgrind's eyes


cdef inline void offer(Port *port, uint32_t n, bint reclaimed) noexcept nogil:
    """The kernel's part: n packets have come in; what was sent is complete, and n frames lie in the completion ring, if somebody
    takes them from there."""
    port.rx.producer[0] += n
    port.tx.consumer[0] = port.tx.cached_prod
    if reclaimed:
        port.comp.producer[0] += n


cdef inline uint64_t clock_after(const Run *r, uint64_t before) noexcept nogil:
    return before + r.step_ns if r.step_ns else lbd_monotonic() + r.ahead_ns


cdef uint32_t touch_all(const uint8_t *p, size_t size) noexcept nogil:
    """Reads a word of each huge page; returns how many were away."""
    cdef size_t at, pages = round_up(size, HUGE_PAGE) // HUGE_PAGE
    cdef uint64_t start
    cdef uint32_t n = 0
    for at in range(pages):
        start = lbd_monotonic()
        bench_read(p + at * HUGE_PAGE)
        n += lbd_monotonic() - start > AWAY_NS
    return n


cdef inline void turn_around(Run *r, uint32_t n) noexcept nogil:
    """One round of worker_loop (lbd/loop/turn.pxd), by another clock."""
    cdef Loop *loop = r.loop
    cdef uint64_t before = loop.now
    if r.whole:
        turn(loop)
    else:
        turn_receive(loop, &loop.port[0])
    turn_tend(loop, &r.tick)
    turn_end(loop, n, clock_after(r, before))


cdef public int bench_measured(void *run) noexcept nogil:
    cdef Run *r = <Run *> run
    cdef uint32_t done = 0, n
    cdef uint64_t start = 0, cpu = 0
    while done < r.packets:
        n = r.packets - done if r.packets - done < r.burst else r.burst
        if r.step_ns:
            r.loop.now += r.skip_ns
        else:
            r.ahead_ns += r.skip_ns
        if r.wall != NULL:
            cpu = bench_thread_clock()
            start = lbd_monotonic()
        offer(&r.loop.port[0], n, r.whole and not r.handed)
        turn_around(r, n)
        if r.wall != NULL and r.turns < r.kept:
            r.wall[r.turns] = <uint32_t> (lbd_monotonic() - start)
            r.cpu[r.turns] = <uint32_t> (bench_thread_clock() - cpu)
        r.turns += 1
        done += n
    return 0


cdef public int bench_counted(void *run) noexcept nogil:
    cdef int rc = bench_measured(run)
    (<Run *> run).counted += 1      # after it, so that the call is no jump
    return rc


def build() -> dict:
    """What made this extension: instruction counts hold for the same alone."""
    return {"compiler": bench_compiler.decode(), "cython": f"{bench_cython >> 24}.{bench_cython >> 16 & 255}",
            "instructions": "avx512" if bench_avx512 else "avx2" if bench_avx2 else "baseline", "sanitized": bool(bench_asan)}


@cython.no_gc_clear
cdef class Bench:
    """engine: one with services 0 .. services-1 of this family and protocol at their addresses (`address`), all behind iface 0.

    The engine's state lives in this object's loop until it goes. step_ns: a clock that goes on by so much a turn, instead of the
    machine's. direct: real servers see and answer the clients' own addresses. far: the real servers' family, if it is another one
    (NAT64). clients: so many have the flows in turn; 0: one has as many as it has ports, then the next."""
    cdef Engine engine
    cdef CEngine *lent
    cdef Loop *loop
    cdef Run run
    cdef Frame *frames          # the pass to come
    cdef uint32_t *flow         # whose packets those are, number << 1 | from the real server
    cdef Back *back
    cdef int af
    cdef int far
    cdef uint8_t proto
    cdef uint32_t services
    cdef uint32_t clients
    cdef bint direct            # the real servers answer the clients' own addresses (all modes but FULLNAT)
    cdef uint32_t half          # of the two halves of the area, the one that is received into
    cdef uint32_t tx_first
    cdef uint64_t rng
    cdef lbd_ring_end slow
    cdef object null            # a descriptor that no system call finds a socket behind
    cdef readonly int flows     # opened and noted
    cdef readonly int planned

    def __cinit__(self, engine: Engine, af: int, proto: int = 6, services: int = 1, step_ns: int = 0, direct: bool = False,
                  far: int = 0, clients: int = 0):
        cdef Loop *loop = <Loop *> aligned_alloc(64, (sizeof(Loop) + 63) & ~63)
        if loop == NULL:
            raise MemoryError()
        memset(loop, 0, sizeof(Loop))
        self.loop = loop
        memcpy(&loop.e, engine.e, sizeof(CEngine))
        self.engine, self.lent = engine, engine.e
        engine.e = &loop.e
        self.af, self.proto, self.services, self.direct = af, proto, services, direct
        self.far, self.clients = far if far else af, clients
        self.frames = <Frame *> calloc(BATCH, sizeof(Frame))
        self.flow = <uint32_t *> calloc(BATCH, sizeof(uint32_t))
        loop.area = <uint8_t *> huge_zeroed(<size_t> 2 * BATCH * CHUNK)
        loop.ledger = <uint8_t *> calloc(2 * BATCH, 1)
        if self.frames == NULL or self.flow == NULL or loop.area == NULL or loop.ledger == NULL:
            raise MemoryError()
        loop.frames = loop.frames_total = 2 * BATCH
        loop.frame_shift = CHUNK_SHIFT
        loop.worker, loop.workers = loop.e.worker, loop.e.workers
        self.null = open(os.devnull, "rb")
        port_in_memory(loop, engine.seg, self.null.fileno())
        master_rings(loop, engine.seg, engine.host, &self.slow)
        self.run.step_ns = step_ns
        self.rng = 88172645463325252
        loop.now = 1 << 40 if step_ns else lbd_monotonic()
        loop.e.now_ns = loop.now
        loop.events_sent = loop.published = loop.now
        engine_expire(&loop.e, loop.now, EXPIRE_BUDGET)   # the timers begin here

    def __dealloc__(self):
        cdef Loop *loop = self.loop
        if loop == NULL:
            return
        if self.lent != NULL:
            memcpy(self.lent, &loop.e, sizeof(CEngine))
            self.engine.e = self.lent
        port_forget(&loop.port[0])
        for p in (<size_t> loop.area, <size_t> loop.ledger, <size_t> self.frames, <size_t> self.flow, <size_t> self.back,
                  <size_t> loop):
            free(<void *> <size_t> p)

    # --- what comes next -----------------------------------------------------------------------------------------------

    cdef uint32_t random(self) noexcept nogil:
        self.rng ^= self.rng << 13
        self.rng ^= self.rng >> 7
        self.rng ^= self.rng << 17
        return <uint32_t> (self.rng >> 32)

    cdef int family(self, bint back) noexcept nogil:
        """Of what the client, or the real server, sends."""
        return self.far if back else self.af

    cdef void ends(self, uint32_t flow, bint back, Ends *t) noexcept nogil:
        """Of a packet of this flow, from the client or from the real server."""
        cdef Ends c
        cdef uint32_t port = flow // self.clients if self.clients else flow % CLIENT_PORTS
        address_put(c.saddr, CLIENT, flow % self.clients if self.clients else flow // CLIENT_PORTS, self.af)
        address_put(c.daddr, SERVICE, flow % self.services, self.af)
        c.sport = lbd_bswap16(<uint16_t> (CLIENT_PORT + port))
        c.dport = lbd_bswap16(SERVICE_PORT)
        if not back:
            t[0] = c
            return
        address_put(t.saddr, SERVER, self.back[flow].server, self.far)
        t.sport = lbd_bswap16(SERVICE_PORT)
        if self.direct:
            memcpy(t.daddr, c.saddr, 16)
            t.dport = c.sport
            return
        address_put(t.daddr, LOCAL, self.back[flow].local, self.far)
        t.dport = self.back[flow].lport

    cdef uint32_t flow_at(self, uint32_t client, uint32_t port) noexcept nogil:
        return port * self.clients + client if self.clients else client * CLIENT_PORTS + port

    cdef void plan(self, uint32_t i, uint32_t flow, bint back, uint8_t flags) noexcept nogil:
        cdef Ends t
        cdef uint32_t own = ISN_SERVER if back else ISN_CLIENT
        cdef uint32_t other = ISN_CLIENT if back else ISN_SERVER
        self.flow[i] = flow << 1 | back
        self.ends(flow, back, &t)
        if self.proto != SCTP:                      # whose ends' tags don't change
            own += 0 if flags & SYN else 1
            other = other + 1 if flags & ACK else 0
        frame_write(self.frames + i, &t, self.family(back), self.proto, flags, own, other)

    def plan_known(self, n: int, flows: int, direction: int) -> None:
        """n packets of flows 0 .. flows-1 in random order; direction 0: from the clients, 1: from the real servers, 2: of both."""
        cdef uint32_t i, r, d = direction, count = n, of = flows
        if n > BATCH or (direction and flows > self.flows):
            raise ValueError("more packets than a batch, or flows that are not open")
        with nogil:
            for i in range(count):
                r = <uint32_t> ((<uint64_t> self.random() * of) >> 32)
                self.plan(i, r, d == 1 or (d == 2 and self.random() & 1), ACK)
        self.planned = n

    def plan_each(self, first: int, n: int, back: bool, flags: int) -> None:
        """A packet of each of n flows from `first` on, with these TCP flags."""
        cdef uint32_t i, f = first
        if n > BATCH or (back and first + n > self.flows):
            raise ValueError("more packets than a batch, or flows that are not open")
        for i in range(<uint32_t> n):
            self.plan(i, f + i, back, flags)
        self.planned = n

    def plan_scattered(self, first: int, of: int, at: int, n: int, flags: int) -> None:
        """The at-th and n-1 more from the clients of flows first .. first+of-1, in an order in which neighbours are far apart."""
        cdef uint32_t i
        cdef uint64_t f = first, m = of, stride = 0x9e3779b1
        if n > BATCH or math.gcd(of, stride) != 1:
            raise ValueError("more packets than a batch, or a number of flows that the stride divides")
        for i in range(<uint32_t> n):
            self.plan(i, <uint32_t> (f + (<uint64_t> at + i) * stride % m), False, flags)
        self.planned = n

    def plan_frames(self, frames: list) -> None:
        """These, over and over, until the batch is full."""
        for i in range(BATCH):
            data = frames[i % len(frames)]
            if len(data) > FRAME_MAX:
                raise ValueError(f"a frame of the benchmark has at most {FRAME_MAX} bytes")
            memcpy(self.frames[i].data, <const uint8_t *> data, len(data))
            self.frames[i].len = len(data)
        self.planned = BATCH

    def frames_planned(self) -> list:
        return [self.frames[i].data[:self.frames[i].len] for i in range(self.planned)]

    def note(self, n: int) -> int:
        """Notes what was chosen for flows 0 .. n-1, from the engine's records; returns how many were found."""
        cdef uint32_t i, flow, found = 0, of = n
        cdef uint32_t cap = table_of(&self.loop.e, self.af).capacity
        cdef Tuple t
        free(self.back)
        self.back = <Back *> huge_zeroed(<size_t> n * sizeof(Back))
        if self.back == NULL:
            raise MemoryError()
        with nogil:
            for i in range(cap):
                conn_tuple(table_of(&self.loop.e, self.af), i, 0, &t, self.af)
                flow = self.flow_at(address_number(t.saddr, CLIENT, self.af), lbd_bswap16(t.sport) - CLIENT_PORT)
                if t.proto != self.proto or flow >= of:
                    continue
                conn_tuple(table_of(&self.loop.e, self.af), i, 1, &t, self.af)
                self.back[flow].server = address_number(t.saddr, SERVER, self.af)
                self.back[flow].local = <uint16_t> address_number(t.daddr, LOCAL, self.af)
                self.back[flow].lport = t.dport
                found += 1
        self.flows = n
        return found

    # --- passes --------------------------------------------------------------------------------------------------------

    cdef void load(self, const Frame *frames, uint32_t n) noexcept nogil:
        """Writes these frames into one half of the area, the receive ring, and the other half into the completion ring."""
        cdef Loop *loop = self.loop
        cdef Port *p = &loop.port[0]
        cdef uint64_t *complete = <uint64_t *> p.comp.ring
        cdef uint32_t i
        cdef xdp_desc *d
        self.half ^= 1
        for i in range(n):
            d = (<xdp_desc *> p.rx.ring) + ((p.rx.producer[0] + i) & p.rx.mask)
            d.addr = (<uint64_t> (self.half * BATCH + i) << CHUNK_SHIFT) + HEADROOM
            d.len = frames[i].len
            memcpy(loop.area + d.addr, frames[i].data, FRAME_MAX)
            complete[(p.comp.producer[0] + i) & p.comp.mask] = <uint64_t> ((1 - self.half) * BATCH + i) << CHUNK_SHIFT
        p.fill.consumer[0] = p.fill.producer[0]
        p.tx.consumer[0] = p.tx.cached_prod
        self.tx_first = p.tx.cached_prod
        loop.free_n = 0

    def go(self, burst: int = 64, whole: bool = False, counted: bool = False, wall: object = None, cpu: object = None) -> int:
        """One pass of the planned frames; returns ns of this thread's time. counted: callgrind is to count it. wall, cpu: arrays of
        uint32 that get each turn's ns."""
        cdef uint64_t start
        cdef uint32_t[::1] w, c
        cdef Run *r = &self.run
        cdef bint seen = counted
        if whole and self.loop.workers > 1:
            raise ValueError("a whole turn of one of several workers: see Hop")
        r.loop, r.packets, r.burst, r.whole, r.turns = self.loop, self.planned, burst, whole, 0
        r.wall, r.cpu, r.kept = NULL, NULL, 0
        if wall is not None:
            w, c = wall, cpu
            r.wall, r.cpu, r.kept = &w[0], &c[0], min(len(wall), len(cpu))
        with nogil:
            self.load(self.frames, r.packets)
            if not r.step_ns:
                self.loop.now = lbd_monotonic() + r.ahead_ns
            start = bench_thread_clock()
            if seen:
                bench_counted(r)
            else:
                bench_measured(r)
            start = bench_thread_clock() - start
        lbd_ring_release(&self.slow, max(0, lbd_ring_ready(&self.slow)))
        return start

    def sent(self) -> int:
        """Transmit descriptors of the last pass."""
        return self.loop.port[0].tx.cached_prod - self.tx_first

    def pair(self, i: int) -> tuple:
        """The i-th frame of the last pass as it came and as it left; of a pass in which every packet was sent."""
        cdef xdp_desc *d = (<xdp_desc *> self.loop.port[0].tx.ring) + ((self.tx_first + <uint32_t> i) & self.loop.port[0].tx.mask)
        if self.sent() != self.planned or d.addr >> CHUNK_SHIFT != self.half * BATCH + <uint32_t> i:
            raise ValueError("not every packet was sent, or they left in another order")
        return self.frames[i].data[:self.frames[i].len], (self.loop.area + d.addr)[:d.len]

    def forward_clock(self, ns: int) -> None:
        """Sets the loop's clock ahead."""
        if self.run.step_ns:
            self.loop.now += <uint64_t> ns
        else:
            self.run.ahead_ns += <uint64_t> ns

    def expire(self, budget: int) -> None:
        if not self.run.step_ns:
            self.loop.now = lbd_monotonic() + self.run.ahead_ns
        engine_expire(&self.loop.e, self.loop.now, budget)

    def touch(self) -> int:
        """Reads a word of every 2 MiB of the connection tables. The host of a virtual machine takes away what was not used for some
        seconds, and gives it back with the next access, 60 to 480 µs later, of which the kernel here knows nothing. Returns how
        many pages were away."""
        cdef ConnTable *t
        cdef uint32_t n = 0
        cdef int af
        for af in (4, 6):
            t = table_of(&self.loop.e, af)
            n += touch_all(t.hot, <size_t> t.capacity * t.stride)
            n += touch_all(<const uint8_t *> t.cold, <size_t> t.capacity * sizeof(ConnCold))
            n += touch_all(<const uint8_t *> t.index, <size_t> (t.buckets + t.overflow) * sizeof(Bucket))
            n += touch_all(<const uint8_t *> t.free, <size_t> t.capacity * sizeof(uint32_t))
        return n

    def skip(self, ns: int) -> None:
        """From now on the clock goes ahead by so much with each turn."""
        self.run.skip_ns = <uint64_t> ns

    def flow_of(self, i: int) -> int:
        """Of the i-th planned packet: its flow's number."""
        return self.flow[i] >> 1

    def ends_of(self, i: int) -> tuple:
        """Of the i-th planned packet: came from the real server, and what it must leave with: (source, port, destination, port)."""
        cdef Ends t
        cdef bint back = self.flow[i] & 1
        n = 4 if self.family(not back) == 4 else 16
        self.ends(self.flow[i] >> 1, not back, &t)
        return back, t.daddr[:n], lbd_bswap16(t.dport), t.saddr[:n], lbd_bswap16(t.sport)


include "hop.pxi"
