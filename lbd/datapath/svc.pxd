# Virtual services, real servers (dest) and local addresses (LIP): records in the worker's segment, written by command_apply
# alone (worker), read by the master. Statistics: written by the worker, plain 8-byte stores, read by anyone; never reset but by
# a record's creation, so that counters never go backwards.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t

cdef enum:
    SVC_NONE = 0xffff
    DEST_NONE = 0xffff
    LIP_NONE = 0xffff
    LIP_MAX = 1024          # local addresses of one family that are used; more are ignored
    SNAT_MAX = 32           # SNAT rules; more are ignored
    SNAT_ANY = 0xff         # no interface named

cdef enum SchedKind:        # how a worker uses the service's table of dest numbers (built by the master, in the host segment)
    SCHED_SEQ = 0           # rr, wrr: next slot in turn
    SCHED_HASH = 1          # mh, conhash: slot = keyless stable hash of the client % slots
    SCHED_LEAST = 2         # lc, wlc: scan the slots (one per dest) for the least connections / weight
    SCHED_SED = 3           # sed: the least (active + 1) / weight
    SCHED_NQ = 4            # nq: one without an active connection, else as sed
    SCHED_FIRST = 5         # fo: the first slot that can take it; the master sorts by weight
    SCHED_OVF = 6           # ovf: of those with at most `weight` active connections
    SCHED_SOURCE = 7        # sh: IPVS's hash of the client's address
    SCHED_DEST = 8          # dh: IPVS's hash of the destination's address
    SCHED_HOME = 9          # lblc: the server that the destination's address has its home on, or the least loaded
    SCHED_HOMES = 10        # lblcr: the least loaded of its homes
    SCHED_COUNT = 11

cdef enum SvcFlag:
    SVC_USED = 1
    SVC_HASH_PORT = 2       # SCHED_HASH, SCHED_SOURCE: the client's port takes part (sh-port, mh-port)
    SVC_LEAST_WEIGHTED = 4  # SCHED_LEAST: divide by weight (wlc)
    SVC_HASH_QID = 1024     # SCHED_HASH: QUIC's connection id instead of the client's address
    SVC_HASH_FALLBACK = 8   # SCHED_HASH, SCHED_SOURCE: another slot when the hashed one's server can't (sh-fallback, mh-fallback)
    SVC_PERSIST = 16        # clients keep their real server: persist.pxd
    SVC_ALIAS = 32          # no service of its own, but a further address of the one that `target` names
    SVC_ONE_PACKET = 64     # UDP: every datagram is scheduled: onepacket.pxd
    SVC_EXPIRE_NODEST = 256     # connections of a real server that was removed or is down end at their next packet
    SVC_EXPIRE_QUIESCENT = 512  # and those of one whose weight is 0

cdef enum SvcMode:          # forwarding mode; a connection keeps that of its first packet (ConnFlag)
    MODE_FULLNAT = 0        # client → LIP → real server: both addresses and ports
    MODE_NAT = 1            # masquerade: destination alone; answers come back by the real server's route
    MODE_DR = 2             # direct routing: link layer alone; answers go past lbd
    MODE_NAT64 = 4          # of connections alone: a FULLNAT service of IPv6 to an IPv4 real server
    MODE_SNAT = 5           # of rules alone (snat.pxd): their connections are FULLNAT's
    MODE_TUNNEL = 6         # behind another IP header; answers go past lbd
    MODE_BITS = 7           # all of them
    # what the numbers' bits say
    MODE_ONE_WAY = 2        # lbd sees the client's packets alone
    MODE_WRAPS = 4          # packets leave with more than their ends and link layer changed: not for the fast lane

cdef enum SnatProtocol:      # Svc.snat_protocols
    SNAT_TCP = 1
    SNAT_UDP = 2
    SNAT_ICMP = 4           # echo

cdef struct Svc:            # 128 bytes; what established packets and plain services need lies in the first 64
    uint8_t vaddr[16]       # IPv4 in the first 4 bytes, the rest 0; network order
    uint16_t vport          # network order; 0: every port that no other service of the address has. NB: one word with af, proto
    uint8_t af              # 4 or 6
    uint8_t proto           # IP protocol number: TCP, UDP, SCTP; ICMP or ICMPv6, by `af`: echo, whose port is 0
    uint8_t sched           # SchedKind
    uint8_t mode            # SvcMode
    uint16_t flags          # SvcFlag
    uint32_t gen            # of the command that set it last (mark and sweep)
    uint32_t table_off      # first slot of its table in the host segment's table arena (uint32 slots)
    uint32_t table_len      # slots; 0 = no real server
    uint32_t cursor         # next slot; SCHED_HOME, SCHED_HOMES: when it was last used, ms (worker)
    uint32_t next           # hash chain: number + 1 of the next service, 0 = end (worker)
    uint32_t timeout_established   # ms; 0 = the worker's default
    # SCHED_HOME, SCHED_HOMES (worker); a service has one address, so its entry of IPVS's per-destination table stands here
    uint64_t homes          # mask of slots
    uint32_t homes_table    # table_off that the mask is of
    uint32_t homes_changed  # when the mask last changed, ms
    uint8_t source4[4]      # outer source addresses of its tunnels; 0 = lbd's choice
    uint8_t source6[16]
    uint8_t quic            # QuicForm (quic.pxd)
    uint8_t quic_len        # bytes of a server's id
    uint8_t quic_config     # QUIC_LB: config rotation bits
    uint8_t persist_plen    # SVC_PERSIST: bits of the client's address that make the client
    uint32_t persist        # SVC_PERSIST: ms that a template lasts
    uint32_t since          # tick (template.pxd) when the number got this meaning: older templates are another service's
    uint32_t vip_next       # chain of services by address: number + 1, 0 = end (worker)
    uint32_t timeout_fin    # ms, of states after a FIN; 0 = the worker's defaults
    uint32_t timeout_udp    # ms; 0 = the worker's default
    uint16_t sorry          # its sorry server: number + 1, 0 = none
    uint16_t target         # SVC_ALIAS: a service's number
    # MODE_SNAT (snat.pxd); `vaddr` is then a digest of the rule's name, port and protocol are 0
    uint16_t snat_order     # place among the rules
    uint16_t snat_pool      # addresses of the pool
    uint16_t snat_sources   # ranges
    uint16_t snat_dests     # ranges; 0: every destination
    uint8_t snat_protocols  # SnatProtocol
    uint8_t snat_in         # iface number, SNAT_ANY
    uint8_t snat_out
    uint8_t spare
    uint16_t alias          # first of its further addresses, in order of their numbers: number + 1, 0 = none (worker)
    uint16_t alias_next     # SVC_ALIAS: the next one (worker)

cdef struct SvcStat:        # 64 bytes
    uint64_t conns
    uint64_t in_pkts        # from clients
    uint64_t in_bytes       # layer 3 bytes
    uint64_t out_pkts       # from real servers
    uint64_t out_bytes
    uint32_t active         # connections established
    uint32_t inactive       # connections in any other state
    uint32_t templates      # of a real server: persistence templates that this worker keeps for it
    uint32_t spare0
    uint64_t reserved[1]

cdef enum TunnelWay:        # Dest.tunnel, and what a connection keeps of it
    TUNNEL_IPIP = 0
    TUNNEL_GRE = 1
    TUNNEL_GUE = 2
    TUNNEL_KIND = 3         # mask
    TUNNEL_CSUM = 4         # GRE, GUE: with a checksum

cdef enum DestFlag:
    DEST_USED = 1
    DEST_UP = 2             # health says it answers (and no administrator says otherwise): may take new connections if weight > 0
    DEST_SORRY = 4          # the service's sorry server: in no table; nothing that lasts beyond a connection may point to it
    DEST_END = 8            # its connections are to be ended now (ending.pxd)
    DEST_RESET = 16         # with a RST to both ends, where they are TCP
    DEST_OVERLOAD = 32      # has reached `upper`, and is not yet below `lower` (worker)

cdef struct Dest:           # 80 bytes
    uint8_t addr[16]        # network order, IPv4 in the first 4 bytes
    uint16_t port           # network order; 0: the one that the client's packets are for
    uint8_t af
    uint8_t flags           # DestFlag
    uint16_t svc            # service number
    uint16_t weight         # 0 = drain
    uint32_t gen
    uint16_t adj            # cached adjacency (worker), valid while fib_gen matches
    uint16_t tunnel_port    # GUE's, network order
    uint32_t fib_gen        # (worker)
    uint32_t next           # chain of real servers by address and port: number + 1, 0 = end (worker)
    uint32_t pmtu_seen      # when `pmtu` was learned, ms (worker)
    uint16_t pmtu           # of the way to it, by ICMP errors about its tunnel; 0 = not known (worker)
    uint8_t tunnel          # TunnelWay
    uint8_t quic            # it has an id in QUIC connection ids:
    uint64_t quic_id
    uint32_t quic_next      # chain of real servers by that id: number + 1, 0 = end (worker)
    uint32_t upper          # connections at which it gets no new ones; 0: no limit
    uint32_t lower          # below so many it gets them again; 0: below three quarters of `upper`
    uint32_t since          # tick when the number got this meaning: older templates are another real server's
    uint32_t near           # fib_gen + 1 as long as onepacket.pxd need not ask anything of it (worker); 0: it has to
    uint8_t reserved[4]

cdef enum LipFlag:
    LIP_USED = 1
    LIP_SNAT = 2            # of SNAT pools: FULLNAT does not send from it

cdef struct LipStat:        # 32 bytes
    uint64_t conns          # connections opened from it
    uint64_t exhausted      # times no port was free
    uint32_t in_use         # connections (ports) held now
    uint32_t reserved[3]

cdef struct Lip:            # 64 bytes
    uint8_t addr[16]
    uint8_t af
    uint8_t flags           # LipFlag
    uint16_t port_lo        # host order, inclusive
    uint16_t port_hi
    uint16_t reserved0
    uint32_t gen
    uint32_t cursor         # next port to try (worker)
    uint8_t reserved[32]
