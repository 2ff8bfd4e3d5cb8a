# SPDX-License-Identifier: Apache-2.0
"""One key of the configuration as people read of it: type, range, default and example, in TOML's spelling."""

import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, PlainValidator
from pydantic.fields import FieldInfo

from lbd.config import address, snat, value
from lbd.config.value import duration_text


def bare(annotation: Any) -> Any:
    """A type without Annotated and without `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
            continue
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if get_origin(annotation) not in (Union, types.UnionType) or len(rest) != 1:
            return annotation
        annotation = rest[0]


def _metadata(annotation: Any) -> list[Any]:
    """What Annotated adds within a type, also beside `| None`."""
    if get_origin(annotation) is Annotated:
        inner, *added = get_args(annotation)
        return [m for a in added for m in (a.metadata if isinstance(a, FieldInfo) else [a])] + _metadata(
            inner
        )
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for member in get_args(annotation) for m in _metadata(member)]
    return []


@dataclass(frozen=True)
class Key:
    name: str
    field: FieldInfo
    tags: tuple[str, ...] = ()  # the key tells the kind of its table: the values of all kinds

    @cached_property
    def kind(self) -> Any:
        """Its type; of an array, `tuple[element, ...]`."""
        return bare(self.field.annotation)

    @cached_property
    def element(self) -> Any:
        """Of an array: what its elements are, with their metadata. None if it is no array."""
        return get_args(self.kind)[0] if get_origin(self.kind) is tuple else None

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """Of an array: those of its elements."""
        kind = self.kind if self.element is None else bare(self.element)
        return self.tags or (get_args(kind) if get_origin(kind) is Literal else ())

    @cached_property
    def metadata(self) -> list[Any]:
        return [*self.field.metadata, *_metadata(self.field.annotation)]

    @property
    def duration(self) -> bool:
        return self.kind is float

    def bounds(self, element: bool = False) -> tuple[Any, Any]:
        """Least and greatest value, of the key or of its elements."""
        metadata = _metadata(self.element) if element else self.metadata
        low = next((m.ge for m in metadata if isinstance(m, annotated_types.Ge)), None)
        high = next((m.le for m in metadata if isinstance(m, annotated_types.Le)), None)
        return low, high

    def lengths(self) -> tuple[int, int | None]:
        """Least and greatest number of elements."""
        low = next((m.min_length for m in self.metadata if isinstance(m, annotated_types.MinLen)), 0)
        return low, next((m.max_length for m in self.metadata if isinstance(m, annotated_types.MaxLen)), None)

    def range_text(self, element: bool = False) -> str:
        low, high = self.bounds(element)
        return f"{duration_text(low)} and {duration_text(high)}" if self.duration else f"{low} and {high}"

    @property
    def default(self) -> str:
        """As TOML; empty if there is none."""
        default = self.field.default
        if self.field.is_required() or default is None:
            return ""
        if self.duration:
            return f'"{duration_text(default)}"'
        if isinstance(default, bool | int) or (isinstance(default, tuple) and self.element is not None):
            return json.dumps(default)
        return json.dumps(str(default))

    @property
    def example(self) -> str:
        """A good value, as TOML."""
        if self.tags:
            return json.dumps(self.tags[0])
        return json.dumps(self.field.examples[0]) if self.field.examples else self.default

    @property
    def assignment(self) -> str:
        return f"`{self.name} = {self.example}`"

    @property
    def type_text(self) -> str:
        """Its type with its range, for the reference."""
        if self.choices:
            listed = " \\| ".join(f"`{json.dumps(c)}`" for c in self.choices)
            return listed if self.element is None else f"array of {listed}"
        if self.element is not None and (read := [m for m in _metadata(self.element) if isinstance(m, PlainValidator)]):
            return f"array of {_READ[read[0].func]}"
        if self.element is not None:
            return f"array of integers, each between {self.range_text(element=True)}"
        if self.kind is bool:
            return "true or false"
        if self.kind is int:
            two = any(isinstance(m, AfterValidator) for m in self.metadata)
            return f"{'power of two' if two else 'integer'} between {self.range_text()}"
        if self.duration:
            return f"duration between {self.range_text()}"
        return next(_READ[m.func] for m in self.metadata if isinstance(m, PlainValidator))


_READ: dict[Callable[..., Any], str] = {
    value.read_ports: 'ports, "FIRST-LAST"',
    value.read_name: "name",
    value.read_interface: "interface name",
    value.read_run_dir: "absolute path",
    value.read_request_path: "path",
    value.read_server_id: "hexadecimal digits",
    address.read_address: "address",
    address.read_next_hop: "address",
    address.read_endpoint: '"ADDRESS:PORT"',
    address.read_any_endpoint: '"ADDRESS:PORT" or "ADDRESS"',
    address.read_point: '"ADDRESS:PORT" or "ADDRESS:PORT/PROTOCOL"',
    address.read_listen: '"ADDRESS:PORT" or ""',
    address.read_network: '"ADDRESS/LENGTH"',
    address.read_mac: "MAC address",
    snat.read_range: '"ADDRESS/LENGTH", "FIRST-LAST", "ADDRESS"',
}
