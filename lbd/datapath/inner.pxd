# Where the inner IP header of a tunnelled packet is: behind IPIP's nothing, GRE's or GUE's header. For what comes in a tunnel that
# ends here, and for what an ICMP error quotes of a packet that lbd wrapped.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from lbd.datapath.compiler cimport lbd_bswap16, lbd_ld16
from lbd.datapath.engine cimport Engine
from lbd.datapath.hdr cimport *

cdef enum Inner:
    INNER_FOUND = 0
    INNER_SHORT = 1             # the bytes end before it
    INNER_OTHER = 2             # no IP inside, or a header of a kind that lbd does not make


cdef inline bint is_wrapped(Engine *e, uint8_t proto, const uint8_t *l4) noexcept nogil:
    """By the outer header and, of UDP, the destination port (4 bytes are there)."""
    cdef uint16_t port
    if proto != PROTO_UDP:
        return proto == PROTO_IPIP or proto == PROTO_IPV6 or proto == PROTO_GRE
    port = lbd_ld16(l4 + 2)
    return e.gue[port >> 3] >> (port & 7) & 1


cdef inline uint32_t inner_at(const uint8_t *d, uint32_t *at, uint32_t end, uint8_t *proto) noexcept nogil:
    """From what follows the outer header on to the inner one; proto: the outer header's before, PROTO_IPIP or PROTO_IPV6 after."""
    cdef uint16_t flags, type
    if proto[0] == PROTO_IPIP or proto[0] == PROTO_IPV6:
        return INNER_FOUND
    if proto[0] == PROTO_GRE:
        if at[0] + sizeof(GreHdr) > end:
            return INNER_SHORT
        flags = lbd_bswap16(lbd_ld16(d + at[0]))
        type = lbd_bswap16(lbd_ld16(d + at[0] + 2))
        if flags & ~GRE_CSUM or (type != ETH_P_IP and type != ETH_P_IPV6):
            return INNER_OTHER
        at[0] += 2 * sizeof(GreHdr) if flags else sizeof(GreHdr)
        proto[0] = PROTO_IPIP if type == ETH_P_IP else PROTO_IPV6
        return INNER_FOUND
    at[0] += sizeof(UdpHdr) + sizeof(GueHdr)
    if at[0] > end:
        return INNER_SHORT
    if d[at[0] - 4] != 0 or lbd_ld16(d + at[0] - 2) != 0 or (d[at[0] - 3] != PROTO_IPIP and d[at[0] - 3] != PROTO_IPV6):
        return INNER_OTHER
    proto[0] = d[at[0] - 3]
    return INNER_FOUND
