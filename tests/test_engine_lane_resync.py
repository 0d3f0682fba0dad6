"""What the engine hears of the lane's part in a resync, and when."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pydrbd.engine.bitmap import Bitmap
from pydrbd.engine.lane import Lane
from pydrbd.engine.volume import Volume
from pydrbd.sim import lane_threads
from pydrbd.sim.lane import Table
from tests.support.engine_bench import good_disk, pair_of

BLOCK = 4096


class Elsewhere:
    """Somebody else who clears bits."""

    def __init__(self, bitmap: Bitmap) -> None:
        self._bitmap = bitmap
        self._told: tuple[int, list[int]] | None = None
        bitmap.shared_with(self.told)

    def clear(self, bit: int) -> None:
        self._bitmap.data[bit // 8] &= ~(1 << bit % 8)
        count, pages = self._told or (0, [])
        self._told = count + 1, sorted({*pages, bit // BLOCK // 8})

    def told(self) -> tuple[int, list[int]] | None:
        told, self._told = self._told, None
        return told


@pytest.fixture
def bitmap() -> Bitmap:
    """All bits set, and written."""
    made = Bitmap(3 * BLOCK * 8)
    made.set_all()
    made.dirty.clear()
    return made


def test_a_bitmap_hears_first_what_others_have_cleared(bitmap: Bitmap) -> None:
    other = Elsewhere(bitmap)
    other.clear(7)
    other.clear(BLOCK * 8)
    assert bitmap.count == bitmap.bits - 2
    assert bitmap.count == bitmap.bits - 2, "it is counted once"
    assert bitmap.cleared == bitmap.dirty == {0, 1}
    bitmap.dirty.clear()
    bitmap.cleared.clear()
    other.clear(2 * BLOCK * 8)
    assert bitmap.cleared == {2}, "such a page is written behind a flush"
    assert bitmap.dirty == {2}
    assert bitmap.clear(0, 9) == 8


@pytest.mark.parametrize("end", ["set_all", "clear_all", "not shared"])
def test_what_is_heard_late_is_not_counted_twice(bitmap: Bitmap, end: str) -> None:
    other = Elsewhere(bitmap)
    other.clear(5)
    if end == "not shared":
        bitmap.shared_with(None)
    else:
        getattr(bitmap, end)()
    assert bitmap.count == {"set_all": bitmap.bits, "clear_all": 0, "not shared": bitmap.bits - 1}[end]
    assert bitmap.count == sum(byte.bit_count() for byte in bitmap.data)


class Answering:
    """A lane that has answered."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int, bool]] = []

    def answers(self) -> list[tuple[int, int, bool]]:
        told, self.given = self.given, []
        return told


@pytest.fixture
def volume() -> Volume:
    return pair_of(good_disk(), good_disk()).one.volume


def test_the_lanes_answers_are_counted_when_anybody_asks(volume: Volume) -> None:
    lane = Answering()
    volume.engine.lane = cast(Any, lane)
    answers = volume.resync.answers
    assert not answers
    lane.given = [(0, 2 * BLOCK, True), (8 * BLOCK, BLOCK, False)]
    assert answers.bytes == 3 * BLOCK
    assert (volume.counters.sent, volume.counters.resynced, volume.resync.transferred) == (2 * BLOCK,) * 3
    lane.given = [(0, 2 * BLOCK, True)]
    assert answers.settled(0, 2 * BLOCK)
    assert answers.settled(0, 2 * BLOCK), "it was answered twice"
    assert not answers.settled(0, 2 * BLOCK)
    assert not answers.settled(8 * BLOCK, 2 * BLOCK), "another length"
    assert answers
    answers.forget()
    assert (bool(answers), answers.bytes, answers.settled(8 * BLOCK, BLOCK)) == (False, 0, False)


def test_a_bit_that_is_set_over_an_answer_of_the_lane_stays(volume: Volume) -> None:
    lane = Answering()
    volume.engine.lane = cast(Any, lane)
    lane.given = [(0, 2 * BLOCK, True)]
    volume.resync.bits_set(range(1, 2))
    assert volume.resync.set_meanwhile == {1}


def test_a_write_of_the_peer_is_taken_over_where_the_engine_begins() -> None:
    bench = pair_of(good_disk(), good_disk()).one
    table: Table = lane_threads.give(bench.engine)
    lane = cast(Lane, bench.engine.lane)
    taken: list[str] = []
    lane._take_peer = lambda: taken.append("taken")  # type: ignore[method-assign]
    assert table.open_peer(1 << 20, None)
    assert table.peer_begin(BLOCK, BLOCK, 5)
    lane.make_way(2 * BLOCK, 3 * BLOCK)
    assert not taken
    lane.make_way(0, BLOCK + 512)
    assert taken
