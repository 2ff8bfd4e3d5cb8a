"""QUIC by connection ids: what packets of a new client address are given to, in every form; what the client made up is scheduled.

Ids and connection ids: tests/data/quic-cid.json, and an encoder here that shares nothing with the engine.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lbd._fastpath import Result
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lbd.shm import _shm as shm
from tests.packet.balancer import CLIENT, MAC_CLIENT, MAC_LB0, VIP, Balancer, ip, packed, server
from tests.packet.cluster import Cluster
from tests.packet.test_mode import MODES

VECTORS = json.loads((Path(__file__).parents[1] / "data/quic-cid.json").read_text())["cases"]
FORMS = {"quic-lb": 1, "katran": 2, "dpvs": 3}
FAMILIES = pytest.mark.parametrize("af", [4, 6])
IDS = (0x10, 0x2020, 0xFFFF)  # of the real servers
SVC = {4: 0, 6: 1}
ANY = bytes(range(20))


def encode(form: str, number: int, length: int = 2, port: int = 0, config: int = 0, nonce: bytes = bytes(8)) -> bytes:
    """A connection id, as text: digits are half bytes."""
    rest = nonce.hex()
    if form == "quic-lb":
        digits = f"{config << 5 | 9:02x}" + f"{number:0{2 * length}x}" + rest
    elif form == "katran":
        bits = f"01{number:016b}" if length == 2 else f"10000000{number:024b}" if length == 3 else f"11000000{number:032b}"
        bits += "0" * (-len(bits) % 8)
        digits = f"{int(bits, 2):0{len(bits) // 4}x}" + rest
    else:
        digits = "5a" + f"{(length - 1) << 1 | (port > 0):x}" + f"{number:0{2 * length}x}" + (f"{port:04x}" if port else "") + rest
    digits += "0" * (len(digits) % 2)
    return bytes.fromhex(digits[:40])


def balancer(form: str, mode: str = "fullnat", ids: tuple[int | None, ...] = IDS, length: int = 2, config: int = 0,
             workers: int = 1, qid: bool = False, slots: int = 0, **more: Any) -> Any:  # fmt: skip
    modes = {"fullnat": shm.MODE_FULLNAT, **MODES}
    settings = {"mode": modes[mode], "servers": len(ids), "protocols": ("udp",), **more}
    b: Any = Cluster(workers, **settings) if workers > 1 else Balancer(**settings)
    port = 80 if mode in ("dr", "tunnel") else 8080
    for af, svc in SVC.items():
        for n, number in enumerate(ids, 1):
            b.do(shm.dest_set(svc * len(ids) + n - 1, 2, af=af, addr=packed(server(af, n)), port=port, svc=svc, quic_id=number))
        b.do(shm.svc_set(svc, 2, af=af, addr=packed(VIP[af]), port=80, proto=17, sched=settings.get("sched", shm.SCHED_SEQ),
                         flags=shm.SVC_HASH_QID if qid else 0, table_off=svc * 64, table_len=slots or len(ids),
                         mode=modes[mode], quic=FORMS.get(form, 0), quic_len=length, quic_config=config))  # fmt: skip
    return b


def short(cid: bytes, payload: bytes = b"protected") -> bytes:
    return b"\x4d" + cid + payload


def long(kind: int, cid: bytes, version: int = 1) -> bytes:
    return bytes([0xC0 | kind << 4]) + version.to_bytes(4, "big") + bytes([len(cid)]) + cid + b"\x04scid" + b"protected" * 20


def send(b: Any, af: int, sport: int, payload: bytes) -> Result:
    link = Ether(src=MAC_CLIENT, dst=MAC_LB0)
    r = b.send(bytes(link / ip(af, CLIENT[af], VIP[af]) / UDP(sport=sport, dport=80) / Raw(payload)))
    assert r.verdict == "forward", r
    return r


def served(b: Any, af: int, sports: range, payload: bytes) -> set[int]:
    """Which of the service's real servers, from 0 on, get it from these ports, which are new."""
    return {send(b, af, sport, payload).dest - SVC[af] * 3 for sport in sports}


def counts(b: Any) -> tuple[int, int, int]:
    """By id, unknown, none."""
    members = b.members if isinstance(b, Cluster) else [b]
    each = [m.engine.counters() for m in members]
    return tuple(sum(c[key] for c in each) for key in ("quic_by_id", "quic_unknown", "quic_no_id"))  # type: ignore[return-value]


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: f"{c['form']} {c['cid']}")
def test_vectors(case: dict[str, Any]) -> None:
    """The server that has the id, among two that have not; if the port is told, that which has it."""
    number = int(case["id"], 16) if case["id"] else 0x4711
    b = balancer(case["form"], ids=(None, number, number ^ 1), length=case.get("length", 2), config=case.get("config", 0))
    if port := case.get("port"):
        b.do(shm.dest_set(0, 2, af=4, addr=packed(server(4, 1)), port=8080, svc=0, quic_id=number))
        b.do(shm.dest_set(1, 2, af=4, addr=packed(server(4, 2)), port=port, svc=0, quic_id=number))
    cid = bytes.fromhex(case["cid"])
    seen = served(b, 4, range(1000, 1006), b"\x40" + cid if case["id"] is None else short(cid))
    if case["id"] is None:
        assert seen == {0, 1, 2} and counts(b) == (0, 0, 6)
    else:
        assert seen == {1} and counts(b) == (6, 0, 0)


FORM = st.sampled_from([("katran", n) for n in (2, 3, 4)] + [(form, n) for form in ("quic-lb", "dpvs") for n in range(1, 9)])


@settings(max_examples=150, deadline=None)
@given(FORM, st.data(), st.binary(min_size=8, max_size=8), st.sampled_from(["short", "handshake"]))
def test_encoded_and_read_back(form: tuple[str, int], data: st.DataObject, nonce: bytes, header: str) -> None:
    name, length = form
    number = data.draw(st.integers(0, 256**length - 1))
    config = data.draw(st.integers(0, 6))
    cid = encode(name, number, length, data.draw(st.sampled_from([0, 8080])) if name == "dpvs" else 0, config, nonce)
    others = number ^ 1, number ^ 2
    b = balancer(name, ids=(others[0], number, others[1]), length=length, config=config)
    assert served(b, 4, range(1000, 1003), short(cid) if header == "short" else long(2, cid)) == {1}
    assert counts(b) == (3, 0, 0)


@FAMILIES
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["fullnat", *MODES])
def test_a_client_that_moves_keeps_its_server(mode: str, form: str, af: int) -> None:
    b = balancer(form, mode)
    first = {send(b, af, 1000 + n, long(0, ANY[:8])).dest - SVC[af] * 3 for n in range(3)}
    assert first == {0, 1, 2} and counts(b) == (0, 0, 0), "an Initial is scheduled"
    for n, number in enumerate(IDS):
        cid = encode(form, number)
        assert served(b, af, range(2000 + 100 * n, 2005 + 100 * n), short(cid)) == {n}
        assert served(b, af, range(3000 + 100 * n, 3005 + 100 * n), long(2, cid)) == {n}, "Handshake"
    assert counts(b) == (30, 0, 0)
    assert served(b, af, range(2000, 2005), short(encode(form, IDS[2]))) == {0}, "an established one stays where it is"
    assert counts(b) == (30, 0, 0)
    b.audit()


@pytest.mark.parametrize("payload", [
    long(0, encode("quic-lb", IDS[1])), long(1, encode("quic-lb", IDS[1])), long(1, encode("quic-lb", IDS[1]), 0x6B3343CF),
    long(2, encode("quic-lb", IDS[1]), 0x6B3343CF), long(0, b""),
], ids=["Initial", "0-RTT", "Initial of version 2", "0-RTT of version 2", "no id"])  # fmt: skip
def test_what_the_client_made_up_is_scheduled(payload: bytes) -> None:
    """Though it may look like an id."""
    b = balancer("quic-lb")
    assert served(b, 4, range(1000, 1006), payload) == {0, 1, 2}
    assert counts(b) == (0, 0, 0)


def test_handshake_of_version_2() -> None:
    b = balancer("quic-lb")
    assert served(b, 4, range(1000, 1006), long(3, encode("quic-lb", IDS[1]), 0x6B3343CF)) == {1}


LONG = b"\xe0\0\0\0\1"


@pytest.mark.parametrize("payload", [b"", b"\x40", b"\xc0", LONG, LONG + b"\x15" + bytes(40), LONG + b"\x08abc"])
def test_too_short_for_an_id(payload: bytes) -> None:
    b = balancer("quic-lb")
    assert served(b, 4, range(1000, 1006), payload) == {0, 1, 2}
    assert counts(b) == (0, 0, 6)


@pytest.mark.parametrize("form", FORMS)
def test_unknown_ids_are_scheduled(form: str) -> None:
    b = balancer(form)
    assert served(b, 4, range(1000, 1006), short(encode(form, 0x9999))) == {0, 1, 2}
    assert counts(b) == (0, 6, 0)


def test_a_server_that_drains_keeps_its_connections() -> None:
    b = balancer("quic-lb")

    def one(**more: Any) -> None:
        b.do(shm.dest_set(1, 3, af=4, addr=packed(server(4, 2)), port=8080, svc=0, quic_id=IDS[1], **more))

    one(weight=0)
    assert served(b, 4, range(1000, 1006), short(encode("quic-lb", IDS[1]))) == {1}
    assert served(b, 4, range(1100, 1106), long(0, ANY[:8])) == {0, 2}
    one(up=False)
    assert served(b, 4, range(1200, 1206), short(encode("quic-lb", IDS[1]))) == {0, 2}, "down: nobody can go on there"
    assert counts(b) == (6, 6, 0)
    b.do(shm.dest_del(1, 3))
    assert served(b, 4, range(1300, 1306), short(encode("quic-lb", IDS[1]))) == {0, 2}
    b.do(shm.dest_set(2, 3, af=4, addr=packed(server(4, 3)), port=8080, svc=0, quic_id=IDS[1]))
    assert served(b, 4, range(1400, 1406), short(encode("quic-lb", IDS[1]))) == {2}, "the id has moved"
    assert served(b, 4, range(1500, 1506), short(encode("quic-lb", IDS[2]))) == {0, 2}


def test_ids_belong_to_their_service() -> None:
    """Of two services with the same ids each has its own servers."""
    b = balancer("quic-lb")
    cid = encode("quic-lb", IDS[0])
    assert served(b, 4, range(1000, 1003), short(cid)) == served(b, 6, range(1000, 1003), short(cid)) == {0}


@FAMILIES
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("mode", ["fullnat", "nat", "dr"])
def test_it_arrives_at_any_worker(mode: str, workers: int, af: int) -> None:
    c = balancer("quic-lb", mode, workers=workers)
    for n, number in enumerate(IDS):
        assert served(c, af, range(2000 + 100 * n, 2030 + 100 * n), short(encode("quic-lb", number))) == {n}
    assert len({r["worker"] for r in c.conns()}) == workers and counts(c) == (90, 0, 0)


def hashed(workers: int = 1) -> Any:
    b = balancer("", qid=True, sched=shm.SCHED_HASH, slots=60, workers=workers)
    for m in b.members if isinstance(b, Cluster) else [b]:
        for af in (4, 6):
            m.engine.set_table(SVC[af] * 64, [SVC[af] * 3 + n % 3 for n in range(60)])
    return b


@FAMILIES
def test_hash_of_the_connection_id(af: int) -> None:
    """conhash with hash_target = qid: a connection's packets go alike, wherever its client is, and whatever follows the 8 bytes."""
    b = hashed()
    homes: Counter[int] = Counter()
    for n in range(60):
        cid = n.to_bytes(8, "little")
        [home] = served(b, af, range(1000 + 10 * n, 1003 + 10 * n), short(cid, b"payload %d" % n))
        assert served(b, af, range(1003 + 10 * n, 1005 + 10 * n), long(0, cid)) == {home}
        homes[home] += 1
    assert min(homes.values()) > 8
    assert counts(b) == (0, 0, 0)


def test_ids_outlive_the_process() -> None:
    """The chains are rebuilt with the tables."""
    b = balancer("quic-lb")
    b.engine.recover(b.now, True)
    assert served(b, 4, range(1000, 1006), short(encode("quic-lb", IDS[2]))) == {2}


def test_a_first_fragment_that_ends_in_the_id() -> None:
    """Its UDP header tells of more than is there."""
    b = balancer("quic-lb")
    for sport, payload, found in ((1000, short(encode("quic-lb", IDS[1], nonce=bytes(5))), 1), (1001, b"\x40\x09" + b"\0" * 6, 0)):
        link = Ether(src=MAC_CLIENT, dst=MAC_LB0)
        first = ip(4, CLIENT[4], VIP[4], id=sport, flags=1) / UDP(sport=sport, dport=80, len=1200, chksum=0) / Raw(payload[:8])
        r = b.send(bytes(link / first))
        assert r.verdict == "forward", r
        assert counts(b)[0] == 1
        assert not found or r.dest == 1
