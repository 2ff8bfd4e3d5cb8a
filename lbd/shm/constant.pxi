# The numbers of the .pxd enums that Python code needs, under the same names. Part of _shm.pyx.

# SchedKind, SvcFlag, SvcMode, DestFlag
SCHED_SEQ = c_svc.SCHED_SEQ
SCHED_HASH = c_svc.SCHED_HASH
SCHED_LEAST = c_svc.SCHED_LEAST
SCHED_SED = c_svc.SCHED_SED
SCHED_NQ = c_svc.SCHED_NQ
SCHED_FIRST = c_svc.SCHED_FIRST
SCHED_OVF = c_svc.SCHED_OVF
SCHED_SOURCE = c_svc.SCHED_SOURCE
SCHED_DEST = c_svc.SCHED_DEST
SCHED_HOME = c_svc.SCHED_HOME
SCHED_HOMES = c_svc.SCHED_HOMES
SCHED_COUNT = c_svc.SCHED_COUNT
SVC_USED = c_svc.SVC_USED
SVC_HASH_PORT = c_svc.SVC_HASH_PORT
SVC_LEAST_WEIGHTED = c_svc.SVC_LEAST_WEIGHTED
SVC_HASH_FALLBACK = c_svc.SVC_HASH_FALLBACK
MODE_FULLNAT = c_svc.MODE_FULLNAT
MODE_NAT = c_svc.MODE_NAT
MODE_DR = c_svc.MODE_DR
MODE_TUNNEL = c_svc.MODE_TUNNEL
DEST_USED = c_svc.DEST_USED
DEST_UP = c_svc.DEST_UP
SVC_NONE = c_svc.SVC_NONE
DEST_NONE = c_svc.DEST_NONE
LIP_NONE = c_svc.LIP_NONE

# IfaceFlag, AdjFlag, RouteFlag and limits
IFACE_USED = c_neigh.IFACE_USED
IFACE_UP = c_neigh.IFACE_UP
IFACE_PARTIAL = c_neigh.IFACE_PARTIAL
IFACE_ZERO_COPY = c_neigh.IFACE_ZERO_COPY
ADJ_USED = c_neigh.ADJ_USED
ADJ_VALID = c_neigh.ADJ_VALID
ADJ_LEARNED = c_neigh.ADJ_LEARNED
ADJ_MAX = c_neigh.ADJ_MAX
ROUTE_USED = c_fib.ROUTE_USED
ROUTE_ONLINK = c_fib.ROUTE_ONLINK
FIB_MAX = c_fib.FIB_MAX
IFACE_MAX = c_pkt.IFACE_MAX
LINK_MAX = c_neigh.LINK_MAX
MEMBER_MAX = c_neigh.MEMBER_MAX
TPID_AD = c_neigh.TPID_AD
TPID_OUTER_Q = c_neigh.TPID_OUTER_Q
BOND_NONE = c_neigh.BOND_NONE
BOND_TURN = c_neigh.BOND_TURN
BOND_L2 = c_neigh.BOND_L2
BOND_L23 = c_neigh.BOND_L23
BOND_L34 = c_neigh.BOND_L34
WORKER_MAX = c_pkt.WORKER_MAX

# Op, CmdFlag, Sweep, Setting, CapturePoint
CMD_NOP = c_cmd.CMD_NOP
CMD_SVC_SET = c_cmd.CMD_SVC_SET
CMD_SVC_DEL = c_cmd.CMD_SVC_DEL
CMD_DEST_SET = c_cmd.CMD_DEST_SET
CMD_DEST_DEL = c_cmd.CMD_DEST_DEL
CMD_LIP_SET = c_cmd.CMD_LIP_SET
CMD_LIP_DEL = c_cmd.CMD_LIP_DEL
CMD_IFACE_SET = c_cmd.CMD_IFACE_SET
CMD_IFACE_DEL = c_cmd.CMD_IFACE_DEL
CMD_NEIGH_SET = c_cmd.CMD_NEIGH_SET
CMD_NEIGH_DEL = c_cmd.CMD_NEIGH_DEL
CMD_ROUTE_SET = c_cmd.CMD_ROUTE_SET
CMD_ROUTE_DEL = c_cmd.CMD_ROUTE_DEL
CMD_SETTING = c_cmd.CMD_SETTING
CMD_SWEEP = c_cmd.CMD_SWEEP
CMD_OWNER = c_cmd.CMD_OWNER
CMD_CAPTURE = c_cmd.CMD_CAPTURE
CMD_STOP = c_cmd.CMD_STOP
CMD_FRESH = c_cmd.CMD_FRESH
SWEEP_SVC = c_cmd.SWEEP_SVC
SWEEP_DEST = c_cmd.SWEEP_DEST
SWEEP_LIP = c_cmd.SWEEP_LIP
SWEEP_NEIGH = c_cmd.SWEEP_NEIGH
SWEEP_ROUTE = c_cmd.SWEEP_ROUTE
SWEEP_IFACE = c_cmd.SWEEP_IFACE
SET_POLL_MODE = c_cmd.SET_POLL_MODE
SET_VERIFY_CSUM = c_cmd.SET_VERIFY_CSUM
SET_RETURN_ROUTE = c_cmd.SET_RETURN_ROUTE
SET_ICMP_RATE = c_cmd.SET_ICMP_RATE
SET_KERNEL_RATE = c_cmd.SET_KERNEL_RATE
SET_PORT_REST = c_cmd.SET_PORT_REST
SET_TIMEOUT_BASE = c_cmd.SET_TIMEOUT_BASE
CAPTURE_RX = c_cmd.CAPTURE_RX
CAPTURE_TX = c_cmd.CAPTURE_TX
CAPTURE_DROP = c_cmd.CAPTURE_DROP

# WorkerState, EvtOp, Owner (of frames)
WORKER_STARTING = c_lay.WORKER_STARTING
WORKER_ATTACHING = c_lay.WORKER_ATTACHING
WORKER_RUNNING = c_lay.WORKER_RUNNING
WORKER_STOPPING = c_lay.WORKER_STOPPING
WORKER_STOPPED = c_lay.WORKER_STOPPED
EVT_RUNNING = c_lay.EVT_RUNNING
EVT_NEIGH_WANTED = c_lay.EVT_NEIGH_WANTED
EVT_LIP_EXHAUSTED = c_lay.EVT_LIP_EXHAUSTED
EVT_TABLE_FULL = c_lay.EVT_TABLE_FULL
EVT_BAD_COMMAND = c_lay.EVT_BAD_COMMAND
EVT_PEER_RESET = c_lay.EVT_PEER_RESET
FRAME_FREE = c_lay.FRAME_FREE
FRAME_FILL = c_lay.FRAME_FILL
FRAME_WORK = c_lay.FRAME_WORK
FRAME_TX = c_lay.FRAME_TX
FRAME_HAND = c_lay.FRAME_HAND
FRAME_HOME = c_lay.FRAME_HOME

CHUNK = c_lay.CHUNK
CAPTURE_SLOT = c_lay.CAPTURE_SLOT
OWNER_BUCKETS = c_lay.OWNER_BUCKETS
SEG_VERSION = c_lay.SEG_VERSION
REASON_COUNT = c_reason.REASON_COUNT

# Names, in the order of the enums
VERDICTS = ("drop", "forward", "kernel", "consume", "handover")
EXPIRE_REASONS = ("timeout", "closed", "reset", "evicted", "admin", "reused")
WORKER_STATES = ("starting", "attaching", "running", "stopping", "stopped")
EVENTS = ("none", "running", "neigh_wanted", "lip_exhausted", "table_full", "bad_command", "peer_reset")
FRAME_OWNERS = ("free", "fill", "work", "tx", "hand", "home")
SIZE_NAMES = ("workers", "services", "dests", "lips", "conns4", "conns6", "frames", "arena", "cmd_ring",
              "evt_ring", "capture_ring", "hand_ring")
RINGS = ("cmd", "evt", "capture", "slow")  # RingName
