"""RFC 4787, 5382 and 5508 as far as they apply to mode nat: what docs/modes/nat.md says holds, each with the test that shows it."""

from pathlib import Path

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded
from scapy.layers.l2 import Ether

from tests.packet import test_echo as echo
from tests.packet import test_frag as fragment
from tests.packet import test_mode as mode
from tests.packet import test_timeout as timeout
from tests.packet.balancer import CLIENT, ip, server
from tests.packet.test_mode import FAMILIES, answer_of, balancer, client_flow, from_client, segment
from tests.packet.test_snat_rfc import said_to_hold

PAGE = Path(__file__).parents[2] / "docs/modes/nat.md"


@FAMILIES
def test_udp_lasts_and_is_refreshed(af: int) -> None:
    """5 minutes from the last packet, either way (REQ-5, REQ-6)."""
    b = balancer("nat")
    there, back = from_client(af, segment("udp", "", 40000, 80, b"?")), answer_of(af, segment("udp", "", 8080, 40000, b"!"))
    for packet, iface in ((there, 0), (back, 1), (back, 1), (there, 0)):
        assert b.send(packet, iface).verdict == "forward"
        b.later(290)
    assert b.engine.counters()["conns_made"] == 1 and len(b.engine.conns()) == 1
    b.later(20)
    assert not b.engine.conns()


@FAMILIES
@pytest.mark.parametrize("sport", [0x1000, 0x1001, 1, 65535])
def test_the_clients_port_is_kept(af: int, sport: int) -> None:
    """Parity with it (REQ-4); and nobody has another one's, since the address is kept as well (REQ-3)."""
    b = balancer("nat")
    for proto in ("tcp", "udp"):
        [(_, frame)] = b.send(from_client(af, segment(proto, "S", sport, 80))).out
        got = Ether(frame)
        assert got.getlayer(2).sport == sport and got.getlayer(1).src == CLIENT[af]


@FAMILIES
def test_an_error_changes_no_state(af: int) -> None:
    b = balancer("nat")
    for packet, iface in ((client_flow("tcp")[0], 0), (segment("tcp", "SA", 8080, 40000, seq=5000, ack=1001), 1)):
        b.send(from_client(af, packet) if iface == 0 else answer_of(af, packet), iface)
    [before] = b.engine.conns()
    unreachable = ICMP(type=3, code=3) if af == 4 else ICMPv6DestUnreach(code=4)
    quoted = ip(af, CLIENT[af], server(af, 1)) / segment("tcp", "S", 40000, 8080)
    b.later(50)
    assert b.send(answer_of(af, unreachable / quoted), 1).verdict == "forward"
    [after] = b.engine.conns()
    assert after["state"] == before["state"]
    b.later(15)
    assert not b.engine.conns(), "half open for a minute, from its last packet"


@FAMILIES
def test_answers(af: int) -> None:
    """What can't go on is answered: hops used up, too large (with DF)."""
    b = balancer("nat")
    b.send(from_client(af, client_flow("tcp")[0]))
    [(iface, frame)] = b.send(from_client(af, segment("tcp", "A", 40000, 80, seq=1001), hops=1)).out
    got = Ether(frame)
    assert iface == 0 and (got[ICMP].type == 11 if af == 4 else ICMPv6TimeExceeded in got)
    b = balancer("nat", mtu=(1500, 1400))
    b.send(from_client(af, client_flow("tcp")[0]))
    [(iface, frame)] = b.send(from_client(af, segment("tcp", "A", 40000, 80, bytes(1440), seq=1001))).out
    got = Ether(frame)
    assert iface == 0 and (got[ICMP].nexthopmtu if af == 4 else got[ICMPv6PacketTooBig].mtu) == 1400


HOLDS = {
    "RFC 4787 REQ-3": test_the_clients_port_is_kept,
    "RFC 4787 REQ-4": test_the_clients_port_is_kept,
    "RFC 4787 REQ-5": test_udp_lasts_and_is_refreshed,
    "RFC 4787 REQ-6": test_udp_lasts_and_is_refreshed,
    "RFC 4787 REQ-8": mode.test_what_nat_does_not_know_is_the_kernels,
    "RFC 4787 REQ-11": mode.test_nat_back_and_forth_is_the_identity,
    "RFC 4787 REQ-12": test_an_error_changes_no_state,
    "RFC 4787 REQ-13": test_answers,
    "RFC 4787 REQ-14": fragment.test_any_order,
    "RFC 5382 REQ-2": mode.test_what_the_client_gets_by_nat,
    "RFC 5382 REQ-5": timeout.test_each_state_ends_in_time,
    "RFC 5382 REQ-9": mode.test_nat_icmp_errors,
    "RFC 5382 REQ-10": test_an_error_changes_no_state,
    "RFC 5508 REQ-1": echo.test_there_and_back,
    "RFC 5508 REQ-2": echo.test_times_out_as_configured,
    "RFC 5508 REQ-4": mode.test_nat_icmp_errors,
    "RFC 5508 REQ-5": mode.test_nat_icmp_errors,
    "RFC 5508 REQ-6": test_an_error_changes_no_state,
    "RFC 5508 REQ-8": test_answers,
    "RFC 5508 REQ-10": echo.test_what_stays_the_kernels,
    "RFC 5508 REQ-11": echo.test_what_stays_the_kernels,
}


def test_the_page_says_no_more_than_tests_show() -> None:
    assert said_to_hold(PAGE) == set(HOLDS)
    assert all(callable(test) for test in HOLDS.values())
