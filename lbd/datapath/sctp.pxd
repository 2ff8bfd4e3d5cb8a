# SCTP as a balancer sees it (RFC 9260): an association of one path from client to real server. Its states are TCP's (tcp.pxd):
# the machinery asks the same of them, half open, established, one end is closing, over. TIME_WAIT is not needed: the verification
# tags keep a new association from an old one's packets.
# Further addresses of either end (in INIT, INIT ACK or ASCONF) are neither read nor translated: docs/protocols.md.
#
# What a packet must carry to change a state is its sender's verification tag, 32 random bits of the receiver's that a blind sender
# doesn't know. A record keeps both where TCP's has its sequence numbers: [0] what the client sends, [1] what the real server sends.
from libc.stdint cimport uint8_t, uint32_t
from lbd.datapath.compiler cimport lbd_bswap16, lbd_ld16
from lbd.datapath.chain cimport least, pkt_head
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.hdr cimport SctpHdr
from lbd.datapath.conn cimport CONN_ONE_WAY, CONN_SYNACK, ConnCommon, conn_edges
from lbd.datapath.lifetime cimport conn_enter, table_of
from lbd.datapath.tcp cimport STATE_SYN_RECV, WAY_ONE

cdef enum Chunk:
    CHUNK_DATA = 0
    CHUNK_INIT = 1
    CHUNK_INIT_ACK = 2
    CHUNK_ABORT = 6
    CHUNK_SHUTDOWN = 7
    CHUNK_SHUTDOWN_ACK = 8
    CHUNK_COOKIE_ACK = 11
    CHUNK_SHUTDOWN_COMPLETE = 14
    CHUNK_I_DATA = 64           # RFC 8260

cdef enum SctpEvent:            # what a packet is: of its chunks the one with the greatest number here
    SCTP_OTHER = 0
    SCTP_COOKIE_ACK = 1
    SCTP_SHUTDOWN = 2
    SCTP_SHUTDOWN_ACK = 3
    SCTP_SHUTDOWN_COMPLETE = 4
    SCTP_ABORT = 5
    SCTP_INIT = 6               # these two come alone
    SCTP_INIT_ACK = 7

cdef enum:
    SCTP_HLEN = 12
    CHUNKS_MAX = 16             # chunks looked at
    CHUNK_T = 1                 # flag of ABORT and SHUTDOWN COMPLETE: the tag is the receiver's own, reflected

cdef extern from * nogil:
    """
    /* event by chunk type */
    static const uint8_t lbd_sctp_event[16] = { 0, 6, 7, 0, 0, 0, 5, 2, 3, 0, 0, 1, 0, 0, 4, 0 };
    /* next state [way][event][state]; columns: NONE SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK FIN_WAIT TIME_WAIT CLOSE.
     * Of packets whose tag is right, so a client's first one after INIT proves that it has seen INIT ACK. An INIT that finds the
     * association over starts it anew. LAST_ACK: SHUTDOWN ACK was sent. Ways as in tcp.pxd. */
    static const uint8_t lbd_sctp_next[3][7][8] = {
      { /* from the client */
        /* other             */ { 0, 2, 2, 3, 4, 5, 6, 7 },
        /* COOKIE ACK        */ { 0, 1, 2, 3, 4, 5, 6, 7 },
        /* SHUTDOWN          */ { 0, 1, 3, 3, 4, 5, 6, 7 },
        /* SHUTDOWN ACK      */ { 0, 1, 4, 4, 4, 4, 6, 7 },
        /* SHUTDOWN COMPLETE */ { 0, 1, 2, 3, 7, 5, 6, 7 },
        /* ABORT             */ { 0, 0, 7, 7, 7, 7, 7, 7 },
        /* INIT              */ { 1, 1, 2, 3, 1, 5, 1, 1 } },
      { /* from the real server */
        /* other             */ { 0, 1, 2, 3, 4, 5, 6, 7 },
        /* COOKIE ACK        */ { 0, 2, 2, 2, 4, 2, 6, 7 },
        /* SHUTDOWN          */ { 0, 1, 5, 3, 4, 5, 6, 7 },
        /* SHUTDOWN ACK      */ { 0, 1, 4, 4, 4, 4, 6, 7 },
        /* SHUTDOWN COMPLETE */ { 0, 1, 2, 3, 7, 5, 6, 7 },
        /* ABORT             */ { 0, 0, 7, 7, 7, 7, 7, 7 },
        /* INIT              */ { 0, 1, 2, 3, 4, 5, 6, 7 } },
      { /* from the client, one way: of the real server's shutdown the client's answer alone is seen */
        /* other             */ { 0, 2, 2, 5, 5, 5, 5, 7 },
        /* COOKIE ACK        */ { 0, 1, 2, 5, 5, 5, 5, 7 },
        /* SHUTDOWN          */ { 0, 1, 5, 5, 5, 5, 5, 7 },
        /* SHUTDOWN ACK      */ { 0, 1, 5, 5, 5, 5, 5, 7 },
        /* SHUTDOWN COMPLETE */ { 0, 1, 2, 7, 7, 7, 7, 7 },
        /* ABORT             */ { 0, 0, 7, 7, 7, 7, 7, 7 },
        /* INIT              */ { 1, 1, 2, 1, 1, 1, 1, 1 } } };
    """
    const uint8_t lbd_sctp_event[16]
    const uint8_t lbd_sctp_next[3][7][8]


# --- chunks ----------------------------------------------------------------------------------------------------------

cdef inline uint32_t sctp_event(const Engine *e, const Pkt *p, uint32_t *reflected) noexcept nogil:
    """Of a packet in several frames by what the first one has: control chunks come before data."""
    cdef const uint8_t *l4 = p.data + p.l4
    cdef uint32_t len = least(p.l3 + p.l3_len, pkt_head(e, p)) - p.l4
    cdef uint32_t _k, n, kind, at = SCTP_HLEN, event = SCTP_OTHER
    cdef uint8_t type
    reflected[0] = 0
    for _k in range(CHUNKS_MAX):
        if at + 4 > len:
            break
        type = l4[at]
        n = lbd_bswap16(lbd_ld16(l4 + at + 2))
        if type == CHUNK_DATA or type == CHUNK_I_DATA or n < 4:       # control chunks come before data
            break
        kind = lbd_sctp_event[type] if type < 16 else <uint32_t> SCTP_OTHER
        if kind > event:
            event = kind
            reflected[0] = 0
            if event == SCTP_ABORT or event == SCTP_SHUTDOWN_COMPLETE:
                reflected[0] = l4[at + 1] & CHUNK_T
        at += (n + 3) & ~<uint32_t> 3
    if event >= SCTP_INIT and len < sizeof(SctpHdr):
        return SCTP_OTHER
    return event


# --- state -----------------------------------------------------------------------------------------------------------

cdef inline bint sctp_init(Engine *e, Pkt *p, uint32_t i, ConnCommon *c, uint32_t event, uint32_t direction, int af) noexcept nogil:
    """INIT of the client, INIT ACK of the real server: each end tells what the other one is to send. False: it proves nothing."""
    cdef const SctpHdr *h = <const SctpHdr *> (p.data + p.l4)
    cdef uint32_t *tags = conn_edges(table_of(e, af), i, af)
    cdef uint32_t way = WAY_ONE if c.flags & CONN_ONE_WAY else 0
    if event == SCTP_INIT_ACK:
        if direction == 0 or c.state != STATE_SYN_RECV or h.vtag != tags[1]:
            return False
        c.flags |= CONN_SYNACK
        tags[0] = h.init_tag
        return True
    if direction == 1 or h.vtag != 0 or lbd_sctp_next[way][<int> SCTP_INIT][c.state] != STATE_SYN_RECV:
        return False
    if c.state != STATE_SYN_RECV:                   # the client starts anew on an association that was over
        c.flags &= <uint8_t> ~CONN_SYNACK
        table_of(e, af).cold[i].created = e.now_ms
        conn_enter(e, i, c, STATE_SYN_RECV, af)
    tags[0] = 0
    tags[1] = h.init_tag
    return True


cdef inline bint tag_is_right(const ConnCommon *c, uint32_t *tags, uint32_t vtag, uint32_t direction,
                              uint32_t reflected) noexcept nogil:
    """The client's may still have to be learnt: one way, where INIT ACK is not seen, and after sctp_cookie_ack."""
    if direction == 0 and tags[0] == 0 and vtag and not reflected and (c.flags & CONN_ONE_WAY or c.state != STATE_SYN_RECV):
        tags[0] = vtag
    return vtag != 0 and vtag == tags[direction ^ reflected]


cdef inline void sctp_cookie_ack(const ConnCommon *c, uint32_t *tags, uint32_t vtag) noexcept nogil:
    """The real server has taken the client's cookie. In an established association that is a restart, with new tags for both ends;
    in a half-open one it was that of another INIT ACK than the last."""
    if c.state == STATE_SYN_RECV or vtag != tags[1]:
        tags[0] = 0
        tags[1] = vtag


cdef inline bint sctp_step(Engine *e, Pkt *p, uint32_t i, ConnCommon *c, uint32_t direction, int af) noexcept nogil:
    """State by the table above. Nothing is refused here: the ends judge packets themselves. What would end or open an association
    without the right tag leaves the state alone: False, then it does not prolong it either."""
    cdef uint32_t vtag = (<const SctpHdr *> (p.data + p.l4)).vtag
    cdef uint32_t *tags = conn_edges(table_of(e, af), i, af)
    cdef uint32_t next, way = WAY_ONE if c.flags & CONN_ONE_WAY else direction
    cdef uint32_t reflected
    cdef uint32_t event = sctp_event(e, p, &reflected)
    if event >= SCTP_INIT:
        return sctp_init(e, p, i, c, event, direction, af)
    if event == SCTP_COOKIE_ACK and direction == 1 and (c.state != STATE_SYN_RECV or vtag == tags[1]):
        sctp_cookie_ack(c, tags, vtag)
    if not tag_is_right(c, tags, vtag, direction, reflected):
        return event == SCTP_OTHER
    next = lbd_sctp_next[way][event][c.state]
    if next != c.state:
        conn_enter(e, i, c, next, af)
    return True


cdef inline bint sctp_quote_is_right(const uint8_t *l4, uint32_t left, const ConnCommon *c, const uint32_t *tags,
                                     uint32_t direction) noexcept nogil:
    """RFC 9260 §10: does the quoted packet, sent in `direction`, carry its association's tag? INIT has none, but names its own."""
    cdef const SctpHdr *h = <const SctpHdr *> l4
    if h.vtag:
        return h.vtag == tags[direction]
    return direction == 0 and c.state == STATE_SYN_RECV and (left < sizeof(SctpHdr)
                                                             or (h.chunk == CHUNK_INIT and h.init_tag == tags[1]))
