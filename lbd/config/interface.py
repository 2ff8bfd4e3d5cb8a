# SPDX-License-Identifier: Apache-2.0
"""Tables of the configuration about the network: [[interface]] [[local_address]] [[neighbor]] [[route]]."""

from typing import Literal

from pydantic import Field

from lbd.config.address import AddressValue, MacValue, NetworkValue, NextHopValue
from lbd.config.section import Section
from lbd.config.value import Bool, InterfaceName, PortRange, PortRangeValue, PowerOfTwo

IFACE_MAX = 16  # IFACE_MAX of lbd/datapath/pkt.pxd


class Interface(Section):
    """An interface that lbd receives and sends on, with an AF_XDP socket on each of its queues."""

    name: InterfaceName = Field(
        description="Name of the interface. A bond's own name serves all its slaves; VLANs on an interface need no entry. See "
        "[devices](devices.md).",
        examples=["eth0"],
    )
    zero_copy: Literal["auto", "require", "off"] = Field(
        "auto",
        description="Zero-copy sockets: `auto` if the driver has them, `off`, "
        "`require` refuses to start without.",
    )
    ring: PowerOfTwo = Field(
        2048, ge=64, le=32768, description="Entries of each of a socket's four rings; a power of two."
    )
    attach: Literal["native", "generic"] = Field(
        "native",
        description="Where the XDP program runs: in the driver, or (slower, any driver) in the generic hook.",
    )

    @property
    def copies(self) -> bool:
        """Zero-copy is not even tried."""
        return self.zero_copy == "off" or self.attach == "generic"


class LocalAddress(Section):
    """A LIP: an address that FULLNAT sends from to real servers."""

    address: AddressValue = Field(
        description="The address. Real servers must route it back to lbd.", examples=["10.0.0.10"]
    )
    interface: InterfaceName | None = Field(
        None, description="Where the address is added if `manage`.", examples=["eth1"]
    )
    ports: PortRangeValue = Field(
        PortRange(10240, 32767),
        description="Ports that lbd takes; all others of this address stay the kernel's. lbd keeps them from "
        "the kernel's automatic choice, `net.ipv4.ip_local_port_range` (32768-60999): leave it some.",
    )
    manage: Bool = Field(True, description="Add the address at start and remove it at stop.")

    @property
    def af(self) -> int:
        """4 or 6."""
        return self.address.version


class Neighbor(Section):
    """A static neighbour. In `lbd replay` it stands in for the kernel's table."""

    interface: InterfaceName = Field(
        description="Interface that the neighbour is reached by.", examples=["eth1"]
    )
    address: NextHopValue = Field(description="Its address.", examples=["10.0.1.1"])
    mac: MacValue = Field(description="Its link-layer address.", examples=["02:00:00:00:00:01"])

    @property
    def af(self) -> int:
        """4 or 6."""
        return self.address.version


class Route(Section):
    """A static route. In `lbd replay` it stands in for the kernel's table."""

    destination: NetworkValue = Field(
        description='Where to; "0.0.0.0/0" is the default route.', examples=["10.0.1.0/24"]
    )
    gateway: NextHopValue | None = Field(
        None, description="Next hop. Without it the destination is on the link.", examples=["10.0.0.1"]
    )
    interface: InterfaceName = Field(description="Interface that it leads out of.", examples=["eth1"])

    @property
    def af(self) -> int:
        """4 or 6."""
        return self.destination.version
