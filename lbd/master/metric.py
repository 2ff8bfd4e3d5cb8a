# SPDX-License-Identifier: Apache-2.0
"""Every metric that lbd exports: name, kind, labels, help. docs/metrics.md is made from this table.

Label policy: `service` is the name in the configuration, `vip` and `real_server` are addresses with a port.
Series of workers and queues never carry a service. No address of a client is ever in a label.
"""

from dataclasses import dataclass

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"

SERVICE = ("service", "vip", "proto")
REAL_SERVER = ("service", "vip", "proto", "real_server")
ONE = ("service", "real_server")
RULE = ("rule",)
TUNNEL = ("tunnel",)
QUEUE = ("interface", "queue", "worker")
SOCKET = ("interface", "queue")
WORKER = ("worker",)

CHECK_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LAG_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    metrics: tuple[Metric, ...]


def g(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, GAUGE, labels, text)


def c(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, COUNTER, labels, text)


def h(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, HISTOGRAM, labels, text)


def traffic(what: str, labels: tuple[str, ...], noun: str) -> tuple[Metric, ...]:
    """What services and real servers have alike, in the order of the records in shared memory."""
    return (
        c(f"lbd_{what}_connections_total", labels, f"Connections opened {noun}."),
        c(f"lbd_{what}_incoming_packets_total", labels, f"Packets from clients {noun}."),
        c(f"lbd_{what}_outgoing_packets_total", labels, f"Packets to clients {noun}."),
        c(f"lbd_{what}_incoming_bytes_total", labels, f"Layer-3 bytes from clients {noun}."),
        c(f"lbd_{what}_outgoing_bytes_total", labels, f"Layer-3 bytes to clients {noun}."),
        g(
            f"lbd_{what}_active_connections",
            labels,
            f"Established connections {noun} (ipvsadm's ActiveConn).",
        ),
        g(f"lbd_{what}_inactive_connections", labels, f"Other connections {noun} (ipvsadm's InActConn)."),
    )


SECTIONS = (
    Section(
        "The daemon",
        (
            g("lbd_build_info", ("version", "python", "libxdp", "libbpf"), "Versions; always 1."),
            g("lbd_start_time_seconds", (), "When this master process started, in seconds since 1970."),
            g("lbd_ready", (), "1: all workers forward, and the configuration is applied everywhere."),
            g("lbd_config_last_reload_successful", (), "1: the last reload was not refused."),
            g(
                "lbd_config_last_reload_success_timestamp_seconds",
                (),
                "When the configuration in force was loaded, in seconds since 1970.",
            ),
            c("lbd_config_reloads_total", ("result",), "Reloads by result: ok, rejected."),
            h("lbd_event_loop_lag_seconds", (), "How late the master's event loop runs what is due."),
            c("lbd_api_requests_total", ("method", "route", "code"), "Requests on the control socket."),
            c("lbd_netlink_events_total", ("type",), "Notifications from the kernel by kind."),
        ),
    ),
    Section(
        "Services",
        (
            g("lbd_service_info", (*SERVICE, "mode", "scheduler"), "Settings of a service; always 1."),
            *traffic("service", SERVICE, "of the service"),
            g(
                "lbd_service_real_servers",
                ("service", "state"),
                "Real servers of the service by state: up, down, drain, maint.",
            ),
            g("lbd_service_sorry_server_in_use", ("service",), "1: no real server can take a connection, this one gets them."),
            *traffic("sorry_server", (*SERVICE, "sorry_server"), "of the sorry server"),
        ),
    ),
    Section(
        "SNAT",
        (
            g("lbd_snat_info", ("rule", "protocol"), "Settings of a rule; always 1."),
            *traffic("snat", RULE, "of the rule; clients are its internal hosts"),
        ),
    ),
    Section(
        "Real servers",
        (
            *traffic("real_server", REAL_SERVER, "of the real server"),
            g("lbd_real_server_up", ONE, "1: it receives new connections."),
            g("lbd_real_server_weight", ONE, "Weight in force; 0 drains it."),
            g(
                "lbd_real_server_effective_weight",
                ONE,
                "What counts of that weight now; of those in a slow start, or drained with a deadline.",
            ),
            g(
                "lbd_real_server_drain_deadline_timestamp_seconds",
                ONE,
                "When the connections left are ended, in seconds since 1970; of those drained with a deadline.",
            ),
            g("lbd_real_server_slow_start_seconds", ONE, "Until it has all of its weight; of those that begin slowly now."),
            g(
                "lbd_real_server_persistent_clients",
                ONE,
                "Clients that have it by persistence (ipvsadm's PersistConn); of services with persistence.",
            ),
            g(
                "lbd_real_server_overloaded",
                ONE,
                "1: it has reached its upper threshold, and gets no new connections; of those that have one.",
            ),
            c("lbd_real_server_transitions_total", (*ONE, "to"), "Changes of health: up, down."),
            g(
                "lbd_real_server_last_transition_timestamp_seconds",
                ONE,
                "Last change of health in seconds since 1970; 0: none yet.",
            ),
            c("lbd_real_server_downtime_seconds_total", ONE, "Time that health checks found it down."),
            c(
                "lbd_health_checks_total",
                (*ONE, "result"),
                "Health checks: success, failure, timeout, error.",
            ),
            h("lbd_health_check_duration_seconds", ("service",), "How long health checks take."),
        ),
    ),
    Section(
        "Packets",
        (
            c(
                "lbd_packets_total",
                ("verdict",),
                "Packets by what the engine decided: forward, drop, kernel (given to the host's stack), "
                "consume (answered by lbd).",
            ),
            c("lbd_drops_total", ("reason",), "Dropped packets by reason (docs/drops.md)."),
            c(
                "lbd_icmp_total",
                ("direction", "type"),
                "ICMP errors: sent by lbd (by the reason), forwarded (translated to their connection).",
            ),
            c("lbd_fragments_total", ("action",), "Fragments: forwarded, held (until the first one of their datagram came)."),
            c(
                "lbd_fragmented_datagrams_lost_total",
                ("reason",),
                "Datagrams in fragments that were given up: timeout (something was missing), table_full (the oldest made room).",
            ),
            c(
                "lbd_quic_packets_total",
                ("result",),
                "QUIC packets without a connection, Initial and 0-RTT aside: by_id (the connection id named the real server), "
                "unknown_id (one that there is not, or is down: scheduled), no_id (not of the service's form: scheduled).",
            ),
            c("lbd_slow_path_packets_total", ("direction",), "Packets by the slow path: to_kernel."),
            c(
                "lbd_xdp_actions_total",
                ("interface", "action"),
                "What the XDP program did: pass, redirect, drop.",
            ),
        ),
    ),
    Section(
        "Tunnels that end here",
        (
            c("lbd_tunnel_packets_total", TUNNEL, "Packets taken out of the tunnel, for a service or a local address."),
            c("lbd_tunnel_bytes_total", TUNNEL, "Their layer-3 bytes, without the outer header."),
            c("lbd_tunnel_refused_packets_total", TUNNEL, "Packets dropped for what they were inside: damaged, cut off, martian."),
        ),
    ),
    Section(
        "Connections",
        (
            c("lbd_connections_opened_total", (), "Connections opened, of all services that ever were."),
            c(
                "lbd_connections_expired_total",
                ("reason",),
                "Connections ended: timeout, closed, reset, evicted (table full), admin.",
            ),
            g("lbd_connection_table_entries", ("worker", "family"), "Connections in the worker's table."),
            g("lbd_connection_table_capacity", ("worker", "family"), "Connections that the table can hold."),
            g("lbd_persistence_templates", WORKER, "Clients whose real server the worker remembers."),
            g("lbd_persistence_templates_capacity", WORKER, "Those that it has room for."),
            c("lbd_persistence_evicted_total", WORKER, "Clients forgotten before their time, for want of room."),
            c(
                "lbd_persistence_asked_total",
                WORKER,
                "First packets of new clients that were sent to the worker which chooses their real server.",
            ),
            g("lbd_half_open_connections", WORKER, "Connections that wait for their first answer."),
            g("lbd_local_ports_in_use", ("local_address",), "Connections that hold a port of the address."),
            g(
                "lbd_local_ports_capacity",
                ("local_address",),
                "Ports; each serves one connection per real server.",
            ),
            c("lbd_local_port_exhausted_total", ("local_address",), "Connections that found no free port."),
        ),
    ),
    Section(
        "Workers",
        (
            g(
                "lbd_worker_local_ports_in_use",
                ("worker", "local_address"),
                "Connections of the worker that hold a port of the address. Each worker may have its share of the ports.",
            ),
            c(
                "lbd_worker_local_port_exhausted_total",
                ("worker", "local_address"),
                "Connections of the worker that found none of its ports free.",
            ),
            g("lbd_worker_up", WORKER, "1: the worker's heartbeat is fresh."),
            g("lbd_worker_info", ("worker", "cpu"), "Core that it is pinned to, empty if none; always 1."),
            c(
                "lbd_worker_busy_seconds_total",
                WORKER,
                "Time spent on packets: busy/(busy+idle) is the load.",
            ),
            c("lbd_worker_idle_seconds_total", WORKER, "Time spent polling in vain, or asleep."),
            h("lbd_worker_batch_packets", WORKER, "Packets and commands of a turn that found any."),
            c("lbd_worker_restarts_total", WORKER, "Times that the process was started again."),
            c(
                "lbd_worker_ring_full_total",
                ("worker", "ring"),
                "Records that found a ring full: command, event, capture, slow_path.",
            ),
            c("lbd_worker_misplaced_packets_total", WORKER, "Received, though another worker owns the flow."),
            c("lbd_worker_handed_packets_total", ("worker", "direction"), "Between workers: in, out."),
            c("lbd_worker_sleeps_total", WORKER, "Times that it went to sleep because nothing was to do."),
            c("lbd_worker_wakes_total", WORKER, "Times that it woke another worker."),
            c("lbd_worker_commands_total", WORKER, "Commands applied."),
            c("lbd_worker_bad_commands_total", WORKER, "Commands refused; not 0 means a bug."),
            c("lbd_worker_events_lost_total", WORKER, "Events that did not reach the master."),
            c("lbd_worker_capture_lost_total", WORKER, "Packets that a capture missed."),
            c("lbd_worker_process_cpu_seconds_total", WORKER, "CPU time of the worker processes."),
            g("lbd_worker_process_resident_memory_bytes", WORKER, "Resident memory, shared tables included."),
            g("lbd_umem_frames", WORKER, "Packet buffers of the worker."),
            g("lbd_umem_free_frames", WORKER, "Those that are free; the rest is in rings or under way."),
        ),
    ),
    Section(
        "Queues and AF_XDP sockets",
        (
            c("lbd_queue_rx_packets_total", QUEUE, "Packets received."),
            c("lbd_queue_rx_bytes_total", QUEUE, "Layer-2 bytes received."),
            c("lbd_queue_tx_packets_total", QUEUE, "Packets sent."),
            c("lbd_queue_tx_bytes_total", QUEUE, "Layer-2 bytes sent."),
            c("lbd_queue_tx_full_total", QUEUE, "Packets dropped because the transmit ring stayed full."),
            c("lbd_queue_tx_kicks_total", QUEUE, "System calls that started transmission."),
            c("lbd_queue_tx_errors_total", QUEUE, "Errors of such calls, but for those that say: later."),
            g("lbd_queue_fill_level", QUEUE, "Frames in the fill ring; near 0, the next burst is lost."),
            g("lbd_queue_tx_outstanding", QUEUE, "Frames given to the kernel and not completed."),
            c("lbd_xsk_rx_dropped_total", SOCKET, "xdp_statistics: dropped for other reasons."),
            c("lbd_xsk_rx_invalid_descs_total", SOCKET, "xdp_statistics: invalid entries of the fill ring."),
            c("lbd_xsk_tx_invalid_descs_total", SOCKET, "xdp_statistics: invalid entries of the tx ring."),
            c("lbd_xsk_rx_ring_full_total", SOCKET, "xdp_statistics: the worker read too slowly."),
            c("lbd_xsk_rx_fill_ring_empty_descs_total", SOCKET, "xdp_statistics: no frame to receive into."),
            c("lbd_xsk_tx_ring_empty_descs_total", SOCKET, "xdp_statistics: nothing to send."),
            g("lbd_xsk_zero_copy", SOCKET, "1: zero-copy, 0: copy mode."),
        ),
    ),
    Section(
        "Network",
        (
            g(
                "lbd_neighbors",
                ("interface", "state"),
                "Neighbours that workers know: resolved, unresolved, learned (from a client's packets).",
            ),
            g("lbd_routes", (), "Routes that workers know."),
        ),
    ),
)

METRICS: dict[str, Metric] = {m.name: m for section in SECTIONS for m in section.metrics}
