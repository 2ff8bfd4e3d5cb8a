"""TCP connections step by step: what state each segment leads to, and what a blind sender can't do (RFC 5961, RFC 9293)."""

import pytest

from tests.packet.balancer import Balancer, packed
from tests.packet.flow import Tcp
from tests.packet.frame import TCP, from_server

FAMILIES = pytest.mark.parametrize("af", [4, 6])

# c: from the client, r: from the real server; flags (! a retransmission); the state that it leads to, "-" for none any more
OPEN = "c:S SYN_RECV r:SA SYN_RECV c:A ESTABLISHED"
SEQUENCES = {
    "open": OPEN,
    "open with data in the last step": "c:S SYN_RECV r:SA SYN_RECV c:PA ESTABLISHED",
    "retransmitted handshake": "c:S SYN_RECV c:S! SYN_RECV r:SA SYN_RECV r:SA! SYN_RECV c:A ESTABLISHED r:SA! ESTABLISHED",
    "close by the client": OPEN + " c:FA CLOSE_WAIT r:A CLOSE_WAIT r:FA LAST_ACK c:A CLOSE",
    "close by the client in three": OPEN + " c:FA CLOSE_WAIT r:FA LAST_ACK c:A CLOSE",
    "close by the server": OPEN + " r:FA FIN_WAIT c:A FIN_WAIT c:FA TIME_WAIT r:A TIME_WAIT",
    "close by the server in three": OPEN + " r:FA FIN_WAIT c:FA TIME_WAIT r:A TIME_WAIT",
    "half-closed by the client, data goes on": OPEN + " c:FA CLOSE_WAIT r:PA CLOSE_WAIT c:A CLOSE_WAIT r:PA CLOSE_WAIT",
    "half-closed by the server, data goes on": OPEN + " r:FA FIN_WAIT c:PA FIN_WAIT r:A FIN_WAIT",
    "fin with the last ack": "c:S SYN_RECV r:SA SYN_RECV c:FA CLOSE_WAIT r:FA LAST_ACK c:A CLOSE",
    "refused": "c:S SYN_RECV r:RA -",
    "refused, then tried again": "c:S SYN_RECV r:RA - c:S SYN_RECV r:SA SYN_RECV c:A ESTABLISHED",
    "reset by the client": OPEN + " c:RA CLOSE",
    "reset by the server": OPEN + " r:R CLOSE",
    "reset while half open": "c:S SYN_RECV r:SA SYN_RECV c:R -",
    "reset by the server while half open": "c:S SYN_RECV r:SA SYN_RECV r:R -",
    "fast open: the server speaks first": "c:S SYN_RECV r:SA SYN_RECV r:PA ESTABLISHED c:A ESTABLISHED",
    "fast open: the server is done first": "c:S SYN_RECV r:SA SYN_RECV r:FA FIN_WAIT c:FA TIME_WAIT",
    "syn in time_wait starts anew": OPEN + " r:FA FIN_WAIT c:FA TIME_WAIT c:S SYN_RECV r:SA SYN_RECV c:A ESTABLISHED",
    "syn after close starts anew": OPEN + " c:RA CLOSE c:S SYN_RECV r:SA SYN_RECV c:A ESTABLISHED",
    "syn in last_ack starts anew": OPEN + " c:FA CLOSE_WAIT r:FA LAST_ACK c:S SYN_RECV",
    "time_wait is not cut short by a reset": OPEN + " r:FA FIN_WAIT c:FA TIME_WAIT r:R TIME_WAIT c:R TIME_WAIT",
    "xmas tree on an established connection": OPEN + " c:FSPUA ESTABLISHED",
}


def run(f: Tcp, steps: str) -> None:
    words = steps.split()
    for step, state in zip(words[::2], words[1::2], strict=True):
        side, flags = step.split(":")
        again = flags.endswith("!")
        flags = flags.rstrip("!")
        send = f.client if side == "c" else f.real
        if again:
            length = "S" in flags or "F" in flags
            r = send(flags, seq=(f.cseq if side == "c" else f.sseq) - length)
        else:
            r = send(flags, b"data" if "P" in flags and "S" not in flags else b"")
        assert r.verdict == "forward", (step, r)
        assert (f.state or "-") == state, f"after {step}"
    b = f.b
    b.audit()
    assert len(b.engine.conns()) == (words[-1] != "-")


@FAMILIES
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str, af: int) -> None:
    b = Balancer(servers=1)  # test_reuse.py: what the scheduler makes of a client that comes back
    run(Tcp(b, af), SEQUENCES[name])


@FAMILIES
@pytest.mark.parametrize("isn, server_isn", [(2**32 - 2, 2**32 - 1), (2**32 - 1, 0), (2**31 - 1, 2**31)])
@pytest.mark.parametrize("name", ["close by the client", "close by the server", "half-closed by the client, data goes on"])
def test_sequence_numbers_wrap(name: str, isn: int, server_isn: int, af: int) -> None:
    run(Tcp(Balancer(), af, isn=isn, server_isn=server_isn), SEQUENCES[name])


def established(af: int = 4) -> tuple[Balancer, Tcp]:
    b = Balancer()
    return b, Tcp(b, af).open()


@FAMILIES
def test_both_close_at_once(af: int) -> None:
    """Then the real server keeps TIME_WAIT too: the port must rest as long."""
    _, f = established(af)
    before = f.cseq
    f.client("FA")
    f.real("FA", ack=before)  # has not seen the client's FIN
    assert f.state == "TIME_WAIT"
    f.client("A")
    f.real("A")
    assert f.state == "TIME_WAIT"


@FAMILIES
def test_segments_that_open_nothing(af: int) -> None:
    b = Balancer()
    for flags in ("A", "SA", "R", "RA", "F", "FA", "PA", "SR", "SRA", ""):
        f = Tcp(b, af)
        r = f.client(flags, ack=1)
        assert (r.verdict, r.reason) == ("drop", "no_state"), flags
    assert b.engine.conns() == [] and b.engine.counters()["drops"] == {"no_state": 10}


@FAMILIES
def test_blind_ack_never_establishes(af: int) -> None:
    """A flooder who does not see the SYN+ACK: before it, after it, near its number, with data, with FIN."""
    b = Balancer()
    f = Tcp(b, af)
    f.client("S")
    for ack in (0, 1, f.sseq, f.sseq + 1):
        assert f.client("A", ack=ack).verdict == "forward"
        assert f.state == "SYN_RECV", "no SYN+ACK yet"
    f.real("SA")
    for distance in (1, -1, 2, 100, -100, 65535, -65535, 2**31, 10**6):
        for flags, payload in (("A", b""), ("PA", b"GET"), ("FA", b"")):
            f.client(flags, payload, seq=f.cseq, ack=f.sseq + distance)
            assert f.state == "SYN_RECV"
    f.client("A")
    assert f.state == "ESTABLISHED"


@FAMILIES
def test_spoofed_syn_ack(af: int) -> None:
    """Whoever does not know the client's number can't pretend that the real server has answered."""
    f = Tcp(Balancer(), af, isn=2_000_000_000)
    f.client("S")
    for ack in (f.cseq + 1, f.cseq - 65537, f.cseq + 2**31, 0):
        f.real("SA", seq=5, ack=ack)
        f.client("A", ack=6)
        assert f.state == "SYN_RECV"
    f.real("SA")
    f.client("A")
    assert f.state == "ESTABLISHED"


@FAMILIES
def test_syn_with_data_may_be_acknowledged_in_part(af: int) -> None:
    """TCP Fast Open, refused by the server: its SYN+ACK acknowledges the SYN alone."""
    f = Tcp(Balancer(), af)
    f.client("S", b"early data")
    f.real("SA", ack=f.cseq - 10)
    f.client("A")
    assert f.state == "ESTABLISHED"


@FAMILIES
@pytest.mark.parametrize("distance", [65537, -65537, 10**6, 2**31, 2**31 - 1, -(2**30)])
def test_blind_reset_and_fin(af: int, distance: int) -> None:
    """Out of the window: neither the state nor the timer moves; the packet goes on, since the ends judge themselves."""
    b, f = established(af)
    b.later(1)
    before = f.record
    for flags in ("R", "RA", "FA"):
        assert f.client(flags, seq=f.cseq + distance).verdict == "forward"
        assert f.real(flags, seq=f.sseq + distance).verdict == "forward"
    assert f.record == before


@FAMILIES
def test_blind_syn_on_an_established_connection(af: int) -> None:
    """No second record, no new state, no longer life: the real server answers with a challenge ACK (RFC 5961 §4)."""
    b, f = established(af)
    b.later(1)
    before = f.record
    for seq in (0, f.cseq, f.cseq + 5000):
        assert f.client("S", seq=seq).verdict == "forward"
    assert b.engine.conns() == [before]
    f.real("A")
    assert f.client("R").verdict == "forward" and f.state == "CLOSE", "what an old client does with the challenge ACK"


@FAMILIES
def test_a_blind_ack_does_not_carry_the_window_off(af: int) -> None:
    """First an ACK somewhere, then a reset there: must not work either."""
    _, f = established(af)
    for k in range(1, 16):
        there = f.cseq + k * 2**28
        f.client("A", b"x", seq=there)
        f.client("R", seq=there + 1)
        assert f.state == "ESTABLISHED"
    f.client("RA")
    assert f.state == "CLOSE", "the client's own number is still known"


@FAMILIES
def test_the_window_follows_after_a_large_loss(af: int) -> None:
    """More than a megabyte was lost before the balancer: what the real server acknowledges shows the way again."""
    _, f = established(af)
    f.cseq += 5_000_000
    f.client("PA", b"x" * 1000)
    f.real("A")
    f.client("FA")
    assert f.state == "CLOSE_WAIT"


@FAMILIES
def test_bulk_data_moves_both_windows(af: int) -> None:
    """Far more than the window, both ways, with pieces lost on the way here; then either end can still close."""
    _, f = established(af)
    for k in range(400):
        f.client("PA", b"c" * 1000)
        f.real("PA", b"s" * 1000)
        if k % 7 == 0:
            f.cseq += 60_000
            f.sseq += 60_000
    f.real("FA")
    assert f.state == "FIN_WAIT"
    f.client("FA")
    assert f.state == "TIME_WAIT"


def test_a_third_party_can_not_move_a_half_open_clients_number() -> None:
    """A blind SYN with another number, then the true client's ACK: its later reset must count."""
    f = Tcp(Balancer())
    f.client("S")
    f.real("SA")
    f.client("S", seq=f.cseq + 2**30)
    f.client("A")
    assert f.state == "ESTABLISHED"
    f.client("R", seq=f.cseq + 2**30 + 1)
    assert f.state == "ESTABLISHED"
    f.client("R")
    assert f.state == "CLOSE"


def test_a_blind_reset_does_not_close_a_half_open_connection() -> None:
    f = Tcp(Balancer(), isn=2_000_000_000)
    f.client("S")
    for seq in (0, f.cseq + 70000, f.cseq + 2**31):
        f.client("R", seq=seq)
        assert f.state == "SYN_RECV"
    f.client("R")
    assert f.state == ""


@FAMILIES
def test_a_blind_refusal_does_not_end_a_half_open_connection(af: int) -> None:
    """From the real server's side too: what refuses a SYN acknowledges it."""
    f = Tcp(Balancer(), af, isn=2_000_000_000)
    f.client("S")
    for flags, seq, ack in (("R", 0, 0), ("R", 10**9, 0), ("RA", 0, 0), ("RA", 0, f.cseq + 1), ("RA", 0, f.cseq - 65537)):
        f.real(flags, seq=seq, ack=ack)
        assert f.state == "SYN_RECV", (flags, seq, ack)
    f.real("SA")
    f.real("R", seq=f.sseq + 10**6)
    assert f.state == "SYN_RECV"
    f.real("RA", seq=0)
    assert f.state == ""


@FAMILIES
def test_statistics_follow_the_state(af: int) -> None:
    b, f = established(af)
    svc, dest = f.record["svc"], f.record["dest"]

    def counts() -> list[tuple[int, int]]:
        return [(s["active"], s["inactive"]) for s in (b.engine.service_stats(svc), b.engine.dest_stats(dest))]

    assert counts() == [(1, 0)] * 2
    f.client("FA")
    assert counts() == [(0, 1)] * 2
    f.real("FA")
    f.client("A")
    b.later(20)
    assert counts() == [(0, 0)] * 2 and b.engine.conns() == []
    stats = b.engine.service_stats(svc)
    assert (stats["conns"], stats["in_pkts"], stats["out_pkts"]) == (1, 4, 2)
    assert (stats["in_bytes"], stats["out_bytes"]) == ((160, 80) if af == 4 else (240, 120))


@FAMILIES
def test_a_syn_whose_server_is_gone_is_scheduled_again(af: int) -> None:
    """The client retransmits its SYN, or uses its port again: no dead server for it, and no second record."""
    from lbd.shm import _shm as shm

    b = Balancer()
    f = Tcp(b, af)
    f.client("S")
    first = f.server
    dest = f.record["dest"]
    b.do(shm.dest_set(dest, 2, af=af, addr=first, port=8080, svc=f.record["svc"], up=False))
    assert f.client("S", seq=f.cseq - 1).verdict == "forward"
    assert f.server != first and len(b.engine.conns()) == 1
    r = b.send(from_server(af, TCP, first, f.lport, "SA", 5, f.cseq), 1)
    assert (r.verdict, r.reason) == ("drop", "no_state"), "the first one's late answer belongs to nobody"


def test_established_flows_stay_with_a_drained_server() -> None:
    from lbd.shm import _shm as shm

    b, f = established()
    b.do(shm.dest_set(f.record["dest"], 2, af=4, addr=f.server, port=8080, svc=0, weight=0))
    before = f.server
    assert f.client("PA", b"more").verdict == "forward" and f.server == before
    other = [Tcp(b, sport=50000 + i) for i in range(10)]
    for o in other:
        o.client("S")
    assert {o.server for o in other} == {packed(a) for a in ("10.77.0.11", "10.77.0.12")} - {before}
