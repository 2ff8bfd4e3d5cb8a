# SPDX-License-Identifier: Apache-2.0
"""A problem of a configuration: where, what, and what to do. And the error that carries all of them."""

from dataclasses import dataclass

Loc = tuple[str | int, ...]  # path of a value in the file: ("service", 1, "real_server", 0, "weight")


@dataclass(frozen=True, slots=True)
class Problem:
    file: str
    line: int | None  # None: about the file as a whole
    field: str  # "service[1].real_server[0].weight"; "" if about no field
    message: str
    severity: str = "error"  # or "warning": the configuration works, but perhaps not as meant

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        warning = "warning: " if self.severity == "warning" else ""
        return f"{where}: {warning}{self.field + ': ' if self.field else ''}{self.message}"


class ConfigError(Exception):
    """A configuration that can't be used. Says all that is wrong with it, in the file's order."""

    def __init__(self, problems: list[Problem], warnings: list[Problem] | None = None) -> None:
        super().__init__(problems, warnings)
        self.problems = tuple(problems)
        self.warnings = tuple(warnings or ())

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems)


def field_text(loc: Loc) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            # a key that TOML would have in quotes is shown so, and never breaks the line
            name = part if part.isascii() and part.replace("-", "_").isidentifier() else repr(part[:60])
            text += f".{name}" if text else name
    return text
