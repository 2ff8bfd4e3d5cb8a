# The engine that the fuzz target works on: tables in blocks of their own, a small network (that of tests/packet/balancer.py), and
# how both become new for each input. Part of fuzz_engine.pyx.

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)

cdef enum:
    SERVICES = 16
    SERVERS = 32
    LIPS = 4
    CONNS = 24                  # few, so that tables fill
    ARENA = 64
    LARGEST = 2048              # bytes of a frame
    FRAGS = 8                   # datagrams in fragments, and fragments held


cdef struct World:              # everything an input works on; the pointers live as long as the process
    Engine e
    Pkt pkt[64]
    uint8_t *block[64]          # frame, with slack before it
    uint8_t *before[64]         # the same bytes as they came
    uint32_t n                  # packets in the burst
    uint64_t packets            # given to the engine
    uint64_t now
    void *conn
    void *frags
    uint32_t fib_gen
    uint64_t key[4]
    uint8_t rss_key[128]
    bint commanded              # the input brought commands of its own: counts of what they reset mean nothing

cdef World world
cdef bint built = False


cdef extern from *:             # a macro: it names the line that it stands on
    """
    #include <stdio.h>
    #include <stdlib.h>
    #define never(wrong) never_at((wrong), __FILE__, __LINE__, __func__)
    static inline void never_at(int wrong, const char *file, int line, const char *function) {
        if (__builtin_expect(wrong, 0)) {
            fprintf(stderr, "never: %s:%d in %s\\n", file, line, function);
            abort();
        }
    }
    """
    void never(bint wrong) noexcept nogil


cdef void build() noexcept nogil:
    """Tables of their own blocks, once."""
    cdef Engine *e = &world.e
    cdef uint64_t n = conn_file_bytes(CONNS, CONNS)
    e.svc = <Svc *> calloc(SERVICES, sizeof(Svc))
    e.svc_stat = <SvcStat *> calloc(SERVICES, sizeof(SvcStat))
    e.svc_hash = <uint32_t *> calloc(SERVICES * 2, sizeof(uint32_t))
    e.dest = <Dest *> calloc(SERVERS, sizeof(Dest))
    e.dest_stat = <SvcStat *> calloc(SERVERS, sizeof(SvcStat))
    e.lip = <Lip *> calloc(LIPS, sizeof(Lip))
    e.lip_stat = <LipStat *> calloc(LIPS, sizeof(LipStat))
    e.iface = <Iface *> calloc(LINK_MAX, sizeof(Iface))
    e.adj = <Adj *> calloc(ADJ_MAX, sizeof(Adj))
    e.adj_hash = <uint32_t *> calloc(ADJ_HASH, sizeof(uint32_t))
    e.route = <Route *> calloc(FIB_MAX, sizeof(Route))
    e.route_hash = <uint32_t *> calloc(FIB_HASH, sizeof(uint32_t))
    e.tunnel = <TunnelEnd *> calloc(TUNNEL_MAX, sizeof(TunnelEnd))
    e.arena = <uint32_t *> calloc(ARENA, sizeof(uint32_t))
    e.owner = <uint8_t *> calloc(2, OWNER_BUCKETS)
    e.count = <Counters *> calloc(1, sizeof(Counters))
    world.frags = calloc(1, frag_bytes(FRAGS, FRAGS))
    world.conn = aligned_alloc(4096, n)
    memset(world.conn, 0, n)


cdef void wipe() noexcept nogil:
    """The tables as they were when the process began; the large ones by what was used of them."""
    cdef Engine *e = &world.e
    cdef Engine blank
    cdef uint32_t i
    for i in range(ADJ_MAX):
        if e.adj[i].flags == 0:
            if i > e.adj_free:
                break
            continue
        adj_unhash(e, i)
        memset(e.adj + i, 0, sizeof(Adj))
    for i in range(FIB_MAX):
        if e.route[i].flags & ROUTE_USED:
            route_del(e, i + 1)
            memset(e.route + i, 0, sizeof(Route))
        elif i > e.route_free:
            break
    memset(e.svc, 0, SERVICES * sizeof(Svc))
    memset(e.svc_stat, 0, SERVICES * sizeof(SvcStat))
    memset(e.svc_hash, 0, SERVICES * 2 * sizeof(uint32_t))
    memset(e.dest, 0, SERVERS * sizeof(Dest))
    memset(e.dest_stat, 0, SERVERS * sizeof(SvcStat))
    memset(e.lip, 0, LIPS * sizeof(Lip))
    memset(e.lip_stat, 0, LIPS * sizeof(LipStat))
    memset(e.iface, 0, LINK_MAX * sizeof(Iface))
    memset(e.arena, 0, ARENA * sizeof(uint32_t))
    memset(e.count, 0, sizeof(Counters))
    memset(world.conn, 0, conn_file_bytes(CONNS, CONNS))
    memset(&blank, 0, sizeof(Engine))
    blank.svc, blank.svc_stat, blank.svc_hash = e.svc, e.svc_stat, e.svc_hash
    blank.dest, blank.dest_stat, blank.lip, blank.lip_stat = e.dest, e.dest_stat, e.lip, e.lip_stat
    blank.iface, blank.adj, blank.adj_hash = e.iface, e.adj, e.adj_hash
    memset(e.tunnel, 0, TUNNEL_MAX * sizeof(TunnelEnd))
    blank.tunnel = e.tunnel
    blank.route, blank.route_hash, blank.arena, blank.owner, blank.count = e.route, e.route_hash, e.arena, e.owner, e.count
    memcpy(e, &blank, sizeof(Engine))


cdef void command(uint32_t op, uint32_t id, const void *body, size_t size) noexcept nogil:
    cdef Cmd c
    memset(&c, 0, sizeof(Cmd))
    c.op = op
    c.flags = CMD_FRESH
    c.id = id
    c.gen = 1
    memcpy(c.body, body, size)
    never(not command_apply(&world.e, &c))


cdef void address(uint8_t *to, uint32_t af, uint32_t net, uint32_t host) noexcept nogil:
    """The addresses of tests/packet/balancer.py: net 0 the clients' side, 1 the real servers'."""
    memset(to, 0, 16)
    if af == 4:
        memcpy(to, b"\xc0\x00\x02\x00" if net == 0 else b"\x0a\x4d\x00\x00", 4)
        to[3] = host
    elif net == 0:
        memcpy(to, b"\x20\x01\x0d\xb8\x00\x01", 6)
        to[15] = host
    else:
        memcpy(to, b"\xfd\x77", 2)
        to[15] = host


cdef void set_services(bint many_ports) noexcept nogil:
    cdef CmdSvc s
    cdef CmdDest d
    cdef CmdLip l
    cdef uint32_t i, af
    for i in range(6):                              # TCP and UDP of each family, then SCTP
        af = 4 if i < 2 or i == 4 else 6
        memset(&d, 0, sizeof(d))
        address(d.addr, af, 1, 11 if af == 4 else 17)
        d.port = lbd_bswap16(8080)
        d.af = af
        d.flags = DEST_UP
        d.svc = i
        d.weight = 1
        command(CMD_DEST_SET, 2 * i, &d, sizeof(d))
        d.addr[3 if af == 4 else 15] += 1
        command(CMD_DEST_SET, 2 * i + 1, &d, sizeof(d))
        world.e.arena[8 * i] = 2 * i + many_ports       # rr begins with the second: the first connection gets server 1
        world.e.arena[8 * i + 1] = 2 * i + 1 - many_ports
        memset(&s, 0, sizeof(s))
        address(s.vaddr, af, 0, 10 if af == 4 else 16)
        s.vport = lbd_bswap16(80)
        s.af = af
        s.proto = PROTO_SCTP if i >= 4 else PROTO_UDP if i & 1 else PROTO_TCP
        s.table_off = 8 * i
        s.table_len = 2 if many_ports else 1        # one real server: local port 30000 is sure
        s.sched = 0 if i < 3 else 2
        command(CMD_SVC_SET, i, &s, sizeof(s))
    for i in range(2):
        memset(&l, 0, sizeof(l))
        address(l.addr, 4 if i == 0 else 6, 1, 2)
        l.af = 4 if i == 0 else 6
        l.port_lo = 30000
        l.port_hi = 30063 if many_ports else 30000
        command(CMD_LIP_SET, i, &l, sizeof(l))


cdef void set_network(uint8_t setup) noexcept nogil:
    cdef Iface *f
    cdef CmdRoute r
    cdef CmdNeigh n
    cdef uint8_t addr4[16]
    cdef uint32_t i
    for i in range(2):                              # not by command: that walks all adjacencies, for every input
        f = world.e.iface + i
        memcpy(f.mac, b"\x02\x00\x00\x00\x01\x00", 6)
        f.mac[5] = i
        f.mtu = 1500 if not setup & 32 else (1280 if i == 0 else 68)
        f.flags = IFACE_USED | IFACE_UP | (IFACE_PARTIAL if setup & 1 else 0)
        f.ifindex = i + 2
        address(addr4, 4, i, 1)
        memcpy(f.addr4, addr4, 4)
        address(f.addr6, 6, i, 1)
    fast_refresh(&world.e)
    for i in range(2):
        memset(&r, 0, sizeof(r))
        r.af = 4 if i == 0 else 6
        address(r.prefix, r.af, 1, 0)
        r.plen = 24 if i == 0 else 64
        r.iface = 1
        r.flags = ROUTE_ONLINK
        command(CMD_ROUTE_SET, 0, &r, sizeof(r))
        memset(&n, 0, sizeof(n))
        n.af = r.af
        n.iface = 1
        n.valid = 1
        memcpy(n.mac, b"\x02\x00\x00\x00\x02\x01", 6)
        address(n.addr, n.af, 1, 11 if n.af == 4 else 17)
        command(CMD_NEIGH_SET, 0, &n, sizeof(n))
        n.addr[3 if n.af == 4 else 15] += 1
        command(CMD_NEIGH_SET, 0, &n, sizeof(n))


cdef void attach(bint fresh) noexcept nogil:
    cdef uint8_t boot_id[16]
    memset(boot_id, 7, 16)
    world.e.now_ns = world.now
    world.e.now_ms = <uint32_t> (world.now // 1000000)
    conn_file_attach(&world.e, world.conn, boot_id, CONNS, CONNS, fresh)


cdef void begin(uint8_t setup) noexcept nogil:
    cdef Engine *e = &world.e
    cdef uint32_t i
    for i in range(32):
        (<uint8_t *> world.key)[i] = 17 * i + 3
    for i in range(128):
        world.rss_key[i] = 91 * i + 5
    world.now = 5000000000
    world.n = 0
    world.packets = 0
    world.fib_gen = 1
    world.commanded = False
    e.fib_gen = &world.fib_gen
    e.hash_key = world.key
    e.rss_key = world.rss_key
    e.max_svc = SERVICES
    e.max_dest = SERVERS
    e.max_lip = LIPS
    e.svc_hash_mask = SERVICES * 2 - 1
    e.arena_slots = ARENA
    e.workers = 2 if setup & 8 else 1
    e.epoch = 0
    for i in range(2):
        e.rss_known[i] = (setup & 16) != 0
        e.rss_udp_ports[i] = 0
    e.owner_prev_valid = (setup & 128) != 0
    e.verify_csum = (setup & 2) != 0
    e.return_route = (setup & 4) != 0
    e.icmp_bucket.rate = 1000
    e.frag_timeout = 30000
    e.frags = frag_map(world.frags, FRAGS, FRAGS)
    for i in range(OWNER_BUCKETS):
        e.owner[i] = i & 1 if setup & 8 else 0
        e.owner[OWNER_BUCKETS + i] = i >> 1 & 1 if setup & 8 else 0
    for i in range(16):
        e.timeout[i] = 60000
    e.timeout[2] = 900000
    attach(True)
    set_network(setup)
    set_services((setup & 64) != 0)
