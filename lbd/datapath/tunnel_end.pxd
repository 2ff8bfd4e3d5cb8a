# A tunnel that ends here: what comes in it for a service is taken out. A record of the worker's segment, written by command_apply;
# the counts by decap, read by the master.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    TUNNEL_MAX = 64             # tunnels that a worker knows; TUNNEL_MAX of lbd/config/tunnel.py

cdef struct TunnelEnd:          # 64 bytes
    uint8_t local[16]           # network order, IPv4 in the first 4 bytes
    uint8_t remote[16]          # all 0: from anywhere
    uint8_t af                  # of both
    uint8_t kind                # TUNNEL_IPIP, TUNNEL_GRE
    uint8_t used
    uint8_t spare
    uint32_t gen
    uint64_t packets            # taken out of it; what is inside for nobody here XDP leaves to the kernel
    uint64_t octets             # of those, without the outer header
    uint64_t refused            # dropped for their tunnel's header, or as no packet was whole inside
