# SPDX-License-Identifier: Apache-2.0
"""`lbd capture`: the daemon's stream in, pcapng out."""

import io
import json
import shutil
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.cli.main import main
from lbd.cli.outcome import DONE, REFUSED, USAGE
from lbd.cli.recording import HEAD, NONE, POINTS, VERDICTS, File, Record, comment, records
from lbd.datapath.reason import NAMES
from lbd.master import capture_hub
from lbd.pcap import read, read_file
from lbd.shm import _shm as shm

ROOT = Path(__file__).parents[2]
FRAME = bytes(12) + b"\x08\x00" + bytes(46)
NOW = 1_700_000_000_123_456_789
INTERFACES = [
    {"number": 0, "name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "partial_checksums": True}
    | {"addresses": ["fe80::1/64", "192.0.2.1/24"]},
    {"number": 1, "name": "eth1", "mac": "02:00:00:00:00:02", "mtu": 9000, "partial_checksums": False}
    | {"addresses": []},
]


def head(point: int, iface: int = 0, verdict: int = 1, reason: int = 0, svc: int = 7, dest: int = 3) -> bytes:
    return HEAD.pack(NOW, 1514, len(FRAME), point, iface, verdict, reason, svc, dest, 1, 0) + FRAME


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(body)) + body for body in (b"", *bodies))


STREAM = framed(
    head(1),
    head(2, iface=1),
    head(1, verdict=4, reason=1),  # handed over
    head(4, verdict=0, reason=NAMES.index("no_neighbor")),
    head(1, svc=NONE, dest=NONE, verdict=2, reason=NAMES.index("not_for_us")),
    head(1, iface=9),
)
COMMENTS = [
    "worker 1, forward, service web, real server 10.0.1.1:8080",
    "worker 1, forward, service web, real server 10.0.1.1:8080",
    "worker 1, drop no_neighbor, service web, real server 10.0.1.1:8080",
    "worker 1, kernel not_for_us",
    "worker 1, forward, service web, real server 10.0.1.1:8080",
]


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Daemon

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        documents: dict[str, Any] = {
            "/v1/interfaces": {"interfaces": INTERFACES},
            "/v1/services": {"services": [{"number": 7, "name": "web"}]},
            "/v1/real-servers": {"real_servers": [{"number": 3, "address": "10.0.1.1:8080"}]},
        }
        path = self.path.partition("?")[0]
        body = STREAM if path == "/v1/capture" else json.dumps(documents[path]).encode()
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for n in range(0, len(body), 50):  # in pieces, as a network has it
            self.wfile.write(body[n : n + 50])
            self.wfile.flush()

    def address_string(self) -> str:
        return "peer"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    path = str(tmp_path / "control.sock")
    with Daemon(path, Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("LBD_SOCKET", path)
        yield server
        server.shutdown()
        thread.join()


def test_words_and_layout_are_those_of_the_daemon() -> None:
    assert HEAD.format == capture_hub.HEAD.format
    assert HEAD.size == 32
    assert {bit: name for name, bit in capture_hub.POINTS.items()} == POINTS
    assert shm.VERDICTS == VERDICTS
    assert (shm.SVC_NONE, shm.DEST_NONE) == (NONE, NONE)


def test_capture(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pcapng"
    words = ("capture", "-w", str(path), "-s", "96", "--point", "rx,drop", "--service", "web", "-c", "9")
    assert main(words) == DONE
    assert capsys.readouterr().err == "5 packets captured\n"
    assert "/v1/capture?points=rx%2Cdrop&snaplen=96&service=web" in daemon.asked
    packets = list(read_file(path))
    assert [p.comment for p in packets] == COMMENTS
    assert {(p.ts_ns, p.length, p.data) for p in packets} == {(NOW, 1514, FRAME)}
    names = [f"{p.interface.name} {p.interface.description}" for p in packets]
    assert names == ["eth0 lbd rx", "eth1 lbd tx", "eth0 lbd drop", "eth0 lbd rx", "interface 9 lbd rx"]
    eth0 = packets[0].interface
    assert (eth0.hardware, eth0.mac) == ("mtu=1500 partial_checksums", bytes([2, 0, 0, 0, 0, 1]))
    assert eth0.addresses[0] == bytes([192, 0, 2, 1])
    # numbers are looked up once, not once a packet
    assert daemon.asked.count("/v1/services") == 1


def test_count_ends_it(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    assert main(("capture", "-w", str(path), "-c", "2")) == DONE
    assert len(list(read_file(path))) == 2


def test_refusals(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("capture", "-w", str(tmp_path / "no/where"))) == REFUSED
    assert "can't be written: No such file" in capsys.readouterr().err
    assert main(("capture", "-w", "x", "-c", "0")) == USAGE
    assert main(("capture", "-w", "x", "-s", "0")) == USAGE


def test_pipe_into_wireshark(daemon: Daemon) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("needs tshark (Debian package tshark)")
    command = [sys.executable, "-m", "lbd.cli.main", "capture", "-w", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as lbd:
        fields = ["-T", "fields", "-e", "frame.comment", "-r", "-"]
        seen = subprocess.run([tshark, *fields], stdin=lbd.stdout, capture_output=True, text=True, timeout=60)
        assert lbd.wait(60) == DONE
    assert seen.stdout.splitlines() == COMMENTS


class Chunks:
    """What http.client gives: read1 returns what has come."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data = data
        self._sizes = sizes

    def read1(self, limit: int) -> bytes:
        size = self._sizes.pop() if self._sizes else limit
        chunk, self._data = self._data[:size], self._data[size:]
        return chunk


@given(st.lists(st.integers(1, 100), max_size=40))
def test_records_do_not_depend_on_pieces(sizes: list[int]) -> None:
    whole = [r for r in records(Chunks(STREAM, [])) if r is not None]  # type: ignore[arg-type]
    pieces = [r for r in records(Chunks(STREAM, sizes)) if r is not None]  # type: ignore[arg-type]
    assert pieces == whole
    assert len(whole) == 5


def test_an_unknown_number_is_asked_for_once_a_second() -> None:
    class Api:
        asked = 0

        def get(self, path: str) -> dict[str, list[Any]]:
            self.asked += 1
            return {"services": [], "real_servers": []}

    from lbd.cli.recording import Names

    api = Api()
    names = Names(api)  # type: ignore[arg-type]
    record = Record(0, 60, 0, "rx", "forward", "none", 7, 3, 0, FRAME)
    assert [comment(record, names) for _ in range(50)][
        -1
    ] == "worker 0, forward, service number 7, real server number 3"
    assert api.asked == 2  # services and real servers


def test_file_describes_an_interface_when_its_first_packet_comes() -> None:
    file = io.BytesIO()
    pcapng = File(file, INTERFACES, 96)
    assert b"eth0" not in file.getvalue()
    pcapng.write(Record(NOW, 60, 0, "rx", "forward", "none", 7, 3, 0, FRAME), "x")
    file.seek(0)
    assert [p.interface.name for p in read(file)] == ["eth0"]
