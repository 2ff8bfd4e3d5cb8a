# Carrying out the master's commands: the one place that writes services, real servers, LIPs, interfaces, neighbours and routes.
# Every number is checked against its table before use: a peer that writes garbage is not believed.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from lbd.datapath.engine cimport Engine
from lbd.datapath.command cimport *
from lbd.datapath.svc cimport (LIP_MAX, Svc, SvcStat, Dest, Lip, LipStat, SVC_NONE, DEST_NONE, SVC_ALIAS, SVC_ONE_PACKET,
                               SVC_PERSIST, SVC_USED, DEST_OVERLOAD, DEST_USED, DEST_UP, DEST_END, SVC_EXPIRE_NODEST,
                               SVC_EXPIRE_QUIESCENT, MODE_DR, MODE_FULLNAT, MODE_NAT, MODE_SNAT, MODE_TUNNEL, LIP_SNAT,
                               LIP_USED, SCHED_FIRST, SNAT_ANY, TUNNEL_CSUM, TUNNEL_GRE, TUNNEL_GUE, TUNNEL_IPIP,
                               TUNNEL_KIND)
from lbd.datapath.echo cimport is_icmp
from lbd.datapath.hdr cimport PROTO_ICMP, PROTO_ICMPV6
from lbd.datapath.tunnel_end cimport TUNNEL_MAX, TunnelEnd
from lbd.datapath.link cimport adj_tags, link_of, tag_word
from lbd.datapath.neigh cimport (Iface, adj_refresh, Adj, ADJ_NONE, ADJ_MAX, ADJ_USED, ADJ_VALID, ADJ_LEARNED, BOND_L34,
                                 IFACE_PARTIAL, IFACE_USED, LINK_MAX, MEMBER_MAX)
from lbd.datapath.fast cimport LANE_CLOSED, LANE_OPEN
from lbd.datapath.quic cimport QUIC_FORMS, quic_hash_in, quic_unhash
from lbd.datapath.timer cimport TIMEOUT_MAX
from lbd.datapath.fib cimport Route, FIB_MAX, ROUTE_USED
from lbd.datapath.persist cimport tick_now
from lbd.datapath.pkt cimport IFACE_MAX
from lbd.datapath.snat cimport snat_refresh, snat_slots
from lbd.datapath.lookup cimport dest_bucket, svc_bucket, vip_bucket, adj_find, adj_make, adj_unhash, route_bucket, route_find


cdef inline void svc_unhash(Engine *e, uint32_t id) noexcept nogil:
    cdef Svc *s = e.svc + id
    cdef uint32_t *p = e.svc_hash + svc_bucket(e, s.vaddr, s.vport, s.proto, s.af)
    while p[0]:
        if p[0] == id + 1:
            p[0] = s.next
            return
        p = &e.svc[p[0] - 1].next


cdef inline void svc_hash_in(Engine *e, uint32_t id) noexcept nogil:
    cdef Svc *s = e.svc + id
    cdef uint32_t b = svc_bucket(e, s.vaddr, s.vport, s.proto, s.af)
    if s.mode == MODE_SNAT:          # found by match
        return
    s.next = e.svc_hash[b]
    e.svc_hash[b] = id + 1


cdef inline void vip_hash_in(Engine *e, uint32_t id) noexcept nogil:
    cdef uint32_t b = vip_bucket(e.svc[id].vaddr)
    e.svc[id].vip_next = e.vip_hash[b]
    e.vip_hash[b] = id + 1


cdef inline void vip_unhash(Engine *e, uint32_t id) noexcept nogil:
    cdef uint32_t *p = e.vip_hash + vip_bucket(e.svc[id].vaddr)
    while p[0]:
        if p[0] == id + 1:
            p[0] = e.svc[id].vip_next
            return
        p = &e.svc[p[0] - 1].vip_next


cdef inline void svc_count(Engine *e, const Svc *s, int by) noexcept nogil:
    """What of its kinds there is at all: packets ask that first."""
    if s.mode == MODE_SNAT:
        return
    if s.mode == MODE_NAT:
        e.nat_services += by
    if is_icmp(s.proto):
        e.echo_services += by
    elif s.vport == 0:
        e.any_services += by
    if s.flags & SVC_ONE_PACKET:
        e.one_packet_services += by
    if s.flags & SVC_PERSIST:
        e.persist_services += by
    if s.mode == MODE_TUNNEL:
        e.tunnel_services += by


cdef inline void alias_in(Engine *e, uint32_t id) noexcept nogil:
    """Into the list of its service, in order of the numbers: the same in all workers."""
    cdef uint16_t *p = &e.svc[e.svc[id].target].alias
    while p[0] and p[0] < id + 1:
        p = &e.svc[p[0] - 1].alias_next
    e.svc[id].alias_next = p[0]
    p[0] = id + 1


cdef inline void alias_out(Engine *e, uint32_t id) noexcept nogil:
    cdef uint16_t *p = &e.svc[e.svc[id].target].alias
    while p[0]:
        if p[0] == id + 1:
            p[0] = e.svc[id].alias_next
            return
        p = &e.svc[p[0] - 1].alias_next


cdef inline void svc_del(Engine *e, uint32_t id) noexcept nogil:
    if id < e.max_svc and e.svc[id].flags & SVC_USED:
        svc_unhash(e, id)
        vip_unhash(e, id)
        svc_count(e, e.svc + id, -1)
        if e.svc[id].mode == MODE_NAT:
            e.nat_gone = 1
        if e.svc[id].flags & SVC_ALIAS:
            alias_out(e, id)
        e.svc[id].flags = 0
        if e.svc[id].mode == MODE_SNAT:
            snat_refresh(e)


cdef inline bint options_good(Engine *e, const Cmd *c, const CmdSvc *b) noexcept nogil:
    if is_icmp(b.proto) and (b.vport != 0 or b.proto != (PROTO_ICMP if b.af == 4 else PROTO_ICMPV6)):
        return False
    if b.flags & SVC_ALIAS and (b.target >= e.max_svc or b.target == c.id):
        return False
    return b.persist <= TIMEOUT_MAX and b.persist_plen <= (32 if b.af == 4 else 128)


cdef enum:
    EXPIRES = SVC_EXPIRE_NODEST | SVC_EXPIRE_QUIESCENT


cdef inline bint svc_timeouts(Engine *e, Svc *s, const CmdSvc *b) noexcept nogil:
    """False: beyond the clock's reach."""
    if b.timeout_established > TIMEOUT_MAX or b.timeout_fin > TIMEOUT_MAX or b.timeout_udp > TIMEOUT_MAX:
        return False
    s.timeout_established = b.timeout_established
    s.timeout_fin = b.timeout_fin
    s.timeout_udp = b.timeout_udp
    if b.timeout_udp and b.timeout_udp < e.oneway_least:
        e.oneway_least = b.timeout_udp
    return True


cdef inline bint svc_set(Engine *e, const Cmd *c, const CmdSvc *b) noexcept nogil:
    cdef Svc *s
    cdef uint32_t before, gone = e.nat_gone
    if b.mode != MODE_FULLNAT and b.mode != MODE_NAT and b.mode != MODE_DR and b.mode != MODE_TUNNEL:
        return False
    if c.id >= e.max_svc or (b.af != 4 and b.af != 6) or b.table_len > e.arena_slots or b.table_off > e.arena_slots - b.table_len:
        return False
    if b.quic >= QUIC_FORMS or b.quic_len > 8 or not options_good(e, c, b):
        return False
    s = e.svc + c.id
    if b.sorry > e.max_dest or not svc_timeouts(e, s, b):
        return False
    before = s.flags
    svc_del(e, c.id)
    if s.mode == b.mode and s.vport == b.vport and s.proto == b.proto and memcmp(s.vaddr, b.vaddr, 16) == 0:
        e.nat_gone = gone
    memcpy(s.vaddr, b.vaddr, 16)
    s.vport = b.vport
    s.af = b.af
    s.proto = b.proto
    s.sched = b.sched
    s.mode = b.mode
    s.table_off = b.table_off
    s.table_len = b.table_len
    s.sorry = b.sorry
    memcpy(s.source4, b.source4, 4)
    memcpy(s.source6, b.source6, 16)
    s.quic = b.quic
    s.quic_len = b.quic_len
    s.quic_config = b.quic_config
    s.persist = b.persist
    s.persist_plen = b.persist_plen
    s.target = b.target
    s.gen = c.gen
    if not before & SVC_USED:
        s.cursor = e.worker          # workers start their turns at different servers
    if c.flags & CMD_FRESH:
        memset(e.svc_stat + c.id, 0, sizeof(SvcStat))
        s.since = tick_now(e)
    s.flags = b.flags | SVC_USED
    svc_hash_in(e, c.id)
    vip_hash_in(e, c.id)
    svc_count(e, s, 1)
    if s.flags & SVC_ALIAS:
        alias_in(e, c.id)
    if s.flags & EXPIRES & ~before:         # what the fast lane served until now is looked at
        e.fib_gen[0] += 1
    return True


cdef inline bint snat_set(Engine *e, const Cmd *c, const CmdSnat *b) noexcept nogil:
    """A rule. One that is there changes in place: its connections and its order among the others are never without it."""
    cdef Svc s
    if c.id >= e.max_svc or (b.af != 4 and b.af != 6) or b.pool == 0 or b.sources == 0 or b.timeout_established > TIMEOUT_MAX:
        return False
    memset(&s, 0, sizeof(Svc))
    memcpy(s.vaddr, b.digest, 16)
    s.af = b.af
    s.mode = MODE_SNAT
    s.sched = SCHED_FIRST                # the table's one slot is the rule's dest
    s.table_off = b.table_off
    s.table_len = 1
    s.timeout_established = b.timeout_established
    s.snat_order = b.order
    s.snat_pool = b.pool
    s.snat_sources = b.sources
    s.snat_dests = b.dests
    s.snat_protocols = b.protocols
    s.snat_in = b.ifin
    s.snat_out = b.ifout
    s.gen = c.gen
    s.flags = SVC_USED
    if snat_slots(&s) > e.arena_slots or b.table_off > e.arena_slots - snat_slots(&s):
        return False
    if e.svc[c.id].mode != MODE_SNAT:
        svc_del(e, c.id)
    if c.flags & CMD_FRESH:
        memset(e.svc_stat + c.id, 0, sizeof(SvcStat))
    e.svc[c.id] = s
    snat_refresh(e)
    return True


cdef inline void dest_hash_in(Engine *e, uint32_t id) noexcept nogil:
    """Chains are in order of the numbers."""
    cdef uint32_t *p = e.dest_hash + dest_bucket(e.dest[id].addr, e.dest[id].port)
    while p[0] and p[0] < id + 1:
        p = &e.dest[p[0] - 1].next
    e.dest[id].next = p[0]
    p[0] = id + 1
    e.dests += 1


cdef inline bint dest_stands(const Dest *d) noexcept nogil:
    return d.weight != 0 and (d.flags & (DEST_USED | DEST_UP)) == (DEST_USED | DEST_UP)


cdef inline void dest_unhash(Engine *e, uint32_t id) noexcept nogil:
    cdef uint32_t *p = e.dest_hash + dest_bucket(e.dest[id].addr, e.dest[id].port)
    quic_unhash(e, id)
    e.dests -= 1
    while p[0]:
        if p[0] == id + 1:
            p[0] = e.dest[id].next
            return
        p = &e.dest[p[0] - 1].next


cdef inline void dest_left(Engine *e, uint32_t svc) noexcept nogil:
    """A real server of it can't take connections any more. Where that ends those it has, they must leave the fast lane: by a new
    generation of routes every connection goes the general way once, and there it is seen (orphan.pxd)."""
    if svc < e.max_svc and e.svc[svc].flags & EXPIRES:
        e.fib_gen[0] += 1


cdef inline void dest_del(Engine *e, uint32_t id) noexcept nogil:
    if not e.dest[id].flags & DEST_USED:
        return
    if dest_stands(e.dest + id):
        dest_left(e, e.dest[id].svc)
    if e.svc[e.dest[id].svc].mode == MODE_NAT:
        e.nat_gone = 1
    dest_unhash(e, id)
    e.dest[id].near = 0
    e.dest[id].flags = 0


cdef inline void ending_begin(Engine *e) noexcept nogil:
    """Every record is looked at from now on, whatever was seen before."""
    e.ending_left = 0xffffffff
    e.ending_side = 0


cdef inline void gue_note(Engine *e, const Dest *d) noexcept nogil:
    if d.tunnel & TUNNEL_KIND == TUNNEL_GUE:
        e.gue[d.tunnel_port >> 3] |= <uint8_t> (1 << (d.tunnel_port & 7))


cdef inline void service_refresh(Engine *e) noexcept nogil:
    """What is private to the process, from tables that were there before it."""
    cdef uint32_t i
    memset(e.dest_hash, 0, sizeof(e.dest_hash))
    e.dests = 0
    memset(e.quic_hash, 0, sizeof(e.quic_hash))
    for i in range(e.max_dest - 1, -1, -1):
        if e.dest[i].flags & DEST_USED:
            dest_hash_in(e, i)
            gue_note(e, e.dest + i)
            quic_hash_in(e, i)
        if e.dest[i].flags & DEST_END:
            ending_begin(e)
    snat_refresh(e)
    tunnel_count(e)
    e.nat_services = 0
    e.any_services = 0
    e.one_packet_services = 0
    e.persist_services = 0
    e.tunnel_services = 0
    e.echo_services = 0
    memset(e.vip_hash, 0, sizeof(e.vip_hash))
    e.oneway_least = TIMEOUT_MAX
    for i in range(e.max_svc):
        e.svc[i].alias = 0
    for i in range(e.max_svc):
        if not e.svc[i].flags & SVC_USED:
            continue
        vip_hash_in(e, i)
        svc_count(e, e.svc + i, 1)
        if e.svc[i].flags & SVC_ALIAS and e.svc[i].target < e.max_svc:
            alias_in(e, i)
        if e.svc[i].timeout_udp and e.svc[i].timeout_udp < e.oneway_least:
            e.oneway_least = e.svc[i].timeout_udp


cdef inline bint dest_set(Engine *e, const Cmd *c, const CmdDest *b) noexcept nogil:
    cdef Dest *d
    cdef bint stood, ended
    cdef uint8_t overload
    if c.id >= e.max_dest or b.svc >= e.max_svc or (b.af != 4 and b.af != 6):
        return False
    if b.tunnel & TUNNEL_KIND > TUNNEL_GUE or b.tunnel & ~(TUNNEL_KIND | TUNNEL_CSUM):
        return False
    d = e.dest + c.id
    d.near = 0
    stood = dest_stands(d)
    ended = d.flags & DEST_END
    if d.flags & DEST_USED:
        dest_unhash(e, c.id)
    if c.flags & CMD_FRESH:
        memset(e.dest_stat + c.id, 0, sizeof(SvcStat))
        d.pmtu = 0
        d.since = tick_now(e)
    overload = d.flags & DEST_OVERLOAD if d.upper == b.upper and not c.flags & CMD_FRESH else 0
    memcpy(d.addr, b.addr, 16)
    d.port = b.port
    d.af = b.af
    d.svc = b.svc
    d.weight = b.weight
    d.tunnel = b.tunnel
    d.tunnel_port = b.tunnel_port
    d.gen = c.gen
    d.adj = ADJ_NONE
    d.fib_gen = e.fib_gen[0] - 1
    d.upper = b.upper
    d.lower = b.lower
    d.flags = b.flags | DEST_USED | overload
    gue_note(e, d)
    d.quic = b.quic
    d.quic_id = b.quic_id
    dest_hash_in(e, c.id)
    quic_hash_in(e, c.id)
    if stood and not dest_stands(d):
        dest_left(e, d.svc)
    if d.flags & DEST_END and not ended:
        ending_begin(e)
    return True


cdef inline void lips_take(Engine *e, uint32_t flags) noexcept nogil:
    """Appends those with just these flags."""
    cdef uint32_t i
    for i in range(e.max_lip):
        if e.lip[i].flags != flags:
            continue
        if e.lip[i].af == 4 and e.lip4_all < LIP_MAX:
            e.lip4[e.lip4_all] = i
            e.lip4_all += 1
        elif e.lip[i].af == 6 and e.lip6_all < LIP_MAX:
            e.lip6[e.lip6_all] = i
            e.lip6_all += 1


cdef inline void lip_refresh(Engine *e) noexcept nogil:
    """The short lists of LIPs per family, from the table."""
    e.lip4_all = 0
    e.lip6_all = 0
    lips_take(e, LIP_USED)
    e.lip4_n = e.lip4_all
    e.lip6_n = e.lip6_all
    lips_take(e, LIP_USED | LIP_SNAT)


cdef inline bint lip_set(Engine *e, const Cmd *c, const CmdLip *b) noexcept nogil:
    cdef Lip *lip
    if c.id >= e.max_lip or b.port_hi < b.port_lo or b.port_lo == 0 or (b.af != 4 and b.af != 6):
        return False
    lip = e.lip + c.id
    if c.flags & CMD_FRESH:
        memset(e.lip_stat + c.id, 0, sizeof(LipStat))
        # always at the range's start, so that a replay picks the same ports; those in use are known from the connection file
        lip.cursor = 0
    memcpy(lip.addr, b.addr, 16)
    lip.af = b.af
    lip.port_lo = b.port_lo
    lip.port_hi = b.port_hi
    lip.gen = c.gen
    lip.flags = LIP_USED | (b.flags & LIP_SNAT)
    lip_refresh(e)
    return True


cdef inline void fast_refresh(Engine *e) noexcept nogil:
    """Transport checksums are verified by the general way alone."""
    cdef uint32_t i
    e.partial = 0
    for i in range(IFACE_MAX):
        e.fast[i] = LANE_CLOSED if e.fast_off or e.verify_csum else LANE_OPEN
        if e.iface[i].flags & IFACE_PARTIAL:
            e.partial |= <uint32_t> 1 << i


cdef inline void iface_refresh(Engine *e, uint32_t id) noexcept nogil:
    """An interface, or a VLAN device on it, has changed: so have the next hops behind it."""
    cdef uint32_t i
    cdef Adj *a
    for i in range(ADJ_MAX):
        a = e.adj + i
        if a.flags & ADJ_USED and a.iface == id:
            a.link = link_of(e, id, adj_tags(a))
            memcpy(a.smac, e.iface[a.link].mac, 6)
            adj_refresh(a, e.iface)


cdef inline uint32_t iface_under(Engine *e, uint32_t id) noexcept nogil:
    return id if id < IFACE_MAX else e.iface[id].lower


cdef inline void iface_del(Engine *e, uint32_t id) noexcept nogil:
    e.iface[id].flags = 0
    iface_refresh(e, iface_under(e, id))
    e.fib_gen[0] += 1


cdef inline bint iface_set(Engine *e, const Cmd *c, const CmdIface *b) noexcept nogil:
    cdef uint32_t i
    cdef Iface *f
    if c.id >= LINK_MAX or b.lower >= IFACE_MAX or b.of > IFACE_MAX or b.member_n > MEMBER_MAX or b.policy > BOND_L34:
        return False
    for i in range(b.member_n):
        if b.member[i] >= IFACE_MAX:
            return False
    f = e.iface + c.id
    if c.id >= IFACE_MAX and f.flags & IFACE_USED and f.lower != b.lower:
        iface_del(e, c.id)
    memcpy(f.mac, b.mac, 6)
    memcpy(f.addr4, b.addr4, 4)
    memcpy(f.addr6, b.addr6, 16)
    f.mtu = b.mtu
    f.ifindex = b.ifindex
    f.lower = b.lower
    f.tpid = b.tpid
    f.vlan = b.vlan
    f.outer = b.outer
    f.policy = b.policy
    f.member_n = b.member_n
    memcpy(f.member, b.member, MEMBER_MAX)
    f.of = b.of
    f.gen = c.gen
    f.flags = b.flags | IFACE_USED
    iface_refresh(e, iface_under(e, c.id))
    fast_refresh(e)
    e.fib_gen[0] += 1
    return True


cdef inline void neigh_drop(Engine *e, uint32_t i) noexcept nogil:
    """Connections may hold its number: the entry stays, without a MAC, until its place is needed."""
    e.adj[i].flags &= <uint8_t> ~ADJ_VALID
    adj_refresh(e.adj + i, e.iface)


cdef inline bint neigh_set(Engine *e, const Cmd *c, const CmdNeigh *b) noexcept nogil:
    cdef uint32_t i
    if b.iface >= IFACE_MAX or (b.af != 4 and b.af != 6):
        return False
    i = adj_make(e, b.addr, b.af, b.iface, tag_word(b.vlan, b.outer, b.tpid))
    if i == ADJ_NONE:
        return False
    e.adj[i].gen = c.gen
    if b.valid:
        memcpy(e.adj[i].dmac, b.mac, 6)
        e.adj[i].flags |= ADJ_VALID
        adj_refresh(e.adj + i, e.iface)
    else:
        neigh_drop(e, i)
    return True


cdef inline void route_count(Engine *e, uint32_t af, uint32_t plen, int by) noexcept nogil:
    if af == 4:
        e.plen4[plen] += by
    else:
        e.plen6[plen] += by


cdef inline bint route_set(Engine *e, const Cmd *c, const CmdRoute *b) noexcept nogil:
    cdef uint32_t k, n, h
    cdef Route *r
    if b.iface >= IFACE_MAX or (b.af != 4 and b.af != 6) or b.plen > (32 if b.af == 4 else 128):
        return False
    n = route_find(e, b.prefix, b.plen, b.af)
    if n == 0:
        for k in range(FIB_MAX):
            if not e.route[(e.route_free + k) % FIB_MAX].flags & ROUTE_USED:
                n = (e.route_free + k) % FIB_MAX + 1
                break
        if n == 0:
            return False
        e.route_free = n % FIB_MAX
        r = e.route + (n - 1)
        memcpy(r.prefix, b.prefix, 16)
        r.af = b.af
        r.plen = b.plen
        h = route_bucket(b.prefix, b.plen, b.af)
        r.next = e.route_hash[h]
        e.route_hash[h] = n
        route_count(e, b.af, b.plen, 1)
        r.flags = 0
        r.gen = c.gen - 1
    r = e.route + (n - 1)
    # a full synchronisation repeats what is there: only a real change makes connections look again
    if (r.flags != (b.flags | ROUTE_USED) or r.iface != b.iface or memcmp(r.gateway, b.gateway, 16) != 0
            or tag_word(r.vlan, r.outer, r.tpid) != tag_word(b.vlan, b.outer, b.tpid)):
        e.fib_gen[0] += 1
    memcpy(r.gateway, b.gateway, 16)
    r.iface = b.iface
    r.vlan = b.vlan
    r.outer = b.outer
    r.tpid = b.tpid
    r.metric = b.metric
    r.gen = c.gen
    r.flags = b.flags | ROUTE_USED
    return True


cdef inline void route_del(Engine *e, uint32_t n) noexcept nogil:
    """n: number + 1."""
    cdef Route *r = e.route + (n - 1)
    cdef uint32_t *p = e.route_hash + route_bucket(r.prefix, r.plen, r.af)
    while p[0]:
        if p[0] == n:
            p[0] = r.next
            break
        p = &e.route[p[0] - 1].next
    route_count(e, r.af, r.plen, -1)
    r.flags = 0
    e.fib_gen[0] += 1


cdef inline TunnelEnd *tunnel_find(Engine *e, const CmdTunnel *b) noexcept nogil:
    """That of this command, or a free place; NULL: neither."""
    cdef TunnelEnd *spare = NULL
    cdef TunnelEnd *k
    cdef uint32_t i
    for i in range(TUNNEL_MAX):
        k = e.tunnel + i
        if not k.used:
            spare = k if spare == NULL else spare
        elif k.af == b.af and k.kind == b.kind and memcmp(k.local, b.local, 16) == 0 and memcmp(k.remote, b.remote, 16) == 0:
            return k
    return spare


cdef inline void tunnel_count(Engine *e) noexcept nogil:
    cdef uint32_t i
    e.tunnel_n = 0
    for i in range(TUNNEL_MAX):
        e.tunnel_n += e.tunnel[i].used


cdef inline bint tunnel_set(Engine *e, const Cmd *c, const CmdTunnel *b) noexcept nogil:
    cdef TunnelEnd *k = tunnel_find(e, b)
    if k == NULL or (b.af != 4 and b.af != 6) or (b.kind != TUNNEL_IPIP and b.kind != TUNNEL_GRE):
        return False
    if not k.used:
        k.packets = k.octets = k.refused = 0
    memcpy(k.local, b.local, 16)
    memcpy(k.remote, b.remote, 16)
    k.af = b.af
    k.kind = b.kind
    k.gen = c.gen
    k.used = 1
    tunnel_count(e)
    return True


cdef inline void tunnel_del(Engine *e, const CmdTunnel *b) noexcept nogil:
    cdef TunnelEnd *k = tunnel_find(e, b)
    if k != NULL:
        k.used = 0
    tunnel_count(e)


cdef inline bint older(uint32_t gen, uint32_t than) noexcept nogil:
    return <int> (gen - than) < 0


cdef inline bint sweep(Engine *e, uint32_t what, uint32_t gen) noexcept nogil:
    """Deletes all of one kind that the commands since `gen` did not mention."""
    cdef uint32_t i
    if what == SWEEP_SVC:
        for i in range(e.max_svc):
            if e.svc[i].flags & SVC_USED and older(e.svc[i].gen, gen):
                svc_del(e, i)
    elif what == SWEEP_DEST:
        for i in range(e.max_dest):
            if e.dest[i].flags & DEST_USED and older(e.dest[i].gen, gen):
                dest_del(e, i)
    elif what == SWEEP_LIP:
        for i in range(e.max_lip):
            if e.lip[i].flags & LIP_USED and older(e.lip[i].gen, gen):
                e.lip[i].flags = 0
        lip_refresh(e)
    elif what == SWEEP_NEIGH:
        for i in range(ADJ_MAX):
            if (e.adj[i].flags & (ADJ_USED | ADJ_LEARNED)) == ADJ_USED and older(e.adj[i].gen, gen):
                neigh_drop(e, i)
    elif what == SWEEP_ROUTE:
        for i in range(FIB_MAX):
            if e.route[i].flags & ROUTE_USED and older(e.route[i].gen, gen):
                route_del(e, i + 1)
    elif what == SWEEP_IFACE:
        for i in range(LINK_MAX):
            if e.iface[i].flags & IFACE_USED and older(e.iface[i].gen, gen):
                iface_del(e, i)
    elif what == SWEEP_TUNNEL:
        for i in range(TUNNEL_MAX):
            if e.tunnel[i].used and older(e.tunnel[i].gen, gen):
                e.tunnel[i].used = 0
        tunnel_count(e)
    else:
        return False
    return True


cdef inline bint setting(Engine *e, uint32_t which, uint64_t value) noexcept nogil:
    if which == SET_VERIFY_CSUM:
        e.verify_csum = value != 0
        fast_refresh(e)
    elif which == SET_RETURN_ROUTE:
        e.return_route = value != 0
    elif which == SET_ICMP_RATE:
        e.icmp_bucket.rate = value
    elif which == SET_KERNEL_RATE:
        e.kernel_bucket.rate = value
    elif which == SET_FRAG_TIMEOUT:
        if value > TIMEOUT_MAX:
            return False
        e.frag_timeout = <uint32_t> value
    elif which == SET_PORT_REST:
        if value > TIMEOUT_MAX:
            return False
        e.port_rest = <uint32_t> value
    elif SET_TIMEOUT_BASE <= which < SET_TIMEOUT_BASE + 16:
        if value > TIMEOUT_MAX:
            return False
        e.timeout[which - SET_TIMEOUT_BASE] = <uint32_t> value
    else:
        return which == SET_POLL_MODE           # the adapter's
    return True


cdef inline bint command_apply(Engine *e, const Cmd *c) noexcept nogil:
    """Carries out one command on the tables; False when it can't be (unknown, or a number beyond its table).
    CMD_CAPTURE, CMD_STOP, CMD_PORT_GONE and SET_POLL_MODE are the adapter's: accepted here without effect."""
    cdef const CmdNeigh *nb
    cdef const CmdRoute *rt
    cdef uint32_t n
    if c.op == CMD_SVC_SET:
        return svc_set(e, c, <const CmdSvc *> c.body)
    if c.op == CMD_SNAT_SET:
        return snat_set(e, c, <const CmdSnat *> c.body)
    if c.op == CMD_SVC_DEL:
        svc_del(e, c.id)
    elif c.op == CMD_DEST_SET:
        return dest_set(e, c, <const CmdDest *> c.body)
    elif c.op == CMD_DEST_DEL:
        if c.id < e.max_dest:
            dest_del(e, c.id)
    elif c.op == CMD_LIP_SET:
        return lip_set(e, c, <const CmdLip *> c.body)
    elif c.op == CMD_LIP_DEL:
        if c.id < e.max_lip:
            e.lip[c.id].flags = 0
        lip_refresh(e)
    elif c.op == CMD_IFACE_SET:
        return iface_set(e, c, <const CmdIface *> c.body)
    elif c.op == CMD_IFACE_DEL:
        if c.id < LINK_MAX:
            iface_del(e, c.id)
    elif c.op == CMD_NEIGH_SET:
        return neigh_set(e, c, <const CmdNeigh *> c.body)
    elif c.op == CMD_NEIGH_DEL:
        nb = <const CmdNeigh *> c.body
        n = adj_find(e, nb.addr, nb.af, nb.iface, tag_word(nb.vlan, nb.outer, nb.tpid))
        if n != ADJ_NONE:
            neigh_drop(e, n)
    elif c.op == CMD_ROUTE_SET:
        return route_set(e, c, <const CmdRoute *> c.body)
    elif c.op == CMD_ROUTE_DEL:
        rt = <const CmdRoute *> c.body
        if rt.plen > 128:
            return False
        n = route_find(e, rt.prefix, rt.plen, rt.af)
        if n:
            route_del(e, n)
    elif c.op == CMD_TUNNEL_SET:
        return tunnel_set(e, c, <const CmdTunnel *> c.body)
    elif c.op == CMD_TUNNEL_DEL:
        tunnel_del(e, <const CmdTunnel *> c.body)
    elif c.op == CMD_SETTING:
        return setting(e, c.id, (<const CmdValue *> c.body).value)
    elif c.op == CMD_SWEEP:
        return sweep(e, c.id, c.gen)
    else:
        return c.op == CMD_NOP or c.op == CMD_OWNER or c.op == CMD_CAPTURE or c.op == CMD_STOP or c.op == CMD_PORT_GONE
    return True
