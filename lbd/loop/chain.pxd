# Packets in several frames, between the rings: gathered from a port's descriptors or another worker's entries, sent, handed over,
# freed. All frames of one go the same way at the same time; lbd/datapath/chain.pxd has what the engine sees of them.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.chain cimport CHAIN_HEAD, least
from lbd.datapath.compiler cimport lbd_unlikely
from lbd.datapath.engine cimport CHAIN_MAX, Chain
from lbd.datapath.pkt cimport BURST_MAX, Pkt
from lbd.datapath.reason cimport REASON_MULTI_BUFFER, VERDICT_DROP
from lbd.loop.frames cimport frame_free, frame_of
from lbd.loop.state cimport Loop
from lbd.xdp.io cimport port_tx_put, port_tx_reserve
from lbd.xdp.port cimport Port

cdef enum:
    XDP_PKT_CONTD = 1           # descriptor option: the packet goes on in the next one
    CHAIN_SPARE = 64            # Engine.chain's place for a packet that is none of the burst's


cdef inline Chain *chain_of(Loop *l, const Pkt *p) noexcept nogil:
    return l.e.chain + (p.chain - 1)


cdef inline void chain_begin(Loop *l, Pkt *p, uint32_t place) noexcept nogil:
    """p, a first frame, goes on. place: its number in the burst, or CHAIN_SPARE."""
    cdef Chain *c = l.e.chain + place
    c.end = p.data + p.len
    c.n = 0
    p.chain = place + 1


cdef inline bint chain_add(Loop *l, Pkt *p, uint64_t addr, uint32_t length) noexcept nogil:
    """False: more than a packet may have."""
    cdef Chain *c = chain_of(l, p)
    if c.n == CHAIN_MAX - 1 or length == 0:
        return False
    c.data[c.n] = l.area + addr
    c.len[c.n] = length
    c.n += 1
    p.len += length
    return True


cdef inline bint chain_is_sound(Loop *l, const Pkt *p) noexcept nogil:
    """Its first frame is filled, as far as the engine counts on it."""
    return <uint32_t> (chain_of(l, p).end - p.data) >= CHAIN_HEAD


cdef inline void chain_free(Loop *l, const Pkt *p, uint32_t first) noexcept nogil:
    """The further frames from number `first` on."""
    cdef Chain *c = chain_of(l, p)
    cdef uint32_t k
    for k in range(first, c.n):
        frame_free(l, frame_of(l, c.data[k]))
    c.n = least(c.n, first)


cdef inline void packet_free(Loop *l, const Pkt *p) noexcept nogil:
    if lbd_unlikely(p.chain):
        chain_free(l, p, 0)
    frame_free(l, frame_of(l, p.data))


cdef inline void chain_refuse(Loop *l, const Pkt *p) noexcept nogil:
    """Before the engine has seen it."""
    l.e.count.drops[<int> REASON_MULTI_BUFFER] += 1
    l.e.count.verdicts[<int> VERDICT_DROP] += 1
    packet_free(l, p)


cdef inline uint32_t chain_fit(Loop *l, const Pkt *p, uint32_t *head) noexcept nogil:
    """Cuts the frames to what the packet measures now. How many further ones it needs; head: bytes in the first."""
    cdef Chain *c = chain_of(l, p)
    cdef uint32_t k = 0, left
    head[0] = least(p.len, <uint32_t> (c.end - p.data))
    left = p.len - head[0]
    while left and k < c.n:
        c.len[k] = least(c.len[k], left)
        left -= c.len[k]
        k += 1
    return k


cdef inline bint chain_send(Loop *l, Port *port, const Pkt *p, uint32_t options) noexcept nogil:
    """All of it into the transmit ring, or nothing: False. What it does not need of its frames is free. options: of its first
    descriptor."""
    cdef Chain *c = chain_of(l, p)
    cdef uint32_t k, head, more = chain_fit(l, p, &head)
    if port_tx_reserve(port, more + 1) <= more:
        return False
    if not port_tx_put(port, <uint64_t> (p.data - l.area), head, (XDP_PKT_CONTD if more else 0) | options):
        return False
    for k in range(more):
        port_tx_put(port, <uint64_t> (c.data[k] - l.area), c.len[k], XDP_PKT_CONTD if k + 1 < more else 0)
    chain_free(l, p, more)
    return True


cdef inline uint32_t chains_whole(const Pkt *pkts, uint32_t n) noexcept nogil:
    """Of n descriptors, as packets whose `chain` says that they go on: so many make whole packets. All, if that can't be."""
    cdef uint32_t whole = n
    while whole and pkts[whole - 1].chain:
        whole -= 1
    return n if whole == 0 and n == BURST_MAX else whole


cdef inline uint32_t chains_gather(Loop *l, uint32_t n) noexcept nogil:
    """The first n of l.pkt, a descriptor each (chains_whole): those of one packet become one. Returns how many are left."""
    cdef uint32_t i = 0, k = 0
    cdef uint8_t on
    cdef bint sound
    cdef Pkt *p
    while i < n:
        p = l.pkt + k
        p[0] = l.pkt[i]
        on = p.chain
        p.chain = 0
        i += 1
        if on:
            chain_begin(l, p, k)
            sound = chain_is_sound(l, p)
            while on and i < n:
                if not chain_add(l, p, <uint64_t> (l.pkt[i].data - l.area), l.pkt[i].len):
                    frame_free(l, frame_of(l, l.pkt[i].data))
                    sound = False
                on = l.pkt[i].chain
                i += 1
            if on or not sound:
                chain_refuse(l, p)
                continue
        k += 1
    return k
