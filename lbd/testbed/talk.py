# SPDX-License-Identifier: Apache-2.0
"""A client that notices everything: many connections that last, and each reply is checked.

    python -m lbd.testbed.talk CONTROL SETTINGS        SETTINGS: the fields of `Settings`, as JSON

The other end is `echo.py`. Connections are opened once and never again: each sends a numbered request, waits
for exactly these bytes to come back, pauses, and sends the next. A reset, a close or a wrong byte is an error
of the report; a late reply is not, and its lateness is measured. UDP flows send numbered probes at a steady
pace and wait for nothing: what they measure is how long a flow was without service, and what was lost.

CONTROL is a unix socket; a line of it is a word, and the answer a line of JSON:

    mark      starts a new window of measurement, now; answers what `report` would
    report    figures since the last mark
    pause     no new requests and probes; what is under way goes on
    go        the opposite
"""

from __future__ import annotations

import heapq
import json
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

HEAD = struct.Struct("!IIQ")  # flow, bytes of the message, number
SIZES = (64, 64, 64, 512, 4096)  # of requests; several segments each now and then
OPENING = 64  # connections under way at once
ERRORS_KEPT = 20
GIVEN_UP = 10.0  # seconds after which a probe counts as lost


@dataclass
class Settings:
    targets: list[tuple[str, int]]  # addresses and port to talk to, in turn
    streams: int = 500
    flows: int = 16
    pause: float = 0.1  # between a reply and the next request of a connection, seconds, on average
    pace: float = 0.02  # between the probes of a flow
    sizes: Sequence[int] = SIZES  # of requests, bytes


def message(flow: int, size: int, number: int) -> bytes:
    """Every 16 bytes of it say whose they are."""
    return HEAD.pack(flow, size, number) * (size // HEAD.size)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(slots=True)
class Stream:
    """A TCP connection: one request at a time."""

    number: int
    sock: socket.socket
    open: bool = False
    broken: bool = False
    count: int = 0  # requests so far
    request: bytes = b""  # under way; empty: none
    unsent: bytes = b""
    seen: int = 0  # bytes of the reply so far, right so far
    sent_at: float = 0.0


@dataclass(slots=True)
class Flow:
    """A UDP flow: probes without waiting."""

    number: int
    sock: socket.socket
    count: int = 0
    waiting: dict[int, float] = field(default_factory=dict)  # probe -> when it was sent
    last: float = 0.0  # reply
    resumed: float | None = None  # from the mark to the first reply to a probe that was sent after it


class Window:
    """What happened since the last mark."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.requests = self.probes = self.replies = 0
        self.longest = 0.0  # from a request to its whole reply
        self.silence = 0.0  # longest time of a flow between two replies
        self.last = self.since  # reply on any connection
        self.gap = 0.0  # longest time without one


class Client:
    def __init__(self, settings: Settings, control: str) -> None:
        self.settings = settings
        self.poll = select.epoll()
        self.streams: dict[int, Stream] = {}
        self.flows: dict[int, Flow] = {}
        self.due: list[tuple[float, int, Callable[[], None]]] = []  # when, tie-break, what
        self.ties = 0
        self.errors: list[str] = []
        self.error_count = 0
        self.lost = 0  # probes without a reply within GIVEN_UP
        self.resends = 0  # probes answered twice
        self.paused = False
        self.window = Window()
        self.random = random.Random(1)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(control)
        self.listener.listen()
        self.asking: dict[int, socket.socket] = {}
        self.poll.register(self.listener, select.EPOLLIN)

    def run(self) -> None:
        for number in range(self.settings.flows):
            self.open_flow(number)
        self.unopened = iter(range(self.settings.streams))
        for _ in range(OPENING):
            self.open_next()
        while True:
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                heapq.heappop(self.due)[2]()
            timeout = max(0.0, self.due[0][0] - now) if self.due else 1.0
            for fd, events in self.poll.poll(timeout):
                if fd in self.streams:
                    self.on_stream(self.streams[fd], events)
                elif fd in self.flows:
                    self.on_flow(self.flows[fd])
                else:
                    self.on_control(fd)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self.ties += 1
        heapq.heappush(self.due, (time.monotonic() + seconds, self.ties, act))

    def fail(self, text: str) -> None:
        self.error_count += 1
        if len(self.errors) < ERRORS_KEPT:
            self.errors.append(text)

    # -- connections

    def open_next(self) -> None:
        number = next(self.unopened, None)
        if number is None:
            return
        address, port = self.settings.targets[number % len(self.settings.targets)]
        sock = socket.socket(family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = Stream(number, sock)
        self.streams[sock.fileno()] = stream
        try:
            sock.connect((address, port))
        except BlockingIOError:
            pass
        except OSError as error:
            self.broke(stream, f"connect: {error}")
            return
        self.poll.register(sock, select.EPOLLIN | select.EPOLLOUT)

    def broke(self, stream: Stream, why: str) -> None:
        stream.broken = True
        self.fail(f"connection {stream.number}, request {stream.count}: {why}")
        try:
            self.poll.unregister(stream.sock)
        except (OSError, ValueError):
            pass
        if not stream.open:
            self.open_next()

    def on_stream(self, stream: Stream, events: int) -> None:
        try:
            if not stream.open:
                if code := stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, "not opened")
                stream.open = True
                self.poll.modify(stream.sock, select.EPOLLIN)
                self.open_next()
                self.ask(stream)
                return
            if events & select.EPOLLOUT:
                self.push(stream)
            if events & ~select.EPOLLOUT:
                self.take(stream)
        except OSError as error:
            self.broke(stream, str(error))

    def ask(self, stream: Stream) -> None:
        if stream.broken:
            return
        if self.paused:
            self.later(0.05, lambda: self.ask(stream))
            return
        stream.count += 1
        stream.request = stream.unsent = message(stream.number, self.random.choice(self.settings.sizes), stream.count)
        stream.seen = 0
        stream.sent_at = time.monotonic()
        try:
            self.push(stream)
        except OSError as error:
            self.broke(stream, str(error))

    def push(self, stream: Stream) -> None:
        try:
            stream.unsent = stream.unsent[stream.sock.send(stream.unsent) :]
        except BlockingIOError:
            pass
        self.poll.modify(stream.sock, select.EPOLLIN | (select.EPOLLOUT if stream.unsent else 0))

    def take(self, stream: Stream) -> None:
        try:
            data = stream.sock.recv(65536)
        except BlockingIOError:
            return
        if not data:
            self.broke(stream, "closed by the peer")
            return
        if data != stream.request[stream.seen : stream.seen + len(data)]:
            place = f"at {stream.seen} of {len(stream.request)}"
            self.broke(stream, f"{len(data)} bytes {place} are not what was sent")
            return
        stream.seen += len(data)
        if stream.seen < len(stream.request):
            return
        stream.request = b""
        now, window = time.monotonic(), self.window
        window.requests += 1
        window.longest = max(window.longest, now - max(stream.sent_at, window.since))
        window.gap = max(window.gap, now - window.last)
        window.last = now
        self.later(self.settings.pause * self.random.uniform(0.5, 1.5), lambda: self.ask(stream))

    # -- flows

    def open_flow(self, number: int) -> None:
        address, port = self.settings.targets[number % len(self.settings.targets)]
        sock = socket.socket(family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.connect((address, port))
        flow = Flow(number, sock, last=time.monotonic())
        self.flows[sock.fileno()] = flow
        self.poll.register(sock, select.EPOLLIN)
        self.later(self.settings.pace * self.random.random(), lambda: self.probe(flow))

    def probe(self, flow: Flow) -> None:
        now = time.monotonic()
        while flow.waiting and now - (oldest := next(iter(flow.waiting.items())))[1] > GIVEN_UP:
            del flow.waiting[oldest[0]]
            self.lost += 1
        if not self.paused:
            flow.count += 1
            self.window.probes += 1
            flow.waiting[flow.count] = now
            try:
                flow.sock.send(message(flow.number, 64, flow.count))
            except OSError as error:  # an ICMP error to an earlier one
                self.fail(f"flow {flow.number}, probe {flow.count}: {error}")
        self.later(self.settings.pace, lambda: self.probe(flow))

    def on_flow(self, flow: Flow) -> None:
        try:
            data = flow.sock.recv(2048)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(f"flow {flow.number}: {error}")
            return
        now, window = time.monotonic(), self.window
        number = HEAD.unpack_from(data)[2] if len(data) == 64 else 0
        if data != message(flow.number, 64, number) or not 0 < number <= flow.count:
            self.fail(f"flow {flow.number}: {len(data)} bytes that were not sent")
            return
        sent = flow.waiting.pop(number, None)
        if sent is None:
            self.resends += 1
            return
        window.replies += 1
        window.silence = max(window.silence, now - max(flow.last, window.since))
        flow.last = now
        if flow.resumed is None and sent >= window.since:
            flow.resumed = now - window.since

    # -- control

    def on_control(self, fd: int) -> None:
        if fd == self.listener.fileno():
            sock, _ = self.listener.accept()
            self.asking[sock.fileno()] = sock
            self.poll.register(sock, select.EPOLLIN)
            return
        sock = self.asking[fd]
        words = sock.recv(4096).decode().split()
        if not words:
            del self.asking[fd]
            sock.close()
        for word in words:
            sock.sendall(json.dumps(self.obey(word)).encode() + b"\n")

    def obey(self, word: str) -> dict[str, Any]:
        if word in ("pause", "go"):
            self.paused = word == "pause"
            now = time.monotonic()
            for flow in self.flows.values():  # a pause is no silence
                flow.last = max(flow.last, now) if word == "go" else flow.last
        report = self.report()
        if word == "mark":
            self.window = Window()
            for flow in self.flows.values():
                flow.resumed = None
        return report

    def report(self) -> dict[str, Any]:
        now, w = time.monotonic(), self.window
        waiting = [s for s in self.streams.values() if s.request and not s.broken]
        resumed = [f.resumed for f in self.flows.values()]
        known = [r for r in resumed if r is not None]
        return {
            "since": w.since,
            "open": sum(s.open and not s.broken for s in self.streams.values()),
            "opening": sum(not s.open and not s.broken for s in self.streams.values()),
            "errors": self.errors,
            "error_count": self.error_count,
            "requests": w.requests,
            "waiting": len(waiting),
            "late": max((now - max(s.sent_at, w.since) for s in waiting), default=0.0),
            "longest": w.longest,
            "gap": w.gap,
            "probes": w.probes,
            "replies": w.replies,
            "unanswered": self.lost + sum(len(f.waiting) for f in self.flows.values()),  # since the start
            "repeated": self.resends,
            "silence": w.silence,
            "not_resumed": len(resumed) - len(known),
            "resumed": max(known, default=0.0),
        }


def main(arguments: list[str]) -> int:
    words = json.loads(arguments[1])
    words["targets"] = [(str(address), int(port)) for address, port in words["targets"]]
    Client(Settings(**words), arguments[0]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
