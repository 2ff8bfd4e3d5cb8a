# SPDX-License-Identifier: Apache-2.0
"""The control socket and the metrics endpoint: HTTP in, JSON out. What it says is in docs/api.md, how it is made in view.py.

Scope: paths, permissions, errors. Whoever may open the socket is asked for once more by the kernel's word (SO_PEERCRED):
root, the daemon's user, members of daemon.group. Each change is logged with the peer's process and user.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lbd.config import Config, ConfigError
from lbd.master import startup, view
from lbd.master.arena import ArenaFull
from lbd.master.capture_hub import POINTS, Client
from lbd.master.course import DEADLINE_MAX, STAGES_MAX
from lbd.master.numbers import NumbersUsedUp
from lbd.master.peer import Peer, peer_of
from lbd.master.refusal import Refusal
from lbd.master.runtime import STATES, Drain
from lbd.shm import _shm as shm

if TYPE_CHECKING:
    from lbd.master.daemon import Daemon

log = logging.getLogger(__name__)

SOCKET = "control.sock"
BODY_MAX = 64 << 10
CONNS_MAX = 100_000
ROWS_A_PART = 256
JSON = "application/json; charset=utf-8"
SNAPLEN_MAX = shm.CAPTURE_SLOT - 32

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Problem(Exception):
    """An answer of application/problem+json (RFC 9457)."""

    def __init__(self, status: int, title: str, detail: str, remedy: str = "", **more: object) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"title": title, "status": status, "detail": detail, "remedy": remedy, **more}

    def answer(self) -> web.Response:
        return answer(self.body, self.status, "application/problem+json")


def bad_request(detail: str, remedy: str = "see docs/api.md") -> Problem:
    return Problem(400, "bad_request", detail, remedy)


def not_found(detail: str, remedy: str = "") -> Problem:
    return Problem(404, "not_found", detail, remedy)


class Servers:
    """Both listeners."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._runners: dict[str, web.AppRunner] = {}
        self._sockets: dict[str, str] = {}
        self.streams: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        await self._start_control()
        await self._start_metrics(self._daemon.config)

    async def stop(self) -> None:
        for task in tuple(self.streams):
            task.cancel()
        for runner in self._runners.values():
            await runner.cleanup()
        self._runners.clear()
        self._path().unlink(missing_ok=True)

    async def configure(self, config: Config) -> None:
        """After a reload: another group, another address of the metrics."""
        try:
            self._set_group(config)
        except OSError as error:
            self._daemon.alarm(f"group {config.daemon.group} of the control socket: {error.strerror or error}")
        if self._sockets.get("metrics") != str(config.metrics.listen):
            if (runner := self._runners.pop("metrics", None)) is not None:
                await runner.cleanup()
            await self._start_metrics(config)

    def _path(self) -> Path:
        return self._daemon.config.daemon.run_dir / SOCKET

    async def _start_control(self) -> None:
        path = self._path()
        path.unlink(missing_ok=True)
        runner = await self._runner("control", control_routes(self._daemon, self), self._may)
        mask = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(mask)
        self._set_group(self._daemon.config)
        path.chmod(0o660)

    def _set_group(self, config: Config) -> None:
        group = os.getegid() if config.daemon.group is None else startup.group_id(config.daemon.group)
        for path in (self._path(), self._path().parent):
            os.chown(path, -1, group)

    async def _start_metrics(self, config: Config) -> None:
        listen = config.metrics.listen
        self._sockets["metrics"] = str(listen)
        if listen is None:
            return
        runner = await self._runner("metrics", metrics_routes(self._daemon), None)
        try:
            await web.TCPSite(runner, str(listen.addr), listen.port).start()
        except OSError as error:
            await self._runners.pop("metrics").cleanup()
            self._daemon.alarm(f"metrics.listen {listen}: {error.strerror or error}: no metrics over TCP")

    async def _runner(self, name: str, routes: list[web.RouteDef], may: Callable[[Peer], bool] | None) -> web.AppRunner:
        app = web.Application(client_max_size=BODY_MAX, middlewares=[self._guard(may)])
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._runners[name] = runner
        return runner

    # -- every request ---------------------------------------------------------------------------------------

    def _may(self, peer: Peer) -> bool:
        group = self._daemon.config.daemon.group
        return peer.uid in (0, os.geteuid()) or (group is not None and startup.group_id(group) in peer.groups)

    def _guard(self, may: Callable[[Peer], bool] | None):  # type: ignore[no-untyped-def]
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "unknown"
            try:
                if may is not None:
                    self._admit(request, may)
                response = await handler(request)
            except Problem as problem:
                response = problem.answer()
            except web.HTTPException as error:
                title = {404: "not_found", 405: "bad_request", 413: "bad_request"}.get(error.status, "refused")
                response = Problem(error.status, title, f"{request.method} {request.path}: {error.reason}").answer()
            except Exception:
                log.exception("%s %s", request.method, request.path)
                response = Problem(500, "internal", "the daemon failed to answer; its log says more").answer()
            self._daemon.exporter.requested(request.method, route, response.status)
            return response

        return guard

    def _admit(self, request: web.Request, may: Callable[[Peer], bool]) -> None:
        transport = request.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None:
            raise Problem(403, "forbidden", "the peer has gone")
        peer = peer_of(sock.fileno())
        if not may(peer):
            raise Problem(403, "forbidden", f"{peer} may not use this socket", "be root, or a member of daemon.group")
        if request.method not in ("GET", "HEAD"):
            log.info("%s %s by %s", request.method, request.path, peer)


def answer(body: object, status: int = 200, kind: str = "application/json") -> web.Response:
    return web.Response(text=json.dumps(body) + "\n", status=status, content_type=kind)


async def stream(request: web.Request, kind: str, parts: Iterable[bytes]) -> web.StreamResponse:
    """An answer that takes long to make, in parts: between two of them the loop does what else is to do."""
    response = web.StreamResponse(headers={"Content-Type": kind})
    zipped = zlib.compressobj(1, wbits=31) if "gzip" in request.headers.get("Accept-Encoding", "") else None
    if zipped is not None:
        response.headers["Content-Encoding"] = "gzip"
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    loop = asyncio.get_running_loop()
    try:
        for part in parts:
            if zipped is not None and part:
                part = await loop.run_in_executor(None, zipped.compress, part)
            if part:
                await response.write(part)
            await asyncio.sleep(0)
        await response.write_eof(zipped.flush() if zipped is not None else b"")
    except ConnectionError:
        pass  # the client has gone
    except Exception:  # too late for another status: the client sees that the end is missing
        log.exception("%s %s", request.method, request.path)
        if request.transport is not None:
            request.transport.abort()
    return response


def json_parts(name: str, rows: Iterable[object]) -> Iterator[bytes]:
    """{name: [rows]} in parts."""
    yield f'{{"{name}": ['.encode()
    comma = ""
    for some in batched(rows, ROWS_A_PART):
        yield (comma + json.dumps(some)[1:-1]).encode()
        comma = ", "
    yield b"]}\n"


def batched(rows: Iterable[object], size: int) -> Iterator[list[object]]:
    rest = iter(rows)
    while some := list(islice(rest, size)):
        yield some


# -- metrics ---------------------------------------------------------------------------------------------------


def metrics_routes(daemon: Daemon) -> list[web.RouteDef]:
    async def metrics(request: web.Request) -> web.StreamResponse:
        return await stream(request, *daemon.exporter.page(request.headers.get("Accept", "")))

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        return web.Response(text="ready\n") if daemon.ready else web.Response(text="not ready\n", status=503)

    return [web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)]


# -- control ---------------------------------------------------------------------------------------------------


def control_routes(daemon: Daemon, servers: Servers) -> list[web.RouteDef]:
    def shows(make: Callable[[Daemon], object]) -> Handler:
        async def show(request: web.Request) -> web.Response:
            return answer(make(daemon))

        return show

    handlers = Control(daemon, servers)
    return [
        web.get("/v1/status", shows(view.status)),
        web.get("/v1/services", handlers.services),
        web.get("/v1/real-servers", handlers.real_servers),
        web.get("/v1/conns", handlers.conns),
        web.get("/v1/templates", handlers.templates),
        web.get("/v1/workers", shows(view.workers)),
        web.get("/v1/lips", shows(view.lips)),
        web.get("/v1/snat", shows(view.snat)),
        web.get("/v1/tunnels", shows(view.tunnels)),
        web.get("/v1/drops", shows(view.drops)),
        web.get("/v1/interfaces", shows(view.interfaces)),
        web.get("/v1/neighbours", shows(view.neighbours)),
        web.get("/v1/routes", shows(view.routes)),
        web.get("/v1/config", shows(view.configuration)),
        web.patch("/v1/services/{name}/real-servers/{address}", handlers.change),
        web.post("/v1/reload", handlers.reload),
        web.post("/v1/stop", handlers.stop),
        web.get("/v1/capture", handlers.capture),
        *metrics_routes(daemon),
    ]


class Control:
    def __init__(self, daemon: Daemon, servers: Servers) -> None:
        self._daemon = daemon
        self._servers = servers

    def _service(self, name: str) -> str:
        if all(s.name != name for s in self._daemon.config.service):
            raise not_found(f"there is no service {name}", "lbd service lists them")
        return name

    async def services(self, request: web.Request) -> web.StreamResponse:
        return await stream(request, JSON, json_parts("services", view.services(self._daemon)))

    async def real_servers(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("service")
        rows = view.real_servers(self._daemon, self._service(name) if name is not None else None)
        return await stream(request, JSON, json_parts("real_servers", rows))

    async def conns(self, request: web.Request) -> web.Response:
        limit = number(request, "limit", 100, 1, CONNS_MAX)
        name = request.query.get("service")
        return answer(view.conns(self._daemon, limit, self._service(name) if name is not None else None))

    async def templates(self, request: web.Request) -> web.Response:
        limit = number(request, "limit", 100, 1, CONNS_MAX)
        name = request.query.get("service")
        return answer(view.templates(self._daemon, limit, self._service(name) if name is not None else None))

    async def change(self, request: web.Request) -> web.Response:
        daemon, name = self._daemon, self._service(request.match_info["name"])
        address = request.match_info["address"]
        service = next(s for s in daemon.config.service if s.name == name)
        if all(str(r.address) != address for r in service.real_server):
            raise not_found(f"service {name} has no real server {address}", f"lbd real-server {name} lists them")
        if daemon.state != "running":
            raise Problem(503, "not_ready", f"lbd is {daemon.state}", "try again in a moment")
        try:
            daemon.change((name, address), await changed_values(request, daemon.course.clock()))
        except (NumbersUsedUp, ArenaFull) as error:
            raise Problem(409, "refused", str(error)) from None
        return answer(next(view.real_servers(daemon, name, address)))

    async def reload(self, request: web.Request) -> web.Response:
        try:
            return answer({"changes": await self._daemon.reload()})
        except ConfigError as error:
            problems = [str(p) for p in error.problems]
            detail = f"the configuration has {len(problems)} problem{'s' * (len(problems) != 1)}, nothing has changed"
            raise Problem(409, "refused", detail, "lbd check says the same", problems=problems) from None
        except Refusal as error:
            title, status = ("refused", 409) if self._daemon.state == "running" else ("not_ready", 503)
            raise Problem(status, title, error.problem, error.remedy) from None

    async def stop(self, request: web.Request) -> web.Response:
        self._daemon.stop()
        return answer({"state": "stopping"}, 202)

    async def capture(self, request: web.Request) -> web.StreamResponse:
        client = self._capture_client(request)
        left = number(request, "count", 0, 0, 1 << 62)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._servers.streams.add(task)
        self._daemon.capture.add(client)
        try:
            await self._daemon.capturing()
            await response.write(bytes(4))  # capturing is on
            sent = 0
            while not left or sent < left:
                record = await client.queue.get()
                await response.write(len(record).to_bytes(4, "big") + record)
                sent += 1
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has what it wanted, or the daemon stops
        finally:
            self._servers.streams.discard(task)
            self._daemon.capture.remove(client)
        return response

    def _capture_client(self, request: web.Request) -> Client:
        points = 0
        for name in request.query.get("points", "rx,tx,drop").split(","):
            if name not in POINTS:
                raise bad_request(f"points: there is no {name!r}; there are {', '.join(POINTS)}")
            points |= POINTS[name]
        service = shm.SVC_NONE
        if (wanted := request.query.get("service")) is not None:
            self._service(wanted)
            placed = self._daemon.reconciler.placed.values()
            service = next((p.number for p in placed if p.service.name == wanted), service)
        return Client(points, number(request, "snaplen", SNAPLEN_MAX, 1, SNAPLEN_MAX), service)


def number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise bad_request(f"{name} must be a number from {low} to {high}, not {text!r}")
    return int(text)


async def changed_values(request: web.Request, now: float) -> dict[str, int | str | Drain | None]:
    """`now`: when a drain begins."""
    try:
        body = await request.json()
    except ValueError:
        raise bad_request("the body is no JSON") from None
    if not isinstance(body, dict) or not body or body.keys() - {"weight", "state", "deadline", "stages", "reset"}:
        raise bad_request('the body must be an object with "weight", "state" or both, with state drain also "deadline"')
    if "weight" in body:
        weight = body["weight"]
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= 65535):
            raise bad_request("weight must be an integer from 0 to 65535, or null for the configured one")
    if "state" in body and body["state"] not in STATES:
        raise bad_request(f"state must be one of {', '.join(STATES)}")
    values: dict[str, int | str | Drain | None] = {key: body[key] for key in ("weight", "state") if key in body}
    if drain := drain_of(body, now):
        values["drain"] = drain
    return values


def drain_of(body: dict[str, Any], now: float) -> Drain | None:
    given = body.keys() & {"deadline", "stages", "reset"}
    if not given:
        return None
    if body.get("state") != "drain" or "deadline" not in given:
        raise bad_request('deadline goes with "state": "drain", stages and reset with a deadline')
    seconds, stages, reset = body["deadline"], body.get("stages", 1), body.get("reset", False)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= DEADLINE_MAX:
        raise bad_request(f"deadline must be a number of seconds from 1 to {DEADLINE_MAX:.0f}")
    if isinstance(stages, bool) or not isinstance(stages, int) or not 1 <= stages <= STAGES_MAX:
        raise bad_request(f"stages must be an integer from 1 to {STAGES_MAX}")
    if not isinstance(reset, bool):
        raise bad_request("reset must be true or false")
    return Drain(now, now + seconds, stages, reset)
