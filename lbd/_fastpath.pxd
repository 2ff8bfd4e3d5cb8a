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

    cdef object result(self, void *pkt)
    cdef uint32_t take(self, Pkt *pkt, uint8_t *block) noexcept
