# SPDX-License-Identifier: Apache-2.0
"""Records of the shared segments as Python values: struct in, dict out.

Scope: conversion only. Conventions of all dicts: an address is `bytes` of 4 or 16 in network order, a port an
int in host order, a MAC 6 `bytes`, everything else an int; padding is left out.

Shared words change while they are read. Statistics are copied by relaxed 8-byte loads, so that no counter is
ever seen half written; a configuration record (Svc, Dest, ...) that its worker is just rewriting may show old
and new fields.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from lbd.datapath.fib cimport Route
from lbd.datapath.link cimport adj_tags, tag_word
from lbd.datapath.neigh cimport Adj, Iface
from lbd.datapath.snat cimport snat_slots
from lbd.datapath.svc cimport Dest, Lip, LipStat, MODE_SNAT, Svc, SvcStat
from lbd.datapath.tunnel_end cimport TunnelEnd
from lbd.shm.layout cimport CaptureHead, Evt


cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    static inline void lbd_load_words(void *to, const void *from, size_t bytes)
    {
        size_t i;
        for (i = 0; i < bytes / 8; i++)
            ((uint64_t *)to)[i] = __atomic_load_n((const uint64_t *)from + i, __ATOMIC_RELAXED);
    }
    """
    void lbd_load_words(void *to, const void *src, size_t size) noexcept nogil


cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t port)
    uint16_t ntohs(uint16_t port)


cdef inline bytes addr_bytes(uint8_t af, const uint8_t *addr):
    return (<const char *>addr)[:16 if af == 6 else 4]


cdef inline bytes mac_bytes(const uint8_t *mac):
    return (<const char *>mac)[:6]


cdef inline dict svc_dict(const Svc *s):
    """Of an SNAT rule the address is the digest of its name, and the table all that it has in the arena."""
    rule = s.mode == MODE_SNAT
    return {"addr": addr_bytes(6 if rule else s.af, s.vaddr), "port": ntohs(s.vport), "af": s.af, "proto": s.proto,
            "sched": s.sched, "mode": s.mode, "flags": s.flags, "gen": s.gen, "table_off": s.table_off,
            "table_len": snat_slots(s) if rule else s.table_len, "timeout_established": s.timeout_established,
            "timeout_fin": s.timeout_fin, "timeout_udp": s.timeout_udp, "sorry": s.sorry - 1 if s.sorry else None,
            "persist": s.persist, "persist_plen": s.persist_plen, "target": s.target}


cdef inline tuple svc_stat_tuple(uint32_t number, const SvcStat *at):
    """(number, conns, in_pkts, out_pkts, in_bytes, out_bytes, active, inactive)"""
    cdef SvcStat s
    lbd_load_words(&s, at, sizeof(SvcStat))
    return (number, s.conns, s.in_pkts, s.out_pkts, s.in_bytes, s.out_bytes, s.active, s.inactive)


cdef inline dict dest_dict(const Dest *d):
    return {"addr": addr_bytes(d.af, d.addr), "port": ntohs(d.port), "af": d.af, "flags": d.flags,
            "svc": d.svc, "weight": d.weight, "upper": d.upper, "lower": d.lower, "gen": d.gen, "tunnel": d.tunnel,
            "tunnel_port": ntohs(d.tunnel_port)}


cdef inline dict lip_dict(const Lip *p):
    return {"addr": addr_bytes(p.af, p.addr), "af": p.af, "flags": p.flags, "port_lo": p.port_lo,
            "port_hi": p.port_hi, "gen": p.gen}


cdef inline tuple lip_stat_tuple(uint32_t number, const LipStat *at):
    """(number, conns, exhausted, in_use)"""
    cdef LipStat s
    lbd_load_words(&s, at, sizeof(LipStat))
    return (number, s.conns, s.exhausted, s.in_use)


cdef inline tuple tunnel_tuple(const TunnelEnd *at):
    """(kind, local, remote, packets, octets, refused); remote b"": from anywhere."""
    cdef TunnelEnd k
    lbd_load_words(&k, at, sizeof(TunnelEnd))
    remote = addr_bytes(k.af, k.remote)
    return (k.kind, addr_bytes(k.af, k.local), remote if any(remote) else b"", k.packets, k.octets, k.refused)


cdef inline dict iface_dict(const Iface *i):
    return {"mac": mac_bytes(i.mac), "mtu": i.mtu, "flags": i.flags, "ifindex": i.ifindex, "gen": i.gen,
            "addr4": addr_bytes(4, i.addr4), "addr6": addr_bytes(6, i.addr6), "lower": i.lower,
            "tags": tag_word(i.vlan, i.outer, i.tpid), "policy": i.policy, "members": list(i.member[:i.member_n]), "of": i.of}


cdef inline dict adj_dict(const Adj *a):
    return {"mac": mac_bytes(a.dmac), "smac": mac_bytes(a.smac), "vlan": a.vlan, "outer": a.outer, "tags": adj_tags(a),
            "iface": a.iface, "flags": a.flags, "gen": a.gen, "af": a.af, "addr": addr_bytes(a.af, a.addr),
            "seen": a.seen}


cdef inline dict route_dict(const Route *r):
    return {"prefix": addr_bytes(r.af, r.prefix), "plen": r.plen, "gateway": addr_bytes(r.af, r.gateway),
            "af": r.af, "iface": r.iface, "flags": r.flags, "metric": r.metric, "vlan": r.vlan, "outer": r.outer, "gen": r.gen}


cdef inline dict evt_dict(const Evt *e):
    return {"op": e.op, "a": e.a, "id": e.id, "value": e.value, "af": e.af, "addr": addr_bytes(e.af, e.addr),
            "iface": e.iface}


cdef inline dict capture_dict(const CaptureHead *h):
    return {"ts_ns": h.ts_ns, "len": h.len, "caplen": h.caplen, "point": h.point, "iface": h.iface,
            "verdict": h.verdict, "reason": h.reason, "svc": h.svc, "dest": h.dest, "worker": h.worker,
            "seq": h.seq}
