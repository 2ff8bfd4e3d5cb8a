# SPDX-License-Identifier: Apache-2.0
"""The TCP transition table, read state by state, and the window test. Whole connections: tests/packet/test_tcp_state.py."""

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
