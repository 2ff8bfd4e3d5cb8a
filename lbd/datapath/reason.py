"""Why a packet did not go on: names and help texts of `reason.pxd`, in the order of its enum.

The names are a closed, documented list: metrics labels, `lbd drops`, pcapng comments and the docs use these words.
`tests/unit` holds this table against the enum.
"""

REASONS: tuple[tuple[str, str], ...] = (
    ("none", "no reason: the packet was forwarded"),
    ("malformed", "header lengths do not fit the packet, or a header is truncated"),
    ("bad_checksum", "IPv4 header checksum, or a verified transport checksum, is wrong"),
    ("not_for_us", "neither a service nor a local address port of ours: it came by a stale steering entry"),
    ("no_service", "a packet for a virtual address, but no service on this port"),
    ("no_backend", "the service has no real server that can take a connection"),
    ("no_route", "no route to the real server"),
    ("no_neighbor", "the next hop's link-layer address is not known (yet)"),
    ("link_down", "the interface on the way out is down"),
    ("conn_table_full", "connection table full, and nothing in it may be evicted"),
    ("local_port_exhausted", "no free local port towards this real server: add local addresses"),
    ("no_state", "a TCP packet that opens no connection and belongs to none"),
    ("invalid_state", "a TCP packet that its connection's state forbids"),
    ("ttl_expired", "TTL or hop limit used up; answered with time exceeded, rate-limited"),
    ("mtu_exceeded", "larger than the MTU of the way out; answered with fragmentation needed or packet too big"),
    ("frag_tiny", "a first fragment without its whole transport header, or one that would overwrite it (RFC 1858, 3128)"),
    ("exthdr_unsupported", "IPv6 extension header chain too long or of an unknown kind"),
    ("icmp_unmatched", "an ICMP error whose quoted packet belongs to no connection"),
    ("icmp_unsupported", "an ICMP message for a virtual or local address that is no error about a connection"),
    ("proto_unsupported", "a transport protocol that no service has"),
    ("martian", "source or destination address that must not appear on a wire"),
    ("tx_ring_full", "the transmit ring of the way out is full: the device or its peer does not take more"),
    ("no_tx_port", "this worker has no queue on the way out, and no worker that has one can be reached"),
    ("ring_full", "the ring to the worker that owns the flow is full"),
    ("hop_limit", "handed from worker to worker too often: owner tables disagree"),
    ("worker_restart", "in the hands of a worker that died; its fate is unknown, so it is dropped"),
    ("kernel_limited", "for the kernel, beyond the rate that the exception path carries"),
    ("too_big_frame", "a fragment of more than 32 KiB that came before its datagram's first one: it can't be held"),
    ("multi_buffer", "a packet in several buffers whose headers do not end in the first one; an ICMP error in several"),
    ("tuple_in_use", "mode nat: the client has a connection from the same port to the same real server by another service"),
    ("server_gone", "its real server is gone and its connection with it (expire_nodest, expire_quiescent, a drain's deadline); "
     "a client's TCP is answered with a RST"),
    ("untranslatable", "nat64: a packet or ICMP error that the other address family has no equal of (RFC 7915)"),
    ("icmp_short", "an ICMP error about a tunnel's outer header that quotes too little of the packet inside to know its client"),
    ("tunnel_malformed", "in a tunnel that ends here: its own header, or that of the packet inside, is damaged or truncated"),
    ("tunnel_congested", "in a tunnel that ends here: marked by a router on its way; the packet inside can't say so (RFC 6040)"),
    ("frag_orphan", "a fragment of a datagram whose first one was dropped, or whose connection is gone"),
    ("frag_timeout", "a fragment that was held, and the first one of its datagram, or the last one of one whose length matters, "
     "did not come in time"),
    ("frag_table_full", "a fragment that was held, and newer ones needed the room"),
    ("frag_unsupported", "snat: a fragment of ICMP but pings, which no rule is for, and which must not leave as it is"),
    ("echo_id_zero", "mode nat: an echo request with identifier 0, whose answer could not be told from a request"),
)

NAMES: tuple[str, ...] = tuple(name for name, _ in REASONS)
