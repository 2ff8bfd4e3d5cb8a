# SNAT rules: which outbound packets without a connection open one, and from which addresses.
#
# A rule is a service record of mode SNAT that is found by match instead of by address: protocol, source, destination, interface in,
# interface out; of several the first in the configuration's order. Its part of the arena is handed over whole, as a scheduling
# table is, so that it changes at once:
#
#     slot 0           its dest record, which holds its statistics (schedule() finds it as the one slot of a table)
#     snat_pool        numbers of its pool's addresses
#     snat_sources     ranges of sources, each first and last address, in words of the host's order; disjoint, ascending
#     snat_dests       ranges of destinations, the same; none: every destination
#
# Its connections are FULLNAT's in every bit: client → remote, and remote → pool address. What FULLNAT calls virtual service and
# real server is the remote both times, by which they are told (conn_is_snat).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from lbd.datapath.compiler cimport lbd_bswap32, lbd_ld32, lbd_ld64, lbd_mum
from lbd.datapath.conn cimport CONN_MODE, CONN_OTHER_FAMILY, ConnTable, addr6_is, conn4, conn6
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP
from lbd.datapath.svc cimport (LIP_NONE, LIP_USED, MODE_SNAT, SNAT_ANY, SNAT_ICMP, SNAT_MAX, SNAT_TCP, SNAT_UDP,
                               SVC_NONE, SVC_USED, Svc)


cdef inline uint32_t snat_protocol(uint8_t proto) noexcept nogil:
    """SnatProtocol, 0: none that a rule knows."""
    if proto == PROTO_TCP:
        return SNAT_TCP
    if proto == PROTO_UDP:
        return SNAT_UDP
    if proto == PROTO_ICMP or proto == PROTO_ICMPV6:
        return SNAT_ICMP
    return 0


cdef inline uint32_t snat_words(int af) noexcept nogil:
    """Arena slots of an address."""
    return 1 if af == 4 else 4


cdef inline uint32_t snat_slots(const Svc *s) noexcept nogil:
    """Arena slots of a rule, all told."""
    return 1 + s.snat_pool + (<uint32_t> s.snat_sources + s.snat_dests) * 2 * snat_words(s.af)


cdef inline int words_compare(const uint32_t *a, const uint32_t *b, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if a[i] != b[i]:
            return -1 if a[i] < b[i] else 1
    return 0


cdef inline bint ranges_have(const uint32_t *ranges, uint32_t n, const uint8_t *addr, int af) noexcept nogil:
    """Is the address within one of n ranges, which are disjoint and ascending?"""
    cdef uint32_t words = snat_words(af)
    cdef uint32_t key[4]
    cdef uint32_t i, mid, low = 0, high = n
    for i in range(words):
        key[i] = lbd_bswap32(lbd_ld32(addr + 4 * i))
    while low < high:
        mid = (low + high) // 2
        if words_compare(key, ranges + 2 * words * mid, words) < 0:
            high = mid
        elif words_compare(key, ranges + (2 * mid + 1) * words, words) > 0:
            low = mid + 1
        else:
            return True
    return False


cdef inline bint snat_leaves(const uint8_t *daddr, int af) noexcept nogil:
    """Can this destination be somebody's beyond a router? Not multicast, broadcast, loopback, link-local, unspecified."""
    if af == 4:
        return 0 < daddr[0] < 224 and daddr[0] != 127
    return daddr[0] != 0xff and (daddr[0] != 0xfe or daddr[1] & 0xc0 != 0x80) and lbd_ld64(daddr) != 0


cdef inline bint snat_covers(Engine *e, const Svc *s, const Tuple *t, int af) noexcept nogil:
    """Protocol, source and destination are the rule's. Of ICMP an echo request alone: its tuple has no destination port."""
    cdef const uint32_t *ranges = e.arena + s.table_off + 1 + s.snat_pool
    cdef uint32_t protocol = snat_protocol(t.proto)
    if s.af != af or not s.snat_protocols & protocol or (protocol == SNAT_ICMP and t.dport != 0):
        return False
    if not ranges_have(ranges, s.snat_sources, t.saddr, af):
        return False
    return s.snat_dests == 0 or ranges_have(ranges + s.snat_sources * 2 * snat_words(af), s.snat_dests, t.daddr, af)


cdef inline uint32_t snat_find(Engine *e, const Tuple *t, uint32_t ifin, uint32_t ifout, int af) noexcept nogil:
    """The first rule for this packet, or SVC_NONE. ifout: where the route to its destination leads; SNAT_ANY for either: whatever
    the rule says of it."""
    cdef uint32_t i
    cdef const Svc *s
    if not snat_leaves(t.daddr, af):
        return SVC_NONE
    for i in range(e.snat_n):
        s = e.svc + e.snat[i]
        if s.snat_in != SNAT_ANY and ifin != SNAT_ANY and s.snat_in != ifin:
            continue
        if s.snat_out != SNAT_ANY and ifout != SNAT_ANY and s.snat_out != ifout:
            continue
        if snat_covers(e, s, t, af):
            return e.snat[i]
    return SVC_NONE


cdef inline uint32_t snat_lip(Engine *e, const Svc *s, const Tuple *t, uint32_t k, int af) noexcept nogil:
    """The pool's address to try k-th for this host, or LIP_NONE: it is being taken away. A host keeps its address (RFC 4787 REQ-2),
    in all workers alike, while that has ports."""
    cdef uint64_t h = lbd_ld64(t.saddr) if af == 6 else lbd_ld32(t.saddr)
    cdef uint32_t n
    if af == 6:
        h ^= lbd_mum(lbd_ld64(t.saddr + 8) ^ e.hash_key[1], e.hash_key[2])
    h = lbd_mum(h ^ e.hash_key[0], e.hash_key[3] ^ 0x9e3779b97f4a7c15ULL)
    n = e.arena[s.table_off + 1 + (<uint32_t> (h >> 32) % s.snat_pool + k) % s.snat_pool]
    return n if n < e.max_lip and e.lip[n].flags & LIP_USED else LIP_NONE


cdef inline bint conn_is_snat(ConnTable *t, uint32_t i, int af) noexcept nogil:
    """No real server of FULLNAT is a virtual service, so both ends' remotes are one in SNAT's records alone."""
    if af == 4:
        return not conn4(t, i).c.flags & (CONN_MODE | CONN_OTHER_FAMILY) and conn4(t, i).vaddr == conn4(t, i).daddr
    return not conn6(t, i).c.flags & (CONN_MODE | CONN_OTHER_FAMILY) and addr6_is(conn6(t, i).vaddr, conn6(t, i).daddr)


cdef inline void snat_refresh(Engine *e) noexcept nogil:
    """The rules in their order, from the table of services."""
    cdef uint32_t i, k
    e.snat_n = 0
    e.snat_by_out = 0
    for i in range(e.max_svc):
        if not e.svc[i].flags & SVC_USED or e.svc[i].mode != MODE_SNAT or e.snat_n == SNAT_MAX:
            continue
        k = e.snat_n
        while k and e.svc[e.snat[k - 1]].snat_order > e.svc[i].snat_order:
            e.snat[k] = e.snat[k - 1]
            k -= 1
        e.snat[k] = i
        e.snat_n += 1
        e.snat_by_out |= e.svc[i].snat_out != SNAT_ANY
