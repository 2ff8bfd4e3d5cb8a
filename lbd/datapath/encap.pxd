# Encapsulation: a packet that is left as it came, but for its TTL, behind an outer IP header. Any family in any:
#     IPIP   RFC 2003, 2473, 4213: nothing between
#     GRE    RFC 2784: 4 bytes, 8 with a checksum
#     GUE    version 0, as Linux (fou) and IPVS have it: UDP and 4 bytes; the source port tells flows apart, for receivers' RSS
# Outer: source as configured, else the local address of its family, else an interface's; type of service and ECN copied (RFC 6040),
# TTL 64. IPv4 in IPv4 copies DF; without DF the inner packet's identification serves for the outer one too. IPv6 in IPv4 may not be
# fragmented.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport (lbd_bswap16, lbd_bswap32, lbd_copy16, lbd_inlined, lbd_inlined_void, lbd_ld32, lbd_ld64,
                                    lbd_likely, lbd_st16, lbd_st32, lbd_unlikely)
from lbd.datapath.chain cimport pkt_sum
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.flow cimport ends_hash
from lbd.datapath.hdr cimport *
from lbd.datapath.csum cimport csum_fold, csum_pseudo
from lbd.datapath.ip4 cimport ip4_write
from lbd.datapath.conn cimport ConnTable, conn4, conn6, conn_common, conn_server, conn_side
from lbd.datapath.neigh cimport Adj
from lbd.datapath.svc cimport SVC_NONE, TUNNEL_CSUM, TUNNEL_GRE, TUNNEL_GUE, TUNNEL_IPIP, TUNNEL_KIND
from lbd.datapath.tunnel cimport conn_way, shim_bytes

cdef enum:
    OUTER_TTL = 64
    FLOW_PORT = 49152           # GUE's source ports: 14 bits of the flow's hash (RFC 6335's dynamic ports)


cdef inline bint is_set(const uint8_t *addr, int af) noexcept nogil:
    if af == 4:
        return lbd_ld32(addr) != 0
    return (lbd_ld64(addr) | lbd_ld64(addr + 8)) != 0


cdef inline lbd_inlined outer_source(const Engine *e, uint32_t svc, const Adj *a, const uint8_t **src, int raf) noexcept nogil:
    """Sets src, to 4 or 16 bytes. False: lbd has no address of that family."""
    if svc != SVC_NONE:
        src[0] = &e.svc[svc].source4[0] if raf == 4 else &e.svc[svc].source6[0]
        if is_set(src[0], raf):
            return True
    if (e.lip4_n if raf == 4 else e.lip6_n) != 0:
        src[0] = e.lip[e.lip4[0] if raf == 4 else e.lip6[0]].addr
        return True
    src[0] = &e.iface[a.link].addr4[0] if raf == 4 else &e.iface[a.link].addr6[0]
    return is_set(src[0], raf)


cdef inline lbd_inlined outer4(uint8_t *inner, uint32_t bytes, const uint8_t *src, const uint8_t *dst, uint32_t shim,
                               uint8_t proto, int af) noexcept nogil:
    """Before the inner packet of family af, of so many bytes, and `shim` bytes before it. Returns its own bytes, with these."""
    cdef const IpHdr *in4 = <const IpHdr *> inner
    cdef uint16_t id = 0, frag_off = lbd_bswap16(IP_DF)
    cdef uint8_t tos
    if af == 4:
        tos = in4.tos
        frag_off &= in4.frag_off
        if not frag_off:
            id = in4.id
            # fragments of one datagram have the same: in packets of their own they must not, routers may fragment those
            if lbd_unlikely(in4.frag_off & lbd_bswap16(IP_OFFMASK)):
                id ^= <uint16_t> (<uint32_t> (in4.frag_off & lbd_bswap16(IP_OFFMASK)) * 0x9e37)
    else:
        tos = <uint8_t> (inner[0] << 4 | inner[1] >> 4)
    ip4_write(inner - shim - sizeof(IpHdr), bytes + shim + sizeof(IpHdr), tos, id, frag_off, OUTER_TTL, proto, lbd_ld32(src),
              lbd_ld32(dst))
    return shim + sizeof(IpHdr)


cdef inline lbd_inlined outer6(uint8_t *inner, uint32_t bytes, const uint8_t *src, const uint8_t *dst, uint32_t shim,
                               uint8_t proto, int af) noexcept nogil:
    cdef Ip6Hdr *ip = <Ip6Hdr *> (inner - shim - sizeof(Ip6Hdr))
    cdef uint32_t tos = inner[1] if af == 4 else <uint8_t> (inner[0] << 4 | inner[1] >> 4)
    lbd_st32(&ip.ver_tc_flow, lbd_bswap32(0x60000000 | tos << 20))
    ip.payload_len = lbd_bswap16(<uint16_t> (bytes + shim))
    ip.nexthdr = proto
    ip.hop_limit = OUTER_TTL
    lbd_copy16(ip.saddr, src)
    lbd_copy16(ip.daddr, dst)
    return shim + sizeof(Ip6Hdr)


cdef inline void gre_sum(const Engine *e, Pkt *p, uint8_t *inner) noexcept nogil:
    """The checksum field, between the first 4 bytes and the inner packet."""
    lbd_st32(inner - 4, 0)
    lbd_st16(inner - 4, <uint16_t> ~csum_fold(pkt_sum(e, p, inner - 8, 8 + p.l3_len, 0)))


cdef inline lbd_inlined_void gre_write(const Engine *e, Pkt *p, uint8_t *inner, uint32_t way, int af) noexcept nogil:
    cdef uint32_t flags = lbd_bswap16(GRE_CSUM) if way & TUNNEL_CSUM else 0
    lbd_st32(inner - shim_bytes(way), flags | <uint32_t> lbd_bswap16(ETH_P_IP if af == 4 else ETH_P_IPV6) << 16)
    if way & TUNNEL_CSUM:
        gre_sum(e, p, inner)


cdef inline uint16_t flow_port(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """The same for all packets of the connection, in every worker and after a restart; network order."""
    cdef uint64_t hash = ends_hash(conn_side(t, i, 0, af), conn_common(t, i, af).proto, t.key, af)
    return lbd_bswap16(<uint16_t> (FLOW_PORT | hash >> 50))


cdef inline lbd_inlined_void gue_write(uint8_t *inner, uint32_t size, uint16_t sport, uint16_t dport, int af) noexcept nogil:
    cdef UdpHdr *u = <UdpHdr *> (inner - sizeof(UdpHdr) - sizeof(GueHdr))
    cdef GueHdr *g = <GueHdr *> (inner - sizeof(GueHdr))
    u.source = sport
    u.dest = dport
    lbd_st32(&u.len, lbd_bswap16(<uint16_t> (size + sizeof(UdpHdr) + sizeof(GueHdr))))          # and check: 0
    lbd_st32(g, <uint32_t> (PROTO_IPIP if af == 4 else PROTO_IPV6) << 8)        # ver_len and flags: 0


cdef inline void gue_sum(const Engine *e, Pkt *p, int raf) noexcept nogil:
    """The outer UDP checksum, when the outer addresses are there."""
    cdef UdpHdr *u = <UdpHdr *> (p.data + p.l3 - sizeof(UdpHdr) - sizeof(GueHdr))
    cdef uint32_t alen = 4 if raf == 4 else 16
    cdef const uint8_t *addrs = <const uint8_t *> u - 2 * alen
    cdef uint32_t n = p.l3_len + sizeof(UdpHdr) + sizeof(GueHdr)
    u.check = <uint16_t> ~csum_fold(pkt_sum(e, p, <uint8_t *> u, n, csum_pseudo(addrs, addrs + alen, alen, PROTO_UDP, n)))
    if u.check == 0:
        u.check = 0xffff


cdef inline const uint8_t *server_addr(ConnTable *t, uint32_t i, uint8_t *room, int af, int raf) noexcept nogil:
    """The real server, of family raf, of a record of mode tunnel; room: 16 bytes, for one that lies in two places."""
    if af == 6:
        return conn6(t, i).daddr
    if raf == 4:
        return <const uint8_t *> &conn4(t, i).daddr
    conn_server(t, i, room, 4)
    return room


cdef inline lbd_inlined encap_from(const Engine *e, Pkt *p, uint8_t *d, uint32_t l3, uint32_t bytes, ConnTable *t, uint32_t i,
                                   uint32_t way, const uint8_t *src, int af, int raf) noexcept nogil:
    """The packet (d: its data; its IP header at l3, so many bytes from there) behind a header of the real server's family raf, from
    src, and what `way` (conn_way) has between. What lies before l3 is not moved: the link layer is written anew after this
    (link_write). l3_len stays the inner packet's. Returns how many bytes it has grown by."""
    cdef uint8_t room[16]
    cdef const uint8_t *server = server_addr(t, i, room, af, raf)
    cdef uint8_t *inner = d + l3
    cdef uint32_t shim = shim_bytes(way), n
    cdef uint8_t proto = PROTO_IPIP if af == 4 else PROTO_IPV6
    if lbd_likely(way == TUNNEL_IPIP):
        pass
    elif way & TUNNEL_KIND == TUNNEL_GRE:
        gre_write(e, p, inner, way, af)
        proto = PROTO_GRE
    elif way & TUNNEL_KIND == TUNNEL_GUE:
        gue_write(inner, bytes, flow_port(t, i, af), conn_common(t, i, af).l4_delta, af)
        proto = PROTO_UDP
    if raf == 4:
        n = outer4(inner, bytes, src, server, shim, proto, af)
    else:
        n = outer6(inner, bytes, src, server, shim, proto, af)
    if lbd_unlikely(way == (TUNNEL_GUE | TUNNEL_CSUM)):
        gue_sum(e, p, raf)
    p.data = d - n
    p.len = l3 + bytes + n              # without what Ethernet padded
    p.l4 += n
    p.af = raf
    return n


cdef inline bint encap(Engine *e, Pkt *p, ConnTable *t, uint32_t i, const Adj *a, int af, int raf) noexcept nogil:
    """False: no source address."""
    cdef const uint8_t *src
    if not outer_source(e, p.svc, a, &src, raf):
        return False
    encap_from(e, p, p.data, p.l3, p.l3_len, t, i, conn_way(t, i, af)[0], src, af, raf)
    return True
