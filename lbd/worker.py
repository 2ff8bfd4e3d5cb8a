# SPDX-License-Identifier: Apache-2.0
"""The worker process, `python -m lbd.worker --socket-fd N`: what stands around the packet loop.

Scope: takes its descriptors from the master (lbd/master/handover.py), attaches, gives up every privilege, and
runs the loop of lbd._fastpath until it is told to stop. A thread hands copies of the descriptors to a new
master through `<run_dir>/worker-N.sock`; it is off the packet path, sleeps in poll(), and is not pinned to
the worker's core.

    start   receive → name, session, memory, priority, core → sockets mapped → attach (repairs)
    drop    no capability in any set, no way to regain one (no_new_privs); the user id stays
    run     the loop; SIGTERM leaves it cleanly (status 0), as CMD_STOP does; SIGINT is the master's

Order matters: mapping a socket's rings and locking memory need what `drop` takes away. Capabilities belong
to a thread: the serving one gives its own up by itself. What is imported here is small: start-up time is
downtime.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from lbd.master.handover import SOCKET_NAME, HandoverError, WorkerSet, peer, receive, send, trusted

PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
MCL_CURRENT_ONFAULT = 1 | 4  # lock pages as they are touched: at once would cost seconds of a large table
EXIT_REFUSED = 1
HURRY = -20  # nice value
PATIENCE = 5.0  # seconds for the master to send the descriptors
CLIENT_PATIENCE = 1.0  # for a client to say what it wants and to take it; others wait meanwhile

LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}

libc = ctypes.CDLL(None, use_errno=True)


class Loop(Protocol):
    """lbd._fastpath.Worker, or what a test runs in its place."""

    def attach(self) -> int: ...
    def run(self) -> int: ...
    def stop(self) -> None: ...


def fastpath(given: WorkerSet) -> Loop:
    from lbd._fastpath import Worker as PacketLoop

    loop: Loop = PacketLoop(
        given.number,
        given.segment,
        given.host,
        given.area,
        given.conn,
        given.peers,
        given.ports,
        given.wake,
        given.via,
    )
    return loop


class Worker:
    def __init__(self, given: WorkerSet) -> None:
        self.given = given
        self.level = LEVELS.get(given.log_level, 6)
        self.cores = os.sched_getaffinity(0)

    def log(self, level: str, text: str) -> None:
        """To stderr, with journald's priority. The master, and whoever read its stderr, may be gone."""
        if LEVELS[level] > self.level:
            return
        try:
            os.write(2, f"<{LEVELS[level]}>worker {self.given.number}: {text}\n".encode())
        except OSError:
            pass

    def run(self, make_loop: Callable[[WorkerSet], Loop] = fastpath) -> int:
        self.settle()
        door = Door(self)
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            # until it forwards, a successor is what everything else waits for
            self.attempt("debug", "priority for the start", os.setpriority, os.PRIO_PROCESS, 0, HURRY)
            loop = make_loop(self.given)
            door.control(loop)
            recovered = loop.attach()
            os.setpriority(os.PRIO_PROCESS, 0, usual)
            drop_capabilities()
            self.log("info", f"runs, process {os.getpid()}, {recovered} connections recovered")
            return loop.run()
        finally:
            door.close()

    # -- what makes a process a worker -----------------------------------------------------------------------

    def settle(self) -> None:
        given = self.given
        libc.prctl(PR_SET_NAME, f"lbd-worker-{given.number}".encode()[:15], 0, 0, 0)
        if os.getsid(0) != os.getpid() and os.getpgrp() != os.getpid():
            os.setsid()  # so that no signal to the master's terminal reaches it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if given.core is not None:
            self.attempt("warning", f"pin to core {given.core}", os.sched_setaffinity, 0, {given.core})
        if given.fifo_priority:
            # not inherited by the serving thread
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            priority = os.sched_param(given.fifo_priority)
            self.attempt("warning", f"SCHED_FIFO {given.fifo_priority}", os.sched_setscheduler, 0, policy, priority)
        if libc.mlockall(MCL_CURRENT_ONFAULT) != 0:
            self.log("info", f"memory is not locked: {os.strerror(ctypes.get_errno())}")

    def attempt(self, level: str, what: str, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except (OSError, ValueError) as error:
            self.log(level, f"{what}: {error}; goes on without")


def drop_capabilities() -> None:
    """Of the calling thread, and so of threads that it starts later. Raises OSError if anything is left."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        libc.prctl(
            PR_CAPBSET_DROP, capability, 0, 0, 0
        )  # fails without CAP_SETPCAP; then no_new_privs must do
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0 or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "can't drop capabilities")


class Door:
    """The hand-over socket and its thread, open from before the first repair on, which may take seconds.

    SIGTERM comes in here too, as the main thread is in C then."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.loop: Loop | None = None
        self.ending = False
        self.path = os.path.join(worker.given.run_dir, SOCKET_NAME.format(worker.given.number))
        # a predecessor's: it is gone, or the master would not have started this process
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = os.umask(0o177)
        try:
            self.listener.bind(self.path)
        finally:
            os.umask(mask)
        self.listener.listen(4)
        self.signals, tripped = socket.socketpair()
        tripped.setblocking(False)
        self.tripped = tripped
        # the C part of Python's handler writes to this descriptor at once, whatever the main thread does
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(tripped.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self.watch, daemon=True).start()

    def close(self) -> None:
        """Of the process's end: a new master must not find a worker that has left its loop."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    def control(self, loop: Loop) -> None:
        """This is what SIGTERM ends."""
        self.loop = loop
        if self.ending:
            loop.stop()

    def end(self) -> None:
        self.ending = True
        if self.loop is not None:
            self.loop.stop()
        own = self.worker.given.wake.get(self.worker.given.number)
        if own is not None:
            os.eventfd_write(own, 1)

    def watch(self) -> None:
        # threads inherit the pin: busy polling would starve this one
        try:
            os.sched_setaffinity(0, self.worker.cores - {self.worker.given.core} or self.worker.cores)
        except OSError:
            pass
        libc.prctl(PR_SET_NAME, b"lbd-handover", 0, 0, 0)
        drop_capabilities()
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        poll.register(self.signals, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.listener.fileno():
                    self.answer()
                elif signal.SIGTERM in self.signals.recv(64):
                    self.end()

    def answer(self) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        with client:
            client.settimeout(CLIENT_PATIENCE)
            try:
                if not trusted(client):
                    self.worker.log(
                        "warning", f"process {peer(client)[0]} of another user asked for the descriptors"
                    )
                    return
                request, came = receive(client)
                for fd in came:
                    os.close(fd)
                send(client, *self.reply(request))
            except (OSError, HandoverError) as error:
                self.worker.log("info", f"hand-over: {error}")

    def reply(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        if request.get("op") == "take":
            words, fds = self.worker.given.words()
            return {"pid": os.getpid(), "set": words}, fds
        return {"error": f"unknown request {request.get('op')!r}"}, []


def main(arguments: list[str], make_loop: Callable[[WorkerSet], Loop] = fastpath) -> int:
    stand_by = arguments[:1] == ["--stand-by"]
    if stand_by:
        del arguments[0]
    if len(arguments) != 2 or arguments[0] != "--socket-fd" or not arguments[1].isdecimal():
        sys.stderr.write("usage: python -m lbd.worker --socket-fd N   (started by lbd run, not by hand)\n")
        return 2
    try:
        with socket.socket(fileno=int(arguments[1])) as sock:
            if stand_by and not wait_for_set(sock):
                return 0
            sock.settimeout(PATIENCE)
            given = WorkerSet.from_words(*receive(sock))
    except (OSError, HandoverError) as error:
        sys.stderr.write(f"<3>worker: no descriptors came from the master: {error}\n")
        return EXIT_REFUSED
    worker = Worker(given)
    try:
        return worker.run(make_loop)
    except (OSError, ValueError) as error:
        worker.log("error", f"can't run: {error}")
        return EXIT_REFUSED


def wait_for_set(sock: socket.socket) -> bool:
    """False: the master has gone, or needs nobody any more."""
    import lbd._fastpath  # noqa: F401 (loaded now, so that it need not be then)

    libc.prctl(PR_SET_NAME, b"lbd-stand-by", 0, 0, 0)
    return bool(sock.recv(1, socket.MSG_PEEK))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
