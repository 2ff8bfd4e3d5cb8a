# SPDX-License-Identifier: Apache-2.0
"""Sockets in a namespace of the testbed, held by the test's own process: a socket stays where it was made.

Only the calling thread visits the namespace, and only for as long as the socket is made and connected.
"""

import select
import socket
from contextlib import AbstractContextManager

from lbd.testbed import Namespace
from tests.netns.space import inside

TIMEOUT = 10.0  # seconds; for what should take none, on a busy machine


def visiting(ns: Namespace) -> AbstractContextManager[None]:
    return inside(ns.path)


def dial(ns: Namespace, address: str, port: int, source: str = "") -> socket.socket:
    """A TCP connection; `source`: from this address, at a port that the kernel chooses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with visiting(ns):
        sock = socket.socket(family)
    try:
        sock.settimeout(TIMEOUT)
        if source:
            sock.bind((source, 0))
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def exchange(sock: socket.socket, data: bytes, seconds: float = 30) -> bytes:
    """Send everything, while everything that comes is read, until as much has come as was sent."""
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    came, sent = bytearray(), 0
    while len(came) < len(data):
        events = poll.poll(seconds * 1000)
        assert events, f"{sent} of {len(data)} bytes sent, {len(came)} came back, then nothing for {seconds} s"
        if events[0][1] & select.POLLOUT:
            sent += sock.send(memoryview(data)[sent : sent + (1 << 16)])
            if sent == len(data):
                poll.modify(sock, select.POLLIN)
        if events[0][1] & ~select.POLLOUT:
            chunk = sock.recv(1 << 16)
            assert chunk, f"closed after {len(came)} of {len(data)} bytes"
            came += chunk
    sock.settimeout(TIMEOUT)
    return bytes(came)


def http(sock: socket.socket, path: str = "/") -> bytes:
    """One request on a connection that is kept; the body of the answer, which is right."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = sock.recv(65536)
        assert chunk, "closed by the server"
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    lines = head.decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    while len(body) < length:
        chunk = sock.recv(65536)
        assert chunk, "closed by the server"
        body += chunk
    return body
