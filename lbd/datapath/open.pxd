# The making of a connection: what a burst's packets without one become. They are taken in two steps, so that the lines a new
# connection needs (its record, and the bucket of its answers) are on their way while the others are planned: plan (judge, schedule,
# guess the local port), then open. Order among them is kept: whatever is not plainly a flow's first packet is looked up again in
# its turn. (Packets with a connection were served before: one that an eviction here ends was still good for this burst's.)
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_compiler_barrier, lbd_prefetchw, lbd_st32, lbd_unlikely
from lbd.datapath.engine cimport ConnExt, Engine, Plan
from lbd.datapath.ext cimport ext_give, ext_take
from lbd.datapath.pkt cimport Pkt, PKT_HANDED, PKT_ICMP_ERROR, PKT_NEW
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.hdr cimport PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, TcpHdr, TCP_ACK, TCP_RST, TCP_SYN
from lbd.datapath.reason cimport *
from lbd.datapath.conn cimport *
from lbd.datapath.tcp cimport *
from lbd.datapath.svc cimport (Dest, DEST_NONE, DEST_UP, DEST_USED, LIP_NONE, MODE_DR, MODE_FULLNAT, MODE_NAT, MODE_NAT64,
                               MODE_SNAT, MODE_TUNNEL, SVC_ALIAS, SVC_NONE, SVC_ONE_PACKET, Svc)
from lbd.datapath.echo cimport echo_asks, is_icmp
from lbd.datapath.neigh cimport ADJ_LEARNED, ADJ_NONE
from lbd.datapath.lookup cimport dest_bucket, lip_lookup, nat_dest, nat_end, svc_of, vip_lookup
from lbd.datapath.lifetime cimport conn_end, conn_schedule, evict, stat_count, table_of
from lbd.datapath.laddr cimport (FIT_REUSED, PORTS_MET, laddr_guess, laddr_guess_again, laddr_pick, port_fit, port_prefetch,
                                 server_edge)
from lbd.datapath.owner cimport flow_owner
from lbd.datapath.sctp cimport CHUNK_ABORT, CHUNK_INIT
from lbd.datapath.persist cimport HAND_ASK, PICK_ASKED, dest_for, dest_prefetch, persist_answer
from lbd.datapath.nat cimport delta_set
from lbd.datapath.nat64 cimport addr_map, tuple_map
from lbd.datapath.tunnel cimport tunnel_keep
from lbd.datapath.fast cimport fast_first
from lbd.datapath.forward cimport drop, forward_known
from lbd.datapath.parse cimport KIND_FAST
from lbd.datapath.count cimport EXPIRE_ADMIN, EXPIRE_CLOSED, EXPIRE_REUSED

cdef enum Step:
    STEP_DONE = 0               # the verdict is set
    STEP_OPEN = 1               # by its plan
    STEP_AGAIN = 2              # an earlier one may have opened its connection: look up again

cdef enum:
    HOPS_MAX = 3                # this epoch's owner, the previous epoch's, and back
    HOPS_ASKING = 16            # of an answer in mode NAT: every worker; its later fragments go the same way
    REUSE_GAP = 131072          # beyond the old connection's last number: further than segments of it still on their way
    OWNER_NONE = 0xffffffff     # no worker
    SVC_UNASKED = 0xffffffff    # instead of a service's number: not looked for yet
    ROOM_AHEAD = 8              # records fetched before the one that is taken: all of a burst's at once would be waited for
    SEEN = 128                  # slots of the set of tuples met in a burst (64 packets)


cdef inline bint asks(const Pkt *p) noexcept nogil:
    """A client's request for a connection, by a protocol that has such: it opens one whatever was before."""
    if p.proto == PROTO_TCP:
        return (p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN
    return p.proto == PROTO_SCTP and p.tcp_flags == CHUNK_INIT


cdef inline bint opens(const Pkt *p) noexcept nogil:
    """May it be a flow's first packet?"""
    if p.proto == PROTO_TCP:
        return (p.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN
    if p.proto == PROTO_SCTP:
        return p.tcp_flags == CHUNK_INIT
    return not is_icmp(p.proto) or echo_asks(p.data + p.l4, p.proto)


cdef inline bint resets(const Pkt *p) noexcept nogil:
    if p.proto == PROTO_TCP:
        return p.tcp_flags & TCP_RST
    return p.proto == PROTO_SCTP and p.tcp_flags == CHUNK_ABORT


cdef inline bint hand_on(Pkt *p, uint32_t owner) noexcept nogil:
    p.verdict = VERDICT_HANDOVER
    p.reason = REASON_NONE
    p.owner = owner
    return True


cdef inline uint32_t address_after(const Engine *e, uint32_t a) noexcept nogil:
    """The next one of a service's addresses: number + 1, 0 = none."""
    return e.svc[a - 1].alias_next if e.svc[a - 1].flags & SVC_ALIAS else e.svc[a - 1].alias


cdef struct Asking:             # of the owners that an answer's connection may have, in the order of its candidates
    Tuple forth                 # what the client's packets carry
    uint32_t met                # bits of those found so far
    bint passed                 # this worker is among them, or the first to look: the next one that is found is the next to ask
    uint32_t first              # the first one found, + 1


cdef inline bint asks_next(const Engine *e, Asking *asking, uint32_t owner) noexcept nogil:
    """A worker that may have the connection: is it the next to ask?"""
    cdef uint32_t bit
    if owner >= e.workers:
        return False
    bit = <uint32_t> 1 << owner
    if asking.met & bit:
        return False
    asking.met |= bit
    if asking.first == 0:
        asking.first = owner + 1
    if owner == e.worker:
        asking.passed = True
        return False
    return asking.passed


cdef inline uint32_t ask_owners(Engine *e, const Tuple *t, Asking *asking, uint16_t port, uint32_t epoch, int af) noexcept nogil:
    """Of the real servers with this port (0: the client's), of each address of their services; until all workers are found. The
    next to ask, or OWNER_NONE."""
    cdef uint32_t owner, a, d = nat_dest(e, e.dest_hash[dest_bucket(t.saddr, port)], t.saddr, port)
    cdef uint32_t all_workers = (<uint32_t> 1 << e.workers) - 1
    while d and asking.met != all_workers:
        a = e.dest[d - 1].svc + 1
        while a and asking.met != all_workers:
            if nat_end(e.dest + (d - 1), e.svc + (a - 1), t):
                memcpy(asking.forth.daddr, e.svc[a - 1].vaddr, 16)
                asking.forth.dport = e.svc[a - 1].vport if e.svc[a - 1].vport else t.sport
                owner = flow_owner(e, &asking.forth, tuple_hash(&asking.forth, e.hash_key, af), af, epoch)
                if asks_next(e, asking, owner):
                    return owner
            a = address_after(e, a)
        d = nat_dest(e, e.dest[d - 1].next, t.saddr, port)
    return OWNER_NONE


cdef inline uint32_t ask_others(Engine *e, uint32_t i, Asking *asking, int af) noexcept nogil:
    """Then everybody, whoever would have it were it no answer first."""
    cdef uint32_t k, owner
    for k in range(2 if e.owner_prev_valid else 1):
        owner = flow_owner(e, &e.tuple[i], e.hash[i], af, k)
        if asks_next(e, asking, owner):
            return owner
    for owner in range(e.workers):
        if asks_next(e, asking, owner):
            return owner
    return OWNER_NONE


cdef inline uint32_t whom_to_ask(Engine *e, uint32_t i, Asking *asking, int af) noexcept nogil:
    cdef uint32_t epoch, owner
    for epoch in range(2 if e.owner_prev_valid else 1):
        owner = ask_owners(e, &e.tuple[i], asking, e.tuple[i].sport, epoch, af)
        if owner == OWNER_NONE:
            owner = ask_owners(e, &e.tuple[i], asking, 0, epoch, af)
        if owner != OWNER_NONE:
            return owner
    if e.nat_gone:
        owner = ask_others(e, i, asking, af)
        if owner != OWNER_NONE:
            return owner
    # the sender goes by another table: one of the two is changed just now
    return asking.first - 1 if asking.first and not asking.passed else <uint32_t> OWNER_NONE


cdef inline bint hand_answer(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """What a NAT real server sends carries no address of lbd. Its connection, if it has one, is with the owner of the client's
    tuple: of each service that has this real server, in turn, by this epoch's rule, then by the one before; or, where a service or
    real server has gone, with anybody. Each worker is asked once (but for who asked first: nobody knows that), and the last one
    gives it to the kernel. True: handed over."""
    cdef Asking asking
    cdef uint32_t owner
    if p.hops >= e.workers:
        return False
    memset(&asking, 0, sizeof(Asking))
    asking.passed = p.hops == 0
    memcpy(asking.forth.saddr, e.tuple[i].daddr, 16)
    asking.forth.sport = e.tuple[i].dport
    asking.forth.proto = e.tuple[i].proto
    asking.forth.af = af
    owner = whom_to_ask(e, i, &asking, af)
    if owner == OWNER_NONE:
        return False
    e.count.misplaced += not p.flags & PKT_HANDED
    return hand_on(p, owner)


cdef inline bint answers(Engine *e, const Tuple *t, uint16_t port) noexcept nogil:
    """May a NAT real server with this port have sent it, for any address of its service?"""
    cdef uint32_t a, d = nat_dest(e, e.dest_hash[dest_bucket(t.saddr, port)], t.saddr, port)
    while d:
        a = e.dest[d - 1].svc + 1
        while a:
            if nat_end(e.dest + (d - 1), e.svc + (a - 1), t):
                return True
            a = address_after(e, a)
        d = nat_dest(e, e.dest[d - 1].next, t.saddr, port)
    return False


cdef inline bint is_answer(Engine *e, uint32_t i) noexcept nogil:
    """From a NAT real server?"""
    return answers(e, &e.tuple[i], e.tuple[i].sport) or answers(e, &e.tuple[i], 0)


cdef inline bint stray(Engine *e, const Pkt *p, const Tuple *t, int af) noexcept nogil:
    """Nobody's by all that is known: may it be an answer of a NAT real server, or service, that has gone?"""
    if e.nat_gone == 0 or vip_lookup(e, t.daddr, af):
        return False
    if p.flags & PKT_ICMP_ERROR or not opens(p):
        return True
    return t.proto == PROTO_UDP and e.snat_n == 0       # else it is more likely an internal host's


cdef inline bint hand_over(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """On a local miss: is the flow another worker's? This epoch's owner is asked, and it asks the previous epoch's where that is
    still valid; there on a miss the packet comes back, and the owner may open a connection. At most three hops."""
    cdef uint32_t owner
    if e.workers == 1:
        return False
    if lbd_unlikely((e.nat_services | e.nat_gone) != 0) and not lip_port(e, &e.tuple[i], af):
        if is_answer(e, i) or stray(e, p, &e.tuple[i], af):
            return hand_answer(e, p, i, af)
    owner = flow_owner(e, &e.tuple[i], e.hash[i], af, 0)
    if owner != e.worker and not p.flags & PKT_HANDED:
        e.count.misplaced += 1
    if owner == e.worker:
        # a SYN opens a connection: no need to ask where it lived before
        if not e.owner_prev_valid or p.hops > 1 or (asks(p) and not p.flags & PKT_ICMP_ERROR):
            return False
        owner = flow_owner(e, &e.tuple[i], e.hash[i], af, 1)
        if owner == e.worker:
            return False
    if p.hops >= HOPS_MAX or owner >= e.workers:
        drop(p, REASON_HOP_LIMIT)
        return True
    return hand_on(p, owner)


cdef inline bint alone(const Engine *e, uint32_t i) noexcept nogil:
    """Nothing that another worker could know of this packet: there is none."""
    return e.workers == 1 and e.hand[i] == 0


cdef inline bint elsewhere(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """On a local miss: is there something to be done elsewhere first? What another worker asked is answered; what was answered to
    this one is opened here, whoever owns the flow by now."""
    if lbd_unlikely(e.hand[i] != 0):
        if e.hand[i] & HAND_ASK:
            persist_answer(e, p, i, &e.tuple[i], af)
            return True
        return False
    return hand_over(e, p, i, af)


cdef inline bint lip_port(Engine *e, const Tuple *t, int af) noexcept nogil:
    """Is its destination a local address and a port of lbd's own range? The address's other ports are the kernel's."""
    cdef uint32_t lip = lip_lookup(e, t.daddr, af)
    return lip != LIP_NONE and e.lip[lip].port_lo <= lbd_bswap16(t.dport) <= e.lip[lip].port_hi


cdef inline bint may_open(Engine *e, Pkt *p, uint32_t i, uint32_t svc, int af) noexcept nogil:
    """No connection here: does this packet open one (of service p.svc)? False: another worker's, or nobody's; verdict set. svc: its
    service, SVC_NONE, or SVC_UNASKED."""
    cdef const Tuple *t = &e.tuple[i]
    if lbd_unlikely(not alone(e, i)) and elsewhere(e, p, i, af):
        return False
    p.svc = svc_of(e, t, p.ifin, af) if svc == SVC_UNASKED else svc
    if p.flags & PKT_ICMP_ERROR:
        drop(p, REASON_ICMP_UNMATCHED)
        # (a ping from a local address may be the host's, whatever its identifier)
        if p.svc == SVC_NONE and (is_icmp(t.proto) or not lip_port(e, t, af)):
            p.verdict = VERDICT_KERNEL
        p.svc = SVC_NONE
        return False
    if p.svc == SVC_NONE:
        if not is_icmp(t.proto) and lip_port(e, t, af):
            return drop(p, REASON_NO_STATE)
        p.verdict = VERDICT_KERNEL
        p.reason = REASON_NOT_FOR_US
        return False
    if not opens(p):
        return drop(p, REASON_NO_STATE)
    return True


cdef inline bint looks_new(Engine *e, Pkt *p, uint32_t i, uint32_t *svc, int af) noexcept nogil:
    """Will it open a connection (of service p.svc) if it has none? Then what its real server is chosen by is on its way. Sets svc,
    if it looks for the service."""
    cdef const Tuple *t = &e.tuple[i]
    if p.flags & PKT_ICMP_ERROR or not opens(p):
        return False
    svc[0] = svc_of(e, t, p.ifin, af)
    p.svc = svc[0]
    if svc[0] == SVC_NONE:
        return False
    dest_prefetch(e, svc[0], t)
    return True


cdef inline uint32_t syn_number(const Pkt *p) noexcept nogil:
    return lbd_bswap32((<TcpHdr *> (p.data + p.l4)).seq) if p.proto == PROTO_TCP else 0


cdef inline void reserve(Engine *e, uint32_t svc, uint32_t dest, int by) noexcept nogil:
    """Counts a connection that is not established when it is planned, so that the next one is scheduled as if this one were open;
    by -1: it was not to be."""
    e.svc_stat[svc].inactive += by
    e.dest_stat[dest].inactive += by


cdef inline uint32_t plan_open(Engine *e, Pkt *p, uint32_t i, Plan *plan, uint32_t nth, int af) noexcept nogil:
    """For a packet that looks new. nth: how many connections of this family were planned before in this burst."""
    if lbd_unlikely(not alone(e, i)) and elsewhere(e, p, i, af):
        p.svc = SVC_NONE
        return STEP_DONE
    plan.dest = dest_for(e, p, i, p.svc, &e.tuple[i])
    if plan.dest == PICK_ASKED:
        p.svc = SVC_NONE
        return STEP_DONE
    plan.isn = syn_number(p)
    plan.over = REF_NONE
    if plan.dest == DEST_NONE:
        drop(p, REASON_NO_BACKEND)
        return STEP_DONE
    reserve(e, p.svc, plan.dest, 1)
    if nth < ROOM_AHEAD:
        room_prefetch(e, nth, af)
    back_from(e, &plan.back, &e.tuple[i], p.svc, plan.dest, af)
    plan.lip = LIP_NONE
    plan.mode = mode_of(e, p.svc, plan.dest)
    if plan.mode == MODE_FULLNAT:
        plan.lip = laddr_guess(e, e.svc + p.svc, &e.tuple[i], plan, af)
        if plan.lip != LIP_NONE:
            port_prefetch(e, plan, af)
    elif af == 6 and plan.mode == MODE_NAT64:
        e.nat64 = 1
        if is_icmp(plan.back.proto):            # as its answers carry it
            plan.back.proto = PROTO_ICMP
        plan.lip = laddr_guess(e, e.svc + p.svc, &e.tuple[i], plan, 4)
        if plan.lip != LIP_NONE:
            port_prefetch(e, plan, 4)
    return STEP_OPEN


cdef inline bint guess_again(Engine *e, const Pkt *p, uint32_t i, Plan *plan, int af) noexcept nogil:
    """Of a connection that is planned: did its local port turn out not to fit? Then it has another one."""
    if af == 6 and plan.mode == MODE_NAT64:
        return laddr_guess_again(e, e.svc + p.svc, &e.tuple[i], plan, 4)
    return laddr_guess_again(e, e.svc + p.svc, &e.tuple[i], plan, af)


cdef inline uint32_t conn_aside(Engine *e, const Tuple *t, uint64_t h, const Tuple *back, uint32_t mode, int af) noexcept nogil:
    """The record that a client's packets (t, its hash h) to one real server of a one-packet service share, or REF_NONE."""
    cdef uint8_t server[16]
    server_addr(back, mode, server)
    return conn_towards(table_of(e, af), t, h, server, back.sport, CONN_ASIDE, af)


cdef inline void open_planned(Engine *e, Pkt *p, uint32_t i, Plan *plan, int af) noexcept nogil:
    cdef uint32_t ref = REF_NONE
    if lbd_unlikely(e.svc[p.svc].flags & SVC_ONE_PACKET):
        ref = conn_aside(e, &e.tuple[i], e.hash[i], &plan.back, plan.mode, af)
        if ref != REF_NONE:
            reserve(e, p.svc, plan.dest, -1)
            scheduled(e, p.svc, plan.dest)
    if ref == REF_NONE:
        ref = conn_open(e, p, &e.tuple[i], e.hash[i], p.svc, plan, af)
    if lbd_unlikely(ref == REF_NONE):
        reserve(e, p.svc, plan.dest, -1)
        return
    if e.kind[i] != KIND_FAST or not fast_first(e, p, ref >> 1, af):
        forward_known(e, p, ref, af)
    e.client_adj = conn_common(table_of(e, af), ref >> 1, af).adj_rev


cdef inline bint met_before(uint8_t *seen, const uint64_t *hashes, uint32_t i) noexcept nogil:
    """seen: the packets met so far (number + 1) by hash, open addressing."""
    cdef uint32_t k = <uint32_t> hashes[i] & (SEEN - 1)
    while seen[k]:
        if hashes[seen[k] - 1] == hashes[i]:
            return True
        k = (k + 1) & (SEEN - 1)
    seen[k] = i + 1
    return False


cdef inline void conn_fill(Engine *e, uint32_t i, const Tuple *t, uint32_t svc, const Plan *plan, int af) noexcept nogil:
    """The record, but for `live`."""
    cdef ConnTable *tab = table_of(e, af)
    cdef ConnCommon *m
    cdef const Tuple *back = &plan.back
    memset(conn_side(tab, i, 0, af), 0, sizeof(Conn4) if af == 4 else sizeof(Conn6))
    end_put(conn_side(tab, i, 0, af), t, af)
    end_put(conn_side(tab, i, 1, af), back, af)
    m = conn_common(tab, i, af)
    m.last_seen = e.now_ms
    m.fib_gen = e.fib_gen[0] - 1
    m.adj_fwd = ADJ_NONE
    m.adj_rev = ADJ_NONE
    lbd_st32(&m.svc, svc | plan.dest << 16)     # and dest, which are read together
    m.lip = plan.lip
    m.proto = t.proto
    m.flags = plan.mode << CONN_MODE_SHIFT
    if e.dest[plan.dest].af != af:
        m.flags |= CONN_OTHER_FAMILY
        memcpy(tab.cold[i].daddr_rest, back.saddr + 4, 12)
    tab.cold[i].created = e.now_ms
    tab.cold[i].timeout = 0
    delta_set(tab, i, af)
    if plan.mode == MODE_TUNNEL:
        tunnel_keep(e, tab, i, plan.dest, af)


cdef inline void ways_guess(Engine *e, ConnCommon *m) noexcept nogil:
    """What adj_resolve and adj_learn (way_out) would find for most: the way that this real server's last connection has, and the
    sender of the last one's request. way_out looks at both."""
    cdef const Dest *d = e.dest + m.dest
    if d.fib_gen == e.fib_gen[0] and d.adj != ADJ_NONE and not e.return_route and conn_mode(m) != MODE_DR:
        if e.svc[m.svc].mode == MODE_SNAT:      # its dest is no real server
            return
        m.adj_fwd = d.adj
        m.fib_gen = d.fib_gen
    if e.adj[e.client_adj].flags & ADJ_LEARNED:
        m.adj_rev = e.client_adj
        e.adj[e.client_adj].seen = e.now_ms


cdef inline void room_prefetch(Engine *e, uint32_t nth, int af) noexcept nogil:
    """The record that will be taken when nth others are."""
    cdef ConnTable *tab = table_of(e, af)
    cdef uint32_t i
    if nth >= tab.free_n:
        return
    i = tab.free[tab.free_n - 1 - nth]
    lbd_prefetchw(conn_side(tab, i, 0, af))
    if af == 6:
        lbd_prefetchw(conn_common(tab, i, af))
    lbd_prefetchw(tab.cold + i)


cdef inline uint32_t conn_room(Engine *e, int af) noexcept nogil:
    cdef uint32_t i = conn_alloc(table_of(e, af))
    room_prefetch(e, ROOM_AHEAD - 1, af)
    if i == CONN_NIL and evict(e, af):
        i = conn_alloc(table_of(e, af))
    if i == CONN_NIL:
        e.table_full_n += 1
    return i


cdef inline void scheduled(Engine *e, uint32_t svc, uint32_t dest) noexcept nogil:
    """Counts a connection given to a real server, on a new record or an old one."""
    e.svc_stat[svc].conns += 1
    e.dest_stat[dest].conns += 1


cdef inline uint32_t mode_of(Engine *e, uint32_t svc, uint32_t dest) noexcept nogil:
    """Of a connection of this service to this real server."""
    if e.svc[svc].mode == MODE_FULLNAT and e.svc[svc].af == 6 and e.dest[dest].af == 4:
        return MODE_NAT64
    return MODE_FULLNAT if e.svc[svc].mode == MODE_SNAT else e.svc[svc].mode


cdef inline void server_addr(const Tuple *back, uint32_t mode, uint8_t *addr) noexcept nogil:
    """The source of the answers as a connection of this mode has it (16 bytes)."""
    memcpy(addr, back.saddr, 16)
    if mode == MODE_NAT64:
        addr_map(addr, back.saddr)


cdef inline void back_from(Engine *e, Tuple *back, const Tuple *t, uint32_t svc, uint32_t dest, int af) noexcept nogil:
    """The source of the answers to what a client sent (t): the real server, or with SNAT the remote."""
    memset(back, 0, sizeof(Tuple))
    if e.svc[svc].mode == MODE_SNAT:
        memcpy(back.saddr, t.daddr, 16)
        back.sport = t.dport
    else:
        memcpy(back.saddr, e.dest[dest].addr, 16)
        back.sport = e.dest[dest].port if e.dest[dest].port else t.dport
    back.proto = t.proto
    back.af = af


cdef inline uint32_t local_end(Engine *e, const Tuple *t, uint32_t svc, Plan *plan, int af) noexcept nogil:
    """Local address and port of this family: the guess of the plan, if that port fits, or another one."""
    if plan.lip != LIP_NONE and port_fit(e, plan, af) >= FIT_REUSED:
        e.lip_stat[plan.lip].conns += 1
        e.lip_stat[plan.lip].in_use += 1
        return REASON_NONE
    e.ports_met = PORTS_MET
    plan.lip = laddr_pick(e, e.svc + svc, t, plan, af)
    return REASON_NONE if plan.lip != LIP_NONE else REASON_LOCAL_PORT_EXHAUSTED


cdef inline bint is_over(const ConnCommon *c) noexcept nogil:
    return (c.live == CONN_RESTING or c.state == STATE_TIME_WAIT or c.state == STATE_LAST_ACK or c.state == STATE_CLOSE
            or (c.state == STATE_FIN_WAIT and c.flags & CONN_ONE_WAY))


cdef inline uint32_t client_end(Engine *e, const Tuple *t, Plan *plan, int af) noexcept nogil:
    """Of the other modes: the client's own address and port. By another VIP the same client may have reached the same real server
    from them: a NAT connection that is over makes room, and so does one of a service that scheduled packet by packet before."""
    cdef uint32_t ref
    cdef const ConnCommon *c
    plan.lip = LIP_NONE
    memcpy(plan.back.daddr, t.saddr, 16)
    plan.back.dport = t.sport
    if plan.mode != MODE_NAT:
        return REASON_NONE
    if is_icmp(t.proto) and t.sport == 0:
        return REASON_ECHO_ID_ZERO
    plan.hash = tuple_hash(&plan.back, e.hash_key, af)
    ref = conn_lookup(table_of(e, af), &plan.back, plan.hash, af)
    if ref == REF_NONE:
        return REASON_NONE
    c = conn_common(table_of(e, af), ref >> 1, af)
    if not is_over(c) and not (c.live == CONN_ASIDE and (c.svc == SVC_NONE or not e.svc[c.svc].flags & SVC_ONE_PACKET)):
        return REASON_TUPLE_IN_USE
    conn_end(e, ref >> 1, EXPIRE_CLOSED, af)
    return REASON_NONE


cdef inline uint32_t far_end(Engine *e, const Tuple *t, uint32_t svc, Plan *plan, int af) noexcept nogil:
    """Completes plan.back, which has the real server in it, by the connection's mode, as the record has it. Else why there is no
    connection."""
    cdef uint32_t why
    if plan.mode == MODE_FULLNAT:
        return local_end(e, t, svc, plan, af)
    if af == 6 and plan.mode == MODE_NAT64:
        e.nat64 = 1
        why = local_end(e, t, svc, plan, 4)
        tuple_map(&plan.back, &plan.back, t.proto)
        plan.hash = tuple_hash(&plan.back, e.hash_key, 6)
        return why
    return client_end(e, t, plan, af)


cdef inline void port_take_over(Engine *e, uint32_t i, const Plan *plan, int af) noexcept nogil:
    """Record i, not live yet, gets the port of a connection that is in TIME_WAIT, which ends. The real server must take its SYN for
    a new one."""
    cdef uint32_t edge = server_edge(e, plan.over >> 1, plan.over_af)
    cdef ConnExt *x
    conn_end(e, plan.over >> 1, EXPIRE_REUSED, plan.over_af)
    x = ext_take(e, table_of(e, af), i, af)             # port_fit has seen that there is one
    x.untimed = 1
    if <int32_t> (plan.isn - edge) <= 0:
        x.delta[0] = edge + REUSE_GAP - plan.isn


cdef inline uint32_t state_first(uint8_t proto) noexcept nogil:
    if proto == PROTO_TCP or proto == PROTO_SCTP:
        return STATE_SYN_RECV
    return STATE_ICMP if is_icmp(proto) else STATE_UDP_ONEWAY


cdef inline uint32_t conn_open(Engine *e, Pkt *p, const Tuple *t, uint64_t h, uint32_t svc, Plan *plan, int af) noexcept nogil:
    """A connection for the first packet of a flow (tuple t, its hash h) to the plan's real server: its other end, record, index.
    It is counted already (`reserve`). REF_NONE: dropped."""
    cdef uint32_t i, why, dest = plan.dest
    cdef ConnCommon *m
    p.svc = svc
    p.dest = dest
    i = conn_room(e, af)                        # before the port: evicting may free one
    if i == CONN_NIL:
        drop(p, REASON_CONN_TABLE_FULL)
        return REF_NONE
    why = far_end(e, t, svc, plan, af)
    if why != REASON_NONE:
        conn_free(table_of(e, af), i, af)
        drop(p, why)
        return REF_NONE
    conn_fill(e, i, t, svc, plan, af)
    ways_guess(e, conn_common(table_of(e, af), i, af))
    if lbd_unlikely(plan.over != REF_NONE):
        port_take_over(e, i, plan, af)
    m = conn_common(table_of(e, af), i, af)
    m.state = state_first(t.proto)
    if not conn_index_at(table_of(e, af), i, h, plan.hash, af):
        if plan.lip != LIP_NONE:
            e.lip_stat[plan.lip].in_use -= 1
        if m.flags & CONN_EXTENDED:
            ext_give(e, table_of(e, af), i, af)
        conn_free(table_of(e, af), i, af)
        drop(p, REASON_CONN_TABLE_FULL)
        return REF_NONE
    conn_schedule(e, i, m, af)
    lbd_compiler_barrier()
    m.live = CONN_ASIDE if e.svc[svc].flags & SVC_ONE_PACKET else CONN_LIVE
    scheduled(e, svc, dest)
    e.count.conns_made += 1
    p.flags |= PKT_NEW
    return i << 1


cdef inline bint dest_gone(Engine *e, const ConnCommon *c) noexcept nogil:
    """Its real server can't take a new connection any more."""
    if c.dest == DEST_NONE:
        return True
    return (e.dest[c.dest].flags & (DEST_USED | DEST_UP)) != (DEST_USED | DEST_UP) or e.dest[c.dest].weight == 0


cdef inline bint starts_anew(Engine *e, const Pkt *p, uint32_t ref, int af) noexcept nogil:
    """A client's request on a connection that is over, or half open towards a real server that is gone: to be scheduled again."""
    cdef ConnCommon *c
    if not asks(p) or ref & 1:
        return False
    c = conn_common(table_of(e, af), ref >> 1, af)
    if c.svc == SVC_NONE:
        return False
    if c.state == STATE_SYN_RECV:
        return dest_gone(e, c)
    return is_over(c)


cdef inline bint may_reopen(Engine *e, const ConnCommon *c, uint32_t mode) noexcept nogil:
    """Its mode would be the same still, and its local address, if it has one, is configured? One that is being taken away gets no
    new connections."""
    if conn_mode(c) != mode:
        return False
    return not conn_local(c) or (c.lip != LIP_NONE and e.lip[c.lip].flags & 1)


cdef inline void start_anew(Engine *e, Pkt *p, uint32_t n, const Tuple *k, uint64_t h, uint32_t ref, int af) noexcept nogil:
    """The scheduler picks a real server as for any new connection. Each of them sees a client's tuple from one local port only,
    however often the client comes back: the record is reopened in place for the same real server; for another one it rests,
    holding the port that its server may have in TIME_WAIT, until it expires or is that server's turn again. n: the packet's place
    in the burst."""
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c = conn_common(t, ref >> 1, af)
    cdef uint32_t svc = svc_of(e, k, p.ifin, af), other, mode, dest
    cdef uint8_t server[16]
    cdef Plan plan
    p.svc = svc
    if svc == SVC_NONE:
        p.verdict = VERDICT_KERNEL
        p.reason = REASON_NOT_FOR_US
        return
    if svc != c.svc:                        # the address is another one's by now
        stat_count(e, c, -1)
        c.svc = svc
        stat_count(e, c, 1)
    dest = dest_for(e, p, n, svc, k)
    if dest == PICK_ASKED:
        return
    if dest == DEST_NONE:
        drop(p, REASON_NO_BACKEND)
        return
    mode = mode_of(e, svc, dest)
    if dest == c.dest and may_reopen(e, c, mode):
        if mode == MODE_TUNNEL:
            tunnel_keep(e, t, ref >> 1, dest, af)
        scheduled(e, svc, dest)
        forward_known(e, p, ref, af)
        return
    back_from(e, &plan.back, k, svc, dest, af)
    server_addr(&plan.back, mode, server)
    other = conn_towards(t, k, h, server, plan.back.sport, CONN_RESTING, af)
    if c.state == STATE_SYN_RECV or c.flags & CONN_ONE_WAY:
        conn_end(e, ref >> 1, EXPIRE_ADMIN, af)
    else:
        c.live = CONN_RESTING
    if other != REF_NONE and may_reopen(e, conn_common(t, other >> 1, af), mode):
        conn_common(t, other >> 1, af).live = CONN_LIVE
        scheduled(e, svc, dest)
    else:
        plan.isn = syn_number(p)
        plan.over = REF_NONE
        plan.dest = dest
        plan.mode = mode
        plan.lip = LIP_NONE
        reserve(e, svc, dest, 1)
        other = conn_open(e, p, k, h, svc, &plan, af)
        if other == REF_NONE:
            reserve(e, svc, dest, -1)
            return
    forward_known(e, p, other, af)
