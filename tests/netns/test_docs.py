"""The commands of docs/modes/*.md and of some beside them do what the page says: each `sh` block is run in order,
a `text` block is what it printed.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BESIDE = ("protocols.md", "fragments.md", "containers.md")
PAGES = [*sorted((ROOT / "docs/modes").glob("*.md")), *(ROOT / "docs" / page for page in BESIDE)]


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(sh|toml|text)\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.mark.netns
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_page_works(page: Path, tmp_path: Path) -> None:
    env = {**os.environ, "DIR": str(tmp_path)}
    out = ""
    done = False
    try:
        for kind, text in blocks(page):
            if kind == "toml":
                (tmp_path / "lbd.toml").write_text(text)
            elif kind == "text":
                assert out == text
            else:
                # to files: a pipe would be held open by what a block starts in the background
                with open(tmp_path / "out", "w+") as stdout, open(tmp_path / "err", "w+") as stderr:
                    ran = subprocess.run(["bash", "-e", "-c", text], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=stdout,
                                         stderr=stderr, timeout=60)  # fmt: skip
                    stdout.seek(0)
                    stderr.seek(0)
                    out = stdout.read()
                    log = tmp_path / "lbd.log"
                    assert ran.returncode == 0, text + stderr.read() + (log.read_text() if log.exists() else "")
        done = True
    finally:
        if not done:
            clean_up(tmp_path)


def clean_up(tmp_path: Path) -> None:
    """What the page's last block would have done."""
    for name in ("lbd", "server"):
        pid = tmp_path / f"{name}.pid"
        if pid.exists():
            subprocess.run(["kill", pid.read_text().strip()], capture_output=True)
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for name in re.findall(r"^fn-\w+", names, re.M):
        for worker in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
            subprocess.run(["kill", "-9", worker], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    shutil.rmtree("/dev/shm/fn-run", ignore_errors=True)
