# SPDX-License-Identifier: Apache-2.0
"""Passing a worker's descriptors between processes: master to worker at a start, worker to new master at an
adoption.

Scope: the set itself (`WorkerSet`) and its way over a unix socket; no process is started or ended here.
Imported by the worker too, whose start-up time counts, so: no logging, no asyncio, nothing but the standard
library's small parts.

A message on a SOCK_SEQPACKET socket, whose packets keep their boundaries:

    packet 0        JSON object: the sender's words, and "fds": how many descriptors follow
    packet 1 .. n   one byte and up to 250 descriptors each (SCM_RIGHTS; the kernel's limit is 253)

In the JSON of a set, descriptors stand as positions in that list; one that is used twice is sent once.

Prohibited: a descriptor number of another process is never meaningful here, so none is ever sent as a number.
A message that is cut short or does not fit its head is refused whole, and the descriptors that came with it
are closed.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

BATCH = 250  # descriptors a packet
FDS_MAX = 4096
HEAD_MAX = 128 * 1024  # below the default send buffer, so that a packet of this size is never refused
SOCKET_NAME = "worker-{}.sock"


class HandoverError(Exception):
    """The peer's message is not one of ours, or it went away in the middle."""


@dataclass(slots=True)
class WorkerSet:
    """All that a worker process needs, by descriptor. The holder owns the descriptors: `close` ends them."""

    number: int
    run_dir: str
    segment: int
    host: int
    area: int
    conn: int
    peers: dict[int, int] = field(default_factory=dict)  # worker -> its segment (best read-only)
    wake: dict[int, int] = field(default_factory=dict)  # worker -> its eventfd, own included
    # an AF_XDP socket each: iface, ifindex, queue, fd, fill, comp, rx, tx (ring sizes); more keys pass
    # through
    ports: list[dict[str, Any]] = field(default_factory=list)
    via: dict[int, int] = field(default_factory=dict)  # iface without a queue here -> worker that has one
    links: dict[str, int] = field(default_factory=dict)  # interface -> bpf_link; only held by the worker
    maps: dict[str, int] = field(default_factory=dict)  # BPF maps by name; the same
    core: int | None = None  # to be pinned on
    fifo_priority: int = 0  # SCHED_FIFO; 0: not
    log_level: str = "info"
    extra: dict[str, Any] = field(default_factory=dict)  # the master's own notes for its successor

    def fds(self) -> list[int]:
        """Every descriptor, each once."""
        held = [self.segment, self.host, self.area, self.conn, *self.peers.values(), *self.wake.values()]
        held += [port["fd"] for port in self.ports]
        held += [*self.links.values(), *self.maps.values()]
        return list(dict.fromkeys(held))

    def close(self) -> None:
        for fd in self.fds():
            os.close(fd)

    def words(self) -> tuple[dict[str, Any], list[int]]:
        """As JSON with positions, and the descriptors that these stand for."""
        fds = self.fds()
        at = {fd: i for i, fd in enumerate(fds)}
        return {
            "number": self.number,
            "run_dir": self.run_dir,
            "segment": at[self.segment],
            "host": at[self.host],
            "area": at[self.area],
            "conn": at[self.conn],
            "peers": [[worker, at[fd]] for worker, fd in self.peers.items()],
            "wake": [[worker, at[fd]] for worker, fd in self.wake.items()],
            "ports": [port | {"fd": at[port["fd"]]} for port in self.ports],
            "via": list(self.via.items()),
            "links": {name: at[fd] for name, fd in self.links.items()},
            "maps": {name: at[fd] for name, fd in self.maps.items()},
            "core": self.core,
            "fifo_priority": self.fifo_priority,
            "log_level": self.log_level,
            "extra": self.extra,
        }, fds

    @classmethod
    def from_words(cls, words: dict[str, Any], fds: list[int]) -> WorkerSet:
        def held(position: object) -> int:
            if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < len(fds):
                raise HandoverError(f"descriptor {position!r} of {len(fds)}")
            return fds[position]

        try:
            return cls(
                number=int(words["number"]),
                run_dir=str(words["run_dir"]),
                segment=held(words["segment"]),
                host=held(words["host"]),
                area=held(words["area"]),
                conn=held(words["conn"]),
                peers={int(worker): held(at) for worker, at in words["peers"]},
                wake={int(worker): held(at) for worker, at in words["wake"]},
                ports=[port | {"fd": held(port["fd"])} for port in words["ports"]],
                via={int(iface): int(worker) for iface, worker in words["via"]},
                links={str(name): held(at) for name, at in words["links"].items()},
                maps={str(name): held(at) for name, at in words["maps"].items()},
                core=words["core"],
                fifo_priority=int(words["fifo_priority"]),
                log_level=str(words["log_level"]),
                extra=dict(words["extra"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HandoverError(f"a worker's set is incomplete: {error!r}") from None


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, words: dict[str, Any], fds: list[int] = []) -> None:  # noqa: B006 (only read)
    """Raises OSError if the peer is gone, HandoverError if the message is too large to be sent at all."""
    head = json.dumps(words | {"fds": len(fds)}).encode()
    if len(head) > HEAD_MAX or len(fds) > FDS_MAX:
        raise HandoverError(f"{len(head)} bytes and {len(fds)} descriptors are more than one message carries")
    sock.send(head)
    for start in range(0, len(fds), BATCH):
        socket.send_fds(sock, [b"F"], fds[start : start + BATCH])


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message; the descriptors are the caller's. TimeoutError by the socket's own time limit."""
    held: list[int] = []
    try:
        head, came = receive_packet(sock, HEAD_MAX)
        held += came
        if not head:
            raise HandoverError("the peer closed the connection")
        words = json.loads(head)
        count = words.pop("fds") if isinstance(words, dict) and "fds" in words else None
        if not isinstance(count, int) or not 0 <= count <= FDS_MAX or came:
            raise HandoverError("not a message of lbd")
        while len(held) < count:
            mark, came = receive_packet(sock, 1)
            held += came
            if mark != b"F" or not came or len(held) > count:
                raise HandoverError(f"{len(held)} of {count} descriptors came")
        return words, held
    except BaseException as error:
        for fd in held:
            os.close(fd)
        if isinstance(error, ValueError):
            raise HandoverError("not a message of lbd") from None
        raise


def receive_packet(sock: socket.socket, room: int) -> tuple[bytes, list[int]]:
    space = socket.CMSG_SPACE(253 * 4)
    data, control, flags, _ = sock.recvmsg(room, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        # CTRUNC: mostly our own limit of open files
        for fd in fds:
            os.close(fd)
        raise HandoverError("a message did not fit: too long, or too many open files here (LimitNOFILE)")
    return data, list(fds)


def peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel saw it at connect or listen."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def trusted(sock: socket.socket) -> bool:
    """Root, or whom this process runs as."""
    return peer(sock)[1] in (0, os.geteuid())
