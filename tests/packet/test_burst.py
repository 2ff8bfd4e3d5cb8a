"""A burst is its packets one by one: nothing of a packet, of either family, stays for the next one in its slot."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.packet.balancer import Balancer
from tests.packet.flow import Tcp, Udp
from tests.packet.frame import TCP, UDP, from_client, from_server
from tests.packet.template import TEMPLATES

SERVERS = {4: bytes([10, 77, 0, 11]), 6: bytes.fromhex("fd77") + bytes(13) + b"\x11"}

client = st.builds(
    lambda af, proto, port, flags, seq, ack: (from_client(af, proto, port, flags if proto == TCP else "", seq, ack), 0),
    st.sampled_from([4, 6]), st.sampled_from([TCP, UDP]), st.integers(1024, 1027),
    st.sampled_from(["S", "S", "A", "PA", "FA", "R"]), st.sampled_from([100, 101]), st.sampled_from([0, 501]),
)  # fmt: skip
server = st.builds(
    lambda af, proto, port, flags: (from_server(af, proto, SERVERS[af], port, flags if proto == TCP else "", 500, 101), 1),
    st.sampled_from([4, 6]), st.sampled_from([TCP, UDP]), st.integers(30000, 30003), st.sampled_from(["SA", "A", "FA", "R"]),
)  # fmt: skip
# but fragments: those that come in one burst with their first one wait for it (test_frag.py)
odd = st.sampled_from([(frame, 0) for name, frame in TEMPLATES.items() if "fragment" not in name or "quoting" in name])


def balancer() -> Balancer:
    return Balancer(servers=1, ports=(30000, 30007))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(client | server | odd, min_size=1, max_size=64))
def test_a_burst_is_its_packets_one_by_one(packets: list[tuple[bytes, int]]) -> None:
    together, alone = balancer(), balancer()
    got = together.engine.process(packets, together.now)
    for r, (frame, iface) in zip(got, packets, strict=True):
        e = alone.send(frame, iface)
        assert (r.verdict, r.reason, r.svc, r.dest, r.out) == (e.verdict, e.reason, e.svc, e.dest, e.out)
    assert together.engine.conns() == alone.engine.conns()
    assert together.engine.counters() == alone.engine.counters()


def test_ipv4_after_ipv6_in_the_same_slot() -> None:
    b = Balancer()
    assert Tcp(b, 6).client("S").verdict == "forward"
    assert Tcp(b, 4).client("S").verdict == "forward"
    assert Udp(b, 6).ask().verdict == "forward"
    assert Udp(b, 4).ask().verdict == "forward"


def test_a_flow_opens_and_closes_within_a_burst() -> None:
    """The probe of a later packet is older than what an earlier one did."""
    b = balancer()
    syn, rst = from_client(4, TCP, 1024, "S", 100), from_client(4, TCP, 1024, "R", 101)
    verdicts = [r.verdict for r in b.burst([syn, syn, rst, syn, syn])]
    assert verdicts == ["forward"] * 5
    assert [c["state"] for c in b.engine.conns()] == ["SYN_RECV"]
    b.audit()


def test_what_is_opened_again_within_a_burst_keeps_its_turn() -> None:
    """The local ports go to the packets in their order, whatever was planned ahead."""
    syn, rst, other = (from_client(4, TCP, *more) for more in ((1025, "S", 100), (1025, "R", 100), (1024, "S", 100)))
    together, alone = balancer(), balancer()
    got = together.burst([syn, rst, syn, other])
    assert [r.out for r in got] == [alone.send(frame).out for frame in (syn, rst, syn, other)]
