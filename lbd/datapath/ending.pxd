# The end of a drained real server's connections (DEST_END): a walk over the records, a few at a time. With DEST_RESET both ends of
# a TCP connection are told by a RST, and the record stays closed for a while, so that whoever missed it is told again (orphan.pxd).
#
# The real server's flags are the order, not a command that was: a successor of a worker begins the walk anew.
from libc.stdint cimport uint32_t
from lbd.datapath.engine cimport Engine
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.hdr cimport PROTO_TCP
from lbd.datapath.conn cimport CONN_LIVE, ConnCommon, conn_common
from lbd.datapath.tcp cimport STATE_CLOSE, STATE_LAST_ACK, STATE_TIME_WAIT
from lbd.datapath.svc cimport DEST_END, DEST_NONE, DEST_RESET
from lbd.datapath.lifetime cimport conn_end, conn_enter, table_of
from lbd.datapath.reset cimport reset_make
from lbd.datapath.count cimport EXPIRE_ADMIN


cdef inline bint is_ending(Engine *e, const ConnCommon *c) noexcept nogil:
    if c.live != CONN_LIVE or c.dest == DEST_NONE or not e.dest[c.dest].flags & DEST_END:
        return False
    return c.state != STATE_TIME_WAIT and c.state != STATE_LAST_ACK and c.state != STATE_CLOSE


cdef inline bint ending_step(Engine *e, Pkt *p, uint32_t i, int af) noexcept nogil:
    """One record. True: p is a packet to be sent, and this record is not done yet."""
    cdef ConnCommon *c = conn_common(table_of(e, af), i, af)
    if is_ending(e, c):
        if c.proto == PROTO_TCP and e.dest[c.dest].flags & DEST_RESET:
            while e.ending_side < 2:
                e.ending_side += 1
                if reset_make(e, p, i, c, e.ending_side - 1, af):
                    return True
            c.last_seen = e.now_ms
            c.fib_gen = e.fib_gen[0] - 1
            conn_enter(e, i, c, STATE_CLOSE, af)
        else:
            conn_end(e, i, EXPIRE_ADMIN, af)
    e.ending_left -= 1
    e.ending_side = 0
    return False


cdef inline bint ending_next(Engine *e, Pkt *p, uint32_t *looks) noexcept nogil:
    """Goes on with the walk, for looks[0] records at most. True: p (data: room for a frame) is a packet to be sent by p.ifout."""
    cdef bint found
    if e.ending_left > e.t4.capacity + e.t6.capacity:
        e.ending_left = e.t4.capacity + e.t6.capacity
    while looks[0] and e.ending_left:
        looks[0] -= 1
        if e.ending_left > e.t4.capacity:
            found = ending_step(e, p, e.ending_left - e.t4.capacity - 1, 6)
        else:
            found = ending_step(e, p, e.ending_left - 1, 4)
        if found:
            return True
    return False
