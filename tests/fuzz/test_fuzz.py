# SPDX-License-Identifier: Apache-2.0
"""The packet engine under libFuzzer, AddressSanitizer and UBSan, for LBD_FUZZ_SECONDS (20 unless told; `make fuzz`: FUZZ_SECONDS).

What it finds is left in build/fuzz/found; run the fuzzer with that file to see it again. docs/fuzzing.md has the rest.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.fuzz import corpus, target

SECONDS = int(os.environ.get("LBD_FUZZ_SECONDS", "20"))
FOUND = target.BUILD / "found"
QUICK = ["extension header beyond the packet"]  # the planted bugs looked for in every run; the others in longer ones
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 1200)]


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    if reason := target.lacking():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeds")
    assert corpus.write(made) > 300
    return made


def fuzz(program: Path, *arguments: str | Path, artifacts: Path = FOUND) -> subprocess.CompletedProcess[str]:
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [str(program), f"-artifact_prefix={artifacts}/", "-timeout=25", "-rss_limit_mb=2048", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=program.parent)


def test_the_corpus_is_small_and_clean(seeds: Path) -> None:
    """What was committed, and what the script makes of the templates today."""
    kept = list(target.CORPUS.iterdir())
    assert len(kept) > 100 and sum(p.stat().st_size for p in kept) < 300_000
    done = fuzz(target.fuzzer(), "-runs=0", target.CORPUS, seeds)
    assert done.returncode == 0, done.stderr[-4000:]


def test_fuzz(seeds: Path, tmp_path: Path) -> None:
    limits = f"-max_total_time={SECONDS}", "-max_len=8192", "-print_final_stats=1"
    done = fuzz(target.fuzzer(), *limits, tmp_path, target.CORPUS, seeds)
    assert done.returncode == 0, done.stderr[-6000:]
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    assert runs and int(runs[1]) > 50 * SECONDS


@pytest.mark.parametrize("name", target.MUTANTS)
def test_planted_bugs_are_found(name: str, seeds: Path, tmp_path: Path) -> None:
    """One line of the engine changed: a sanitizer or one of the target's own checks must end the fuzzer for it."""
    if name not in QUICK and SECONDS < 60:
        pytest.skip("looked for when LBD_FUZZ_SECONDS is at least 60")
    where = tmp_path / "found"
    done = fuzz(target.mutated(name), "-max_total_time=60", "-max_len=8192", tmp_path, target.CORPUS, seeds, artifacts=where)
    assert done.returncode != 0, "not found in a minute"
    assert re.search(target.MUTANTS[name].death, done.stderr), done.stderr[-4000:]


def test_planted_bug_is_found_without_seeds_that_show_it(tmp_path: Path) -> None:
    """From the whole packets alone: the fuzzer has to break one itself."""
    start = tmp_path / "start"
    start.mkdir()
    for name, seed in corpus.seeds():
        if name in ("6 syn", "6 udp", "6 hop by hop", "6 destination options"):
            (start / name.replace(" ", "_")).write_bytes(seed)
    done = fuzz(target.mutated(QUICK[0]), "-max_total_time=60", start, artifacts=tmp_path / "found")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]
    found = re.search(r"Test unit written to (\S+)", done.stderr)
    assert found and Path(found[1]).exists()
