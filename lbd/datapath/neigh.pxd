# Interfaces, adjacencies (a next hop's link-layer address on an interface) and their lookup.
# An adjacency's number never changes while it lives, so that connections hold the 2-byte number; a new MAC is written in place.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from lbd.datapath.compiler cimport lbd_ld64

cdef enum:
    ADJ_NONE = 0            # an entry that is never used: nothing is reached by it, nothing comes from it
    ADJ_MAX = 8192          # adjacencies a worker knows
    ADJ_HASH = 16384        # buckets of their hash
    LINK_MAX = 272          # entries of Engine.iface: IFACE_MAX interfaces, then VLAN devices on them
    MEMBER_MAX = 8          # ports that a bond sends by

cdef enum Tpid:             # protocols of a frame's tags; 0: 0x8100, of two 0x88a8 around 0x8100
    TPID_AD = 1             # the tag next to the IP header is 802.1ad's (0x88a8)
    TPID_OUTER_Q = 2        # the outer one of two is 802.1Q's (0x8100)

cdef enum BondPolicy:       # which of its ports a frame leaves by; the kernel's xmit_hash_policy
    BOND_NONE = 0           # no bond
    BOND_TURN = 1           # one after the other (balance-rr)
    BOND_L2 = 2             # MACs
    BOND_L23 = 3            # MACs and IP addresses
    BOND_L34 = 4            # IP addresses and ports

cdef enum IfaceFlag:
    IFACE_USED = 1
    IFACE_UP = 2            # administratively up and with carrier
    IFACE_PARTIAL = 4       # veth, tap: local TCP stacks send partial checksums
    IFACE_ZERO_COPY = 8
    IFACE_COMPLETES = 16    # what leaves by it may have them: the kernel completes them, or its receiver needs none

cdef struct Iface:          # 64 bytes; number = position; written by command_apply
    # Numbers below IFACE_MAX: what packets come and go by. A bond has no socket: its slaves' numbers have (`of`), packets that
    # they receive are the bond's, and it sends by `member`. From IFACE_MAX on: VLAN devices, for what is theirs alone.
    uint8_t mac[6]
    uint16_t mtu            # layer 3 bytes
    uint16_t flags          # IfaceFlag
    uint16_t spare
    uint32_t ifindex
    uint32_t gen
    uint8_t addr4[4]        # source of ICMP errors; 0 = none
    uint8_t addr6[16]       # the same, global scope
    uint8_t lower           # VLAN device: the interface that it is on
    uint8_t tpid            # and its tags, as in Adj
    uint16_t vlan
    uint16_t outer
    uint8_t policy          # bond: BondPolicy
    uint8_t member_n        # and the ports that it sends by now
    uint8_t member[8]
    uint8_t of              # port of another interface (a bond's slave): its number + 1; 0: its own
    uint8_t reserved[7]

cdef enum AdjFlag:
    ADJ_USED = 1
    ADJ_VALID = 2           # MAC is known
    ADJ_LEARNED = 4         # from a client's packets: keyed by (iface, MAC, vlan), not by address

cdef struct Adj:            # 64 bytes
    uint8_t dmac[6]         # dmac and smac lie as on the wire: 12 bytes in one copy
    uint8_t smac[6]
    uint16_t vlan           # host order tag control word, 0 = untagged
    uint8_t iface
    uint8_t flags           # AdjFlag
    uint32_t next           # hash chain: number + 1
    uint32_t gen
    uint8_t af
    uint8_t tpid            # Tpid
    uint16_t outer          # tag around `vlan`, 0 = none
    uint8_t addr[16]        # next hop (unless ADJ_LEARNED)
    uint32_t seen           # learned: last use, ms
    uint32_t reach          # L3 bytes that leave by it at once: its link's MTU if that is up, the MAC known, no tag; 0: look closer
    uint16_t link           # number of the VLAN device that its tags are, or `iface`: MTU, state and own MAC of the way
    uint16_t spare
    uint64_t sender         # what an untagged packet from it shows (adj_sender), 0: tagged. Both: adj_refresh


cdef inline uint64_t adj_sender(const uint8_t *mac, uint32_t iface) noexcept nogil:
    """A MAC (8 bytes are read) and the interface it is behind as one word, never 0."""
    return lbd_ld64(mac) << 16 | iface | 0x8000


cdef inline void adj_refresh(Adj *a, const Iface *ifaces) noexcept nogil:
    """After every change of its MAC, tag or validity, or of its interface: what the fast lane reads."""
    cdef const Iface *f = ifaces + a.iface
    a.reach = f.mtu if a.flags & ADJ_VALID and f.flags & IFACE_UP and a.vlan == 0 and a.outer == 0 else 0
    a.sender = adj_sender(a.dmac, a.iface) if a.flags & ADJ_USED and a.vlan == 0 and a.outer == 0 else 0
