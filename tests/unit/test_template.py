"""The file that keeps persistence templates over a stop: what is written is read, and what is damaged is refused in one line."""

import dataclasses
import logging
import os
import resource
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lbd._fastpath import Worker, conn_bytes

from lbd.master import runfile, takeover, template
from lbd.master.desired import Service
from lbd.master.reconcile import Placed
from lbd.shm import _shm as shm

ROWS = bytes(range(64)) + bytes(64) + b"\xff" * 64
SERVICE = Service("web", bytes([192, 0, 2, 10]), 80, 6, "rr", (), persistence=360_000, persistence_prefix=24)


def test_round_trip(tmp_path: Path) -> None:
    assert template.read(tmp_path) == b"", "none yet"
    for rows in (ROWS, ROWS[64:]):
        template.write(tmp_path, rows)
        assert template.read(tmp_path) == rows
    path = tmp_path / template.NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [template.NAME]
    template.write(tmp_path, b"")
    assert not list(tmp_path.iterdir())
    template.write(tmp_path, b"")


def test_what_was_there_is_replaced_whole(tmp_path: Path) -> None:
    """A half-written one beside it, of a process that was killed, does no harm; others' rights to it are taken away."""
    (tmp_path / "templates.new").write_bytes(b"half")
    (tmp_path / "templates.new").chmod(0o644)
    template.write(tmp_path, ROWS)
    assert template.read(tmp_path) == ROWS and (tmp_path / template.NAME).stat().st_mode & 0o777 == 0o600


def test_no_room(tmp_path: Path) -> None:
    """What could not be written whole takes no room either, and what was there stays."""
    template.write(tmp_path, ROWS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            template.write(tmp_path, ROWS * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in tmp_path.iterdir()] == [template.NAME] and template.read(tmp_path) == ROWS


def test_another_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    template.write(tmp_path, ROWS)
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("00112233-4455-6677-8899-aabbccddeeff\n")
    monkeypatch.setattr(runfile, "BOOT_ID", boot_id)
    assert template.read_or_tell(tmp_path) == b"" and not caplog.records


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage(data: st.DataObject, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Any changed byte, any other length."""
    template.write(tmp_path, ROWS)
    path = tmp_path / template.NAME
    good = path.read_bytes()
    bad = bytearray(good)
    what = data.draw(st.sampled_from(["change", "cut", "more"]))
    if what == "change":
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    elif what == "cut":
        del bad[data.draw(st.integers(0, len(bad) - 1)) :]
    else:
        bad += data.draw(st.binary(min_size=1, max_size=200))
    path.write_bytes(bad)
    with pytest.raises(template.Damaged):
        template.read(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert template.read_or_tell(tmp_path) == b""
    [record] = caplog.records
    assert record.getMessage().startswith(f"{path} is not used, and clients get their real servers anew: it")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: f.replace(struct.pack("=II", 1, 64), struct.pack("=II", 2, 64), 1), "version 2 with rows of 64 bytes"),
        (lambda f: f.replace(struct.pack("=II", 1, 64), struct.pack("=II", 1, 72), 1), "version 1 with rows of 72 bytes"),
        (lambda f: f[:-1], "bytes, which 3 rows have not"),
        (lambda f: f[:-1] + b"\0", "checksum is wrong"),
        (lambda f: b"", "no file of this kind"),
    ],
)
def test_why(change, why: str, tmp_path: Path) -> None:
    template.write(tmp_path, ROWS)
    path = tmp_path / template.NAME
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(template.Damaged, match=why):
        template.read(tmp_path)


def test_a_directory_in_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / template.NAME).mkdir()
    assert template.read_or_tell(tmp_path) == b"" and "Is a directory" in caplog.text


def test_numbers() -> None:
    """By the addresses of services that are persistent."""
    real = bytes([10, 0, 1, 1])
    dests = {(SERVICE.key, real, 8080): 7, (SERVICE.key, bytes(15) + b"\1", 0): 8}
    placed = Placed(SERVICE, 3, dests, {}, ("rr", 0, []), [], 0)  # type: ignore[arg-type]
    found = template.numbers([placed, dataclasses.replace(placed, service=dataclasses.replace(SERVICE, persistence=0))])
    vip = bytes([192, 0, 2, 10]) + bytes(12) + b"\x00\x50\x04\x06"
    assert found == {
        vip + real + bytes(12) + b"\x1f\x90\x04\x18": (3, 7),
        vip + bytes(15) + b"\1" + b"\x00\x00\x06\x18": (3, 8),
    }


# --- segments of workers --------------------------------------------------------------------------------------------

SIZES = {
    "workers": 1, "services": 8, "dests": 8, "lips": 8, "conns4": 64, "conns6": 64, "frames": 64, "arena": 64, "cmd_ring": 16,
    "evt_ring": 16, "capture_ring": 16, "hand_ring": 64, "templates": 64, "frame_size": 2048, "chains": 0,
}  # fmt: skip
REAL = bytes([10, 0, 1, 1])
PLACED = Placed(SERVICE, 3, {(SERVICE.key, REAL, 8080): 5}, {}, ("rr", 0, []), [], 0)  # type: ignore[arg-type]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[shm.WorkerSegment, shm.HostSegment]]:
    """A worker that has started, and knows the service by number 3, its real server by 5."""
    with ExitStack() as stack:
        segment = stack.enter_context(shm.WorkerSegment.create(SIZES, 0, None))
        host = stack.enter_context(shm.HostSegment.create(SIZES))
        area = stack.enter_context(shm.Area.create(SIZES, "off", [None]))
        host.set_hash_key(bytes(range(32)))
        segment.push(shm.dest_set(5, 1, af=4, addr=REAL, port=8080, svc=3))
        segment.push(shm.svc_set(3, 1, af=4, addr=SERVICE.address, port=80, proto=6, sched=0, flags=shm.SVC_PERSIST,
                                 persist=60_000, persist_plen=24))  # fmt: skip
        wake = os.eventfd(0)
        stack.callback(os.close, wake)
        with open(tmp_path / "conn-0", "w+b") as conn:
            os.ftruncate(conn.fileno(), conn_bytes(SIZES))
            Worker(0, segment.fd, host.fd, area.fd, conn.fileno(), {}, [], {0: wake}).attach()
        yield segment, host


def rows_of(clients: int, ago: float = 0) -> bytes:
    tick = int(time.monotonic() - ago) * 1_000_000_000 >> 26
    name = template.named(SERVICE, REAL, 8080)
    return b"".join(name + bytes([192, 0, n, 0]).ljust(16, b"\0") + struct.pack("=II", tick, tick) for n in range(clients))


def halves(rows: bytes) -> set[bytes]:
    return {rows[n : n + template.ROW] for n in range(0, len(rows), template.ROW)}


def test_from_the_file_to_the_segments_and_back(made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment, host = made
    rows, foreign = rows_of(8, 30), rows_of(2).replace(REAL, bytes([10, 0, 1, 9]))
    with caplog.at_level(logging.INFO):
        template.give_back(host, rows + foreign, [PLACED])
    assert "8 clients keep the real servers that they had; of 2 others these are not configured any more" in caplog.text
    found = host.templates(100)
    assert {(t["svc"], t["dest"]) for t in found} == {(3, 5)} and len(found) == 8
    template.keep(tmp_path, segment.fd, host.fd)
    assert halves(template.read(tmp_path)) == halves(rows)


def test_what_is_over_is_not_written(made, tmp_path: Path) -> None:
    segment, host = made
    template.give_back(host, rows_of(8, 100), [PLACED])
    template.keep(tmp_path, segment.fd, host.fd)
    assert template.read(tmp_path) == b""


def test_a_worker_that_does_not_know_all(made, tmp_path: Path) -> None:
    """In the midst of a batch, or before its first one: whose tables say that nothing is configured."""
    segment, host = made
    template.give_back(host, rows_of(3), [PLACED])
    template.keep(tmp_path, segment.fd, host.fd)
    with shm.WorkerSegment.create(SIZES, 0, None) as fresh:
        template.keep(tmp_path, fresh.fd, host.fd)
    assert len(template.read(tmp_path)) == 3 * template.ROW


def test_of_workers_that_a_new_master_ended(made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment, host = made
    template.give_back(host, rows_of(3), [PLACED])
    takeover.keep_templates(tmp_path, SimpleNamespace(segment=segment.fd, host=host.fd))  # type: ignore[arg-type]
    assert len(template.read(tmp_path)) == 3 * template.ROW and not caplog.records
    takeover.keep_templates(tmp_path, SimpleNamespace(segment=segment.fd, host=segment.fd))  # type: ignore[arg-type]
    assert "clients may get other real servers: host segment" in caplog.text
    assert len(template.read(tmp_path)) == 3 * template.ROW, "what there was stays"
