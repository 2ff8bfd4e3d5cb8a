# SPDX-License-Identifier: Apache-2.0
"""`lbd run` in a namespace of the testbed, and its control socket (docs/api.md).

The daemon's standard error goes to a file of the testbed's directory; `log()` has its end, and every failure
here quotes it. Workers outlive the daemon on purpose, so `stop` and `kill` concern the daemon alone; what is
left of it is ended with the namespace.
"""

import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from lbd.testbed.netns import Namespace, TestbedError, log_tail, wait_until


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("lbd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Daemon:
    def __init__(
        self, ns: Namespace, config: Path, run_dir: Path, log: Path, prefix: tuple[str, ...] = ()
    ) -> None:
        """`prefix`: a command to run it by, such as ("taskset", "-c", "0")."""
        self.ns, self.config_file, self.run_dir, self.log_file = ns, config, run_dir, log
        self.control = run_dir / "control.sock"
        run_dir.mkdir(parents=True, exist_ok=True)
        argv = [*prefix, sys.executable, "-m", "lbd.cli.main", "run", str(config)]
        with open(log, "ab") as out:
            self.process = ns.popen(argv, stdout=out, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return log_tail(self.log_file)

    def call(self, method: str, path: str, body: object = None, timeout: float = 5) -> Any:
        """One request to the control socket. TestbedError if it is refused, OSError if nobody answers."""
        connection = UnixConnection(self.control, timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise TestbedError(f"{method} {path}: {answer.status}: {text.decode(errors='replace')}")
        return json.loads(text)

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise TestbedError(f"lbd run ended with status {self.process.returncode}")
        try:
            return bool(self.get("/v1/status")["ready"])
        except (OSError, http.client.HTTPException, TestbedError):
            return False

    def wait_ready(self, seconds: float = 20) -> None:
        """Until all workers forward and every real server that is checked was found up."""
        try:
            wait_until("lbd is ready", self.ready, seconds)
            wait_until("the real servers are up", self.real_servers_up, seconds)
        except TestbedError as e:
            raise TestbedError(f"{e}\n{self.log()}") from None

    def real_servers_up(self) -> bool:
        checks = [r["health"] for r in self.get("/v1/real-servers")["real_servers"]]
        return all(check is None or check["status"] == "up" for check in checks)

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TestbedError(f"lbd does not stop:\n{self.log()}") from None

    def end(self) -> None:
        """Stop it if it runs; kill it if it doesn't stop."""
        if self.process.poll() is None:
            try:
                self.stop(5)
            except TestbedError:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, to the daemon alone."""
        self.process.kill()
        self.process.wait()
