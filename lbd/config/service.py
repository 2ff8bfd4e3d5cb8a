# SPDX-License-Identifier: Apache-2.0
"""Tables of the configuration about services: [[service]] [service.health] [[service.real_server]]."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lbd.config.address import AnyEndpointValue, Endpoint, IPAddress, PointValue
from lbd.config.section import Section
from lbd.config.tunnel import Encapsulation, ServerEncapsulation
from lbd.config.value import Bool, Duration, Int, InterfaceName, Name, RequestPath, ServerId

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}
ICMPV6 = 58
PROTOCOL_NAMES = {**{number: name for name, number in PROTOCOLS.items()}, ICMPV6: "icmp"}
Mode = Literal["fullnat", "nat", "dr", "tunnel"]
Scheduler = Literal["rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "sh", "mh", "conhash", "dh", "lblc", "lblcr"]
SchedulerFlag = Literal["sh-fallback", "sh-port", "mh-fallback", "mh-port"]


def protocol_number(name: str, af: int) -> int:
    """IP protocol number."""
    return ICMPV6 if (name, af) == ("icmp", 6) else PROTOCOLS[name]


class HealthCheck(Section):
    """What all checkers have; a class of its own for each kind of check."""

    interval: Duration = Field(
        2.0, ge=0.05, le=86400, description="From the start of one check to that of the next."
    )
    timeout: Duration = Field(
        1.0, ge=0.01, le=3600, description="An answer must be complete within; at most the interval."
    )
    rise: Int = Field(2, ge=1, le=1000, description="Good checks in a row that bring a real server back.")
    fall: Int = Field(3, ge=1, le=1000, description="Failed checks in a row that take a real server out.")
    port: Int | None = Field(
        None, ge=1, le=65535, description="Port that is checked. Without it: the real server's.", examples=[8081]
    )


class TcpHealth(HealthCheck):
    """Good if the real server takes a connection."""

    type: Literal["tcp"] = Field(description="The kind of check.", examples=["tcp"])


class HttpHealth(HealthCheck):
    """Good if the real server answers a GET with an expected status."""

    type: Literal["http"] = Field(description="The kind of check.", examples=["http"])
    path: RequestPath = Field("/", description="What is asked for.")
    status: tuple[Annotated[Int, Field(ge=100, le=599)], ...] = Field(
        (200,), min_length=1, max_length=100, description="Statuses that are good.", examples=[[200, 204]]
    )


Health = Annotated[TcpHealth | HttpHealth, Field(discriminator="type")]


class RealServer(Section):
    """A server behind a service (in LVS's words: a destination)."""

    address: AnyEndpointValue = Field(
        description="Its address and port. Without a port it gets the client's: the service's, or with several of them the "
        "one that the packet is for.",
        examples=["10.0.1.1:8080"],
    )
    weight: Int = Field(
        1,
        ge=0,
        le=65535,
        description="Share of new connections that it gets; 0 drains it: established ones go on.",
    )
    slow_start: Duration | None = Field(
        None, ge=0, le=86400, description='Overrides the service\'s `slow_start`; "0s": none.', examples=["2m"]
    )
    upper_threshold: Int = Field(
        0,
        ge=0,
        le=0xFFFFFFFF,
        description="Connections at which it gets no new ones (ipvsadm's `-x`); 0: no limit.",
        examples=[1000],
    )
    lower_threshold: Int = Field(
        0,
        ge=0,
        le=0xFFFFFFFF,
        description="Having reached `upper_threshold`, it gets new ones again with fewer than so many (`-y`); 0: with fewer "
        "than three quarters.",
        examples=[800],
    )
    tunnel: ServerEncapsulation | None = Field(None, description="Its own way in mode `tunnel`.")
    quic_id: ServerId | None = Field(
        None,
        description="Its id in QUIC connection ids, in hexadecimal, with the service's `quic` = `quic-lb` or `katran`.",
        examples=["2a"],
    )

    @property
    def af(self) -> int:
        """4 or 6."""
        return self.address.af


class Service(Section):
    """A virtual service: an address and port that clients connect to. See [services](services.md)."""

    name: Name = Field(description="Name in commands, logs and metrics; unique.", examples=["web"])
    address: AnyEndpointValue = Field(
        description="VIP and port. Without a port: every one that no other service of the VIP has; that needs `persistence`. "
        "ICMP has none.",
        examples=["192.0.2.10:80"],
    )
    protocol: Literal["tcp", "udp", "sctp", "icmp"] = Field(
        "tcp", description="Transport protocol: `tcp`, `udp` or `sctp`; or `icmp`: pings. See [protocols](protocols.md)."
    )
    addresses: tuple[PointValue, ...] = Field(
        (),
        max_length=1000,
        description="Further addresses of the same service, each with a protocol of its own if need be: one scheduler, one "
        "set of real servers, and with `persistence` one real server for a client whatever it connects to.",
        examples=[["192.0.2.10:443", "192.0.2.11:53/udp"]],
    )
    fwmark: Int | None = Field(
        None,
        ge=1,
        le=0xFFFFFFFF,
        description="Number by which `ipvsadm -f` names the service; unique. lbd looks at addresses, not at marks.",
        examples=[1],
    )
    persistence: Duration | None = Field(
        None,
        ge=1,
        le=1036800,
        description="A client's connections go to the real server of its first one, until so long after the last was opened "
        "and while one lives (ipvsadm's `-p`, there 6m unless told).",
        examples=["6m"],
    )
    persistence_prefix: Int | None = Field(
        None,
        ge=1,
        le=128,
        description="Clients whose addresses have so many first bits in common are one client (ipvsadm's `-M`, there a mask). "
        "Without it: each address is one.",
        examples=[24],
    )
    one_packet: Bool = Field(
        False, description="Schedule every datagram of a UDP service, not every flow (ipvsadm's `-o`)."
    )
    scheduler: Scheduler = Field(
        "wlc",
        description="How a real server is chosen, by ipvsadm's names: round robin (`rr`, weighted `wrr`), least "
        "connections (`lc`, weighted `wlc`), shortest expected delay (`sed`, `nq`), the heaviest that is there (`fo`) "
        "or not full (`ovf`), hash of the client's address (`sh`, Maglev `mh`, ring `conhash`) or of the destination's "
        "(`dh`), locality (`lblc`, `lblcr`). See [schedulers](schedulers.md).",
    )
    scheduler_flags: tuple[SchedulerFlag, ...] = Field(
        (),
        max_length=4,
        description="As ipvsadm's `--sched-flags`: `sh-port` and `mh-port` hash the client's port too; `sh-fallback` and "
        "`mh-fallback` take another real server when the hashed one has weight 0 or is down.",
        examples=[["mh-fallback", "mh-port"]],
    )
    hash_target: Literal["sip", "qid"] = Field(
        "sip",
        description="What `conhash` hashes: the client's address (`sip`), or the first 8 bytes of the connection id in QUIC "
        "packets (`qid`, UDP alone).",
    )
    quic: Literal["quic-lb", "katran", "dpvs"] | None = Field(
        None,
        description="UDP: real servers are found again by QUIC connection ids, when a client changes its address. How servers "
        "write their id into them: `quic-lb` (unencrypted), `katran` or `dpvs`. See [quic](quic.md).",
        examples=["quic-lb"],
    )
    quic_config: Int = Field(0, ge=0, le=6, description="quic-lb: the configuration that servers name in connection ids.")
    quic_id_length: Int = Field(
        2, ge=1, le=8, description="dpvs: bytes of a real server's address, from its end, that tell it from the others."
    )
    interface: InterfaceName = Field(
        "lo", description="Where the VIP is added if `manage`.", examples=["eth0"]
    )
    manage: Bool = Field(True, description="Add the VIP at start and remove it at stop.")
    mode: Mode = Field(
        "fullnat",
        description="How packets get to real servers: `fullnat` rewrites both addresses and both ports, `nat` the "
        "destination alone (ipvsadm's `-m`), `dr` the link layer alone (`-g`), `tunnel` wraps them in IP (`-i`). `fullnat` of "
        "an IPv6 address also has IPv4 real servers: [NAT64](modes/nat64.md). What real servers need: [nat](modes/nat.md), "
        "[dr](modes/dr.md), [tunnel](modes/tunnel.md).",
    )
    tcp_established: Duration | None = Field(
        None,
        ge=0.1,
        le=604800,
        description="Overrides `timeouts.tcp_established`, or for SCTP `timeouts.sctp_established`.",
        examples=["1h"],
    )
    tcp_fin: Duration | None = Field(
        None,
        ge=0.1,
        le=604800,
        description="Overrides `timeouts.tcp_fin_wait`, `tcp_close_wait`, `tcp_last_ack` and `tcp_time_wait`: all states "
        "after a FIN (the second of ipvsadm's `--set`); for SCTP `timeouts.sctp_shutdown`.",
        examples=["1m"],
    )
    udp_timeout: Duration | None = Field(
        None, ge=0.1, le=604800, description="Overrides `timeouts.udp`.", examples=["10s"]
    )
    sorry_server: AnyEndpointValue | None = Field(
        None,
        description="Gets connections while no real server can take any (all down, drained or full); by the service's mode, "
        "not checked. See [lifecycle](lifecycle.md).",
        examples=["10.0.1.99:8080"],
    )
    slow_start: Duration | None = Field(
        None,
        ge=1,
        le=86400,
        description="A real server that comes back, or is added by a reload, gets its weight in steps over this time. For "
        "schedulers that heed weights: wrr, wlc, sed, nq, ovf, lblc, lblcr, mh, conhash.",
        examples=["60s"],
    )
    expire_nodest: Bool = Field(
        False,
        description="End connections whose real server was removed or is down, at the client's next packet (IPVS's "
        "`expire_nodest_conn`). A TCP client gets a RST. Without it they go on.",
    )
    expire_quiescent: Bool = Field(
        False,
        description="End connections whose real server has weight 0 or is drained, in the same way (DPVS's "
        "`--expire-quiescent`).",
    )
    tunnel: Encapsulation | None = Field(None, description="How mode `tunnel` wraps packets; without it `ipip`.")
    health: Health | None = Field(
        None, description="How real servers are checked. Without it they count as up."
    )
    real_server: tuple[RealServer, ...] = Field((), description="The servers behind it.")

    @model_validator(mode="after")
    def _fill_ports(self) -> Self:
        """A real server without a port has the service's, if that has but one."""
        if self.protocol != "icmp" and any(r.address.port == 0 for r in self.real_server) and (port := self.fixed_port):
            self.__dict__["real_server"] = tuple(
                r if r.address.port else r.model_copy(update={"address": Endpoint(r.address.addr, port)}) for r in self.real_server
            )
        return self

    def at_places_of(self, old: Self) -> Self:
        """Itself, with the objects that `old` has for the same addresses."""
        for real, was in zip(self.real_server, old.real_server, strict=False):
            if real.address == was.address:
                real.__dict__["address"] = was.address
        return self

    @property
    def fixed_port(self) -> int:
        """The one port of all its addresses; 0 if there are several, or any."""
        if not self.addresses:
            return self.address.port
        ports = {self.address.port, *(p.endpoint.port for p in self.addresses)}
        return ports.pop() if len(ports) == 1 else 0

    @property
    def limited(self) -> bool:
        """Has one of its real servers a threshold?"""
        return any(r.upper_threshold or r.lower_threshold for r in self.real_server)

    @property
    def points(self) -> tuple[tuple[int, IPAddress, int], ...]:
        """Protocol number, VIP, port: of all its addresses, its key first."""
        if not self.addresses:
            return (self.key,)
        return (
            self.key,
            *((protocol_number(p.protocol or self.protocol, self.af), p.endpoint.addr, p.endpoint.port) for p in self.addresses),
        )

    @property
    def vips(self) -> tuple[IPAddress, ...]:
        """Of all its addresses, each once."""
        if not self.addresses:
            return (self.vip,)
        return tuple(dict.fromkeys(addr for _, addr, _ in self.points))

    @property
    def prefix(self) -> int:
        """Bits that make a client."""
        return self.persistence_prefix or (32 if self.af == 4 else 128)

    @property
    def vip(self) -> IPAddress:
        return self.address.addr

    @property
    def port(self) -> int:
        return self.address.port

    @property
    def af(self) -> int:
        """4 or 6."""
        return self.address.af

    @property
    def proto(self) -> int:
        """IP protocol number."""
        return protocol_number(self.protocol, self.af)

    @property
    def servers(self) -> tuple[Endpoint, ...]:
        """All that connections may be sent to: the real servers, and the sorry server."""
        return (*(r.address for r in self.real_server), *([self.sorry_server] if self.sorry_server else []))

    def slow_start_of(self, real: RealServer) -> float:
        """Seconds; 0: none."""
        own = real.slow_start if real.slow_start is not None else self.slow_start
        return own or 0.0

    @property
    def key(self) -> tuple[int, IPAddress, int]:
        """What no two services share: protocol number, VIP, port."""
        return (self.proto, self.address.addr, self.address.port)
