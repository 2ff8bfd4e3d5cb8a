"""Lines of values in TOML files of every spelling."""

from __future__ import annotations

import tomllib

import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.config.position import LineIndex

SPELLINGS = '''\
# comment with "quotes' and [brackets]
top = """
= not a key
[nor a header] \\""" still
"""  # line 2
other = \'\'\'
[[x]]
\'\'\'\'\'
dotted . "quoted \\u0041\\"]" . 'lit]#' = 1
[ service . health ]  # before its parent
type = "a # b ] } ,"
[service]
name = ''
list = [
    # a comment, with a comma
    1, 2,

    [ 3, "]" ], { a = 1, b.c = "}", d = [ 4,
    5 ] },
]
[[many]]
x = 1979-05-27 07:32:00  # a date with a space
[[many]]
[[many.inner]]
y = 1
[many.inner.deep]
z = 0x1f
[[many.inner]]
y = -inf
[[many]]
  inner = [ { y = 1 }, { y = """
""" } ]
'''

LINES = {
    ("top",): 2,
    ("other",): 6,
    ("dotted",): 9,
    ("dotted", 'quoted A"]', "lit]#"): 9,
    ("service", "health", "type"): 11,
    ("service", "health"): 10,
    ("service",): 12,
    ("service", "name"): 13,
    ("service", "list"): 14,
    ("service", "list", 0): 16,
    ("service", "list", 1): 16,
    ("service", "list", 2): 18,
    ("service", "list", 2, 1): 18,
    ("service", "list", 3): 18,
    ("service", "list", 3, "b", "c"): 18,
    ("service", "list", 3, "d", 1): 19,
    ("many",): 21,
    ("many", 0): 21,
    ("many", 0, "x"): 22,
    ("many", 1): 23,
    ("many", 1, "inner", 0): 24,
    ("many", 1, "inner", 0, "y"): 25,
    ("many", 1, "inner", 0, "deep"): 26,
    ("many", 1, "inner", 0, "deep", "z"): 27,
    ("many", 1, "inner", 1, "y"): 29,
    ("many", 2, "inner"): 31,
    ("many", 2, "inner", 1, "y"): 31,
    # what is not there: the closest thing around it
    ("many", 0, "missing"): 21,
    ("many", 1, "inner", 1, "missing", 3): 28,
    ("service", "health", "missing"): 10,
    ("nothing",): 1,
}


def test_spellings() -> None:
    tomllib.loads(SPELLINGS)
    for text in (SPELLINGS, SPELLINGS.replace("\n", "\r\n")):
        index = LineIndex(text)
        assert {loc: index.line(loc) for loc in LINES} == LINES


def test_empty() -> None:
    assert LineIndex("").line(("a", 0)) == 1
    assert LineIndex("# nothing").line(()) == 1


KEYS = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), st.text(min_size=1, max_size=8))
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(),
    st.datetimes(),
    st.dates(),
    st.times(),
)
VALUES = st.recursive(
    SCALARS, lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(KEYS, v, max_size=4)), max_leaves=12
)


def leaves(value: object, loc: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in leaves(v, (*loc, k))]
    if isinstance(value, list) and value:
        return [leaf for i, v in enumerate(value) for leaf in leaves(v, (*loc, i))]
    return [loc]


@settings(deadline=None)  # a shared machine may stand still for a while
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_every_value_that_tomllib_reads_has_a_place(data: dict[str, object]) -> None:
    text = tomlkit.dumps(data)
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # tomlkit writes some control characters as they are
        return
    index = LineIndex(text)
    lines = text.replace("\r\n", "\n").split("\n")
    for loc in leaves(read):
        assert loc in index._at or not loc
        assert 1 <= index.line(loc) <= len(lines)


def numbered(value: object, count: list[int]) -> object:
    """The same shape, each leaf a text that is nowhere else."""
    if isinstance(value, dict):
        return {k: numbered(v, count) for k, v in value.items()}
    if isinstance(value, list):
        return [numbered(v, count) for v in value]
    count[0] += 1
    return f"<{count[0]}>"


PLAIN = st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), VALUES, max_size=5)


@settings(deadline=None)  # a shared machine may stand still for a while
@given(PLAIN)
def test_the_line_holds_the_value(data: dict[str, object]) -> None:
    text = tomlkit.dumps(numbered(data, [0]))
    read = tomllib.loads(text)
    index = LineIndex(text)
    lines = text.split("\n")
    for loc in leaves(read):
        value: object = read
        for part in loc:
            value = value[part]  # type: ignore[index]
        if isinstance(value, str):
            assert value in lines[index.line(loc) - 1]
