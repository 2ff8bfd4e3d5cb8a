# steer.h for Cython: what the steering program and its loader agree on.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "steer.h" nogil:
    enum:
        STEER_VERSION
        STEER_IFACES
        STEER_QUEUES
        STEER_ACTIONS
        STEER_SETTING_VERSION

    struct steer_iface:
        uint32_t base
        uint32_t flags

    struct steer_addr:
        uint8_t addr[16]
        uint8_t af
        uint8_t zero[3]

    struct steer_vip:
        uint8_t addr[16]
        uint16_t port
        uint8_t proto
        uint8_t af

    struct steer_ports:
        uint16_t lo
        uint16_t hi
