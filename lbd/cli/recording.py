# SPDX-License-Identifier: Apache-2.0
"""The daemon's capture stream, and the pcapng file that it becomes.

An interface block for each (interface, point): `if_name` is the interface's, `if_description` the point
("lbd rx"), and what replaying needs besides (lbd/replay.py) stands in `if_MACaddr`, `if_IPv4addr` and
`if_hardware`. Each packet's comment says worker, verdict, reason, service and real server.
"""

import http.client
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any, BinaryIO

from lbd import __version__
from lbd.cli.client import Client
from lbd.datapath.reason import NAMES
from lbd.pcap import Interface, Writer

HEAD = struct.Struct("<QIHBBBBHHBxI4x")  # CaptureHead of lbd/shm/layout.pxd
POINTS = {1: "rx", 2: "tx", 4: "drop"}  # CapturePoint of lbd/datapath/command.pxd
VERDICTS = ("drop", "forward", "kernel", "consume", "handover", "hold")  # Verdict of lbd/datapath/reason.pxd
DIRECTIONS = {"rx": "in", "tx": "out", "drop": ""}
NONE = 0xFFFF  # SVC_NONE, DEST_NONE


@dataclass(frozen=True)
class Record:
    ts_ns: int
    length: int
    iface: int
    point: str
    verdict: str
    reason: str
    svc: int
    dest: int
    worker: int
    data: bytes


def parse(raw: bytes) -> Record:
    ts, length, caplen, point, iface, verdict, reason, svc, dest, worker, _ = HEAD.unpack_from(raw)
    return Record(
        ts,
        length,
        iface,
        POINTS.get(point, str(point)),
        VERDICTS[verdict] if verdict < len(VERDICTS) else str(verdict),
        NAMES[reason] if reason < len(NAMES) else str(reason),
        svc,
        dest,
        worker,
        raw[HEAD.size : HEAD.size + caplen],
    )


def records(stream: http.client.HTTPResponse) -> Iterator[Record | None]:
    """None: nothing more has come yet, which is the time to flush."""
    pending = b""
    while chunk := stream.read1(1 << 16):
        pending += chunk
        pos = 0
        while len(pending) - pos >= 4:
            (size,) = struct.unpack_from("!I", pending, pos)
            if len(pending) - pos - 4 < size:
                break
            if size >= HEAD.size:  # the first one is empty: capturing is on
                record = parse(pending[pos + 4 : pos + 4 + size])
                # handed over: received once more, with its verdict, by the worker that owns its flow
                if record.verdict != "handover":
                    yield record
            pos += 4 + size
        pending = pending[pos:]
        yield None


# -- what numbers mean ---------------------------------------------------------------------------------------


@dataclass
class Names:
    """Services and real servers by number, asked again (once a second at most) when an unknown one comes."""

    api: Client
    services: dict[int, str] = field(default_factory=dict)
    real_servers: dict[int, str] = field(default_factory=dict)
    asked: float = float("-inf")

    def service(self, number: int) -> str:
        return self._name("services", number)

    def real_server(self, number: int) -> str:
        return self._name("real_servers", number)

    def _name(self, kind: str, number: int) -> str:
        known: dict[int, str] = getattr(self, kind)
        if number not in known and time.monotonic() - self.asked > 1:
            self.asked = time.monotonic()
            services = self.api.get("/v1/services")["services"]
            real_servers = self.api.get("/v1/real-servers")["real_servers"]
            self.services.update({s["number"]: s["name"] for s in services})
            self.real_servers.update({r["number"]: r["address"] for r in real_servers})
        return known.get(number, f"number {number}")


def comment(record: Record, names: Names) -> str:
    words = [f"worker {record.worker}", record.verdict]
    if record.reason != "none":
        words[1] += f" {record.reason}"
    if record.svc != NONE:
        words.append(f"service {names.service(record.svc)}")
    if record.dest != NONE:
        words.append(f"real server {names.real_server(record.dest)}")
    return ", ".join(words)


class File:
    """The pcapng file; interfaces are described when their first packet comes."""

    def __init__(self, file: BinaryIO, interfaces: list[dict[str, Any]], snaplen: int) -> None:
        self._writer = Writer(file, f"lbd {__version__}", f"{os.uname().sysname} {os.uname().release}")
        self._known = {i["number"]: i for i in interfaces}
        self._snaplen = snaplen
        self._blocks: dict[tuple[int, str], int] = {}

    def write(self, record: Record, text: str) -> None:
        key = (record.iface, record.point)
        if key not in self._blocks:
            self._blocks[key] = self._writer.interface(self._describe(*key))
        direction = DIRECTIONS.get(record.point, "")
        self._writer.packet(self._blocks[key], record.ts_ns, record.data, record.length, text, direction)

    def _describe(self, number: int, point: str) -> Interface:
        i = self._known.get(number, {"name": f"interface {number}"})
        addresses = [ip_interface(a).ip.packed for a in i.get("addresses", ())]
        checksums = "".join(f" {word}" for word in ("partial_checksums", "kernel_checksums") if i.get(word))
        return Interface(
            i["name"],
            f"lbd {point}",
            snaplen=self._snaplen,
            hardware=f"mtu={i['mtu']}{checksums}" if "mtu" in i else "",
            mac=bytes.fromhex(i.get("mac", "").replace(":", "")),
            addresses=tuple(sorted(addresses, key=len)),
        )
