# SPDX-License-Identifier: Apache-2.0
"""`lbd COMMAND`, against a daemon that answers with the examples of docs/api.md: formats, exit codes,
abbreviations.
"""

import contextlib
import json
import os
import re
import resource
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from lbd.cli import reference
from lbd.cli.advice import ADVICE
from lbd.cli.main import main
from lbd.cli.outcome import DEGRADED, DONE, REFUSED, UNREACHABLE, USAGE
from lbd.cli.table import duration, quantity, table
from lbd.datapath.reason import NAMES

ROOT = Path(__file__).parents[2]


def examples() -> dict[str, Any]:
    """The documents in docs/api.md by their first key."""
    found = {}
    for text in re.findall(r"```json\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL):
        while text.strip():
            document, end = json.JSONDecoder().raw_decode(text.lstrip())
            found[next(iter(document))] = document
            text = text.lstrip()[end:]
    return found


PATHS = {
    "/v1/status": "version",
    "/v1/services": "services",
    "/v1/real-servers": "real_servers",
    "/v1/conns": "conns",
    "/v1/templates": "templates",
    "/v1/workers": "workers",
    "/v1/lips": "lips",
    "/v1/snat": "snat",
    "/v1/tunnels": "tunnels",
    "/v1/drops": "drops",
    "/v1/interfaces": "interfaces",
    "/v1/neighbours": "neighbours",
    "/v1/routes": "routes",
}


class FakeDaemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.path = path
        known = examples()
        self.answers: dict[str, tuple[int, Any]] = {f"GET {p}": (200, known[key]) for p, key in PATHS.items()}
        self.asked: list[tuple[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: FakeDaemon

    def answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self.server.asked.append((f"{self.command} {self.path}", json.loads(self.rfile.read(size) or "null")))
        missing = (404, {"title": "not_found", "detail": f"no such path {self.path}", "remedy": ""})
        status, body = self.server.answers.get(f"{self.command} {self.path.partition('?')[0]}", missing)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = answer

    def address_string(self) -> str:
        return "peer"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with FakeDaemon(str(tmp_path / "control.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("LBD_SOCKET", server.path)
        yield server
        server.shutdown()
        thread.join()


def lbd(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as end:  # argparse ends so
        return int(end.code or 0)


# -- what is shown -------------------------------------------------------------------------------------------


def test_status(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert lbd("status") == DONE
    out = capsys.readouterr().out
    assert re.search(r"^lbd +0\.1\.0, running since .* \(1m22s\), pid 4711$", out, re.MULTILINE)
    assert re.search(r"^ready +yes$", out, re.MULTILINE)
    assert re.search(r"^real servers +7 up, 1 down, 1 drain, 0 maint$", out, re.MULTILINE)
    assert re.search(r"^interface +eth0 up, 2 queues, zero-copy, NUMA node 0$", out, re.MULTILINE)
    assert re.search(r"^workers +2 of 2 running, .*, on cores 2 3, NUMA node 0$", out, re.MULTILINE)


def test_status_check(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert lbd("status", "--check") == DONE
    status = daemon.answers["GET /v1/status"][1]
    status["problems"] = ["worker 1 is waiting"]
    assert lbd("status") == DONE
    assert "problem" in capsys.readouterr().out
    assert lbd("status", "--check") == DEGRADED
    status["problems"] = []
    status["ready"] = False
    assert lbd("-j", "status", "--check") == DEGRADED


def test_service_prints_ipvsadm_columns(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    down = {**daemon.answers["GET /v1/real-servers"][1]["real_servers"][0], "address": "[2001:db8::2]:80"}
    down |= {"state": "drain", "weight": 0}
    daemon.answers["GET /v1/real-servers"][1]["real_servers"].append(down)
    assert lbd("service") == DONE
    assert capsys.readouterr().out.splitlines() == [
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
        "TCP  192.0.2.10:80 wlc persistent 360 fwmark 1 name web",
        "     192.0.2.10:443",
        "  -> 10.0.1.1:8080                FullNat 1      4          1",
        "  -> [2001:db8::2]:80             FullNat 0      4          1          drain",
        "  -> 10.0.1.99:8080               FullNat -      0          0          sorry",
    ]
    assert lbd("service", "--stats", "web") == DONE
    assert capsys.readouterr().out.splitlines() == [
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes",
        "  -> RemoteAddress:Port",
        "TCP  192.0.2.10:80                    1200     9000     8000   900000 80000000",
        "  -> 10.0.1.1:8080                     400     3000     2700   300000 27000000",
        "  -> [2001:db8::2]:80                  400     3000     2700   300000 27000000",
        "  -> 10.0.1.99:8080                      0        0        0        0        0 sorry",
    ]
    assert lbd("service", "nope") == REFUSED


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("real-server",), r"^web +10\.0\.1\.1:8080 +up +1 +up +4 +1 +25 +400$"),
        (("conn", "--persistent"), r"^198\.51\.100\.7/32 +10\.0\.1\.1:8080 +4m58s +0 +web$"),
        (("real-server", "list", "web"), r"^SERVICE +ADDRESS +STATE +WEIGHT +HEALTH"),
        (("conn",), r"^tcp +established +198\.51\.100\.7:40000 +192\.0\.2\.10:80 +10\.0\.0\.10:12345 +"),
        (("conn",), r"… 1 of 852; --limit shows more"),
        (("worker",), r"^ +0 +4712 +running +2 +0 +4% +420 +3 +6000/8192 +100 +3 +0 +applied$"),
        (("worker",), r"^ +0 +eth0 +0 +zero-copy +100 +6400 +90 +6000 +0 +0 +0 +0$"),
        (("lip",), r"^10\.0\.0\.10 +eth1 +fullnat +10240-32767 +30 +22528 +800 +0 +0:14 1:16$"),
        (("snat",), r"^office +10\.0\.0\.0/8 +all +all +eth1 +any +203\.0\.113\.10 +800 +20 +10 +5000 +6000$"),
        (("tunnel",), r"^edge +gre +10\.0\.0\.1 +203\.0\.113\.9 +9000 +900000 +2$"),
        (("drops",), r"^no_neighbor +3 +the next hop's …$"),
        (("drops",), r"^eth0 +10 +900 +0$"),
        (("interface",), r"^ +0 +eth0 +up +copy +native +2 +02:00:00:00:00:01 +1500 +unknown +partial +192"),
        (("neigh",), r"^eth1 +10\.0\.1\.1 +02:00:00:00:00:11 +- +yes +REACHABLE +managed$"),
        (("route",), r"^10\.0\.1\.0/24 +on link +eth1 +0 +-$"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_tables(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], wanted: str
) -> None:
    assert lbd(*words) == DONE
    out = capsys.readouterr().out
    assert re.search(wanted, out, re.MULTILINE), out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    "command", ["status", "conn", "worker", "lip", "snat", "tunnel", "drops", "interface", "neigh", "route"]
)
def test_json_is_what_the_daemon_said(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for words in (("-j", command), (command, "-j")):
        assert lbd(*words) == DONE
        (asked, _), *_ = daemon.asked[-1:]
        assert json.loads(capsys.readouterr().out) == daemon.answers[asked.partition("?")[0]][1]


def test_top_without_a_terminal(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake's clock: each pause makes the counters grow."""
    service = daemon.answers["GET /v1/services"][1]["services"][0]
    drop = daemon.answers["GET /v1/drops"][1]["drops"][0]
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        service["incoming_packets"] += 5000
        service["incoming_bytes"] += 1_000_000
        drop["packets"] += 40

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert lbd("top", "-d", "2") == DONE
    out = capsys.readouterr().out
    assert re.search(
        r"^web +tcp 192\.0\.2\.10:80 +2/3 +10 +2 +0 +2\.50k +0 +4\.00M +0$", out, re.MULTILINE
    ), out
    assert re.search(r"^no_neighbor +20 +43$", out, re.MULTILINE)
    assert lbd("top", "-n", "3", "--real-servers") == DONE
    out = capsys.readouterr().out
    assert out.count("lbd 0.1.0") == 3
    assert re.search(r"^  10\.0\.1\.1:8080 ", out, re.MULTILINE)
    assert lbd("-j", "top") == DONE
    assert json.loads(capsys.readouterr().out)["tables"][0][0]["SERVICE"] == "web"


# -- what is changed -----------------------------------------------------------------------------------------


def test_real_server_changes(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    row = {**examples()["real_servers"]["real_servers"][0], "state": "drain", "weight": 0}
    url = "PATCH /v1/services/web/real-servers/%5B2001%3Adb8%3A%3A1%5D%3A80"
    daemon.answers[url] = (200, row)
    for words, body in (
        (("drain",), {"state": "drain"}),
        (("ready",), {"state": "ready"}),
        (("maint",), {"state": "maint"}),
        (("up",), {"state": "ready"}),
        (("down",), {"state": "maint"}),
        (("set", "weight=5"), {"weight": 5}),
        (("weight", "7"), {"weight": 7}),
        (("weight", "default"), {"weight": None}),
        (("undrain",), {"state": "ready"}),
        (("drain", "--deadline", "10m"), {"state": "drain", "deadline": 600.0, "stages": 1, "reset": False}),
        (("drain", "--deadline", "1.5h", "--stages", "3", "--reset"),
         {"state": "drain", "deadline": 5400.0, "stages": 3, "reset": True}),
        (("set", "weight=default", "state=ready"), {"weight": None, "state": "ready"}),
    ):
        assert lbd("real-server", words[0], "web", "[2001:db8::1]:80", *words[1:]) == DONE
        assert daemon.asked[-1] == (url, body)
    assert "web 10.0.1.1:8080: drain, weight 0, 5 connections left" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value", ["weight", "weight=-1", "weight=65536", "weight=x", "state=gone", "colour=red"]
)
def test_values_that_there_are_not(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert lbd("real-server", "set", "web", "10.0.1.1:8080", value) == USAGE
    assert not daemon.asked
    assert capsys.readouterr().err.count("\n") == 1


def test_drains_that_there_are_not(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--stages", "3"), ("--reset",)):
        assert lbd("real-server", "drain", "web", "10.0.1.1:8080", *words) == USAGE
        assert "go with --deadline" in capsys.readouterr().err
    for wrong in ("10x", "-5s", "", "m", "1e3"):
        assert lbd("real-server", "drain", "web", "10.0.1.1:8080", "--deadline", wrong) == USAGE
    assert lbd("real-server", "undrain", "web", "10.0.1.1:8080") == REFUSED
    assert "is not drained" in capsys.readouterr().err
    assert lbd("real-server", "weight", "web", "10.0.1.1:8080", "-1") == USAGE
    assert all(url.startswith("GET") for url, _ in daemon.asked)


def test_drain_waits(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**examples()["real_servers"]["real_servers"][0], "state": "drain", "admin": "drain", "weight": 0}
    drain = {"began": 0, "deadline": 60, "stages": 1, "reset": True, "left": 60.0, "over": False}
    url = "PATCH /v1/services/web/real-servers/10.0.1.1%3A8080"
    steps = [
        {**row, "active": 4, "inactive": 4, "drain": {**drain, "left": 30.0}},
        {**row, "active": 1, "inactive": 1, "drain": {**drain, "left": 1.0}},
        {**row, "active": 0, "inactive": 2, "drain": {**drain, "left": 0.0, "over": True}},
    ]
    daemon.answers[url] = (200, {**row, "active": 6, "inactive": 2, "drain": drain})
    get = daemon.answers["GET /v1/real-servers"]

    def pause(_: float) -> None:
        daemon.answers["GET /v1/real-servers"] = (200, {"real_servers": [steps.pop(0)]})

    monkeypatch.setattr("lbd.cli.service.time.sleep", pause)
    assert lbd("real-server", "drain", "web", "10.0.1.1:8080", "--deadline", "60", "--reset", "--wait") == DONE
    assert capsys.readouterr().out.splitlines() == [
        "[....................] 8 connections left, 1m00s to the deadline",
        "[....................] 8 connections left, 30.0s to the deadline",
        "[###############.....] 2 connections left, 1.0s to the deadline",
        "web 10.0.1.1:8080: drain, weight 0, 2 connections left, deadline is over",
    ]
    steps = [{**row, "admin": "ready"}]
    assert lbd("real-server", "drain", "web", "10.0.1.1:8080", "--deadline", "60", "--wait") == REFUSED
    assert "not drained any more" in capsys.readouterr().err
    daemon.answers["GET /v1/real-servers"] = get


def test_reload_and_stop(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["POST /v1/reload"] = (200, {"changes": ["service web: added"]})
    assert lbd("reload") == DONE
    assert capsys.readouterr().out == "service web: added\n"
    daemon.answers["POST /v1/reload"] = (200, {"changes": []})
    assert lbd("reload") == DONE
    assert capsys.readouterr().out == "nothing has changed\n"
    problem = {
        "title": "refused",
        "detail": "1 problem",
        "remedy": "repair it",
        "problems": ["lbd.toml:3: x: y"],
    }
    daemon.answers["POST /v1/reload"] = (409, problem)
    assert lbd("reload") == REFUSED
    assert capsys.readouterr().err == "lbd: 1 problem\nlbd.toml:3: x: y; repair it\n"
    daemon.answers["POST /v1/stop"] = (202, {"state": "stopping"})
    assert lbd("stop") == DONE


def test_cleanup_refuses_while_a_daemon_answers(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert lbd("cleanup", "--run-dir", str(tmp_path)) == REFUSED
    assert "a daemon answers" in capsys.readouterr().err


def test_cleanup_with_nothing_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert lbd("cleanup", "--run-dir", str(tmp_path)) == DONE
    assert capsys.readouterr().out == "nothing to do\n"


# -- how it ends ---------------------------------------------------------------------------------------------


def test_unreachable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.sock")
    for words in (
        ("-s", missing, "status"),
        ("conn", "--socket", missing),
        ("--socket", missing, "capture", "-wx"),
    ):
        assert lbd(*words) == UNREACHABLE
        err = capsys.readouterr().err
        hint = "is lbd running? systemctl status lbd"
        assert err == f"lbd: no daemon answers at {missing}: No such file or directory; {hint}\n"
    dead = tmp_path / "dead.sock"
    FakeDaemon(str(dead)).server_close()
    assert lbd("-s", str(dead), "status") == UNREACHABLE
    assert "Connection refused" in capsys.readouterr().err


def test_a_stranger_at_the_socket(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["GET /v1/status"] = (200, b"hello")
    assert lbd("status") == REFUSED
    assert "not lbd's" in capsys.readouterr().err
    daemon.answers["GET /v1/status"] = (500, b"<html>")
    assert lbd("status") == REFUSED
    daemon.answers["GET /v1/status"] = (403, {"detail": "you are not in the group lbd", "remedy": "adduser"})
    assert lbd("status") == REFUSED
    assert capsys.readouterr().err.endswith("lbd: you are not in the group lbd; adduser\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("servce",), 'no command "servce", did you mean "service"?; see lbd -h'),
        (("st",), '"st" may be stop, status; see lbd -h'),
        (("status", "--frob"), "unrecognized arguments: --frob; see lbd -h"),
        (
            ("real-server", "drain", "web"),
            "the following arguments are required: ADDRESS; see lbd real-server drain -h",
        ),
        (("conn", "--limit", "0"), "--limit is 1 at least"),
        (("top", "-n", "0"), "-n and -d are more than 0"),
        (
            ("capture", "-w", "x", "--point", "rx,xx"),
            "--point rx,xx: there are rx, tx and drop; part them by commas",
        ),
    ],
    ids=" ".join,
)
def test_usage(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert lbd(*words) == USAGE
    assert capsys.readouterr().err == f"lbd: {message}\n"


def test_abbreviations(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    for words, asked in (
        (("sta",), "GET /v1/status"),
        (("w",), "GET /v1/workers"),
        (("rea", "l"), "GET /v1/real-servers"),
        (("n",), "GET /v1/neighbours"),
    ):
        assert lbd(*words) == DONE
        assert daemon.asked[-1][0] == asked
    assert lbd("con", "sch") == USAGE  # config or conn
    capsys.readouterr()
    assert lbd("conf", "sch") == DONE
    assert json.loads(capsys.readouterr().out)["title"] == "lbd configuration"


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lbd.toml"
    file.write_text('[[interface]]\nname = "lo"\nzero_cpy = "off"\n[[service]]\nname = "a"\naddress = "x"\n')
    assert lbd("check", str(file)) == REFUSED
    said = "".join(capsys.readouterr())
    assert f"{file}:3: interface[0].zero_cpy: " in said
    assert f"{file}:6: service[0].address: " in said
    assert lbd("check", "-j", str(file)) == REFUSED
    assert json.loads(capsys.readouterr().out)["ok"] is False
    for content in ("", "[[", "\xff", "a = 1"):
        file.write_bytes(content.encode("latin-1"))
        assert lbd("check", str(file)) == REFUSED
    assert lbd("check", str(tmp_path / "none")) == REFUSED
    file.write_text('[[interface]]\nname = "lo"\n')
    assert lbd("check", str(file)) == DONE


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert lbd("--version") == DONE
    assert re.fullmatch(r"lbd \d+\.\d+\.\d+ \(libxdp .*, libbpf .*, kernel .*\)\n", capsys.readouterr().out)


# -- as a process --------------------------------------------------------------------------------------------


def spawn(*words: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "lbd.cli.main", *words], timeout=60, cwd=ROOT, **settings)


def test_a_reader_that_leaves_is_no_error(daemon: FakeDaemon) -> None:
    conns = daemon.answers["GET /v1/conns"][1]
    conns["conns"] *= 5000
    read, write = os.pipe()
    os.close(read)
    with contextlib.closing(os.fdopen(write, "wb")) as pipe:
        done = spawn("conn", stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (DONE, b"")


def test_no_slow_imports_and_a_quick_start(daemon: FakeDaemon) -> None:
    code = "import sys; from lbd.cli.main import main; main(['status']); print('|'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    loaded = set(done.stdout.splitlines()[-1].split("|"))
    slow = {"pydantic", "aiohttp", "pyroute2", "rich", "asyncio", "lbd.config", "lbd.master", "lbd.shm._shm"}
    assert "http.client" in loaded
    assert not loaded & slow

    def cpu(run: Callable[[], object]) -> float:
        """The least processor time of five, seconds: others share these cores."""
        took = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(took)

    bare = [sys.executable, "-c", "import argparse, http.client, json"]
    floor = cpu(lambda: subprocess.run(bare, timeout=60, check=True))
    # some 60 ms beside 35; a library of those above alone takes more than the whole
    assert cpu(lambda: spawn("status", stdout=subprocess.DEVNULL)) <= 2.5 * floor


# -- text and docs -------------------------------------------------------------------------------------------


def test_table() -> None:
    assert table(("A", ">NUMBER"), [("x", 1), (None, True)]) == "A  NUMBER\nx       1\n-     yes"
    times = (0.004, 12.34, 59.96, 245, 11520, 444000, -1)
    assert [duration(t) for t in times] == ["4ms", "12.3s", "1m00s", "4m05s", "3h12m", "5d03h", "0s"]
    numbers = (0, 12, 999, 999.9, 1234, 99_950, 45_600_000, 0.5)
    assert [quantity(n) for n in numbers] == ["0", "12", "999", "1.00k", "1.23k", "100k", "45.6M", "0.50"]


@pytest.mark.parametrize("page", reference.PAGES)
def test_docs_are_made_from_the_code(page: str) -> None:
    made = reference.PAGES[page]()
    assert (ROOT / "docs" / page).read_text() == made, "run: python -m lbd.cli.reference docs"


def test_every_reason_has_advice() -> None:
    assert list(ADVICE) == list(NAMES[1:])
