"""Every field of the configuration against values that it must not take, and whole files against chance.

The fields come from the model, so that a new one is under test at once; here is only what is bad for each
kind. What has to come is always the same: ConfigError, the right line and field, a remedy; nothing else.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
import tomlkit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbd.config import Config, ConfigError, loads
from lbd.config.key import Key, bare
from lbd.config.schema import TABLES

# All tables and all keys, each key on a line of its own. GOOD[header] = its lines.
GOOD: list[tuple[str, dict[str, str]]] = [
    ("[daemon]", {"run_dir": '"/run/lbd"', "log_level": '"info"', "group": '"lbd"'}),
    (
        "[workers]",
        {
            "count": "2",
            "cores": "[2, 3]",
            "poll": '"busy"',
            "fifo_priority": "1",
            "heartbeat_limit": '"1s"',
        },
    ),
    (
        "[tables]",
        {
            "connections_ipv4": "1024",
            "connections_ipv6": "1024",
            "frames": "8192",
            "services": "16",
            "real_servers": "16",
            "persistence_templates": "64",
            "hugepages": '"off"',
            "frame_size": "4096",
        },
    ),
    ("[[interface]]", {"name": '"eth0"', "zero_copy": '"off"', "ring": "1024", "attach": '"native"'}),
    (
        "[[local_address]]",
        {"address": '"10.0.0.10"', "interface": '"eth0"', "ports": '"2000-3000"', "manage": "true"},
    ),
    (
        "[timeouts]",
        {
            "tcp_established": '"15m"',
            "tcp_syn_sent": "120",
            "tcp_syn_recv": '"60s"',
            "tcp_fin_wait": '"2m"',
            "tcp_time_wait": '"2m"',
            "tcp_close": '"10s"',
            "tcp_close_wait": "60.0",
            "tcp_last_ack": '"30s"',
            "udp": '"300000ms"',
            "icmp": '"60s"',
            "sctp_established": '"15m"',
            "sctp_shutdown": '"5s"',
        },
    ),
    ("[metrics]", {"listen": '"[::1]:9911"'}),
    ("[packet]", {"verify_checksums": "true", "return_path": '"route"', "port_rest": '"2s"', "icmp_rate": "0",
                 "fragment_timeout": '"9s"'}),
    (
        "[[service]]",
        {
            "name": '"web"',
            "address": '"192.0.2.10:80"',
            "protocol": '"udp"',
            "addresses": '["192.0.2.11:80", "192.0.2.12:80/udp"]',
            "fwmark": "1",
            "persistence": '"6m"',
            "persistence_prefix": "24",
            "one_packet": "false",
            "scheduler": '"mh"',
            "scheduler_flags": "[]",
            "hash_target": '"sip"',
            "interface": '"eth0"',
            "manage": "true",
            "mode": '"tunnel"',
            "tcp_established": '"1h"',
            "tcp_fin": '"1m"',
            "udp_timeout": '"10s"',
            "sorry_server": '"10.0.1.99:80"',
            "slow_start": '"60s"',
            "expire_nodest": "true",
            "expire_quiescent": "false",
            "quic": '"quic-lb"',
            "quic_config": "1",
        },
    ),
    ("[service.tunnel]", {"type": '"gue"', "port": "6080", "checksum": '"none"', "source": '"10.0.0.10"'}),
    (
        "[service.health]",
        {
            "type": '"http"',
            "interval": '"2s"',
            "timeout": '"1s"',
            "rise": "2",
            "fall": "3",
            "port": "8081",
            "path": '"/"',
            "status": "[200]",
        },
    ),
    (
        "[[service.real_server]]",
        {
            "address": '"10.0.1.1:80"',
            "weight": "1",
            "slow_start": '"0s"',
            "quic_id": '"c001"',
            "upper_threshold": "9",
            "lower_threshold": "8",
        },
    ),
    ("[service.real_server.tunnel]", {"type": '"gue"', "port": "6081", "checksum": '"full"'}),
    ("[[tunnel]]", {"name": '"edge"', "type": '"gre"', "local": '"10.0.0.10"', "remote": '"203.0.113.9"'}),
    (
        "[[snat]]",
        {
            "name": '"office"',
            "source": '["10.9.0.0/16"]',
            "destination": '["0.0.0.0/0"]',
            "protocol": '"tcp"',
            "in_interface": '"eth0"',
            "out_interface": '"eth0"',
            "tcp_established": '"124m"',
        },
    ),
    ("[[snat.pool]]", {"address": '"203.0.113.5"', "interface": '"eth0"', "ports": '"2000-3000"', "manage": "true"}),
    ("[[neighbor]]", {"interface": '"eth0"', "address": '"10.0.1.1"', "mac": '"02:00:00:00:00:01"'}),
    ("[[route]]", {"destination": '"10.0.1.0/24"', "gateway": '"10.0.0.1"', "interface": '"eth0"'}),
]

# without it, what other keys of the good file say is refused
OTHERS_NEED = {
    ("[[local_address]]", "interface"),
    ("[[service]]", "mode"),
    ("[service.tunnel]", "type"),
    ("[[snat.pool]]", "interface"),
    ("[[service]]", "protocol"),
    ("[[service]]", "quic"),
    ("[[service.real_server]]", "quic_id"),
}
NAMED = [(table, key) for table in TABLES.values() if table.path for key in table.keys.values()]
APART = {("[[service]]", "quic_id_length")}  # goes with quic = "dpvs", and nothing else of QUIC does: test_config_problem.py
KEYS = [(t.header, key) for t, key in NAMED if (*t.path, key.name) not in TABLES and (t.header, key.name) not in APART]
IDS = [f"{header}{key.name}" for header, key in KEYS]
RANGED = [(h, k) for h, k in KEYS if k.bounds(k.element is not None)[0] is not None]


def text_with(header: str, name: str, literal: str) -> tuple[str, int]:
    """The good file with one value replaced, and the line of that."""
    lines, line = [], 0
    for title, keys in GOOD:
        lines.append(title)
        for key, value in keys.items():
            if (title, key) == (header, name):
                value, line = literal, len(lines) + 1
            lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n", line


def field_text(header: str, name: str) -> str:
    parts = header.strip("[]").split(".")
    headers = dict(GOOD)  # by the whole path: [[tunnel]] is an array, [service.tunnel] is none
    arrays = [f"[[{'.'.join(parts[: i + 1])}]]" in headers for i in range(len(parts))]
    return ".".join(p + "[0]" * array for p, array in zip(parts, arrays, strict=True)) + f".{name}"


def test_the_good_file_is_good_and_complete() -> None:
    config = loads(text_with("", "", "")[0])
    useless = ["service[0].tcp_established", "service[0].tcp_fin"]
    assert [p.field for p in config.warnings] == useless, "TCP's keys, for a service of UDP"
    assert {(header, key) for header, keys in GOOD for key in keys} == {(h, k.name) for h, k in KEYS}


# --- bad values by kind, as TOML literals ---


def toml(value: str) -> str:
    """A text as a basic string."""
    return "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value).join('""')


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HUGE = st.integers(1 << 64, 1 << 300)
NUMBERS = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), HUGE, HUGE.map(lambda n: -n)).map(str)
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr), st.sampled_from(["nan", "-inf", "inf"])
)
TRUTH = st.sampled_from(["true", "false"])
DATES = st.sampled_from(["2026-11-21", "07:32:00", "2026-11-21T07:32:00Z"])
ARRAYS = st.sampled_from(["[]", "[[]]", "[[[1]]]", '["a"]', "[{}]", "[true]"])
TABLES_INLINE = st.sampled_from(["{}", '{ type = "tcp" }', "{ a = { b = 1 } }"])
OTHERS = st.one_of(DATES, ARRAYS, TABLES_INLINE)


def outside(key: Key, element: bool = False) -> st.SearchStrategy[str]:
    low, high = key.bounds(element)
    top = int(high)
    below, above = st.integers(-(1 << 63), int(low) - 1), st.integers(top + 1, 1 << 300)
    return st.one_of(below, above, st.sampled_from([int(low) - 1, top + 1])).map(str)


def bad(key: Key) -> st.SearchStrategy[str]:
    if key.choices and key.element is not None:
        words = st.one_of(TEXT.filter(lambda t: t not in key.choices).map(toml), NUMBERS, TRUTH, TABLES_INLINE)
        return st.one_of(words.map("[{}]".format), words, FLOATS, DATES, st.just("[[]]"))
    if key.choices:
        return st.one_of(
            TEXT.filter(lambda t: t not in key.choices).map(toml), NUMBERS, FLOATS, TRUTH, OTHERS
        )
    if key.element is not None and bare(key.element) is not int:
        elements = st.one_of(TEXT.map(lambda t: t + " \t").map(toml), NUMBERS, TRUTH, FLOATS, TABLES_INLINE, st.just("[]"))
        return st.one_of(elements.map("[{}]".format), NUMBERS, TEXT.map(toml), TRUTH, FLOATS, DATES, TABLES_INLINE)
    if key.element is not None:
        if key.bounds(element=True)[0] is None:  # texts of a form: no number at all, and no text that ends so
            elements = st.one_of(NUMBERS, TEXT.map(lambda t: toml(t + " \t")), st.just(toml("10.0.0.5 ")))
        else:
            elements = st.one_of(outside(key, element=True), TEXT.map(toml))
        elements = st.one_of(elements, TRUTH, FLOATS, DATES, TABLES_INLINE, st.just("[]"))
        return st.one_of(
            elements.map("[{}]".format), NUMBERS, TEXT.map(toml), TRUTH, FLOATS, DATES, TABLES_INLINE
        )
    if key.kind is bool:
        return st.one_of(TEXT.map(toml), st.just('"true"'), NUMBERS, FLOATS, OTHERS)
    if key.kind is int:
        return st.one_of(TEXT.map(toml), st.just('"2"'), outside(key), FLOATS, TRUTH, OTHERS)
    if key.duration:
        words = TEXT.filter(lambda t: not t[:1].isdigit())
        return st.one_of(
            words.map(toml), outside(key), st.sampled_from(["nan", "inf", "-inf", "-0.1"]), TRUTH, OTHERS
        )
    # the rest are texts of a form that no such text has
    kept = {"listen": [""]}.get(key.name, [])
    words = TEXT.map(lambda t: t + " \t").filter(lambda t: t not in kept)
    return st.one_of(words.map(toml), NUMBERS, FLOATS, TRUTH, OTHERS)


@pytest.mark.parametrize(("header", "key"), KEYS, ids=IDS)
def test_bad_values_are_refused(header: str, key: Key) -> None:
    @settings(max_examples=20, deadline=None)
    @given(bad(key))
    def one(literal: str) -> None:
        text, line = text_with(header, key.name, literal)
        with pytest.raises(ConfigError) as caught:
            loads(text, "x.toml")
        where = field_text(header, key.name)
        [problem] = [p for p in caught.value.problems if p.field.startswith(where)]
        assert problem.line == line
        assert problem.field == where or problem.field == f"{where}[0]"
        assert "; " in problem.message, "no remedy"
        assert "\n" not in str(problem) and len(str(problem)) < 400
        assert "Input should" not in problem.message, "pydantic's words"

    one()


@pytest.mark.parametrize(("header", "key"), KEYS, ids=IDS)
def test_any_value_at_all(header: str, key: Key) -> None:
    """Loads, or says why not; nothing else."""

    @settings(max_examples=20, deadline=None)
    @given(st.one_of(TEXT.map(toml), NUMBERS, FLOATS, TRUTH, OTHERS))
    def one(literal: str) -> None:
        text, _ = text_with(header, key.name, literal)
        try:
            config = loads(text)
        except ConfigError as e:
            assert all(1 <= (p.line or 0) <= text.count("\n") for p in e.problems)
        else:
            assert isinstance(config, Config)

    one()


@pytest.mark.parametrize(("header", "key"), RANGED, ids=[f"{h}{k.name}" for h, k in RANGED])
def test_the_ends_of_the_range(header: str, key: Key) -> None:
    """The least and the greatest are taken; a rule between fields may refuse them, not as out of range."""
    element = key.element is not None
    for end in key.bounds(element):
        text, _ = text_with(header, key.name, f"[{end}]" if element else f"{end}")
        try:
            loads(text)
        except ConfigError as e:
            assert not any("between" in p.message for p in e.problems)


@pytest.mark.parametrize(("header", "key"), KEYS, ids=IDS)
def test_required_or_not(header: str, key: Key) -> None:
    text, line = text_with(header, key.name, "")
    lines = text.split("\n")
    del lines[line - 1]
    try:
        loads("\n".join(lines))
        assert not key.field.is_required()
    except ConfigError as e:
        assert key.field.is_required() or (header, key.name) in OTHERS_NEED
        assert any(
            f"add `{key.name} = " in p.message or "needs `interface`" in p.message for p in e.problems
        ) or (header == "[[service]]" or (header, key.name) in OTHERS_NEED)


# --- whole files ---

GOOD_TEXT = text_with("", "", "")[0]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_chance(content: bytes) -> None:
    try:
        loads(content.decode("utf-8", "replace"))
    except ConfigError as e:
        assert e.problems and all(p.message for p in e.problems)


@settings(deadline=None)
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    """A good file with a piece cut out, doubled or replaced."""
    text = GOOD_TEXT
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        piece = data.draw(
            st.sampled_from(["", "[", "]", "=", '"', "\n", "[[service]]\n", "1", "{}", "\x00", "é", "#", "."])
        )
        text = text[:start] + piece + data.draw(st.sampled_from(["", text[start:end] * 2])) + text[end:]
    try:
        loads(text)
    except ConfigError as e:
        lines = text.count("\n") + 1
        assert all(p.line is None or 1 <= p.line <= lines for p in e.problems)
        assert list(e.problems) == sorted(e.problems, key=lambda p: p.line or 0)


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda v: st.one_of(
        st.lists(v, max_size=3),
        st.dictionaries(
            st.sampled_from([k.name for _, k in NAMED] + ["type", "x", "http", "tcp"]), v, max_size=4
        ),
    ),
    max_leaves=15,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*Config.model_fields, "x"]), ANYTHING))
@example({"service": [{"health": {"type": "http", "http": {"path": 1}, "tcp": 2}}]})
@example({"service": {"health": {"type": "tcp"}}})
@example({"service": [3, {}, []]})
def test_shapes(data: dict[str, Any]) -> None:
    """Tables where values should be and the other way round."""

    def without_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_none(v) for k, v in value.items() if v is not None}
        return [without_none(v) for v in value if v is not None] if isinstance(value, list) else value

    try:
        loads(tomlkit.dumps(without_none(data)))
    except ConfigError as e:
        assert "Input should" not in str(e)


# --- valid ones ---

V4 = st.integers(0x0B000000, 0x7EFFFFFF).map(ipaddress.IPv4Address)
V6 = st.integers(0x2001 << 112, (0x2002 << 112) - 1).map(ipaddress.IPv6Address)
SECONDS = st.one_of(
    st.integers(1, 10000), st.floats(0.1, 1000), st.sampled_from(["100ms", "1.5s", "15m", "2d"])
)
MACS = st.binary(min_size=5, max_size=5).map(lambda b: "02:" + b.hex(":"))


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    interfaces = draw(
        st.lists(
            st.from_regex(r"[a-z][a-z0-9@_-]{0,14}", fullmatch=True), min_size=1, max_size=4, unique=True
        )
    )
    one = st.sampled_from(interfaces)
    # an address of each family for each purpose, all different
    v4 = iter(draw(st.lists(V4, min_size=20, max_size=20, unique=True)))
    v6 = iter(draw(st.lists(V6, min_size=20, max_size=20, unique=True)))
    data: dict[str, Any] = {
        "interface": [{"name": name, "ring": draw(st.sampled_from([64, 2048]))} for name in interfaces],
        "local_address": [{"address": str(next(v)), "interface": draw(one)} for v in (v4, v6)],
        "timeouts": draw(st.dictionaries(st.sampled_from(list(dict(GOOD)["[timeouts]"])), SECONDS)),
        "workers": draw(st.fixed_dictionaries({}, optional={"count": st.integers(1, 16)})),
        "packet": draw(st.fixed_dictionaries({}, optional={"verify_checksums": st.booleans()})),
        "metrics": draw(st.sampled_from([{}, {"listen": ""}, {"listen": "[::]:1"}])),
        "service": [],
    }
    for number in range(draw(st.integers(0, 3))):
        addresses = draw(st.sampled_from([v4, v6]))

        def endpoint(source: Any = addresses) -> str:
            addr, port = next(source), draw(st.integers(1, 65535))
            return f"{addr}:{port}" if addr.version == 4 else f"[{addr}]:{port}"

        service: dict[str, Any] = {"name": f"s{number}", "address": endpoint()}
        service["protocol"] = draw(st.sampled_from(["tcp", "udp"]))
        servers = range(draw(st.integers(0, 3)))
        service["real_server"] = [
            {"address": endpoint(), "weight": draw(st.integers(0, 65535))} for _ in servers
        ]
        if draw(st.booleans()):
            service["health"] = draw(
                st.sampled_from([{"type": "tcp"}, {"type": "http", "path": "/a?b", "status": [200, 404]}])
            )
        if draw(st.booleans()):
            service["tcp_established"] = draw(SECONDS)
        data["service"].append(service)
    data["neighbor"] = [{"interface": draw(one), "address": "fe80::1", "mac": draw(MACS)}]
    data["route"] = [{"destination": "0.0.0.0/0", "interface": draw(one)}]
    return data


@settings(deadline=None)
@given(configurations())
def test_round_trip(data: dict[str, Any]) -> None:
    """What was read, written and read again, is the same."""
    config = loads(tomlkit.dumps(data))
    assert [s.name for s in config.service] == [s["name"] for s in data["service"]]
    plain = config.to_plain()
    json.dumps(plain)
    again = loads(tomlkit.dumps(plain))
    assert again == config
    assert Config.model_validate(config.model_dump()) == config


def test_the_good_file_round_trips() -> None:
    config = loads(GOOD_TEXT)
    assert loads(tomlkit.dumps(config.to_plain())) == config
    assert config.to_plain()["timeouts"] == {"tcp_time_wait": "2m", "sctp_shutdown": "5s"}
