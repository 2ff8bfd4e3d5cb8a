# SPDX-License-Identifier: Apache-2.0
"""The engine in memory: ns per packet of the shipped pipeline, from parse to transmit descriptor, and the floor of its table.

`Bench` opens n TCP connections through the engine itself (SYN, SYN+ACK, ACK), then times bursts of established packets that
visit the flows in random order. Frames are written before the clock starts, as a NIC would; each burst is timed as a whole pass
over a batch larger than L2, and every packet's verdict is counted, a sample's bytes compared by the caller.

The floor is what no balancer with two cache lines per connection can beat: hash known, bucket line, connection line written, in the
same two prefetched stages over the same table.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from lbd.datapath.compiler cimport lbd_bswap16, lbd_bswap32, lbd_ctz, lbd_prefetch, lbd_prefetchw
from lbd.datapath.conn cimport Bucket, conn4, conn6, conn_bucket, conn_common, conn_tag, conn_tuple, lbd_tag_match
from lbd.datapath.csum cimport csum_fold, csum_partial, csum_pseudo
from lbd.datapath.engine cimport Engine as CEngine
from lbd.datapath.flow cimport Tuple, tuple_hash
from lbd.datapath.hdr cimport ETH_P_IP, ETH_P_IPV6, Ip6Hdr, IpHdr, TcpHdr
from lbd.datapath.lifetime cimport table_of
from lbd.datapath.pipeline cimport engine_burst
from lbd.datapath.pkt cimport Pkt
from lbd.datapath.reason cimport VERDICT_FORWARD
from lbd.loop.state cimport lbd_monotonic
from lbd._fastpath cimport Engine

cdef enum:
    FRAME = 2048

cdef struct Desc:               # as struct xdp_desc
    uint64_t addr
    uint32_t len
    uint32_t options


cdef class Bench:
    """engine: a configured lbd._fastpath.Engine with one service of this family at `vip`:80 and `clients` addresses to come
    from."""
    cdef Engine engine
    cdef CEngine *e
    cdef uint8_t *frames
    cdef uint32_t batch
    cdef Desc *desc
    cdef Pkt *pkts
    cdef uint32_t *order
    cdef int af
    cdef uint8_t vip[16]
    cdef uint64_t now
    cdef uint64_t rng
    cdef readonly uint64_t forwarded

    def __cinit__(self, engine: Engine, af: int, vip: bytes, batch: int = 8192):
        self.engine = engine
        self.e = engine.e
        self.af = af
        memset(self.vip, 0, 16)
        memcpy(self.vip, <const uint8_t *> vip, len(vip))
        self.batch = batch
        self.frames = <uint8_t *> malloc(<size_t> batch * FRAME)
        self.desc = <Desc *> calloc(batch, sizeof(Desc))
        self.pkts = <Pkt *> calloc(64, sizeof(Pkt))
        self.order = <uint32_t *> calloc(batch, sizeof(uint32_t))
        memset(self.frames, 0, <size_t> batch * FRAME)
        self.now = 1000000000
        self.rng = 88172645463325252

    def __dealloc__(self):
        free(self.frames)
        free(self.desc)
        free(self.pkts)
        free(self.order)

    cdef uint32_t random(self) noexcept nogil:
        self.rng ^= self.rng << 13
        self.rng ^= self.rng >> 7
        self.rng ^= self.rng << 17
        return <uint32_t> (self.rng >> 32)

    cdef uint8_t *frame(self, uint32_t i) noexcept nogil:
        return self.frames + <size_t> i * FRAME + 256

    cdef void write(self, uint32_t i, const Tuple *t, uint8_t flags, uint32_t seq, uint32_t ack) noexcept nogil:
        """A 60-byte (IPv6: 74-byte) frame with this tuple."""
        cdef uint8_t *d = self.frame(i)
        cdef uint32_t l3 = 14, l4, l4_len = 20
        cdef IpHdr *ip
        cdef Ip6Hdr *ip6
        cdef TcpHdr *tcp
        memset(d, 0, 80)
        memcpy(d, <const uint8_t *> b"\x02\x00\x00\x00\x01\x00\x02\x00\x00\x00\x00\xc1", 12)
        if self.af == 4:
            (<uint16_t *> (d + 12))[0] = lbd_bswap16(ETH_P_IP)
            ip = <IpHdr *> (d + l3)
            ip.ver_ihl = 0x45
            ip.tot_len = lbd_bswap16(40)
            ip.ttl = 64
            ip.protocol = 6
            ip.saddr = (<const uint32_t *> t.saddr)[0]
            ip.daddr = (<const uint32_t *> t.daddr)[0]
            ip.check = <uint16_t> ~csum_fold(csum_partial(<uint8_t *> ip, 20, 0))
            l4 = 34
        else:
            (<uint16_t *> (d + 12))[0] = lbd_bswap16(ETH_P_IPV6)
            ip6 = <Ip6Hdr *> (d + l3)
            ip6.ver_tc_flow = 0x60
            ip6.payload_len = lbd_bswap16(20)
            ip6.nexthdr = 6
            ip6.hop_limit = 64
            memcpy(ip6.saddr, t.saddr, 16)
            memcpy(ip6.daddr, t.daddr, 16)
            l4 = 54
        tcp = <TcpHdr *> (d + l4)
        tcp.source = t.sport
        tcp.dest = t.dport
        tcp.seq = lbd_bswap32(seq)
        tcp.ack_seq = lbd_bswap32(ack)
        tcp.doff = 0x50
        tcp.flags = flags
        tcp.window = 0xffff
        if self.af == 4:
            tcp.check = <uint16_t> ~csum_fold(csum_partial(d + l4, l4_len, csum_pseudo(d + 26, d + 30, 4, 6, l4_len)))
        else:
            tcp.check = <uint16_t> ~csum_fold(csum_partial(d + l4, l4_len, csum_pseudo(d + 22, d + 38, 16, 6, l4_len)))

    cdef uint64_t pass_over(self, uint32_t n, uint32_t burst, uint8_t ifin) noexcept nogil:
        """Frames 0 .. n-1 through the engine in bursts; returns ns. What a worker does around engine_burst is done here too: the
        descriptor's fields in, the transmit descriptor out."""
        cdef uint32_t i, k, m
        cdef uint64_t t0 = lbd_monotonic()
        cdef uint64_t ok = 0
        cdef Pkt *p
        i = 0
        while i < n:
            m = burst if n - i > burst else n - i
            for k in range(m):
                p = self.pkts + k
                p.data = self.frame(i + k)
                p.frame = i + k
                p.len = 60 if self.af == 4 else 74
                p.room = FRAME - 256
                p.ifin = ifin
                p.flags = 0
                p.hops = 0
                p.seg_count = 1
            engine_burst(self.e, self.pkts, m, self.now)
            for k in range(m):
                p = self.pkts + k
                if p.verdict == VERDICT_FORWARD:
                    self.desc[i + k].addr = <uint64_t> (p.data - self.frames)
                    self.desc[i + k].len = p.len
                    self.desc[i + k].options = 0
                    ok += 1
            i += m
        self.forwarded += ok
        return lbd_monotonic() - t0

    cdef void client(self, uint32_t flow, Tuple *t) noexcept nogil:
        """Flow number → a client's address and port."""
        memset(t, 0, sizeof(Tuple))
        if self.af == 4:
            (<uint32_t *> t.saddr)[0] = lbd_bswap32(0x0a000001 + flow // 50000)
        else:
            t.saddr[0] = 0x20
            (<uint32_t *> (t.saddr + 12))[0] = lbd_bswap32(1 + flow // 50000)
        memcpy(t.daddr, self.vip, 16)
        t.sport = lbd_bswap16(<uint16_t> (1024 + flow % 50000))
        t.dport = lbd_bswap16(80)
        t.proto = 6

    def open(self, n: int) -> float:
        """Opens connections of flows 0 .. n-1 and takes them through the handshake; returns ns per SYN."""
        cdef uint32_t first, i, m
        cdef uint64_t spent = 0
        cdef Tuple t
        cdef uint32_t total = n
        with nogil:
            first = 0
            while first < total:
                m = self.batch if total - first > self.batch else total - first
                for i in range(m):
                    self.client(first + i, &t)
                    self.write(i, &t, 2, 1000, 0)
                spent += self.pass_over(m, 64, 0)
                first += m
            self.handshake()
        return spent / <double> total

    cdef void handshake(self) noexcept nogil:
        """SYN+ACK and ACK for every half-open connection, from the table's own records."""
        cdef uint32_t i, k = 0, cap = table_of(self.e, self.af).capacity
        cdef int step
        cdef Tuple t
        for step in range(2):
            k = 0
            for i in range(cap):
                if conn_common(table_of(self.e, self.af), i, self.af).live != 1:
                    continue
                conn_tuple(table_of(self.e, self.af), i, 1 - step, &t, self.af)
                if step == 0:
                    self.write(k, &t, 0x12, 5000, 1001)
                else:
                    self.write(k, &t, 0x10, 1001, 5001)
                k += 1
                if k == self.batch:
                    self.pass_over(k, 64, 1 - step)
                    k = 0
            self.pass_over(k, 64, 1 - step)

    def established(self, flows: int, passes: int, burst: int = 64, back: bool = False) -> list[float]:
        """ns per packet of each pass of `batch` ACKs over `flows` connections in random order; back: from the real servers."""
        cdef uint32_t i, r, n = flows, b = burst
        cdef Tuple t
        cdef uint32_t direction = 1 if back else 0
        out = []
        for _ in range(passes):
            with nogil:
                for i in range(self.batch):
                    r = <uint32_t> ((<uint64_t> self.random() * n) >> 32)
                    conn_tuple(table_of(self.e, self.af), r, direction, &t, self.af)
                    self.write(i, &t, 0x10, 5001 if direction else 1001, 1001 if direction else 5001)
            out.append(self.pass_over(self.batch, b, direction) / <double> self.batch)
        return out

    def fresh(self, first: int, n: int) -> float:
        """ns per SYN of n new flows."""
        cdef uint32_t i
        cdef Tuple t
        for i in range(<uint32_t> n):
            self.client(<uint32_t> first + i, &t)
            self.write(i, &t, 2, 1000, 0)
        return self.pass_over(n, 64, 0) / <double> n

    def sample(self, i: int) -> bytes:
        """The i-th frame of the last pass, as it leaves."""
        return (self.frames + self.desc[i].addr)[:self.desc[i].len]

    def floor(self, flows: int, passes: int, burst: int = 64) -> list[float]:
        """ns per lookup of the table alone: hashes known, two prefetched stages, the connection's line written."""
        cdef uint64_t *hashes = <uint64_t *> malloc(self.batch * sizeof(uint64_t))
        cdef uint32_t *ref = <uint32_t *> malloc(64 * sizeof(uint32_t))
        cdef uint32_t i, k, m, r, b = burst, n = flows
        cdef uint64_t t0, t1
        cdef Tuple t
        cdef Bucket *bucket
        out = []
        for _ in range(passes):
            with nogil:
                for i in range(self.batch):
                    r = <uint32_t> ((<uint64_t> self.random() * n) >> 32)
                    conn_tuple(table_of(self.e, self.af), r, 0, &t, self.af)
                    hashes[i] = tuple_hash(&t, self.e.hash_key, self.af)
                t0 = lbd_monotonic()
                i = 0
                while i < self.batch:
                    for k in range(b):
                        lbd_prefetch(conn_bucket(table_of(self.e, self.af), hashes[i + k]))
                    for k in range(b):
                        bucket = conn_bucket(table_of(self.e, self.af), hashes[i + k])
                        m = lbd_tag_match(bucket.tag, conn_tag(hashes[i + k]))
                        ref[k] = bucket.ref[lbd_ctz(m)] if m else 0
                        if self.af == 4:
                            lbd_prefetchw(conn4(&self.e.t4, ref[k] >> 1))
                        else:
                            lbd_prefetchw(conn6(&self.e.t6, ref[k] >> 1))
                    for k in range(b):
                        conn_common(table_of(self.e, self.af), ref[k] >> 1, self.af).last_seen = self.e.now_ms
                    i += b
                t1 = lbd_monotonic()
            out.append((t1 - t0) / <double> self.batch)
        free(hashes)
        free(ref)
        return out
