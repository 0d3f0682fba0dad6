"""The bitmap against a plain set of numbers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pydrbd.engine.bitmap import Bitmap
from pydrbd.format.bitmap_pages import BITS_PER_PAGE, PAGE_BYTES
from pydrbd.wire.rle import BitmapSender

SIZES = st.one_of(
    st.integers(1, 300),
    st.sampled_from([BITS_PER_PAGE - 1, BITS_PER_PAGE, BITS_PER_PAGE + 1, 2 * BITS_PER_PAGE + 13]),
)
TIB_BITS = 1 << 28


def content(bitmap: Bitmap) -> set[int]:
    """The numbers of the set bits, read from the bytes."""
    number = int.from_bytes(bitmap.data, "little")
    return {bit for bit in range(number.bit_length()) if number >> bit & 1} if number else set()


class BitmapMachine(RuleBasedStateMachine):
    """Any row of operations does to the bytes what it does to the set."""

    def __init__(self) -> None:
        super().__init__()
        self.bitmap = Bitmap(40)
        self.model: set[int] = set()
        self.disk: dict[int, bytes] = {}

    def _span(self, data: st.DataObject) -> tuple[int, int]:
        first = data.draw(st.integers(0, self.bitmap.bits + 20))
        length = data.draw(st.one_of(st.integers(0, 70), st.integers(0, 2 * BITS_PER_PAGE)))
        return first, first + length

    @rule(data=st.data())
    def sets(self, data: st.DataObject) -> None:
        first, end = self._span(data)
        span = set(range(first, min(end, self.bitmap.bits)))
        assert self.bitmap.set(first, end) == len(span - self.model)
        self.model |= span

    @rule(data=st.data())
    def clears(self, data: st.DataObject) -> None:
        first, end = self._span(data)
        span = set(range(first, end))
        gone = span & self.model
        assert self.bitmap.clear(first, end) == len(gone)
        self.model -= span
        assert {bit // BITS_PER_PAGE for bit in gone} <= self.bitmap.cleared

    @rule()
    def sets_all(self) -> None:
        self.bitmap.set_all()
        self.model = set(range(self.bitmap.bits))

    @rule()
    def clears_all(self) -> None:
        self.bitmap.clear_all()
        self.model = set()

    @rule(bits=SIZES)
    def resizes(self, bits: int) -> None:
        self.bitmap.resize(bits)
        self.model = {bit for bit in self.model if bit < bits}

    @rule(data=st.data(), piece=st.binary(max_size=24))
    def merges(self, data: st.DataObject, piece: bytes) -> None:
        at = data.draw(st.integers(0, len(self.bitmap.data) // 8)) * 8
        self.bitmap.merge(at, piece)
        number = int.from_bytes(piece, "little")
        merged = {at * 8 + bit for bit in range(number.bit_length()) if number >> bit & 1}
        self.model |= {bit for bit in merged if bit < self.bitmap.bits}

    @rule(data=st.data())
    def loads(self, data: st.DataObject) -> None:
        size = (self.bitmap.bits + 7) // 8
        tail = data.draw(st.binary(min_size=min(size, 8), max_size=min(size, 8)))
        whole = bytes(size - len(tail)) + tail
        self.bitmap.load(whole + b"\xff" * 8)
        self.model |= {bit for bit in range(self.bitmap.bits) if whole[bit >> 3] >> (bit & 7) & 1}
        self.bitmap.dirty.update(range(self.bitmap.pages))

    @rule()
    def writes(self) -> None:
        for page in self.bitmap.dirty:
            self.disk[page] = self.bitmap.page(page)
        self.bitmap.dirty.clear()

    @precondition(lambda self: self.bitmap.bits < 2000)
    @rule(data=st.data())
    def searches(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, self.bitmap.bits + 9))
        limit = data.draw(st.integers(0, self.bitmap.bits + 9))
        later = [bit for bit in self.model if bit >= start]
        assert self.bitmap.next_set(start) == min(later, default=None)
        assert self.bitmap.any_set(start, limit) == any(start <= bit < limit for bit in self.model)
        end = start
        while end < min(limit, self.bitmap.bits) and end in self.model:
            end += 1
        if start < min(limit, self.bitmap.bits):
            assert self.bitmap.run_end(start, limit) == end

    @invariant()
    def is_the_set(self) -> None:
        assert content(self.bitmap) == self.model
        assert self.bitmap.count == len(self.model)
        assert len(self.bitmap.data) % PAGE_BYTES == 0
        assert len(self.bitmap.data) * 8 >= self.bitmap.bits

    @invariant()
    def clean_pages_are_on_disk(self) -> None:
        for page in range(self.bitmap.pages):
            if page not in self.bitmap.dirty:
                assert self.disk.get(page, bytes(PAGE_BYTES)) == self.bitmap.page(page)


BitmapMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBitmap = BitmapMachine.TestCase


@settings(max_examples=60, deadline=None)
@given(bits=SIZES, data=st.data())
def test_runs_cover_exactly_the_set_bits(bits: int, data: st.DataObject) -> None:
    """A walk with next_set and run_end meets every set bit once, in ascending order."""
    bitmap = Bitmap(bits)
    for first in data.draw(st.lists(st.integers(0, bits), max_size=5)):
        bitmap.set(first, first + data.draw(st.integers(0, 90)))
    found: list[int] = []
    at = 0
    while (bit := bitmap.next_set(at)) is not None:
        at = bitmap.run_end(bit, bits)
        found.extend(range(bit, at))
    assert found == sorted(content(bitmap))


@pytest.mark.parametrize(
    "action",
    [
        Bitmap.set_all,
        Bitmap.clear_all,
        lambda bitmap: bitmap.set(3, TIB_BITS),
        lambda bitmap: bitmap.resize(TIB_BITS - 5),
        lambda bitmap: bitmap.next_set(0),
        lambda bitmap: [bitmap.load(bytes(1 << 20), at << 20) for at in range(32)],
        lambda bitmap: list(BitmapSender(bitmap.data, TIB_BITS)),
    ],
)
def test_no_operation_on_a_large_bitmap_needs_another_one(action: Callable[[Bitmap], object]) -> None:
    """The bitmap of 1 TiB has 32 MiB; beside it, a few pieces of 1 MiB and the numbers of the pages."""
    bitmap = Bitmap(TIB_BITS)
    bitmap.set(TIB_BITS - 1, TIB_BITS)
    tracemalloc.start()
    try:
        action(bitmap)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_pieces_are_counted_as_one() -> None:
    """Runs over many pieces of a large bitmap: whole ones, parts of them, and back."""
    bitmap = Bitmap(TIB_BITS)
    assert bitmap.set(5, TIB_BITS - 7) == TIB_BITS - 12
    assert bitmap.set(0, TIB_BITS) == 12
    assert bitmap.count == TIB_BITS
    bitmap.dirty.clear()
    assert bitmap.clear(1 << 23, TIB_BITS + 9) == TIB_BITS - (1 << 23)
    assert bitmap.dirty == bitmap.cleared == set(range((1 << 23) // BITS_PER_PAGE, bitmap.pages))
    assert bitmap.next_set(1 << 23) is None
    bitmap.resize(1 << 22)
    assert bitmap.count == 1 << 22
    bitmap.resize(TIB_BITS)
    assert bitmap.count == 1 << 22
    assert bitmap.next_set(1 << 22) is None
    bitmap.set(TIB_BITS - 9, TIB_BITS - 8)
    assert bitmap.next_set(1 << 22) == TIB_BITS - 9


def test_what_is_set_while_the_disk_is_read_stays() -> None:
    bitmap = Bitmap(2 * BITS_PER_PAGE)
    bitmap.set(7, 8)
    bitmap.load(b"\x01" + bytes(PAGE_BYTES - 1), 0)
    bitmap.load(b"\x02" + bytes(PAGE_BYTES - 1), PAGE_BYTES)
    assert content(bitmap) == {0, 7, BITS_PER_PAGE + 1}
    assert bitmap.count == 3
    assert bitmap.dirty == {0}
