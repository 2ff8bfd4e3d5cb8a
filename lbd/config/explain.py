# SPDX-License-Identifier: Apache-2.0
"""From an error of pydantic to a sentence that helps: what must stand there, what does, what to do."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

from lbd.config.key import Key
from lbd.config.problem import Loc
from lbd.config.schema import ROOT, TABLES, Path, Table
from lbd.config.value import shown

MISSING = ("missing", "union_tag_not_found")


def true_loc(error: ErrorDetails) -> Loc:
    """The error's path as the file has it: without the tags that pydantic adds, with a missing key."""
    loc: Loc = ()
    for part in error["loc"]:
        table = TABLES.get(names(loc))
        if not (table and part in table.tags and (*loc, part) != error["loc"]):
            loc = (*loc, part)
    if error["type"].startswith("union_tag"):
        loc = (*loc, TABLES[names(loc)].tag)
    return loc


def names(loc: Loc) -> Path:
    return tuple(part for part in loc if isinstance(part, str))


def key_at(loc: Loc) -> Key | None:
    path = names(loc)
    table = TABLES.get(path[:-1]) if path else None
    return table.keys.get(path[-1]) if table else None


def explain(error: ErrorDetails, loc: Loc, value: Any) -> str:
    """The message for an error; `loc` is its path (from true_loc), `value` what the file has there."""
    kind = error["type"]
    key = key_at(loc)
    if kind == "extra_forbidden":
        return _unknown(names(loc), error["loc"])
    if key is None:
        return error["msg"]
    if kind in MISSING:
        return f"is missing; add {key.assignment}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    table = TABLES.get(names(loc))
    element = bool(loc) and isinstance(loc[-1], int)
    if table is not None:
        return _not_a_table(table, key, value, element)
    wanted, remedy = _wanted(key, value, element)
    return f"must be {wanted}, not {_cited(key, value)}; {remedy or _for_example(key)}"


def _wanted(key: Key, value: Any, element: bool) -> tuple[str, str]:
    """What a value must be, and the remedy if there is a better one than an example."""
    if key.choices and (element or key.element is None):
        listed = ", ".join(f'"{c}"' for c in key.choices)
        close = closest(value.lower(), key.choices) if isinstance(value, str) else None
        return (
            f"{'one of ' if len(key.choices) > 1 else ''}{listed}",
            f'did you mean "{close}"?' if close else "",
        )
    if key.kind is bool:
        return "true or false", f"write {key.assignment}, without quotes"
    if key.element is not None and not element:
        if not isinstance(value, list):
            return "an array", f"write it in brackets: {key.assignment}"
        low, high = key.lengths()
        return f"an array of {low} to {high} elements", f"it has {len(value)}: for example {key.assignment}"
    between = f"between {key.range_text(element)}"
    if key.duration or (isinstance(value, int) and not isinstance(value, bool)):
        return between, ""
    remedy = ""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        remedy = "write it without quotes" + ("" if element else f": `{key.name} = {int(value)}`")
    return f"a whole number {between}", remedy


def _cited(key: Key, value: Any) -> str:
    return f"{shown(value)} (seconds)" if key.duration and not isinstance(value, str) else shown(value)


def _for_example(key: Key) -> str:
    return f"for example {key.assignment}" + (" (the default)" if key.example == key.default else "")


def _not_a_table(table: Table, key: Key, value: Any, element: bool) -> str:
    name = ".".join(table.path)
    if table.array and not element:
        if isinstance(value, list):
            return f"there may be at most {key.lengths()[1]}, not {len(value)}; remove some"
        if isinstance(value, dict):
            return f"must be an array of tables; write [[{name}]], with two brackets on each side"
    elif isinstance(value, list):
        return f"must be one table, not an array; write {table.header} once"
    return f"must be a table, not {shown(value)}; write a header {table.header} and its keys below it"


def _unknown(path: Path, raw: tuple[int | str, ...]) -> str:
    """A key that its table doesn't have: misspelt, or in the wrong table."""
    name = path[-1]
    table = TABLES.get(path[:-1], ROOT)
    here: Iterable[str] = table.keys
    if table.tag:
        tag = next(str(part) for part in reversed(raw[:-1]) if part in table.tags)
        if name in table.keys:
            others = " or ".join(f'"{t}"' for t, m in table.tags.items() if name in m.model_fields)
            return f'goes with {table.tag} = {others}, not with "{tag}"; remove it, or change the {table.tag}'
        here = table.tags[tag].model_fields
    close = closest(name, here)
    if close:
        inner = TABLES.get((*table.path, close))
        return f"unknown key; did you mean `{inner.header if inner else close}`?"
    homes = [t.header for t in TABLES.values() if name in t.keys and t is not table and t is not ROOT]
    if homes:
        return f"unknown key in {table.header}; it belongs into {' or '.join(homes)}"
    return f"unknown key; remove it: {table.header} has {', '.join(here)}"


def closest(word: str, known: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(word[:80], list(known), 1, 0.6)
    return found[0] if found else None
