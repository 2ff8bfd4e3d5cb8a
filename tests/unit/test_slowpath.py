# SPDX-License-Identifier: Apache-2.0
"""What the kernel gets through the TAP: the frame as it came, but for MAC, VLAN tags and unfinished checksums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import IP, SCTP, TCP, UDP, Dot1Q, Ether, IPv6, raw

from lbd.master.slowpath import MAC, SlowPath, complete_checksum, ones_sum, untagged

CLIENT, ROUTER = "02:00:00:00:00:01", "02:00:00:00:00:02"
FAMILIES = [(IP(src="198.51.100.7", dst="192.0.2.10"), 34), (IPv6(src="2001:db8::7", dst="2001:db8::10"), 54)]
TRANSPORTS = [(TCP(sport=4000, dport=80), 6, 16), (UDP(sport=4000, dport=53), 17, 6)]


def frame(network, transport, payload: bytes = b"hello", tags: int = 0) -> bytes:
    packet = Ether(src=CLIENT, dst=ROUTER)
    for tag in range(tags):
        packet /= Dot1Q(vlan=5 + tag)
    return raw(packet / network / transport / payload)


def partial(whole: bytes, l4: int, proto: int, at: int) -> bytes:
    """As a local stack over veth leaves it: the pseudo-header's sum alone."""
    addresses = whole[26:34] if l4 == 34 else whole[22:54]
    total = ones_sum(addresses + bytes([0, proto]) + (len(whole) - l4).to_bytes(2, "big"))
    return whole[: l4 + at] + total.to_bytes(2, "big") + whole[l4 + at + 2 :]


@pytest.mark.parametrize(("network", "l4"), FAMILIES)
@pytest.mark.parametrize(("transport", "proto", "at"), TRANSPORTS)
@given(payload=st.binary(max_size=200))
def test_unfinished_checksum_is_finished(network, l4: int, transport, proto: int, at: int, payload: bytes) -> None:
    whole = frame(network, transport, payload)
    assert complete_checksum(partial(whole, l4, proto, at)) == whole
    assert complete_checksum(whole) == whole, "a whole one stays"
    wrong = bytearray(whole)
    wrong[l4 + at] ^= 0x55
    assert complete_checksum(bytes(wrong)) == bytes(wrong), "a wrong one stays wrong"


@pytest.mark.parametrize(("network", "l4"), FAMILIES)
@given(payload=st.binary(max_size=200))
def test_unfinished_checksum_of_sctp(network, l4: int, payload: bytes) -> None:
    whole = frame(network, SCTP(sport=4000, dport=3868, tag=5), payload)
    assert complete_checksum(whole[: l4 + 8] + bytes(4) + whole[l4 + 12 :]) == whole
    wrong = whole[: l4 + 8] + b"\x00\x00\x00\x01" + whole[l4 + 12 :]
    assert complete_checksum(wrong) == wrong


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
def test_garbage_is_passed_on_as_it_is(junk: bytes, kind: bytes) -> None:
    given_frame = bytes(12) + kind + junk
    assert len(complete_checksum(given_frame)) == len(given_frame)


def test_tags_go_and_the_mac_becomes_the_tap_s() -> None:
    written: list[bytes] = []
    path = SlowPath(written.append)
    network, transport = FAMILIES[0][0], TRANSPORTS[0][0]
    path.deliver(frame(network, transport, tags=2), partial=False)
    assert written == [MAC + frame(network, transport)[6:]]
    assert untagged(b"\0" * 12 + b"\x81\x00") == b"\0" * 12 + b"\x81\x00", "cut short: left alone"


def test_a_full_tap_is_counted_not_waited_for() -> None:
    def full(_: bytes) -> None:
        raise BlockingIOError

    path = SlowPath(full)
    path.deliver(frame(FAMILIES[1][0], TRANSPORTS[1][0]), partial=True)
    assert (path.delivered, path.refused) == (0, 1)
