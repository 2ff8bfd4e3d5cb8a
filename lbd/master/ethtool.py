# SPDX-License-Identifier: Apache-2.0
"""Queue counts and receive-side scaling of a device, by the ethtool ioctl.

Scope: two questions to the kernel; whoever asks repeats them, since drivers send no event when somebody else
runs `ethtool -L` or `-X`. The ioctl, not ethtool netlink: RSS by netlink exists from kernel 6.2 on only, and
does not tell the hashed fields there. What a driver does not answer is None: unknown, never a guess. A driver that
tells table and function but no key, and is known to take the host's one key (netdev_rss_key_fill) and no other, has
that one: net.core.netdev_rss_key, which the first network namespace alone shows.
References: include/uapi/linux/ethtool.h, net/ethtool/ioctl.c, igb_setup_mrqc in drivers/net/ethernet/intel/igb.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from pathlib import Path

from lbd.master.record import Channels, Rss

_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x03
_ETHTOOL_GRXFH = 0x29
_ETHTOOL_GCHANNELS = 0x3C
_ETHTOOL_GRSSH = 0x46
_CHANNELS = struct.Struct("=9I")  # cmd, max rx tx other combined, rx tx other combined
_RXFH = struct.Struct("=IIIIB3xI")  # cmd, context, indir_size, key_size, hfunc, (pad), rsvd32
_DRVINFO_BYTES = 196  # struct ethtool_drvinfo: cmd, char driver[32], …
_RXNFC_BYTES = 192  # struct ethtool_rxnfc with its flow specification
_RXFH_FLOWS = (("tcp4", 1), ("udp4", 2), ("tcp6", 5), ("udp6", 6))  # TCP_V4_FLOW, …
_FUNCTIONS = {1: "toeplitz", 2: "xor", 4: "crc32"}
_SYSTEM_KEY = Path("/proc/sys/net/core/netdev_rss_key")
_SYSTEM_KEY_DRIVERS = {"igb": 40}  # bytes of it that the device has; seen to be obeyed in tests/vm/test_mode.py
_UNKNOWN = (errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ENODEV)


def _ask(sock: socket.socket, name: str, request: ctypes.Array[ctypes.c_char]) -> bool:
    """One ioctl, answered in place; False where device or driver does not answer."""
    ifreq = struct.pack("16sP16x", name.encode(), ctypes.addressof(request))
    try:
        fcntl.ioctl(sock, _SIOCETHTOOL, ifreq)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return False
        raise
    return True


def read_channels(sock: socket.socket, ifindex: int, name: str) -> Channels | None:
    request = ctypes.create_string_buffer(_CHANNELS.pack(_ETHTOOL_GCHANNELS, *(0,) * 8), _CHANNELS.size)
    if _ask(sock, name, request):
        _, _, _, _, _, rx, tx, _, combined = _CHANNELS.unpack(request.raw)
        return Channels(ifindex, name, rx + combined, tx + combined)
    # NB: /sys shows the network namespace that it was mounted in, so this is the second choice
    queues = Path("/sys/class/net") / name / "queues"
    rx, tx = (sum(1 for _ in queues.glob(f"{direction}-*")) for direction in ("rx", "tx"))
    return Channels(ifindex, name, rx, tx) if rx and tx else None


def read_rss(sock: socket.socket, ifindex: int, name: str) -> Rss | None:
    request = ctypes.create_string_buffer(_RXFH.pack(_ETHTOOL_GRSSH, 0, 0, 0, 0, 0), _RXFH.size)
    if not _ask(sock, name, request):  # first the sizes
        return None
    _, _, indir, key, _, _ = _RXFH.unpack(request.raw)
    if not indir:
        return None
    size = _RXFH.size + 4 * indir + key
    request = ctypes.create_string_buffer(_RXFH.pack(_ETHTOOL_GRSSH, 0, indir, key, 0, 0), size)
    if not _ask(sock, name, request):
        return None
    function = _RXFH.unpack_from(request.raw)[4]
    table = struct.unpack_from(f"={indir}I", request.raw, _RXFH.size)
    fields = ((flow, _read_fields(sock, name, number)) for flow, number in _RXFH_FLOWS)
    return Rss(
        ifindex=ifindex,
        name=name,
        function=_FUNCTIONS.get(function, ""),
        key=request.raw[_RXFH.size + 4 * indir :] or _read_system_key(sock, name),
        table=table,
        fields=tuple((flow, bits) for flow, bits in fields if bits is not None),
    )


def driver_of(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return read_driver(sock, name)


def read_driver(sock: socket.socket, name: str) -> str:
    """Empty if it is not told."""
    request = ctypes.create_string_buffer(struct.pack("=I", _ETHTOOL_GDRVINFO), _DRVINFO_BYTES)
    return request.raw[4:36].rstrip(b"\0").decode(errors="replace") if _ask(sock, name, request) else ""


def _read_system_key(sock: socket.socket, name: str) -> bytes:
    length = _SYSTEM_KEY_DRIVERS.get(read_driver(sock, name), 0)
    try:
        return bytes.fromhex(_SYSTEM_KEY.read_text().strip().replace(":", ""))[:length]
    except (OSError, ValueError):
        return b""


def _read_fields(sock: socket.socket, name: str, flow: int) -> int | None:
    request = ctypes.create_string_buffer(struct.pack("=IIQ", _ETHTOOL_GRXFH, flow, 0), _RXNFC_BYTES)
    return int(struct.unpack_from("=Q", request.raw, 8)[0]) if _ask(sock, name, request) else None
