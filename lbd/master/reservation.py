# SPDX-License-Identifier: Apache-2.0
"""Port ranges kept from the kernel's automatic choice of local ports, for IPv4 and IPv6 alike.

Scope: the arithmetic of ranges, and the sysctl net.ipv4.ip_local_reserved_ports. It is one list for the whole
network namespace, and others may have put ranges there: only what was added is ever taken away. Reading and
writing back is not atomic; a tool that writes between the two loses its change.

NB: the kernel chooses ports of outgoing connections from ip_local_port_range less this list. A reservation
that covers the range would end every outgoing connection of the host (EADDRNOTAVAIL), so it is refused.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

PortRange = tuple[int, int]  # first, last: both included

_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LEAST_EPHEMERAL = 1024  # ports that have to stay for the host's own connections


def parse_ranges(text: str) -> list[PortRange]:
    ranges = []
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        ranges.append((int(first), int(last or first)))
    return ranges


def format_ranges(ranges: Iterable[PortRange]) -> str:
    return ",".join(f"{first}-{last}" if last != first else str(first) for first, last in ranges)


def merge(ranges: Iterable[PortRange]) -> list[PortRange]:
    """Sorted, neither overlapping nor touching."""
    merged: list[PortRange] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def subtract(ranges: Iterable[PortRange], taken: Iterable[PortRange]) -> list[PortRange]:
    """What is in `ranges` and not in `taken`."""
    rest = merge(ranges)
    for low, high in merge(taken):
        kept: list[PortRange] = []
        for first, last in rest:
            kept += [
                part
                for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
                if part[0] <= part[1]
            ]
        rest = merge(kept)
    return rest


def count(ranges: Iterable[PortRange]) -> int:
    return sum(last - first + 1 for first, last in merge(ranges))


def read_reserved() -> list[PortRange]:
    return merge(parse_ranges(_RESERVED.read_text()))


def missing(wanted: PortRange) -> list[PortRange]:
    """What of it is not reserved yet; OSError where reserving it would leave the host without ports."""
    reserved = read_reserved()
    low, high = (int(part) for part in _EPHEMERAL.read_text().split())
    left = count(subtract([(low, high)], [*reserved, wanted]))
    if left < LEAST_EPHEMERAL:
        raise OSError(
            errno.EADDRNOTAVAIL,
            f"reserving ports {wanted[0]}-{wanted[1]} would leave {left} of net.ipv4.ip_local_port_range"
            f" ({low}-{high}) for this host's own connections; {LEAST_EPHEMERAL} are needed:"
            " narrow `ports` of the local addresses, or widen that sysctl",
        )
    return subtract([wanted], reserved)


def reserve(ranges: Iterable[PortRange]) -> None:
    _RESERVED.write_text(format_ranges(merge([*read_reserved(), *ranges])) + "\n")


def release(ranges: Iterable[PortRange]) -> None:
    _RESERVED.write_text(format_ranges(subtract(read_reserved(), ranges)) + "\n")
