# SPDX-License-Identifier: Apache-2.0
"""The whole configuration, as one immutable object. Attribute names are those of the TOML file.

The tables' models are in daemon.py, interface.py and service.py, their values' types in value.py and
address.py. What no single field can tell (duplicates, families, references) is in rule.py and oddity.py.
`load` and `loads` of source.py make a Config from a file.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import Field, PrivateAttr

from lbd.config.daemon import Daemon, Metrics, Packet, Tables, Timeouts, Workers
from lbd.config.frame import frame_sizes
from lbd.config.interface import IFACE_MAX, Interface, LocalAddress, Neighbor, Route
from lbd.config.problem import Problem
from lbd.config.section import Section
from lbd.config.service import Service
from lbd.config.snat import RULE_MAX, Snat
from lbd.config.tunnel import TUNNEL_MAX, Tunnel

LIP_MAX = 1024  # local addresses a worker has room for; 96 bytes each


class Config(Section):
    """Everything that lbd is told at start."""

    daemon: Daemon = Field(Daemon(), description="The master process.")
    workers: Workers = Field(Workers(), description="The worker processes.")
    tables: Tables = Field(Tables(), description="Sizes of tables.")
    interface: tuple[Interface, ...] = Field(
        (), max_length=IFACE_MAX, description="Interfaces, in the order of their numbers."
    )
    local_address: tuple[LocalAddress, ...] = Field(
        (), max_length=LIP_MAX, description="Local addresses (LIPs)."
    )
    timeouts: Timeouts = Field(Timeouts(), description="Timeouts of connections.")
    metrics: Metrics = Field(Metrics(), description="The Prometheus endpoint.")
    packet: Packet = Field(Packet(), description="Treatment of packets.")
    service: tuple[Service, ...] = Field((), description="Services.")
    snat: tuple[Snat, ...] = Field((), max_length=RULE_MAX, description="The way out of internal networks.")
    tunnel: tuple[Tunnel, ...] = Field((), max_length=TUNNEL_MAX, description="Tunnels that end here.")
    neighbor: tuple[Neighbor, ...] = Field((), description="Static neighbours.")
    route: tuple[Route, ...] = Field((), description="Static routes.")

    _warnings: tuple[Problem, ...] = PrivateAttr(())

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What looked odd in the file that it came from; no part of its value."""
        return self._warnings

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Config):
            return NotImplemented
        return self.__dict__ == other.__dict__  # the fields, without _warnings

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def keeping(self, old: "Config") -> "Config":
        """The same value, with those services of `old` themselves that have not changed: who keeps something by service
        then sees at a glance what it need not make anew. Of the others it takes the addresses that are the same, which are
        half of what a real server takes; `self` is of no use after that."""
        known = {s.name: s for s in old.service}
        pairs = ((s, known.get(s.name)) for s in self.service)
        services = tuple(s if was is None else was if was == s else s.at_places_of(was) for s, was in pairs)
        return self.model_copy(update={"service": services})

    def own_addresses(self) -> tuple[LocalAddress, ...]:
        """All that lbd sends from: local addresses and SNAT pools, each once."""
        pools = {a.address: a for rule in self.snat for a in rule.pool}
        return (*self.local_address, *pools.values())

    def to_plain(self) -> dict[str, Any]:
        """What differs from the defaults, in TOML's types: written to a file, it gives this again."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def sizes(self, mtus: Iterable[int] = ()) -> dict[str, int]:
        """The fields of `Sizes` (lbd/shm/layout.pxd). `mtus`: of the interfaces; without them packet buffers are the usual ones.

        They follow from [workers] and [tables] alone: a reload that adds services leaves them as they are.
        """
        tables = self.tables
        return {
            "workers": self.workers.number,
            "services": tables.services,
            "dests": tables.real_servers,
            "lips": LIP_MAX,
            "conns4": tables.connections_ipv4,
            "conns6": tables.connections_ipv6,
            "frames": tables.frames,
            "arena": max(ARENA_MIN, _power_of_two_above(ARENA_PER_SERVICE * tables.services)),
            "cmd_ring": 4096,
            "evt_ring": 1024,
            "capture_ring": 256,
            "hand_ring": tables.frames,  # a ring of descriptors then holds all that its sender may receive
            "templates": tables.persistence_templates,
            **frame_sizes(tables.frame_size, mtus),
        }


ARENA_MIN = 4 << 20  # slots: 31 Maglev tables of 65537 slots, each of them twice while it is replaced
ARENA_PER_SERVICE = 1024


def _power_of_two_above(value: int) -> int:
    return 1 << (value - 1).bit_length()
