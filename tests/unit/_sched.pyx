# SPDX-License-Identifier: Apache-2.0
"""The worker's schedule() of lbd/datapath/sched.pxd over one service in private memory, for tests and bench/schedulers.py.

The very function that the packet engine inlines, with loads set instead of made by connections. Addresses are bytes in network
order, ports ints in host order.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from lbd.datapath.compiler cimport lbd_bswap16
from lbd.datapath.engine cimport Engine
from lbd.datapath.flow cimport Tuple
from lbd.datapath.sched cimport schedule
from lbd.datapath.svc cimport DEST_NONE, DEST_UP, DEST_USED, Dest, Svc, SvcStat


cdef class Service:
    """Real servers 0 to n - 1, and a table that names them."""
    cdef Engine *e
    cdef Svc *svc
    cdef uint32_t slots

    def __cinit__(self, uint32_t servers, uint32_t slots=1 << 18, uint32_t workers=1, uint32_t number=0):
        cdef uint32_t w
        self.e = <Engine *>calloc(1, sizeof(Engine))
        if self.e == NULL:
            raise MemoryError()
        self.e.svc = <Svc *>calloc(number + 1, sizeof(Svc))
        self.e.dest = <Dest *>calloc(servers + 1, sizeof(Dest))
        self.e.dest_stat = <SvcStat *>calloc(servers + 1, sizeof(SvcStat))
        self.e.arena = <uint32_t *>calloc(slots, 4)
        self.e.max_dest = servers
        self.e.workers = workers
        for w in range(1, workers):
            self.e.peer_dest_stat[w] = <SvcStat *>calloc(servers + 1, sizeof(SvcStat))
        self.svc = self.e.svc + number
        self.slots = slots

    def __dealloc__(self):
        cdef uint32_t w
        if self.e == NULL:
            return
        for w in range(1, self.e.workers):
            free(self.e.peer_dest_stat[w])
        free(self.e.svc)
        free(self.e.dest)
        free(self.e.dest_stat)
        free(self.e.arena)
        free(self.e)

    def server(self, uint32_t i, uint32_t weight, bint up=True):
        if i >= self.e.max_dest:
            raise IndexError(i)
        self.e.dest[i].flags = DEST_USED | (DEST_UP if up else 0)
        self.e.dest[i].weight = weight

    def load(self, uint32_t i, uint32_t active, uint32_t inactive=0, uint32_t worker=0):
        """Connections to a real server as this worker (0) or another counts them."""
        cdef SvcStat *stat
        if i >= self.e.max_dest or worker >= self.e.workers:
            raise IndexError(i)
        stat = self.e.peer_dest_stat[worker] if worker else self.e.dest_stat
        stat[i].active = active
        stat[i].inactive = inactive

    def table(self, int kind, int flags, table, uint32_t off=0, int proto=6):
        """As CMD_SVC_SET."""
        cdef uint32_t k, d
        if off + len(table) > self.slots:
            raise ValueError("the table is too long")
        for k, d in enumerate(table):
            self.e.arena[off + k] = d
        self.svc.sched = kind
        self.svc.flags = flags
        self.svc.table_off = off
        self.svc.table_len = len(table)
        self.svc.proto = proto

    def pick(self, bytes client, int port=40000, bytes vip=b"\xc0\x00\x02\x0a", uint32_t now_ms=1000):
        """The real server for a connection from there, or None."""
        cdef Tuple t
        cdef uint32_t d
        if len(client) not in (4, 16) or len(vip) not in (4, 16):
            raise ValueError("an address has 4 or 16 bytes")
        memset(&t, 0, sizeof(Tuple))
        memcpy(t.saddr, <const uint8_t *>client, len(client))
        memcpy(t.daddr, <const uint8_t *>vip, len(vip))
        t.sport = lbd_bswap16(port)
        t.dport = lbd_bswap16(80)
        t.proto = self.svc.proto
        t.af = 4 if len(client) == 4 else 6
        self.e.now_ms = now_ms
        d = schedule(self.e, self.svc, &t)
        return None if d == DEST_NONE else d

    def homes(self):
        """Slots that lblc and lblcr remember."""
        return [k for k in range(64) if self.svc.homes >> <uint32_t>k & 1]
