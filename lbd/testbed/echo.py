# SPDX-License-Identifier: Apache-2.0
"""The echo server that `talk.py` talks to: `python -m lbd.testbed.echo PORT`, TCP and UDP, IPv4 and IPv6."""

from __future__ import annotations

import select
import socket
import sys


def serve(port: int) -> None:
    poll = select.epoll()
    owed: dict[int, bytes] = {}  # what a connection could not take yet
    streams: dict[int, socket.socket] = {}
    listeners: dict[int, socket.socket] = {}
    datagrams: dict[int, socket.socket] = {}
    for af in (socket.AF_INET, socket.AF_INET6):
        for kind, known in ((socket.SOCK_STREAM, listeners), (socket.SOCK_DGRAM, datagrams)):
            sock = socket.socket(af, kind | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if af == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("", port))
            if kind == socket.SOCK_STREAM:
                sock.listen(1024)
            known[sock.fileno()] = sock
            poll.register(sock, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            try:
                if fd in listeners:
                    stream, _ = listeners[fd].accept()
                    stream.setblocking(False)
                    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    streams[stream.fileno()] = stream
                    poll.register(stream, select.EPOLLIN)
                elif fd in datagrams:
                    data, sender = datagrams[fd].recvfrom(65536)
                    datagrams[fd].sendto(data, sender)
                else:
                    echo(poll, streams, owed, fd)
            except BlockingIOError:
                pass
            except OSError:
                if fd in streams:
                    owed.pop(fd, None)
                    streams.pop(fd).close()


def echo(poll: select.epoll, streams: dict[int, socket.socket], owed: dict[int, bytes], fd: int) -> None:
    data = owed.pop(fd, b"") or streams[fd].recv(65536)
    if not data:
        raise ConnectionResetError
    try:
        left = data[streams[fd].send(data) :]
    except BlockingIOError:
        left = data
    if left:
        owed[fd] = left
    poll.modify(fd, select.EPOLLOUT if left else select.EPOLLIN)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
