# From bytes to a tuple: Ethernet with up to two tags, IPv4 with options, IPv6 with extension headers, fragments, TCP, UDP, SCTP,
# ICMP errors.
# Every length is checked against the bytes at hand before anything is read. What is not one of these or an error about one of them
# is the kernel's; what is malformed is dropped.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_ld16, lbd_ld32, lbd_ld64, lbd_st32, lbd_bswap16, lbd_unlikely, lbd_likely, lbd_copy16
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport FRAG_FIRST, FRAG_LATER, FRAG_NONE, Pkt, PKT_PARTIAL, PKT_ICMP_ERROR, PKT_TUNNEL
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport *
from lbd.datapath.reason cimport *
from lbd.datapath.csum cimport csum_fold, csum_partial, csum_pseudo
from lbd.datapath.chain cimport CHAIN_L4, least, pkt_head, pkt_sctp_checksum, pkt_sum
from lbd.datapath.neigh cimport IFACE_PARTIAL, TPID_AD, TPID_OUTER_Q
from lbd.datapath.conn cimport addr6_is
from lbd.datapath.echo cimport ECHO_BYTES, echo_ports, has_echo_flows, is_icmp
from lbd.datapath.decap cimport decap, not_taken
from lbd.datapath.inner cimport INNER_FOUND, INNER_OTHER, INNER_SHORT, inner_at, is_wrapped
from lbd.datapath.lookup cimport lip_lookup, svc_of, vip_lookup
from lbd.datapath.svc cimport SVC_NONE, LIP_NONE

cdef enum Kind:
    KIND_DONE = 0               # verdict and reason are set
    KIND_FLOW = 1               # tuple is the packet's
    KIND_FAST = 3               # a flow, parsed by the fast lane: it may go on there
    KIND_ICMP = 2               # tuple is the quoted packet's, reversed: that of an answer to it
    KIND_LEFT = 5               # a first fragment of no flow: verdict and reason are set, and are the others' too
    KIND_OUTER = 4              # ICMP error about a tunnel's outer header: tuple is the quoted inner packet's, and so is Pkt.af

cdef enum:
    EXTHDR_MAX = 8              # IPv6 extension headers walked


cdef inline uint32_t settle(Pkt *p, uint32_t verdict, uint32_t reason) noexcept nogil:
    p.frag = FRAG_NONE                  # its datagram has nothing to learn from it
    p.verdict = verdict
    p.reason = reason
    return KIND_DONE


cdef inline bint is_ours(Engine *e, const uint8_t *daddr, int af) noexcept nogil:
    """A service's or a local address (of a tuple)?"""
    return vip_lookup(e, daddr, af) or lip_lookup(e, daddr, af) != LIP_NONE


cdef inline uint32_t parse_l2(Pkt *p) noexcept nogil:
    """Sets l3 and the tags; returns the ethertype in host order, 0 = too short."""
    cdef uint32_t off = 12
    cdef uint32_t type
    if p.len < ETH_HLEN:
        return 0
    type = lbd_bswap16(lbd_ld16(p.data + 12))
    p.vlan = 0
    p.outer = 0
    if lbd_unlikely(type == ETH_P_8021Q or type == ETH_P_8021AD):
        if p.len < ETH_HLEN + VLAN_HLEN:
            return 0
        p.tpid = TPID_AD if type == ETH_P_8021AD else 0
        p.vlan = lbd_bswap16(lbd_ld16(p.data + 14))
        type = lbd_bswap16(lbd_ld16(p.data + 16))
        off = 16
        if type == ETH_P_8021Q or type == ETH_P_8021AD:
            if p.len < ETH_HLEN + 2 * VLAN_HLEN:
                return 0
            p.tpid = (TPID_AD if type == ETH_P_8021AD else 0) | (0 if p.tpid & TPID_AD else TPID_OUTER_Q)
            p.outer = p.vlan
            p.vlan = lbd_bswap16(lbd_ld16(p.data + 18))
            type = lbd_bswap16(lbd_ld16(p.data + 20))
            off = 20
    p.l3 = off + 2
    return type


cdef inline bint l4_sound(const uint8_t *l4, uint8_t proto, uint32_t l4_len) noexcept nogil:
    """TCP or UDP, the header there and its lengths consistent; l4_len bytes from l4 are there."""
    cdef uint32_t n
    if proto == PROTO_TCP:
        if l4_len < sizeof(TcpHdr):
            return False
        n = tcp_head(<const TcpHdr *> l4)
        if n < sizeof(TcpHdr) or n > l4_len:
            return False
        return True
    if proto != PROTO_UDP or l4_len < sizeof(UdpHdr):
        return False
    n = lbd_bswap16((<const UdpHdr *> l4).len)
    if n < sizeof(UdpHdr) or n > l4_len:
        return False
    return True


cdef inline bint sctp_sound(const uint8_t *l4, uint32_t l4_len) noexcept nogil:
    """The common header and that of a first chunk, which has a length of its own."""
    return l4_len >= 16 and lbd_bswap16((<const SctpHdr *> l4).chunk_len) >= 4


cdef inline uint16_t *transport_check(const Pkt *p) noexcept nogil:
    return <uint16_t *> (p.data + p.l4 + (16 if p.proto == PROTO_TCP else 6))


cdef inline uint32_t transport_len(const Pkt *p) noexcept nogil:
    """Bytes that the transport checksum covers: UDP tells its own length, and IP may carry more (RFC 9868)."""
    if p.proto == PROTO_UDP:
        return lbd_bswap16((<UdpHdr *> (p.data + p.l4)).len)
    return p.l3 + p.l3_len - p.l4


cdef inline uint32_t transport_whole(const Pkt *p) noexcept nogil:
    """The same of the datagram that it is the first fragment of, if it is one and that is known."""
    return transport_len(p) + (p.beyond if p.frag == FRAG_FIRST else 0)


cdef inline uint64_t transport_pseudo(const Pkt *p) noexcept nogil:
    """Pseudo-header sum of the addresses that it carries now."""
    cdef const uint8_t *addrs = p.data + p.l3 + (12 if p.af == 4 else 8)
    cdef uint32_t alen = 4 if p.af == 4 else 16
    return csum_pseudo(addrs, addrs + alen, alen, p.proto, transport_len(p))


cdef inline bint checksum_is_partial(const Pkt *p) noexcept nogil:
    """The folded pseudo-header sum, not complemented: 1 in 65,536 whole ones looks the same, and completing that one again does no
    harm."""
    return lbd_ld16(transport_check(p)) == csum_fold(transport_pseudo(p))


cdef inline bint sctp_csum(Engine *e, Pkt *p) noexcept nogil:
    """As transport_csum. A local stack leaves the whole CRC32c to its "hardware": then 0 stands there."""
    cdef uint32_t check = (<SctpHdr *> (p.data + p.l4)).check
    if e.iface[p.ifin].flags & IFACE_PARTIAL and check == 0:
        p.flags |= PKT_PARTIAL
        return True
    return not e.verify_csum or pkt_sctp_checksum(e, p, transport_len(p)) == check


cdef inline bint transport_csum(Engine *e, Pkt *p) noexcept nogil:
    """Recognises a partial checksum; verifies a whole one where told to. False: wrong."""
    if e.iface[p.ifin].flags & IFACE_PARTIAL and checksum_is_partial(p):
        p.flags |= PKT_PARTIAL
        return True
    if not e.verify_csum or (p.proto == PROTO_UDP and p.af == 4 and lbd_ld16(transport_check(p)) == 0):
        return True
    return csum_fold(pkt_sum(e, p, p.data + p.l4, transport_len(p), transport_pseudo(p))) == 0xffff


cdef inline uint32_t parse_sctp(Engine *e, Pkt *p, Tuple *t, uint32_t l4_len) noexcept nogil:
    if not sctp_sound(p.data + p.l4, l4_len):
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    p.tcp_flags = (<SctpHdr *> (p.data + p.l4)).chunk
    lbd_st32(&t.sport, lbd_ld32(p.data + p.l4))
    t.proto = PROTO_SCTP
    if not sctp_csum(e, p):
        return settle(p, VERDICT_DROP, REASON_BAD_CHECKSUM)
    return KIND_FLOW


cdef inline uint32_t parse_transport(Engine *e, Pkt *p, Tuple *t, uint32_t l4_len) noexcept nogil:
    if lbd_unlikely(p.proto == PROTO_SCTP):
        return parse_sctp(e, p, t, l4_len)
    if lbd_unlikely(not l4_sound(p.data + p.l4, p.proto, l4_len)):
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    if p.proto == PROTO_TCP:
        p.tcp_flags = (<TcpHdr *> (p.data + p.l4)).flags
    lbd_st32(&t.sport, lbd_ld32(p.data + p.l4))
    t.proto = p.proto
    if lbd_unlikely(not transport_csum(e, p)):
        return settle(p, VERDICT_DROP, REASON_BAD_CHECKSUM)
    return KIND_FLOW


cdef inline uint32_t parse_echo(Engine *e, Pkt *p, uint32_t end, int af) noexcept nogil:
    """Its tuple is filled in."""
    cdef uint64_t pseudo = 0
    if af == 6:
        pseudo = csum_pseudo(p.data + p.l3 + 8, p.data + p.l3 + 24, 16, PROTO_ICMPV6, end - p.l4)
    if e.verify_csum and csum_fold(pkt_sum(e, p, p.data + p.l4, end - p.l4, pseudo)) != 0xffff:
        return settle(p, VERDICT_DROP, REASON_BAD_CHECKSUM)
    return KIND_FLOW


cdef inline bint flow_proto(const Engine *e, uint8_t proto) noexcept nogil:
    """Can it be a flow's? ICMP if there are echo flows."""
    return is_transport(proto) or (is_icmp(proto) and has_echo_flows(e))


cdef inline bint quotes_flow(const Engine *e, const uint8_t *l4, uint8_t proto, Tuple *t, int af) noexcept nogil:
    """l4: of a quoted packet, 8 bytes. Protocol and ports of an answer to it; False: it can't be a flow's."""
    if not flow_proto(e, proto):
        return False
    if is_icmp(proto):
        return proto == (PROTO_ICMP if af == 4 else PROTO_ICMPV6) and echo_ports(l4, t, True, af)
    t.sport = lbd_ld16(l4 + 2)
    t.dport = lbd_ld16(l4)
    t.proto = proto
    return True


cdef inline uint32_t quoted_inner(const uint8_t *d, uint32_t at, uint32_t end, uint8_t inner, Tuple *t) noexcept nogil:
    """The tuple of a packet whose IP header is at `at`, of which a quote may have the beginning alone; inner: PROTO_IPIP or
    PROTO_IPV6. Returns an Inner of inner.pxd."""
    cdef uint32_t l4
    cdef uint8_t proto
    cdef int walked = 0
    t.af = 4 if inner == PROTO_IPIP else 6
    l4 = at + (sizeof(IpHdr) if t.af == 4 else sizeof(Ip6Hdr))
    if l4 > end:
        return INNER_SHORT
    if d[at] >> 4 != t.af:
        return INNER_OTHER
    if t.af == 4:
        l4 = at + (d[at] & 15) * 4
        proto = d[at + 9]
        if l4 < at + sizeof(IpHdr) or lbd_ld16(d + at + 6) & lbd_bswap16(IP_OFFMASK):
            return INNER_OTHER
        memset(t.saddr, 0, 32)
        lbd_st32(t.saddr, lbd_ld32(d + at + 12))
        lbd_st32(t.daddr, lbd_ld32(d + at + 16))
    else:
        proto = d[at + 6]
        walked = exthdr_walk(d, &l4, end, &proto)
        lbd_copy16(t.saddr, d + at + 8)
        lbd_copy16(t.daddr, d + at + 24)
    if (walked == 0 and not is_transport(proto) and not is_icmp(proto)) or walked > 0 or walked < -1:
        return INNER_OTHER
    if walked == -1 or l4 + 8 > end:
        return INNER_SHORT
    if is_icmp(proto):
        return INNER_FOUND if echo_ports(d + l4, t, False, t.af) and proto == t.proto else INNER_OTHER
    lbd_st32(&t.sport, lbd_ld32(d + l4))
    t.proto = proto
    return INNER_FOUND


cdef inline uint32_t quoted_outer(Pkt *p, Tuple *t, uint32_t at, uint32_t end, uint8_t proto) noexcept nogil:
    """ICMP error about a packet that lbd, or the host, has wrapped; `at`: what follows the quoted outer header, whose protocol is
    `proto`."""
    cdef uint64_t sum = 0
    cdef uint32_t got = inner_at(p.data, &at, end, &proto)
    if p.af == 6:
        sum = csum_pseudo(p.data + p.l3 + 8, p.data + p.l3 + 24, 16, PROTO_ICMPV6, end - p.l4)
    if csum_fold(csum_partial(p.data + p.l4, end - p.l4, sum)) != 0xffff:
        return settle(p, VERDICT_DROP, REASON_BAD_CHECKSUM)
    if got == INNER_FOUND:
        got = quoted_inner(p.data, at, end, proto, t)
    if got == INNER_SHORT:
        return settle(p, VERDICT_DROP, REASON_ICMP_SHORT)
    if got != INNER_FOUND:
        return settle(p, VERDICT_KERNEL, REASON_ICMP_UNMATCHED)
    p.inner = at
    p.af = t.af
    p.flags |= PKT_ICMP_ERROR
    return KIND_OUTER


cdef inline uint32_t quoted4(Engine *e, Pkt *p, Tuple *t, uint32_t end) noexcept nogil:
    """ICMP error (RFC 792): the quoted IPv4 header and 8 bytes more; fills the reversed tuple."""
    cdef IpHdr *q
    cdef uint32_t n, off = p.l4 + 8
    if off + sizeof(IpHdr) + 8 > end:
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    q = <IpHdr *> (p.data + off)
    n = (q.ver_ihl & 15) * 4
    if q.ver_ihl >> 4 != 4 or n < sizeof(IpHdr) or off + n + 8 > end:
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    if (q.saddr == lbd_ld32(t.daddr) and not q.frag_off & lbd_bswap16(IP_OFFMASK)
            and is_wrapped(e, q.protocol, p.data + off + n)):
        return quoted_outer(p, t, off + n, end, q.protocol)
    if not quotes_flow(e, p.data + off + n, q.protocol, t, 4) or q.frag_off & lbd_bswap16(IP_OFFMASK):
        return settle(p, VERDICT_KERNEL, REASON_ICMP_UNMATCHED)
    if q.saddr != lbd_ld32(t.daddr):                # about a packet of somebody else than whom it is sent to
        return settle(p, VERDICT_KERNEL, REASON_ICMP_UNMATCHED)
    if csum_fold(csum_partial(p.data + p.l4, end - p.l4, 0)) != 0xffff:
        return settle(p, VERDICT_DROP, REASON_BAD_CHECKSUM)
    memset(t.saddr, 0, 32)
    lbd_st32(t.saddr, q.daddr)
    lbd_st32(t.daddr, q.saddr)
    p.inner = off
    p.flags |= PKT_ICMP_ERROR
    return KIND_ICMP


cdef inline bint first_sound(const uint8_t *l4, uint8_t proto, uint32_t l4_len) noexcept nogil:
    """As l4_sound, but of what follows the header a part only."""
    if proto == PROTO_TCP:
        return l4_sound(l4, proto, l4_len)
    if proto == PROTO_SCTP:
        return sctp_sound(l4, l4_len)
    if is_icmp(proto):
        return l4_len >= ECHO_BYTES
    return l4_len >= sizeof(UdpHdr) and lbd_bswap16((<const UdpHdr *> l4).len) >= sizeof(UdpHdr)


cdef inline bint is_extension(uint8_t proto) noexcept nogil:
    return proto == 0 or proto == 43 or proto == 60 or proto == 135


cdef inline bint leaves_masked(Engine *e, const Pkt *p, Tuple *t, int af) noexcept nogil:
    """A fragment, perhaps without ports, that an SNAT rule is for."""
    if e.snat_n == 0:
        return False
    t.proto = p.proto
    t.sport = 0
    t.dport = 0
    return svc_of(e, t, p.ifin, af) != SVC_NONE


cdef inline uint32_t fragment_left(Pkt *p, bint masked) noexcept nogil:
    """Of no flow: the kernel's, but what an SNAT rule is for must not leave by it."""
    p.verdict = VERDICT_DROP if masked else VERDICT_KERNEL
    p.reason = REASON_FRAG_UNSUPPORTED if masked else REASON_NOT_FOR_US
    return KIND_LEFT


cdef inline bint fragment_of_flow(const Engine *e, const Pkt *p, int af) noexcept nogil:
    """May it be one? IPv6: a chain of extension headers may go on in the fragment, or have gone on in the first one."""
    if is_transport(p.proto):
        return True
    if p.proto == (PROTO_ICMP if af == 4 else PROTO_ICMPV6):
        return has_echo_flows(e)
    return af == 6 and p.frag == FRAG_LATER and is_extension(p.proto)


cdef inline bint first_ports(const Pkt *p, Tuple *t, int af) noexcept nogil:
    """Protocol and ports of a sound first fragment. False: of ICMP, and no echo."""
    if is_icmp(p.proto):
        return echo_ports(p.data + p.l4, t, False, af)
    t.proto = p.proto
    lbd_st32(&t.sport, lbd_ld32(p.data + p.l4))
    return True


cdef inline uint32_t parse_fragment(Engine *e, Pkt *p, Tuple *t, uint32_t start, bint more, int af) noexcept nogil:
    """p.frag, frag_id, frag_size, proto and l4 are set. The first one has the flow's tuple; a later one the datagram's key in its
    place (frag.pxd). Neither shows whether the datagram's checksum is right."""
    cdef uint8_t proto = p.proto
    cdef uint32_t kind = KIND_FLOW
    # what no address tells may be an answer of mode nat; and what an SNAT rule is for must not leave with its internal address
    cdef bint masked = leaves_masked(e, p, t, af)
    if not masked and e.nat_services == 0 and not is_ours(e, t.daddr, af):
        return settle(p, VERDICT_KERNEL, REASON_NOT_FOR_US)
    if not fragment_of_flow(e, p, af):
        fragment_left(p, masked)
        return settle(p, p.verdict, p.reason)
    if start + p.frag_size > 65535 or p.frag_size == 0 or (more and p.frag_size & 7):
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    if p.frag == FRAG_FIRST:
        if not first_sound(p.data + p.l4, proto, p.l3 + p.l3_len - p.l4):
            return settle(p, VERDICT_DROP, REASON_FRAG_TINY)
        if proto == PROTO_TCP:
            p.tcp_flags = (<TcpHdr *> (p.data + p.l4)).flags
        elif proto == PROTO_SCTP:
            p.tcp_flags = (<SctpHdr *> (p.data + p.l4)).chunk
        if not first_ports(p, t, af):
            kind = fragment_left(p, masked)
            t.proto = proto
            lbd_st32(&t.sport, 0)
            if p.flags & PKT_TUNNEL:
                not_taken(e, p)
    else:
        if start == 8 and (proto == PROTO_TCP or proto == PROTO_SCTP):
            return settle(p, VERDICT_DROP, REASON_FRAG_TINY)
        lbd_st32(&t.sport, p.frag_id)
        t.proto = proto if af == 4 else PROTO_FRAGMENT
    t.spare = 0
    return kind


cdef inline uint32_t parse4(Engine *e, Pkt *p, Tuple *t) noexcept nogil:
    cdef IpHdr *ip = <IpHdr *> (p.data + p.l3)
    cdef uint32_t n, tot, left = p.len - p.l3
    cdef uint8_t type
    if lbd_unlikely(left < sizeof(IpHdr)):
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    n = (ip.ver_ihl & 15) * 4
    tot = lbd_bswap16(ip.tot_len)
    if lbd_unlikely(ip.ver_ihl >> 4 != 4 or n < sizeof(IpHdr) or tot < n or tot > left):
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    if lbd_unlikely(csum_fold(csum_partial(<uint8_t *> ip, n, 0)) != 0xffff):
        return settle(p, VERDICT_DROP, REASON_BAD_CHECKSUM)
    p.af = 4
    p.proto = ip.protocol
    p.l4 = p.l3 + n
    p.l3_len = tot
    memset(t.saddr, 0, 32)                          # the slot may have held an IPv6 tuple
    lbd_st32(t.saddr, ip.saddr)
    lbd_st32(t.daddr, ip.daddr)
    t.af = 4
    if lbd_unlikely(p.data[p.l3 + 12] >= 224 or p.data[p.l3 + 12] == 127 or p.data[p.l3 + 12] == 0):
        if is_ours(e, t.daddr, 4):
            return settle(p, VERDICT_DROP, REASON_MARTIAN)
        return settle(p, VERDICT_KERNEL, REASON_NOT_FOR_US)
    if lbd_unlikely(ip.frag_off & lbd_bswap16(IP_MF | IP_OFFMASK)):
        p.frag = FRAG_LATER if ip.frag_off & lbd_bswap16(IP_OFFMASK) else FRAG_FIRST
        p.frag_id = ip.id
        p.frag_size = tot - n
        tot = lbd_bswap16(ip.frag_off)
        return parse_fragment(e, p, t, (tot & IP_OFFMASK) * 8, (tot & IP_MF) != 0, 4)
    if lbd_likely(is_transport(p.proto)):
        return parse_transport(e, p, t, tot - n)
    if p.proto == PROTO_ICMP and tot - n >= 8:
        type = p.data[p.l4]
        if type == 3 or type == 11 or type == 12:
            if p.chain:
                return settle(p, VERDICT_DROP, REASON_MULTI_BUFFER)
            return quoted4(e, p, t, p.l3 + tot)
        if has_echo_flows(e) and echo_ports(p.data + p.l4, t, False, 4):
            return parse_echo(e, p, p.l3 + tot, 4)
        return settle(p, VERDICT_KERNEL, REASON_ICMP_UNSUPPORTED)
    return settle(p, VERDICT_KERNEL, REASON_PROTO_UNSUPPORTED)


cdef inline int exthdr_walk(const uint8_t *base, uint32_t *off, uint32_t end, uint8_t *proto) noexcept nogil:
    """Walks IPv6 extension headers (RFC 8200 §4) from *off with next header *proto; 0: at the transport header, 1: a fragment,
    -1: malformed, -2: too many, or one that no rewritten packet can keep (AH signs the addresses)."""
    cdef uint32_t k
    for k in range(EXTHDR_MAX + 1):
        if proto[0] == PROTO_FRAGMENT:
            return 1
        if proto[0] == 51:
            break
        if proto[0] != 0 and proto[0] != 43 and proto[0] != 60 and proto[0] != 135:
            return 0
        if k == EXTHDR_MAX:
            break
        if off[0] + 8 > end:
            return -1
        proto[0] = base[off[0]]
        off[0] += (<uint32_t> base[off[0] + 1] + 1) * 8
        if off[0] > end:
            return -1
    return -2


cdef inline int fragment6(Pkt *p, uint32_t *l4, uint32_t end, uint8_t *proto) noexcept nogil:
    """The fragment header at *l4 (RFC 8200 §4.5), and the chain behind it as far as it is there, before `end`. As exthdr_walk; sets
    p.frag and what belongs to it. One that is the whole datagram is no fragment (RFC 6946)."""
    cdef uint32_t offset
    cdef int walked
    if l4[0] + 8 > end:
        return -1
    offset = lbd_bswap16(lbd_ld16(p.data + l4[0] + 2))
    p.inner = l4[0] - p.l3
    p.frag_id = lbd_ld32(p.data + l4[0] + 4)
    p.frag_size = p.l3 + p.l3_len - l4[0] - 8
    proto[0] = p.data[l4[0]]
    l4[0] += 8
    if offset & 0xfff8:
        p.frag = FRAG_LATER
        return 0
    if offset & 1:
        p.frag = FRAG_FIRST
    walked = exthdr_walk(p.data, l4, end, proto)
    return -2 if walked == 1 else walked


cdef inline uint32_t quoted6(Engine *e, Pkt *p, Tuple *t, uint32_t end) noexcept nogil:
    """ICMPv6 error (RFC 4443 §3)."""
    cdef Ip6Hdr *q
    cdef uint32_t off = p.l4 + 8
    cdef uint32_t l4 = off + sizeof(Ip6Hdr)
    cdef uint8_t proto
    cdef int walked
    if l4 + 8 > end:
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    q = <Ip6Hdr *> (p.data + off)
    proto = q.nexthdr
    walked = exthdr_walk(p.data, &l4, end, &proto)
    if walked == 1:                                 # the first one of a datagram's fragments is about its flow too
        walked = fragment6(p, &l4, end, &proto)
        if p.frag == FRAG_LATER:
            walked = -2
        p.frag = FRAG_NONE
    if p.data[off] >> 4 != 6 or walked == -1:
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    if walked == 0 and l4 + 8 <= end and addr6_is(q.saddr, t.daddr) and is_wrapped(e, proto, p.data + l4):
        return quoted_outer(p, t, l4, end, proto)
    if walked != 0 or not flow_proto(e, proto) or not addr6_is(q.saddr, t.daddr):
        return settle(p, VERDICT_KERNEL, REASON_ICMP_UNMATCHED)
    if l4 + 8 > end:
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    if not quotes_flow(e, p.data + l4, proto, t, 6):
        return settle(p, VERDICT_KERNEL, REASON_ICMP_UNMATCHED)
    if csum_fold(csum_partial(p.data + p.l4, end - p.l4,
                              csum_pseudo(p.data + p.l3 + 8, p.data + p.l3 + 24, 16, PROTO_ICMPV6, end - p.l4))) != 0xffff:
        return settle(p, VERDICT_DROP, REASON_BAD_CHECKSUM)
    lbd_copy16(t.saddr, q.daddr)
    lbd_copy16(t.daddr, q.saddr)
    p.inner = off
    p.flags |= PKT_ICMP_ERROR
    return KIND_ICMP


cdef inline uint32_t parse6(Engine *e, Pkt *p, Tuple *t) noexcept nogil:
    cdef Ip6Hdr *ip = <Ip6Hdr *> (p.data + p.l3)
    cdef uint32_t end, here, l4, start, left = p.len - p.l3
    cdef int walked
    cdef uint8_t proto
    if lbd_unlikely(left < sizeof(Ip6Hdr) or p.data[p.l3] >> 4 != 6):
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    p.l3_len = sizeof(Ip6Hdr) + lbd_bswap16(ip.payload_len)
    if lbd_unlikely(lbd_bswap16(ip.payload_len) > left - sizeof(Ip6Hdr)):
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    end = p.l3 + p.l3_len
    l4 = p.l3 + sizeof(Ip6Hdr)
    proto = ip.nexthdr
    p.af = 6
    lbd_copy16(t.saddr, ip.saddr)
    lbd_copy16(t.daddr, ip.daddr)
    t.af = 6
    walked = 0
    if lbd_unlikely(proto != PROTO_TCP and proto != PROTO_UDP):
        here = least(end, pkt_head(e, p) - CHAIN_L4) if p.chain else end
        walked = exthdr_walk(p.data, &l4, here, &proto)
        if walked == 1:
            walked = fragment6(p, &l4, here, &proto)
    p.proto = proto
    p.l4 = l4
    if lbd_unlikely(walked == -1):
        if p.chain:                                     # headers that don't end in the first frame
            return settle(p, VERDICT_DROP, REASON_MULTI_BUFFER)
        if p.frag == FRAG_FIRST:                        # all of the chain has to be in the first fragment (RFC 7112)
            return settle(p, VERDICT_DROP, REASON_FRAG_TINY)
        return settle(p, VERDICT_DROP, REASON_MALFORMED)
    # no source address: multicast, and all of ::/64, which holds the unspecified and the loopback one (RFC 4291 §2.5)
    if lbd_unlikely(walked != 0 or ip.saddr[0] == 0xff or lbd_ld64(ip.saddr) == 0):
        if p.frag != FRAG_NONE and leaves_masked(e, p, t, 6):
            return settle(p, VERDICT_DROP, REASON_EXTHDR_UNSUPPORTED)
        if not is_ours(e, t.daddr, 6):
            return settle(p, VERDICT_KERNEL, REASON_NOT_FOR_US)
        if walked == 0:
            return settle(p, VERDICT_DROP, REASON_MARTIAN)
        return settle(p, VERDICT_DROP, REASON_EXTHDR_UNSUPPORTED)
    if lbd_unlikely(p.frag != FRAG_NONE):
        start = lbd_bswap16(lbd_ld16(p.data + p.l3 + p.inner + 2))
        return parse_fragment(e, p, t, start & ~<uint32_t> 7, start & 1, 6)
    if lbd_likely(is_transport(proto)):
        return parse_transport(e, p, t, end - l4)
    if proto == PROTO_ICMPV6 and end - l4 >= 8:
        if 1 <= p.data[l4] <= 4:
            if p.chain:
                return settle(p, VERDICT_DROP, REASON_MULTI_BUFFER)
            return quoted6(e, p, t, end)
        if has_echo_flows(e) and echo_ports(p.data + l4, t, False, 6):
            return parse_echo(e, p, end, 6)
        return settle(p, VERDICT_KERNEL, REASON_ICMP_UNSUPPORTED)
    return settle(p, VERDICT_KERNEL, REASON_PROTO_UNSUPPORTED)


cdef inline uint32_t parse(Engine *e, Pkt *p, Tuple *t) noexcept nogil:
    """Fills p's offsets and the tuple; returns a Kind. In a second turn those of what was in a tunnel."""
    cdef uint32_t kind, type = parse_l2(p)
    p.af = 0
    p.flags &= <uint8_t> ~PKT_TUNNEL
    while True:
        if lbd_likely(type == ETH_P_IP):
            kind = parse4(e, p, t)
        elif lbd_likely(type == ETH_P_IPV6):
            kind = parse6(e, p, t)
        elif type == 0:
            return settle(p, VERDICT_DROP, REASON_MALFORMED)
        else:
            return settle(p, VERDICT_KERNEL, REASON_NOT_FOR_US)
        if lbd_likely(kind != KIND_DONE) or e.tunnel_n == 0:
            return kind
        if p.flags & PKT_TUNNEL:
            if p.reason == REASON_MALFORMED:
                p.reason = REASON_TUNNEL_MALFORMED
            not_taken(e, p)
            return kind
        if p.reason != REASON_PROTO_UNSUPPORTED:
            return kind
        type = decap(e, p, t)
        if type == 0:
            return kind
