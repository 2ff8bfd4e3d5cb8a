# SPDX-License-Identifier: Apache-2.0
"""Descriptors over a socket: all of them, in order, or none."""

import json
import os
import socket

import pytest

from lbd.master import handover
from lbd.master.handover import HandoverError, WorkerSet, pair, receive, send


@pytest.fixture
def sockets():
    ours, theirs = pair()
    theirs.settimeout(1.0)
    with ours, theirs:
        yield ours, theirs


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def pipes(count: int) -> list[int]:
    """Descriptors that can be told apart."""
    fds = []
    for i in range(count):
        fd = os.memfd_create(f"handover-{i}")
        os.write(fd, b"%d" % i)
        fds.append(fd)
    return fds


def close(fds) -> None:
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("count", [0, 1, 250, 251, 600])
def test_all_arrive_in_order(sockets, count):
    ours, theirs = sockets
    fds = pipes(count)
    send(ours, {"word": "ä", "list": [1, 2]}, fds)
    words, came = receive(theirs)
    assert words == {"word": "ä", "list": [1, 2]}
    assert [os.pread(fd, 9, 0) for fd in came] == [b"%d" % i for i in range(count)]
    assert not set(fds) & set(came) and not any(os.get_inheritable(fd) for fd in came)
    close([*fds, *came])


def test_messages_do_not_mix(sockets):
    ours, theirs = sockets
    fds = pipes(3)
    send(ours, {"n": 1}, fds[:2])
    send(ours, {"n": 2})
    send(ours, {"n": 3}, fds[2:])
    got = [receive(theirs) for _ in range(3)]
    assert [(words["n"], len(came)) for words, came in got] == [(1, 2), (2, 0), (3, 1)]
    close(fds + [fd for _, came in got for fd in came])


def raw(sock: socket.socket, *packets: tuple[bytes, list[int]]) -> None:
    for data, fds in packets:
        socket.send_fds(sock, [data], fds)


@pytest.mark.parametrize(
    ("packets", "text"),
    [
        ([(b"hello", 0)], "not a message"),
        ([(b"\xff\xfe", 0)], "not a message"),
        ([(b"[1]", 0)], "not a message"),
        ([(b'{"a": 1}', 0)], "not a message"),
        ([(b'{"fds": -1}', 0)], "not a message"),
        ([(b'{"fds": "2"}', 0)], "not a message"),
        ([(b'{"fds": 99999}', 0)], "not a message"),
        ([(b'{"fds": 1}', 1)], "not a message"),
        ([(b'{"fds": 2}', 0), (b"F", 1), (b"X", 1)], "2 of 2 descriptors"),
        ([(b'{"fds": 2}', 0), (b"F", 3)], "3 of 2 descriptors"),
        ([(b'{"fds": 2}', 0), (b"F", 1), (b"F", 0)], "1 of 2 descriptors"),
        ([(b'{"fds": 2}', 0), (b"Fx", 2)], "did not fit"),
    ],
)
def test_what_is_no_message_is_refused_whole(sockets, packets, text):
    ours, theirs = sockets
    fds = pipes(3)
    before = open_count()
    raw(ours, *((data, fds[:count]) for data, count in packets))
    with pytest.raises(HandoverError, match=text):
        receive(theirs)
    assert open_count() == before, "a descriptor that came was left open"
    close(fds)


def test_peer_that_goes_away_or_says_nothing(sockets):
    ours, theirs = sockets
    theirs.settimeout(0.05)
    before = open_count()
    with pytest.raises(TimeoutError):
        receive(theirs)
    fds = pipes(1)
    raw(ours, (b'{"fds": 2}', []), (b"F", fds))
    ours.close()
    with pytest.raises(HandoverError, match="1 of 2"):
        receive(theirs)
    close(fds)
    assert open_count() == before - 1


def test_too_much_is_refused_before_anything_is_sent(sockets):
    ours, theirs = sockets
    for words, fds in (({"text": "x" * handover.HEAD_MAX}, []), ({}, [0] * (handover.FDS_MAX + 1))):
        with pytest.raises(HandoverError, match="more than one message"):
            send(ours, words, fds)
    send(ours, {"text": "x" * (handover.HEAD_MAX - 100)})
    assert len(receive(theirs)[0]["text"]) == handover.HEAD_MAX - 100


def test_own_limit_of_open_files_is_named(sockets):
    import resource

    ours, theirs = sockets
    fds = pipes(20)
    send(ours, {}, fds)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) + 5, hard))
        with pytest.raises(HandoverError, match="LimitNOFILE"):
            receive(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    close(fds)


# -- the set -------------------------------------------------------------------------------------------------


def make_set(fds: list[int]) -> WorkerSet:
    return WorkerSet(
        number=1, run_dir="/run/lbd", segment=fds[0], host=fds[1], area=fds[2], conn=fds[3],
        peers={0: fds[4], 2: fds[5]}, wake={0: fds[6], 1: fds[7]},
        ports=[{"iface": 0, "ifindex": 3, "queue": 1, "fd": fds[8], "fill": 64, "comp": 64}],
        via={1: 0}, links={"eth0": fds[9]}, maps={"xsks": fds[10]}, core=3, fifo_priority=5,
        log_level="debug", extra={"config": "abc"},
    )  # fmt: skip


def test_set_survives_the_way(sockets):
    ours, theirs = sockets
    given = make_set(pipes(11))
    send(ours, *given.words())
    got = WorkerSet.from_words(*receive(theirs))
    assert [os.pread(fd, 9, 0) for fd in got.fds()] == [b"%d" % i for i in range(11)]
    assert (got.via, got.core, got.fifo_priority, got.log_level, got.extra) == (
        {1: 0}, 3, 5, "debug", {"config": "abc"},
    )  # fmt: skip
    assert list(got.peers) == [0, 2] and list(got.wake) == [0, 1] and got.number == 1
    assert got.ports == [given.ports[0] | {"fd": got.ports[0]["fd"]}]
    given.close()
    got.close()


def test_descriptor_used_twice_is_sent_once(sockets):
    ours, theirs = sockets
    fds = pipes(11)
    given = make_set(fds)
    given.maps["again"] = given.segment
    words, sent = given.words()
    assert len(sent) == 11 and words["maps"]["again"] == words["segment"]
    send(ours, words, sent)
    got = WorkerSet.from_words(*receive(theirs))
    assert got.maps["again"] == got.segment
    got.close()
    given.close()


@pytest.mark.parametrize(
    "change",
    [
        {"segment": 11}, {"segment": -1}, {"segment": None}, {"segment": True}, {"peers": [[0]]},
        {"peers": 5}, {"ports": [{"iface": 1}]}, {"ports": ["x"]}, {"links": []}, {"number": "one"},
        {"via": [[1]]}, {"extra": 5},
    ],
)  # fmt: skip
def test_incomplete_set_is_refused(change):
    words, _ = make_set(list(range(100, 111))).words()
    words = json.loads(json.dumps(words)) | change
    with pytest.raises(HandoverError):
        WorkerSet.from_words(words, list(range(100, 111)))
    del words[next(iter(change))]
    with pytest.raises(HandoverError, match="incomplete"):
        WorkerSet.from_words(words, list(range(100, 111)))
