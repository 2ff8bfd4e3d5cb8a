# steer.h for Cython: what the steering program and its loader agree on.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "steer.h" nogil:
    enum:
        STEER_VERSION
        STEER_IFACES
        STEER_QUEUES
        STEER_NEAR
        STEER_PROTOS

    struct steer_settings:
        uint32_t version
        uint16_t lip_lo
        uint16_t lip_hi
        uint32_t ifindex[16]
        uint32_t sources
        uint32_t tunnels
        uint64_t snat
        uint64_t snat_all
        uint64_t snat_proto[3]
        uint64_t snat_iface[16]
        uint64_t mac[16]
        uint16_t any_vips
        uint16_t any_sources
        uint32_t echo
        uint64_t near_vips4[1]
        uint64_t near_lips4[1]

    struct steer_counts:
        uint64_t passed "pass"
        uint64_t redirect
        uint64_t drop

    struct steer_port6:
        uint32_t addr[4]
        uint32_t port

    struct steer_prefix:
        uint32_t len
        uint32_t addr[4]

    struct steer_addr:
        uint32_t addr[4]
        uint32_t af

    struct steer_tunnel:
        uint32_t near_ "near"[4]
        uint32_t far_ "far"[4]
        uint32_t what

    struct steer_ports:
        uint16_t lo
        uint16_t hi
        uint16_t echo
        uint16_t zero

    uint32_t STEER_BIT(uint8_t proto)
    uint32_t STEER_PORT(uint16_t port, uint8_t proto)
    uint64_t STEER_MAC_AT(uint64_t iface, uint64_t mac)
    uint64_t STEER_VIP4(uint32_t addr, uint16_t port, uint8_t proto)
    uint64_t STEER_LIP4(uint32_t addr, uint16_t lo, uint16_t hi)
    uint32_t STEER_TUNNEL(uint8_t af, uint8_t proto, uint16_t port)
    uint32_t STEER_ENDS_HERE
    uint32_t STEER_SLOT(uint64_t key)
