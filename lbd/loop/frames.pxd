# Frames: the free ones of this worker's partition, and the way home of everybody else's.
# The ledger byte is written so that a successor can always tell who holds a frame (lbd/xdp/port.pxd has the rules for the kernel's
# rings); an entry for another worker is written first, then the staged word, then the ledger, then it is published.
#
# Free is what the ledger says is free; there is no list. Frames are taken in the order of their addresses, on from where the last
# ones were, so that neighbours go to the kernel together whatever order they come back in: the core that receives then finds its
# record of the next frame fetched ahead, and two frames need one translation. From a stack, whose order is soon random, large
# packets take a twentieth longer (docs/performance.md).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_compiler_barrier, lbd_ld64, lbd_likely, lbd_st64, lbd_unlikely
from lbd.loop.state cimport Loop, eventfd_write
from lbd.shm.layout cimport FRAME_FILL, FRAME_FREE, FRAME_HOME, FRAME_HAND, FRAME_TX, FRAME_WORK
from lbd.shm.ring cimport (lbd_ring_end, lbd_ring_slot, lbd_ring_room, lbd_ring_publish, lbd_ring_must_wake, lbd_ring_ready,
                           lbd_ring_front, lbd_ring_release)


cdef enum:
    FREE_WINDOW = 512           # free frames that take part at a time: more of them are more lines than caches hold


cdef inline uint32_t lesser(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint32_t frame_of(Loop *l, const uint8_t *data) noexcept nogil:
    """The number of the frame that this lies in."""
    return <uint32_t> (<uint64_t> (data - l.area) >> l.frame_shift)


cdef inline uint32_t frame_home(Loop *l, uint32_t frame) noexcept nogil:
    return frame // l.frames


cdef inline uint32_t frames_take(Loop *l, uint32_t *frames, uint32_t n) noexcept nogil:
    """The next free frames, n at most, into this worker's hands: their numbers, and how many there are."""
    cdef uint32_t first = l.worker * l.frames, at = l.free_at, end = l.free_end, rounds = 0, found = 0, i
    cdef uint8_t mine = <uint8_t> (FRAME_WORK | l.worker << 4)
    cdef uint8_t *eight
    n = lesser(n, l.free_n)
    while found < n:
        if at >= end:
            # round again, and if that is not enough as far as there are frames
            end = l.frames if rounds else lesser(l.frames, l.frames - l.free_n + FREE_WINDOW)
            rounds += 1
            at = 0
            if rounds == 3:
                break
        eight = l.ledger + first + at
        if lbd_likely(n >= found + 8 and lbd_ld64(eight) == 0):      # FRAME_FREE
            # every other one first: a core that follows steps of one frame would fetch what the other one is about to write
            for i in range(8):
                frames[found + i] = first + at + ((i << 1 | i >> 2) & 7)
            lbd_st64(eight, mine * 0x0101010101010101ULL)
            found += 8
            at += 8
            continue
        for i in range(8):
            if eight[i] == FRAME_FREE and found < n:
                frames[found] = first + at + i
                eight[i] = mine
                found += 1
        if found < n:
            at += 8
    l.free_at = at
    l.free_end = end
    l.free_n -= found
    return found


cdef inline void frame_is_free(Loop *l, uint32_t frame) noexcept nogil:
    """One of this worker's partition."""
    l.ledger[frame] = FRAME_FREE
    l.free_n += 1


cdef inline void frames_send_home(Loop *l, const uint32_t *frames, uint32_t n, uint32_t home) noexcept nogil:
    """n frames of one home. A return ring holds every frame of its home: it can't be full."""
    cdef lbd_ring_end *r = &l.return_out[home]
    cdef uint32_t i, at = l.return_staged[home]
    cdef uint32_t room = lbd_ring_room(r, at + n)
    cdef uint64_t *slot
    if lbd_unlikely(room < at + n):
        l.e.count.events_lost += n          # a peer's garbage: the master resets the ring; the frames stay in the ledger
        return
    for i in range(n):
        slot = <uint64_t *> lbd_ring_slot(r, at + i)
        slot[0] = frames[i]
    l.return_staged[home] = at + n
    lbd_compiler_barrier()
    l.ctl.staged_return[home] = r.own + l.return_staged[home]
    lbd_compiler_barrier()
    for i in range(n):
        l.ledger[frames[i]] = FRAME_HOME


cdef inline void frame_free(Loop *l, uint32_t frame) noexcept nogil:
    """This worker is done with the frame."""
    cdef uint32_t home = frame_home(l, frame)
    if home == l.worker:
        frame_is_free(l, frame)
    elif home < l.workers:
        frames_send_home(l, &frame, 1, home)


cdef inline void frames_free(Loop *l, const uint32_t *frames, uint32_t n) noexcept nogil:
    """The same of n frames; most are its own, and for these there is no division."""
    cdef uint32_t i = 0, k, frame, home, first = l.worker * l.frames, own = l.frames, free = 0
    cdef uint8_t *ledger = l.ledger
    while i < n:
        frame = frames[i]
        if lbd_likely(frame - first < own):
            ledger[frame] = FRAME_FREE
            free += 1
            i += 1
            continue
        home = frame_home(l, frame)
        k = 1
        while i + k < n and frames[i + k] - home * own < own:
            k += 1
        if home < l.workers:
            frames_send_home(l, frames + i, k, home)
        i += k
    l.free_n += free


cdef inline void wake(Loop *l, uint32_t worker) noexcept nogil:
    if l.wake_fd[worker] >= 0:
        l.e.count.wakes += 1
        eventfd_write(l.wake_fd[worker], 1)


cdef inline void frames_publish(Loop *l) noexcept nogil:
    """Publishes what is staged for the other workers, and wakes those that sleep."""
    cdef uint32_t w
    for w in range(l.workers):
        if l.return_staged[w]:
            lbd_ring_publish(&l.return_out[w], l.return_staged[w])
            l.return_staged[w] = 0
            if lbd_ring_must_wake(&l.return_out[w]):
                wake(l, w)
        if l.hand_staged[w]:
            lbd_ring_publish(&l.hand_out[w], l.hand_staged[w])
            l.hand_staged[w] = 0
            if lbd_ring_must_wake(&l.hand_out[w]):
                wake(l, w)


cdef inline uint32_t frames_collect(Loop *l) noexcept nogil:
    """Own frames that other workers have sent home."""
    cdef uint32_t w, i, frame, total = 0
    cdef int n
    for w in range(l.workers):
        if w == l.worker:
            continue
        n = lbd_ring_ready(&l.return_in[w])
        if n <= 0:
            continue
        for i in range(<uint32_t> n):
            frame = (<const uint32_t *> lbd_ring_front(&l.return_in[w], i))[0]
            # seen before by a predecessor that was killed before the release: its ledger byte has moved on. (It can't have come to
            # be HOME again: a free frame is taken in turn_port, and a successor's first turn comes by here before that.)
            if frame < l.frames_total and frame_home(l, frame) == l.worker and l.ledger[frame] == FRAME_HOME:
                frame_is_free(l, frame)
        lbd_ring_release(&l.return_in[w], n)
        total += n
    return total


cdef inline void frames_of_gone(Loop *l, uint32_t port) noexcept nogil:
    """A port's sockets, of all workers, are closed for good: no ring will bring back the frames that they held. Those of this
    worker's partition are free. Repeated, it finds none."""
    cdef uint32_t i, first = l.worker * l.frames
    if port >= 16 or l.port[port].fd >= 0:
        return
    for i in range(first, first + l.frames):
        if l.ledger[i] == <uint8_t> (FRAME_FILL | port << 4) or l.ledger[i] == <uint8_t> (FRAME_TX | port << 4):
            frame_is_free(l, i)
