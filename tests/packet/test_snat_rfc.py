"""RFC 4787, 5382 and 5508: the requirements that docs/modes/snat.md says hold, each with the test that shows it; and those that no
other test of SNAT shows.
"""

import re
from collections.abc import Callable
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.packet import fragment
from tests.packet import test_snat as plain
from tests.packet import test_snat_icmp as icmp
from tests.packet.balancer import MAC_LB0, MAC_LB1, ip
from tests.packet.gateway import HOST, MAC_HOST, MAC_ROUTER, REMOTE, Gateway, came_back, inbound, outbound, pool
from tests.packet.test_snat import FAMILIES, ask, hops, open_flow, reply

PAGE = Path(__file__).parents[2] / "docs/modes/snat.md"


@FAMILIES
def test_no_port_overloading(af: int) -> None:
    """Two hosts, the same port of theirs, the same remote: two ports (REQ-3)."""
    b = Gateway()
    hosts = ["10.77.0.50", "10.77.0.51", "10.77.0.52"] if af == 4 else ["fd77::50", "fd77::51", "fd77::52"]
    for kind in ("tcp", "udp", "icmp"):
        assert len({open_flow(b, af, kind, 40000, src=host) for host in hosts}) == 3


@FAMILIES
def test_udp_lasts_and_is_refreshed(af: int) -> None:
    """An unanswered UDP flow lasts 5 minutes from its last packet, an answered one too (REQ-5, REQ-6)."""
    b = Gateway()
    at = open_flow(b, af, "udp")
    b.later(290)
    assert b.send(outbound(af, ask(af, "udp", 40000)), 1).verdict == "forward"
    b.later(290)
    assert b.send(inbound(af, reply(af, "udp", at))).out[0][0] == 1
    b.later(290)
    assert b.send(outbound(af, ask(af, "udp", 40000)), 1).verdict == "forward"
    b.later(290)
    assert len(b.engine.conns()) == 1 and b.engine.counters()["conns_made"] == 1
    b.later(20)
    assert not b.engine.conns()


@FAMILIES
def test_the_same_under_load(af: int) -> None:
    """A flow's mapping is what it was when others come and ports run short (REQ-11)."""
    b = Gateway(ports=(10000, 60000))
    at = open_flow(b, af, "udp", 1)
    for n in range(2, 500):
        open_flow(b, af, "udp", n)
    r = b.send(outbound(af, ask(af, "udp", 1)), 1)
    assert plain.port_of(af, "udp", r.out[0][1]) == at


@FAMILIES
def test_addresses_in_the_payload_stay(af: int) -> None:
    """No application-level gateway (REQ-10): FTP's PORT, SIP's Contact go as they are."""
    b = Gateway()
    text = f"PORT {HOST[af].replace('.', ',')},7,7 Contact: <sip:a@{HOST[af]}>".encode()
    r = b.send(outbound(af, UDP(sport=21, dport=21) / Raw(text)), 1)
    assert bytes(Ether(r.out[0][1])[Raw]) == text


@FAMILIES
def test_unsolicited_syns_get_no_answer(af: int) -> None:
    """To a port of the pool that nobody has, and to one that is another remote's (RFC 5382 REQ-4)."""
    b = Gateway()
    at = open_flow(b, af, "tcp")
    other = "203.0.113.10" if af == 4 else "2001:db8:9::a"
    for dport, src in ((29999 if at != 29999 else 29998, REMOTE[af]), (at, other)):
        r = b.send(inbound(af, TCP(sport=443, dport=dport, flags="S"), src=src))
        assert (r.verdict, r.reason, r.out) == ("drop", "no_state", [])


@FAMILIES
def test_traceroute(af: int) -> None:
    """From inside the routers on the way are seen by their own addresses (RFC 5508 REQ-4)."""
    b = Gateway()
    for kind in ("udp", "icmp"):
        at = open_flow(b, af, kind)
        for n in range(1, 4):
            router = f"198.18.0.{n}" if af == 4 else f"2001:db8:18::{n}"
            late = ICMP(type=11) if af == 4 else ICMPv6TimeExceeded()
            quoted = ip(af, pool(af), REMOTE[af], **hops(af, 1)) / ask(af, kind, at, payload=b"x" * 8)
            r = b.send(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, router, pool(af)) / late / quoted)
            inner = ip(af, HOST[af], REMOTE[af], **hops(af, 1)) / ask(af, kind, 40000, payload=b"x" * 8)
            assert r.out == [(1, bytes(came_back(af, late / inner, src=router, **hops(af, 63))))]


@FAMILIES
def test_damaged_errors_go_nowhere(af: int) -> None:
    """A wrong checksum of the error, a quoted header that ends too soon (RFC 5508 REQ-3)."""
    b = Gateway()
    at = open_flow(b, af, "icmp")
    quoted = ip(af, pool(af), REMOTE[af]) / ask(af, "icmp", at, payload=b"x" * 8)
    good = bytes(Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, REMOTE[af], pool(af)) / icmp.error(af) / quoted)
    bad = bytearray(good)
    bad[-1] ^= 1
    assert b.send(bytes(bad)).reason == "bad_checksum"
    head = bytes(quoted)[: 24 if af == 4 else 44]
    short = Ether(src=MAC_ROUTER, dst=MAC_LB0) / ip(af, REMOTE[af], pool(af)) / icmp.error(af) / Raw(head)
    assert b.send(short).reason == "malformed"
    assert b.send(good).verdict == "forward"


@FAMILIES
def test_other_icmp_is_the_kernels(af: int) -> None:
    """Timestamp requests, router solicitations: no rule is for them (RFC 5508 REQ-10, REQ-11)."""
    if af == 4:
        b = Gateway()
        for kind in (13, 17, 9, 10, 5, 4):
            assert b.send(outbound(4, ICMP(type=kind)), 1).verdict == "kernel"


@FAMILIES
def test_fragments_in_any_order(af: int) -> None:
    """Both ways; the datagram that arrives is the one that was sent, from and to the pool's address (RFC 4787 REQ-14)."""
    data = fragment.payload(1200)
    for order in fragment.ORDERS.values():
        b = Gateway()
        link = Ether(src=MAC_HOST, dst=MAC_LB1)
        asked = fragment.cut(link, fragment.built(ip(af, HOST[af], REMOTE[af]) / UDP(sport=5000, dport=53) / Raw(data)))
        out = fragment.frames_out(fragment.send(b, order(asked), 1))
        got = fragment.together(out)
        layer = IP if af == 4 else IPv6
        assert (got[layer].src, got[layer].dst) == (pool(af), REMOTE[af])
        assert bytes(got[UDP].payload) == data and got[UDP].dport == 53
        link = Ether(src=MAC_ROUTER, dst=MAC_LB0)
        answer = UDP(sport=53, dport=got[UDP].sport) / Raw(data)
        back = fragment.cut(link, fragment.built(ip(af, REMOTE[af], pool(af)) / answer), ident=99)
        got = fragment.together(fragment.frames_out(fragment.send(b, order(back), 0)))
        assert (got[layer].src, got[layer].dst, got[UDP].dport) == (REMOTE[af], HOST[af], 5000)
        assert bytes(got[UDP].payload) == data


HOLDS: dict[str, Callable[..., None]] = {
    "RFC 4787 REQ-2": plain.test_a_host_keeps_its_address,
    "RFC 4787 REQ-3": test_no_port_overloading,
    "RFC 4787 REQ-5": test_udp_lasts_and_is_refreshed,
    "RFC 4787 REQ-6": test_udp_lasts_and_is_refreshed,
    "RFC 4787 REQ-8": plain.test_nobody_else_comes_in,
    "RFC 4787 REQ-10": test_addresses_in_the_payload_stay,
    "RFC 4787 REQ-11": test_the_same_under_load,
    "RFC 4787 REQ-12": icmp.test_an_error_changes_no_state,
    "RFC 4787 REQ-13": plain.test_too_large,
    "RFC 4787 REQ-14": test_fragments_in_any_order,
    "RFC 5382 REQ-2": plain.test_simultaneous_open,
    "RFC 5382 REQ-3": plain.test_nobody_else_comes_in,
    "RFC 5382 REQ-4": test_unsolicited_syns_get_no_answer,
    "RFC 5382 REQ-5": plain.test_timeouts,
    "RFC 5382 REQ-9": icmp.test_from_outside,
    "RFC 5382 REQ-10": icmp.test_an_error_changes_no_state,
    "RFC 5508 REQ-1": plain.test_timeouts,
    "RFC 5508 REQ-2": plain.test_there_and_back,
    "RFC 5508 REQ-3": test_damaged_errors_go_nowhere,
    "RFC 5508 REQ-4": test_traceroute,
    "RFC 5508 REQ-5": icmp.test_from_inside,
    "RFC 5508 REQ-6": icmp.test_an_error_changes_no_state,
    "RFC 5508 REQ-8": plain.test_hops_used_up,
    "RFC 5508 REQ-10": test_other_icmp_is_the_kernels,
    "RFC 5508 REQ-11": test_other_icmp_is_the_kernels,
}


def said_to_hold(page: Path) -> set[str]:
    """By the page's table: requirements with "yes" or "in part"."""
    found, rfc = set(), ""
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and "REQ-" in cells[0]:
            named = re.match(r"RFC \d+", cells[0])
            rfc = named[0] if named else rfc
            if cells[1] in ("yes", "in part"):
                numbers = re.findall(r"REQ-(\d+)", cells[0])
                last = range(int(numbers[0]), int(numbers[-1]) + 1)
                found |= {f"{rfc} REQ-{n}" for n in last}
    return found


def test_the_page_says_no_more_than_tests_show() -> None:
    assert said_to_hold(PAGE) == set(HOLDS)
    assert all(callable(test) for test in HOLDS.values())


