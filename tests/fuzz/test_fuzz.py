# SPDX-License-Identifier: Apache-2.0
"""The packet engine under libFuzzer, AddressSanitizer and UBSan: so many inputs, the same in every run, unless LBD_FUZZ_SECONDS
says for how long new ones are looked for (`make fuzz`: FUZZ_SECONDS).

What it finds is left in build/fuzz/found, and told in full; docs/fuzzing.md says how to see it again.
"""

import base64
import os
import re
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.fuzz import corpus, target

SECONDS = int(os.environ.get("LBD_FUZZ_SECONDS", "0"))
INPUTS = 10_000  # of an ordinary run, beside the corpus
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
    assert corpus.write(made) > 400
    return made


def seed_list(to: Path, *directories: Path) -> str:
    """An option of libFuzzer's: with directories it would go by the order in which the file system lists them."""
    files = sorted((p for d in directories for p in d.iterdir()), key=lambda p: p.name)
    to.write_text(",".join(map(str, files)))
    return f"-seed_inputs=@{to}"


def found_in(output: str) -> str:
    """What a log must keep of a fuzzer that ended: the line that it ended at, and the input."""
    why = "\n".join(re.findall(r"^never: .*", output, re.M))
    written = re.search(r"Test unit written to (\S+)", output)
    if not written:
        return f"{output[-6000:]}\n{why}"
    again = base64.b64encode(zlib.compress(Path(written[1]).read_bytes(), 9)).decode()
    return f"{output[-6000:]}\n{why}\nto see it again: .venv/bin/python -m tests.fuzz.target again {again}"


def fuzz(program: Path, *arguments: str | Path, artifacts: Path = FOUND) -> subprocess.CompletedProcess[str]:
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [str(program), f"-artifact_prefix={artifacts}/", "-timeout=25", "-rss_limit_mb=2048", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=program.parent)


def test_the_corpus_is_small() -> None:
    kept = list(target.CORPUS.iterdir())
    assert len(kept) > 100 and sum(p.stat().st_size for p in kept) < 1_300_000


def test_the_page_counts_right(seeds: Path) -> None:
    text, counts = target.PAGE.read_text(), target.page_counts(len(list(seeds.iterdir())))
    assert counts in text, "python -m tests.fuzz.target page writes it"
    assert f"{len(target.MUTANTS)} changes of one line" in text


@pytest.mark.skipif(SECONDS < 60, reason="looked at when LBD_FUZZ_SECONDS is at least 60")
def test_the_page_tells_what_the_corpus_reaches() -> None:
    """Each file within two points: a line more or less needs no new page."""
    told = dict(re.findall(r"^\| (\w+) \| \d+ \| ([\d.]+) % \|$", target.PAGE.read_text(), re.M))
    found = target.coverage(target.CORPUS)
    assert sorted(told) == sorted(name.removesuffix(".pxd") for name in found)
    far = {name: 100 * a / b for name, (a, b) in found.items() if abs(100 * a / b - float(told[name.removesuffix(".pxd")])) > 2}
    assert not far, "python -m tests.fuzz.target page writes it"


def test_fuzz(seeds: Path, tmp_path: Path) -> None:
    """First every file of the corpus, and what the script makes of the templates today; then new inputs."""
    limits = ["-print_final_stats=1"]  # no -max_len: the longest file's length
    least = len([*target.CORPUS.iterdir(), *seeds.iterdir()])
    if SECONDS:
        limits += [f"-max_total_time={SECONDS}", str(tmp_path), str(target.CORPUS), str(seeds)]
    else:
        limits += ["-seed=1", f"-runs={least + INPUTS}", seed_list(tmp_path / "list", target.CORPUS, seeds)]
        least += INPUTS
    done = fuzz(target.fuzzer(), *limits)
    assert done.returncode == 0, found_in(done.stderr)
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    assert runs and int(runs[1]) >= least


@pytest.mark.parametrize("mutant", target.MUTANTS.values(), ids=list(target.MUTANTS))
def test_the_line_to_plant_a_bug_in_is_there(mutant: target.Mutant) -> None:
    assert mutant.line in (target.ROOT / "lbd/datapath" / mutant.file).read_text(), "choose another mutant"


@pytest.mark.parametrize("name", target.MUTANTS)
def test_planted_bugs_are_found(name: str, seeds: Path, tmp_path: Path) -> None:
    """One line of the engine changed: a sanitizer or one of the target's own checks must end the fuzzer for it."""
    if name not in QUICK and SECONDS < 60:
        pytest.skip("looked for when LBD_FUZZ_SECONDS is at least 60")
    where = tmp_path / "found"
    files = seed_list(tmp_path / "list", target.CORPUS, seeds)
    done = fuzz(target.mutated(name), "-seed=1", "-max_total_time=60", "-max_len=8192", files, artifacts=where)
    assert done.returncode != 0, "not found in a minute"
    assert re.search(target.MUTANTS[name].death, done.stderr), done.stderr[-4000:]


def test_planted_bug_is_found_without_seeds_that_show_it(tmp_path: Path) -> None:
    """From the whole packets alone: the fuzzer has to break one itself."""
    start = tmp_path / "start"
    start.mkdir()
    for name, seed in corpus.seeds():
        if name in ("6 syn", "6 udp", "6 hop by hop", "6 destination options"):
            (start / name.replace(" ", "_")).write_bytes(seed)
    files = seed_list(tmp_path / "list", start)
    done = fuzz(target.mutated(QUICK[0]), "-seed=1", "-max_total_time=120", files, artifacts=tmp_path / "found")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]
    found = re.search(r"Test unit written to (\S+)", done.stderr)
    assert found and Path(found[1]).exists()
