"""The configuration: what loads, and what is said about what doesn't: line, field, remedy."""

from __future__ import annotations

import ipaddress
import os
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from lbd.config import Config, ConfigError, load, loads
from lbd.config.address import Endpoint

ROOT = Path(__file__).parents[2]

GOOD = """\
[[interface]]
name = "eth0"
[[local_address]]
address = "10.0.0.10"
interface = "eth0"
[[service]]
name = "web"
address = "192.0.2.10:80"
interface = "eth0"
[[service.real_server]]
address = "10.0.1.1:8080"
"""


def refused(text: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "x.toml")
    assert all(str(p).startswith("x.toml") for p in caught.value.problems)
    return [(p.line, p.field, p.message) for p in caught.value.problems]


def test_typed_values() -> None:
    config = load(ROOT / "conf/lbd.toml")
    assert config.warnings == ()
    web, web6, dns = config.service
    assert web.address == Endpoint(ipaddress.IPv4Address("192.0.2.10"), 80)
    assert (web.vip, web.port, web.af, web.proto) == (ipaddress.IPv4Address("192.0.2.10"), 80, 4, 6)
    assert (str(web6.address), web6.af, dns.proto) == ("[2001:db8::10]:80", 6, 17)
    assert web.key != web6.key and hash(web) != hash(web6)
    assert web.health is not None and web.health.type == "http" and web.health.status == (200,)
    assert [str(r.address) for r in web6.real_server] == ["[fd00:1::1]:8080", "[fd00:1::2]:8080"]
    lo, hi = config.local_address[0].ports
    assert (lo, hi, config.local_address[1].af) == (10240, 32767, 6)
    assert config.timeouts.tcp_established == 900.0 and config.workers.heartbeat_limit == 0.5
    assert config.metrics.listen == Endpoint(ipaddress.IPv4Address("127.0.0.1"), 9911)
    assert loads(GOOD + '[metrics]\nlisten = ""').metrics.listen is None
    mac = (
        loads(GOOD + '[[neighbor]]\ninterface="eth0"\naddress="fe80::1"\nmac="02-00-00-00-00-0A"')
        .neighbor[0]
        .mac
    )
    assert mac == bytes([2, 0, 0, 0, 0, 10])
    with pytest.raises(Exception, match="frozen"):
        web.name = "other"


def test_the_example_shows_defaults() -> None:
    """Every commented-out key of conf/lbd.toml, in force, still gives a good file."""
    lines = (ROOT / "conf/lbd.toml").read_text().split("\n")
    on = [line[2:] if line.startswith("# ") and " = " in line[:30] else line for line in lines]
    full = loads("\n".join(on))
    plain = load(ROOT / "conf/lbd.toml")
    assert full != plain and full.warnings == ()
    for table in ("tables", "timeouts", "metrics", "packet", "interface", "local_address"):
        assert getattr(full, table) == getattr(plain, table), f"[{table}] of the example is not the default"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('"500ms"', 0.5),
        ('"1h"', 3600.0),
        ('"1.5s"', 1.5),
        ('"1d"', 86400.0),
        ("2", 2.0),
        ("0.25", 0.25),
        ('"15m"', 900.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert loads(f"{GOOD}[timeouts]\nudp = {text}\n").timeouts.udp == seconds


@pytest.mark.parametrize(
    ("text", "number"), [("", 1), ("count = 3", 3), ("cores = [4, 7]", 2), ("count = 1\ncores = [4, 7]", 1)]
)
def test_number_of_workers(text: str, number: int) -> None:
    workers = loads(f"{GOOD}[workers]\n{text}\n").workers
    assert workers.number == number
    assert workers.core(0) == (4 if "cores" in text else None)


def test_all_at_once_in_order() -> None:
    text = (
        GOOD.replace('"10.0.0.10"', '"300.0.0.1"').replace('"192.0.2.10:80"', '"192.0.2.10"')
        + "weight = -1\n[workers]\ncnt = 1"
    )
    found = refused(text)
    assert [line for line, _, _ in found] == [4, 8, 12, 14]
    assert [field for _, field, _ in found] == [
        "local_address[0].address",
        "service[0].address",
        "service[0].real_server[0].weight",
        "workers.cnt",
    ]


def test_numbers_stay_those_of_the_file() -> None:
    """A service that is wrong neither hides what is wrong between others nor shifts their numbers."""
    more = '[[service]]\nname = 1\n[[service]]\nname = "b"\naddress = "192.0.2.10:80"\ninterface = "eth0"\n'
    found = refused(
        more + GOOD + '[[service.real_server]]\n[[service.real_server]]\naddress = "10.0.1.1:8080"\n'
    )
    assert {(line, field) for line, field, _ in found} == {
        (1, "service[0].address"),
        (2, "service[0].name"),
        (14, "service[2].address"),
        (18, "service[2].real_server[1].address"),
        (20, "service[2].real_server[2].address"),
    }


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("10.0.0.10", "10.0.0"),  # no second complaint that a LIP is missing
        GOOD.replace('name = "eth0"', "name = 3")
        + '[[route]]\ndestination = "0.0.0.0/0"\ninterface = "eth0"',  # or that the interface is
        GOOD + '[[service]]\nname = "b"\nprotocol = "upd"\naddress = "192.0.2.10:80"\ninterface = "eth0"',
        GOOD + "[tables]\nservices = 0",
        GOOD + '[[local_address]]\naddress = "10.0.0.11"\nmanage = 1',
    ],
)
def test_nothing_follows_from_what_is_wrong_itself(text: str) -> None:
    assert len(refused(text)) == 1


def test_an_ipv6_service_with_ipv4_real_servers() -> None:
    """NAT64: fullnat's way, from a local address of IPv4; real servers of both families need one of each."""
    service = '[[interface]]\nname = "eth0"\n[[service]]\nname = "web"\naddress = "[2001:db8::1]:80"\n'
    four, six = (f'[[service.real_server]]\naddress = "{a}:80"\n' for a in ("10.0.1.9", "[fd00::9]"))
    lip4, lip6 = (f'[[local_address]]\naddress = "{a}"\ninterface = "eth0"\n' for a in ("10.0.0.10", "fd00::10"))
    assert loads(service + four + lip4).service[0].real_server[0].af == 4
    assert len(loads(service + four + six + lip4 + lip6).service[0].real_server) == 2
    for lips, family in ((lip6, 4), (lip4, 6), ("", 4)):
        with pytest.raises(ConfigError) as caught:
            loads(service + four + six + lips)
        assert f"needs a local address of IPv{family} for fullnat to send from" in str(caught.value)
        assert (", to IPv4 real servers" in str(caught.value)) == (family == 4)


def test_a_file_without_interface() -> None:
    for text in ("", "\n\n# nothing\n", "[daemon]\n"):
        assert refused(text) == [(1, "interface", refused("")[0][2])]
    assert '[[interface]] with name = "eth0"' in refused("")[0][2]


def test_warnings_are_no_part_of_the_value() -> None:
    plain, odd = loads(GOOD), loads("# moved\n" + GOOD + "[timeouts]\ntcp_time_wait = 59\n")
    assert odd.warnings and not plain.warnings
    again = loads(GOOD + "[timeouts]\ntcp_time_wait = 59\n")
    assert again == odd != plain and again.warnings != odd.warnings and hash(again) == hash(odd)


def test_warnings_come_with_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        loads(GOOD + "[timeouts]\ntcp_time_wait = 1\nudp = 0\n")
    assert len(caught.value.problems) == len(caught.value.warnings) == 1
    assert str(caught.value) == str(caught.value.problems[0])
    assert ": warning: timeouts.tcp_time_wait: " in str(caught.value.warnings[0])


# --- files ---


def file_problem(path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    [problem] = caught.value.problems
    assert problem.file == str(path)
    return str(problem)


def test_unreadable_files(tmp_path: Path) -> None:
    missing = tmp_path / "no.toml"
    assert (
        file_problem(missing)
        == f"{missing}: can't be read: No such file or directory; give the path of a TOML file"
    )
    assert "Is a directory" in file_problem(tmp_path)
    assert "embedded null byte" in file_problem("a\0b")
    assert "larger than 64 MiB" in file_problem("/dev/zero")


def test_binary_garbage(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"# a\n# b\n\xff\xfe")
    assert f"{path}:3: byte 0xff is no UTF-8" in file_problem(path)
    path.write_bytes(b"\x7fELF\x02\x01\x01\0\0\0")
    assert f"{path}:1: not TOML" in file_problem(path)
    path.write_text("[workers]\ncores = " + "[" * 100_000)
    assert "nested too deeply" in file_problem(path)


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(os.fspath(path)) == loads(GOOD)


def test_sizes_follow_from_tables_alone() -> None:
    config = loads(GOOD)
    assert loads(GOOD + '[[service.real_server]]\naddress = "10.0.1.2:80"\n').sizes() == config.sizes()
    sizes = loads(
        GOOD + "[workers]\ncount = 4\n[tables]\nservices = 65535\nreal_servers = 9\nframes = 4096\n"
    ).sizes()
    assert (sizes["workers"], sizes["services"], sizes["dests"], sizes["frames"]) == (4, 65535, 9, 4096)
    assert sizes["arena"] == 64 << 20
    assert all(sizes[ring] & (sizes[ring] - 1) == 0 for ring in sizes if ring.endswith("_ring"))
    assert Config().sizes()["arena"] == 4 << 20


def many_services(count: int) -> str:
    """Of 10 real servers each."""
    parts = [
        "[tables]\nservices = 2000\nreal_servers = 20000\n[[interface]]\nname = 'eth0'\n[[local_address]]\n"
    ]
    parts.append("address = '10.255.0.1'\ninterface = 'eth0'\n")
    for i in range(count):
        parts.append(
            f'[[service]]\nname = "s{i}"\naddress = "192.0.{i >> 8}.{i & 255}:80"\nscheduler = "wrr"\n'
        )
        for j in range(10):
            parts.append(
                f'[[service.real_server]]\naddress = "10.{i >> 8}.{i & 255}.{j}:8080"\nweight = {j}\n'
            )
    return "".join(parts)


def processor_time(work: Callable[[], object], times: int) -> float:
    """Seconds; the least of some, since others work on this machine too."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def test_speed() -> None:
    """2,000 services of 10 real servers: some 0.6 s, twice what TOML's parser alone takes, and no more for each than of 200."""
    text, few = many_services(2000), many_services(200)
    assert len(loads(text).service) == 2000
    took = processor_time(lambda: loads(text), 3)
    assert took < 5 * processor_time(lambda: tomllib.loads(text), 3)
    assert took < 20 * processor_time(lambda: loads(few), 5)
