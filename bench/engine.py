"""make bench-engine: ns per packet of the engine in memory, one core, beside the floor of its own table in the same run.

No root, no NIC. Medians over passes of 8,192 packets; every packet's verdict is counted, a sample of the outputs is checked byte by
byte. What this does not show: sockets, the driver, DMA into a cold cache. See bench/README.md.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from lbd._fastpath import Engine, conn_record_bytes

from bench._engine import Bench
from lbd.shm import _shm as shm

MAC_LB, MAC_SERVER, MAC_CLIENT = b"\x02\0\0\0\1\0", b"\x02\0\0\0\2\1", b"\x02\0\0\0\0\xc1"
VIP = {4: bytes([192, 0, 2, 10]), 6: bytes.fromhex("20010db8000100000000000000000010")}


def engine(af: int, flows: int, servers: int = 10, lips: int = 1) -> Engine:
    """An engine with one service of this family, enough LIPs for the flows, and room for 5 % more."""
    room = max(1024, int(flows * 1.05))
    e = Engine({"workers": 1, "services": 16, "dests": 64, "lips": 256, "conns4": room if af == 4 else 16,
                "conns6": room if af == 6 else 16, "frames": 64, "arena": 4096, "cmd_ring": 64, "evt_ring": 64,
                "capture_ring": 16, "hand_ring": 64})  # fmt: skip
    for i in range(2):
        e.apply(shm.iface_set(i, 1, mac=MAC_LB, mtu=1500, ifindex=i + 2, flags=shm.IFACE_UP))
    server = [bytes([10, 77, 0, 11 + n]) if af == 4 else bytes(14) + bytes([1, n]) for n in range(servers)]
    e.apply(shm.route_set(1, af=af, prefix=bytes(4 if af == 4 else 16), plen=0, iface=1))
    for n, address in enumerate(server):
        e.apply(shm.neigh_set(1, iface=1, af=af, addr=address, mac=MAC_SERVER))
        e.apply(shm.dest_set(n, 1, af=af, addr=address, port=80, svc=0, fresh=True))
    e.set_table(0, list(range(servers)))
    e.apply(
        shm.svc_set(
            0,
            1,
            af=af,
            addr=VIP[af],
            port=80,
            proto=6,
            sched=shm.SCHED_SEQ,
            table_off=0,
            table_len=servers,
            fresh=True,
        )
    )
    for n in range(lips):
        address = bytes([10, 77, 1, n]) if af == 4 else bytes.fromhex("fd77") + bytes(13) + bytes([n])
        e.apply(shm.lip_set(n, 1, af=af, addr=address, port_lo=1025, port_hi=65535, fresh=True))
    e.apply(shm.setting(shm.SET_TIMEOUT_BASE + 2, 10_000_000, 1))
    return e


def row(case: str, params: dict[str, int], ns: list[float], floor: list[float] | None) -> dict[str, object]:
    median = statistics.median(ns)
    out: dict[str, object] = {
        "case": case,
        **params,
        "ns": round(median, 1),
        "min": round(min(ns), 1),
        "max": round(max(ns), 1),
    }
    if floor:
        f = statistics.median(floor)
        out |= {"floor_ns": round(f, 1), "ratio": round(median / f, 2)}
    return out


def run(af: int, flows: int, passes: int) -> list[dict[str, object]]:
    # a port is free per (LIP, real server): 64,511 ports × 10 servers per LIP
    e = engine(af, flows, lips=max(1, min(250, flows * 3 // (64511 * 2) // 10 + 1)))
    b = Bench(e, af, VIP[af])
    opened = b.open(flows)
    made = e.used()[f"conns{af}"]
    if made != flows or e.used()["half_open"]:
        sys.exit(
            f"bench: {made} of {flows} connections opened, {e.used()['half_open']} half open: not measured"
        )
    p = {"family": af, "flows": flows}
    out = []
    for burst in (32, 64):
        for back in (False, True):
            before, n = b.forwarded, passes * 8192
            b.established(flows, 3, burst, back)
            before = b.forwarded
            floor = b.floor(flows, passes, burst)
            ns = b.established(flows, passes, burst, back)
            if b.forwarded - before != n:
                sys.exit(f"bench: {b.forwarded - before} of {n} packets forwarded: not measured")
            name = "fullnat tcp established" + (" back" if back else "")
            out.append(row(name, {**p, "burst": burst}, ns, floor))
    out.append(row("fullnat tcp syn (filling)", p, [opened], None))
    return out


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--flows", type=int, nargs="*", default=[8192, 1 << 20])
    ap.add_argument("--families", type=int, nargs="*", default=[4, 6])
    ap.add_argument("--passes", type=int, default=41)
    ap.add_argument("-o", default="bench/out/engine.json")
    args = ap.parse_args()
    rows = [r for af in args.families for n in args.flows for r in run(af, n, args.passes)]
    for af, size in conn_record_bytes().items():
        rows.append({"case": "memory per connection", "family": af, "bytes": round(size, 1)})
    Path(args.o).parent.mkdir(parents=True, exist_ok=True)
    Path(args.o).write_text(json.dumps(rows, indent=1) + "\n")
    for r in rows:
        print("  ".join(f"{k} {v}" for k, v in r.items()))


if __name__ == "__main__":
    main()
