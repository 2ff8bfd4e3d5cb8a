# SPDX-License-Identifier: Apache-2.0
"""The daemon's start: whatever step of it fails, nothing stays behind, and the next start works; and its refusals, each
one line with what to do.

The daemon runs in this process, in the namespace of the test's thread; its workers are processes of their own.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from lbd.config import Config, loads
from lbd.master import life, startup, takeover
from lbd.master.api import Servers
from lbd.master.applier import Applier
from lbd.master.checks import Checks
from lbd.master.daemon import Daemon
from lbd.master.kernel import Kernel
from lbd.master.network import Network
from lbd.master.refusal import Refusal
from lbd.master.sockets import Opener
from lbd.master.supervise import Supervisor
from lbd.xdp._xsk import Program, XdpError
from tests.netns.space import Space, run, space

pytestmark = [pytest.mark.netns, pytest.mark.root]

TEXT = """
[daemon]
run_dir = "{run_dir}"
[tables]
connections_ipv4 = 1024
connections_ipv6 = 1024
frames = 512
hugepages = "off"
[metrics]
listen = "127.0.0.1:9911"
[[interface]]
name = "h0"
ring = 128
[[local_address]]
address = "10.99.9.1"
interface = "lo"
[[service]]
name = "web"
address = "192.0.2.10:80"
[[service.real_server]]
address = "10.99.0.2:80"
"""
LIMIT = 30.0  # seconds for a daemon to be up


@pytest.fixture
def net() -> Iterator[Space]:
    with space() as made:
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return loads(TEXT.format(run_dir=tmp_path / "run"))


class Injected(OSError):
    def __init__(self) -> None:
        super().__init__(errno.EIO, "injected")


def fails_before(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        raise Injected

    async def async_step(*args: Any, **kwargs: Any) -> Any:
        raise Injected

    return async_step if asyncio.iscoroutinefunction(original) else step


def fails_after(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise Injected

    async def async_step(*args: Any, **kwargs: Any) -> Any:
        await original(*args, **kwargs)
        raise Injected

    return async_step if asyncio.iscoroutinefunction(original) else step


def traces(net: Space, config: Config) -> dict[str, object]:
    """All that a daemon leaves in the kernel and in its run directory, but for connection files and the lock."""
    links = net.ip_json("-details link show")
    files = {p.name for p in config.daemon.run_dir.glob("*")}
    addresses = [a for link in net.ip_json("addr show") for a in link.get("addr_info", [])]
    return {
        "programs": [link["ifname"] for link in links if "xdp" in link],
        "interfaces": sorted(link["ifname"] for link in links),
        "sockets": run("ss", "--xdp", "-aH"),
        "addresses": sorted(a["local"] for a in addresses if a["scope"] != "link"),  # the kernel's, some time after an interface
        "ports": Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip(),
        "workers": workers(),
        "files": sorted(files - {"conn-0", "daemon.lock", "managed.json", "hash-key", "owners", "runtime.json"}),
        "tcp": run("ss", "-Htnl"),
    }


def workers() -> list[str]:
    """Worker processes in this thread's namespace."""
    mine, found = os.readlink("/proc/thread-self/ns/net"), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"lbd.worker" in command and os.readlink(process / "ns/net") == mine:
                found.append(process.name)
        except OSError:
            continue  # it has just ended
    return found


def start_and_stop(config: Config, path: Path, state: dict[str, object] | None = None) -> None:
    """Until it runs; then a proper stop. What it raises while starting comes out."""

    async def scenario() -> None:
        daemon = Daemon(config, str(path))
        running = asyncio.create_task(daemon.run())
        deadline = asyncio.get_running_loop().time() + LIMIT
        while not running.done() and daemon.state != "running":
            assert asyncio.get_running_loop().time() < deadline, "not up"
            await asyncio.sleep(0.01)
        if state is not None and not running.done():
            state["ready"] = daemon.ready
        daemon.stop()
        await running

    uvloop.run(scenario())


STEPS: list[tuple[Any, str, Callable[..., Any]]] = [
    (startup, "check_host", fails_before),
    (Network, "start", fails_before),
    (takeover, "adopt", fails_before),
    (startup, "set_owners", fails_before),
    (startup, "open_segments", fails_before),
    (startup, "open_connection_file", fails_after),
    (Opener, "open", fails_before),
    (startup, "attach", fails_before),
    (startup, "attach", fails_after),
    (life, "worker_set", fails_before),
    (Applier, "apply", fails_before),
    (Applier, "apply", fails_after),
    (Supervisor, "start", fails_before),
    (Supervisor, "start", fails_after),
    (Applier, "settle", fails_before),
    (Applier, "settle", fails_after),
    (Checks, "configure", fails_before),
    (Kernel, "reserve_ports", fails_after),
    (Kernel, "add_addresses", fails_before),
    (Kernel, "add_addresses", fails_after),
    (Servers, "start", fails_before),
    (Servers, "start", fails_after),
]


@pytest.mark.parametrize(("place", "name", "how"), STEPS, ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", ""))
def test_nothing_stays_after_a_failed_start(
    net: Space, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, how: Any
) -> None:
    before = traces(net, config)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, how(getattr(place, name)))
        with pytest.raises((Injected, Refusal), match="injected"):
            start_and_stop(config, tmp_path)
    assert traces(net, config) == before


def test_start_after_a_failed_one_and_proper_stop(
    net: Space, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = traces(net, config)
    with monkeypatch.context() as patch:
        patch.setattr(Servers, "start", fails_after(Servers.start))
        with pytest.raises(Injected):
            start_and_stop(config, tmp_path)
    state: dict[str, object] = {}
    start_and_stop(config, tmp_path, state)
    assert state == {"ready": True}
    assert traces(net, config) == before


# -- refusals ------------------------------------------------------------------------------------------------------


def refusal(config: Config, tmp_path: Path) -> str:
    with pytest.raises((Refusal, XdpError)) as caught:
        start_and_stop(config, tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_second_daemon_in_the_same_run_directory(net: Space, config: Config, tmp_path: Path) -> None:
    lock = startup.lock(startup.make_run_dir(config))
    try:
        assert f"another lbd (process {os.getpid()})" in refusal(config, tmp_path)
    finally:
        os.close(lock)


def test_missing_interface(net: Space, config: Config, tmp_path: Path) -> None:
    net.ip("link set h0 down")
    net.ip("link set h0 name h9")
    assert refusal(config, tmp_path).startswith("there is no interface h0: see: ip link")


def test_too_few_queues(net: Space, tmp_path: Path) -> None:
    text = TEXT.format(run_dir=tmp_path / "run").replace("[tables]", "[workers]\ncount = 2\n[tables]")
    assert "too few queues: 2 workers" in refusal(loads(text), tmp_path)


def test_zero_copy_demanded_where_there_is_none(net: Space, tmp_path: Path) -> None:
    text = TEXT.format(run_dir=tmp_path / "run").replace('name = "h0"', 'name = "h0"\nzero_copy = "require"')
    before = traces(net, loads(text))
    assert "zero-copy on h0 queue 0" in refusal(loads(text), tmp_path)
    assert traces(net, loads(text)) == before


def test_foreign_xdp_program(net: Space, config: Config, tmp_path: Path) -> None:
    program = Program.load()
    try:
        program.attach(net.ip_json("link show h0")[0]["ifindex"], "h0", "native")
        assert "another lbd serves h0: stop it first" in refusal(config, tmp_path)
    finally:
        program.close()


def test_missing_interface_of_a_managed_address(net: Space, tmp_path: Path) -> None:
    text = TEXT.format(run_dir=tmp_path / "run").replace('interface = "lo"', 'interface = "nowhere"')
    before = traces(net, loads(text))
    assert "there is no interface nowhere" in refusal(loads(text), tmp_path)
    assert traces(net, loads(text)) == before
