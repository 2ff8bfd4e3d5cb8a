"""Devices that the host's kernel may lack, by a real one: VLANs in a trunk, VLANs in VLANs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import guest_site as site
from tests.vm.stage import Stage

HERE = Path(__file__).parent


def guest(stage: Stage, program: str, nics: int) -> dict:
    """What the guest's program printed."""
    done = stage.play(["virtio"] * nics, [sys.executable, str(HERE / program), "virtio"])
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def every_mode(test: Callable[..., None]) -> Callable[..., None]:
    """What guest_site.play is evidence for; the device is the test's parameter."""
    for modes, families, protocols in (("fullnat nat dr ipip gre gue", "4 6", "tcp udp sctp icmp"),
                                       ("nat64", "6", "tcp udp sctp icmp"), ("snat", "4 6", "tcp udp icmp")):  # fmt: skip
        test = pytest.mark.cell(modes, families, protocols, "{device}")(test)
    return test


@pytest.mark.slow
@pytest.mark.timeout(920)
@every_mode
@pytest.mark.parametrize("device", ["vlan"])
def test_clients_and_servers_in_vlans_of_one_port(stage: Stage, device: str) -> None:
    seen = guest(stage, "guest_vlan.py", 2)
    assert seen["places"] == [{"worker": 0, "core": 1, "node": 1, "siblings": []}]
    assert set(seen["pages"]) == {"lbd-area", "lbd-worker", "conn"}
    assert all(far == 0 < near for far, near in seen["pages"].values()), "all of it lies where the worker runs"
    assert seen["seven"] == [10, 10, 10, 10], "FULLNAT of both families, NAT, and SNAT"
    assert seen["snat"] == [3, True], "sent to the VLAN device's own MAC"
    assert seen["talks"] == site.expected(), seen["drops"]
    assert seen["before"] == 0 and seen["deep"] == [10, 10], "802.1ad around 802.1Q, once its device is there"
    assert [5, 9, True] in seen["neighbours"] and [7, 0, True] in seen["neighbours"] and [8, 0, False] in seen["neighbours"]
    assert seen["after"][1] == 10 and seen["mode"] == ["zero-copy"]
    # frag_orphan: of SCTP by NAT64, what followed a first fragment that was too large yet, and was answered so
    assert set(seen["drops"]) <= {"no_neighbor", "link_down", "no_route", "no_state", "frag_orphan"}, seen["drops"]
    assert seen["restarts"] == [0] * len(seen["restarts"])


@pytest.mark.slow
@pytest.mark.timeout(920)
@every_mode
@pytest.mark.parametrize("device", ["bond"])
def test_a_bond_loses_slaves_and_is_made_anew(stage: Stage, device: str) -> None:
    seen = guest(stage, "guest_bond.py", 6)
    assert seen["lacp"] == 4, "LACP frames passed: both slaves, at both ends, collect and distribute"
    assert (seen["both"], seen["pulled"], seen["back"], seen["removed"], seen["added"]) == (20, 10, 10, 10, 10)
    assert seen["talks"] == site.expected(), seen["drops"]
    assert all(min(counts) > 0 for counts in seen["spread"].values()) and len(seen["spread"]) == 2
    assert {mode: right for mode, (right, _) in seen["modes"].items()} == dict.fromkeys(seen["modes"], 10)
    assert seen["snat"] == dict.fromkeys(["802.3ad", *seen["modes"]], 10), "a rule for the bond is for what its slaves receive"
    sent = {mode: counts for mode, (_, counts) in seen["modes"].items()}
    assert sent["active-backup"][0] == 0 < sent["active-backup"][1], "by the active one alone"
    low, high = sent["balance-rr"]
    assert high - low <= 2, "in turn"
    ended, longest = seen["steady"]
    assert ended == 0 and longest < 60, "one connection went on while a slave was away, and when it was back"
    assert seen["restarts"] == [0] and seen["modes_of_sockets"] == ["zero-copy"]
    assert seen["frames"][0] <= 3 * 256, "but for what the three NICs hold to receive into, every frame has a holder that is known"
