# SPDX-License-Identifier: Apache-2.0
"""Inline functions of lbd/datapath/*.pxd as Python functions, for tests alone (built with LBD_TEST_EXT=1).

Each wrapper calls the very function that the packet engine inlines, compiled with the same flags and directives. Addresses
are bytes in network order, ports ints in host order, checksums ints as they read on the wire (big-endian).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from lbd.datapath.compiler cimport lbd_bswap16
from lbd.datapath.conn cimport (BUCKET_SLOTS, CONN_NIL, REF_NONE, Bucket, ConnTable, conn4, conn6, conn_alloc, conn_clear,
                                conn_common, conn_free, conn_index, conn_lookup, conn_unindex)
from lbd.datapath.connfile cimport conn_family_bytes, conn_map
from lbd.datapath.crc32c cimport crc32c as c_crc32c, crc32c_moved as c_crc32c_moved, lbd_clmul, lbd_clmul_steps
from lbd.datapath.csum cimport csum_apply, csum_diff, csum_fold, csum_partial, csum_pseudo, csum_reverse
from lbd.datapath.engine cimport TokenBucket
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.icmp_err cimport token_take
from lbd.datapath.nat cimport delta_set, rewrite as c_rewrite
from lbd.datapath.parse cimport exthdr_walk
from lbd.datapath.engine cimport Engine
from lbd.datapath.neigh cimport Adj, Iface, IFACE_COMPLETES
from lbd.datapath.pkt cimport PKT_COMPLETE, PKT_PARTIAL, Pkt
from lbd.datapath.reason cimport *
from lbd.datapath.rss cimport toeplitz as c_toeplitz
from lbd.datapath.sched cimport stable_hash as c_stable_hash
from lbd.datapath.hdr cimport TcpHdr
from lbd.datapath.tcp cimport edges_step, lbd_tcp_next, tcp_event as c_tcp_event, tcp_in_window
from lbd.loop.bond cimport bond_hash as c_bond_hash
from lbd.loop.frames cimport FREE_WINDOW, frame_free, frames_free, frames_take
from lbd.loop.state cimport Loop
from lbd.datapath.timer cimport Timer, timer_slot as c_timer_slot

REASON_TOTAL = <int> REASON_COUNT
REASON_VALUES = {
    "none": <int> REASON_NONE, "malformed": <int> REASON_MALFORMED, "bad_checksum": <int> REASON_BAD_CHECKSUM,
    "not_for_us": <int> REASON_NOT_FOR_US, "no_service": <int> REASON_NO_SERVICE, "no_backend": <int> REASON_NO_BACKEND,
    "no_route": <int> REASON_NO_ROUTE, "no_neighbor": <int> REASON_NO_NEIGHBOR, "link_down": <int> REASON_LINK_DOWN,
    "conn_table_full": <int> REASON_CONN_TABLE_FULL, "local_port_exhausted": <int> REASON_LOCAL_PORT_EXHAUSTED,
    "no_state": <int> REASON_NO_STATE, "invalid_state": <int> REASON_INVALID_STATE,
    "ttl_expired": <int> REASON_TTL_EXPIRED, "mtu_exceeded": <int> REASON_MTU_EXCEEDED,
    "frag_tiny": <int> REASON_FRAG_TINY, "exthdr_unsupported": <int> REASON_EXTHDR_UNSUPPORTED,
    "icmp_unmatched": <int> REASON_ICMP_UNMATCHED, "icmp_unsupported": <int> REASON_ICMP_UNSUPPORTED,
    "proto_unsupported": <int> REASON_PROTO_UNSUPPORTED, "martian": <int> REASON_MARTIAN,
    "tx_ring_full": <int> REASON_TX_RING_FULL, "no_tx_port": <int> REASON_NO_TX_PORT,
    "ring_full": <int> REASON_RING_FULL, "hop_limit": <int> REASON_HOP_LIMIT,
    "worker_restart": <int> REASON_WORKER_RESTART, "kernel_limited": <int> REASON_KERNEL_LIMITED,
    "too_big_frame": <int> REASON_TOO_BIG_FRAME, "multi_buffer": <int> REASON_MULTI_BUFFER,
    "tuple_in_use": <int> REASON_TUPLE_IN_USE, "server_gone": <int> REASON_SERVER_GONE,
    "untranslatable": <int> REASON_UNTRANSLATABLE, "icmp_short": <int> REASON_ICMP_SHORT,
    "tunnel_malformed": <int> REASON_TUNNEL_MALFORMED, "tunnel_congested": <int> REASON_TUNNEL_CONGESTED,
    "frag_orphan": <int> REASON_FRAG_ORPHAN,
    "frag_timeout": <int> REASON_FRAG_TIMEOUT, "frag_table_full": <int> REASON_FRAG_TABLE_FULL,
    "frag_unsupported": <int> REASON_FRAG_UNSUPPORTED, "echo_id_zero": <int> REASON_ECHO_ID_ZERO,
}


# --- checksums -------------------------------------------------------------------------------------------------------

def checksum(data: bytes, start: int = 0) -> int:
    """RFC 1071, of all bytes; start: a running sum, such as pseudo_sum()."""
    cdef const uint8_t *p = data
    return lbd_bswap16(<uint16_t> ~csum_fold(csum_partial(p, len(data), start)))


def pseudo_sum(source: bytes, destination: bytes, proto: int, length: int) -> int:
    cdef const uint8_t *s = source
    cdef const uint8_t *d = destination
    return csum_pseudo(s, d, len(source), proto, length)


def delta(old: bytes, new: bytes) -> int:
    """~old + new over all words, folded; in memory order."""
    cdef const uint8_t *a = old
    cdef const uint8_t *b = new
    return csum_fold(csum_diff(a, b, len(old), 0))


def apply(check: int, delta: int) -> int:
    return lbd_bswap16(csum_apply(lbd_bswap16(check), delta))


def reverse(delta: int) -> int:
    return csum_reverse(delta)


def crc32c(data: bytes) -> int:
    cdef const uint8_t *p = data
    return c_crc32c(p, len(data))


def crc32c_moved(crc: int, old: bytes, new: bytes, n: int) -> int:
    """Of n bytes whose first four were `old` and are `new`."""
    return c_crc32c_moved(crc, int.from_bytes(old, "little") ^ int.from_bytes(new, "little"), n)


def products(a: int, b: int) -> tuple:
    """Carry-less, as this machine computes it, and step by step."""
    return lbd_clmul(a, b), lbd_clmul_steps(a, b)


# --- hashes ----------------------------------------------------------------------------------------------------------

def toeplitz(key: bytes, data: bytes) -> int:
    cdef const uint8_t *k = key
    cdef const uint8_t *d = data
    if len(key) < len(data) + 4:
        raise ValueError("the key is too short")
    return c_toeplitz(k, d, len(data))


cdef Tuple tuple_of(bytes source, bytes destination, int sport, int dport, int proto):
    cdef Tuple t
    memset(&t, 0, sizeof(Tuple))
    memcpy(t.saddr, <const uint8_t *> source, len(source))
    memcpy(t.daddr, <const uint8_t *> destination, len(destination))
    t.sport = lbd_bswap16(sport)
    t.dport = lbd_bswap16(dport)
    t.proto = proto
    t.af = 4 if len(source) == 4 else 6
    return t


def flow_hash(key: bytes, source: bytes, destination: bytes, sport: int, dport: int, proto: int) -> int:
    cdef uint64_t words[4]
    cdef Tuple t = tuple_of(source, destination, sport, dport, proto)
    memcpy(words, <const uint8_t *> key, 32)
    return tuple_hash(&t, words, t.af)


def bond_hash(frame: bytes, policy: int) -> int:
    return c_bond_hash(<const uint8_t *> frame, len(frame), policy)


def stable_hash(source: bytes, sport: int, with_port: bool, again: int = 0) -> int:
    cdef Tuple t = tuple_of(source, source, sport, 0, 6)
    return c_stable_hash(&t, with_port, again)


# --- the connection table --------------------------------------------------------------------------------------------

cdef class Table:
    """A connection table over private memory of exactly its size."""
    cdef ConnTable t
    cdef uint8_t *memory
    cdef uint64_t key[4]
    cdef int af

    def __cinit__(self, af: int, capacity: int, key: bytes, overflow: int = -1):
        """overflow: only so many overflow buckets, to see what happens when they are used up."""
        cdef uint32_t n
        self.af = af
        memcpy(self.key, <const uint8_t *> key, 32)
        self.memory = <uint8_t *> calloc(1, conn_family_bytes(capacity, 64 if af == 4 else 128))
        if self.memory == NULL:
            raise MemoryError()
        conn_map(&self.t, self.memory, capacity, af, self.key)
        if overflow >= 0:
            self.t.overflow = overflow
        conn_clear(&self.t)
        for n in range(self.t.capacity):
            self.t.free[n] = self.t.capacity - 1 - n
            self.t.free_n += 1

    def __dealloc__(self):
        free(self.memory)

    def insert(self, source: bytes, destination: bytes, sport: int, dport: int, proto: int,
               back_source: bytes, back_destination: bytes, back_sport: int, back_dport: int) -> int | None:
        """The record's number; None: no record, or no room in the index."""
        cdef uint32_t i = conn_alloc(&self.t)
        if i == CONN_NIL:
            return None
        ends = (source, destination, back_destination, back_source)      # client, virtual, local, real server
        ports = [lbd_bswap16(p) for p in (sport, dport, back_dport, back_sport)]
        if self.af == 4:
            c = conn4(&self.t, i)
            memset(c, 0, 64)
            c.cport, c.vport, c.lport, c.dport = ports
            memcpy(&c.caddr, <const uint8_t *> ends[0], 4)
            memcpy(&c.vaddr, <const uint8_t *> ends[1], 4)
            memcpy(&c.laddr, <const uint8_t *> ends[2], 4)
            memcpy(&c.daddr, <const uint8_t *> ends[3], 4)
        else:
            d = conn6(&self.t, i)
            memset(d, 0, 128)
            d.cport, d.vport, d.lport, d.dport = ports
            memcpy(d.caddr, <const uint8_t *> ends[0], 16)
            memcpy(d.vaddr, <const uint8_t *> ends[1], 16)
            memcpy(d.laddr, <const uint8_t *> ends[2], 16)
            memcpy(d.daddr, <const uint8_t *> ends[3], 16)
        m = conn_common(&self.t, i, self.af)
        m.proto = proto
        m.live = 1
        if not conn_index(&self.t, i, self.af):
            conn_free(&self.t, i, self.af)
            return None
        return i

    def lookup(self, source: bytes, destination: bytes, sport: int, dport: int, proto: int) -> tuple | None:
        """(record, direction), or None."""
        cdef Tuple t = tuple_of(source, destination, sport, dport, proto)
        cdef uint32_t ref = conn_lookup(&self.t, &t, tuple_hash(&t, self.key, self.af), self.af)
        return None if ref == REF_NONE else (ref >> 1, ref & 1)

    def delete(self, i: int) -> None:
        conn_unindex(&self.t, i, self.af)
        conn_free(&self.t, i, self.af)

    def used(self) -> int:
        return self.t.used

    def capacity(self) -> int:
        return self.t.capacity

    def index(self) -> dict:
        """entries; overflow buckets in chains and free; the longest chain."""
        cdef uint32_t b, n, length, entries = 0, chained = 0, spare = 0, longest = 0
        cdef Bucket *at
        for b in range(self.t.buckets):
            at = self.t.index + b
            length = 1
            while True:
                for n in range(BUCKET_SLOTS):
                    entries += at.tag[n] != 0
                if at.next == 0:
                    break
                at = self.t.index + at.next
                length += 1
                chained += 1
            if length > longest:
                longest = length
        n = self.t.overflow_free
        while n:
            spare += 1
            n = self.t.index[n].next
        return {"entries": entries, "chained": chained, "free": spare, "longest": longest, "overflow": self.t.overflow}


# --- rewriting -------------------------------------------------------------------------------------------------------

cdef bytes run_rewrite(Table table, bytes frame, uint32_t record, uint32_t direction, uint32_t l4, uint8_t proto, bint partial,
                       bint completes):
    """frame begins with its IP header. completes: the kernel would complete a partial checksum."""
    cdef Pkt p
    cdef Iface iface
    cdef Adj adj
    cdef Engine *e = <Engine *> calloc(1, sizeof(Engine))
    memset(&iface, 0, sizeof(iface))
    memset(&adj, 0, sizeof(adj))
    iface.flags = IFACE_COMPLETES if completes else 0
    adj.reach = 1500
    e.iface, e.adj = &iface, &adj
    cdef uint8_t *copy = <uint8_t *> calloc(1, len(frame))
    memcpy(copy, <const uint8_t *> frame, len(frame))
    memset(&p, 0, sizeof(Pkt))
    p.data = copy
    p.len = p.l3_len = len(frame)
    p.l4 = l4
    p.af = table.af
    p.proto = proto
    p.flags = PKT_PARTIAL if partial else 0
    if table.af == 4:
        c_rewrite(e, &p, &table.t, record, direction, 4)
    else:
        c_rewrite(e, &p, &table.t, record, direction, 6)
    assert bool(p.flags & PKT_COMPLETE) == (partial and completes)
    out = <bytes> copy[:len(frame)]
    free(copy)
    free(e)
    return out


def rewrite(Table table not None, record: int, direction: int, frame: bytes, l4: int, proto: int, partial: bool = False,
            completes: bool = False) -> bytes:
    """FULLNAT's rewrite of a packet that begins with its IP header, by this record's addresses and ports."""
    delta_set(&table.t, record, table.af)
    return run_rewrite(table, frame, record, direction, l4, proto, partial, completes)


def walk_headers(packet: bytes, off: int, proto: int) -> tuple:
    """(result, offset, protocol) of exthdr_walk over an exact-size copy."""
    cdef uint8_t *copy = <uint8_t *> calloc(1, len(packet) or 1)
    cdef uint32_t at = off
    cdef uint8_t next = proto
    memcpy(copy, <const uint8_t *> packet, len(packet))
    result = exthdr_walk(copy, &at, len(packet), &next)
    free(copy)
    return result, at, next


# --- TCP, timers, tokens ---------------------------------------------------------------------------------------------

def tcp_next(direction: int, event: int, state: int) -> int:
    return lbd_tcp_next[<uint32_t> direction % 3][<uint32_t> event & 3][<uint32_t> state & 7]


def tcp_event(flags: int) -> int:
    return c_tcp_event(flags)


def in_window(seq: int, edge: int) -> bool:
    return tcp_in_window(seq, edge)


def edges_after(client: int, server: int, segment: bytes, direction: int) -> tuple[int, int]:
    """What was seen of both ends, in their sequence numbers, after an ACK of an established connection. segment: TCP."""
    cdef uint32_t edges[2]
    edges[0], edges[1] = client, server
    edges_step(edges, <const TcpHdr *> <const uint8_t *> segment, len(segment), direction)
    return edges[0], edges[1]


def timer_slot(tick: int, now_ms: int, left_ms: int) -> int:
    """Wheel slot of a timer set at now_ms for left_ms, the wheel standing at tick."""
    cdef Timer *w = <Timer *> calloc(1, sizeof(Timer))
    w.tick = tick
    slot = c_timer_slot(w, now_ms, left_ms)
    free(w)
    return slot


cdef class Bucketful:
    """A token bucket."""
    cdef TokenBucket b

    def __cinit__(self, rate: int):
        memset(&self.b, 0, sizeof(TokenBucket))
        self.b.rate = rate

    def take(self, now_ns: int) -> bool:
        return token_take(&self.b, now_ns)


# --- frames ----------------------------------------------------------------------------------------------------------

FREE_WINDOW_FRAMES = <int> FREE_WINDOW


cdef class Frames:
    """A worker's partition of the frame area, all free, and what has become of it."""
    cdef Loop *loop
    cdef bytearray ledger_bytes

    def __cinit__(self, frames: int, worker: int, workers: int):
        self.ledger_bytes = bytearray(frames * workers)
        self.loop = <Loop *> calloc(1, sizeof(Loop))
        self.loop.ledger = <uint8_t *> self.ledger_bytes
        self.loop.frames, self.loop.frames_total, self.loop.free_n = frames, frames * workers, frames
        self.loop.worker, self.loop.workers = worker, workers

    def __dealloc__(self):
        free(self.loop)

    def take(self, n: int) -> list:
        cdef uint32_t found[256]
        return [found[i] for i in range(frames_take(self.loop, found, n))]

    def give(self, numbers: list):
        """Back, in one run; one alone as packets that are dropped."""
        cdef uint32_t frames[256]
        if len(numbers) == 1:
            frame_free(self.loop, numbers[0])
            return
        for i, frame in enumerate(numbers):
            frames[i] = frame
        frames_free(self.loop, frames, len(numbers))

    @property
    def free(self) -> int:
        return self.loop.free_n

    @property
    def ledger(self) -> bytes:
        return bytes(self.ledger_bytes)
