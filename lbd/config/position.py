# SPDX-License-Identifier: Apache-2.0
"""On which line of a TOML file each value stands.

tomllib gives values without positions. This walks a text that tomllib has already accepted, so it need not
check anything: it only has to know where keys and values begin and end (TOML 1.0). A path is as pydantic's
`loc`, with a number for each element of an array: ("service", 1, "real_server", 0, "weight").
"""

import re
from bisect import bisect_right

from lbd.config.problem import Loc

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")  # numbers, dates (a space may part date and time), booleans
_ESCAPE = re.compile(r'\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(["\\btnfre]))')
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


def _unescape(match: re.Match[str]) -> str:
    if match[3]:
        return _ESCAPED.get(match[3], match[3])
    return chr(int(match[1] or match[2], 16))


class LineIndex:
    """Where the values of one text stand."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._starts = [0, *(m.end() for m in re.finditer("\n", self._text))]
        self._at: dict[Loc, int] = {(): 0}
        self._count: dict[Loc, int] = {}  # elements so far of the arrays made by [[headers]]
        self._walk()

    def line(self, loc: Loc) -> int:
        """Line of a value, or of the closest thing around it that the text has."""
        while loc not in self._at:
            loc = loc[:-1]
        return bisect_right(self._starts, self._at[loc])

    def _walk(self) -> None:
        text, pos = self._text, 0
        table: Loc = ()
        while (pos := self._skip(pos)) < len(text):
            if text.startswith("[[", pos):
                start = pos
                keys, pos = self._keys(pos + 2)
                path = (*self._resolve(keys[:-1]), keys[-1])
                number = self._count.get(path, 0)
                self._count[path] = number + 1
                table = (*path, number)
                self._note((), path, start)
                self._note((), table, start)
                pos = self._skip(pos) + 2
            elif text[pos] == "[":
                start = pos
                keys, pos = self._keys(pos + 1)
                table = self._resolve(keys)
                self._at[table] = start  # NB: over the position that a subtable's header may have given it
                self._note((), table, start)
                pos = self._skip(pos) + 1
            else:
                pos = self._pair(table, pos)

    def _skip(self, pos: int) -> int:
        match = _BLANK.match(self._text, pos)
        assert match is not None  # it matches the empty string
        return match.end()

    def _resolve(self, keys: Loc) -> Loc:
        """A header's keys as a path: where a key names an array of tables, its last element is meant."""
        path: Loc = ()
        for key in keys:
            path += (key,)
            if path in self._count:
                path += (self._count[path] - 1,)
        return path

    def _note(self, base: Loc, path: Loc, pos: int) -> None:
        for length in range(len(base) + 1, len(path) + 1):
            self._at.setdefault(path[:length], pos)

    def _keys(self, pos: int) -> tuple[Loc, int]:
        """A dotted key, and where it ends."""
        keys: list[str] = []
        while True:
            pos = self._skip(pos)
            if match := _BARE.match(self._text, pos):
                keys.append(match[0])
            else:
                match = _STRING.match(self._text, pos)
                assert match is not None  # tomllib has seen a key here
                body = match[0][1:-1]
                keys.append(_ESCAPE.sub(_unescape, body) if match[0][0] == '"' else body)
            pos = self._skip(match.end())
            if self._text[pos] != ".":
                return tuple(keys), pos
            pos += 1

    def _pair(self, table: Loc, pos: int) -> int:
        """`key = value`: notes it, returns its end."""
        start = pos
        keys, pos = self._keys(pos)
        path = table + keys
        self._note(table, path, start)
        return self._value(path, self._skip(pos + 1))

    def _value(self, path: Loc, pos: int) -> int:
        first = self._text[pos]
        if first == "[":
            return self._array(path, pos + 1)
        if first == "{":
            pos = self._skip(pos + 1)
            while self._text[pos] != "}":
                pos = self._skip(self._pair(path, pos))
                if self._text[pos] == ",":
                    pos = self._skip(pos + 1)
            return pos + 1
        match = _STRING.match(self._text, pos) if first in "\"'" else _SCALAR.match(self._text, pos)
        assert match is not None
        return match.end()

    def _array(self, path: Loc, pos: int) -> int:
        number = 0
        pos = self._skip(pos)
        while self._text[pos] != "]":
            self._at.setdefault((*path, number), pos)
            pos = self._skip(self._value((*path, number), pos))
            if self._text[pos] == ",":
                pos = self._skip(pos + 1)
            number += 1
        return pos + 1
