"""The record of what lbd added: survives whole or not at all, and is believed only where it belongs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.master.managed import FILE, Managed, current_scope

entries = st.sets(st.tuples(st.text(min_size=1, max_size=15), st.ip_addresses().map(str)), max_size=8)


@given(entries, entries, st.sets(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), max_size=4))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    addresses: set[tuple[str, str]],
    neighbours: set[tuple[str, str]],
    ports: set[tuple[int, int]],
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    managed = Managed(run_dir, "here")
    managed.addresses, managed.neighbours, managed.ports = addresses, neighbours, ports
    managed.write(managed.text())
    again = Managed(run_dir, "here")
    assert (again.addresses, again.neighbours, again.ports) == (addresses, neighbours, ports)
    assert [path.name for path in run_dir.iterdir()] == [FILE]
    elsewhere = Managed(run_dir, "elsewhere")
    assert not (elsewhere.addresses or elsewhere.neighbours or elsewhere.ports)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1}', '{"version": 9, "scope": "here"}', "\0\0"]
)
def test_a_file_that_makes_no_sense_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert Managed(tmp_path, "here").addresses == set()


def test_the_file_is_private(tmp_path: Path) -> None:
    managed = Managed(tmp_path, "here")
    managed.addresses.add(("lo", "192.0.2.10/32"))
    managed.write(managed.text())
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert json.loads(managed.text())["addresses"] == [["lo", "192.0.2.10/32"]]


def test_scope_is_this_boot_and_namespace() -> None:
    assert current_scope() == current_scope()
    assert current_scope().count(":") == 1
