"""The kernel's own SCTP through lbd, over veth with all offloads: associations with messages of many sizes, in every mode."""

import json
import sys
from pathlib import Path

import pytest

from tests.vm import guest_site as site
from tests.vm.guest_sctp import CASES
from tests.vm.stage import Stage

GUEST = Path(__file__).parent / "guest_sctp.py"


@pytest.mark.slow
@pytest.mark.timeout(920)
@pytest.mark.cell("fullnat nat dr ipip gre gue", "4 6", "sctp", "veth")
@pytest.mark.cell("nat64", "6", "sctp", "veth")
def test_the_kernels_sctp(stage: Stage) -> None:
    done = stage.play([], [sys.executable, str(GUEST)])
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert "tx-checksum-sctp: on" in seen["offload"]
    assert seen["talks"] == site.expected(CASES, ())
    assert set(seen["connections"].values()) == {1}
    assert seen["checksum_errors"] == [0, 0]
    assert not set(seen["states"]) & {"init", "established"}, "both ends have closed"
