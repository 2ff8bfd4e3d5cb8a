"""Sorry server, slow start, timeouts and expire-* in the configuration: what is refused, what is odd, what comes of it."""

from __future__ import annotations

import pytest

from lbd.config import loads
from lbd.master.compose import Composer
from lbd.master.steering import sources
from lbd.sched import names, scheduler
from tests.unit.test_config_problem import GOOD, refused, warned

REAL = '[[service.real_server]]\naddress = "10.0.1.1:8080"\n'
HEAD, _, _ = GOOD.partition(REAL)
OPTIONS = """\
tcp_established = "1h"
tcp_fin = "90s"
expire_nodest = true
expire_quiescent = true
slow_start = "30s"
sorry_server = "10.0.1.99:8081"
"""


def service(options: str = "", real: str = "") -> str:
    return HEAD + options + REAL + real


REFUSED = {
    "a VIP": ('sorry_server = "192.0.2.10:81"', "sorry_server", "must not be a VIP of lbd itself: use the server's own address"),
    "a LIP": ('sorry_server = "10.0.0.10:81"', "sorry_server", "must not be a local address of lbd itself"),
    "a real server": ('sorry_server = "10.0.1.1:8080"', "sorry_server", "use another server"),
    "family": ('sorry_server = "[2001:db8::1]:80"', "sorry_server", "must be IPv4 as the service's address, not IPv6"),
    "port in dr": ('mode = "dr"\nsorry_server = "10.0.1.2:8080"', "sorry_server", "must have port 80 as the service, not 8080"),
    "no address": ('sorry_server = "10.0.1.2"', "sorry_server", "10.0.1.2"),
    "slow start too short": ('slow_start = "1ms"', "slow_start", "must be between 1s and 1d"),
    "no duration": ("slow_start = true", "slow_start", 'a duration such as "15m"'),
    "no boolean": ('expire_nodest = "yes"', "expire_nodest", "must be true or false"),
    "timeout beyond": ('udp_timeout = "9d"', "udp_timeout", "must be between 100ms and 7d"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    options, field, words = REFUSED[case]
    found = [(name, message) for _, name, message in refused(service(options + "\n"))]
    assert [message for name, message in found if name == f"service[0].{field}" and words in message], found


def test_room_for_the_sorry_server() -> None:
    [(_, field, message)] = refused(service('sorry_server = "10.0.1.9:80"\n', "[tables]\nreal_servers = 1\n"))
    assert field == "tables.real_servers" and "must be at least 2" in message


@pytest.mark.parametrize("name", names())
def test_slow_start_warns_where_weights_do_not_matter(name: str) -> None:
    text = service(f'scheduler = "{name}"\nslow_start = "30s"\n', 'slow_start = "10s"\n')
    odd = {field: message for _, field, message in warned(text) if field.endswith("slow_start")}
    if scheduler(name).RAMP:
        assert odd == {}
    else:
        assert set(odd) == {"service[0].slow_start", "service[0].real_server[0].slow_start"}
        assert all(f"no effect with scheduler {name}" in message for message in odd.values())


def test_what_has_no_effect_is_said() -> None:
    udp = service('protocol = "udp"\ntcp_fin = "2m"\nudp_timeout = "9s"\n')
    assert [f for _, f, m in warned(udp) if "no effect on a UDP service" in m] == ["service[0].tcp_fin"]
    assert [f for _, f, m in warned(service('udp_timeout = "9s"\n')) if "TCP service" in m] == ["service[0].udp_timeout"]


def test_a_short_time_wait_is_said() -> None:
    assert [f for _, f, _ in warned(service('tcp_fin = "10s"\n'))] == ["service[0].tcp_fin"]
    assert warned(service('mode = "nat"\ntcp_fin = "10s"\n')) == []


def test_all_of_it_reaches_the_workers() -> None:
    composer = Composer(loads(service(OPTIONS)))
    [made] = composer.desired.services
    assert (made.timeout_established, made.timeout_fin, made.timeout_udp) == (3_600_000, 90_000, 0)
    assert made.expire == ("nodest", "quiescent") and made.sorry == (bytes([10, 0, 1, 99]), 8081)
    assert {str(a) for a in composer.destinations()} == {"10.0.1.1", "10.0.1.99"}
    assert sources(composer.desired) == set()


def test_answers_of_a_nat_sorry_server_are_steered() -> None:
    composer = Composer(loads(service(OPTIONS + 'mode = "nat"\n')))
    assert sources(composer.desired) == {(4, bytes([10, 0, 1, 1]), 8080, 6), (4, bytes([10, 0, 1, 99]), 8081, 6)}


def test_slow_start_of_a_real_server() -> None:
    config = loads(service(OPTIONS, 'slow_start = "5s"\n[[service.real_server]]\naddress = "10.0.1.2:8080"\n'
                                    '[[service.real_server]]\naddress = "10.0.1.3:8080"\nslow_start = 0\n'))  # fmt: skip
    [s] = config.service
    assert [s.slow_start_of(r) for r in s.real_server] == [5.0, 30.0, 0.0]
