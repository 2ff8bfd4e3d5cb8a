# SPDX-License-Identifier: Apache-2.0
"""AF_XDP sockets and the steering program, for the master.

Scope: open, fill and bind sockets; load and attach steer.bpf.c, write its maps. Packets are moved by workers
(io.pxd). The kernel's refusals are XdpErrors with a remedy.

Sockets are opened by the kernel's own calls (socket.pxi): libxdp 1.3.1 can't hand one on. The program is
loaded by libbpf (program.pxi; key.pxi has the keys of its maps). Questions to the kernel are in kernel.py.

Typed in _xsk.pyi.
"""
from libc.errno cimport errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lbd.shm.layout cimport CHUNK, CHUNK_LARGE, FRAME_FILL, FRAME_FREE, XDP_HEADROOM
from lbd.xdp cimport steer
from lbd.xdp.libbpf cimport (
    BPF_ANY, BPF_F_XDP_HAS_FRAGS, BPF_MAP_TYPE_ARRAY, BPF_PROG_TYPE_XDP, BPF_XDP, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE,
    bpf_insn, bpf_link_create, bpf_link_create_opts, bpf_link_detach, bpf_link_info, bpf_link_update, bpf_prog_load,
    bpf_prog_load_opts, bpf_map_info, bpf_map__fd, bpf_map__set_max_entries, bpf_map_delete_elem,
    bpf_map_get_next_key, bpf_map_lookup_elem, bpf_map_update_elem, bpf_obj_get_info_by_fd, bpf_object,
    bpf_object__close,
    bpf_object__find_map_by_name, bpf_object__find_program_by_name, bpf_object__load, bpf_object__open_mem,
    bpf_prog_get_fd_by_id, bpf_prog_info, bpf_program__fd, bpf_program__set_flags, bpf_xdp_query_id, libbpf_num_possible_cpus,
)
from lbd.xdp.libxdp cimport (
    XDP_COPY, XDP_MMAP_OFFSETS, XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY, XDP_RX_RING, XDP_SHARED_UMEM,
    XDP_STATISTICS, XDP_TX_RING, XDP_UMEM_COMPLETION_RING, XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_FILL_RING,
    XDP_UMEM_REG, XDP_USE_NEED_WAKEUP, XDP_ZEROCOPY, sockaddr_xdp, xdp_mmap_offsets, xdp_options,
    xdp_statistics,
)
from lbd.xdp.port cimport (
    MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, SOL_SOCKET, SOL_XDP, TxMetadata, getsockopt, mmap, munmap,
)
from lbd.xdp.steer cimport steer_addr, steer_counts, steer_port6, steer_ports, steer_prefix, steer_settings, steer_tunnel

import errno as E
import importlib.resources
import itertools
import logging
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass

from lbd.xdp.kernel import device_mtu, queue_holder

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <sys/socket.h>
    #include <unistd.h>
    """
    enum: SOCK_CLOEXEC
    enum: SOCK_RAW
    enum: SO_BUSY_POLL
    enum: SO_INCOMING_NAPI_ID
    enum: SO_SNDBUFFORCE
    int socket(int family, int kind, int protocol)
    struct sockaddr
    int bind(int fd, const sockaddr *addr, uint32_t length)
    int setsockopt(int fd, int level, int name, const void *value, uint32_t length)
    int close(int fd)
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)


include "error.pxi"
include "socket.pxi"
include "key.pxi"
include "program.pxi"
