# The mirrored routing table: longest prefix match by one hash table and a bitmap of the prefix lengths in use.
# Looked up when a connection is made or when the table changed, never for an established packet.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FIB_MAX = 16384         # routes a worker holds
    FIB_HASH = 32768

cdef enum RouteFlag:
    ROUTE_USED = 1
    ROUTE_ONLINK = 2        # no gateway: the destination itself is the next hop

cdef struct Route:          # 56 bytes
    uint8_t prefix[16]
    uint8_t gateway[16]
    uint8_t af
    uint8_t plen
    uint8_t iface
    uint8_t flags
    uint32_t metric
    uint32_t gen
    uint32_t next           # hash chain: number + 1
    uint16_t vlan           # tag of the way out, host order, 0 = none
    uint16_t outer          # tag around it, 0 = none
    uint8_t tpid            # Tpid of neigh.pxd
    uint8_t spare[3]
