"""Runs inside the lab VM while the tests want it (stage.py): one boot for many scenes, each a program with NICs of its own.

    guest_stage.py DIR        which is shared with the host

DIR/N.ask: {"nics": ["virtio", "virtio", …], "argv": […]}. The program finds these NICs as eth0, eth1, …, two and two joined by a
cable, and nothing of the scenes before. DIR/N.out and N.err get what it says; N.rc, when it has ended, its exit status.

Programs in Python are run by forks of this process, in which all of lbd is loaded already, and so is the lbd that they start
(guest.process): a start of Python with all of it takes half a minute of two busy cores in here.
"""

import json
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import lbd.master.daemon  # noqa: F401
from tests.vm.guest import forked, sh, until

NET = Path("/sys/class/net")
DRIVERS = {"virtio": "virtio_net", "igb": "igb"}


def nics() -> dict[str, str]:
    """Names and drivers, ordered by MAC, that is as the VM's command line has them."""
    found = [(d / "address", d.name, (d / "device/driver").resolve().name) for d in NET.iterdir() if (d / "device/driver").exists()]
    return {name: driver for _, name, driver in sorted((mac.read_text(), name, driver) for mac, name, driver in found)}


def clear(count: int) -> None:
    """Back to NICs alone, which are down and have no addresses."""
    sh("ip -all netns delete")
    until("all NICs are back", lambda: len(nics()) == count)
    for link in json.loads(sh("ip -j -d link")):
        if "linkinfo" in link and link["ifname"] not in nics():
            # what a module made as it was loaded (tunl0, …) can't be
            subprocess.run(["ip", "link", "del", link["ifname"]], capture_output=True)
    for number, name in enumerate(nics()):
        sh(f"ip link set {name} down mtu 1500; ip addr flush dev {name}; ip link set {name} name spare{number}")
    for left in Path("/dev/shm").glob("tmp*"):
        shutil.rmtree(left)


def set_up(wanted: list[str]) -> None:
    there = nics()
    for number, model in enumerate(wanted):
        name = next(name for name, driver in there.items() if driver == DRIVERS[model])
        del there[name]
        sh(f"ip link set {name} name eth{number}")


def play(argv: list[str], out: BinaryIO, err: BinaryIO) -> int:
    if argv[0] != sys.executable:
        return subprocess.run(argv, stdout=out, stderr=err).returncode

    def run() -> None:
        sys.argv = argv[1:]
        runpy.run_path(argv[1], run_name="__main__")

    return forked(run, out, err).wait()


def main(directory: Path) -> None:
    count, number = len(nics()), 0
    while True:
        ask = directory / f"{number}.ask"
        if not ask.exists():
            time.sleep(0.2)
            continue
        wanted = json.loads(ask.read_text())
        clear(count)
        set_up(wanted["nics"])
        with open(directory / f"{number}.out", "wb") as out, open(directory / f"{number}.err", "wb") as err:
            rc = play(wanted["argv"], out, err)
        (directory / "rc").write_text(str(rc))
        (directory / "rc").rename(directory / f"{number}.rc")
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
