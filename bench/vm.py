# SPDX-License-Identifier: Apache-2.0
"""make bench-vm: instructions per forwarded packet, through kernel IPVS and through lbd, over the same NICs in the lab VM.

No root, no NIC. The VM counts instructions (qemu -icount), the drivers' included; the emulator's dump of the outgoing wire is the
sink, every packet of it is verified (vm/sink.py), and a case with a packet lost or wrong has no figure. Cases: vm/mode.py; inside
the VM: vm/guest.py; method, and what this does not show: README.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.compare import machine  # noqa: E402
from bench.lvs import expect  # noqa: E402
from bench.lvs.figure import Figure, figure  # noqa: E402
from bench.lvs.mode import FLOWS, GOAL, MODES, SYSTEMS, Mode  # noqa: E402
from bench.lvs.sink import read  # noqa: E402

TOOL = ROOT / "build/bench/vmgen"
NICS = {"virtio": "virtio,rx_queue_size=512", "igb": "igb"}
LIMIT_S = 1500  # of a VM, on a busy machine; 134 s was seen, and 390 s beside another VM and a load of eight


# -- the VM --------------------------------------------------------------------------------------------------------------


def measure(nic: str, rounds: int) -> dict[tuple[str, str], Figure]:
    with tempfile.TemporaryDirectory(prefix="lbdt-vm-") as directory:
        dump = Path(directory, "out.pcap")
        nics = [f"{'igb' if end else NICS[nic]},wire=hub:{wire}" for wire, end in (("a", 1), ("a", 0), ("b", 0), ("b", 1))]
        argv = [str(ROOT / "tests/vm/vmlab"), "--cpus", "1", "--icount", "0", "--mem", "2G", "--modprobe", "ip_vs,ip_vs_rr"]
        argv += [word for spec in nics for word in ("--nic", spec)]
        argv += ["--qemu-arg", f"-object filter-dump,id=sink,netdev=n2,file={dump},maxlen=256"]
        argv += ["--env", f"PYTHONPATH={ROOT}", "--timeout", str(LIMIT_S), "--"]
        argv += [f"ulimit -l unlimited; exec {sys.executable} {ROOT}/bench/lvs/guest.py {TOOL} {rounds}"]
        reports = []
        with open(Path(directory, "err"), "w+") as err, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=err, text=True) as vm:
            assert vm.stdout is not None
            for line in vm.stdout:
                reports.append(report := json.loads(line))
                what = next((w for w in ("refused", "failed") if w in report), "measured")
                print(f"{nic}: {report['system']}, {report['mode']}: {what}", file=sys.stderr, flush=True)
            if vm.wait():
                err.seek(0)
                sys.exit(f"bench/vm: the VM's command ended with status {vm.returncode}:\n{err.read()}")
        seen = read(dump)
    return {(r["system"], r["mode"]): figure(r, seen[r["system"], r["mode"]]) for r in reports}


# -- results -------------------------------------------------------------------------------------------------------------


def goal(mode: Mode, system: str, figures: dict[tuple[str, str], Figure]) -> float | None:
    """The goal stands for NAT; for FULLNAT as long as that is all there is."""
    have_nat = bool(figures.get((system, "nat"), Figure([])).rounds)
    return GOAL if system == "lbd zero-copy" and mode.name == ("nat" if have_nat else "fullnat") else None


def result(nic: str, system: str, mode: Mode, figures: dict[tuple[str, str], Figure]) -> dict[str, Any]:
    own = figures[system, mode.name]
    row: dict[str, Any] = {
        "case": mode.name,
        "params": {"nic": nic, "mode": mode.name, "system": system, "flows": FLOWS},
        "unit": "instructions/packet",
        **dict.fromkeys(("median", "min", "max", "in_bursts_of_128", "in_worker", "peer", "peer_median", "ratio")),
        "goal": goal(mode, system, figures),
        "met": None,
    }
    if not own.rounds:
        return row | {"why": own.why}
    row |= {"median": round(own.median), "min": round(min(own.rounds)), "max": round(max(own.rounds))}
    row |= {"in_bursts_of_128": round(own.small), "in_worker": round(own.worker) or None}
    peer = figures.get(("kernel", mode.peer))
    if system != "kernel" and peer and peer.rounds:
        row |= {"peer": f"kernel {mode.peer}", "peer_median": round(peer.median), "ratio": round(peer.median / own.median, 2)}
        row["met"] = row["ratio"] >= row["goal"] if row["goal"] else None
    return row


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["median"] is None:
        return row["why"] if row["why"] == "not yet" else "FAILED"
    text = f"{row['median']:,} ({row['min']:,}-{row['max']:,})"
    return text + (f"  {row['ratio']:.2f}×" if row["ratio"] else "")


def show(rows: list[dict[str, Any]]) -> None:
    lines = [["instructions per packet", *SYSTEMS]]
    for nic in dict.fromkeys(r["params"]["nic"] for r in rows):
        by = {(r["params"]["system"], r["case"]): r for r in rows if r["params"]["nic"] == nic}
        lines += [[f"{nic}  {m.name}", *(cell(by.get((s, m.name))) for s in SYSTEMS)] for m in MODES]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    print("\nMarginal cost under full load, drivers included: median (min-max of the rounds); ×: times fewer than kernel IPVS")
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for r in rows:
        where = f"{r['params']['nic']}, {r['params']['system']}, {r['case']}"
        if r["goal"]:
            verdict = "met" if r["met"] else "NOT met"
            print(f"goal {r['goal']}× beside {r['peer']}: {where}: {r['ratio']}×, {verdict}")
        if r["median"] is None and r["why"] != "not yet":
            print(f"FAILED: {where}: {r['why']}")


def main() -> int:
    parser = argparse.ArgumentParser(description="instructions per packet: kernel IPVS and lbd, in the lab VM")
    parser.add_argument("--runs", type=int, default=9, help="rounds of each case (%(default)s)")
    parser.add_argument("--nic", choices=NICS, action="append", help="only this NIC")
    parser.add_argument("--quick", action="store_true", help="three rounds, igb alone")
    parser.add_argument("--require", type=float, default=0, metavar="RATIO", help="exit status 1 where a goal's ratio is below it")
    parser.add_argument("-o", type=Path, default=ROOT / "bench/out/vm.json", metavar="FILE")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs is 1 at least")
    if subprocess.run([ROOT / "tests/vm/vmlab-setup"]).returncode:
        sys.exit("bench/vm: the lab VM cannot be had here; see tests/vm/README.md")
    subprocess.run(["make", "--no-print-directory", "-s", "-C", ROOT / "bench/lvs"], check=True)
    start, rows = time.monotonic(), []
    for nic in args.nic or (["igb"] if args.quick else NICS):
        figures = measure(nic, 3 if args.quick else args.runs)
        rows += [result(nic, s, m, figures) for s in SYSTEMS for m in MODES if (s, m.name) in figures]
        args.o.parent.mkdir(exist_ok=True)
        args.o.write_text(json.dumps([r | {"machine": machine()} for r in rows], indent=1) + "\n")
    show(rows)
    print("", *expect.lines(rows), sep="\n")
    print(f"\nwritten: {args.o} after {time.monotonic() - start:.0f} s")
    failed = [r for r in rows if r["median"] is None and r["why"] != "not yet"]
    return 1 if failed or any(r["ratio"] < args.require for r in rows if r["goal"] and r["ratio"]) else 0


if __name__ == "__main__":
    sys.exit(main())
