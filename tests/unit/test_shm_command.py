# SPDX-License-Identifier: Apache-2.0
"""Command builders against the records of command.pxd, read here by hand; the numbers against the enums."""

import re
import struct
from pathlib import Path

import pytest

from lbd.datapath.reason import REASONS
from lbd.shm import _shm as shm

ROOT = Path(__file__).resolve().parents[2]
VIP = bytes([192, 0, 2, 10])
SIX = bytes(range(16))
MAC = bytes.fromhex("020000000001")


def body(command: bytes, form: str) -> tuple:
    assert len(command) == 128
    size = struct.calcsize(form)
    assert not any(command[16 + size :]), "what no field covers is zero"
    return struct.unpack_from(form, command, 16)


def test_head():
    assert struct.unpack_from("HHIII", shm.svc_del(7, 9)) == (shm.CMD_SVC_DEL, 0, 7, 9, 0)
    assert shm.command_head(shm.stop(3)) == (shm.CMD_STOP, 0, 0, 3)
    assert shm.command_head(shm.nop(0xFFFFFFFF))[3] == 0xFFFFFFFF


def test_svc_set():
    cmd = shm.svc_set(
        3, 5, af=4, addr=VIP, port=80, proto=6, sched=shm.SCHED_LEAST, flags=shm.SVC_LEAST_WEIGHTED,
        table_off=1000, table_len=12, timeout_established=900_000, fresh=True,
    )  # fmt: skip
    assert shm.command_head(cmd) == (shm.CMD_SVC_SET, shm.CMD_FRESH, 3, 5)
    want = (VIP.ljust(16, b"\0"), b"\0\x50", 4, 6, 2, 0, 4, 1000, 12, 900_000)
    assert body(cmd, "16s2sBBBBHIII") == want
    cmd = shm.svc_set(3, 5, af=4, addr=VIP, port=80, proto=6, sched=0, timeout_fin=1, timeout_udp=2, sorry=0,
                      flags=shm.SVC_EXPIRE_NODEST | shm.SVC_EXPIRE_QUIESCENT)  # fmt: skip
    assert body(cmd, "16s2sBBBBHIIIIIH") == (VIP.ljust(16, b"\0"), b"\0\x50", 4, 6, 0, 0, 768, 0, 0, 0, 1, 2, 1)
    assert body(shm.svc_set(3, 5, af=6, addr=SIX, port=443, proto=17, sched=0), "16s2sBB")[:3] == (
        SIX,
        b"\1\xbb",
        6,
    )


def test_dest_set():
    cmd = shm.dest_set(9, 5, af=4, addr=VIP, port=8080, svc=3, weight=10, up=False)
    assert shm.command_head(cmd) == (shm.CMD_DEST_SET, 0, 9, 5)
    assert body(cmd, "16s2sBBHH") == (VIP.ljust(16, b"\0"), b"\x1f\x90", 4, 0, 3, 10)
    cmd = shm.dest_set(9, 5, af=4, addr=VIP, port=8080, svc=3, flags=shm.DEST_END | shm.DEST_RESET)
    assert body(cmd, "16s2sBBHH")[3] == shm.DEST_UP | shm.DEST_END | shm.DEST_RESET
    assert body(shm.dest_set(9, 5, af=6, addr=SIX, port=1, svc=0), "16s2sBBHH") == (
        SIX,
        b"\0\1",
        6,
        shm.DEST_UP,
        0,
        1,
    )


def test_lip_set():
    cmd = shm.lip_set(1, 5, af=4, addr=VIP, port_lo=10240, port_hi=65535)
    assert body(cmd, "16sBBHH") == (VIP.ljust(16, b"\0"), 4, 0, 10240, 65535)


def test_iface_set():
    cmd = shm.iface_set(2, 5, mac=MAC, mtu=1500, ifindex=7, flags=shm.IFACE_UP | shm.IFACE_PARTIAL, addr6=SIX)
    assert shm.command_head(cmd) == (shm.CMD_IFACE_SET, 0, 2, 5)
    assert body(cmd, "6sHHHI4s16s") == (MAC, 1500, 6, 0, 7, bytes(4), SIX)


def test_neigh():
    known = shm.neigh_set(5, iface=1, af=4, addr=VIP, mac=MAC, tags=12)
    assert shm.command_head(known) == (shm.CMD_NEIGH_SET, 1, 0, 5)
    assert body(known, "16s6sBBBBH") == (VIP.ljust(16, b"\0"), MAC, 4, 1, 1, 0, 12)
    wanted = shm.neigh_set(5, iface=1, af=6, addr=SIX)
    assert shm.command_head(wanted)[1] == 0 and body(wanted, "16s6sBBBBH") == (SIX, bytes(6), 6, 1, 0, 0, 0)
    gone = shm.neigh_del(5, iface=1, af=4, addr=VIP, tags=12)
    assert body(gone, "16s6sBBBBH") == (VIP.ljust(16, b"\0"), bytes(6), 4, 1, 0, 0, 12)


def test_route():
    net = bytes([10, 0, 1, 0])
    cmd = shm.route_set(5, af=4, prefix=net, plen=24, iface=1, gateway=VIP, metric=100, tags=7)
    padded = net.ljust(16, b"\0"), VIP.ljust(16, b"\0")
    assert body(cmd, "16s16sBBBBIH") == (*padded, 4, 24, 1, 0, 100, 7)
    on_link = shm.route_set(5, af=6, prefix=bytes(16), plen=0, iface=1)
    assert body(on_link, "16s16sBBBBIH") == (bytes(16), bytes(16), 6, 0, 1, shm.ROUTE_ONLINK, 0, 0)
    assert body(shm.route_del(5, af=4, prefix=net, plen=24), "16s16sBB") == (padded[0], bytes(16), 4, 24)


def test_the_rest():
    assert body(shm.setting(shm.SET_TIMEOUT_BASE + 2, 900_000, 5), "Q") == (900_000,)
    assert shm.command_head(shm.sweep(shm.SWEEP_ROUTE, 5)) == (shm.CMD_SWEEP, 0, shm.SWEEP_ROUTE, 5)
    assert shm.command_head(shm.owner(5))[0] == shm.CMD_OWNER
    assert body(shm.capture(5, points=shm.CAPTURE_RX | shm.CAPTURE_DROP, snaplen=96, svc=3), "IIH") == (
        5,
        96,
        3,
    )
    assert body(shm.capture(5), "IIH") == (0, 2016, shm.SVC_NONE), "no more than a slot of the ring holds"
    for delete, op in ((shm.dest_del, shm.CMD_DEST_DEL), (shm.lip_del, shm.CMD_LIP_DEL)):
        assert shm.command_head(delete(4, 5)) == (op, 0, 4, 5)
    assert shm.command_head(shm.iface_del(4, 5)) == (shm.CMD_IFACE_DEL, 0, 4, 5)


SVC = {"af": 4, "addr": VIP, "port": 80, "proto": 6, "sched": 0}


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: shm.svc_set(0xFFFF, 1, **SVC), "id must be an integer in 0..65534"),
        (lambda: shm.svc_set(1, -1, **SVC), "gen must be"),
        (lambda: shm.svc_set(1, 1 << 32, **SVC), "gen must be"),
        (lambda: shm.svc_set(1, 1, **SVC | {"af": 5}), "af must be 4 or 6"),
        (lambda: shm.svc_set(1, 1, **SVC | {"addr": SIX}), "addr must be 4 bytes"),
        (lambda: shm.svc_set(1, 1, **SVC | {"addr": "192.0.2.10"}), "addr must be 4 bytes"),
        (lambda: shm.svc_set(1, 1, **SVC | {"port": -1}), "port must be"),
        (lambda: shm.svc_set(1, 1, **SVC, flags=shm.SVC_PERSIST), "persist must be"),
        (lambda: shm.svc_set(1, 1, **SVC, flags=shm.SVC_PERSIST, persist=1, persist_plen=33), "persist_plen must be"),
        (lambda: shm.dest_set(1, 1, af=4, addr=VIP, port=80, svc=0, upper=5, lower=6), "lower must be"),
        (lambda: shm.svc_set(1, 1, **SVC | {"port": True}), "port must be"),
        (lambda: shm.svc_set(1, 1, **SVC | {"proto": 2}), "proto must be 6"),
        (lambda: shm.svc_set(1, 1, **SVC | {"proto": 58, "port": 0}), "proto must be 6"),
        (lambda: shm.svc_set(1, 1, **SVC | {"proto": 1}), "has port 0"),
        (lambda: shm.svc_set(1, 1, **SVC | {"sched": 11}), "sched must be"),
        (lambda: shm.svc_set(1, 1, **SVC, flags=shm.SVC_USED), "flags"),
        (lambda: shm.dest_set(1, 1, af=4, addr=VIP, port=80, svc=0xFFFF), "svc must be"),
        (lambda: shm.dest_set(1, 1, af=4, addr=VIP, port=80, svc=0, weight=65536), "weight must be"),
        (lambda: shm.lip_set(1, 1, af=4, addr=VIP, port_lo=2000, port_hi=1000), "port_hi must be"),
        (lambda: shm.iface_set(272, 1, mac=MAC, mtu=1500, ifindex=1), r"id must be an integer in 0\.\.271"),
        (lambda: shm.iface_set(1, 1, mac=MAC[:5], mtu=1500, ifindex=1), "mac must be 6 bytes"),
        (lambda: shm.iface_set(1, 1, mac=MAC, mtu=10, ifindex=1), "mtu must be"),
        (lambda: shm.neigh_set(1, iface=16, af=4, addr=VIP), "iface must be"),
        (lambda: shm.route_set(1, af=4, prefix=VIP, plen=33, iface=0), "plen must be"),
        (lambda: shm.route_set(1, af=4, prefix=VIP, plen=24, iface=0), "bits set beyond its length"),
        (lambda: shm.route_set(1, af=4, prefix=VIP, plen=32, iface=0, gateway=SIX), "addr must be 4 bytes"),
        (lambda: shm.setting(40, 1, 1), "id must be"),
        (lambda: shm.sweep(0, 1), "kind must be"),
        (lambda: shm.capture(1, points=8), "points must be"),
        (lambda: shm.command_head(b"short"), "a command has 128 bytes"),
    ],
)
def test_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


# -- the numbers -----------------------------------------------------------------------------------------


def enums(path: str) -> dict[str, int]:
    """Of a .pxd file: NAME = number, or NAME alone, which is one more than the last."""
    found: dict[str, int] = {}
    last = -1
    for line in (ROOT / path).read_text().splitlines():
        if re.match(r"cdef enum", line):
            last = -1
        elif match := re.match(r"    ([A-Z][A-Z_0-9]+)\s*(?:= (0x[0-9a-f]+|\d+))?\s*(?:#|$)", line):
            last = int(match[2], 0) if match[2] else last + 1
            found[match[1]] = last
    return found


@pytest.mark.parametrize("file", ["svc", "neigh", "fib", "pkt", "command"])
def test_numbers_are_those_of_the_engine(file):
    theirs = enums(f"lbd/datapath/{file}.pxd")
    ours = {name: value for name, value in vars(shm).items() if isinstance(value, int) and name in theirs}
    assert len(ours) >= 2 and ours == {name: theirs[name] for name in ours}


def test_numbers_of_shared_memory():
    theirs = enums("lbd/shm/layout.pxd")
    ours = {name: getattr(shm, name) for name in theirs if hasattr(shm, name)}
    assert {"WORKER_RUNNING", "EVT_NEIGH_WANTED", "FRAME_TX", "CHUNK"} <= set(ours)
    assert ours == {name: theirs[name] for name in ours}


def test_names_are_in_the_order_of_the_enums():
    reasons = enums("lbd/datapath/reason.pxd")
    assert reasons["REASON_COUNT"] == shm.REASON_COUNT == len(REASONS)
    assert [f"REASON_{name.upper()}" for name, _ in REASONS] == [
        name for name in reasons if name.startswith("REASON_") and name != "REASON_COUNT"
    ]
    assert [f"VERDICT_{name.upper()}" for name in shm.VERDICTS] == [
        n for n in reasons if n.startswith("VERDICT_")
    ]
    layout = enums("lbd/shm/layout.pxd")
    for prefix, names, first in (("WORKER_", shm.WORKER_STATES, 0), ("FRAME_", shm.FRAME_OWNERS, 0),
                                 ("EVT_", shm.EVENTS[1:], 1)):  # fmt: skip
        assert {prefix + name.upper(): i for i, name in enumerate(names, first)} == {
            name: value for name, value in layout.items() if name.startswith(prefix)
        }
    expiry = {n: v for n, v in enums("lbd/datapath/count.pxd").items() if n.startswith("EXPIRE_")}
    assert expiry == {"EXPIRE_" + name.upper(): i for i, name in enumerate(shm.EXPIRE_REASONS)}
