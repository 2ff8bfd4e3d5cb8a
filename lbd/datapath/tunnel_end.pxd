# A tunnel that ends here: what comes in it for a service is taken out. A record of the worker's segment, written by command_apply.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    TUNNEL_MAX = 64             # tunnels that a worker knows; TUNNEL_MAX of lbd/config/tunnel.py

cdef struct TunnelEnd:          # 48 bytes
    uint8_t local[16]           # network order, IPv4 in the first 4 bytes
    uint8_t remote[16]          # all 0: from anywhere
    uint8_t af                  # of both
    uint8_t kind                # TUNNEL_IPIP, TUNNEL_GRE
    uint8_t used
    uint8_t spare
    uint32_t gen
    uint8_t reserved[8]
