# SPDX-License-Identifier: Apache-2.0
"""The packet engine under libFuzzer: sequences of packets, with time, interfaces, commands and restarts between them.

No Python runs here: clang compiles Cython's C with -fsanitize=fuzzer,address,undefined, and the fuzzer calls
LLVMFuzzerTestOneInput. Every frame lies in a heap block of exactly its size (and the slack in front that AF_XDP guarantees), every
table in one of its own, so that the sanitizers see each byte too far. Beyond what they see, `judge` and `audit` abort on
whatever must never happen. The input's format (tests/fuzz/corpus.py writes it; numbers are little endian):

    input   = setup setup2 record*
    setup   = 1 partial checksums, 2 verify checksums, 4 return by route, 8 two workers, 16 RSS known, 32 MTU 1280 and 68,
              64 many local ports, 128 a previous owner table
    setup2  = 7 how services forward (SET_* of world.pxi), 8 nothing is configured: commands do it, 16 clients keep their real
              server, 32 the second one of two workers, 64 no fast lane, 128 UDP is one-packet
    record  = op, an octet: kind in the low three bits, argument in the high five; then by kind:
    PACKET  0..3   argument: 1 iface 1 (else 0), 2 handed over (kind 1: by the fragments' owner), 4 mend checksums, 24 hops; length
                   u16; kind 2: bytes in all u16, bytes of an AF_XDP frame u16 (32768: partial checksum); kind 3: what the other
                   worker says with it, u32; bytes (kind 2: what is missing of them is made up). Joins the burst.
    TIME    4      argument: 3 unit (1 ms, 128 ms, 1 s, 1000 s), 4 back; count u8. Runs the burst, moves the clock, expires.
    STEP    5      Runs the burst; then by argument: 0 expires. 1 writes the arena: place u16, count u8, u32 each. 2 owners: two
                   octets, the workers of this epoch's table and of that before. 3 connections of drained real servers end.
                   4 puts the connection file aside. 5 takes in that one, as that of a worker that is gone. 6 notes local ports
                   as taken.
    COMMAND 6      length u8, so many bytes of a command as the master writes it (the rest is 0).
    RECOVER 7      argument: 1 the tables are fresh. A new process takes over.

A length beyond the input's end is cut to what is there.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from lbd.datapath.chain cimport CHAIN_HEAD
from lbd.datapath.command cimport (
    CMD_DEST_SET, CMD_FRESH, CMD_IFACE_SET, CMD_LIP_SET, CMD_NEIGH_SET, CMD_ROUTE_SET, CMD_SVC_SET, CMD_TUNNEL_SET, Cmd, CmdDest,
    CmdIface, CmdLip, CmdNeigh, CmdRoute, CmdSvc, CmdTunnel,
)
from lbd.datapath.command_apply cimport command_apply, fast_refresh, route_del
from lbd.datapath.compiler cimport lbd_bswap16, lbd_ld16, lbd_ld32
from lbd.datapath.conn cimport (
    BUCKET_SLOTS, CONN_EXTENDED, CONN_FREE, CONN_LIVE, CONN_NIL, CONN_ONE_WAY, ConnCommon, ConnTable, conn_common, conn_lookup,
    conn_tuple, REF_NONE,
)
from lbd.datapath.connfile cimport conn_file_attach, conn_file_bytes, conn_file_merge
from lbd.datapath.count cimport Counters
from lbd.datapath.crc32c cimport sctp_checksum
from lbd.datapath.csum cimport csum_fold, csum_partial, csum_pseudo
from lbd.datapath.ending cimport ending_next
from lbd.datapath.engine cimport Chain, EXT_FREE, Engine
from lbd.datapath.ext cimport ext_is
from lbd.datapath.fib cimport FIB_HASH, FIB_MAX, ROUTE_ONLINK, ROUTE_USED, Route
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.frag cimport FRAG_NIL, FragTable, HELD_ROOM, frag_bytes, frag_map
from lbd.datapath.frag_held cimport frag_piece, frag_ready, frag_take
from lbd.datapath.hdr cimport PROTO_SCTP, PROTO_TCP, PROTO_UDP
from lbd.datapath.lifetime cimport engine_expire, table_of, timer_of
from lbd.datapath.link cimport link_of, tag_word
from lbd.datapath.lookup cimport adj_unhash
from lbd.datapath.neigh cimport (
    ADJ_HASH, ADJ_MAX, Adj, IFACE_COMPLETES, IFACE_PARTIAL, IFACE_UP, IFACE_USED, Iface, LINK_MAX, TPID_AD, TPID_OUTER_Q,
)
from lbd.datapath.owner cimport OWNER_BUCKETS
from lbd.datapath.persist cimport HAND_ASK, template_recover
from lbd.datapath.parse cimport KIND_OUTER
from lbd.datapath.pipeline cimport engine_burst
from lbd.datapath.pkt cimport (
    BURST_MAX, FRAG_NONE, FRAME_SLACK, IFACE_MAX, PKT_COMPLETE, PKT_HANDED, PKT_ICMP_ERROR, PKT_PARTIAL, PKT_ROUTED, PKT_TUNNEL,
    Pkt,
)
from lbd.datapath.reason cimport (
    REASON_COUNT, REASON_NONE, VERDICT_CONSUME, VERDICT_FORWARD, VERDICT_HANDOVER, VERDICT_HOLD,
)
from lbd.datapath.svc cimport (
    DEST_UP, Dest, Lip, LipStat, MODE_DR, MODE_FULLNAT, MODE_NAT, MODE_TUNNEL, SVC_ALIAS, SVC_ONE_PACKET, SVC_PERSIST, Svc, SvcStat,
    TUNNEL_CSUM, TUNNEL_GRE, TUNNEL_GUE, TUNNEL_IPIP,
)
from lbd.datapath.taken cimport TAKEN_BITS, taken_mark
from lbd.datapath.tcp cimport STATE_COUNT
from lbd.datapath.template cimport Template
from lbd.datapath.tunnel_end cimport TUNNEL_MAX, TunnelEnd
from lbd.datapath.timer cimport LIST_COUNT, TIMEOUT_MAX

include "world.pxi"
include "judge.pxi"


cdef uint32_t ip_at(const uint8_t *frame, uint32_t size) noexcept nogil:
    """Offset of what follows the Ethernet header and its tags."""
    cdef uint32_t at = 12
    while at + 6 <= size and (lbd_ld16(frame + at) == 0x0081 or lbd_ld16(frame + at) == 0xa888) and at < 20:
        at += 4
    return at + 2


cdef void mend(uint8_t *frame, uint32_t size) noexcept nogil:
    """Makes the IPv4 header's checksum right, and an ICMP message's: or no mutation would get past them."""
    cdef uint32_t at = ip_at(frame, size), head, total
    cdef uint8_t *ip = frame + at
    if at + 20 > size:
        return
    size -= at
    if ip[0] >> 4 == 4:
        head = (ip[0] & 15) * 4
        total = lbd_bswap16(lbd_ld16(ip + 2))
        if head < 20 or head > size:
            return
        ip[10] = ip[11] = 0
        (<uint16_t *> (ip + 10))[0] = <uint16_t> ~csum_fold(csum_partial(ip, head, 0))
        if ip[9] == 1 and head + 8 <= total <= size:
            ip[head + 2] = ip[head + 3] = 0
            (<uint16_t *> (ip + head + 2))[0] = <uint16_t> ~csum_fold(csum_partial(ip + head, total - head, 0))
    elif size >= 48 and ip[0] >> 4 == 6 and ip[6] == 58:
        total = lbd_bswap16(lbd_ld16(ip + 4))
        if 8 <= total <= size - 40:
            ip[42] = ip[43] = 0
            (<uint16_t *> (ip + 42))[0] = <uint16_t> ~csum_fold(
                csum_partial(ip + 40, total, csum_pseudo(ip + 8, ip + 24, 16, 58, total)))


cdef void mend_long(uint8_t *frame, uint32_t size, bint partial) noexcept nogil:
    """The same of a packet in several frames, and its lengths and transport checksum (a partial one): its bytes are made up."""
    cdef uint32_t at = ip_at(frame, size), n, crc
    cdef uint8_t *ip = frame + at
    cdef uint8_t *l4
    cdef uint16_t *check
    cdef uint8_t proto = ip[9] if ip[0] >> 4 == 4 else ip[6]
    cdef uint32_t alen = 4 if ip[0] >> 4 == 4 else 16
    cdef uint64_t pseudo
    n = size - at
    if alen == 4:
        ip[0] = 0x45
        ip[2] = n >> 8
        ip[3] = n & 255
        l4 = ip + 20
        n -= 20
    else:
        n -= 40
        ip[4] = n >> 8
        ip[5] = n & 255
        l4 = ip + 40
    mend(frame, size)
    if proto == PROTO_SCTP:
        crc = 0 if partial else sctp_checksum(l4, n)
        memcpy(l4 + 8, &crc, 4)
    if alen == 4 and lbd_ld16(ip + 6) & 0xff3f or (proto != PROTO_TCP and proto != PROTO_UDP):
        return
    check = <uint16_t *> (l4 + (16 if proto == PROTO_TCP else 6))
    if proto == PROTO_UDP:
        l4[4] = n >> 8
        l4[5] = n & 255
    pseudo = csum_pseudo(ip + (12 if alen == 4 else 8), ip + (16 if alen == 4 else 24), alen, proto, n)
    check[0] = 0
    check[0] = csum_fold(pseudo) if partial else <uint16_t> ~csum_fold(csum_partial(l4, n, pseudo))


cdef void burst() noexcept nogil:
    """What is in world.pkt."""
    cdef uint32_t i
    engine_burst(&world.e, world.pkt, world.n, world.now)
    for i in range(world.n):
        judge(i)
        drop(i)
        world.e.hand[i] = 0
    world.n = 0
    world.e.wanted_n = 0


cdef void run() noexcept nogil:
    """The burst so far, and the fragments that it set free."""
    cdef uint8_t *data
    cdef uint32_t pieces, left
    cdef Pkt p
    world.packets += world.n
    burst()
    while True:
        pieces = left = frag_ready(world.e.frags)
        if pieces == 0:
            break
        memset(&p, 0, sizeof(Pkt))
        data = <uint8_t *> calloc(1, FRAME_SLACK + pieces * HELD_ROOM)
        p.data = data + FRAME_SLACK
        frag_take(world.e.frags, &p)
        while left > 1:
            p.len += frag_piece(world.e.frags, data + FRAME_SLACK + p.len)
            left -= 1
        place(&p, data, HELD_ROOM if pieces > 1 else 0)
        if world.n == BURST_MAX:
            burst()
    burst()


cdef void place(const Pkt *p, uint8_t *data, uint32_t cut) noexcept nogil:
    """A packet of the next burst, in blocks of exactly its frames' sizes (cut: bytes of each, 0: there is one). data: its bytes,
    with the slack before them; the world's from now on."""
    cdef uint32_t i = world.n, at = p.len if cut == 0 or cut > p.len else cut
    cdef Chain *c = world.e.chain + i
    world.before[i] = data
    world.block[i] = <uint8_t *> malloc(FRAME_SLACK + at)
    memcpy(world.block[i], data, FRAME_SLACK + at)
    world.size[i] = p.len
    world.head[i] = at
    world.pkt[i] = p[0]
    world.pkt[i].data = world.block[i] + FRAME_SLACK
    world.n += 1
    c.n = 0
    c.end = world.pkt[i].data + at
    world.pkt[i].chain = i + 1 if at < p.len else 0
    while at < p.len:
        c.len[c.n] = cut if cut < p.len - at else p.len - at
        c.data[c.n] = <uint8_t *> malloc(c.len[c.n])
        memcpy(c.data[c.n], data + FRAME_SLACK + at, c.len[c.n])
        at += c.len[c.n]
        c.n += 1


cdef void drop(uint32_t i) noexcept nogil:
    cdef uint32_t k
    free(world.block[i])
    free(world.before[i])
    for k in range(world.e.chain[i].n):
        free(world.e.chain[i].data[k])


cdef void packet(uint32_t kind, uint32_t arg, const uint8_t *data, uint32_t size, const uint8_t *more) noexcept nogil:
    """more: what the kind says beside the length."""
    cdef Pkt p
    cdef uint8_t *bytes
    cdef uint32_t i, total = size, cut = 0, hand
    memset(&p, 0, sizeof(Pkt))
    if kind == 2:
        total = lbd_ld16(more) % LONGEST
        cut = CHAIN_HEAD + (lbd_ld16(more + 2) & 0x7fff) % (4096 - CHAIN_HEAD)
        total = size if total < size else total
    p.len = total
    p.ifin = arg & 1
    if arg & 2:
        p.flags = PKT_HANDED | (PKT_ROUTED if kind == 1 else 0)
    p.hops = arg >> 3
    bytes = <uint8_t *> malloc(FRAME_SLACK + total)
    memset(bytes, 0, FRAME_SLACK)
    memcpy(bytes + FRAME_SLACK, data, size)
    for i in range(size, total):
        bytes[FRAME_SLACK + i] = <uint8_t> (i * 31 + (i >> 8))
    if arg & 4 and total > cut and cut:
        mend_long(bytes + FRAME_SLACK, total, lbd_ld16(more + 2) >> 15)
    elif arg & 4:
        mend(bytes + FRAME_SLACK, total)
    if kind == 3 and arg & 2:                   # other workers don't lie: it is one that asks
        hand = lbd_ld32(more)
        if hand & HAND_ASK:
            hand = HAND_ASK | (1 - world.e.worker) << 16
            world.asked = True
        world.e.hand[world.n] = hand if world.e.workers > 1 else 0
    place(&p, bytes, cut)
    if world.n == BURST_MAX:
        run()


cdef uint64_t unit(uint32_t arg) noexcept nogil:
    """In ns."""
    if arg & 3 == 0:
        return 1000000
    if arg & 3 == 1:
        return 128000000
    return 1000000000 if arg & 3 == 2 else 1000000000000


cdef void step_time(uint32_t arg, uint64_t count) noexcept nogil:
    cdef uint64_t by = count * unit(arg)
    run()
    if not arg & 4:
        world.now += by
    elif by < world.now:
        world.now -= by
    engine_expire(&world.e, world.now, 1000)


cdef void end_drained() noexcept nogil:
    """As the loop does it between bursts."""
    cdef uint32_t looks = 4 * CONNS
    cdef uint8_t *room
    cdef Pkt p
    world.e.now_ns = world.now
    world.e.now_ms = <uint32_t> (world.now // 1000000)
    while True:
        room = <uint8_t *> calloc(1, ROOM)
        memset(&p, 0, sizeof(Pkt))
        p.data = room + FRAME_SLACK
        if not ending_next(&world.e, &p, &looks):
            free(room)
            return
        judge_made(&p, room, ROOM)
        free(room)


cdef uint32_t table(const uint8_t *data, uint32_t left) noexcept nogil:
    """Into the arena; returns the record's length."""
    cdef uint32_t i, at, n
    if left < 4:
        return left
    at = lbd_ld16(data + 1)
    n = data[3]
    if left < 4 + 4 * n:
        return left
    for i in range(n):
        if at + i < ARENA:
            world.e.arena[at + i] = lbd_ld32(data + 4 + 4 * i)
    return 4 + 4 * n


cdef uint32_t step(uint32_t arg, const uint8_t *data, uint32_t left) noexcept nogil:
    cdef uint32_t i
    run()
    if arg == 1:
        return table(data, left)
    if arg == 2 and left >= 3:
        for i in range(OWNER_BUCKETS):
            world.e.owner[i] = i % (1 + (data[1] & 1)) if world.e.workers > 1 else 0
            world.e.owner[OWNER_BUCKETS + i] = (i >> 1) % (1 + (data[2] & 1)) if world.e.workers > 1 else 0
        return 3
    if arg == 3:
        end_drained()
    elif arg == 4:
        put_aside()
    elif arg == 5:
        take_in()
    elif arg == 6:
        mark_taken()
    else:
        engine_expire(&world.e, world.now, 1000)
    return 1


cdef void as_sent(Cmd *c) noexcept nogil:
    """Without what lbd/shm/command.pxi refuses and the engine does not look for."""
    cdef CmdIface *f = <CmdIface *> c.body
    cdef CmdSvc *s = <CmdSvc *> c.body
    if c.op == CMD_IFACE_SET and f.mtu < 68:
        f.mtu = 68
    if c.op == CMD_SVC_SET and s.mode != MODE_NAT and s.mode != MODE_DR and s.mode != MODE_TUNNEL:
        s.mode = MODE_FULLNAT
    if c.op == CMD_SVC_SET and s.flags & SVC_ALIAS and (s.target >= SERVICES or world.e.svc[s.target].af != s.af):
        s.flags &= ~SVC_ALIAS           # an address of a service is of its family


cdef uint32_t order(const uint8_t *data, uint32_t left) noexcept nogil:
    """A command; returns the record's length."""
    cdef Cmd c
    if left < 2 or left < 2 + <uint32_t> data[1]:
        return left
    memset(&c, 0, sizeof(Cmd))
    memcpy(&c, data + 2, data[1] if data[1] < sizeof(Cmd) else sizeof(Cmd))
    as_sent(&c)
    if world.e.t4.used + world.e.t6.used or c.op == CMD_DEST_SET:
        world.commanded = True
    command_apply(&world.e, &c)
    return 2 + data[1]


cdef uint32_t record(const uint8_t *data, uint32_t left) noexcept nogil:
    """Carries out the record at data; returns its length."""
    cdef uint32_t kind = data[0] & 7
    cdef uint32_t arg = data[0] >> 3
    cdef uint32_t size, head = 7 if kind == 2 or kind == 3 else 3
    if kind < 4:
        if left < head:
            return left
        size = lbd_ld16(data + 1)
        if size > left - head:
            size = left - head
        if size > LARGEST:
            size = LARGEST
        packet(kind, arg, data + head, size, data + 3)
        return head + size
    if kind == 4:
        step_time(arg, data[1] if left > 1 else 0)
        return 2
    if kind == 5:
        return step(arg, data, left)
    run()
    if kind == 6:
        return order(data, left)
    attach(arg & 1)
    return 1


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    global built
    cdef size_t at = 2
    if size < 3 or size > 1 << 16:
        return 0
    if not built:
        build()
        built = True
    begin(data[0], data[1])
    while at < size:
        at += record(data + at, <uint32_t> (size - at))
    run()
    audit(4)
    audit(6)
    audit_lips()
    audit_ext()
    audit_templates()
    audit_counts()
    audit_frags()
    wipe()
    return 0
