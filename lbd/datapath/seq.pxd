# Sequence numbers that differ on lbd's two sides, and a SYN without timestamps: what an extension (ext.pxd) says of them.
#
# Both serve the reuse of a local port that the real server still holds in TIME_WAIT (laddr.pxd): it takes a SYN there only with a
# number beyond the old connection's last (RFC 9293 §3.6.1, RFC 6191) and, if it has one, a timestamp that is not older; those of
# different clients have nothing to do with each other.
#
# lbd's sequence edges keep the numbers that the client's side has. `delta[0]` is added to the client's numbers on their way to the
# real server, and taken from what the real server acknowledges; `delta[1]` is added to the real server's.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ld32, lbd_st32
from lbd.datapath.engine cimport ConnExt
from lbd.datapath.pkt cimport Pkt, PKT_PARTIAL
from lbd.datapath.hdr cimport PROTO_TCP, TcpHdr, TCP_ACK, TCP_SYN
from lbd.datapath.csum cimport csum_diff, csum_fold
from lbd.datapath.nat cimport check_update

cdef enum:
    TCPOPT_EOL = 0              # RFC 9293 §3.1
    TCPOPT_NOP = 1
    TCPOPT_SACK = 5             # RFC 2018
    TCPOPT_TIMESTAMP = 8        # RFC 7323


cdef inline uint64_t put32(uint8_t *at, uint32_t value, uint32_t offset) noexcept nogil:
    """Writes a number in network order; returns what that changes of a checksum's sum. offset: from the first summed byte."""
    cdef uint32_t new = lbd_bswap32(value)
    cdef uint16_t diff = csum_fold(csum_diff(at, &new, 4, 0))
    lbd_st32(at, new)
    return lbd_bswap16(diff) if offset & 1 else diff


cdef inline uint64_t sack_move(uint8_t *l4, uint32_t at, uint32_t length, uint32_t by) noexcept nogil:
    """by is added to the edges of the SACK option at l4 + at; returns as put32."""
    cdef uint64_t diff = 0
    cdef uint32_t k
    for k in range(at + 2, at + length - 3, 4):
        diff += put32(l4 + k, lbd_bswap32(lbd_ld32(l4 + k)) + by, k)
    return diff


cdef inline uint64_t option_blank(uint8_t *l4, uint32_t at, uint32_t length) noexcept nogil:
    """Overwrites an option with no-operations, which change no length; returns as put32."""
    cdef uint32_t k
    cdef uint64_t diff = 0
    for k in range(at, at + length):
        # one byte of a word in memory order: the first, or the second one
        diff += (<uint32_t> (0xff & ~l4[k]) + TCPOPT_NOP) << (8 if k & 1 else 0)
        diff += 0xff00 if not k & 1 else 0x00ff
        l4[k] = TCPOPT_NOP
    return diff


cdef inline uint64_t options_translate(uint8_t *l4, const ConnExt *x, uint32_t direction) noexcept nogil:
    """TCP options that hold numbers; a malformed one ends the walk. Returns as put32."""
    cdef uint32_t at = sizeof(TcpHdr), length, end = (l4[12] >> 4) * 4
    cdef uint64_t diff = 0
    while at < end and l4[at] != TCPOPT_EOL:
        if l4[at] == TCPOPT_NOP:
            at += 1
            continue
        length = l4[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            break
        if l4[at] == TCPOPT_SACK and x.delta[1 - direction]:
            diff += sack_move(l4, at, length, 0 - x.delta[1 - direction])
        elif l4[at] == TCPOPT_TIMESTAMP and x.untimed and l4[13] & TCP_SYN and direction == 0:
            diff += option_blank(l4, at, length)
        at += length
    return diff


cdef inline void seq_translate(Pkt *p, const ConnExt *x, uint32_t direction) noexcept nogil:
    """A TCP segment's numbers from the side that it comes from to the other one. Its header is whole (l4_sound)."""
    cdef uint8_t *l4 = p.data + p.l4
    cdef uint64_t diff = 0
    if x.delta[direction]:
        diff += put32(l4 + 4, lbd_bswap32(lbd_ld32(l4 + 4)) + x.delta[direction], 4)
    if x.delta[1 - direction] and l4[13] & TCP_ACK:
        diff += put32(l4 + 8, lbd_bswap32(lbd_ld32(l4 + 8)) - x.delta[1 - direction], 8)
    if (l4[12] >> 4) * 4 > sizeof(TcpHdr):
        diff += options_translate(l4, x, direction)
    if diff and not p.flags & PKT_PARTIAL:
        check_update(l4, PROTO_TCP, csum_fold(diff))
