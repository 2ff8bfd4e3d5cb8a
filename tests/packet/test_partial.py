"""Partial checksums, as a local TCP stack over veth leaves them: completed on the way out, or left to the kernel where it completes
them; never within a tunnel, of SCTP, or where the packet changes its family.
"""

from typing import Any

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Raw

from tests.packet.balancer import from_client
from tests.packet.conversation import MODES, ONE_WAY, balancer, conversation, layer4, partial

KEPT = ("fullnat", "nat", "dr")
LEFT = 16  # PKT_COMPLETE
CASES = [(mode, af) for mode in MODES for af in (4, 6) if (mode, af) != ("nat64", 4)]


def unchanged(frame: bytes) -> bytes:
    return frame


def out(seen: list[tuple[Any, ...]]) -> list[list[tuple[int, bytes]]]:
    return [r[-1] for r in seen[:-1]]


@pytest.mark.parametrize(("mode", "af"), CASES)
@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("size", [0, 1, 700])
def test_completed(mode: str, af: int, proto: str, size: int) -> None:
    """The same leaves as of the packet with its whole checksum. (Whether that is right: test_mode.py and others.)"""
    data = bytes(range(size % 251)) * 3 + b"x" if size else b""
    whole = conversation(mode, af, proto, unchanged, data)(0)
    came = conversation(mode, af, proto, partial, data, partial=True)(0)
    assert [r[:2] for r in came[:-1]] == [("forward", "none")] * (1 if mode in ONE_WAY else 2)
    assert out(came) == out(whole)


@pytest.mark.parametrize(("mode", "af"), CASES)
@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
def test_left_to_the_kernel(mode: str, af: int, proto: str) -> None:
    whole = conversation(mode, af, proto, unchanged, b"odd")(0)
    came = conversation(mode, af, proto, partial, b"odd", partial=True, completes=True)(0)
    left = mode in KEPT and proto != "sctp"
    assert out(came) == [[(iface, partial(f) if left else f) for iface, f in r] for r in out(whole)]


@pytest.mark.parametrize("mode", KEPT)
@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_whole_ones_are_not_the_kernels(mode: str, af: int, proto: str) -> None:
    """Of two packets of a flow, and the one that opens it."""
    b = balancer(mode, partial=True, completes=True)
    for flags, change, left in (("S", partial, LEFT), ("A", bytes, 0), ("A", partial, LEFT)):
        r = b.send(change(bytes(from_client(af, layer4(proto, 40000, 80, b"odd", flags)))))
        assert (r.verdict, r.flags & LEFT) == ("forward", left)


def test_none_is_none() -> None:
    """UDP over IPv4 without a checksum."""
    b = balancer("fullnat", partial=True, completes=True)
    for _ in range(2):
        r = b.send(bytes(from_client(4, UDP(sport=5, dport=80, chksum=0) / Raw(b"x"))))
        assert (r.verdict, r.flags & LEFT) == ("forward", 0) and r.out[0][1][40:42] == b"\0\0"


def test_an_answer_to_the_sender_is_whole() -> None:
    """ICMP in a packet's place, and a reset."""
    b = balancer("fullnat", partial=True, completes=True)
    expired = bytes(from_client(4, layer4("tcp", 40000, 80, flags="S"), ttl=1))
    r = b.send(partial(expired))
    assert (r.verdict, r.reason, r.flags & LEFT) == ("consume", "ttl_expired", 0)
