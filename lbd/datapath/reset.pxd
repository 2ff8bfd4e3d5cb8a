# RST segments that lbd itself makes: in answer to a packet, in its place; and to an end of a connection, which sent nothing.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt, PKT_REPLY, PKT_TUNNEL
from lbd.datapath.hdr cimport (ETH_HLEN, IP_DF, Ip6Hdr, IpHdr, PROTO_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TcpHdr, tcp_head)
from lbd.datapath.csum cimport csum_fold, csum_partial, csum_pseudo
from lbd.datapath.conn cimport CONN_EXTENDED, CONN_ONE_WAY, ConnCommon, conn6, conn_edges, conn_side
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.neigh cimport Adj, ADJ_NONE, ADJ_VALID, IFACE_UP
from lbd.datapath.ext cimport conn_ext
from lbd.datapath.seq cimport seq_translate
from lbd.datapath.nat64 cimport nat64_server_side
from lbd.datapath.forward cimport adj_resolve, is_nat64, leave
from lbd.datapath.icmp_err cimport mac_swap
from lbd.datapath.reason cimport REASON_NONE, VERDICT_CONSUME, VERDICT_DROP, VERDICT_FORWARD


cdef inline uint32_t segment_write(uint8_t *l3, const uint8_t *side, uint32_t seq, uint32_t ack, uint8_t flags,
                                   int af) noexcept nogil:
    """A TCP segment without payload, IP header and all, between two ends (as conn_side has them, source first); its bytes."""
    cdef uint32_t alen = 4 if af == 4 else 16
    cdef uint32_t hlen = 20 if af == 4 else 40
    cdef IpHdr *ip = <IpHdr *> l3
    cdef TcpHdr *t = <TcpHdr *> (l3 + hlen)
    memset(l3, 0, hlen + 20)
    if af == 4:
        ip.ver_ihl = 0x45
        ip.tot_len = lbd_bswap16(40)
        ip.frag_off = lbd_bswap16(IP_DF)
        ip.ttl = 64
        ip.protocol = PROTO_TCP
        memcpy(&ip.saddr, side, 8)
        ip.check = <uint16_t> ~csum_fold(csum_partial(l3, 20, 0))
    else:
        l3[0] = 0x60
        (<Ip6Hdr *> l3).payload_len = lbd_bswap16(20)
        (<Ip6Hdr *> l3).nexthdr = PROTO_TCP
        (<Ip6Hdr *> l3).hop_limit = 64
        memcpy((<Ip6Hdr *> l3).saddr, side, 32)
    memcpy(t, side + 2 * alen, 4)
    t.seq = lbd_bswap32(seq)
    t.ack_seq = lbd_bswap32(ack)
    t.doff = 5 << 4
    t.flags = flags
    t.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> t, 20, csum_pseudo(side, side + alen, alen, PROTO_TCP, 20)))
    return hlen + 20


cdef inline void reset_answer(Engine *e, Pkt *p, uint32_t reason) noexcept nogil:
    """A TCP packet, as it came, is answered as by a host that knows nothing of it (RFC 9293 §3.10.7.1): its sender believes this
    RST, since it acknowledges nothing but what was in the packet."""
    cdef TcpHdr *t = <TcpHdr *> (p.data + p.l4)
    cdef uint32_t alen = 4 if p.af == 4 else 16
    cdef uint8_t *addrs = p.data + p.l3 + (12 if p.af == 4 else 8)
    cdef uint8_t side[36]
    cdef uint32_t seq = 0, ack = 0, payload = p.l3 + p.l3_len - p.l4 - tcp_head(t)
    cdef uint8_t flags = TCP_RST
    p.verdict = VERDICT_DROP
    p.reason = reason
    if p.tcp_flags & TCP_RST or p.data[0] & 1 or p.flags & PKT_TUNNEL:      # of a tunnel the way back is another
        return
    if p.tcp_flags & TCP_ACK:
        seq = lbd_bswap32(t.ack_seq)
    else:
        flags |= TCP_ACK
        ack = lbd_bswap32(t.seq) + payload
        if p.tcp_flags & (TCP_SYN | TCP_FIN):
            ack += 1
    memcpy(side, addrs + alen, alen)
    memcpy(side + alen, addrs, alen)
    memcpy(side + 2 * alen, &t.dest, 2)
    memcpy(side + 2 * alen + 2, &t.source, 2)
    mac_swap(p.data, p.data)
    if p.af == 4:
        p.len = p.l3 + segment_write(p.data + p.l3, side, seq, ack, flags, 4)
    else:
        p.len = p.l3 + segment_write(p.data + p.l3, side, seq, ack, flags, 6)
    p.verdict = VERDICT_CONSUME
    p.ifout = p.ifin


cdef inline void segment_from(Engine *e, Pkt *p, uint32_t i, const ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """RST and ACK, whole, as one end of the connection would have sent it; its number is the next one expected."""
    cdef uint32_t *edges = conn_edges(table_of(e, af), i, af)
    cdef uint8_t *l3 = p.data + ETH_HLEN
    cdef uint8_t far[12]
    cdef uint8_t flags = TCP_RST | TCP_ACK
    if af == 6 and direction == 1 and is_nat64(c):
        nat64_server_side(far, conn6(&e.t6, i))
        p.af = 4
        p.l3_len = segment_write(l3, far, edges[1], edges[0], flags, 4)
    else:
        p.af = af
        p.l3_len = segment_write(l3, conn_side(table_of(e, af), i, direction, af), edges[direction], edges[1 - direction], flags,
                                 af)
    p.l3 = ETH_HLEN
    p.l4 = ETH_HLEN + p.l3_len - sizeof(TcpHdr)
    p.len = ETH_HLEN + p.l3_len
    p.proto = PROTO_TCP
    p.tcp_flags = flags


cdef inline bint reset_make(Engine *e, Pkt *p, uint32_t i, ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """Into p (data: room for a frame): a RST as if the connection's one end (by direction) had sent it, on its way to the other.
    Its number is the next one expected, which is what the receiver wants (RFC 5961), unless packets are under way; what comes after
    those is answered (orphan.pxd). False: there is no way out, or no number is known (to the client, where answers go past lbd)."""
    cdef uint32_t n
    cdef const Adj *a
    if direction == 1 and c.flags & CONN_ONE_WAY:
        return False
    if c.fib_gen != e.fib_gen[0]:
        adj_resolve(e, i, c, af)
    n = c.adj_fwd if direction == 0 else c.adj_rev
    if n == ADJ_NONE:
        return False
    a = e.adj + n
    if not a.flags & ADJ_VALID or not e.iface[a.link].flags & IFACE_UP:
        return False
    memset(p.data, 0, ETH_HLEN)
    p.flags = PKT_REPLY * direction
    p.svc = c.svc
    p.dest = c.dest
    segment_from(e, p, i, c, direction, af)
    if c.flags & CONN_EXTENDED and direction == 0:      # the edges are in the client's numbers
        seq_translate(p, conn_ext(e, table_of(e, af), i, af), 0)
    if not leave(e, p, i, c, direction, af):
        return False
    p.ifout = a.iface
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
    e.count.resets_sent += 1
    return True
