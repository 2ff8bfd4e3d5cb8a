# The fast lane: what nearly every packet is. Untagged Ethernet, IPv4 without options or IPv6 without extension headers, a whole TCP
# or UDP segment of a connection that is established, between links whose state is settled. Everything else, and every doubt, is the
# general way's (parse.pxd, forward.pxd): the lane's functions then return False and have changed nothing that it looks at.
#
# The lane may only do what the general way would do. It exists for speed alone: straight code with constant offsets, one word
# compared where the general way asks several questions, both directions by index instead of by branch, no tuple (hash and compare
# read the frame, where addresses and ports lie side by side as in a record). Tests run every packet through both (Engine.fast off)
# and compare all that comes of it. Tunnels and NAT64 use the same parts, where the word compare says that it is none of the others.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport (lbd_ld16, lbd_ld32, lbd_ld64, lbd_st16, lbd_st32, lbd_bswap16, lbd_bswap32, lbd_copy12,
                                    lbd_copy16, lbd_copy4_wide, lbd_add_carry, lbd_apart, lbd_inlined, lbd_inlined_void,
                                    lbd_is_multiple_of_65535, lbd_likely, lbd_unlikely)
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport FRAG_NONE, Pkt, PKT_PARTIAL, PKT_REPLY
from lbd.datapath.flow cimport Tuple, ends_hash
from lbd.datapath.hdr cimport ETH_HLEN, ETH_P_IP, ETH_P_IPV6, PROTO_TCP, PROTO_UDP, TcpHdr, TCP_FIN, TCP_RST, TCP_SYN, tcp_head
from lbd.datapath.reason cimport VERDICT_FORWARD
from lbd.datapath.conn cimport (CONN_ACTIVE, CONN_LIVE, CONN_MODE, CONN_ONE_WAY, CONN_OTHER_FAMILY, CONN_SYNACK, CONN_WRAPS,
                                Conn4, Conn6, ConnCommon, ConnTable, conn4, conn6, conn_common, conn_edges, conn_side)
from lbd.datapath.encap cimport encap_from, outer_source
from lbd.datapath.lifetime cimport table_of, udp_step
from lbd.datapath.nat cimport TTL_DELTA, check_complete, check_finish, check_update, ends_write, hop
from lbd.datapath.nat64 cimport nat64_whole, unsummed
from lbd.datapath.neigh cimport Adj, adj_sender
from lbd.datapath.parse cimport checksum_is_partial, l4_sound
from lbd.datapath.svc cimport DEST_NONE, TUNNEL_GRE, TUNNEL_GUE, TUNNEL_IPIP
from lbd.datapath.tally cimport tally
from lbd.datapath.tcp cimport edges_step, STATE_ESTABLISHED, STATE_UDP, STATE_UDP_ONEWAY
from lbd.datapath.tunnel cimport conn_way, server_af, tunnel_room_by

cdef enum Lane:                 # Engine.fast, by interface
    LANE_CLOSED = 0             # checksums are to be verified, or a test says so
    LANE_OPEN = 1

cdef enum:
    L4_4 = 34                   # offsets from the frame's first byte
    L4_6 = 54
    # a settled connection's flags that may be or not: of modes that leave the IP header's form alone, and of the others
    ANY_PLAIN = CONN_SYNACK | CONN_ACTIVE | (CONN_MODE & ~CONN_WRAPS)
    ANY_WRAPPED = CONN_SYNACK | CONN_ACTIVE | CONN_MODE | CONN_OTHER_FAMILY


cdef inline bint ip4_sum_ok(const uint8_t *ip) noexcept nogil:
    """Header checksum of 20 bytes: the sum of wider words, carries added, is congruent to that of 16-bit words modulo 65535, and
    never 0 here."""
    return lbd_is_multiple_of_65535(lbd_add_carry(lbd_add_carry(lbd_ld64(ip), lbd_ld64(ip + 8)), lbd_ld32(ip + 16)))


cdef inline bint parsed(Pkt *p, uint32_t l4, uint32_t tot, uint8_t proto, int af) noexcept nogil:
    """The rest, alike in both families, of what the lane needs of a packet."""
    p.outer = 0
    p.inner = 0
    p.l3 = ETH_HLEN
    p.l4 = l4
    lbd_st32(&p.l3_len, tot)                    # and vlan: 0
    p.af = af
    p.proto = proto
    return True


cdef inline bint fast_parse4(Pkt *p) noexcept nogil:
    cdef const uint8_t *d = p.data
    cdef uint32_t n
    cdef uint8_t first, proto
    if p.len < L4_4 + 8 or (lbd_ld32(d + 12) & 0x00ffffff) != 0x00450008:         # IPv4, a header of five words
        return False
    n = <uint32_t> lbd_bswap16(lbd_ld16(d + ETH_HLEN + 2)) - 20         # (too little: more than can be there)
    if lbd_ld16(d + ETH_HLEN + 6) & 0xff3f or n > p.len - L4_4:         # MF or offset: a fragment
        return False
    if not ip4_sum_ok(d + ETH_HLEN):
        return False
    first = d[ETH_HLEN + 12]
    proto = d[ETH_HLEN + 9]
    if <uint8_t> (first - 1) >= 223 or first == 127 or not l4_sound(d + L4_4, proto, n):
        return False
    return parsed(p, L4_4, n + 20, proto, 4)


cdef inline bint fast_parse6(Pkt *p) noexcept nogil:
    cdef const uint8_t *d = p.data
    cdef uint32_t n
    cdef uint8_t proto
    if p.len < L4_6 + 8 or (lbd_ld32(d + 12) & 0x00f0ffff) != 0x0060dd86:
        return False
    n = lbd_bswap16(lbd_ld16(d + ETH_HLEN + 4))
    if n > p.len - L4_6 or d[ETH_HLEN + 8] == 0xff or lbd_ld64(d + ETH_HLEN + 8) == 0:
        return False
    proto = d[ETH_HLEN + 6]
    if not l4_sound(d + L4_6, proto, n):
        return False
    return parsed(p, L4_6, n + 40, proto, 6)


cdef inline uint64_t lane_bytes(const Pkt *p) noexcept nogil:
    """l3_len of a packet in the lane: one word with vlan, which is 0."""
    return lbd_ld32(&p.l3_len)


cdef inline bint lane_takes(Engine *e, const Pkt *p) noexcept nogil:
    """The interface's packets?"""
    return e.fast[p.ifin] != LANE_CLOSED


cdef inline void lane_checksum(Engine *e, Pkt *p) noexcept nogil:
    """Before the lane: is it partial? What fast_rewrite makes of it then means nothing."""
    if e.partial >> p.ifin & 1 and checksum_is_partial(p):
        p.flags |= PKT_PARTIAL


cdef inline void lane_finish(Engine *e, Pkt *p) noexcept nogil:
    """After it, of what leaves, by a way without tags: a checksum that is partial still. The general way has left none, nor has a
    tunnel or NAT64."""
    if p.flags & PKT_PARTIAL and p.verdict == VERDICT_FORWARD:
        check_finish(e, p, True)


cdef inline uint8_t *ends_of(uint8_t *d, int af) noexcept nogil:
    """In the frame of a packet in the lane: addresses and ports, side by side as in a record (conn_side)."""
    return d + ETH_HLEN + (12 if af == 4 else 8)


cdef inline uint64_t fast_hash(const Engine *e, const Pkt *p, int af) noexcept nogil:
    return ends_hash(ends_of(p.data, af), p.proto, e.hash_key, af)


cdef inline void fast_leave(const Engine *e, Pkt *p, Tuple *t) noexcept nogil:
    """To the general way: what parse() fills in, too."""
    if p.af == 4:
        lbd_copy4_wide(t.saddr, p.data + ETH_HLEN + 12)
        lbd_copy4_wide(t.daddr, p.data + ETH_HLEN + 16)
    else:
        lbd_copy16(t.saddr, p.data + ETH_HLEN + 8)
        lbd_copy16(t.daddr, p.data + ETH_HLEN + 24)
    lbd_st32(&t.sport, lbd_ld32(p.data + p.l4))
    t.proto = p.proto
    t.af = p.af
    if p.proto == PROTO_TCP:
        p.tcp_flags = (<const TcpHdr *> (p.data + p.l4)).flags


cdef inline bint end_is(const uint8_t *end, const uint8_t *came, int af) noexcept nogil:
    if af == 4:
        return lbd_ld64(end) == lbd_ld64(came) and lbd_ld32(end + 8) == lbd_ld32(came + 8)
    return ((lbd_ld64(end) ^ lbd_ld64(came)) | (lbd_ld64(end + 8) ^ lbd_ld64(came + 8))
            | (lbd_ld64(end + 16) ^ lbd_ld64(came + 16)) | (lbd_ld64(end + 24) ^ lbd_ld64(came + 24))
            | (lbd_ld32(end + 32) ^ lbd_ld32(came + 32))) == 0


cdef inline bint settled(const ConnCommon *c, uint8_t proto, uint64_t direction, uint32_t any) noexcept nogil:
    """Live, of this run, established: proto, state, flags and live as one word, little-endian; `any`: flags that may be or not. An
    unanswered UDP flow is as good for its client's packets."""
    cdef uint32_t word = lbd_ld32(&c.proto) & ~(any << 16)
    cdef uint32_t live = <uint32_t> CONN_LIVE << 24
    if proto == PROTO_TCP:
        return word == (live | <uint32_t> STATE_ESTABLISHED << 8 | PROTO_TCP)
    if word == (live | <uint32_t> STATE_UDP << 8 | PROTO_UDP):
        return True
    return word == (live | <uint32_t> STATE_UDP_ONEWAY << 8 | PROTO_UDP) and direction == 0


cdef inline bint way_free(Engine *e, const Pkt *p, const ConnCommon *c, const uint8_t *d, uint32_t hops, uint64_t bytes,
                          uint32_t room, uint64_t direction) noexcept nogil:
    """Nothing hinders this connection's packet to leave. d: its frame; room: bytes that it may have."""
    if c.dest == DEST_NONE:                     # (a record that is not imported has a service)
        return False
    if bytes > room or hops <= 1:
        return False
    # no branch by direction, which can't be foreseen
    return (e.adj[c.adj_rev].sender ^ adj_sender(d + 6, p.ifin)) & (direction - 1) == 0 or e.return_route != 0


cdef inline lbd_inlined passed(Engine *e, Pkt *p, uint32_t i, const Adj *a, const uint8_t *d, uint32_t l3, uint32_t room,
                               uint64_t direction, int af) noexcept nogil:
    """A packet of a settled connection, its IP header (of family l3) as it came, d its frame: if nothing of it is for the general
    way, connection, statistics and whoever sends it learn of it. False: it is as it came. af: the record's family."""
    cdef ConnTable *tab = table_of(e, af)
    cdef ConnCommon *c = conn_common(tab, i, af)
    cdef const TcpHdr *t = <const TcpHdr *> (d + (L4_4 if l3 == 4 else L4_6))
    cdef uint64_t bytes = lane_bytes(p)
    if not way_free(e, p, c, d, d[ETH_HLEN + (8 if l3 == 4 else 7)], bytes, room, direction):
        return False
    if p.proto == PROTO_TCP:
        if t.flags & (TCP_SYN | TCP_FIN | TCP_RST):
            return False
        edges_step(conn_edges(tab, i, af), t, bytes - (20 if l3 == 4 else 40), direction)
    else:
        udp_step(e, i, c, direction, af)
    noted(e, p, c, a, bytes, direction)
    return True


cdef inline lbd_inlined_void noted(Engine *e, Pkt *p, ConnCommon *c, const Adj *a, uint64_t bytes,
                                   uint64_t direction) noexcept nogil:
    """The same, but for sequence numbers."""
    cdef uint32_t whose = lbd_ld32(&c.svc)      # and dest
    c.last_seen = e.now_ms
    lbd_st32(&p.svc, whose)                     # the same in both
    leaves_by(p, a)
    p.flags |= PKT_REPLY * direction
    tally(e, whose & 0xffff, whose >> 16, direction, bytes)


cdef inline void leaves_by(Pkt *p, const Adj *a) noexcept nogil:
    """ifout, verdict, reason and frag as one word, little-endian: forwarded, no reason, no fragment."""
    lbd_st32(&p.ifout, a.iface + (<uint32_t> VERDICT_FORWARD << 8))


cdef inline lbd_inlined fast_tunnel(Engine *e, Pkt *p, uint32_t i, int af, int raf) noexcept nogil:
    """Of a tunnel's connection (i: its record) to a real server of family raf."""
    cdef ConnTable *tab = table_of(e, af)
    cdef ConnCommon *c = conn_common(tab, i, af)
    cdef const Adj *a = e.adj + c.adj_fwd
    cdef uint8_t *d = p.data
    cdef uint32_t way = conn_way(tab, i, af)[0]
    cdef uint32_t bytes = lane_bytes(p)
    cdef const uint8_t *src
    if a.reach == 0 or c.dest == DEST_NONE:
        return False
    if not outer_source(e, c.svc, a, &src, raf):
        return False
    if not passed(e, p, i, a, d, af, tunnel_room_by(e, p, c, way, a.reach, raf), 0, af):
        return False
    if lbd_unlikely(p.flags & PKT_PARTIAL):
        check_complete(e, p)
    hop(d + ETH_HLEN, TTL_DELTA if af == 4 else 0, af)
    if lbd_likely(way == TUNNEL_IPIP):
        d -= encap_from(e, p, d, ETH_HLEN, bytes, tab, i, TUNNEL_IPIP, src, af, raf)
    elif way == TUNNEL_GRE:
        d -= encap_from(e, p, d, ETH_HLEN, bytes, tab, i, TUNNEL_GRE, src, af, raf)
    elif way == TUNNEL_GUE:
        d -= encap_from(e, p, d, ETH_HLEN, bytes, tab, i, TUNNEL_GUE, src, af, raf)
    else:
        d -= encap_from(e, p, d, ETH_HLEN, bytes, tab, i, way, src, af, raf)
    lbd_copy12(d, a.dmac)
    lbd_st16(d + 12, lbd_bswap16(ETH_P_IP if raf == 4 else ETH_P_IPV6))
    return True


cdef inline lbd_inlined fast_translate(Engine *e, Pkt *p, uint32_t i, uint64_t direction) noexcept nogil:
    """Of a NAT64 connection (i: its record)."""
    cdef ConnCommon *c = conn_common(&e.t6, i, 6)
    cdef const Adj *a = e.adj + (&c.adj_fwd)[direction]
    cdef int af = 4 if direction else 6
    p.frag = FRAG_NONE
    if a.reach == 0 or p.af != af or (af == 6 and unsummed(p)):         # nat64_obstacle, of what can be in the lane
        return False
    if not passed(e, p, i, a, p.data, af, a.reach + 40 - 20 if af == 6 else a.reach + 20 - 40, direction, 6):     # nat64_mtu
        return False
    nat64_whole(e, p, conn6(&e.t6, i), ETH_HLEN, L4_4 if af == 4 else L4_6, af)
    lbd_copy12(p.data, a.dmac)
    lbd_st16(p.data + 12, lbd_bswap16(ETH_P_IPV6 if direction else ETH_P_IP))
    return True


cdef inline lbd_inlined fast_wrap_of(Engine *e, Pkt *p, uint32_t i, uint64_t direction, int af) noexcept nogil:
    cdef const ConnCommon *c = conn_common(table_of(e, af), i, af)
    if not c.flags & CONN_WRAPS or not settled(c, p.proto, direction, ANY_WRAPPED):
        return False
    if c.flags & CONN_ONE_WAY:
        if lbd_likely(server_af(c, af) == af):
            return fast_tunnel(e, p, i, af, af)
        return fast_tunnel(e, p, i, af, 10 - af)
    if af == 4:
        return False
    return fast_translate(e, p, i, 1) if direction else fast_translate(e, p, i, 0)


cdef inline lbd_apart fast_wrap(Engine *e, Pkt *p, uint32_t i, uint64_t direction, int af) noexcept nogil:
    """Of a connection whose packets get another IP header, if this is one (i: its record, of family af): tunnel, NAT64."""
    if af == 4:
        return fast_wrap_of(e, p, i, direction, 4)
    return fast_wrap_of(e, p, i, direction, 6)


cdef inline bint fast_far(Engine *e, Pkt *p, uint32_t ref) noexcept nogil:
    """IPv4, of a NAT64 connection? ref: the candidate for it, in the IPv6 table."""
    cdef const uint8_t *came = ends_of(p.data, 4)
    cdef const uint8_t *end = conn_side(&e.t6, ref >> 1, 1, 6)
    if not ref & 1 or lbd_ld32(end + 12) != lbd_ld32(came) or lbd_ld32(end + 28) != lbd_ld32(came + 4):
        return False
    if lbd_ld32(end + 32) != lbd_ld32(came + 8) or conn6(&e.t6, ref >> 1).c.fib_gen != e.fib_gen[0]:
        return False
    return fast_wrap(e, p, ref >> 1, 1, 6)


cdef inline lbd_inlined fast_forward(Engine *e, Pkt *p, uint32_t ref, int af) noexcept nogil:
    """ref: the candidate that the tag gave. True: rewritten, verdict set. False: as it came."""
    cdef ConnTable *tab = table_of(e, af)
    cdef uint32_t i = ref >> 1
    cdef uint64_t direction = ref & 1
    cdef ConnCommon *c = conn_common(tab, i, af)
    cdef uint8_t *record = conn_side(tab, i, 0, af)
    cdef uint8_t *d = p.data
    cdef const Adj *a
    if not end_is(record + direction * (12 if af == 4 else 36), ends_of(d, af), af) or c.fib_gen != e.fib_gen[0]:
        return False
    if lbd_unlikely(not settled(c, p.proto, direction, ANY_PLAIN)):
        return fast_wrap(e, p, i, direction, af)
    a = e.adj + (&c.adj_fwd)[direction]
    if not passed(e, p, i, a, d, af, a.reach, direction, af):
        return False
    fast_rewrite(p, d, record, a, direction, af)
    return True


cdef inline lbd_inlined_void fast_rewrite(const Pkt *p, uint8_t *d, const uint8_t *record, const Adj *a, uint64_t direction,
                                          int af) noexcept nogil:
    """What modes that leave the IP header's form alone change. d: the packet's frame."""
    cdef const ConnCommon *c = &(<const Conn4 *> record).c if af == 4 else &(<const Conn6 *> record).c
    cdef const uint8_t *far = record + (1 - direction) * (12 if af == 4 else 36)
    cdef uint8_t *l4 = d + (L4_4 if af == 4 else L4_6)
    hop(d + ETH_HLEN, (<const Conn4 *> record).ip_delta[direction] if af == 4 else 0, af)
    if lbd_likely(not c.flags & CONN_ONE_WAY):
        ends_write(ends_of(d, af), l4, far, af)
        # the delta of what comes from the real server is the complement
        check_update(l4, p.proto, c.l4_delta ^ <uint16_t> (0 - direction))
    lbd_copy12(d, a.dmac)


cdef inline bint fast_first(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """The packet (it came in the lane) that has just opened record i: it leaves as those after it do, if its ways were guessed
    right. False: as it came."""
    cdef ConnTable *tab = table_of(e, af)
    cdef ConnCommon *c = conn_common(tab, i, af)
    cdef const Adj *a = e.adj + c.adj_fwd
    cdef uint8_t *d = p.data
    cdef const TcpHdr *t = <const TcpHdr *> (d + (L4_4 if af == 4 else L4_6))
    cdef uint64_t bytes = lane_bytes(p)
    if c.live != CONN_LIVE or c.flags & <uint8_t> ~(CONN_MODE & ~CONN_WRAPS) or c.fib_gen != e.fib_gen[0]:
        return False
    if not way_free(e, p, c, d, d[ETH_HLEN + (8 if af == 4 else 7)], bytes, a.reach, 0):
        return False
    if p.proto == PROTO_TCP:
        if t.flags & (TCP_SYN | TCP_FIN) != TCP_SYN:
            return False
        conn_edges(tab, i, af)[0] = lbd_bswap32(t.seq) + bytes - (20 if af == 4 else 40) - tcp_head(t) + 1
    noted(e, p, c, a, bytes, 0)
    fast_rewrite(p, d, conn_side(tab, i, 0, af), a, 0, af)
    return True
