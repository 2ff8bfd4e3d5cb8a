"""What the programs that run inside the lab VM (guest_*.py) share: commands, waiting, the daemon's answers, namespaces."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.netns import space

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


@contextlib.contextmanager
def process(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    logs.append(log)
    with open(log, "ab") as out:
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
