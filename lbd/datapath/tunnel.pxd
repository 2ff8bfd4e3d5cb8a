# What a connection of mode tunnel knows of its tunnel: its kind, GUE's port, how many bytes the way to the real server takes.
#
# Kind and port are the record's own, so that they outlive the real server's entry and the process. The path's MTU is the real
# server's (Dest), learned from ICMP errors about the outer header; every worker learns by its own flows.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from lbd.datapath.compiler cimport lbd_bswap16, lbd_inlined
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.hdr cimport *
from lbd.datapath.conn cimport CONN_OTHER_FAMILY, ConnCommon, ConnTable, conn4, conn6, conn_common
from lbd.datapath.svc cimport DEST_NONE

cdef extern from * nogil:
    """
    /* by TunnelWay: IPIP, GRE, GUE (UDP and its own 4 bytes), nothing; the same with a checksum */
    static const uint8_t lbd_shim_bytes[8] = { 0, 4, 12, 0, 0, 8, 12, 0 };
    """
    const uint8_t lbd_shim_bytes[8]

cdef enum:
    PMTU_AGE = 600000           # ms that a path's MTU is remembered, as by Linux (net.ipv4.route.mtu_expires)
    PMTU_MIN4 = 576             # less than that is not believed (RFC 791: what every host takes)
    PMTU_MIN6 = 1280            # RFC 8200 §5


cdef inline uint16_t *conn_way(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """TunnelWay; a place that one-way connections have no other use for. GUE's port is in l4_delta."""
    if af == 4:
        return &conn4(t, i).ip_delta[1]
    return <uint16_t *> &conn6(t, i).spare[0]


cdef inline int server_af(const ConnCommon *c, int af) noexcept nogil:
    """The real server's family: that of the outer header."""
    return 10 - af if c.flags & CONN_OTHER_FAMILY else af


cdef inline void tunnel_keep(Engine *e, ConnTable *t, uint32_t i, uint32_t dest, int af) noexcept nogil:
    """The record (of mode tunnel) takes over how its real server is reached."""
    conn_way(t, i, af)[0] = e.dest[dest].tunnel
    conn_common(t, i, af).l4_delta = e.dest[dest].tunnel_port


cdef inline uint32_t shim_bytes(uint32_t way) noexcept nogil:
    """Between outer and inner IP header."""
    return lbd_shim_bytes[way & 7]


cdef inline uint32_t encap_bytes(uint32_t way, int raf) noexcept nogil:
    return (sizeof(IpHdr) if raf == 4 else sizeof(Ip6Hdr)) + shim_bytes(way)


cdef inline bint may_fragment(const Pkt *p, int raf) noexcept nogil:
    """Routers on the way may fragment what becomes of it: IPv4 in IPv4 without DF."""
    return p.af == 4 and raf == 4 and not (<const IpHdr *> (p.data + p.l3)).frag_off & lbd_bswap16(IP_DF)


cdef inline lbd_inlined tunnel_room_by(Engine *e, const Pkt *p, const ConnCommon *c, uint32_t way, uint32_t mtu,
                                       int raf) noexcept nogil:
    """L3 bytes of an inner packet that get to the real server, of family raf, at once; mtu: of the link."""
    cdef uint32_t known
    if c.dest != DEST_NONE and e.dest[c.dest].pmtu:
        known = e.dest[c.dest].pmtu
        if e.now_ms - e.dest[c.dest].pmtu_seen >= PMTU_AGE:
            e.dest[c.dest].pmtu = 0
        elif known < mtu and not may_fragment(p, raf):
            mtu = known
    return mtu - encap_bytes(way, raf)


cdef inline uint32_t tunnel_room(Engine *e, const Pkt *p, ConnTable *t, uint32_t i, uint32_t mtu, int af) noexcept nogil:
    cdef const ConnCommon *c = conn_common(t, i, af)
    return tunnel_room_by(e, p, c, conn_way(t, i, af)[0], mtu, server_af(c, af))


cdef inline uint32_t pmtu_learn(Engine *e, uint32_t dest, uint32_t mtu, int raf) noexcept nogil:
    """A router says that packets to this real server may have so many bytes; returns what is believed of it."""
    cdef uint32_t least = PMTU_MIN4 if raf == 4 else PMTU_MIN6
    if mtu < least:                 # a router of before RFC 1191 says 0
        mtu = least
    if mtu > 0xffff:
        mtu = 0xffff
    if dest != DEST_NONE:
        e.dest[dest].pmtu = mtu
        e.dest[dest].pmtu_seen = e.now_ms
    return mtu
