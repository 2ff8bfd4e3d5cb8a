# ICMP errors. Two things: those that lbd sends itself (time exceeded, fragmentation needed, packet too big), built in place of the
# offending packet; and those about a connection's packets, translated to the other side (RFC 5508, RFC 4443).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.string cimport memcpy, memmove, memset
from lbd.datapath.compiler cimport lbd_ld16, lbd_ld32, lbd_st16, lbd_st32, lbd_bswap16, lbd_bswap32, lbd_copy16
from lbd.datapath.chain cimport least, pkt_head
from lbd.datapath.engine cimport Engine, TokenBucket
from lbd.datapath.pkt cimport FRAG_LATER, Pkt, PKT_ICMP_ERROR, FRAME_SLACK
from lbd.datapath.hdr cimport *
from lbd.datapath.csum cimport csum_apply, csum_diff, csum_fold, csum_partial, csum_pseudo
from lbd.datapath.conn cimport Conn4, Conn6, addr6_is
from lbd.datapath.crc32c cimport SCTP_CHECK_AT, sctp_ports_changed
from lbd.datapath.link cimport link_of, pkt_tags
from lbd.datapath.reason cimport *
from lbd.datapath.echo cimport echo_quoted, is_icmp

cdef enum:
    ICMP4_QUOTE = 548           # bytes of the offending packet quoted: 576 in all (RFC 1812 §4.3.2.3)
    ICMP6_QUOTE = 1232          # 1280 in all (RFC 4443 §2.4 c)


cdef inline bint token_take(TokenBucket *b, uint64_t now_ns) noexcept nogil:
    """One token, if there is one. rate 0 = never."""
    cdef uint64_t cap = 100000000            # a tenth of a second, in ns, but at least one token
    cdef uint64_t cost
    if b.rate == 0:
        return False
    cost = 1000000000 // b.rate
    if cap < cost:
        cap = cost
    b.credit_ns += now_ns - b.last_ns
    b.last_ns = now_ns
    if b.credit_ns > cap:
        b.credit_ns = cap
    if b.credit_ns < cost:
        return False
    b.credit_ns -= cost
    return True


cdef inline void mac_swap(uint8_t *to, const uint8_t *from_) noexcept nogil:
    cdef uint8_t mac[12]
    memcpy(mac, from_ + 6, 6)
    memcpy(mac + 6, from_, 6)
    memcpy(to, mac, 12)


cdef inline uint32_t quotable(const Engine *e, const Pkt *p, uint32_t most) noexcept nogil:
    """Bytes from the IP header on that an ICMP error quotes."""
    if p.l3_len < most:
        most = p.l3_len
    return least(most, pkt_head(e, p) - p.l3) if p.chain else most


cdef inline void answer4(Engine *e, Pkt *p, uint8_t type, uint8_t code, uint32_t mtu, uint32_t link) noexcept nogil:
    """In place of the packet at p.l3; link: of the interface whose address it comes from."""
    cdef uint32_t quote = quotable(e, p, ICMP4_QUOTE)
    cdef uint32_t src, dst = (<IpHdr *> (p.data + p.l3)).saddr
    cdef uint8_t *d = p.data - 28
    cdef IpHdr *ip
    cdef IcmpHdr *ic
    src = lbd_ld32(e.iface[link].addr4)
    if src == 0:
        src = (<IpHdr *> (p.data + p.l3)).daddr          # no address of its own: the one that was asked
    memmove(d, p.data, p.l3)
    mac_swap(d, d)
    ip = <IpHdr *> (d + p.l3)
    memset(ip, 0, 28)
    ip.ver_ihl = 0x45
    ip.tot_len = lbd_bswap16(28 + quote)
    ip.ttl = 64
    ip.protocol = PROTO_ICMP
    ip.saddr = src
    ip.daddr = dst
    ip.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> ip, 20, 0))
    ic = <IcmpHdr *> (d + p.l3 + 20)
    ic.type = type
    ic.code = code
    ic.rest_lo = lbd_bswap16(mtu)
    ic.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> ic, 8 + quote, 0))
    p.data = d
    p.len = p.l3 + 28 + quote


cdef inline void answer6(Engine *e, Pkt *p, uint8_t type, uint8_t code, uint32_t mtu, uint32_t link) noexcept nogil:
    cdef uint32_t quote = quotable(e, p, ICMP6_QUOTE)
    cdef uint8_t *d = p.data - 48
    cdef uint8_t dst[16]
    cdef uint8_t src[16]
    cdef Ip6Hdr *ip
    cdef IcmpHdr *ic
    cdef uint32_t i, set = 0
    memcpy(dst, p.data + p.l3 + 8, 16)
    memcpy(src, e.iface[link].addr6, 16)
    for i in range(16):
        set |= src[i]
    if set == 0:
        memcpy(src, p.data + p.l3 + 24, 16)
    memmove(d, p.data, p.l3)
    mac_swap(d, d)
    ip = <Ip6Hdr *> (d + p.l3)
    memset(ip, 0, 48)
    lbd_st32(&ip.ver_tc_flow, lbd_bswap32(0x60000000))
    ip.payload_len = lbd_bswap16(8 + quote)
    ip.nexthdr = PROTO_ICMPV6
    ip.hop_limit = 64
    memcpy(ip.saddr, src, 16)
    memcpy(ip.daddr, dst, 16)
    ic = <IcmpHdr *> (d + p.l3 + 40)
    ic.type = type
    ic.code = code
    ic.rest_lo = lbd_bswap16(mtu)
    ic.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> ic, 8 + quote,
                                                  csum_pseudo(src, dst, 16, PROTO_ICMPV6, 8 + quote)))
    p.data = d
    p.len = p.l3 + 48 + quote


cdef inline void answer(Engine *e, Pkt *p, uint32_t reason, uint32_t mtu) noexcept nogil:
    """Answers a packet that can't go on with an ICMP error (verdict CONSUME), or drops it when the rate is used up, it is itself
    an ICMP error, a later fragment or was sent to many (RFC 1122 §3.2.2). The packet must be as it came."""
    cdef uint32_t link
    if p.flags & PKT_ICMP_ERROR or p.frag == FRAG_LATER or p.data[0] & 1 or not token_take(&e.icmp_bucket, e.now_ns):
        p.verdict = VERDICT_DROP
        p.reason = reason
        return
    link = link_of(e, p.ifin, pkt_tags(p))
    if p.af == 4:
        if reason == REASON_TTL_EXPIRED:
            answer4(e, p, 11, 0, 0, link)
        else:
            answer4(e, p, 3, 4, mtu, link)
    elif reason == REASON_TTL_EXPIRED:
        answer6(e, p, 3, 0, 0, link)
    else:
        answer6(e, p, 2, 0, mtu, link)
    e.count.icmp_sent += 1
    p.verdict = VERDICT_CONSUME
    p.reason = reason
    p.ifout = p.ifin


cdef inline void inner_ports(uint8_t *l4, uint32_t left, uint32_t whole, uint8_t proto, uint16_t sport, uint16_t dport,
                             uint64_t addr_diff) noexcept nogil:
    """New ports in the quoted transport header, and its checksum as far as it was quoted (UDP: unless none). left: bytes quoted,
    whole: that the packet had."""
    cdef uint16_t old[2]
    cdef uint16_t new[2]
    cdef uint16_t *check
    cdef uint32_t at = 16 if proto == PROTO_TCP else 6
    cdef uint32_t before = lbd_ld32(l4)
    if is_icmp(proto):                      # of an echo's two ports one is 0
        echo_quoted(l4, sport | dport, addr_diff if proto == PROTO_ICMPV6 else 0)
        return
    old[0] = lbd_ld16(l4)
    old[1] = lbd_ld16(l4 + 2)
    new[0] = sport
    new[1] = dport
    lbd_st16(l4, sport)
    lbd_st16(l4 + 2, dport)
    if proto == PROTO_SCTP:
        if left >= SCTP_CHECK_AT + 4:
            sctp_ports_changed(l4, whole, before)
        return
    if left < at + 2:
        return
    check = <uint16_t *> (l4 + at)
    if proto == PROTO_UDP and check[0] == 0:
        return
    check[0] = csum_apply(check[0], csum_fold(csum_diff(old, new, 4, addr_diff)))
    if proto == PROTO_UDP and check[0] == 0:
        check[0] = 0xffff


cdef inline void translate4(Pkt *p, const Conn4 *c, uint32_t direction) noexcept nogil:
    """The error's tuple matched `direction`: it travels that way. Direction 0 (from the client's side, about an answer of ours):
    outer → LIP to real server, quoted → real server to LIP. Direction 1: outer → VIP to client, quoted → client to VIP; with
    SNAT the outer source stays."""
    cdef IpHdr *ip = <IpHdr *> (p.data + p.l3)
    cdef IpHdr *q = <IpHdr *> (p.data + p.inner)
    cdef uint32_t n = (q.ver_ihl & 15) * 4
    cdef uint32_t end = p.l3 + p.l3_len
    cdef uint32_t old[2]
    cdef uint32_t new[2]
    cdef uint64_t diff
    cdef IcmpHdr *ic = <IcmpHdr *> (p.data + p.l4)
    old[0] = q.saddr
    old[1] = q.daddr
    new[0] = c.daddr if direction == 0 else c.caddr
    new[1] = c.laddr if direction == 0 else c.vaddr
    diff = csum_diff(old, new, 8, 0)
    q.check = csum_apply(q.check, csum_fold(diff))
    q.saddr = new[0]
    q.daddr = new[1]
    if direction == 0:
        inner_ports(p.data + p.inner + n, end - p.inner - n, lbd_bswap16(q.tot_len) - n, q.protocol, c.dport, c.lport, diff)
        ip.saddr = c.laddr
        ip.daddr = c.daddr
    else:
        inner_ports(p.data + p.inner + n, end - p.inner - n, lbd_bswap16(q.tot_len) - n, q.protocol, c.cport, c.vport, diff)
        if c.vaddr != c.daddr:              # SNAT: the router tells who it is (RFC 5508 REQ-4)
            ip.saddr = c.vaddr
        ip.daddr = c.caddr
    ip.ttl -= 1
    ip.check = 0
    ip.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> ip, p.l4 - p.l3, 0))
    ic.check = 0
    ic.check = <uint16_t> ~csum_fold(csum_partial(p.data + p.l4, end - p.l4, 0))


cdef inline uint32_t quoted6_l4(const Pkt *p) noexcept nogil:
    """Offset of the quoted transport header (parse walked it before: the chain is sound)."""
    cdef uint32_t off = p.inner + 40
    cdef uint8_t proto = p.data[p.inner + 6]
    cdef uint32_t size
    while not is_transport(proto) and proto != PROTO_ICMPV6:
        size = 8 if proto == PROTO_FRAGMENT else (<uint32_t> p.data[off + 1] + 1) * 8
        proto = p.data[off]
        off += size
    return off


cdef inline void translate6(Pkt *p, const Conn6 *c, uint32_t direction, uint8_t proto) noexcept nogil:
    cdef Ip6Hdr *ip = <Ip6Hdr *> (p.data + p.l3)
    cdef Ip6Hdr *q = <Ip6Hdr *> (p.data + p.inner)
    cdef uint32_t end = p.l3 + p.l3_len
    cdef uint32_t l4 = quoted6_l4(p)
    cdef uint32_t whole = p.inner + sizeof(Ip6Hdr) + lbd_bswap16(q.payload_len) - l4
    cdef uint8_t new[32]
    cdef uint64_t diff
    cdef IcmpHdr *ic = <IcmpHdr *> (p.data + p.l4)
    if direction == 0:
        lbd_copy16(new, c.daddr)
        lbd_copy16(new + 16, c.laddr)
    else:
        lbd_copy16(new, c.caddr)
        lbd_copy16(new + 16, c.vaddr)
    diff = csum_diff(q.saddr, new, 32, 0)
    memcpy(q.saddr, new, 32)
    if direction == 0:
        inner_ports(p.data + l4, end - l4, whole, proto, c.dport, c.lport, diff)
        lbd_copy16(ip.saddr, c.laddr)
        lbd_copy16(ip.daddr, c.daddr)
    else:
        inner_ports(p.data + l4, end - l4, whole, proto, c.cport, c.vport, diff)
        if not addr6_is(c.vaddr, c.daddr):
            lbd_copy16(ip.saddr, c.vaddr)
        lbd_copy16(ip.daddr, c.caddr)
    ip.hop_limit -= 1
    ic.check = 0
    ic.check = <uint16_t> ~csum_fold(csum_partial(p.data + p.l4, end - p.l4,
                                                  csum_pseudo(ip.saddr, ip.daddr, 16, PROTO_ICMPV6, end - p.l4)))


cdef inline uint32_t quoted_l4(const Pkt *p) noexcept nogil:
    """Offset of the quoted transport header; 8 bytes of it are always there."""
    return p.inner + (p.data[p.inner] & 15) * 4 if p.af == 4 else quoted6_l4(p)
