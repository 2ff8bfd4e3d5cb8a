# ICMP errors about the outer header of what lbd wrapped, from a router on the way to the real server: told to the client as errors
# about its own packet (RFC 2003 §4, RFC 2473 §8). The quoted inner packet is the client's, and finds its connection.
#     fragmentation needed, packet too big    the same in the client's family, with what is left of the MTU; remembered
#     unreachable of any kind, TTL used up    host (address) unreachable: how the tunnel is made is not the client's business
#     the rest                                not the client's
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ld16, lbd_ld32
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.hdr cimport *
from lbd.datapath.reason cimport *
from lbd.datapath.conn cimport ConnCommon, ConnTable, conn_common, conn_mode, conn_server
from lbd.datapath.neigh cimport Adj
from lbd.datapath.svc cimport MODE_TUNNEL
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.icmp_err cimport answer4, answer6
from lbd.datapath.nat cimport link_write
from lbd.datapath.forward cimport adj_resolve, drop, quote_fits, usable
from lbd.datapath.tunnel cimport conn_way, encap_bytes, pmtu_learn

cdef enum Said:
    SAID_NOTHING = 0            # for the client
    SAID_UNREACHABLE = 1
    SAID_TOO_BIG = 2


cdef inline uint32_t said(uint8_t type, uint8_t code, int oaf) noexcept nogil:
    if oaf == 4:
        if type == 3 and code != 5:                 # 5: a source route failed
            return SAID_TOO_BIG if code == 4 else SAID_UNREACHABLE
        return SAID_UNREACHABLE if type == 11 and code == 0 else SAID_NOTHING
    if type == 2:
        return SAID_TOO_BIG
    return SAID_UNREACHABLE if type == 1 or (type == 3 and code == 0) else SAID_NOTHING


cdef inline uint32_t said_mtu(const uint8_t *icmp, int oaf) noexcept nogil:
    if oaf == 4:
        return lbd_bswap16(lbd_ld16(icmp + 6))
    return lbd_bswap32(lbd_ld32(icmp + 4))


cdef inline bint about(Engine *e, const Pkt *p, uint32_t ref, int oaf, int af) noexcept nogil:
    """Is it about a packet of this connection? Its outer destination, and what a blind sender doesn't know (RFC 5927)."""
    cdef ConnTable *t = table_of(e, af)
    cdef uint8_t server[16]
    cdef const uint8_t *quoted = p.data + p.l4 + 8
    if ref & 1 or conn_mode(conn_common(t, ref >> 1, af)) != MODE_TUNNEL or conn_server(t, ref >> 1, server, af) != oaf:
        return False
    if memcmp(quoted + (16 if oaf == 4 else 24), server, 4 if oaf == 4 else 16) != 0:
        return False
    return quote_fits(e, p, ref >> 1, conn_common(t, ref >> 1, af), 0, af)


cdef inline void tell_client(Engine *e, Pkt *p, uint32_t what, uint32_t mtu, const Adj *a, int af) noexcept nogil:
    """The error's own packet becomes the client's: what was quoted is what this one quotes."""
    cdef uint32_t quoted = p.l3 + p.l3_len - p.inner
    p.data += p.inner - ETH_HLEN
    p.l3 = ETH_HLEN
    p.l3_len = quoted
    p.af = af
    if af == 4:
        answer4(e, p, 3, 4 if what == SAID_TOO_BIG else 1, mtu, a.link)
    elif what == SAID_TOO_BIG:
        answer6(e, p, 2, 0, mtu if mtu > 1280 else 1280, a.link)
    else:
        answer6(e, p, 1, 3, 0, a.link)
    link_write(p, a)


cdef inline void relay(Engine *e, Pkt *p, uint32_t ref, int af) noexcept nogil:
    """ref: the connection of the quoted inner packet, of family af. It changes no state and no timer."""
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c = conn_common(t, ref >> 1, af)
    cdef int oaf = p.data[p.l3] >> 4
    cdef const uint8_t *icmp = p.data + p.l4
    cdef uint32_t what = said(icmp[0], icmp[1], oaf)
    cdef uint32_t mtu = 0
    p.svc = c.svc
    p.dest = c.dest
    if not about(e, p, ref, oaf, af):
        drop(p, REASON_ICMP_UNMATCHED)
        return
    if what == SAID_NOTHING:
        drop(p, REASON_ICMP_UNSUPPORTED)
        return
    if what == SAID_TOO_BIG:
        mtu = pmtu_learn(e, c.dest, said_mtu(icmp, oaf), oaf) - encap_bytes(conn_way(t, ref >> 1, af)[0], oaf)
    if c.fib_gen != e.fib_gen[0]:
        adj_resolve(e, ref >> 1, c, af)
    if not usable(e, p, c.adj_rev):
        return
    tell_client(e, p, what, mtu, e.adj + c.adj_rev, af)
    e.count.icmp_mapped += 1
    p.ifout = e.adj[c.adj_rev].iface
    p.verdict = VERDICT_FORWARD
    p.reason = REASON_NONE
