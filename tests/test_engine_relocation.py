"""Internal metadata of a disk that grows: the move to its new end, cut off after every single write.

Neighbour: test_engine_resize.py. The disk of these tests is sim/internal_disk.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from pydrbd.engine.orders import FlushDisk, NoteSize, Order, WriteBlocks, WriteMeta, ZeroBlocks
from pydrbd.engine.relocation import measure
from pydrbd.errors import CommandFailed
from pydrbd.format.bitmap_pages import BITS_PER_EXTENT
from pydrbd.format.layout import SUPERBLOCK_BYTES, internal_layout
from pydrbd.sim.disk import create_md, synced_md
from pydrbd.sim.internal_disk import InternalDisk, device_bytes
from pydrbd.units import MIB, SECTOR
from pydrbd.vocabulary import Conn, Disk
from tests.support.engine_bench import DISK_BYTES, PAIR_UUID, Bench, Pair, connect, current

#: Bytes by which the disk grows: beyond all old metadata, or so little that the new place overlaps the old.
GROWTH = (3 * MIB, 4096, 8192 + 512, 36 << 10, 40 << 10)
_CHANGES = WriteBlocks | ZeroBlocks | WriteMeta | NoteSize | FlushDisk


def internal(device_uuid: int = 7) -> InternalDisk:
    disk = InternalDisk(device_bytes(DISK_BYTES))
    synced_md(disk, device_uuid, PAIR_UUID, DISK_BYTES)
    disk.noted = ((disk.size,), device_uuid)
    return disk


def copied(disk: InternalDisk) -> InternalDisk:
    """As a power cut leaves it: what was not flushed is gone (all of it, or none)."""
    other = InternalDisk(disk.size)
    other.meta, other.metadata = bytearray(disk.meta), set(disk.metadata)
    other.blocks, other.noted, other.boot = dict(disk.blocks), disk.noted, disk.boot
    other.cached = {block: list(versions) for block, versions in disk.cached.items()}
    return other


def lone_primary(disk: InternalDisk) -> Bench:
    """It has written to extent 0 since it lost its peer, and is writing to extent 1."""
    one, two = Bench("alpha", 11, disk), Bench("beta", 23, internal(9))
    pair = Pair(one, two)
    for bench in (one, two):
        assert pair.run(bench, bench.engine.attach(0)) is None
    connect(pair)
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.write(0, 5 * MIB, b"h" * 4096)) is None
    pair.severed = True
    pair.cut()
    pair.settle()
    assert pair.run(one, one.engine.write(0, 8192, b"x" * 4096)) is None
    assert one.volume.state.conn < Conn.CONNECTED
    return one


def alone(bench: Bench) -> Pair:
    return Pair(bench, Bench("nobody", 5, internal(3)))


def crashes(disk: InternalDisk, growth: int) -> Iterator[tuple[int, Order, InternalDisk, int]]:
    """The disk after each write of a move, the number of that write, and the current UUID."""
    bench = lone_primary(disk)
    disk.grow(disk.size + growth)
    pair, left = alone(bench), list[tuple[int, Order, InternalDisk, int]]()

    def watch(order: Order) -> object:
        if not isinstance(order, _CHANGES):
            return NotImplemented
        answer = disk.perform(order)
        left.append((len(left), order, copied(disk), current(bench)))
        return answer

    bench.hook = watch
    assert pair.run(bench, measure(bench.volume)) is None
    bench.hook = lambda _order: NotImplemented
    yield from left
    assert bench.volume.state.disk == Disk.UP_TO_DATE


def attached(disk: InternalDisk) -> Bench:
    bench = Bench("alpha", 77, disk)
    assert alone(bench).run(bench, bench.engine.attach(0)) is None
    return bench


def check(bench: Bench, uuid: int) -> None:
    """Nothing is lost: the generation, the written block's bit, the extent that was hot, the size."""
    volume, disk = bench.volume, bench.disk
    assert isinstance(disk, InternalDisk)
    assert current(bench) == uuid
    assert volume.size == DISK_BYTES
    assert volume.crashed_primary
    assert volume.bitmap.any_set(2, 3)
    assert volume.bitmap.any_set(BITS_PER_EXTENT, 2 * BITS_PER_EXTENT)
    assert volume.layout == disk.layout == internal_layout(disk.size)
    assert volume.data_limit == disk.layout.data_bytes
    assert disk.noted == ((disk.size,), 7)
    assert all(block * 4096 >= disk.layout.bitmap_offset for block in disk.metadata)
    ends = disk.layout.superblock_offset + SUPERBLOCK_BYTES
    assert all(block * 4096 < ends for block in disk.metadata)


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("power", [False, True])
def test_a_move_that_is_cut_off_after_any_write(growth: int, power: bool) -> None:
    seen = 0
    for number, order, disk, uuid in crashes(internal(), growth):
        seen = number
        if power:
            for block, versions in disk.cached.items():
                disk._put(block, versions[0], cached=False)
            disk.cached.clear()
            disk.boot += 1
        bench = attached(disk)
        try:
            check(bench, uuid)
        except AssertionError as error:
            raise AssertionError(f"after write {number}, {order}: {error}") from error
    assert seen >= 5


@pytest.mark.parametrize("growth", GROWTH)
def test_an_attach_that_finds_a_grown_disk_and_is_cut_off_after_any_write(growth: int) -> None:
    grown = internal()
    bench = lone_primary(grown)
    uuid = current(bench)
    grown.grow(grown.size + growth)
    for limit in itertools.count(1):
        disk = copied(grown)
        bench, done = Bench("alpha", 55, disk), [0]
        left: list[InternalDisk] = []

        def watch(
            order: Order,
            disk: InternalDisk = disk,
            done: list[int] = done,
            left: list[InternalDisk] = left,
            limit: int = limit,
        ) -> object:
            if not isinstance(order, _CHANGES):
                return NotImplemented
            answer = disk.perform(order)
            done[0] += 1
            if done[0] == limit:
                left.append(copied(disk))
            return answer

        bench.hook = watch
        assert alone(bench).run(bench, bench.engine.attach(0)) is None
        if not left:
            check(bench, uuid)
            assert limit > 4
            return
        check(attached(left[0]), uuid)


@pytest.mark.parametrize("growth", GROWTH)
def test_what_a_move_that_is_not_cut_off_costs(growth: int) -> None:
    """The bitmap stays what it was: a full resync is the price of a crash in the overlapping case alone."""
    disk = internal()
    bench = lone_primary(disk)
    bits, hot = bench.volume.bitmap.count, dict(bench.volume.activity_log.hot)
    disk.grow(disk.size + growth)
    pair = alone(bench)
    assert pair.run(bench, measure(bench.volume)) is None
    assert bench.volume.bitmap.count == bits
    assert bench.volume.activity_log.hot == hot
    assert disk.hot_extents() == frozenset(hot)
    assert disk.superblock().clean is False
    # It goes on as ever: cold extents, a clean end.
    assert pair.run(bench, bench.engine.write(0, 0, b"y" * 4096)) is None
    assert pair.run(bench, bench.engine.down()) is None
    assert disk.superblock().clean
    again = attached(disk)
    assert again.volume.bitmap.count == bits + 1
    assert again.volume.layout == internal_layout(disk.size)


def test_writes_to_cold_extents_wait_until_the_metadata_have_moved() -> None:
    disk = internal()
    bench = lone_primary(disk)
    disk.grow(disk.size + MIB)
    pair = alone(bench)
    bench.hold = lambda order: isinstance(order, WriteMeta)
    bench.start("measure", measure(bench.volume))
    pair.settle()
    assert bench.held
    bench.start("cold", bench.engine.write(0, DISK_BYTES - 4096, b"c" * 4096))
    bench.start("persist", bench.volume.persist())
    pair.settle()
    before = len(bench.orders)
    while bench.held:
        bench.release()
        pair.settle()
    assert bench.results["cold"] is None
    assert disk.hot_extents() == frozenset(bench.volume.activity_log.hot)
    old, new = internal_layout(device_bytes(DISK_BYTES)), disk.layout
    late = [o for o in bench.orders[before:] if isinstance(o, WriteMeta)]
    assert all(at >= new.bitmap_offset > old.superblock_offset for order in late for at, _ in order.pieces)


def test_metadata_of_an_earlier_life_at_the_new_end_are_not_taken_for_the_present_ones() -> None:
    disk = internal()
    lone_primary(disk)
    small = disk.size
    disk.grow(small + MIB)
    past = InternalDisk(disk.size)
    create_md(past, 99)
    at = past.layout.superblock_offset
    disk.write_meta([(at, bytes(past.meta[at : at + SUPERBLOCK_BYTES]))])
    bench = Bench("alpha", 1, disk)
    error = alone(bench).run(bench, bench.engine.attach(0))
    assert isinstance(error, CommandFailed)
    assert "earlier life" in str(error)
    # wipe-md at the end of the disk makes it plain.
    disk.write_meta([(at, bytes(SUPERBLOCK_BYTES))])
    assert attached(disk).volume.size == DISK_BYTES


def test_a_note_that_makes_no_sense_is_passed_over() -> None:
    disk = internal()
    lone_primary(disk)
    good = disk.noted
    for sizes in ((5,), (-4096, 3), (70 << 10, 1 << 60), (disk.size - 4096,)):
        other = copied(disk)
        other.noted = (sizes, good[1])
        assert attached(other).volume.size == DISK_BYTES
        assert other.noted == good


def test_a_client_s_copy_of_a_superblock_is_not_taken_for_metadata() -> None:
    """The old place is part of the device by now, and somebody has written such a thing there."""
    disk = internal()
    place = disk.layout.superblock_offset
    block = bytes(disk.meta[place : place + SUPERBLOCK_BYTES])
    bench = lone_primary(disk)
    disk.grow(disk.size + MIB)
    pair = alone(bench)
    from pydrbd.engine.resize import resize

    assert pair.run(bench, resize(bench.engine, bench.volume, assume_space=True)) is None
    assert bench.volume.size > place + SUPERBLOCK_BYTES
    assert pair.run(bench, bench.engine.write(0, place, block)) is None
    uuid = current(bench)
    again = attached(copied(disk))
    assert current(again) == uuid
    assert again.volume.layout == internal_layout(disk.size)
    assert again.disk.superblock().size_sectors * SECTOR == bench.volume.size
