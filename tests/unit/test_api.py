"""The control socket: shapes of docs/api.md, errors, permissions; on a real unix socket, with real segments,
and a daemon of which only what the socket needs is there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from lbd.config import ConfigError, Problem, loads
from lbd.health.target import Status
from lbd.master.api import Servers
from lbd.master.applier import Applier
from lbd.master.arena import Arena
from lbd.master.capture_hub import HEAD, CaptureHub, Client
from lbd.master.compose import Composer
from lbd.master.course import Course
from lbd.master.peer import Peer
from lbd.master.reach import Reach
from lbd.master.reconcile import Reconciler
from lbd.master.record import Address, Link, Neighbour, Snapshot
from lbd.master.refusal import Refusal
from lbd.master.resources import Port
from lbd.master.runtime import Runtime
from lbd.shm import _shm as shm

ROOT = Path(__file__).parents[2]
TEXT = """
[daemon]
run_dir = "{run_dir}"
[workers]
count = 2
[tables]
services = 16
real_servers = 64
frames = 256
[metrics]
listen = ""
[[interface]]
name = "eth0"
[[local_address]]
address = "10.0.0.10"
interface = "eth0"
[[service]]
name = "web"
address = "192.0.2.10:80"
sorry_server = "10.0.1.99:8080"
[service.health]
type = "tcp"
[[service.real_server]]
address = "10.0.1.1:8080"
[[service.real_server]]
address = "10.0.1.2:8080"
weight = 3
"""
MAC = b"\2\0\0\0\0\1"


class FakeDaemon:
    """What view.py, condition.py and api.py ask a daemon for."""

    async def capturing(self) -> None:
        """The fake's workers hear at once."""

    def __init__(self, run_dir: Path) -> None:
        self.config = loads(TEXT.format(run_dir=run_dir))
        self.path, self.pid, self.state = "/etc/lbd.toml", 42, "running"
        self.started = self.loaded = 1000.0
        self.took_over, self.ready, self.reloads, self.rejected, self.reload_error = False, True, 0, 0, ""
        self.notes: list[str] = []
        self.alarms: list[tuple[float, str]] = []
        self.stopped = False
        self.requests: list[tuple[str, str, int]] = []
        sizes = self.config.sizes()
        self.segments = {n: shm.WorkerSegment.create(sizes, n) for n in range(2)}
        states: dict[tuple[str, str], Status] = {("web", "10.0.1.1:8080"): Status()}
        self.health = SimpleNamespace(states=lambda: states, is_up=lambda s, r: states.get((s, r), Status()).up, statuses=states)
        self.runtime = Runtime(run_dir / "runtime.json")
        self.now = 1000.0
        self.course = Course(self.runtime, self.config, lambda: self.now)
        self.composer = Composer(self.config, self.health.is_up, self.runtime.get, self.course.standing)
        link = Link(2, "eth0", MAC, 1500, True, "veth", None, None)
        import ipaddress

        self.snapshot = Snapshot(
            (link,),
            (Address(2, ipaddress.ip_interface("10.0.0.1/24"), 0),),
            (),
            (Neighbour(2, ipaddress.ip_address("10.0.0.9"), MAC, "REACHABLE", True, True),),
            (),
            (),
        )
        self.network = SimpleNamespace(snapshot=lambda: self.snapshot)
        self.composer.look(Reach(self.config, self.snapshot))
        self.ports = [Port(n, 0, 0, "eth0", 2, n, -1, 64, 64, 64, 64, n == 0) for n in range(2)]
        self.resources = SimpleNamespace(
            ports=self.ports,
            sizes=sizes,
            area=SimpleNamespace(huge=False, note=""),
            host=SimpleNamespace(
                templates=lambda limit: [
                    {"worker": 1, "svc": 0, "dest": 0, "net": bytes([198, 51, 100, *[0] * 13]), "renewed_ns": 0, "alive_ns": 0}
                ][:limit],
            ),
            program=SimpleNamespace(counters=lambda: {0: {"pass": 1, "redirect": 2, "drop": 3}}, attached=lambda: {2: 9}),
        )
        arena = Arena(sizes["arena"], lambda at, table: None)
        self.reconciler = Reconciler(sizes["services"], sizes["dests"], sizes["lips"], arena)
        self.epochs = SimpleNamespace(waiting=0.0)
        self.applier = SimpleNamespace(failures={}, places={2: (0, 0)}, reconciler=self.reconciler)
        self.batch = self.reconciler.update(self.composer.desired)
        self.supervisor = SimpleNamespace(
            members={n: SimpleNamespace(state="running", delivery=SimpleNamespace(waiting=3)) for n in range(2)}
        )
        self.exporter = SimpleNamespace(
            page=lambda accept: ("text/plain; version=0.0.4", iter((b"", b"lbd_", b"", b"ready 1\n"))),
            requested=lambda *what: self.requests.append(what),
        )
        self.captured: list[tuple[int, int, int]] = []
        self.capture = CaptureHub(self.segments.values, lambda *what: self.captured.append(what))
        self.reload_result: list[str] | Exception = ["service web: health check changed"]

    def is_alive(self, worker: int) -> bool:
        return self.supervisor.members[worker].state == "running"

    def placed(self, service: Any) -> Any:
        return Applier.placed(self, service)  # type: ignore[arg-type]

    def connections(self, worker: int, limit: int, service: int | None) -> list[dict[str, Any]]:
        if worker or limit < 1:
            return []
        ends = {"client": (bytes([198, 51, 100, 7]), 40000), "virtual": (bytes([192, 0, 2, 10]), 80),
                "local": (bytes([10, 0, 0, 10]), 12345), "real_server": (bytes([10, 0, 1, 1]), 8080)}  # fmt: skip
        return [{**ends, "proto": 6, "mode": "fullnat", "state": "ESTABLISHED", "expires_ms": 1500, "svc": 0, "dest": 0}]

    def change(self, where: tuple[str, str], values: dict[str, Any]) -> None:
        self.runtime.change(where, **values)
        self.composer.touch(where[0])

    async def reload(self) -> list[str]:
        if isinstance(self.reload_result, Exception):
            raise self.reload_result
        return self.reload_result

    def stop(self) -> None:
        self.stopped = True

    def alarm(self, text: str) -> None:
        self.alarms.append((0.0, text))


class Api:
    def __init__(self, daemon: FakeDaemon, session: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self.session = session

    async def __call__(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.session.request(method, f"http://lbd{path}", data=data) as response:
            text = await response.text()
            kind = "application/problem+json" if response.status >= 400 else "application/json"
            if response.content_type == kind:
                return response.status, json.loads(text)
            return response.status, text


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    daemon = FakeDaemon(tmp_path)
    servers = Servers(daemon)  # type: ignore[arg-type]
    await servers.start()
    connector = aiohttp.UnixConnector(path=str(tmp_path / "control.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        api = Api(daemon, session)
        api.servers = servers  # type: ignore[attr-defined]
        yield api
    daemon.capture.stop()
    await servers.stop()
    assert not (tmp_path / "control.sock").exists()


def documented(title: str) -> Any:
    """The JSON example below a heading of docs/api.md."""
    text = (ROOT / "docs/api.md").read_text()
    block = text.split(f"### `GET {title}`", 1)[1].split("```json\n", 1)[1].split("```", 1)[0]
    return json.loads(re.sub(r"the next hop's …", "x", block))


def assert_shape(got: Any, want: Any, at: str = "") -> None:
    """The same keys at each level; types alike, but for null."""
    if isinstance(want, dict):
        assert isinstance(got, dict) and set(got) == set(want), f"{at}: {sorted(set(got) ^ set(want))}"
        for key in want:
            assert_shape(got[key], want[key], f"{at}.{key}")
    elif isinstance(want, list) and want and got:
        assert_shape(got[0], want[0], f"{at}[0]")
    elif want is not None and got is not None:
        number = int, float
        assert isinstance(got, number if isinstance(want, number) else type(want)), at


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/status", "/v1/services", "/v1/real-servers", "/v1/conns", "/v1/templates", "/v1/workers", "/v1/lips", "/v1/drops"),
        *("/v1/snat", "/v1/tunnels"),
    ],
)
async def test_answers_are_as_documented(api: Api, path: str) -> None:
    status, got = await api("GET", path)
    assert status == 200
    assert_shape(got, documented(path))


async def test_network_as_workers_see_it(api: Api) -> None:
    daemon = api.daemon
    head = shm.WorkerEnd(daemon.segments[0])
    assert head is not None
    status, got = await api("GET", "/v1/interfaces")
    assert status == 200 and got["interfaces"][0]["mode"] == "zero-copy"
    assert got["interfaces"][0]["addresses"] == ["10.0.0.1/24"]
    assert (await api("GET", "/v1/neighbours"))[1] == {"neighbours": []}
    assert (await api("GET", "/v1/routes"))[1] == {"routes": []}


async def test_values(api: Api) -> None:
    _, got = await api("GET", "/v1/services")
    assert got["services"][0] | {"connections": 0} == got["services"][0]
    assert got["services"][0]["real_servers"] == {"total": 2, "up": 2, "down": 0, "drain": 0, "maint": 0}
    _, got = await api("GET", "/v1/conns?limit=1&service=web")
    assert got["conns"] == [
        {"worker": 0, "protocol": "tcp", "state": "established", "service": "web", "real_server": "10.0.1.1:8080",
         "client": "198.51.100.7:40000", "virtual": "192.0.2.10:80", "local": "10.0.0.10:12345", "expires": 1.5, "mode": "fullnat"}
    ]  # fmt: skip
    assert got["truncated"]
    _, got = await api("GET", "/v1/drops")
    assert got["xdp"] == [{"interface": "eth0", "pass": 1, "redirect": 2, "drop": 3}]
    assert [d["reason"] for d in got["drops"]][:2] == ["malformed", "bad_checksum"]
    _, got = await api("GET", "/v1/config")
    assert got["config"]["service"][0]["address"] == "192.0.2.10:80" and got["runtime"] == []


async def test_problems_are_told(api: Api) -> None:
    daemon = api.daemon
    daemon.health.statuses["web", "10.0.1.1:8080"].begin_down(0.0)
    daemon.supervisor.members[1].state = "killed"
    daemon.reload_error = "line one\nline two"
    daemon.snapshot = Snapshot((), (), (), (), (), ())
    for real in ("10.0.1.1:8080", "10.0.1.2:8080"):
        daemon.runtime.change(("web", real), state="drain")
    daemon.composer.touch("web")
    _, got = await api("GET", "/v1/status")
    assert got["problems"] == [
        "worker 1 is killed",
        "eth0 has gone: bring it back",
        "service web has no real server that can take a connection: its sorry server 10.0.1.99:8080 gets them",
        "the last reload was refused: line one",
    ]
    assert got["workers"]["running"] == 1 and got["services"] == {"total": 1, "up": 0}
    assert got["notes"] == ["copy mode on eth0: zero-copy is not to be had"]


# -- changes -------------------------------------------------------------------------------------------------

REAL = "/v1/services/web/real-servers/10.0.1.2:8080"


async def test_change_of_a_real_server(api: Api) -> None:
    status, got = await api("PATCH", REAL, {"weight": 9, "state": "drain"})
    assert status == 200 and got["admin"] == "drain" and got["weight"] == 0 and got["runtime"]
    assert got["state"] == "drain" and got["configured_weight"] == 3
    status, got = await api("PATCH", REAL, {"state": "ready"})
    assert got["weight"] == 9 and got["state"] == "up"
    status, got = await api("PATCH", REAL, {"weight": None})
    assert got["weight"] == 3 and not got["runtime"]
    status, got = await api("PATCH", REAL, {"state": "maint"})
    assert got["state"] == "maint"
    assert (await api("GET", "/v1/config"))[1]["runtime"] == [
        {"service": "web", "real_server": "10.0.1.2:8080", "weight": None, "state": "maint", "drain": None}
    ]


async def test_drain_with_a_deadline(api: Api) -> None:
    status, got = await api("PATCH", REAL, {"state": "drain", "deadline": 60, "stages": 3, "reset": True})
    assert status == 200 and (got["state"], got["admin"], got["weight"]) == ("drain", "drain", 3)
    assert got["drain"] == {"began": 1000.0, "deadline": 1060.0, "stages": 3, "reset": True, "left": 60.0, "over": False}
    assert got["effective_weight"] == pytest.approx(1.98)
    api.daemon.now = 1061.0
    _, got = await api("GET", "/v1/real-servers")
    assert got["real_servers"][1]["drain"]["over"] and got["real_servers"][1]["drain"]["left"] == 0
    _, got = await api("PATCH", REAL, {"state": "ready"})
    assert got["drain"] is None and got["weight"] == 3 and not got["runtime"]


async def test_slow_start_is_shown(api: Api) -> None:
    api.daemon.runtime.ramps["web", "10.0.1.2:8080"] = 990.0
    api.daemon.course._slow["web", "10.0.1.2:8080"] = (20.0, 20)
    _, got = await api("GET", "/v1/real-servers")
    assert got["real_servers"][1]["slow_start"] == {"began": 990.0, "seconds": 20.0, "left": 9.0, "share": 55}
    assert got["real_servers"][1]["effective_weight"] == pytest.approx(1.65) and got["real_servers"][1]["weight"] == 3


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b"{}", b'{"wieght": 1}', b'{"weight": -1}', b'{"weight": 65536}',
             b'{"weight": 1.5}', b'{"weight": true}', b'{"weight": "1"}', b'{"state": "up"}', b'{"state": null}',
             b'{"weight": 1, "state": "gone"}', b"\xff\xfe", b'{"deadline": 5}', b'{"state": "ready", "deadline": 5}',
             b'{"state": "drain", "stages": 2}', b'{"state": "drain", "reset": true}', b'{"state": "drain", "deadline": 0}',
             b'{"state": "drain", "deadline": "5"}', b'{"state": "drain", "deadline": true}',
             b'{"state": "drain", "deadline": 604801}', b'{"state": "drain", "deadline": 5, "stages": 0}',
             b'{"state": "drain", "deadline": 5, "stages": 101}', b'{"state": "drain", "deadline": 5, "reset": 1}'],
)  # fmt: skip
async def test_bad_body_changes_nothing(api: Api, body: bytes) -> None:
    status, got = await api("PATCH", REAL, body)
    assert status == 400 and got["title"] == "bad_request" and got["remedy"]
    assert list(api.daemon.runtime.items()) == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404), ("GET", "/", 404), ("DELETE", "/v1/status", 405), ("GET", "/v1/conns?limit=0", 400),
        ("GET", "/v1/conns?limit=x", 400), ("GET", "/v1/conns?service=no", 404), ("GET", "/v1/real-servers?service=no", 404),
        ("GET", "/v1/capture?points=tx,air", 400), ("GET", "/v1/capture?service=no", 404),
        ("PATCH", "/v1/services/no/real-servers/10.0.1.2:8080", 404), ("PATCH", "/v1/services/web/real-servers/10.9.9.9:1", 404),
    ],
)  # fmt: skip
async def test_refusals(api: Api, method: str, path: str, status: int) -> None:
    got, problem = await api(method, path, {"weight": 1} if method == "PATCH" else None)
    assert got == status and problem["status"] == status and problem["detail"] and "remedy" in problem


async def test_reload_and_stop(api: Api) -> None:
    assert await api("POST", "/v1/reload") == (200, {"changes": ["service web: health check changed"]})
    api.daemon.reload_result = ConfigError([Problem("lbd.toml", 3, "x", "is wrong"), Problem("lbd.toml", 4, "y", "too")])
    status, got = await api("POST", "/v1/reload")
    assert status == 409 and got["problems"] == ["lbd.toml:3: x: is wrong", "lbd.toml:4: y: too"]
    api.daemon.reload_result = Refusal("workers.count can't be changed while lbd runs", "restart lbd")
    status, got = await api("POST", "/v1/reload")
    assert (status, got["title"], got["remedy"]) == (409, "refused", "restart lbd")
    api.daemon.state = "stopping"
    assert (await api("POST", "/v1/reload"))[0] == 503
    assert (await api("PATCH", REAL, {"weight": 1}))[0] == 503
    assert await api("POST", "/v1/stop") == (202, {"state": "stopping"})
    assert api.daemon.stopped


async def test_a_mistake_of_ours_is_no_hang(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.daemon, "connections", lambda *_: 1 / 0)
    status, got = await api("GET", "/v1/conns")
    assert status == 500 and got["title"] == "internal"


async def test_a_page_that_fails_half_way_is_seen_to_be_cut(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts() -> Iterator[bytes]:
        yield b"lbd_ready 1\n"
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(api.daemon.exporter, "page", lambda accept: ("text/plain", parts()))
    with pytest.raises(aiohttp.ClientPayloadError):
        await api("GET", "/metrics")
    assert (await api("GET", "/healthz"))[0] == 200


async def test_metrics_and_probes(api: Api) -> None:
    assert await api("GET", "/metrics") == (200, "lbd_ready 1\n")
    async with api.session.get("http://lbd/metrics", headers={"Accept-Encoding": "gzip"}) as response:
        assert response.headers["Content-Encoding"] == "gzip" and await response.text() == "lbd_ready 1\n"
    async with api.session.head("http://lbd/metrics") as response:
        assert response.status == 200 and await response.read() == b""
    assert (await api("GET", "/healthz"))[0] == 200
    api.daemon.ready = False
    assert (await api("GET", "/readyz"))[0] == 503
    assert ("GET", "/metrics", 200) in api.daemon.requests
    await api("PATCH", REAL, {"weight": 1})
    route = "/v1/services/{name}/real-servers/{address}"
    assert api.daemon.requests[-1] == ("PATCH", route, 200), "the route, not the path: few series"


# -- who may -------------------------------------------------------------------------------------------------


async def test_socket_s_mode(api: Api, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o660


async def test_only_root_the_daemon_and_its_group(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = api.servers  # type: ignore[attr-defined]
    others = os.geteuid() + 4711
    assert servers._may(Peer(1, 0, frozenset())) and servers._may(Peer(1, os.geteuid(), frozenset()))
    assert not servers._may(Peer(1, others, frozenset({5})))
    monkeypatch.setattr("lbd.master.startup.group_id", lambda name: 5)
    grouped = loads(TEXT.format(run_dir="/run/x").replace("[daemon]", '[daemon]\ngroup = "lbd"'))
    monkeypatch.setattr(api.daemon, "config", grouped)
    assert servers._may(Peer(1, others, frozenset({4, 5})))
    assert not servers._may(Peer(1, others, frozenset({4})))
    monkeypatch.setattr("lbd.master.api.peer_of", lambda fd: Peer(7, others, frozenset()))
    status, got = await api("GET", "/v1/status")
    assert status == 403 and got["title"] == "forbidden" and "process 7" in got["detail"]
    assert (await api("POST", "/v1/stop"))[0] == 403 and not api.daemon.stopped


# -- capture -------------------------------------------------------------------------------------------------


async def read_record(response: aiohttp.ClientResponse) -> bytes:
    size = int.from_bytes(await response.content.readexactly(4), "big")
    return await response.content.readexactly(size)


async def test_capture_stream(api: Api) -> None:
    worker = shm.WorkerEnd(api.daemon.segments[1])
    async with api.session.get("http://lbd/v1/capture?points=rx,drop&snaplen=60&count=2") as response:
        assert response.status == 200
        assert await read_record(response) == b"", "capturing is on"
        assert api.daemon.captured == [(shm.CAPTURE_RX | shm.CAPTURE_DROP, 60, shm.SVC_NONE)]
        for point in (shm.CAPTURE_TX, shm.CAPTURE_RX, shm.CAPTURE_DROP):
            assert worker.emit_packet("capture", bytes(range(100)), iface=0, point=point, ts_ns=5)
        for point in (shm.CAPTURE_RX, shm.CAPTURE_DROP):
            record = await asyncio.wait_for(read_record(response), 5)
            head = HEAD.unpack_from(record)
            assert head[0] == 5 and head[2] == 60 and head[3] == point
            assert record[HEAD.size :] == bytes(range(60))
        assert await response.content.read() == b""
    for _ in range(500):
        if api.daemon.captured[-1][0] == 0:
            break
        await asyncio.sleep(0.01)
    assert api.daemon.captured[-1][0] == 0, "nobody listens any more: workers copy nothing"


async def test_capture_clients_get_each_their_own(api: Api) -> None:
    hub = api.daemon.capture
    one, two = Client(shm.CAPTURE_RX, 10, 0), Client(shm.CAPTURE_TX, 2000, 1)
    hub.add(one)
    hub.add(two)
    assert api.daemon.captured[-1] == (shm.CAPTURE_RX | shm.CAPTURE_TX, 2000, shm.SVC_NONE)
    head = dict.fromkeys(("ts_ns", "len", "iface", "verdict", "reason", "dest", "worker", "seq"), 0)
    for point, svc in ((shm.CAPTURE_RX, 0), (shm.CAPTURE_RX, 1), (shm.CAPTURE_TX, 1), (shm.CAPTURE_DROP, 0)):
        for client in (one, two):
            client.offer({**head, "point": point, "svc": svc}, bytes(50))
    assert [one.queue.qsize(), two.queue.qsize()] == [1, 1]
    hub.remove(two)
    assert api.daemon.captured[-1] == (shm.CAPTURE_RX, 10, 0)


async def test_slow_capture_client_loses_packets_not_memory(api: Api) -> None:
    client = Client(shm.CAPTURE_RX, 10)
    client.queue = asyncio.Queue(3)
    head = dict.fromkeys(("ts_ns", "len", "iface", "verdict", "reason", "dest", "worker", "seq", "svc"), 0)
    for _ in range(5):
        client.offer({**head, "point": shm.CAPTURE_RX}, b"x")
    assert client.queue.qsize() == 3 and client.lost == 2
