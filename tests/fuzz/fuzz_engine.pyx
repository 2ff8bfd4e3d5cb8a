# SPDX-License-Identifier: Apache-2.0
"""The packet engine under libFuzzer: sequences of packets, with time, interfaces, commands and restarts between them.

No Python runs here: clang compiles Cython's C with -fsanitize=fuzzer,address,undefined, and the fuzzer calls
LLVMFuzzerTestOneInput. Every frame lies in a heap block of exactly its size (and the slack in front that AF_XDP guarantees), every
table in one of its own, so that the sanitizers see each byte too far. Beyond what they see, `judge` and `audit` abort on
whatever must never happen. The input's format (tests/fuzz/corpus.py writes it):

    input   = setup record*
    setup   = one byte: 1 partial checksums, 2 verify checksums, 4 return by route, 8 two workers, 16 RSS known, 32 MTU 1280 and 68,
              64 many local ports, 128 a previous owner table
    record  = op, an octet: kind in the low three bits, argument in the high five; then by kind:
    PACKET  0..3   argument: 1 iface 1 (else 0), 2 handed over, 4 mend checksums, 24 hops; length u16 LE; bytes. Joins the burst.
    TIME    4      argument: 3 unit (1 ms, 128 ms, 1 s, 1000 s), 4 back; count u8. Runs the burst, moves the clock, expires.
    FLUSH   5      Runs the burst and expires.
    COMMAND 6      128 bytes: a command as the master writes it.
    RECOVER 7      argument: 1 the tables are fresh. A new process takes over.

A length beyond the input's end is cut to what is there.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from lbd.datapath.command cimport (
    CMD_DEST_SET, CMD_FRESH, CMD_LIP_SET, CMD_NEIGH_SET, CMD_ROUTE_SET, CMD_SVC_SET, Cmd, CmdDest, CmdLip, CmdNeigh, CmdRoute,
    CmdSvc,
)
from lbd.datapath.command_apply cimport command_apply, route_del
from lbd.datapath.compiler cimport lbd_bswap16, lbd_ld16
from lbd.datapath.conn cimport (
    BUCKET_SLOTS, CONN_FREE, CONN_LIVE, CONN_NIL, ConnCommon, ConnTable, conn_common, conn_lookup, conn_tuple,
)
from lbd.datapath.connfile cimport conn_file_attach, conn_file_bytes
from lbd.datapath.count cimport Counters
from lbd.datapath.csum cimport csum_fold, csum_partial, csum_pseudo
from lbd.datapath.engine cimport Engine
from lbd.datapath.fib cimport FIB_HASH, FIB_MAX, ROUTE_ONLINK, ROUTE_USED, Route
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.lifetime cimport engine_expire, table_of, timer_of
from lbd.datapath.lookup cimport adj_unhash
from lbd.datapath.neigh cimport ADJ_HASH, ADJ_MAX, Adj, IFACE_PARTIAL, IFACE_UP, IFACE_USED, Iface
from lbd.datapath.owner cimport OWNER_BUCKETS
from lbd.datapath.pipeline cimport engine_burst
from lbd.datapath.pkt cimport BURST_MAX, FRAME_SLACK, IFACE_MAX, PKT_HANDED, PKT_ICMP_ERROR, PKT_PARTIAL, Pkt
from lbd.datapath.reason cimport (
    REASON_COUNT, REASON_NONE, VERDICT_CONSUME, VERDICT_FORWARD, VERDICT_HANDOVER,
)
from lbd.datapath.svc cimport DEST_UP, Dest, LIP_NONE, Lip, LipStat, Svc, SvcStat
from lbd.datapath.tcp cimport STATE_COUNT
from lbd.datapath.timer cimport LIST_COUNT

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)

cdef enum:
    SERVICES = 16
    SERVERS = 32
    LIPS = 4
    CONNS = 24                  # few, so that tables fill
    ARENA = 64
    LARGEST = 2048              # bytes of a frame


cdef struct World:              # everything an input works on; the pointers live as long as the process
    Engine e
    Pkt pkt[64]
    uint8_t *block[64]          # frame, with slack before it
    uint8_t *before[64]         # the same bytes as they came
    uint32_t n                  # packets in the burst
    uint64_t packets            # given to the engine
    uint64_t now
    void *conn
    uint32_t fib_gen
    uint64_t key[4]
    uint8_t rss_key[64]
    bint commanded              # the input brought commands of its own: counts of what they reset mean nothing

cdef World world
cdef bint built = False


cdef inline void never(bint wrong) noexcept nogil:
    if wrong:
        abort()


# --- set-up ----------------------------------------------------------------------------------------------------------

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
    e.iface = <Iface *> calloc(IFACE_MAX, sizeof(Iface))
    e.adj = <Adj *> calloc(ADJ_MAX, sizeof(Adj))
    e.adj_hash = <uint32_t *> calloc(ADJ_HASH, sizeof(uint32_t))
    e.route = <Route *> calloc(FIB_MAX, sizeof(Route))
    e.route_hash = <uint32_t *> calloc(FIB_HASH, sizeof(uint32_t))
    e.arena = <uint32_t *> calloc(ARENA, sizeof(uint32_t))
    e.owner = <uint8_t *> calloc(2, OWNER_BUCKETS)
    e.count = <Counters *> calloc(1, sizeof(Counters))
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
    memset(e.iface, 0, IFACE_MAX * sizeof(Iface))
    memset(e.arena, 0, ARENA * sizeof(uint32_t))
    memset(e.count, 0, sizeof(Counters))
    memset(world.conn, 0, conn_file_bytes(CONNS, CONNS))
    memset(&blank, 0, sizeof(Engine))
    blank.svc, blank.svc_stat, blank.svc_hash = e.svc, e.svc_stat, e.svc_hash
    blank.dest, blank.dest_stat, blank.lip, blank.lip_stat = e.dest, e.dest_stat, e.lip, e.lip_stat
    blank.iface, blank.adj, blank.adj_hash = e.iface, e.adj, e.adj_hash
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
    for i in range(4):
        af = 4 if i < 2 else 6
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
        s.proto = 17 if i & 1 else 6
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
    for i in range(64):
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
    e.rss_known = (setup & 16) != 0
    e.rss_udp_ports = 0
    e.owner_prev_valid = (setup & 128) != 0
    e.verify_csum = (setup & 2) != 0
    e.return_route = (setup & 4) != 0
    e.icmp_bucket.rate = 1000
    for i in range(OWNER_BUCKETS):
        e.owner[i] = i & 1 if setup & 8 else 0
        e.owner[OWNER_BUCKETS + i] = i >> 1 & 1 if setup & 8 else 0
    for i in range(STATE_COUNT):
        e.timeout[i] = 60000
    e.timeout[2] = 900000
    attach(True)
    set_network(setup)
    set_services((setup & 64) != 0)


# --- what must hold --------------------------------------------------------------------------------------------------

cdef bint transport_right(const Pkt *p, const uint8_t *l3, const uint8_t *l4) noexcept nogil:
    """The transport checksum of the packet whose headers lie there; the engine's offsets, this one's arithmetic."""
    cdef uint32_t size = p.l3 + p.l3_len - p.l4
    cdef uint32_t alen = 4 if p.af == 4 else 16
    cdef const uint8_t *addrs = l3 + (12 if p.af == 4 else 8)
    if p.proto == 17:
        size = lbd_bswap16(lbd_ld16(l4 + 4))
    if p.proto == 1:
        return csum_fold(csum_partial(l4, size, 0)) == 0xffff
    return csum_fold(csum_partial(l4, size, csum_pseudo(addrs, addrs + alen, alen, p.proto, size))) == 0xffff


cdef void judge_out(const Pkt *p, const uint8_t *block, const uint8_t *before, uint32_t size) noexcept nogil:
    """A packet that leaves lies within its block, its lengths fit, and its checksums are no better than they came."""
    cdef const uint8_t *l3 = p.data + p.l3
    cdef const uint8_t *l4 = p.data + p.l4
    cdef uint64_t at
    never(p.data < block or p.data + p.len > block + size)
    never(p.ifout >= IFACE_MAX)
    if p.verdict == VERDICT_CONSUME:            # the offsets are those of the packet that it answers
        never(p.ifout != p.ifin)
        return
    never(not world.e.iface[p.ifout].flags & IFACE_UP)
    never(p.l3 + <uint32_t> p.l3_len > p.len or p.l4 < p.l3 + 20 or p.l4 >= p.l3 + p.l3_len)
    if p.af == 4:
        never(csum_fold(csum_partial(l3, p.l4 - p.l3, 0)) != 0xffff)
    never(p.l3_len > world.e.iface[p.ifout].mtu)
    if p.flags & PKT_PARTIAL:
        never(not transport_right(p, l3, l4))
        return
    at = l3 - block                             # link headers grow and shrink before it: where it lies in the block stays
    never(transport_right(p, l3, l4) != transport_right(p, before + at, before + (l4 - block))
          and not (p.proto == 17 and lbd_ld16(before + (l4 - block) + 6) == 0))
    if p.flags & PKT_ICMP_ERROR:
        never(not transport_right(p, l3, l4))


cdef void judge(const Pkt *p, const uint8_t *block, const uint8_t *before, uint32_t size) noexcept nogil:
    never(p.verdict > VERDICT_HANDOVER or p.reason >= REASON_COUNT)
    if p.verdict == VERDICT_FORWARD or p.verdict == VERDICT_CONSUME:
        judge_out(p, block, before, size)
    elif p.verdict == VERDICT_HANDOVER:
        never(p.owner == world.e.worker or p.owner >= world.e.workers or p.hops >= 3)
    else:
        never(p.reason == REASON_NONE)
    if p.verdict != VERDICT_FORWARD and p.verdict != VERDICT_CONSUME:
        never(memcmp(block, before, size) != 0)     # the kernel, or another worker, gets it as it came


cdef uint32_t chain(const ConnTable *t, uint32_t head) noexcept nogil:
    """Records on a list; aborts on a circle."""
    cdef uint32_t n = 0
    while head != CONN_NIL:
        never(head >= t.capacity or n > t.capacity)
        head = t.cold[head].next
        n += 1
    return n


cdef uint32_t entries(const ConnTable *t) noexcept nogil:
    """Of the index, in primary buckets and their chains; aborts on a circle."""
    cdef uint32_t b, at, slot, steps, n = 0
    for b in range(t.buckets):
        at = b
        steps = 0
        while True:
            for slot in range(BUCKET_SLOTS):
                n += t.index[at].tag[slot] != 0
            at = t.index[at].next
            if at == 0:
                break
            steps += 1
            never(at < t.buckets or at >= t.buckets + t.overflow or steps > t.overflow)
    return n


cdef void audit(int af) noexcept nogil:
    """The table is whole: every record is on one list, live ones are found by both tuples, and counts are what they count."""
    cdef Engine *e = &world.e
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef Tuple k
    cdef uint32_t i, listed = 0, live = 0, lips = 0
    for i in range(LIST_COUNT):
        listed += chain(t, timer_of(e, af).head[i])
    never(listed != t.used or chain(t, t.free_head) != t.capacity - t.used)
    for i in range(t.capacity):
        c = conn_common(t, i, af)
        if c.live == CONN_FREE:
            continue
        live += 1
        lips += c.lip != LIP_NONE
        never(c.state == 0 or c.state >= STATE_COUNT)
        conn_tuple(t, i, 1, &k, af)
        never(conn_lookup(t, &k, tuple_hash(&k, e.hash_key, af), af) != (i << 1 | 1))
        if c.live == CONN_LIVE:
            conn_tuple(t, i, 0, &k, af)
            never(conn_lookup(t, &k, tuple_hash(&k, e.hash_key, af), af) != i << 1)
    never(live != t.used or entries(t) != 2 * live)
    if not world.commanded:
        never(e.lip_stat[0 if af == 4 else 1].in_use != lips)


cdef void audit_counts() noexcept nogil:
    cdef Engine *e = &world.e
    cdef uint64_t verdicts = 0
    cdef uint32_t i, counted = 0
    for i in range(8):
        verdicts += e.count.verdicts[i]
    never(verdicts != world.packets)
    if not world.commanded:
        for i in range(SERVICES):
            counted += e.svc_stat[i].active + e.svc_stat[i].inactive
        never(counted > e.t4.used + e.t6.used)


# --- the input -------------------------------------------------------------------------------------------------------

cdef void mend(uint8_t *frame, uint32_t size) noexcept nogil:
    """Makes the IPv4 header's checksum right, and an ICMP message's: or no mutation would get past them."""
    cdef uint32_t at = 12, head, total
    cdef uint8_t *ip
    while at + 6 <= size and (lbd_ld16(frame + at) == 0x0081 or lbd_ld16(frame + at) == 0xa888) and at < 20:
        at += 4
    if at + 2 + 20 > size:
        return
    ip = frame + at + 2
    size -= at + 2
    if ip[0] >> 4 == 4:
        head = (ip[0] & 15) * 4
        total = lbd_bswap16(lbd_ld16(ip + 2))
        if head < 20 or head > size:
            return
        ip[10] = ip[11] = 0
        (<uint16_t *> (ip + 10))[0] = <uint16_t> ~csum_fold(csum_partial(ip, head, 0))
        if ip[9] == 1 and head + 8 <= total <= size:
            ip[head + 2] = ip[head + 3] = 0
            (<uint16_t *> (ip + head + 2))[0] = <uint16_t> ~csum_fold(csum_partial(ip + head, total - head, 0))
    elif size >= 48 and ip[0] >> 4 == 6 and ip[6] == 58:
        total = lbd_bswap16(lbd_ld16(ip + 4))
        if 8 <= total <= size - 40:
            ip[42] = ip[43] = 0
            (<uint16_t *> (ip + 42))[0] = <uint16_t> ~csum_fold(
                csum_partial(ip + 40, total, csum_pseudo(ip + 8, ip + 24, 16, 58, total)))


cdef void run() noexcept nogil:
    """The burst so far."""
    cdef uint32_t i
    cdef uint32_t sizes[64]
    for i in range(world.n):
        sizes[i] = FRAME_SLACK + world.pkt[i].len
        memcpy(world.before[i], world.block[i], sizes[i])
    engine_burst(&world.e, world.pkt, world.n, world.now)
    world.packets += world.n
    for i in range(world.n):
        judge(world.pkt + i, world.block[i], world.before[i], sizes[i])
        free(world.block[i])
        free(world.before[i])
    world.n = 0
    world.e.wanted_n = 0


cdef void packet(uint32_t arg, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef Pkt *p = world.pkt + world.n
    cdef uint8_t *block = <uint8_t *> malloc(FRAME_SLACK + size)
    memset(block, 0, FRAME_SLACK)
    memcpy(block + FRAME_SLACK, data, size)
    if arg & 4:
        mend(block + FRAME_SLACK, size)
    memset(p, 0, sizeof(Pkt))
    p.data = block + FRAME_SLACK
    p.len = size
    p.room = size
    p.ifin = arg & 1
    p.flags = PKT_HANDED if arg & 2 else 0
    p.hops = arg >> 3
    p.seg_count = 1
    world.block[world.n] = block
    world.before[world.n] = <uint8_t *> malloc(FRAME_SLACK + size)
    world.n += 1
    if world.n == BURST_MAX:
        run()


cdef uint64_t unit(uint32_t arg) noexcept nogil:
    """In ns."""
    if arg & 3 == 0:
        return 1000000
    if arg & 3 == 1:
        return 128000000
    return 1000000000 if arg & 3 == 2 else 1000000000000


cdef void step_time(uint32_t arg, uint64_t count) noexcept nogil:
    cdef uint64_t by = count * unit(arg)
    run()
    if not arg & 4:
        world.now += by
    elif by < world.now:
        world.now -= by
    engine_expire(&world.e, world.now, 1000)


cdef uint32_t record(const uint8_t *data, uint32_t left) noexcept nogil:
    """Carries out the record at data; returns its length."""
    cdef Cmd c
    cdef uint32_t kind = data[0] & 7
    cdef uint32_t arg = data[0] >> 3
    cdef uint32_t size
    if kind < 4:
        if left < 3:
            return left
        size = lbd_ld16(data + 1)
        if size > left - 3:
            size = left - 3
        if size > LARGEST:
            size = LARGEST
        packet(arg, data + 3, size)
        return 3 + size
    if kind == 4:
        step_time(arg, data[1] if left > 1 else 0)
        return 2
    run()
    if kind == 6:
        if left < 1 + sizeof(Cmd):
            return left
        memcpy(&c, data + 1, sizeof(Cmd))
        world.commanded = True
        command_apply(&world.e, &c)
        return 1 + sizeof(Cmd)
    if kind == 7:
        attach(arg & 1)
        return 1
    engine_expire(&world.e, world.now, 1000)
    return 1


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    global built
    cdef size_t at = 1
    if size < 2 or size > 1 << 16:
        return 0
    if not built:
        build()
        built = True
    begin(data[0])
    while at < size:
        at += record(data + at, <uint32_t> (size - at))
    run()
    audit(4)
    audit(6)
    audit_counts()
    wipe()
    return 0
