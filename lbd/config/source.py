# SPDX-License-Identifier: Apache-2.0
"""From a TOML file to a Config, or to all that is wrong with it, each with file, line, field and remedy."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lbd.config import icmp, oddity, option, quic, rule
from lbd.config.explain import MISSING, explain, key_at, true_loc
from lbd.config.model import Config
from lbd.config.position import LineIndex
from lbd.config.problem import ConfigError, Loc, Problem, field_text

FILE_MAX = 64 << 20  # bytes; a thousand services take about 1 MiB


def load(path: str | os.PathLike[str]) -> Config:
    """The configuration in a file. ConfigError if it can't be read or used; nothing else is raised."""
    name = os.fspath(path)
    return loads(read(name), name)


def read(name: str) -> str:
    """The text of a file."""
    try:
        with Path(name).open("rb") as file:
            content = file.read(FILE_MAX + 1)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        reason = e.strerror if isinstance(e, OSError) else str(e)
        message = f"can't be read: {reason}; give the path of a TOML file"
        raise ConfigError([Problem(name, None, "", message)]) from None
    if len(content) > FILE_MAX:
        problem = Problem(name, None, "", f"is larger than {FILE_MAX >> 20} MiB; is it a configuration?")
        raise ConfigError([problem])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        message = f"byte 0x{content[e.start]:02x} is no UTF-8; save the file in that encoding"
        raise ConfigError([Problem(name, line, "", message)]) from None


def loads(text: str, name: str = "<text>") -> Config:
    """The configuration in a text; `name` stands for the file in messages."""
    data = _parse(text, name)
    found: list[rule.Finding] = []
    try:
        config = Config.model_validate(data)
        view = rule.View(config)
    except ValidationError as e:
        view, found = _salvage(data, e)
    found += rule.errors(view)
    found += quic.errors(view)
    found += option.errors(view)
    found += icmp.errors(view)
    odd = oddity.warnings(view)
    lines = LineIndex(text) if found or odd else None

    def problems(findings: list[rule.Finding], severity: str) -> list[Problem]:
        assert lines is not None
        made = (Problem(name, lines.line(loc), field_text(loc), text, severity) for loc, text in findings)
        return sorted(made, key=lambda p: (p.line or 0, p.field, p.message))

    warnings = problems(odd, "warning") if odd else []
    if found:
        raise ConfigError(problems(found, "error"), warnings)
    config._warnings = tuple(warnings)
    return config


def _salvage(data: dict[str, Any], error: ValidationError) -> tuple[rule.View, list[rule.Finding]]:
    """The field errors, and a view of what is right beside them, for the rules to look at."""
    found: list[rule.Finding] = []
    bad: set[Loc] = set()
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # bad elements are reported, and then they count as missing ones
        loc = true_loc(detail)
        found.append((loc, explain(detail, loc, _at(data, loc))))
        bad.add(_removable(loc, missing=detail["type"] in MISSING))
    kept: dict[Loc, list[int]] = {}
    try:
        config = Config.model_validate(_without(data, bad, (), kept))
    except ValidationError:  # what is left can't stand alone: the field errors have to do
        return rule.View(Config(), frozenset({("interface",)})), found
    return rule.View(config, frozenset(bad), kept), found


def _at(data: Any, loc: Loc) -> Any:
    """What the file has there: pydantic's own `input` may have been converted already."""
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):  # a missing key
            return None
    return data


def _removable(loc: Loc, missing: bool) -> Loc:
    """The smallest thing around a bad value that can be taken out without leaving a required key open."""
    key = key_at(loc)
    if missing or (key and isinstance(loc[-1], int) and key.element and key.lengths()[0]):
        loc = loc[:-1]
    while loc and isinstance(loc[-1], str):
        key = key_at(loc)
        if key is None or not key.field.is_required():
            break
        loc = loc[:-1]
    return loc


def _without(value: Any, bad: set[Loc], loc: Loc, kept: dict[Loc, list[int]]) -> Any:
    """A copy without the bad values; `kept` gets the numbers of those elements that stay, where some go."""
    if isinstance(value, dict):
        return {k: _without(v, bad, (*loc, k), kept) for k, v in value.items() if (*loc, k) not in bad}
    if isinstance(value, list):
        numbers = [i for i in range(len(value)) if (*loc, i) not in bad]
        if len(numbers) < len(value):
            kept[loc] = numbers
        return [_without(value[i], bad, (*loc, i), kept) for i in numbers]
    return value


# --- syntax -----------------------------------------------------------------------------------------------

_REMEDIES = (
    # part of tomllib's message, part of the offending line (regex), remedy
    ("overwrite a value", "", "this key stands twice in its table: remove one"),
    ("mutate immutable", "", "a table written {…} is complete: put all its keys between the braces"),
    ("Cannot declare", "", "this table stands twice: join the two, or write [[…]] if there may be several"),
    ("Cannot mutate", "", "this table was closed before: put all its keys below one header"),
    ("Unterminated", "", "close the quotes"),
    ("Invalid value", r"=\s*(#|$)", "write a value after the ="),
    ("Invalid value", r"=\s*(True|False|yes|no|on|off)\b", "truth values are true and false"),
    ("Invalid value", r"=\s*[^\s\"'\[{]", "text stands in quotes"),
    (
        "Expected newline",
        r"=\s*[0-9][^\s\"']*\s*(#|$)",
        "durations, addresses and other text stand in quotes",
    ),
    ("Expected newline", r"^\s*\[[^]]*\]", "nothing but a comment may follow a header"),
    ("Expected newline", "", "one key a line; text stands in quotes"),
    ("Expected '='", "", "a key is followed by = and its value"),
    ("Expected ']]'", "", "close the header with ]]"),
    ("Expected ']'", "", "close the header with ]"),
    ("Unclosed array", "", "close the array with ], and part its elements by commas"),
    ("Unclosed inline table", "", "close the table with }, on the same line"),
    ("Invalid statement", "", "a line is a [header], a key = value, or a # comment"),
    ("Unescaped '\\'", "", "write \\\\ for a backslash, or use 'single quotes'"),
    ("Illegal character", "", "remove the control character"),
    ("invalid character", "", "remove the control character"),
)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        complaint, line = _syntax_error(str(e), text)
        raise ConfigError([Problem(name, line, "", f"not TOML: {complaint}")]) from None
    except RecursionError:
        raise ConfigError([Problem(name, None, "", "is nested too deeply; is it a configuration?")]) from None
    except ValueError as e:  # an integer of more digits than Python reads
        found = re.search(r"[0-9_]{4000,}", text)
        at = text.count("\n", 0, found.start()) + 1 if found else None
        raise ConfigError([Problem(name, at, "", f"number too long; {str(e).split(':')[0]}")]) from None


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    """tomllib's message with our remedy, and the line."""
    lines = text.replace("\r\n", "\n").split("\n")
    match = re.fullmatch(r"(.*) \(at (?:line ([0-9]+), column [0-9]+|end of document)\)", message, re.DOTALL)
    number = len(lines)
    if match:
        message, number = match[1], int(match[2] or len(lines))
    while (
        number > 1 and not lines[number - 1].strip()
    ):  # the end of the document: the last line that says anything
        number -= 1
    line = lines[number - 1]
    for part, pattern, remedy in _REMEDIES:
        if part in message and re.search(pattern, line):
            return f"{message}; {remedy}", number
    return message, number
