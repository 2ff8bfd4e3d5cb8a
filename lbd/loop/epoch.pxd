# Who owns flows, as the host segment says: read when the master says so (CMD_OWNER), so that a worker never sees half of a change.
from lbd.datapath.engine cimport Engine
from lbd.shm.layout cimport HostCtl


cdef inline void owner_read(Engine *e, const HostCtl *h) noexcept nogil:
    cdef int i
    for i in range(2):
        e.rss_known[i] = h.rss_known[i]
        e.rss_udp_ports[i] = h.rss_udp_ports[i]
    e.epoch = h.epoch & 1
    e.owner_prev_valid = h.owner_prev_valid
    e.taken_valid = h.owner_prev_valid and h.taken_epoch == h.epoch
