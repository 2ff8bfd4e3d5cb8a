# What the master tells a worker: one record per command, absolute values only, so that a command may be repeated harmlessly.
# `command_apply` (commandapply.pxd) carries it out; the Python builders are in lbd/shm/_shm.pyx.
# State: a worker applies commands in ring order and then stores ctl.gen_applied = gen of the last one.
# Prohibited: a worker never invents numbers (svc, dest, lip, iface): the master assigns them; after a restart it reads them back.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum Op:
    CMD_NOP = 0
    CMD_SVC_SET = 1         # id = svc number
    CMD_SVC_DEL = 2
    CMD_DEST_SET = 3        # id = dest number
    CMD_DEST_DEL = 4
    CMD_LIP_SET = 5         # id = lip number
    CMD_LIP_DEL = 6
    CMD_IFACE_SET = 7       # id = iface number, from IFACE_MAX on: a VLAN device's
    CMD_IFACE_DEL = 8
    CMD_NEIGH_SET = 9       # keyed by (iface, tags, addr); MAC valid or not by flags & 1
    CMD_NEIGH_DEL = 10
    CMD_ROUTE_SET = 11      # keyed by (af, prefix, plen)
    CMD_ROUTE_DEL = 12
    CMD_SETTING = 13        # id = Setting, value
    CMD_SWEEP = 14          # id = Sweep kind: delete all of that kind whose gen is older than this command's gen
    CMD_OWNER = 15          # new owner table epoch: the table in the host segment was switched
    CMD_CAPTURE = 16        # points, snaplen, svc; points = 0 ends it
    CMD_STOP = 17           # leave the poll loop and exit 0
    CMD_TUNNEL_SET = 18     # keyed by (af, kind, local, remote): a tunnel that ends here
    CMD_TUNNEL_DEL = 19
    CMD_SNAT_SET = 20       # id = svc number; CMD_SVC_DEL deletes it
    CMD_PORT_GONE = 26      # id = port number: its sockets are closed, in all processes; the frames that they held are free

cdef enum CmdFlag:
    CMD_FRESH = 1           # the number is used anew: zero its statistics

cdef enum Sweep:
    SWEEP_SVC = 1
    SWEEP_DEST = 2
    SWEEP_LIP = 3
    SWEEP_NEIGH = 4
    SWEEP_ROUTE = 5
    SWEEP_IFACE = 6
    SWEEP_TUNNEL = 7

cdef enum Setting:          # values are u64
    SET_POLL_MODE = 0       # 0 busy, 1 adaptive, 2 interrupt
    SET_VERIFY_CSUM = 1     # 1: verify transport checksums on receipt
    SET_RETURN_ROUTE = 2    # 1: answers to clients by the FIB instead of the way that the client's packets came
    SET_ICMP_RATE = 3       # ICMP errors per second and worker
    SET_KERNEL_RATE = 4     # packets per second and worker to the kernel (verdict kernel)
    SET_FRAG_TIMEOUT = 5    # ms that a fragmented datagram may take
    SET_PORT_REST = 6       # ms that a local port rests in TIME_WAIT before a new connection may take it
    SET_TIMEOUT_BASE = 16   # 16 + TcpState or UDP pseudo-state: ms

cdef struct Cmd:            # 128 bytes: 16 of head, 112 of body
    uint16_t op
    uint16_t flags          # CmdFlag
    uint32_t id
    uint32_t gen
    uint32_t spare
    uint8_t body[112]       # one of the structs below

cdef struct CmdSvc:
    uint8_t vaddr[16]
    uint16_t vport          # network order, 0: any
    uint8_t af
    uint8_t proto
    uint8_t sched           # SchedKind
    uint8_t mode
    uint16_t flags          # SvcFlag without SVC_USED
    uint32_t table_off
    uint32_t table_len
    uint32_t timeout_established
    uint32_t timeout_fin
    uint32_t timeout_udp
    uint16_t sorry          # number + 1, 0 = none
    uint8_t source4[4]      # of tunnels' outer headers, 0 = lbd's choice
    uint8_t source6[16]
    uint8_t quic            # as in Svc
    uint8_t quic_len
    uint8_t quic_config
    uint16_t target         # SVC_ALIAS: the service's number
    uint32_t persist        # SVC_PERSIST: ms
    uint8_t persist_plen    # SVC_PERSIST

cdef struct CmdSnat:        # fields as those of Svc
    uint8_t digest[16]      # of the rule's name
    uint8_t af
    uint8_t protocols
    uint8_t ifin
    uint8_t ifout
    uint16_t order
    uint16_t pool
    uint16_t sources
    uint16_t dests
    uint32_t table_off
    uint32_t timeout_established

cdef struct CmdDest:
    uint8_t addr[16]
    uint16_t port           # network order, 0: the client's
    uint8_t af
    uint8_t flags           # DestFlag without DEST_USED
    uint16_t svc
    uint16_t weight
    uint16_t tunnel_port    # network order
    uint8_t tunnel          # TunnelWay
    uint64_t quic_id
    uint8_t quic            # 1: it has that id
    uint32_t upper
    uint32_t lower

cdef struct CmdLip:
    uint8_t addr[16]
    uint8_t af
    uint8_t flags           # LipFlag without LIP_USED
    uint16_t port_lo        # host order
    uint16_t port_hi

cdef struct CmdIface:
    uint8_t mac[6]
    uint16_t mtu
    uint16_t flags          # IfaceFlag without IFACE_USED
    uint16_t spare
    uint32_t ifindex
    uint8_t addr4[4]
    uint8_t addr6[16]
    uint8_t lower           # from here on as in Iface
    uint8_t tpid
    uint16_t vlan
    uint16_t outer
    uint8_t policy
    uint8_t member_n
    uint8_t member[8]
    uint8_t of

cdef struct CmdNeigh:
    uint8_t addr[16]
    uint8_t mac[6]
    uint8_t af
    uint8_t iface
    uint8_t valid           # 1: mac is good
    uint8_t tpid
    uint16_t vlan
    uint16_t outer

cdef struct CmdRoute:
    uint8_t prefix[16]
    uint8_t gateway[16]
    uint8_t af
    uint8_t plen
    uint8_t iface
    uint8_t flags           # RouteFlag without ROUTE_USED
    uint32_t metric
    uint16_t vlan           # tags of the way out, host order, 0 = none
    uint16_t outer
    uint8_t tpid

cdef struct CmdTunnel:
    uint8_t local[16]
    uint8_t remote[16]      # all 0: from anywhere
    uint8_t af
    uint8_t kind            # TUNNEL_IPIP, TUNNEL_GRE

cdef struct CmdValue:
    uint64_t value

cdef enum CapturePoint:
    CAPTURE_RX = 1
    CAPTURE_TX = 2
    CAPTURE_DROP = 4

cdef struct CmdCapture:
    uint32_t points         # CapturePoint mask
    uint32_t snaplen
    uint16_t svc            # SVC_NONE: all
