"""The file that keeps persistence templates over a stop: what is written is read, and what is damaged is refused in one line."""

import dataclasses
import logging
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbd.master import template
from lbd.master.desired import Service
from lbd.master.reconcile import Placed

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


def test_another_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    template.write(tmp_path, ROWS)
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("00112233-4455-6677-8899-aabbccddeeff\n")
    monkeypatch.setattr(template, "BOOT_ID", boot_id)
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
