# The fast lane: what nearly every packet is. Untagged Ethernet, IPv4 without options or IPv6 without extension headers, a whole TCP
# or UDP segment of a connection that is established, between links whose state is settled. Everything else, and every doubt, is the
# general way's (parse.pxd, forward.pxd): both functions then return False and have changed nothing that it looks at.
#
# The lane may only do what the general way would do. It exists for speed alone: straight code with constant offsets, one word
# compared where the general way asks several questions, both directions by index instead of by branch. Tests run every packet
# through both (Engine.fast off) and compare all that comes of it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport (lbd_ld16, lbd_ld32, lbd_ld64, lbd_st32, lbd_bswap16, lbd_copy12, lbd_copy16,
                                    lbd_copy4_wide, lbd_is_multiple_of_65535, lbd_likely)
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt, PKT_MULTI, PKT_REPLY
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport ETH_HLEN, PROTO_TCP, PROTO_UDP, TcpHdr, TCP_FIN, TCP_RST, TCP_SYN
from lbd.datapath.reason cimport REASON_NONE, VERDICT_FORWARD
from lbd.datapath.conn cimport (CONN_ACTIVE, CONN_LIVE, CONN_MODE, CONN_ONE_WAY, CONN_SYNACK, CONN_WRAPS, ConnCommon,
                                ConnTable, conn4, conn_common, conn_edges, conn_side)
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.nat cimport check_update, ends_write, hop
from lbd.datapath.neigh cimport Adj, adj_sender
from lbd.datapath.parse cimport checksum_is_partial, l4_sound
from lbd.datapath.svc cimport DEST_NONE, SvcStat
from lbd.datapath.tcp cimport edges_step, STATE_ESTABLISHED, STATE_UDP, STATE_UDP_ONEWAY
from lbd.datapath.timer cimport WHEEL_SHIFT

cdef enum Lane:                 # Engine.fast, by interface
    LANE_CLOSED = 0             # checksums are to be verified, or a test says so
    LANE_OPEN = 1
    LANE_WHOLE = 2              # to whole checksums: partial ones come by this interface too, and the general way completes them

cdef enum:
    L4_4 = 34                   # offsets from the frame's first byte
    L4_6 = 54


cdef inline bint ip4_sum_ok(const uint8_t *ip) noexcept nogil:
    """Header checksum of 20 bytes: the sum of 32-bit words is congruent to that of 16-bit words modulo 65535, and never 0 here."""
    return lbd_is_multiple_of_65535(<uint64_t> lbd_ld32(ip) + lbd_ld32(ip + 4) + lbd_ld32(ip + 8) + lbd_ld32(ip + 12)
                                    + lbd_ld32(ip + 16))


cdef inline bint parsed(Pkt *p, Tuple *t, uint32_t l4, uint32_t tot, uint8_t proto, int af) noexcept nogil:
    """The rest, alike in both families, of what parse() fills in."""
    lbd_st32(&t.sport, lbd_ld32(p.data + l4))
    t.proto = proto
    t.af = af
    p.outer = 0
    p.inner = 0
    p.l3 = ETH_HLEN
    p.l4 = l4
    p.l3_len = tot
    p.vlan = 0
    p.af = af
    p.proto = proto
    if proto == PROTO_TCP:
        p.tcp_flags = p.data[l4 + 13]
    return True


cdef inline bint fast_parse4(Pkt *p, Tuple *t) noexcept nogil:
    cdef const uint8_t *d = p.data
    cdef uint32_t tot
    cdef uint8_t first, proto
    if p.len < L4_4 + 8 or (lbd_ld32(d + 12) & 0x00ffffff) != 0x00450008:         # IPv4, a header of five words
        return False
    tot = lbd_bswap16(lbd_ld16(d + ETH_HLEN + 2))
    if lbd_ld16(d + ETH_HLEN + 6) & 0xff3f or tot > p.len - ETH_HLEN or tot < 28:           # MF or offset: a fragment
        return False
    if not ip4_sum_ok(d + ETH_HLEN):
        return False
    first = d[ETH_HLEN + 12]
    proto = d[ETH_HLEN + 9]
    if <uint8_t> (first - 1) >= 223 or first == 127 or not l4_sound(d + L4_4, proto, tot - 20):
        return False
    lbd_copy4_wide(t.saddr, d + ETH_HLEN + 12)
    lbd_copy4_wide(t.daddr, d + ETH_HLEN + 16)
    return parsed(p, t, L4_4, tot, proto, 4)


cdef inline bint fast_parse6(Pkt *p, Tuple *t) noexcept nogil:
    cdef const uint8_t *d = p.data
    cdef uint32_t tot
    cdef uint8_t proto
    if p.len < L4_6 + 8 or (lbd_ld32(d + 12) & 0x00f0ffff) != 0x0060dd86:
        return False
    tot = 40 + lbd_bswap16(lbd_ld16(d + ETH_HLEN + 4))
    if tot > p.len - ETH_HLEN or tot < 48 or d[ETH_HLEN + 8] == 0xff or lbd_ld64(d + ETH_HLEN + 8) == 0:
        return False
    proto = d[ETH_HLEN + 6]
    if not l4_sound(d + L4_6, proto, tot - 40):
        return False
    lbd_copy16(t.saddr, d + ETH_HLEN + 8)
    lbd_copy16(t.daddr, d + ETH_HLEN + 24)
    return parsed(p, t, L4_6, tot, proto, 6)


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
    cdef uint8_t *l4 = d + (L4_4 if af == 4 else L4_6)
    cdef const Adj *a
    cdef uint8_t proto = p.proto
    if not end_is(conn_side(tab, i, direction, af), t, af) or c.fib_gen != e.fib_gen[0]:
        return False
    if not settled(c, proto, direction, e.now_ms):
        return False
    if c.dest == DEST_NONE:                     # (a record that is not imported has a service)
        return False
    a = e.adj + (&c.adj_fwd)[direction]
    if p.l3_len > a.reach or d[ETH_HLEN + (8 if af == 4 else 7)] <= 1:
        return False
    if direction == 0 and e.adj[c.adj_rev].sender != adj_sender(d + 6, p.ifin) and not e.return_route:
        return False
    if proto == PROTO_TCP:
        if p.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST):
            return False
        edges_step(conn_edges(tab, i, af), <const TcpHdr *> l4, p.l3_len - (20 if af == 4 else 40), direction)
    c.last_seen = e.now_ms
    p.svc = c.svc
    p.dest = c.dest
    p.ifout = a.iface
    p.flags |= PKT_REPLY * direction
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
    hop(d + ETH_HLEN, conn4(tab, i).ip_delta[direction] if af == 4 else 0, af)
    if lbd_likely(not c.flags & CONN_ONE_WAY):
        ends_write(d + ETH_HLEN + (12 if af == 4 else 8), l4, conn_side(tab, i, 1 - direction, af), af)
        # the delta of what comes from the real server is the complement
        check_update(l4, proto, c.l4_delta ^ <uint16_t> (0 - direction))
    lbd_copy12(d, a.dmac)
    stat_packet(e.svc_stat + c.svc, direction, p.l3_len)
    stat_packet(e.dest_stat + c.dest, direction, p.l3_len)
    return True
