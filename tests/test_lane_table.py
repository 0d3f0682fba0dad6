"""The lane's book: the compiled one and the simulator's answer every sequence of steps alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pydrbd import hotpath
from pydrbd.engine.lane_table import (
    ACKED,
    CLIENT,
    CLOSED,
    CONFIRMED,
    CURRENT,
    IN_SYNC,
    PEER,
    RUNS,
    UNACKED,
    WRITTEN,
)
from pydrbd.sim.lane import Table
from pydrbd.units import AL_EXTENT_BYTES, MAX_DATA_BYTES

SIZE = 4 * AL_EXTENT_BYTES + 8192
BLOCK = 4096
#: Few places, so that writes meet.
OFFSETS = [
    0,
    512,
    BLOCK,
    2 * BLOCK,
    AL_EXTENT_BYTES - BLOCK,
    AL_EXTENT_BYTES,
    3 * AL_EXTENT_BYTES,
    SIZE - BLOCK,
]
LENGTHS = [0, 512, 700, BLOCK, 3 * BLOCK, MAX_DATA_BYTES, MAX_DATA_BYTES + BLOCK]


def compiled() -> Any:
    """The compiled table. That it is not there is no reason to skip: `make setup` builds it."""
    from pydrbd.hotpath._native import Lane, Mutex

    return Lane(Mutex(), 0)


@pytest.fixture(params=[compiled, Table], ids=["compiled", "simulated"])
def table(request: pytest.FixtureRequest) -> Any:
    made = request.param()
    assert made.open_client(SIZE, [0, 1, 4], 5, 9, 1, None)
    return made


def test_the_module_is_built_here() -> None:
    assert hotpath.COMPILED
    assert [word.split("=")[0] for word in hotpath.filter_arguments()] == ["--filter"]


def test_a_write_from_begin_to_confirmation(table: Any) -> None:
    slot = table.begin(BLOCK, BLOCK, 7.5)
    assert slot == 0
    ident = table.ident(slot)
    assert (table.logged, table.in_flight, table.current_count, table.bytes_in_flight) == (1, 1, 1, BLOCK)
    assert table.opened == table.oldest_sent() == 7.5
    assert table.referenced(0)
    assert not table.referenced(1)
    assert table.acked(ident, BLOCK, 512) == -1, "another length"
    assert table.acked(ident + 1, BLOCK, BLOCK) == -1, "another block id"
    assert table.acked(ident, BLOCK, BLOCK) == slot
    assert table.acked(ident, BLOCK, BLOCK) == -1, "twice"
    assert table.local_done(slot, True)
    assert (table.logged, table.in_flight, table.bytes_in_flight) == (1, 0, 0)
    assert table.cut(3) == 1
    assert table.cut(4) == 0
    assert table.oldest() == (3, 1, 0)
    assert table.members() == [(3, BLOCK, BLOCK, ident)]
    assert table.referenced(0), "until the peer has it durably"
    table.confirmed()
    assert not table.referenced(0)
    assert (table.logged, table.oldest()) == (0, None)
    assert table.sums() == (BLOCK, BLOCK, 0, 0)


def test_an_epoch_that_a_flush_has_ended(table: Any) -> None:
    assert table.cut_own() is None, "it has no writes"
    slot = table.begin(0, BLOCK, 7.5)
    ident = table.ident(slot)
    assert (table.cut_own(), table.epoch) == (1, 2)
    assert not table.barrier_acked(1, 1), "before the ack of its write"
    assert table.acked(ident, 0, BLOCK) == slot
    assert table.local_done(slot, True)
    assert table.oldest_sent() == 7.5, "the barrier is waited for"
    assert not table.barrier_acked(2, 1)
    assert not table.barrier_acked(1, 2)
    assert table.barrier_acked(1, 1)
    assert not table.barrier_acked(1, 1), "twice"
    assert (table.oldest(), table.oldest_sent(), table.logged) == (None, None, 0)
    assert not table.referenced(0)


def test_an_epoch_that_was_adopted_is_the_engines(table: Any) -> None:
    slot = table.begin(0, BLOCK, 7.5)
    table.acked(table.ident(slot), 0, BLOCK)
    table.local_done(slot, True)
    table.cut_own()
    assert table.adopt() == [(1, 7.5)]
    assert table.adopt() == []
    assert not table.barrier_acked(1, 1)
    assert table.oldest() == (1, 1, 0)
    table.set_epoch(5)
    assert table.epoch == 5


def test_a_local_write_that_outlives_its_epoch_holds_the_extent(table: Any) -> None:
    slot = table.begin(0, BLOCK, 1.0)
    table.acked(table.ident(slot), 0, BLOCK)
    table.cut(1)
    table.confirmed()
    assert table.referenced(0)
    assert table.overlapping(0, 512) == slot
    assert table.local_done(slot, True)
    assert not table.referenced(0)


@pytest.mark.parametrize("where", ["current", "ended", "confirmed"])
def test_what_is_taken_over_leaves_every_count(table: Any, where: str) -> None:
    slot = table.begin(0, BLOCK, 1.0)
    ident = table.ident(slot)
    epoch = {"current": CURRENT, "ended": 8, "confirmed": CONFIRMED}[where]
    if where != "current":
        table.cut(8)
    if where == "confirmed":
        table.acked(ident, 0, BLOCK)
        table.confirmed()
    acked = where == "confirmed"
    assert table.take(slot) == (epoch, 0, BLOCK, ident, 1.0, acked, RUNS)
    assert (table.logged, table.in_flight, table.bytes_in_flight, table.busy()) == (0, 0, 0, [])
    assert not table.referenced(0)
    assert table.is_taken(slot)
    assert table.acked(ident, 0, BLOCK) == -1
    assert table.overlapping(0, BLOCK) == -1, "the engine's ranges have it"
    assert table.begin(2 * BLOCK, BLOCK, 2.0) != slot, "the slot is in use until its thread has come"
    table.release(slot)
    table.close() if not table.busy() else None


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 0),
        (100, 512),
        (0, 700),
        (SIZE, 512),
        (SIZE - 512, 1024),
        (0, MAX_DATA_BYTES + 512),
        (2 * AL_EXTENT_BYTES, 512),
        (2 * AL_EXTENT_BYTES - 512, 1024),
        (1 << 62, 512),
    ],
)
def test_what_is_not_for_the_lane(table: Any, offset: int, length: int) -> None:
    assert table.begin(offset, length, 1.0) == -1
    assert table.logged == 0


def test_limits_of_epoch_and_log(table: Any) -> None:
    for number in range(5):
        assert table.begin(number * BLOCK, BLOCK, 1.0) >= 0
    assert table.begin(5 * BLOCK, BLOCK, 1.0) == -1, "the epoch is full"
    table.cut(1)
    for number in range(5, 9):
        assert table.begin(number * BLOCK, BLOCK, 1.0) >= 0
    assert table.begin(9 * BLOCK, BLOCK, 1.0) == -1, "the log is full"


def test_ranges_of_the_engine_keep_writes_off(table: Any) -> None:
    table.block(0, BLOCK, True)
    assert table.begin(512, 512, 1.0) == -1
    assert table.begin(BLOCK, 512, 1.0) >= 0
    table.block(0, BLOCK, False)
    assert table.begin(512, 512, 1.0) >= 0


def _syncing(table: Any, bits: bytearray) -> Any:
    table.close()
    assert table.open_client(SIZE, [0, 1, 4], 5, 9, 1, bits)
    return table


def test_a_bit_is_cleared_when_both_disks_have_the_block(table: Any) -> None:
    bits = bytearray(4096)
    bits[0] = 0b11110
    _syncing(table, bits)
    assert table.syncing
    assert table.cleared() is None
    peer_first, disk_first = table.begin(BLOCK, BLOCK, 1.0), table.begin(2 * BLOCK, BLOCK, 1.0)
    assert table.acked(table.ident(peer_first), BLOCK, BLOCK, True) == peer_first
    assert not table.local_done(disk_first, True)
    assert (bits[0], table.cleared()) == (0b11110, None)
    assert table.local_done(peer_first, True)
    assert (bits[0], table.cleared()) == (0b11100, (1, [0]))
    assert table.acked(table.ident(disk_first), 2 * BLOCK, BLOCK, True) == disk_first
    assert (bits[0], table.cleared()) == (0b11000, (1, [0]))
    assert table.cleared() is None, "it is told once"
    slot = table.begin(3 * BLOCK, BLOCK, 1.0)
    table.acked(table.ident(slot), 3 * BLOCK, BLOCK)
    assert table.local_done(slot, True)
    assert (bits[0], table.cleared()) == (0b11000, None), "WRITE_ACK does not say it"
    table.close()
    assert not table.syncing
    bits.extend(bytes(4096))  # nobody looks at it any more


@pytest.mark.parametrize(
    ("offset", "length", "left"),
    [
        (512, BLOCK, {0, 1, 2, 3}),
        (BLOCK - 512, BLOCK + 1024, {0, 2, 3}),
        (0, 2 * BLOCK + 512, {2, 3}),
        (0, 3 * BLOCK, {3}),
        (3 * BLOCK, 512, {0, 1, 2}),
    ],
)
def test_only_whole_blocks_are_in_sync(table: Any, offset: int, length: int, left: set[int]) -> None:
    bits = bytearray(4096)
    bits[0] = 0b1111
    table.close()
    assert table.open_client(3 * BLOCK + 512, [0], 5, 9, 1, bits)
    slot = table.begin(offset, length, 1.0)
    table.acked(table.ident(slot), offset, length, True)
    assert table.local_done(slot, True)
    assert {n for n in range(8) if bits[0] >> n & 1} == left
    assert table.cleared() == ((4 - len(left), [0]) if len(left) < 4 else None)


def test_what_the_peer_said_is_told_of_a_write_that_is_taken_over(table: Any) -> None:
    bits = bytearray(4096)
    bits[0] = 0b111
    _syncing(table, bits)
    slots = [table.begin(number * BLOCK, BLOCK, 1.0) for number in range(3)]
    table.acked(table.ident(slots[1]), BLOCK, BLOCK)
    table.acked(table.ident(slots[2]), 2 * BLOCK, BLOCK, True)
    assert [table.take(slot)[5] for slot in slots] == [UNACKED, ACKED, IN_SYNC]
    assert bits[0] == 0b111, "the engine clears them"


def test_cleared_pages(table: Any) -> None:
    bits = bytearray(b"\xff" * 3 * 4096)
    table.close()
    assert table.open_peer(3 * 4096 * 8 * BLOCK, bits)
    for block in (4096 * 8, 2 * 4096 * 8 + 1, 2 * 4096 * 8 + 1):
        assert table.peer_begin(block * BLOCK, BLOCK, 5)
        assert table.peer_done(True)
    assert table.cleared() == (2, [1, 2])
    assert table.peer_begin(0, BLOCK, 5)
    assert table.peer_done(True)
    assert table.cleared() == (1, [0])


def test_a_write_of_the_peer_to_blocks_that_are_out_of_sync(table: Any) -> None:
    bits = bytearray(4096)
    bits[0] = 0b111
    table.close()
    assert table.open_peer(SIZE, bits)
    assert table.peer_begin(0, 2 * BLOCK, 5)
    assert (bits[0], table.cleared()) == (0b111, None)
    assert table.peer_overlaps(BLOCK, BLOCK + 1)
    assert not table.peer_overlaps(2 * BLOCK, 3 * BLOCK)
    assert table.peer_done(True)
    assert (bits[0], table.cleared()) == (0b100, (2, [0]))
    assert not table.peer_overlaps(0, BLOCK)
    assert table.peer_begin(0, BLOCK, 5)
    assert table.peer_take() == (0, BLOCK, 5)
    assert not table.peer_overlaps(0, BLOCK), "the engine's ranges have it"
    assert not table.peer_done(True)
    assert table.cleared() is None


def test_a_request_of_the_resync(table: Any) -> None:
    assert not table.answer_begin(0, BLOCK), "nobody has said that it may"
    table.let_answer(True)
    assert table.answer_begin(0, BLOCK)
    assert not table.answer_begin(BLOCK, BLOCK), "one at a time"
    assert table.answer_end(True, True)
    assert table.answer_begin(BLOCK, BLOCK)
    assert table.answer_end(True, False)
    assert table.answer_begin(2 * BLOCK, BLOCK)
    assert not table.answer_end(False, True), "it could not be read"
    assert table.answers() == [(0, BLOCK, True), (BLOCK, BLOCK, False)]
    assert table.answers() == [], "they are told once"
    for wrong in ((0, 0), (0, 700), (SIZE, 512), (SIZE - 512, 1024), (0, MAX_DATA_BYTES + 512)):
        assert not table.answer_begin(*wrong)


def test_a_write_that_begins_makes_an_answer_void(table: Any) -> None:
    table.let_answer(True)
    assert table.answer_begin(BLOCK, BLOCK)
    table.begin(2 * BLOCK, 512, 1.0)
    table.block(0, BLOCK, True)
    assert table.answer_end(True, True), "those were beside it"
    assert table.answer_begin(BLOCK, BLOCK)
    table.block(BLOCK, BLOCK + 512, True)
    assert not table.answer_end(True, True)
    assert not table.answer_begin(BLOCK, BLOCK), "the engine is at it"
    table.block(BLOCK, BLOCK + 512, False)
    assert table.answer_begin(BLOCK, BLOCK)
    slot = table.begin(2 * BLOCK - 512, 512, 1.0)
    assert slot >= 0
    assert not table.answer_end(True, True)
    assert not table.answer_begin(BLOCK, BLOCK), "it is not on this disk yet"
    assert not table.local_done(slot, True)
    assert table.answer_begin(BLOCK, BLOCK), "whether the peer has it says nothing about what is read"
    for busy in table.busy():
        table.take(busy)
    assert table.answers() == [(BLOCK, BLOCK, True)]
    table.close()
    assert not table.answer_end(True, True), "the lane was closed meanwhile"


def test_more_ranges_than_it_keeps_block_everything(table: Any) -> None:
    for number in range(100):
        table.block(number * 512, (number + 1) * 512, True)
    assert table.begin(50 * 512, 512, 1.0) == -1
    assert table.begin(99 * 512, 512, 1.0) == -1
    for number in range(100):
        table.block(number * 512, (number + 1) * 512, False)
    assert table.begin(99 * 512, 512, 1.0) >= 0


def test_a_write_of_the_peer(table: Any) -> None:
    assert not table.peer_begin(0, BLOCK, 5), "it is open for clients"
    table.close()
    assert table.mode == CLOSED
    assert table.open_peer(SIZE, None)
    assert table.mode == PEER
    assert not table.peer_begin(512, BLOCK, 5), "not whole blocks"
    assert not table.peer_begin(SIZE, BLOCK, 5)
    assert table.peer_begin(0, BLOCK, 5)
    assert not table.peer_begin(BLOCK, BLOCK, 6), "one at a time"
    assert table.peer_take() == (0, BLOCK, 5)
    assert table.peer_take() is None
    assert not table.peer_done(True), "the engine has it"
    table.peer_over()
    assert table.peer_begin(0, BLOCK, 7)
    assert table.peer_done(True)
    assert table.peer_count() == 1
    assert table.peer_count() == 0
    assert table.peer_begin(0, BLOCK, 8)
    assert not table.peer_done(False), "the engine acts on the error"
    assert table.peer_take() == (0, BLOCK, 8)


#: A step of a random sequence: the name and small numbers that its arguments are chosen with.
NAMES = ["begin"] * 6 + ["acked", "local"] * 2 + ["take", "release", "cut", "confirm"]
NAMES += ["block", "unblock", "heat", "cool", "reopen", "flush", "flush", "adopt", "barrier_ack"]
NAMES += ["in_sync", "mark", "cleared", "answer", "answer", "answered", "answered", "answers"]
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 7), st.integers(0, 6)), max_size=60)


def _confirm(table: Any) -> None:
    oldest = table.oldest()
    if oldest and not oldest[2]:  # the engine refuses a BARRIER_ACK before all acks
        table.confirmed()


class Steps:
    """Applies steps to one table; what it needs to know of the other it does not ask."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.blocked: list[tuple[int, int]] = []
        self.taken: list[int] = []
        self.bits = bytearray(4096)
        assert table.open_client(SIZE, [0, 1, 4], 5, 9, 1, self.bits)
        table.let_answer(True)

    def step(self, name: str, a: int, b: int) -> object:
        table, busy = self.table, self.table.busy()
        slot = busy[a % len(busy)] if busy else None
        simple: dict[str, Callable[[], object]] = {
            "begin": lambda: table.begin(OFFSETS[a], LENGTHS[b], float(a)),
            "confirm": lambda: _confirm(table),
            "heat": lambda: table.heat(a % 5, True),
            "adopt": table.adopt,
            "flush": table.cut_own,
            "barrier_ack": self._barrier_ack,
            "answer": lambda: table.answer_begin(OFFSETS[a], LENGTHS[b]),
            "answered": lambda: table.answer_end(bool(a), bool(b)),
            "answers": table.answers,
            "cleared": table.cleared,
            "cool": lambda: None if table.referenced(a % 5) else table.heat(a % 5, False),
        }
        if name in simple:
            return simple[name]()
        if name == "cut":
            table.adopt()  # as the engine does it first
            number = table.epoch
            count = table.cut(number)
            if count:
                table.set_epoch(number + 1)
            return count
        if name == "mark":
            self.bits[OFFSETS[a] // BLOCK // 8] |= 1 << OFFSETS[a] // BLOCK % 8
        if name == "block":
            self.blocked.append((OFFSETS[a], OFFSETS[a] + 512 * (b + 1)))
            return table.block(*self.blocked[-1], True)
        if name == "unblock" and self.blocked:
            return table.block(*self.blocked.pop(a % len(self.blocked)), False)
        if name == "release" and self.taken:
            return table.release(self.taken.pop(a % len(self.taken)))
        if slot is not None and name in ("acked", "in_sync", "local", "take"):
            return self._on_slot(name, slot)
        if name == "reopen":
            self._reopen()
        return None

    def _on_slot(self, name: str, slot: int) -> object:
        table = self.table
        ident = table.ident(slot)
        if name == "take":
            self.taken.append(slot)
            return table.take(slot)
        if name == "local":
            return table.local_done(slot, True)
        found = next((m for m in table.members() if m[3] == ident), None)
        return table.acked(ident, found[1], found[2], name == "in_sync") if found else None

    def _reopen(self) -> None:
        for slot in self.table.busy():
            self.taken.append(slot)
            self.table.take(slot)
        self.table.adopt()
        self.table.answers()
        self.table.cleared()
        self.table.close()
        self.table.open_client(SIZE, [0, 1, 4], 5, 9, 1, self.bits)
        self.table.let_answer(True)
        self.blocked.clear()

    def _barrier_ack(self) -> object:
        oldest = self.table.oldest()
        number, count = oldest[:2] if oldest else (1, 1)
        wrong = self.table.barrier_acked(number + 1, count), self.table.barrier_acked(number, count + 1)
        assert wrong == (False, False)
        return self.table.barrier_acked(number, count)

    def seen(self) -> object:
        t = self.table
        return (
            (t.mode, t.logged, t.in_flight, t.bytes_in_flight, t.current_count, t.oldest(), t.oldest_sent()),
            (t.epoch, bytes(self.bits)),
            (t.busy(), t.members(), [t.referenced(extent) for extent in range(6)]),
            [t.overlapping(offset, offset + 512) for offset in OFFSETS],
        )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_both_tables_answer_alike(steps: list[tuple[str, int, int]]) -> None:
    one, two = Steps(compiled()), Steps(Table())
    for each in (one, two):
        assert each.table.mode == CLIENT
    for step in steps:
        assert one.step(*step) == two.step(*step), step
        assert one.seen() == two.seen(), step
    assert one.table.sums() == two.table.sums()


def test_the_local_write_of_a_taken_one_is_told(table: Any) -> None:
    slot = table.begin(0, BLOCK, 1.0)
    assert not table.local_done(slot, True)
    assert table.take(slot)[-1] == WRITTEN
