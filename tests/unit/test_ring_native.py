"""lbd/shm/ring.h as one thread sees it: counting, wrapping, refusing, and not believing a peer's garbage.

The header is compiled behind ctypes, so this needs a C compiler and nothing of lbd. Memory order is proven in
tests/proof.
"""

import ctypes
import shutil
import struct
import subprocess
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

ROOT = Path(__file__).parents[2]
U32 = 1 << 32
HEADER, PROD, FULL, CONS, SLEEPING = 256, 64, 72, 128, 192  # offsets of ring.h, section 3
OK, GARBAGE, SHORT, MAGIC, VERSION, ENTRY_SIZE, CAPACITY, ALIGNMENT = range(0, -8, -1)
u32 = st.integers(0, U32 - 1)


class End(ctypes.Structure):
    """struct lbd_ring_end"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ring", "entries", "sleeping")),
        *(
            (name, ctypes.c_uint32)
            for name in ("capacity", "mask", "entry_size", "own", "peer", "garbage", "kick")
        ),
    )


END, MEM, N = ctypes.POINTER(End), ctypes.c_void_p, ctypes.c_uint32
FUNCTIONS = {
    "lbd_ring_bytes": (ctypes.c_size_t, "uint32_t", "uint32_t"),
    "lbd_ring_init": (ctypes.c_int, "void *", "uint32_t", "uint32_t"),
    "lbd_ring_attach": (ctypes.c_int, "struct lbd_ring_end *", "void *", "size_t", "uint32_t", "int"),
    "lbd_ring_wake_word": (None, "struct lbd_ring_end *", "uint32_t *"),
    "lbd_ring_garbage": (ctypes.c_int, "struct lbd_ring_end *"),
    "lbd_ring_space": (N, "struct lbd_ring_end *"),
    "lbd_ring_room": (N, "struct lbd_ring_end *", "uint32_t"),
    "lbd_ring_slot": (MEM, "struct lbd_ring_end *", "uint32_t"),
    "lbd_ring_publish": (None, "struct lbd_ring_end *", "uint32_t"),
    "lbd_ring_refuse": (None, "struct lbd_ring_end *", "uint32_t"),
    "lbd_ring_push": (N, "struct lbd_ring_end *", "const void *", "uint32_t"),
    "lbd_ring_ready": (ctypes.c_int, "struct lbd_ring_end *"),
    "lbd_ring_front": (MEM, "struct lbd_ring_end *", "uint32_t"),
    "lbd_ring_release": (None, "struct lbd_ring_end *", "uint32_t"),
    "lbd_ring_peek": (ctypes.c_int, "struct lbd_ring_end *", "void *", "uint32_t"),
    "lbd_ring_pop": (ctypes.c_int, "struct lbd_ring_end *", "void *", "uint32_t"),
    "lbd_ring_idle": (ctypes.c_int, "struct lbd_ring_end *"),
    "lbd_ring_sleep_begin": (ctypes.c_int, "struct lbd_ring_end *"),
    "lbd_ring_sleep_end": (None, "struct lbd_ring_end *"),
    "lbd_ring_must_wake": (ctypes.c_int, "struct lbd_ring_end *"),
}
C_NAMES = {None: "void", ctypes.c_int: "int", N: "uint32_t", MEM: "const void *", ctypes.c_size_t: "size_t"}
PYTHON = {"uint32_t": N, "size_t": ctypes.c_size_t, "int": ctypes.c_int, "struct lbd_ring_end *": END}


def shim() -> str:
    """C: an ordinary function x_NAME around each inline one."""
    lines = ['#include "lbd/shm/ring.h"', "size_t x_end_bytes(void) { return sizeof(struct lbd_ring_end); }"]
    for name, (result, *types) in FUNCTIONS.items():
        parameters = ", ".join(f"{t} a{i}" for i, t in enumerate(types))
        call = f"{name}({', '.join(f'a{i}' for i in range(len(types)))})"
        lines.append(f"{C_NAMES[result]} x_{name}({parameters}) {{ {'return ' if result else ''}{call}; }}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def x(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The functions of ring.h by their short names: x.push(end, ...)."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("needs a C compiler (cc)")
    directory = tmp_path_factory.mktemp("ring")
    (directory / "shim.c").write_text(shim())
    command = [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-I.", directory / "shim.c"]
    subprocess.run([*command, "-o", directory / "shim.so"], check=True, cwd=ROOT)
    library = ctypes.CDLL(str(directory / "shim.so"))
    assert library.x_end_bytes() == ctypes.sizeof(End)
    functions = {}
    for name, (result, *types) in FUNCTIONS.items():
        function = library[f"x_{name}"]
        function.restype = result
        function.argtypes = [PYTHON.get(t, MEM) for t in types]
        functions[name.removeprefix("lbd_ring_")] = function
    return SimpleNamespace(**functions)


class Memory:
    """A ring in ordinary memory, on a cache line, between two zones that nobody may touch."""

    ZONE = 64

    def __init__(self, x: SimpleNamespace, entry_size: int = 16, capacity: int = 8, start: int = 0) -> None:
        self.x, self.entry_size, self.capacity = x, entry_size, capacity
        self.bytes = x.bytes(entry_size, capacity)
        self._buffer = ctypes.create_string_buffer(self.bytes + 2 * self.ZONE + 64)
        zone = -(-ctypes.addressof(self._buffer) // 64) * 64
        ctypes.memset(zone, 0xA5, self.bytes + 2 * self.ZONE)
        self.at = zone + self.ZONE
        assert x.init(self.at, entry_size, capacity) == OK
        self.poke("I", PROD, start)
        self.poke("I", CONS, start)

    def attach(self, producer: bool) -> End:
        end = End()
        assert self.x.attach(end, self.at, self.bytes, self.entry_size, producer) == OK
        return end

    def poke(self, form: str, offset: int, value: int) -> None:
        data = struct.pack("=" + form, value)
        ctypes.memmove(self.at + offset, data, len(data))

    def peek(self, form: str, offset: int) -> int:
        return struct.unpack("=" + form, ctypes.string_at(self.at + offset, struct.calcsize("=" + form)))[0]

    def zones_are_whole(self) -> bool:
        around = (self.at - self.ZONE, self.at + self.bytes)
        return all(ctypes.string_at(zone, self.ZONE) == b"\xa5" * self.ZONE for zone in around)

    # records carry a number, in each of their words
    def pack(self, *numbers: int) -> bytes:
        return b"".join(struct.pack("=Q", n) * (self.entry_size // 8) for n in numbers)

    def unpack(self, records: bytes) -> list[int]:
        size = self.entry_size
        split = [records[i : i + size] for i in range(0, len(records), size)]
        assert all(r == r[:8] * (size // 8) for r in split), "torn"
        return [struct.unpack("=Q", r[:8])[0] for r in split]

    def push(self, end: End, *numbers: int) -> int:
        return self.x.push(end, self.pack(*numbers), len(numbers))

    def take(self, end: End, n: int, release: bool = True) -> list[int] | int:
        out = ctypes.create_string_buffer(max(n, 1) * self.entry_size)
        taken = (self.x.pop if release else self.x.peek)(end, out, n)
        return taken if taken < 0 else self.unpack(out.raw[: taken * self.entry_size])


# -- Layout and attach -------------------------------------------------------------------------------------


def test_bytes(x: SimpleNamespace) -> None:
    assert x.bytes(8, 1) == HEADER + 8
    assert x.bytes(64, 1024) == HEADER + 65536
    assert x.bytes(65528, 1 << 24) == HEADER + 65528 * (1 << 24)
    for entry_size, capacity in ((0, 8), (12, 8), (65536, 8), (8, 0), (8, 3), (8, 1 << 25), (8, U32 - 1)):
        assert x.bytes(entry_size, capacity) == 0


def test_init_refuses(x: SimpleNamespace) -> None:
    memory = Memory(x)
    assert x.init(memory.at, 12, 8) == ENTRY_SIZE
    assert x.init(memory.at, 0, 8) == ENTRY_SIZE
    assert x.init(memory.at, 16, 6) == CAPACITY
    assert x.init(memory.at + 8, 16, 4) == ALIGNMENT


@pytest.mark.parametrize(
    ("form", "offset", "value", "result"),
    [
        ("I", 0, 0, MAGIC),
        ("I", 0, 0x6C626472, MAGIC),  # the other byte order
        ("H", 4, 0, VERSION),
        ("H", 4, 2, VERSION),
        ("H", 6, 0, ENTRY_SIZE),
        ("H", 6, 24, ENTRY_SIZE),
        ("I", 8, 0, CAPACITY),
        ("I", 8, 7, CAPACITY),
        ("I", 8, 1 << 31, CAPACITY),
        ("I", 8, 16, SHORT),  # a good capacity, but of a longer segment
        ("I", PROD, 9, GARBAGE),
        ("I", CONS, 1, GARBAGE),
        ("I", CONS, U32 - 9, GARBAGE),
    ],
)
def test_attach_refuses(x: SimpleNamespace, form: str, offset: int, value: int, result: int) -> None:
    memory = Memory(x, entry_size=16, capacity=8)
    memory.poke(form, offset, value)
    for producer in (False, True):
        end = End(own=77)
        assert x.attach(end, memory.at, memory.bytes, 16, producer) == result
        assert (end.own, end.ring) == (77, None)


def test_attach_refuses_what_the_caller_got_wrong(x: SimpleNamespace) -> None:
    memory, end = Memory(x), End()
    assert x.attach(end, memory.at, memory.bytes, 24, 1) == ENTRY_SIZE
    assert x.attach(end, memory.at, memory.bytes - 1, 16, 1) == SHORT
    assert x.attach(end, memory.at, HEADER - 1, 16, 1) == SHORT
    assert x.attach(end, memory.at, 0, 16, 1) == SHORT
    assert x.attach(end, memory.at + 4, memory.bytes, 16, 1) == ALIGNMENT


@given(header=st.binary(min_size=HEADER, max_size=HEADER), sane=st.integers(0, 3), capacity=st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_any_header_is_refused_or_harmless(
    x: SimpleNamespace, header: bytes, sane: int, capacity: int
) -> None:
    """Whatever a peer leaves in the header, nothing outside the ring is touched."""
    memory = Memory(x, entry_size=8, capacity=8)
    ctypes.memmove(memory.at, header, HEADER)
    for offset, form, value in ((0, "I", 0x7264626C), (4, "H", 1), (6, "H", 8))[:sane]:
        memory.poke(form, offset, value)
    if sane == 3:
        memory.poke("I", 8, 1 << capacity)
        memory.poke("I", CONS, memory.peek("I", PROD) - header[0] % 32 & U32 - 1)
    producer, consumer = End(), End()
    if x.attach(producer, memory.at, memory.bytes, 8, 1) == OK:
        assert memory.push(producer, 1, 2, 3) <= 3
        assert x.attach(consumer, memory.at, memory.bytes, 8, 0) == OK
        taken = memory.take(consumer, 16)
        assert isinstance(taken, list) and len(taken) <= 8
    assert memory.zones_are_whole()


# -- One record, a full ring, the wrap -----------------------------------------------------------------------


def test_new_ring_is_empty(x: SimpleNamespace) -> None:
    memory = Memory(x)
    producer, consumer = memory.attach(True), memory.attach(False)
    assert x.ready(consumer) == 0 and x.idle(consumer) == 1
    assert memory.take(consumer, 4) == []
    assert x.space(producer) == x.room(producer, 100) == 8


@pytest.mark.parametrize("start", [0, 5, U32 - 1, U32 - 3, U32 - 8, U32 // 2])
@pytest.mark.parametrize("capacity", [1, 2, 8])
def test_records_come_in_order_over_the_wrap(x: SimpleNamespace, start: int, capacity: int) -> None:
    memory = Memory(x, capacity=capacity, start=start)
    producer, consumer = memory.attach(True), memory.attach(False)
    for n in range(0, 5 * capacity, capacity):
        numbers = list(range(n, n + capacity))
        assert memory.push(producer, *numbers) == capacity
        assert x.ready(consumer) == capacity
        assert memory.take(consumer, capacity, release=False) == numbers
        assert memory.take(consumer, capacity) == numbers
    assert memory.peek("I", PROD) == memory.peek("I", CONS) == (start + 5 * capacity) % U32
    assert memory.zones_are_whole()


def test_full_ring_refuses_and_counts(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4)
    producer, consumer = memory.attach(True), memory.attach(False)
    assert memory.push(producer, *range(6)) == 4
    assert memory.peek("Q", FULL) == 2
    assert (x.space(producer), x.room(producer, 1), memory.push(producer, 6)) == (0, 0, 0)
    assert memory.peek("Q", FULL) == 3
    assert memory.take(consumer, 1) == [0]
    assert memory.push(producer, 7, 8) == 1
    assert memory.take(consumer, 9) == [1, 2, 3]  # the batch that it knew of
    assert memory.take(consumer, 9) == [7]
    x.refuse(producer, 1 << 31)
    x.refuse(producer, 1 << 31)
    assert memory.peek("Q", FULL) == 4 + U32


def test_slots_are_invisible_until_published(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4, start=U32 - 1)
    producer, consumer = memory.attach(True), memory.attach(False)
    for i in range(3):
        ctypes.memmove(x.slot(producer, i), memory.pack(i), 16)
    assert x.ready(consumer) == 0
    x.publish(producer, 2)
    assert memory.take(consumer, 4) == [0, 1]
    x.publish(producer, 1)
    assert memory.take(consumer, 4) == [2]


def test_front_is_in_place(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4, start=2)
    producer, consumer = memory.attach(True), memory.attach(False)
    memory.push(producer, 1, 2, 3)
    assert x.ready(consumer) == 3
    offsets = [x.front(consumer, i) - memory.at for i in range(3)]
    assert offsets == [HEADER + 2 * 16, HEADER + 3 * 16, HEADER]


def test_cached_index_spares_the_shared_line(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=8)
    producer, consumer = memory.attach(True), memory.attach(False)
    memory.push(producer, 1, 2)
    assert x.ready(consumer) == 2
    memory.push(producer, 3)
    assert x.ready(consumer) == 2  # what it knew of
    x.release(consumer, 2)
    assert x.ready(consumer) == 1
    assert producer.peer == 0  # five were free when it last looked, which is enough
    assert x.room(producer, 5) == 5 and producer.peer == 0
    assert x.room(producer, 6) == 6 and producer.peer == 2


# -- Death and succession ------------------------------------------------------------------------------------


def test_producer_dies_before_publishing(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4)
    consumer, dead = memory.attach(False), memory.attach(True)
    memory.push(dead, 1)
    ctypes.memset(x.slot(dead, 0), 0xEE, 9)  # half a record
    successor = memory.attach(True)
    assert memory.take(consumer, 4) == [1]
    assert memory.push(successor, 2) == 1
    assert memory.take(consumer, 4) == [2]


def test_consumer_dies_before_releasing(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4)
    producer, dead = memory.attach(True), memory.attach(False)
    memory.push(producer, 1, 2, 3)
    assert memory.take(dead, 1) == [1]
    assert memory.take(dead, 2, release=False) == [2, 3]
    successor = memory.attach(False)
    assert memory.take(successor, 4) == [2, 3]  # again


# -- Garbage -------------------------------------------------------------------------------------------------


@given(start=u32, waiting=st.integers(0, 8), seen=st.booleans(), written=st.one_of(u32, st.integers(-10, 10)))
@settings(max_examples=500, deadline=None)
def test_consumer_believes_no_impossible_index(
    x: SimpleNamespace, start: int, waiting: int, seen: bool, written: int
) -> None:
    memory = Memory(x, capacity=8, start=start)
    producer, consumer = memory.attach(True), memory.attach(False)
    memory.push(producer, *range(waiting))
    if seen:
        x.idle(consumer)
    known = (consumer.peer - start) % U32
    written = (start + written) % U32
    memory.poke("I", PROD, written)
    possible = known <= (written - start) % U32 <= known + 8
    if known:  # it goes on with the batch that it knows, releases that, and only then looks
        assert x.ready(consumer) == known
        x.release(consumer, known)
    ready = x.ready(consumer)
    assert ready == ((written - start) % U32 - known if possible else GARBAGE)
    assert x.garbage(consumer) == (not possible)
    assert memory.zones_are_whole()


@given(start=u32, released=st.integers(0, 5), written=st.one_of(u32, st.integers(-10, 10)))
@settings(max_examples=500, deadline=None)
def test_producer_believes_no_impossible_index(
    x: SimpleNamespace, start: int, released: int, written: int
) -> None:
    memory = Memory(x, capacity=8, start=start)
    producer, consumer = memory.attach(True), memory.attach(False)
    memory.push(producer, *range(5))
    memory.take(consumer, released)
    x.space(producer)
    written = (start + written) % U32
    memory.poke("I", CONS, written)
    possible = released <= (written - start) % U32 <= 5
    assert x.space(producer) == (8 - 5 + (written - start) % U32 if possible else 0)
    assert x.garbage(producer) == (not possible)


def test_garbage_sticks_until_reset(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4)
    producer, consumer = memory.attach(True), memory.attach(False)
    memory.push(producer, 1)
    memory.poke("I", PROD, 1000)
    assert x.ready(consumer) == GARBAGE
    memory.poke("I", PROD, 1)  # the peer mends its ways: too late
    assert memory.take(consumer, 4) == memory.take(consumer, 4, release=False) == x.ready(consumer) == GARBAGE
    assert x.sleep_begin(consumer) == 0  # nobody sleeps on garbage
    memory.poke("I", CONS, 1000)
    assert x.space(producer) == 0
    memory.poke("I", CONS, 0)
    assert (x.space(producer), x.room(producer, 1), memory.push(producer, 2)) == (0, 0, 0)
    assert x.init(memory.at, 16, 4) == OK
    producer, consumer = memory.attach(True), memory.attach(False)
    assert memory.push(producer, 3) == 1
    assert memory.take(consumer, 4) == [3]


def test_peer_cannot_move_the_own_index(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4)
    producer, consumer = memory.attach(True), memory.attach(False)
    memory.push(producer, 1, 2)
    memory.poke("I", CONS, 1)  # the producer's process writes the consumer's word
    assert memory.take(consumer, 4) == [1, 2]
    assert memory.peek("I", CONS) == 2


def test_copy_is_what_is_checked(x: SimpleNamespace) -> None:
    memory = Memory(x, capacity=4)
    producer, consumer = memory.attach(True), memory.attach(False)
    memory.push(producer, 1)
    copy = memory.take(consumer, 1, release=False)
    ctypes.memset(x.front(consumer, 0), 0xFF, 16)
    assert copy == [1]


# -- Sleep and wake ------------------------------------------------------------------------------------------


def test_one_wake_up_per_sleep(x: SimpleNamespace) -> None:
    memory = Memory(x)
    producer, consumer = memory.attach(True), memory.attach(False)
    assert x.must_wake(producer) == 1  # after attach, always
    memory.push(producer, 1)
    assert x.must_wake(producer) == 0  # nobody sleeps
    memory.take(consumer, 1)
    assert x.sleep_begin(consumer) == 1
    assert memory.peek("I", SLEEPING) == 1
    memory.push(producer, 2)
    assert [x.must_wake(producer) for _ in range(3)] == [1, 0, 0]
    x.sleep_end(consumer)
    assert x.sleep_begin(consumer) == 0  # a record waits
    assert memory.peek("I", SLEEPING) == 0
    assert memory.take(consumer, 1) == [2]
    assert x.sleep_begin(consumer) == 1
    x.sleep_end(consumer)  # a time-out
    memory.push(producer, 3)
    assert x.must_wake(producer) == 0


def test_one_word_for_many_rings(x: SimpleNamespace) -> None:
    memories = [Memory(x), Memory(x)]
    word = ctypes.c_uint32(0)
    producers, consumers = ([m.attach(side) for m in memories] for side in (True, False))
    for end in (*producers, *consumers):
        x.wake_word(end, ctypes.addressof(word))
    assert [x.must_wake(p) for p in producers] == [1, 1]
    assert [x.sleep_begin(c) for c in consumers] == [1, 1]
    assert (word.value, memories[0].peek("I", SLEEPING)) == (1, 0)
    for memory, producer in zip(memories, producers, strict=True):
        memory.push(producer, 1)
    assert [x.must_wake(p) for p in producers] == [1, 0]


# -- Against a model -----------------------------------------------------------------------------------------


class RingMachine(RuleBasedStateMachine):
    """A ring and a deque are told the same, and either end is replaced at any time."""

    x: SimpleNamespace

    @initialize(
        start=st.one_of(u32, st.integers(U32 - 40, U32 - 1)), order=st.integers(0, 4), words=st.integers(1, 5)
    )
    def make(self, start: int, order: int, words: int) -> None:
        self.memory = Memory(self.x, entry_size=8 * words, capacity=1 << order, start=start)
        self.producer, self.consumer = self.memory.attach(True), self.memory.attach(False)
        self.model: deque[int] = deque()
        self.next = self.refused = 0

    def numbers(self, n: int) -> list[int]:
        self.next += n
        return list(range(self.next - n, self.next))

    @rule(n=st.integers(0, 20))
    def push(self, n: int) -> None:
        numbers = self.numbers(n)
        fits = min(n, self.memory.capacity - len(self.model))
        assert self.memory.push(self.producer, *numbers) == fits
        self.model.extend(numbers[:fits])
        self.refused += n - fits

    @rule(n=st.integers(1, 20))
    def fill_and_publish(self, n: int) -> None:
        room = self.x.room(self.producer, n)
        assert room == min(n, self.memory.capacity - len(self.model))
        for i, number in enumerate(self.numbers(room)):
            ctypes.memmove(self.x.slot(self.producer, i), self.memory.pack(number), self.memory.entry_size)
            self.model.append(number)
        self.x.publish(self.producer, room)

    @rule(n=st.integers(0, 20), release=st.booleans())
    def take(self, n: int, release: bool) -> None:
        taken = self.memory.take(self.consumer, n, release)
        assert isinstance(taken, list)
        assert taken == list(self.model)[: len(taken)]
        assert bool(taken) == bool(n and self.model)
        for _ in taken if release else ():
            self.model.popleft()

    @precondition(lambda self: self.model)
    @rule()
    def take_in_place(self) -> None:
        ready = self.x.ready(self.consumer)
        assert 0 < ready <= len(self.model)
        for i in range(ready):
            record = ctypes.string_at(self.x.front(self.consumer, i), self.memory.entry_size)
            assert self.memory.unpack(record) == [self.model.popleft()]
        self.x.release(self.consumer, ready)

    @rule()
    def sleep(self) -> None:
        assert self.x.sleep_begin(self.consumer) == (not self.model)

    @rule()
    def replace_producer(self) -> None:
        ctypes.memset(self.x.slot(self.producer, 0), 0xEE, 8 if len(self.model) < self.memory.capacity else 0)
        self.producer = self.memory.attach(True)
        assert self.x.must_wake(self.producer) == 1

    @rule()
    def replace_consumer(self) -> None:
        self.consumer = self.memory.attach(False)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "memory"):
            assert self.memory.zones_are_whole()
            assert (self.memory.peek("I", PROD) - self.memory.peek("I", CONS)) % U32 == len(self.model)
            assert self.memory.peek("Q", FULL) == self.refused
            assert not self.x.garbage(self.producer) and not self.x.garbage(self.consumer)


def test_ring_behaves_as_its_model(x: SimpleNamespace) -> None:
    machine = type("Machine", (RingMachine,), {"x": x})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
