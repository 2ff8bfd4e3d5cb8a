# SPDX-License-Identifier: Apache-2.0
"""Tables of the configuration about lbd itself: [daemon] [workers] [tables] [timeouts] [metrics] [packet]."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lbd.config.address import ListenValue, parse_endpoint
from lbd.config.section import Section
from lbd.config.value import Bool, Duration, Int, Name, PowerOfTwo, RunDir

WORKER_MAX = 16  # WORKER_MAX of lbd/datapath/pkt.pxd


class Daemon(Section):
    """The master process."""

    run_dir: RunDir = Field(
        Path("/run/lbd"),
        description="Directory of the control socket, the workers' sockets and the connection files.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least severity that is logged, to standard error. Drops are counted, not logged.",
    )
    group: Name | None = Field(
        None,
        description="Group that may use the control socket (mode 0660). Without it, root alone.",
        examples=["lbd"],
    )


class Workers(Section):
    """The worker processes: one for each receive queue that an interface has."""

    count: Int | None = Field(
        None,
        ge=1,
        le=WORKER_MAX,
        description="Number of workers. Without it: one for each of `cores`, else 1.",
        examples=[2],
    )
    cores: tuple[Annotated[Int, Field(ge=0, le=8191)], ...] = Field(
        (),
        max_length=WORKER_MAX,
        description="CPUs that the workers are pinned to, in the order of their numbers; their memory lies on the same "
        "NUMA node. Empty: not pinned. See [devices](devices.md).",
        examples=[[2, 3]],
    )
    poll: Literal["busy", "adaptive", "interrupt"] = Field(
        "adaptive",
        description="How a worker waits for packets: `busy` never sleeps (a core of its own), `adaptive` "
        "sleeps when idle, `interrupt` sleeps whenever there is nothing to do.",
    )
    fifo_priority: Int = Field(
        0, ge=0, le=99, description="SCHED_FIFO priority; 0 is the normal scheduling class.", examples=[10]
    )
    heartbeat_limit: Duration = Field(
        0.5,
        ge=0.2,
        le=3600,
        description="A worker whose heartbeat is older is taken for hung, killed and replaced. "
        "A sleeping worker beats every 100ms.",
    )

    @property
    def number(self) -> int:
        """How many workers run."""
        return self.count or len(self.cores) or 1

    def core(self, worker: int) -> int | None:
        """The CPU that this worker is pinned to."""
        return self.cores[worker] if self.cores else None


class Tables(Section):
    """Sizes of the tables. They are allocated at the start; a change takes a restart."""

    connections_ipv4: Int = Field(262144, ge=64, le=1 << 26, description="IPv4 connections of each worker.")
    connections_ipv6: Int = Field(131072, ge=64, le=1 << 26, description="IPv6 connections of each worker.")
    frames: PowerOfTwo = Field(
        8192,
        ge=256,
        le=1 << 20,
        description="Packet buffers of each worker; a power of two. Allow twice the sum of the interfaces' `ring`.",
    )
    frame_size: PowerOfTwo | None = Field(
        None,
        ge=2048,
        le=4096,
        description="Bytes of a packet buffer, 2048 or 4096. Without it: 4096 if an interface has an MTU above 1770, else 2048. "
        "See [devices](devices.md).",
        examples=[4096],
    )
    services: Int = Field(1024, ge=1, le=65535, description="Services that can exist at a time.")
    real_servers: Int = Field(
        8192, ge=1, le=65535, description="Real servers that can exist at a time, over all services."
    )
    persistence_templates: PowerOfTwo = Field(
        65536,
        ge=64,
        le=1 << 24,
        description="Clients of services with `persistence` whose real server each worker remembers; a power of two. "
        "When there is no room, the one that came back longest ago is forgotten.",
    )
    hugepages: Literal["auto", "require", "off"] = Field(
        "auto",
        description="Packet buffers and tables in huge pages. `auto`: the buffers in reserved ones (`vm.nr_hugepages`) "
        "if there are enough, otherwise, as all tables, in such as the kernel can make (Linux 6.1); connection files that "
        "are there already stay as they are. `require` refuses to start without reserved ones. `off`: none.",
    )


class Timeouts(Section):
    """How long a connection may be silent before it is forgotten, by its state (IPVS's names).

    The defaults are those of IPVS, but for `tcp_time_wait` (as long as Linux servers remember) and `sctp_shutdown`.
    """

    tcp_established: Duration = Field(900.0, ge=0.1, le=604800, description="Established.")
    tcp_syn_sent: Duration = Field(
        120.0, ge=0.1, le=604800, description="The SYN came from the real server (not in fullnat)."
    )
    tcp_syn_recv: Duration = Field(
        60.0, ge=0.1, le=604800, description="The client's SYN was forwarded; half-open."
    )
    tcp_fin_wait: Duration = Field(120.0, ge=0.1, le=604800, description="One end has closed.")
    tcp_time_wait: Duration = Field(
        60.0,
        ge=0.1,
        le=604800,
        description="Both ends have closed; until then its local port is not used again.",
    )
    tcp_close: Duration = Field(10.0, ge=0.1, le=604800, description="Reset.")
    tcp_close_wait: Duration = Field(
        60.0, ge=0.1, le=604800, description="The client has closed, the real server not yet."
    )
    tcp_last_ack: Duration = Field(
        30.0, ge=0.1, le=604800, description="The last FIN waits for its acknowledgement."
    )
    udp: Duration = Field(300.0, ge=0.1, le=604800, description="UDP.")
    sctp_established: Duration = Field(
        900.0, ge=0.1, le=604800, description="SCTP, established. Half-open ones have `tcp_syn_recv`, aborted ones `tcp_close`."
    )
    sctp_shutdown: Duration = Field(
        60.0, ge=0.1, le=604800, description="SCTP, one end is shutting down. (IPVS: 3s, too short to repeat a lost packet.)"
    )
    icmp: Duration = Field(60.0, ge=0.1, le=604800, description="ICMP echo, of services and of SNAT rules.")


class Metrics(Section):
    """The Prometheus endpoint."""

    listen: ListenValue = Field(
        parse_endpoint("127.0.0.1:9911"),
        description='Address and port of `/metrics`; "" switches it off. Whoever reaches it can read it.',
    )


class Packet(Section):
    """How packets are treated, whatever their service."""

    verify_checksums: Bool = Field(
        False,
        description="Verify TCP, UDP, SCTP and ICMP checksums on receipt and drop what is wrong (`bad_checksum`).",
    )
    return_path: Literal["source", "route"] = Field(
        "source",
        description="Where answers to a client leave: `source` where its last packet came from (interface "
        "and MAC address), `route` by the routing table.",
    )
    port_rest: Duration = Field(
        1.0,
        ge=0.1,
        le=604800,
        description="How long a local port rests after the real server closed the connection first, before a new client may have "
        "it towards that server. The server still holds the old connection then (TIME_WAIT): the new SYN goes without timestamps "
        "and with a sequence number beyond the old ones. From `timeouts.tcp_time_wait` on, ports are never reused in this way.",
    )
    fragment_timeout: Duration = Field(
        30.0,
        ge=0.1,
        le=300,
        description="How long the fragments of a datagram are followed, and held if the first one is late. What has not come by "
        "then is not waited for.",
    )
    icmp_rate: Int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="ICMP errors that each worker sends per second at most; 0 sends none.",
    )
