# SPDX-License-Identifier: Apache-2.0
"""The TCP transition table, read state by state, the window test, and what is seen of both ends. Whole connections:
tests/packet/test_tcp_state.py."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit import _engine

NAMES = ["NONE", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "FIN_WAIT", "TIME_WAIT", "CLOSE"]
ACK, SYN, FIN, RST = range(4)

# By IPVS's names. What lbd decides for itself: a SYN leaves a living connection alone (RFC 5961 §4); SYN_RECV → ESTABLISHED needs
# the caller's proof; who closes first tells whether the real server keeps TIME_WAIT, since then the local port rests.
CLIENT = {
    ACK: "NONE ESTABLISHED ESTABLISHED CLOSE_WAIT CLOSE FIN_WAIT TIME_WAIT CLOSE",
    SYN: "SYN_RECV SYN_RECV ESTABLISHED CLOSE_WAIT SYN_RECV FIN_WAIT SYN_RECV SYN_RECV",
    FIN: "NONE SYN_RECV CLOSE_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT TIME_WAIT CLOSE",
    RST: "NONE NONE CLOSE CLOSE CLOSE CLOSE TIME_WAIT CLOSE",
}
SERVER = {
    ACK: "NONE SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK FIN_WAIT TIME_WAIT CLOSE",
    SYN: "NONE SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK FIN_WAIT TIME_WAIT CLOSE",
    FIN: "NONE SYN_RECV FIN_WAIT LAST_ACK LAST_ACK FIN_WAIT TIME_WAIT CLOSE",
    RST: "NONE NONE CLOSE CLOSE CLOSE CLOSE TIME_WAIT CLOSE",
}


@pytest.mark.parametrize("direction, table", [(0, CLIENT), (1, SERVER)], ids=["client", "server"])
def test_transitions(direction: int, table: dict[int, str]) -> None:
    for event, row in table.items():
        got = " ".join(NAMES[_engine.tcp_next(direction, event, state)] for state in range(8))
        assert got == row, f"event {event}"


def test_reset_wins_over_syn_over_fin() -> None:
    for flags in range(64):
        expected = RST if flags & 4 else SYN if flags & 2 else FIN if flags & 1 else ACK
        assert _engine.tcp_event(flags) == expected


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1))
@example(0, -(2**31))
def test_window(edge: int, distance: int) -> None:
    assert _engine.in_window((edge + distance) % 2**32, edge) == (abs(distance) <= 65536)


def test_the_window_admits_one_blind_number_in_2_to_the_15th() -> None:
    assert (2 * 65536 + 1) / 2**32 < 2**-14.9


NUMBER = st.integers(0, 2**32 - 1)
STEP = st.one_of(st.sampled_from([-(2**31), -1, 0, 1, 2**20, 2**20 + 1, 2**31 - 1]), st.integers(-(2**31), 2**31 - 1))


def ahead(to: int, edge: int) -> int:
    """Signed distance of sequence numbers."""
    return (to - edge + 2**31) % 2**32 - 2**31


@settings(deadline=None)
@given(NUMBER, NUMBER, STEP, STEP, st.integers(0, 100), st.integers(5, 15), st.integers(0, 1))
def test_edges(client: int, server: int, sent: int, acknowledged: int, payload: int, words: int, direction: int) -> None:
    """`sent`: how far the segment's end is ahead of its sender's edge; `acknowledged`: its acknowledgement, of the client's."""
    end = ((server if direction else client) + sent) % 2**32
    ack = (client + acknowledged) % 2**32
    segment = struct.pack("!HHIIBBHHH", 1, 2, (end - payload) % 2**32, ack, words << 4, 0x10, 0, 0, 0).ljust(4 * words + payload)
    if direction:
        expected = ack if ahead(ack, client) > 0 else client, end if ahead(end, server) > 0 else server
    else:  # not beyond a megabyte: it may be forged
        expected = end if 0 <= ahead(end, client) <= 2**20 else client, server
    assert _engine.edges_after(client, server, segment, direction) == expected
