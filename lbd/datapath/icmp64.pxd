# ICMP errors about packets of a NAT64 connection, to its other end in the other family, with the packet that they quote (RFC 7915
# §4.2 to §5.3). Built backwards from the quoted transport header, which stays where it lies.
#
# As in FULLNAT the error comes from the VIP or the LIP, not from the router that sent it, which has no address over there. What
# RFC 4884 appends to the quoted packet is cut off: labels and addresses of the inside are nobody's business outside.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ld32, lbd_st32
from lbd.datapath.chain cimport least
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.hdr cimport *
from lbd.datapath.csum cimport csum_diff, csum_fold, csum_partial, csum_pseudo
from lbd.datapath.conn cimport Conn6
from lbd.datapath.echo cimport is_icmp
from lbd.datapath.echo64 cimport echo_cross
from lbd.datapath.icmp_err cimport inner_ports, quoted6_l4
from lbd.datapath.nat64 cimport head4, head6, moved, traffic_class

cdef extern from * nogil:
    """
    #define LBD_ICMP_DROP 0xffff
    /* §4.2, destination unreachable by code: ICMPv6 type << 8 | code. Protocol unreachable is a parameter problem there. */
    static const uint16_t lbd_unreach46[16] = {
        0x100, 0x100, 0x401, 0x104, 0x200, 0x100, 0x100, 0x100, 0x100, 0x101, 0x101, 0x100, 0x100, 0x101, LBD_ICMP_DROP, 0x101 };
    /* §5.2: ICMPv4 type << 8 | code */
    static const uint16_t lbd_unreach64[5] = { 0x301, 0x30a, 0x301, 0x301, 0x303 };
    /* Figures 3 and 6: where the field that a parameter problem points at lies in the other header; 255: nowhere */
    static const uint8_t lbd_pointer46[20] = {
        0, 1, 4, 4, 255, 255, 255, 255, 7, 6, 255, 255, 8, 8, 8, 8, 24, 24, 24, 24 };
    static const uint8_t lbd_pointer64[40] = {
        0, 1, 255, 255, 2, 2, 9, 8, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16 };
    /* RFC 1191 §7.1, of which those that can be smaller than a packet translated from IPv6 */
    static const uint16_t lbd_plateau[7] = { 32000, 17914, 8166, 4352, 2002, 1492, 0 };
    """
    enum:
        LBD_ICMP_DROP
    const uint16_t lbd_unreach46[16]
    const uint16_t lbd_unreach64[5]
    const uint8_t lbd_pointer46[20]
    const uint8_t lbd_pointer64[40]
    const uint16_t lbd_plateau[7]

cdef enum:
    ICMP_HLEN = 8
    MTU6_MIN = 1280             # least MTU of IPv6, and what an error may measure there (RFC 4443 §2.4 c)
    ERROR6_MIN = 96             # an error that quotes eight bytes of the transport header
    ERROR4_MIN = 56


cdef inline uint32_t plateau(uint32_t len) noexcept nogil:
    """For a router that tells no MTU (RFC 1191 §5): the largest usual one below the packet's length, at least IPv6's."""
    cdef uint32_t k = 0
    while k < 6 and lbd_plateau[k] >= len:
        k += 1
    return lbd_plateau[k] if lbd_plateau[k] > MTU6_MIN else MTU6_MIN


cdef inline uint32_t kind46(const uint8_t *icmp, uint32_t quoted_len, uint32_t mtu, uint32_t *rest) noexcept nogil:
    """Type << 8 | code in ICMPv6, and the rest of its header (host order), of an ICMPv4 error. mtu: what links take of IPv6."""
    cdef uint32_t kind, told
    rest[0] = 0
    if icmp[0] == 3:
        kind = lbd_unreach46[icmp[1]] if icmp[1] < 16 else LBD_ICMP_DROP
        if kind == 0x401:
            rest[0] = 6
        elif kind == 0x200:
            told = lbd_bswap32(lbd_ld32(icmp + 4)) & 0xffff
            told = (told if told else plateau(quoted_len)) + 20
            rest[0] = least(told, mtu)
            if rest[0] < MTU6_MIN:
                rest[0] = MTU6_MIN
        return kind
    if icmp[0] == 11:
        return 0x300 | icmp[1]
    if icmp[0] != 12 or (icmp[1] != 0 and icmp[1] != 2) or icmp[4] >= 20 or lbd_pointer46[icmp[4]] == 255:
        return LBD_ICMP_DROP
    rest[0] = lbd_pointer46[icmp[4]]
    return 0x400


cdef inline uint32_t kind64(const uint8_t *icmp, uint32_t mtu, uint32_t *rest) noexcept nogil:
    """The same the other way. mtu: what both links let pass of IPv4. A packet too big below IPv6's least is nobody's to believe
    (RFC 8201 §4)."""
    cdef uint32_t word = lbd_bswap32(lbd_ld32(icmp + 4))
    rest[0] = 0
    if icmp[0] == 1:
        return lbd_unreach64[icmp[1]] if icmp[1] < 5 else LBD_ICMP_DROP
    if icmp[0] == 2:
        if word < MTU6_MIN:
            return LBD_ICMP_DROP
        rest[0] = least(least(word - 20, mtu), 0xffff)
        return 0x304
    if icmp[0] == 3:
        return 0xb00 | icmp[1]
    if icmp[0] != 4:
        return LBD_ICMP_DROP
    if icmp[1] == 1:
        return 0x302
    if icmp[1] != 0 or word >= 40 or lbd_pointer64[word] == 255:
        return LBD_ICMP_DROP
    rest[0] = <uint32_t> lbd_pointer64[word] << 24         # ICMPv4's pointer is one byte
    return 0xc00


cdef inline uint32_t quoted_bytes(uint32_t have, uint32_t own, uint32_t head, uint32_t told) noexcept nogil:
    """How much of the quoted packet from its transport header on is its own: of `have` bytes at hand no more than its header says
    (own), nor than RFC 4884's length attribute (told: bytes, from the quoted IP header on, 0: none)."""
    if own >= 8:
        have = least(have, own)
    if told >= head + 8:
        have = least(have, told - head)
    return have


cdef inline uint64_t ends_diff(const Conn6 *c) noexcept nogil:
    """Of the addresses, IPv6 → IPv4; the mapped form's 16 ones count as none."""
    return csum_diff(c.caddr, c.laddr, 16, csum_diff(c.vaddr, c.daddr, 16, 0))


cdef inline uint8_t quoted_ends(uint8_t *l4, uint32_t have, uint32_t own, uint8_t proto, const Conn6 *c,
                                uint32_t to) noexcept nogil:
    """The quoted transport header as the other side, of family `to`, knows it; returns its protocol's number there. have, own:
    bytes quoted, and that it had."""
    if is_icmp(proto):
        echo_cross(l4, c, own, to)
        return PROTO_ICMP if to == 4 else PROTO_ICMPV6
    if to == 4:
        inner_ports(l4, have, own, proto, c.dport, c.lport, ends_diff(c))
    else:
        inner_ports(l4, have, own, proto, c.cport, c.vport, <uint16_t> ~csum_fold(ends_diff(c)))
    return proto


cdef inline bint error46(Pkt *p, const Conn6 *c, uint32_t mtu4, uint32_t mtu6) noexcept nogil:
    """An ICMPv4 error about LIP → real server becomes the client's, about client → VIP. False: there is none such in ICMPv6."""
    cdef const uint8_t *ip = p.data + p.l3
    cdef const uint8_t *icmp = p.data + p.l4
    cdef const IpHdr *q = <const IpHdr *> (p.data + p.inner)
    cdef uint32_t n = (q.ver_ihl & 15) * 4
    cdef uint32_t at = p.inner + n
    cdef uint32_t own = lbd_bswap16(q.tot_len) - n if lbd_bswap16(q.tot_len) > n else 0
    cdef uint32_t have = quoted_bytes(p.l3 + p.l3_len - at, own, n, <uint32_t> icmp[5] * 4)
    cdef uint32_t rest, kind = kind46(icmp, lbd_bswap16(q.tot_len), least(mtu6, mtu4 + 20), &rest)
    cdef uint8_t tos = ip[1], hops = ip[8] - 1, qtos = q.tos, qttl = q.ttl, proto = q.protocol
    cdef uint8_t *l4 = p.data + at
    cdef IcmpHdr *out = <IcmpHdr *> (l4 - sizeof(Ip6Hdr) - ICMP_HLEN)
    if kind == LBD_ICMP_DROP or mtu6 < ERROR6_MIN:
        return False
    have = least(have, least(MTU6_MIN, mtu6) - 2 * sizeof(Ip6Hdr) - ICMP_HLEN)
    proto = quoted_ends(l4, have, own, proto, c, 6)
    head6(l4 - sizeof(Ip6Hdr), c.caddr, c.vaddr, own, qtos, qttl, proto)
    have += sizeof(Ip6Hdr) + ICMP_HLEN                      # the ICMPv6 message
    head6(<uint8_t *> out - sizeof(Ip6Hdr), c.vaddr, c.caddr, have, tos, hops, PROTO_ICMPV6)
    out.type = kind >> 8
    out.code = kind & 0xff
    out.check = 0
    lbd_st32(&out.rest_hi, lbd_bswap32(rest))
    out.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> out, have, csum_pseudo(c.vaddr, c.caddr, 16, PROTO_ICMPV6, have)))
    moved(p, at - 2 * sizeof(Ip6Hdr) - ICMP_HLEN, have + sizeof(Ip6Hdr), 6, sizeof(Ip6Hdr))
    return True


cdef inline bint error64(Engine *e, Pkt *p, const Conn6 *c, uint8_t proto, uint32_t mtu4, uint32_t mtu6) noexcept nogil:
    """An ICMPv6 error about VIP → client becomes the real server's, about real server → LIP."""
    cdef const uint8_t *ip = p.data + p.l3
    cdef const uint8_t *icmp = p.data + p.l4
    cdef const uint8_t *q = p.data + p.inner
    cdef uint32_t at = quoted6_l4(p)
    cdef uint32_t n = at - p.inner
    cdef uint32_t own = sizeof(Ip6Hdr) + lbd_bswap16((<const Ip6Hdr *> q).payload_len)
    cdef uint32_t told = 0 if icmp[0] == 2 or icmp[0] == 4 else <uint32_t> icmp[4] * 8
    cdef uint32_t have, rest, kind = kind64(icmp, least(mtu4, mtu6 - 20), &rest)
    cdef uint8_t tos = traffic_class(ip), ttl = ip[7] - 1, qtos = traffic_class(q), qttl = q[7]
    cdef uint8_t *l4 = p.data + at
    cdef IcmpHdr *out = <IcmpHdr *> (l4 - sizeof(IpHdr) - ICMP_HLEN)
    if kind == LBD_ICMP_DROP or mtu4 < ERROR4_MIN:
        return False
    own = own - n if own > n else 0
    have = least(quoted_bytes(p.l3 + p.l3_len - at, own, n, told), mtu4 - 2 * sizeof(IpHdr) - ICMP_HLEN)
    proto = quoted_ends(l4, have, own, proto, c, 4)
    head4(e, l4 - sizeof(IpHdr), c.daddr, c.laddr, own + sizeof(IpHdr), qtos, qttl, proto)
    have += sizeof(IpHdr) + ICMP_HLEN                       # the ICMP message
    head4(e, <uint8_t *> out - sizeof(IpHdr), c.laddr, c.daddr, have + sizeof(IpHdr), tos, ttl, PROTO_ICMP)
    out.type = kind >> 8
    out.code = kind & 0xff
    out.check = 0
    lbd_st32(&out.rest_hi, lbd_bswap32(rest))
    out.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> out, have, 0))
    moved(p, at - 2 * sizeof(IpHdr) - ICMP_HLEN, have + sizeof(IpHdr), 4, sizeof(IpHdr))
    return True


cdef inline bint nat64_error(Engine *e, Pkt *p, const Conn6 *c, uint8_t proto, uint32_t mtu4, uint32_t mtu6) noexcept nogil:
    """mtu4, mtu6: of the links to the real server and to the client. Its family is its direction."""
    if p.af == 4:
        return error46(p, c, mtu4, mtu6)
    return error64(e, p, c, proto, mtu4, mtu6)
