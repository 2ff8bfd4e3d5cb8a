# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md, made from the model: `python -m lbd.config > docs/configuration.md`."""

import inspect

from lbd.config import memory
from lbd.config.key import Key
from lbd.config.schema import TABLES, Table

INTRODUCTION = """\
# Configuration

<!-- Made by `python -m lbd.config`; edit the descriptions in lbd/config/ instead. -->

lbd reads one [TOML](https://toml.io/en/v1.0.0) file at start, and again at `lbd reload`. `lbd check FILE`
tells everything that is wrong with it, with line and remedy, and the memory that it will take; it changes
nothing. An annotated example is [conf/lbd.toml](../conf/lbd.toml); `python -m lbd.config schema` prints a
JSON Schema.

- Unknown keys are refused. Every table may be left out; of `[[interface]]` there is at least one.
- A **duration** is a number and a unit (`"500ms"`, `"2s"`, `"15m"`, `"1h"`, `"1d"`), or a number of seconds.
- An **address with a port** is `"192.0.2.10:80"` or `"[2001:db8::10]:80"`. Names are not looked up.
- *required*: the key must be given. Where no default stands, the text says what leaving it out means.
"""


def reference() -> str:
    parts = [INTRODUCTION]
    parts += [_section(table) for table in TABLES.values() if table.path]
    parts.append("## Memory\n\n" + _formula())
    return "\n".join(parts)


def _section(table: Table) -> str:
    lines = [f"## `{table.header}`", ""]
    if table.tag:
        lines += [f'`{table.tag} = "{tag}"`: {inspect.getdoc(model)}' for tag, model in table.tags.items()]
    else:
        lines.append(str(inspect.getdoc(table.models[0])))
    if table.array:
        lines[-1] += " There may be several."
    lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [_row(table, key) for key in table.keys.values() if (*table.path, key.name) not in TABLES]
    return "\n".join([*lines, ""])


def _row(table: Table, key: Key) -> str:
    meaning = str(key.field.description)
    owners = [tag for tag, model in table.tags.items() if key.name in model.model_fields]
    if table.tag and len(owners) < len(table.tags):
        meaning += f" Only with {table.tag} = {', '.join(f'`{o}`' for o in owners)}."
    default = "*required*" if key.field.is_required() else f"`{key.default}`" if key.default else ""
    return f"| `{key.name}` | {key.type_text} | {default} | {meaning} |"


def _formula() -> str:
    """The formula, as memory.py has it."""
    first, formula, terms, rest = inspect.cleandoc(str(memory.__doc__)).split("\n\n")
    return "\n\n".join([first, f"```text\n{formula}\n\n{terms}\n```", rest]).replace("\n    ", "\n") + "\n"
