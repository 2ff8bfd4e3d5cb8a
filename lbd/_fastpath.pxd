# What other extensions (benchmarks, test probes) may take from lbd._fastpath: the offline engine's tables.
from libc.stdint cimport uint8_t, uint32_t
from lbd.datapath.engine cimport Engine as CEngine
from lbd.datapath.pkt cimport Pkt

cdef class Engine:
    cdef CEngine *e
    cdef uint8_t *seg
    cdef uint8_t *host
    cdef void *conn
    cdef void *frags
    cdef readonly dict sizes

    cdef bytes content(self, void *pkt)
    cdef int place(self, Pkt *p, uint32_t i, const uint8_t *data, uint32_t n, uint32_t cut) except -1
    cdef object result(self, void *pkt)
    cdef uint32_t take(self, Pkt *pkt, uint8_t *block) noexcept
