# SPDX-License-Identifier: Apache-2.0
"""How large packet buffers are, and whether packets may lie in several of them: by the largest MTU of the interfaces.

    largest MTU       buffers        packets
    up to 1770        2048 bytes     one buffer each
    up to 3818        4096 bytes     one buffer each
    more              4096 bytes     up to 18 buffers (AF_XDP multi-buffer)

Of a buffer the kernel keeps 256 bytes before what it receives, and 22 are for Ethernet's header and two tags. Drivers of WHOLE_KIB
get 4096 bytes whatever the MTU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbd.config.interface import Interface

FRAME, FRAME_LARGE = 2048, 4096  # CHUNK and CHUNK_LARGE of lbd/shm/layout.pxd
HEADROOM = 256  # XDP_HEADROOM there
LINK_BYTES = 14 + 2 * 4
CHAIN_MAX = 18  # of lbd/datapath/engine.pxd
MTU_LIMIT = 65535  # no IP packet is larger; the loopback's MTU is

# Drivers that count a zero-copy socket's receive buffers in whole KiB: of packet buffers of 2 KiB, less the kernel's headroom, the
# device would use 1 KiB, and longer packets came in pieces (igb_setup_srrctl, SRRCTL.BSIZEPKT; kernel 6.18)
WHOLE_KIB = ("igb",)


def mtu_max(frame_size: int, chains: int = 0) -> int:
    """The largest MTU with buffers of this size; `chains`: packets may lie in several."""
    return min(MTU_LIMIT, (frame_size - HEADROOM) * (CHAIN_MAX if chains else 1) - LINK_BYTES)


def device_mtus(interface: Interface, drivers: Iterable[str]) -> list[int]:
    """What packet buffers are to hold besides the MTU, where a driver does not make use of all of them. drivers: of the interface,
    or of a bond's slaves."""
    return [] if interface.copies else [mtu_max(FRAME) + 1 for driver in drivers if driver in WHOLE_KIB]


def frame_sizes(given: int | None, mtus: Iterable[int]) -> dict[str, int]:
    """`frame_size` and `chains` of `Sizes`. `given`: tables.frame_size."""
    largest = max(mtus, default=0)
    size = given or (FRAME if largest <= mtu_max(FRAME) else FRAME_LARGE)
    return {"frame_size": size, "chains": int(largest > mtu_max(size))}
