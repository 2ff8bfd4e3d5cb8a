# Encapsulation: a packet that is left as it came, but for its TTL, behind an outer IP header. Any family in any:
#     IPIP   RFC 2003, 2473, 4213: nothing between
#     GRE    RFC 2784: 4 bytes, 8 with a checksum
#     GUE    version 0, as Linux (fou) and IPVS have it: UDP and 4 bytes; the source port tells flows apart, for receivers' RSS
# Outer: source as configured, else the local address of its family, else an interface's; type of service and ECN copied (RFC 6040),
# TTL 64. IPv4 in IPv4 copies DF; without DF the inner packet's identification serves for the outer one too. IPv6 in IPv4 may not be
# fragmented.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_copy16, lbd_ld32, lbd_likely, lbd_st16, lbd_st32
from lbd.datapath.chain cimport pkt_sum
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.hdr cimport *
from lbd.datapath.csum cimport csum_fold, csum_pseudo
from lbd.datapath.ip4 cimport ip4_write
from lbd.datapath.conn cimport ConnTable, conn4, conn6, conn_common, conn_server, conn_tuple
from lbd.datapath.neigh cimport Adj
from lbd.datapath.svc cimport SVC_NONE, TUNNEL_CSUM, TUNNEL_GRE, TUNNEL_GUE, TUNNEL_IPIP, TUNNEL_KIND
from lbd.datapath.tunnel cimport conn_way, encap_bytes, shim_bytes

cdef enum:
    OUTER_TTL = 64
    FLOW_PORT = 49152           # GUE's source ports: 14 bits of the flow's hash (RFC 6335's dynamic ports)


cdef inline bint is_set(const uint8_t *addr) noexcept nogil:
    return (lbd_ld32(addr) | lbd_ld32(addr + 4) | lbd_ld32(addr + 8) | lbd_ld32(addr + 12)) != 0


cdef inline uint32_t outer_source4(const Engine *e, uint32_t svc, const Adj *a) noexcept nogil:
    """0: lbd has none."""
    if svc != SVC_NONE and lbd_ld32(e.svc[svc].source4) != 0:
        return lbd_ld32(e.svc[svc].source4)
    if e.lip4_n:
        return lbd_ld32(e.lip[e.lip4[0]].addr)
    return lbd_ld32(e.iface[a.link].addr4)


cdef inline const uint8_t *outer_source6(const Engine *e, uint32_t svc, const Adj *a) noexcept nogil:
    """NULL: lbd has none."""
    if svc != SVC_NONE and is_set(e.svc[svc].source6):
        return e.svc[svc].source6
    if e.lip6_n:
        return e.lip[e.lip6[0]].addr
    return e.iface[a.link].addr6 if is_set(e.iface[a.link].addr6) else NULL


cdef inline bint outer_source(const Engine *e, uint32_t svc, const Adj *a, uint8_t *addr, int raf) noexcept nogil:
    """False: lbd has no address of that family. addr: 4 or 16 bytes."""
    cdef const uint8_t *src
    cdef uint32_t word
    if raf == 4:
        word = outer_source4(e, svc, a)
        lbd_st32(addr, word)
        return word != 0
    src = outer_source6(e, svc, a)
    if src == NULL:
        return False
    lbd_copy16(addr, src)
    return True


cdef inline void outer4(Pkt *p, const uint8_t *src, const uint8_t *dst, uint32_t shim, uint8_t proto) noexcept nogil:
    """Before the packet at p.l3, which is still the inner one, and `shim` bytes before it."""
    cdef uint8_t *inner = p.data + p.l3
    cdef IpHdr *in4 = <IpHdr *> inner
    cdef uint16_t id = 0, frag_off = lbd_bswap16(IP_DF)
    cdef uint8_t tos
    if p.af == 4:
        tos = in4.tos
        frag_off &= in4.frag_off
        if not frag_off:
            # fragments of one datagram have the same: in packets of their own they must not, routers may fragment those
            id = in4.id ^ <uint16_t> (<uint32_t> (in4.frag_off & lbd_bswap16(IP_OFFMASK)) * 0x9e37)
    else:
        tos = <uint8_t> (inner[0] << 4 | inner[1] >> 4)
    ip4_write(inner - shim - sizeof(IpHdr), p.l3_len + shim + sizeof(IpHdr), tos, id, frag_off, OUTER_TTL, proto, lbd_ld32(src),
              lbd_ld32(dst))


cdef inline void outer6(Pkt *p, const uint8_t *src, const uint8_t *dst, uint32_t shim, uint8_t proto) noexcept nogil:
    cdef uint8_t *inner = p.data + p.l3
    cdef Ip6Hdr *ip = <Ip6Hdr *> (inner - shim - sizeof(Ip6Hdr))
    cdef uint32_t tos = inner[1] if p.af == 4 else <uint8_t> (inner[0] << 4 | inner[1] >> 4)
    lbd_st32(&ip.ver_tc_flow, lbd_bswap32(0x60000000 | tos << 20))
    ip.payload_len = lbd_bswap16(p.l3_len + shim)
    ip.nexthdr = proto
    ip.hop_limit = OUTER_TTL
    memcpy(ip.saddr, src, 16)
    memcpy(ip.daddr, dst, 16)


cdef inline void gre_write(const Engine *e, Pkt *p, uint32_t way, int af) noexcept nogil:
    cdef uint8_t *inner = p.data + p.l3
    cdef uint32_t n = shim_bytes(way)
    cdef GreHdr *g = <GreHdr *> (inner - n)
    g.flags = lbd_bswap16(GRE_CSUM) if way & TUNNEL_CSUM else 0
    g.proto = lbd_bswap16(ETH_P_IP if af == 4 else ETH_P_IPV6)
    if way & TUNNEL_CSUM:
        lbd_st32(g + 1, 0)
        lbd_st16(g + 1, <uint16_t> ~csum_fold(pkt_sum(e, p, <uint8_t *> g, n + p.l3_len, 0)))


cdef inline uint16_t flow_port(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """The same for all packets of the connection, in every worker and after a restart; network order."""
    cdef Tuple k
    conn_tuple(t, i, 0, &k, af)
    return lbd_bswap16(<uint16_t> (FLOW_PORT | tuple_hash(&k, t.key, af) >> 50))


cdef inline void gue_write(uint8_t *inner, uint32_t size, uint16_t sport, uint16_t dport, int af) noexcept nogil:
    cdef UdpHdr *u = <UdpHdr *> (inner - sizeof(UdpHdr) - sizeof(GueHdr))
    cdef GueHdr *g = <GueHdr *> (inner - sizeof(GueHdr))
    u.source = sport
    u.dest = dport
    u.len = lbd_bswap16(size + sizeof(UdpHdr) + sizeof(GueHdr))
    u.check = 0
    g.ver_len = 0
    g.proto = PROTO_IPIP if af == 4 else PROTO_IPV6
    g.flags = 0


cdef inline void gue_sum(const Engine *e, Pkt *p, int raf) noexcept nogil:
    """The outer UDP checksum, when the outer addresses are there."""
    cdef UdpHdr *u = <UdpHdr *> (p.data + p.l3 - sizeof(UdpHdr) - sizeof(GueHdr))
    cdef uint32_t alen = 4 if raf == 4 else 16
    cdef const uint8_t *addrs = <const uint8_t *> u - 2 * alen
    cdef uint32_t n = p.l3_len + sizeof(UdpHdr) + sizeof(GueHdr)
    u.check = <uint16_t> ~csum_fold(pkt_sum(e, p, <uint8_t *> u, n, csum_pseudo(addrs, addrs + alen, alen, PROTO_UDP, n)))
    if u.check == 0:
        u.check = 0xffff


cdef inline uint32_t server4(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """The real server of a record of mode tunnel, if that is IPv4."""
    return conn4(t, i).daddr if af == 4 else lbd_ld32(conn6(t, i).daddr)


cdef inline void encap_from(const Engine *e, Pkt *p, ConnTable *t, uint32_t i, const uint8_t *src, int af,
                            int raf) noexcept nogil:
    """Behind a header of the real server's family raf, from src. What lies before the inner header is not moved: the link layer is
    written anew after this (link_write). l3_len stays the inner packet's."""
    cdef uint8_t server[16]
    cdef uint8_t *inner = p.data + p.l3
    cdef uint32_t way = conn_way(t, i, af)[0]
    cdef uint32_t n = encap_bytes(way, raf)
    cdef uint8_t proto = PROTO_IPIP if af == 4 else PROTO_IPV6
    if raf == 4:
        lbd_st32(server, server4(t, i, af))
    else:
        conn_server(t, i, server, af)
    if lbd_likely(way == TUNNEL_IPIP):
        pass
    elif way & TUNNEL_KIND == TUNNEL_GRE:
        gre_write(e, p, way, af)
        proto = PROTO_GRE
    elif way & TUNNEL_KIND == TUNNEL_GUE:
        gue_write(inner, p.l3_len, flow_port(t, i, af), conn_common(t, i, af).l4_delta, af)
        proto = PROTO_UDP
    p.len = p.l3 + p.l3_len             # without what Ethernet padded
    if raf == 4:
        outer4(p, src, server, shim_bytes(way), proto)
    else:
        outer6(p, src, server, shim_bytes(way), proto)
    if way == (TUNNEL_GUE | TUNNEL_CSUM):
        gue_sum(e, p, raf)
    p.data -= n
    p.len += n
    p.l4 += n
    p.af = raf


cdef inline bint encap(Engine *e, Pkt *p, ConnTable *t, uint32_t i, const Adj *a, int af, int raf) noexcept nogil:
    """False: no source address."""
    cdef uint8_t src[16]
    if not outer_source(e, p.svc, a, src, raf):
        return False
    encap_from(e, p, t, i, src, af, raf)
    return True
