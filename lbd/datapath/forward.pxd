# A packet of a known connection: state, next hop, MTU, TTL, rewrite.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.string cimport memcmp, memcpy, memset
from lbd.datapath.compiler cimport (lbd_ld16, lbd_ld32, lbd_st32, lbd_bswap16, lbd_bswap32, lbd_likely, lbd_unlikely,
                                    lbd_compiler_barrier)
from lbd.datapath.engine cimport ConnExt, Engine
from lbd.datapath.ext cimport conn_ext, ext_give
from lbd.datapath.pkt cimport FRAG_FIRST, FRAG_LATER, FRAG_NONE, Pkt, PKT_NEW, PKT_REPLY, PKT_HANDED, PKT_ICMP_ERROR, PKT_TUNNEL
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.hdr cimport (ETH_HLEN, TcpHdr, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, TCP_SYN, TCP_ACK, TCP_FIN,
                               TCP_RST, tcp_head)
from lbd.datapath.reason cimport *
from lbd.datapath.conn cimport *
from lbd.datapath.tcp cimport *
from lbd.datapath.sctp cimport sctp_quote_is_right, sctp_step
from lbd.datapath.svc cimport (Dest, SVC_NONE, DEST_NONE, LIP_NONE, LIP_USED, DEST_USED, DEST_UP, MODE_DR, MODE_NAT64,
                               MODE_TUNNEL, SNAT_ANY, SVC_USED)
from lbd.datapath.neigh cimport Adj, ADJ_LEARNED, ADJ_NONE, ADJ_USED, ADJ_VALID, IFACE_UP
from lbd.datapath.link cimport adj_tags, pkt_tags
from lbd.datapath.snat cimport conn_is_snat
from lbd.datapath.lookup cimport nexthop, adj_learn, conn_lip, dest_of, neigh_want, svc_of
from lbd.datapath.lifetime cimport table_of, timer_of, conn_enter, conn_end, conn_schedule, stat_count, evict, udp_step
from lbd.datapath.nat cimport TTL_DELTA, hop, link_write, rewrite
from lbd.datapath.seq cimport seq_translate
from lbd.datapath.encap cimport encap, outer_source
from lbd.datapath.decap cimport ecn_carry
from lbd.datapath.tally cimport stat_packet
from lbd.datapath.tunnel cimport server_af, tunnel_room
from lbd.datapath.echo cimport is_icmp
from lbd.datapath.echo64 cimport nat64_echo
from lbd.datapath.nat64 cimport nat64_mtu, nat64_obstacle, nat64_packet
from lbd.datapath.icmp64 cimport nat64_error
from lbd.datapath.icmp_err cimport answer, quoted_l4, translate4, translate6
from lbd.datapath.count cimport EXPIRE_ADMIN, EXPIRE_RESET


cdef inline bint drop(Pkt *p, uint32_t reason) noexcept nogil:
    p.verdict = VERDICT_DROP
    p.reason = reason
    return False


# --- state -----------------------------------------------------------------------------------------------------------

cdef inline uint32_t *seq_edge(Engine *e, uint32_t i, uint32_t direction, int af) noexcept nogil:
    return conn_edges(table_of(e, af), i, af) + direction


cdef inline bint shook_hands(Engine *e, const Pkt *p, uint32_t i, const ConnCommon *c, uint32_t event, uint32_t payload,
                             uint32_t direction, int af) noexcept nogil:
    """Half open: does this segment prove that the handshake is over? From the client: it acknowledges the real server's SYN, whose
    number a blind sender can't know. From the real server: data or FIN after its SYN+ACK (with TCP Fast Open it comes first). One
    way there is no such proof: the client's ACK must fit its SYN."""
    cdef TcpHdr *t = <TcpHdr *> (p.data + p.l4)
    if c.flags & CONN_ONE_WAY:
        return p.tcp_flags & TCP_ACK and tcp_in_window(lbd_bswap32(t.seq), seq_edge(e, i, 0, af)[0])
    if not c.flags & CONN_SYNACK:
        return False
    if direction == 1:
        return payload != 0 or event == EVENT_FIN
    return p.tcp_flags & TCP_ACK and lbd_bswap32(t.ack_seq) == seq_edge(e, i, 1, af)[0]


cdef inline uint32_t way_of(const ConnCommon *c, uint32_t direction) noexcept nogil:
    return WAY_ONE if c.flags & CONN_ONE_WAY else direction


cdef inline bint tcp_syn(Engine *e, Pkt *p, uint32_t i, ConnCommon *c, uint32_t end, uint32_t direction, int af) noexcept nogil:
    """SYN and SYN+ACK. False: it proves nothing."""
    cdef TcpHdr *t = <TcpHdr *> (p.data + p.l4)
    cdef uint32_t *client = seq_edge(e, i, 0, af)
    if direction == 0:
        if p.tcp_flags & TCP_ACK or lbd_tcp_next[way_of(c, 0)][<int> EVENT_SYN][c.state] != STATE_SYN_RECV:
            return False
        if c.state != STATE_SYN_RECV:               # the client starts anew on a connection that was over
            c.flags &= <uint8_t> ~CONN_SYNACK
            table_of(e, af).cold[i].created = e.now_ms
            conn_enter(e, i, c, STATE_SYN_RECV, af)
        client[0] = end
    elif p.tcp_flags & TCP_ACK and c.state == STATE_SYN_RECV:
        if client[0] - lbd_bswap32(t.ack_seq) > 65535:      # not of the SYN, perhaps with data, that was sent
            return False
        c.flags |= CONN_SYNACK
        seq_edge(e, i, 1, af)[0] = end
    return True


cdef inline bint plausible(Engine *e, const Pkt *p, uint32_t i, const ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """Near its sender's number. A real server's RST in answer to the SYN has none, but it acknowledges the client's."""
    cdef TcpHdr *t = <TcpHdr *> (p.data + p.l4)
    if c.state == STATE_SYN_RECV and direction == 1:
        if p.tcp_flags & TCP_ACK and seq_edge(e, i, 0, af)[0] - lbd_bswap32(t.ack_seq) <= 65535:
            return True
        if not c.flags & CONN_SYNACK:
            return False
    return tcp_in_window(lbd_bswap32(t.seq), seq_edge(e, i, direction, af)[0])


cdef inline bint tcp_step(Engine *e, Pkt *p, uint32_t i, ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """State by the table of tcp.pxd, and the sequence edges. Nothing is refused here: the ends judge segments themselves. A SYN,
    FIN or RST that a blind sender could have made leaves the state alone: False, then it does not prolong the connection either."""
    cdef TcpHdr *t = <TcpHdr *> (p.data + p.l4)
    cdef uint32_t seq = lbd_bswap32(t.seq)
    cdef uint32_t event = tcp_event(p.tcp_flags)
    cdef uint32_t *edge = seq_edge(e, i, direction, af)
    cdef uint32_t payload = p.l3 + p.l3_len - p.l4 - tcp_head(t)
    cdef uint32_t next, end = seq + payload, state = c.state
    if lbd_likely(event == EVENT_ACK and state == STATE_ESTABLISHED):
        edges_step(seq_edge(e, i, 0, af), t, p.l3 + p.l3_len - p.l4, direction)
        return True
    if p.tcp_flags & (TCP_SYN | TCP_FIN):
        end += 1
    if event == EVENT_SYN:
        return tcp_syn(e, p, i, c, end, direction, af)
    if state == STATE_SYN_RECV and event != EVENT_RST:
        if not shook_hands(e, p, i, c, event, payload, direction, af):
            return True
        state = STATE_ESTABLISHED
        edge[0] = end
    elif not plausible(e, p, i, c, direction, af):
        return event == EVENT_ACK
    next = lbd_tcp_next[way_of(c, direction)][event][state]
    edge_advance(edge, end)
    # the real server's FIN doesn't acknowledge the client's: both closed at once, and both ends keep TIME_WAIT
    if next == STATE_LAST_ACK and state == STATE_CLOSE_WAIT and <int32_t> (lbd_bswap32(t.ack_seq) - seq_edge(e, i, 0, af)[0]) < 0:
        next = STATE_TIME_WAIT
    if next != c.state:
        conn_enter(e, i, c, next, af)
    return True


# --- next hop --------------------------------------------------------------------------------------------------------

cdef inline void adj_client(Engine *e, uint32_t i, ConnCommon *c, int af) noexcept nogil:
    """The way to the client by route."""
    cdef uint8_t addr[16]
    memset(addr, 0, 16)
    if af == 4:
        memcpy(addr, &conn4(&e.t4, i).caddr, 4)
    else:
        memcpy(addr, conn6(&e.t6, i).caddr, 16)
    c.adj_rev = nexthop(e, addr, af)


cdef inline void adj_resolve(Engine *e, uint32_t i, ConnCommon *c, int af) noexcept nogil:
    """Routes have changed since this connection looked: look again, for the real server (and by route: the client)."""
    cdef uint8_t addr[16]
    cdef Dest *d
    cdef int daf = conn_server(table_of(e, af), i, addr, af)
    if c.dest != DEST_NONE and not conn_is_snat(table_of(e, af), i, af):
        d = e.dest + c.dest
        if d.fib_gen != e.fib_gen[0] or d.adj == ADJ_NONE:
            d.adj = nexthop(e, addr, daf)
            d.fib_gen = e.fib_gen[0]
        c.adj_fwd = d.adj
    else:
        c.adj_fwd = nexthop(e, addr, daf)
    if conn_mode(c) == MODE_DR and memcmp(e.adj[c.adj_fwd].addr, addr, 16) != 0:       # behind a gateway, which would route it back
        c.adj_fwd = ADJ_NONE
    # one that is not learned was found by route, since its client's packets come in a tunnel
    if e.return_route or (c.adj_rev != ADJ_NONE and not e.adj[c.adj_rev].flags & ADJ_LEARNED):
        adj_client(e, i, c, af)
    c.fib_gen = e.fib_gen[0]


cdef inline bint came_from(const Pkt *p, const Adj *a) noexcept nogil:
    return (lbd_ld32(p.data + 6) == lbd_ld32(a.dmac) and lbd_ld16(p.data + 10) == lbd_ld16(a.dmac + 4)
            and a.iface == p.ifin and adj_tags(a) == pkt_tags(p) and a.flags & ADJ_USED)


cdef inline uint8_t hops_left(const Pkt *p, int af) noexcept nogil:
    """TTL or hop limit. af: of the connection's table; what a NAT64 real server sends is IPv4."""
    if af == 4:
        return p.data[p.l3 + 8]
    return p.data[p.l3 + 7 + (p.af == 4)]


cdef inline bint is_nat64(const ConnCommon *c) noexcept nogil:
    return c.flags & CONN_MODE == MODE_NAT64 << CONN_MODE_SHIFT


cdef inline bint sums_length(const ConnCommon *c) noexcept nogil:
    """Do new ends change the checksum by an amount that depends on the datagram's length? CRC32c they do, and ICMPv6's where it
    becomes ICMP's."""
    if c.flags & CONN_ONE_WAY:
        return False
    return c.proto == PROTO_SCTP or (c.proto == PROTO_ICMPV6 and is_nat64(c))


cdef inline uint32_t adj_mtu(Engine *e, uint32_t n) noexcept nogil:
    """Of an adjacency's link; where the way isn't known, what hinders nothing."""
    return e.iface[e.adj[n].link].mtu if n != ADJ_NONE else 0xffff


cdef inline bint tunnels(const ConnCommon *c) noexcept nogil:
    return c.flags & CONN_MODE == MODE_TUNNEL << CONN_MODE_SHIFT


cdef inline uint32_t room(Engine *e, const Pkt *p, uint32_t i, const ConnCommon *c, uint32_t mtu, int af) noexcept nogil:
    """What the packet that came may measure to leave by an MTU, as its connection's mode changes it."""
    if lbd_likely(not c.flags & CONN_WRAPS):
        return mtu
    if tunnels(c):
        return tunnel_room(e, p, table_of(e, af), i, mtu, af)
    return nat64_mtu(p, mtu)


cdef inline void answer_sender(Engine *e, Pkt *p, const ConnCommon *c, uint32_t direction, uint32_t reason,
                               uint32_t mtu) noexcept nogil:
    """With an ICMP error, back where it came from; if that was a tunnel, by the way that the other direction goes."""
    cdef uint32_t n = c.adj_rev if direction == 0 else c.adj_fwd
    if lbd_likely(not p.flags & PKT_TUNNEL):
        answer(e, p, reason, mtu)
        return
    if not usable(e, p, n):
        return
    p.data += p.l3 - ETH_HLEN
    p.len -= p.l3 - ETH_HLEN
    p.l4 -= p.l3 - ETH_HLEN
    p.l3 = ETH_HLEN
    p.data[0] = 0                       # no group's address: what is there is of the outer header
    answer(e, p, reason, mtu)
    if p.verdict == VERDICT_CONSUME:
        link_write(p, e.adj + n)
        p.ifout = e.adj[n].iface


cdef inline bint has_source(Engine *e, Pkt *p, const ConnCommon *c, const Adj *a, int af) noexcept nogil:
    """Has lbd an address for the outer header of the tunnel that the packet goes by? False: dropped."""
    cdef const uint8_t *src
    return outer_source(e, p.svc, a, &src, server_af(c, af)) or drop(p, REASON_NO_ROUTE)


cdef inline bint way_out(Engine *e, Pkt *p, uint32_t i, ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """Settles p.ifout; checks link, neighbour, MTU and TTL. False: dropped or answered, the packet is as it came."""
    cdef uint32_t n, mtu
    cdef Adj *a
    if lbd_unlikely(c.fib_gen != e.fib_gen[0]):
        adj_resolve(e, i, c, af)
    if lbd_unlikely(p.flags & PKT_TUNNEL):
        if direction == 0 and (c.adj_rev == ADJ_NONE or e.adj[c.adj_rev].flags & ADJ_LEARNED):
            adj_client(e, i, c, af)
    elif direction == 0 and not e.return_route and lbd_unlikely(c.adj_rev == ADJ_NONE or not came_from(p, e.adj + c.adj_rev)):
        c.adj_rev = adj_learn(e, p.data + 6, p.ifin, pkt_tags(p))
    n = c.adj_fwd if direction == 0 else c.adj_rev
    if lbd_unlikely(n == ADJ_NONE):
        c.fib_gen = e.fib_gen[0] - 1
        return drop(p, REASON_NO_ROUTE)
    a = e.adj + n
    if lbd_unlikely(not e.iface[a.link].flags & IFACE_UP):        # first: with a link the kernel forgets its neighbours
        return drop(p, REASON_LINK_DOWN)
    if lbd_unlikely(not a.flags & ADJ_VALID):
        neigh_want(e, n)
        return drop(p, REASON_NO_NEIGHBOR)
    if lbd_unlikely(hops_left(p, af) <= 1):
        answer_sender(e, p, c, direction, REASON_TTL_EXPIRED, 0)
        return False
    mtu = room(e, p, i, c, e.iface[a.link].mtu, af)
    if lbd_unlikely(p.l3_len > mtu):
        answer_sender(e, p, c, direction, REASON_MTU_EXCEEDED, mtu)
        return False
    if lbd_unlikely(tunnels(c)) and not has_source(e, p, c, a, af):
        return False
    p.ifout = a.iface
    return True


cdef inline bint send_out(Engine *e, Pkt *p, uint32_t i, const ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """The rewritten packet into its tunnel, if it goes by one, and onto its link. False: dropped."""
    cdef const Adj *a = e.adj + (c.adj_fwd if direction == 0 else c.adj_rev)
    if lbd_unlikely(tunnels(c)):
        if not encap(e, p, table_of(e, af), i, a, af, server_af(c, af)):
            return drop(p, REASON_NO_ROUTE)
    link_write(p, a)
    return True


cdef inline bint leave(Engine *e, Pkt *p, uint32_t i, const ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """A packet that may go: as its connection's mode changes it, and sent out. False: dropped."""
    if af == 6 and is_nat64(c):
        if lbd_unlikely(is_icmp(p.proto)):
            nat64_echo(e, p, conn6(&e.t6, i))
        else:
            nat64_packet(e, p, conn6(&e.t6, i))
    else:
        rewrite(e, p, table_of(e, af), i, direction, af)
    return send_out(e, p, i, c, direction, af)


cdef inline void count_packet(Engine *e, const Pkt *p, const ConnCommon *c, uint32_t direction) noexcept nogil:
    if c.svc != SVC_NONE:
        stat_packet(e.svc_stat + c.svc, direction, p.l3_len)
    if c.dest != DEST_NONE:
        stat_packet(e.dest_stat + c.dest, direction, p.l3_len)


cdef inline void rebind(Engine *e, uint32_t i, ConnCommon *c, const Tuple *k, int af) noexcept nogil:
    """A record of an earlier life meets its service, real server and LIP again, which had to be configured first."""
    cdef uint32_t svc, lip
    cdef uint8_t daddr[16]
    cdef uint16_t dport = conn4(&e.t4, i).dport if af == 4 else conn6(&e.t6, i).dport
    cdef int daf = conn_server(table_of(e, af), i, daddr, af)
    if c.lip == LIP_NONE or not e.lip[c.lip].flags & LIP_USED:
        lip = conn_lip(e, table_of(e, af), i, af)
        if lip != LIP_NONE:
            if c.lip != LIP_NONE:
                e.lip_stat[c.lip].in_use -= 1
            c.lip = lip
            e.lip_stat[lip].in_use += 1
    svc = c.svc
    if svc == SVC_NONE or not e.svc[svc].flags & SVC_USED:
        svc = svc_of(e, k, SNAT_ANY, af)
    if svc == SVC_NONE:
        return
    if not conn_local(c) or (c.lip != LIP_NONE and e.lip[c.lip].flags & LIP_USED):
        c.flags &= <uint8_t> ~CONN_IMPORTED
    if c.svc == svc:
        return
    stat_count(e, c, -1)
    c.svc = svc
    c.dest = dest_of(e, svc, daddr, dport, daf)
    stat_count(e, c, 1)


cdef inline void ext_tend(Engine *e, uint32_t i, const ConnCommon *c, int af) noexcept nogil:
    """After the handshake an extension that moves no numbers has done its work: the fast lane may have the connection."""
    cdef const ConnExt *x = conn_ext(e, table_of(e, af), i, af)
    if c.state == STATE_ESTABLISHED and x.delta[0] == 0 and x.delta[1] == 0:
        ext_give(e, table_of(e, af), i, af)


cdef inline void forward_known(Engine *e, Pkt *p, uint32_t ref, int af) noexcept nogil:
    """A packet whose connection and direction are known: the established path."""
    cdef uint32_t i = ref >> 1
    cdef uint32_t direction = ref & 1
    cdef ConnCommon *c = conn_common(table_of(e, af), i, af)
    cdef uint32_t obstacle
    cdef Tuple k
    if lbd_unlikely(c.flags & CONN_IMPORTED or c.live != CONN_LIVE):
        if c.live == CONN_RESTING:
            drop(p, REASON_NO_STATE)
            return
        conn_tuple(table_of(e, af), i, 0, &k, af)
        rebind(e, i, c, &k, af)
    p.svc = c.svc
    p.dest = c.dest
    if direction:
        p.flags |= PKT_REPLY
    if lbd_unlikely(not way_out(e, p, i, c, direction, af)):
        return
    if lbd_unlikely(p.frag == FRAG_FIRST and p.beyond == 0 and sums_length(c)):
        p.verdict = VERDICT_HOLD                # until the last one has told (frag_flow.pxd)
        p.reason = REASON_NONE
        return
    if lbd_unlikely(p.flags & PKT_TUNNEL and not ecn_carry(p)):
        drop(p, REASON_TUNNEL_CONGESTED)
        return
    if af == 6 and is_nat64(c):
        obstacle = nat64_obstacle(p, direction)
        if lbd_unlikely(obstacle != REASON_NONE):
            drop(p, obstacle)
            return
    if lbd_likely(p.proto == PROTO_TCP and p.frag != FRAG_LATER):       # (which shows no state)
        if lbd_unlikely(c.flags & CONN_EXTENDED and direction == 1):    # before the edges, which are in the client's numbers
            seq_translate(p, conn_ext(e, table_of(e, af), i, af), 1)
        if lbd_likely(tcp_step(e, p, i, c, direction, af)):
            c.last_seen = e.now_ms
        if lbd_unlikely(c.flags & CONN_EXTENDED and direction == 0):
            seq_translate(p, conn_ext(e, table_of(e, af), i, af), 0)
            ext_tend(e, i, c, af)
    elif lbd_unlikely(p.proto == PROTO_SCTP and p.frag != FRAG_LATER):
        if sctp_step(e, p, i, c, direction, af):
            c.last_seen = e.now_ms
    else:
        udp_step(e, i, c, direction, af)
        c.last_seen = e.now_ms
    if lbd_unlikely(not leave(e, p, i, c, direction, af)):
        return
    count_packet(e, p, c, direction)
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
    if lbd_unlikely(c.state == STATE_NONE):
        conn_end(e, i, EXPIRE_RESET, af)


cdef inline bint quote_fits(Engine *e, const Pkt *p, uint32_t i, const ConnCommon *c, uint32_t sender, int af) noexcept nogil:
    """A blind sender lacks the sequence numbers (RFC 5927) or verification tag of what `sender` (a direction) sent."""
    cdef const uint8_t *l4 = p.data + quoted_l4(p)
    cdef uint32_t seq
    if c.proto == PROTO_SCTP:
        return sctp_quote_is_right(l4, <uint32_t> (p.data + p.l3 + p.l3_len - l4), c, seq_edge(e, i, 0, af), sender)
    if c.proto != PROTO_TCP:
        return True
    seq = lbd_bswap32(lbd_ld32(l4 + 4))
    if c.flags & CONN_EXTENDED:
        seq -= conn_ext(e, table_of(e, af), i, af).delta[sender]
    return tcp_in_window(seq, seq_edge(e, i, sender, af)[0])


cdef inline void quote_move(Engine *e, Pkt *p, uint32_t i, const ConnCommon *c, uint32_t sender, bint back, int af) noexcept nogil:
    """Where lbd moves sequence numbers, the quoted one is moved back; or as it came."""
    cdef uint8_t *l4 = p.data + quoted_l4(p)
    cdef uint32_t delta
    if c.flags & CONN_EXTENDED and c.proto == PROTO_TCP:
        delta = conn_ext(e, table_of(e, af), i, af).delta[sender]
        lbd_st32(l4 + 4, lbd_bswap32(lbd_bswap32(lbd_ld32(l4 + 4)) + (0 - delta if back else delta)))


cdef inline bint icmp_rewrite(Engine *e, Pkt *p, uint32_t i, const ConnCommon *c, uint32_t direction, uint8_t proto,
                              uint32_t mtu, int af) noexcept nogil:
    """An ICMP error as its other end would get it from a router of its own. mtu: of the way out. False: dropped."""
    if af == 6 and is_nat64(c):
        if (p.af == 4) != (direction == 1):
            return drop(p, REASON_MARTIAN)
        quote_move(e, p, i, c, 1 - direction, True, af)
        if not nat64_error(e, p, conn6(&e.t6, i), proto, adj_mtu(e, c.adj_fwd), adj_mtu(e, c.adj_rev)):
            quote_move(e, p, i, c, 1 - direction, False, af)
            return drop(p, REASON_UNTRANSLATABLE)
        return True
    if p.l3_len > mtu:
        return drop(p, REASON_MTU_EXCEEDED)
    quote_move(e, p, i, c, 1 - direction, True, af)
    if c.flags & CONN_ONE_WAY:
        hop(p.data + p.l3, TTL_DELTA, af)
    elif af == 4:
        translate4(p, conn4(&e.t4, i), direction)
    else:
        translate6(p, conn6(&e.t6, i), direction, proto)
    return True


cdef inline bint usable(Engine *e, Pkt *p, uint32_t n) noexcept nogil:
    """Does anything leave by this adjacency? For ICMP errors: a connection's packets ask more (way_out)."""
    if n == ADJ_NONE:
        return drop(p, REASON_NO_ROUTE)
    if not e.iface[e.adj[n].link].flags & IFACE_UP:
        return drop(p, REASON_LINK_DOWN)
    if not e.adj[n].flags & ADJ_VALID:
        return drop(p, REASON_NO_NEIGHBOR)
    return True


cdef inline void forward_icmp(Engine *e, Pkt *p, uint32_t ref, uint8_t proto, int af) noexcept nogil:
    """An ICMP error about a packet of this connection goes to the other side, translated. It changes no state and no timer."""
    cdef uint32_t i = ref >> 1
    cdef uint32_t direction = ref & 1
    cdef ConnCommon *c = conn_common(table_of(e, af), i, af)
    cdef uint32_t n
    cdef Adj *a
    p.svc = c.svc
    p.dest = c.dest
    # one way lbd does not know what the real server sends: it judges itself
    if not c.flags & CONN_ONE_WAY and not quote_fits(e, p, i, c, 1 - direction, af):
        drop(p, REASON_ICMP_UNMATCHED)
        return
    if c.fib_gen != e.fib_gen[0]:
        adj_resolve(e, i, c, af)
    n = c.adj_fwd if direction == 0 else c.adj_rev
    if not usable(e, p, n):
        return
    a = e.adj + n
    if hops_left(p, af) <= 1:                           # an error about an error is never sent
        drop(p, REASON_TTL_EXPIRED)
        return
    if tunnels(c) and not has_source(e, p, c, a, af):
        return
    if not icmp_rewrite(e, p, i, c, direction, proto, room(e, p, i, c, e.iface[a.link].mtu, af), af):
        return
    p.ifout = a.iface
    if not send_out(e, p, i, c, direction, af):
        return
    e.count.icmp_mapped += 1
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
