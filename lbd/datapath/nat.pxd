# The rewrite: addresses, ports, TTL, checksums, link layer. Constants of the connection's direction; an established packet
# costs its record's line, two checksum adds and one copy of 12 bytes. FULLNAT and NAT differ by what the record's ends are; DR and
# tunnels leave the ends alone.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove
from lbd.datapath.compiler cimport (lbd_ld16, lbd_ld32, lbd_ld64, lbd_st16, lbd_st32, lbd_st64, lbd_bswap16, lbd_copy12, lbd_copy16,
                                    lbd_likely, lbd_swap16s, lbd_swap32s, lbd_unlikely)
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport FRAG_LATER, Pkt, PKT_COMPLETE, PKT_PARTIAL
from lbd.datapath.hdr cimport *
from lbd.datapath.chain cimport pkt_sctp_checksum, pkt_sum
from lbd.datapath.crc32c cimport sctp_ports_changed
from lbd.datapath.csum cimport csum_add, csum_reverse, csum_fold, csum_diff, csum_sum
from lbd.datapath.conn cimport (CONN_ONE_WAY, CONN_WRAPS, Conn4, Conn6, ConnCommon, ConnTable, conn4, conn6, conn_common,
                                conn_side)
from lbd.datapath.echo cimport echo_write, is_icmp
from lbd.datapath.neigh cimport Adj, IFACE_COMPLETES, TPID_AD, TPID_OUTER_Q
from lbd.datapath.parse cimport transport_check, transport_len, transport_pseudo, transport_whole

cdef enum:
    TTL_DELTA = 0xfffe          # TTL - 1 as a checksum delta, in memory order: TTL is the first byte of its word


cdef inline void delta_set(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """Precomputes the checksum deltas of the direction client → real server; the other one is their complement."""
    cdef Conn4 *c
    cdef Conn6 *d
    cdef uint64_t s
    if conn_common(t, i, af).flags & CONN_ONE_WAY:
        if af == 4:
            conn4(t, i).ip_delta[0] = TTL_DELTA
        conn_common(t, i, af).l4_delta = 0
        return
    if af == 4:
        c = conn4(t, i)
        s = csum_fold(csum_diff(&c.caddr, &c.laddr, 4, csum_diff(&c.vaddr, &c.daddr, 4, 0)))
        c.ip_delta[0] = csum_sum(<uint16_t> s, TTL_DELTA)
        c.ip_delta[1] = csum_sum(csum_reverse(<uint16_t> s), TTL_DELTA)
        if c.c.proto == PROTO_ICMP:
            s = 0                           # no pseudo-header
        c.c.l4_delta = csum_fold(csum_diff(&c.cport, &c.lport, 2, csum_diff(&c.vport, &c.dport, 2, s)))
        return
    d = conn6(t, i)
    s = csum_diff(d.caddr, d.laddr, 16, csum_diff(d.vaddr, d.daddr, 16, 0))
    d.c.l4_delta = csum_fold(csum_diff(&d.cport, &d.lport, 2, csum_diff(&d.vport, &d.dport, 2, s)))


cdef inline void check_update(uint8_t *l4, uint8_t proto, uint16_t delta) noexcept nogil:
    cdef uint16_t c
    if proto == PROTO_TCP:
        lbd_st16(l4 + 16, csum_add(lbd_ld16(l4 + 16), delta))
        return
    c = lbd_ld16(l4 + 6)
    if c:                                   # 0: none sent, none made (RFC 768); over IPv6 the receiver judges (RFC 6936)
        c = csum_add(c, delta)
        lbd_st16(l4 + 6, c if c else 0xffff)


cdef inline void check_complete(const Engine *e, Pkt *p) noexcept nogil:
    """Whole transport checksum of a packet that came with a partial one."""
    cdef uint16_t *check = transport_check(p)
    cdef uint16_t c
    p.flags &= <uint8_t> ~PKT_PARTIAL
    if p.proto == PROTO_SCTP:
        (<SctpHdr *> (p.data + p.l4)).check = pkt_sctp_checksum(e, p, transport_len(p))
        return
    lbd_st16(check, 0)
    c = <uint16_t> ~csum_fold(pkt_sum(e, p, p.data + p.l4, transport_len(p), transport_pseudo(p)))
    if c == 0 and p.proto == PROTO_UDP:
        c = 0xffff
    lbd_st16(check, c)


cdef inline void check_finish(const Engine *e, Pkt *p, bint plain) noexcept nogil:
    """Partial transport checksum of a packet that leaves by p.ifout: it stays partial, of the addresses that stand there now, where
    the kernel takes it so. plain: without a tunnel or tags; and of SCTP the kernel would have to be asked otherwise."""
    if plain and e.iface[p.ifout].flags & IFACE_COMPLETES and p.proto != PROTO_SCTP:
        lbd_st16(transport_check(p), csum_fold(transport_pseudo(p)))
        p.flags ^= PKT_PARTIAL | PKT_COMPLETE
    else:
        check_complete(e, p)


cdef inline void addresses_write(uint8_t *addrs, const uint8_t *far, int af) noexcept nogil:
    """What ends_write does of a packet that shows no ports."""
    if af == 4:
        lbd_st64(addrs, lbd_swap32s(lbd_ld64(far)))
    else:
        lbd_copy16(addrs, far + 16)
        lbd_copy16(addrs + 16, far)


cdef inline void ends_write(uint8_t *addrs, uint8_t *l4, const uint8_t *far, int af) noexcept nogil:
    """Addresses and ports. far: the other end as its packets come (conn_side); with its halves exchanged it is where this one
    goes."""
    addresses_write(addrs, far, af)
    if af == 4:
        lbd_st32(l4, lbd_swap16s(lbd_ld32(far + 8)))
    else:
        lbd_st32(l4, lbd_swap16s(lbd_ld32(far + 32)))


cdef inline void hop(uint8_t *ip, uint16_t ip_delta, int af) noexcept nogil:
    """TTL - 1; ip_delta: that, and what else has changed in an IPv4 header."""
    if af == 4:
        (<IpHdr *> ip).ttl -= 1
        (<IpHdr *> ip).check = csum_add((<IpHdr *> ip).check, ip_delta)
    else:
        (<Ip6Hdr *> ip).hop_limit -= 1


cdef inline void transport_changed(Pkt *p, uint8_t *l4, uint32_t before, uint16_t delta) noexcept nogil:
    """Checksum at l4, after new addresses and ports; before: the ports as they were. SCTP's covers no address."""
    if lbd_likely(p.proto != PROTO_SCTP):
        check_update(l4, p.proto, delta)
    else:
        sctp_ports_changed(l4, transport_whole(p), before)


cdef inline void rewrite(const Engine *e, Pkt *p, ConnTable *t, uint32_t i, uint32_t direction, int af) noexcept nogil:
    """What the connection's mode changes of the IP packet, checksums with it."""
    cdef ConnCommon *c = conn_common(t, i, af)
    cdef uint8_t ports[4]
    cdef uint32_t before
    if lbd_unlikely(p.frag == FRAG_LATER):
        if not c.flags & CONN_ONE_WAY:
            addresses_write(p.data + p.l3 + (12 if af == 4 else 8), conn_side(t, i, 1 - direction, af), af)
    elif lbd_unlikely(is_icmp(p.proto)):
        if not c.flags & CONN_ONE_WAY:
            ends_write(p.data + p.l3 + (12 if af == 4 else 8), ports, conn_side(t, i, 1 - direction, af), af)
            echo_write(p.data + p.l4, ports, csum_reverse(c.l4_delta) if direction else c.l4_delta)
    elif not c.flags & CONN_ONE_WAY:
        before = lbd_ld32(p.data + p.l4)
        ends_write(p.data + p.l3 + (12 if af == 4 else 8), p.data + p.l4, conn_side(t, i, 1 - direction, af), af)
        if not p.flags & PKT_PARTIAL:
            transport_changed(p, p.data + p.l4, before, csum_reverse(c.l4_delta) if direction else c.l4_delta)
    hop(p.data + p.l3, conn4(t, i).ip_delta[direction] if af == 4 else 0, af)
    if lbd_unlikely(p.flags & PKT_PARTIAL):
        check_finish(e, p, not c.flags & CONN_WRAPS and e.adj[(&c.adj_fwd)[direction]].reach != 0)


cdef inline void link_write(Pkt *p, const Adj *a) noexcept nogil:
    """Link-layer header of the way out in front of the IP header; data, len, room and the offsets move with it."""
    cdef uint32_t want = ETH_HLEN
    cdef int grow
    cdef uint8_t *d
    if lbd_unlikely(a.vlan != 0):
        want += VLAN_HLEN
    if lbd_unlikely(a.outer != 0):
        want += VLAN_HLEN
    grow = <int> want - <int> p.l3
    if lbd_unlikely(grow != 0):
        p.data -= grow
        p.len += grow
        p.l3 += grow
        p.l4 += grow
    d = p.data
    lbd_copy12(d, a.dmac)                   # dmac and smac lie side by side
    if lbd_unlikely(a.outer != 0):
        lbd_st16(d + 12, lbd_bswap16(ETH_P_8021Q if a.tpid & TPID_OUTER_Q else ETH_P_8021AD))
        lbd_st16(d + 14, lbd_bswap16(a.outer))
        d += 4
    if lbd_unlikely(a.vlan != 0):
        lbd_st16(d + 12, lbd_bswap16(ETH_P_8021AD if a.tpid & TPID_AD else ETH_P_8021Q))
        lbd_st16(d + 14, lbd_bswap16(a.vlan))
        d += 4
    lbd_st16(d + 12, lbd_bswap16(ETH_P_IP if p.af == 4 else ETH_P_IPV6))
