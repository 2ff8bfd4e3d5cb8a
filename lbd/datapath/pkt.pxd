# One burst entry: a packet on its way through the stages. Filled by the adapter (AF_XDP, replay, fuzzer), worked on in
# place by the engine, read back by the adapter. Lives for one burst; no field outlives it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    BURST_MAX = 64          # packets a burst holds at most
    FRAME_SLACK = 64        # bytes that an adapter guarantees writable before `data` (XDP headroom is 256)
    IFACE_MAX = 16          # interfaces lbd works on at most; iface numbers are 0..15
    WORKER_MAX = 16         # a frame's ledger byte has 4 bits for the worker that holds it

cdef enum PktFlag:
    PKT_HANDED = 1          # came from another worker by a ring
    PKT_PARTIAL = 2         # transport checksum is a pseudo-header sum only (local TCP stack over veth)
    PKT_NEW = 4             # opened a connection
    PKT_REPLY = 8           # from a real server
    PKT_COMPLETE = 16       # it leaves so: the adapter has the kernel complete it (transmit metadata)
    PKT_ICMP_ERROR = 32     # ICMP error that was mapped to a connection
    PKT_TUNNEL = 64         # came in a tunnel that ends here: what is before l3 is not its own
    PKT_ROUTED = 128        # a fragment that has passed the fragments' owner (frag_flow.pxd)

cdef enum PktFrag:          # Pkt.frag
    FRAG_NONE = 0           # a whole packet, or not looked at
    FRAG_FIRST = 1
    FRAG_LATER = 2          # shows no port

cdef struct Pkt:            # 64 bytes
    uint8_t *data           # first byte of the Ethernet header; the engine may move it (VLAN push and pop)
    uint64_t frame          # the adapter's handle (UMEM address); carried through, not looked at
    uint32_t len            # bytes from data, those in further frames included
    uint32_t beyond         # first fragment: bytes of its datagram's payload in the others; 0 = not known (frag_flow.pxd)
    uint32_t frag_id        # fragment: identification, network order (IPv4: in the lower half)
    uint32_t ref            # candidate: connection number << 1 | direction, or REF_NONE
    uint16_t outer          # outer tag of two (802.1ad), 0 = none
    uint16_t inner          # ICMP error: offset of the quoted IP header; IPv6 fragment: of its fragment header, from l3
    uint16_t l3             # offset of the IP header
    uint16_t l4             # offset of the transport header
    uint16_t l3_len         # total IP length, bytes
    uint16_t vlan           # tag control word next to the IP header, host order, 0 = none
    uint16_t svc            # service number for reports, SVC_NONE
    uint16_t dest           # real server number for reports, DEST_NONE
    uint16_t frag_size      # fragment: bytes of the datagram's payload in it
    uint8_t af              # 4 or 6, 0 = not IP
    uint8_t proto           # IP protocol
    uint8_t owner           # worker it belongs to (HANDOVER)
    uint8_t tcp_flags       # SCTP: type of the first chunk
    uint8_t tpid            # protocols of the tags (Tpid of neigh.pxd); of no meaning without a tag
    uint8_t spare
    # NB: from here on one word (dispatch.pxd), of which fast.pxd writes the first half at once
    uint8_t ifout           # iface number it leaves by (FORWARD, CONSUME)
    uint8_t verdict
    uint8_t reason
    uint8_t frag            # PktFrag
    uint8_t flags
    uint8_t hops            # hand-overs so far
    uint8_t chain           # its further frames: number + 1 in Engine.chain, 0: it lies in one (chain.pxd)
    uint8_t ifin            # iface number it came in by
