# SPDX-License-Identifier: Apache-2.0
"""Builds of the fuzz target, below build/fuzz: the fuzzer itself, mutants of the engine that it must catch, and one for coverage.

Cython's C is compiled straight into a libFuzzer program, with no Python in it: what Cython adds for the import of a module is
never called, so its references to Python's library stay unresolved (-no-pie lets the program start all the same).

    python -m tests.fuzz.target            builds the fuzzer, says where
    python -m tests.fuzz.target coverage   runs the corpus under gcov, prints what of each .pxd was reached
    python -m tests.fuzz.target again ...  runs the input that a failed test told
    python -m tests.fuzz.target page       the same, into docs/fuzzing.md, and the counts of seeds and files with it
"""

import base64
import functools
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/fuzz"
CORPUS = ROOT / "tests/fuzz/corpus"
PAGE = ROOT / "docs/fuzzing.md"
COUNTS = "<!-- counts -->\n", "\n<!-- counts end -->"
TABLE = "<!-- coverage -->\n", "\n<!-- coverage end -->"
CLANG = shutil.which("clang") or "clang"
DIRECTIVES = "boundscheck=False,wraparound=False,initializedcheck=False,cdivision=True"  # setup.py's, as far as they change code
COMMON = ["-g1", "-fno-omit-frame-pointer", "-fno-strict-aliasing", "-w", "-no-pie", "-Wl,--unresolved-symbols=ignore-all"]
# -fno-wrapv is clang's default and said for the reader: Python's own flags would make overflow defined.
# Comparisons are not traced: five times as many inputs per second, and the seeds bring the constants.
SANE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-coverage=trace-cmp", "-fno-sanitize-recover=all", "-fno-wrapv"]
FUZZ = ["-O2", *SANE]
SOON = ["-O0", *SANE]  # built in a fifth of the time, runs a third as fast
COVER = ["-O0", "-fsanitize=fuzzer", "--coverage"]


class Mutant(NamedTuple):
    """The engine with one line changed, and what the fuzzer must then die of."""

    file: str
    line: str
    instead: str
    death: str


MUTANTS = {
    "extension header beyond the packet": Mutant(
        "parse.pxd", "        if off[0] + 8 > end:\n            return -1\n", "", "heap-buffer-overflow"
    ),
    "quoted header beyond the packet": Mutant(
        "parse.pxd", "n < sizeof(IpHdr) or off + n + 8 > end:", "n < sizeof(IpHdr):", "heap-buffer-overflow"
    ),
    "total length beyond the packet": Mutant(
        "parse.pxd", "tot < n or tot > left)", "tot < n)", "heap-buffer-overflow|judge"
    ),
    "checksum not updated": Mutant("nat.pxd", "    if not p.flags & PKT_PARTIAL:\n", "    if False:\n", "judge"),
    "checksum not updated in the fast lane": Mutant(
        "fast.pxd", "        check_update(l4, p.proto, c.l4_delta ^ <uint16_t> (0 - direction))\n", "        pass\n", "judge"
    ),
    "index entry left behind": Mutant("lifetime.pxd", "    conn_unindex(t, i, af)\n", "", "audit|overflow"),
    "length without the shim": Mutant(
        "encap.pxd", "bytes + shim + sizeof(IpHdr), tos", "bytes + sizeof(IpHdr), tos", "judge|overflow"
    ),
    "template not counted off": Mutant("persist.pxd", "    template_count(e, m, -1)\n", "    pass\n", "deadly signal"),
    "record on two lists": Mutant("timer.pxd", "        t.cold[c.next].prev = c.prev\n", "        pass\n", "chain|audit|timeout"),
}  # fmt: skip


@functools.cache
def lacking() -> str | None:
    """Why there can be no fuzzing here, or None."""
    if not shutil.which("clang"):
        return "needs clang (Debian package clang)"
    with tempfile.TemporaryDirectory() as d:
        source = Path(d) / "t.c"
        source.write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return 0; }")
        tried = subprocess.run([CLANG, "-fsanitize=fuzzer,address", str(source), "-o", f"{d}/t"], capture_output=True, text=True)
    if tried.returncode:
        return f"clang lacks its fuzzer runtime (Debian package libclang-rt-14-dev): {tried.stderr[:200]}"
    return None


def sources() -> list[Path]:
    return [*sorted((ROOT / "tests/fuzz").glob("*.p[xy][xi]")), *sorted((ROOT / "lbd/datapath").glob("*.pxd"))]


def fingerprint(*more: object) -> str:
    h = hashlib.sha256(repr(more).encode())
    for path in (Path(__file__), *sources()):
        h.update(path.read_bytes())
    return h.hexdigest()


def run(command: list[str], where: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def build(name: str, flags: list[str], mutant: Mutant | None = None) -> Path:
    """build/fuzz/NAME/fuzz_engine, made anew when a source has changed."""
    place = BUILD / name
    program, stamp = place / "fuzz_engine", place / "fingerprint"
    wanted = fingerprint(flags, mutant)
    if program.exists() and stamp.exists() and stamp.read_text() == wanted:
        return program
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    include = ["-I", str(ROOT)]
    if mutant:
        shutil.copytree(ROOT / "lbd/datapath", place / "lbd/datapath", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copy(ROOT / "lbd/__init__.py", place / "lbd")
        changed = place / "lbd/datapath" / mutant.file
        text = changed.read_text()
        if mutant.line not in text:
            raise RuntimeError(f"{mutant.file} has no {mutant.line!r} any more: choose another mutant")
        changed.write_text(text.replace(mutant.line, mutant.instead))
        include = ["-I", str(place)]
    else:
        (place / "lbd").symlink_to(ROOT / "lbd")  # gcov looks for sources from here
    c = place / "fuzz_engine.c"
    cython = [sys.executable, "-m", "cython", "-3", "--line-directives", *include, "-X", DIRECTIVES]
    run([*cython, str(ROOT / "tests/fuzz/fuzz_engine.pyx"), "-o", str(c)], place if mutant else ROOT)
    headers = ["-I", sysconfig.get_path("include"), "-I", str(ROOT)]
    march = ["-march=x86-64-v3"] if sysconfig.get_platform().endswith("x86_64") else []
    run([CLANG, *flags, *COMMON, *march, *headers, str(c), "-o", str(program)], place)
    stamp.write_text(wanted)
    return program


def fuzzer() -> Path:
    return build("engine", FUZZ)


def mutated(name: str) -> Path:
    return build("mutant-" + re.sub(r"\W+", "-", name), SOON, MUTANTS[name])


def coverage(*inputs: Path) -> dict[str, tuple[int, int]]:
    """File name of a .pxd → (lines reached, lines with code) by these inputs, as gcov counts them."""
    program = build("coverage", COVER)
    place = program.parent
    for old in place.glob("*.gcda"):
        old.unlink()
    run([str(program), "-runs=0", *map(str, inputs)], place)
    for path in place.glob("*.gcov"):
        path.unlink()
    data = next(place.glob("*.gcda"))
    run(["llvm-cov", "gcov", "-p", data.name], place)
    found: dict[str, tuple[int, int]] = {}
    for path in place.glob("*datapath#*.pxd.gcov"):
        lines: dict[int, bool] = {}
        for line in path.read_text().splitlines():
            m = re.match(r"\s*(\d+|#####)\*?:\s*(\d+):(.*)", line)
            if m and not m[3].startswith("cdef "):  # a function's head is reached by Cython's own code alone
                lines[int(m[2])] = lines.get(int(m[2]), False) or m[1] != "#####"
        if lines:
            found[path.name.split("#")[-1].removesuffix(".gcov")] = (sum(lines.values()), len(lines))
    return found


def again(told: str) -> int:
    """Runs the input as test_fuzz.py tells it; returns the fuzzer's status."""
    place = BUILD / "found/again"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(zlib.decompress(base64.b64decode(told)))
    return subprocess.run([str(fuzzer()), str(place)]).returncode


def page_counts(seeds: int) -> str:
    """The sentence of docs/fuzzing.md about the corpus; tests/fuzz/test_fuzz.py compares."""
    kept = [p.stat().st_size for p in CORPUS.iterdir()]
    return f"{seeds} seeds of `corpus.py`; the corpus has {len(kept)} files, {round(sum(kept), -3) // 1000} kB."


def page_table(found: dict[str, tuple[int, int]]) -> str:
    rows = [f"| {name.removesuffix('.pxd')} | {n} | {100 * reached / n:.1f} % |" for name, (reached, n) in sorted(found.items())]
    reached, lines = (sum(column) for column in zip(*found.values(), strict=True))
    rows.append(f"| **all** | **{lines}** | **{100 * reached / lines:.1f} %** |")
    return "\n".join(["| file | lines | reached |", "|---|---|---|", *rows])


def page_write() -> None:
    from tests.fuzz import corpus  # which needs the extensions

    text = PAGE.read_text()
    for begin, end, new in ((*COUNTS, page_counts(len(list(corpus.seeds())))), (*TABLE, page_table(coverage(CORPUS)))):
        text = text[: text.index(begin) + len(begin)] + new + text[text.index(end) :]
    PAGE.write_text(text)


def main() -> None:
    if reason := lacking():
        raise SystemExit(reason)
    if sys.argv[1:2] == ["again"]:
        raise SystemExit(again(sys.argv[2]))
    if sys.argv[1:] == ["page"]:
        page_write()
        return
    if sys.argv[1:] != ["coverage"]:
        print(fuzzer())
        return
    found = coverage(CORPUS)
    for name, (reached, lines) in sorted(found.items()):
        print(f"{name:24} {reached:5} of {lines:5}  {100 * reached / lines:5.1f} %")
    reached, lines = (sum(column) for column in zip(*found.values(), strict=True))
    print(f"{'all':24} {reached:5} of {lines:5}  {100 * reached / lines:5.1f} %")


if __name__ == "__main__":
    main()
