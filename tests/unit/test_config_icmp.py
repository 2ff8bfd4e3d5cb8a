"""Services of ICMP in the configuration: what they become, and what is said about wrong ones."""

from ipaddress import ip_address

import pytest

from lbd.config import ConfigError, loads
from tests.unit.test_config_option import HEAD, desired, said, text

PING = 'address = "192.0.2.10"\nprotocol = "icmp"'
PING6 = 'address = "2001:db8::10"\nprotocol = "icmp"'
ONE, ONE6 = 'address = "10.0.1.1"', 'address = "fd00:1::1"'


@pytest.mark.parametrize(("service", "server", "number"), [(PING, ONE, 1), (PING6, ONE6, 58), (PING6, ONE, 58)])
def test_what_it_becomes(service: str, server: str, number: int) -> None:
    s = desired(service, server)
    assert (s.protocol, s.port, s.real_servers[0].port, s.persistence) == (number, 0, 0, 0)
    config = loads(text(service, server))
    assert config.warnings == () and config.service[0].key[0] == number


def test_all_modes_and_options() -> None:
    for more in ('mode = "nat"', 'mode = "dr"', 'mode = "tunnel"', 'mode = "tunnel"\ntunnel = { type = "gue" }',
                 'persistence = "1m"', 'sorry_server = "10.0.1.9"', 'scheduler = "mh"\nscheduler_flags = ["mh-port"]'):  # fmt: skip
        assert loads(text(f"{PING}\n{more}", ONE)).warnings == ()
    assert desired(f'{PING}\nsorry_server = "10.0.1.9"', ONE).sorry == (ip_address("10.0.1.9").packed, 0)
    assert desired(f'{PING}\nmode = "tunnel"', ONE6).real_servers[0].address == ip_address("fd00:1::1").packed


def test_several_addresses() -> None:
    s = desired(f'{PING}\naddresses = ["192.0.2.11"]', ONE)
    assert s.keys == tuple((ip_address(f"192.0.2.{n}").packed, 0, 1) for n in (10, 11))
    assert desired(f'{PING6}\naddresses = ["2001:db8::11"]', ONE6).keys[1][2] == 58


def test_beside_a_service_of_any_port() -> None:
    other = '[[service]]\nname = "all"\naddress = "192.0.2.10"\npersistence = "6m"\ninterface = "eth0"\n'
    other += f"[[service.real_server]]\n{ONE}\n"
    assert len(loads(text(PING, ONE) + other).service) == 2
    with pytest.raises(ConfigError, match="has this address, port and protocol"):
        loads(text(PING, ONE) + other.replace('persistence = "6m"', 'protocol = "icmp"'))


NO_PORT = "must have no port, since ICMP has none, not"
REFUSED: list[tuple[str, str, str, str]] = [
    (PING.replace('10"', '10:80"'), ONE, "service[0].address", f'{NO_PORT} 80; write "192.0.2.10"'),
    (PING, ONE.replace('.1"', '.1:80"'), "service[0].real_server[0].address", f'{NO_PORT} 80; write "10.0.1.1"'),
    (f'{PING}\naddresses = ["192.0.2.11:80"]', ONE, "service[0].addresses[0]", f'{NO_PORT} 80; write "192.0.2.11"'),
    (f'{PING}\naddresses = ["192.0.2.11:80/tcp"]', ONE, "service[0].addresses[0]", "not tcp; make it a service of its own"),
    (f'{PING}\nsorry_server = "10.0.1.9:80"', ONE, "service[0].sorry_server", f'{NO_PORT} 80; write "10.0.1.9"'),
    (PING, ONE6, "service[0].real_server[0].address", "fullnat translates from an IPv6 service to IPv4 real servers"),
    (f'{PING}\nsorry_server = "fd00:1::9"', ONE, "service[0].sorry_server", "must be IPv4 as the service's address, not IPv6"),
    (f"{PING}\none_packet = true", ONE, "service[0].one_packet", "UDP alone"),
    (f'{PING}\nhealth = {{ type = "tcp" }}', ONE, "service[0].health", "since 10.0.1.1 has none; add port = 80"),
    ('address = "192.0.2.10:80"\nsorry_server = "10.0.1.9"', f'{ONE[:-1]}:80"', "service[0].sorry_server",
     'needs a port; write "10.0.1.9:80"'),
]  # fmt: skip


@pytest.mark.parametrize(("service", "server", "field", "words"), REFUSED, ids=[f"{r[2]} {r[3]}" for r in REFUSED])
def test_refused(service: str, server: str, field: str, words: str) -> None:
    [(where, message)] = said(service, server)
    assert where == field and words in message


@pytest.mark.parametrize("key", ["tcp_established", "tcp_fin", "udp_timeout"])
def test_timeouts_without_effect(key: str) -> None:
    [warning] = loads(text(f'{PING}\n{key} = "61s"', ONE)).warnings
    assert warning.field == f"service[0].{key}" and "no effect on an ICMP service" in warning.message


def test_a_local_address_is_needed() -> None:
    head, _, _ = HEAD.partition("[[local_address]]\naddress = \"10")
    service = text(PING, ONE).replace(HEAD, head)
    with pytest.raises(ConfigError, match="needs a local address of IPv4"):
        loads(service)
