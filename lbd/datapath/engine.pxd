# The engine: pointers to one worker's tables, its settings, and the scratch space of a burst. Plain memory: the same struct stands
# over shared segments (worker), private memory (replay, tests, fuzzer, benchmarks).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.flow cimport Tuple
from lbd.datapath.svc cimport Svc, SvcStat, Dest, Lip, LipStat
from lbd.datapath.template cimport Template
from lbd.datapath.neigh cimport Iface, Adj
from lbd.datapath.fib cimport Route
from lbd.datapath.tunnel_end cimport TunnelEnd
from lbd.datapath.conn cimport ConnTable
from lbd.datapath.timer cimport Timer
from lbd.datapath.count cimport Counters
from lbd.datapath.frag cimport FragTable

cdef struct TokenBucket:        # `rate` per second, a burst of a tenth of it
    uint64_t rate
    uint64_t credit_ns          # time saved up, at most 0.1 s
    uint64_t last_ns

cdef struct Due:                # a packet that is not counted yet (tally.pxd), valid within a burst
    uint16_t svc
    uint16_t dest
    uint16_t direction
    uint16_t bytes

cdef struct Plan:               # of a connection to be opened (open.pxd), valid within a burst
    Tuple back                  # what its answers will carry
    uint64_t hash               # of that
    uint32_t dest
    uint32_t lip                # LIP_NONE: no guess
    uint32_t mode               # SvcMode of the connection
    uint32_t isn                # TCP: the client's first sequence number
    uint32_t over               # ref of the connection in TIME_WAIT whose port it takes, or REF_NONE
    uint32_t over_af            # in which table

cdef struct ConnExt:            # 32 bytes; extension of a connection record (ext.pxd), in the connection file
    uint32_t ref                # record number << 1 | (IPv6), or EXT_FREE
    uint32_t next               # of the free ones, 0 = end
    uint32_t delta[2]           # added to the sequence numbers of the client, of the real server
    uint32_t untimed            # 1: the client's SYN goes without its timestamp option
    uint32_t reserved[3]

cdef enum:
    CHAIN_MAX = 18              # frames of a packet: what Linux sends in one (MAX_SKB_FRAGS, and the first)

cdef struct Chain:              # the further frames of a packet, valid within a burst (chain.pxd)
    const uint8_t *end          # where the packet's part of the first frame ends
    uint8_t *data[17]
    uint32_t len[17]
    uint32_t n

cdef enum:
    EXT_FREE = 0xffffffff
    EXT_SHARE = 16              # one extension for so many connections
    DEST_HASH = 1024            # buckets of the real servers by address and port
    VIP_HASH = 1024             # of the services by address
    QUIC_HASH = 4096            # of those that have an id in QUIC's connection ids

cdef struct Engine:
    # tables; `max_*` are their sizes
    Svc *svc
    SvcStat *svc_stat
    uint32_t *svc_hash          # heads: number + 1
    Dest *dest
    SvcStat *dest_stat
    Lip *lip
    LipStat *lip_stat
    Iface *iface
    Adj *adj
    uint32_t *adj_hash
    Route *route
    TunnelEnd *tunnel
    uint32_t *route_hash
    uint32_t *arena             # scheduling tables (host segment, read only here)
    uint8_t *owner              # [2][OWNER_BUCKETS] (host segment, read only here), by epoch & 1, as the next three
    Template *template          # [workers][max_template] (host segment): each writes its own part, see template.pxd
    uint8_t *taken              # taken.pxd (host segment)
    uint64_t *hash_key          # 4 words (host segment)
    uint8_t *rss_key            # [2][64]
    SvcStat *peer_dest_stat[16]     # other workers' dest statistics, for least-connection schedulers; NULL = none
    Counters *count
    uint32_t *fib_gen           # in the worker's head, shared with the master's eyes
    uint32_t max_svc
    uint32_t max_dest
    uint32_t max_lip
    uint32_t svc_hash_mask
    uint32_t arena_slots
    uint32_t max_template       # of each worker, a power of two; 0: no persistence
    uint32_t worker             # own number
    uint32_t workers
    uint32_t rss_known[2]
    uint32_t rss_udp_ports[2]
    uint32_t epoch              # the lowest bit of that in force
    uint32_t owner_prev_valid
    uint32_t taken_valid        # 1: `taken` tells all that the previous epoch's owners have
    # connections
    ConnTable t4
    ConnTable t6
    Timer w4
    Timer w6
    ConnExt *ext                # number 0 is none
    uint32_t ext_n
    uint32_t ext_free           # first of the free ones, 0 = none
    FragTable *frags            # fragmented datagrams under way (private)
    # settings
    uint8_t fast[16]            # by interface: Lane of fast.pxd
    uint32_t timeout[16]        # ms by TcpState
    uint32_t oneway_least       # ms: the least of services' own UDP timeouts that ever was
    uint32_t oneway_step        # ms: see oneway_step of lifetime.pxd; 0 until the timers are looked at
    uint32_t frag_timeout       # ms
    uint32_t verify_csum
    uint32_t partial            # bit by interface: checksums of what comes by it may be partial
    uint32_t fast_off           # for tests: everything goes the general way
    uint32_t return_route
    uint32_t port_rest          # ms that a local port rests in TIME_WAIT before it may be reused
    TokenBucket icmp_bucket
    TokenBucket kernel_bucket
    # mirrored addresses in use, for quick walks
    uint16_t lip4[1024]
    uint16_t lip6[1024]
    uint32_t lip4_n
    uint32_t lip6_n
    uint32_t lip4_all           # with those of SNAT pools, which come after FULLNAT's lip4_n
    uint32_t lip6_all
    uint32_t lip_cursor
    uint32_t dest_hash[1024]    # heads: number + 1
    uint32_t vip_hash[1024]     # the same
    uint32_t quic_hash[4096]    # heads: number + 1
    uint32_t dests              # real servers
    uint32_t nat_services       # services of mode NAT
    uint32_t nat_gone           # a service or real server of mode NAT is none any more, and may still have connections
    uint32_t any_services       # of port 0
    uint32_t one_packet_services
    uint32_t one_packet_last    # service that the last datagram of such was for
    uint32_t tunnel_services
    uint32_t echo_services      # of ICMP
    uint32_t persist_services
    uint32_t template_hand      # where the search for templates that are over goes on
    uint16_t client_adj         # way back to the sender of the last packet that opened a connection, or needed none
    uint32_t nat64              # there is or was a NAT64 connection: IPv4 misses may be found in the IPv6 table
    uint16_t ip_id              # identification of the last IPv4 packet made (NAT64)
    uint16_t snat[32]           # service numbers of the SNAT rules, in their order (snat.pxd)
    uint32_t snat_n
    uint32_t snat_by_out        # a rule asks for the interface of the way out
    uint32_t tunnel_n           # tunnels that end here
    TunnelEnd *tunnel_of        # of the packet that was taken out of one last, while it is parsed
    uint8_t gue[8192]           # a bit for each UDP port (network order) that a real server's GUE tunnel has, or had
    uint32_t plen4[33]          # routes per prefix length
    uint32_t plen6[129]
    uint32_t adj_free           # search hint
    uint32_t route_free
    # neighbours wanted: small ring of adjacency numbers, emptied by the adapter
    uint16_t wanted[64]
    uint32_t wanted_n
    uint32_t lip_exhausted_n    # events for the adapter to report, then zeroed
    uint32_t lip_exhausted
    uint32_t table_full_n
    # connections to be ended (ending.pxd)
    uint32_t ending_left        # records of both tables still to be looked at; more than there are: all
    uint32_t ending_side        # ends of the one at hand that were told
    # the burst at hand
    uint64_t now_ns
    uint32_t now_ms
    Tuple tuple[64]
    uint64_t hash[64]
    uint8_t kind[64]
    Chain chain[65]             # of packets in several frames; the adapter's
    uint32_t hand[64]           # what one worker tells the other with a hand-over (persist.pxd); the adapter's: 0 between bursts
    uint64_t far_hash[64]       # IPv4 packets that missed, while nat64: of the mapped tuple,
    uint32_t far_ref[64]        # and the candidate in the IPv6 table,
    uint32_t far_probed         # if stage_probe has looked
    uint32_t ports_met          # so many connections more have their ports looked at in advance, since one was in use
    uint32_t due_n
    Due due[64]
    uint8_t later[64]           # packets without a connection, in order
    uint8_t step[64]            # of each of them: Step
    Plan plan[64]
