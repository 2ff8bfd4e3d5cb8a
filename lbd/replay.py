# SPDX-License-Identifier: Apache-2.0
"""The packet engine offline: packets with their own timestamps in, verdicts and packets out.

Scope: pure but for reading the captures. No sockets, no root, no clock: the same input gives the same
output. The engine is the one that the daemon's workers run, over private memory; static [[neighbor]] and
[[route]] entries of the configuration stand in for the kernel, and every real server counts as up.

- Packets of all files are merged by timestamp; equal ones keep the order of files, and of packets within a
  file.
- A packet's interface is the [[interface]] that its capture names (pcapng), else the one at the place of
  its file in the order of files, or what the caller says.
- A burst is up to 64 consecutive packets of the same millisecond, the engine's clock. Time never goes back.
  A gap longer than any timeout (8 days) counts as 8 days, or the engine's 32-bit clock would wrap.
- Everything is held in memory, since files need not be in order.
- What `lbd capture` took at its points tx and drop is no input and is passed over; what it says of its
  interfaces (MAC, MTU, addresses, checksums left to others) is believed, so that replaying what a daemon received
  (with one worker, from its start) gives the bytes that it sent.
- To be timed, packets come as under load: in full bursts, whatever millisecond each is of, but never more than a
  second together. Only `engine_burst` is in the time: no sockets, no driver, no Python; neither writing the frames
  before each pass nor the timers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol

from lbd.config import Config
from lbd.config.address import Endpoint
from lbd.master.compose import snat_rules
from lbd.master.offline import MTU, offline_commands, offline_mac
from lbd.master.reconcile import Reconciler
from lbd.pcap import ETHERNET, Interface, PcapError, Truncated, read_file
from lbd.shm import _shm as shm

BURST_MAX = 64
FRAME_MAX = 65535
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
BATCH = 128  # bursts of a timed batch, whose frames are written at once: 16 MiB, more than an L2 cache, less than an L3
GAP_MAX = 8 * 86400 * 1_000_000_000
START = 1_000_000_000  # the engine's time of the first packet: not 0, which might mean "never"
CHECKSUMS = {"partial_checksums": shm.IFACE_PARTIAL, "kernel_checksums": shm.IFACE_COMPLETES}
OUTPUT_POINTS = ("lbd tx", "lbd drop")


class Input(NamedTuple):
    number: int  # from 0, over all files, in their order
    ts_ns: int
    iface: int
    data: bytes
    cut: bool  # the capture has not all of it


@dataclass
class Inputs:
    """What was read."""

    packets: list[Input]  # by time
    interfaces: dict[int, Interface]  # by number: what the captures say of it
    skipped: int  # lbd's own output
    notes: list[str]  # for people


class ReplayError(Exception):
    """Inputs or configuration that can't be replayed; the text says why and what to do."""


# -- reading -------------------------------------------------------------------------------------------------


def read_inputs(config: Config, paths: Sequence[str], interfaces: Sequence[str] = ()) -> Inputs:
    """`interfaces`: names, one for all files, or one for each."""
    numbers = {interface.name: n for n, interface in enumerate(config.interface)}
    if not numbers:
        raise ReplayError(
            "the configuration has no [[interface]]; add one for each interface of the captures"
        )
    if len(interfaces) > 1 and len(interfaces) != len(paths):
        raise ReplayError(
            f"{len(interfaces)} interfaces for {len(paths)} files; give one for all, or one for each"
        )
    for name in interfaces:
        if name not in numbers:
            raise ReplayError(f'the configuration has no interface "{name}", only {", ".join(numbers)}')
    inputs = Inputs([], {}, 0, [])
    index = itertools.count()
    for n, path in enumerate(paths):
        fixed = numbers[interfaces[n if len(interfaces) > 1 else 0]] if interfaces else None
        default = n if n < len(numbers) else None
        _read(inputs, path, index, numbers, fixed, default)
    inputs.packets.sort(key=lambda p: p.ts_ns)
    return inputs


def _read(
    inputs: Inputs,
    path: str,
    index: Iterator[int],
    numbers: dict[str, int],
    fixed: int | None,
    default: int | None,
) -> None:
    cut = 0
    try:
        for packet in read_file(path):
            i = next(index)
            interface = packet.interface
            if interface.linktype != ETHERNET:
                raise ReplayError(
                    f"{path}: link type {interface.linktype}; packets must have Ethernet headers"
                )
            if interface.description in OUTPUT_POINTS:
                inputs.skipped += 1
                continue
            number = fixed if fixed is not None else numbers.get(interface.name, default)
            if number is None:
                raise ReplayError(
                    f"{path}: which interface its packets came in by is not known; name it with --interface"
                )
            inputs.interfaces.setdefault(number, interface)
            shortened = packet.length > len(packet.data)
            cut += shortened
            inputs.packets.append(Input(i, packet.ts_ns, number, packet.data[:FRAME_MAX], shortened))
    except Truncated as error:
        inputs.notes.append(f"{error}; what is before it is used")
    except PcapError as error:
        raise ReplayError(str(error)) from None
    if cut:
        inputs.notes.append(f"{path}: {cut} packets are cut by the capture's snap length, and so malformed")


# -- the engine ----------------------------------------------------------------------------------------------


class Result(Protocol):
    """Of one packet (lbd/_fastpath.pyx)."""

    verdict: str
    reason: str
    svc: int | None
    dest: int | None
    out: list[tuple[int, bytes]]


class Outcome(NamedTuple):
    packet: Input
    verdict: str  # forward drop kernel consume
    reason: str
    service: str | None
    real_server: str | None
    out: list[tuple[int, bytes]]  # (interface number, bytes)

    def line(self) -> dict[str, Any]:
        """As `lbd replay --verdicts` writes it."""
        return {
            "index": self.packet.number,
            "verdict": self.verdict,
            "reason": self.reason,
            "service": self.service,
            "real_server": self.real_server,
        }


class Replay:
    def __init__(self, config: Config, interfaces: dict[int, Interface] | None = None) -> None:
        from lbd._fastpath import Engine

        self.config = config
        # one worker: who owns a flow depends on a live host's secret key
        self.engine = Engine({**config.sizes(), "workers": 1})
        known = interfaces or {}
        macs = {config.interface[n].name: i.mac for n, i in known.items() if len(i.mac) == 6}
        commands, tables, self._numbers = offline_commands(config, macs)
        for offset, slots in tables:
            self.engine.set_table(offset, slots)
        for command in [*commands, *(self._interface(n, i) for n, i in known.items())]:
            if not self.engine.apply(command):
                raise ReplayError(
                    f"the engine refuses command {shm.command_head(command)}; the tables are full"
                )
        self._services: dict[Any, str] = {s.key: s.name for s in config.service}
        for rule in snat_rules(config):
            digest, port, protocol = rule.key
            self._services[protocol, ip_address(digest), port] = rule.name
        self._now = START
        self._last: int | None = None  # timestamp
        self._held: dict[int, Input] = {}  # fragments that wait for their first one, by number
        self._number = 0  # of the next packet given to the engine

    def _interface(self, number: int, said: Interface) -> bytes:
        """As the capture says that it was."""
        words = said.hardware.split()
        mtu = next((w[4:] for w in words if w.startswith("mtu=")), "")
        own = self._own_addresses(said)
        return shm.iface_set(
            number,
            self._numbers.generation,
            mac=said.mac if len(said.mac) == 6 else offline_mac(number),
            mtu=min(max(int(mtu), 68), 65535) if mtu.isascii() and mtu.isdigit() and len(mtu) < 8 else MTU,
            ifindex=number + 1,
            flags=shm.IFACE_UP | sum(flag for word, flag in CHECKSUMS.items() if word in words),
            addr4=own.get(4, bytes(4)),
            addr6=own.get(16, bytes(16)),
        )

    def _own_addresses(self, said: Interface) -> dict[int, bytes]:
        """The sources of ICMP errors: the host's own, neither a service's nor a LIP."""
        taken = {vip.packed for s in self.config.service for vip in s.vips} | {
            lip.address.packed for lip in self.config.own_addresses()
        }
        own = [a for a in said.addresses if a not in taken and not ip_address(a).is_link_local]
        return {len(a): a for a in reversed(own)}

    # -- running ---------------------------------------------------------------------------------------------

    def run(self, packets: Iterable[Input]) -> Iterator[Outcome]:
        """Outcomes in the order of the packets; that of a fragment which came before the first one of its datagram behind that
        one's. May be called again: time goes on."""
        for burst in bursts(packets):
            now = self._advance(burst[0].ts_ns)
            self.engine.expire(now)
            results = self.engine.process([(p.data, p.iface) for p in burst], now, number=self._number)
            for k, (packet, result) in enumerate(zip(burst, results, strict=True), self._number):
                if result.verdict == "hold":
                    self._held[k] = packet
                else:
                    yield self._outcome(packet, result)
            self._number += len(burst)
            while released := self.engine.released(now):
                for k, _, _, result in released:
                    if k in self._held:
                        yield self._outcome(self._held.pop(k), result)
        for packet in self._held.values():  # what the timeout will make of them
            yield Outcome(packet, "drop", "frag_timeout", None, None, [])
        self._held.clear()

    def time(self, packets: Sequence[Input]) -> tuple[int, Counter[str]]:
        """ns that the engine takes for all packets, and how many got which verdict. May be called again: time goes on."""
        spent, verdicts = 0, Counter[str]()
        whole = bursts(packets, SECOND)
        while batch := [
            ([(p.data, p.iface) for p in burst], self._advance(burst[0].ts_ns)) for burst in itertools.islice(whole, BATCH)
        ]:
            ns, seen = self.engine.time(batch)
            spent += ns
            verdicts.update(seen)
        return spent, verdicts

    def rewind(self) -> None:
        """Before the same packets are run again: their first follows the last one at once."""
        self._last = None
        self._now += MILLISECOND

    def _advance(self, ts_ns: int) -> int:
        if self._last is not None:
            self._now += min(max(ts_ns - self._last, 0), GAP_MAX)
        self._last = ts_ns if self._last is None else max(ts_ns, self._last)
        return self._now

    def _outcome(self, packet: Input, result: Result) -> Outcome:
        service = real_server = None
        if result.svc is not None:
            service = service_name(self._numbers, self._services, result.svc)
        if result.dest is not None:
            real_server = real_server_name(self._numbers, result.dest)
        return Outcome(packet, result.verdict, result.reason, service, real_server, result.out)


def bursts(packets: Iterable[Input], span: int = MILLISECOND) -> Iterator[list[Input]]:
    for _, group in itertools.groupby(packets, key=lambda p: p.ts_ns // span):
        while burst := list(itertools.islice(group, BURST_MAX)):
            yield burst


def service_name(numbers: Reconciler, names: dict[Any, str], number: int) -> str | None:
    key = numbers.services.key(number)
    if key is None:
        return None
    address, port, protocol = key
    return names.get((protocol, ip_address(address), port))


def real_server_name(numbers: Reconciler, number: int) -> str | None:
    key = numbers.dests.key(number)
    return str(Endpoint(ip_address(key[1]), key[2])) if key is not None and any(key[1]) else None  # no address: an SNAT rule's
