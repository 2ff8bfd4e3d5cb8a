"""The proofs of lbd/shm/ring.h: the right orders pass, and every weakened one is caught.

A proof that catches nothing proves nothing, so each is run both ways. Three tools, since none sees all:
relacy explores the memory model (data races, lost wake-ups, deaths) over the header's own lines; TSan follows
real threads; and processes are killed at random. What each can't see stands at the head of its program.
"""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 60  # seconds for any one program; they take one to four

WEAK_ORDERS = ("publish", "see", "free", "see_free")
WEAK_FENCES = ("sleep_fence", "wake_fence")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)


def build(target: Path, source: str, *flags: str) -> Path:
    compiler = ["g++", "-std=c++11"] if source.endswith(".cpp") else ["gcc", "-std=gnu11", "-Wall", "-Wextra"]
    done = run(*compiler, *flags, "-I.", HERE / source, "-o", target, "-pthread")
    assert done.returncode == 0, done.stderr
    return target


@functools.cache
def lacks(compiler: str, test: str, *flags: str) -> bool:
    """True if the compiler is missing, or can't make a program of these lines."""
    if not shutil.which(compiler):
        return True
    language = "c++" if compiler == "g++" else "c"
    command = [compiler, *flags, "-x", language, "-", "-o", "/dev/null"]
    return subprocess.run(command, input=test, capture_output=True, text=True).returncode != 0


# -- relacy ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def relacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("g++"):
        pytest.skip("needs g++ (Debian package g++)")
    if lacks("g++", "#if !__has_include(<relacy/relacy.hpp>)\n#error\n#endif", "-E"):
        pytest.skip("needs relacy (Debian package relacy-dev)")
    # -w: relacy's own headers are of 2008
    return build(tmp_path_factory.mktemp("relacy") / "ring_relacy", "ring_relacy.cpp", "-O1", "-w")


def verdict(relacy: Path, *arguments: object) -> str:
    done = run(relacy, *arguments)
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    found = re.fullmatch(r"RESULT (.+) in iteration \d+", last)
    assert found, f"{arguments}: exit status {done.returncode}, {last!r}, {done.stderr}"
    assert (done.returncode == 0) == (found[1] == "SUCCESS")
    return found[1]


# All that `bound` forced thread switches can give, and 200,000 random schedules of longer runs.
@pytest.mark.parametrize(
    ("scenario", "records", "search", "number"),
    [
        ("flow", 3, "bound", 2),
        ("consumer_dies", 3, "bound", 3),
        ("producer_dies", 3, "bound", 3),
        ("sleep_one", 3, "bound", 3),
        ("sleep_many", 1, "bound", 3),
        ("waker_dies", 1, "bound", 4),
        ("flow", 6, "random", 200_000),
        ("consumer_dies", 4, "random", 200_000),
        ("producer_dies", 4, "random", 200_000),
        ("sleep_one", 4, "random", 200_000),
        ("sleep_many", 3, "random", 200_000),
        ("waker_dies", 1, "random", 200_000),
    ],
)
def test_relacy_finds_nothing(relacy: Path, scenario: str, records: int, search: str, number: int) -> None:
    assert verdict(relacy, scenario, "none", records, search, number) == "SUCCESS"


@pytest.mark.parametrize("scenario", ["flow", "consumer_dies", "producer_dies"])
@pytest.mark.parametrize("weak", WEAK_ORDERS)
def test_relacy_catches_a_weak_order(relacy: Path, scenario: str, weak: str) -> None:
    assert verdict(relacy, scenario, weak, 4, "random", 200_000) == "DATA RACE"


@pytest.mark.parametrize("scenario", ["sleep_one", "sleep_many"])
@pytest.mark.parametrize("weak", WEAK_FENCES)
def test_relacy_catches_a_missing_fence(relacy: Path, scenario: str, weak: str) -> None:
    # two records: the ring never fills, so whoever waits for ever is the consumer
    assert verdict(relacy, scenario, weak, 2, "random", 200_000) == "DEADLOCK"


def test_relacy_catches_a_producer_without_its_first_wake_up(relacy: Path) -> None:
    assert verdict(relacy, "waker_dies", "kick", 1, "random", 200_000) == "DEADLOCK"


# -- TSan --------------------------------------------------------------------------------------------------


def tsan(directory: Path, weak: str | None = None) -> subprocess.CompletedProcess[str]:
    if lacks("gcc", "int main(void) { return 0; }", "-fsanitize=thread"):
        pytest.skip("needs gcc with libtsan (Debian package libtsan2)")
    if not shutil.which("setarch"):
        pytest.skip("needs setarch (Debian package util-linux)")
    flags = ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan"]  # it knows no fences, and this program uses none
    if weak:
        flags.append(f"-DWEAKEN_{weak.upper()}")
    program = build(directory / "ring_threads", "ring_threads.c", *flags)
    # -R: gcc 12's TSan can't start where the kernel randomises more address bits than it knows
    return run("setarch", "-R", program, 100_000)


def test_tsan_reports_nothing(tmp_path: Path) -> None:
    done = tsan(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "100000 records, 0 wrong words\n"


@pytest.mark.parametrize("weak", WEAK_ORDERS)
def test_tsan_reports_a_weak_order(tmp_path: Path, weak: str) -> None:
    done = tsan(tmp_path, weak)
    assert done.returncode == 66, done.stderr
    assert "WARNING: ThreadSanitizer: data race" in done.stderr


# -- processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_ring_survives_kills_of_either_end(tmp_path: Path, seed: int) -> None:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    done = run(build(tmp_path / "ring_processes", "ring_processes.c", "-O2"), 300, seed)
    assert done.returncode == 0, done.stderr


# -- the header itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["gcc -std=c11", "g++ -x c++ -std=c++17", "clang -std=c11"])
def test_header_compiles_without_a_warning(tmp_path: Path, compiler: str) -> None:
    if not shutil.which(compiler.split()[0]):
        pytest.skip(f"needs {compiler.split()[0]}")
    source = tmp_path / "ring.c"
    source.write_text('#include "lbd/shm/ring.h"\nint main(void) { return 0; }\n')
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-Wno-unused-function"]
    done = run(*compiler.split(), *flags, "-I.", source, "-o", tmp_path / "ring")
    assert done.returncode == 0, done.stderr


def test_proofs_run_the_lines_that_are_shipped() -> None:
    """Every atomic access is made by a macro of section 1, and only that section gives way to a proof's."""
    text = (ROOT / "lbd/shm/ring.h").read_text()
    sections = re.split(r"^/\* -- (\d)\. ", text, flags=re.M)
    bodies = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(bodies) == list("1234567")
    for number, body in bodies.items():
        if number == "1":
            continue
        assert not re.search(r"__atomic|__sync|__asm__|memcpy", body), f"section {number}"
        # what is left out of a proof there: static assertions and alignment, which concern addresses alone
        for ported in re.findall(r"#ifndef LBD_RING_PORT\n(.+?)#endif\n(?!LBD_STATIC)", body, re.S):
            assert "LBD_STATIC_ASSERT" in ported or "LBD_RING_ALIGNMENT" in ported, ported


def test_declarations_cover_the_header() -> None:
    header = (ROOT / "lbd/shm/ring.h").read_text()
    declared = (ROOT / "lbd/shm/ring.pxd").read_text()
    functions = re.findall(r"^static inline .*?(lbd_\w+)\(", header, re.M)
    assert len(functions) > 20
    for name in functions:
        if name != "lbd_ring_see":  # a part of ready and idle
            assert re.search(rf"\b{name}\([^)]*\) noexcept", declared), name
    results = re.findall(r"\b(LBD_RING_\w+) = -?\d", header)
    assert len(results) == 8
    assert all(re.search(rf"\b{r}\b", declared) for r in results)
