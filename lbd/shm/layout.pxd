# What processes share: the segments' layouts.
#
# Worker segment (memfd, sealed; written by its worker, and by the master in the command ring's producer line alone):
#     Ctl (page 0) | Svc[] SvcStat[] svc hash | Dest[] DestStat[] | Lip[] LipStat[] | Iface[LINK_MAX] QueueStat[16] | Adj[] hash |
#     Route[] hash | command ring | event ring | capture ring | slow-path ring
# Host segment (memfd, sealed): HostCtl | owner tables | scheduling-table arena (uint32 slots; the master writes, workers read) |
#     persistence templates [workers][templates] |
#     worker-to-worker rings: packets (16-byte entries) and returned frames (8-byte entries) for each ordered pair
# Area (memfd or hugetlb): frames [workers * frames_per_worker][frame_size] | ledger: one byte per frame
# Connection file (one per worker, in the run directory, mode 0600; outlives every process): ConnHead | records | index
#
# Every offset is from the start of the segment, kept in the head, and checked on attach: magic, version, layout hash, size.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.count cimport Counters, ExpireReason  # re-exported: Counters stand in the worker segment

cdef enum:
    SEG_MAGIC = 0x3144424c          # "LBD1"
    SEG_VERSION = 9
    CHUNK = 2048                    # frame size, bytes: the usual one; Sizes.frame_size is that in force
    CHUNK_SHIFT = 11
    CHUNK_LARGE = 4096              # the other one: a page, more than which the kernel does not take
    XDP_HEADROOM = 256              # of a frame, before what the kernel receives into it (XDP_PACKET_HEADROOM)
    CAPTURE_SLOT = 2048             # one capture or slow-path record: CaptureHead + bytes

# who may change it to what: the worker goes up the list; the master sets STARTING before a spawn
cdef enum WorkerState:
    WORKER_STARTING = 0
    WORKER_ATTACHING = 1            # repairs tables and frames
    WORKER_RUNNING = 2
    WORKER_STOPPING = 3
    WORKER_STOPPED = 4

cdef struct Sizes:                  # decided once by the master from the configuration; equal for all workers
    uint32_t workers
    uint32_t services
    uint32_t dests
    uint32_t lips
    uint32_t conns4                 # connections per worker
    uint32_t conns6
    uint32_t frames                 # per worker, power of two
    uint32_t arena                  # uint32 slots of scheduling tables in the host segment
    uint32_t cmd_ring               # entries, powers of two
    uint32_t evt_ring
    uint32_t capture_ring
    uint32_t hand_ring              # packets, per ordered pair of workers
    uint32_t templates              # persistence templates per worker, a power of two
    uint32_t frame_size             # bytes: CHUNK or CHUNK_LARGE
    uint32_t chains                 # 1: packets may lie in several frames (program and sockets are made for it)

cdef struct QueueStat:              # one per iface number: this worker's socket there; 128 bytes
    uint64_t rx_pkts
    uint64_t rx_bytes
    uint64_t tx_pkts
    uint64_t tx_bytes
    uint64_t tx_full                # packets dropped because the transmit ring stayed full
    uint64_t tx_kicks
    uint64_t tx_errors              # sendto() answers other than EAGAIN, EBUSY, ENOBUFS
    uint64_t rx_dropped             # struct xdp_statistics, read now and then
    uint64_t rx_invalid_descs
    uint64_t tx_invalid_descs
    uint64_t rx_ring_full
    uint64_t rx_fill_empty
    uint64_t tx_ring_empty
    uint32_t fill_level             # frames in the fill ring now
    uint32_t tx_outstanding         # frames given to the kernel, not yet completed
    uint32_t bound                  # 1: a socket is open, 2: zero-copy
    uint32_t spare[3]

cdef struct Ctl:                    # first page of a worker segment
    uint32_t magic                  # master
    uint32_t version                # master
    uint32_t layout_hash            # master: of Sizes and the struct sizes
    uint32_t worker                 # master: its number
    uint64_t bytes                  # master: of the whole segment
    Sizes sizes                     # master
    uint64_t off_svc                # offsets, bytes (master)
    uint64_t off_svc_stat
    uint64_t off_svc_hash
    uint64_t off_dest
    uint64_t off_dest_stat
    uint64_t off_lip
    uint64_t off_lip_stat
    uint64_t off_iface
    uint64_t off_queue
    uint64_t off_adj
    uint64_t off_adj_hash
    uint64_t off_route
    uint64_t off_route_hash
    uint64_t off_counters
    uint64_t off_cmd
    uint64_t off_evt
    uint64_t off_capture
    uint64_t off_slow
    uint64_t off_tunnel
    # written by the worker
    uint32_t pid
    uint32_t state                  # WorkerState
    uint64_t heartbeat_ns           # CLOCK_MONOTONIC, every turn of the loop (asleep: at least every 100 ms)
    uint64_t started_ns
    uint32_t gen_applied            # generation of the last command applied
    uint32_t fib_gen                # grows with every change of routes, neighbours or interfaces
    uint32_t poll_mode
    uint32_t sleeping               # 1 while it waits (turn.pxd); a producer that sees it writes the eventfd
    uint32_t burst_open             # received descriptors being worked on (rx not yet released); for repair after a crash
    uint32_t burst_iface
    uint32_t free_frames            # of its own partition, now
    uint32_t conns4                 # in use now
    uint32_t conns6
    uint32_t half_open
    uint32_t restarts               # master: how often the worker was started again
    uint32_t capture_points
    uint32_t adj_count
    uint32_t route_count
    uint32_t staged_hand[16]        # producer index of hand-over ring [to] once all that is written is published; for repair
    uint32_t staged_return[16]      # the same of the return rings
    uint64_t spare[16]

cdef struct HostCtl:                # first page of the host segment
    uint32_t magic
    uint32_t version
    uint32_t layout_hash
    uint32_t epoch                  # number of the owner table in force
    uint64_t bytes
    Sizes sizes
    uint64_t hash_key[4]            # secret of this host's connection hash, random at creation
    # Of two epochs, by the lowest bit of its number: the one in force, and the one before. The next is written over the latter.
    uint8_t rss_key[128]            # [2][64]: Toeplitz key of flow_owner: the NIC's where known, random otherwise
    uint32_t rss_known[2]           # 1: key and table are the NICs'
    uint32_t rss_udp_ports[2]       # 1: the NIC hashes UDP ports too
    uint64_t off_owner              # uint8 owner[2][OWNER_BUCKETS]
    uint64_t off_arena
    uint64_t off_template           # Template [workers][templates]
    uint64_t off_taken              # bits: taken.pxd
    uint64_t off_hand               # packet rings, [from][to]
    uint64_t hand_bytes             # of one
    uint64_t off_return             # frame rings, [from][to]
    uint64_t return_bytes
    uint32_t stopping               # master: VIPs are withdrawn
    uint32_t owner_prev_valid       # 1: ask the previous epoch's owner on a miss
    uint32_t sleeping[16]           # by worker: 1 while it waits; whoever gives it work clears it and writes its eventfd
    uint32_t taken_epoch            # the epoch in which off_taken's bits tell what the workers of before have
    uint32_t spare4
    uint64_t spare[5]

cdef enum:
    OWNER_BUCKETS = 1024

cdef struct Evt:                    # worker → master, 64 bytes
    uint16_t op                     # EvtOp
    uint16_t a
    uint32_t id
    uint64_t value
    uint8_t addr[16]
    uint8_t af
    uint8_t iface
    uint8_t spare[30]

cdef enum EvtOp:
    EVT_RUNNING = 1                 # attached, polling; value = connections recovered
    EVT_NEIGH_WANTED = 2            # a next hop without a MAC: af, addr, iface; value = its tags (link.pxd)
    EVT_LIP_EXHAUSTED = 3           # id = lip
    EVT_TABLE_FULL = 4
    EVT_BAD_COMMAND = 5             # id = op
    EVT_PEER_RESET = 6              # a ring's peer wrote garbage; id = ring

cdef struct CaptureHead:            # 32 bytes; the packet's bytes follow
    uint64_t ts_ns                  # CLOCK_REALTIME
    uint32_t len                    # on the wire
    uint16_t caplen
    uint8_t point                   # CapturePoint
    uint8_t iface
    uint8_t verdict
    uint8_t reason
    uint16_t svc
    uint16_t dest
    uint8_t worker
    uint8_t more                    # 1: the packet goes on in the next record (slow path)
    uint32_t seq

cdef struct Hand:                   # entry of a packet ring between workers, 16 bytes
    uint32_t frame                  # frame number in the area
    uint16_t off                    # first byte within the frame
    uint16_t len
    uint8_t ifin                    # iface it came in by; with kind TRANSMIT: iface it must leave by
    uint8_t kind                    # HandKind, HAND_MORE and HAND_REST
    uint8_t hops
    uint8_t flags                   # PktFlag
    uint32_t spare                  # Engine.hand: what is said with it

cdef enum HandKind:
    HAND_PROCESS = 0                # yours: look it up
    HAND_TRANSMIT = 1               # finished; send it, I have no queue there
    HAND_MORE = 64                  # flags: the packet goes on in the next entry,
    HAND_REST = 128                 # and is the last one's

cdef enum Owner:                    # ledger: who holds a frame
    # low half: who; high half: which iface (FILL, TX) or worker (WORK, HAND)
    FRAME_FREE = 0                  # its home worker's to take
    FRAME_FILL = 1                  # in a fill ring, the kernel, or an rx ring
    FRAME_WORK = 2                  # in this worker's hands
    FRAME_TX = 3                    # in a tx ring, the kernel or a completion ring
    FRAME_HAND = 4                  # in a ring to this worker; WORK from the moment that it takes it
    FRAME_HOME = 5                  # in a return ring, on its way home
