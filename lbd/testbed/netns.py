# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, and the processes in them.

A namespace here is private to whoever made it: `remove` ends every process that runs in it, then deletes it.
Which processes those are is asked of the kernel (/proc/PID/ns/net), not of a pid file, so that nothing can be
stale: a descriptor of the process is opened first and its namespace compared afterwards, and the signal goes
to that descriptor. Processes that left the session of their parent, as lbd's workers do, are found the same
way.

Needs root, iproute2 and procps (sysctl). Nothing here touches the namespace that the caller runs in.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

NAMESPACES = Path("/run/netns")
Argv = Sequence[str | os.PathLike[str]]


class TestbedError(RuntimeError):
    """Something of the testbed did not work; the message says what, with the output of what failed."""

    __test__ = False  # not a test, whatever pytest makes of the name


def wait_until(what: str, condition: Callable[[], object], seconds: float, every: float = 0.02) -> None:
    """Ask `condition` until it holds; TestbedError naming `what` when it still doesn't after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TestbedError(f"not within {seconds:g} s: {what}")
        time.sleep(every)


def run(argv: Argv, timeout: float = 30, check: bool = True, text: str | None = None) -> str:
    """Run a command to its end; its standard output. `text` is its input."""
    done = subprocess.run(list(argv), input=text, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise TestbedError(f"{' '.join(map(str, argv))}: exit status {done.returncode}: {said}")
    return done.stdout


class Namespace:
    def __init__(self, name: str) -> None:
        self.name = name
        self.path = NAMESPACES / name

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    def add(self) -> None:
        run(["ip", "netns", "add", self.name])
        self.ip("link set lo up")

    def exists(self) -> bool:
        return self.path.exists()

    def argv(self, argv: Argv) -> list[str]:
        """The command as it runs in here. It stays one process: `ip` replaces itself by it."""
        return ["ip", "netns", "exec", self.name, *(os.fspath(word) for word in argv)]

    def ip(self, *commands: str) -> None:
        """iproute2 commands, one a line, in here."""
        run(["ip", "-n", self.name, "-batch", "-"], text="\n".join(commands) + "\n")

    def sysctl(self, **values: object) -> None:
        """Set sysctls; a double underscore stands for a dot, as in net__ipv4__ip_forward=1."""
        run(self.argv(["sysctl", "-qw", *(f"{k.replace('__', '.')}={v}" for k, v in values.items())]))

    def run(self, argv: Argv, timeout: float = 30, check: bool = True, text: str | None = None) -> str:
        return run(self.argv(argv), timeout=timeout, check=check, text=text)

    def popen(self, argv: Argv, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command in here, without input and in a session of its own, unless said otherwise: what is
        typed at a terminal, and the terminal's end, are not for it."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("start_new_session", True)
        return subprocess.Popen(self.argv(argv), **options)

    def pidfds(self) -> dict[int, int]:
        """A descriptor for each process in here: pid -> pidfd. The caller closes them."""
        found: dict[int, int] = {}
        try:
            wanted = self.path.stat()
        except FileNotFoundError:
            return found
        for process in Path("/proc").glob("[0-9]*"):
            try:
                pidfd = os.pidfd_open(int(process.name))
            except OSError:
                continue
            try:
                seen = (process / "ns/net").stat()
                if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino) and int(
                    process.name
                ) != os.getpid():
                    found[int(process.name)] = pidfd
                    continue
            except OSError:  # it has ended
                pass
            os.close(pidfd)
        return found

    def pids(self) -> list[int]:
        pidfds = self.pidfds()
        for pidfd in pidfds.values():
            os.close(pidfd)
        return sorted(pidfds)

    def end_processes(self, grace: float = 5) -> None:
        """SIGTERM to every process in here; SIGKILL to what is left after `grace` seconds."""
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            pidfds = self.pidfds()
            try:
                for pidfd in pidfds.values():
                    try:
                        signal.pidfd_send_signal(pidfd, number)
                    except ProcessLookupError:
                        pass
                left = wait_ended(list(pidfds.values()), seconds)
            finally:
                for pidfd in pidfds.values():
                    os.close(pidfd)
            if not left and not self.pids():
                return
        raise TestbedError(f"processes in {self.name} can't be ended: {self.pids()}")

    def remove(self, grace: float = 5) -> None:
        """End what runs in here and delete it, with its interfaces. Nothing happens if it isn't there."""
        if not self.exists():
            return
        self.end_processes(grace)
        run(["ip", "netns", "del", self.name])


def wait_ended(pidfds: list[int], seconds: float) -> int:
    """Wait until these processes have ended; how many have not after `seconds`."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    left = len(pidfds)
    deadline = time.monotonic() + seconds
    while left and (rest := deadline - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(rest * 1000):
            poll.unregister(pidfd)
            left -= 1
    return left


def log_tail(log: Path | IO[str], size: int = 2000) -> str:
    path = log if isinstance(log, Path) else Path(log.name)
    return path.read_text(errors="replace")[-size:] if path.exists() else ""
