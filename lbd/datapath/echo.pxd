# ICMP echo as a flow (RFC 5508 §3), of SNAT rules and services of ICMP: the identifier stands for a port, the other end has none.
# So such a service's port is 0, and so are its real servers'. An echo request's tuple is (source, destination, identifier, 0), an
# answer's (source, destination, 0, identifier), so that one is the other reversed. An answer with identifier 0 would look like a
# request: it is nobody's. (lbd itself never asks with 0; a host that does is served, but for mode nat, which keeps identifiers.)
#
# ICMP's checksum covers no addresses, ICMPv6's does; l4_delta of the connection has that in it (nat.pxd delta_set).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld16, lbd_st16
from lbd.datapath.csum cimport csum_add, csum_apply, csum_diff, csum_fold
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport PROTO_ICMP, PROTO_ICMPV6

cdef enum:
    ECHO_BYTES = 8          # type, code, checksum, identifier, sequence number
    ECHO_ID = 4             # offset of the identifier


cdef inline bint is_icmp(uint8_t proto) noexcept nogil:
    return proto == PROTO_ICMP or proto == PROTO_ICMPV6


cdef inline bint has_echo_flows(const Engine *e) noexcept nogil:
    """Else all of ICMP but errors is the kernel's."""
    return (e.snat_n | e.echo_services) != 0


cdef inline bint echo_asks(const uint8_t *l4, uint8_t proto) noexcept nogil:
    """A request? (It is known to be an echo.)"""
    return l4[0] == (8 if proto == PROTO_ICMP else 128)


cdef inline bint echo_ports(const uint8_t *l4, Tuple *t, bint reverse, int af) noexcept nogil:
    """Protocol and ports of the tuple of an echo request or answer at l4 (8 bytes are there); reverse: of the packet that would
    answer it. False: it is neither."""
    cdef uint16_t id = lbd_ld16(l4 + ECHO_ID)
    cdef bint asks = l4[0] == (8 if af == 4 else 128)
    if not asks and (l4[0] != (0 if af == 4 else 129) or id == 0):
        return False
    if l4[1] != 0:
        return False
    t.proto = PROTO_ICMP if af == 4 else PROTO_ICMPV6
    t.sport = 0 if asks == reverse else id
    t.dport = id if asks == reverse else 0
    return True


cdef inline void echo_write(uint8_t *l4, const uint8_t *ports, uint16_t delta) noexcept nogil:
    """The other end's identifier. ports: that end's, one of the two is 0."""
    lbd_st16(l4 + ECHO_ID, lbd_ld16(ports) | lbd_ld16(ports + 2))
    lbd_st16(l4 + 2, csum_add(lbd_ld16(l4 + 2), delta))


cdef inline void echo_quoted(uint8_t *l4, uint16_t id, uint64_t addr_diff) noexcept nogil:
    """The identifier in a quoted header; addr_diff: of the addresses, where the checksum covers them."""
    cdef uint16_t old = lbd_ld16(l4 + ECHO_ID)
    lbd_st16(l4 + ECHO_ID, id)
    lbd_st16(l4 + 2, csum_apply(lbd_ld16(l4 + 2), csum_fold(csum_diff(&old, &id, 2, addr_diff))))
