"""The checkers against real servers on the loopback interface: good, slow, endless, rude ones, and none."""

import asyncio
import errno
import inspect
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from lbd.health.check import Check, Probe, Result, build_check

Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

DEADLINE = 0.3
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """asyncio's own loop and uvloop: descriptors are watched with add_reader, in which they differ."""

    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(test(**arguments))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    parameters = list(inspect.signature(test).parameters.values())
    own = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("loop_factory", loops, ids=["asyncio", "uvloop"])(run)


@asynccontextmanager
async def serving(server: Server, address: str = "127.0.0.1") -> AsyncIterator[tuple[str, int]]:
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await server(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    listener = await asyncio.start_server(serve, address, 0)
    try:
        yield listener.sockets[0].getsockname()[:2]
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def probe(check: Check) -> tuple[Result, str]:
    """One probe; afterwards it holds nothing, and says nothing more."""
    loop = asyncio.get_running_loop()
    said: list[tuple[Result, str]] = []
    done = asyncio.Event()

    def finished(result: Result, reason: str) -> None:
        said.append((result, reason))
        done.set()

    start = loop.time()
    running: Probe = check.probe(loop, finished)
    running.start()
    async with asyncio.timeout(check.timeout + 5):
        await done.wait()
    assert loop.time() - start < check.timeout + 4  # the deadline is absolute
    assert getattr(running, "_sock") is None and getattr(running, "_deadline") is None  # noqa: B009
    assert len(said) == 1
    return said[0]


def http(endpoint: tuple[str, int], **settings: Any) -> Check:
    return build_check("http", endpoint, **{"timeout": DEADLINE, **settings})


def tcp(endpoint: tuple[str, int], **settings: Any) -> Check:
    return build_check("tcp", endpoint, **{"timeout": DEADLINE, **settings})


def answering(answer: bytes, then_close: bool = True) -> Server:
    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if not then_close:
            await asyncio.Event().wait()
        writer.close()
        await writer.wait_closed()

    return server


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Header: " + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X" * 100000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)  # the server's slowness is what is tested


async def gigabyte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        writer.write(bytes(65536))
        await writer.drain()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", ["tcp", "http"])
@on_both_loops
async def test_a_good_server(kind: str, address: str) -> None:
    try:
        async with serving(answering(GOOD), address) as endpoint:
            assert await probe(build_check(kind, endpoint, timeout=DEADLINE)) == (Result.SUCCESS, "")
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        pytest.skip(f"no address {address} on this host's loopback interface")


@pytest.mark.parametrize(
    ("server", "result", "reason"),
    [
        (answering(GOOD.replace(b"200", b"503")), Result.FAILURE, "HTTP status 503, expected 200"),
        (answering(b"HTTP/1.0 200\r\n\r\n"), Result.SUCCESS, ""),
        (answering(b"HTTP/1.1 200 OK\n\n"), Result.SUCCESS, ""),
        (answering(b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + GOOD), Result.SUCCESS, ""),
        (answering(GOOD, then_close=False), Result.SUCCESS, ""),
        (
            answering(b"HTTP/1.1 100 Continue\r\n\r\n", then_close=False),
            Result.TIMEOUT,
            "no answer within 0.3 s",
        ),
        (answering(b"HTTP/1.1 2000 OK\r\n\r\n"), Result.FAILURE, "not an HTTP status line"),
        (answering(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Result.FAILURE, "closed before the answer was complete"),
        (answering(b""), Result.FAILURE, "closed before the answer was complete"),
        (answering(b"HTTP"), Result.FAILURE, "closed before the answer was complete"),
        (answering(b"\x16\x03\x01\x02\x00garbage"), Result.FAILURE, "not HTTP: "),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n", then_close=False), Result.FAILURE, "not HTTP: b'SSH-2.0"),
        (silent, Result.TIMEOUT, "no answer within 0.3 s"),
        (dripping, Result.TIMEOUT, "no answer within 0.3 s"),
        (rude, Result.FAILURE, "answer: connection reset by peer"),
        (endless, Result.FAILURE, "no verdict after 65536 bytes"),
        (gigabyte, Result.SUCCESS, ""),
    ],
)
@on_both_loops
async def test_http(server: Server, result: Result, reason: str) -> None:
    async with serving(server) as endpoint:
        said = await probe(http(endpoint))
    assert said[0] is result and reason in said[1]


@on_both_loops
async def test_http_asks_for_what_was_configured() -> None:
    asked: list[bytes] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async with serving(server) as endpoint:
        assert (await probe(http(endpoint, path="/alive?x=1", status=[200, 204], host="www.example")))[
            0
        ] == "success"
        assert (await probe(http(endpoint, status=[204])))[0] == "success"
    assert asked[0].startswith(b"GET /alive?x=1 HTTP/1.1\r\nHost: www.example\r\n")
    assert f"\r\nHost: {endpoint[0]}:{endpoint[1]}\r\n".encode() in asked[1]


@pytest.mark.parametrize("check", [tcp, http])
@on_both_loops
async def test_nobody_listens(check: Callable[..., Check]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert await probe(check(sock.getsockname())) == (Result.FAILURE, "connect: connection refused")


@pytest.mark.parametrize("check", [tcp, http])
@on_both_loops
async def test_a_full_backlog_times_out(check: Callable[..., Check]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = []
        try:
            for _ in range(4):  # nobody accepts: SYNs are dropped from now on
                filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                filler.connect_ex(sock.getsockname())
                fillers.append(filler)
            assert await probe(check(sock.getsockname())) == (Result.TIMEOUT, "no connect within 0.3 s")
        finally:
            for filler in fillers:
                filler.close()


@on_both_loops
async def test_source_address() -> None:
    seen: list[str] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        await answering(GOOD)(reader, writer)

    async with serving(server) as endpoint:
        assert (await probe(http(endpoint, source="127.0.0.77")))[0] is Result.SUCCESS
    assert seen == ["127.0.0.77"]


@on_both_loops
async def test_a_source_that_is_not_here_is_an_error_not_a_failure() -> None:
    said = await probe(tcp(("127.0.0.1", 9), source="192.0.2.77"))
    assert said == (Result.ERROR, "connect: cannot assign requested address")


@on_both_loops
async def test_no_descriptor_left_is_an_error_not_a_failure() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    said: list[tuple[Result, str]] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        tcp(("127.0.0.1", 9)).probe(loop, lambda *what: said.append(what)).start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said == [(Result.ERROR, "connect: too many open files")]


@on_both_loops
async def test_cancelled_probes_say_nothing_and_hold_nothing() -> None:
    said: list[Any] = []
    async with serving(silent) as endpoint:
        loop = asyncio.get_running_loop()
        probes = [http(endpoint).probe(loop, lambda *what: said.append(what)) for _ in range(20)]
        for running in probes:
            running.start()
        for running in probes:
            running.cancel()
            running.cancel()
        assert all(getattr(running, "_sock") is None for running in probes)  # noqa: B009
    assert said == []


def open_sockets() -> int:
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(fd).startswith("socket:")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return count


@on_both_loops
async def test_hundreds_of_probes_leave_no_descriptor() -> None:
    before = open_sockets()
    async with serving(rude) as rudely, serving(endless) as endlessly, serving(answering(GOOD)) as well:
        for _ in range(20):
            said = await asyncio.gather(
                *(probe(http(end, timeout=30)) for end in (rudely, endlessly, well) for _ in range(3))
            )
            assert {result for result, _ in said[:3]} == {Result.FAILURE}
            assert {result for result, _ in said[6:]} == {Result.SUCCESS}
    assert open_sockets() == before
