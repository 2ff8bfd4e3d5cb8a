# SPDX-License-Identifier: Apache-2.0
"""Log lines for journald, messages to systemd, and who is at the other end of a socket."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path

import pytest

from lbd.master.journal import JournalFormatter, Pace
from lbd.master.notify import notify, notify_reloading, watchdog_interval
from lbd.master.peer import peer_of


def line(level: int, text: str, exception: bool = False) -> str:
    info = None
    if exception:
        try:
            raise ValueError("why")
        except ValueError:
            info = sys.exc_info()
    return JournalFormatter().format(logging.LogRecord("lbd.x", level, "", 0, text, None, info))


def test_every_line_has_its_priority() -> None:
    assert line(logging.INFO, "well") == "<6>lbd.x: well"
    assert line(logging.WARNING, "two\nlines") == "<4>lbd.x: two\n<4>lines"
    assert line(logging.ERROR + 1, "between") == "<3>lbd.x: between"
    assert all(part.startswith("<3>") for part in line(logging.ERROR, "failed", exception=True).split("\n"))


def test_pace_tells_how_many_were_held_back() -> None:
    now = [0.0]
    pace = Pace(10.0, lambda: now[0])
    assert [pace.allows("a"), pace.allows("a"), pace.allows("b"), pace.allows("a")] == [1, 0, 1, 0]
    now[0] = 10.0
    assert pace.allows("a") == 3


def test_messages_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert notify("READY=1", "STATUS=2 workers")
        assert listener.recv(200) == b"READY=1\nSTATUS=2 workers"
        assert notify_reloading()
        fields = listener.recv(200).decode().split("\n")
        assert fields[0] == "RELOADING=1" and fields[1].startswith("MONOTONIC_USEC=")
    assert not notify("READY=1"), "nobody listens any more"


def test_abstract_notify_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@lbd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:])
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("STOPPING=1") and listener.recv(200) == b"STOPPING=1"


def test_watchdog_is_fed_twice_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == 5.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None, "meant for another process"


def test_peer_by_the_kernel_s_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours.fileno())
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        assert peer.groups >= {os.getegid(), *os.getgroups()}
        assert ours.fileno() >= 0, "the descriptor stays the caller's"
