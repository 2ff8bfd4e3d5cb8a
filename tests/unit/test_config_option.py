"""Services' options in the configuration: what they become, and what is said about wrong ones."""

from typing import Any

import pytest

from lbd.config import ConfigError, loads
from lbd.config.address import Point, read_any_endpoint, read_point
from lbd.master.compose import Composer
from lbd.master.desired import Service

HEAD = """\
[[interface]]
name = "eth0"
[[local_address]]
address = "10.0.0.10"
interface = "eth0"
[[local_address]]
address = "fd00::10"
interface = "eth0"
"""


def text(service: str, *servers: str) -> str:
    return f'{HEAD}[[service]]\nname = "web"\ninterface = "eth0"\n{service}\n' + "".join(
        f"[[service.real_server]]\n{server}\n" for server in servers
    )


def desired(service: str, *servers: str) -> Service:
    [made] = Composer(loads(text(service, *servers))).desired.services
    return made


def said(service: str, *servers: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        loads(text(service, *servers))
    return [(p.field, p.message) for p in caught.value.problems]


WEB = 'address = "192.0.2.10:80"'
ONE = 'address = "10.0.1.1:8080"'


def test_any_port() -> None:
    s = desired('address = "192.0.2.10"\npersistence = "6m"', 'address = "10.0.1.1"')
    assert (s.port, s.persistence, s.persistence_prefix, s.real_servers[0].port) == (0, 360_000, 32, 0)
    assert desired('address = "192.0.2.10:0"\npersistence = 60', 'address = "10.0.1.1:0"').port == 0
    assert desired('address = "2001:db8::10"\npersistence = "6m"', 'address = "fd00:1::1"').persistence_prefix == 128


def test_a_real_server_without_a_port_has_the_services() -> None:
    assert desired(WEB, 'address = "10.0.1.1"').real_servers[0].port == 80
    config = loads(text(WEB, 'address = "10.0.1.1"'))
    assert str(config.service[0].real_server[0].address) == "10.0.1.1:80"
    assert loads(HEAD) is not None and config.to_plain()["service"][0]["real_server"][0]["address"] == "10.0.1.1:80"


def test_several_addresses() -> None:
    s = desired(f'{WEB}\naddresses = ["192.0.2.10:443", "192.0.2.11:53/udp"]\nfwmark = 7', 'address = "10.0.1.1"')
    vips = [bytes([192, 0, 2, n]) for n in (10, 10, 11)]
    assert s.keys == ((vips[0], 80, 6), (vips[1], 443, 6), (vips[2], 53, 17))
    assert s.real_servers[0].port == 0, "the client's"
    same = desired(f'{WEB}\naddresses = ["192.0.2.11:80"]', 'address = "10.0.1.1"')
    assert same.real_servers[0].port == 80


def test_thresholds_persistence_one_packet() -> None:
    s = desired(f'{WEB}\npersistence = "90s"\npersistence_prefix = 24', f"{ONE}\nupper_threshold = 100\nlower_threshold = 50")
    assert (s.persistence, s.persistence_prefix) == (90_000, 24)
    assert (s.real_servers[0].upper, s.real_servers[0].lower) == (100, 50)
    assert desired(f'{WEB}\nprotocol = "udp"\none_packet = true', ONE).one_packet


REFUSED: list[tuple[str, str, str, str]] = [
    ('address = "192.0.2.10"', ONE, "service[0].address", 'write "192.0.2.10:80", or add persistence = "6m"'),
    (f'{WEB}\naddresses = ["192.0.2.11"]', ONE, "service[0].addresses", "zero port specified for non-persistent service"),
    ('address = "192.0.2.10"\npersistence = "6m"', ONE, "service[0].real_server[0].address", 'write "10.0.1.1"'),
    (f'{WEB}\naddresses = ["[2001:db8::1]:80"]', ONE, "service[0].addresses[0]", "must be IPv4 as `address`"),
    (f'{WEB}\naddresses = ["192.0.2.10:80"]', ONE, "service[0].addresses", "stands twice"),
    (f'{WEB}\naddresses = ["192.0.2.11:80/icmp"]', ONE, "service[0].addresses[0]", "/tcp, /udp or /sctp"),
    (f'{WEB}\naddresses = "192.0.2.11:80"', ONE, "service[0].addresses", "write it in brackets"),
    (f'{WEB}\npersistence = "6m"\npersistence_prefix = 64', ONE, "service[0].persistence_prefix", "255.255.255.0 is 24"),
    (f'{WEB}\npersistence = "0s"', ONE, "service[0].persistence", "between 1s and 12d"),
    (f"{WEB}\none_packet = true", ONE, "service[0].one_packet", 'write protocol = "udp"'),
    (f'{WEB}\nprotocol = "udp"\none_packet = true\naddresses = ["192.0.2.11:80/tcp"]', ONE, "service[0].one_packet", "UDP alone"),
    (WEB, f"{ONE}\nupper_threshold = 5\nlower_threshold = 6", "service[0].real_server[0].lower_threshold", "which is 5, not 6"),
    (f'{WEB}\naddresses = ["192.0.2.11:81"]\nmode = "dr"', ONE, "service[0].real_server[0].address", "must have no port"),
    (f'{WEB}\nmode = "dr"', ONE, "service[0].real_server[0].address", "must have port 80"),
]


@pytest.mark.parametrize(("service", "server", "field", "words"), REFUSED, ids=[f"{r[2]} {r[3]}" for r in REFUSED])
def test_refused(service: str, server: str, field: str, words: str) -> None:
    found = said(service, server)
    assert [f for f, _ in found] == [field], found
    assert words in found[0][1] and "; " in found[0][1]


def test_a_health_check_needs_a_port() -> None:
    service = f'{WEB}\naddresses = ["192.0.2.10:443"]\nhealth = {{ type = "tcp" }}'
    [(field, message)] = said(service, 'address = "10.0.1.1"')
    assert field == "service[0].health" and "add port = 80" in message
    assert loads(text(service.replace('"tcp" }', '"tcp", port = 8081 }'), 'address = "10.0.1.1"'))


def test_addresses_are_shared_by_no_two_services() -> None:
    other = f'[[service]]\nname = "other"\ninterface = "eth0"\naddress = "192.0.2.10:443"\n[[service.real_server]]\n{ONE}\n'
    with pytest.raises(ConfigError) as caught:
        loads(text(f'{WEB}\naddresses = ["192.0.2.10:443"]', ONE) + other)
    assert "service[0] has this address, port and protocol" in str(caught.value)
    other = other.replace(':443"', ':444"\nfwmark = 3')
    with pytest.raises(ConfigError) as caught:
        loads(text(f"{WEB}\nfwmark = 3", ONE) + other)
    assert 'service "web" has this number' in str(caught.value)


@pytest.mark.parametrize(
    ("service", "server", "field"),
    [
        (f"{WEB}\npersistence_prefix = 24", ONE, "service[0].persistence_prefix"),
        (WEB, f"{ONE}\nlower_threshold = 6", "service[0].real_server[0].lower_threshold"),
    ],
)
def test_what_has_no_effect_is_remarked(service: str, server: str, field: str) -> None:
    assert [w.field for w in loads(text(service, server)).warnings] == [field]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("192.0.2.10", "192.0.2.10:0"), ("192.0.2.10:0", "192.0.2.10:0"), ("192.0.2.10:80", "192.0.2.10:80"),
        ("2001:db8::10", "[2001:db8::10]:0"), ("[2001:db8::10]", "[2001:db8::10]:0"), ("[2001:db8::10]:0", "[2001:db8::10]:0"),
        ("[2001:db8::10]:80", "[2001:db8::10]:80"),
    ],
)  # fmt: skip
def test_spellings(value: str, shown: str) -> None:
    assert str(read_any_endpoint(value)) == shown
    assert str(read_point(f"{value}/udp")) == f"{shown}/udp" and str(read_point(value)) == shown
    assert read_point(Point(read_any_endpoint(value), None)) == read_point(value)


@pytest.mark.parametrize(
    "value", ["", "x", "1.2.3.4:", "[1.2.3.4]", "1.2.3.4:00", "1.2.3", "224.0.0.1", "[::1]", "::1", "1.2.3.4:65536", 5, None, []]
)
def test_spellings_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match="; "):
        read_any_endpoint(value)


def test_answers_of_many_ports_have_their_places() -> None:
    """Mode nat: a real server without a port answers from each of the service's."""
    ports = ", ".join(f'"192.0.2.10:{n}"' for n in range(1000, 1020))
    service = f'{WEB}\nmode = "nat"\naddresses = [{ports}]'
    servers = [f'address = "10.0.1.{n}"' for n in range(1, 11)]
    assert loads(text(service, *servers))
    small = "[tables]\nreal_servers = 64\n"
    with pytest.raises(ConfigError) as caught:
        loads(small + text(service, *servers))
    [problem] = caught.value.problems
    assert problem.field == "tables.real_servers" and "must be at least 210" in problem.message and "= 256" in problem.message
