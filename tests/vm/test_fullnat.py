"""FULLNAT with zero-copy sockets, on the NICs whose drivers have them: real HTTP, both families, shown by status and metric."""

import json
import sys
from pathlib import Path

import pytest

GUEST = Path(__file__).parent / "guest_fullnat.py"
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(620)
@pytest.mark.parametrize("nic", ["virtio", "igb"])
def test_http_over_zero_copy_sockets(vmlab, nic: str) -> None:
    done = vmlab(f"ulimit -l unlimited; {sys.executable} {GUEST} {nic} require", "--mem", "2G", "--pair", nic, "--pair", nic,
                 "--env", f"PYTHONPATH={ROOT}", timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["answers"] == 60
    assert [(i["name"], i["mode"]) for i in seen["status"]] == [("eth1", "zero-copy"), ("eth2", "zero-copy")]
    queues = [q for w in seen["workers"] for q in w["queues"]]
    assert len(seen["metric"]) == len(queues) >= 2 and all(line.endswith(" 1") for line in seen["metric"])
    assert all(q["mode"] == "zero-copy" for q in queues)
    assert all(sum(q["rx_packets"] for q in queues if q["interface"] == name) > 20 for name in ("eth1", "eth2"))
    if nic == "igb":
        # its driver tells the table, the host its key: each local port was chosen such that RSS brings the answer back
        assert "flows are owned by the NICs' choice of queue" in done.stderr
        assert len(seen["workers"]) == 2 and all(w["received_packets"] > 100 for w in seen["workers"])
        assert [(w["handed_out"], w["handed_in"], w["misplaced"]) for w in seen["workers"]] == [(0, 0, 0)] * 2
