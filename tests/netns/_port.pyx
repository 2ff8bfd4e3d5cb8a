"""A bare forwarder over lbd/xdp/io.pxd, for test_xdp.py: what comes in by one port leaves by the other.

No engine, no master: an area (a memfd: frames | ledger | a page of QueueStat), two sockets' descriptors. Its
turn is the worker's (see io.pxd), its repair too, so that a kill -9 of a process in `run` tests both.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from lbd.shm.layout cimport CHUNK, FRAME_FILL, FRAME_FREE, FRAME_TX, FRAME_WORK, QueueStat
from lbd.xdp.io cimport (
    port_fill, port_kick, port_publish, port_reclaim, port_rx_peek, port_rx_release, port_statistics,
    port_tx_put, port_tx_submit, port_wake_rx,
)
from lbd.xdp.libxdp cimport xdp_desc, xsk_ring_cons__rx_desc
from lbd.xdp.port cimport (
    Port, PortRing, port_map, port_repair, port_ring_frames, port_rx_held, port_tx_held, port_unmap,
)

import os

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN
    int poll(pollfd *fds, unsigned long n, int timeout)

cdef enum:
    BATCH = 64
    STAT_PAGE = 4096


def area_bytes(frames):
    """Bytes of the memfd."""
    return frames * CHUNK + -(-frames // 4096) * 4096 + STAT_PAGE


cdef class Forwarder:
    cdef Port port[2]
    cdef uint8_t *base
    cdef uint64_t bytes
    cdef uint32_t frames
    cdef uint32_t free_n
    cdef uint32_t *free_list
    cdef uint32_t *scratch
    cdef readonly uint64_t refused      # put that failed

    def __init__(self, int area_fd, uint32_t frames, list fds, uint32_t ring, uint32_t worker=0):
        cdef Port *p
        cdef uint32_t i
        cdef int rc
        self.frames = frames
        self.bytes = area_bytes(frames)
        self.base = <uint8_t *>mmap(NULL, self.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, area_fd, 0)
        if <void *>self.base == MAP_FAILED:
            raise OSError("mmap")
        self.free_list = <uint32_t *>calloc(frames, sizeof(uint32_t))
        self.scratch = <uint32_t *>malloc(ring * sizeof(uint32_t))
        for i in range(2):
            p = &self.port[i]
            p.area = self.base
            p.ledger = self.base + frames * CHUNK
            p.frames_total = frames
            p.stat = (<QueueStat *>(self.base + self.bytes - STAT_PAGE)) + i
            p.iface = i
            p.work = FRAME_WORK | worker << 4
            rc = port_map(p, fds[i], ring, ring, ring, ring)
            if rc:
                raise OSError(-rc, os.strerror(-rc))

    def close(self):
        if self.base != NULL:
            port_unmap(&self.port[0])
            port_unmap(&self.port[1])
            munmap(self.base, self.bytes)
            free(self.free_list)
            free(self.scratch)
            self.base = NULL

    def repair(self):
        """What a successor does: staged frames are taken back, the free list is made anew."""
        cdef uint32_t i, back = 0
        cdef uint8_t *ledger = self.port[0].ledger
        for i in range(2):
            back += port_repair(&self.port[i], self.scratch)
        self.free_n = 0
        for i in range(self.frames):
            if ledger[i] == FRAME_FREE or ledger[i] == self.port[0].work:
                ledger[i] = FRAME_FREE
                self.free_list[self.free_n] = i
                self.free_n += 1
        return back

    cdef uint32_t turn(self, uint32_t i) noexcept nogil:
        cdef Port *p = &self.port[i]
        cdef Port *out = &self.port[1 - i]
        cdef uint32_t frames[BATCH]
        cdef xdp_desc burst[BATCH]
        cdef uint32_t k, idx = 0, n = port_rx_peek(p, BATCH, &idx)
        for k in range(n):
            burst[k] = xsk_ring_cons__rx_desc(&p.rx, idx + k)[0]
        if n:
            port_rx_release(p, n)
            p.stat.rx_pkts += n
        for k in range(n):
            if port_tx_put(out, burst[k].addr, burst[k].len, 0):
                out.stat.tx_pkts += 1
            else:
                out.stat.tx_full += 1
                self.give_back(<uint32_t>(burst[k].addr // CHUNK))
        port_tx_submit(out)
        port_kick(out, 4)
        for k in range(port_reclaim(out, frames, BATCH)):
            self.give_back(frames[k])
        k = BATCH if self.free_n > BATCH else self.free_n
        self.free_n -= port_fill(p, self.free_list + self.free_n - k, k) if port_room(p) >= k else 0
        port_wake_rx(p)
        return n

    cdef void give_back(self, uint32_t frame) noexcept nogil:
        self.port[0].ledger[frame] = FRAME_FREE
        self.free_list[self.free_n] = frame
        self.free_n += 1

    def forward(self):
        """One turn of both ports; packets received."""
        cdef uint32_t n
        with nogil:
            n = self.turn(0) + self.turn(1)
        return n

    def run(self):
        """For ever; sleeps up to a millisecond when there is nothing to do."""
        cdef pollfd wait[2]
        cdef uint32_t i
        for i in range(2):
            wait[i].fd = self.port[i].fd
            wait[i].events = POLLIN
        with nogil:
            while True:
                if self.turn(0) + self.turn(1) == 0:
                    poll(wait, 2, 1)

    def take(self, uint32_t n):
        """Frames off the free list, for a test to do as it likes with."""
        taken = []
        while n and self.free_n:
            self.free_n -= 1
            taken.append(self.free_list[self.free_n])
            n -= 1
        return taken

    def put(self, uint32_t i, addr, uint32_t length):
        return port_tx_put(&self.port[i], addr, length, 0)

    def submit(self, uint32_t i):
        return port_tx_submit(&self.port[i])

    def kick(self, uint32_t i, uint32_t tries=4):
        return port_kick(&self.port[i], tries)

    def reclaim(self, uint32_t i, uint32_t n=BATCH):
        cdef uint32_t frames[BATCH]
        n = port_reclaim(&self.port[i], frames, n if n < BATCH else BATCH)
        return [frames[k] for k in range(n)]

    def ring(self, uint32_t i, int which):
        """Frame numbers in one ring (PortRing)."""
        cdef Port *p = &self.port[i]
        cdef uint32_t n = port_ring_frames(p, <PortRing>which, self.scratch, p.fill.size)
        return [self.scratch[k] for k in range(n)]

    def held(self):
        """[(receive side, transmit side)] of the ports."""
        return [(port_rx_held(&self.port[i]), port_tx_held(&self.port[i])) for i in range(2)]

    def ledger(self):
        """{(owner, iface): frames}"""
        found = {}
        for i in range(self.frames):
            at = self.port[0].ledger[i]
            found[at & 15, at >> 4] = found.get((at & 15, at >> 4), 0) + 1
        return found

    def stat(self, uint32_t i):
        port_publish(&self.port[i])
        port_statistics(&self.port[i])
        return dict(self.port[i].stat[0])

    @property
    def free(self):
        return self.free_n


cdef inline uint32_t port_room(Port *p) noexcept nogil:
    """Fill entries that are free: a port takes all or nothing here, so that the free list stays a stack."""
    return p.fill.size - (p.fill.cached_prod - p.fill.consumer[0])


FILL, TX, FREE = FRAME_FILL, FRAME_TX, FRAME_FREE
