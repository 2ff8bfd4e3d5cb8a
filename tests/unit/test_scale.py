# SPDX-License-Identifier: Apache-2.0
"""What one change among many services costs, by counting what is done, not by the clock: those figures are bench/control.py's.

Assumes: 200 services of 10 real servers stand for any number. What is counted must not hang on how many there are.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from lbd.config import Config, loads
from lbd.config.address import Endpoint
from lbd.config.service import RealServer as ConfiguredServer
from lbd.config.service import Service as ConfiguredService
from lbd.health import check as health_check
from lbd.health.check import Check
from lbd.health.target import Status
from lbd.master import checks, encode
from lbd.master.arena import Arena
from lbd.master.checks import Checks
from lbd.master.compose import Composer
from lbd.master.course import Course
from lbd.master.desired import Desired, RealServer, Service
from lbd.master.difference import changes
from lbd.master.reach import Reach, RouteIndex
from lbd.master.reconcile import Reconciler
from lbd.master.record import Link, Route, Snapshot
from lbd.master.runtime import Runtime
from lbd.master.steering import Steering
from lbd.sched import Server
from lbd.shm import _shm as shm

SERVICES, SERVERS = 200, 10


def config(weight: int = 1, leave_out: int = -1, every: int = 1) -> Config:
    """`weight`: of one real server in the middle; `every`: of all others."""
    lines = ['[[interface]]\nname = "eth0"\n[[local_address]]\naddress = "10.0.0.10"\nmanage = false\n']
    for s in range(SERVICES):
        if s == leave_out:
            continue
        lines.append(f'[[service]]\nname = "s{s}"\naddress = "192.0.2.{s + 1}:80"\nscheduler = "rr"\n')
        lines.append('[service.health]\ntype = "tcp"\n')
        for r in range(SERVERS):
            own = weight if (s, r) == (SERVICES // 2, 3) else every
            lines.append(f'[[service.real_server]]\naddress = "10.1.{s}.{r + 1}:80"\nweight = {own}\n')
    return loads("".join(lines))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], Counter[str]]:
    """Counts the calls of a function from now on, under its name."""
    calls: Counter[str] = Counter()

    def count(place: Any, name: str) -> Counter[str]:
        real = getattr(place, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(place, name, wrapped)
        return calls

    return count


def make() -> tuple[Reconciler, Desired]:
    reconciler = Reconciler(SERVICES, SERVICES * SERVERS, 16, Arena(1 << 16, lambda at, table: None))
    return reconciler, Composer(config()).desired


def turned(desired: Desired, service: int, server: int) -> Desired:
    """With one real server down."""
    was = desired.services[service]
    servers = list(was.real_servers)
    servers[server] = replace(servers[server], up=False)
    services = list(desired.services)
    services[service] = replace(was, real_servers=tuple(servers))
    return replace(desired, services=tuple(services))


def test_a_verdict_is_three_commands_and_one_service_s_records(counted: Callable[..., Counter[str]]) -> None:
    reconciler, desired = make()
    reconciler.update(desired)
    counted(encode, "service")
    calls = counted(encode, "dest")
    batch = reconciler.update(turned(desired, 100, 3))
    assert [shm.command_head(c)[0] for c in batch] == [shm.CMD_DEST_SET, shm.CMD_SVC_SET, shm.CMD_NOP]
    assert calls == {"dest": SERVERS, "service": 1}


def test_the_same_services_in_other_objects_are_no_change() -> None:
    reconciler, desired = make()
    reconciler.update(desired)
    again = replace(desired, services=tuple(map(replace, desired.services)))
    assert reconciler.update(again) == []
    assert len(reconciler.update(turned(again, 5, 5))) == 3
    assert len(reconciler.full()) == len(reconciler.records()) + 8


def test_a_removed_service_is_its_own_commands() -> None:
    reconciler, desired = make()
    reconciler.update(desired)
    less = replace(desired, services=desired.services[:50] + desired.services[51:])
    batch = reconciler.update(less)
    ops = [shm.command_head(c)[0] for c in batch]
    assert ops == [shm.CMD_SVC_DEL] + [shm.CMD_DEST_DEL] * SERVERS + [shm.CMD_NOP]
    assert desired.services[50].key not in reconciler.placed and len(reconciler.dests) == (SERVICES - 1) * SERVERS


def test_a_verdict_composes_one_service(counted: Callable[..., Counter[str]]) -> None:
    composer = Composer(config())
    calls = counted(composer, "_service")
    composer.touch("s7")
    assert calls == {"_service": 1}


class Program:
    """Counts the system calls that the real one would make."""

    def __init__(self) -> None:
        self.asked = 0
        self.there: dict[Any, int] = {}

    def services(self) -> dict[Any, int]:
        return dict(self.there)

    def lips(self) -> dict[Any, Any]:
        return {}

    def tunnels(self) -> set[Any]:
        return set()

    def sources(self) -> set[Any]:
        return set()

    def locals(self) -> set[Any]:
        return set()

    def prefixes(self, name: str) -> dict[Any, int]:
        return {}

    def snat(self) -> tuple[Any, ...]:
        return 0, 0, (0,) * 3, (0,) * 16

    def macs(self) -> set[Any]:
        return set()

    def set_mac(self, *_: Any) -> None:
        pass

    def set_service(self, *key: Any) -> None:
        self.asked += 1
        self.there[key[:-1]] = key[-1]

    def del_service(self, *key: Any) -> None:
        self.asked += 1
        del self.there[key]

    def set_lip(self, *_: Any, echo: bool = False) -> None:
        self.asked += 1


def test_a_verdict_leaves_the_xdp_program_alone(counted: Callable[..., Counter[str]]) -> None:
    program = Program()
    steering = Steering(program, lambda address: False, lambda at: False, set)
    _, desired = make()
    steering.prepare(desired)
    steering.extend()
    assert len(program.there) == SERVICES
    program.asked = 0
    steering.prepare(turned(desired, 1, 1))
    steering.extend()
    assert program.asked == 0


def test_steering_that_failed_is_done_again() -> None:
    """Whatever was prepared half: the state before it is no reason to do nothing."""
    program = Program()
    steering = Steering(program, lambda address: False, lambda at: False, set)
    one = Desired((Service("a", bytes([192, 0, 2, 1]), 80, 6, "rr", (RealServer(bytes(4), 80, 1, True),)),))
    steering.prepare(one)
    steering.extend()
    real, program.del_service = program.del_service, lambda *key: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        steering.prepare(Desired())
    program.del_service = real  # type: ignore[method-assign]
    steering.prepare(Desired())
    assert program.there == {}
    steering.prepare(one)
    steering.extend()
    assert len(program.there) == 1


def test_a_new_master_without_services_takes_what_was_steered_away() -> None:
    program = Program()
    program.there[4, bytes(4), 80, 6] = 0
    Steering(program, lambda address: False, lambda at: False, set).prepare(Desired())
    assert program.there == {}


# -- reload --------------------------------------------------------------------------------------------------------


def test_a_reload_makes_anew_what_changed(counted: Callable[..., Counter[str]], tmp_path: Path) -> None:
    old = config()
    new = config(weight=7).keeping(old)
    assert sum(a is not b for a, b in zip(old.service, new.service, strict=True)) == 1
    assert new == config(weight=7) and new != old
    composer = Composer(old)
    health = Checks(FakeLoop(), lambda where, up: None, lambda where, result, seconds: None)  # type: ignore[arg-type]
    runtime = Runtime(tmp_path / "runtime.json")
    health.configure(old, runtime)
    counted(composer, "_service")
    calls = counted(checks, "build_check")
    composer.configure(new)
    health.configure(new, runtime)
    assert calls == {"_service": 1}
    assert changes(old, new) == [f"service s{SERVICES // 2}: weight of 10.1.100.4:80 is now 7, was 1"]


def test_what_a_reload_replaced_is_freed(tmp_path: Path) -> None:
    """By reference counts: the collector never sees it. A configuration of 20,000 real servers is 20 MB, and as much again in
    what is made of it."""
    first = config()
    composer, runtime = Composer(first), Runtime(tmp_path / "runtime.json")
    course = Course(runtime, first)
    health = Checks(FakeLoop(), lambda where, up: None, lambda where, result, seconds: None)  # type: ignore[arg-type]
    steering = Steering(Program(), lambda address: False, lambda at: False, set)
    reconciler, _ = make()
    link = Link(2, "eth0", bytes(6), 1500, True, "", None, None)
    snapshot = Snapshot((link,), (), (Route(IPv4Network("10.1.0.0/16"), None, 2, 0),), (), (), ())

    def come_in(new: Config) -> None:
        course.configure(new)
        composer.configure(new)
        health.configure(new, runtime)
        composer.look(Reach(new, snapshot))
        assert reconciler.update(composer.desired)
        steering.prepare(composer.desired)
        steering.extend()

    def counted() -> Counter[str]:
        kinds = (ConfiguredService, ConfiguredServer, Endpoint, IPv4Address, Service, RealServer, Check, encode.Key, Server, Status)
        return Counter(type(o).__name__ for o in gc.get_objects() if isinstance(o, kinds))

    gc.collect()
    before = counted()
    gc.disable()
    try:
        come_in(first)
        del first
        with_one = counted()
        for n in range(3):
            come_in(config(every=10 + n).keeping(course._config))
            assert counted() == with_one
    finally:
        gc.enable()
    assert {with_one[name] - before[name] for name in ("TcpCheck", "Status", "Server")} == {SERVICES * SERVERS}


def test_a_check_that_stays_is_the_same_one(tmp_path: Path) -> None:
    def one(*servers: str, interval: int = 2) -> Config:
        reals = "".join(f'[[service.real_server]]\naddress = "{s}"\n' for s in servers)
        health = f'[service.health]\ntype = "tcp"\ninterval = "{interval}s"\n'
        head = 'interface = [{ name = "eth0" }]\n[[service]]\nname = "s"\naddress = "192.0.2.1:80"\nmode = "nat"\n'
        return loads(head + health + reals)

    health = Checks(FakeLoop(), lambda where, up: None, lambda where, result, seconds: None)  # type: ignore[arg-type]

    def made(wanted: Config) -> dict[Any, Check]:
        health.configure(wanted, Runtime(tmp_path / "runtime.json"))
        found = health._made["s"][1]
        assert all(found[where] is check for where, check in health._health._wanted.items())
        assert len(found) == len(wanted.service[0].real_server)
        return found

    before = made(one("10.1.0.1:80", "10.1.0.2:80"))
    after = made(one("10.1.0.2:80", "10.1.0.3:80"))
    assert after["s", "10.1.0.2:80"] is before["s", "10.1.0.2:80"]
    assert made(one("10.1.0.2:80", "10.1.0.3:80", interval=3))["s", "10.1.0.3:80"].interval == 3


def test_a_reload_that_moves_services_keeps_them() -> None:
    old = config()
    new = config(leave_out=3).keeping(old)
    known = {s.name: s for s in old.service}
    assert len(new.service) == SERVICES - 1 and all(known[s.name] is s for s in new.service)


def test_maintenance_of_one_makes_no_checks(counted: Callable[..., Counter[str]], tmp_path: Path) -> None:
    whole = config()
    health = Checks(FakeLoop(), lambda where, up: None, lambda where, result, seconds: None)  # type: ignore[arg-type]
    runtime = Runtime(tmp_path / "runtime.json")
    health.configure(whole, runtime)
    calls = counted(health_check, "build_check")
    runtime.change(("s5", "10.1.5.1:80"), state="maint")
    health.configure(whole, runtime)
    assert ("s5", "10.1.5.1:80") not in health.states() and len(health.states()) == SERVICES * SERVERS - 1
    runtime.change(("s5", "10.1.5.1:80"), state="ready")
    health.configure(whole, runtime)
    assert len(health.states()) == SERVICES * SERVERS and not calls


class FakeLoop:
    def time(self) -> float:
        return 0.0

    def call_at(self, *_: Any) -> Any:
        return Handle()


class Handle:
    def cancel(self) -> None:
        pass


# -- the network ---------------------------------------------------------------------------------------------------


def test_next_hops_are_looked_up_when_routes_or_destinations_change(counted: Callable[..., Counter[str]]) -> None:
    link = Link(2, "eth0", bytes(6), 1500, True, "", None, None)
    routes = (Route(IPv4Network("10.1.0.0/16"), None, 2, 0),)
    whole = config()
    composer = Composer(whole)
    calls = counted(RouteIndex, "lookup")

    def look(*more: Route) -> None:
        composer.look(Reach(whole, Snapshot((link,), (), (*routes, *more), (), (), ())))

    look()
    assert calls["lookup"] == SERVICES * SERVERS
    look()
    composer.configure(config())
    look()
    assert calls["lookup"] == SERVICES * SERVERS
    look(Route(IPv4Network("10.2.0.0/16"), None, 2, 0))
    assert calls["lookup"] == 2 * SERVICES * SERVERS
