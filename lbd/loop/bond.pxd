# Interfaces and the ports that are theirs. Most have one, with their own number. A bond's are its slaves, each with sockets of its
# own: what any of them receives is the bond's, and each frame leaves by one of those that the kernel sends by at the time
# (Iface.member, told by the master), chosen as the kernel's bonding driver does: in turn, or by a hash of the frame.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_bswap16, lbd_ld16, lbd_ld32, lbd_scale
from lbd.datapath.hdr cimport (ETH_HLEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, IP_MF, IP_OFFMASK, PROTO_TCP, PROTO_UDP,
                               VLAN_HLEN)
from lbd.datapath.neigh cimport BOND_L2, BOND_L34, BOND_TURN, Iface
from lbd.datapath.pkt cimport Pkt
from lbd.loop.state cimport Loop


cdef inline uint32_t iface_of(Loop *l, uint32_t port) noexcept nogil:
    """The interface that this port receives for."""
    cdef uint32_t of = l.e.iface[port].of
    return of - 1 if of else port


cdef inline bint has_ports(uint8_t proto) noexcept nogil:
    return proto == PROTO_TCP or proto == PROTO_UDP or proto == 132


cdef inline uint32_t bond_hash(const uint8_t *d, uint32_t n, uint32_t policy) noexcept nogil:
    """Of a frame of n bytes; frames of one flow have the same. What the policy names and is not there counts as nothing."""
    cdef uint32_t macs = 0, ends = 0, ports = 0, i, l4, at = ETH_HLEN
    cdef uint32_t type
    if n < ETH_HLEN:
        return 0
    macs = lbd_ld32(d + 2) ^ lbd_ld32(d + 8)
    type = lbd_bswap16(lbd_ld16(d + 12))
    while (type == ETH_P_8021Q or type == ETH_P_8021AD) and at + VLAN_HLEN <= n and at < ETH_HLEN + 2 * VLAN_HLEN:
        type = lbd_bswap16(lbd_ld16(d + at + 2))
        at += VLAN_HLEN
    if type == ETH_P_IP and at + 20 <= n:
        ends = lbd_ld32(d + at + 12) ^ lbd_ld32(d + at + 16)
        l4 = at + (d[at] & 15) * 4
        if has_ports(d[at + 9]) and not lbd_ld16(d + at + 6) & lbd_bswap16(IP_MF | IP_OFFMASK) and l4 + 4 <= n:
            ports = lbd_ld32(d + l4)
    elif type == ETH_P_IPV6 and at + 40 <= n:
        for i in range(8):
            ends ^= lbd_ld32(d + at + 8 + 4 * i)
        if has_ports(d[at + 6]) and at + 44 <= n:
            ports = lbd_ld32(d + at + 40)
    if policy == BOND_L2:
        ends = 0
    if policy == BOND_L34 and ends:
        macs = ports ^ ports >> 16
    return <uint32_t> ((<uint64_t> (macs ^ ends) * 0x9e3779b97f4a7c15ULL) >> 32)


cdef inline uint32_t bond_port(Loop *l, const Pkt *p, const Iface *f) noexcept nogil:
    """The port that a frame leaves by, of an interface that has any."""
    if f.member_n == 1:
        return f.member[0]
    if f.policy == BOND_TURN:
        l.bond_turn += 1
        return f.member[l.bond_turn % f.member_n]
    return f.member[lbd_scale(bond_hash(p.data, p.len, f.policy), f.member_n)]
