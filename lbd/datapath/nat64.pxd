# NAT64: an IPv6 client's connection to an IPv4 real server, FULLNAT between the families (RFC 7915, RFC 6146). Both ends change,
# and the IP header with them; the transport header stays where it lies in the frame.
#
# The record is an IPv6 one. Its second end, real server → LIP, stands there in mapped form (::ffff:a.b.c.d) and in the IPv6 index
# under that; on the wire it is IPv4, and so it is for everything that asks which worker an answer comes to. No packet may carry a
# mapped address: one that does is refused (nat64_obstacle).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from lbd.datapath.compiler cimport (lbd_bswap16, lbd_bswap32, lbd_copy16, lbd_inlined_void, lbd_ld16, lbd_ld32, lbd_likely,
                                    lbd_prefetch, lbd_st16, lbd_st32, lbd_st64, lbd_swap16s, lbd_unlikely)
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport FRAG_LATER, FRAG_NONE, Pkt, PKT_PARTIAL
from lbd.datapath.flow cimport Tuple, ports_put, tuple_hash
from lbd.datapath.hdr cimport *
from lbd.datapath.reason cimport *
from lbd.datapath.csum cimport csum_fold, csum_partial, csum_reverse
from lbd.datapath.conn cimport Conn6, conn_bucket
from lbd.datapath.ip4 cimport ip4_write
from lbd.datapath.nat cimport check_complete, check_update, transport_changed

cdef enum:
    FRAGMENT_HLEN = 8           # IPv6 fragment header (RFC 8200 §4.5)
    IP4_UNFRAGMENTED = 1260     # up to here DF stays off: a packet of the least IPv6 MTU may meet a smaller IPv4 one (§5.1)


# --- mapped form -----------------------------------------------------------------------------------------------------

cdef inline void addr_map(uint8_t *out, const uint8_t *addr) noexcept nogil:
    """::ffff:a.b.c.d, 16 bytes. In the words that they are hashed and compared by."""
    cdef uint64_t half = <uint64_t> 0xffff0000 | <uint64_t> lbd_ld32(addr) << 32      # little-endian: 00 00 ff ff, the address
    lbd_st64(out, 0)
    lbd_st64(out + 8, half)


cdef inline uint8_t proto6(uint8_t proto) noexcept nogil:
    """A record's protocol number, by that of an IPv4 packet: ICMP has another one in each family."""
    return PROTO_ICMPV6 if proto == PROTO_ICMP else proto


cdef inline void tuple_map(Tuple *out, const Tuple *t, uint8_t proto) noexcept nogil:
    """An IPv4 tuple in mapped form; out may be t. proto: proto6 of its own."""
    addr_map(out.saddr, t.saddr)
    addr_map(out.daddr, t.daddr)
    ports_put(out, t.sport, t.dport)
    out.proto = proto
    out.af = 6
    out.spare = 0


cdef inline void far_prefetch(Engine *e, uint32_t i) noexcept nogil:
    """For IPv4 packet i of the burst, which the IPv4 table does not know: its mapped tuple's hash and bucket. In vain of ICMP, of
    which the number is another one there."""
    cdef Tuple k
    tuple_map(&k, &e.tuple[i], e.tuple[i].proto)
    e.far_hash[i] = tuple_hash(&k, e.hash_key, 6)
    lbd_prefetch(conn_bucket(&e.t6, e.far_hash[i]))


# --- headers ---------------------------------------------------------------------------------------------------------

cdef inline void head4(Engine *e, uint8_t *at, const uint8_t *src, const uint8_t *dst, uint32_t len, uint8_t tos, uint8_t ttl,
                       uint8_t proto) noexcept nogil:
    """IPv4 header (§5.1) between two mapped addresses. len: of the packet, header included."""
    cdef uint16_t id = 0, frag_off = lbd_bswap16(IP_DF)
    if len <= IP4_UNFRAGMENTED:
        frag_off = 0
        e.ip_id += 1
        id = e.ip_id
    ip4_write(at, len, tos, id, frag_off, ttl, proto, lbd_ld32(src + 12), lbd_ld32(dst + 12))


cdef inline void head6(uint8_t *at, const uint8_t *src, const uint8_t *dst, uint32_t payload, uint8_t tc, uint8_t hops,
                       uint8_t next) noexcept nogil:
    """IPv6 header (§4.1)."""
    cdef Ip6Hdr *ip = <Ip6Hdr *> at
    lbd_st32(&ip.ver_tc_flow, lbd_bswap32(0x60000000 | <uint32_t> tc << 20))
    ip.payload_len = lbd_bswap16(payload)
    ip.nexthdr = next
    ip.hop_limit = hops
    lbd_copy16(ip.saddr, src)
    lbd_copy16(ip.daddr, dst)


cdef inline uint8_t traffic_class(const uint8_t *ip6) noexcept nogil:
    return <uint8_t> (ip6[0] << 4 | ip6[1] >> 4)


cdef inline lbd_inlined_void moved_from(Pkt *p, uint32_t l3, uint32_t head, uint32_t len, uint32_t af, uint32_t l4) noexcept nogil:
    """The packet, whose IP header was at l3, now has it, of family af, at offset `head` of what was data, and the transport header
    l4 bytes on; len bytes in all. What is before it is the link layer's, which is written anew (link_write). l3_len stays that of
    the packet that came: statistics count it."""
    p.data += <int> head - <int> l3
    p.len = l3 + len
    p.l4 = l3 + l4
    p.af = af


cdef inline void moved(Pkt *p, uint32_t head, uint32_t len, uint32_t af, uint32_t l4) noexcept nogil:
    moved_from(p, p.l3, head, len, af, l4)


# --- packets ---------------------------------------------------------------------------------------------------------

cdef inline bint source_routed(const uint8_t *options, uint32_t n) noexcept nogil:
    """A source route that has not come to its end among these IPv4 options, or options that can't be read?"""
    cdef uint32_t at = 0
    while at < n and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if at + 2 > n or options[at + 1] < 2 or at + options[at + 1] > n:
            return True
        if (options[at] == 131 or options[at] == 137) and (options[at + 1] < 3 or options[at + 2] <= options[at + 1]):
            return True
        at += options[at + 1]
    return False


cdef inline bint untranslatable6(const Pkt *p) noexcept nogil:
    """A routing header with segments left among the extension headers, or in a fragment one behind its fragment header, which would
    be missed where the datagram is put together? (parse has walked the chain: it is sound.)"""
    cdef uint32_t off = p.l3 + sizeof(Ip6Hdr)
    cdef uint8_t next = (<const Ip6Hdr *> (p.data + p.l3)).nexthdr
    while off < p.l4:
        if next == 43 and p.data[off + 3] != 0:
            return True
        if next == PROTO_FRAGMENT:
            return p.frag != FRAG_NONE and off + 8 != p.l4
        next = p.data[off]
        off += (<uint32_t> p.data[off + 1] + 1) * 8
    return False


cdef inline bint unsummed(const Pkt *p) noexcept nogil:
    """UDP without a checksum?"""
    return p.proto == PROTO_UDP and p.frag != FRAG_LATER and (<const UdpHdr *> (p.data + p.l4)).check == 0


cdef inline uint32_t nat64_obstacle(const Pkt *p, uint32_t direction) noexcept nogil:
    """Why a packet of such a connection can't be translated, or REASON_NONE. Options and extension headers that are no obstacle are
    left out (§4.1, §5.1)."""
    cdef uint32_t head = p.l4 - p.l3
    if (p.af == 4) != (direction == 1):         # mapped addresses on the wire
        return REASON_MARTIAN
    if p.af == 4:
        if head > sizeof(IpHdr) and source_routed(p.data + p.l3 + sizeof(IpHdr), head - sizeof(IpHdr)):
            return REASON_UNTRANSLATABLE
        # a part of the datagram is not enough to compute one (§4.5)
        return REASON_UNTRANSLATABLE if p.frag != FRAG_NONE and unsummed(p) else REASON_NONE
    if head > sizeof(Ip6Hdr) and untranslatable6(p):
        return REASON_UNTRANSLATABLE
    # over IPv4 it would pass for one that was not computed (RFC 8200 §8.1)
    return REASON_BAD_CHECKSUM if unsummed(p) else REASON_NONE


cdef inline uint32_t nat64_mtu(const Pkt *p, uint32_t mtu) noexcept nogil:
    """What the packet that came may measure for the translated one to fit an MTU."""
    cdef uint32_t head = sizeof(IpHdr)
    if p.af == 4:
        head = sizeof(Ip6Hdr) + (FRAGMENT_HLEN if p.frag != FRAG_NONE else 0)
    return mtu + (p.l4 - p.l3) - head


cdef inline void check_otherwise(const Engine *e, Pkt *p, uint8_t *l4, uint32_t before, uint16_t delta) noexcept nogil:
    """A checksum that is partial or missing is made, one that depends on the length changed by it. before: the ports that were."""
    cdef uint16_t came = p.l3_len
    p.l3_len = p.len - p.l3                     # the transport's length follows from it
    if p.flags & PKT_PARTIAL or p.proto == PROTO_UDP:
        check_complete(e, p)
    else:
        transport_changed(p, l4, before, delta)
    p.l3_len = came


cdef inline lbd_inlined_void ports_write(const Engine *e, Pkt *p, uint8_t *l4, const void *far, uint16_t delta) noexcept nogil:
    """far: the ports of the record's other end, if the packet shows them. The checksum with them."""
    cdef uint32_t before
    if p.frag == FRAG_LATER:                    # and may be shorter than ports are
        return
    before = lbd_ld32(l4)
    lbd_st32(l4, lbd_swap16s(lbd_ld32(far)))
    if lbd_unlikely(p.flags & PKT_PARTIAL or p.proto == PROTO_SCTP or (p.proto == PROTO_UDP and (<UdpHdr *> l4).check == 0)):
        check_otherwise(e, p, l4, before, delta)
    else:
        check_update(l4, p.proto, delta)


cdef inline void nat64_server_side(uint8_t *side, const Conn6 *c) noexcept nogil:
    """The real server's end as its packets carry it (12 bytes, as conn_side of an IPv4 record)."""
    memcpy(side, c.daddr + 12, 4)
    memcpy(side + 4, c.laddr + 12, 4)
    memcpy(side + 8, &c.dport, 4)


cdef inline void nat64_fragment(Engine *e, Pkt *p, const Conn6 *c) noexcept nogil:
    """The headers of a fragment (§4.1, §5.1.1); its identification is written later (frag_flow.pxd)."""
    cdef const uint8_t *ip = p.data + p.l3
    cdef uint8_t *l4 = p.data + p.l4
    cdef uint32_t n = p.l3 + p.l3_len - p.l4
    cdef IpHdr *h
    cdef uint8_t *f
    cdef uint16_t at
    if p.af == 6:
        at = lbd_bswap16(lbd_ld16(ip + p.inner + 2))
        h = <IpHdr *> (l4 - sizeof(IpHdr))
        head4(e, <uint8_t *> h, c.laddr, c.daddr, n + sizeof(IpHdr), traffic_class(ip), ip[7] - 1, p.proto)
        h.frag_off = lbd_bswap16(at >> 3 | (IP_MF if at & 1 else 0))
        h.check = 0
        h.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> h, sizeof(IpHdr), 0))
        moved(p, p.l4 - sizeof(IpHdr), n + sizeof(IpHdr), 4, sizeof(IpHdr))
        return
    at = lbd_bswap16((<const IpHdr *> ip).frag_off)
    f = l4 - FRAGMENT_HLEN
    head6(f - sizeof(Ip6Hdr), c.vaddr, c.caddr, n + FRAGMENT_HLEN, ip[1], ip[8] - 1, PROTO_FRAGMENT)
    f[0], f[1] = p.proto, 0
    lbd_st16(f + 2, lbd_bswap16(<uint16_t> (at << 3) | (1 if at & IP_MF else 0)))
    lbd_st32(f + 4, p.frag_id)
    moved(p, p.l4 - FRAGMENT_HLEN - sizeof(Ip6Hdr), n + FRAGMENT_HLEN + sizeof(Ip6Hdr), 6, sizeof(Ip6Hdr) + FRAGMENT_HLEN)
    p.inner = sizeof(Ip6Hdr)


cdef inline lbd_inlined_void nat64_whole(Engine *e, Pkt *p, const Conn6 *c, uint32_t l3, uint32_t l4, int af) noexcept nogil:
    """No fragment; its IP header, of family af, at l3, the transport header at l4."""
    cdef uint8_t *ip = p.data + l3
    cdef uint8_t *t = p.data + l4
    cdef uint32_t n = l3 + p.l3_len - l4
    if af == 6:
        head4(e, t - sizeof(IpHdr), c.laddr, c.daddr, n + sizeof(IpHdr), traffic_class(ip), ip[7] - 1, p.proto)
        moved_from(p, l3, l4 - sizeof(IpHdr), n + sizeof(IpHdr), 4, sizeof(IpHdr))
        ports_write(e, p, t, &c.dport, c.c.l4_delta)
    else:
        head6(t - sizeof(Ip6Hdr), c.vaddr, c.caddr, n, ip[1], ip[8] - 1, p.proto)
        moved_from(p, l3, l4 - sizeof(Ip6Hdr), n + sizeof(Ip6Hdr), 6, sizeof(Ip6Hdr))
        ports_write(e, p, t, &c.cport, csum_reverse(c.c.l4_delta))


cdef inline void nat64_packet(Engine *e, Pkt *p, const Conn6 *c) noexcept nogil:
    """TCP, UDP or SCTP, without an obstacle. Its family is its direction. (ICMP echo: echo64.pxd.)"""
    cdef uint8_t *l4 = p.data + p.l4
    if lbd_likely(p.frag == FRAG_NONE):
        if p.af == 6:
            nat64_whole(e, p, c, p.l3, p.l4, 6)
        else:
            nat64_whole(e, p, c, p.l3, p.l4, 4)
        return
    nat64_fragment(e, p, c)
    if p.af == 4:                               # now
        ports_write(e, p, l4, &c.dport, c.c.l4_delta)
    else:
        ports_write(e, p, l4, &c.cport, csum_reverse(c.c.l4_delta))
