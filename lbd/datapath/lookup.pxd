# Finding things in the mirrored tables: virtual services, adjacencies, routes. Keys are hashed with a small mixer: what is in these
# tables comes from the master, not from the wire, but for learned adjacencies, which are bounded and replaced.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.string cimport memcmp, memcpy, memset
from lbd.datapath.compiler cimport lbd_bswap64, lbd_likely, lbd_unlikely, lbd_ld16, lbd_ld32, lbd_ld64, lbd_mum, lbd_st64
from lbd.datapath.engine cimport DEST_HASH, Engine, VIP_HASH
from lbd.datapath.flow cimport Tuple
from lbd.datapath.echo cimport is_icmp
from lbd.datapath.conn cimport CONN_OTHER_FAMILY, ConnTable, conn4, conn6, conn_common, conn_local
from lbd.datapath.snat cimport snat_find
from lbd.datapath.svc cimport Dest, DEST_NONE, MODE_NAT, MODE_SNAT, SNAT_ANY, SVC_ALIAS, SVC_NONE, SVC_USED, Svc
from lbd.datapath.neigh cimport (Adj, adj_refresh, ADJ_NONE, ADJ_MAX, ADJ_HASH, ADJ_USED, ADJ_VALID, ADJ_LEARNED, IFACE_USED,
                                 IFACE_UP)
from lbd.datapath.pkt cimport IFACE_MAX
from lbd.datapath.fib cimport Route, FIB_HASH, ROUTE_ONLINK
from lbd.datapath.link cimport adj_tags, link_of, tag_word


cdef inline uint32_t hash_words(uint64_t first, uint64_t second, uint64_t extra) noexcept nogil:
    """first, second: the 16 bytes of an address."""
    cdef uint64_t h = lbd_mum(first ^ 0x9e3779b97f4a7c15ULL, second ^ 0xc2b2ae3d27d4eb4fULL)
    return <uint32_t> lbd_mum(h ^ extra, 0x165667b19e3779f9ULL)


cdef inline uint32_t hash_addr(const uint8_t *addr, uint64_t extra) noexcept nogil:
    return hash_words(lbd_ld64(addr), lbd_ld64(addr + 8), extra)


cdef inline uint64_t svc_extra(uint16_t vport, uint8_t proto, uint8_t af) noexcept nogil:
    return (<uint64_t> vport << 16) | (<uint64_t> proto << 8) | af


cdef inline uint32_t svc_key(uint16_t vport, uint8_t proto, uint8_t af) noexcept nogil:
    """Svc.vport, af and proto as one word, little-endian."""
    return vport | <uint32_t> af << 16 | <uint32_t> proto << 24


cdef inline uint32_t svc_bucket(Engine *e, const uint8_t *vaddr, uint16_t vport, uint8_t proto, uint8_t af) noexcept nogil:
    return hash_addr(vaddr, svc_extra(vport, proto, af)) & e.svc_hash_mask


cdef inline bint svc_is(const Svc *s, uint64_t first, uint64_t second, uint32_t key) noexcept nogil:
    """Is it at this address (16 bytes as two words, IPv4 padded with zeros) and svc_key?"""
    return lbd_ld32(&s.vport) == key and lbd_ld64(s.vaddr) == first and lbd_ld64(s.vaddr + 8) == second


cdef inline uint32_t svc_by_words(Engine *e, uint64_t first, uint64_t second, uint16_t vport, uint8_t proto,
                                  uint8_t af) noexcept nogil:
    """Number of the service at this address (16 bytes as two words, IPv4 padded with zeros) and port, or SVC_NONE."""
    cdef uint32_t n = e.svc_hash[hash_words(first, second, svc_extra(vport, proto, af)) & e.svc_hash_mask]
    cdef uint32_t key = svc_key(vport, proto, af)
    while n:
        if svc_is(e.svc + (n - 1), first, second, key):
            return n - 1
        n = e.svc[n - 1].next
    return SVC_NONE


cdef inline uint32_t svc_lookup(Engine *e, const uint8_t *vaddr, uint16_t vport, uint8_t proto, uint8_t af) noexcept nogil:
    return svc_by_words(e, lbd_ld64(vaddr), lbd_ld64(vaddr + 8), vport, proto, af)


cdef inline uint32_t svc_at(Engine *e, const uint8_t *vaddr, uint16_t vport, uint8_t proto, uint8_t af) noexcept nogil:
    """Number of the service that has this address and port, by an address of its own or a further one; of its own port, or of any
    that no other has. Or SVC_NONE."""
    cdef uint32_t n = svc_lookup(e, vaddr, vport, proto, af)
    if lbd_unlikely(n == SVC_NONE) and e.any_services and not is_icmp(proto):
        n = svc_lookup(e, vaddr, 0, proto, af)
    if n != SVC_NONE and lbd_unlikely(e.svc[n].flags & SVC_ALIAS):
        n = e.svc[n].target
        if n >= e.max_svc or (e.svc[n].flags & (SVC_USED | SVC_ALIAS)) != SVC_USED:
            return SVC_NONE
    return n


cdef inline uint32_t svc_of(Engine *e, const Tuple *t, uint32_t ifin, int af) noexcept nogil:
    """Number of the service, or else the SNAT rule, that a packet without a connection may open one of, or SVC_NONE. ifin: SNAT_ANY
    where it is not known."""
    cdef uint32_t n = svc_at(e, t.daddr, t.dport, t.proto, af)
    return n if lbd_likely(n != SVC_NONE or e.snat_n == 0) else rule_of(e, t, ifin, af)


cdef inline uint32_t rule_of(Engine *e, const Tuple *t, uint32_t ifin, int af) noexcept nogil:
    cdef uint32_t out = SNAT_ANY
    cdef Route *r
    if e.snat_by_out and ifin != SNAT_ANY:
        r = route_lookup(e, t.daddr, af)
        out = r.iface if r != NULL else IFACE_MAX
    return snat_find(e, t, ifin, out, af)


cdef inline uint32_t vip_bucket(const uint8_t *vaddr) noexcept nogil:
    return hash_addr(vaddr, 0) & (VIP_HASH - 1)


cdef inline bint vip_lookup(Engine *e, const uint8_t *vaddr, int af) noexcept nogil:
    """Has this address (16 bytes, IPv4 padded with zeros) a service?"""
    cdef uint32_t n = e.vip_hash[vip_bucket(vaddr)]
    while n:
        if e.svc[n - 1].af == af and memcmp(e.svc[n - 1].vaddr, vaddr, 16) == 0:
            return True
        n = e.svc[n - 1].vip_next
    return False


cdef inline bint dest_port_is(const Dest *d, uint16_t dport, uint16_t vport) noexcept nogil:
    """Is this the port that the real server gets what came to vport on?"""
    return dport == (d.port if d.port else vport)


cdef inline uint32_t dest_bucket(const uint8_t *addr, uint16_t port) noexcept nogil:
    return hash_addr(addr, port) & (DEST_HASH - 1)


cdef inline uint32_t nat_dest(Engine *e, uint32_t n, const uint8_t *addr, uint16_t port) noexcept nogil:
    """The first entry from n on of the chain (numbers + 1, ascending: the same order in all workers) that is a real server
    of a NAT service at this address (16 bytes, IPv4 padded with zeros) and port (0: any); 0: none."""
    cdef Dest *d
    while n:
        d = e.dest + (n - 1)
        if (d.port == port and e.svc[d.svc].flags & SVC_USED and e.svc[d.svc].mode == MODE_NAT
                and memcmp(d.addr, addr, 16) == 0):
            return n
        n = d.next
    return 0


cdef inline bint nat_end(const Dest *d, const Svc *a, const Tuple *t) noexcept nogil:
    """May what this real server sent (t) be an answer to what came to the address a of its service?"""
    if a.proto != t.proto or a.mode != MODE_NAT:
        return False
    if is_icmp(t.proto):                    # not its own echo request, which has no destination port
        return t.dport != 0
    return d.port != 0 or a.vport == 0 or a.vport == t.sport


cdef inline uint32_t dest_at(Engine *e, uint32_t svc, const uint8_t *addr, uint16_t port, int af) noexcept nogil:
    cdef uint32_t n = e.dest_hash[dest_bucket(addr, port)]
    cdef Dest *d
    if e.svc[svc].mode == MODE_SNAT:
        return e.arena[e.svc[svc].table_off]
    while n:
        d = e.dest + (n - 1)
        if d.svc == svc and d.port == port and d.af == af and memcmp(d.addr, addr, 16) == 0:
            return n - 1
        n = d.next
    return DEST_NONE


cdef inline uint32_t dest_of(Engine *e, uint32_t svc, const uint8_t *addr, uint16_t port, int af) noexcept nogil:
    """Number of a service's real server (or sorry server) by address (16 bytes) and port, its own or the client's; or DEST_NONE. An
    SNAT rule's one dest."""
    cdef uint32_t d = dest_at(e, svc, addr, port, af)
    return d if d != DEST_NONE else dest_at(e, svc, addr, 0, af)


cdef inline uint32_t lip_lookup(Engine *e, const uint8_t *addr, int af) noexcept nogil:
    """Number of the local address, or LIP_NONE (0xffff). A handful of LIPs: a walk, off the established path."""
    cdef uint32_t i, n
    if af == 4:
        for i in range(e.lip4_all):
            n = e.lip4[i]
            if lbd_ld32(e.lip[n].addr) == lbd_ld32(addr):
                return n
    else:
        for i in range(e.lip6_all):
            n = e.lip6[i]
            if memcmp(e.lip[n].addr, addr, 16) == 0:
                return n
    return 0xffff


cdef inline uint32_t conn_lip(Engine *e, ConnTable *t, uint32_t i, int af) noexcept nogil:
    """Number of the connection's local address, or LIP_NONE: it has none, or one that is not configured."""
    if not conn_local(conn_common(t, i, af)):
        return 0xffff
    if af == 4:
        return lip_lookup(e, <const uint8_t *> &conn4(t, i).laddr, 4)
    if conn6(t, i).c.flags & CONN_OTHER_FAMILY:
        return lip_lookup(e, conn6(t, i).laddr + 12, 4)
    return lip_lookup(e, conn6(t, i).laddr, 6)


# --- adjacencies -----------------------------------------------------------------------------------------------------

cdef inline uint32_t adj_bucket_addr(const uint8_t *addr, uint32_t iface, uint64_t tags) noexcept nogil:
    return hash_addr(addr, (<uint64_t> iface << 40) | tags) & (ADJ_HASH - 1)


cdef inline uint32_t adj_bucket_mac(const uint8_t *mac, uint32_t iface, uint64_t tags) noexcept nogil:
    cdef uint64_t m = <uint64_t> lbd_ld32(mac) | (<uint64_t> lbd_ld16(mac + 4) << 32)
    return <uint32_t> lbd_mum(m ^ 0x9e3779b97f4a7c15ULL, (<uint64_t> iface << 40 | tags) ^ 0xc2b2ae3d27d4eb4fULL) & (ADJ_HASH - 1)


cdef inline uint32_t adj_bucket(const Adj *a) noexcept nogil:
    if a.flags & ADJ_LEARNED:
        return adj_bucket_mac(a.dmac, a.iface, adj_tags(a))
    return adj_bucket_addr(a.addr, a.iface, adj_tags(a))


cdef inline void adj_place(Engine *e, uint32_t i, uint32_t iface, uint64_t tags) noexcept nogil:
    """Where a new entry, whose key is set but for this, is reached; and into the hash."""
    cdef Adj *a = e.adj + i
    cdef uint32_t *head
    a.iface = iface
    a.vlan = <uint16_t> tags
    a.outer = <uint16_t> (tags >> 16)
    a.tpid = <uint8_t> (tags >> 32)
    a.link = link_of(e, iface, tags)
    memcpy(a.smac, e.iface[a.link].mac, 6)
    adj_refresh(a, e.iface)
    head = e.adj_hash + adj_bucket(a)
    a.next = head[0]
    head[0] = i + 1


cdef inline uint32_t adj_find(Engine *e, const uint8_t *addr, uint32_t af, uint32_t iface, uint64_t tags) noexcept nogil:
    """Adjacency of a next hop by address, or ADJ_NONE."""
    cdef uint32_t n = e.adj_hash[adj_bucket_addr(addr, iface, tags)]
    cdef Adj *a
    while n:
        a = e.adj + (n - 1)
        if ((a.flags & (ADJ_USED | ADJ_LEARNED)) == ADJ_USED and a.iface == iface and adj_tags(a) == tags and a.af == af
                and memcmp(a.addr, addr, 16) == 0):
            return n - 1
        n = a.next
    return ADJ_NONE


cdef inline void adj_unhash(Engine *e, uint32_t i) noexcept nogil:
    cdef Adj *a = e.adj + i
    cdef uint32_t *p = e.adj_hash + adj_bucket(a)
    while p[0]:
        if p[0] == i + 1:
            p[0] = a.next
            return
        p = &e.adj[p[0] - 1].next


cdef inline uint32_t adj_take(Engine *e, uint32_t flags) noexcept nogil:
    """A free adjacency; when none is free, the longest unused of a few learned ones is taken over, else one of a next hop whose MAC
    is gone (connections may hold its number: they look again)."""
    cdef uint32_t k, i, best = ADJ_NONE, gone = ADJ_NONE
    for k in range(ADJ_MAX):
        i = (e.adj_free + k) % ADJ_MAX
        if i == ADJ_NONE:
            continue
        if e.adj[i].flags == 0:
            e.adj_free = i + 1
            return i
        if e.adj[i].flags & ADJ_LEARNED and (best == ADJ_NONE or <int32_t> (e.adj[i].seen - e.adj[best].seen) < 0):
            best = i
        elif not e.adj[i].flags & (ADJ_LEARNED | ADJ_VALID):
            gone = i
        if k >= 64 and best != ADJ_NONE:
            break
    if best == ADJ_NONE and gone != ADJ_NONE:
        best = gone
        e.fib_gen[0] += 1
    if best != ADJ_NONE:
        adj_unhash(e, best)
        e.adj[best].flags = 0
        e.adj_free = best + 1
    return best


cdef inline uint32_t adj_make(Engine *e, const uint8_t *addr, uint32_t af, uint32_t iface, uint64_t tags) noexcept nogil:
    """Adjacency by address, made (without a MAC) if it isn't there; ADJ_NONE when the table is full."""
    cdef uint32_t i = adj_find(e, addr, af, iface, tags)
    cdef Adj *a
    if i != ADJ_NONE:
        return i
    i = adj_take(e, ADJ_USED)
    if i == ADJ_NONE:
        return i
    a = e.adj + i
    memset(a, 0, sizeof(Adj))
    memcpy(a.addr, addr, 16)
    a.af = af
    a.flags = ADJ_USED
    adj_place(e, i, iface, tags)
    return i


cdef inline uint32_t adj_learn(Engine *e, const uint8_t *mac, uint32_t iface, uint64_t tags) noexcept nogil:
    """Adjacency of whoever sent from this MAC on this interface with these tags; made if new."""
    cdef uint32_t i, n = e.adj_hash[adj_bucket_mac(mac, iface, tags)]
    cdef Adj *a
    while n:
        a = e.adj + (n - 1)
        if a.flags & ADJ_LEARNED and a.iface == iface and adj_tags(a) == tags and memcmp(a.dmac, mac, 6) == 0:
            a.seen = e.now_ms
            return n - 1
        n = a.next
    i = adj_take(e, ADJ_LEARNED)
    if i == ADJ_NONE:
        return i
    a = e.adj + i
    memset(a, 0, sizeof(Adj))
    memcpy(a.dmac, mac, 6)
    a.seen = e.now_ms
    a.flags = ADJ_USED | ADJ_VALID | ADJ_LEARNED
    adj_place(e, i, iface, tags)
    return i


# --- routes ----------------------------------------------------------------------------------------------------------

cdef inline uint64_t first_bits(uint32_t n) noexcept nogil:
    """Mask of the first n bits of 8 bytes, at most all."""
    return lbd_bswap64(~(<uint64_t> -1 >> n)) if n < 64 else <uint64_t> -1


cdef inline void prefix_mask(uint8_t *out, const uint8_t *addr, uint32_t plen) noexcept nogil:
    """The first plen bits of an address, the rest 0 (16 bytes)."""
    lbd_st64(out, lbd_ld64(addr) & first_bits(plen))
    lbd_st64(out + 8, lbd_ld64(addr + 8) & first_bits(plen - 64 if plen > 64 else 0))


cdef inline uint32_t route_bucket(const uint8_t *prefix, uint32_t plen, uint32_t af) noexcept nogil:
    return hash_addr(prefix, (plen << 8) | af) & (FIB_HASH - 1)


cdef inline uint32_t route_find(Engine *e, const uint8_t *prefix, uint32_t plen, uint32_t af) noexcept nogil:
    """Number + 1 of exactly this route, or 0."""
    cdef uint32_t n = e.route_hash[route_bucket(prefix, plen, af)]
    cdef Route *r
    while n:
        r = e.route + (n - 1)
        if r.plen == plen and r.af == af and memcmp(r.prefix, prefix, 16) == 0:
            return n
        n = r.next
    return 0


cdef inline Route *route_lookup(Engine *e, const uint8_t *addr, uint32_t af) noexcept nogil:
    """Longest matching prefix, or NULL."""
    cdef uint8_t key[16]
    cdef uint32_t *lengths = e.plen4
    cdef int plen
    cdef uint32_t n
    if af == 6:
        lengths = e.plen6
    for plen in range(32 if af == 4 else 128, -1, -1):
        if lengths[plen] == 0:
            continue
        prefix_mask(key, addr, plen)
        n = route_find(e, key, plen, af)
        if n:
            return e.route + (n - 1)
    return NULL


cdef inline void neigh_want(Engine *e, uint32_t adj) noexcept nogil:
    """Notes that this next hop has no MAC; the adapter tells the master, which has the kernel resolve it."""
    cdef uint32_t i
    for i in range(e.wanted_n):
        if e.wanted[i] == adj:
            return
    if e.wanted_n < 64:
        e.wanted[e.wanted_n] = adj
        e.wanted_n += 1


cdef inline uint32_t nexthop(Engine *e, const uint8_t *addr, uint32_t af) noexcept nogil:
    """Adjacency on the way to this address (made if new, perhaps still without a MAC), or ADJ_NONE: no route."""
    cdef Route *r = route_lookup(e, addr, af)
    cdef const uint8_t *next = addr
    cdef uint32_t i
    if r == NULL or not e.iface[r.iface].flags & IFACE_USED:      # it leads where lbd has no interface
        return ADJ_NONE
    if not r.flags & ROUTE_ONLINK:
        next = r.gateway
    i = adj_make(e, next, af, r.iface, tag_word(r.vlan, r.outer, r.tpid))
    if i != ADJ_NONE and not e.adj[i].flags & ADJ_VALID:
        neigh_want(e, i)
    return i
