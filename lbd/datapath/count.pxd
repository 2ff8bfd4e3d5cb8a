# Counters of one worker: 64-bit, one writer (the worker), plain stores; a reader sees monotonic values.
# They live in the worker's segment, so that a new process of the same worker goes on counting.
from libc.stdint cimport uint64_t

cdef struct Counters:
    uint64_t drops[64]              # by Reason
    uint64_t verdicts[8]            # by Verdict, as the engine decided; a full ring afterwards counts in drops alone
    uint64_t consumed[64]           # by Reason: answered by lbd (ICMP errors)
    uint64_t handed_out             # packets given to another worker
    uint64_t handed_in
    uint64_t misplaced              # received from the NIC though another worker owns the flow
    uint64_t busy_ns                # spent on bursts
    uint64_t idle_ns
    uint64_t bursts
    uint64_t burst_size[8]          # non-empty polls by size: 1 2 4 8 16 32 64 more
    uint64_t conns_made
    uint64_t conns_expired[8]       # by ExpireReason
    uint64_t icmp_sent
    uint64_t icmp_mapped            # ICMP errors translated
    uint64_t kernel_out             # packets given to the slow path
    uint64_t capture_lost
    uint64_t events_lost
    uint64_t commands
    uint64_t bad_commands
    uint64_t sleeps
    uint64_t wakes
    uint64_t frames_dropped_restart
    uint64_t resets_sent            # RST segments of connections that were ended (ending.pxd)
    uint64_t frag_forwarded         # fragments forwarded
    uint64_t frag_held              # fragments kept until the first one of their datagram came
    uint64_t frag_expired           # datagrams of which something was still missing after the timeout
    uint64_t frag_evicted           # datagrams that made room for others
    uint64_t quic_by_id             # QUIC packets without a connection: the connection id named the real server
    uint64_t quic_unknown           # it named none that there is: scheduled
    uint64_t quic_no_id             # it is not of the service's form: scheduled
    uint64_t templates              # persistence templates that this worker owns, now
    uint64_t templates_evicted      # before their time, for want of room
    uint64_t templates_asked        # packets sent to a template's owner, which chooses the real server
    uint64_t spare[21]

cdef enum ExpireReason:
    EXPIRE_TIMEOUT = 0
    EXPIRE_CLOSED = 1
    EXPIRE_RESET = 2
    EXPIRE_EVICTED = 3
    EXPIRE_ADMIN = 4
    EXPIRE_REUSED = 5           # in TIME_WAIT; its local port went to a new connection
