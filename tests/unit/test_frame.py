# SPDX-License-Identifier: Apache-2.0
"""How large packet buffers are by the interfaces' MTUs, and what is said of MTUs that they don't hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lbd.config import loads
from lbd.config.check import check, to_text
from lbd.config.frame import FRAME, FRAME_LARGE, HEADROOM, mtu_max
from lbd.config.host import remarks
from lbd.config.memory import memory
from lbd.master import sockets
from lbd.master.nic import Nic
from lbd.master.reach import Reach
from lbd.master.record import Link, Snapshot
from lbd.master.refusal import Refusal
from lbd.master.startup import check_frames, link_mtus
from lbd.shm import _shm
from lbd.xdp.kernel import device_mtu

BASE = """\
[[interface]]
name = "lo"
"""


def snapshot(mtu: int) -> Snapshot:
    return Snapshot((Link(1, "lo", bytes(6), mtu, True, "", None, None),), (), (), (), (), ())


@pytest.mark.parametrize(
    ("given", "mtus", "size", "chains", "most"),
    [
        (None, (), 2048, 0, 1770),
        (None, (1500, 1770), 2048, 0, 1770),
        (None, (1771,), 4096, 0, 3818),
        (None, (1500, 3818), 4096, 0, 3818),
        (None, (3819,), 4096, 1, 65535),
        (None, (1500, 9000), 4096, 1, 65535),
        (4096, (1500,), 4096, 0, 3818),
        (2048, (9000,), 2048, 1, 32234),
    ],
)
def test_frames_by_mtu(given: int | None, mtus: tuple[int, ...], size: int, chains: int, most: int) -> None:
    sizes = loads((f"[tables]\nframe_size = {given}\n" if given else "") + BASE).sizes(mtus)
    assert (sizes["frame_size"], sizes["chains"]) == (size, chains)
    assert mtu_max(size, chains) == most


def test_frames_agree_with_the_layout() -> None:
    assert (FRAME, FRAME_LARGE, HEADROOM) == (_shm.CHUNK, _shm.CHUNK_LARGE, _shm.XDP_HEADROOM)


def test_an_mtu_is_remarked_upon(tmp_path: Path) -> None:
    def said(mtus: dict[str, int], text: str = "") -> str:
        config = loads(text + BASE)
        return " ".join(message for _, message in remarks(config, memory(config, mtus.values()), mtus, tmp_path))

    assert "buffers" not in said({"lo": 3818})
    assert "an MTU of 9000: packets above 3818 bytes lie in several buffers" in said({"lo": 9000})
    small = "[tables]\nframe_size = 2048\n"
    assert "an MTU of 40000, and packet buffers are for 32234: `ip link set lo mtu 32234`" in said({"lo": 40000}, small)


def test_the_kernel_tells_the_mtu() -> None:
    assert (device_mtu("lo") or 0) >= 16384 and device_mtu("nosuch0") is None


@pytest.mark.parametrize(
    ("text", "mtu", "release", "refused"),
    [
        ("", 9000, "6.6.0-1-amd64", ""),
        ("", 65536, "6.6.0-1-amd64", ""),  # loopback's
        ("", 3818, "5.15.0", ""),
        ("", 9000, "6.5.13", "MTU of 9000, and packet buffers of lbd hold 3818 bytes (packets in several take Linux 6.6)"),
        ("[tables]\nframe_size = 2048\n", 2000, "6.1.0", "MTU of 2000, and packet buffers of lbd hold 1770 bytes (packets in"),
        ("[tables]\nframe_size = 2048\n", 40000, "6.18.0", "MTU of 40000, and packet buffers of lbd hold 32234 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, mtu: int, release: str, refused: str) -> None:
    config = loads(text + BASE)
    sizes = config.sizes(link_mtus(config, snapshot(mtu)).values())
    if not refused:
        check_frames(config, snapshot(mtu), sizes, release)
        return
    with pytest.raises(Refusal) as said:
        check_frames(config, snapshot(mtu), sizes, release)
    assert refused in str(said.value) and "ip link set lo mtu" in str(said.value)


def test_an_mtu_that_grows_is_a_problem_and_not_believed() -> None:
    config = loads(BASE)
    fits, grown = (Reach(config, snapshot(mtu), mtu_max=1770) for mtu in (1770, 9000))
    assert not fits.alarms and fits.interfaces()[0].mtu == 1770
    [alarm] = grown.alarms
    assert "lo has an MTU of 9000" in alarm and "1770" in alarm and "restart lbd" in alarm
    assert grown.interfaces()[0].mtu == 1770


def sysfs(root: Path, drivers: dict[str, str], **bonds: str) -> Path:
    net = root / "sys/class/net"
    for name, driver in drivers.items():
        (net / name / "device").mkdir(parents=True)
        (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (net / name / "device/driver").symlink_to(root / "drivers" / driver)
    for name, slaves in bonds.items():
        (net / name / "bonding").mkdir(parents=True)
        (net / name / "bonding/slaves").write_text(slaves + "\n")
    return root


IGB = [
    ({"eth0": "igb"}, {}, "eth0", "", 4096),
    ({"eth0": "virtio_net"}, {}, "eth0", "", 2048),
    ({"eth0": "igb"}, {}, "eth0", 'zero_copy = "off"', 2048),
    ({"eth0": "igb"}, {}, "eth0", 'attach = "generic"', 2048),
    ({"eth0": "virtio_net", "eth1": "igb"}, {"bond0": "eth0 eth1"}, "bond0", "", 4096),
    ({}, {}, "eth0", "", 2048),
]


@pytest.mark.parametrize(("drivers", "bonds", "name", "more", "size"), IGB)
def test_buffers_that_a_driver_asks_for(
    tmp_path: Path, drivers: dict[str, str], bonds: dict[str, str], name: str, more: str, size: int
) -> None:
    """`lbd check` counts what the daemon takes on this host."""
    path = tmp_path / "lbd.toml"
    path.write_text(f'[[interface]]\nname = "{name}"\n{more}\n[[local_address]]\naddress = "10.0.0.10"\nmanage = false\n')
    report = check(str(path), sysfs(tmp_path, drivers, **bonds))
    assert report.memory is not None and report.frame_size == size
    frames = report.config.tables.frames if report.config else 0
    assert report.memory.frames == frames * (size + 1)
    assert f"{frames} of {size >> 10} KiB" in to_text(report)
    path.write_text(f"[tables]\nframe_size = 2048\n{path.read_text()}")
    asked = [w.message for w in check(str(path), tmp_path).warnings if w.field == "tables.frame_size"]
    assert [text.split(":")[0] for text in asked] == [
        f"packet buffers of 2048 bytes, of which zero-copy on {name} ({', '.join(drivers.values())}) would use 1024"
    ] * (size == 4096)


@pytest.mark.parametrize(
    ("driver", "size", "beside", "refused"),
    [
        ("igb", 2048, [True], True), ("igb", 2048, [], True), ("igb", 2048, [False], False), ("igb", 4096, [True], False),
        ("virtio_net", 2048, [True], False),
    ],
)  # fmt: skip
def test_a_nic_that_needs_larger_buffers_than_there_are(
    monkeypatch: pytest.MonkeyPatch, driver: str, size: int, beside: list[bool], refused: bool
) -> None:
    """A slave of another driver, added while lbd runs."""

    class Opened(Exception):
        pass

    def opened(**_: object) -> None:
        raise Opened

    monkeypatch.setattr(sockets, "driver_of", lambda name: driver)
    monkeypatch.setattr(sockets._xsk, "open_socket", opened)
    config = loads(BASE)
    area: Any = SimpleNamespace(address=0, frame_bytes=0)
    opener = sockets.Opener(config, area, {0: Nic(0, 7, "eth7")}, {"eth7": 1}, {"frame_size": size, "chains": 0})
    there: Any = [SimpleNamespace(zero_copy=known, fd=3, completes=False) for known in beside]
    with pytest.raises(Refusal if refused else Opened) as found:
        opener.open_port(0, 0, "auto", there, range(0))
    if refused:
        assert "zero-copy on eth7 (igb) takes packet buffers of 4096 bytes" in str(found.value)
        assert "restart lbd" in str(found.value)


@pytest.mark.parametrize(("options", "mode"), [("", "auto"), ('zero_copy = "off"', "off"), ('attach = "generic"', "off")])
def test_sockets_of_an_interface_made_anew_are_as_configured(monkeypatch: pytest.MonkeyPatch, options: str, mode: str) -> None:
    """None is left to tell which mode it was: with small buffers, copies on an igb must not become zero-copy."""
    asked: list[object] = []
    monkeypatch.setattr(sockets.Opener, "open_port", lambda self, worker, number, mode, *rest: asked.append(mode))
    config = loads(BASE + options)
    assert config.interface[0].copies == (mode == "off")
    area: Any = SimpleNamespace(free_frames=lambda worker: [])
    sockets.Opener(config, area, {0: Nic(0, 7, "eth7")}, {"eth7": 1}, {"frame_size": 2048, "chains": 0}).open_more([])
    assert asked == [mode]
