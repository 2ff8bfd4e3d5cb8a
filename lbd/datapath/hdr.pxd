# Wire formats: packed structs with the RFCs' and the kernel's field names, all in network order (be16, be32).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

ctypedef uint16_t be16
ctypedef uint32_t be32

cdef packed struct EthHdr:
    uint8_t dst[6]
    uint8_t src[6]
    be16 type

cdef packed struct IpHdr:       # RFC 791
    uint8_t ver_ihl
    uint8_t tos
    be16 tot_len
    be16 id
    be16 frag_off
    uint8_t ttl
    uint8_t protocol
    uint16_t check
    be32 saddr
    be32 daddr

cdef packed struct Ip6Hdr:      # RFC 8200
    be32 ver_tc_flow
    be16 payload_len
    uint8_t nexthdr
    uint8_t hop_limit
    uint8_t saddr[16]
    uint8_t daddr[16]

cdef packed struct TcpHdr:      # RFC 9293
    be16 source
    be16 dest
    be32 seq
    be32 ack_seq
    uint8_t doff                # upper 4 bits: header length in 32-bit words
    uint8_t flags
    be16 window
    uint16_t check
    be16 urg_ptr

cdef packed struct UdpHdr:      # RFC 768
    be16 source
    be16 dest
    be16 len
    uint16_t check

cdef packed struct SctpHdr:     # RFC 9260 §3: the common header, and the beginning of the first chunk
    be16 source
    be16 dest
    be32 vtag
    uint32_t check              # CRC32c; as it lies in memory a little-endian number
    uint8_t chunk
    uint8_t chunk_flags
    be16 chunk_len
    be32 init_tag               # INIT and INIT ACK alone

cdef packed struct IcmpHdr:     # RFC 792, RFC 4443: the same head
    uint8_t type
    uint8_t code
    uint16_t check
    be16 rest_hi
    be16 rest_lo                # ICMP type 3 code 4: next-hop MTU; ICMPv6 type 2: low half of the 32-bit MTU

cdef packed struct GreHdr:      # RFC 2784
    be16 flags                  # GRE_CSUM: a checksum and 16 bits of zero follow; lowest 3 bits: version
    be16 proto                  # Ethernet's number for what is inside

cdef packed struct GueHdr:      # draft-ietf-intarea-gue, version 0
    uint8_t ver_len             # version, control bit, length of what follows in words: all 0
    uint8_t proto               # IP protocol of what is inside
    be16 flags

cdef enum:
    ETH_HLEN = 14
    VLAN_HLEN = 4
    ETH_P_IP = 0x0800
    ETH_P_IPV6 = 0x86dd
    ETH_P_8021Q = 0x8100
    ETH_P_8021AD = 0x88a8
    PROTO_ICMP = 1
    PROTO_TCP = 6
    PROTO_IPIP = 4
    PROTO_UDP = 17
    PROTO_IPV6 = 41
    PROTO_GRE = 47
    PROTO_FRAGMENT = 44
    PROTO_ICMPV6 = 58
    PROTO_SCTP = 132
    TCP_FIN = 1
    TCP_SYN = 2
    TCP_RST = 4
    TCP_ACK = 16
    IP_DF = 0x4000
    IP_MF = 0x2000
    IP_OFFMASK = 0x1fff
    GRE_CSUM = 0x8000


cdef inline uint32_t tcp_head(const TcpHdr *t) noexcept nogil:
    """Bytes of the header, options included."""
    return t.doff >> 2 & 0x3c


cdef inline bint is_transport(uint8_t proto) noexcept nogil:
    """One that begins with two ports."""
    return proto == PROTO_TCP or proto == PROTO_UDP or proto == PROTO_SCTP
