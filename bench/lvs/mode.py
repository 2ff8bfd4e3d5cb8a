# SPDX-License-Identifier: Apache-2.0
"""What is measured: a row is a forwarding mode, with what has to be set for the kernel and for lbd, and what must leave.

Read by both ends: guest.py in the VM sets it up and sends, vm.py outside judges what left. A mode that lbd's configuration refuses
is reported as not there yet; a new one takes a row.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address

CLIENT_NET = "10.1.0.0/16"  # vmgen's sources
IN_ADDRESS, OUT_ADDRESS, LIP, SERVER = "10.1.255.254", "10.2.255.254", "10.2.0.101", "10.2.0.9"
SERVER_MAC = "02:00:00:00:99:01"
MACS = {"gen0": "52:54:00:00:00:01", "in0": "52:54:00:00:00:02", "out0": "52:54:00:00:00:03", "sink0": "52:54:00:00:00:04"}
PORT = 53
FLOWS = 1000
SMALL, LARGE = 128, 384  # packets of a burst


@dataclass(frozen=True)
class Mode:
    name: str
    ipvs: str | None  # ipvsadm's option; "" is plain forwarding, None: the kernel does not have it
    lbd: dict[str, object] | None  # fields of a [[service]]; None: lbd does not do that
    peer: str  # the mode of the kernel's that lbd is compared with
    saddr: str = ""  # of what leaves; "" is the client's
    daddr: str = SERVER  # "" is the VIP
    outer: bool = False  # in an IPIP header from the balancer to the real server


MODES = (
    Mode("forward", "", None, ""),
    Mode("nat", "-m", {"mode": "nat"}, "nat"),
    Mode("fullnat", None, {"mode": "fullnat"}, "nat", saddr=LIP),
    Mode("dr", "-g", {"mode": "dr"}, "dr", daddr=""),
    Mode("tunnel", "-i", {"mode": "tunnel"}, "tunnel", daddr="", outer=True),
)
SYSTEMS = ("kernel", "lbd zero-copy", "lbd copy")
GOAL = 5.0  # times fewer instructions than kernel IPVS NAT: of lbd zero-copy NAT, and of FULLNAT until that is there


def vip(mode: Mode) -> str:
    return str(IPv4Address("10.3.0.10") + MODES.index(mode))


def number(system: str, mode: Mode) -> int:
    """Of a case: it is in every packet's payload."""
    return 16 * SYSTEMS.index(system) + MODES.index(mode)
