# ICMP echo through NAT64 (RFC 6146 §3.5.3, RFC 7915 §4.2, §5.2): an IPv6 client's request becomes one of IPv4 with an identifier of
# lbd's, its answer one of IPv6 with the client's. ICMPv6's checksum covers a pseudo-header, ICMP's none.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld16, lbd_ld64, lbd_st16, lbd_st64
from lbd.datapath.conn cimport Conn6
from lbd.datapath.csum cimport csum_apply, csum_diff, csum_fold, csum_pseudo
from lbd.datapath.echo cimport ECHO_ID, echo_asks
from lbd.datapath.engine cimport Engine
from lbd.datapath.hdr cimport PROTO_ICMP, PROTO_ICMPV6
from lbd.datapath.nat64 cimport nat64_packet
from lbd.datapath.parse cimport transport_whole
from lbd.datapath.pkt cimport FRAG_LATER, Pkt


cdef inline void echo_cross(uint8_t *l4, const Conn6 *c, uint32_t len, uint32_t to) noexcept nogil:
    """The header of an echo (8 bytes are there) in family `to`: type, identifier, checksum. len: of the whole ICMP message, which
    ICMPv6's pseudo-header tells."""
    cdef uint16_t pseudo = csum_fold(csum_pseudo(c.caddr, c.vaddr, 16, PROTO_ICMPV6, len))
    cdef bint asks = echo_asks(l4, PROTO_ICMPV6 if to == 4 else PROTO_ICMP)
    cdef uint16_t old[2]
    cdef uint16_t new[2]
    old[0] = lbd_ld16(l4)
    old[1] = lbd_ld16(l4 + ECHO_ID)
    if to == 4:
        l4[0] = 8 if asks else 0
        pseudo = <uint16_t> ~pseudo
    else:
        l4[0] = 128 if asks else 129
    new[0] = lbd_ld16(l4)
    new[1] = c.lport if to == 4 else c.cport
    lbd_st16(l4 + ECHO_ID, new[1])
    lbd_st16(l4 + 2, csum_apply(lbd_ld16(l4 + 2), csum_fold(csum_diff(old, new, 4, pseudo))))


cdef inline void nat64_echo(Engine *e, Pkt *p, const Conn6 *c) noexcept nogil:
    """As nat64_packet, which does the IP header, and takes the first 8 bytes behind it for ports and more: they are put back before
    they become the other family's."""
    cdef uint32_t len = transport_whole(p)
    cdef uint64_t came = lbd_ld64(p.data + p.l4) if p.frag != FRAG_LATER else 0
    p.proto = PROTO_ICMP if p.af == 6 else PROTO_ICMPV6
    nat64_packet(e, p, c)
    if p.frag != FRAG_LATER:
        lbd_st64(p.data + p.l4, came)
        echo_cross(p.data + p.l4, c, len, p.af)
