# SPDX-License-Identifier: Apache-2.0
"""The model looked at from outside: which tables there are, which keys each has, and its JSON Schema.

Messages (explain.py) and the reference (reference.py) are made from this, so that neither can disagree with
the model. A key's type, range and default are in key.py.
"""

import types
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from lbd.config.key import Key, bare
from lbd.config.model import Config

Path = tuple[str, ...]  # of a table, without the numbers: ("service", "real_server")


@dataclass(frozen=True)
class Table:
    path: Path
    models: tuple[type[BaseModel], ...]  # several: which one it is, the key `tag` says
    array: bool  # written [[path]]
    tag: str = ""

    @property
    def header(self) -> str:
        name = ".".join(self.path)
        if not name:
            return "the top level"
        return f"[[{name}]]" if self.array else f"[{name}]"

    @cached_property
    def keys(self) -> dict[str, Key]:
        """Of all its models, tables within it included."""
        keys = {n: Key(n, f) for model in self.models for n, f in model.model_fields.items()}
        if self.tag:
            keys[self.tag] = Key(self.tag, keys[self.tag].field, tuple(self.tags))
        return keys

    @cached_property
    def tags(self) -> dict[str, type[BaseModel]]:
        return {get_args(m.model_fields[self.tag].annotation)[0]: m for m in self.models} if self.tag else {}


def _models(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models that a value may be of; none if it is no table."""
    kind = bare(annotation)
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(m for m in map(bare, members) if isinstance(m, type) and issubclass(m, BaseModel))


def _tag(models: tuple[type[BaseModel], ...]) -> str:
    if len(models) < 2:
        return ""
    fields = models[0].model_fields.items()
    return next(name for name, f in fields if f.is_required() and get_origin(f.annotation) is Literal)


def _tables(path: Path, model: type[BaseModel]) -> list[Table]:
    found = []
    for name, field in model.model_fields.items():
        key = Key(name, field)
        models = _models(key.element or field.annotation)
        if models:
            found.append(Table((*path, name), models, key.element is not None, _tag(models)))
            for inner in models:
                found += _tables((*path, name), inner)
    return found


ROOT = Table((), (Config,), False)
TABLES: dict[Path, Table] = {table.path: table for table in [ROOT, *_tables((), Config)]}


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file."""
    document = Config.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document,
        "title": "lbd configuration",
    }
