# SPDX-License-Identifier: Apache-2.0
"""Addresses of the configuration: IP addresses, with a port, with a prefix length, and MAC addresses.

As in value.py, every `read_…` returns the typed value or raises a ValueError that is a whole sentence.
An address has one spelling here: no zones, no IPv4 inside IPv6, no names (nothing is looked up).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from lbd.config.value import refusal

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

IN_QUOTES = "write it in quotes"


class _Spelt:
    """Room for the text of an Endpoint: the name of a real server wherever one is needed, 2 us each, by tens of thousands."""

    __slots__ = ("_text",)
    _text: str


@dataclass(frozen=True, slots=True)
class Endpoint(_Spelt):
    """An address and a port: `192.0.2.10:80`, `[2001:db8::10]:80`."""

    addr: IPAddress
    port: int

    @property
    def af(self) -> int:
        """4 or 6."""
        return self.addr.version

    def __str__(self) -> str:
        try:
            return self._text
        except AttributeError:
            text = f"{self.addr}:{self.port}" if self.addr.version == 4 else f"[{self.addr}]:{self.port}"
            object.__setattr__(self, "_text", text)
            return text


# --- addresses ----------------------------------------------------------------------------------------------


def parse_address(text: str) -> IPAddress:
    wanted = "an IPv4 or IPv6 address"
    try:
        addr = ipaddress.ip_address(text)
    except ValueError:
        raise refusal(wanted, text, _address_remedy(text)) from None
    if addr.version == 6:
        if addr.scope_id is not None:
            raise refusal(wanted, text, "leave out the zone, from the % on")
        if addr.ipv4_mapped is not None:
            raise refusal(wanted, text, f'IPv4 within IPv6 is written as IPv4: "{addr.ipv4_mapped}"')
    return addr


def _address_remedy(text: str) -> str:
    if re.fullmatch(r"[0-9.]+", text):
        plain = ".".join(part.lstrip("0") or "0" for part in text.split(".") if len(part) < 20)
        try:
            return f'leading zeros are ambiguous: write "{ipaddress.IPv4Address(plain)}"'
        except ValueError:
            return "IPv4 has four numbers from 0 to 255"
    if "/" in text:
        return "leave out the prefix length"
    if re.fullmatch(r"[0-9.]+:[0-9]*|\[[0-9A-Fa-f:.]*\]:[0-9]*", text):
        return "leave out the port"
    if re.fullmatch(r"[0-9A-Fa-f:.\[\]]+", text):
        return "RFC 4291 has the spelling of IPv6"
    return "names are not looked up: write the address itself"


def _refuse_special(addr: IPAddress, *, link_local: bool) -> IPAddress:
    """Only what can be one host's address passes."""
    if addr.version == 4 and 1 <= int(addr) >> 24 <= 223 and int(addr) >> 24 != 127:
        return addr  # nearly all there are; the questions below take 5 us
    kind = ""
    if addr.is_unspecified:
        kind = "the unspecified address"
    elif addr.is_multicast:
        kind = "a multicast address"
    elif addr.is_loopback:
        kind = "a loopback address"
    elif addr.version == 4 and int(addr) == 0xFFFFFFFF:
        kind = "the broadcast address"
    elif addr.version == 6 and addr.is_link_local and not link_local:
        kind = "a link-local address"
    if kind:
        raise ValueError(f"must be the unicast address of a host, not {kind} {addr}; choose a routable one")
    return addr


def read_address(value: object) -> IPAddress:
    return _refuse_special(_address(value), link_local=False)


def read_next_hop(value: object) -> IPAddress:
    return _refuse_special(_address(value), link_local=True)


def _address(value: object) -> IPAddress:
    if isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        return value
    if not isinstance(value, str):
        raise refusal('an address such as "192.0.2.10"', value, IN_QUOTES)
    return parse_address(value)


# --- address and port ---------------------------------------------------------------------------------------


def parse_endpoint(value: object) -> Endpoint:
    if isinstance(value, Endpoint):
        return value
    wanted = 'ADDRESS:PORT such as "192.0.2.10:80"'
    if not isinstance(value, str):
        raise refusal(wanted, value, IN_QUOTES)
    host, colon, port = value.rpartition(":")
    if host[:1] == "[" and host[-1:] == "]":
        addr = parse_address(host[1:-1])
        if addr.version == 4:
            raise refusal(wanted, value, f'brackets are for IPv6: write "{addr}:{port}"')
    elif ":" in host or not colon:
        raise refusal(wanted, value, _endpoint_remedy(value))
    else:
        addr = parse_address(host)
    # isascii: isdigit alone takes other scripts' digits, too
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise refusal(wanted, value, "the port is a number from 1 to 65535")
    endpoint = Endpoint(addr, int(port))
    if addr.version == 4 and port[0] != "0":
        object.__setattr__(endpoint, "_text", value)  # it has no other spelling
    return endpoint


def _endpoint_remedy(text: str) -> str:
    """For an address without a port, or an IPv6 address without brackets."""
    host, _, port = text.rpartition(":")
    if _version(host) == 6 and port.isdigit():
        return f'IPv6 with a port is written in brackets: "[{host}]:{port}"'
    version = _version(text.strip("[]"))
    if version == 6:
        return f'add brackets and the port: "[{text.strip("[]")}]:80"'
    if version == 4:
        return f'add the port: "{text}:80"'
    return 'add the port; IPv6 is written "[2001:db8::10]:80"'


def _version(text: str) -> int:
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return 0


def read_endpoint(value: object) -> Endpoint:
    endpoint = parse_endpoint(value)
    _refuse_special(endpoint.addr, link_local=False)
    return endpoint


def read_any_endpoint(value: object) -> Endpoint:
    """The port may be left out, or 0: the real server's, or every one."""
    if isinstance(value, str):
        inner = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else ""
        if inner and _version(inner) == 6:
            value = Endpoint(parse_address(inner), 0)
        elif "[" not in value and value.count(":") != 1 and _version(value):
            value = Endpoint(parse_address(value), 0)
        elif value.endswith(":0") and ("[" in value or value.count(":") == 1):
            value = Endpoint(parse_endpoint(f"{value[:-1]}1").addr, 0)
    return read_endpoint(value)


@dataclass(frozen=True, slots=True)
class Point:
    """A further address of a service: `192.0.2.10:443`, `192.0.2.10:53/udp`."""

    endpoint: Endpoint
    protocol: str | None  # None: the service's

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.protocol}" if self.protocol else str(self.endpoint)


def read_point(value: object) -> Point:
    if isinstance(value, Point):
        return value
    if not isinstance(value, str):
        raise refusal('ADDRESS:PORT such as "192.0.2.10:443" or "192.0.2.10:53/udp"', value, IN_QUOTES)
    text, slash, protocol = value.partition("/")
    if slash and protocol not in ("tcp", "udp", "sctp"):
        raise refusal("ADDRESS:PORT, or with a protocol ADDRESS:PORT/tcp, /udp or /sctp", value, "or leave the protocol out")
    return Point(read_any_endpoint(text), protocol or None)


def read_listen(value: object) -> Endpoint | None:
    """Where to listen: any address goes, and "" is nowhere."""
    return None if value is None or value == "" else parse_endpoint(value)


# --- networks, MAC addresses --------------------------------------------------------------------------------


def read_network(value: object) -> IPNetwork:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    wanted = 'a network such as "10.0.1.0/24"'
    if not isinstance(value, str):
        raise refusal(wanted, value, IN_QUOTES)
    text, _, length = value.partition("/")
    addr = parse_address(text)
    limit = addr.max_prefixlen
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= limit):
        raise refusal(
            wanted, value, f'the length is a number from 0 to {limit}; one host is "{addr}/{limit}"'
        )
    network = ipaddress.ip_network((addr, int(length)), strict=False)
    if network.network_address != addr:
        raise refusal(wanted, value, f'no bit is set beyond the prefix: write "{network}"')
    return network


_MAC = r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}"


def read_mac(value: object) -> bytes:
    if isinstance(value, bytes) and len(value) == 6:
        return value
    wanted = 'a MAC address such as "02:00:00:00:00:01"'
    if not isinstance(value, str) or not re.fullmatch(_MAC, value):
        raise refusal(wanted, value, "six pairs of hex digits, in quotes")
    mac = bytes(int(value[i : i + 2], 16) for i in range(0, 17, 3))
    if mac[0] & 1 or not any(mac):
        raise refusal(wanted, value, "zero and group addresses are nobody's")
    return mac


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


_TEXT = PlainSerializer(str, return_type=str)
_ENDPOINT_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": "^([0-9.]+|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5}$"}
)
_ADDRESS_SCHEMA = WithJsonSchema({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]})

AddressValue = Annotated[IPAddress, PlainValidator(read_address), _TEXT, _ADDRESS_SCHEMA]
NextHopValue = Annotated[IPAddress, PlainValidator(read_next_hop), _TEXT, _ADDRESS_SCHEMA]
EndpointValue = Annotated[Endpoint, PlainValidator(read_endpoint), _TEXT, _ENDPOINT_SCHEMA]
AnyEndpointValue = Annotated[
    Endpoint,
    PlainValidator(read_any_endpoint),
    _TEXT,
    WithJsonSchema({"type": "string", "pattern": "^([0-9.]+(:[0-9]{1,5})?|[0-9A-Fa-f:]+|\\[[0-9A-Fa-f:.]+\\](:[0-9]{1,5})?)$"}),
]
PointValue = Annotated[
    Point,
    PlainValidator(read_point),
    _TEXT,
    WithJsonSchema({"type": "string", "pattern": "^[0-9A-Fa-f:.\\[\\]]+(/(tcp|udp|sctp))?$"}),
]
ListenValue = Annotated[
    Endpoint | None,
    PlainValidator(read_listen),
    PlainSerializer(lambda e: "" if e is None else str(e), return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^(|([0-9.]+|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5})$"}),
]
NetworkValue = Annotated[
    IPNetwork,
    PlainValidator(read_network),
    _TEXT,
    WithJsonSchema({"type": "string", "pattern": "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"}),
]
MacValue = Annotated[
    bytes,
    PlainValidator(read_mac),
    PlainSerializer(mac_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_MAC}$"}),
]
