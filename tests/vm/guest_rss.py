"""A part of guest_mode.py: RSS is changed on both NICs while connections are in use. They go on at the workers that have them, by
hand-over; new ones are owned by the NICs' new choice.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CONNECTIONS = 6  # to each VIP

# Rounds over all connections, one line each; every other round one connection is made anew
STEADY = """
import signal, socket, sys
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
ends = [(sys.argv[i], int(sys.argv[i + 1])) for i in range(2, len(sys.argv), 2)] * int(sys.argv[1])
socks = [socket.create_connection(end, 100) for end in ends]
rounds = 0
while not ended:
    for sock in socks:
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        got = b""
        while not got.endswith(b"hello\\n"):
            more = sock.recv(4096)
            assert more, "closed"
            got += more
    rounds += 1
    print(rounds, flush=True)
    if rounds % 2 == 0:
        which = rounds // 2 % 2
        socks[which].close()
        socks[which] = socket.create_connection(ends[which], 100)
"""


def change(work: Path, vips: list[str], asked: Callable[[str], dict], until: Callable[..., object], sh: Callable[[str], str],
           curl: Callable[..., str]) -> dict:  # fmt: skip
    """`vips`: of services that answer "hello", as URLs; the first is FULLNAT's. What was seen."""
    ends = [word for vip in vips for word in re.match(r"http://\[?([^/]*?)\]?:(\d+)/$", vip).groups()]  # type: ignore[union-attr]
    argv = ["ip", "netns", "exec", "client", sys.executable, "-c", STEADY, str(CONNECTIONS), *ends]
    steady = subprocess.Popen(argv, stdout=(work / "rounds").open("w"), stderr=(work / "rounds.err").open("w"))

    def rounds() -> int:
        if steady.poll() is not None:
            raise SystemExit(f"the connections ended: {(work / 'rounds.err').read_text()}")
        return len((work / "rounds").read_text().split())

    def more(what: str, number: int = 3) -> None:
        before = rounds()
        until(what, lambda: rounds() >= before + number, 200)

    def handed() -> list[int]:
        return [w["handed_out"] for w in asked("workers")["workers"]]

    def settled() -> list[int]:
        """Of new connections, when nothing else is under way."""
        time.sleep(1)
        before = handed()
        assert curl("-H 'Connection: close'", *[vips[0]] * 10).count("hello\n") == 10
        return [now - then for now, then in zip(handed(), before, strict=True)]

    more("connections are in use")
    before = handed()
    for nic in ("eth1", "eth2"):  # three quarters of the flows to the second queue
        sh(f"ethtool -X {nic} weight 1 3")
    more("connections go on")
    until("lbd follows", lambda: "RSS was changed" in (work / "lbd.log").read_text(), 60)
    more("connections go on with their owners of before")
    moved = sum(handed()) - sum(before)
    steady.send_signal(signal.SIGTERM)
    return {
        "ended": steady.wait(200), "moved": moved, "new": settled(),
        "restarts": [w["restarts"] for w in asked("workers")["workers"]],
    }  # fmt: skip
