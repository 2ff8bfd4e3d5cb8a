# TCP as a balancer sees it: states by IPVS's names, one transition table, timeouts per state.
# What it does not know: windows and options; the ends do. A state changes only on evidence that a blind sender lacks (below).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from lbd.datapath.compiler cimport lbd_bswap32, lbd_inlined_void, lbd_unlikely
from lbd.datapath.hdr cimport PROTO_SCTP, TcpHdr, tcp_head

cdef enum TcpState:
    STATE_NONE = 0
    STATE_SYN_RECV = 1          # half open: the client's SYN went to the real server
    STATE_ESTABLISHED = 2
    STATE_CLOSE_WAIT = 3        # the client has closed
    STATE_LAST_ACK = 4          # client first, then server: the client keeps TIME_WAIT
    STATE_FIN_WAIT = 5          # the real server has closed
    STATE_TIME_WAIT = 6         # server first, then client: the real server keeps TIME_WAIT, so the local port rests
    STATE_CLOSE = 7             # reset, or the last ACK was seen
    STATE_UDP = 8               # not TCP: answered at least once
    STATE_UDP_ONEWAY = 9        # no answer yet; counts as half open
    STATE_ICMP = 10             # echo: one state, whether answered or not
    STATE_COUNT = 11
    # not states, but places of Engine.timeout
    TIMEOUT_SCTP_ESTABLISHED = 14
    TIMEOUT_SCTP_SHUTDOWN = 15

cdef enum TcpEvent:             # what a segment is, reset and SYN before FIN before the rest
    EVENT_ACK = 0
    EVENT_SYN = 1
    EVENT_FIN = 2
    EVENT_RST = 3

cdef enum:
    # How far ahead of the client's edge a segment may move it: more than what is lost at once on the way here, so that the edge
    # stays true; little enough that a blind ACK seldom carries it off. Beyond it the real server's acknowledgements move it.
    SEQ_AHEAD = 1048576

cdef extern from * nogil:
    """
    /* next state [way][event][state]; columns: NONE SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK FIN_WAIT TIME_WAIT CLOSE.
     * Direction 0 is the client's. SYN_RECV leaves for ESTABLISHED only by the exact ACK of the server's SYN+ACK (checked by the
     * caller), so a sender who never saw that can't fill the table with established connections. A SYN on a connection that is
     * over starts it anew with the same real server and port, as it would without a balancer between (RFC 9293, 3.10.7.4).
     * NONE ends the record with this segment: a flood of SYN and RST leaves nothing that could not be evicted.
     * Both ends closing at once lead to TIME_WAIT instead of LAST_ACK (the caller sees it by the acknowledgement).
     * Way 2 is the client's where answers go past lbd (DR, tunnel), as IPVS's input_only table: the client's ACK opens, its FIN
     * leads to FIN_WAIT, where what the real server still sends is heard of by the client's ACKs alone. */
    static const uint8_t lbd_tcp_next[3][4][8] = {
      { /* from the client */
        /* ACK */ { 0, 2, 2, 3, 7, 5, 6, 7 },
        /* SYN */ { 1, 1, 2, 3, 1, 5, 1, 1 },
        /* FIN */ { 0, 1, 3, 3, 4, 6, 6, 7 },
        /* RST */ { 0, 0, 7, 7, 7, 7, 6, 7 } },
      { /* from the real server */
        /* ACK */ { 0, 1, 2, 3, 4, 5, 6, 7 },
        /* SYN */ { 0, 1, 2, 3, 4, 5, 6, 7 },
        /* FIN */ { 0, 1, 5, 4, 4, 5, 6, 7 },
        /* RST */ { 0, 0, 7, 7, 7, 7, 6, 7 } },
      { /* from the client, one way */
        /* ACK */ { 0, 2, 2, 5, 5, 5, 5, 7 },
        /* SYN */ { 1, 1, 2, 1, 1, 1, 1, 1 },
        /* FIN */ { 0, 1, 5, 5, 5, 5, 5, 7 },
        /* RST */ { 0, 0, 7, 7, 7, 7, 7, 7 } } };
    """
    const uint8_t lbd_tcp_next[3][4][8]

cdef enum:
    WAY_ONE = 2                 # lbd_tcp_next's first index: 0, 1 by direction


cdef inline uint32_t tcp_event(uint8_t flags) noexcept nogil:
    if flags & 4:
        return EVENT_RST
    if flags & 2:
        return EVENT_SYN
    if flags & 1:
        return EVENT_FIN
    return EVENT_ACK


cdef inline bint tcp_in_window(uint32_t seq, uint32_t edge) noexcept nogil:
    """Near enough to what this end has sent so far to be its own: a blind sender hits it once in 2^15 tries (RFC 5961)."""
    return seq - edge + 65536 <= 131072


cdef inline void edge_advance(uint32_t *edge, uint32_t to) noexcept nogil:
    if <int32_t> (to - edge[0]) > 0:
        edge[0] = to


cdef inline lbd_inlined_void edges_step(uint32_t *edges, const TcpHdr *t, uint32_t l4_len, uint64_t direction) noexcept nogil:
    """An ACK of an established connection. edges: the client's, the real server's; l4_len: bytes of header and payload. No branch
    by direction: where both mix, every second one would be guessed wrong."""
    cdef uint32_t end = lbd_bswap32(t.seq) + l4_len - tcp_head(t)
    cdef uint32_t server = (0 - <uint32_t> direction) >> 1      # from the real server: how far is ahead; from the client: 0
    if end - edges[direction] <= SEQ_AHEAD | server:
        edges[direction] = end
    # what the client is acknowledged and lbd has not seen of it
    if lbd_unlikely(lbd_bswap32(t.ack_seq) - edges[0] - 1 < server):
        edges[0] = lbd_bswap32(t.ack_seq)


cdef inline uint32_t timeout_of(uint8_t proto, uint8_t state) noexcept nogil:
    """Place in Engine.timeout. SCTP has TCP's states (sctp.pxd), and timeouts of its own for those that differ. Half-open ones of
    both stand in one queue, whose order needs one timeout."""
    if proto != PROTO_SCTP or state < STATE_ESTABLISHED or state >= STATE_TIME_WAIT:
        return state
    return TIMEOUT_SCTP_ESTABLISHED if state == STATE_ESTABLISHED else TIMEOUT_SCTP_SHUTDOWN


cdef inline bint state_half_open(uint32_t s) noexcept nogil:
    return s == STATE_SYN_RECV or s == STATE_UDP_ONEWAY


cdef inline bint state_active(uint32_t s) noexcept nogil:
    """ActiveConn of ipvsadm counts established connections; UDP has none there, as in IPVS."""
    return s == STATE_ESTABLISHED
