# SPDX-License-Identifier: Apache-2.0
"""Tables of the configuration about the way out: [[snat]] [[snat.pool]]."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from lbd.config.address import IN_QUOTES, IPAddress, parse_address, read_network
from lbd.config.interface import LocalAddress
from lbd.config.section import Section
from lbd.config.value import Duration, InterfaceName, Name, refusal

RULE_MAX = 32  # SNAT_MAX of lbd/datapath/svc.pxd
RANGES_MAX = 4096


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses from first to last, both included: `10.0.0.0/8`, `10.0.0.5-10.0.0.9`, `10.0.0.5`."""

    first: IPAddress
    last: IPAddress

    @property
    def af(self) -> int:
        """4 or 6."""
        return self.first.version

    def networks(self) -> Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The fewest prefixes that are the same."""
        return ipaddress.summarize_address_range(self.first, self.last)

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        networks = list(self.networks())
        return str(networks[0]) if len(networks) == 1 else f"{self.first}-{self.last}"


def read_range(value: object) -> AddressRange:
    if isinstance(value, AddressRange):
        return value
    wanted = 'addresses such as "10.0.0.0/8" or "10.0.0.5-10.0.0.9"'
    if not isinstance(value, str):
        raise refusal(wanted, value, IN_QUOTES)
    if "/" in value:
        network = read_network(value)
        return AddressRange(network[0], network[-1])
    first, dash, last = value.partition("-")
    low = parse_address(first.rstrip(" ") if dash else first)
    high = parse_address(last.lstrip(" ")) if dash else low
    if low.version != high.version:
        raise refusal(wanted, value, "both ends are of one family")
    if int(low) > int(high):
        raise refusal(wanted, value, f'the lower one comes first: write "{high}-{low}"')
    return AddressRange(low, high)


RangeValue = Annotated[
    AddressRange,
    PlainValidator(read_range),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9A-Fa-f:.]+(/[0-9]{1,3}| *- *[0-9A-Fa-f:.]+)?$"}),
]


class PoolAddress(LocalAddress):
    """An address that a rule sends from. FULLNAT services don't use it; several rules may, if their pools are alike."""


class Snat(Section):
    """What leaves internal networks by lbd, from an address of a pool. See [snat](modes/snat.md).

    Rules are tried in their order. What none of them is for is the kernel's.
    """

    name: Name = Field(description="Name in commands, logs and metrics; no service has it.", examples=["office"])
    source: tuple[RangeValue, ...] = Field(
        min_length=1,
        max_length=RANGES_MAX,
        description="Internal addresses: networks, ranges, single ones.",
        examples=[["10.0.0.0/8"]],
    )
    destination: tuple[RangeValue, ...] = Field(
        (), max_length=RANGES_MAX, description="Where to; empty: everywhere but this host.", examples=[["203.0.113.0/24"]]
    )
    protocol: Literal["all", "tcp", "udp", "icmp"] = Field(
        "all", description="Of `icmp` echo requests alone, and ICMP errors of all. `all` are these three."
    )
    in_interface: InterfaceName | None = Field(
        None, description="That the packets come in by, one of lbd's. Without it: any.", examples=["eth1"]
    )
    out_interface: InterfaceName | None = Field(
        None, description="That the route to the destination leads out of, one of lbd's. Without it: any.", examples=["eth0"]
    )
    tcp_established: Duration = Field(
        7440.0, ge=0.1, le=604800, description="In place of `timeouts.tcp_established`; the default is what RFC 5382 asks for."
    )
    pool: tuple[PoolAddress, ...] = Field((), max_length=1024, description="Addresses that it sends from.")

    @property
    def af(self) -> int:
        """4 or 6: that of its first source."""
        return self.source[0].af

    def destinations(self) -> tuple[AddressRange, ...]:
        """Its destinations."""
        every = ipaddress.ip_network("0.0.0.0/0" if self.af == 4 else "::/0")
        return self.destination or (AddressRange(every[0], every[-1]),)
