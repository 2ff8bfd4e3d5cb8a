"""What the programs that run inside the lab VM (guest_*.py) share: commands, waiting, the daemon's answers, namespaces."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tests.netns import space

LBD = [sys.executable, "-m", "lbd.cli.main"]
logs: list[Path] = []


def sh(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def note(*what: object) -> None:
    """What a failed run shows: how far it came, and when."""
    print(f"{time.monotonic():.1f}", *what, file=sys.stderr, flush=True)


def until(what: str, test: Callable[[], Any], seconds: float = 100) -> Any:
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            if last := test():
                note(what)
                return last
        except RuntimeError as e:
            last = e
        time.sleep(0.2)
    raise SystemExit(f"{what}: not within {seconds:.0f} s: {last}\n" + "".join(p.read_text() for p in logs))


def control(run: Path, what: str) -> dict[str, Any]:
    """GET /v1/`what` of the daemon; starting the command for it would take seconds here."""

    class Unix(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(60)
            self.sock.connect(str(run / "control.sock"))

    try:
        connection = Unix("lbd")
        connection.request("GET", f"/v1/{what}")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    except (OSError, http.client.HTTPException) as e:
        raise RuntimeError(f"control socket: {e}") from None


class Fork:
    """A fork of this process, to be used as subprocess.Popen is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or float("inf"))
        while (ended := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            time.sleep(0.05)
        return ended

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()


def forked(run: Callable[[], object], out: BinaryIO, err: BinaryIO) -> Fork:
    """`run` in a fork; what it returns, or raises SystemExit with, becomes its exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return Fork(pid)
    status: object = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        status = run() or 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    if not isinstance(status, int):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


@contextlib.contextmanager
def process(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes] | Fork]:
    logs.append(log)
    with open(log, "ab") as out:
        if argv[:3] == LBD and "lbd.master.daemon" in sys.modules:
            from lbd.cli.main import main

            p: subprocess.Popen[bytes] | Fork = forked(lambda: main(argv[3:]), out, out)
        else:
            p = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield p
    finally:
        p.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            p.wait(30)
        p.kill()


def inside(namespace: str) -> contextlib.AbstractContextManager[None]:
    """This thread, and the sockets that it makes, in that namespace."""
    return space.inside(f"/run/netns/{namespace}")


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
