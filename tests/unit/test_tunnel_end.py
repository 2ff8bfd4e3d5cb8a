# SPDX-License-Identifier: Apache-2.0
"""Tunnels that end here, the master's side: what a configuration may say, what workers are told, what is steered and counted."""

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lbd.config import ConfigError, loads
from lbd.config.tunnel import TUNNEL_MAX
from lbd.master import encode
from lbd.master.compose import Composer
from lbd.master.desired import Desired, Encapsulation, RealServer, Service, Tunnel
from lbd.master.encode import Key, Kind
from lbd.master.offline import offline_commands
from lbd.master.steering import Steering
from lbd.master.tunnel_end import NOTHING, counted
from lbd.shm import _shm as shm

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
[[tunnel]]
name = "edge"
type = "gre"
local = "10.0.0.1"
remote = "203.0.113.9"
"""
HERE, THERE = bytes([10, 0, 0, 1]), bytes([203, 0, 113, 9])
HERE6, THERE6 = bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("20010db8000f" + "00" * 9 + "09")
NEXT = 'name = "next"\n'


# -- configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "field", "words"),
    [
        (NEXT + 'type = "gue"\nlocal = "10.0.0.1"', "tunnel[1].type", "gre"),
        (NEXT, "tunnel[1].local", "is missing"),
        (NEXT + 'local = "eth0"', "tunnel[1].local", "IPv4 or IPv6 address"),
        (NEXT + 'local = "10.0.0.1/24"', "tunnel[1].local", "IPv4 or IPv6 address"),
        (NEXT + 'local = "10.0.0.1"\nremote = "2001:db8::9"', "tunnel[1].remote", "must be IPv4 as `local`"),
        (NEXT + 'local = "fd00::1"\nremote = "203.0.113.9"', "tunnel[1].remote", "must be IPv6 as `local`"),
        ('name = "edge"\nlocal = "10.0.0.2"', "tunnel[1].name", "tunnel[0] has this name"),
        (NEXT + 'type = "gre"\nlocal = "10.0.0.1"\nremote = "203.0.113.9"', "tunnel[1].local", "tunnel[0] has this type"),
        (NEXT + 'local = "10.0.0.1"\nkey = 5', "tunnel[1].key", "unknown key"),
        (NEXT + 'local = "10.0.0.1"\nchecksum = "full"', "tunnel[1].checksum", "unknown key"),
    ],
    ids=["GUE", "no local", "a name", "a network", "remote IPv6", "remote IPv4", "name twice", "tunnel twice", "key", "checksum"],
)
def test_what_is_refused(added: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(GOOD + f"[[tunnel]]\n{added}\n")
    assert [p.field for p in caught.value.problems] == [field], caught.value.problems
    assert words in caught.value.problems[0].message, caught.value.problems[0].message


def test_what_is_good() -> None:
    more = [
        'type = "ipip"\nlocal = "10.0.0.1"\nremote = "203.0.113.9"',  # another type between the same
        'type = "gre"\nlocal = "10.0.0.1"',  # from anywhere, beside one that is from somewhere
        'local = "fd00::1"\nremote = "2001:db8:f::9"',
    ]
    text = GOOD + "".join(f'[[tunnel]]\nname = "t{n}"\n{each}\n' for n, each in enumerate(more))
    assert [(t.type, str(t.local), t.remote is None) for t in loads(text).tunnel] == [
        ("gre", "10.0.0.1", False), ("ipip", "10.0.0.1", False), ("gre", "10.0.0.1", True), ("ipip", "fd00::1", False),
    ]  # fmt: skip


def many(number: int) -> str:
    return GOOD + "".join(f'[[tunnel]]\nname = "t{n}"\nlocal = "10.9.{n >> 8}.{n & 255}"\n' for n in range(number))


def test_as_many_as_a_worker_knows() -> None:
    assert len(loads(many(TUNNEL_MAX - 1)).tunnel) == TUNNEL_MAX
    with pytest.raises(ConfigError, match="tunnel"):
        loads(many(TUNNEL_MAX))


# -- commands ------------------------------------------------------------------------------------------------


TUNNELS = (Tunnel("ipip", HERE, b""), Tunnel("gre", HERE, THERE), Tunnel("ipip", HERE6, THERE6), Tunnel("gre", HERE6, b""))


def told(command: bytes) -> tuple[Any, ...]:
    """Operation, generation, and the fields of struct CmdTunnel; the rest is zeros."""
    op, _, number, generation = shm.command_head(command)
    assert number == 0 and not any(command[16 + 34 :])
    local, remote, af, kind = struct.unpack_from("16s16sBB", command, 16)
    return op, generation, local, remote, af, kind


def test_records() -> None:
    records = encode.tunnels(TUNNELS)
    assert list(records) == [
        Key(Kind.TUNNEL, (kind, local, remote))
        for kind, local, remote in (
            (shm.TUNNEL_IPIP, HERE, b""), (shm.TUNNEL_GRE, HERE, THERE), (shm.TUNNEL_IPIP, HERE6, THERE6),
            (shm.TUNNEL_GRE, HERE6, b""),
        )
    ]  # fmt: skip
    four = (HERE.ljust(16, b"\0"), 4)
    want = [
        (four[0], bytes(16), 4, shm.TUNNEL_IPIP), (four[0], THERE.ljust(16, b"\0"), 4, shm.TUNNEL_GRE),
        (HERE6, THERE6, 6, shm.TUNNEL_IPIP), (HERE6, bytes(16), 6, shm.TUNNEL_GRE),
    ]  # fmt: skip
    for (key, record), each in zip(records.items(), want, strict=True):
        assert told(encode.set_command(record, 7, fresh=True)) == (shm.CMD_TUNNEL_SET, 7, *each)
        assert told(encode.delete_command(key, 8)) == (shm.CMD_TUNNEL_DEL, 8, *each)
    assert shm.command_head(encode.sweep(Kind.TUNNEL, 9)) == (shm.CMD_SWEEP, 0, shm.SWEEP_TUNNEL, 9)


@pytest.mark.parametrize(
    ("more", "words"),
    [({"kind": shm.TUNNEL_GUE}, "kind"), ({"local": HERE6}, "4 bytes"), ({"remote": THERE6}, "4 bytes"), ({"af": 5}, "af")],
    ids=["GUE", "local", "remote", "family"],
)
@pytest.mark.parametrize("build", [shm.tunnel_set, shm.tunnel_del])
def test_commands_that_no_worker_would_take(build: Callable[..., bytes], more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(1, **{"af": 4, "kind": shm.TUNNEL_GRE, "local": HERE, "remote": THERE, **more})


def test_offline_too() -> None:
    """Replay's engine is told as workers are."""
    commands, _, _ = offline_commands(loads(GOOD))
    [command] = [c for c in commands if shm.command_head(c)[0] == shm.CMD_TUNNEL_SET]
    assert told(command)[2:] == (HERE.ljust(16, b"\0"), THERE.ljust(16, b"\0"), 4, shm.TUNNEL_GRE)


# -- steering ------------------------------------------------------------------------------------------------


class Program:
    """Of lbd.xdp._xsk.Program what tunnels need; it has nothing else. The whole: tests/unit/test_steer.py."""

    def __init__(self) -> None:
        self.steered: set[object] = set()
        for name in ("services", "lips", "sources", "locals", "macs"):
            setattr(self, name, dict)
        for name in ("set_service", "del_service", "set_lip", "set_snat", "set_mac"):
            setattr(self, name, lambda *_, **__: None)

    def prefixes(self, name: str) -> dict[object, int]:
        return {}

    def snat(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        return 0, 0, (0,) * 3, (0,) * 16

    def tunnels(self) -> set[object]:
        return set(self.steered)

    def set_tunnel(self, *at: object) -> None:
        self.steered.add(at)

    def del_tunnel(self, *at: object) -> None:
        self.steered.discard(at)


ENDS = {(4, HERE, b"", 4, 0), (4, HERE, THERE, 47, 0), (6, HERE6, THERE6, 4, 0), (6, HERE6, b"", 47, 0)}


def test_taken_when_workers_know_and_given_back_before_they_forget() -> None:
    program = Program()
    steering = Steering(program, lambda _: False, lambda _: False, set)
    steering.prepare(Desired(tunnels=TUNNELS))
    assert program.steered == set(), "workers don't know them yet"
    steering.extend()
    assert program.steered == ENDS
    steering.prepare(Desired(tunnels=TUNNELS[:1]))
    assert program.steered == {(4, HERE, b"", 4, 0)}
    steering.prepare(Desired())
    assert program.steered == set()
    steering.prepare(Desired(tunnels=TUNNELS))
    steering.extend()
    steering.stop()
    assert program.steered == set()


def test_beside_real_servers_behind_tunnels() -> None:
    """Errors about packets for those are lbd's before the first one can come."""
    program = Program()
    steering = Steering(program, lambda _: False, lambda _: False, set)
    far = RealServer(bytes([10, 0, 1, 1]), 80, 1, True, tunnel=Encapsulation("gue", 6080))
    service = Service("s", bytes([192, 0, 2, 1]), 80, 6, "rr", (far,), mode="tunnel")
    wrapped = {(4, b"", far.address, 17, 6080)}
    steering.prepare(Desired((service,), tunnels=TUNNELS))
    assert program.steered == wrapped
    steering.extend()
    assert program.steered == wrapped | ENDS
    steering.prepare(Desired(tunnels=TUNNELS))
    assert program.steered == ENDS


def test_a_new_master_finds_them_steered() -> None:
    program = Program()
    old = Steering(program, lambda _: False, lambda _: False, set)
    old.prepare(Desired(tunnels=TUNNELS))
    old.extend()
    new = Steering(program, lambda _: False, lambda _: False, set)
    new.prepare(Desired(tunnels=TUNNELS[1:]))
    assert program.steered == ENDS - {(4, HERE, b"", 4, 0)}, "what is wanted still is never given back in between"
    new.extend()
    assert program.steered == ENDS - {(4, HERE, b"", 4, 0)}


def test_composer_and_steering_agree() -> None:
    desired = Composer(loads(GOOD)).desired
    program = Program()
    steering = Steering(program, lambda _: False, lambda _: False, set)
    steering.prepare(desired)
    steering.extend()
    assert program.steered == {(4, HERE, THERE, 47, 0)}


# -- counts --------------------------------------------------------------------------------------------------


def test_counts_are_sums_over_workers() -> None:
    tunnels = loads(GOOD + '[[tunnel]]\nname = "any"\ntype = "gre"\nlocal = "10.0.0.1"\n').tunnel
    one = [(shm.TUNNEL_GRE, HERE, THERE, 5, 500, 1), (shm.TUNNEL_GRE, HERE, b"", 7, 700, 0)]
    two = [(shm.TUNNEL_GRE, HERE, THERE, 1, 100, 2), (shm.TUNNEL_IPIP, HERE, THERE, 9, 9, 9)]
    segments: list[Any] = [SimpleNamespace(tunnels=lambda rows=rows: rows) for rows in (one, two)]
    assert [(t.name, counts) for t, counts in counted(tunnels, segments)] == [("edge", (6, 600, 3)), ("any", (7, 700, 0))]
    assert [counts for _, counts in counted(tunnels, [])] == [NOTHING, NOTHING]
