"""make bench-instructions: instructions per packet of each small case, under callgrind, beside those recorded in instructions.json.

Exit status 1 when a case grew by more than 3 %. Deterministic: 8,192 flows, a fixed seed and hash key, a clock that goes on by a
fixed step; to be repeated to the last instruction by the same compiler. What it does not show: time (a cache miss is one
instruction).

    make bench-instructions                               compare
    make bench-instructions ARGS=--update                 record what is there now, on purpose
    make bench-instructions ARGS='--lines --case SYN'     which lines of the .pxd files they are, for the cases that match
    make bench-instructions ARGS='--branches --case both' where branches are guessed wrong, by a simulated predictor
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.compare import wanted
from bench.figure import Figure, show, write
from bench.instructions_lines import INSTRUCTIONS, WRONG_GUESSES, Profile, lines_show, profile_read

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".json")
TOLERANCE = 0.03
PACKETS = 8192
STEP_NS = 2_000
LINES = 40
WAYS = ("from clients", "from real servers")
MODES = (("nat", (0, 1)), ("dr", (0,)), ("tunnel", (0,)), ("gre", (0,)), ("gue", (0,)), ("snat", (0, 1)), ("nat64", (0, 1)))
HINT = "make bench-instructions ARGS=--update"


@dataclass(frozen=True)
class Case:
    name: str
    prepare: Callable[[], Any]  # → a Scene with its pass planned
    verdict: str = "forward"  # of every packet
    whole: bool = False


# --- the cases, in the process that callgrind watches -------------------------------------------------------------------------


def known(direction: int, af: int = 4, proto: int = 6, step_ns: int = STEP_NS, **more: Any) -> Any:
    """A packet of each flow that is open. more: as Scene takes it."""
    from bench.scene import Scene

    scene = Scene(af, proto, flows=PACKETS, step_ns=step_ns, **more).open()
    scene.bench.plan_known(PACKETS, PACKETS, direction)
    return scene


def known_mode(mode: str, direction: int) -> Any:
    return known(direction, 6 if mode == "nat64" else 4, mode=mode)


def unanswered() -> Any:
    """UDP whose answers do not come this way, each flow once in 160 ms: it goes back to its queue's end with each packet."""
    return known(0, proto=17, mode="dr", step_ns=1_250_000)


def one_packet() -> Any:
    """Datagrams that are scheduled one by one, and make no connection."""
    return known(0, proto=17, scheduler="mh", mode="dr", one_packet=True)


def fresh(af: int, proto: int, scheduler: str, clients: int = 0) -> Any:
    """clients: that keep their real servers."""
    from bench.scene import SYN, Scene

    scene = Scene(af, proto, flows=PACKETS, room=PACKETS, scheduler=scheduler, step_ns=STEP_NS, clients=clients,
                  persist=clients > 0).open()  # fmt: skip
    scene.bench.plan_each(PACKETS, PACKETS, False, SYN)
    return scene


def unknown(af: int) -> Any:
    """Segments to a service that belong to no connection."""
    from bench.scene import ACK, Scene

    scene = Scene(af, flows=PACKETS, room=PACKETS, step_ns=STEP_NS).open()
    scene.bench.plan_each(PACKETS, PACKETS, False, ACK)
    return scene


def for_the_kernel() -> Any:
    """To an address that is no service's: copied to the slow path, which has room for all of them."""
    from bench._engine import address
    from bench.reference import Path as Way
    from bench.reference import ends, forwarded
    from bench.scene import LOCAL, MAC_CLIENT, MAC_LB, SYN, Scene
    from lbd.shm import _shm as shm

    scene = Scene(flows=PACKETS, step_ns=STEP_NS, slow_slots=PACKETS).open()
    scene.apply(shm.setting(shm.SET_KERNEL_RATE, 1_000_000_000, 1))
    scene.bench.plan_each(0, 64, False, SYN)
    stranger = address(LOCAL, 200, 4)
    ways = [(f, ends(f)) for f in scene.bench.frames_planned()]
    scene.bench.plan_frames([forwarded(f, Way(MAC_LB, MAC_CLIENT, e[0], e[1], stranger, e[3])) for f, e in ways])
    return scene


def cases() -> list[Case]:
    out = []
    for af in (4, 6):
        for proto, name in ((6, "tcp"), (17, "udp")):
            for direction, way in enumerate(WAYS):
                out.append(Case(f"{name} ipv{af} established, {way}", partial(known, direction, af, proto)))
        out.append(Case(f"tcp ipv{af} new (SYN)", partial(fresh, af, 6, "rr")))
        out.append(Case(f"tcp ipv{af} of no connection, dropped", partial(unknown, af), "drop"))
    for mode, directions in MODES:
        for direction in directions:
            out.append(Case(f"tcp {mode} established, {WAYS[direction]}", partial(known_mode, mode, direction)))
    out.append(Case(f"sctp ipv4 established, {WAYS[0]}", partial(known, 0, proto=132)))
    out.append(Case("udp dr unanswered, once in 160 ms", unanswered))
    out.append(Case("udp ipv4 one packet, mh, dr", one_packet))
    out.append(Case("udp ipv4 new, mh", partial(fresh, 4, 17, "mh")))
    out.append(Case("tcp ipv4 new (SYN), persistent", partial(fresh, 4, 6, "rr", 1024)))
    out.append(Case("tcp ipv4 not for us, to the kernel", for_the_kernel, "kernel"))
    out.append(Case("tcp ipv4 established, both ways, whole turn", partial(known, 2), whole=True))
    return out


def chosen(patterns: list[str]) -> list[Case]:
    found = [c for c in cases() if wanted(c.name, patterns)]
    if not found:
        sys.exit(f"bench-instructions: no case matches {', '.join(patterns)} (--list names them)")
    return found


def child(patterns: list[str]) -> None:
    """One counted pass of each case; callgrind writes a file after each."""
    for case in chosen(patterns):
        scene = case.prepare()
        before = scene.engine.counters()
        scene.bench.go(whole=case.whole, counted=True)
        after = scene.engine.counters()
        if after["verdicts"][case.verdict] - before["verdicts"][case.verdict] != PACKETS or after["drops"].get("kernel_limited"):
            sys.exit(f"bench-instructions: {case.name}: not what it says: {after['verdicts']} {after['drops']}")


# --- callgrind ----------------------------------------------------------------------------------------------------------------


def lacks() -> str | None:
    """What is missing for counting, as a sentence."""
    if not shutil.which("valgrind"):
        return "needs valgrind (Debian package valgrind)"
    return None


def count(patterns: list[str], branches: bool = False) -> dict[str, Profile]:
    with tempfile.TemporaryDirectory() as d:
        tool = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--compress-strings=no", "--compress-pos=no"]
        tool += ["--toggle-collect=bench_counted", "--dump-after=bench_counted", f"--callgrind-out-file={d}/out"]
        tool += ["--branch-sim=yes"] if branches else []
        command = [*tool, sys.executable, "-P", __file__, "--child", *(f"--case={p}" for p in patterns)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "PYTHONMALLOC": "malloc"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench-instructions: the counted process failed\n{done.stderr}")
        wanted = chosen(patterns)
        files = [Path(d) / f"out.{n}" for n in range(1, len(wanted) + 1)]
        missing = [f.name for f in files if not f.exists()]
        if missing:
            sys.exit(f"bench-instructions: callgrind wrote no {', '.join(missing)}\n{done.stderr}")
        events = WRONG_GUESSES if branches else INSTRUCTIONS
        return {case.name: profile_read(f, PACKETS, events) for case, f in zip(wanted, files, strict=True)}


# --- the comparison -----------------------------------------------------------------------------------------------------------


def builder() -> dict[str, Any]:
    """What the counts hang on besides the source: who made the extension, and the C library that it calls."""
    from bench._engine import build

    return {**build(), "libc": " ".join(platform.libc_ver())}


def recorded() -> dict[str, Any]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"builder": None, "instructions": {}}


def incomparable() -> str | None:
    """Why counts of this build can't be held against the recorded ones, as a sentence."""
    here, there = builder(), recorded()["builder"]
    if there is None:
        return f"{RECORD.name} holds nothing yet ({HINT})"
    different = [f"{k} {there.get(k)} there, {v} here" for k, v in here.items() if v != there.get(k)]
    return f"{RECORD.name} was recorded by another build: {'; '.join(different)}" if different else None


def figures(counts: dict[str, float], before: dict[str, float]) -> list[Figure]:
    out = []
    for name, count in counts.items():
        figure = Figure(name, {}, "instructions", [count])
        if name in before:
            figure = replace(figure, peer="recorded", peer_runs=[before[name]], goal=1 + TOLERANCE, judged="ratio")
        out.append(figure)
    return out


def verdict(found: list[Figure]) -> tuple[int, list[str]]:
    """Exit status, and what is to be said about the cases that changed."""
    said = []
    for f in found:
        if f.ratio is None:
            said.append(f"{f.case}: not recorded yet ({HINT})")
        elif not f.met:
            said.append(f"{f.case}: grew from {f.peer_runs[0]:.1f} to {f.median:.1f} ({f.ratio - 1:+.1%}); on purpose? {HINT}")
        elif f.ratio < 1 - TOLERANCE:
            said.append(f"{f.case}: shrank from {f.peer_runs[0]:.1f} to {f.median:.1f} ({f.ratio - 1:+.1%}): record it, {HINT}")
    return (1 if any(f.met is False for f in found) else 0), said


def record(counts: dict[str, float]) -> None:
    """Only what was counted is replaced, unless the build is another one."""
    kept = recorded()["instructions"] if incomparable() is None else {}
    known = [c.name for c in cases()]
    merged = {name: round(n, 2) for name, n in {**kept, **counts}.items() if name in known}
    RECORD.write_text(json.dumps({"builder": builder(), "instructions": merged}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.prog = "bench-instructions"
    ap.add_argument("--case", action="append", default=[], metavar="TEXT", help="only cases with this in their name; repeatable")
    ap.add_argument("--list", action="store_true", help="name the cases and end")
    ap.add_argument("--lines", type=int, nargs="?", const=LINES, metavar="N", help=f"the N ({LINES}) costliest lines of each case")
    ap.add_argument("--branches", action="store_true", help="the same of branches that a simulated predictor guesses wrong")
    ap.add_argument("--update", action="store_true", help=f"write what was counted to {RECORD.name}")
    ap.add_argument("-o", type=Path, default=Path("bench/out/instructions.json"), metavar="FILE", help="for the figures")
    ap.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return ap.parse_args()


def main() -> int:
    args = arguments()
    if args.list:
        print("\n".join(c.name for c in cases()))
        return 0
    if args.child:
        child(args.case)
        return 0
    if reason := lacks():
        sys.exit(f"bench-instructions: {reason}")
    profiles = count(args.case, args.branches)
    if args.lines or args.branches:
        for name, profile in profiles.items():
            lines_show(name, profile, args.lines or LINES, "wrong guesses" if args.branches else "instructions")
        return 0
    counts = {name: profile.per_packet for name, profile in profiles.items()}
    if args.update:
        record(counts)
    reason = incomparable()
    found = figures(counts, {} if reason else recorded()["instructions"])
    show(found)
    write(found, args.o)
    status, said = verdict(found)
    print("\n".join(["", *([f"bench-instructions: not compared: {reason}"] if reason else said)]))
    return 0 if reason else status


if __name__ == "__main__":
    sys.exit(main())
