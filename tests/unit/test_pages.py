# SPDX-License-Identifier: Apache-2.0
"""What the pages of docs/ and the README tell people to type exists: each `lbd …` line parses, and TOML has no other tables and
keys than the configuration. Pages whose commands are run as well: tests/netns/test_docs.py."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lbd.cli.main import parser
from lbd.config.schema import TABLES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {"cli.md", "configuration.md", "metrics.md", "drops.md"}  # from the code


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text; what is indented has none."""
    text = page.read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return fenced + [("", block) for block in re.findall(r"(?:^    .*\n)+", rest, re.M)]


def commands(text: str) -> list[str]:
    """Each command of lbd's in a block; what two spaces or more separate from it is the page's remark."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        for part in re.split(r";\s+|\|\|?|&&", line):
            if match := re.match(r"\s*(?:\S*bin/)?lbd (?!\d)(\S.*)", part):
                found.append(re.split(r"\s{2,}|\s#", match[1])[0].strip())
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in GENERATED], ids=lambda p: p.stem)
def test_commands_are_lbds(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for language, text in blocks(page):
        if language in ("", "sh"):
            for command in commands(text):
                try:
                    parser().parse_args(shlex.split(command))
                except SystemExit as end:
                    if end.code:
                        wrong.append(f"lbd {command}: {capsys.readouterr().err.splitlines()[-1]}")
                except ValueError as error:
                    wrong.append(f"lbd {command}: {error}")
    assert not wrong, "\n".join(wrong)


def strangers(table: dict[str, Any], path: tuple[str, ...] = ()) -> list[str]:
    """Keys that the configuration does not have, with where they are."""
    found = []
    for name, value in table.items():
        if name not in TABLES[path].keys and (*path, name) not in TABLES:
            found.append(".".join((*path, name)))
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict) and (*path, name) in TABLES:
                found += strangers(inner, (*path, name))
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in GENERATED], ids=lambda p: p.stem)
def test_toml_is_the_configurations(page: Path) -> None:
    wrong = []
    for language, text in blocks(page):
        if language == "toml":
            try:
                wrong += strangers(tomllib.loads(text))
            except tomllib.TOMLDecodeError as error:
                wrong.append(f"{error}: {text}")
    assert not wrong, "\n".join(wrong)
