# IP in IP (RFC 2003, 2473, 4213): the outer header before a packet that is left as it came, but for its TTL. Any family in any.
# Outer: source the local address of its family (an interface's where there is none), type of service and ECN copied (RFC 6040),
# TTL 64. IPv4 in IPv4 copies DF; without DF the inner packet's identification serves for the outer one too. IPv6 in IPv4 may not be
# fragmented.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ld32, lbd_st32
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.hdr cimport *
from lbd.datapath.csum cimport csum_fold, csum_partial
from lbd.datapath.neigh cimport Adj

cdef enum:
    PROTO_IPIP = 4
    PROTO_IPV6 = 41
    OUTER_TTL = 64


cdef inline uint32_t encap_bytes(const Adj *a) noexcept nogil:
    """What the outer header adds on this way out: its family is the next hop's."""
    return sizeof(IpHdr) if a.af == 4 else sizeof(Ip6Hdr)


cdef inline bint outer_source(Engine *e, const Adj *a, uint8_t *addr) noexcept nogil:
    """False: lbd has no address of that family."""
    memset(addr, 0, 16)
    if a.af == 4:
        memcpy(addr, <const uint8_t *> e.lip[e.lip4[0]].addr if e.lip4_n else <const uint8_t *> e.iface[a.iface].addr4, 4)
        return lbd_ld32(addr) != 0
    memcpy(addr, <const uint8_t *> e.lip[e.lip6[0]].addr if e.lip6_n else <const uint8_t *> e.iface[a.iface].addr6, 16)
    return (lbd_ld32(addr) | lbd_ld32(addr + 4) | lbd_ld32(addr + 8) | lbd_ld32(addr + 12)) != 0


cdef inline void outer4(Pkt *p, const uint8_t *src, const uint8_t *dst) noexcept nogil:
    """Before the packet at p.l3, which is still the inner one."""
    cdef uint8_t *inner = p.data + p.l3
    cdef IpHdr *in4 = <IpHdr *> inner
    cdef IpHdr *ip = <IpHdr *> (inner - sizeof(IpHdr))
    ip.ver_ihl = 0x45
    ip.tot_len = lbd_bswap16(p.l3_len + sizeof(IpHdr))
    ip.id = 0
    ip.ttl = OUTER_TTL
    if p.af == 4:
        ip.tos = in4.tos
        ip.frag_off = in4.frag_off & lbd_bswap16(IP_DF)
        if not ip.frag_off:
            ip.id = in4.id
        ip.protocol = PROTO_IPIP
    else:
        ip.tos = <uint8_t> (inner[0] << 4 | inner[1] >> 4)
        ip.frag_off = lbd_bswap16(IP_DF)
        ip.protocol = PROTO_IPV6
    memcpy(&ip.saddr, src, 4)
    memcpy(&ip.daddr, dst, 4)
    ip.check = 0
    ip.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> ip, sizeof(IpHdr), 0))


cdef inline void outer6(Pkt *p, const uint8_t *src, const uint8_t *dst) noexcept nogil:
    cdef uint8_t *inner = p.data + p.l3
    cdef Ip6Hdr *ip = <Ip6Hdr *> (inner - sizeof(Ip6Hdr))
    cdef uint32_t tos = inner[1] if p.af == 4 else <uint8_t> (inner[0] << 4 | inner[1] >> 4)
    lbd_st32(&ip.ver_tc_flow, lbd_bswap32(0x60000000 | tos << 20))
    ip.payload_len = lbd_bswap16(p.l3_len)
    ip.nexthdr = PROTO_IPIP if p.af == 4 else PROTO_IPV6
    ip.hop_limit = OUTER_TTL
    memcpy(ip.saddr, src, 16)
    memcpy(ip.daddr, dst, 16)


cdef inline bint encap(Engine *e, Pkt *p, const Adj *a, const uint8_t *server) noexcept nogil:
    """server: the real server's address, of a's family. False: no source address. What lies before the inner header is not moved:
    the link layer is written anew after this (link_write). l3_len stays the inner packet's."""
    cdef uint8_t src[16]
    cdef uint32_t n = encap_bytes(a)
    if not outer_source(e, a, src):
        return False
    p.len = p.l3 + p.l3_len             # without what Ethernet padded
    if a.af == 4:
        outer4(p, src, server)
    else:
        outer6(p, src, server)
    p.data -= n
    p.len += n
    p.room += n
    p.l4 += n
    p.af = a.af
    return True
