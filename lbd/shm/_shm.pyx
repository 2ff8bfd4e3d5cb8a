# SPDX-License-Identifier: Apache-2.0
"""The Python ends of what lbd's processes share: segments, the frame area, ring records, command builders.

Scope: create, adopt and check segments; read what workers publish; push commands; pop events. It knows
nothing of processes (lbd/master/supervise.py), and nothing of packets. The layout is layout.pxd, its
arithmetic attach.pxd, the conversion of records record.pxd, the command builders command.pxi.

Ownership: an object owns one mapping and one descriptor, from `create` or `adopt` to `close`; nothing that it
returns points into the mapping. Every reader takes one copy of a shared word and uses the copy.

A ring's end is attached at its first use, so that any number of readers of statistics may adopt a segment;
but only one process at a time may push commands or pop records (the master; its successor starts when it is
known to be gone).

Typed in _shm.pyi.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from lbd.datapath cimport command as c_cmd
from lbd.datapath cimport fib as c_fib
from lbd.datapath cimport neigh as c_neigh
from lbd.datapath cimport pkt as c_pkt
from lbd.datapath cimport reason as c_reason
from lbd.datapath cimport quic as c_quic
from lbd.datapath cimport svc as c_svc
from lbd.datapath cimport template as c_tmpl
from lbd.datapath cimport tunnel_end as c_tun
from lbd.shm cimport layout as c_lay
from lbd.shm cimport record as c_rec
from lbd.datapath.count cimport Counters
from lbd.shm.attach cimport (
    ATTACH_HASH, ATTACH_MAGIC, ATTACH_OFFSETS, ATTACH_OK, ATTACH_RING, ATTACH_SHORT, ATTACH_SIZES,
    ATTACH_VERSION, RING_CAPTURE, RING_CMD, RING_EVT, RING_NAMES, RING_SLOW, area_bytes, area_ledger_off,
    host_check, host_init, host_layout_compute, layout_compute, layout_hash, ring_shape, round_up,
    segment_check, segment_init, sizes_fault,
)
from lbd.shm.huge cimport HUGE_PAGE, huge_collapse, huge_map
from lbd.shm.layout cimport CaptureHead, Ctl, Evt, HostCtl, QueueStat, Sizes
from lbd.shm.record cimport htons, lbd_load_words
from lbd.shm.ring cimport (
    LBD_RING_CAPACITY, LBD_RING_OK, lbd_ring, lbd_ring_attach, lbd_ring_bytes, lbd_ring_end,
    lbd_ring_garbage, lbd_ring_init, lbd_ring_must_wake, lbd_ring_peek, lbd_ring_pop, lbd_ring_push,
    lbd_ring_idle, lbd_ring_ready, lbd_ring_refuse, lbd_ring_release, lbd_ring_room, lbd_ring_slot, lbd_ring_space,
    lbd_ring_wake_word,
)

import fcntl
import os
from array import array

from lbd.datapath.reason import NAMES


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef extern from *:
    """
    #define lbd_load32(p) __atomic_load_n((const uint32_t *)(p), __ATOMIC_ACQUIRE)
    #define lbd_load64(p) __atomic_load_n((const uint64_t *)(p), __ATOMIC_ACQUIRE)
    #define lbd_store32(p, v) __atomic_store_n((uint32_t *)(p), (v), __ATOMIC_RELEASE)
    #define lbd_store64(p, v) __atomic_store_n((uint64_t *)(p), (v), __ATOMIC_RELEASE)
    """
    uint32_t lbd_load32(const void *p) noexcept nogil
    uint64_t lbd_load64(const void *p) noexcept nogil
    void lbd_store32(void *p, uint32_t value) noexcept nogil
    void lbd_store64(void *p, uint64_t value) noexcept nogil


class SegmentError(Exception):
    """A segment that can't be created, or must not be used; the text says why and what to do."""


class PeerGarbage(Exception):
    """The worker wrote what can't be: end it, `reset_ring` when it is gone, start it again."""


include "constant.pxi"
include "command.pxi"
include "mapping.pxi"
include "worker_segment.pxi"
include "host_segment.pxi"
include "worker_end.pxi"
