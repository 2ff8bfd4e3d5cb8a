# Decapsulation: of a packet in an IPIP or GRE tunnel that ends here, the inner one is looked at in its place. Nothing is moved: the
# offset of the IP header is that of the inner one from here on, and what is forwarded gets its link-layer header right before it
# (link_write). So what turns out to be no service's goes to the kernel as it came.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp
from lbd.datapath.compiler cimport lbd_bswap16, lbd_ld16, lbd_ld64, lbd_st16
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt, PKT_HANDED, PKT_ROUTED, PKT_TUNNEL
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport *
from lbd.datapath.chain cimport pkt_sum
from lbd.datapath.csum cimport csum_apply, csum_diff, csum_fold
from lbd.datapath.reason cimport *
from lbd.datapath.svc cimport TUNNEL_GRE, TUNNEL_IPIP
from lbd.datapath.inner cimport INNER_FOUND, INNER_SHORT, inner_at
from lbd.datapath.tunnel_end cimport TUNNEL_MAX, TunnelEnd

cdef enum:
    ECN_CE = 3                  # congestion experienced (RFC 3168)


cdef inline TunnelEnd *end_of(const Engine *e, const Tuple *t, uint32_t af, uint32_t kind) noexcept nogil:
    """The tunnel of this kind between these addresses, or NULL. A walk, for tunnelled packets alone."""
    cdef uint32_t i
    cdef TunnelEnd *k
    for i in range(TUNNEL_MAX):
        k = e.tunnel + i
        if (k.used and k.af == af and k.kind == kind and memcmp(k.local, t.daddr, 16) == 0
                and ((lbd_ld64(k.remote) | lbd_ld64(k.remote + 8)) == 0 or memcmp(k.remote, t.saddr, 16) == 0)):
            return k
    return NULL


cdef inline bint counts(const Pkt *p) noexcept nogil:
    """Where a worker gives a packet to another one, the first counts it."""
    return not p.flags & (PKT_HANDED | PKT_ROUTED)


cdef inline uint32_t refuse(Pkt *p, TunnelEnd *k, uint32_t reason) noexcept nogil:
    p.verdict = VERDICT_DROP
    p.reason = reason
    k.refused += counts(p)
    return 0


cdef inline uint32_t decap(Engine *e, Pkt *p, const Tuple *t) noexcept nogil:
    """p, whose addresses are in t, is of a protocol that no service has. In a tunnel that ends here: p.l3 is the inner header's and
    its ethertype is returned. Else 0, and the verdict stands, or is a drop."""
    cdef uint32_t at = p.l4, end = p.l3 + p.l3_len, got
    cdef uint8_t proto = p.proto
    cdef TunnelEnd *k
    if proto != PROTO_IPIP and proto != PROTO_IPV6 and proto != PROTO_GRE:
        return 0
    k = end_of(e, t, p.af, TUNNEL_GRE if proto == PROTO_GRE else TUNNEL_IPIP)
    if k == NULL:
        return 0
    got = inner_at(p.data, &at, end, &proto)
    if got == INNER_SHORT or (got == INNER_FOUND and at > end):
        return refuse(p, k, REASON_TUNNEL_MALFORMED)
    if got != INNER_FOUND:
        return 0
    if at - p.l4 == 2 * sizeof(GreHdr) and csum_fold(pkt_sum(e, p, p.data + p.l4, end - p.l4, 0)) != 0xffff:
        return refuse(p, k, REASON_BAD_CHECKSUM)
    if counts(p):
        k.packets += 1
        k.octets += end - at
    e.tunnel_of = k
    p.l3 = at
    p.len = end                         # without what Ethernet padded: the inner packet must fit the outer one
    p.flags |= PKT_TUNNEL
    return ETH_P_IP if proto == PROTO_IPIP else ETH_P_IPV6


cdef inline void not_taken(Engine *e, const Pkt *p) noexcept nogil:
    """What was inside is the kernel's, or dropped by what it is: it was not for the counts."""
    if counts(p):
        e.tunnel_of.packets -= 1
        e.tunnel_of.octets -= p.len - p.l3
        e.tunnel_of.refused += p.verdict == VERDICT_DROP


cdef inline uint32_t outer_ecn(const Pkt *p) noexcept nogil:
    cdef uint32_t at = ETH_HLEN - 2
    cdef uint16_t type = lbd_ld16(p.data + at)
    while type == lbd_bswap16(ETH_P_8021Q) or type == lbd_bswap16(ETH_P_8021AD):
        at += VLAN_HLEN
        type = lbd_ld16(p.data + at)
    at += 2
    return p.data[at + 1] & 3 if type == lbd_bswap16(ETH_P_IP) else p.data[at + 1] >> 4 & 3


cdef inline bint ecn_carry(Pkt *p) noexcept nogil:
    """What routers on the tunnel's way marked, onto the inner packet (RFC 6040 §4.2). False: it can't be told there, and the packet
    has to be lost instead."""
    cdef uint8_t *ip = p.data + p.l3
    cdef uint32_t outer = outer_ecn(p)
    cdef uint32_t inner = ip[1] & 3 if p.af == 4 else ip[1] >> 4 & 3
    cdef uint16_t old
    if inner == 0:
        return outer != ECN_CE
    if outer != ECN_CE and not (outer == 1 and inner == 2):
        return True
    old = lbd_ld16(ip)
    ip[1] |= <uint8_t> ECN_CE if p.af == 4 else <uint8_t> (ECN_CE << 4)
    if outer == 1:                      # ECT(0) inside, ECT(1) outside: the latter
        ip[1] &= <uint8_t> ~2 if p.af == 4 else <uint8_t> ~0x20
    if p.af == 4:
        (<IpHdr *> ip).check = csum_apply((<IpHdr *> ip).check, csum_fold(csum_diff(&old, ip, 2, 0)))
    return True
