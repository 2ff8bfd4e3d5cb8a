"""Every mode with zero-copy sockets, on the NICs whose drivers have them: real HTTP, both families, one daemon, shown by status and
metric. The real server's kernel takes the tunnels apart."""

import json
import sys
from typing import Any

import pytest

from tests.vm import guest_decap as decap
from tests.vm import guest_mode as guest
from tests.vm import guest_site as site
from tests.vm.stage import Stage


@pytest.fixture(scope="module", params=["virtio", "igb"])
def seen(request: pytest.FixtureRequest, stage: Stage) -> dict[str, Any]:
    nic = request.param
    done = stage.play([nic] * 4, [sys.executable, guest.__file__, nic, "require"])
    assert done.returncode == 0, done.stdout + done.stderr
    return {"nic": nic, "log": done.stderr, **json.loads(done.stdout)}


@pytest.mark.slow
@pytest.mark.timeout(920)
def test_the_sockets_are_zero_copy(seen: dict[str, Any]) -> None:
    assert [(i["name"], i["mode"]) for i in seen["status"]] == [("eth1", "zero-copy"), ("eth2", "zero-copy")]
    queues = [q for w in seen["workers"] for q in w["queues"]]
    assert len(seen["metric"]) == len(queues) >= 2 and all(line.endswith(" 1") for line in seen["metric"])
    assert all(q["mode"] == "zero-copy" for q in queues)
    assert all(sum(q["rx_packets"] for q in queues if q["interface"] == name) > 20 for name in ("eth1", "eth2"))


@pytest.mark.slow
def test_packet_buffers_fit_the_nic(seen: dict[str, Any]) -> None:
    """igb would use half of each one of 2 KiB (lbd/config/frame.py), and gets larger ones; virtio-net is content."""
    assert seen["buffers"] == (4096 if seen["nic"] == "igb" else 2048) + 1, "and a byte of ledger"


@pytest.mark.slow
@pytest.mark.cell("{mode}", "{family}", "tcp", "{seen}")
@pytest.mark.parametrize(("mode", "family"), guest.CASES)
def test_every_connection_is_answered(seen: dict[str, Any], mode: str, family: int) -> None:
    name = f"{mode}{family}"
    assert seen["answers"][name] == guest.CONNECTIONS[mode], seen["drops"]
    row = seen["services"][name]
    assert row["connections"] > guest.CONNECTIONS[mode] and row["mode"] == site.word(mode)
    assert (row["outgoing_packets"] == 0) == (mode in site.FAR) and row["incoming_packets"] > 3 * row["connections"]


@pytest.mark.slow
@pytest.mark.cell("{mode}", "{family}", "{protocol}", "{seen}")
@pytest.mark.parametrize(("mode", "family", "protocol"), [*site.CASES, *site.PINGED, ("snat", 4, "icmp"), ("snat", 6, "icmp")])
def test_every_mode_by_every_protocol(seen: dict[str, Any], mode: str, family: int, protocol: str) -> None:
    """What was sent came back, and the real server took for the client whom it should."""
    key = site.key(mode, family, protocol)
    assert seen["talks"][key] == site.expected()[key], seen["drops"]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "inner"), decap.CASES)
def test_a_kernels_tunnels_to_lbd(seen: dict[str, Any], device: str, inner: int) -> None:
    assert seen["tunnelled"][f"{device} {inner}"] == decap.REQUESTS, seen["drops"]


@pytest.mark.slow
def test_tunnels_are_counted_and_the_rest_is_the_kernels(seen: dict[str, Any]) -> None:
    """GET, ACKs and FINs of each request came in a tunnel; what the kernel's own device is for did not pass lbd."""
    assert seen["tunnelled"]["kernel"] == 3
    for tunnel in seen["tunnels"]:
        outer = 6 if ":" in tunnel["local"] else 4
        requests = sum(decap.REQUESTS * len(inners) for _, out, inners, kind in decap.DEVICES.values()
                       if (out, kind) == (outer, tunnel["type"]))  # fmt: skip
        assert requests > 0 and 4 * requests < tunnel["packets"] < 20 * requests and tunnel["refused"] == 0, tunnel
    assert len(seen["tunnels"]) == 4


@pytest.mark.slow
def test_no_hand_over_where_rss_is_known(seen: dict[str, Any]) -> None:
    """By FULLNAT, NAT64, SNAT. igb's driver tells the table, the host its key: each local port was chosen such that RSS brings the
    answer back."""
    if seen["nic"] != "igb":
        pytest.skip("virtio-net over a cable has one queue: one worker, nobody to hand over to")
    assert "flows are owned by the NICs' choice of queue" in seen["log"]
    assert len(seen["workers"]) == 2 and all(w["received_packets"] > 100 for w in seen["workers"])
    for name in ("fullnat4", "fullnat6", "nat646", "snat4", "snat6"):
        assert seen["handed"][name] == [[0, 0, 0]] * 2 and seen["answers"][name] >= 6, name


@pytest.mark.slow
def test_connections_go_on_when_rss_is_changed(seen: dict[str, Any]) -> None:
    """At the workers that have them, by hand-over; new ones need none."""
    if seen["nic"] != "igb":
        pytest.skip("virtio-net over a cable has one queue")
    rss = seen["rss"]
    assert rss["ended"] == 0 and rss["restarts"] == [0, 0]
    assert rss["moved"] > 0 and rss["new"] == [0, 0]
    assert "connections that there are stay with their workers" in seen["log"]
    # frag_orphan: as in test_devices.py
    assert set(seen["drops"]) <= {"no_neighbor", "no_route", "no_state", "frag_orphan"}, seen["drops"]
