# SPDX-License-Identifier: Apache-2.0
"""A master process that starts fake workers and then idles: for tests that kill it and adopt the workers.

python fake_master.py RUN_DIR COUNT        prints "ready" when all run
"""

import asyncio
import os
import sys
from pathlib import Path

from lbd.master.handover import WorkerSet
from lbd.master.process import spawn
from lbd.master.supervise import Supervisor
from lbd.shm import _shm as shm

SIZES = {
    "workers": 4, "services": 16, "dests": 32, "lips": 4, "conns4": 1024, "conns6": 512, "frames": 64,
    "arena": 256, "cmd_ring": 8, "evt_ring": 8, "capture_ring": 4, "hand_ring": 16, "templates": 64,
    "frame_size": 2048, "chains": 0,
}  # fmt: skip
FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def fake_launch(given: WorkerSet):
    return spawn(given, FAKE)


def make_set(run_dir: Path, number: int, **extra) -> WorkerSet:
    """As the daemon would make it, but for the sockets."""
    conn = os.open(run_dir / f"conn-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with (
        shm.WorkerSegment.create(SIZES, number) as segment,
        shm.HostSegment.create(SIZES) as host,
        shm.Area.create(SIZES, "off") as area,
    ):
        fds = [os.dup(s.fd) for s in (segment, host, area)]
    socket_like = os.memfd_create(f"port-{number}")
    os.write(socket_like, b"port %d" % number)
    return WorkerSet(
        number=number,
        run_dir=str(run_dir),
        segment=fds[0],
        host=fds[1],
        area=fds[2],
        conn=conn,
        wake={number: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)},
        ports=[
            {
                "iface": 1,
                "ifindex": 7,
                "queue": 0,
                "fd": socket_like,
                "fill": 64,
                "comp": 64,
                "rx": 64,
                "tx": 64,
            }
        ],
        via={0: 3},
        extra=extra,
    )


async def main(run_dir: Path, count: int) -> None:
    supervisor = Supervisor(launch=fake_launch)
    for number in range(count):
        supervisor.add(make_set(run_dir, number, note=f"made by {os.getpid()}"))
        supervisor.start(number)
    supervisor.begin()
    while any(m.state != "running" for m in supervisor.members.values()):  # noqa: ASYNC110 (a state, no event)
        await asyncio.sleep(0.01)
    supervisor.send(0, shm.nop(40))
    await supervisor.wait_applied(40, 10)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
