"""Health checks over a wire: servers die and come back, the wire is cut, a LIP is the source."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from lbd.health.check import Check, Result, build_check
from lbd.health.core import Health
from tests.netns.space import Space, space, until

pytestmark = [pytest.mark.netns, pytest.mark.root]

INTERVAL, TIMEOUT, RISE, FALL = 0.2, 0.3, 2, 3
# fall intervals, each with its jitter, and the last check's own time; and as much again for a busy machine
NOTICED = 2 * (FALL * INTERVAL * 1.1 + TIMEOUT)
ENDPOINTS = (("10.99.0.2", 8001), ("10.99.0.2", 8002), ("2001:db8:99::2", 8003))


@pytest.fixture
def net() -> Iterator[Space]:
    with space() as made:
        yield made


class Rig:
    """Real servers in the other namespace, and health checks of them."""

    def __init__(self, net: Space) -> None:
        self.net = net
        self.told: list[tuple[object, bool, str]] = []
        self.clients: list[str] = []
        self.listeners: dict[tuple[str, int], asyncio.Server] = {}
        self.health = Health(lambda *told: self.told.append(told), asyncio.get_running_loop())

    async def serve(self, endpoint: tuple[str, int]) -> None:
        self.listeners[endpoint] = await asyncio.start_server(self._answer, sock=self.net.listen(*endpoint))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.clients.append(writer.get_extra_info("peername")[0])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def kill(self, endpoint: tuple[str, int]) -> None:
        self.listeners.pop(endpoint).close()

    def checked(self, times: int) -> bool:
        return all(status.checks[Result.SUCCESS] >= times for status in self.health.states().values())


@asynccontextmanager
async def rigged(net: Space) -> AsyncIterator[Rig]:
    rig = Rig(net)
    for endpoint in ENDPOINTS:
        await rig.serve(endpoint)
    try:
        yield rig
    finally:
        rig.health.stop()
        for listener in rig.listeners.values():
            listener.close()


def check(kind: str, endpoint: tuple[str, int], source: str | None = None) -> Check:
    return build_check(
        kind, endpoint, interval=INTERVAL, timeout=TIMEOUT, rise=RISE, fall=FALL, source=source
    )


async def resolved(net: Space) -> None:
    """The first packets of a new interface may be lost while IPv6 comes up: not what is tested here."""
    net.ip("neigh replace 2001:db8:99::2 dev h0 managed")
    await until(
        lambda: any("lladdr" in entry for entry in net.ip_json("neigh show 2001:db8:99::2")), 5, "IPv6 is up"
    )


@pytest.mark.parametrize("kind", ["tcp", "http"])
async def test_a_dead_server_leaves_and_comes_back(net: Space, kind: str) -> None:
    await resolved(net)
    async with rigged(net) as rig:
        rig.health.set({endpoint: check(kind, endpoint) for endpoint in ENDPOINTS})
        await until(lambda: rig.checked(3), 10 * INTERVAL, "all checked")
        assert rig.told == []
        for endpoint in ENDPOINTS[1:]:
            rig.told.clear()
            rig.kill(endpoint)
            await until(lambda: rig.told, NOTICED, f"{endpoint} dead")
            await rig.serve(endpoint)
            await until(lambda: len(rig.told) == 2, NOTICED, f"{endpoint} back")
            assert rig.told == [(endpoint, False, "connect: connection refused"), (endpoint, True, "")]
        assert rig.health.states()[ENDPOINTS[0]].checks[Result.FAILURE] == 0


async def test_a_cut_wire(net: Space) -> None:
    await resolved(net)
    async with rigged(net) as rig:
        rig.health.set({endpoint: check("http", endpoint) for endpoint in ENDPOINTS})
        await until(lambda: rig.checked(1), 10 * INTERVAL, "all checked")
        net.ip("link set t0 down", there=True)
        await until(lambda: len(rig.told) == 3, 2 * NOTICED, "all dead")
        assert {up for _, up, _ in rig.told} == {False}
        assert all(
            "no connect within" in why or "no route" in why or "unreach" in why for _, _, why in rig.told
        )


async def test_checks_come_from_the_lip(net: Space) -> None:
    await resolved(net)
    net.ip("addr add 10.99.0.10/32 dev h0")
    net.ip("addr add 2001:db8:99::10/128 dev h0 nodad")
    async with rigged(net) as rig:
        rig.health.set(
            {
                "v4": check("http", ENDPOINTS[0], "10.99.0.10"),
                "v6": check("http", ENDPOINTS[2], "2001:db8:99::10"),
            }
        )
        await until(lambda: rig.checked(2), 20 * INTERVAL, "checked")
        assert set(rig.clients) == {"10.99.0.10", "2001:db8:99::10"}
        net.ip("addr del 10.99.0.10/32 dev h0")
        status = rig.health.states()["v4"]
        await until(lambda: status.checks[Result.ERROR] >= FALL + 1, 20 * INTERVAL, "errors counted")
        assert status.up and rig.told == []  # this host's fault, not the real server's
        assert status.reason == "connect: cannot assign requested address"
