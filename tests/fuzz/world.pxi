# The engine that the fuzz target works on: tables in blocks of their own, a small network (that of tests/packet/balancer.py), and
# how both become new for each input. Part of fuzz_engine.pyx.

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)

cdef enum:
    SERVICES = 64               # as in tests/packet/balancer.py, whose commands are seeds
    SERVERS = 256
    LIPS = 16
    ARENA = 4096
    CONNS = 24                  # few, so that tables fill
    TEMPLATES = 16
    LARGEST = 3840              # bytes of a frame
    LONGEST = 16384             # bytes of a packet in several frames
    FRAGS = 8                   # datagrams in fragments
    HELD = 16                   # pieces of them that are held
    ROOM = 512                  # bytes for a packet of the engine's own

cdef enum Set:                  # setup2: how the services forward
    SET_FULLNAT
    SET_NAT
    SET_DR
    SET_IPIP
    SET_GRE                     # with a checksum
    SET_GUE                     # the same
    SET_NAT64                   # the IPv6 services' real servers are of IPv4; the others FULLNAT
    SET_ACROSS                  # IPIP to real servers of the other family
    SET_ALL = 7
    SET_BARE
    SET_PERSIST = 16
    SET_SECOND = 32
    SET_GENERAL = 64
    SET_ONE_PACKET = 128


cdef struct World:              # everything an input works on; the pointers live as long as the process
    Engine e
    Pkt pkt[64]
    uint8_t *block[64]          # (first) frame, with slack before it
    uint8_t *before[64]         # the packet as it came, in one piece, with slack before it
    uint32_t size[64]           # its bytes
    uint32_t head[64]           # those in the first frame
    uint32_t n                  # packets in the burst
    uint64_t packets            # given to the engine
    uint64_t now
    void *conn
    void *aside                 # another connection file
    uint8_t *taken
    SvcStat *peer               # the other worker's, of real servers
    void *frags
    uint32_t fib_gen
    uint64_t key[4]
    uint8_t rss_key[128]
    bint merged                 # two workers' files became one: in mode nat answers of two connections may look the same
    bint asked                  # another worker asked for a client's real server
    bint commanded              # commands came while there were connections: counts of what they reset mean nothing

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
    e.template = <Template *> calloc(2 * TEMPLATES, sizeof(Template))
    world.peer = <SvcStat *> calloc(SERVERS, sizeof(SvcStat))
    world.taken = <uint8_t *> calloc(1, TAKEN_BITS // 8)
    world.frags = calloc(1, frag_bytes(FRAGS, HELD))
    world.conn = aligned_alloc(4096, n)
    world.aside = aligned_alloc(4096, n)
    memset(world.conn, 0, n)
    memset(world.aside, 0, n)


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
    memset(world.aside, 0, conn_file_bytes(CONNS, CONNS))
    memset(e.template, 0, 2 * TEMPLATES * sizeof(Template))
    if e.taken_valid:
        memset(world.taken, 0, TAKEN_BITS // 8)
    memset(&blank, 0, sizeof(Engine))
    blank.svc, blank.svc_stat, blank.svc_hash = e.svc, e.svc_stat, e.svc_hash
    blank.dest, blank.dest_stat, blank.lip, blank.lip_stat = e.dest, e.dest_stat, e.lip, e.lip_stat
    blank.iface, blank.adj, blank.adj_hash = e.iface, e.adj, e.adj_hash
    memset(e.tunnel, 0, TUNNEL_MAX * sizeof(TunnelEnd))
    blank.tunnel, blank.template = e.tunnel, e.template
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


cdef uint32_t server_family(uint32_t how, uint32_t af) noexcept nogil:
    return 10 - af if how == SET_ACROSS or (how == SET_NAT64 and af == 6) else af


cdef uint32_t mode_of(uint32_t how) noexcept nogil:
    if how == SET_FULLNAT or how == SET_NAT64:
        return MODE_FULLNAT
    if how == SET_NAT:
        return MODE_NAT
    return MODE_DR if how == SET_DR else MODE_TUNNEL


cdef void set_servers(uint32_t i, uint32_t af, uint32_t how) noexcept nogil:
    """The two of service i."""
    cdef CmdDest d
    memset(&d, 0, sizeof(d))
    address(d.addr, af, 1, 11 if af == 4 else 17)
    d.port = lbd_bswap16(80 if mode_of(how) & MODE_DR else 8080)
    d.af = af
    d.flags = DEST_UP
    d.svc = i
    d.weight = 1
    if how == SET_GRE:
        d.tunnel = TUNNEL_GRE | TUNNEL_CSUM
    elif how == SET_GUE:
        d.tunnel = TUNNEL_GUE | TUNNEL_CSUM
        d.tunnel_port = lbd_bswap16(6080)
    command(CMD_DEST_SET, 2 * i, &d, sizeof(d))
    d.addr[3 if af == 4 else 15] += 1
    command(CMD_DEST_SET, 2 * i + 1, &d, sizeof(d))


cdef void set_services(bint many_ports, uint8_t setup2) noexcept nogil:
    cdef CmdSvc s
    cdef CmdLip l
    cdef uint32_t i, af, how = setup2 & SET_ALL
    for i in range(6):                              # TCP and UDP of each family, then SCTP
        af = 4 if i < 2 or i == 4 else 6
        set_servers(i, server_family(how, af), how)
        world.e.arena[8 * i] = 2 * i + many_ports       # rr begins with the second: the first connection gets server 1
        world.e.arena[8 * i + 1] = 2 * i + 1 - many_ports
        memset(&s, 0, sizeof(s))
        address(s.vaddr, af, 0, 10 if af == 4 else 16)
        s.vport = lbd_bswap16(80)
        s.af = af
        s.proto = PROTO_SCTP if i >= 4 else PROTO_UDP if i & 1 else PROTO_TCP
        s.mode = mode_of(how)
        s.table_off = 8 * i
        s.table_len = 2 if many_ports else 1        # one real server: local port 30000 is sure
        s.sched = 0 if i < 3 else 2
        if setup2 & SET_PERSIST:
            s.flags |= SVC_PERSIST
            s.persist = 100000
            s.persist_plen = 24 if af == 4 else 64
        if setup2 & SET_ONE_PACKET and s.proto == PROTO_UDP:
            s.flags |= SVC_ONE_PACKET
        command(CMD_SVC_SET, i, &s, sizeof(s))
    for i in range(2):
        memset(&l, 0, sizeof(l))
        address(l.addr, 4 if i == 0 else 6, 1, 2)
        l.af = 4 if i == 0 else 6
        l.port_lo = 30000
        l.port_hi = 30063 if many_ports else 30000
        command(CMD_LIP_SET, i, &l, sizeof(l))


cdef void set_tunnels() noexcept nogil:
    """Those that end here, IPIP and GRE of both families, from anywhere."""
    cdef CmdTunnel t
    cdef uint32_t i
    for i in range(4):
        memset(&t, 0, sizeof(t))
        t.af = 4 if i < 2 else 6
        t.kind = TUNNEL_GRE if i & 1 else TUNNEL_IPIP
        address(t.local, t.af, 0, 1)
        command(CMD_TUNNEL_SET, 0, &t, sizeof(t))


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
        f.flags = IFACE_USED | IFACE_UP | (IFACE_PARTIAL if setup & 1 else 0) | (IFACE_COMPLETES if i else 0)
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


cdef void boot(uint8_t *id) noexcept nogil:
    memset(id, 7, 16)


cdef void attach(bint fresh) noexcept nogil:
    cdef uint8_t boot_id[16]
    boot(boot_id)
    world.e.now_ns = world.now
    world.e.now_ms = <uint32_t> (world.now // 1000000)
    template_recover(&world.e)
    conn_file_attach(&world.e, world.conn, boot_id, CONNS, CONNS, fresh)


cdef void mark_taken() noexcept nogil:
    taken_mark(world.taken, &world.e.t4, world.key, 4)
    taken_mark(world.taken, &world.e.t6, world.key, 6)
    world.e.taken_valid = 1


cdef void put_aside() noexcept nogil:
    """The connection file is another worker's, which has other local ports."""
    mark_taken()
    memcpy(world.aside, world.conn, conn_file_bytes(CONNS, CONNS))
    memset(world.conn, 0, conn_file_bytes(CONNS, CONNS))
    attach(False)


cdef void take_in() noexcept nogil:
    """The file that was put aside is a worker's that is gone; then a new process takes over."""
    cdef uint8_t boot_id[16]
    cdef Engine *scratch = <Engine *> calloc(2, sizeof(Engine))
    boot(boot_id)
    conn_file_merge(scratch, world.conn, scratch + 1, world.aside, boot_id, CONNS, CONNS)
    free(scratch)
    world.merged = True
    memset(world.aside, 0, conn_file_bytes(CONNS, CONNS))
    attach(False)


cdef void begin(uint8_t setup, uint8_t setup2) noexcept nogil:
    cdef Engine *e = &world.e
    cdef uint32_t i
    memcpy(world.key, b"lbd offline engine: a fixed key.", 32)      # of lbd/_fastpath.pyx: seeds of packet tests go as those do
    for i in range(128):
        world.rss_key[i] = 91 * i + 5
    world.now = 5000000000
    world.n = 0
    world.packets = 0
    world.fib_gen = 1
    world.commanded = False
    world.asked = False
    world.merged = False
    e.fib_gen = &world.fib_gen
    e.hash_key = world.key
    e.rss_key = world.rss_key
    e.max_svc = SERVICES
    e.max_dest = SERVERS
    e.max_lip = LIPS
    e.svc_hash_mask = SERVICES * 2 - 1
    e.arena_slots = ARENA
    e.workers = 2 if setup & 8 else 1
    e.worker = 1 if e.workers == 2 and setup2 & SET_SECOND else 0
    e.peer_dest_stat[1 - e.worker] = world.peer
    e.max_template = TEMPLATES if setup2 & SET_PERSIST else 0
    e.fast_off = (setup2 & SET_GENERAL) != 0
    e.taken = world.taken
    e.port_rest = 1000
    e.oneway_least = TIMEOUT_MAX
    e.epoch = 0
    for i in range(2):
        e.rss_known[i] = (setup & 16) != 0
        e.rss_udp_ports[i] = 0
    e.owner_prev_valid = (setup & 128) != 0
    e.verify_csum = (setup & 2) != 0
    e.return_route = (setup & 4) != 0
    e.icmp_bucket.rate = 1000
    e.frag_timeout = 30000
    e.frags = frag_map(world.frags, FRAGS, HELD)
    for i in range(OWNER_BUCKETS):
        e.owner[i] = i & 1 if setup & 8 else 0
        e.owner[OWNER_BUCKETS + i] = i >> 1 & 1 if setup & 8 else 0
    for i in range(16):
        e.timeout[i] = 60000
    e.timeout[2] = 900000
    attach(True)
    if setup2 & SET_BARE:
        fast_refresh(e)
        return
    set_network(setup)
    set_services((setup & 64) != 0, setup2)
    set_tunnels()
