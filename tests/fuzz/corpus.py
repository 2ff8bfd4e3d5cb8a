# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_engine.pyx, whose head describes the format: every template of the packet tests, and whole stories.

    python -m tests.fuzz.corpus DIRECTORY      writes them

The names are only for people: libFuzzer goes by content. tests/fuzz/corpus/ holds what was kept of them, and of what the fuzzer
made of them, by its -merge=1 (docs/fuzzing.md).
"""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, LIP, MAC_CLIENT, MAC_LB0, MAC_LB1, VIP, Balancer, packed, server, server_mac
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import TCP, UDP, ethernet, from_client, from_server, ip_packet
from tests.packet.template import TEMPLATES
from tests.packet.test_icmp import KINDS, Error
from tests.unit import _engine

PARTIAL, VERIFY, BY_ROUTE, TWO_WORKERS, RSS, SMALL_MTU, MANY_PORTS, PREVIOUS = (1 << k for k in range(8))
FULLNAT, NAT, DR, IPIP, GRE, GUE, NAT64, ACROSS = range(8)
BARE, PERSIST, SECOND_WORKER, GENERAL, ONE_PACKET = (8 << k for k in range(5))
LPORT = 30000
LARGEST = 3840  # bytes of a frame
MS, SLOT, SECOND, KILOSECOND = range(4)


def packet(frame: bytes, iface: int = 0, *, handed: bool = False, mend: bool = True, hops: int = 0) -> bytes:
    argument = iface | handed << 1 | mend << 2 | hops << 3
    return bytes([argument << 3]) + struct.pack("<H", len(frame)) + frame


def wait(unit: int, count: int, back: bool = False) -> bytes:
    return bytes([(unit | back << 2) << 3 | 4, count])


FLUSH, ENDING, ASIDE, TAKE_IN, TAKEN = (bytes([argument << 3 | 5]) for argument in (0, 3, 4, 5, 6))


def table(off: int, slots: list[int]) -> bytes:
    """Into the arena."""
    return b"".join(
        struct.pack(f"<BHB{len(part)}I", 0x0D, off + at, len(part), *part)
        for at in range(0, len(slots), 255)
        if (part := slots[at : at + 255])
    )


def owners(many: bool, many_before: bool) -> bytes:
    return bytes([0x15, many, many_before])


def frame(data: bytes, iface: int, handed: bool = False, hops: int = 0, flags: int = 0, hand: int = 0, cut: int = 0) -> bytes:
    """As `packet`, of what Engine.process (lbd/_fastpath.pyx) is given."""
    argument = iface & 1 | handed << 1 | (hops & 3) << 3
    cut = cut or LARGEST
    if len(data) > cut:
        return in_frames(data[:200], len(data), cut, iface, handed, hops)
    if hand:
        return struct.pack("<BHI", argument << 3 | 3, len(data), hand) + data
    return struct.pack("<BH", argument << 3 | bool(flags & 128), len(data)) + data


def in_frames(
    head: bytes, size: int, cut: int, iface: int = 0, handed: bool = False, hops: int = 0, partial: bool = False
) -> bytes:
    """A packet of so many bytes in AF_XDP frames of `cut`; its head is given, lengths and checksums are set."""
    argument = iface & 1 | handed << 1 | 4 | (hops & 3) << 3
    return struct.pack("<BHHH", argument << 3 | 2, len(head), size, (cut - 1408) | partial << 15) + head


def command(record: bytes) -> bytes:
    short = record.rstrip(b"\0")
    return bytes([6, len(short)]) + short


def recover(fresh: bool = False) -> bytes:
    return bytes([fresh << 3 | 7])


def client(af: int, flags: str, seq: int = 1000, ack: int = 0, payload: bytes = b"", sport: int = 40000) -> bytes:
    return packet(from_client(af, TCP, sport, flags, seq, ack, payload))


def real(af: int, flags: str, seq: int = 5000, ack: int = 1001, payload: bytes = b"", n: int = 1, lport: int = LPORT) -> bytes:
    """From real server n. Local ports are given out in order from LPORT on; without MANY_PORTS there is that one alone."""
    return packet(from_server(af, TCP, packed(server(af, n)), lport, flags, seq, ack, payload), 1)


def handshake(af: int, sport: int = 40000, n: int = 1, lport: int = LPORT, seq: int = 1000) -> bytes:
    synack = real(af, "SA", 5000, seq + 1, n=n, lport=lport)
    return client(af, "S", seq, sport=sport) + synack + client(af, "A", seq + 1, 5001, sport=sport)


def question(af: int, sport: int = 40000) -> bytes:
    return packet(from_client(af, UDP, sport, payload=b"query"))


def answer(af: int, n: int = 1, lport: int = LPORT) -> bytes:
    return packet(from_server(af, UDP, packed(server(af, n)), lport, payload=b"answer"), 1)


def sctp(af: int, chunks: bytes, tag: int, reply: bool = False) -> bytes:
    src, dst, ports = packed(CLIENT[af]), packed(VIP[af]), (40000, 80)
    if reply:
        src, dst, ports = packed(server(af, 1)), packed(LIP[af]), (8080, LPORT)
    l4 = struct.pack("!HHII", *ports, tag, 0) + chunks
    l4 = l4[:8] + struct.pack("<I", _engine.crc32c(l4)) + l4[12:]
    macs = (MAC_LB1, server_mac(1)) if reply else (MAC_LB0, MAC_CLIENT)
    return packet(ethernet(*macs, ip_packet(src, dst, 132, l4)), int(reply))


def association(af: int) -> bytes:
    """Opened, used, shut down; and again, aborted."""
    init = struct.pack("!IIHHI", 0x11, 65535, 1, 1, 7)
    opened = sctp(af, b"\1\0\0\x14" + init, 0) + sctp(af, b"\2\0\0\x14" + b"\0\0\0\x22" + init[4:], 0x11, True)
    opened += sctp(af, b"\x0a\0\0\x08cook\0\3\0\x11" + bytes(13) + bytes(3), 0x22) + sctp(af, b"\x0b\0\0\4", 0x11, True)
    closed = sctp(af, b"\3\0\0\x10" + bytes(12) + b"\7\0\0\x08" + bytes(4), 0x22) + sctp(af, b"\x08\0\0\4", 0x11, True)
    return opened + closed + sctp(af, b"\x0e\1\0\4", 0x11) + opened + sctp(af, b"\6\0\0\4", 0x22)


def partial(record: bytes, af: int, proto: int) -> bytes:
    """The packet of a record with a partial checksum: the folded pseudo-header sum, not complemented."""
    frame = bytearray(record[3:])
    l4 = 34 if af == 4 else 54
    addresses = bytes(frame[26:34] if af == 4 else frame[22:54])
    half = len(addresses) // 2
    total = _engine.checksum(b"", _engine.pseudo_sum(addresses[:half], addresses[half:], proto, len(frame) - l4)) ^ 0xFFFF
    struct.pack_into("!H", frame, l4 + (16 if proto == TCP else 6), total)
    return record[:3] + bytes(frame)


def one_bucket(af: int) -> list[int]:
    """Client ports whose tuples fall into one bucket of the fuzz target's table (its key and its size)."""
    key = b"lbd offline engine: a fixed key."
    buckets = 24 * 200 // 625 + 16
    ends = packed(CLIENT[af]), packed(VIP[af])
    ports = range(1024, 60000)
    return [p for p in ports if (_engine.flow_hash(key, *ends, p, 80, UDP) & 0xFFFFFFFF) * buckets >> 32 == 3][:22]


def errors(af: int, proto: int) -> Iterator[bytes]:
    """ICMP errors of each kind, from both sides, about a connection as handshake() or question() makes it."""
    b = Balancer(servers=1, ports=(LPORT, LPORT))
    flow: Tcp | Udp = Tcp(b, af, 40000, isn=1000, server_isn=5000).open() if proto == TCP else Udp(b, af, 40000)
    if isinstance(flow, Udp):
        flow.ask()
    for side in ("client", "server"):
        for kind in KINDS[af]:
            yield packet(Error(flow, side, kind, 1300, payload=b"x" * 20).frame(), int(side == "server"))
        for quote in (8, 9, 17, 18):
            yield packet(Error(flow, side, KINDS[af][0], quote=quote).frame(), int(side == "server"))
        yield packet(Error(flow, side, KINDS[af][0], ttl=1).frame(), int(side == "server"))
        yield packet(Error(flow, side, KINDS[af][0], payload=b"x" * 1400).frame(), int(side == "server"))


def tagged(record: bytes, *tags: bytes) -> bytes:
    """The packet of a record behind these tags, four bytes each."""
    return record[:1] + struct.pack("<H", len(record) - 3 + 4 * len(tags)) + record[3:15] + b"".join(tags) + record[15:]


def stories(af: int) -> Iterator[tuple[str, bytes]]:
    opened = handshake(af)
    data = client(af, "PA", 1001, 5001, b"GET /") + real(af, "PA", 5001, 1006, b"200 OK")
    yield "talk", opened + data
    yield "closed by the client", opened + client(af, "FA", 1001, 5001) + real(af, "FA", 5001, 1002) + client(af, "A", 1002, 5002)
    server_first = opened + real(af, "FA", 5001, 1001) + client(af, "FA", 1001, 5002) + real(af, "A", 5002, 1002)
    yield "closed by the server", server_first
    yield "closed by both", opened + client(af, "FA", 1001, 5001) + real(af, "FA", 5001, 1001) + client(af, "A", 1002, 5002)
    again = client(af, "S", 90000) + real(af, "SA", 7000, 90001) + client(af, "A", 90001, 7001)
    yield "port used again", server_first + FLUSH + again
    yield "reset", opened + client(af, "R", 1001) + wait(SECOND, 61)
    yield "refused", client(af, "S") + real(af, "RA", 0, 1001) + client(af, "S", 2000)
    yield "blind", opened + client(af, "R", 9_000_000) + client(af, "S", 77) + client(af, "A", 2**31, 1) + real(af, "R", 2**30)
    yield "expires", opened + wait(KILOSECOND, 2) + client(af, "A", 1001, 5001)
    yield "time goes back", opened + wait(SECOND, 5, back=True) + wait(SLOT, 3) + data
    yield "clock wraps", wait(KILOSECOND, 255) * 17 + opened + data + wait(KILOSECOND, 10) + wait(SECOND, 100)
    yield "restart", opened + recover() + data + recover(True) + data + real(af, "FA", 5007, 1006) + recover() + wait(SECOND, 61)
    yield "udp", question(af) + answer(af) + wait(SLOT, 9) + question(af) + answer(af) + wait(SECOND, 200)
    yield "udp one way", question(af) + wait(SLOT, 2) + question(af) + wait(SECOND, 59) + question(af) + wait(SECOND, 61)
    handed = [packet(from_client(af, TCP, 40000 + hops, "S"), handed=True, hops=hops) for hops in range(4)]
    yield "handed over", b"".join(handed) + packet(from_client(af, UDP, 4), handed=True, hops=3)
    outer, inner = b"\x88\xa8\x00\x09", b"\x81\x00\x00\x07"
    ack = tagged(client(af, "A", 1001, 5001), inner)
    yield "tagged", tagged(client(af, "S"), inner) + real(af, "SA") + ack + real(af, "A", 5001)
    asked = tagged(question(af), outer, inner) + answer(af) + tagged(question(af), inner) + answer(af)
    yield "tagged twice", asked + question(af) + answer(af)
    yield "fast open", client(af, "S", 1000, 0, b"early") + real(af, "SA", 5000, 1001) + real(af, "PA", 5001, 1006, b"x" * 9)
    yield "never answered", client(af, "S") + real(af, "SA", 5000, 77) + client(af, "A", 1001, 77) + real(af, "R", 9)
    yield "syn flood", b"".join(client(af, "S", sport=1024 + i) + (FLUSH if i % 5 == 0 else b"") for i in range(60))
    yield "udp flood", b"".join(question(af, 1024 + i) for i in range(60)) + recover() + question(af, 5000)
    yield "a flood over what lives", opened + data + b"".join(client(af, "S", sport=1024 + i) for i in range(40)) + data


def crowds(af: int) -> Iterator[tuple[str, bytes]]:
    """More than the tables hold; all with MANY_PORTS: connections get ports in order and real servers in turn."""
    opened = b"".join(handshake(af, 1024 + i, 1 + i % 2, LPORT + i) for i in range(24))
    yield "table full", opened + client(af, "S", sport=9) + question(af) + opened
    asked = b"".join(question(af, 1024 + i) + answer(af, 1 + i % 2, LPORT + i) + FLUSH for i in range(24))
    yield "table full of answers", asked + client(af, "S", sport=9) + question(af, 10) + recover() + question(af, 11)
    yield "one bucket", b"".join(question(af, p) for p in one_bucket(af)) + recover() + wait(SECOND, 61)
    story, ports = b"", {1: LPORT, 2: LPORT + 1}
    for k in range(5):
        n, seq = 1 + k % 2, 1000 + 100_000 * k
        story += handshake(af, n=n, lport=ports[n], seq=seq) + client(af, "FA", seq + 1, 5001) + real(
            af, "FA", 5001, seq + 2, n=n, lport=ports[n]) + client(af, "A", seq + 2, 5002)  # fmt: skip
        story += recover() if k == 2 else FLUSH
    yield "the client comes back", story + real(af, "A", 5002, n=2, lport=LPORT + 1) + wait(SECOND, 61)
    svc, dest = (0, 0) if af == 4 else (2, 4)
    vip, rs = packed(VIP[af]), packed(server(af, 1))
    gone = b"".join(map(command, (shm.svc_del(svc, 2), shm.dest_del(dest, 2), shm.lip_del(0 if af == 4 else 1, 2))))
    again = command(shm.dest_set(dest, 3, af=af, addr=rs, port=8080, svc=svc))
    again += command(shm.svc_set(9, 3, af=af, addr=vip, port=80, proto=6, sched=0, table_off=8 * svc, table_len=2, fresh=True))
    ack = client(af, "A", 1001, 5001)
    story = handshake(af) + gone + recover(True) + ack + again + ack + real(af, "FA", 5001, 1001) + wait(SECOND, 200)
    yield "services that change their numbers", story
    gone = command(shm.dest_del(0 if af == 4 else 4, 2))
    yield "half open, its server gone", client(af, "S") + gone + client(af, "S") + client(af, "S", sport=5)


def commands(af: int) -> Iterator[bytes]:
    vip, rs = packed(VIP[af]), packed(server(af, 1))
    svc = 0 if af == 4 else 2
    yield shm.dest_set(2 * svc, 2, af=af, addr=rs, port=8080, svc=svc, weight=0)
    yield shm.dest_set(2 * svc, 2, af=af, addr=rs, port=8080, svc=svc, up=False, fresh=True)
    yield shm.dest_del(2 * svc, 2)
    yield shm.svc_set(svc, 2, af=af, addr=vip, port=80, proto=6, sched=shm.SCHED_HASH, flags=shm.SVC_HASH_PORT, table_off=8 * svc,
                      table_len=2, timeout_established=5000)  # fmt: skip
    yield shm.svc_set(9, 2, af=af, addr=vip, port=81, proto=17, sched=shm.SCHED_LEAST, flags=shm.SVC_LEAST_WEIGHTED, table_off=0,
                      table_len=8, fresh=True)  # fmt: skip
    yield shm.svc_del(svc, 2)
    yield shm.lip_set(3, 2, af=af, addr=packed(LIP[af])[:-1] + b"\x03", port_lo=1, port_hi=65535, fresh=True)
    yield shm.lip_del(0 if af == 4 else 1, 2)
    yield shm.iface_set(1, 2, mac=b"\x02\0\0\0\x09\x09", mtu=900, ifindex=7, flags=0)
    yield shm.iface_del(1, 2)
    yield shm.neigh_set(2, iface=1, af=af, addr=rs)
    yield shm.neigh_set(2, iface=1, af=af, addr=rs, mac=b"\x02\0\0\0\x08\x08", tags=5)
    yield shm.neigh_del(2, iface=1, af=af, addr=rs)
    prefix = (packed(server(af, 0))[:3] + b"\0", 24) if af == 4 else (rs[:8] + bytes(8), 64)
    yield shm.route_set(2, af=af, prefix=prefix[0], plen=prefix[1], iface=1, gateway=packed(LIP[af])[:-1] + b"\x63", tags=3)
    yield shm.route_set(2, af=af, prefix=bytes(len(rs)), plen=0, iface=0, gateway=vip)
    yield shm.route_del(2, af=af, prefix=prefix[0], plen=prefix[1])
    for which, value in ((1, 1), (2, 1), (3, 5), (4, 10), (16 + 2, 1000), (16 + 6, 1), (16 + 9, 70000)):
        yield shm.setting(which, value, 2)
    for kind in range(1, 7):
        yield shm.sweep(kind, 9)


def seeds() -> Iterator[tuple[str, bytes]]:
    for name, frame in TEMPLATES.items():
        af = 6 if name[0] == "6" else 4
        iface = int("answer" in name)
        flows = handshake(af) + question(af) + answer(af) if name[0] in "46" else b""
        yield name, bytes([0, 0]) + flows + packet(frame, iface, mend=False)
    for af in (4, 6):
        for name, story in stories(af):
            for k, setup in enumerate((0, MANY_PORTS)):
                yield f"{af} {name} {k}", bytes([setup, 0]) + story
        for name, story in crowds(af):
            yield f"{af} {name}", bytes([MANY_PORTS, 0]) + story
        for proto, flow in ((TCP, handshake(af)), (UDP, question(af) + answer(af))):
            for k, error in enumerate(errors(af, proto)):
                yield f"{af} error {proto} {k}", bytes([0, 0]) + flow + error
        for setup in (0, PARTIAL, VERIFY, TWO_WORKERS):
            yield f"{af} sctp {setup}", bytes([setup, 0]) + association(af)
        large = client(af, "PA", 1001, 5001, b"x" * 1300) + real(af, "PA", 5001, 1001, b"x" * 1300)
        yield f"{af} too big 1", bytes([SMALL_MTU, 0]) + client(af, "S") + real(af, "SA") + large
        yield f"{af} too big 2", bytes([0, 0]) + handshake(af) + client(af, "A", 1001, 5001, b"x" * 1500)
        expired = packet(from_client(af, TCP, 7, "S", ttl=1))
        yield f"{af} error rate", bytes([0, 0]) + command(shm.setting(3, 5, 2)) + expired * 3 + wait(SECOND, 1) + expired * 3
        halves = [partial(client(af, "S"), af, TCP), partial(question(af), af, UDP), partial(real(af, "SA"), af, TCP)]
        yield f"{af} partial", bytes([PARTIAL, 0]) + b"".join(halves) + partial(answer(af), af, UDP)
        for setup in (PARTIAL, VERIFY, BY_ROUTE, TWO_WORKERS, TWO_WORKERS | RSS, SMALL_MTU, TWO_WORKERS | PREVIOUS | MANY_PORTS):
            yield f"{af} setup {setup}", bytes([setup, 0]) + dict(stories(af))["talk"] + question(af) + answer(af)
        for how in range(NAT, ACROSS + 1):
            flows = dict(stories(af))["talk"] + question(af) + answer(af) + association(af)
            yield f"{af} mode {how}", bytes([0, how]) + flows
            long = [in_frames(part[3:], 5000, 1408, part[0] >> 3 & 1) for part in (client(af, "A", 1001, 5001), question(af))]
            yield f"{af} mode {how} in frames", bytes([0, how]) + flows + b"".join(long)
        for flag in (PERSIST, PERSIST | SECOND_WORKER, GENERAL, ONE_PACKET):
            flows = dict(stories(af))["talk"] + question(af) + answer(af) + question(af, 41000)
            yield f"{af} setup2 {flag}", bytes([TWO_WORKERS, flag]) + flows
        error = list(errors(af, TCP))
        for k, record in enumerate(commands(af)):
            story = handshake(af) + command(record) + client(af, "PA", 1001, 5001, b"x") + question(af) + client(af, "S", sport=7)
            story += error[0] + error[len(error) // 2]
            yield f"{af} command {k}", bytes([0, 0]) + story + wait(SECOND, 5) + recover()


def write(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, seed in seeds():
        (directory / name.replace(" ", "_").replace(",", "").replace(":", "").replace("'", "")).write_bytes(seed)
        count += 1
    return count


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), "seeds")
