# What must hold after each burst (judge) and after each input (audit); it ends the fuzzer where it does not. Part of
# fuzz_engine.pyx.


cdef uint32_t ip_size(const uint8_t *l3) noexcept nogil:
    """Of the packet there, by its own header. (Pkt.l3_len is that of the packet as it came: NAT64 and tunnels change it.)"""
    return lbd_bswap16(lbd_ld16(l3 + 2)) if l3[0] >> 4 == 4 else 40 + lbd_bswap16(lbd_ld16(l3 + 4))


cdef uint64_t pseudo(uint8_t proto, const uint8_t *l3, uint32_t size) noexcept nogil:
    cdef uint32_t alen = 4 if l3[0] >> 4 == 4 else 16
    cdef const uint8_t *addrs = l3 + (12 if alen == 4 else 8)
    return csum_pseudo(addrs, addrs + alen, alen, proto, size)


cdef bint transport_right(uint8_t proto, const uint8_t *l3, const uint8_t *l4) noexcept nogil:
    """The transport checksum of the packet whose headers lie there; the engine's offsets, this one's arithmetic."""
    cdef uint32_t size = ip_size(l3) - <uint32_t> (l4 - l3)
    if proto == PROTO_SCTP:
        return sctp_checksum(l4, size) == lbd_ld32(l4 + 8)
    if proto == 17:
        size = lbd_bswap16(lbd_ld16(l4 + 4))
    if proto == 1:
        return csum_fold(csum_partial(l4, size, 0)) == 0xffff
    return csum_fold(csum_partial(l4, size, pseudo(proto, l3, size))) == 0xffff


cdef bint partial(uint8_t proto, const uint8_t *l3, const uint8_t *l4) noexcept nogil:
    """Has it the folded pseudo-header sum in its checksum's place, as a local stack leaves it? Of SCTP: nothing."""
    if proto == PROTO_SCTP:
        return lbd_ld32(l4 + 8) == 0
    if proto == 17:
        return lbd_ld16(l4 + 6) == csum_fold(pseudo(proto, l3, lbd_bswap16(lbd_ld16(l4 + 4))))
    return proto == 6 and lbd_ld16(l4 + 16) == csum_fold(pseudo(proto, l3, ip_size(l3) - <uint32_t> (l4 - l3)))


cdef uint32_t tunnel_head(const Pkt *p, const uint8_t *l3) noexcept nogil:
    """Bytes before the inner IP header if the packet goes in a tunnel, else 0: no packet of a connection is of these protocols, and
    UDP's header lies right behind the outer one's, where that of the inner packet does not."""
    cdef uint32_t n = (l3[0] & 15) * 4 if p.af == 4 else 40
    cdef uint8_t proto = l3[9] if p.af == 4 else l3[6]
    if proto == 4 or proto == 41:
        return n
    if proto == 47:
        return n + (8 if l3[n] & 0x80 else 4)
    return n + 12 if proto == 17 and p.l4 >= p.l3 + n + 12 + 20 else 0


cdef const uint8_t *came_at(const Pkt *p, uint32_t i, const uint8_t *before, uint64_t at) noexcept nogil:
    """The IP header of the packet as it came. Link headers grow and shrink before it: where it lies in the block stays, except that
    NAT64 writes another one, before the transport header, which stays. NULL: that, and it came in a tunnel."""
    if not translated(p, i, before):
        return before + at
    if p.flags & PKT_TUNNEL:
        return NULL
    return before + FRAME_SLACK + ip_at(before + FRAME_SLACK, world.size[i])


cdef bint translated(const Pkt *p, uint32_t i, const uint8_t *before) noexcept nogil:
    """By NAT64: it leaves in another family than it came. (Not asked of what leaves in a tunnel, whose p.af is the outer one.)"""
    if p.flags & PKT_TUNNEL:                    # never in the fast lane, which makes no tuple
        return (p.af == 4) != (world.e.tuple[i].af == 4)
    return p.af != before[FRAME_SLACK + ip_at(before + FRAME_SLACK, world.size[i])] >> 4


cdef const Iface *way_of(const Pkt *p) noexcept nogil:
    """The link that the packet leaves by: an interface, or a VLAN device there with its tags."""
    cdef uint32_t tag, outer = 0, tpid = 0, at = ip_at(p.data, p.len) - 2
    if at == 12:
        return world.e.iface + p.ifout
    tag = lbd_bswap16(lbd_ld16(p.data + at - 2))
    if lbd_ld16(p.data + at - 4) == 0xa888:
        tpid = TPID_AD
    if at == 20:
        outer = lbd_bswap16(lbd_ld16(p.data + 14))
        if lbd_ld16(p.data + 12) == 0x0081:
            tpid |= TPID_OUTER_Q
    return world.e.iface + link_of(&world.e, p.ifout, tag_word(tag, outer, tpid))


cdef void judge_made(const Pkt *p, const uint8_t *block, uint32_t size) noexcept nogil:
    """A packet of the engine's own, an ICMP error or a RST: whole, and right."""
    cdef uint32_t at = ip_at(p.data, p.len)
    cdef const uint8_t *l3 = p.data + at
    cdef uint8_t proto
    never(p.data < block or p.data + p.len > block + size or p.ifout >= IFACE_MAX)
    never(at + 20 > p.len or at + ip_size(l3) > p.len)
    if l3[0] >> 4 == 4:
        proto = l3[9]
        never(csum_fold(csum_partial(l3, (l3[0] & 15) * 4, 0)) != 0xffff)
        l3 += (l3[0] & 15) * 4
    else:
        never(l3[0] >> 4 != 6)
        proto = l3[6]
        l3 += 40
    if proto == 4 or proto == 41 or proto == 47 or proto == 17:     # a RST to a real server, in a tunnel
        return
    never(proto != 1 and proto != 58 and proto != PROTO_TCP)
    never(not transport_right(proto, p.data + at, l3))


cdef void judge_out(const Pkt *p, uint32_t i, const uint8_t *block, const uint8_t *before) noexcept nogil:
    """A packet that leaves lies within its block, its lengths fit, and its checksums are no better than they came. block, before:
    the packet in one piece, with the slack before it."""
    cdef const uint8_t *l3 = p.data + p.l3
    cdef const uint8_t *l4 = p.data + p.l4
    cdef const uint8_t *came
    cdef const Iface *way
    cdef uint32_t n
    cdef uint8_t proto = p.proto
    never(p.data < block or p.data + p.len > block + FRAME_SLACK + world.size[i])
    never(p.ifout >= IFACE_MAX)
    if p.verdict == VERDICT_CONSUME:            # the offsets are those of the packet that it answers
        never(p.ifout != p.ifin and not p.flags & PKT_TUNNEL)
        judge_made(p, block, FRAME_SLACK + world.size[i])
        return
    way = way_of(p)
    never(not way.flags & IFACE_UP)
    never(p.l3 + 20 > p.len or l3[0] >> 4 != p.af or (p.af == 6 and p.l3 + 40 > p.len))
    n = ip_size(l3)
    if world.e.kind[i] == KIND_OUTER:           # an error about a tunnel's packet, made one for the client (relay.pxd)
        never(p.l3 + n > p.len or n > way.mtu)
        never(not transport_right(1 if p.af == 4 else 58, l3, l3 + (20 if p.af == 4 else 40)))
        return
    never(p.l3 + n > p.len or p.l4 < p.l3 + 20 or p.l4 >= p.l3 + n)
    never(n > way.mtu)
    n = tunnel_head(p, l3)
    if p.af == 4:
        never(csum_fold(csum_partial(l3, (l3[0] & 15) * 4, 0)) != 0xffff)
        never(n == 0 and p.l4 != p.l3 + (l3[0] & 15) * 4)
    if n:                                       # what is in the tunnel, which ends where the tunnel's packet does
        never(n + ip_size(l3 + n) != ip_size(l3))
        judge_tunnel(l3, n)
        l3 += n
        never(l4 < l3 + 20 or l4 >= l3 + ip_size(l3))
        if l3[0] >> 4 == 4:
            never(csum_fold(csum_partial(l3, (l3[0] & 15) * 4, 0)) != 0xffff)
    never(p.flags & PKT_PARTIAL)                # completed, or
    if p.flags & PKT_COMPLETE:
        never(n != 0 or not way.flags & IFACE_COMPLETES or not partial(proto, l3, l4))
        return
    if p.frag != FRAG_NONE:                     # its checksum is the datagram's, or bytes of its payload
        return
    if p.flags & PKT_ICMP_ERROR:
        proto = 1 if l3[0] >> 4 == 4 else 58
        never(not transport_right(proto, l3, l4))
        if n == 0 and translated(p, i, before):         # into an error of the other family
            return
    if n:                                       # (its family is the outer header's)
        came = before + (l3 - block)
    else:
        came = came_at(p, i, before, l3 - block)
    if came == NULL:
        return
    if world.e.iface[p.ifin].flags & IFACE_PARTIAL and partial(number_in(proto, came), came, before + (l4 - block)):
        never(not transport_right(proto, l3, l4))
        return
    never(transport_right(proto, l3, l4) != transport_right(number_in(proto, came), came, before + (l4 - block))
          and not (proto == 17 and lbd_ld16(before + (l4 - block) + 6) == 0))


cdef uint8_t number_in(uint8_t proto, const uint8_t *l3) noexcept nogil:
    """ICMP's protocol number is another one in each family."""
    if proto != 1 and proto != 58:
        return proto
    return 1 if l3[0] >> 4 == 4 else 58


cdef void judge_tunnel(const uint8_t *l3, uint32_t n) noexcept nogil:
    """The shim's checksum, where there is one; n: bytes before the inner header."""
    cdef uint32_t hlen = 20 if l3[0] >> 4 == 4 else 40, alen = 4 if hlen == 20 else 16
    cdef uint8_t proto = l3[9] if hlen == 20 else l3[6]
    cdef const uint8_t *addrs = l3 + (12 if hlen == 20 else 8)
    cdef uint32_t size = ip_size(l3) - hlen
    if proto == 47 and l3[hlen] & 0x80:
        never(csum_fold(csum_partial(l3 + hlen, size, 0)) != 0xffff)
    if proto == 17:
        never(lbd_bswap16(lbd_ld16(l3 + hlen + 4)) != size)
        never(lbd_ld16(l3 + hlen + 6) != 0
              and csum_fold(csum_partial(l3 + hlen, size, csum_pseudo(addrs, addrs + alen, alen, 17, size))) != 0xffff)


cdef uint8_t *piece(uint32_t i) noexcept nogil:
    """Packet i as it is now, in one piece, with the slack before it."""
    cdef const Chain *c = world.e.chain + i
    cdef uint32_t k, at = FRAME_SLACK + world.head[i]
    cdef uint8_t *whole = <uint8_t *> malloc(FRAME_SLACK + world.size[i])
    memcpy(whole, world.block[i], at)
    for k in range(c.n):
        memcpy(whole + at, c.data[k], c.len[k])
        at += c.len[k]
    return whole


cdef void judge(uint32_t i) noexcept nogil:
    """Packet i of the burst."""
    cdef Pkt p = world.pkt[i]
    cdef uint8_t *whole = piece(i)
    never(p.verdict > VERDICT_HOLD or p.reason >= REASON_COUNT)
    never(p.data < world.block[i] or p.data > world.block[i] + FRAME_SLACK + world.head[i])
    p.data = whole + (p.data - world.block[i])
    if p.verdict == VERDICT_FORWARD or p.verdict == VERDICT_CONSUME:
        judge_out(&p, i, whole, world.before[i])
    elif p.verdict == VERDICT_HANDOVER:
        never(p.owner == world.e.worker or p.owner >= world.e.workers or (p.hops >= 3 and not world.e.hand[i]))
    elif p.verdict == VERDICT_HOLD:
        never(p.frag == FRAG_NONE)
    else:
        never(p.reason == REASON_NONE)
    if p.verdict != VERDICT_FORWARD and p.verdict != VERDICT_CONSUME:
        # the kernel, or another worker, gets it as it came
        never(memcmp(whole, world.before[i], FRAME_SLACK + world.size[i]) != 0)
    free(whole)


cdef uint32_t chain(const ConnTable *t, uint32_t head) noexcept nogil:
    """Records on a list; aborts on a circle."""
    cdef uint32_t n = 0
    while head != CONN_NIL:
        never(head >= t.capacity or n > t.capacity)
        head = t.cold[head].next
        n += 1
    return n


cdef uint32_t entries(const ConnTable *t) noexcept nogil:
    """Of the index, in primary buckets and their chains; aborts on a circle."""
    cdef uint32_t b, at, slot, steps, n = 0
    for b in range(t.buckets):
        at = b
        steps = 0
        while True:
            for slot in range(BUCKET_SLOTS):
                n += t.index[at].tag[slot] != 0
            at = t.index[at].next
            if at == 0:
                break
            steps += 1
            never(at < t.buckets or at >= t.buckets + t.overflow or steps > t.overflow)
    return n


cdef void audit(int af) noexcept nogil:
    """The table is whole: every record is on one list, live ones are found by both tuples, and counts are what they count."""
    cdef Engine *e = &world.e
    cdef ConnTable *t = table_of(e, af)
    cdef ConnCommon *c
    cdef Tuple k
    cdef uint32_t i, found, listed = 0, live = 0, indexed = 0
    for i in range(LIST_COUNT):
        listed += chain(t, timer_of(e, af).head[i])
    never(listed != t.used or t.free_n != t.capacity - t.used)
    for i in range(t.capacity):
        c = conn_common(t, i, af)
        if c.live == CONN_FREE:
            continue
        live += 1
        indexed += 1
        never(c.state == 0 or c.state >= STATE_COUNT)
        never(c.flags & CONN_EXTENDED and not ext_is(e, t, i, af))
        if not c.flags & CONN_ONE_WAY:          # what a real server answers is not seen
            indexed += 1
            conn_tuple(t, i, 1, &k, af)
            found = conn_lookup(t, &k, tuple_hash(&k, e.hash_key, af), af)
            never(found == REF_NONE or (found != (i << 1 | 1) and not world.merged))
        if c.live == CONN_LIVE:
            conn_tuple(t, i, 0, &k, af)
            never(conn_lookup(t, &k, tuple_hash(&k, e.hash_key, af), af) != i << 1)
    never(live != t.used or entries(t) != indexed)


cdef uint32_t ports_held(const ConnTable *t, uint32_t lip, int af) noexcept nogil:
    cdef uint32_t i, n = 0
    for i in range(t.capacity):
        n += conn_common(<ConnTable *> t, i, af).live != CONN_FREE and conn_common(<ConnTable *> t, i, af).lip == lip
    return n


cdef void audit_lips() noexcept nogil:
    cdef uint32_t i
    if world.commanded:
        return
    for i in range(LIPS):
        never(world.e.lip_stat[i].in_use != ports_held(&world.e.t4, i, 4) + ports_held(&world.e.t6, i, 6))


cdef void audit_ext() noexcept nogil:
    """Each extension that is not free is some connection's, and the free ones are on their list."""
    cdef Engine *e = &world.e
    cdef uint32_t i, taken = 0, listed = 0, extended = 0
    for i in range(1, e.ext_n):
        taken += e.ext[i].ref != EXT_FREE
    i = e.ext_free
    while i:
        never(i >= e.ext_n or e.ext[i].ref != EXT_FREE or listed > e.ext_n)
        listed += 1
        i = e.ext[i].next
    for i in range(CONNS):
        extended += conn_common(&e.t4, i, 4).live != CONN_FREE and conn_common(&e.t4, i, 4).flags & CONN_EXTENDED != 0
        extended += conn_common(&e.t6, i, 6).live != CONN_FREE and conn_common(&e.t6, i, 6).flags & CONN_EXTENDED != 0
    never(taken != extended or taken + listed + 1 != e.ext_n)


cdef void audit_templates() noexcept nogil:
    """This worker's own are counted, and none is being written. (Who is asked for one that is another's writes it there.)"""
    cdef const Template *m = world.e.template + world.e.worker * TEMPLATES
    cdef uint32_t i, n = 0
    for i in range(TEMPLATES):
        never(m[i].seq & 1)
        n += m[i].svc != 0
    never(n != world.e.count.templates and not world.asked)


cdef uint32_t fragments_held(const FragTable *t) noexcept nogil:
    """Not their pieces."""
    cdef uint32_t i, k, n = 0
    for i in range(t.fresh):
        k = t.entry[i].held
        while k:
            n += not t.held[k - 1].more
            k = t.held[k - 1].next
    return n


cdef void audit_counts() noexcept nogil:
    cdef Engine *e = &world.e
    cdef uint64_t verdicts = 0
    cdef uint32_t i, counted = 0
    for i in range(8):
        verdicts += e.count.verdicts[i]
    # a held fragment counts as that, and once more at its end
    never(verdicts - e.count.verdicts[<int> VERDICT_HOLD] + fragments_held(e.frags) != world.packets)
    if not world.commanded:
        for i in range(SERVICES):
            counted += e.svc_stat[i].active + e.svc_stat[i].inactive
        never(counted > e.t4.used + e.t6.used)


cdef void audit_frags() noexcept nogil:
    """Each datagram is on one list and in one bucket, and what is held is counted."""
    cdef FragTable *t = world.e.frags
    cdef uint32_t i, n, steps, listed = 0, hashed = 0, held = 0
    for i in range(3):
        n = t.head[i]
        while n != FRAG_NIL:
            never(n >= t.fresh or t.entry[n].list != i or listed > t.fresh)
            listed += 1
            n = t.entry[n].next
    for i in range(t.bucket_mask + 1):
        n = t.bucket[i]
        while n:
            never(n > t.fresh or t.entry[n - 1].bucket != i or hashed > t.fresh)
            hashed += 1
            n = t.entry[n - 1].chain
    never(listed != t.fresh or hashed != t.fresh)
    for i in range(t.fresh):
        n = t.entry[i].held
        steps = 0
        while n:
            never(steps > t.held_capacity)
            steps += 1
            n = t.held[n - 1].next
        never(steps != t.entry[i].held_n)
        held += steps
    never(held != t.held_n)
