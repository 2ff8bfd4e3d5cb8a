"""Port ranges: the arithmetic against sets, and who may take what from the kernel's list."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.master import reservation
from lbd.master.reservation import PortRange, count, format_ranges, merge, parse_ranges, subtract

port_range = st.tuples(st.integers(1, 300), st.integers(0, 80)).map(lambda pair: (pair[0], pair[0] + pair[1]))
port_ranges = st.lists(port_range, max_size=12)


def ports(ranges: list[PortRange]) -> set[int]:
    return {port for first, last in ranges for port in range(first, last + 1)}


@given(port_ranges)
def test_merge_keeps_the_ports_and_nothing_touches(ranges: list[PortRange]) -> None:
    merged = merge(ranges)
    assert ports(merged) == ports(ranges)
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(merged))
    assert count(ranges) == len(ports(ranges))
    assert parse_ranges(format_ranges(merged)) == merged


@given(port_ranges, port_ranges)
def test_subtract(ranges: list[PortRange], taken: list[PortRange]) -> None:
    assert ports(subtract(ranges, taken)) == ports(ranges) - ports(taken)


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    reserved, ephemeral = tmp_path / "reserved", tmp_path / "range"
    reserved.write_text("\n")
    ephemeral.write_text("32768\t60999\n")
    monkeypatch.setattr(reservation, "_RESERVED", reserved)
    monkeypatch.setattr(reservation, "_EPHEMERAL", ephemeral)
    return reserved


def test_what_others_reserved_stays(sysctl: Path) -> None:
    sysctl.write_text("5000-6000,20000-21000\n")
    added = reservation.missing((10240, 32000))
    assert added == [(10240, 19999), (21001, 32000)]
    reservation.reserve(added)
    assert sysctl.read_text() == "5000-6000,10240-32000\n"
    reservation.release(added)
    assert sysctl.read_text() == "5000-6000,20000-21000\n"


def test_the_host_keeps_ports_for_itself(sysctl: Path) -> None:
    with pytest.raises(OSError, match="would leave 0 of "):
        reservation.missing((10240, 65535))
    reservation.missing((10240, 60999 - reservation.LEAST_EPHEMERAL))
    with pytest.raises(OSError, match="would leave 1023"):
        reservation.missing((10240, 60999 - reservation.LEAST_EPHEMERAL + 1))
