# SPDX-License-Identifier: Apache-2.0
"""The packet engine under libFuzzer: sequences of packets, with time, interfaces, commands and restarts between them.

No Python runs here: clang compiles Cython's C with -fsanitize=fuzzer,address,undefined, and the fuzzer calls
LLVMFuzzerTestOneInput. Every frame lies in a heap block of exactly its size (and the slack in front that AF_XDP guarantees), every
table in one of its own, so that the sanitizers see each byte too far. Beyond what they see, `judge` and `audit` abort on
whatever must never happen. The input's format (tests/fuzz/corpus.py writes it):

    input   = setup record*
    setup   = one byte: 1 partial checksums, 2 verify checksums, 4 return by route, 8 two workers, 16 RSS known, 32 MTU 1280 and 68,
              64 many local ports, 128 a previous owner table
    record  = op, an octet: kind in the low three bits, argument in the high five; then by kind:
    PACKET  0..3   argument: 1 iface 1 (else 0), 2 handed over (kind 1: by the fragments' owner), 4 mend checksums, 24 hops; length
                   u16 LE; bytes. Joins the burst.
    TIME    4      argument: 3 unit (1 ms, 128 ms, 1 s, 1000 s), 4 back; count u8. Runs the burst, moves the clock, expires.
    FLUSH   5      Runs the burst and expires.
    COMMAND 6      128 bytes: a command as the master writes it.
    RECOVER 7      argument: 1 the tables are fresh. A new process takes over.

A length beyond the input's end is cut to what is there.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from lbd.datapath.command cimport (
    CMD_DEST_SET, CMD_FRESH, CMD_LIP_SET, CMD_NEIGH_SET, CMD_ROUTE_SET, CMD_SVC_SET, Cmd, CmdDest, CmdLip, CmdNeigh, CmdRoute,
    CmdSvc,
)
from lbd.datapath.command_apply cimport command_apply, fast_refresh, route_del
from lbd.datapath.compiler cimport lbd_bswap16, lbd_ld16, lbd_ld32
from lbd.datapath.conn cimport (
    BUCKET_SLOTS, CONN_FREE, CONN_LIVE, CONN_NIL, CONN_ONE_WAY, ConnCommon, ConnTable, conn_common, conn_lookup, conn_tuple,
)
from lbd.datapath.connfile cimport conn_file_attach, conn_file_bytes
from lbd.datapath.count cimport Counters
from lbd.datapath.crc32c cimport sctp_checksum
from lbd.datapath.csum cimport csum_fold, csum_partial, csum_pseudo
from lbd.datapath.engine cimport Engine
from lbd.datapath.fib cimport FIB_HASH, FIB_MAX, ROUTE_ONLINK, ROUTE_USED, Route
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.frag cimport FRAG_NIL, FragTable, frag_bytes, frag_map
from lbd.datapath.frag_held cimport frag_piece, frag_ready, frag_take
from lbd.datapath.hdr cimport PROTO_SCTP, PROTO_TCP, PROTO_UDP
from lbd.datapath.lifetime cimport engine_expire, table_of, timer_of
from lbd.datapath.lookup cimport adj_unhash
from lbd.datapath.neigh cimport ADJ_HASH, ADJ_MAX, Adj, IFACE_PARTIAL, IFACE_UP, IFACE_USED, Iface, LINK_MAX
from lbd.datapath.owner cimport OWNER_BUCKETS
from lbd.datapath.parse cimport KIND_OUTER
from lbd.datapath.pipeline cimport engine_burst
from lbd.datapath.pkt cimport (
    BURST_MAX, FRAG_NONE, FRAME_SLACK, IFACE_MAX, PKT_HANDED, PKT_ICMP_ERROR, PKT_PARTIAL, PKT_ROUTED, PKT_TUNNEL, Pkt,
)
from lbd.datapath.reason cimport (
    REASON_COUNT, REASON_NONE, VERDICT_CONSUME, VERDICT_FORWARD, VERDICT_HANDOVER, VERDICT_HOLD,
)
from lbd.datapath.svc cimport DEST_UP, Dest, LIP_NONE, Lip, LipStat, Svc, SvcStat
from lbd.datapath.tcp cimport STATE_COUNT
from lbd.datapath.tunnel_end cimport TUNNEL_MAX, TunnelEnd
from lbd.datapath.timer cimport LIST_COUNT

include "world.pxi"
include "judge.pxi"


cdef void mend(uint8_t *frame, uint32_t size) noexcept nogil:
    """Makes the IPv4 header's checksum right, and an ICMP message's: or no mutation would get past them."""
    cdef uint32_t at = 12, head, total
    cdef uint8_t *ip
    while at + 6 <= size and (lbd_ld16(frame + at) == 0x0081 or lbd_ld16(frame + at) == 0xa888) and at < 20:
        at += 4
    if at + 2 + 20 > size:
        return
    ip = frame + at + 2
    size -= at + 2
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


cdef void burst() noexcept nogil:
    """What is in world.pkt."""
    cdef uint32_t i
    cdef uint32_t sizes[64]
    for i in range(world.n):
        sizes[i] = FRAME_SLACK + world.pkt[i].len
        memcpy(world.before[i], world.block[i], sizes[i])
    engine_burst(&world.e, world.pkt, world.n, world.now)
    for i in range(world.n):
        judge(world.pkt + i, world.block[i], world.before[i], sizes[i])
        free(world.block[i])
        free(world.before[i])
    world.n = 0
    world.e.wanted_n = 0


cdef void run() noexcept nogil:
    """The burst so far, and the fragments that it set free."""
    cdef uint8_t data[32256]            # CHAIN_MAX * HELD_ROOM
    cdef uint32_t pieces
    cdef Pkt p
    world.packets += world.n
    burst()
    while True:
        pieces = frag_ready(world.e.frags)
        if pieces == 0:
            break
        memset(&p, 0, sizeof(Pkt))
        p.data = data
        frag_take(world.e.frags, &p)
        while pieces > 1:
            p.len += frag_piece(world.e.frags, data + p.len)
            pieces -= 1
        place(&p)
        if world.n == BURST_MAX:
            burst()
    burst()


cdef void place(const Pkt *p) noexcept nogil:
    """A packet of the next burst, in a block of exactly its size."""
    cdef uint8_t *block = <uint8_t *> malloc(FRAME_SLACK + p.len)
    memset(block, 0, FRAME_SLACK)
    memcpy(block + FRAME_SLACK, p.data, p.len)
    world.pkt[world.n] = p[0]
    world.pkt[world.n].data = block + FRAME_SLACK
    world.block[world.n] = block
    world.before[world.n] = <uint8_t *> malloc(FRAME_SLACK + p.len)
    world.n += 1


cdef void packet(uint32_t kind, uint32_t arg, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef Pkt p
    memset(&p, 0, sizeof(Pkt))
    p.data = <uint8_t *> data
    p.len = size
    p.ifin = arg & 1
    if arg & 2:
        p.flags = PKT_HANDED | (PKT_ROUTED if kind & 1 else 0)
    p.hops = arg >> 3
    place(&p)
    if arg & 4:
        mend(world.block[world.n - 1] + FRAME_SLACK, size)
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


cdef uint32_t record(const uint8_t *data, uint32_t left) noexcept nogil:
    """Carries out the record at data; returns its length."""
    cdef Cmd c
    cdef uint32_t kind = data[0] & 7
    cdef uint32_t arg = data[0] >> 3
    cdef uint32_t size
    if kind < 4:
        if left < 3:
            return left
        size = lbd_ld16(data + 1)
        if size > left - 3:
            size = left - 3
        if size > LARGEST:
            size = LARGEST
        packet(kind, arg, data + 3, size)
        return 3 + size
    if kind == 4:
        step_time(arg, data[1] if left > 1 else 0)
        return 2
    run()
    if kind == 6:
        if left < 1 + sizeof(Cmd):
            return left
        memcpy(&c, data + 1, sizeof(Cmd))
        world.commanded = True
        command_apply(&world.e, &c)
        return 1 + sizeof(Cmd)
    if kind == 7:
        attach(arg & 1)
        return 1
    engine_expire(&world.e, world.now, 1000)
    return 1


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    global built
    cdef size_t at = 1
    if size < 2 or size > 1 << 16:
        return 0
    if not built:
        build()
        built = True
    begin(data[0])
    while at < size:
        at += record(data + at, <uint32_t> (size - at))
    run()
    audit(4)
    audit(6)
    audit_counts()
    audit_frags()
    wipe()
    return 0
