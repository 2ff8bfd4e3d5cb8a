"""Desired values to command records: what `reconcile.py` compares, orders and sends.

Scope: a thin layer over the builders of lbd.shm. A record is a whole command with generation 0 and no flag of its
own, so that two records are equal exactly if they tell a worker the same; the generation is written in when it is sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

from lbd.master.desired import (
    Encapsulation,
    Interface,
    LocalAddress,
    Neighbour,
    Range,
    RealServer,
    Route,
    Service,
    ServiceKey,
    SnatRule,
    Tunnel,
)
from lbd.shm import _shm as shm

HEAD = struct.Struct("=HHII")  # Cmd: op, flags, id, gen


EXPIRE = {"nodest": shm.SVC_EXPIRE_NODEST, "quiescent": shm.SVC_EXPIRE_QUIESCENT}
END = {"": 0, "expire": shm.DEST_END, "reset": shm.DEST_END | shm.DEST_RESET}
MODES = {"fullnat": shm.MODE_FULLNAT, "nat": shm.MODE_NAT, "dr": shm.MODE_DR, "tunnel": shm.MODE_TUNNEL}


KINDS = {"ipip": shm.TUNNEL_IPIP, "gre": shm.TUNNEL_GRE, "gue": shm.TUNNEL_GUE}


class Kind(IntEnum):
    """What a command is about, in the order in which things are set; they are deleted in the opposite order."""

    SETTING = 0
    IFACE = 1
    NEIGH = 2
    ROUTE = 3
    LIP = 4
    DEST = 5
    SVC = 6
    TUNNEL = 7


class Key(NamedTuple):
    """One thing that a worker holds: a number, or (interface, address, tags), (prefix, length), or what a tunnel is."""

    kind: Kind
    ident: tuple[int | bytes, ...]


SWEEPS = {
    Kind.IFACE: shm.SWEEP_IFACE,
    Kind.NEIGH: shm.SWEEP_NEIGH,
    Kind.ROUTE: shm.SWEEP_ROUTE,
    Kind.LIP: shm.SWEEP_LIP,
    Kind.DEST: shm.SWEEP_DEST,
    Kind.SVC: shm.SWEEP_SVC,
    Kind.TUNNEL: shm.SWEEP_TUNNEL,
}


def family(address: bytes) -> int:
    return 4 if len(address) == 4 else 6


# -- records -------------------------------------------------------------------------------------------------


def settings(values: Mapping[int, int]) -> dict[Key, bytes]:
    return {Key(Kind.SETTING, (n,)): shm.setting(n, value, 0) for n, value in values.items()}


def interfaces(many: Iterable[Interface]) -> dict[Key, bytes]:
    return {
        Key(Kind.IFACE, (i.number,)): shm.iface_set(
            i.number, 0, mac=i.mac, mtu=i.mtu, ifindex=i.ifindex, flags=i.flags,
            addr4=i.address4 or bytes(4), addr6=i.address6 or bytes(16), lower=i.lower, tags=i.tags, policy=i.policy,
            members=i.members, of=i.of,
        )
        for i in many
    }  # fmt: skip


def neighbours(many: Iterable[Neighbour]) -> dict[Key, bytes]:
    return {
        Key(Kind.NEIGH, (n.iface, n.address, n.tags)): shm.neigh_set(
            0, iface=n.iface, af=family(n.address), addr=n.address, mac=n.mac, tags=n.tags
        )
        for n in many
    }


def routes(many: Iterable[Route]) -> dict[Key, bytes]:
    return {
        Key(Kind.ROUTE, (r.prefix, r.plen)): shm.route_set(
            0, af=family(r.prefix), prefix=r.prefix, plen=r.plen, iface=r.iface, gateway=r.gateway,
            metric=r.metric, tags=r.tags,
        )
        for r in many
    }  # fmt: skip


def tunnels(many: Iterable[Tunnel]) -> dict[Key, bytes]:
    return {
        Key(Kind.TUNNEL, (KINDS[t.kind], t.local, t.remote)): shm.tunnel_set(
            0, af=family(t.local), kind=KINDS[t.kind], local=t.local, remote=t.remote
        )
        for t in many
    }


def local_address(number: int, lip: LocalAddress) -> bytes:
    return shm.lip_set(
        number, 0, af=family(lip.address), addr=lip.address, port_lo=lip.port_lo, port_hi=lip.port_hi, snat=lip.snat
    )


def way(tunnel: Encapsulation) -> int:
    return KINDS[tunnel.kind] | (shm.TUNNEL_CSUM if tunnel.checksum else 0)


def dest(number: int, real: RealServer, svc: int, weight: int) -> bytes:
    """`weight`: its own, in the measure of its service at the moment."""
    return shm.dest_set(
        number, 0, af=family(real.address), addr=real.address, port=real.port, svc=svc, weight=weight, up=real.up,
        flags=END[real.end], tunnel=way(real.tunnel), tunnel_port=real.tunnel.port, quic_id=real.quic_id, upper=real.upper,
        lower=min(real.lower, real.upper),
    )  # fmt: skip


def sorry(number: int, address: bytes, port: int, svc: int, tunnel: Encapsulation) -> bytes:
    return shm.dest_set(
        number, 0, af=family(address), addr=address, port=port, svc=svc, flags=shm.DEST_SORRY, tunnel=way(tunnel),
        tunnel_port=tunnel.port,
    )  # fmt: skip


def service(number: int, s: Service, kind: int, flags: int, table_at: int, table_len: int, sorry: int | None) -> bytes:
    """Kind and flags: those of its scheduler. `sorry`: number of its sorry server."""
    flags |= (shm.SVC_PERSIST if s.persistence else 0) | (shm.SVC_ONE_PACKET if s.one_packet else 0)
    for name in s.expire:
        flags |= EXPIRE[name]
    return shm.svc_set(
        number, 0, af=family(s.address), addr=s.address, port=s.port, proto=s.protocol, sched=kind,
        flags=flags | (shm.SVC_HASH_QID if s.hash_qid else 0), mode=MODES[s.mode], table_off=table_at, table_len=table_len,
        timeout_established=s.timeout_established, timeout_fin=s.timeout_fin, timeout_udp=s.timeout_udp, sorry=sorry,
        quic=s.quic[0], quic_len=s.quic[1], quic_config=s.quic[2],
        source4=next((a for a in s.sources if len(a) == 4), bytes(4)),
        source6=next((a for a in s.sources if len(a) == 16), bytes(16)),
        persist=s.persistence, persist_plen=s.persistence_prefix,
    )  # fmt: skip


def further_address(number: int, key: ServiceKey, mode: str, target: int) -> bytes:
    """Another address of the service with the number `target`."""
    address, port, protocol = key
    return shm.svc_set(
        number, 0, af=family(address), addr=address, port=port, proto=protocol, sched=shm.SCHED_SEQ, flags=shm.SVC_ALIAS,
        mode=MODES[mode], target=target,
    )  # fmt: skip


def snat_dest(number: int, rule: SnatRule, svc: int) -> bytes:
    """The record that holds a rule's statistics; no address, no port."""
    af = family(rule.pool[0])
    return shm.dest_set(number, 0, af=af, addr=bytes(4 if af == 4 else 16), port=0, svc=svc)


def snat_table(dest: int, pool: Iterable[int], rule: SnatRule) -> list[int]:
    """A rule's part of the arena (snat.pxd)."""
    return [dest, *pool, *words(rule.source), *words(rule.destination)]


def words(ranges: Iterable[Range]) -> list[int]:
    return [int.from_bytes(a[n : n + 4], "big") for pair in ranges for a in pair for n in range(0, len(a), 4)]


def snat(number: int, rule: SnatRule, table_at: int) -> bytes:
    ways = [shm.SNAT_ANY if n is None else n for n in (rule.in_interface, rule.out_interface)]
    return shm.snat_set(
        number, 0, digest=rule.key[0], af=family(rule.pool[0]), protocols=rule.protocols, order=rule.order, pool=len(rule.pool),
        sources=len(rule.source), dests=len(rule.destination), table_off=table_at, timeout_established=rule.timeout_established,
        ifin=ways[0], ifout=ways[1],
    )  # fmt: skip


# -- commands ------------------------------------------------------------------------------------------------


def set_command(record: bytes, generation: int, fresh: bool) -> bytes:
    op, flags, number, _ = HEAD.unpack_from(record)
    return HEAD.pack(op, flags | (shm.CMD_FRESH if fresh else 0), number, generation) + record[HEAD.size :]


def delete_command(key: Key, generation: int) -> bytes:
    match key:
        case Key(Kind.IFACE, (int(number),)):
            return shm.iface_del(number, generation)
        case Key(Kind.NEIGH, (int(iface), bytes(address), int(tags))):
            return shm.neigh_del(generation, iface=iface, af=family(address), addr=address, tags=tags)
        case Key(Kind.ROUTE, (bytes(prefix), int(plen))):
            return shm.route_del(generation, af=family(prefix), prefix=prefix, plen=plen)
        case Key(Kind.TUNNEL, (int(kind), bytes(local), bytes(remote))):
            return shm.tunnel_del(generation, af=family(local), kind=kind, local=local, remote=remote)
        case Key(Kind.LIP, (int(number),)):
            return shm.lip_del(number, generation)
        case Key(Kind.DEST, (int(number),)):
            return shm.dest_del(number, generation)
        case Key(Kind.SVC, (int(number),)):
            return shm.svc_del(number, generation)
    raise ValueError(f"{key} is never deleted")


def sweep(kind: Kind, generation: int) -> bytes:
    return shm.sweep(SWEEPS[kind], generation)


def end(generation: int) -> bytes:
    return shm.nop(generation)
