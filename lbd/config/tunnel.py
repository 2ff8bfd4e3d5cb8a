# SPDX-License-Identifier: Apache-2.0
"""Tables of the configuration about tunnels: [service.tunnel] [service.real_server.tunnel] [[tunnel]]."""

from typing import Literal

from pydantic import Field

from lbd.config.address import AddressValue
from lbd.config.section import Section
from lbd.config.value import Int, Name

GUE_PORT = 6080
TUNNEL_MAX = 64  # tunnels that end here; TUNNEL_MAX of lbd/datapath/decap.pxd

Kind = Literal["ipip", "gre", "gue"]
Checksum = Literal["none", "full"]


class Encapsulation(Section):
    """Mode `tunnel`: how packets get to the service's real servers."""

    type: Kind = Field(
        "ipip",
        description="What stands between outer and inner IP header, as ipvsadm's `--tun-type`: nothing (`ipip`), GRE's header "
        "(`gre`), UDP's and GUE's (`gue`).",
    )
    port: Int = Field(GUE_PORT, ge=1, le=65535, description="UDP port of `gue` at the real server (`--tun-port`).")
    checksum: Checksum | None = Field(
        None,
        description="Of `gre` and `gue`: `none` (`--tun-nocsum`) or `full` (`--tun-csum`). Without it `full` for `gue` over IPv6, "
        "else `none`. Remote checksum offload (`--tun-remcsum`) is not there.",
        examples=["full"],
    )
    source: AddressValue | None = Field(
        None,
        description="Outer source address for real servers of its family; the host must have it. Without it the first local "
        "address of the family, else that of the interface.",
        examples=["10.0.0.1"],
    )


class ServerEncapsulation(Section):
    """What is otherwise for this real server than for the service."""

    type: Kind | None = Field(None, description="`ipip`, `gre` or `gue`.", examples=["gre"])
    port: Int | None = Field(None, ge=1, le=65535, description="UDP port of `gue`.", examples=[6080])
    checksum: Checksum | None = Field(None, description="Of `gre` and `gue`: `none` or `full`.", examples=["full"])


class Tunnel(Section):
    """A tunnel that ends here: what comes in it for a service or local address is unpacked and balanced."""

    name: Name = Field(description="Name in messages; unique.", examples=["edge"])
    type: Literal["ipip", "gre"] = Field("ipip", description="`ipip` (IPv4 or IPv6 in either) or `gre` (without key).")
    local: AddressValue = Field(description="The host's address that it ends at.", examples=["10.0.0.1"])
    remote: AddressValue | None = Field(
        None, description="Where it comes from. Without it: from anywhere.", examples=["203.0.113.9"]
    )

    @property
    def key(self) -> tuple[str, object, object]:
        """What no two share."""
        return (self.type, self.local, self.remote)


def effective(service: Encapsulation, server: ServerEncapsulation | None, af: int) -> tuple[Kind, int, Checksum]:
    """How packets get to a real server of this family: type, port (0 unless GUE), checksum."""
    own = server or ServerEncapsulation()
    kind = own.type or service.type
    port = own.port or service.port
    checksum = own.checksum or service.checksum or ("full" if kind == "gue" and af == 6 else "none")
    return kind, port if kind == "gue" else 0, "none" if kind == "ipip" else checksum
