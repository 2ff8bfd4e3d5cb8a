# SPDX-License-Identifier: Apache-2.0
"""Two ends of SCTP in user space, for hosts whose kernel has none: enough of RFC 9260 for associations that carry messages.

    sctp_end.py server ADDRESS PORT NAME           answers each message with NAME and the message, until it is killed
    sctp_end.py client ADDRESS PORT COUNT SIZE     COUNT associations of four messages each; prints one JSON object

Over raw sockets: the kernel adds IP's header, this file the rest; checksums are verified on receipt.
"""

import json
import os
import socket
import struct
import sys
import time

SCTP = 132
DATA, INIT, INIT_ACK, SACK, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, COOKIE_ACK, COMPLETE = 0, 1, 2, 3, 7, 8, 10, 11, 14
TABLE = list(range(256))
for _ in range(8):
    TABLE = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in TABLE]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def chunk(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("!BBH", kind, flags, 4 + len(body)) + body + bytes(-len(body) % 4)


def packet(sport: int, dport: int, tag: int, *chunks: bytes) -> bytes:
    l4 = struct.pack("!HHII", sport, dport, tag, 0) + b"".join(chunks)
    return l4[:8] + struct.pack("<I", crc32c(l4)) + l4[12:]


def init(kind: int, tag: int, more: bytes = b"") -> bytes:
    return chunk(kind, struct.pack("!IIHHI", tag, 1 << 16, 1, 1, 1) + more)


class End:
    """A raw socket bound to one address. Packets with a wrong checksum are counted and not seen."""

    def __init__(self, address: str) -> None:
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(self.family, socket.SOCK_RAW, SCTP)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        if address not in ("0.0.0.0", "::"):
            self.socket.bind((address, 0))
        self.wrong = 0

    def send(self, to: str, *args: object) -> None:
        self.socket.sendto(packet(*args), (to, 0))  # type: ignore[arg-type]

    def receive(self) -> tuple[str, int, int, int, list[tuple[int, int, bytes]]]:
        """Sender, its port, the port here, tag, chunks as (kind, flags, body)."""
        while True:
            data, sender = self.socket.recvfrom(65536)
            if self.family == socket.AF_INET:
                data = data[(data[0] & 15) * 4 :]
            if crc32c(data[:8] + bytes(4) + data[12:]) != struct.unpack_from("<I", data, 8)[0]:
                self.wrong += 1
                continue
            sport, dport, tag = struct.unpack_from("!HHI", data)
            chunks, at = [], 12
            while at + 4 <= len(data):
                kind, flags, size = struct.unpack_from("!BBH", data, at)
                chunks.append((kind, flags, data[at + 4 : at + size]))
                at += size + -size % 4
            return sender[0], sport, dport, tag, chunks


def serve(address: str, port: int, name: bytes) -> None:
    end = End(address)
    peers: dict[tuple[str, int], tuple[int, int]] = {}  # what they send, what is sent to them
    print("ready", flush=True)
    while True:
        sender, sport, dport, tag, chunks = end.receive()
        if dport != port:
            continue
        for kind, _, body in chunks:
            key = (sender, sport)
            if kind == INIT:
                theirs, mine = struct.unpack_from("!I", body)[0], int.from_bytes(os.urandom(4), "big") | 1
                cookie = struct.pack("!HHII", 7, 12, theirs, mine)
                end.send(sender, port, sport, theirs, init(INIT_ACK, mine, cookie))
            elif kind == COOKIE_ECHO:
                theirs, mine = struct.unpack("!II", body)
                if tag == mine:
                    peers[key] = (mine, theirs)
                    end.send(sender, port, sport, theirs, chunk(COOKIE_ACK))
            elif key in peers and tag == peers[key][0]:
                theirs = peers[key][1]
                if kind == DATA:
                    tsn = struct.unpack_from("!I", body)[0]
                    sack = chunk(SACK, struct.pack("!IIHH", tsn, 1 << 16, 0, 0))
                    end.send(sender, port, sport, theirs, sack, chunk(DATA, body[:12] + name + b" " + body[12:], 3))
                elif kind == SHUTDOWN:
                    end.send(sender, port, sport, theirs, chunk(SHUTDOWN_ACK))
                elif kind == COMPLETE:
                    del peers[key]


class Client:
    def __init__(self, end: End, address: str, port: int, sport: int) -> None:
        self.end, self.address, self.port, self.sport = end, address, port, sport
        self.tag = 0  # what is sent
        self.mine = int.from_bytes(os.urandom(4), "big") | 1

    def ask(self, want: int, *chunks: bytes) -> bytes:
        """Sends until that kind of chunk comes back; its body."""
        for _ in range(5):
            self.end.send(self.address, self.sport, self.port, self.tag, *chunks)
            until = time.monotonic() + 1
            while (left := until - time.monotonic()) > 0:
                self.end.socket.settimeout(left)
                try:
                    sender, sport, dport, tag, got = self.end.receive()
                except TimeoutError:
                    break
                if (sport, dport, tag) == (self.port, self.sport, self.mine):
                    assert sender == self.address
                    for kind, _, body in got:
                        if kind == want:
                            return body
        raise TimeoutError(f"no chunk {want} from {self.address}")

    def talk(self, size: int) -> str:
        """Four messages there and back; who answered."""
        answer = self.ask(INIT_ACK, init(INIT, self.mine))
        self.tag = struct.unpack_from("!I", answer)[0]
        self.ask(COOKIE_ACK, chunk(COOKIE_ECHO, answer[20:28]))
        names = set()
        for tsn in range(1, 5):
            message = os.urandom(size)
            head = struct.pack("!IHHI", tsn, 0, tsn, 0)
            name, _, echoed = self.ask(DATA, chunk(DATA, head + message, 3))[12:].partition(b" ")
            assert echoed == message
            names.add(name.decode())
        self.ask(SHUTDOWN_ACK, chunk(SHUTDOWN, struct.pack("!I", 4)))
        self.end.send(self.address, self.sport, self.port, self.tag, chunk(COMPLETE))
        [name] = names
        return name


def main(what: str, address: str, port: str, *rest: str) -> None:
    if what == "server":
        serve(address, int(port), rest[0].encode())
        return
    end = End("::" if ":" in address else "0.0.0.0")
    served: dict[str, int] = {}
    for n in range(int(rest[0])):
        name = Client(end, address, int(port), 20000 + n).talk(int(rest[1]) + n % 7)
        served[name] = served.get(name, 0) + 1
    print(json.dumps({"served": served, "wrong": end.wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
