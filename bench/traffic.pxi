# Frames of numbered flows: who talks to whom, written whole with right checksums. Nothing of the engine is used here, so that what
# it is measured with does not change with it; and nothing of its tables is read, or the records would be cached before a pass.
#
# A flow's client and service follow from its number alone. What the engine chose for it (real server, local address and port) is
# noted once, when it was opened, in 8 bytes of the benchmark's own.

cdef enum Kind:                 # whose addresses
    CLIENT = 0
    SERVICE = 1
    SERVER = 2
    LOCAL = 3

cdef enum:
    CLIENT_PORT = 1024          # a client's first port
    CLIENT_PORTS = 50000
    SERVICE_PORT = 80
    FRAME_MAX = 88
    TCP = 6
    UDP = 17
    SCTP = 132
    ISN_CLIENT = 1000
    ISN_SERVER = 5000
    SYN = 2
    RST = 4
    ACK = 16

cdef struct Ends:               # of a packet; network order
    uint8_t saddr[16]
    uint8_t daddr[16]
    uint16_t sport
    uint16_t dport

cdef struct Back:               # where a flow's answers come from and go to
    uint32_t server
    uint16_t local
    uint16_t lport              # network order

cdef struct Frame:              # as it will lie on the wire
    uint8_t data[88]
    uint32_t len
    uint32_t spare


cdef uint32_t base_of(int kind) noexcept nogil:
    """IPv4 address, and last word of an IPv6 one, of number 0."""
    if kind == CLIENT:
        return 0x0a000001       # 10.0.0.1
    if kind == SERVICE:
        return 0xc6120001       # 198.18.0.1
    if kind == SERVER:
        return 0x0a400001       # 10.64.0.1
    return 0x0a200001           # 10.32.0.1


cdef void address_put(uint8_t *out, int kind, uint32_t number, int af) noexcept nogil:
    """IPv6: 2001:db8:0:0:kind:: and the IPv4 address."""
    memset(out, 0, 16)
    if af == 6:
        out[0], out[1], out[2], out[3] = 0x20, 0x01, 0x0d, 0xb8
        out[9] = 1 + kind
        out += 12
    (<uint32_t *> out)[0] = lbd_bswap32(base_of(kind) + number)


cdef uint32_t address_number(const uint8_t *addr, int kind, int af) noexcept nogil:
    return lbd_bswap32((<const uint32_t *> (addr + (0 if af == 4 else 12)))[0]) - base_of(kind)


def address(kind: int, number: int, af: int) -> bytes:
    """The number-th client's, service's, real server's or local address (CLIENT, SERVICE, SERVER, LOCAL: 0 to 3)."""
    cdef uint8_t out[16]
    address_put(out, kind, number, af)
    return out[:4 if af == 4 else 16]


cdef uint32_t sum16(const uint8_t *d, uint32_t n, uint32_t start) noexcept nogil:
    """Ones' complement sum (RFC 1071) of n bytes, n even; folded."""
    cdef uint32_t i, s = start
    for i in range(0, n, 2):
        s += (<const uint16_t *> (d + i))[0]
    s = (s & 0xffff) + (s >> 16)
    return (s & 0xffff) + (s >> 16)


cdef uint32_t head_write(uint8_t *d, const Ends *t, int af, uint8_t proto, uint32_t l4_len) noexcept nogil:
    """Ethernet and IP headers; returns where the transport header begins."""
    cdef uint8_t *ip = d + 14
    memcpy(d, <const uint8_t *> b"\x02\x00\x00\x00\x01\x00\x02\x00\x00\x00\x00\xc1", 12)
    if af == 4:
        d[12], d[13] = 0x08, 0x00
        ip[0] = 0x45
        (<uint16_t *> (ip + 2))[0] = lbd_bswap16(<uint16_t> (20 + l4_len))
        ip[8], ip[9] = 64, proto
        memcpy(ip + 12, t.saddr, 4)
        memcpy(ip + 16, t.daddr, 4)
        (<uint16_t *> (ip + 10))[0] = <uint16_t> ~sum16(ip, 20, 0)
        return 34
    d[12], d[13] = 0x86, 0xdd
    ip[0] = 0x60
    (<uint16_t *> (ip + 4))[0] = lbd_bswap16(<uint16_t> l4_len)
    ip[6], ip[7] = proto, 64
    memcpy(ip + 8, t.saddr, 16)
    memcpy(ip + 24, t.daddr, 16)
    return 54


cdef uint32_t crc32c(const uint8_t *d, uint32_t n) noexcept nogil:
    """SCTP's checksum (RFC 9260, appendix A), bit by bit."""
    cdef uint32_t i, k, crc = 0xffffffff
    for i in range(n):
        crc ^= d[i]
        for k in range(8):
            crc = crc >> 1 ^ (<uint32_t> 0x82f63b78 & (0 - (crc & 1)))
    return ~crc


cdef void tcp_write(uint8_t *h, uint8_t flags, uint32_t seq, uint32_t ack) noexcept nogil:
    (<uint32_t *> (h + 4))[0] = lbd_bswap32(seq)
    (<uint32_t *> (h + 8))[0] = lbd_bswap32(ack)
    h[12], h[13], h[14], h[15] = 0x50, flags, 0xff, 0xff


cdef void sctp_write(uint8_t *h, uint8_t flags, uint32_t own, uint32_t other) noexcept nogil:
    """INIT and INIT ACK for TCP's SYN and SYN+ACK, SACK for the rest; own, other: the ends' tags, and their first numbers."""
    (<uint32_t *> (h + 4))[0] = lbd_bswap32(0 if flags == SYN else other)
    if flags & SYN:
        h[12], h[15] = 1 if flags == SYN else 2, 20
        (<uint32_t *> (h + 16))[0] = lbd_bswap32(own)
        (<uint32_t *> (h + 20))[0] = lbd_bswap32(0x10000)
        h[25] = h[27] = 1                           # a stream each way
        (<uint32_t *> (h + 28))[0] = lbd_bswap32(own)
    else:
        h[12], h[15] = 3, 16
        (<uint32_t *> (h + 16))[0] = lbd_bswap32(other)
        (<uint32_t *> (h + 20))[0] = lbd_bswap32(0x10000)
    (<uint32_t *> (h + 8))[0] = crc32c(h, 32 if flags & SYN else 28)      # the first byte on the wire is the lowest: as it is here


cdef uint32_t l4_size(int af, uint8_t proto, uint8_t flags) noexcept nogil:
    if proto == SCTP:
        return 32 if flags & SYN else 28
    return 26 if proto == UDP and af == 4 else 20


cdef void frame_write(Frame *f, const Ends *t, int af, uint8_t proto, uint8_t flags, uint32_t seq, uint32_t ack) noexcept nogil:
    """IPv4 60 bytes, IPv6 74: a TCP segment without data, or a UDP datagram that fills the same. SCTP: 62 and 82, INIT 4 more."""
    cdef uint32_t l4_len = l4_size(af, proto, flags)
    cdef uint32_t at, pseudo
    cdef uint8_t *h
    memset(f, 0, sizeof(Frame))
    at = head_write(f.data, t, af, proto, l4_len)
    h = f.data + at
    (<uint16_t *> h)[0] = t.sport
    (<uint16_t *> (h + 2))[0] = t.dport
    f.len = at + l4_len if at + l4_len > 60 else 60
    if proto == SCTP:
        sctp_write(h, flags, seq, ack)
        return
    pseudo = sum16(t.saddr, 4 if af == 4 else 16, lbd_bswap16(<uint16_t> l4_len) + lbd_bswap16(proto))
    pseudo = sum16(t.daddr, 4 if af == 4 else 16, pseudo)
    if proto == TCP:
        tcp_write(h, flags, seq, ack)
        (<uint16_t *> (h + 16))[0] = <uint16_t> ~sum16(h, l4_len, pseudo)
    else:
        (<uint16_t *> (h + 4))[0] = lbd_bswap16(<uint16_t> l4_len)
        memset(h + 8, 0x5a, l4_len - 8)
        (<uint16_t *> (h + 6))[0] = <uint16_t> ~sum16(h, l4_len, pseudo)    # never 0 with these bytes: tested
