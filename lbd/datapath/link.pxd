# Tags of frames, and the VLAN devices that they stand for.
#
# A frame's tags as one word: VLAN id and priority next to the IP header in the low 16 bits, those of the outer tag above, their
# protocols (Tpid) above these; 0: untagged. An answer carries the word that its client's packet had, priority included; a VLAN
# device is its ids and protocols.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.engine cimport Engine
from lbd.datapath.neigh cimport Adj, Iface, IFACE_USED, LINK_MAX, TPID_OUTER_Q
from lbd.datapath.pkt cimport IFACE_MAX, Pkt

cdef enum:
    TAG_IDS = 0x0fff0fff        # of the low 32 bits


cdef inline uint64_t tag_word(uint32_t vlan, uint32_t outer, uint32_t tpid) noexcept nogil:
    if (vlan | outer) == 0:
        return 0
    if outer == 0:
        tpid &= <uint32_t> ~TPID_OUTER_Q
    return <uint64_t> tpid << 32 | outer << 16 | vlan


cdef inline uint64_t pkt_tags(const Pkt *p) noexcept nogil:
    return tag_word(p.vlan, p.outer, p.tpid)


cdef inline uint64_t adj_tags(const Adj *a) noexcept nogil:
    return tag_word(a.vlan, a.outer, a.tpid)


cdef inline uint32_t link_of(Engine *e, uint32_t iface, uint64_t tags) noexcept nogil:
    """Number of the VLAN device with these tags on this interface; the interface's own where there is none. A walk: for a new next
    hop, or an answer of lbd's own."""
    cdef uint32_t i
    cdef const Iface *f
    if tags == 0:
        return iface
    tags &= ~<uint64_t> 0xffffffff | TAG_IDS
    for i in range(IFACE_MAX, LINK_MAX):
        f = e.iface + i
        if f.flags & IFACE_USED and f.lower == iface and tag_word(f.vlan, f.outer, f.tpid) == tags:
            return i
    return iface
