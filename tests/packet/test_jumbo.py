"""Packets in several AF_XDP frames: what becomes of them is what becomes of the same packet in one piece, byte for byte (which is
judged by the tables of test_mode.py, test_nat64.py, test_sctp.py and so on); or they are dropped as multi_buffer: ICMP errors, and
headers that go on beyond the first frame.
"""

from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from lbd.shm import _shm as shm
from tests.packet import fragment
from tests.packet.balancer import CLIENT, MAC_CLIENT, MAC_LB0, VIP, from_client, ip
from tests.packet.conversation import MODES, ONE_WAY, Seen, balancer, conversation, layer4, partial, told
from tests.packet.fragment import payload

CUTS = (1408, 1411, 1792, 3840)  # bytes of a frame: the least, an odd number, what XDP's headroom leaves of 2 and of 4 KiB
SIZE = 8901

def same(run: Callable[[int], Seen], verdict: str, reason: str = "none", count: int = 1) -> None:
    whole = run(0)
    assert [r[:2] for r in whole[:-1]].count((verdict, reason)) >= count, whole
    for cut in CUTS:
        assert run(cut) == whole, cut


@pytest.mark.parametrize(("mode", "af"), [(mode, af) for mode in MODES for af in (4, 6) if (mode, af) != ("nat64", 4)])
@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("kind", ["whole", "partial"])
def test_cut_or_not_is_the_same(mode: str, af: int, proto: str, kind: str) -> None:
    change = partial if kind == "partial" else bytes
    run = conversation(mode, af, proto, change, payload(SIZE), partial=kind == "partial")
    same(run, "forward", count=1 if mode in ONE_WAY else 2)


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("good", [True, False])
def test_checksums_are_verified_to_the_end(af: int, proto: str, good: bool) -> None:
    def change(frame: bytes) -> bytes:
        return frame if good else frame[:-3] + bytes([frame[-3] ^ 1]) + frame[-2:]

    def run(cut: int) -> Seen:
        b = balancer("fullnat")
        b.do(shm.setting(shm.SET_VERIFY_CSUM, 1, 1))
        b.send(bytes(from_client(af, layer4(proto, 40000, 80, flags="S"))))
        return told(b, [(change(bytes(from_client(af, layer4(proto, 40000, 80, payload(SIZE))))), 0)], cut)

    same(run, "forward" if good else "drop", "none" if good else "bad_checksum")


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("what", ["ttl", "mtu"])
def test_answers_in_place_of_a_large_packet(af: int, what: str) -> None:
    fields = ({"ttl": 1} if af == 4 else {"hlim": 1}) if what == "ttl" else {}

    def run(cut: int) -> Seen:
        b = balancer("fullnat", mtu=(9000, 1500) if what == "mtu" else (9000, 9000))
        b.send(bytes(from_client(af, layer4("tcp", 40000, 80, flags="S"))))
        return told(b, [(bytes(from_client(af, layer4("tcp", 40000, 80, payload(SIZE)), **fields)), 0)], cut)

    same(run, "consume", "ttl_expired" if what == "ttl" else "mtu_exceeded")


def test_udp_without_a_checksum_gets_one_over_all_frames() -> None:
    def change(frame: bytes) -> bytes:
        p = Ether(frame)
        if IP in p:  # from the real server; IPv6 must have one
            p[UDP].chksum = 0
        return bytes(p)

    same(conversation("nat64", 6, "udp", change, payload(SIZE)), "forward", count=2)


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("order", ["in order", "reversed", "first last", "twice all, reversed"])
def test_large_fragments_are_held_whole(af: int, order: str) -> None:
    def run(cut: int) -> Seen:
        b = balancer("fullnat")
        whole = fragment.segment("udp", 40000, 80, payload(30000))
        cuts = fragment.ORDERS[order](fragment.from_client(af, whole, size=SIZE & ~7))
        return told(b, [(bytes(p), 0) for p in cuts], cut)

    same(run, "forward", count=4)


def test_fragments_beyond_what_is_held_are_dropped_whole() -> None:
    """64 pieces of a datagram at most; one of 9,000 bytes has six."""
    b = balancer("fullnat", mtu=(65535, 65535))
    whole = fragment.segment("udp", 40000, 80, payload(65000))
    cuts = fragment.from_client(4, whole, size=5368)[1:]
    held = [b.send(bytes(p), cut=1792) for p in cuts]
    assert [r.verdict for r in held] == ["hold"] * len(cuts) and b.engine.used()["held"] == sum(-(-len(p) // 1792) for p in cuts)
    b.later(31)
    assert b.engine.used()["held"] == 0
    assert b.engine.counters()["drops"] == {"frag_timeout": len(cuts)}
    huge = fragment.from_client(4, whole, size=40000, ident=78)[1:]
    huge = [Ether(src=MAC_CLIENT, dst=MAC_LB0) / IP(src=CLIENT[4], dst=VIP[4], proto=17, frag=1, id=79) / Raw(bytes(40000)), *huge]
    assert b.send(bytes(huge[0]), cut=3840).reason == "too_big_frame"


def test_tags_and_what_the_link_adds() -> None:
    """A tag that comes off, and bytes behind the IP packet: they stay behind, or go, as those of a packet in one frame."""

    def run(cut: int) -> Seen:
        b = balancer("gre")
        first = bytes(from_client(4, layer4("tcp", 40000, 80, flags="S")))
        large = bytes(from_client(4, layer4("tcp", 40000, 80, payload(SIZE))))
        tag = bytes(Dot1Q(vlan=7))[:2]
        tagged = [f[:12] + b"\x81\x00" + tag + f[12:] for f in (first, large + bytes(40))]
        b.send(tagged[0])
        return told(b, [(tagged[1], 0), (large + bytes(3000), 0)], cut)

    same(run, "forward", count=2)


@pytest.mark.parametrize("af", [4, 6])
def test_errors_in_several_frames_are_refused(af: int) -> None:
    b = balancer("fullnat")
    quoted = ip(af, VIP[af], CLIENT[af]) / layer4("tcp", 80, 40000, payload(SIZE - 100))
    error = ICMP(type=3, code=4, nexthopmtu=1400) if af == 4 else ICMPv6PacketTooBig(mtu=1400)
    r = b.send(bytes(from_client(af, error / Raw(bytes(quoted)))), cut=1792)
    assert (r.verdict, r.reason) == ("drop", "multi_buffer")


def test_headers_beyond_the_first_frame_are_refused() -> None:
    def headers(n: int) -> bytes:
        p = Ether(src=MAC_CLIENT, dst=MAC_LB0) / IPv6(src=CLIENT[6], dst=VIP[6])
        for _ in range(n):
            p = p / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(252)), PadN(optdata=bytes(250))])
        return bytes(p / layer4("udp", 40000, 80, payload(6000)))

    b = balancer("fullnat", mtu=(65535, 65535))
    assert b.send(headers(2), cut=1792).verdict == "forward"
    for cut in (1408, 1792, 3840):
        for n in range(3, 8):
            r = b.send(headers(n), cut=cut)
            fits = 54 + 512 * n <= cut - 320
            assert (r.verdict, r.reason) == (("forward", "none") if fits else ("drop", "multi_buffer")), (cut, n)


@pytest.mark.parametrize("mode", ["fullnat", "gre"])
def test_a_flow_of_another_worker_is_handed_over_as_it_came(mode: str) -> None:
    def run(cut: int) -> Seen:
        b = balancer(mode, workers=2, worker=0)
        b.engine.set_owner([1] * 1024)
        return told(b, [(bytes(from_client(4, layer4("udp", 40000, 80, payload(SIZE)))), 0)], cut)

    same(run, "handover")
