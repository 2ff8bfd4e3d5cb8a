"""Packets that aren't what they should be: a verdict and a reason for every kind, every prefix and any bits flipped.

tests/packet/template.py has the material, tests/packet/oracle.py what must hold of whatever comes out.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbd.shm import _shm as shm
from tests.packet.balancer import Balancer
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import UDP, from_client
from tests.packet.oracle import judge, read
from tests.packet.template import TEMPLATES
from tests.unit.test_datapath_csum import model

EXPECTED = {
    "4 no flags": "drop no_state",
    "4 all flags": "drop no_state",
    "4 rst": "drop no_state",
    "4 header of 60 bytes": "drop no_state",
    "4 udp, no checksum": "forward none",
    "6 udp, no checksum": "forward none",
    "4 other port": "kernel not_for_us",
    "6 other port": "kernel not_for_us",
    "4 tagged": "forward none",
    "6 tagged twice": "forward none",
    "4 tagged twice, 802.1q": "forward none",
    "4 tagged three times": "kernel not_for_us",
    "6 priority tag": "forward none",
    "4 somebody else's": "kernel not_for_us",
    "6 somebody else's": "kernel not_for_us",
    "4 gre": "kernel proto_unsupported",
    "6 gre": "kernel proto_unsupported",
    "4 ip in ip": "kernel proto_unsupported",
    "6 ip in ip": "kernel proto_unsupported",
    "4 esp": "kernel proto_unsupported",
    "6 esp": "kernel proto_unsupported",
    "4 ah": "kernel proto_unsupported",
    "6 ah": "drop exthdr_unsupported",
    "6 ah behind options": "drop exthdr_unsupported",
    "4 options: record route": "forward none",
    "4 options: source route": "forward none",  # a destination that takes no source routes drops it
    "4 options: 40 bytes": "forward none",
    "4 options: timestamp": "forward none",
    "4 first fragment": "forward none",
    "4 first fragment, not of eights": "drop malformed",
    "4 overwriting fragment": "drop frag_tiny",
    "4 later fragment": "hold none",
    "4 tiny fragment": "drop frag_tiny",
    "4 fragment beyond 65535": "drop malformed",
    "4 fragment of icmp": "kernel not_for_us",
    "6 first fragment": "forward none",
    "6 first fragment, not of eights": "drop malformed",
    "6 later fragment, options in it": "hold none",
    "6 atomic fragment, options in it": "forward none",
    "6 fragment of half a chain": "drop frag_tiny",
    "6 fragment of a fragment": "drop exthdr_unsupported",
    "6 tiny fragment": "drop frag_tiny",
    "6 overwriting fragment": "drop frag_tiny",
    "6 later fragment": "hold none",
    "6 atomic fragment": "forward none",
    "6 fragment behind options": "forward none",
    "6 fragment of icmp": "kernel not_for_us",
    "4 echo": "kernel icmp_unsupported",
    "6 echo": "kernel icmp_unsupported",
    "4 redirect": "kernel icmp_unsupported",
    "4 source quench": "kernel icmp_unsupported",
    "6 neighbour solicitation": "kernel not_for_us",
    "4 unreachable": "drop icmp_unmatched",
    "6 too big": "drop icmp_unmatched",
    "4 error about an error": "kernel icmp_unmatched",
    "6 error about an error": "kernel icmp_unmatched",
    "4 error quoting a fragment": "kernel icmp_unmatched",
    "6 error quoting a fragment": "kernel icmp_unmatched",
    "6 error quoting nine headers": "kernel icmp_unmatched",
    "4 from 0.0.0.0": "drop martian",
    "4 from loopback": "drop martian",
    "4 from multicast": "drop martian",
    "4 from broadcast": "drop martian",
    "6 from ::": "drop martian",
    "6 from ::1": "drop martian",
    "6 from a mapped address": "drop martian",
    "6 from multicast": "drop martian",
    "4 land": "forward none",  # an ordinary client to lbd: the real server sees the local address
    "4 ttl 1": "consume ttl_expired",
    "4 ttl 0": "consume ttl_expired",
    "6 hop limit 1": "consume ttl_expired",
    "6 hop limit 0": "consume ttl_expired",
    "4 version 5": "drop malformed",
    "4 ihl 4": "drop malformed",
    "4 ihl 15": "drop malformed",
    "4 length too long": "drop malformed",
    "4 length too short": "drop malformed",
    "4 length ends in tcp": "drop malformed",
    "4 wrong ip checksum": "drop bad_checksum",
    "4 wrong tcp checksum": "forward none",  # the end judges; it stays wrong (verify_checksums: below)
    "6 wrong tcp checksum": "forward none",
    "4 data offset 4": "drop malformed",
    "4 data offset 15": "drop malformed",
    "6 data offset 4": "drop malformed",
    "4 udp length 7": "drop malformed",
    "4 udp length beyond": "drop malformed",
    "4 udp length within": "forward none",
    "6 udp length beyond": "drop malformed",
    "4 sctp": "kernel not_for_us",
    "6 hop by hop": "forward none",
    "6 destination options": "forward none",
    "6 routing header": "forward none",
    "6 chain of 8": "forward none",
    "6 chain of 9": "drop exthdr_unsupported",
    "6 chain of 100": "drop exthdr_unsupported",
    "6 jumbo": "drop malformed",
    "6 no next header": "kernel proto_unsupported",
    "6 version 4": "drop malformed",
    "6 length too long": "drop malformed",
    "6 length too short": "drop malformed",
    "6 length 0": "drop malformed",
    "arp": "kernel not_for_us",
    "lldp": "kernel not_for_us",
    "stp": "kernel not_for_us",
    "unknown ethertype": "kernel not_for_us",
    "mpls": "kernel not_for_us",
    "padded to 60 bytes": "forward none",
}


def busy(**more: int | bool) -> Balancer:
    """With the connections that the templates belong to: local port 30000 of each family and protocol."""
    b = Balancer(servers=1, ports=(30000, 30000), **more)  # type: ignore[arg-type]
    for af in (4, 6):
        f = Tcp(b, af, 40000, isn=1000, server_isn=5000).open()
        u = Udp(b, af, 40000)
        u.ask()
        u.answer()
        assert f.lport == u.lport == 30000
    return b


BALANCERS = {"quiet": Balancer, "busy": busy, "partial": lambda: busy(partial=True), "small mtu": lambda: busy(mtu=(1280, 68))}
EACH = pytest.mark.parametrize("kind", BALANCERS)


@pytest.mark.parametrize("name", EXPECTED)
def test_verdicts(name: str) -> None:
    r = Balancer().send(TEMPLATES[name])
    assert f"{r.verdict} {r.reason}" == EXPECTED[name]
    judge(TEMPLATES[name], r)


def test_there_are_templates_of_every_kind() -> None:
    assert len(TEMPLATES) >= 120
    b = busy()
    seen = {b.send(frame).reason for frame in TEMPLATES.values()}
    assert len(seen) >= 12


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n[0] in "46"])
def test_templates_meet_their_connections(name: str) -> None:
    b = busy()
    r = b.send(TEMPLATES[name], 1 if "answer" in name else 0)
    judge(TEMPLATES[name], r)
    errors = "unreachable", "time exceeded", "frag needed", "too big", "parameter problem", "error behind"
    if any(word in name for word in errors):
        assert r.verdict == "forward" and b.engine.counters()["icmp_mapped"] == 1
    if "answer" in name or "fin" in name or name.endswith("ack with data"):
        assert r.verdict == "forward"


@EACH
def test_every_prefix(kind: str) -> None:
    b = BALANCERS[kind]()
    sent = b.packets
    for name, frame in TEMPLATES.items():
        whole = read(frame)
        for length in range(len(frame)):
            for iface in (0, 1):
                piece = frame[:length]
                r = b.send(piece, iface)
                if kind != "partial":
                    judge(piece, r)
                if whole.fits and length < len(frame) and name != "padded to 60 bytes":
                    assert r.verdict in ("drop", "kernel"), (name, length)
                if length < 14:
                    assert r.reason == "malformed"
    assert b.packets - sent > 20000
    b.audit()


MUTATION = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 2000), st.integers(0, 7)),
    st.tuples(st.just("set"), st.integers(0, 80), st.sampled_from([0, 1, 4, 5, 6, 15, 17, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFF])),
    st.tuples(st.just("cut"), st.integers(0, 200), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 100), st.integers(1, 16)),
    st.tuples(st.just("remove"), st.integers(0, 100), st.integers(1, 16)),
    st.tuples(st.just("pad"), st.integers(1, 100), st.just(0)),
    st.tuples(st.just("mend"), st.just(0), st.just(0)),
)


def mutate(frame: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(frame)
    for what, at, value in changes:
        if not data:
            break
        if what == "flip":
            data[at % len(data)] ^= 1 << value
        elif what == "set":
            data[at % len(data)] = value
        elif what == "cut":
            del data[max(len(data) - at, 0) :]
        elif what == "insert":
            at %= len(data)
            data[at:at] = bytes(range(value))
        elif what == "remove":
            del data[at : at + value]
        elif what == "pad":
            data += bytes(at)
        elif what == "mend" and len(data) >= 34:
            mend(data)
    return bytes(data)


def mend(data: bytearray) -> None:
    """The IPv4 header's checksum made right, so that mutations are seen by what comes after it."""
    at = 12
    while data[at : at + 2] in (b"\x81\x00", b"\x88\xa8") and len(data) > at + 30:
        at += 4
    at += 2
    head = (data[at] & 15) * 4
    if data[at] >> 4 == 4 and 20 <= head <= len(data) - at:
        data[at + 10 : at + 12] = b"\0\0"
        data[at + 10 : at + 12] = model(bytes(data[at : at + head])).to_bytes(2, "big")


@EACH
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(packets=st.lists(st.tuples(st.sampled_from(sorted(TEMPLATES)), st.lists(MUTATION, max_size=6), st.integers(0, 1)),
                        min_size=1, max_size=20))  # fmt: skip
def test_mutations(kind: str, packets: list) -> None:
    b = BALANCERS[kind]()
    for name, changes, iface in packets:
        frame = mutate(TEMPLATES[name], changes)
        r = b.send(frame, iface)
        if kind != "partial":  # there a wrong checksum that equals the partial one is taken for it, by design
            judge(frame, r)
    b.audit()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=10), st.integers(0, 1))
def test_noise(frames: list[bytes], iface: int) -> None:
    b = busy()
    for frame in frames:
        judge(frame, b.send(frame, iface))
    b.audit()


def test_verified_checksums() -> None:
    """packet.verify_checksums: wrong ones are dropped on receipt; right ones, and none over IPv4, go on."""
    for name, frame in TEMPLATES.items():
        plain, strict = busy(), busy()
        strict.do(shm.setting(1, 1, 1))
        iface = 1 if "answer" in name else 0
        r, s = plain.send(frame, iface), strict.send(frame, iface)
        wrong = read(frame).right is False or name == "6 udp, no checksum"
        if s.reason == "bad_checksum" != r.reason:
            assert s.verdict == "drop" and wrong, name
        else:
            assert (s.verdict, s.reason, s.out) == (r.verdict, r.reason, r.out), name
            assert not (wrong and r.verdict in ("forward", "consume")), name


def test_frames_of_any_size() -> None:
    b = busy()
    for size in (1500, 2034, 9000, 65535 - 14):
        for af, head in ((4, 20), (6, 40)):
            frame = from_client(af, UDP, 40000, payload=b"x" * (size - head - 8))
            r = b.send(frame)
            judge(frame, r)
            assert r.verdict == ("forward" if size <= 1500 else "consume")
