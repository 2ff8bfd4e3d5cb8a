"""The sorry server: when no real server can take a connection, and not a moment longer."""

import pytest

from lbd.shm import _shm as shm
from tests.packet.balancer import Balancer
from tests.packet.flow import Tcp, Udp
from tests.packet.standing import dest, service, sorry

FAMILIES = pytest.mark.parametrize("af", [4, 6])
SEARCHING = [shm.SCHED_SEQ, shm.SCHED_LEAST, shm.SCHED_SED, shm.SCHED_NQ, shm.SCHED_FIRST, shm.SCHED_OVF, shm.SCHED_HOME,
             shm.SCHED_HOMES]  # fmt: skip
REFUSING = [shm.SCHED_HASH, shm.SCHED_SOURCE, shm.SCHED_DEST]


@FAMILIES
@pytest.mark.parametrize("sched", SEARCHING)
@pytest.mark.parametrize("how", ["down", "weight 0", "no table"])
def test_it_takes_over_and_gives_back(how: str, sched: int, af: int) -> None:
    b = Balancer(sched=sched)
    address = sorry(b, af)
    service(b, af, sorry=200)
    first = Tcp(b, af, 1).open()
    assert first.server != address
    for n in (1, 2):
        dest(b, af, n, weight=0 if how == "weight 0" else 1, up=how != "down")
    service(b, af, table_len=0 if how == "no table" else None, sorry=200)
    for n in range(4):
        f = Tcp(b, af, 10 + n).open()
        assert f.server == address
    kept = Tcp(b, af, 50).open()
    assert kept.server == address and first.client("PA", b"q").verdict == "forward"
    dest(b, af, 2)
    service(b, af, sorry=200)
    back = Tcp(b, af, 60).open()
    assert back.server not in (address, None)
    assert kept.client("PA", b"q").verdict == "forward" and kept.real("PA", b"a").verdict == "forward"
    assert b.engine.dest_stats(200)["conns"] == 5


@FAMILIES
@pytest.mark.parametrize("sched", REFUSING)
def test_a_hash_that_refuses_goes_on_to_refuse(sched: int, af: int) -> None:
    """IPVS's sh, dh and mh refuse the clients of a drained real server: the sorry server is for when there is nobody."""
    b = Balancer(sched=sched, servers=1)
    address = sorry(b, af)
    service(b, af, sorry=200)
    dest(b, af, 1, weight=0)
    assert Tcp(b, af, 1).client("S").reason == "no_backend"
    service(b, af, sorry=200, table_len=0)
    assert Tcp(b, af, 1).open().server == address
    if sched != shm.SCHED_DEST:
        service(b, af, sorry=200, flags=shm.SVC_HASH_FALLBACK)
        assert Tcp(b, af, 2).open().server == address


@FAMILIES
def test_overflow_counts_as_none(af: int) -> None:
    b = Balancer(sched=shm.SCHED_OVF, servers=1)
    address = sorry(b, af)
    service(b, af, sorry=200)
    servers = [Tcp(b, af, n).open().server == address for n in range(1, 5)]
    assert servers == [False, False, True, True]


@FAMILIES
def test_udp(af: int) -> None:
    b = Balancer()
    address = sorry(b, af, "udp")
    service(b, af, "udp", sorry=200)
    for n in (1, 2):
        dest(b, af, n, "udp", up=False)
    u = Udp(b, af)
    assert u.ask().verdict == "forward" and u.server == address and u.answer().verdict == "forward"


@FAMILIES
def test_a_client_comes_back_from_it(af: int) -> None:
    """A connection to it is over: the client's next from the same port is scheduled anew."""
    b = Balancer()
    address = sorry(b, af)
    service(b, af, sorry=200)
    for n in (1, 2):
        dest(b, af, n, up=False)
    f = Tcp(b, af).open()
    assert f.server == address
    f.close_by_server()
    dest(b, af, 1)
    f.cseq += 100_000
    f.sseq += 100_000
    assert f.open().server != address


@FAMILIES
def test_a_recovered_record_finds_it(af: int) -> None:
    b = Balancer()
    sorry(b, af)
    service(b, af, sorry=200)
    for n in (1, 2):
        dest(b, af, n, up=False)
    f = Tcp(b, af).open()
    b.engine.recover(b.now, True)
    assert f.client("PA", b"q").verdict == "forward"
    assert f.record is not None and f.record["dest"] == 200 and b.engine.dest_stats(200)["active"] == 1


@FAMILIES
def test_without_one_nothing_changes(af: int) -> None:
    b = Balancer()
    for n in (1, 2):
        dest(b, af, n, up=False)
    assert Tcp(b, af).client("S").reason == "no_backend"
