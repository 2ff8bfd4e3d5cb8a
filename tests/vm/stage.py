"""One lab VM for the scenes of many tests: a boot and the first start of Python in there take half a minute each."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAIRS = ("igb", "igb", "virtio", "virtio", "virtio")
# two NUMA nodes: a core and half of the memory each
NODES = [
    *(f"--qemu-arg={word}" for n in (0, 1) for word in ("-object", f"memory-backend-ram,id=m{n},size=1G")),
    *(f"--qemu-arg={word}" for n in (0, 1) for word in ("-numa", f"node,nodeid={n},cpus={n},memdev=m{n}")),
]


class Stage:
    """Boots when the first scene is asked for, and anew after one that failed: nobody knows what that has left."""

    def __init__(self, directory: Path) -> None:
        self._base = directory
        self._boots = self._number = 0
        self._vm: subprocess.Popen[bytes] | None = None

    def _boot(self) -> None:
        self._number = 0
        self._boots += 1
        self._directory = self._base / str(self._boots)
        self._directory.mkdir()
        argv = [str(HERE / "vmlab"), "--timeout", "3000", "--mem", "2G", "--modprobe", "8021q,bonding"]
        argv += ["--rw", str(self._directory)]
        argv += [word for pair in PAIRS for word in ("--pair", pair)] + NODES
        # the certificates of the host's authorities, which aiohttp loads at each start, take seconds in there
        argv += ["--env", f"PYTHONPATH={ROOT}", "--env", f"SSL_CERT_FILE={os.devnull}"]
        argv += ["--", f"{sys.executable} {HERE / 'guest_stage.py'} {self._directory}"]
        self._log = open(self._directory / "vm.log", "wb")  # noqa: SIM115
        self._vm = subprocess.Popen(argv, stdout=self._log, stderr=self._log)

    def play(self, nics: Sequence[str], argv: Sequence[str], timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs a program as root, with these NICs as eth0, eth1, …, two and two joined by a cable.

        Its exit status, or 124: it took too long; 125: the VM ended.
        """
        if self._vm is None:
            self._boot()
        assert self._vm is not None
        ask, out, err, rc = (self._directory / f"{self._number}.{kind}" for kind in ("ask", "out", "err", "rc"))
        self._number += 1
        new = self._directory / "new"
        new.write_text(json.dumps({"nics": list(nics), "argv": list(argv)}))
        new.rename(ask)
        deadline = time.monotonic() + timeout
        while not rc.exists() and self._vm.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        status = int(rc.read_text()) if rc.exists() else 124 if self._vm.poll() is None else 125
        said = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
        if status:
            self.close()
            said[1] += (self._directory / "vm.log").read_text(errors="replace")
        return subprocess.CompletedProcess(list(argv), status, *said)

    def close(self) -> None:
        if self._vm is not None:
            self._vm.terminate()
            self._vm.wait()
            self._log.close()
            self._vm = None
