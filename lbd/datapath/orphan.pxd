# Connections whose real server is gone: removed or down (expire_nodest), of weight 0 (expire_quiescent), or drained until its
# deadline (ending.pxd). Without one of these they go on, whatever became of the real server.
#
# They are seen on the general way, and only there: whatever takes a real server away makes a new generation of routes, so that no
# connection is settled (fast.pxd), and one that is an orphan never becomes so again.
from libc.stdint cimport uint32_t
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.flow cimport Tuple
from lbd.datapath.hdr cimport PROTO_TCP
from lbd.datapath.conn cimport CONN_IMPORTED, CONN_LIVE, ConnCommon, conn_common, conn_tuple
from lbd.datapath.tcp cimport STATE_LAST_ACK, STATE_TIME_WAIT
from lbd.datapath.svc cimport (DEST_END, DEST_NONE, DEST_RESET, DEST_UP, DEST_USED, SVC_EXPIRE_NODEST, SVC_EXPIRE_QUIESCENT,
                               SVC_NONE)
from lbd.datapath.lifetime cimport conn_end, table_of
from lbd.datapath.forward cimport drop, forward_known, rebind
from lbd.datapath.open cimport opens
from lbd.datapath.reset cimport reset_answer
from lbd.datapath.count cimport EXPIRE_ADMIN
from lbd.datapath.reason cimport REASON_SERVER_GONE


cdef inline bint orphaned(Engine *e, uint32_t ref, int af) noexcept nogil:
    cdef ConnCommon *c = conn_common(table_of(e, af), ref >> 1, af)
    cdef uint32_t expires, flags
    cdef Tuple k
    if (c.fib_gen == e.fib_gen[0] and c.dest != DEST_NONE) or c.live != CONN_LIVE:
        return False
    if c.flags & CONN_IMPORTED:
        conn_tuple(table_of(e, af), ref >> 1, 0, &k, af)
        rebind(e, ref >> 1, c, &k, af)
    # both ends have closed: it does nothing but hold its port
    if c.svc == SVC_NONE or c.state == STATE_TIME_WAIT or c.state == STATE_LAST_ACK:
        return False
    expires = e.svc[c.svc].flags
    if c.dest == DEST_NONE:
        return (expires & SVC_EXPIRE_NODEST) != 0
    flags = e.dest[c.dest].flags
    if flags & DEST_END:
        return True
    if (flags & (DEST_USED | DEST_UP)) != (DEST_USED | DEST_UP):
        return (expires & SVC_EXPIRE_NODEST) != 0
    return e.dest[c.dest].weight == 0 and (expires & SVC_EXPIRE_QUIESCENT) != 0


cdef inline bint orphan_settle(Engine *e, Pkt *p, uint32_t ref, int af) noexcept nogil:
    """An orphan's packet. False: its connection has ended, and the packet opens another one. What a real server still sends is
    forwarded, until the client's next packet."""
    cdef uint32_t direction = ref & 1
    cdef ConnCommon *c = conn_common(table_of(e, af), ref >> 1, af)
    cdef uint32_t flags = e.dest[c.dest].flags if c.dest != DEST_NONE else 0
    cdef bint again = direction == 0 and opens(p)
    p.svc = c.svc
    p.dest = c.dest
    if direction == 1 and not flags & DEST_END:
        forward_known(e, p, ref, af)
        c.fib_gen = e.fib_gen[0] - 1
        return True
    if p.proto == PROTO_TCP and flags & DEST_RESET and not again:
        reset_answer(e, p, REASON_SERVER_GONE)          # the record stays: its other end has to be told, too
        return True
    conn_end(e, ref >> 1, EXPIRE_ADMIN, af)
    if again:
        return False
    if p.proto == PROTO_TCP and not flags & DEST_END:
        reset_answer(e, p, REASON_SERVER_GONE)
    else:
        drop(p, REASON_SERVER_GONE)
    return True
