"""VLAN tags stay in frames: `ethtool -K NIC rxvlan off` by ioctl, against a kernel that is played."""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Any

import pytest

from lbd.master import offload
from lbd.master.record import Link

RXVLAN, OTHERS = 1 << 8, 1 << 15 | 1 << 28


class FakeDrivers:
    """Flags of each NIC; `fixed` ones take a write and stay as they are, `mute` ones know no such ioctl."""

    def __init__(self) -> None:
        self.flags = dict.fromkeys(("eth0", "eth1", "eth2", "fixed", "mute"), RXVLAN | OTHERS)
        self.writes = 0

    def ioctl(self, sock: Any, request: int, ifreq: bytes) -> int:
        assert request == 0x8946
        raw, address = struct.unpack("16sP16x", ifreq)
        name = raw.rstrip(b"\0").decode()
        command, value = struct.unpack("=II", ctypes.string_at(address, 8))
        if name == "mute":
            raise OSError(errno.EOPNOTSUPP, "not supported")
        if command == 0x25:
            ctypes.memmove(address, struct.pack("=II", 0x25, self.flags[name]), 8)
        else:
            assert command == 0x26
            self.writes += 1
            if name != "fixed":
                self.flags[name] = value
        return 0


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> FakeDrivers:
    made = FakeDrivers()
    monkeypatch.setattr(offload.fcntl, "ioctl", made.ioctl)
    return made


def link(ifindex: int, name: str, kind: str = "", lower: int | None = None, master: int | None = None) -> Link:
    return Link(ifindex, name, bytes(6), 1500, True, kind, master, lower, 5 if kind == "vlan" else None)


def test_off_where_vlans_are_and_on_again_afterwards(drivers: FakeDrivers) -> None:
    nics = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2", master=9)]
    alarms: list[str] = []
    tags = offload.TagOffload(alarms.append)
    tags.keep(nics, nics)
    assert drivers.writes == 0, "no VLAN, no change"
    tags.keep(nics, [*nics, link(9, "bond0", "bond"), link(20, "eth0.5", "vlan", 2), link(21, "bond0.5", "vlan", 9)])
    assert [name for name, flags in drivers.flags.items() if flags == OTHERS] == ["eth0", "eth2"]
    drivers.flags["eth0"] |= RXVLAN  # somebody else switched it on
    tags.keep(nics, [link(20, "eth0.5", "vlan", 2)])
    assert drivers.flags["eth0"] == OTHERS
    tags.restore()
    assert {drivers.flags[n] for n in ("eth0", "eth1", "eth2")} == {RXVLAN | OTHERS} and not alarms


@pytest.mark.parametrize("name", ["fixed", "mute"])
def test_a_driver_that_will_not(drivers: FakeDrivers, name: str) -> None:
    alarms: list[str] = []
    tags = offload.TagOffload(alarms.append)
    for _ in range(3):
        tags.keep([link(2, name)], [link(20, "v", "vlan", 2)])
    assert len(alarms) == 1 and f"ethtool -K {name} rxvlan off" in alarms[0], "said once"
    tags.restore()
    assert drivers.flags[name] == RXVLAN | OTHERS
