# All that one worker's loop holds: engine, sockets, rings, free frames. Private to the process; what outlives it lies in the
# segments.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.shm.layout cimport Ctl, HostCtl
from lbd.shm.ring cimport lbd_ring_end
from lbd.xdp.port cimport Port

cdef extern from * nogil:
    """
    #include <time.h>
    #include <poll.h>
    #include <sys/epoll.h>
    #include <unistd.h>
    #include <sys/eventfd.h>
    static inline uint64_t lbd_clock(clockid_t id)
    {
        struct timespec t;
        clock_gettime(id, &t);
        return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
    }
    #define lbd_monotonic() lbd_clock(CLOCK_MONOTONIC)
    #define lbd_realtime() lbd_clock(CLOCK_REALTIME)
    #define lbd_store32_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define lbd_load32_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define lbd_store64_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    """
    uint64_t lbd_monotonic() noexcept
    uint64_t lbd_realtime() noexcept
    void lbd_store32_release(uint32_t *, uint32_t) noexcept
    uint32_t lbd_load32_acquire(uint32_t *) noexcept
    void lbd_store64_relaxed(uint64_t *, uint64_t) noexcept
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd *, unsigned long, int) noexcept
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN
    uint32_t EPOLLET
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int epoll_create1(int) noexcept
    int epoll_ctl(int, int, int, epoll_event *) noexcept
    int epoll_wait(int, epoll_event *, int, int) noexcept
    int eventfd_write(int, uint64_t) noexcept
    int eventfd_read(int, uint64_t *) noexcept

cdef enum PollMode:
    POLL_BUSY = 0
    POLL_ADAPTIVE = 1
    POLL_INTERRUPT = 2

cdef enum:
    NO_WORKER = 0xff
    SLEEP_MS = 100              # longest sleep: the heartbeat's period when idle
    IDLE_TURNS = 512            # empty turns before an adaptive worker goes to sleep
    KICK_TRIES = 4              # sendto() calls per port and turn: copy mode sends 32 packets in each by default
    EXPIRE_BUDGET = 32          # timer entries looked at in a turn, of each list

cdef struct Loop:
    Engine e
    Pkt pkt[64]
    Port port[16]               # by iface number; fd < 0: none
    uint8_t port_list[16]       # iface numbers of the open ones
    uint32_t port_n
    uint8_t via[16]             # iface number → a worker that has a queue there, for those without (NO_WORKER)
    uint32_t bond_turn          # of bonds that send by their ports in turn
    Ctl *ctl
    HostCtl *host
    uint8_t *area
    uint8_t *ledger
    uint32_t free_n             # frames of this worker's partition that the ledger has as free
    uint32_t free_at            # where in it the next ones are looked for, a multiple of 8
    uint32_t free_end           # and where that begins anew (frames.pxd)
    uint32_t frames             # per worker
    uint32_t frames_total
    uint32_t frame_shift        # of an address in the area: the frame's number is left; port.pxd has the same
    uint32_t worker
    uint32_t workers
    lbd_ring_end cmd
    lbd_ring_end evt
    lbd_ring_end capture
    lbd_ring_end slow
    lbd_ring_end hand_out[16]   # [to]
    lbd_ring_end hand_in[16]    # [from]
    lbd_ring_end return_out[16]
    lbd_ring_end return_in[16]
    uint32_t hand_staged[16]    # entries written to hand_out[to], not yet published
    uint32_t return_staged[16]
    int wake_fd[16]             # by worker
    int epoll                   # by which a sleeping worker waits; -1: by poll() (turn.pxd)
    uint32_t poll_mode
    uint32_t idle
    uint32_t stop
    uint32_t overdue            # more is due than the last turn's look at the timers could end
    uint32_t capture_points
    uint32_t capture_snap
    uint32_t capture_svc
    uint32_t capture_seq
    uint32_t capture_staged
    uint64_t now
    uint64_t published          # when gauges and socket statistics were published last
    uint64_t events_sent
    uint32_t quit               # set by another thread of this process (atomic): leave the loop
