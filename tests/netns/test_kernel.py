"""What lbd adds to the kernel: once, again when it is lost, taken away in full; nothing of anybody else's."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lbd.master.cleanup import cleanup
from lbd.master.kernel import Kernel
from lbd.master.managed import FILE, Managed
from lbd.master.mirror import Mirror
from lbd.master.record import Neighbour
from tests.netns.space import Space, run, space, until

pytestmark = [pytest.mark.netns, pytest.mark.root]

SECOND = 1.0
RESOLVED = 5.0  # the kernel asks once a second, and the peer's IPv6 may still be coming up when it asks first
RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


@pytest.fixture
def net() -> Iterator[Space]:
    with space() as made:
        yield made


class Rig:
    def __init__(self, mirror: Mirror, kernel: Kernel, alarms: list[str]) -> None:
        self.mirror, self.kernel, self.alarms = mirror, kernel, alarms

    def neighbour(self, address: str) -> Neighbour | None:
        return next((n for n in self.mirror.snapshot().neighbours if str(n.address) == address), None)

    def addresses(self) -> set[str]:
        return {str(address.address) for address in self.mirror.addresses()}

    def resolved(self, address: str) -> bool:
        found = self.neighbour(address)
        return found is not None and found.valid and found.managed


@asynccontextmanager
async def rigged(run_dir: Path) -> AsyncIterator[Rig]:
    alarms: list[str] = []
    mirror = Mirror(["h0"], lambda changes: None, asyncio.get_running_loop(), on_alarm=alarms.append)
    await mirror.start()
    kernel = Kernel(mirror, run_dir, alarms.append)
    await kernel.start()
    try:
        yield Rig(mirror, kernel, alarms)
    finally:
        await kernel.stop()
        await mirror.stop()


def held(net: Space, device: str = "h0") -> dict[str, dict[str, Any]]:
    (link,) = net.ip_json(f"addr show dev {device}")
    return {f"{entry['local']}/{entry['prefixlen']}": entry for entry in link["addr_info"]}


def recorded(run_dir: Path, what: str) -> list[list[str]]:
    return list(json.loads((run_dir / FILE).read_text())[what])


# ---- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["192.0.2.10/32", "2001:db8:1::10/128"])
async def test_an_address_comes_once_and_goes(net: Space, tmp_path: Path, address: str) -> None:
    async with rigged(tmp_path) as rig:
        for _ in range(3):
            assert await rig.kernel.add_address("h0", address)
        assert address in held(net) and recorded(tmp_path, "addresses") == [["h0", address]]
        if ":" in address:
            assert held(net)[address]["nodad"] and held(net)[address]["preferred_life_time"] == 0
        assert await rig.kernel.del_address("h0", address)
        assert not await rig.kernel.del_address("h0", address)
        assert address not in held(net) and recorded(tmp_path, "addresses") == []
        assert await rig.kernel.add_address("h0", address)  # though the mirror may still remember the first
        assert address in held(net)


@pytest.mark.parametrize("wish", ["10.99.0.1/24", "10.99.0.1/32", "2001:db8:99::1/128"])
async def test_an_address_that_was_there_is_left_alone(net: Space, tmp_path: Path, wish: str) -> None:
    async with rigged(tmp_path) as rig:
        before = set(held(net))
        assert not await rig.kernel.add_address("h0", wish)
        assert not await rig.kernel.del_address("h0", wish)
        assert set(held(net)) == before
    assert cleanup(tmp_path) == [] and set(held(net)) == before


async def test_many_addresses_at_once(net: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one datagram holds; with one record for all, and another where one of them was not ours."""
    new = [("h0", f"192.0.2.{last}/32") for last in range(1, 201)]
    new += [("h0", f"2001:db8:1::{last:x}/128") for last in range(1, 101)]
    written: list[int] = []
    real = Managed.write

    def write(self: Managed, text: str) -> None:
        written.append(1)
        real(self, text)

    monkeypatch.setattr(Managed, "write", write)
    async with rigged(tmp_path) as rig:
        outcomes = await rig.kernel.add_addresses([*new, ("h0", "10.99.0.1/24"), ("nix0", "192.0.2.99/32")])
        assert all(outcomes[entry] is True for entry in new)
        assert outcomes["h0", "10.99.0.1/24"] is False
        assert isinstance(outcomes["nix0", "192.0.2.99/32"], OSError)
        assert recorded(tmp_path, "addresses") == sorted([name, address] for name, address in new)
        assert {address for _, address in new} <= set(held(net))
        assert len(written) == 2
        assert set((await rig.kernel.del_addresses([*new, ("h0", "10.99.0.1/24")])).items()) == {
            *((entry, True) for entry in new),
            (("h0", "10.99.0.1/24"), False),
        }
        assert recorded(tmp_path, "addresses") == [] and len(written) == 3
        assert not {address for _, address in new} & set(held(net)) and "10.99.0.1/24" in held(net)


async def test_no_such_interface(net: Space, tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        with pytest.raises(OSError, match="there is no interface nix0"):
            await rig.kernel.add_address("nix0", "192.0.2.10/32")
        assert recorded(tmp_path, "addresses") == []


async def test_the_record_is_written_before_the_kernel_is_asked(
    net: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged(tmp_path) as rig:
        requests = rig.mirror.thread.requests
        seen: list[Any] = []

        async def refuse(wanted: Any) -> list[OSError]:
            seen.append(recorded(tmp_path, "addresses"))
            return [OSError(errno.EPERM, "refused") for _ in wanted]

        monkeypatch.setattr(requests, "add_addresses", refuse)
        with pytest.raises(OSError, match="refused"):
            await rig.kernel.add_address("h0", "192.0.2.10/32")
        assert seen == [[["h0", "192.0.2.10/32"]]] and recorded(tmp_path, "addresses") == []


async def test_addresses_come_back(net: Space, tmp_path: Path) -> None:
    both = {"192.0.2.10/32", "2001:db8:1::10/128"}
    async with rigged(tmp_path) as rig:
        for address in both:
            await rig.kernel.add_address("h0", address)
        await until(lambda: both <= rig.addresses(), SECOND, "seen by the mirror")
        for command in ("addr del 192.0.2.10/32 dev h0", "link set h0 down"):
            net.ip(command)
            if command.startswith("link"):
                net.ip("link set h0 up")
            await until(lambda: both <= set(held(net)), 2 * SECOND, command)
        net.ip("link del h0")
        await until(lambda: rig.mirror.snapshot().link("h0") is None, SECOND, "deletion seen")
        net.add_pair()
        await until(lambda: both <= set(held(net)), 2 * SECOND, "interface made anew")
        assert rig.alarms == []


async def test_a_device_that_goes_meanwhile_is_no_alarm(net: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror still shows an interface that the kernel has no longer: what is missing comes with the next one."""
    async with rigged(tmp_path) as rig:
        await rig.kernel.add_address("h0", "192.0.2.10/32")
        await until(lambda: "192.0.2.10/32" in rig.addresses(), SECOND, "seen by the mirror")
        asked, add = [], rig.mirror.thread.requests.add_addresses

        async def late(wanted: Any) -> list[OSError | None]:
            asked.append(wanted)
            return [OSError(errno.ENODEV, "No such device")] * len(wanted) if len(asked) == 1 else await add(wanted)

        monkeypatch.setattr(rig.mirror.thread.requests, "add_addresses", late)
        net.ip("addr del 192.0.2.10/32 dev h0")
        await until(lambda: "192.0.2.10/32" in held(net), 20 * SECOND, "it is back")
        assert len(asked) > 1 and rig.alarms == []


async def test_primary_and_secondary(net: Space, tmp_path: Path) -> None:
    """Without promote_secondaries the kernel removes a subnet's other addresses along with its first."""
    async with rigged(tmp_path) as rig:
        await rig.kernel.add_address("h0", "10.98.0.1/24")
        await rig.kernel.add_address("h0", "10.98.0.2/24")
        await rig.kernel.del_address("h0", "10.98.0.1/24")
        await until(lambda: "10.98.0.2/24" in held(net), 2 * SECOND, "the other is there")
        assert "10.98.0.1/24" not in held(net)


# ---- neighbours --------------------------------------------------------------------------------------------


async def test_managed_neighbours(net: Space, tmp_path: Path) -> None:
    wanted = [("h0", "10.99.0.2"), ("h0", "2001:db8:99::2"), ("h0", "10.99.0.99")]
    async with rigged(tmp_path) as rig:
        await rig.kernel.set_neighbours(wanted)
        for address in ("10.99.0.2", "2001:db8:99::2"):
            await until(lambda a=address: rig.resolved(a), RESOLVED, f"{address} resolved")  # type: ignore[misc]

        def nobody_there() -> bool:
            found = rig.neighbour("10.99.0.99")  # told when it failed first, after three seconds
            return found is not None and found.managed and not found.valid

        await until(nobody_there, RESOLVED, "the one that is not there")
        net.ip("link set h0 down")
        await until(lambda: rig.neighbour("10.99.0.2") is None, SECOND, "flushed with the link")
        net.ip("link set h0 up")
        await until(lambda: rig.resolved("10.99.0.2"), RESOLVED, "resolved again")
        net.ip("neigh del 10.99.0.2 dev h0")

        def in_the_kernel() -> bool:
            return any(
                "managed" in entry and "lladdr" in entry for entry in net.ip_json("neigh show 10.99.0.2")
            )

        await until(in_the_kernel, RESOLVED, "deleted by hand, and back")
        await rig.kernel.set_neighbours([("h0", "10.99.0.99")])

        def released() -> bool:
            found = rig.neighbour("10.99.0.2")
            return found is not None and found.valid and not found.managed

        await until(released, SECOND, "an ordinary entry again, with its MAC")
        assert recorded(tmp_path, "neighbours") == [["h0", "10.99.0.99"]]
        assert rig.alarms == []


async def test_static_entries_are_not_touched(net: Space, tmp_path: Path) -> None:
    net.ip("neigh add 10.99.0.50 dev h0 lladdr 02:00:00:00:00:50")
    async with rigged(tmp_path) as rig:
        await rig.kernel.set_neighbours([("h0", "10.99.0.50")])
        await rig.kernel.set_neighbours([])
        (entry,) = net.ip_json("neigh show 10.99.0.50")
        assert entry["state"] == ["PERMANENT"] and entry["lladdr"] == "02:00:00:00:00:50"


async def test_kernels_without_managed_neighbours(
    net: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged(tmp_path) as rig:

        async def ignore(ifindex: int, address: Any) -> bool:
            return False

        monkeypatch.setattr(rig.mirror.thread.requests, "manage_neighbour", ignore)
        monkeypatch.setattr(rig.mirror.thread.requests, "is_managed", ignore)
        await rig.kernel.set_neighbours([("h0", "10.99.0.2"), ("h0", "2001:db8:99::2")])
        for address in ("10.99.0.2", "2001:db8:99::2"):

            def valid(address: str = address) -> bool:
                found = rig.neighbour(address)
                return found is not None and found.valid

            await until(valid, RESOLVED, f"{address} resolved by probing")
        assert len(rig.alarms) == 1 and "does not manage neighbours" in rig.alarms[0]


async def test_a_full_neighbour_table_is_alarmed_once(
    net: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged(tmp_path) as rig:

        async def full(ifindex: int, address: Any) -> bool:
            raise OSError(errno.ENOBUFS, "no buffer space")

        monkeypatch.setattr(rig.mirror.thread.requests, "manage_neighbour", full)
        for _ in range(2):
            await rig.kernel.set_neighbours([("h0", "10.99.0.2"), ("h0", "10.99.0.3")])
        await until(lambda: bool(rig.alarms), SECOND, "the alarm")
        (alarm,) = rig.alarms
        assert "2 next hops" in alarm and "gc_thresh3" in alarm


# ---- TAP and ports -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun")
async def test_tap_leads_into_the_kernel(net: Space, tmp_path: Path) -> None:
    mac = bytes.fromhex("02000000cafe")
    async with rigged(tmp_path) as rig:
        tap = await rig.kernel.create_tap("lbd-tap", mac)
        (link,) = net.ip_json("link show lbd-tap")
        assert link["address"] == mac.hex(":") and "UP" in link["flags"] and link["ifindex"] == tap.ifindex
        with pytest.raises(OSError, match="interface lbd-tap exists already"):
            await rig.kernel.create_tap("lbd-tap")
        await rig.kernel.add_address("lo", "192.0.2.10/32")
        net.ip("route add 198.51.100.0/24 dev lbd-tap")
        net.ip("neigh add 198.51.100.7 dev lbd-tap lladdr 02:00:00:00:00:07")
        os.write(tap.fd, echo_request(mac, bytes([198, 51, 100, 7]), bytes([192, 0, 2, 10])))
        answers: list[bytes] = []

        def answered() -> bool:
            try:
                answers.append(os.read(tap.fd, 2048))
            except BlockingIOError:
                pass
            return any(frame[12:14] == b"\x08\0" and frame[34] == 0 for frame in answers)

        await until(answered, SECOND, "the kernel answers a ping by the TAP")
        tap.close()
        tap.close()
        assert not any(link["ifname"] == "lbd-tap" for link in net.ip_json("link show"))


def echo_request(mac: bytes, source: bytes, destination: bytes) -> bytes:
    def checksum(data: bytes) -> bytes:
        total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
        return (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")

    icmp = b"\x08\0\0\0\x12\x34\0\x01" + b"payload!"
    icmp = icmp[:2] + checksum(icmp) + icmp[4:]
    head = b"\x45\0" + (20 + len(icmp)).to_bytes(2, "big") + b"\0\0\0\0\x40\x01\0\0" + source + destination
    head = head[:10] + checksum(head) + head[12:]
    return mac + bytes.fromhex("020000000007") + b"\x08\0" + head + icmp


def reserved() -> str:
    return RESERVED.read_text().strip()


async def test_ports(net: Space, tmp_path: Path) -> None:
    run("sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=20000-20010")
    async with rigged(tmp_path) as rig:
        await rig.kernel.reserve_ports(10240, 32767)
        await rig.kernel.reserve_ports(10240, 32767)
        assert reserved() == "10240-32767"
        with pytest.raises(OSError, match="own connections"):
            await rig.kernel.reserve_ports(10240, 65535)
    async with rigged(tmp_path) as rig:  # another daemon, which finds the record
        await rig.kernel.release_ports()
        assert reserved() == "20000-20010"


# ---- after a death -----------------------------------------------------------------------------------------

DAEMON = """
import asyncio, sys
from pathlib import Path
from lbd.master.kernel import Kernel
from lbd.master.mirror import Mirror

async def main():
    mirror = Mirror(["h0"], lambda changes: None, asyncio.get_running_loop())
    await mirror.start()
    kernel = Kernel(mirror, Path(sys.argv[1]))
    await kernel.start()
    await kernel.add_address("lo", "192.0.2.10/32")
    await kernel.add_address("h0", "2001:db8:1::10/128")
    await kernel.set_neighbours([("h0", "10.99.0.2")])
    await kernel.reserve_ports(10240, 32767)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_cleanup_after_kill_9(net: Space, tmp_path: Path) -> None:
    net.ip("addr add 192.0.2.11/32 dev lo")
    command = [sys.executable, "-c", DAEMON, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None and daemon.stdout.readline() == "ready\n"
        finally:
            daemon.send_signal(signal.SIGKILL)
    assert "192.0.2.10/32" in held(net, "lo")
    done = cleanup(tmp_path)
    assert done == [
        "removed address 2001:db8:1::10/128 from h0",
        "removed address 192.0.2.10/32 from lo",
        "released 1 managed neighbours",
        "gave reserved ports 10240-32767 back",
    ]
    assert "192.0.2.10/32" not in held(net, "lo") and "192.0.2.11/32" in held(net, "lo")
    assert "2001:db8:1::10/128" not in held(net)
    assert not any("managed" in entry for entry in net.ip_json("neigh show"))
    assert reserved() == ""
    assert cleanup(tmp_path) == [] and list(tmp_path.iterdir()) == []


async def test_a_successor_takes_over(net: Space, tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        await rig.kernel.add_address("h0", "192.0.2.10/32")
    async with rigged(tmp_path) as rig:
        assert await rig.kernel.add_address("h0", "192.0.2.10/32")  # ours, though another process added it
        assert await rig.kernel.del_address("h0", "192.0.2.10/32")
    assert "192.0.2.10/32" not in held(net)
