# SPDX-License-Identifier: Apache-2.0
"""Plain values of the configuration: numbers, names, paths, durations, port ranges (addresses: address.py).

Every `read_…` takes a value as TOML gives it, or what it would return itself, and raises `refusal(…)`: what
must stand there, what stands there, the remedy. Nothing here looks at the host.
"""

import math
import re
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator, Strict, WithJsonSchema


def shown(value: object) -> str:
    """A value as a message cites it: in TOML's spelling, short, whatever it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "…"
        return f'"{"".join(c if c.isprintable() else _escape(c) for c in text)}"'
    if isinstance(value, int):
        # NB: beyond 4300 digits str() of an int raises
        return str(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, dict):
        return "a table"
    return f"the {type(value).__name__} {value}"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def refusal(wanted: str, value: object, remedy: str) -> ValueError:
    return ValueError(f"must be {wanted}, not {shown(value)}; {remedy}")


# --- numbers ------------------------------------------------------------------------------------------------


def _power_of_two(value: int) -> int:
    if 0 < value < 1 << 40 and value & (value - 1):  # outside of this the field's range complains
        below = 1 << (value.bit_length() - 1)
        raise refusal("a power of two", value, f"the nearest are {below} and {2 * below}")
    return value


Int = Annotated[int, Strict()]  # without Strict, pydantic takes "5", 5.0 and true for 5 and 1
Bool = Annotated[bool, Strict()]
PowerOfTwo = Annotated[int, Strict(), AfterValidator(_power_of_two)]


class PortRange(NamedTuple):
    """Ports from lo to hi, both included."""

    lo: int
    hi: int

    def __str__(self) -> str:
        return f"{self.lo}-{self.hi}"


def read_ports(value: object) -> PortRange:
    if isinstance(value, PortRange):
        return value
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", value) if isinstance(value, str) else None
    if match is None:
        raise refusal('a range of ports such as "10240-32767"', value, "write FIRST-LAST in quotes")
    lo, hi = int(match[1]), int(match[2])
    if not 1024 <= lo <= hi <= 65535:
        fit = PortRange(*(min(max(port, 1024), 65535) for port in sorted((lo, hi))))
        raise refusal("within 1024-65535, the lower port first", value, f'write "{fit}"')
    return PortRange(lo, hi)


PortRangeValue = Annotated[
    PortRange,
    PlainValidator(read_ports),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"}),
]


# --- durations ----------------------------------------------------------------------------------------------

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_DURATION_SCHEMA = {
    "anyOf": [{"type": "string", "pattern": f"^{_DURATION.pattern}$"}, {"type": "number", "minimum": 0}]
}
_UNIT_NAMES = {
    "sec": "s",
    "second": "s",
    "min": "m",
    "minute": "m",
    "hr": "h",
    "hour": "h",
    "day": "d",
    "msec": "ms",
}


def read_duration(value: object) -> float:
    """Seconds, to the microsecond, so that duration_text() gives the same again."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refusal('a duration such as "15m"', value, "or write a number of seconds")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise refusal('a duration such as "15m"', value, _duration_remedy(value))
        return round(float(match[1]) * UNITS[match[2]], 6)
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise refusal('a duration such as "15m"', value, "or write a number of seconds")
    return round(seconds, 6)


def _duration_remedy(text: str) -> str:
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", text.lower())
    if match and not match[2]:
        return f'add the unit: "{match[1]}s" is {match[1]} seconds'
    if match:
        unit = match[2] if match[2] in UNITS else _UNIT_NAMES.get(match[2].rstrip("s"), match[2])
        if _DURATION.fullmatch(match[1] + unit):
            return f'write "{match[1]}{unit}"'
    return "write one number and one unit: ms, s, m, h or d"


def duration_text(seconds: float) -> str:
    """The shortest spelling: 900.0 is "15m"."""
    for unit, factor in reversed(UNITS.items()):
        count = round(seconds / factor)
        if count >= 1 and math.isclose(count * factor, seconds, rel_tol=1e-12):
            return f"{count}{unit}"
    return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms"


Duration = Annotated[
    float,
    BeforeValidator(read_duration),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema(_DURATION_SCHEMA),
]


# --- names and paths ----------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")


def read_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise refusal('a name such as "web-1"', value, 'up to 63 of a-z, A-Z, 0-9, ".", "_", "-", in quotes')
    return value


def read_interface(value: object) -> str:
    """As the kernel's dev_valid_name() has it."""
    wanted = 'an interface\'s name such as "eth0"'
    if not isinstance(value, str):
        raise refusal(wanted, value, "write it in quotes")
    if not 1 <= len(value.encode("utf-8", "replace")) <= 15:
        raise refusal(wanted, value, "it has 1 to 15 bytes; `ip link` lists them")
    if value in (".", "..") or re.search(r"[\s/:\x00-\x1f\x7f]", value):
        raise refusal(wanted, value, "it has no space, slash or colon; `ip link` lists them")
    return value


def read_run_dir(value: object) -> Path:
    text = str(value) if isinstance(value, Path) else value
    wanted = 'an absolute path such as "/run/lbd"'
    if not isinstance(text, str) or not text.startswith("/") or not text.isprintable():
        raise refusal(wanted, text, "begin with a slash, in quotes")
    if len(text.encode("utf-8", "replace")) > 80:
        raise refusal(wanted, text, "80 bytes at most, since sockets below it may have 107")
    if ".." in text.split("/"):
        raise refusal(wanted, text, 'write where the ".." leads')
    return Path(text)


def read_request_path(value: object) -> str:
    """What may stand in a request line (RFC 9112)."""
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]{0,1023}", value):
        raise refusal(
            'a path such as "/health"', value, "begin with a slash, percent-encode all but plain ASCII"
        )
    return value


def read_server_id(value: object) -> str:
    """Hexadecimal digits, in pairs."""
    if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9a-fA-F]{2}){1,8}", value):
        raise refusal('an id in hexadecimal such as "2a" or "00c4605e"', value, "2 to 16 digits, two for each byte, in quotes")
    return value.lower()


Name = Annotated[
    str, PlainValidator(read_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})
]
InterfaceName = Annotated[
    str, PlainValidator(read_interface), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 15})
]
RunDir = Annotated[
    Path,
    PlainValidator(read_run_dir),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^/", "maxLength": 80}),
]
ServerId = Annotated[
    str, PlainValidator(read_server_id), WithJsonSchema({"type": "string", "pattern": "^([0-9a-fA-F]{2}){1,8}$"})
]
RequestPath = Annotated[
    str, PlainValidator(read_request_path), WithJsonSchema({"type": "string", "pattern": "^/[!-~]*$"})
]
