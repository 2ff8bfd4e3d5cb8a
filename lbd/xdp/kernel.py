# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of XDP on this host: is lbd able to run, what a driver can do, who holds a queue.

Scope: questions alone, nothing is changed. Answers come from /proc and from two netlink families that need no
library (generic netlink `netdev`, Linux 6.3; sock_diag for AF_XDP). What an old kernel can't tell is None.

Reference: kernel Documentation/netlink/specs/netdev.yaml, include/uapi/linux/xdp_diag.h.
"""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

AF_XDP = 44
SIOCGIFMTU = 0x8921  # linux/sockios.h
OLDEST_KERNEL = (5, 15)
# Numbers: linux/capability.h. CAP_PERFMON: without it the verifier refuses offsets into a packet that it has to compute.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_BPF": 39, "CAP_PERFMON": 38}
CAP_SYS_ADMIN = 21  # includes the last two

NETLINK_SOCK_DIAG, NETLINK_GENERIC = 4, 16
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, NETDEV_A_DEV_XDP_FEATURES = 1, 1, 3
NETDEV_XDP_ACT_XSK_ZEROCOPY = 8
SOCK_DIAG_BY_FAMILY, XDP_SHOW_INFO, XDP_DIAG_INFO = 20, 1, 1


@dataclass(frozen=True, slots=True)
class Probe:
    kernel: str
    capabilities: dict[str, bool]
    problems: tuple[str, ...]  # why lbd can't run here, each with its remedy; empty: it can


def probe() -> Probe:
    release = platform.release()
    effective = effective_capabilities()
    held = {name: bool(effective >> n & 1) for name, n in CAPABILITIES.items()}
    for name in ("CAP_BPF", "CAP_PERFMON"):
        held[name] |= bool(effective >> CAP_SYS_ADMIN & 1)
    problems = []
    if kernel_version(release) < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        problems.append(f"Linux {release} is too old: lbd needs {oldest} or later")
    if missing := [name for name, has in held.items() if not has]:
        problems.append(f"{', '.join(missing)} missing: run lbd as root, or by its systemd unit")
    if held["CAP_NET_RAW"]:
        try:
            socket.socket(AF_XDP, socket.SOCK_RAW, 0).close()
        except OSError as error:
            problems.append(f"no AF_XDP sockets ({error.strerror}): the kernel needs CONFIG_XDP_SOCKETS")
    return Probe(release, held, tuple(problems))


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 18) of '6.18.15+deb13-amd64'."""
    major, minor = release.split("-")[0].split(".")[:2]
    return int(major), int(minor.rstrip("+"))


def effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def device_mtu(name: str) -> int | None:
    """None: there is no such device in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, SIOCGIFMTU, struct.pack("16si20x", name.encode()[:15], 0))
        except OSError:
            return None
    mtu: int = struct.unpack_from("i", answer, 16)[0]
    return mtu


def driver_zero_copy(ifindex: int) -> bool | None:
    """Does the driver offer AF_XDP zero-copy? None: this kernel does not say (before 6.3)."""
    try:
        name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0")
        for body in ask(NETLINK_GENERIC, GENL_ID_CTRL, 0, genl_head(CTRL_CMD_GETFAMILY) + name):
            family = struct.unpack("=H", attributes(body[4:])[CTRL_ATTR_FAMILY_ID])[0]
            which = attribute(NETDEV_A_DEV_IFINDEX, struct.pack("=I", ifindex))
            for device in ask(NETLINK_GENERIC, family, 0, genl_head(NETDEV_CMD_DEV_GET) + which):
                features = struct.unpack("=Q", attributes(device[4:])[NETDEV_A_DEV_XDP_FEATURES])[0]
                return bool(features & NETDEV_XDP_ACT_XSK_ZEROCOPY)
    except (OSError, KeyError, struct.error):
        pass
    return None


def queue_holder(ifindex: int, queue: int) -> str | None:
    """Who has an AF_XDP socket on this queue: 'name (process id)'. None: nobody, or the kernel can't tell
    (CONFIG_XDP_SOCKETS_DIAG)."""
    request = struct.pack("=BBHIIII", AF_XDP, 0, 0, 0, XDP_SHOW_INFO, 0, 0)
    try:
        for body in ask(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request):
            inode = struct.unpack_from("=BBHI", body)[3]
            info = attributes(body[16:]).get(XDP_DIAG_INFO)
            if info and struct.unpack("=II", info) == (ifindex, queue):
                return process_with(f"socket:[{inode}]")
    except (OSError, struct.error):
        pass
    return None


def process_with(link: str) -> str | None:
    """The first process that has this descriptor open."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == link for fd in (directory / "fd").iterdir()):
                return f"{(directory / 'comm').read_text().strip()} (process {directory.name})"
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return None


# ---- netlink, as far as needed ------------------------------------------------------------------------


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def genl_head(command: int) -> bytes:
    return struct.pack("=BBH", command, 1, 0)


def ask(protocol: int, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """The bodies of the answers to one request; OSError if the kernel refuses it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
        netlink.settimeout(2)
        netlink.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)
        while True:
            data, at = netlink.recv(1 << 16), 0
            while at + 16 <= len(data):
                size, answer = struct.unpack_from("=IH", data, at)
                if answer == NLMSG_DONE or size < 16:
                    return
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, at + 16)[0]
                    raise OSError(code, os.strerror(code))
                yield data[at + 16 : at + size]
                at += (size + 3) & ~3
            if not flags & NLM_F_DUMP:
                return
