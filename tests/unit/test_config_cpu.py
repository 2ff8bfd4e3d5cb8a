# SPDX-License-Identifier: Apache-2.0
"""Placement: nodes, physical cores and NICs of played hosts, as sysfs shows them."""

import os
import socket
from pathlib import Path

import pytest

from lbd.config import cpu, loads
from lbd.config.host import remarks
from tests.unit.test_config_check import SMALL

NICS = (("eth0", 2), ("eth1", 3))


def host(root: Path, nodes: dict[int, str], threads: list[str], nics: dict[str, tuple[int, int, str]]) -> Path:
    """`threads`: CPUs of each physical core; `nics`: name -> ifindex, node, kind."""
    for number, cpus in nodes.items():
        directory = root / cpu.NODES / f"node{number}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(cpus + "\n")
    (root / cpu.NODES / "online").write_text("0-1\n") if nodes else None
    for core in threads:
        for n in cpu.cpu_list(core):
            (root / cpu.CPUS / f"cpu{n}/topology").mkdir(parents=True)
            (root / cpu.CPUS / f"cpu{n}/topology/thread_siblings_list").write_text(core + "\n")
    for name, (ifindex, node, kind) in nics.items():
        pci = root / f"sys/devices/pci0000:00/0000:0{ifindex}:00.0"
        device = pci / "virtio0" if kind == "virtio" else pci
        if kind == "veth":
            device = pci = root / "sys/devices/virtual"
        (device / "net" / name).mkdir(parents=True)
        (device / "net" / name / "ifindex").write_text(f"{ifindex}\n")
        if kind != "veth":
            (pci / "numa_node").write_text(f"{node}\n")
            (device / "net" / name / "device").symlink_to("../..")
        (root / "sys/class/net").mkdir(parents=True, exist_ok=True)
        (root / "sys/class/net" / name).symlink_to(os.path.relpath(device / "net" / name, root / "sys/class/net"))
    return root


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two nodes of 4 physical cores and 8 CPUs each; eth0 on node 0, eth1, of virtio, on node 1."""
    threads = [f"{n},{n + 8}" for n in range(8)]
    return host(tmp_path, {0: "0-3,8-11", 1: "4-7,12-15"}, threads, {"eth0": (2, 0, "pci"), "eth1": (3, 1, "virtio")})


def test_lists_of_cpus() -> None:
    for text, cpus in (("", set()), ("3\n", {3}), ("0-3,8,10-11", {0, 1, 2, 3, 8, 10, 11})):
        assert cpu.cpu_list(text) == cpus and cpu.cpu_text(cpus) == text.strip()


def test_what_the_host_tells(two: Path) -> None:
    assert cpu.nodes(two) == {0: cpu.cpu_list("0-3,8-11"), 1: cpu.cpu_list("4-7,12-15")}
    assert [cpu.core_node(n, two) for n in (0, 11, 4, 15, 16)] == [0, 0, 1, 1, None]
    assert cpu.siblings(9, two) == {1, 9} and cpu.siblings(99, two) == {99}
    assert [cpu.nic_node(*nic, two) for nic in (*NICS, ("eth0", 5), ("eth2", 4))] == [0, 1, None, None], "5: of another namespace"


def test_virtual_devices_are_nowhere(tmp_path: Path) -> None:
    root = host(tmp_path, {0: "0"}, ["0"], {"veth0": (2, 0, "veth"), "eth1": (3, -1, "virtio")})
    assert cpu.nic_node("veth0", 2, root) is None and cpu.nic_node("eth1", 3, root) is None


@pytest.mark.parametrize(("cores", "nodes"), [((1, 5), [0, 1]), ((4,), [1, 0]), ((), [0, 0]), ((99, 3), [None, 0])])
def test_memory_is_where_the_worker_is(two: Path, cores: tuple[int, ...], nodes: list[int | None]) -> None:
    """Or, if it isn't pinned, where the first NIC is."""
    assert cpu.worker_nodes(cores, 2, NICS, two) == nodes
    assert cpu.worker_nodes(cores, 2, (("veth0", 9), *NICS), two) == nodes


def test_one_node_needs_no_policy(tmp_path: Path) -> None:
    root = host(tmp_path, {0: "0-3"}, ["0-1", "2-3"], {"eth0": (2, 0, "pci")})
    assert cpu.worker_nodes((0, 2), 2, NICS, root) == [None, None] == cpu.worker_nodes((), 2, NICS, tmp_path / "nothing")
    assert cpu.remarks((0, 2), NICS, root) == cpu.remarks((), NICS, root) == []


def test_workers_that_share_a_physical_core(two: Path) -> None:
    assert cpu.shared((0, 1, 2, 3), two) == {}
    found = cpu.shared((1, 2, 9, 10), two)
    assert list(found) == [2, 3] and "core 9 is the same physical core as 1 of worker 0" in found[2]


def test_workers_far_from_a_nic(two: Path) -> None:
    near = "cores of node 0: 0-3,8-11"
    assert cpu.far((0, 1), NICS[:1], two) == []
    assert cpu.far((0, 4), NICS[:1], two) == [f"eth0 is on NUMA node 0, other than worker 1 (core 4, node 1); {near}"]
    [text] = cpu.far((4, 13), NICS[:1], two)
    assert "other than workers 0 (core 4, node 1), 1 (core 13, node 1)" in text
    assert cpu.far((), NICS[:1], two) == [f"eth0 is on NUMA node 0, and workers run on any of 2 nodes; name cores, {near}"]
    assert len(cpu.far((0, 4), NICS, two)) == 2, "each NIC has a worker that is far"


def test_check_says_so(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(2, "eth0")])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    config = loads('[workers]\ncores = [1, 9, 4]\n[[interface]]\nname = "eth0"\n')
    found = {(loc, text.split(";")[0]) for loc, text in remarks(config, SMALL, root=two) if loc[0] == "workers"}
    assert found == {
        (("workers", "cores", 1), "core 9 is the same physical core as 1 of worker 0"),
        (("workers",), "eth0 is on NUMA node 0, other than worker 2 (core 4, node 1)"),
    }
