"""SCTP in every mode: what leaves is built again with scapy; states by scenario; the checksum, tags, ICMP errors, workers."""

from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lbd._fastpath import Result
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import (
    SCTP,
    SCTPChunkAbort,
    SCTPChunkCookieAck,
    SCTPChunkCookieEcho,
    SCTPChunkData,
    SCTPChunkError,
    SCTPChunkHeartbeatReq,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkParamIPv4Addr,
    SCTPChunkParamStateCookie,
    SCTPChunkSACK,
    SCTPChunkShutdown,
    SCTPChunkShutdownAck,
    SCTPChunkShutdownComplete,
)
from scapy.packet import Packet, Raw

from lbd.shm import _shm as shm
from tests.packet import fragment
from tests.packet.balancer import (
    CLIENT,
    LIP,
    MAC_CLIENT,
    MAC_LB0,
    MAC_LB1,
    VIP,
    Balancer,
    ip,
    packed,
    server,
    server_mac,
)  # fmt: skip
from tests.packet.cluster import Cluster
from tests.packet.test_mode import fields
from tests.unit.test_datapath_crc32c import model
from tests.unit.test_datapath_hash import KEY as RSS_KEY

MODES = {"fullnat": shm.MODE_FULLNAT, "nat": shm.MODE_NAT, "dr": shm.MODE_DR, "tunnel": shm.MODE_TUNNEL}
MODE = pytest.mark.parametrize("mode", MODES)
TWO_WAY = pytest.mark.parametrize("mode", ["fullnat", "nat"])
TWO_WAYS = pytest.mark.parametrize("mode,af", [("fullnat", 4), ("fullnat", 6), ("nat", 4), ("nat", 6), ("nat64", 6)])
ONE_WAY = pytest.mark.parametrize("mode", ["dr", "tunnel"])
FAMILIES = pytest.mark.parametrize("af", [4, 6])
CPORT = 40000
CTAG, STAG = 0x11223344, 0xAABBCCDD  # what packets to the client, to the real server carry

COOKIE = SCTPChunkParamStateCookie(cookie=b"c" * 32)
CHUNKS = {
    "INIT": SCTPChunkInit(init_tag=CTAG, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=7),
    "INIT ACK": SCTPChunkInitAck(init_tag=STAG, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=9, params=[COOKIE]),
    "COOKIE ECHO": SCTPChunkCookieEcho(cookie=b"c" * 32),
    "COOKIE ACK": SCTPChunkCookieAck(),
    "DATA": SCTPChunkData(tsn=7, data=b"hello", beginning=1, ending=1),
    "SACK": SCTPChunkSACK(cumul_tsn_ack=7, a_rwnd=65535),
    "HEARTBEAT": SCTPChunkHeartbeatReq(params=[Raw(b"\x00\x01\x00\x08beat")]),
    "ERROR": SCTPChunkError(error_causes=b"\x00\x03\x00\x08stal"),
    "SHUTDOWN": SCTPChunkShutdown(cumul_tsn_ack=7),
    "SACK, SHUTDOWN": SCTPChunkSACK(cumul_tsn_ack=7, a_rwnd=65535) / SCTPChunkShutdown(cumul_tsn_ack=7),
    "SHUTDOWN ACK": SCTPChunkShutdownAck(),
    "SHUTDOWN COMPLETE": SCTPChunkShutdownComplete(),
    "SHUTDOWN COMPLETE T": SCTPChunkShutdownComplete(TCB=1),
    "ABORT": SCTPChunkAbort(),
    "ABORT T": SCTPChunkAbort(TCB=1),
}


def packet(what: str, sport: int, dport: int, tag: int) -> Packet:
    return SCTP(sport=sport, dport=dport, tag=tag) / CHUNKS[what].copy()


def port_of(mode: str) -> int:
    return 80 if mode in ("dr", "tunnel") else 8080


@dataclass
class Association:
    """One client's, both ends played; tag None: the right one."""

    b: Balancer | Cluster
    mode: str
    af: int
    port: int = CPORT
    lport: int = field(default=0, init=False)  # FULLNAT
    n: int = field(default=1, init=False)  # the real server's number

    @property
    def far(self) -> int:
        """The real server's family."""
        return 4 if self.mode == "nat64" else self.af

    @property
    def local(self) -> tuple[str, int]:
        """Whom the real server takes for the client."""
        return (CLIENT[self.af], self.port) if self.mode == "nat" else (LIP[self.far], self.lport)

    def client(self, what: str, tag: int | None = None) -> Result:
        right = 0 if what == "INIT" else CTAG if what.endswith(" T") else STAG
        l4 = packet(what, self.port, 80, right if tag is None else tag)
        r = self.b.send(bytes(from_client(self.af, l4)))
        if r.verdict == "forward" and self.mode in ("fullnat", "nat64"):
            self.lport = Ether(r.out[0][1])[SCTP].sport
        if r.verdict == "forward":
            self.n = r.out[0][1][5]
        return r

    def server(self, what: str, tag: int | None = None) -> Result:
        right = STAG if what.endswith(" T") else CTAG
        to, dport = self.local
        l4 = packet(what, 8080, dport, right if tag is None else tag)
        link = Ether(src=server_mac(self.n), dst=MAC_LB1)
        return self.b.send(bytes(link / ip(self.far, server(self.far, self.n), to, **fields(self.far)) / l4), 1)

    def open(self) -> None:
        self.client("INIT")
        if self.mode in ("fullnat", "nat", "nat64"):
            self.server("INIT ACK")
        self.client("COOKIE ECHO")
        if self.mode in ("fullnat", "nat", "nat64"):
            self.server("COOKIE ACK")

    @property
    def state(self) -> str:
        return ",".join(
            c["state"] for c in self.b.conns() if c["client"][1] == self.port and not c["resting"]
        ) if isinstance(self.b, Cluster) else ",".join(
            c["state"] for c in self.b.engine.conns() if c["client"][1] == self.port and not c["resting"]
        )  # fmt: skip


def balancer(mode: str, **more: object) -> Balancer:
    return Balancer(**{**config(mode), **more})  # type: ignore[arg-type]


def config(mode: str) -> dict[str, object]:
    return {"mode": MODES.get(mode, shm.MODE_FULLNAT), "cross": mode == "nat64", "protocols": ("sctp",), "servers": 1}


def from_client(af: int, l4: Packet, **more: int) -> Packet:
    return Ether(src=MAC_CLIENT, dst=MAC_LB0) / ip(af, CLIENT[af], VIP[af], **fields(af, **more)) / l4


def expected(mode: str, af: int, l4: Packet, lport: int = 0) -> bytes:
    """The frame that the real server gets for this packet of the client's."""
    l4 = l4.copy()
    link = Ether(src=MAC_LB1, dst=server_mac(1))
    if mode == "fullnat":
        l4.sport, l4.dport = lport, 8080
        return bytes(link / ip(af, LIP[af], server(af, 1), **fields(af, hops=63)) / l4)
    if mode == "nat":
        l4.dport = 8080
        return bytes(link / ip(af, CLIENT[af], server(af, 1), **fields(af, hops=63)) / l4)
    inner = ip(af, CLIENT[af], VIP[af], **fields(af, hops=63)) / l4
    if mode == "dr":
        return bytes(link / inner)
    outer = fields(af, ident=0)
    return bytes(link / ip(af, LIP[af], server(af, 1), **outer, **{"proto" if af == 4 else "nh": 4 if af == 4 else 41})
                 / Raw(bytes(inner)))  # fmt: skip


@pytest.mark.cell("{mode}", "{af}", "sctp", "engine")
@MODE
@FAMILIES
def test_what_the_real_server_gets(mode: str, af: int) -> None:
    b = balancer(mode)
    a = Association(b, mode, af)
    for what, tag in (("INIT", 0), ("COOKIE ECHO", STAG), ("DATA", STAG), ("SACK, SHUTDOWN", STAG), ("ABORT", STAG)):
        r = a.client(what)
        assert r.verdict == "forward" and r.out[0][0] == 1, r
        assert r.out[0][1] == expected(mode, af, packet(what, CPORT, 80, tag), a.lport), what
        if what == "INIT" and mode in ("fullnat", "nat"):
            a.server("INIT ACK")
    [c] = b.engine.conns()
    assert (c["proto"], c["mode"], c["real_server"]) == (132, mode, (packed(server(af, 1)), port_of(mode)))
    b.audit()


@pytest.mark.cell("{mode}", "{af}", "sctp", "engine")
@TWO_WAY
@FAMILIES
def test_what_the_client_gets(mode: str, af: int) -> None:
    b = balancer(mode)
    a = Association(b, mode, af)
    a.client("INIT")
    for what in ("INIT ACK", "COOKIE ACK", "DATA", "SACK", "SHUTDOWN", "ABORT T"):
        r = a.server(what)
        l4 = packet(what, 80, CPORT, STAG if what == "ABORT T" else CTAG)
        want = Ether(src=MAC_LB0, dst=MAC_CLIENT) / ip(af, VIP[af], CLIENT[af], **fields(af, hops=63)) / l4
        assert (r.verdict, r.out) == ("forward", [(0, bytes(want))]), what
    b.audit()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(MODES)), st.sampled_from([4, 6]), st.integers(1, 65535), st.binary(min_size=4, max_size=1300),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_a_wrong_checksum_stays_as_wrong(mode: str, af: int, sport: int, payload: bytes, error: int) -> None:
    """Over whatever payload: right stays right, and an error on the way here is still seen by the receiver."""
    b = balancer(mode)
    a = Association(b, mode, af, sport)
    a.client("INIT")
    chunk = Raw(bytes([0, 3]) + len(payload).to_bytes(2, "big") + payload)
    l4 = bytearray(bytes(SCTP(sport=sport, dport=80, tag=STAG, chksum=0) / chunk))
    l4[8:12] = (model(bytes(l4)) ^ error).to_bytes(4, "little")
    frame = with_protocol(bytes(from_client(af, Raw(bytes(l4)))), af)
    r = b.send(frame)
    assert r.verdict == "forward", r
    out = r.out[0][1]
    at = len(out) - len(l4)
    crc = int.from_bytes(out[at + 8 : at + 12], "little")
    assert crc ^ error == model(out[at : at + 8] + bytes(4) + out[at + 12 :])
    assert out[at + 12 :] == bytes(l4[12:])


def with_protocol(frame: bytes, af: int) -> bytes:
    """Of a frame whose transport scapy doesn't know: SCTP."""
    p = Ether(frame)
    if af == 4:
        p[IP].proto = 132
        del p[IP].chksum
    else:
        p[IPv6].nh = 132
    return bytes(p)


def test_a_wrong_checksum_is_dropped_where_asked_for() -> None:
    b = balancer("fullnat")
    b.do(shm.setting(shm.SET_VERIFY_CSUM, 1, 2))
    a = Association(b, "fullnat", 4)
    assert a.client("INIT").verdict == "forward"
    broken = bytearray(bytes(from_client(4, packet("DATA", CPORT, 80, STAG))))
    broken[-1] ^= 1
    r = b.send(bytes(broken))
    assert (r.verdict, r.reason) == ("drop", "bad_checksum")
    assert a.server("INIT ACK").verdict == "forward"


@MODE
@FAMILIES
def test_a_local_stack_leaves_the_checksum_to_us(mode: str, af: int) -> None:
    """NETIF_F_SCTP_CRC of veth: 0 stands on the wire. One that is there is taken as it is, right or wrong."""
    b = balancer(mode, partial=True)
    left = SCTP(sport=CPORT, dport=80, tag=0, chksum=0) / CHUNKS["INIT"]
    r = b.send(from_client(af, left))
    lport = Ether(r.out[0][1])[SCTP].sport if mode == "fullnat" else 0
    assert r.out[0][1] == expected(mode, af, packet("INIT", CPORT, 80, 0), lport)
    whole = packet("INIT", CPORT, 80, 0)
    assert b.send(from_client(af, whole)).out[0][1] == expected(mode, af, whole, lport)


# --- states ----------------------------------------------------------------------------------------------------------

OPEN = ["c INIT", "s INIT ACK", "c COOKIE ECHO", "s COOKIE ACK"]
SCENARIOS: dict[str, tuple[list[str], str]] = {
    "INIT": (OPEN[:1], "INIT"),
    "INIT ACK": (OPEN[:2], "INIT"),
    "COOKIE ECHO": (OPEN[:3], "ESTABLISHED"),
    "COOKIE ACK": (OPEN, "ESTABLISHED"),
    "COOKIE ECHO came another way": ([*OPEN[:2], "s COOKIE ACK"], "ESTABLISHED"),
    "the cookie is refused": ([*OPEN[:2], "s ERROR"], "INIT"),
    "refused": (["c INIT", "s ABORT"], ""),
    "given up": (["c INIT", "s INIT ACK", "c ABORT"], ""),
    "data": ([*OPEN, "c DATA", "s SACK", "s DATA", "c SACK", "c HEARTBEAT"], "ESTABLISHED"),
    "the client closes": ([*OPEN, "c SHUTDOWN"], "SHUTDOWN_RECEIVED"),
    "the client closes, with its last SACK": ([*OPEN, "c SACK, SHUTDOWN"], "SHUTDOWN_RECEIVED"),
    "acknowledged": ([*OPEN, "c SHUTDOWN", "s SHUTDOWN ACK"], "SHUTDOWN_ACK_SENT"),
    "complete": ([*OPEN, "c SHUTDOWN", "s SHUTDOWN ACK", "c SHUTDOWN COMPLETE"], "CLOSED"),
    "the server closes": ([*OPEN, "s SHUTDOWN"], "SHUTDOWN_SENT"),
    "the server closes, complete": ([*OPEN, "s SHUTDOWN", "c SHUTDOWN ACK", "s SHUTDOWN COMPLETE"], "CLOSED"),
    "both close": ([*OPEN, "s SHUTDOWN", "c SHUTDOWN", "s SHUTDOWN ACK"], "SHUTDOWN_ACK_SENT"),
    "complete by one who forgot it": ([*OPEN, "c SHUTDOWN", "s SHUTDOWN ACK", "c SHUTDOWN COMPLETE T"], "CLOSED"),
    "aborted by the client": ([*OPEN, "c ABORT"], "CLOSED"),
    "aborted by the server": ([*OPEN, "s ABORT"], "CLOSED"),
    "aborted by a server that forgot it": ([*OPEN, "s ABORT T"], "CLOSED"),
    "complete out of turn": ([*OPEN, "c SHUTDOWN COMPLETE"], "ESTABLISHED"),
    "INIT while established": ([*OPEN, "c INIT"], "ESTABLISHED"),
    "INIT after the end": ([*OPEN, "c ABORT", "c INIT"], "INIT"),
    "open again": ([*OPEN, "c ABORT", *OPEN], "ESTABLISHED"),
}


def play(a: Association, steps: list[str], tag: int | None = None) -> None:
    for step in steps:
        who, what = step.split(" ", 1)
        r = a.client(what, tag) if who == "c" else a.server(what, tag)
        assert r.verdict == "forward", (step, r)


@TWO_WAYS
@pytest.mark.parametrize("steps,state", SCENARIOS.values(), ids=SCENARIOS)
def test_states(mode: str, af: int, steps: list[str], state: str) -> None:
    b = balancer(mode)
    a = Association(b, mode, af)
    play(a, steps)
    assert a.state == state
    b.audit()


@TWO_WAY
@pytest.mark.parametrize("what", ["c SHUTDOWN", "c SHUTDOWN ACK", "c ABORT", "c ABORT T", "s SHUTDOWN", "s ABORT", "s ABORT T",
                                  "c INIT", "s INIT ACK"])  # fmt: skip
def test_blind_packets_change_nothing(mode: str, what: str) -> None:
    """They are forwarded, and the ends judge; but they don't end the association here, or keep it alive."""
    b = balancer(mode)
    a = Association(b, mode, 4)
    a.open()
    before = b.engine.conns()
    b.later(10)
    play(a, [what], tag=0x01010101)
    after = b.engine.conns()
    assert a.state == "ESTABLISHED"
    assert after[0]["expires_ms"] == before[0]["expires_ms"] - 10_000
    play(a, ["c SHUTDOWN", "s SHUTDOWN ACK"])
    assert a.state == "SHUTDOWN_ACK_SENT", "and the right tags are still known"


@TWO_WAY
def test_blind_packets_open_nothing(mode: str) -> None:
    b = balancer(mode)
    a = Association(b, mode, 4)
    play(a, ["c INIT"])
    play(a, ["c COOKIE ECHO", "c DATA"])
    assert a.state == "INIT", "the client can't know the real server's tag yet"
    play(a, ["s INIT ACK"])
    play(a, ["c COOKIE ECHO", "c DATA"], tag=0x01010101)
    assert a.state == "INIT"
    assert b.engine.used()["half_open"] == 1
    play(a, ["c COOKIE ECHO"])
    assert a.state == "ESTABLISHED" and b.engine.used()["half_open"] == 0


@TWO_WAY
def test_a_client_that_was_restarted(mode: str) -> None:
    """RFC 9260, 5.2.2: INIT within an association; new tags for both, which the real server's COOKIE ACK confirms."""
    b = balancer(mode)
    a = Association(b, mode, 4)
    a.open()
    new_client, new_server = 0x77777777, 0x88888888
    play(a, ["c INIT"])
    play(a, ["s INIT ACK"], tag=new_client)
    play(a, ["c COOKIE ECHO"], tag=new_server)
    play(a, ["s COOKIE ACK"], tag=new_client)
    play(a, ["c DATA"], tag=new_server)
    play(a, ["c ABORT"])
    assert a.state == "ESTABLISHED", "with the old tag"
    play(a, ["c SHUTDOWN"], tag=new_server)
    play(a, ["s SHUTDOWN ACK"], tag=new_client)
    assert a.state == "SHUTDOWN_ACK_SENT"


@MODE
@FAMILIES
@pytest.mark.parametrize("what", [w for w in CHUNKS if w != "INIT"])
def test_only_an_init_opens(mode: str, af: int, what: str) -> None:
    b = balancer(mode)
    r = b.send(from_client(af, packet(what, CPORT, 80, STAG)))
    assert (r.verdict, r.reason) == ("drop", "no_state")
    assert b.engine.conns() == []


ONE_WAY_SCENARIOS: dict[str, tuple[list[str], str]] = {
    "INIT": (["c INIT"], "INIT"),
    "open": (["c INIT", "c COOKIE ECHO"], "ESTABLISHED"),
    "closing": (["c INIT", "c COOKIE ECHO", "c SHUTDOWN"], "SHUTDOWN_SENT"),
    "closed": (["c INIT", "c COOKIE ECHO", "c SHUTDOWN", "c SHUTDOWN COMPLETE"], "CLOSED"),
    "closed by the server": (["c INIT", "c COOKIE ECHO", "c SHUTDOWN ACK"], "SHUTDOWN_SENT"),
    "aborted": (["c INIT", "c COOKIE ECHO", "c ABORT"], "CLOSED"),
    "aborted, reflected": (["c INIT", "c COOKIE ECHO", "c ABORT T"], "CLOSED"),
    "again": (["c INIT", "c COOKIE ECHO", "c ABORT", "c INIT"], "INIT"),
}


@ONE_WAY
@FAMILIES
@pytest.mark.parametrize("steps,state", ONE_WAY_SCENARIOS.values(), ids=ONE_WAY_SCENARIOS)
def test_states_by_the_client_alone(mode: str, af: int, steps: list[str], state: str) -> None:
    b = balancer(mode)
    a = Association(b, mode, af)
    play(a, steps)
    assert a.state == state
    if state == "ESTABLISHED":
        play(a, ["c ABORT", "c SHUTDOWN"], tag=0x01010101)
        assert a.state == state, "with another tag than that of its first packet"
    b.audit()


@pytest.mark.parametrize("steps,seconds", [
    (OPEN[:1], 60), (OPEN, 900), ([*OPEN, "c SHUTDOWN"], 60), ([*OPEN, "s SHUTDOWN"], 60), ([*OPEN, "c ABORT"], 10),
])  # fmt: skip
def test_timeouts(steps: list[str], seconds: int) -> None:
    b = balancer("fullnat")
    a = Association(b, "fullnat", 4)
    play(a, steps)
    assert b.engine.conns()[0]["expires_ms"] == seconds * 1000
    b.later(seconds - 1)
    assert a.state
    b.later(1.5)
    assert not a.state


def test_timeouts_of_its_own() -> None:
    b = balancer("fullnat")
    b.do(shm.setting(shm.SET_TIMEOUT_BASE + 14, 5000, 2))
    b.do(shm.setting(shm.SET_TIMEOUT_BASE + 2, 1, 2))
    a = Association(b, "fullnat", 4)
    a.open()
    b.later(4)
    assert a.state == "ESTABLISHED"
    b.later(1.5)
    assert not a.state


def test_active_connections_count_for_schedulers() -> None:
    """sed and its like go by established ones, of SCTP as of TCP."""
    b = balancer("fullnat", servers=2, sched=shm.SCHED_SED)
    servers = []
    for port in range(41000, 41006):
        a = Association(b, "fullnat", 4, port)
        a.open()
        servers.append(a.n)
    assert servers.count(1) == servers.count(2) == 3
    assert b.engine.service_stats(0)["active"] == 6


@TWO_WAY
def test_the_same_client_comes_back(mode: str) -> None:
    """Scheduled anew, to either server; what one of them sent before does not disturb the other's association."""
    b = balancer(mode, servers=2)
    a = Association(b, mode, 4)
    seen = set()
    for _ in range(4):
        a.open()
        assert a.state == "ESTABLISHED"
        seen.add(a.n)
        play(a, ["c SHUTDOWN", "s SHUTDOWN ACK", "c SHUTDOWN COMPLETE"])
        b.audit()
    assert seen == {1, 2}


def test_a_flood_of_inits_makes_way() -> None:
    b = balancer("fullnat", sizes={"conns4": 64})
    a = Association(b, "fullnat", 4)
    a.open()
    for port in range(1000, 1200):
        assert Association(b, "fullnat", 4, port).client("INIT").verdict == "forward"
    assert a.state == "ESTABLISHED"
    b.audit()


@MODE
@FAMILIES
def test_associations_outlive_the_process(mode: str, af: int) -> None:
    b = balancer(mode)
    a = Association(b, mode, af)
    a.open()
    before = b.engine.conns()
    assert b.engine.recover(b.now, True) == 1
    assert b.engine.conns() == before
    play(a, ["c DATA", "c SHUTDOWN"])
    assert a.state in ("SHUTDOWN_RECEIVED", "SHUTDOWN_SENT"), "the tags are part of the record"


def test_further_addresses_are_not_translated() -> None:
    b = balancer("nat")
    init = CHUNKS["INIT"].copy()
    init.params = [SCTPChunkParamIPv4Addr(addr="198.51.100.1")]
    l4 = SCTP(sport=CPORT, dport=80, tag=0) / init
    assert b.send(from_client(4, l4)).out[0][1] == expected("nat", 4, l4)


# --- what is refused, and answered -----------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("l4", [b"\x9c\x40\x00\x50", bytes(12), bytes.fromhex("9c400050000000000000000001000003")])
def test_malformed(af: int, l4: bytes) -> None:
    b = balancer("fullnat")
    r = b.send(with_protocol(bytes(from_client(af, Raw(l4))), af))
    assert (r.verdict, r.reason) == ("drop", "malformed")


@FAMILIES
def test_chunk_lengths_lead_nowhere(af: int) -> None:
    """A chunk that claims more than is there, or less than its header, ends the search."""
    b = balancer("fullnat")
    a = Association(b, "fullnat", af)
    a.open()
    for chunks in (b"\x03\x00\xff\xff", b"\x03\x00\x00\x04\x07\x00\x00\x00", b"\x03\x00\x00\x04" * 40 + b"\x06\x00\x00\x04"):
        l4 = SCTP(sport=CPORT, dport=80, tag=STAG) / Raw(chunks)
        assert b.send(from_client(af, l4)).verdict == "forward"
        assert a.state == "ESTABLISHED"


@FAMILIES
def test_other_ports_are_the_kernels(af: int) -> None:
    b = balancer("fullnat")
    r = b.send(from_client(af, packet("INIT", CPORT, 81, 0)))
    assert (r.verdict, r.reason) == ("kernel", "not_for_us")


@TWO_WAYS
@pytest.mark.parametrize("order", fragment.ORDERS)
def test_fragments(mode: str, af: int, order: str) -> None:
    """There and back. The checksum covers the whole packet: its change is known when the last fragment has told the length."""
    b = balancer(mode)
    a = Association(b, mode, af)
    a.open()
    cut = fragment.ORDERS[order](fragment.from_client(af, large(CPORT, 80, STAG)))
    frames = fragment.frames_out(fragment.send(b, cut))
    assert len(frames) == len(cut)
    got = fragment.from_addresses(fragment.together(frames))
    sport = CPORT if mode == "nat" else a.lport
    assert got == fragment.expected(a.far, a.local[0], server(a.far, 1), large(sport, 8080, STAG))
    cut = fragment.ORDERS[order](fragment.from_server(a.far, large(8080, a.local[1], CTAG), a.local[0]))
    frames = fragment.frames_out(fragment.send(b, cut, 1))
    assert len(frames) == len(cut)
    got = fragment.from_addresses(fragment.together(frames))
    assert got == fragment.expected(af, VIP[af], CLIENT[af], large(80, CPORT, CTAG))
    assert b.engine.used()["held"] == 0
    b.audit()


def large(sport: int, dport: int, tag: int) -> Packet:
    return SCTP(sport=sport, dport=dport, tag=tag) / SCTPChunkData(tsn=7, data=fragment.payload(2900), beginning=1, ending=1)


@ONE_WAY
@FAMILIES
def test_fragments_one_way(mode: str, af: int) -> None:
    """Nothing of it changes, and nothing waits."""
    b = balancer(mode)
    Association(b, mode, af).open()
    *most, _ = fragment.from_client(af, large(CPORT, 80, STAG))
    assert len(fragment.frames_out(fragment.send(b, most))) == len(most)


@pytest.mark.parametrize("order", fragment.ORDERS)
@pytest.mark.parametrize("what", ["INIT", "ABORT"])
def test_fragments_change_the_state(what: str, order: str) -> None:
    """As the packet would: once, with the first one."""
    b = balancer("fullnat")
    a = Association(b, "fullnat", 4)
    if what != "INIT":
        a.open()
    l4 = packet(what, CPORT, 80, 0 if what == "INIT" else STAG) / SCTPChunkError(error_causes=bytes(1200))
    fragment.frames_out(fragment.send(b, fragment.ORDERS[order](fragment.from_client(4, l4))))
    assert a.state == {"INIT": "INIT", "ABORT": "CLOSED"}[what] and len(b.engine.conns()) == 1
    b.audit()


def test_fragments_too_big() -> None:
    """The first one is answered as soon as it comes."""
    b = balancer("fullnat", mtu=(1500, 600))
    Association(b, "fullnat", 4).open()
    first, *rest = fragment.from_client(4, large(CPORT, 80, STAG), 1400)
    r = b.send(first)
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    assert {r.reason for r in fragment.send(b, rest)} == {"frag_orphan"}


def test_no_place_for_the_first_one() -> None:
    """Then the datagram is lost, and counted."""
    b = balancer("fullnat", frags=(16, 1))
    Association(b, "fullnat", 4).open()
    first, *_ = fragment.from_client(4, large(CPORT, 80, STAG))
    assert b.send(first).verdict == "hold"
    other, *others = fragment.from_client(4, large(CPORT, 80, STAG), ident=5)
    assert b.send(other).verdict == "hold", "the other one makes way"
    assert [r.reason for r in fragment.send(b, others)] == ["frag_table_full"] * len(others)
    b.later(31)
    assert b.engine.used()["held"] == 0 and b.engine.counters()["drops"]["frag_timeout"] == 1
    b.audit()


@FAMILIES
def test_too_big(af: int) -> None:
    b = balancer("fullnat", mtu=(1500, 600))
    a = Association(b, "fullnat", af)
    a.open()
    r = b.send(from_client(af, SCTP(sport=CPORT, dport=80, tag=STAG) / SCTPChunkData(data=b"x" * 700)))
    assert (r.verdict, r.reason) == ("consume", "mtu_exceeded")
    p = Ether(r.out[0][1])
    assert (p[ICMP].nexthopmtu if af == 4 else p[ICMPv6PacketTooBig].mtu) == 600


def icmp(af: int, quoted: Packet) -> Packet:
    head = ICMP(type=3, code=4, nexthopmtu=1400) if af == 4 else ICMPv6PacketTooBig(mtu=1400)
    return head / quoted


@TWO_WAY
@FAMILIES
@pytest.mark.parametrize("cut", [False, True], ids=["quoted whole", "quoted in part"])
def test_icmp_errors_follow_the_quoted_association(mode: str, af: int, cut: bool) -> None:
    """From a router before the real server to the client, and the other way round; the quoted packet as its sender sent it."""
    b = balancer(mode)
    a = Association(b, mode, af)
    a.open()
    local = (LIP[af], a.lport) if mode == "fullnat" else (CLIENT[af], CPORT)

    def part(p: Packet) -> Packet:
        return Raw(bytes(p)[: (20 if af == 4 else 40) + 8]) if cut else p

    def data(src: str, dst: str, sport: int, dport: int, tag: int) -> Packet:
        return part(ip(af, src, dst, **fields(af)) / packet("DATA", sport, dport, tag))

    told = icmp(af, data(local[0], server(af, 1), local[1], 8080, STAG))
    link = Ether(src=server_mac(1), dst=MAC_LB1)
    r = b.send(link / ip(af, server(af, 1), local[0], **fields(af)) / told, 1)
    want = icmp(af, data(CLIENT[af], VIP[af], CPORT, 80, STAG))
    link = Ether(src=MAC_LB0, dst=MAC_CLIENT)
    assert r.out == [(0, bytes(link / ip(af, VIP[af], CLIENT[af], **fields(af, hops=63)) / want))], r

    r = b.send(from_client(af, icmp(af, data(VIP[af], CLIENT[af], 80, CPORT, CTAG))))
    want = icmp(af, data(server(af, 1), local[0], 8080, local[1], CTAG))
    link = Ether(src=MAC_LB1, dst=server_mac(1))
    assert r.out == [(1, bytes(link / ip(af, local[0], server(af, 1), **fields(af, hops=63)) / want))], r
    blind = from_client(af, icmp(af, data(VIP[af], CLIENT[af], 80, CPORT, 0x01010101)))
    r = b.send(blind)
    assert (r.verdict, r.reason) == ("drop", "icmp_unmatched")


def test_icmp_errors_about_an_init() -> None:
    """It carries no tag in its header, but one inside."""
    b = balancer("fullnat")
    a = Association(b, "fullnat", 4)
    a.client("INIT")

    def error(tag: int) -> Packet:
        l4 = SCTP(sport=a.lport, dport=8080, tag=0) / SCTPChunkInit(init_tag=tag)
        quoted = ip(4, LIP[4], server(4, 1), **fields(4)) / l4
        return Ether(src=server_mac(1), dst=MAC_LB1) / ip(4, server(4, 1), LIP[4], **fields(4)) / icmp(4, quoted)

    assert b.send(error(CTAG), 1).verdict == "forward"
    assert b.send(error(5), 1).reason == "icmp_unmatched"
    a.open()
    assert b.send(error(CTAG), 1).reason == "icmp_unmatched", "established long ago"


@ONE_WAY
@FAMILIES
def test_icmp_errors_one_way(mode: str, af: int) -> None:
    b = balancer(mode)
    a = Association(b, mode, af)
    a.open()
    error = icmp(af, ip(af, VIP[af], CLIENT[af], **fields(af)) / packet("DATA", 80, CPORT, 12345))
    assert b.send(from_client(af, error)).out[0][1] == expected(mode, af, error)


# --- several workers -------------------------------------------------------------------------------------------------

def cluster(mode: str, workers: int, rss: bool) -> Cluster:
    c = Cluster(workers, **config(mode))
    if rss:
        c.set_rss(RSS_KEY, True)
    return c



@pytest.mark.parametrize("mode,af", [*product(MODES, (4, 6)), ("nat64", 6)])
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])
def test_packets_arrive_at_any_worker(mode: str, af: int, workers: int, rss: bool) -> None:
    c = cluster(mode, workers, rss)
    for port in range(2000, 2040):
        a = Association(c, mode, af, port)
        a.open()
        assert a.state == "ESTABLISHED"
    assert max(c.hops) <= 1 and len({r["worker"] for r in c.conns()}) == workers
    c.audit()


@TWO_WAYS
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("rss", [False, True], ids=["unknown RSS", "known RSS"])
@pytest.mark.parametrize("order", ["in order", "reversed", "first second"])
def test_fragments_arrive_at_any_worker(mode: str, af: int, workers: int, rss: bool, order: str) -> None:
    c = cluster(mode, workers, rss)
    for port in range(2000, 2004):
        a = Association(c, mode, af, port)
        a.open()
        cut = fragment.ORDERS[order](fragment.from_client(af, large(port, 80, STAG), ident=port))
        got = fragment.from_addresses(fragment.together(fragment.frames_out(fragment.send(c, cut))))
        sport = port if mode == "nat" else a.lport
        assert got == fragment.expected(a.far, a.local[0], server(a.far, 1), large(sport, 8080, STAG))
        cut = fragment.ORDERS[order](fragment.from_server(a.far, large(8080, a.local[1], CTAG), a.local[0], ident=port))
        got = fragment.from_addresses(fragment.together(fragment.frames_out(fragment.send(c, cut, 1))))
        assert got == fragment.expected(af, VIP[af], CLIENT[af], large(80, port, CTAG))
    assert max(c.hops) <= 3
    c.audit()
