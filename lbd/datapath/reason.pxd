# Verdicts and reasons. `reason.py` holds the names and help texts, in this order; a test compares both.

cdef enum Verdict:
    VERDICT_DROP = 0        # counted by reason
    VERDICT_FORWARD = 1     # rewritten in place; leaves by Pkt.ifout
    VERDICT_KERNEL = 2      # back to the host's stack, through the TAP
    VERDICT_CONSUME = 3     # answered by lbd itself (ICMP error in place; leaves by Pkt.ifout), counted by reason
    VERDICT_HANDOVER = 4    # belongs to another worker (Pkt.owner); never seen by a user
    VERDICT_HOLD = 5        # a fragment, copied by the engine until the first one of its datagram has come (frag.pxd)

cdef enum Reason:
    REASON_NONE = 0
    REASON_MALFORMED
    REASON_BAD_CHECKSUM
    REASON_NOT_FOR_US
    REASON_NO_SERVICE
    REASON_NO_BACKEND
    REASON_NO_ROUTE
    REASON_NO_NEIGHBOR
    REASON_LINK_DOWN
    REASON_CONN_TABLE_FULL
    REASON_LOCAL_PORT_EXHAUSTED
    REASON_NO_STATE
    REASON_INVALID_STATE
    REASON_TTL_EXPIRED
    REASON_MTU_EXCEEDED
    REASON_FRAG_TINY
    REASON_EXTHDR_UNSUPPORTED
    REASON_ICMP_UNMATCHED
    REASON_ICMP_UNSUPPORTED
    REASON_PROTO_UNSUPPORTED
    REASON_MARTIAN
    REASON_TX_RING_FULL
    REASON_NO_TX_PORT
    REASON_RING_FULL
    REASON_HOP_LIMIT
    REASON_WORKER_RESTART
    REASON_KERNEL_LIMITED
    REASON_TOO_BIG_FRAME
    REASON_MULTI_BUFFER
    REASON_TUPLE_IN_USE
    REASON_SERVER_GONE
    REASON_UNTRANSLATABLE
    REASON_ICMP_SHORT
    REASON_TUNNEL_MALFORMED
    REASON_TUNNEL_CONGESTED
    REASON_FRAG_ORPHAN
    REASON_FRAG_TIMEOUT
    REASON_FRAG_TABLE_FULL
    REASON_FRAG_UNSUPPORTED
    REASON_ECHO_ID_ZERO
    REASON_COUNT            # how many; never a reason
