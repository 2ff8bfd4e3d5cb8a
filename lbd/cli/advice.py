# SPDX-License-Identifier: Apache-2.0
"""What to do about each reason of a drop: what docs/drops.md says besides lbd/datapath/reason.py."""

ADVICE = {
    "malformed": (
        "Somebody sends broken or cut packets. A few are normal on the internet. Many from one side: look "
        "at the driver's offloads, and at what `lbd capture --point drop` shows."
    ),
    "bad_checksum": (
        "A bad cable or NIC on the way, or a sender on this host whose checksums nobody completes. With "
        "`packet.verify_checksums = false` only the IPv4 header's counts."
    ),
    "not_for_us": (
        "Normal for a moment after a service or local address was removed. Lasting: report it, with the "
        "output of `lbd service` and `lbd lip`."
    ),
    "no_service": "Clients ask for a port that no [[service]] has: add it, or ignore scanners.",
    "no_backend": (
        "Every real server of the service is down, drained or in maintenance: `lbd real-server list`."
    ),
    "no_route": (
        "`lbd route` shows what workers know. Add a route to the real server's network on the host; a "
        "route that leads out of an interface without an [[interface]] counts as none."
    ),
    "no_neighbor": (
        "The first packets to a host that was silent, while the kernel asks for its address. Lasting: it "
        "does not answer ARP or ND; see `lbd neigh` and `ip neigh`."
    ),
    "link_down": "The interface has no carrier or is switched off: `ip link`, cable, switch port.",
    "conn_table_full": (
        "Raise `tables.connections_ipv4` or `connections_ipv6` (a restart), or lower [timeouts]. "
        "Half-open connections are evicted first, so a SYN flood alone does not lead here."
    ),
    "local_port_exhausted": (
        "`lbd lip` shows which address is used up. Add a [[local_address]] or real servers: each local "
        "port serves one connection per real server. For SNAT add addresses to the rule's pool: a port serves one per remote port."
    ),
    "no_state": (
        "Packets of connections that were forgotten (silent for longer than `timeouts.tcp_established`) "
        "or that began while lbd was not there; scans, too. TCP keepalive on either end prevents the "
        "first."
    ),
    "invalid_state": (
        "A segment that the connection's state forbids, such as a SYN within an established connection."
    ),
    "ttl_expired": "A routing loop, or somebody runs traceroute.",
    "mtu_exceeded": (
        "The way to the real server has a smaller MTU. The sender is told; if it keeps sending, something "
        "on its way filters ICMP."
    ),
    "frag_tiny": "An attack on filters that do not reassemble; no sender makes such fragments.",
    "exthdr_unsupported": "An attack, or an exotic sender.",
    "icmp_unmatched": "Errors about connections that are over, or forged ones.",
    "icmp_unsupported": "An ICMP message that is neither an error nor an echo request.",
    "proto_unsupported": "Something other than TCP, UDP, SCTP and ICMP for a virtual address.",
    "martian": "Forged source addresses. Filter them at the edge of your network (BCP 38).",
    "tx_ring_full": (
        "The link is saturated, or its other end does not take more. See `lbd worker` (TX FULL), raise "
        "`interface.ring`."
    ),
    "no_tx_port": (
        "The interface has fewer queues than there are workers, and none of those that have one runs: "
        "`lbd worker`."
    ),
    "ring_full": "The worker that owns these flows is overloaded or stopped: `lbd top` shows its load.",
    "hop_limit": "Only while the number of workers or the NIC's RSS changes. Lasting: report it.",
    "worker_restart": "A worker was killed or hung; see the log and `lbd worker`.",
    "kernel_limited": (
        "More packets for the host's own stack came than the exception path carries, which is for a few."
    ),
    "too_big_frame": (
        "Only with an MTU above 32,000 bytes: lower it, or have senders keep below the path's MTU."
    ),
    "multi_buffer": "No sender makes such packets: an attack. (Jumbo frames as such are forwarded: [devices](devices.md).)",
    "tuple_in_use": (
        "A real server stands behind several services of mode nat, and a client used one port for two of them. Rare, and "
        "the client tries again; often: give the services different ports on the real server, or use mode fullnat."
    ),
    "server_gone": (
        "As configured: `expire_nodest` or `expire_quiescent` of the service, or a drain whose deadline is over. "
        "See [lifecycle](lifecycle.md)."
    ),
    "untranslatable": (
        "Between an IPv6 client and an IPv4 real server some things have no equal: source routes, routing headers, some ICMP "
        "errors. A few are usual; many: look which they are with `lbd capture`."
    ),
    "icmp_short": "A router on the way to a real server of mode `tunnel` quotes only the 8 bytes of RFC 792, so that its errors "
    "can't be told to the client: lower the MTU of lbd's interface to what that way takes, and packets too large are answered "
    "before.",
    "tunnel_malformed": "The tunnel's other end is broken, or somebody sends garbage to it: restrict it by `remote`.",
    "tunnel_congested": "A congested router on the tunnel's way marks packets whose senders know no ECN; a lost packet tells them.",
    "frag_orphan": "The first fragment was dropped for a reason of its own, which is counted too: see there.",
    "frag_timeout": (
        "Fragments are lost on the way here, or forged. Many: have senders keep below the path's MTU (over UDP, an EDNS "
        "buffer size of 1232)."
    ),
    "frag_table_full": "More datagrams in fragments at once than a worker follows, most of them never completed: an attack.",
    "frag_unsupported": "An internal host sends ICMP other than pings in fragments; nothing usual does.",
    "echo_id_zero": "Common pings have other identifiers. Whoever needs this one: mode fullnat, dr or tunnel.",
}
