# The fast lane: what nearly every packet is. Untagged Ethernet, IPv4 without options or IPv6 without extension headers, a whole TCP
# or UDP segment of a connection that is established, between links whose state is settled. Everything else, and every doubt, is the
# general way's (parse.pxd, forward.pxd): both functions then return False and have changed nothing that it looks at.
#
# The lane may only do what the general way would do. It exists for speed alone: straight code with constant offsets, one word
# compared where the general way asks several questions, both directions by index instead of by branch. Tests run every packet
# through both (Engine.fast off) and compare all that comes of it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from lbd.datapath.compiler cimport (lbd_ld16, lbd_ld32, lbd_ld64, lbd_st16, lbd_st32, lbd_st64, lbd_bswap16, lbd_bswap32,
                                    lbd_copy12, lbd_copy16, lbd_copy4_wide, lbd_is_multiple_of_65535, lbd_swap16s, lbd_swap32s,
                                    lbd_unlikely)
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt, PKT_MULTI, PKT_REPLY
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport ETH_HLEN, PROTO_TCP, PROTO_UDP, TCP_FIN, TCP_RST, TCP_SYN
from lbd.datapath.reason cimport REASON_NONE, VERDICT_FORWARD
from lbd.datapath.conn cimport (CONN_ACTIVE, CONN_LIVE, CONN_MODE, CONN_ONE_WAY, CONN_SYNACK, CONN_WRAPS, ConnCommon,
                                ConnTable, conn4, conn6, conn_common, conn_side)
from lbd.datapath.csum cimport csum_add, csum_fold, csum_pseudo
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.neigh cimport Adj, adj_sender
from lbd.datapath.svc cimport DEST_NONE, SvcStat
from lbd.datapath.tcp cimport SEQ_AHEAD, STATE_ESTABLISHED, STATE_UDP, STATE_UDP_ONEWAY
from lbd.datapath.timer cimport WHEEL_SHIFT

cdef enum Lane:                 # Engine.fast, by interface
    LANE_CLOSED = 0             # checksums are to be verified, or a test says so
    LANE_OPEN = 1
    LANE_WHOLE = 2              # to whole checksums: partial ones come by this interface too, and the general way completes them

cdef enum:
    IP4 = 14                    # offsets from the frame's first byte
    IP6 = 14
    L4_4 = 34
    L4_6 = 54


cdef inline bint ip4_sum_ok(const uint8_t *ip) noexcept nogil:
    """Header checksum of 20 bytes: the sum of 32-bit words is congruent to that of 16-bit words modulo 65535, and never 0 here."""
    return lbd_is_multiple_of_65535(<uint64_t> lbd_ld32(ip) + lbd_ld32(ip + 4) + lbd_ld32(ip + 8) + lbd_ld32(ip + 12)
                                    + lbd_ld32(ip + 16))


cdef inline bint l4_sound(const uint8_t *l4, uint8_t proto, uint32_t l4_len) noexcept nogil:
    """As transport_ok of parse.pxd."""
    cdef uint32_t n
    if proto == PROTO_TCP:
        if l4_len < 20:
            return False
        n = (l4[12] >> 4) * 4
        return 20 <= n and n <= l4_len
    if l4_len < 8:
        return False
    n = lbd_bswap16(lbd_ld16(l4 + 4))
    return proto == PROTO_UDP and 8 <= n and n <= l4_len


cdef inline bint fast_parse4(Pkt *p, Tuple *t) noexcept nogil:
    cdef const uint8_t *d = p.data
    cdef uint32_t tot
    cdef uint8_t first, proto
    if p.len < L4_4 + 8 or (lbd_ld32(d + 12) & 0x00ffffff) != 0x00450008:         # IPv4, a header of five words
        return False
    tot = lbd_bswap16(lbd_ld16(d + IP4 + 2))
    if lbd_ld16(d + IP4 + 6) & 0xff3f or tot > p.len - IP4 or tot < 28 or not ip4_sum_ok(d + IP4):      # MF or offset: a fragment
        return False
    first = d[IP4 + 12]
    proto = d[IP4 + 9]
    if <uint8_t> (first - 1) >= 223 or first == 127 or not l4_sound(d + L4_4, proto, tot - 20):
        return False
    lbd_copy4_wide(t.saddr, d + IP4 + 12)
    lbd_copy4_wide(t.daddr, d + IP4 + 16)
    lbd_st32(&t.sport, lbd_ld32(d + L4_4))
    t.proto = proto
    t.af = 4
    p.outer = 0
    p.inner = 0
    p.l3 = IP4
    p.l4 = L4_4
    p.l3_len = tot
    p.vlan = 0
    p.af = 4
    p.proto = proto
    if proto == PROTO_TCP:
        p.tcp_flags = d[L4_4 + 13]
    return True


cdef inline bint fast_parse6(Pkt *p, Tuple *t) noexcept nogil:
    cdef const uint8_t *d = p.data
    cdef uint32_t tot
    cdef uint8_t proto
    if p.len < L4_6 + 8 or (lbd_ld32(d + 12) & 0x00f0ffff) != 0x0060dd86:
        return False
    tot = 40 + lbd_bswap16(lbd_ld16(d + IP6 + 4))
    if tot > p.len - IP6 or tot < 48 or d[IP6 + 8] == 0xff or lbd_ld64(d + IP6 + 8) == 0:
        return False
    proto = d[IP6 + 6]
    if not l4_sound(d + L4_6, proto, tot - 40):
        return False
    lbd_copy16(t.saddr, d + IP6 + 8)
    lbd_copy16(t.daddr, d + IP6 + 24)
    lbd_st32(&t.sport, lbd_ld32(d + L4_6))
    t.proto = proto
    t.af = 6
    p.outer = 0
    p.inner = 0
    p.l3 = IP6
    p.l4 = L4_6
    p.l3_len = tot
    p.vlan = 0
    p.af = 6
    p.proto = proto
    if proto == PROTO_TCP:
        p.tcp_flags = d[L4_6 + 13]
    return True


cdef inline bint checksum_is_partial(const Pkt *p) noexcept nogil:
    """As transport_csum of parse.pxd recognises it."""
    cdef const uint8_t *l4 = p.data + p.l4
    cdef uint32_t alen = 4 if p.af == 4 else 16
    cdef const uint8_t *addrs = p.data + (IP4 + 12 if p.af == 4 else IP6 + 8)
    if p.proto == PROTO_TCP:
        return lbd_ld16(l4 + 16) == csum_fold(csum_pseudo(addrs, addrs + alen, alen, PROTO_TCP, p.l3 + p.l3_len - p.l4))
    return lbd_ld16(l4 + 6) == csum_fold(csum_pseudo(addrs, addrs + alen, alen, PROTO_UDP, lbd_bswap16(lbd_ld16(l4 + 4))))


cdef inline bint fast_parse(Engine *e, Pkt *p, Tuple *t) noexcept nogil:
    """Fills p's offsets and the tuple as parse() does."""
    if p.flags & PKT_MULTI or e.fast[p.ifin] == LANE_CLOSED:
        return False
    if not fast_parse4(p, t) and not fast_parse6(p, t):
        return False
    return e.fast[p.ifin] == LANE_OPEN or not checksum_is_partial(p)


cdef inline bint end_is(const uint8_t *end, const Tuple *t, int af) noexcept nogil:
    if af == 4:
        return (lbd_ld32(end) == lbd_ld32(t.saddr) and lbd_ld32(end + 4) == lbd_ld32(t.daddr)
                and lbd_ld32(end + 8) == lbd_ld32(&t.sport))
    return ((lbd_ld64(end) ^ lbd_ld64(t.saddr)) | (lbd_ld64(end + 8) ^ lbd_ld64(t.saddr + 8))
            | (lbd_ld64(end + 16) ^ lbd_ld64(t.daddr)) | (lbd_ld64(end + 24) ^ lbd_ld64(t.daddr + 8))
            | (lbd_ld32(end + 32) ^ lbd_ld32(&t.sport))) == 0


cdef inline bint settled(const ConnCommon *c, uint8_t proto, uint32_t direction, uint32_t now_ms) noexcept nogil:
    """Live, of this run, established: proto, state, flags and live as one word, little-endian. An unanswered UDP flow is as good
    while its client's packets do not move it in its queue (udp_step of forward.pxd)."""
    cdef uint32_t any = CONN_SYNACK | CONN_ACTIVE | (CONN_MODE & ~CONN_WRAPS)
    cdef uint32_t word = lbd_ld32(&c.proto) & ~(any << 16)
    cdef uint32_t live = <uint32_t> CONN_LIVE << 24
    if proto == PROTO_TCP:
        return word == (live | <uint32_t> STATE_ESTABLISHED << 8 | PROTO_TCP)
    if word == (live | <uint32_t> STATE_UDP << 8 | PROTO_UDP):
        return True
    return (word == (live | <uint32_t> STATE_UDP_ONEWAY << 8 | PROTO_UDP) and direction == 0
            and (now_ms ^ c.last_seen) >> WHEEL_SHIFT == 0)


cdef inline void seq_step(uint32_t *edges, const uint8_t *tcp, uint32_t l4_len, uint32_t direction) noexcept nogil:
    """As tcp_step of forward.pxd for an ACK of an established connection. edges: the client's, the real server's."""
    cdef uint32_t ack, end = lbd_bswap32(lbd_ld32(tcp + 4)) + l4_len - (tcp[12] >> 4) * 4
    if direction == 0:
        if end - edges[0] <= SEQ_AHEAD:
            edges[0] = end
        return
    ack = lbd_bswap32(lbd_ld32(tcp + 8))
    if <int32_t> (end - edges[1]) > 0:
        edges[1] = end
    if <int32_t> (ack - edges[0]) > 0:
        edges[0] = ack


cdef inline void fast_hop(uint8_t *d, uint16_t ip_delta, int af) noexcept nogil:
    if af == 4:
        d[IP4 + 8] -= 1
        lbd_st16(d + IP4 + 10, csum_add(lbd_ld16(d + IP4 + 10), ip_delta))
    else:
        d[IP6 + 7] -= 1


cdef inline void fast_rewrite(Pkt *p, const uint8_t *far, uint16_t ip_delta, uint16_t l4_delta, int af) noexcept nogil:
    """far: the other end as its packets come, so with its halves exchanged it is where this one goes."""
    cdef uint8_t *d = p.data
    cdef uint8_t *l4
    cdef uint8_t *check
    cdef uint16_t sum
    if af == 4:
        lbd_st64(d + IP4 + 12, lbd_swap32s(lbd_ld64(far)))
        l4 = d + L4_4
        lbd_st32(l4, lbd_swap16s(lbd_ld32(far + 8)))
    else:
        lbd_copy16(d + IP6 + 8, far + 16)
        lbd_copy16(d + IP6 + 24, far)
        l4 = d + L4_6
        lbd_st32(l4, lbd_swap16s(lbd_ld32(far + 32)))
    fast_hop(d, ip_delta, af)
    if p.proto == PROTO_TCP:
        check = l4 + 16
        lbd_st16(check, csum_add(lbd_ld16(check), l4_delta))
        return
    check = l4 + 6
    sum = lbd_ld16(check)
    if sum:
        sum = csum_add(sum, l4_delta)
        lbd_st16(check, sum if sum else 0xffff)


cdef inline void stat_packet(SvcStat *s, uint32_t direction, uint32_t bytes) noexcept nogil:
    """in_pkts and in_bytes, or out_pkts and out_bytes, which follow them."""
    cdef uint64_t *pair = &s.in_pkts + 2 * direction
    pair[0] += 1
    pair[1] += bytes


cdef inline bint fast_forward(Engine *e, Pkt *p, const Tuple *t, uint32_t ref, int af) noexcept nogil:
    """ref: the candidate that the tag gave. True: rewritten, verdict set. False: as it came."""
    cdef ConnTable *tab = table_of(e, af)
    cdef uint32_t i = ref >> 1
    cdef uint32_t direction = ref & 1
    cdef ConnCommon *c = conn_common(tab, i, af)
    cdef uint8_t *d = p.data
    cdef const Adj *a
    cdef uint8_t proto = p.proto
    if not end_is(conn_side(tab, i, direction, af), t, af) or c.fib_gen != e.fib_gen[0]:
        return False
    if not settled(c, proto, direction, e.now_ms):
        return False
    if c.dest == DEST_NONE:                     # (a record that is not imported has a service)
        return False
    a = e.adj + (&c.adj_fwd)[direction]
    if p.l3_len > a.reach or d[IP4 + 8 if af == 4 else IP6 + 7] <= 1:
        return False
    if direction == 0 and e.adj[c.adj_rev].sender != adj_sender(d + 6, p.ifin) and not e.return_route:
        return False
    if proto == PROTO_TCP:
        if p.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST):
            return False
        seq_step(&conn4(tab, i).seq_client if af == 4 else &conn6(tab, i).seq_client, d + (L4_4 if af == 4 else L4_6),
                 p.l3_len - (20 if af == 4 else 40), direction)
    c.last_seen = e.now_ms
    p.svc = c.svc
    p.dest = c.dest
    p.ifout = a.iface
    p.flags |= PKT_REPLY * direction
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
    if lbd_unlikely(c.flags & CONN_ONE_WAY):
        fast_hop(d, conn4(tab, i).ip_delta[0] if af == 4 else 0, af)
    else:                                       # the deltas of what comes from the real server are the complements
        fast_rewrite(p, conn_side(tab, i, 1 - direction, af), conn4(tab, i).ip_delta[direction] if af == 4 else 0,
                     c.l4_delta ^ <uint16_t> (0 - direction), af)
    lbd_copy12(d, a.dmac)
    stat_packet(e.svc_stat + c.svc, direction, p.l3_len)
    stat_packet(e.dest_stat + c.dest, direction, p.l3_len)
    return True
